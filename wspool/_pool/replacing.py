"""Replacing: links that have to go soon, and are lent until their replacements are open.

They are outdated: `expire_connections(grace)` has said so, or they are about to be older than
`max_lifetime` in a pool that keeps some ready. The time that is set for them, `retire_at`, ends
them in any case (`retiring.py`); this file begins the dials before that, and lets one outdated link
go for each fresh one.

It replaces what is needed: as many as somebody has borrowed since they are outdated, and what
`min_connections` and `min_idle` demand. While somebody waits each dial is the line's.
"""

from __future__ import annotations

from typing import Final

from wspool._connection.link import Link
from wspool._connection.queues import Queues
from wspool._connection.states import CloseReason, State
from wspool._pool.capacity import Capacity
from wspool._pool.gate import Gate
from wspool._pool.options import Options
from wspool._pool.retiring import JITTER, Retiring
from wspool._pool.supply import Supply
from wspool._pool.waiting import Line

AT_ONCE: Final = float("-inf")


class Replacing:
    """The outdated links of one pool."""

    def __init__(
        self,
        options: Options,
        queues: Queues[Link],
        line: Line,
        capacity: Capacity,
        retiring: Retiring,
        gate: Gate,
        supply: Supply,
    ) -> None:
        self._options, self._queues, self._line = options, queues, line
        self._capacity, self._retiring = capacity, retiring
        self._gate, self._supply = gate, supply
        # Those that are lent until they are replaced, or go when they are given back, and whether
        # they have expired; which of these somebody has needed since: for each a fresh one is due.
        self.outdated: dict[Link, bool] = {}
        self.wanted: dict[Link, None] = {}
        # Those of the latter that had to make room, and whose replacements are not open yet.
        self.ahead: dict[Link, None] = {}

    # What becomes outdated.

    def expire(self, grace: float, now: float) -> None:
        """Let all that exists or is being dialled go within so many seconds, or at once."""
        self.outdated, self.wanted, self.ahead = {}, {}, {}
        for link in self._queues:
            if link.state is State.CLOSED:
                continue
            self._retiring.expire(link, now + grace)
            if grace:
                self.outdated[link] = True
                if link.loan is not None or link.state is State.DRAINING:
                    self.wanted[link] = None
        self.close_overdue(now)

    def close_overdue(self, now: float) -> None:
        """Close the idle ones whose time is over."""
        for link in list(self._queues.idle):
            # The goodbyes run a user's callable, which may close the next one.
            if link.retire_at <= now and link.state is State.IDLE:
                link.close(link.retire_why)

    def look(self, now: float) -> None:
        """Do what is due at each sweep."""
        self._find_aged(now)
        if self.outdated:
            self.close_overdue(now)
        if not self._gate.streak:  # else the next clean-up is soon enough
            self.refill()

    def _find_aged(self, now: float) -> None:
        """Let those be outdated that are about to be too old, where some are kept.

        The replacement has the time of one attempt, but not more than lifetimes differ by anyway.
        """
        options = self._options
        if options.max_lifetime is None or not (options.min_connections or options.min_idle):
            return
        ahead = min(options.connection_timeout, JITTER * options.max_lifetime)
        for state in (State.IDLE, State.BUSY, State.DRAINING):
            for link in self._queues[state]:
                if link.retire_why is CloseReason.LIFETIME and now >= link.retire_at - ahead:
                    self.outdated.setdefault(link, False)

    def note_lent(self, link: Link) -> None:
        """Somebody needs one of these: if it has expired, it is to be replaced.

        One that is merely old goes without that, if it is not kept, as it does elsewhere.
        """
        if self.outdated.get(link):
            self.wanted[link] = None

    def forget(self, link: Link) -> None:
        """One has closed."""
        self.outdated.pop(link, None)
        self.wanted.pop(link, None)

    # What replaces it.

    def refill(self) -> None:
        """Begin the dials that are due; at the limit let one that is idle go first."""
        if not (self.outdated or self.ahead) or self._line.loans:
            return
        short, room = self._short(), self._capacity.room
        if room > 0:
            self._supply.dial(min(short, room))
        elif short > 0 and not (self._queues.connecting or self._queues.closed):
            idle = [link for link in self._queues.idle if link in self.outdated]
            if idle:
                first = min(idle, key=lambda link: (link in self.wanted, link.idle_since))
                if first in self.wanted:
                    self.ahead[first] = None
                first.close(first.retire_why)

    def _short(self) -> int:
        """Return how many links are missing, were it not for the outdated ones."""
        fresh = [
            link
            for link in self._queues
            if link not in self.outdated and link.state is not State.CLOSED
        ]
        in_use = sum(link.loan is not None for link in fresh)
        in_use += len(self.wanted) + len(self.ahead)
        needed = max(self._options.min_connections, in_use + self._options.min_idle)
        return needed - len(fresh)

    def opened(self, link: Link) -> None:
        """A fresh one is open: let one go that it replaces, best one that somebody needed.

        One that was dialled for somebody who waited, and has it now, replaces none.
        """
        if link in self.outdated:
            return
        if self.ahead:
            del self.ahead[next(iter(self.ahead))]
            return
        if not self.outdated or link.state is not State.IDLE:
            return
        old = next((old for old in self.wanted if old.state is State.IDLE), None)
        old = old or next(iter(self.wanted), None)
        old = old or next((old for old in self._queues.idle if old in self.outdated), None)
        if old is None:
            return
        self.wanted.pop(old, None)
        if old.state is State.IDLE:
            old.close(old.retire_why)
        else:
            old.retire_at = AT_ONCE
