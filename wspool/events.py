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
from dataclasses import dataclass
from enum import StrEnum
from time import time
from typing import Any

from wspool.errors import (
    ConnectionPoolExhaustedError,
    ConnectionPoolTimeoutError,
    ConnectionPoolUnavailableError,
    ConnectionUnavailableError,
)

logger = logging.getLogger("wspool")


@dataclass(frozen=True, slots=True)
class Event:
    """What every event has: the pool's name, and when it happened, in Unix seconds."""

    pool: str
    at: float


@dataclass(frozen=True, slots=True)
class PoolReady(Event):
    """The pool has started."""


@dataclass(frozen=True, slots=True)
class PoolCleared(Event):
    """`expire_connections()` was called."""


@dataclass(frozen=True, slots=True)
class PoolClosed(Event):
    """The pool is closed, and its last socket is gone."""


@dataclass(frozen=True, slots=True)
class ConnectionCreated(Event):
    """A dial was decided on."""

    connection_id: int


@dataclass(frozen=True, slots=True)
class ConnectionReady(Event):
    """A dial succeeded. `duration`: seconds that the successful attempt took."""

    connection_id: int
    duration: float


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class ConnectionCheckOutStarted(Event):
    """Somebody called `acquire`."""


@dataclass(frozen=True, slots=True)
class ConnectionCheckOutFailed(Event):
    """He got no connection, `duration` seconds later. `reason` is a `CheckOutFailure`."""

    reason: str
    duration: float


@dataclass(frozen=True, slots=True)
class ConnectionCheckedOut(Event):
    """A connection was lent. `duration`: seconds that the borrower waited for it."""

    connection_id: int
    duration: float


@dataclass(frozen=True, slots=True)
class ConnectionCheckedIn(Event):
    """A loan has ended. `duration`: seconds of the loan."""

    connection_id: int
    duration: float


@dataclass(frozen=True, slots=True)
class ConnectionDrainStarted(Event):
    """A connection that was given back is being drained."""

    connection_id: int


@dataclass(frozen=True, slots=True)
class ConnectionDrained(Event):
    """A drain ended well. `duration`: its seconds."""

    connection_id: int
    duration: float


@dataclass(frozen=True, slots=True)
class ConnectionChecked(Event):
    """An errand of the pool's, `check` or `keepalive`, went well. `duration`: its seconds."""

    connection_id: int
    errand: str
    duration: float


class CheckOutFailure(StrEnum):
    """Why a check-out failed."""

    TIMEOUT = "timeout"  # no connection within the caller's timeout
    EXHAUSTED = "exhausted"  # no capacity, and no right to wait
    CONNECTION_ERROR = "connectionError"  # the dial failed
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
        # In the order of subscription; the routing looks here before it publishes.
        self.listeners: dict[object, Listener] = {}
        # Those that have raised once.
        self._broken: set[object] = set()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        if not callable(listener):
            raise TypeError(f"listener is {listener!r}; it must be a plain callable")
        token = object()
        self.listeners[token] = listener

        def unsubscribe() -> None:
            self.listeners.pop(token, None)
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
            for token, listener in list(self.listeners.items()):
                try:
                    listener(event)
                except Exception:
                    if token not in self._broken:
                        self._broken.add(token)
                        logger.exception(
                            "a listener raised, as it may do again unseen: %r", listener
                        )
