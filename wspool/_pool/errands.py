"""Errands: what the pool itself borrows an idle link for, a check or a keepalive.

As in a loan, the link is busy meanwhile. But an errand does not count as a use: the link comes
back as long idle as it was. What a server sends beside the answer is disposed of as if the link
were idle.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

from wspool._connection import states
from wspool._connection.link import Link
from wspool._connection.queues import Queues
from wspool._connection.states import CloseReason, State
from wspool._connection.wire import MAX_INBOX_BYTES
from wspool._pool.draining import dispose, run_hook
from wspool._pool.listeners import Events
from wspool._pool.options import Options
from wspool._pool.retiring import Retiring
from wspool._pool.stats import Stats
from wspool._pool.tasks import Discard, Tasks, Then, close_if_still, work
from wspool._pool.waiting import Line

CHECK_SECONDS: Final = 0.5
"""For the pong of a check; if the handshake was slow, twice what that took.

A handshake is at least two round trips, a ping is one. A server that is merely slow costs a new
handshake here; a mute one costs every borrower that waits for it this time.
"""


MAX_KEPT: Final = 100
"""Messages that come during the check of a link that nobody has borrowed, and may be a greeting.

As many at most, and no more after `MAX_INBOX_BYTES`.
"""


class Errand:
    """The owner of a link that is busy and no loan's. `why` is "check" or "keepalive"."""

    __slots__ = ("link", "why")

    def __init__(self, link: Link, why: str) -> None:
        self.link = link
        self.why = why

    async def run(self, options: Options, stats: Stats) -> None:
        """Return when the server has shown that it is there; raise Discard if it does not."""
        wire = self.link.wire
        assert wire is not None
        # A greeting is for the first borrower, and not what the server answers to an errand.
        greeting = wire.set_aside() if not self.link.uses else ()
        try:
            await self._run(options, stats)
        finally:
            wire.put_before(greeting)

    async def _run(self, options: Options, stats: Stats) -> None:
        if self.why == "check" or options.keepalive is None:
            await self._check(options, stats)
        else:
            try:
                async with asyncio.timeout(options.connection_timeout):
                    loan = await run_hook(self.link, options.keepalive, "keepalive")
                if loan._has_given_up:  # its answer would reach the next borrower
                    raise Discard(CloseReason.STALE)
            except TimeoutError:
                raise Discard(CloseReason.STALE) from None
        if self.why == "keepalive":
            self.link.kept_alive_at = self.link.clock()

    async def _check(self, options: Options, stats: Stats) -> None:
        link = self.link
        wire = link.wire
        assert wire is not None
        came: list[str | bytes] = []
        came_bytes = 0
        limit = min(options.connection_timeout, max(CHECK_SECONDS, 2 * link.handshake_seconds))
        try:
            async with asyncio.timeout(limit):
                ping = await wire.send_ping()
                while (message := await link.next_message(self, until=ping)) is not None:
                    await wire.budget.breathe()
                    if link.uses or len(came) > MAX_KEPT or came_bytes >= MAX_INBOX_BYTES:
                        dispose(link, message, options, stats)
                    else:
                        came.append(message)
                        came_bytes += len(message)
        except TimeoutError:
            raise Discard(CloseReason.STALE) from None
        finally:
            wire.put_before(came)
        link.checked_at = link.clock()


class Errands:
    """The errands of one pool, and what its checks say of the server."""

    def __init__(
        self,
        options: Options,
        stats: Stats,
        events: Events,
        queues: Queues[Link],
        tasks: Tasks,
        then: Then,
    ) -> None:
        self._options, self._stats, self._events = options, stats, events
        self._queues, self._tasks = queues, tasks
        self._then = then
        # Whether a check was not answered, and none has been since.
        self.is_suspicious = False

    @property
    def checks(self) -> int:
        """How many checks are under way."""
        owners = (link.owner for link in self._queues.busy)
        return sum(isinstance(owner, Errand) and owner.why == "check" for owner in owners)

    def promised(self, line: Line) -> int:
        """Return how many of those who wait a check will serve, as far as one knows."""
        if self.is_suspicious or not (checks := self.checks):
            return 0
        return min(checks, sum(not loan._wants_new for loan in line))

    def begin(self, link: Link, why: str) -> None:
        """Borrow an idle link."""
        if why == "check" and not self.checks:
            self.is_suspicious = False
        errand = Errand(link, why)
        states.checkout(link, why)
        link.owner = errand
        link.task = self._tasks.spawn(
            work(link, partial(errand.run, self._options, self._stats), self._then),
            partial(close_if_still, link, State.BUSY, CloseReason.ERROR),
        )

    def suspect_the_rest(self, retiring: Retiring, now: float) -> None:
        """After a check without an answer, ask all others of its age, and let dials be begun."""
        for link in list(self._queues.idle):
            if retiring.is_check_due(link, now):
                self.begin(link, "check")
        self.is_suspicious = True

    def end(self, errand: Errand) -> None:
        """Let a link be idle again, at its place among those that are idle for as long."""
        link, idle = errand.link, self._queues.idle
        if errand.why == "check":
            self.is_suspicious = False
        newest = next(reversed(idle), None)
        self._events.checked(link, errand.why)
        states.checkin(link, errand.why)
        if newest is not None and newest.idle_since > link.idle_since:
            self._queues.lend_last(link)
