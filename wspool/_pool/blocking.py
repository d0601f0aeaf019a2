"""The pool for threads: `WebsocketConnectionPool` without `await`, on an event loop of its own.

The loop runs in a background thread (`portal.py`), and there everything is done; whoever calls
waits for it. Nothing here knows how connections are pooled. How a borrow begins and ends, however
it is interrupted, is told in `blocking_lender.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any, Self, TypeVar, TypeVarTuple

import aiohttp

from wspool._connection.callsites import in_own_code
from wspool._connection.exporting import exported
from wspool._connection.idioms import refuse_position, refusing, shown_as
from wspool._connection.loan import WebsocketConnection
from wspool._pool.blocking_borrow import same
from wspool._pool.blocking_connection import Block, BlockingWebsocketConnection
from wspool._pool.blocking_lender import BlockingLender
from wspool._pool.blocking_stream import BlockingWebsocketStream
from wspool._pool.configured import Configured
from wspool._pool.introspection import PoolSnapshot, Trouble
from wspool._pool.listeners import Listener
from wspool._pool.options import ACQUIRE_TIMEOUT, in_time, preferring
from wspool._pool.pool import WebsocketConnectionPool
from wspool._pool.portal import Portal
from wspool._pool.stats import Stats

logger = logging.getLogger("wspool")

T = TypeVar("T")
Args = TypeVarTuple("Args")


@exported
class BlockingWebsocketConnectionPool(BlockingLender, Configured):
    """A `WebsocketConnectionPool` for any number of threads, with the same arguments.

    It runs in an event loop of its own, in a background thread that begins with `start()` or with
    the first use. Hooks and other callables run there, and hooks are async as ever. `session` can
    only be a callable, because a session belongs to the loop that it was made in. `pool` is the
    pool in that loop, for `wspool.prometheus` and the like; all of what people look at may be read
    from any thread.
    """

    is_started: bool = same()
    is_closed: bool = same()
    learned_limit: int | None = same()
    total_connections: int = same()
    available_connections: int = same()
    busy_connections: int = same()
    pending_connections: int = same()
    waiters: int = same()
    stats: Stats = same()
    trouble: Trouble | None = same()
    connections: tuple[WebsocketConnection, ...] = same()

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
        # As the loop sees it: whoever logs this holds the lock that the loop's own log needs.
        return f"<Blocking{repr(self.pool)[1:]}"

    def snapshot(self) -> PoolSnapshot:
        """Return a frozen picture of the pool; its `.to_dict()` is fit for JSON."""
        self._caught_up()
        return self.pool.snapshot()

    def state_diagram(self) -> str:
        """Return the state machine as a Mermaid diagram with the count of each state."""
        self._caught_up()
        return self.pool.state_diagram()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with each event, in the loop's thread; return a callable that ends it."""
        return self.pool.subscribe(listener)

    def start(self) -> None:
        """Start the pool and return when the warm-up is over, whatever came of it."""
        self._portal.wait(self.pool.start)

    @shown_as(preferring)
    def acquire(
        self, *wrong: object, prefer: Any = None, timeout: float | None = ACQUIRE_TIMEOUT
    ) -> BlockingWebsocketConnection:
        """Return a connection to be given back with `release`: an idle one, or a new one.

        The preference, the timeout and the errors are those of `WebsocketConnectionPool.acquire`.
        """
        if wrong:
            refuse_position("acquire", wrong)
        return self._borrow(timeout, prefer=prefer)

    @shown_as(in_time)
    def acquire_new(
        self, *wrong: object, timeout: float | None = ACQUIRE_TIMEOUT
    ) -> BlockingWebsocketConnection:
        """Return a connection that nobody has used; otherwise as `acquire`."""
        if wrong:
            refuse_position("acquire_new", wrong)
        return self._borrow(timeout, wants_new=True)

    @shown_as(preferring)
    def get_connection(
        self, *wrong: object, prefer: Any = None, timeout: float | None = ACQUIRE_TIMEOUT
    ) -> AbstractContextManager[BlockingWebsocketConnection]:
        """Return a context manager that acquires a connection and gives it back.

        Left by an exception after something was sent, the connection is not handed on: it is
        drained up to the message that `drain_until` names, or closed.
        """
        if wrong:
            refuse_position("get_connection", wrong)
        return Block(self._portal, partial(self._borrow, timeout, prefer=prefer))

    @shown_as(in_time)
    def get_new_connection(
        self, *wrong: object, timeout: float | None = ACQUIRE_TIMEOUT
    ) -> AbstractContextManager[BlockingWebsocketConnection]:
        """Return the same as `get_connection`, around `acquire_new`."""
        if wrong:
            refuse_position("get_new_connection", wrong)
        return Block(self._portal, partial(self._borrow, timeout, wants_new=True))

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
        again = partial(self.pool._router.repeating.again, self.pool, timeout)
        return self._run(partial(self._borrow, timeout), again, work, args)

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

    def expire_connections(self, grace: float = 0.0) -> None:
        """Replace every connection that there is: idle ones now, busy ones when they come back.

        `grace` and the errors are those of `WebsocketConnectionPool.expire_connections`.
        """
        self._portal.call(lambda: self.pool.expire_connections(grace))

    def resize(self, max_connections: int) -> None:
        """Change `max_connections`. Nobody is cut off: a surplus goes when it is given back."""
        self._portal.call(lambda: self.pool.resize(max_connections))

    if not TYPE_CHECKING:
        __aenter__ = __aexit__ = refusing(
            "a blocking pool is entered with `with`; in asyncio, use a WebsocketConnectionPool"
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close_all()

    def _borrow(
        self, timeout: float | None, *, wants_new: bool = False, prefer: Any = None
    ) -> BlockingWebsocketConnection:
        make = partial(WebsocketConnection, self.pool, timeout, wants_new, prefer)
        return self._lend(make, BlockingWebsocketConnection)
