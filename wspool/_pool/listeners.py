"""Who listens to a pool, and how each event reaches him.

Nothing is built while nobody listens, and the events' classes are not even loaded. Listeners are
called after the whole routing step, in the order of the events, so that one may call the pool.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections import deque
from collections.abc import Callable
from importlib import import_module
from time import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wspool.events import Event

logger = logging.getLogger("wspool")

Listener = Callable[[Any], object]


class Events:
    """The listeners of one pool, and what they have not been told yet."""

    def __init__(self, pool: str) -> None:
        self._pool = pool
        # The module of their classes, once somebody listens.
        self._events: Any = None
        self._untold: deque[Event] = deque()
        self._is_due = False
        self._context = contextvars.copy_context()
        # In the order of subscription, replaced at each change: who walks over them may be
        # interrupted by one. The routing looks here before it publishes.
        self.listeners: dict[object, Listener] = {}
        # Those that have raised once.
        self._broken: set[object] = set()
        # Threads may subscribe at once, through a blocking pool.
        self._subscribing = threading.Lock()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        if not callable(listener):
            raise TypeError(f"listener is {listener!r}; it must be a plain callable")
        self._events = import_module("wspool.events")
        token = object()
        with self._subscribing:
            self.listeners = {**self.listeners, token: listener}

        def unsubscribe() -> None:
            with self._subscribing:
                self.listeners = {t: one for t, one in self.listeners.items() if t is not token}
            self._broken.discard(token)

        return unsubscribe

    def publish(self, kind: str, *details: Any) -> None:
        """Tell the listeners of an event, by the name of its class, after the routing step."""
        if not self.listeners:
            return
        event: Event = getattr(self._events, kind)(self._pool, time(), *details)
        self._untold.append(event)
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self.tell, context=self._context)

    def check_out_failed(self, error: BaseException, duration: float) -> None:
        if self.listeners:
            reason = self._events.check_out_failure(error)
            self.publish("ConnectionCheckOutFailed", reason, duration)

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
