"""Who listens to a pool, and how each event is told.

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
from functools import partial
from importlib import import_module
from time import time
from typing import TYPE_CHECKING, Any, Protocol

from wspool._connection.errors import ENDS_PROGRAM, ConnectionUnavailableError
from wspool._connection.link import Link
from wspool._connection.sharing import Lane
from wspool._pool.stats import check_out_failure

if TYPE_CHECKING:
    from wspool import events

logger = logging.getLogger("wspool")

Listener = Callable[[Any], object]
"""Is called with each event; what it returns does not matter."""


class Watch(Protocol):
    """Who watches over the health of a pool: the group that it is a member of."""

    def dial_failed(self, failure: ConnectionUnavailableError) -> None:
        """Hear that a dial has failed for good."""

    def lost(self, link: Link) -> None:
        """Hear that a link was lost in a loan."""

    def ended_well(self) -> None:
        """Hear that a loan has ended whose link is well."""


class Events:
    """The listeners of one pool, and what they have not been told yet; a method for each event."""

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._untold: deque[events.Event] = deque()
        self._is_due = False
        self._context = contextvars.copy_context()
        # In the order of subscription, replaced at each change: who walks over them may be
        # interrupted by one. The routing looks here before it tells of a loan.
        self.listeners: dict[object, Listener] = {}
        # The group that the pool is a member of, if it is one.
        self.watch: Watch | None = None
        # Those that have raised once.
        self._broken: set[object] = set()
        # Threads may subscribe at once, through a blocking pool.
        self._subscribing = threading.Lock()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        if not callable(listener):
            raise TypeError(f"listener is {listener!r}; it must be a plain callable")
        token = object()
        self.add(token, listener)
        return partial(self.remove, token)

    def add(self, token: object, listener: Listener) -> None:
        """Subscribe a listener under a token, if it is not there already."""
        globals()["events"] = import_module("wspool.events")
        with self._subscribing:
            self.listeners = {**self.listeners, token: listener}

    def remove(self, token: object) -> None:
        with self._subscribing:
            self.listeners = {t: one for t, one in self.listeners.items() if t is not token}
        self._broken.discard(token)

    # What there is to tell.

    def pool_ready(self) -> None:
        if self.listeners:
            self._publish(events.PoolReady(self._pool, time()))

    def pool_cleared(self) -> None:
        if self.listeners:
            self._publish(events.PoolCleared(self._pool, time()))

    def pool_closed(self) -> None:
        if self.listeners:
            self._publish(events.PoolClosed(self._pool, time()))

    def created(self, link: Link) -> None:
        if self.listeners:
            self._publish(events.ConnectionCreated(self._pool, time(), link.id))

    def ready(self, link: Link) -> None:
        if self.listeners:
            self._publish(events.ConnectionReady(self._pool, time(), link.id, link.dial_seconds))

    def closed(self, link: Link) -> None:
        if self.listeners:
            move, at, why = link.moves[-1]
            self._publish(
                events.ConnectionClosed(
                    *(self._pool, time(), link.id, move.source, why),
                    *(link.close_code, link.close_reason, at - link.born),
                )
            )

    def limit_learned(self, limit: int | None, why: str) -> None:
        if self.listeners:
            self._publish(events.LimitLearned(self._pool, time(), limit, why))

    def check_out_started(self) -> None:
        if self.listeners:
            self._publish(events.ConnectionCheckOutStarted(self._pool, time()))

    def check_out_failed(self, error: BaseException, waited: float) -> None:
        if self.listeners:
            reason = events.CheckOutFailure(check_out_failure(error))
            self._publish(events.ConnectionCheckOutFailed(self._pool, time(), reason, waited))

    def checked_out(self, link: Link, waited: float) -> None:
        if self.listeners:
            self._publish(events.ConnectionCheckedOut(self._pool, time(), link.id, waited))

    def checked_in(self, link: Link) -> None:
        if self.listeners:
            self._publish(
                events.ConnectionCheckedIn(self._pool, time(), link.id, link.seconds_lent)
            )

    def stream_checked_out(self, lane: Lane, waited: float) -> None:
        if self.listeners:
            self._publish(
                events.StreamCheckedOut(
                    self._pool, time(), lane.sharing.link.id, lane.slot, lane.number, waited
                )
            )

    def stream_checked_in(self, lane: Lane) -> None:
        if self.listeners:
            link = lane.sharing.link
            seconds = link.clock() - lane.since
            self._publish(
                events.StreamCheckedIn(self._pool, time(), link.id, lane.slot, lane.number, seconds)
            )

    def stream_drained(self, lane: Lane) -> None:
        if self.listeners:
            link = lane.sharing.link
            seconds = link.clock() - lane.since
            self._publish(
                events.StreamDrained(self._pool, time(), link.id, lane.slot, lane.number, seconds)
            )

    def stream_overflowed(self, lane: Lane) -> None:
        if self.listeners:
            self._publish(
                events.StreamOverflowed(
                    *(self._pool, time(), lane.sharing.link.id),
                    *(lane.slot, lane.number, lane.unread_bytes),
                )
            )

    def drain_started(self, link: Link) -> None:
        if self.listeners:
            self._publish(events.ConnectionDrainStarted(self._pool, time(), link.id))

    def drained(self, link: Link) -> None:
        if self.listeners:
            self._publish(
                events.ConnectionDrained(self._pool, time(), link.id, link.seconds_in_state)
            )

    def checked(self, link: Link, errand: str) -> None:
        if self.listeners:
            self._publish(
                events.ConnectionChecked(self._pool, time(), link.id, errand, link.seconds_in_state)
            )

    def repeated(self, link: Link) -> None:
        if self.listeners:
            self._publish(events.LoanRepeated(self._pool, time(), link.id))

    # How it is told.

    def _publish(self, event: events.Event) -> None:
        """Tell the listeners after the routing step."""
        self._untold.append(event)
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self.tell, context=self._context)

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
                except ENDS_PROGRAM:
                    raise
                except BaseException:
                    if token not in self._broken:
                        self._broken.add(token)
                        logger.exception(
                            "a listener raised, as it may do again unseen: %r", listener
                        )
