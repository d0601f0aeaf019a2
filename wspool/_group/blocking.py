"""The group for threads: `WebsocketPools` without `await`, on an event loop of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Literal, Self, TypeVar, TypeVarTuple

import aiohttp

from wspool._connection.callsites import in_own_code
from wspool._connection.exporting import exported
from wspool._group.pictures import GroupSnapshot
from wspool._group.pools import WebsocketPools
from wspool._group.roster import OptionsOf
from wspool._pool.blocking_borrow import same
from wspool._pool.blocking_connection import Block, BlockingWebsocketConnection
from wspool._pool.blocking_lender import BlockingLender
from wspool._pool.blocking_stream import BlockingWebsocketStream
from wspool._pool.introspection import Trouble
from wspool._pool.listeners import Listener
from wspool._pool.options import ACQUIRE_TIMEOUT
from wspool._pool.portal import Portal
from wspool._pool.stats import Stats

T = TypeVar("T")
Args = TypeVarTuple("Args")


@exported
class BlockingWebsocketPools(BlockingLender):
    """A `WebsocketPools` for any number of threads, with the same arguments.

    It runs in an event loop of its own, in a background thread that begins with `start()` or with
    the first use; `options_of`, hooks and other callables run there. `pools` is the group in that
    loop: all of what people look at may be read from any thread.
    """

    is_closed: bool = same()
    waiters: int = same()
    total_connections: int = same()
    stats: Stats = same()
    trouble: Trouble | None = same()

    pools: WebsocketPools
    """The group in the loop's thread."""

    def __init__(
        self,
        options_of: OptionsOf,
        *,
        max_connections: int,
        choose: Literal["spread", "first"] = "spread",
        acquire_timeout: float | None = 0.0,
        name: str | None = None,
        **defaults: Any,
    ) -> None:
        if isinstance(defaults.get("session"), aiohttp.ClientSession):
            raise TypeError(
                "a blocking group has an event loop of its own, and a session belongs to the loop "
                "that it was made in: let `session` be a callable that makes one, or leave it out"
            )
        self.pools = self._mirrored = WebsocketPools(
            options_of,
            max_connections=max_connections,
            choose=choose,
            acquire_timeout=acquire_timeout,
            name=name,
            **defaults,
        )
        caller = in_own_code(sys._getframe(1))
        made_at = f"{caller.f_code.co_filename}:{caller.f_lineno}"
        self._portal = Portal(self.pools, defaults.get("close_timeout", 5.0), made_at)

    def __repr__(self) -> str:
        return f"<Blocking{repr(self.pools)[1:]}"

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with each event, in the loop's thread; return a callable that ends it."""
        return self.pools.subscribe(listener)

    def snapshot(self) -> GroupSnapshot:
        """Return a frozen picture of the group; its `.to_dict()` is fit for JSON."""
        self._caught_up()
        return self.pools.snapshot()

    def start(self) -> None:
        """Start the pools of a mapping, and return when their warm-up is over."""
        self._portal.wait(self.pools.start)

    def acquire(
        self, key: Any = None, *, prefer: Any = None, timeout: float | None = ACQUIRE_TIMEOUT
    ) -> BlockingWebsocketConnection:
        """Return a connection to be given back with `release`.

        The arguments and the errors are those of `WebsocketPools.acquire`.
        """
        make = partial(self.pools.get_connection, key, prefer=prefer, timeout=timeout)
        return self._lend(make, BlockingWebsocketConnection)

    def get_connection(
        self, key: Any = None, *, prefer: Any = None, timeout: float | None = ACQUIRE_TIMEOUT
    ) -> AbstractContextManager[BlockingWebsocketConnection]:
        """Return a context manager that acquires a connection and gives it back.

        The arguments and the errors are those of `WebsocketPools.get_connection`.
        """
        borrow = partial(self.acquire, key, prefer=prefer, timeout=timeout)
        return Block(self._portal, borrow)

    def run(
        self,
        work: Callable[[BlockingWebsocketConnection, *Args], T],
        *args: *Args,
        key: Any = None,
        prefer: Any = None,
        timeout: float | None = ACQUIRE_TIMEOUT,
    ) -> T:
        """Return what `work(connection, *args)` does, in this thread, with a connection on loan.

        For work that does no harm if it is done twice: it may be, as `WebsocketPools.run` says.
        The arguments and the errors are those of it.
        """
        borrow = partial(self.acquire, key, prefer=prefer, timeout=timeout)
        return self._run(borrow, partial(self.pools._again, key, timeout), work, args)

    def acquire_stream(
        self, key: Any = None, *, timeout: float | None = ACQUIRE_TIMEOUT
    ) -> BlockingWebsocketStream:
        """Return a stream to be given back with `release_stream`.

        The arguments and the errors are those of `WebsocketPools.acquire_stream`.
        """
        make = partial(self.pools.get_stream, key, timeout=timeout)
        return self._lend(make, BlockingWebsocketStream)

    @contextmanager
    def get_stream(
        self, key: Any = None, *, timeout: float | None = ACQUIRE_TIMEOUT
    ) -> Iterator[BlockingWebsocketStream]:
        """Return a context manager that acquires a stream and gives it back."""
        with self._lent(partial(self.acquire_stream, key, timeout=timeout)) as stream:
            yield stream

    def eject(self, key: Any, seconds: float) -> None:
        """Let a member be out for so long, as `WebsocketPools.eject` does."""
        self._portal.call(lambda: self.pools.eject(key, seconds))

    def remove(self, key: Any) -> None:
        """Take a member away, as `WebsocketPools.remove` does."""
        self._portal.call(lambda: self.pools.remove(key))

    def expire_connections(self, key: Any = None, grace: float = 0.0) -> None:
        """Replace every connection, or those of one key."""
        self._portal.call(lambda: self.pools.expire_connections(key, grace))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close_all()
