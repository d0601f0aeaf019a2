"""The drain: what happens to a connection between its release and its next use.

A server may still be sending when a borrower gives a connection back. The drain reads what comes
until it knows that the connection is clean, or that it is not worth waiting for.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from time import time

from wspool._connection.errors import ConnectionDrainTimeoutError
from wspool._connection.link import WebsocketConnection
from wspool._connection.states import CloseReason, State
from wspool._pool.options import DrainConditionCallback, Hook, Options
from wspool._pool.stats import Stats

logger = logging.getLogger("wspool")

_ids = itertools.count(1)


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


class Discard(Exception):
    """The connection cannot be used again. `__cause__` is the reason, if there is one."""

    def __init__(self, why: CloseReason) -> None:
        self.why = why


def dispose(
    connection: WebsocketConnection, message: str | bytes, options: Options, stats: Stats
) -> None:
    """Deal with a message that no borrower will read; raise Discard if it is refused.

    A callable that raises costs the connection, and nothing else: a predicate that does not work
    cannot vouch for a connection.
    """
    try:
        _show(connection, message, options, stats)
        condition = options.drain_condition
        is_fine = condition(message) if condition is not None else len(message) > 0
    except Exception as error:
        logger.exception("drain_condition or on_drained raised; closing #%d", connection.id)
        raise Discard(CloseReason.ERROR) from error
    if not is_fine:
        raise Discard(CloseReason.DRAIN)


def dispose_of_rest(connection: WebsocketConnection, options: Options, stats: Stats) -> None:
    """Deal with what a connection that is closed had received by then."""
    for message in connection.unread():
        try:
            _show(connection, message, options, stats)
        except Exception:
            logger.exception("on_drained raised, of closed #%d", connection.id)


def _show(
    connection: WebsocketConnection, message: str | bytes, options: Options, stats: Stats
) -> None:
    connection.drained_messages += 1
    stats.drained_messages += 1
    if options.on_drained is not None:
        options.on_drained(connection, message)


def is_last(connection: WebsocketConnection, message: str | bytes, options: Options) -> bool:
    """Return whether `drain_until` says that nothing comes after this message."""
    if options.drain_until is None:
        return False
    try:
        return bool(options.drain_until(message))
    except Exception as error:
        logger.exception("drain_until raised; closing #%d", connection.id)
        raise Discard(CloseReason.ERROR) from error


async def drain(
    pending: PendingConnection, options: Options, stats: Stats, *, is_failed: bool, is_clean: bool
) -> None:
    """Return once the connection is clean; raise Discard if that will not be.

    `is_failed`: the borrower left by an exception, with a reply under way. `is_clean`: there is
    nothing to wait for, unless `on_release` sends something.
    """
    connection = pending.connection
    end = connection.clock() + pending.drain_timeout
    try:
        async with asyncio.timeout_at(end) as timer:
            if options.on_release is not None:
                connection.has_sent = False
                await run_hook(connection, options.on_release, "on_release")
                is_clean = is_clean and not options.needs_check(has_sent=connection.has_sent)
                _, last = connection.end_loan()  # the hook's, which may have read to the end
                is_clean = is_clean or (last is not None and is_last(connection, last, options))
            if not is_clean and not options.can_drain(is_failed):
                raise Discard(CloseReason.ERROR)
            await _read_until_clean(
                connection, options, stats, timer, end, is_failed=is_failed, is_clean=is_clean
            )
    except TimeoutError:
        if timer.when() != end:
            return  # quiet
        raise Discard(CloseReason.DRAIN) from ConnectionDrainTimeoutError(
            f"Connection #{connection.id} was not clean {pending.drain_timeout} s after its "
            "release (drain_timeout)"
        )
    finally:
        await pending.mark_completed()


async def run_hook(connection: WebsocketConnection, hook: Hook, name: str) -> None:
    """Run a hook of the user's on a connection that the pool owns; an error costs it."""
    try:
        await connection.run_hook(hook)
    except Exception as error:
        if connection.state is not State.CLOSED:  # else that is why
            logger.exception("%s raised; closing #%d", name, connection.id)
        raise Discard(CloseReason.ERROR) from error
    if connection.is_in_use and connection.state is not State.CLOSED:
        logger.error("%s left a task in recv or ping; closing #%d", name, connection.id)
        raise Discard(CloseReason.ERROR)


async def _read_until_clean(
    connection: WebsocketConnection,
    options: Options,
    stats: Stats,
    timer: asyncio.Timeout,
    end: float,
    *,
    is_failed: bool,
    is_clean: bool,
) -> None:
    is_flooded = connection.is_flooded()
    for message in connection.unread():
        dispose(connection, message, options, stats)
        is_clean = is_clean or is_last(connection, message, options)
    if is_clean:
        if is_flooded:  # the rest would reach the next borrower
            raise Discard(CloseReason.DRAIN)
        return
    quiet = math.inf if is_failed else options.drain_quiet_period
    fence = await connection.send_ping() if options.drain_fence and not is_failed else None
    while True:
        timer.reschedule(min(end, connection.clock() + quiet))
        following = await connection.next_message(lease=0, until=fence)
        if following is None:
            return  # the fence's pong; or lost, and then the state is closed already
        dispose(connection, following, options, stats)
        if is_last(connection, following, options):
            return
