"""The drain: what happens to a link between its release and its next use.

A server may still be sending when a borrower gives a connection back. The drain reads what comes
until it knows that the link is clean, or that it is not worth waiting for.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from time import time

from wspool._connection import states
from wspool._connection.errors import ENDS_PROGRAM, ConnectionDrainTimeoutError
from wspool._connection.exporting import exported
from wspool._connection.link import Link
from wspool._connection.loan import WebsocketConnection, lend_to_hook, view_of
from wspool._connection.states import CloseReason, State
from wspool._pool.listeners import Events
from wspool._pool.options import DrainConditionCallback, Hook, Options
from wspool._pool.stats import Stats
from wspool._pool.tasks import Discard, Tasks, Then, close_if_still, is_cancelled, work

logger = logging.getLogger("wspool")

_ids = itertools.count(1)


@exported
class PendingConnection:
    """A connection that is being drained, as the pool's book-keeping shows it.

    `created_at` is in Unix seconds, `drain_timeout` in seconds, `drain_task` the task at work.
    """

    connection: WebsocketConnection
    drain_timeout: float
    drain_condition: DrainConditionCallback | None
    created_at: float
    drain_task: asyncio.Task[None] | None
    pending_id: str

    def __init__(
        self,
        connection: WebsocketConnection,
        drain_timeout: float,
        drain_condition: DrainConditionCallback | None,
    ) -> None:
        self.connection = connection
        self.drain_timeout = drain_timeout
        self.drain_condition = drain_condition
        self.created_at = time()
        self.drain_task = None
        self.pending_id = f"pending-{next(_ids)}"
        self._is_completed = False

    async def mark_completed(self) -> bool:
        """Mark the drain as completed. True the first time, False after that.

        This is a flag and no more: what becomes of the connection is the state machine's matter.
        """
        is_first = not self._is_completed
        self._is_completed = True
        return is_first

    def __repr__(self) -> str:
        done = "completed" if self._is_completed else "pending"
        return f"<PendingConnection {self.pending_id} {done} of {self.connection!r}>"


def dispose(link: Link, message: str | bytes, options: Options, stats: Stats) -> None:
    """Deal with a message that no borrower will read; raise Discard if it is refused.

    A callable that raises costs the link, and nothing else: a predicate that does not work cannot
    vouch for it. Without a predicate an empty message is refused after a loan; on an idle link it
    is a heartbeat.
    """
    try:
        show(link, message, options, stats)
        condition = options.drain_condition
        if condition is not None:
            is_fine = bool(condition(message))
        else:
            is_fine = len(message) > 0 or link.state is State.IDLE
    except ENDS_PROGRAM:
        raise
    except BaseException as error:
        logger.exception("drain_condition or on_drained raised; closing #%d", link.id)
        raise Discard(CloseReason.ERROR) from error
    if not is_fine:
        raise Discard(CloseReason.DRAIN)


def dispose_of_rest(link: Link, options: Options, stats: Stats) -> None:
    """Deal with what a link that is closed had received by then."""
    for message in link.unread():
        show_safely(link, message, options, stats, of="closed")


def show_safely(
    link: Link, message: str | bytes, options: Options, stats: Stats, *, of: str = "a message on"
) -> None:
    """Show a message that nobody reads; whatever that raises costs nobody anything."""
    try:
        show(link, message, options, stats)
    except ENDS_PROGRAM:
        raise
    except BaseException:
        logger.exception("on_drained raised, of %s #%d", of, link.id)


def show(link: Link, message: str | bytes, options: Options, stats: Stats) -> None:
    """Count a message that no borrower will read, and tell `on_drained`."""
    link.drained_messages += 1
    stats.drained_messages += 1
    if options.on_drained is not None:
        options.on_drained(view_of(link), message)


def is_last(link: Link, message: str | bytes, options: Options) -> bool:
    """Return whether `drain_until` says that nothing comes after this message."""
    if options.drain_until is None:
        return False
    try:
        return bool(options.drain_until(message))
    except ENDS_PROGRAM:
        raise
    except BaseException as error:
        logger.exception("drain_until raised; closing #%d", link.id)
        raise Discard(CloseReason.ERROR) from error


class Draining:
    """The drains of one pool."""

    def __init__(
        self, options: Options, stats: Stats, events: Events, tasks: Tasks, then: Then
    ) -> None:
        self._options, self._stats, self._events = options, stats, events
        self._tasks = tasks
        self._then = then

    def begin(self, link: Link, loan: WebsocketConnection, *, is_failed: bool) -> bool:
        """Drain what may not be clean; False if it is, and Discard if that cannot be known.

        `is_failed`: the loan was left by an exception, or its answer was given up.
        """
        options = self._options
        if options.on_loan_release is None:
            if not _is_needed(loan, options, is_failed=is_failed):
                return False
            if is_failed and not (loan.is_clean or options.drain_until):
                raise Discard(CloseReason.ERROR)
        states.drain(link, "release")
        self._events.drain_started(link)
        pending = PendingConnection(view_of(link), options.drain_timeout, options.drain_condition)
        link.owner = pending
        cleaning = partial(drain, pending, link, loan, options, self._stats, is_failed=is_failed)
        link.task = pending.drain_task = self._tasks.spawn(
            work(link, cleaning, self._then),
            partial(close_if_still, link, State.DRAINING, CloseReason.DRAIN),
        )
        return True


def _is_needed(loan: WebsocketConnection, options: Options, *, is_failed: bool) -> bool:
    """Return whether somebody must wait for the server before the next loan.

    Where nothing was sent nothing is under way, but the interface's own switch checks always.
    """
    if options.check_server_data_on_release:
        return True
    return (is_failed or (options.tells_ends and loan._has_sent)) and not loan.is_clean


async def drain(
    pending: PendingConnection,
    link: Link,
    loan: WebsocketConnection,
    options: Options,
    stats: Stats,
    *,
    is_failed: bool,
) -> None:
    """Return once the link, which `pending` owns, is clean; raise Discard if that will not be."""
    end = link.clock() + pending.drain_timeout
    was_clean = loan.is_clean
    try:
        async with asyncio.timeout_at(end) as timer:
            if options.on_loan_release is not None:
                loan = await run_hook(link, options.on_loan_release, "on_release", after=loan)
                is_failed = loan._has_given_up or (is_failed and not loan.is_clean)
            if is_failed and not (loan.is_clean or options.drain_until):
                # Neither silence nor a pong proves that a server has finished thinking.
                raise Discard(CloseReason.ERROR)
            is_needed = _is_needed(loan, options, is_failed=is_failed)
            ends = 0 if loan.is_clean or not is_needed else loan.outstanding or 1
            await _read(pending, link, options, stats, timer, end, ends=ends, is_failed=is_failed)
    except TimeoutError:
        if timer.when() != end:
            return  # quiet
        if was_clean and options.on_loan_release is not None:
            logger.warning(
                "on_release has sent something on #%d, whose answer was complete, and no end of "
                "another came within drain_timeout: let it look at connection.is_clean first",
                link.id,
            )
        raise Discard(CloseReason.DRAIN) from ConnectionDrainTimeoutError(
            f"Connection #{link.id} was not clean {pending.drain_timeout} s after its release "
            "(drain_timeout)"
        )
    finally:
        await pending.mark_completed()


async def run_hook(
    link: Link, hook: Hook, name: str, after: WebsocketConnection | None = None
) -> WebsocketConnection:
    """Run a hook of the user's on a link that the pool owns; an error costs the link."""
    with discarding(link, f"{name} raised; closing #{link.id}"):
        loan = await lend_to_hook(link, hook, after)
    if link.state is not State.CLOSED and link.wire is not None and link.wire.is_in_use:
        logger.error("%s left a task in recv or ping; closing #%d", name, link.id)
        raise Discard(CloseReason.ERROR)
    return loan


@contextmanager
def discarding(link: Link, complaint: str) -> Iterator[None]:
    """Let what a hook of the user's raises cost the link, and be in the log."""
    try:
        yield
    except ENDS_PROGRAM:
        raise
    except BaseException as error:
        if is_cancelled(error):
            raise
        if link.state is not State.CLOSED:  # else that is why
            logger.exception("%s", complaint)
        raise Discard(CloseReason.ERROR) from error


async def _read(
    pending: PendingConnection,
    link: Link,
    options: Options,
    stats: Stats,
    timer: asyncio.Timeout,
    end: float,
    *,
    ends: int,
    is_failed: bool,
) -> None:
    """Read until so many last messages have come, or what else the options call clean."""
    wire = link.wire
    assert wire is not None
    is_flooded = wire.is_flooded
    for message in wire.unread():
        dispose(link, message, options, stats)
        ends -= ends > 0 and is_last(link, message, options)
    if not (ends or options.check_server_data_on_release):
        if is_flooded or wire.is_cut_short:  # the rest would reach the next borrower
            raise Discard(CloseReason.DRAIN)
        return
    fence = await wire.send_ping() if options.drain_fence and not is_failed else None
    while True:
        quiet = math.inf if is_failed and ends else options.drain_quiet_period
        timer.reschedule(min(end, link.clock() + quiet))
        following = await link.next_message(pending, until=fence)
        if following is None:
            return  # the fence's pong; or lost, and then the state is closed already
        dispose(link, following, options, stats)
        await wire.budget.breathe()
        if ends and is_last(link, following, options):
            ends -= 1
            if not (ends or options.check_server_data_on_release):
                return
