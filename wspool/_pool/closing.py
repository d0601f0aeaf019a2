"""Closing: what is told of a link that has entered the state closed, and its goodbye."""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Callable
from typing import Final

from wspool._connection.errors import ENDS_PROGRAM, ConnectionClosedError
from wspool._connection.link import Link
from wspool._connection.loan import lend_to_hook
from wspool._connection.queues import Queues
from wspool._connection.states import CloseReason, State
from wspool._pool.draining import dispose_of_rest
from wspool._pool.listeners import Events
from wspool._pool.options import Hook, Options
from wspool._pool.stats import Stats
from wspool._pool.tasks import Tasks, is_cancelled, weakly

logger = logging.getLogger("wspool")

LOSSES: Final = frozenset(
    {
        *(CloseReason.SERVER, CloseReason.PROTOCOL, CloseReason.STALE),
        *(CloseReason.ERROR, CloseReason.DRAIN),
    }
)
"""Why a link goes that nobody meant to close."""


class Goodbye:
    """The owner of a closed link, until its socket is gone."""

    __slots__ = ("_link", "_on_close", "_on_gone", "_show_rest")

    def __init__(
        self,
        link: Link,
        on_close: Hook | None,
        show_rest: Callable[[Link], bool],
        on_gone: Callable[[], bool],
    ) -> None:
        self._link = link
        self._on_close = on_close
        self._show_rest = show_rest
        self._on_gone = on_gone

    async def say(self, task: asyncio.Task[None] | None, timeout: float) -> None:
        """Close the socket, once the task that owned the link has ended, and free its place."""
        link = self._link
        try:
            if task is not None:
                await asyncio.wait({task}, timeout=timeout)
                self._show_rest(link)  # what had woken the task that was cancelled
            end = link.clock() + timeout
            if self._on_close is not None and timeout and link.is_open:
                await self._let_close(self._on_close, timeout)
            await link.close_wire(max(0.0, end - link.clock()))
        except (*ENDS_PROGRAM, asyncio.CancelledError):
            raise
        except BaseException:
            # A fault of this package's: it must not cost a place as well.
            logger.exception("the goodbye of #%d broke down", link.id)
            self.abort()
        else:
            self._free()

    async def _let_close(self, hook: Hook, timeout: float) -> None:
        """Let the user's hook say the last word."""
        link = self._link
        try:
            async with asyncio.timeout(timeout):
                await lend_to_hook(link, hook)
        except ConnectionClosedError:
            pass  # the server was faster
        except TimeoutError:
            logger.warning("on_close of #%d took longer than close_timeout", link.id)
        except ENDS_PROGRAM:
            raise
        except BaseException as error:
            if is_cancelled(error):
                raise
            logger.exception("on_close raised, of #%d", link.id)

    def abort(self) -> None:
        """Cut the socket off; the place is kept all the same until that is gone."""
        self._link.abort()
        self._link.when_gone(self._free)

    def _free(self) -> None:
        self._link.free()
        self._on_gone()


class Closing:
    """The links of one pool that go."""

    def __init__(
        self,
        options: Options,
        stats: Stats,
        events: Events,
        queues: Queues[Link],
        tasks: Tasks,
        on_gone: Callable[[], bool],
    ) -> None:
        self._options, self._stats, self._events = options, stats, events
        self._queues, self._tasks = queues, tasks
        # Called when a place is free.
        self._on_gone = on_gone
        # One for all links, since a weak method takes half a KiB.
        self._show_rest_weakly = weakly(self._show_rest)
        # Is done when no link is busy any more, from the closing of the pool on.
        self._all_returned_waiter: asyncio.Future[None] | None = None

    def begin(self, link: Link) -> None:
        """Say goodbye to a link that has just entered the state closed."""
        self._show_rest(link)
        if link.permit is not None:
            link.permit.leave()
        move, now, why = link.moves[-1]
        self._stats.closes[str(why)] += 1
        if why in LOSSES:
            if self._events.watch is not None and link.loan is not None:
                self._events.watch.lost(link)
            logger.info(
                "lost #%d: %s; it was %s for %.1f s, is %.1f s old and was lent %d times",
                *(link.id, link.how_closed(), move.source),
                *(link.seconds_before, now - link.born, link.uses),
            )
        self._events.closed(link)
        returned = self._all_returned_waiter
        if returned is not None and not self._queues.busy and not returned.done():
            returned.set_result(None)
        task, link.task = link.task, None
        if task is asyncio.current_task():
            task = None  # it ends by itself, and cannot be waited for here
        elif task is not None:
            task.cancel()
        # A mute peer will not answer the goodbye either.
        timeout = 0.0 if why is CloseReason.STALE else self._options.close_timeout
        goodbye = link.owner = Goodbye(
            link, self._options.on_close, self._show_rest_weakly, self._on_gone
        )
        self._tasks.spawn(goodbye.say(task, timeout), goodbye.abort)

    def _show_rest(self, link: Link) -> None:
        """Show what a closed link had received, and nobody has read."""
        if link.loan is None:  # else its borrower may still read what came before the close
            dispose_of_rest(link, self._options, self._stats)

    def make_room(self, count: int) -> None:
        """Close this many idle links, the longest idle first."""
        idle = self._queues.idle
        for link in heapq.nsmallest(count, idle, key=lambda idle: idle.idle_since):
            if link in idle:
                link.close(CloseReason.ROOM)

    def retire_unpermitted(self) -> None:
        """Let go what has lost its lease of the quota: what is idle now, the rest afterwards."""
        for link in list(self._queues.all):
            if link.permit is not None and link.permit.is_lost:
                link.retire_at, link.retire_why = float("-inf"), CloseReason.QUOTA
                if link.state is State.IDLE:
                    link.close(CloseReason.QUOTA)

    async def wait_returned(self, timeout: float | None) -> None:
        """Wait until no link is busy any more, for so many seconds at most."""
        if not self._queues.busy or timeout == 0:
            return
        self._all_returned_waiter = self._tasks.loop.create_future()
        await asyncio.wait({self._all_returned_waiter}, timeout=timeout)
