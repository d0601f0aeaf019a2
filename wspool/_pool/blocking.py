"""The pool for threads: `WebsocketConnectionPool` without `await`, on an event loop of its own.

The loop runs in a background thread (`portal.py`), and there everything is done; whoever calls
waits for it. Nothing here knows how connections are pooled. What an interrupted call had got is
given back: a loan ends, a message is put back. What is interrupted later, on its way to the
variable of whoever called, is a connection that nobody refers to: a loan that is dropped ends by
itself, and so does that of a `with` in a generator that is dropped. Neither waits: where the
garbage collector runs, a lock may be held that the loop needs.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, Never, Self, TypeVar, TypeVarTuple

import aiohttp

from wspool._connection.callsites import in_own_code
from wspool._connection.errors import ConnectionClosedError
from wspool._connection.exporting import exported
from wspool._connection.idioms import refuse_position, refusing, shown_as
from wspool._connection.link import Transition
from wspool._connection.loan import WebsocketConnection
from wspool._connection.states import State
from wspool._pool.blocking_borrow import BlockingBorrow, L, end
from wspool._pool.blocking_stream import BlockingWebsocketStream
from wspool._pool.checks import check_timeout
from wspool._pool.configured import Configured
from wspool._pool.introspection import PoolSnapshot, Trouble
from wspool._pool.listeners import Listener
from wspool._pool.options import ACQUIRE_TIMEOUT, in_time
from wspool._pool.pool import WebsocketConnectionPool
from wspool._pool.portal import Portal
from wspool._pool.repeating import Attempt
from wspool._pool.stats import Stats

logger = logging.getLogger("wspool")

T = TypeVar("T")
B = TypeVar("B", bound=BlockingBorrow[Any])
Args = TypeVarTuple("Args")


_NOT_ASYNC: Final = (
    "a blocking pool is used without async and await: write `with pool.get_connection() as "
    "connection:`; in asyncio, use a WebsocketConnectionPool"
)


class _Same:
    """An attribute that is that of the loop's own object; read from any thread."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else getattr(instance._mirrored, self._name)

    def __set__(self, instance: Any, value: Any) -> None:
        setattr(instance._mirrored, self._name, value)


_same: Final[Callable[[], Any]] = _Same


@exported
class BlockingWebsocketConnection(BlockingBorrow[WebsocketConnection]):
    """One loan of a WebSocket to the server: a `WebsocketConnection` without `await`.

    Threads may share it, but only one may be in `recv`. All times are in seconds, and a `timeout`
    of None means for ever; what has run into one raises TimeoutError.
    """

    __slots__ = ()

    _what, _block = "connection", "get_connection"

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
    context: Any = _same()
    is_clean: bool = _same()
    outstanding: int | None = _same()

    def __init__(self, pool: BlockingWebsocketConnectionPool, loan: WebsocketConnection) -> None:
        super().__init__(pool, loan)

    def send(self, message: str | bytes, *, timeout: float | None = None) -> None:
        """Send a text or a binary message. If the time is up, it may be sent nevertheless."""
        self._wait(lambda: self._mirrored.send(message), timeout, "was not sent")

    def recv(self, timeout: float | None = None) -> str | bytes:
        """Return the next message, in the order of arrival. If the time is up, none is lost."""
        return self._wait(self._mirrored.recv, timeout, "had no message", self._put_back)

    def ping(self, timeout: float | None = None) -> float:
        """Send a ping, wait for its pong and return the round trip."""
        return self._wait(self._mirrored.ping, timeout, "had no pong")

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection for good and return when its socket is gone."""
        self._wait(lambda: self._mirrored.close(code, reason))

    def retire(self) -> None:
        """Let nobody have this connection any more: it closes when it is given back."""
        self._pool._portal.call(self._mirrored.retire)

    def send_json(self, value: Any, *, timeout: float | None = None) -> None:
        """Send a value as a JSON text message."""
        self.send(json.dumps(value), timeout=timeout)

    def recv_json(self, timeout: float | None = None) -> Any:
        """Return the next message, parsed as JSON."""
        return json.loads(self.recv(timeout))

    def __next__(self) -> str | bytes:
        """Return the next message, until the server closes normally (1000 or 1001)."""
        try:
            return self._wait(self._mirrored.__anext__, undo=self._put_back)
        except StopAsyncIteration:
            raise StopIteration from None

    if not TYPE_CHECKING:
        __await__ = __aenter__ = __aexit__ = refusing(_NOT_ASYNC)
        __aiter__ = refusing("messages are read with `for message in connection:` here")

        def __enter__(self) -> Never:
            self._pool.release(self)
            raise TypeError(
                "acquire() has borrowed this connection already, and it was given back: write "
                "`with pool.get_connection() as connection:`"
            )

        __exit__ = __enter__

    def _named(self) -> str:
        return f"Connection #{self.id}"

    def _put_back(self, message: str | bytes) -> None:
        self._mirrored._put_back(message)


class Block(AbstractContextManager[BlockingWebsocketConnection]):
    """A `with` that borrows, and what to write in the place of a wrong one."""

    def __init__(self, loan: AbstractContextManager[BlockingWebsocketConnection]) -> None:
        self._loan = loan

    def __enter__(self) -> BlockingWebsocketConnection:
        return self._loan.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._loan.__exit__(*error)

    if not TYPE_CHECKING:
        __await__ = __aenter__ = __aexit__ = refusing(_NOT_ASYNC)


@exported
class BlockingWebsocketConnectionPool(Configured):
    """A `WebsocketConnectionPool` for any number of threads, with the same arguments.

    It runs in an event loop of its own, in a background thread that begins with `start()` or with
    the first use. Hooks and other callables run there, and hooks are async as ever. `session` can
    only be a callable, because a session belongs to the loop that it was made in. `pool` is the
    pool in that loop, for `wspool.prometheus` and the like; all of what people look at may be read
    from any thread.
    """

    is_started: bool = _same()
    is_closed: bool = _same()
    learned_limit: int | None = _same()
    total_connections: int = _same()
    available_connections: int = _same()
    busy_connections: int = _same()
    pending_connections: int = _same()
    waiters: int = _same()
    stats: Stats = _same()
    trouble: Trouble | None = _same()
    connections: tuple[WebsocketConnection, ...] = _same()

    pool: WebsocketConnectionPool
    """The pool in the loop's thread."""

    def _set_up(self, maker: FrameType) -> None:
        if isinstance(self.session, aiohttp.ClientSession):
            raise TypeError(
                "a blocking pool has an event loop of its own, and a session belongs to the loop "
                "that it was made in: let `session` be a callable that makes one, which is called "
                "in that loop, or leave it out"
            )
        caller = in_own_code(maker)
        self.pool = self._mirrored = WebsocketConnectionPool._of(self._options, caller)
        made_at = f"{caller.f_code.co_filename}:{caller.f_lineno}"
        self._portal = Portal(self.pool, self.close_timeout, made_at)

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

    @shown_as(in_time)
    def acquire(
        self, *wrong: object, timeout: float | None = ACQUIRE_TIMEOUT
    ) -> BlockingWebsocketConnection:
        """Return a connection to be given back with `release`: an idle one, or a new one.

        The timeout and the errors are those of `WebsocketConnectionPool.acquire`.
        """
        if wrong:
            refuse_position("acquire", wrong)
        return self._borrow(timeout, wants_new=False)

    @shown_as(in_time)
    def acquire_new(
        self, *wrong: object, timeout: float | None = ACQUIRE_TIMEOUT
    ) -> BlockingWebsocketConnection:
        """Return a connection that nobody has used; otherwise as `acquire`."""
        if wrong:
            refuse_position("acquire_new", wrong)
        return self._borrow(timeout, wants_new=True)

    @shown_as(in_time)
    def get_connection(
        self, *wrong: object, timeout: float | None = ACQUIRE_TIMEOUT
    ) -> AbstractContextManager[BlockingWebsocketConnection]:
        """Return a context manager that acquires a connection and gives it back.

        Left by an exception after something was sent, the connection is not handed on: it is
        drained up to the message that `drain_until` names, or closed.
        """
        if wrong:
            refuse_position("get_connection", wrong)
        return Block(self._loan(timeout, wants_new=False))

    @shown_as(in_time)
    def get_new_connection(
        self, *wrong: object, timeout: float | None = ACQUIRE_TIMEOUT
    ) -> AbstractContextManager[BlockingWebsocketConnection]:
        """Return the same as `get_connection`, around `acquire_new`."""
        if wrong:
            refuse_position("get_new_connection", wrong)
        return Block(self._loan(timeout, wants_new=True))

    def run(
        self,
        work: Callable[[BlockingWebsocketConnection, *Args], T],
        *args: *Args,
        timeout: float | None = ACQUIRE_TIMEOUT,
    ) -> T:
        """Return what `work(connection, *args)` does, in this thread, with a connection on loan.

        If the connection is lost under it, it may be called once more, with a fresh connection, and
        the server may then have done all of it twice. When that happens, the timeout and the errors
        are as in `WebsocketConnectionPool.run`.
        """
        attempt: Attempt | None = None
        repeating, call = self.pool._router.repeating, self._portal.call
        try:
            with self._loan(timeout, wants_new=False) as connection:
                attempt = call(partial(Attempt, connection._mirrored))
                return work(connection, *args)
        except ConnectionClosedError:
            if attempt is None or not call(partial(repeating.may_repeat, attempt)):
                raise
        finally:
            if attempt is not None:
                self._portal.soon(attempt.end)
        with self._loan(timeout, wants_new=True) as connection:
            return work(connection, *args)

    def release(
        self, connection: BlockingWebsocketConnection, *, force_remove: bool = False
    ) -> None:
        """Give a connection back; with `force_remove` it is closed. Does not wait for the network.

        Releasing what is not lent by this pool is a warning in the log.
        """
        is_ours = connection._pool is self
        if not is_ours or self._end(connection, force_remove=force_remove) is False:
            logger.warning("%r is not lent by this pool; releasing it does nothing", connection)

    def acquire_stream(self, *, timeout: float | None = ACQUIRE_TIMEOUT) -> BlockingWebsocketStream:
        """Return a stream, a share of a connection, to be given back with `release_stream`.

        The timeout and the errors are those of `WebsocketConnectionPool.acquire_stream`.
        """
        return self._lend(partial(self.pool.get_stream, timeout=timeout), BlockingWebsocketStream)

    @contextmanager
    def get_stream(
        self, *, timeout: float | None = ACQUIRE_TIMEOUT
    ) -> Iterator[BlockingWebsocketStream]:
        """Return a context manager that acquires a stream and gives it back."""
        with self._lent(partial(self.acquire_stream, timeout=timeout)) as stream:
            yield stream

    def release_stream(
        self, stream: BlockingWebsocketStream, *, force_remove: bool = False
    ) -> None:
        """Give a stream back; with `force_remove` its connection closes when its neighbours go.

        Releasing what is over is a warning in the log.
        """
        is_ours = stream._pool is self
        if not is_ours or self._end(stream, force_remove=force_remove) is False:
            logger.warning("%r is not lent by this pool; releasing it does nothing", stream)

    def expire_connections(self, grace: float = 0.0) -> None:
        """Replace every connection that there is: idle ones now, busy ones when they come back.

        `grace` and the errors are those of `WebsocketConnectionPool.expire_connections`.
        """
        self._portal.call(lambda: self.pool.expire_connections(grace))

    def resize(self, max_connections: int) -> None:
        """Change `max_connections`. Nobody is cut off: a surplus goes when it is given back."""
        self._portal.call(lambda: self.pool.resize(max_connections))

    def close(self) -> None:
        """Close the pool, as `close_all()` without a timeout does: for `contextlib.closing`."""
        self.close_all()

    def close_all(self, timeout: float | None = 0.0) -> None:
        """Close the pool and everything in it, and return when its thread has ended.

        Borrowers get `timeout` seconds to finish first, with None as long as they need. Waiters
        get ConnectionPoolUnavailableError at once. Interrupted, the closing goes on.
        """
        check_timeout(timeout)
        self._portal.close(timeout)

    if not TYPE_CHECKING:
        __aenter__ = __aexit__ = refusing(
            "a blocking pool is entered with `with`; in asyncio, use a WebsocketConnectionPool"
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close_all()

    def _loan(
        self, timeout: float | None, *, wants_new: bool
    ) -> AbstractContextManager[BlockingWebsocketConnection]:
        return self._lent(partial(self._borrow, timeout, wants_new=wants_new))

    @contextmanager
    def _lent(self, borrow: Callable[[], B]) -> Iterator[B]:
        """Borrow, and give back."""
        lent = borrow()
        try:
            lent._is_in_block = True
            yield lent
        except GeneratorExit:  # of a generator that is closed, perhaps by the garbage collector
            self._portal.soon(partial(end, self.pool, lent._mirrored, is_failed=True))
            raise
        except BaseException:
            self._end(lent, is_failed=True)
            raise
        self._end(lent)

    def _borrow(self, timeout: float | None, *, wants_new: bool) -> BlockingWebsocketConnection:
        make = partial(WebsocketConnection, self.pool, timeout, wants_new)
        return self._lend(make, BlockingWebsocketConnection)

    def _lend(self, make: Callable[[], L], hand: Callable[[Self, L], B]) -> B:
        """Make a borrow in the loop, wait for it, and put it into a thread's hand."""
        frame = in_own_code(sys._getframe(1))
        pool = self.pool

        async def borrow() -> B:
            made = make()
            if not pool._lend_at_once(made, frame):
                await pool._router.wait(made)
            return hand(self, made)

        return self._portal.wait(borrow, undo=lambda lent: end(pool, lent._mirrored))

    def _end(self, lent: BlockingBorrow[Any], **how: bool) -> bool | None:
        """End a borrow, even if that is interrupted; False if it was over."""
        if self._portal.is_foreign:
            return None  # it is the parent's
        ending = partial(end, self.pool, lent._mirrored, **how)
        try:
            return self._portal.call(ending)
        except BaseException:
            self._portal.soon(ending)  # a second time does no harm
            raise

    def __del__(self) -> None:
        portal = getattr(self, "_portal", None)
        if portal is not None and portal.is_running:
            portal.stop()
            portal.warn("was dropped without being closed")
