"""The pool for threads: `WebsocketConnectionPool` without `await`, on an event loop of its own.

The loop runs in a background thread, and there everything is done; whoever calls waits for it.
Nothing here knows how connections are pooled: this is about threads, their interruption (Ctrl+C
raises KeyboardInterrupt between any two instructions of the main thread), forks and the end of
the interpreter. An interrupted call loses nothing:

- Its thread tells the loop that it has given up, and looks at no result any more. The loop cancels
  what is under way; what has come of it already is undone: a connection is given back, a message
  is put back.
- What is interrupted later, on its way to the variable of whoever called, is a connection that
  nobody refers to: a loan that is dropped ends by itself.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import Any, Concatenate, Final, Generic, ParamSpec, Self, TypeVar, cast

import aiohttp

from wspool._connection import aiohttp_internals as wire
from wspool._connection.callsites import in_own_code
from wspool._connection.errors import ConnectionBusyError
from wspool._connection.link import Transition, WebsocketConnection
from wspool._connection.states import State
from wspool._pool.introspection import PoolSnapshot
from wspool._pool.listeners import Listener
from wspool._pool.options import Headers, Uri, check_timeout
from wspool._pool.pool import _DEFAULT, WebsocketConnectionPool
from wspool._pool.stats import Stats

logger = logging.getLogger("wspool")

P = ParamSpec("P")
T = TypeVar("T")

_running: Final[set[_Portal]] = set()
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


class _Errand(_Call[T]):
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


class _Portal:
    """An event loop in a thread of its own, which ends with the pool's closing.

    The thread begins with the first call, so that a pool may be made before a fork. It refers to
    the portal and the pool, but not to what users hold: that may be dropped.
    """

    def __init__(self, pool: WebsocketConnectionPool, made_at: str) -> None:
        self.pool = pool
        self.made_at = made_at
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
        errand = _Errand(work, timeout, undo)
        try:
            if self._enter(partial(errand.begin, self.tasks)):
                return errand.outcome()
            # The pool is closed: nothing has to wait any more, and there is no loop to wait in.
            return cast(T, wire.step(work()))
        except BaseException:
            self.soon(errand.give_up)
            raise

    def call(self, function: Callable[[], T]) -> T | None:
        """Call a plain function in the loop; with the pool closed there is nothing left to do."""
        self._check_caller()
        call = _Call[T]()
        return call.outcome() if self._enter(partial(call.run, function)) else None

    def soon(self, function: Callable[..., object], *args: Any) -> None:
        """Call a function in the loop, if there still is one. Takes no lock: for finalizers too."""
        if self._loop is not None and not self.is_foreign:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(function, *args)

    def close(self, timeout: float | None) -> None:
        """Close the pool and return when the thread has ended.

        In a forked child it leaves the parent's pool alone.
        """
        if self.is_foreign:
            return
        self._check_caller()
        with self._lock:
            if self._loop is None:
                self._is_over = True
                self.pool.router.close()
                return
        self.stop(timeout)
        with self._is_alive:
            pass

    def stop(self, timeout: float | None = 0.0) -> None:
        """Begin to close the pool."""
        self.soon(self._begin_to_stop, timeout)

    def end_at_exit(self) -> None:
        """Wait for the end, but not for longer than servers may take to answer a close."""
        if self._is_alive.acquire(timeout=self.pool.router.options.close_timeout):
            self._is_alive.release()
        self.warn("was still open at the end of the program")

    def warn(self, what: str) -> None:
        warnings.warn(
            f"{self.pool!r}, made at {self.made_at}, {what}: close_all(), or use `with`",
            ResourceWarning,
            source=self.pool,
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
                f"{self.pool!r} was started in process {self._pid}, and its sockets belong to "
                f"that; this is process {os.getpid()}, forked from it. Start the pool after the "
                "fork, by its first use, or make one in each process"
            )
        if self._thread is threading.current_thread():
            raise RuntimeError(
                f"{self.pool!r} was called in the thread of its own event loop, which would wait "
                "for itself for ever: hooks and listeners use what they are given, and `await`"
            )

    def _start(self) -> asyncio.AbstractEventLoop:
        """Begin the thread, which ends at once if this is interrupted before `_loop` is set."""
        self._pid = os.getpid()
        loop = asyncio.new_event_loop()
        # A daemon, or the end of the program would wait for it before it could be told to end.
        thread = threading.Thread(
            target=self._run, args=(loop,), name=f"wspool {self.pool.name}", daemon=True
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
                    logger.exception("a hook or a listener has ended %r", self.pool)
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
            await self.pool.close_all(timeout)
        finally:
            with self._lock:
                self._is_over = True
            await asyncio.sleep(0)  # whoever has entered begins
            while self.tasks:  # with the pool closed, they end by themselves
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


class _Same:
    """An attribute that is that of the loop's own object; read from any thread."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else getattr(instance._mirrored, self._name)


_same: Final[Callable[[], Any]] = _Same


class BlockingWebsocketConnection:
    """One loan of a WebSocket to the server: a `WebsocketConnection` without `await`.

    Threads may share it, but only one may be in `recv`. Each loan has an object of its own, which
    is of no use once the loan has ended. All times are in seconds, and a `timeout` of None means
    for ever; what has run into one raises TimeoutError.
    """

    __slots__ = ("__weakref__", "_lease", "_mirrored", "_pool")

    uri: str = _same()
    headers: dict[str, str] = _same()
    id: int = _same()
    state: State = _same()
    history: tuple[Transition, ...] = _same()
    is_connected: bool = _same()
    is_busy: bool = _same()
    is_draining: bool = _same()
    reused: bool = _same()
    uses: int = _same()
    created_at: float = _same()
    last_activity: float = _same()
    rtt: float | None = _same()
    websocket: aiohttp.ClientWebSocketResponse = _same()
    subprotocol: str | None = _same()
    borrowed_at: str | None = _same()
    close_code: int | None = _same()
    close_reason: str = _same()
    cause: BaseException | None = _same()

    def __init__(
        self, pool: BlockingWebsocketConnectionPool, connection: WebsocketConnection
    ) -> None:
        self._pool = pool  # which is not dropped while it has a borrower
        self._mirrored = connection
        self._lease = connection.lease

    def __repr__(self) -> str:
        return f"<Blocking{repr(self._mirrored)[1:]}"

    def send(self, message: str | bytes, *, timeout: float | None = None) -> None:
        """Send a text or a binary message. Out of time, it may be sent nevertheless."""
        self._wait(lambda: self._mirrored.send(message), timeout, "was not sent")

    def recv(self, timeout: float | None = None) -> str | bytes:
        """Return the next message, in the order of arrival; out of time, none is lost."""
        return self._wait(self._mirrored.recv, timeout, "had no message", self._put_back)

    def ping(self, timeout: float | None = None) -> float:
        """Send a ping, wait for its pong and return the round trip."""
        return self._wait(self._mirrored.ping, timeout, "had no pong")

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection for good and return when its socket is gone."""
        self._wait(lambda: self._mirrored.close(code, reason))

    def send_json(self, value: Any, *, timeout: float | None = None) -> None:
        """Send a value as a JSON text message."""
        self.send(json.dumps(value), timeout=timeout)

    def recv_json(self, timeout: float | None = None) -> Any:
        """Return the next message, parsed as JSON."""
        return json.loads(self.recv(timeout))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str | bytes:
        """Return the next message, until the server closes normally (1000 or 1001)."""
        try:
            return self._wait(self._mirrored.__anext__, undo=self._put_back)
        except StopAsyncIteration:
            raise StopIteration from None

    def _wait(
        self,
        work: Callable[[], Coroutine[Any, Any, T]],
        timeout: float | None = None,
        late: str = "",
        undo: Callable[[T], object] | None = None,
    ) -> T:
        check_timeout(timeout)

        async def checked() -> T:
            if self._mirrored.lease not in (0, self._lease):  # without a loan, it says so itself
                raise ConnectionBusyError(
                    f"Connection #{self.id} was given back and is lent to somebody else now; "
                    "acquire one from the pool"
                )
            return await work()

        try:
            return self._pool._portal.wait(checked, timeout, undo)
        except TimeoutError:
            raise TimeoutError(f"Connection #{self.id} {late} within {timeout} s") from None

    def _put_back(self, message: str | bytes) -> None:
        if self._mirrored.lease == self._lease:
            self._mirrored.put_back(message)

    def _end(self, **how: bool) -> bool:
        return _end_loan(self._pool.pool, self._mirrored, self._lease, **how)

    def __del__(self) -> None:
        connection, portal = self._mirrored, self._pool._portal
        if connection.lease != self._lease or portal.is_foreign:
            return
        is_lent, borrowed_at = connection.state is State.BUSY, connection.borrowed_at
        portal.soon(partial(_end_loan, portal.pool, connection, self._lease, is_failed=True))
        if is_lent:
            warnings.warn(
                f"connection #{connection.id}, borrowed at {borrowed_at}, was dropped without "
                "being given back: release it, or use `with pool.get_connection()`",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )


def _end_loan(
    pool: WebsocketConnectionPool, connection: WebsocketConnection, lease: int, **how: bool
) -> bool:
    """In the loop: end this loan and no later one; False if it has ended."""
    if connection.lease != lease:
        return False
    pool.router.give_back(connection, **how)
    return True


def _with_arguments_of(
    made: Callable[P, object],
) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, P], None]]:
    """Let an `__init__` be checked, and shown, with the arguments of another class's."""

    def decorate(init: Callable[..., None]) -> Callable[Concatenate[Any, P], None]:
        vars(init)["__wrapped__"] = vars(made)["__init__"]
        return init

    return decorate


class BlockingWebsocketConnectionPool:
    """A `WebsocketConnectionPool` for any number of threads, with the same arguments.

    It runs in an event loop of its own, in a background thread that begins with `start()` or with
    the first use. Hooks and other callables run there, and hooks are async as ever. There is no
    `session`: one belongs to the loop that it was made in. `pool` is the pool in that loop, for
    `wspool.prometheus` and the like; all of what people look at may be read from any thread.
    """

    name: str = _same()
    uri: Uri = _same()
    headers: Headers = _same()
    is_started: bool = _same()
    is_closed: bool = _same()
    total_connections: int = _same()
    available_connections: int = _same()
    busy_connections: int = _same()
    pending_connections: int = _same()
    waiters: int = _same()
    stats: Stats = _same()
    connections: tuple[WebsocketConnection, ...] = _same()

    @_with_arguments_of(WebsocketConnectionPool)
    def __init__(self, **options: Any) -> None:
        if options.pop("session", None) is not None:
            raise TypeError(
                "a blocking pool has an event loop of its own, and a session belongs to the loop "
                "that it was made in: leave `session` out, and the pool makes one"
            )
        self.pool = self._mirrored = WebsocketConnectionPool(**options)
        caller = in_own_code(sys._getframe(1))
        made_at = f"{caller.f_code.co_filename}:{caller.f_lineno}"
        self._portal = _Portal(self.pool, made_at)

    def __repr__(self) -> str:
        return f"<Blocking{repr(self.pool)[1:]}"

    def snapshot(self) -> PoolSnapshot:
        """Return a frozen picture of the pool; its `.to_dict()` is fit for JSON."""
        return self.pool.snapshot()

    def state_diagram(self) -> str:
        """Return the state machine as a Mermaid diagram with the count of each state."""
        return self.pool.state_diagram()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with each event, in the loop's thread; return a callable that ends it."""
        return self.pool.subscribe(listener)

    def start(self) -> None:
        """Start the pool and return when the warm-up is over, whatever came of it."""
        self._portal.wait(self.pool.start)

    def acquire(self, *, timeout: float | None = _DEFAULT) -> BlockingWebsocketConnection:
        """Return a connection to be given back with `release`: an idle one, or a new one.

        The timeout and the errors are those of `WebsocketConnectionPool.acquire`.
        """
        return self._borrow(timeout, wants_new=False)

    def acquire_new(self, *, timeout: float | None = _DEFAULT) -> BlockingWebsocketConnection:
        """Return a connection that nobody has used; otherwise as `acquire`."""
        return self._borrow(timeout, wants_new=True)

    def get_connection(
        self, *, timeout: float | None = _DEFAULT
    ) -> AbstractContextManager[BlockingWebsocketConnection]:
        """Return a context manager that acquires a connection and gives it back.

        Left by an exception after something was sent, the connection is not handed on: it is
        drained up to the message that `drain_until` names, or closed.
        """
        return self._loan(timeout, wants_new=False)

    def get_new_connection(
        self, *, timeout: float | None = _DEFAULT
    ) -> AbstractContextManager[BlockingWebsocketConnection]:
        """Return the same as `get_connection`, around `acquire_new`."""
        return self._loan(timeout, wants_new=True)

    def release(
        self, connection: BlockingWebsocketConnection, *, force_remove: bool = False
    ) -> None:
        """Give a connection back; with `force_remove` it is closed. Does not wait for the network.

        Releasing what is not lent by this pool is a warning in the log.
        """
        is_ours = connection._pool is self
        if not is_ours or self._end(connection, force_remove=force_remove) is False:
            logger.warning("%r is not lent by this pool; releasing it does nothing", connection)

    def expire_connections(self) -> None:
        """Replace every connection that there is: idle ones now, busy ones when they come back."""
        self._portal.call(self.pool.expire_connections)

    def resize(self, max_connections: int) -> None:
        """Change `max_connections`. Nobody is cut off: a surplus goes when it is given back."""
        self._portal.call(lambda: self.pool.resize(max_connections))

    def close_all(self, timeout: float | None = 0.0) -> None:
        """Close the pool and everything in it, and return when its thread has ended.

        Borrowers get `timeout` seconds to finish first, with None as long as they need. Waiters
        get ConnectionPoolUnavailableError at once. Interrupted, the closing goes on.
        """
        check_timeout(timeout)
        self._portal.close(timeout)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close_all()

    @contextmanager
    def _loan(
        self, timeout: float | None, *, wants_new: bool
    ) -> Iterator[BlockingWebsocketConnection]:
        connection = self._borrow(timeout, wants_new=wants_new)
        try:
            yield connection
        except BaseException:
            self._end(connection, is_failed=True)
            raise
        self._end(connection)

    def _borrow(self, timeout: float | None, *, wants_new: bool) -> BlockingWebsocketConnection:
        frame = in_own_code(sys._getframe(1))
        pool = self.pool

        async def borrow() -> BlockingWebsocketConnection:
            borrower = pool.borrower(frame, timeout)
            connection = None if wants_new else pool.router.lend_idle(borrower)
            if connection is None:
                connection = await pool.wait(borrower, timeout, wants_new=wants_new)
            return BlockingWebsocketConnection(self, connection)

        return self._portal.wait(borrow, undo=lambda lent: lent._end())

    def _end(self, connection: BlockingWebsocketConnection, **how: bool) -> bool | None:
        """End a loan, even if that is interrupted; False if it has ended."""
        if self._portal.is_foreign:
            return None  # it is the parent's
        end = partial(connection._end, **how)
        try:
            return self._portal.call(end)
        except BaseException:
            self._portal.soon(end)  # a second time does no harm
            raise

    def __del__(self) -> None:
        portal = getattr(self, "_portal", None)
        if portal is not None and portal.is_running:
            portal.stop()
            portal.warn("was dropped without being closed")
