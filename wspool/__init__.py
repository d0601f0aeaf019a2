"""A pool of reusable WebSocket client connections for asyncio, built on aiohttp."""

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
from wspool.quota import LocalQuota, Quota
from wspool.states import CloseReason, State
from wspool.stats import Stats

__version__ = "0.1.0"

__all__ = [
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
    "LocalQuota",
    "PendingConnection",
    "PoolSnapshot",
    "Quota",
    "State",
    "Stats",
    "Transition",
    "WaiterSnapshot",
    "WebsocketConnection",
    "WebsocketConnectionPool",
    "WebsocketError",
]
