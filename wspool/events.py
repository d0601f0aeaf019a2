"""What happens in a pool, told to whoever subscribes: one frozen event at a time.

The names follow MongoDB's connection pool specification (CMAP), the best list of such events; the
draining and the checks are ours. Nothing is built while nobody listens. Listeners are called after
the whole routing step, in the order of the events, so that one may call the pool.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from time import time
from typing import Any, TypeVar, dataclass_transform

from wspool.errors import (
    ConnectionPoolExhaustedError,
    ConnectionPoolTimeoutError,
    ConnectionPoolUnavailableError,
    ConnectionUnavailableError,
)

__all__ = [
    "CheckOutFailure",
    "ConnectionCheckOutFailed",
    "ConnectionCheckOutStarted",
    "ConnectionChecked",
    "ConnectionCheckedIn",
    "ConnectionCheckedOut",
    "ConnectionClosed",
    "ConnectionCreated",
    "ConnectionDrainStarted",
    "ConnectionDrained",
    "ConnectionReady",
    "Event",
    "PoolCleared",
    "PoolClosed",
    "PoolReady",
]

logger = logging.getLogger("wspool")

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def _event(declared: type[T]) -> type[T]:
    """Make a frozen dataclass whose `__init__` sets its slots directly.

    The one that `dataclass` makes calls `object.__setattr__`: 0.9 µs for four fields, not 0.3.
    """
    made: Any = dataclass(frozen=True, slots=True)(declared)
    names = [field.name for field in fields(made)]
    scope = {f"set_{name}": getattr(made, name).__set__ for name in names}
    body = "; ".join(f"set_{name}(self, {name})" for name in names)
    exec(f"def __init__(self, {', '.join(names)}): {body}", scope)
    made.__init__ = scope["__init__"]
    return made  # type: ignore[no-any-return]


@_event
class Event:
    """What every event has: the pool's name, and when it happened, in Unix seconds."""

    pool: str
    at: float


@_event
class PoolReady(Event):
    """The pool has started."""


@_event
class PoolCleared(Event):
    """`expire_connections()` was called."""


@_event
class PoolClosed(Event):
    """The pool is closed, and its last socket is gone."""


@_event
class ConnectionCreated(Event):
    """A dial was decided on."""

    connection_id: int


@_event
class ConnectionReady(Event):
    """A dial succeeded. `duration`: seconds that the successful attempt took."""

    connection_id: int
    duration: float


@_event
class ConnectionClosed(Event):
    """A connection left `state` for closed. `reason` is a `CloseReason`; the rest is the CLOSE's.

    `age` is in seconds since its creation.
    """

    connection_id: int
    state: str
    reason: str
    code: int | None
    close_reason: str
    age: float


@_event
class ConnectionCheckOutStarted(Event):
    """Somebody called `acquire`."""


@_event
class ConnectionCheckOutFailed(Event):
    """He got no connection, `duration` seconds later. `reason` is a `CheckOutFailure`."""

    reason: str
    duration: float


@_event
class ConnectionCheckedOut(Event):
    """A connection was lent. `duration`: seconds that the borrower waited for it."""

    connection_id: int
    duration: float


@_event
class ConnectionCheckedIn(Event):
    """A loan has ended. `duration`: seconds of the loan."""

    connection_id: int
    duration: float


@_event
class ConnectionDrainStarted(Event):
    """A connection that was given back is being drained."""

    connection_id: int


@_event
class ConnectionDrained(Event):
    """A drain ended well. `duration`: its seconds."""

    connection_id: int
    duration: float


@_event
class ConnectionChecked(Event):
    """An errand of the pool's, `check` or `keepalive`, went well. `duration`: its seconds."""

    connection_id: int
    errand: str
    duration: float


class CheckOutFailure(StrEnum):
    """Why a check-out failed."""

    TIMEOUT = "timeout"  #: no connection within the caller's timeout
    EXHAUSTED = "exhausted"  #: no capacity, and no right to wait
    CONNECTION_ERROR = "connectionError"  #: the dial failed
    POOL_CLOSED = "poolClosed"
    CANCELLED = "cancelled"


_FAILURES: list[tuple[type[BaseException], CheckOutFailure]] = [
    (ConnectionPoolTimeoutError, CheckOutFailure.TIMEOUT),
    (ConnectionPoolExhaustedError, CheckOutFailure.EXHAUSTED),
    (ConnectionPoolUnavailableError, CheckOutFailure.POOL_CLOSED),
    (ConnectionUnavailableError, CheckOutFailure.CONNECTION_ERROR),
]

Listener = Callable[[Any], object]


class Events:
    """The listeners of one pool, and what they have not been told yet."""

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._untold: deque[Event] = deque()
        self._is_due = False
        self._context = contextvars.copy_context()
        # In the order of subscription, replaced at each change: who walks over them may be
        # interrupted by one. The routing looks here before it publishes.
        self.listeners: dict[object, Listener] = {}
        # Those that have raised once.
        self._broken: set[object] = set()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        if not callable(listener):
            raise TypeError(f"listener is {listener!r}; it must be a plain callable")
        token = object()
        self.listeners = {**self.listeners, token: listener}

        def unsubscribe() -> None:
            self.listeners = {t: one for t, one in self.listeners.items() if t is not token}
            self._broken.discard(token)

        return unsubscribe

    def publish(self, kind: Callable[..., Event], *details: Any) -> None:
        """Tell the listeners, if there are any, after the present routing step."""
        if not self.listeners:
            return
        self._untold.append(kind(self._pool, time(), *details))
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self.tell, context=self._context)

    def check_out_failed(self, error: BaseException, duration: float) -> None:
        reasons = [reason for kind, reason in _FAILURES if isinstance(error, kind)]
        reason = reasons[0] if reasons else CheckOutFailure.CANCELLED
        self.publish(ConnectionCheckOutFailed, reason, duration)

    def tell(self) -> None:
        """Call the listeners with all that was published; one that raises is logged once."""
        self._is_due = False
        while self._untold:
            event = self._untold.popleft()
            for token, listener in self.listeners.items():
                if token not in self.listeners:
                    continue  # unsubscribed by one before it
                try:
                    listener(event)
                except Exception:
                    if token not in self._broken:
                        self._broken.add(token)
                        logger.exception(
                            "a listener raised, as it may do again unseen: %r", listener
                        )
