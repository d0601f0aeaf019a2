"""A pool of reusable WebSocket client connections for asyncio, built on aiohttp."""

from typing import TYPE_CHECKING

from wspool.connection import Transition, WebsocketConnection
from wspool.draining import PendingConnection
from wspool.errors import (
    ConnectionBusyError,
    ConnectionClosedError,
    ConnectionDrainTimeoutError,
    ConnectionPoolExhaustedError,
    ConnectionPoolTimeoutError,
    ConnectionPoolUnavailableError,
    ConnectionUnavailableError,
    IllegalTransitionError,
    WebsocketError,
)
from wspool.introspection import (
    BorrowerSnapshot,
    ConnectionSnapshot,
    PoolSnapshot,
    WaiterSnapshot,
)
from wspool.options import DrainConditionCallback
from wspool.pool import WebsocketConnectionPool
from wspool.states import CloseReason, State
from wspool.stats import Stats

if TYPE_CHECKING:
    from wspool.blocking import BlockingWebsocketConnection, BlockingWebsocketConnectionPool
else:

    def __getattr__(name):
        """Import the pool for threads when it is asked for: a tenth of what the import takes."""
        if name in ("BlockingWebsocketConnection", "BlockingWebsocketConnectionPool"):
            from wspool import blocking

            return getattr(blocking, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__version__ = "0.1.0"

__all__ = [
    "BlockingWebsocketConnection",
    "BlockingWebsocketConnectionPool",
    "BorrowerSnapshot",
    "CloseReason",
    "ConnectionBusyError",
    "ConnectionClosedError",
    "ConnectionDrainTimeoutError",
    "ConnectionPoolExhaustedError",
    "ConnectionPoolTimeoutError",
    "ConnectionPoolUnavailableError",
    "ConnectionSnapshot",
    "ConnectionUnavailableError",
    "DrainConditionCallback",
    "IllegalTransitionError",
    "PendingConnection",
    "PoolSnapshot",
    "State",
    "Stats",
    "Transition",
    "WaiterSnapshot",
    "WebsocketConnection",
    "WebsocketConnectionPool",
    "WebsocketError",
]
