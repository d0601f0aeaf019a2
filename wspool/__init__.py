"""A pool of reusable WebSocket client connections for asyncio, built on aiohttp."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
from wspool.options import DrainConditionCallback
from wspool.pool import WebsocketConnectionPool
from wspool.quota import LocalQuota, Quota
from wspool.states import CloseReason, State
from wspool.stats import Stats

if TYPE_CHECKING:
    from wspool.blocking import BlockingWebsocketConnection, BlockingWebsocketConnectionPool
    from wspool.introspection import (
        BorrowerSnapshot,
        ConnectionSnapshot,
        PoolSnapshot,
        WaiterSnapshot,
    )

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

_LATER = {
    "BlockingWebsocketConnection": "blocking",
    "BlockingWebsocketConnectionPool": "blocking",
    "BorrowerSnapshot": "introspection",
    "ConnectionSnapshot": "introspection",
    "PoolSnapshot": "introspection",
    "WaiterSnapshot": "introspection",
}
"""What is loaded when it is asked for, and from where."""


if not TYPE_CHECKING:  # which takes a name that does not exist for one that does, otherwise

    def __getattr__(name: str) -> Any:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
