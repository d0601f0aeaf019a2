"""The routing: which connection goes to whom, and what becomes of it afterwards.

`Router.route` is the heart: after anything that may serve a waiter, it serves the oldest ones and
begins the dials that are missing. Like every step of a connection from queue to queue it is
synchronous. What must wait for the network runs in a task of the router's; such a task holds the
router weakly, so that a pool that was dropped is collected, and after each wait the router looks
whether the connection is still in the state that it was left in: the loser ends silently.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
import heapq
import itertools
import logging
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final

import aiohttp

from wspool._connection import states
from wspool._connection.callsites import Borrower
from wspool._connection.errors import (
    ConnectionPoolExhaustedError,
    ConnectionPoolTimeoutError,
    ConnectionPoolUnavailableError,
    ConnectionUnavailableError,
    WebsocketError,
)
from wspool._connection.link import NEVER, WebsocketConnection, clock_of
from wspool._connection.queues import Queues
from wspool._connection.states import BUSY, CloseReason, State
from wspool._pool.dialing import Gate
from wspool._pool.draining import (
    Discard,
    PendingConnection,
    dispose,
    dispose_of_rest,
    drain,
    is_last,
)
from wspool._pool.errands import JITTER, Errands, check, keep_alive
from wspool._pool.listeners import Events
from wspool._pool.options import Options
from wspool._pool.stats import Stats
from wspool._pool.tasks import bury_weakly, cut_off, give_up, open_socket, own, say_goodbye
from wspool._pool.waiting import Line, Waiter
from wspool.quota import Permits

logger = logging.getLogger("wspool")

LOSSES: Final = frozenset(
    {CloseReason.SERVER, CloseReason.STALE, CloseReason.ERROR, CloseReason.DRAIN}
)
"""Why a connection goes that nobody meant to close."""


class Router:
    """The connections of one pool, their queues, those who wait, and the tasks at work on them."""

    def __init__(self, options: Options, events: Events) -> None:
        self.options = options
        self.stats = Stats()
        self.events = events
        # Every connection that has, or may soon have, a socket.
        self.queues: Queues[WebsocketConnection] = Queues()
        self.line = Line()
        # From the beginning of close() on nothing is lent, and nothing is dialled.
        self.is_closing = False
        # Those that the pool has borrowed itself.
        self.errands = Errands(options)
        # How often expire() was called; connections of earlier generations go.
        self.generation = 0
        self._ids = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        # One for all connections: a weak method takes half a KiB.
        self._on_close = bury_weakly(self)
        self._is_routing = False
        self._all_returned: asyncio.Future[None] | None = None
        # Tasks run in the context of the pool's construction, not of whoever acquired first.
        self._context = contextvars.copy_context()

    def start(self, loop: asyncio.AbstractEventLoop, session: aiohttp.ClientSession) -> None:
        self.loop = loop
        self.clock = clock_of(loop)
        self._session = session
        options, permits = self.options, None
        if options.quota is not None:
            permits = Permits(options.quota, options.connection_timeout, options.close_timeout)
        self._gate = Gate(options.max_connecting, loop.time, permits)
        for _ in range(max(self.options.warmup_connections, self.options.min_connections)):
            self._begin_dial()

    def spawn(
        self, coroutine: Coroutine[Any, Any, None], if_cancelled: Callable[[], None] | None = None
    ) -> asyncio.Task[None]:
        """Run a coroutine in a task of the router's.

        `if_cancelled` clears up after a task that was cancelled, and it too works where the task
        was cancelled before its first step, as at the end of `asyncio.run`.

        Made directly: an eager task factory would run it in the middle of a routing step.
        """
        task = asyncio.Task(coroutine, loop=self.loop, context=self._context.copy())
        tasks = self._tasks
        tasks.add(task)

        def has_ended(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            if if_cancelled is not None and task.cancelled():
                if_cancelled()

        task.add_done_callback(has_ended)
        return task

    def __repr__(self) -> str:
        counts = " ".join(f"{state}={count}" for state, count in self.queues.counts().items())
        return f"{counts} waiting={len(self.line)} max={self.options.max_connections}"

    @property
    def total_connections(self) -> int:
        """The connections that are open: idle, busy and draining."""
        return len(self.queues.idle) + len(self.queues.busy) + len(self.queues.draining)

    # Lending.

    def lend_idle(self, borrower: Borrower) -> WebsocketConnection | None:
        """Lend an idle connection, if there is one that can be lent at once."""
        connection = self.next_idle()
        if connection is not None:
            self.lend(connection, borrower)
            self._count_loan(connection, 0.0)
        return connection

    def lend(self, connection: WebsocketConnection, borrower: Borrower) -> None:
        states.checkout(connection, "acquire")
        connection.lend(borrower)

    def _count_loan(self, connection: WebsocketConnection, waited: float) -> None:
        """Count a loan that its borrower has taken; one that was passed on is none."""
        self.stats.borrows += 1
        if self.events.listeners:
            self.events.publish("ConnectionCheckedOut", connection.id, waited)

    async def wait(
        self, borrower: Borrower, timeout: float | None, *, wants_new: bool
    ) -> WebsocketConnection:
        """Join the line and return the connection that this caller is given."""
        began = self.clock()
        waiter: Waiter | None = None
        alarm: asyncio.TimerHandle | None = None
        try:
            if self.is_closing:  # by a callable that the look at the idle ones has run
                raise ConnectionPoolUnavailableError("The pool was closed")
            self._check_may_wait(timeout)
            self.stats.waits += 1
            waiter = self.line.join(borrower, wants_new=wants_new, is_patient=timeout != 0)
            if timeout:
                alarm = self.loop.call_later(timeout, self._time_out, waiter, timeout)
            if self.queues.idle or self.room > 0:
                self.route()
            connection = await waiter.future
        except BaseException as error:
            if waiter is not None:
                self._leave_line(waiter)
            self.events.check_out_failed(error, self.clock() - began)
            raise
        finally:
            if alarm is not None:
                alarm.cancel()
            if waiter is not None:
                self.stats.wait_seconds += self.clock() - began
        self._count_loan(connection, self.clock() - began)
        return connection

    def _leave_line(self, waiter: Waiter) -> None:
        """End a wait in vain, and let nobody miss what was meant for it."""
        future = waiter.future
        # Cancelled in the very tick in which it was served: on to the next.
        if future.done() and not future.cancelled() and future.exception() is None:
            self._pass_on(future.result())
        if waiter in self.line:  # perhaps an idle one was kept for it
            self.line.leave(waiter)
            self.route()

    def _check_may_wait(self, timeout: float | None) -> None:
        """Raise unless waiting is allowed, or needless: a connection is to come anyway."""
        if timeout != 0 and self.options.max_waiting is None:
            return
        expected = self._expected()
        if len(self.line) < expected:
            return
        if timeout == 0:
            raise self._exhausted()
        most = self.options.max_waiting
        if most is not None and len(self.line) - expected >= most:
            raise ConnectionPoolExhaustedError(f"max_waiting={most} already wait: {self!r}")

    def _exhausted(self) -> ConnectionPoolExhaustedError:
        return ConnectionPoolExhaustedError(
            f"All connections are in use and acquire_timeout is 0: {self!r}"
        )

    def _expected(self) -> int:
        """Return how many connections are to come without any borrower's doing.

        What is being dialled, kept alive, checked or buried, room for a dial, and an idle one that
        has to be checked, or to make room, first: each lets one caller wait for it. After a
        resize() the surplus is closed when it is back from its errand, and serves nobody.
        """
        coming = len(self.queues.connecting) + len(self.queues.idle)
        return coming + max(0, len(self.errands) - self.surplus)

    def _time_out(self, waiter: Waiter, timeout: float) -> None:
        if not waiter.future.done():
            self.stats.timeouts += 1
            error: WebsocketError
            error = ConnectionPoolTimeoutError(f"No connection within {timeout} s: {self!r}")
            permits = self._gate.permits
            if permits is not None and permits.waiting:
                error = permits.full(timeout)
            error.__cause__ = waiter.failure or self._gate.failure
            self.line.fail(waiter, error)
            self.route()

    def _pass_on(self, connection: WebsocketConnection) -> None:
        """Take back what a waiter was given and could not take: it has not been used."""
        connection.end_loan()
        if connection.state is State.BUSY:
            connection.uses -= 1
            why = self._why_retire(connection)
            if why is not None:
                connection.finish(why)
            else:
                self._check_in(connection, "cancelled waiter")

    # Routing.

    @property
    def room(self) -> int:
        """How many more connections there may be; below 0 after a resize()."""
        return self.options.max_connections - len(self.queues)

    @property
    def surplus(self) -> int:
        """How many connections too many there are after a resize(), those being closed apart."""
        return -self.room - len(self.queues.closed)

    def route(self) -> None:
        """Serve those who wait, oldest first, and begin the dials that are missing."""
        if self._is_routing or self.is_closing:
            return  # what a routing step sets off, the step under way takes into account
        self._is_routing = True
        try:
            waiters, idle = self.line.waiters, self.queues.idle
            while waiters and idle and self._serve_one():
                pass
            if waiters and (room := self.room) > 0:
                wanted = len(waiters) - len(self.queues.connecting)
                for _ in range(min(wanted - self.errands.promised(self.line), room)):
                    self._begin_dial()
        finally:
            self._is_routing = False

    def _serve_one(self) -> bool:
        """Make one step for those who wait with an idle connection; False if there is none."""
        queues, line = self.queues, self.line
        waiter = line.oldest()
        if waiter is not None and waiter.wants_new:
            if self._is_room_wanted():
                self._make_room(1)
                return True
            waiter = line.oldest_for_used()
        if waiter is None:
            return False
        connection = self.next_idle()
        if waiter.future.done():
            return True  # by a user's callable, which the look has run: once more
        if connection is None:
            if not queues.idle:
                return False
            if len(self.errands.checks) >= len(line) and not self.errands.is_suspicious:
                return False
            self._check(next(reversed(queues.idle)))
            return True
        self._give(waiter, connection)
        return True

    def _give(self, waiter: Waiter, connection: WebsocketConnection) -> None:
        self.lend(connection, waiter.borrower)
        self.line.give(waiter, connection)

    def _is_room_wanted(self) -> bool:
        """Whether an idle one must go, at the limit, for the oldest waiter: that one wants a new
        one, and too few dials and goodbyes are under way."""
        oldest = self.line.oldest()
        if oldest is None or not oldest.wants_new or self.room > 0:
            return False
        return len(self.queues.connecting) + len(self.queues.closed) < self.line.leading_new()

    def _hand_over(self, connection: WebsocketConnection, waiter: Waiter | None) -> None:
        """Lend this very connection, which has just become idle, if that is still possible."""
        if waiter is not None:
            self.attend(connection)
            if connection.is_flooding and connection.uses:
                return  # its end is not in sight: next_idle() closes it
            is_here = connection in self.queues.idle
            if is_here and waiter in self.line and not waiter.future.done():
                self._give(waiter, connection)

    def next_idle(self) -> WebsocketConnection | None:
        """Return the idle connection to lend next: the last one in, so that a pool can shrink.

        Those that turn out to be lost, or too old, are closed on the way. None, too, when that
        one, and so all that are idle for longer, must be checked first.
        """
        idle = self.queues.idle
        while idle:
            connection = next(reversed(idle))
            if connection.is_flooding or connection.inbox or connection.look():
                was_flooding = connection.is_flooding
                self.attend(connection)
                if was_flooding or connection.is_flooding:  # the rest would reach the borrower
                    connection.finish(CloseReason.DRAIN)
                if connection.state is not State.IDLE:
                    continue
            now = connection.clock()
            if now < connection.retire_at and now - connection.idle_since < self.errands.hot:
                return connection  # as nearly always
            if (why := self.too_old(connection, now)) is not None:
                connection.finish(why)
            else:
                return None if self.errands.is_check_due(connection, now) else connection
        return None

    def attend(self, connection: WebsocketConnection, most: int | None = None) -> bool:
        """Deal with what has arrived on a connection that nobody reads; False if nothing had.

        If it is idle, with no more than `most` messages of that.
        """
        if not connection.has_news():
            connection.is_flooding = False
            return False
        if connection.state is State.IDLE:
            self._dispose_of_unread(connection, most)
        elif connection.state is not State.CLOSED:
            connection.attend()
        return connection.state is State.IDLE

    def _dispose_of_unread(self, connection: WebsocketConnection, most: int | None = None) -> None:
        connection.is_flooding = connection.is_flooded()
        try:
            for message in itertools.islice(connection.unread(), most):
                dispose(connection, message, self.options, self.stats)
        except Discard as discard:
            connection.finish(discard.why, cause=discard.__cause__)

    def too_old(self, connection: WebsocketConnection, now: float) -> CloseReason | None:
        """Return why an idle connection is to be closed, if it is."""
        if now >= connection.retire_at:
            return connection.retire_why
        if now - connection.idle_since > self.options.idle_timeout:
            if self.total_connections > self.options.min_connections:
                return CloseReason.IDLE
        return None

    # What the pool borrows itself.

    def _check(self, connection: WebsocketConnection) -> None:
        self.errands.begin_check(connection)
        self._borrow(connection, "check", partial(check, connection, self.options, self.stats))

    def keep_alive(self, connection: WebsocketConnection) -> None:
        self.errands.keepalives.add(connection)
        work = partial(keep_alive, connection, self.options, self.stats)
        self._borrow(connection, "keepalive", work)

    def _borrow(
        self, connection: WebsocketConnection, why: str, errand: Callable[[], Awaitable[None]]
    ) -> None:
        states.checkout(connection, why)
        connection.task = self.spawn(
            own(weakref.ref(self), connection, errand),
            partial(give_up, connection, State.BUSY, CloseReason.ERROR),
        )

    def _back_from_errand(self, connection: WebsocketConnection, why: str) -> None:
        """Let a connection be idle again, at its place among those that are idle for as long."""
        idle = self.queues.idle
        newest = next(reversed(idle), None)
        self.events.publish("ConnectionChecked", connection.id, why, connection.seconds_in_state)
        states.checkin(connection, why)
        if newest is not None and newest.idle_since > connection.idle_since:
            idle.move_to_end(connection, last=False)

    def _suspect_the_rest(self) -> None:
        """After a check without an answer, ask all others of its age, and dial meanwhile."""
        now = self.clock()
        for connection in list(self.queues.idle):
            if self.errands.is_check_due(connection, now):
                self._check(connection)
        self.errands.is_suspicious = True

    # Giving back.

    def give_back(
        self,
        connection: WebsocketConnection,
        is_failed: bool = False,
        force_remove: bool = False,
    ) -> None:
        """End a loan and send the connection on: to the idle ones, the drain or the grave."""
        if connection.queues is not self.queues or not connection.lease:
            logger.warning("%r is not lent by this pool; releasing it does nothing", connection)
            return
        if self.events.listeners:
            self.events.publish("ConnectionCheckedIn", connection.id, connection.seconds_lent)
        is_in_use, last = connection.end_loan()
        # Without a send nothing can be under way, however the borrower left.
        is_failed = is_failed and connection.has_sent
        why: CloseReason | None = None
        cause: BaseException | None = None
        if connection.state is not BUSY:
            pass  # lost, or closed by the borrower
        elif force_remove:
            why = CloseReason.USER
        elif is_in_use:
            why = CloseReason.ERROR
        elif (why := self._why_retire(connection)) is None:
            if is_failed or self.options.may_drain:
                try:
                    if self._begin_drain(connection, last, is_failed=is_failed):
                        return
                except Discard as discard:
                    why, cause = discard.why, discard.__cause__
        if connection.inbox or connection.look():
            self._dispose_of_unread(connection)
            if connection.is_flooding:
                why = why or CloseReason.DRAIN
        if why is not None:
            connection.finish(why, cause=cause)
        elif connection.state is BUSY:
            self._check_in(connection, "release")

    def _why_retire(self, connection: WebsocketConnection) -> CloseReason | None:
        options = self.options
        if self.is_closing:
            return CloseReason.POOL
        if connection.generation != self.generation:
            return CloseReason.EXPIRED
        if connection.retire_at < NEVER and connection.clock() >= connection.retire_at:
            return connection.retire_why
        if options.max_uses is not None and connection.uses >= options.max_uses:
            return CloseReason.USES
        if len(self.queues.all) > options.max_connections and self.surplus > 0:
            return CloseReason.ROOM
        return None

    def _check_in(self, connection: WebsocketConnection, why: str) -> None:
        states.checkin(connection, why)
        connection.idle_since = connection.moves[-1][1]
        if self.line.waiters:
            self.route()

    def _begin_drain(
        self, connection: WebsocketConnection, last: str | bytes | None, *, is_failed: bool
    ) -> bool:
        """Drain what may not be clean; False if it is, and Discard if that cannot be known."""
        options = self.options
        is_clean = last is not None and is_last(connection, last, options)
        if not is_clean:
            is_clean = not (is_failed or options.needs_check(has_sent=connection.has_sent))
        if is_clean and options.on_release is None:
            return False
        if options.on_release is None and not options.can_drain(is_failed):
            raise Discard(CloseReason.ERROR)
        states.drain(connection, "release")
        self.events.publish("ConnectionDrainStarted", connection.id)
        pending = PendingConnection(connection, options.drain_timeout, options.drain_condition)
        connection.pending = pending
        work = partial(drain, pending, options, self.stats, is_failed=is_failed, is_clean=is_clean)
        connection.task = pending.drain_task = self.spawn(
            own(weakref.ref(self), connection, work),
            partial(give_up, connection, State.DRAINING, CloseReason.DRAIN),
        )
        return True

    def regain(self, connection: WebsocketConnection, discard: Discard | None) -> None:
        """A drain or an errand has ended, well or badly."""
        if connection.state is State.CLOSED:
            return
        connection.pending = connection.task = None
        was_checked = connection in self.errands.checks
        self.errands.end(connection)
        why = discard.why if discard is not None else self._why_retire(connection)
        if why is not None:
            if was_checked and why is CloseReason.STALE:
                self._suspect_the_rest()
            connection.finish(why, cause=discard.__cause__ if discard else None)
            return
        if connection.state is State.DRAINING:
            self.events.publish("ConnectionDrained", connection.id, connection.seconds_in_state)
            states.drained(connection, "clean")
            connection.idle_since = connection.clock()
        elif was_checked:
            self.errands.is_suspicious = False
            self._back_from_errand(connection, "check")
            if not self._is_room_wanted():
                self._hand_over(connection, self.line.oldest_for_used())
        else:
            self._back_from_errand(connection, "keepalive")
            # One that is kept alive whenever the upkeep looks would live for ever.
            if (why := self.too_old(connection, connection.clock())) is not None:
                connection.finish(why)
        self.route()

    # Dialling.

    def refill(self) -> None:
        """Begin the dials that `min_connections` is short of."""
        have = self.total_connections + len(self.queues.connecting)
        for _ in range(min(self.options.min_connections - have, self.room)):
            self._begin_dial()

    def _begin_dial(self) -> None:
        connection = WebsocketConnection(
            next(self._ids), self.queues, self.loop, self._on_close, self.generation
        )
        connection.arrival = self.line.arrive()
        self.queues.add(connection)
        self.stats.dials += 1
        self.events.publish("ConnectionCreated", connection.id)
        connection.task = self.spawn(
            open_socket(weakref.ref(self), connection, self.options, self._session, self._gate),
            partial(give_up, connection, State.CONNECTING, CloseReason.DIAL),
        )

    def dialled(
        self, connection: WebsocketConnection, failure: ConnectionUnavailableError | None
    ) -> None:
        """The dial has ended, well or badly."""
        connection.task = None
        if connection.state is not State.CONNECTING:
            return
        if failure is not None:
            self.stats.failures[failure.kind] += 1
            self._gate.failure = failure
            if not self._fail_waiters(failure, connection):
                is_full = failure.kind == "quota"  # as a fleet's normally is
                logger.log(logging.INFO if is_full else logging.WARNING, "%s", failure)
            connection.finish(CloseReason.DIAL, cause=failure)
            self._call_off_dials()
            return
        now = connection.opened = connection.idle_since = connection.clock()
        if self.options.max_lifetime is not None:
            early = JITTER * connection.jitter
            connection.retire_at = now + self.options.max_lifetime * (1 - early)
        self.stats.dial_seconds += connection.dial_seconds
        states.connected(connection, "dialled")
        self.events.publish("ConnectionReady", connection.id, connection.dial_seconds)
        if connection.generation != self.generation:
            connection.finish(CloseReason.EXPIRED)
            return
        self._hand_over(connection, self.line.oldest())
        self.route()
        self._make_room(self.surplus)

    def _fail_waiters(
        self, failure: ConnectionUnavailableError, connection: WebsocketConnection
    ) -> bool:
        """End those who waited when this dial began, unless a borrower may still help them."""
        is_anybody = False
        errands = len(self.errands) - max(0, self.surplus)
        for place, waiter in enumerate(self.line):
            if waiter.arrival > connection.arrival:
                continue
            is_anybody = True
            waiter.failure = failure
            # What comes back from an errand will do for those who may not wait for a borrower.
            may_come = place < errands
            if waiter.is_patient:  # what a quota has not given yet, it may still give
                may_come = self.total_connections > 0 or failure.kind == "quota"
            if not may_come:
                twin = copy.copy(failure)  # each has a traceback of its own
                twin.__cause__ = failure.__cause__
                self.line.fail(waiter, twin)
        return is_anybody

    def _call_off_dials(self) -> None:
        """After a failure, give up the dials that have not begun and that nobody waits for."""
        connecting = self.queues.connecting
        surplus = len(connecting) - len(self.line) - self.options.min_connections
        for connection in reversed(list(connecting)):
            if surplus > 0 and not self._gate.is_at_work(connection):
                surplus -= 1
                connection.finish(CloseReason.DIAL)

    # Closing.

    def bury(self, connection: WebsocketConnection) -> None:
        """Say goodbye to a connection that has just entered the state closed."""
        self.errands.end(connection)
        self.show_rest(connection)
        move, now, why = connection.moves[-1]
        self.stats.closes[str(why)] += 1
        code, reason = connection.close_code, connection.close_reason
        if why in LOSSES:
            logger.info(
                "lost #%d: %s; it was %s for %.1f s, is %.1f s old and was lent %d times",
                *(connection.id, connection.how_closed(), move.source),
                *(connection.seconds_before, now - connection.born, connection.uses),
            )
        self.events.publish(
            "ConnectionClosed", connection.id, move.source, why, code, reason, now - connection.born
        )
        returned = self._all_returned
        if returned is not None and not self.queues.busy and not returned.done():
            returned.set_result(None)
        if why is CloseReason.SERVER and self._gate.lost(connection):
            failure = self._gate.failure = ConnectionUnavailableError(
                "The server closes connections right after the handshake, with code "
                f"{connection.close_code} {connection.close_reason!r}",
                attempts=self._gate.streak,
            )
            if self._gate.streak >= self.options.max_retries:
                self._fail_waiters(failure, connection)
        task, connection.task = connection.task, None
        if task is asyncio.current_task() or WebsocketConnection.in_hook() is connection:
            task = None  # it ends by itself, and cannot be waited for here
        elif task is not None:
            task.cancel()
        # A mute peer will not answer the goodbye either.
        patience = 0.0 if why is CloseReason.STALE else self.options.close_timeout
        self.spawn(
            say_goodbye(weakref.ref(self), connection, task, patience),
            partial(cut_off, weakref.ref(self), connection),
        )
        self.route()
        if self.room < 0:  # after a resize() its place serves nobody any more
            self._turn_away()

    def _turn_away(self) -> None:
        """End the wait of those who may not wait for a borrower, and now would."""
        for waiter in list(self.line)[max(0, self._expected()) :]:
            if not waiter.is_patient:
                self.line.fail(waiter, self._exhausted())

    def show_rest(self, connection: WebsocketConnection) -> None:
        """Show what a closed connection had received, and nobody has read."""
        if not connection.lease:  # else its borrower may still read what came before the close
            dispose_of_rest(connection, self.options, self.stats)

    def retire_unpermitted(self) -> None:
        """Let go what has lost its lease of the quota: what is idle now, the rest afterwards."""
        for connection in list(self.queues.all):
            if connection.permit is not None and connection.permit.is_lost:
                connection.retire_at, connection.retire_why = float("-inf"), CloseReason.QUOTA
                if connection.state is State.IDLE:
                    connection.finish(CloseReason.QUOTA)

    def expire(self) -> None:
        """Let everything that exists or is being dialled be replaced."""
        self.generation += 1
        self.events.publish("PoolCleared")
        for connection in list(self.queues.idle):
            if connection.state is State.IDLE:  # the goodbyes run a user's callable
                connection.finish(CloseReason.EXPIRED)
        self.refill()

    def resize(self, max_connections: int) -> None:
        """Change the limit; who may wait only for what is no longer to come waits no more."""
        self.options.max_connections = max_connections
        self._make_room(self.surplus)
        self.route()
        self._turn_away()

    def _make_room(self, count: int) -> None:
        """Close this many idle connections, the longest idle first."""
        idle = self.queues.idle
        for connection in heapq.nsmallest(count, idle, key=lambda idle: idle.idle_since):
            if connection in idle:
                connection.finish(CloseReason.ROOM)

    def close(self) -> None:
        """Refuse everybody from now on, and close what nobody has borrowed."""
        self.is_closing = True
        for waiter in self.line:
            self.line.fail(waiter, ConnectionPoolUnavailableError("The pool was closed"))
        for connection in self.queues:
            if not connection.lease:
                connection.finish(CloseReason.POOL)

    async def finish(self, timeout: float | None, spared: asyncio.Task[None] | None) -> None:
        """Wait for the borrowers, close the rest, and return when no task is left but `spared`."""
        if self.queues.busy and timeout != 0:
            self._all_returned = self.loop.create_future()
            await asyncio.wait({self._all_returned}, timeout=timeout)
        if self.queues.busy:
            logger.warning("closing with borrowers, who lose their connections: %r", self)
        for connection in self.queues:
            connection.finish(CloseReason.POOL)
        permits = self._gate.permits
        releases = permits.releases if permits is not None else set()
        while left := (self._tasks | releases) - {spared}:
            await asyncio.wait(left)
