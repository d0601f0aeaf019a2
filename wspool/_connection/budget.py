"""The budget: how long the pool reads in one turn of the event loop; the clock of that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice
from time import monotonic, perf_counter
from typing import Final

TURN_SECONDS: Final = 0.002
"""Of reading, before the event loop goes on with what else it has to do."""

MIN_FRAMES: Final = 10
"""Taken off a wire whenever somebody looks, however much was read elsewhere in this turn.

Not where more is unread than aiohttp's queue holds: there, taking one may inflate the next.
"""

MAX_WOKEN: Final = 32
"""Of those who wait for a turn to read, so many at most ask in each."""

MESSAGE_OVERHEAD_BYTES: Final = 128
"""That a message which is kept counts beside its length, so that tiny ones are bounded too."""


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """Return `loop.time`, or what it tells: that takes 0.06 µs less, several times for each loan.

    uvloop's own clock is the same, but stands still within a turn and has milliseconds only.
    """
    kind = type(loop)
    if kind.time is asyncio.BaseEventLoop.time or kind.__module__.partition(".")[0] == "uvloop":
        return monotonic
    return loop.time


class Budget:
    """The reading time of one pool in the present turn of its loop."""

    __slots__ = ("_ends_at", "_has_free_pass", "_is_due", "_waiting")

    def __init__(self) -> None:
        # Who waits in `breathe`, in order of arrival, and what wakes them up.
        self._waiting: dict[object, asyncio.Future[None]] = {}
        # By perf_counter; None before something was read in this turn.
        self._ends_at: float | None = None
        # Whether the next turn is waited for; whether whoever is first then may read anyway.
        self._is_due = self._has_free_pass = False

    @property
    def is_spent(self) -> bool:
        """Whether nothing more is to be read before the next turn. The first call begins it."""
        now = perf_counter()
        if self._ends_at is None:
            self._ends_at = now + TURN_SECONDS
            self._await_next_turn()
        return now > self._ends_at

    def _await_next_turn(self) -> None:
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._begin_anew)

    def _begin_anew(self) -> None:
        self._is_due = False
        self._ends_at = None
        if self._waiting:
            self._has_free_pass = True
            for waiter in islice(self._waiting.values(), MAX_WOKEN):
                if not waiter.done():
                    waiter.set_result(None)
            self._await_next_turn()

    async def breathe(self) -> None:
        """Let the loop go on if this turn is used up, until it is the caller's turn to read.

        One after the other: a frame of each would be too much, where it is one to be inflated. But
        each turn at least one reads, and not all who wait are woken for it: a thousand would use up
        the next turns by asking whether they may.
        """
        if not (self._waiting or self.is_spent):
            return
        loop = asyncio.get_running_loop()
        place = object()
        try:
            while True:
                waiter = self._waiting[place] = loop.create_future()
                self._await_next_turn()
                await waiter
                if not self.is_spent or self._has_free_pass:
                    self._has_free_pass = False
                    return
        finally:
            del self._waiting[place]
