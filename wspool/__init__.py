"""A pool of reusable WebSocket client connections for asyncio, built on aiohttp."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from wspool._connection import errors as _errors
from wspool._connection.errors import (
    ConnectionBusyError,
    ConnectionClosedError,
    ConnectionDrainTimeoutError,
    ConnectionPoolExhaustedError,
    ConnectionPoolTimeoutError,
    ConnectionPoolUnavailableError,
    ConnectionUnavailableError,
    IllegalTransitionError,
    StreamOverflowError,
    WebsocketError,
)
from wspool._connection.link import Transition
from wspool._connection.loan import WebsocketConnection
from wspool._connection.states import CloseReason, State
from wspool._connection.stream import WebsocketStream
from wspool._connection.wire import Control
from wspool._pool.connect_options import ConnectOptions
from wspool._pool.draining import PendingConnection
from wspool._pool.listeners import Listener
from wspool._pool.options import ACQUIRE_TIMEOUT, DrainConditionCallback, Headers, Hook, Uri
from wspool._pool.pool import WebsocketConnectionPool
from wspool._pool.stats import Stats
from wspool.quota import LocalQuota, Quota

if TYPE_CHECKING:
    from wspool._group.blocking import BlockingWebsocketPools
    from wspool._group.pictures import GroupSnapshot, MemberSnapshot
    from wspool._group.pools import WebsocketPools
    from wspool._pool.blocking import BlockingWebsocketConnectionPool
    from wspool._pool.blocking_connection import BlockingWebsocketConnection
    from wspool._pool.blocking_stream import BlockingWebsocketStream
    from wspool._pool.introspection import (
        BorrowerSnapshot,
        ConnectionSnapshot,
        PoolSnapshot,
        StreamSnapshot,
        Trouble,
        WaiterSnapshot,
    )

__version__ = "0.1.0"

sys.modules[f"{__name__}.errors"] = _errors  # errors that were pickled look for their classes there

__all__ = [
    "ACQUIRE_TIMEOUT",
    "BlockingWebsocketConnection",
    "BlockingWebsocketConnectionPool",
    "BlockingWebsocketPools",
    "BlockingWebsocketStream",
    "BorrowerSnapshot",
    "CloseReason",
    "ConnectOptions",
    "ConnectionBusyError",
    "ConnectionClosedError",
    "ConnectionDrainTimeoutError",
    "ConnectionPoolExhaustedError",
    "ConnectionPoolTimeoutError",
    "ConnectionPoolUnavailableError",
    "ConnectionSnapshot",
    "ConnectionUnavailableError",
    "Control",
    "DrainConditionCallback",
    "GroupSnapshot",
    "Headers",
    "Hook",
    "IllegalTransitionError",
    "Listener",
    "LocalQuota",
    "MemberSnapshot",
    "PendingConnection",
    "PoolSnapshot",
    "Quota",
    "State",
    "Stats",
    "StreamOverflowError",
    "StreamSnapshot",
    "Transition",
    "Trouble",
    "Uri",
    "WaiterSnapshot",
    "WebsocketConnection",
    "WebsocketConnectionPool",
    "WebsocketError",
    "WebsocketPools",
    "WebsocketStream",
]

_LATER = {
    "BlockingWebsocketConnection": "_pool.blocking_connection",
    "BlockingWebsocketConnectionPool": "_pool.blocking",
    "BlockingWebsocketPools": "_group.blocking",
    "BlockingWebsocketStream": "_pool.blocking_stream",
    "BorrowerSnapshot": "_pool.introspection",
    "ConnectionSnapshot": "_pool.introspection",
    "GroupSnapshot": "_group.pictures",
    "MemberSnapshot": "_group.pictures",
    "PoolSnapshot": "_pool.introspection",
    "StreamSnapshot": "_pool.introspection",
    "Trouble": "_pool.introspection",
    "WaiterSnapshot": "_pool.introspection",
    "WebsocketPools": "_group.pools",
}
"""What is loaded when it is asked for, and from where."""


if not TYPE_CHECKING:  # which takes a name that does not exist for one that does, otherwise

    def __getattr__(name: str) -> Any:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)

    def __dir__() -> list[str]:
        return sorted(__all__ + [name for name in globals() if name.startswith("__")])
