"""The portal: an event loop in a background thread, for callers in other threads.

It knows nothing of connections. It is about threads, their interruption (Ctrl+C raises
KeyboardInterrupt between any two instructions of the main thread), forks and the end of the
interpreter. An interrupted call loses nothing: its thread tells the loop that it has given up, and
looks at no result any more; the loop cancels what is under way, and undoes what has come of it.

No lock is held here, nor in `calls.py`, while anything else is done. A signal handler, or a
finaliser that the garbage collector runs, may call the portal wherever its thread is in these
files, and would wait for ever for a lock that its own thread holds. What threads have to agree on
is done by one append, which nothing interrupts. A finaliser may use `soon`, which does not wait; a
signal handler may use everything.
"""

from __future__ import annotations

import _thread
import asyncio
import atexit
import logging
import os
import selectors
import threading
import warnings
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, Protocol, TypeVar, cast

from wspool._connection.aiohttp_internals import step
from wspool._pool.calls import ENDED, Call, Life, Posted, Signal, Work

logger = logging.getLogger("wspool")

T = TypeVar("T")

CATCH_UP_SECONDS: Final = 1.0
"""For which whoever looks waits at most: it may hold a lock that a listener in the loop wants."""


class Resident(Protocol):
    """What lives in the loop of a portal: a pool."""

    name: str

    def close_all(self, timeout: float | None) -> Coroutine[Any, Any, None]:
        """Close it, after so many seconds for whoever uses it; before its start without a wait."""


_running: Final[set[Portal]] = set()
"""Portals whose thread is at work in this process."""


class Portal:
    """An event loop in a thread of its own, for one resident, with whose closing it ends.

    The thread begins with the first call, so that it may be made before a fork. It refers to the
    portal and the resident, but not to what users hold: that may be dropped.
    """

    def __init__(self, resident: Resident, exit_timeout: float, made_at: str) -> None:
        self.resident = resident
        self.made_at = made_at
        # Seconds for which the end of the program waits for the resident's.
        self._exit_timeout = exit_timeout
        # The calls under way, whose tasks the loop holds only weakly.
        self.tasks: set[asyncio.Task[None]] = set()
        # The first one is the portal's. Several may begin at a time, as a signal handler does that
        # interrupts a beginning: whichever is appended later ends at once.
        self._lives: list[Life] = []
        # What was left to the loop, and is not done yet.
        self._late: set[object] = set()

    @property
    def is_running(self) -> bool:
        return self in _running

    @property
    def is_foreign(self) -> bool:
        """Whether it was started before a fork, in the parent."""
        return bool(self._lives) and self._lives[0].is_foreign

    # What other threads do.

    def wait(
        self,
        work: Callable[[], Coroutine[Any, Any, T]],
        timeout: float | None = None,
        undo: Callable[[T], object] | None = None,
        after: Posted | None = None,
    ) -> T:
        """Run a coroutine in the loop and return its result.

        When the wait is interrupted it is cancelled, or what it returned is undone. `after`: what
        was posted before; if it has failed, its error is raised in the place of all this.
        """
        errand = Work(work, timeout, undo, self.tasks, after)
        try:
            if (life := self._enter(errand.begin)) is not None:
                return errand.outcome(life)
            # It is closed: nothing has to wait any more, and there is no loop to wait in.
            return cast(T, step(work()))
        except BaseException:
            errand.is_given_up = True
            self.soon(errand.give_up)
            raise

    def post(self, work: Callable[[], Coroutine[Any, Any, None]]) -> Posted | None:
        """Run a coroutine in the loop, and do not wait for it; None if that is over.

        Whatever enters later finds it begun, if it begins `EAGERLY`.
        """
        posted = Posted(work, self.tasks, self._late)
        try:
            if self._enter(posted.begin) is not None:
                return posted
        except BaseException:
            self._late.discard(posted)
            raise
        self._late.discard(posted)
        return None

    def confirm(self, posted: Posted) -> None:
        """Wait until it is done, and raise what has gone wrong. One thread may wait for it."""
        if not posted.is_done and not self.is_foreign:
            posted.outcome(self._lives[0])
        posted.check()

    def call(self, function: Callable[[], T]) -> T | None:
        """Call a plain function in the loop; once that is over there is nothing left to do."""
        call: Call[T] = Call()
        life = self._enter(partial(call.run, function))
        return call.outcome(life) if life is not None else None

    def later(self, function: Callable[[], object]) -> None:
        """Call a function in the loop, and do not wait: whoever looks is to `catch_up` before."""
        if self._lives and (life := self._lives[0]).pid == os.getpid():
            self._late.add(function)
            if not life.enter(partial(self._run_late, function)):
                self._late.discard(function)

    def _run_late(self, function: Callable[[], object]) -> None:
        try:
            function()
        finally:
            self._late.discard(function)

    def catch_up(self) -> None:
        """Wait for what was left to the loop, so that what is seen is what has come of it."""
        if self._late and not self.is_foreign:
            life, caught_up = self._lives[0], Signal()
            may_wait = life.ident != threading.get_ident() and not life.is_gone
            if may_wait and life.enter(caught_up.give):
                caught_up.wait(life, CATCH_UP_SECONDS)

    def soon(self, function: Callable[..., object], *args: Any) -> None:
        """Call a function in the loop, if there still is one. Does not wait: for finalisers too."""
        if self._lives and not self.is_foreign:
            self._lives[0].enter(partial(function, *args))

    def close(self, timeout: float | None) -> None:
        """Close the resident and return when the thread has ended.

        In a forked child it leaves the parent's alone.
        """
        if self.is_foreign:
            return
        if self._lives:
            self._check_caller(self._lives[0])
        life = self._decide(Life(None))
        if life.loop is None:
            step(self.resident.close_all(timeout))
            return
        self.stop(timeout)
        life.wait_ended()

    def stop(self, timeout: float | None = 0.0) -> None:
        """Begin to close the resident."""
        if self._lives:
            self.soon(self._lives[0].begin_to_stop, timeout)

    def end_at_exit(self) -> None:
        """Wait for the end, but not for longer than servers may take to answer a close."""
        self._lives[0].wait_ended(self._exit_timeout)
        self.warn("was still open at the end of the program")

    def warn(self, what: str) -> None:
        warnings.warn(
            f"{self.resident!r}, made at {self.made_at}, {what}: close_all(), or use `with`",
            ResourceWarning,
            source=self.resident,
            stacklevel=3,
        )

    def _enter(self, begin: Callable[[], object]) -> Life | None:
        """Let the loop begin a call, and return its life; None if that is over."""
        if self._lives:
            life = self._lives[0]
            self._check_caller(life)
        else:
            life = self._start()
        if life.enter(begin):
            return life
        if life.is_broken:
            raise RuntimeError(ENDED)
        return None

    def _check_caller(self, life: Life) -> None:
        if life.pid != os.getpid() and life.is_foreign:
            raise RuntimeError(
                f"{self.resident!r} was started in process {life.pid}, and its sockets belong to "
                f"that; this is process {os.getpid()}, forked from it. Start it after the fork, by "
                "its first use, or make one in each process"
            )
        if life.ident == threading.get_ident():
            raise RuntimeError(
                f"{self.resident!r} was called in the thread of its own event loop, which would "
                "wait for itself for ever: hooks and listeners use what they are given, and `await`"
            )

    def _decide(self, life: Life) -> Life:
        """Return the portal's one life, which is this if there was none."""
        if not self._lives:
            self._lives.append(life)
        return self._lives[0]

    def _start(self) -> Life:
        """Begin a thread, and return the life of the one that is the portal's."""
        _check_threads(self.resident)
        loop = asyncio.new_event_loop()
        life = Life(loop)
        # A daemon, or the end of the program would wait for it before it could be told to end.
        thread = threading.Thread(
            target=self._run, args=(life, loop), name=f"wspool {self.resident.name}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # there may be no more threads; the next call tries again
            loop.close()
            raise
        life.begun.wait(life)
        return self._lives[0]

    # What its own thread does.

    def _run(self, life: Life, loop: asyncio.AbstractEventLoop) -> None:
        life.ident = threading.get_ident()
        is_ours = self._decide(life) is life
        if is_ours:
            _running.add(self)
        life.begun.give()
        try:
            if is_ours:
                self._live(life, loop)
        except BaseException:
            logger.exception("the event loop of %r has ended before its time", self.resident)
        finally:
            loop.close()
            _running.discard(self)
            life.end()

    def _live(self, life: Life, loop: asyncio.AbstractEventLoop) -> None:
        life_task = loop.create_task(self._reside(life))
        while not life_task.done():
            try:
                loop.run_until_complete(life_task)
            except (SystemExit, KeyboardInterrupt, RuntimeError) as error:
                if isinstance(error, RuntimeError) and (life_task.done() or life.stopping.done()):
                    raise
                # An exit, or a loop.stop(). It does not end the program from here, and whoever
                # waits would wait for ever.
                logger.exception("a hook or a listener has ended %r", self.resident)
                life.begin_to_stop(0.0)
        if not life_task.cancelled():
            life_task.exception()  # it is in the log, and asyncio need not say so again

    async def _reside(self, life: Life) -> None:
        timeout = await life.stopping
        try:
            await self.resident.close_all(timeout)
        finally:
            life.is_over = True
            life.admit()
            await asyncio.sleep(0)  # whoever has entered begins
            while life.entrants:
                await asyncio.sleep(0)
            while self.tasks:  # with the resident closed, they end by themselves
                await asyncio.wait(self.tasks)


def _check_threads(resident: Resident) -> None:
    """Refuse greenlets in the place of threads, of which only one can have a loop."""
    for patched in (_thread.start_new_thread, selectors.DefaultSelector):
        patched_by = (patched.__module__ or "").partition(".")[0]
        if patched_by in ("gevent", "eventlet"):
            raise RuntimeError(
                f"{resident!r} needs a thread of the operating system with an event loop of "
                f"asyncio's, and {patched_by} has put its own in the place of these. Use it in a "
                "process that is not monkey-patched, such as a worker of gunicorn's gthread"
            )


@atexit.register
def _end_at_exit() -> None:
    """Registered at the import, and so called after what users of the pool have registered."""
    portals = tuple(_running)
    for portal in portals:
        portal.stop()
    for portal in portals:
        portal.end_at_exit()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_running.clear)
