"""The routing: which link goes to whom, and what becomes of it afterwards.

`Router.route` is the heart: after anything that may serve somebody who waits, it serves the oldest
ones and begins the dials that are missing. Like every step of a link from queue to queue it is
synchronous. What must wait for the network runs in a task (`tasks.py`), which then calls back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import aiohttp

from wspool._connection import states
from wspool._connection.borrow import Borrow
from wspool._connection.budget import Budget, clock_of
from wspool._connection.errors import (
    ConnectionPoolUnavailableError,
    ConnectionUnavailableError,
)
from wspool._connection.link import NEVER, Link
from wspool._connection.loan import WebsocketConnection
from wspool._connection.queues import Queues
from wspool._connection.states import BUSY, CloseReason, State
from wspool._pool import telling
from wspool._pool.attending import Attending, forget_another
from wspool._pool.capacity import Capacity
from wspool._pool.closing import Closing
from wspool._pool.dialing import Dial
from wspool._pool.draining import Draining
from wspool._pool.errands import Errand, Errands
from wspool._pool.gate import Gate
from wspool._pool.limit import Limit
from wspool._pool.listeners import Events
from wspool._pool.options import ACQUIRE_TIMEOUT, Options
from wspool._pool.patience import Patience
from wspool._pool.permits import Permits
from wspool._pool.repeating import Repeating
from wspool._pool.replacing import Replacing
from wspool._pool.retiring import Retiring
from wspool._pool.stats import Stats, count_refusal
from wspool._pool.streaming import Streaming
from wspool._pool.supply import Supply
from wspool._pool.tasks import Discard, Tasks, or_abort, weakly
from wspool._pool.waiting import Line

logger = logging.getLogger("wspool")


class Router:
    """The links of one pool, their queues, and the line of those who wait."""

    def __init__(self, options: Options, events: Events) -> None:
        self.options = options
        self.events = events
        self.stats = Stats()
        # Every link that has, or may soon have, a socket.
        self.queues: Queues[Link] = Queues(options.has_errands)
        self.line = Line()
        self.tasks = Tasks()
        self.budget = Budget()
        self.limit = Limit(options, events.limit_learned)
        self.capacity = Capacity(self.queues, self.limit)
        self.retiring = Retiring(options)
        self.attending = Attending(options, self.stats, self.queues, self.capacity, self.retiring)
        then = weakly(self._returned)
        self.errands = Errands(options, self.stats, events, self.queues, self.tasks, then)
        self.draining = Draining(options, self.stats, events, self.tasks, then)
        self.closing = Closing(
            options, self.stats, events, self.queues, self.tasks, weakly(self._gone)
        )
        self.permits = Permits(
            *(options, self.line, self.queues, weakly(self.closing.make_room)),
            weakly(self._dials_wait),
        )
        self.gate = Gate(options.max_connecting, self.permits)
        self.patience = Patience(
            *(options, self.stats, self.queues, self.line, self.capacity, self.gate),
            *(self.limit, self.attending),
        )
        self.gate.on_wait = weakly(self._dials_wait)
        self.supply = Supply(
            *(options, self.stats, events, self.queues, self.line, self.capacity, self.retiring),
            *(self.tasks, self.budget, self.gate, self.limit, self.patience),
            *(or_abort(weakly(self._closed)), weakly(self._dialled)),
        )
        self.replacing = Replacing(
            *(options, self.queues, self.line, self.capacity, self.retiring, self.gate, self.supply)
        )
        self.repeating = Repeating(self.stats, events)
        # Where the messages tell whose they are.
        self.streaming = Streaming(
            *(options, self.stats, events, self.queues, self.line, self.capacity, self.retiring),
            *(self.attending, self.replacing, self.tasks),
            weakly(self._refill),
            weakly(self.route),
            weakly(self._emptied),
        )
        # From the beginning of close() on nothing is lent, and nothing is dialled.
        self.is_closing = False
        self._is_routing = False
        # Whether the end of an answer can be known, or it was said that it cannot.
        self._knows_ends = options.may_drain or options.max_uses == 1
        # From start() on.
        self.clock: Callable[[], float]

    def start(self, loop: asyncio.AbstractEventLoop, session: aiohttp.ClientSession) -> None:
        self.tasks.loop = loop
        self.clock = self.limit.clock = clock_of(loop)
        self.supply.start(session)

    def __repr__(self) -> str:
        return repr(self.patience)

    # Lending.

    def lend_idle(self, loan: Borrow) -> bool:
        """Serve a loan at once, if an idle link can be lent at once."""
        if loan._prefer is not None and self.patience.holds_out(loan, self.patience.dials):
            return False
        link = self.attending.next_idle(loan._prefer)
        if link is None:
            return False
        self.lend(link, loan, self.attending.looked_at)
        self.stats.borrows += 1
        if self.events.listeners:
            self.events.checked_out(link, 0.0)
        if self.options.min_idle or self.replacing.outdated:
            self._refill()
        return True

    def lend(self, link: Link, loan: Borrow, now: float | None = None) -> None:
        states.checkout(link, "acquire", now)
        link.uses += 1
        link.owner = link.loan = loan
        if self.replacing.outdated:
            self.replacing.note_lent(link)
        loan._link = link
        loan._uses = link.uses
        if loan._prefer is not None and link.context is not None:
            forget_another(link, loan)

    def _count_loan(self, loan: Borrow, link: Link, waited: float) -> None:
        """Count a loan that its borrower has taken; one that was passed on is none."""
        if loan._lender is None:
            return  # a probe's, which passes it on
        self.stats.borrows += 1
        if loan._is_stream:
            self.streaming.tell_of(loan, waited)
        elif self.events.listeners:
            self.events.checked_out(link, waited)

    async def wait(self, loan: Borrow) -> None:
        """Return when the loan was served."""
        if loan._timeout is ACQUIRE_TIMEOUT:
            loan._timeout = self.options.acquire_timeout
        began = self.clock()
        alarm: asyncio.TimerHandle | None = None
        waiter: asyncio.Future[None] | None = None
        try:
            if self.is_closing:  # by a callable that the look at the idle ones has run
                raise ConnectionPoolUnavailableError("The pool was closed")
            self.patience.check(loan)
            self.stats.waits += 1
            waiter = self.line.join(loan, began)
            loan._gate_closed = self.gate.closed_seconds
            if loan._timeout:
                alarm = self.tasks.loop.call_later(loan._timeout, self._time_out, loan)
            if self.queues.idle or self.capacity.may_dial:
                self.route()
            if self.permits.shares:
                self.permits.reclaim()
            if self.gate.streak:
                self._turn_away_at_the_gate()
            await waiter
            while (link := loan._link) is None or not loan._owns(link):
                await self._wait_on(loan)
        except BaseException as error:
            if waiter is not None:
                self._leave_line(loan)
            count_refusal(self.stats, error)
            self.events.check_out_failed(error, self.clock() - began)
            raise
        finally:
            if alarm is not None:
                alarm.cancel()
            waited = self.clock() - began
            if waiter is not None:
                self.stats.wait_seconds += waited
        self._count_loan(loan, link, waited)

    async def _wait_on(self, loan: Borrow) -> None:
        """Wait on at the head of the line: the link was lost in the tick in which it was served."""
        link = loan._link
        assert link is not None
        self._pass_on(loan, link)
        loan._link = None
        seconds = loan._timeout
        if self.is_closing:
            raise ConnectionPoolUnavailableError("The pool was closed")
        self.patience.check_at_the_head(loan)
        self.line.rejoin(loan)
        if seconds and self.tasks.loop.time() >= loan._since + seconds:
            self._time_out(loan)
        else:
            self.route()
        await loan._waiter

    def _leave_line(self, loan: Borrow) -> None:
        """End a wait in vain, and let nobody miss what was meant for it."""
        if loan._link is not None:  # cancelled in the very tick in which it was served
            self._pass_on(loan, loan._link)
        if loan in self.line:  # perhaps an idle one was kept for it
            self.line.leave(loan)
            self.route()
        elif self.streaming.has_route:  # where it may have kept one from becoming fuller
            self.route()

    def _pass_on(self, loan: Borrow, link: Link) -> None:
        """Take back what a loan was served and could not take: it has not been used."""
        if loan._is_stream:
            self.streaming.pass_on(loan)
            return
        link.loan = None
        if link.state is BUSY:
            link.owner = None
            link.uses -= 1
            why = self._why_returned(link)
            if why is not None:
                link.close(why)
            else:
                self._check_in(link, "cancelled waiter")

    def _turn_away_at_the_gate(self) -> None:
        if self.patience.turn_away_at_the_gate() and self.streaming.has_route:
            self.route()  # whoever went may have kept a link from becoming fuller

    def _time_out(self, loan: Borrow) -> None:
        if not loan._waiter.done():
            self.patience.time_out(loan)
            self.route()

    # Routing.

    def route(self) -> None:
        """Serve those who wait, oldest first, and begin the dials that are missing."""
        if self._is_routing or self.is_closing:
            return  # what a routing step sets off, the step under way takes into account
        self._is_routing = True
        try:
            waiting, beyond, idle = self.line.loans, self.line.beyond, self.queues.idle
            has_route = self.streaming.has_route
            while True:
                while (waiting or beyond) and (idle or has_route) and self._serve_one():
                    pass
                if beyond and self.line.crowd is not None:
                    self.line.crowd.adopt()
                if waiting and self.capacity.may_dial:
                    self.supply.serve(self.errands.promised(self.line))
                # A shared link that is soon too old has had fewer slots than were hoped for; and
                # whoever goes may have kept one from becoming fuller.
                if not (waiting and has_route and self.patience.turn_away_the_surplus()):
                    break
        finally:
            self._is_routing = False

    def _serve_one(self) -> bool:
        """Make one step for those who wait with an idle link; False if there is none."""
        queues, line = self.queues, self.line
        if self.streaming.has_route:
            if self.streaming.serve_one():
                return True
            if not queues.idle:
                return False
        loan = line.oldest()
        if loan is not None and loan._prefer is not None:  # a new one, or one with its context
            if self.patience.is_room_wanted():
                self.closing.make_room(1)
                return True
            loan = self.patience.taker()
        if loan is None:
            return False
        link = self.attending.next_idle(loan._prefer, loan._is_stream)
        if loan._waiter.done():
            return True  # by a user's callable, which the look has run: once more
        if link is None:
            if not queues.idle:
                return False
            if self.errands.checks >= len(line.takers()) and not self.errands.is_suspicious:
                return False
            self.errands.begin(self.attending.unchecked, "check")
            return True
        self._serve(loan, link)
        return True

    def _serve(self, loan: Borrow, link: Link) -> None:
        (self.streaming.lend if loan._is_stream else self.lend)(link, loan)
        self.line.serve(loan)
        if self.options.min_idle or self.replacing.outdated:
            self._refill()

    def _hand_over(self, link: Link, loan: Borrow | None) -> None:
        """Lend this very link, which has just become idle, if that is still possible."""
        if loan is not None:
            self.attending.attend(link)
            if link.is_flooding and link.uses:
                return  # its end is not in sight: next_idle() closes it
            if link in self.queues.idle and loan in self.line and not loan._waiter.done():
                self._serve(loan, link)

    # Giving back.

    def give_back(
        self, loan: WebsocketConnection, is_failed: bool = False, force_remove: bool = False
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
        is_in_use = wire.is_reading or wire.is_receiving
        if wire.is_exposed or wire.unfinished_sends:
            is_in_use = wire.is_in_use
        link.loan = None
        # Without a send nothing can be under way, however the borrower left.
        is_failed = loan._has_sent and (is_failed or loan._has_given_up)
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
                        if self.draining.begin(link, loan, is_failed=is_failed):
                            return
                    except Discard as discard:
                        why, cause = discard.why, discard.__cause__
        if wire.inbox or wire.arrivals:
            self.attending.dispose(link)
            if link.is_flooding:
                why = why or CloseReason.DRAIN
        if why is not None:
            link.close(why, cause=cause)
        elif link.state is BUSY:
            if self.events.watch is not None and not wire.has_unread():
                self.events.watch.ended_well()
            if loan._has_sent and loan._last_message is None and not self._knows_ends:
                self._knows_ends = True
                if not wire.is_exposed:
                    telling.warn_of_no_end(loan)
            self._check_in(link, "release")
            return
        loan._is_cut_off = True

    def _emptied(self, link: Link) -> None:
        """Take back a link whose last stream is over."""
        link.loan = link.owner = None
        why = self._why_returned(link)
        if why is None and link.wire is not None and link.wire.is_in_use:
            why = CloseReason.ERROR  # a task of a stream's still reads
        if why is not None:
            link.close(why)
        else:
            if self.events.watch is not None:
                self.events.watch.ended_well()
            self._check_in(link, "last stream")

    def _why_returned(self, link: Link) -> CloseReason | None:
        if self.is_closing:
            return CloseReason.POOL
        if link.retire_at < NEVER or self.options.max_uses is not None:
            why = self.retiring.why_returned(link)
            if why is not None:
                return why
        if self.permits.shares and self.permits.is_owed:
            return CloseReason.ROOM
        if len(self.queues.all) > self.limit.most and self.capacity.surplus > 0:
            return CloseReason.ROOM
        return None

    def _check_in(self, link: Link, why: str) -> None:
        states.checkin(link, why)
        link.idle_since = link.moves[-1][1]
        if self.line.loans or self.line.beyond:
            self.route()

    def _returned(self, link: Link, discard: Discard | None) -> None:
        """Take back a link from a drain or an errand that has ended, well or badly."""
        if link.state is State.CLOSED:
            return
        owner, link.owner, link.task = link.owner, None, None
        was_checked = isinstance(owner, Errand) and owner.why == "check"
        why = discard.why if discard is not None else self._why_returned(link)
        if why is not None:
            if was_checked and why is CloseReason.STALE:
                self.errands.suspect_the_rest(self.retiring, self.clock())
            link.close(why, cause=discard.__cause__ if discard else None)
            return
        if not isinstance(owner, Errand):
            self.events.drained(link)
            states.drained(link, "clean")
            link.idle_since = link.clock()
        else:
            self.errands.end(owner)
            if was_checked:
                if not self.patience.is_room_wanted():
                    self._hand_over(link, self.patience.taker(link.context))
            # One that is kept alive whenever the upkeep looks would live for ever.
            elif (why := self.attending.why_idle(link, link.clock())) is not None:
                link.close(why)
        self.route()

    def _dials_wait(self) -> None:
        """Let nobody wait for a dial, that is for its gate, who need not."""
        if self.queues.idle:
            self.route()
        if self.line.crowd is not None:
            self.line.crowd.reconsider()
        self._turn_away_at_the_gate()

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
        if link.retire_why is CloseReason.EXPIRED and link.clock() >= link.retire_at:
            link.close(CloseReason.EXPIRED)
            return
        self._hand_over(link, self.line.oldest())
        self.route()
        self.replacing.opened(link)
        self.closing.make_room(self.capacity.surplus)

    # Closing.

    def _closed(self, link: Link) -> None:
        """Deal with a link that has just entered the state closed."""
        self.replacing.forget(link)
        if link.is_shared:
            self.streaming.closed(link)
        self.closing.begin(link)
        self.supply.closed(link)
        self.route()
        if link.opened_at is not None:
            self._refill()
        if self.capacity.room < 0:  # at a lower limit its place serves nobody any more
            self.patience.turn_away_the_surplus()

    def _gone(self) -> None:
        """Use the place of a link whose socket is gone; a dial that failed is not repeated here."""
        self.route()
        if not self.gate.streak:
            self._refill()

    def _refill(self) -> None:
        if not self.is_closing:
            self.supply.refill()
            self.replacing.refill()

    def expire(self, grace: float) -> None:
        """Let everything that exists or is being dialled be replaced, within so many seconds."""
        self.events.pool_cleared()
        self.replacing.expire(grace, self.clock())
        self._refill()

    def resize(self, max_connections: int) -> None:
        """Change the limit; who may wait only for what is no longer to come waits no more."""
        self.options.resize(max_connections)
        self.limit.refresh()
        self.closing.make_room(self.capacity.surplus)
        self.route()
        self.patience.turn_away_the_surplus()

    def close(self) -> None:
        """Refuse everybody from now on, and close what nobody has borrowed."""
        self.is_closing = True
        for loan in self.line:
            self.line.fail(loan, ConnectionPoolUnavailableError("The pool was closed"))
        for link in self.queues:
            if link.loan is None:
                link.close(CloseReason.POOL)
        self.streaming.close()

    async def finish(self, spared: asyncio.Task[None] | None) -> None:
        """Close the rest, and return when no task is left but `spared`."""
        if self.queues.busy:
            logger.warning("closing with borrowers, who lose their connections: %r", self)
        for link in self.queues:
            link.close(CloseReason.POOL)
        while left := {*self.tasks, *self.permits.releases} - {spared}:
            await asyncio.wait(left)
