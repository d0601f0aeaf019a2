"""The portal: an event loop in a background thread, for callers in other threads.

It knows nothing of connections. It is about threads, their interruption (Ctrl+C raises
KeyboardInterrupt between any two instructions of the main thread), forks and the end of the
interpreter. An interrupted call loses nothing: its thread tells the loop that it has given up, and
looks at no result any more; the loop cancels what is under way, and undoes what has come of it.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
import warnings
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, Final, Generic, Protocol, TypeVar, cast

from wspool._connection.aiohttp_internals import step

logger = logging.getLogger("wspool")

T = TypeVar("T")


class Resident(Protocol):
    """What lives in the loop of a portal: a pool."""

    name: str

    def close_all(self, timeout: float | None) -> Coroutine[Any, Any, None]:
        """Close it, after so many seconds for whoever uses it; before its start without a wait."""


_running: Final[set[Portal]] = set()
"""Portals whose thread is at work in this process."""


class _Call(Generic[T]):
    """Something that is done in the loop while a thread waits for its outcome.

    The thread waits for a bare lock: those of a `concurrent.futures.Future` are Python code, which
    leaves them locked when it is interrupted in the wrong place, and then they stop the loop.
    """

    def __init__(self) -> None:
        # The one result, if there is one.
        self.results: list[T] = []
        self.error: BaseException | None = None
        self._is_under_way = threading.Lock()
        self._is_under_way.acquire()

    def settle(self) -> None:
        """In the loop: the outcome is there."""
        self._is_under_way.release()

    def outcome(self) -> T:
        """In the thread: wait for it."""
        self._is_under_way.acquire()
        error, self.error = self.error, None
        if error is None:
            return self.results[0]
        try:
            raise error
        finally:
            del error  # and with it a cycle

    def run(self, function: Callable[[], T]) -> None:
        """In the loop: call a plain function."""
        try:
            self.results.append(function())
        except BaseException as error:
            self.error = error
        self.settle()


class _Work(_Call[T]):
    """A coroutine that runs in the loop, and whose result may come too late for anybody."""

    def __init__(
        self,
        work: Callable[[], Coroutine[Any, Any, T]],
        timeout: float | None,
        undo: Callable[[T], object] | None,
    ) -> None:
        super().__init__()
        self._work = work
        self._timeout = timeout
        self._undo = undo
        self._thread_name = threading.current_thread().name
        self._task: asyncio.Task[None] | None = None

    def begin(self, tasks: set[asyncio.Task[None]]) -> None:
        self._task = asyncio.Task(self._run(), name=self._thread_name)
        tasks.add(self._task)
        self._task.add_done_callback(tasks.discard)

    async def _run(self) -> None:
        try:
            if self._timeout is None:
                self.results.append(await self._work())
            else:
                async with asyncio.timeout(self._timeout):
                    self.results.append(await self._work())
        except BaseException as error:
            self.error = error
        self.settle()

    def give_up(self) -> None:
        """In the loop: the thread was interrupted, and nobody will take the result."""
        if self._task is not None and not self._task.cancel() and self._undo is not None:
            for result in self.results:
                self._undo(result)


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
        # Held while the thread begins, for each call's entry, and when no more may enter.
        self._lock = threading.Lock()
        self._is_over = False
        self._pid = 0
        self._thread: threading.Thread | None = None
        # The thread holds it. Its join(), once interrupted, would take it for ended (bpo-45274).
        self._is_alive = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        # Is done when the closing is to begin, with the seconds that borrowers get.
        self._stopping: asyncio.Future[float | None]

    @property
    def is_running(self) -> bool:
        return self in _running

    @property
    def is_foreign(self) -> bool:
        """Whether it was started before a fork, in the parent."""
        return self._pid not in (0, os.getpid())

    # What other threads do.

    def wait(
        self,
        work: Callable[[], Coroutine[Any, Any, T]],
        timeout: float | None = None,
        undo: Callable[[T], object] | None = None,
    ) -> T:
        """Run a coroutine in the loop and return its result.

        When the wait is interrupted it is cancelled, or what it returned is undone.
        """
        self._check_caller()
        errand = _Work(work, timeout, undo)
        try:
            if self._enter(partial(errand.begin, self.tasks)):
                return errand.outcome()
            # It is closed: nothing has to wait any more, and there is no loop to wait in.
            return cast(T, step(work()))
        except BaseException:
            self.soon(errand.give_up)
            raise

    def call(self, function: Callable[[], T]) -> T | None:
        """Call a plain function in the loop; once that is over there is nothing left to do."""
        self._check_caller()
        call = _Call[T]()
        return call.outcome() if self._enter(partial(call.run, function)) else None

    def soon(self, function: Callable[..., object], *args: Any) -> None:
        """Call a function in the loop, if there still is one. Takes no lock: for finalizers too."""
        if self._loop is not None and not self.is_foreign:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(function, *args)

    def close(self, timeout: float | None) -> None:
        """Close the resident and return when the thread has ended.

        In a forked child it leaves the parent's alone.
        """
        if self.is_foreign:
            return
        self._check_caller()
        with self._lock:
            if self._loop is None:
                self._is_over = True
                step(self.resident.close_all(timeout))
                return
        self.stop(timeout)
        with self._is_alive:
            pass

    def stop(self, timeout: float | None = 0.0) -> None:
        """Begin to close the resident."""
        self.soon(self._begin_to_stop, timeout)

    def end_at_exit(self) -> None:
        """Wait for the end, but not for longer than servers may take to answer a close."""
        if self._is_alive.acquire(timeout=self._exit_timeout):
            self._is_alive.release()
        self.warn("was still open at the end of the program")

    def warn(self, what: str) -> None:
        warnings.warn(
            f"{self.resident!r}, made at {self.made_at}, {what}: close_all(), or use `with`",
            ResourceWarning,
            source=self.resident,
            stacklevel=3,
        )

    def _enter(self, begin: Callable[[], object]) -> bool:
        """Let the loop begin a call; False if it is over."""
        with self._lock:
            if self._is_over:
                return False
            loop = self._loop or self._start()
            loop.call_soon_threadsafe(begin)
        return True

    def _check_caller(self) -> None:
        if self.is_foreign:
            raise RuntimeError(
                f"{self.resident!r} was started in process {self._pid}, and its sockets belong to "
                f"that; this is process {os.getpid()}, forked from it. Start it after the fork, by "
                "its first use, or make one in each process"
            )
        if self._thread is threading.current_thread():
            raise RuntimeError(
                f"{self.resident!r} was called in the thread of its own event loop, which would "
                "wait for itself for ever: hooks and listeners use what they are given, and `await`"
            )

    def _start(self) -> asyncio.AbstractEventLoop:
        """Begin the thread, which ends at once if this is interrupted before `_loop` is set."""
        self._pid = os.getpid()
        loop = asyncio.new_event_loop()
        # A daemon, or the end of the program would wait for it before it could be told to end.
        thread = threading.Thread(
            target=self._run, args=(loop,), name=f"wspool {self.resident.name}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # there may be no more threads; the next call tries again
            self._pid = 0
            loop.close()
            raise
        self._thread = thread
        self._stopping = loop.create_future()
        self._is_alive = threading.Lock()
        self._is_alive.acquire()
        self._loop = loop
        return loop

    # What its own thread does.

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            if self._loop is not loop:
                loop.close()
                return
            _running.add(self)
        life_task = loop.create_task(self._live())
        try:
            while not life_task.done():
                try:
                    loop.run_until_complete(life_task)
                except (SystemExit, KeyboardInterrupt):
                    # It does not end the program from here, and whoever waits would wait for ever.
                    logger.exception("a hook or a listener has ended %r", self.resident)
                    self._begin_to_stop(0.0)
        finally:
            loop.close()
            _running.discard(self)
            self._is_alive.release()

    def _begin_to_stop(self, timeout: float | None) -> None:
        if not self._stopping.done():
            self._stopping.set_result(timeout)

    async def _live(self) -> None:
        timeout = await self._stopping
        try:
            await self.resident.close_all(timeout)
        finally:
            with self._lock:
                self._is_over = True
            await asyncio.sleep(0)  # whoever has entered begins
            while self.tasks:  # with the resident closed, they end by themselves
                await asyncio.wait(self.tasks)


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
