"""What goes through a portal: the calls of threads, and the life of the loop as these see it.

No lock is held here while anything else is done: see `portal.py`, of which this is the inside.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable, Coroutine
from math import inf
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")

POLL_SECONDS: Final = 0.1 if sys.platform == "win32" else 1.0
"""How often a thread that waits looks up: whether the loop's thread is gone and, on Windows, where
a wait for a lock cannot be interrupted, for Ctrl+C."""

# A call that need not wait for anything is over in the turn in which it enters.
EAGERLY: Final[dict[str, Any]] = {"eager_start": True} if sys.version_info >= (3, 12) else {}

ENDED: Final = (
    "The thread of this pool's event loop has ended before its time, and nothing more comes of the "
    "call: the log says what has ended it. Make a new pool"
)


NEXT_TURN: Final = object()
"""Is returned by a function after which the loop is to turn, before it calls the next one."""


class Signal:
    """Is given once, in the loop's thread, to one thread that waits for it.

    Below is a bare lock. Those of `threading.Event` and of `concurrent.futures.Future` are used by
    Python code, which leaves them locked when it is interrupted in the wrong place.
    """

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._lock.acquire()

    def give(self) -> None:
        self._lock.release()

    def wait(self, life: Life, timeout: float = inf) -> bool:
        """Wait for it; False when the time is up, or the loop's thread is gone without it."""
        while not self._lock.acquire(timeout=min(POLL_SECONDS, timeout)):
            timeout -= POLL_SECONDS
            if life.is_gone or timeout <= 0.0:
                return self._lock.acquire(blocking=False)  # it may have come just now
        return True


class Life:
    """The loop of a portal and its thread, as other threads see them."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        # None: the portal was closed before it had one.
        self.loop = loop
        self.pid = 0 if loop is None else os.getpid()
        # What is to be called in the loop, in this order.
        self.entrants: deque[Callable[[], object]] = deque()
        # How often it has called them; and for which of these times it was woken up already.
        self.turn = 0
        self.woken = -1
        # Whether it takes no more of these; whether the thread has come to its end.
        self.is_over = loop is None
        self.has_ended = False
        # Whether it has ended otherwise than by the closing of the resident.
        self.is_broken = False
        # The thread's, and whether it is the portal's is decided.
        self.ident = 0
        self.begun = Signal()
        # Of those who wait for the end of the thread.
        self.ended: deque[Signal] = deque()
        # Is done when the closing is to begin, with the seconds that borrowers get.
        self.stopping: asyncio.Future[float | None]
        if loop is not None:
            self.stopping = loop.create_future()

    @property
    def is_foreign(self) -> bool:
        return self.pid not in (0, os.getpid())

    @property
    def is_gone(self) -> bool:
        """Whether nothing will come of it any more: at the very end, daemons stand still."""
        return self.has_ended or sys.is_finalizing()

    def enter(self, function: Callable[[], object]) -> bool:
        """Let the loop call a function in its turn; False if it takes no more."""
        self.entrants.append(function)
        if not self.is_over:
            turn = self.turn
            if self.woken != turn:
                assert self.loop is not None
                try:
                    self.loop.call_soon_threadsafe(self.admit)
                except RuntimeError:  # it is closed, and has looked at the entrants before
                    return True
                # Only now: whoever is interrupted before has woken nobody, nor said so.
                self.woken = turn
            return True
        try:
            self.entrants.remove(function)
        except ValueError:
            return True  # the loop took it with the last ones
        return False

    def admit(self) -> None:
        """In the loop: call whatever has entered; what enters meanwhile comes in the next turn."""
        try:
            for _ in range(len(self.entrants)):
                # Whoever was too late takes back its own.
                if self.entrants and self.entrants.popleft()() is NEXT_TURN:
                    break
        finally:
            # Whoever has not seen the new turn has entered before, and is seen here.
            self.turn += 1
            if self.entrants and self.loop is not None:  # or one has raised, and is in the log
                self.loop.call_soon(self.admit)
                self.woken = self.turn

    def begin_to_stop(self, timeout: float | None) -> None:
        """In the loop: begin to close the resident."""
        if not self.stopping.done():
            self.stopping.set_result(timeout)

    def wait_ended(self, timeout: float = inf) -> bool:
        """Wait for the end of the thread; False when the time is up before."""
        ended = Signal()
        self.ended.append(ended)
        return self.has_ended or ended.wait(self, timeout)

    def end(self) -> None:
        """In the thread: the loop is closed, and whatever enters now is too late."""
        self.ident = 0  # the system gives it to another thread
        self.is_broken = not self.is_over
        self.is_over = self.has_ended = True
        while self.ended:
            self.ended.popleft().give()


class Call(Signal, Generic[T]):
    """Something that is done in the loop while a thread waits for its outcome."""

    # The one result, if there is one.
    results: tuple[T, ...] = ()
    error: BaseException | None = None

    def outcome(self, life: Life) -> T:
        """In the thread: wait for it."""
        if not self.wait(life):
            raise RuntimeError(ENDED)
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
            self.results = (function(),)
        except BaseException as error:
            self.error = error
        self.give()


class Work(Call[T]):
    """A coroutine that runs in the loop, and whose result may come too late for anybody."""

    # Whether nobody waits any more.
    is_given_up = False
    _task: asyncio.Task[None] | None = None

    def __init__(
        self,
        work: Callable[[], Coroutine[Any, Any, T]],
        timeout: float | None,
        undo: Callable[[T], object] | None,
        tasks: set[asyncio.Task[None]],
        after: Posted | None = None,
    ) -> None:
        super().__init__()
        self._work = work
        self._timeout = timeout
        self._undo = undo
        self._tasks = tasks
        # What it does not begin after, if that has failed: its error is then told here.
        self._after = after
        self._thread_name = threading.current_thread().name

    def begin(self) -> None:
        if self.is_given_up:
            return
        after = self._after
        if after is not None and after.error is not None:
            self.error, after.error = after.error, None
            self.give()
            return
        loop = asyncio.get_running_loop()
        task = self._task = asyncio.Task(self._run(), loop=loop, name=self._thread_name, **EAGERLY)
        if not task.done():
            self._tasks.add(task)

    async def _run(self) -> None:
        try:
            if self._timeout is None:
                self.results = (await self._work(),)
            else:
                async with asyncio.timeout(self._timeout):
                    self.results = (await self._work(),)
        except BaseException as error:
            self.error = error
        if self._task is not None:  # else it is over in its first step
            self._tasks.discard(self._task)
        self.give()

    def give_up(self) -> object:
        """In the loop: the thread was interrupted, and nobody will take the result."""
        task = self._task
        if task is None:
            return None
        if task.cancel():
            task.add_done_callback(self._tasks.discard)  # it may never begin
            return NEXT_TURN  # it lets go of what the thread may want with its next call
        if self._undo is not None:
            for result in self.results:
                self._undo(result)
        return None


class Posted(Work[None]):
    """A coroutine that runs in the loop while its thread goes on, and hears of an error later."""

    is_done = False

    def __init__(
        self,
        work: Callable[[], Coroutine[Any, Any, None]],
        tasks: set[asyncio.Task[None]],
        late: set[object],
    ) -> None:
        super().__init__(work, None, None, tasks)
        self._late = late
        late.add(self)

    def give(self) -> None:
        self.is_done = True
        self._late.discard(self)
        super().give()

    def check(self) -> None:
        """Raise what has gone wrong, once."""
        error, self.error = self.error, None
        if error is not None:
            raise error
