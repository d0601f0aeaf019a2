"""The other pools, set up as favourably as they allow."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")


def plain_pool(make: Callable[[], Awaitable[T]], size: int) -> Any:
    """Return asyncio-connection-pool's pool, of anything: no state machine, no sockets."""
    from asyncio_connection_pool import ConnectionPool, ConnectionStrategy

    class Strategy(ConnectionStrategy):  # type: ignore[type-arg,misc]
        async def make_connection(self) -> T:
            return await make()

        def connection_is_closed(self, connection: T) -> bool:
            return False

        async def close_connection(self, connection: T) -> None:
            pass

    return ConnectionPool(strategy=Strategy(), max_size=size)


def websockets_pool(uri: str, size: int) -> Any:
    """Return aio-websocket-pool's pool; it uses the package websockets.

    Without compression, which that package would offer: ours does not either.
    """
    from aio_websocket_pool import WebsocketConnectionPool

    return WebsocketConnectionPool(
        uri=uri, max_connections=size, warmup_connections=size, compression=None
    )
