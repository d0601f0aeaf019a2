"""The routing: which link goes to whom, and what becomes of it afterwards.

`Router.route` is the heart: after anything that may serve somebody who waits, it serves the oldest
ones and begins the dials that are missing. Like every step of a link from queue to queue it is
synchronous. What must wait for the network runs in a task (`tasks.py`), which then calls back.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
from collections.abc import Callable
from functools import partial
from typing import Final

import aiohttp

from wspool._connection import states
from wspool._connection.errors import (
    ConnectionPoolExhaustedError,
    ConnectionPoolTimeoutError,
    ConnectionPoolUnavailableError,
    ConnectionUnavailableError,
    WebsocketError,
)
from wspool._connection.link import Link, clock_of
from wspool._connection.loan import WebsocketConnection, view_of
from wspool._connection.queues import Queues
from wspool._connection.states import BUSY, CloseReason, State
from wspool._pool.capacity import Capacity
from wspool._pool.dialing import Dial, Gate
from wspool._pool.draining import (
    Discard,
    PendingConnection,
    dispose,
    dispose_of_rest,
    drain,
    is_last,
)
from wspool._pool.errands import Errand, Errands
from wspool._pool.listeners import Events
from wspool._pool.options import Options
from wspool._pool.permits import Permits
from wspool._pool.retiring import Retiring
from wspool._pool.stats import Stats
from wspool._pool.supply import Supply
from wspool._pool.tasks import Goodbye, Tasks, close_if_still, weakly, work
from wspool._pool.waiting import Line

logger = logging.getLogger("wspool")

LOSSES: Final = frozenset(
    {CloseReason.SERVER, CloseReason.STALE, CloseReason.ERROR, CloseReason.DRAIN}
)
"""Why a link goes that nobody meant to close."""


class Router:
    """The links of one pool, their queues, and the line of those who wait."""

    def __init__(self, options: Options, events: Events) -> None:
        self.options = options
        self.events = events
        self.stats = Stats()
        # Every link that has, or may soon have, a socket.
        self.queues: Queues[Link] = Queues()
        self.line = Line()
        self.tasks = Tasks()
        self.capacity = Capacity(self.queues, options)
        self.retiring = Retiring(options)
        self.errands = Errands(
            options, self.stats, events, self.queues, self.tasks, weakly(self._returned)
        )
        self.supply = Supply(
            *(options, self.stats, events, self.queues, self.line, self.capacity),
            *(self.retiring, self.tasks, _or_abort(weakly(self._closed)), weakly(self._dialled)),
        )
        # From the beginning of close() on nothing is lent, and nothing is dialled.
        self.is_closing = False
        self._is_routing = False
        self._all_returned_waiter: asyncio.Future[None] | None = None
        # What a goodbye and a drain call; one for all, since a weak method takes half a KiB.
        self._route_weakly = weakly(self.route)
        self._show_rest_weakly = weakly(self._show_rest)
        self._returned_weakly = weakly(self._returned)
        # From start() on.
        self.clock: Callable[[], float]

    def start(self, loop: asyncio.AbstractEventLoop, session: aiohttp.ClientSession) -> None:
        options, permits = self.options, None
        self.tasks.loop = loop
        self.clock = clock_of(loop)
        if options.quota is not None:
            permits = Permits(options.quota, options.connection_timeout, options.close_timeout)
        self.supply.start(session, Gate(options.max_connecting, loop.time, permits))

    def __repr__(self) -> str:
        counts = " ".join(f"{state}={count}" for state, count in self.queues.counts().items())
        return f"{counts} waiting={len(self.line)} max={self.options.max_connections}"

    # Lending.

    def lend_idle(self, loan: WebsocketConnection) -> bool:
        """Serve a loan at once, if an idle link can be lent at once."""
        link = self.next_idle()
        if link is None:
            return False
        self.lend(link, loan)
        self._count_loan(link, 0.0)
        return True

    def lend(self, link: Link, loan: WebsocketConnection) -> None:
        states.checkout(link, "acquire")
        link.uses += 1
        link.owner = link.loan = loan
        loan._link = link
        loan._uses = link.uses

    def _count_loan(self, link: Link, waited: float) -> None:
        """Count a loan that its borrower has taken; one that was passed on is none."""
        self.stats.borrows += 1
        if self.events.listeners:
            self.events.checked_out(link, waited)

    async def wait(self, loan: WebsocketConnection) -> None:
        """Return when the loan was served."""
        began = self.clock()
        alarm: asyncio.TimerHandle | None = None
        waiter: asyncio.Future[None] | None = None
        try:
            if self.is_closing:  # by a callable that the look at the idle ones has run
                raise ConnectionPoolUnavailableError("The pool was closed")
            self._check_may_wait(loan)
            self.stats.waits += 1
            waiter = self.line.join(loan)
            if loan._timeout:
                alarm = self.tasks.loop.call_later(loan._timeout, self._time_out, loan)
            if self.queues.idle or self.capacity.room > 0:
                self.route()
            await waiter
        except BaseException as error:
            if waiter is not None:
                self._leave_line(loan)
            self.events.check_out_failed(error, self.clock() - began)
            raise
        finally:
            if alarm is not None:
                alarm.cancel()
            if waiter is not None:
                self.stats.wait_seconds += self.clock() - began
        assert loan._link is not None
        self._count_loan(loan._link, self.clock() - began)

    def _leave_line(self, loan: WebsocketConnection) -> None:
        """End a wait in vain, and let nobody miss what was meant for it."""
        if loan._link is not None:  # cancelled in the very tick in which it was served
            self._pass_on(loan._link)
        if loan in self.line:  # perhaps an idle one was kept for it
            self.line.leave(loan)
            self.route()

    def _pass_on(self, link: Link) -> None:
        """Take back what a loan was served and could not take: it has not been used."""
        link.loan = None
        if link.state is BUSY:
            link.owner = None
            link.uses -= 1
            why = self._why_returned(link)
            if why is not None:
                link.close(why)
            else:
                self._check_in(link, "cancelled waiter")

    def _check_may_wait(self, loan: WebsocketConnection) -> None:
        """Raise unless waiting is allowed, or needless: a link is to come anyway."""
        is_patient, most = loan._timeout != 0, self.options.max_waiting
        if is_patient and most is None:
            return
        waiting = len(self.line)
        if not is_patient and not self.capacity.may_wait(waiting, is_patient=False):
            raise self._exhausted()
        if most is not None and waiting - self.capacity.coming >= most:
            raise ConnectionPoolExhaustedError(f"max_waiting={most} already wait: {self!r}")

    def _exhausted(self) -> ConnectionPoolExhaustedError:
        return ConnectionPoolExhaustedError(
            f"All connections are in use and acquire_timeout is 0: {self!r}"
        )

    def _time_out(self, loan: WebsocketConnection) -> None:
        if not loan._waiter.done():
            self.stats.timeouts += 1
            seconds = loan._timeout
            assert seconds is not None
            error: WebsocketError
            error = ConnectionPoolTimeoutError(f"No connection within {seconds} s: {self!r}")
            permits = self.supply.gate.permits
            if permits is not None and permits.waiting:
                error = permits.full(seconds)
            error.__cause__ = loan._failure or self.supply.gate.failure
            self.line.fail(loan, error)
            self.route()

    # Routing.

    def route(self) -> None:
        """Serve those who wait, oldest first, and begin the dials that are missing."""
        if self._is_routing or self.is_closing:
            return  # what a routing step sets off, the step under way takes into account
        self._is_routing = True
        try:
            waiting, idle = self.line.loans, self.queues.idle
            while waiting and idle and self._serve_one():
                pass
            if waiting and (room := self.capacity.room) > 0:
                wanted = len(waiting) - len(self.queues.connecting)
                self.supply.dial(min(wanted - self.errands.promised(self.line), room))
        finally:
            self._is_routing = False

    def _serve_one(self) -> bool:
        """Make one step for those who wait with an idle link; False if there is none."""
        queues, line = self.queues, self.line
        loan = line.oldest()
        if loan is not None and loan._wants_new:
            if self._is_room_wanted():
                self._make_room(1)
                return True
            loan = line.oldest_for_used()
        if loan is None:
            return False
        link = self.next_idle()
        if loan._waiter.done():
            return True  # by a user's callable, which the look has run: once more
        if link is None:
            if not queues.idle:
                return False
            if self.errands.checks >= len(line) and not self.errands.is_suspicious:
                return False
            self.errands.begin(next(reversed(queues.idle)), "check")
            return True
        self._serve(loan, link)
        return True

    def _serve(self, loan: WebsocketConnection, link: Link) -> None:
        self.lend(link, loan)
        self.line.serve(loan)

    def _is_room_wanted(self) -> bool:
        """Whether an idle one must go, at the limit, for the oldest in the line: that wants a new
        one, and too few dials and goodbyes are under way."""
        oldest = self.line.oldest()
        if oldest is None or not oldest._wants_new or self.capacity.room > 0:
            return False
        return len(self.queues.connecting) + len(self.queues.closed) < self.line.leading_new()

    def _hand_over(self, link: Link, loan: WebsocketConnection | None) -> None:
        """Lend this very link, which has just become idle, if that is still possible."""
        if loan is not None:
            self.attend(link)
            if link.is_flooding and link.uses:
                return  # its end is not in sight: next_idle() closes it
            if link in self.queues.idle and loan in self.line and not loan._waiter.done():
                self._serve(loan, link)

    def next_idle(self) -> Link | None:
        """Return the idle link to lend next: the last one in, so that a pool can shrink.

        Those that turn out to be lost, or too old, are closed on the way. None, too, when that
        one, and so all that are idle for longer, must be checked first.
        """
        idle = self.queues.idle
        while idle:
            link = next(reversed(idle))
            wire = link.wire
            assert wire is not None
            if link.is_flooding or wire.inbox or wire.has_unread():
                was_flooding = link.is_flooding
                self.attend(link)
                if was_flooding or link.is_flooding:  # the rest would reach the borrower
                    link.close(CloseReason.DRAIN)
                if link.state is not State.IDLE:
                    continue
            now = link.clock()
            if self.retiring.is_young(link, now):
                return link  # as nearly always
            if (why := self.why_idle(link, now)) is not None:
                link.close(why)
            else:
                return None if self.retiring.is_check_due(link, now) else link
        return None

    def attend(self, link: Link, most: int | None = None) -> bool:
        """Deal with what has arrived on a link that nobody reads; False if nothing had.

        If it is idle, with no more than `most` messages of that.
        """
        if not link.has_news:
            link.is_flooding = False
            return False
        if link.state is State.IDLE:
            self._dispose_of_unread(link, most)
        elif link.state is not State.CLOSED and link.wire is not None:
            link.wire.attend()
        return link.state is State.IDLE

    def _dispose_of_unread(self, link: Link, most: int | None = None) -> None:
        link.is_flooding = link.wire is not None and link.wire.is_flooded
        try:
            for message in itertools.islice(link.unread(), most):
                dispose(link, message, self.options, self.stats)
        except Discard as discard:
            link.close(discard.why, cause=discard.__cause__)

    def why_idle(self, link: Link, now: float) -> CloseReason | None:
        """Return why an idle link is to be closed, if it is."""
        is_spare = self.capacity.open > self.options.min_connections
        return self.retiring.why_idle(link, now, is_spare=is_spare)

    # Giving back.

    def give_back(
        self, loan: WebsocketConnection, *, is_failed: bool = False, force_remove: bool = False
    ) -> None:
        """End a loan and send its link on: to the idle ones, the drain or the grave."""
        link = loan._link
        if link is None or link.loan is not loan or link.queues is not self.queues:
            logger.warning("%r is not lent by this pool; releasing it does nothing", loan)
            return
        if self.events.listeners:
            self.events.checked_in(link)
        wire = link.wire
        assert wire is not None
        is_in_use, last = wire.is_in_use, loan._last_read
        loan._is_cut_off = link.state is not BUSY
        link.loan = None
        # Without a send nothing can be under way, however the borrower left.
        is_failed = is_failed and loan._has_sent
        why: CloseReason | None = None
        cause: BaseException | None = None
        if link.state is not BUSY:
            pass  # lost, or closed by the borrower
        else:
            link.owner = None
            if force_remove:
                why = CloseReason.USER
            elif is_in_use:
                why = CloseReason.ERROR
            elif (why := self._why_returned(link)) is None:
                if is_failed or self.options.may_drain:
                    try:
                        if self._begin_drain(link, loan, last, is_failed=is_failed):
                            return
                    except Discard as discard:
                        why, cause = discard.why, discard.__cause__
        if wire.inbox or wire.has_unread():
            self._dispose_of_unread(link)
            if link.is_flooding:
                why = why or CloseReason.DRAIN
        if why is not None:
            link.close(why, cause=cause)
        elif link.state is BUSY:
            self._check_in(link, "release")

    def _why_returned(self, link: Link) -> CloseReason | None:
        if self.is_closing:
            return CloseReason.POOL
        why = self.retiring.why_returned(link, link.clock())
        if why is None and self.capacity.room < 0 and self.capacity.surplus > 0:
            return CloseReason.ROOM
        return why

    def _check_in(self, link: Link, why: str) -> None:
        states.checkin(link, why)
        link.idle_since = link.moves[-1][1]
        if self.line.loans:
            self.route()

    def _begin_drain(
        self,
        link: Link,
        loan: WebsocketConnection,
        last: str | bytes | None,
        *,
        is_failed: bool,
    ) -> bool:
        """Drain what may not be clean; False if it is, and Discard if that cannot be known."""
        options = self.options
        is_clean = last is not None and is_last(link, last, options)
        if not is_clean:
            is_clean = not (is_failed or options.needs_check(has_sent=loan._has_sent))
        if is_clean and options.on_release is None:
            return False
        if options.on_release is None and not options.can_drain(is_failed):
            raise Discard(CloseReason.ERROR)
        states.drain(link, "release")
        self.events.drain_started(link)
        pending = PendingConnection(view_of(link), options.drain_timeout, options.drain_condition)
        link.owner = pending
        cleaning = partial(
            drain, pending, link, options, self.stats, is_failed=is_failed, is_clean=is_clean
        )
        link.task = pending.drain_task = self.tasks.spawn(
            work(link, cleaning, self._returned_weakly),
            partial(close_if_still, link, State.DRAINING, CloseReason.DRAIN),
        )
        return True

    def _returned(self, link: Link, discard: Discard | None) -> None:
        """Take back a link from a drain or an errand that has ended, well or badly."""
        if link.state is State.CLOSED:
            return
        owner, link.owner, link.task = link.owner, None, None
        was_checked = isinstance(owner, Errand) and owner.why == "check"
        why = discard.why if discard is not None else self._why_returned(link)
        if why is not None:
            if was_checked and why is CloseReason.STALE:
                self._suspect_the_rest()
            link.close(why, cause=discard.__cause__ if discard else None)
            return
        if not isinstance(owner, Errand):
            self.events.drained(link)
            states.drained(link, "clean")
            link.idle_since = link.clock()
        else:
            self.errands.end(owner)
            if was_checked:
                if not self._is_room_wanted():
                    self._hand_over(link, self.line.oldest_for_used())
            # One that is kept alive whenever the upkeep looks would live for ever.
            elif (why := self.why_idle(link, link.clock())) is not None:
                link.close(why)
        self.route()

    def _suspect_the_rest(self) -> None:
        """After a check without an answer, ask all others of its age, and dial meanwhile."""
        now = self.clock()
        for link in list(self.queues.idle):
            if self.retiring.is_check_due(link, now):
                self.errands.begin(link, "check")
        self.errands.is_suspicious = True

    def _dialled(self, dial: Dial, failure: ConnectionUnavailableError | None) -> None:
        """Take over from a dial that has ended, well or badly."""
        link = dial.link
        link.task = None
        if link.owner is not dial:
            return
        if failure is not None:
            self.supply.failed(dial, failure)
            return
        self.supply.succeeded(dial)
        if link.generation != self.retiring.generation:
            link.close(CloseReason.EXPIRED)
            return
        self._hand_over(link, self.line.oldest())
        self.route()
        self._make_room(self.capacity.surplus)

    # Closing.

    def _closed(self, link: Link) -> None:
        """Say goodbye to a link that has just entered the state closed."""
        self._show_rest(link)
        move, now, why = link.moves[-1]
        self.stats.closes[str(why)] += 1
        if why in LOSSES:
            logger.info(
                "lost #%d: %s; it was %s for %.1f s, is %.1f s old and was lent %d times",
                *(link.id, link.how_closed(), move.source),
                *(link.seconds_before, now - link.born, link.uses),
            )
        self.events.closed(link)
        returned = self._all_returned_waiter
        if returned is not None and not self.queues.busy and not returned.done():
            returned.set_result(None)
        if why is CloseReason.SERVER:
            self.supply.lost(link)
        task, link.task = link.task, None
        if task is asyncio.current_task():
            task = None  # it ends by itself, and cannot be waited for here
        elif task is not None:
            task.cancel()
        # A mute peer will not answer the goodbye either.
        timeout = 0.0 if why is CloseReason.STALE else self.options.close_timeout
        goodbye = link.owner = Goodbye(link, self._show_rest_weakly, self._route_weakly)
        self.tasks.spawn(goodbye.say(task, timeout), goodbye.abort)
        self.route()
        if self.capacity.room < 0:  # after a resize() its place serves nobody any more
            self._turn_away()

    def _turn_away(self) -> None:
        """End the wait of those who may not wait for a borrower, and now would."""
        for loan in list(self.line)[max(0, self.capacity.coming) :]:
            if loan._timeout == 0:
                self.line.fail(loan, self._exhausted())

    def _show_rest(self, link: Link) -> None:
        """Show what a closed link had received, and nobody has read."""
        if link.loan is None:  # else its borrower may still read what came before the close
            dispose_of_rest(link, self.options, self.stats)

    def retire_unpermitted(self) -> None:
        """Let go what has lost its lease of the quota: what is idle now, the rest afterwards."""
        for link in list(self.queues.all):
            if link.permit is not None and link.permit.is_lost:
                link.retire_at, link.retire_why = float("-inf"), CloseReason.QUOTA
                if link.state is State.IDLE:
                    link.close(CloseReason.QUOTA)

    def expire(self) -> None:
        """Let everything that exists or is being dialled be replaced."""
        self.retiring.generation += 1
        self.events.pool_cleared()
        for link in list(self.queues.idle):
            if link.state is State.IDLE:  # the goodbyes run a user's callable
                link.close(CloseReason.EXPIRED)
        self.supply.refill()

    def resize(self, max_connections: int) -> None:
        """Change the limit; who may wait only for what is no longer to come waits no more."""
        self.options.max_connections = max_connections
        self._make_room(self.capacity.surplus)
        self.route()
        self._turn_away()

    def _make_room(self, count: int) -> None:
        """Close this many idle links, the longest idle first."""
        idle = self.queues.idle
        for link in heapq.nsmallest(count, idle, key=lambda idle: idle.idle_since):
            if link in idle:
                link.close(CloseReason.ROOM)

    def close(self) -> None:
        """Refuse everybody from now on, and close what nobody has borrowed."""
        self.is_closing = True
        for loan in self.line:
            self.line.fail(loan, ConnectionPoolUnavailableError("The pool was closed"))
        for link in self.queues:
            if link.loan is None:
                link.close(CloseReason.POOL)

    async def finish(self, timeout: float | None, spared: asyncio.Task[None] | None) -> None:
        """Wait for the borrowers, close the rest, and return when no task is left but `spared`."""
        if self.queues.busy and timeout != 0:
            self._all_returned_waiter = self.tasks.loop.create_future()
            await asyncio.wait({self._all_returned_waiter}, timeout=timeout)
        if self.queues.busy:
            logger.warning("closing with borrowers, who lose their connections: %r", self)
        for link in self.queues:
            link.close(CloseReason.POOL)
        permits = self.supply.gate.permits
        releases = permits.releases if permits is not None else set()
        while left := {*self.tasks, *releases} - {spared}:
            await asyncio.wait(left)


def _or_abort(closed: Callable[[Link], bool]) -> Callable[[Link], None]:
    """Return what a link calls when it closes; without its pool it is cut off."""

    def on_close(link: Link) -> None:
        if not closed(link):
            link.abort()
            link.free()

    return on_close
