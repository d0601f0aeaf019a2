"""Capacity: how many links there may be, and what somebody who waits may hope for.

All of it is lengths of queues and one limit, `max_connections` or what the server admits. This file
knows neither loop nor network, and decides nothing else.
"""

from __future__ import annotations

from typing import Any

from wspool._connection.queues import Queues
from wspool._pool.limit import Limit


class Capacity:
    """What one pool has room for."""

    def __init__(self, queues: Queues[Any], limit: Limit) -> None:
        self._queues = queues
        self._limit = limit

    @property
    def open(self) -> int:
        """The links that are open: idle, busy and draining."""
        queues = self._queues
        return len(queues.idle) + len(queues.busy) + len(queues.draining)

    @property
    def room(self) -> int:
        """How many more links there may be; below 0 when the limit has become lower."""
        return self._limit.most - len(self._queues.all)

    @property
    def may_probe(self) -> bool:
        """Whether one more may ask the server, at its limit, if it admits that."""
        return self._limit.is_due and self._limit.is_short and self.room == 0

    @property
    def may_dial(self) -> bool:
        """Whether a dial may begin for somebody who waits."""
        room = self.room
        return room > 0 or (self._limit.learned is not None and self.may_probe)

    @property
    def surplus(self) -> int:
        """How many links too many there are after a `resize()`, those being closed apart."""
        queues = self._queues
        return len(queues.all) - len(queues.closed) - self._limit.most

    @property
    def errands(self) -> int:
        """How many links the pool has borrowed itself: busy, and no loan's."""
        return sum(link.loan is None for link in self._queues.busy)

    @property
    def held(self) -> int:
        """How many links come back only when a borrower, or a drain, lets go of them."""
        queues = self._queues
        return len(queues.busy) - self.errands + len(queues.draining)

    @property
    def coming(self) -> int:
        """How many links can be had without a borrower's doing.

        Those that are being dialled, kept alive, checked or closed, room for a dial, and an idle
        one that has to be checked first, or to make room: each lets one caller wait for it.
        """
        queues = self._queues
        unheld = self._limit.most - self.held
        return max(unheld, len(queues.connecting) + len(queues.idle))

    def left(self, dials: int) -> int:
        """Return how many links can come to those whom only so many dials may still help.

        From these dials, or from what is open and nobody holds.
        """
        queues = self._queues
        unheld = max(0, self._limit.most - self.held)
        return min(unheld, dials + len(queues.idle) + self.errands)

    def may_wait(self, place: int, coming: int, *, is_patient: bool) -> bool:
        """Return whether somebody has something to wait for: the one question of all waits.

        `place` is how many are before it in the line, `coming` how many links come by themselves.
        `is_patient`: it waits for what a borrower or a drain holds, too.
        """
        return place < coming or (is_patient and coming + self.held > 0)
