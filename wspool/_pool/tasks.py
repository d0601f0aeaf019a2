"""The pool's tasks: what must wait for the network.

A task does one thing, a dial, a drain, an errand or a goodbye, and then calls back. It holds
nothing that holds the pool: the callbacks are weak, so that a pool that was dropped is collected,
and a task that finds its pool gone cuts the socket off.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, ParamSpec

from wspool._connection.errors import ENDS_PROGRAM
from wspool._connection.link import Link
from wspool._connection.states import CloseReason, State

logger = logging.getLogger("wspool")

P = ParamSpec("P")


def weakly(method: Callable[P, object]) -> Callable[P, bool]:
    """Return a callable that calls a bound method without keeping its object alive.

    What it returns is whether the object was still there.
    """
    reference = weakref.WeakMethod(method)

    def call(*args: P.args, **kwargs: P.kwargs) -> bool:
        alive = reference()
        if alive is None:
            return False
        alive(*args, **kwargs)
        return True

    return call


def or_abort(closed: Callable[[Link], bool]) -> Callable[[Link], None]:
    """Return what a link calls when it closes; without its pool it is cut off."""

    def on_close(link: Link) -> None:
        if not closed(link):
            link.abort()
            link.free()

    return on_close


class Tasks:
    """The tasks of one pool, which keeps them from being collected."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop  # from the pool's start on
        self._running: set[asyncio.Task[None]] = set()
        # Tasks run in the context of the pool's construction, not of whoever acquired first.
        self._context = contextvars.copy_context()

    def spawn(
        self,
        coroutine: Coroutine[Any, Any, None],
        if_broken: Callable[[], object] | None = None,
    ) -> asyncio.Task[None]:
        """Run a coroutine.

        `if_broken` clears up after a task that was cancelled or has raised, and it too works where
        the task was cancelled before its first step, as at the end of `asyncio.run`.

        Made directly: an eager task factory would run it in the middle of a routing step.
        """
        task = asyncio.Task(coroutine, loop=self.loop, context=self._context.copy())
        running = self._running
        running.add(task)

        def has_ended(task: asyncio.Task[None]) -> None:
            running.discard(task)
            error = None if task.cancelled() else task.exception()
            if error is not None:
                logger.error("a task of the pool's broke down", exc_info=error)
            if if_broken is not None and (task.cancelled() or error is not None):
                if_broken()

        task.add_done_callback(has_ended)
        return task

    def __len__(self) -> int:
        return len(self._running)

    def __contains__(self, task: object) -> bool:
        return task in self._running

    def __iter__(self) -> Iterator[asyncio.Task[None]]:
        return iter(list(self._running))


class Discard(Exception):
    """The link cannot be used again. `__cause__` is the reason, if there is one."""

    def __init__(self, why: CloseReason) -> None:
        self.why = why


def is_cancelled(error: BaseException) -> bool:
    """Return whether an error is the cancellation of this task, and not of what it waited for."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling() > 0)


def close_if_still(link: Link, state: State, why: CloseReason) -> None:
    """The dial, the drain or the errand was cancelled by somebody who has not closed the link."""
    if link.state is state:
        link.close(why)


Then = Callable[[Link, Discard | None], bool]
"""Is told how the work on a link has ended; False: there is nobody any more to be told."""


async def work(link: Link, working: Callable[[], Awaitable[None]], then: Then) -> None:
    """Do the work of a state that the pool owns, a drain or an errand."""
    discard: Discard | None = None
    try:
        await working()
    except Discard as error:
        discard = error
    except (*ENDS_PROGRAM, asyncio.CancelledError):
        raise
    except BaseException:
        # A fault of this package's, or a borrower that still reads: no reason to lose a place.
        logger.exception("the errand or the drain of #%d broke down", link.id)
        discard = Discard(CloseReason.ERROR)
    if not then(link, discard):
        link.abort()
