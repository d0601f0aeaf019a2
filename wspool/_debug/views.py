"""A pool or a group as all see it that look: each picture is made once, and while somebody waits.

While nobody looks there is no task, no timer and no subscription, unless a history was asked for:
then it is listened to from the beginning.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from time import time
from typing import Any, Final

from wspool._connection.states import TRANSITIONS, State
from wspool._debug import pictures
from wspool._debug.pictures import dumps
from wspool._debug.recent import Recent
from wspool._group import looking
from wspool._group.looking import Shown
from wspool.events import (
    ConnectionCheckedIn,
    ConnectionCheckedOut,
    ConnectionCheckOutStarted,
    ConnectionClosed,
    Event,
)

logger = logging.getLogger("wspool")

PICTURE_SECONDS: Final = 0.5
"""Between two pictures."""

PICTURE_SLOTS: Final = 5
"""Seconds of the means in each picture: so many pictures may be missed, and none of the means."""

SECOND_LOOK_SECONDS: Final = 1.0
"""After a connection was closed, to see whether its socket is gone."""

_LOANS: Final = (ConnectionCheckedOut, ConnectionCheckedIn)


class View:
    """One pool or group, and those who look at it."""

    def __init__(self, shown: Shown, *, with_history: bool = False) -> None:
        self.shown = shown
        # One for each open stream. It is listened to while there is any.
        self.readers: set[object] = set()
        self._history = object() if with_history else None
        self._unsubscribe: Callable[[], object] | None = None
        # What has happened since it is listened to: the last events, and what they come to.
        self._unshown = _Unshown()
        self._recent = Recent(time())
        # Looks for closed connections whose sockets have gone since, which is no event.
        self._second_look: asyncio.Handle | None = None
        # Those of the streams that have taken the last picture, and when they get the next.
        self._picture_waiters: set[asyncio.Future[bytes]] = set()
        self._tick: asyncio.Handle | None = None
        # The JSON of the last snapshot, for as long as a picture lasts.
        self._snapshot = b""
        if with_history:
            self._listen()

    # Listening.

    @contextmanager
    def reading(self) -> Iterator[Reader]:
        """Listen for the time of a stream."""
        reader = Reader()
        self.readers.add(reader)
        self._listen()
        try:
            yield reader
        finally:
            if reader.returns_within:
                loop = asyncio.get_running_loop()
                loop.call_later(reader.returns_within, self._leave, reader)
            else:
                self._leave(reader)

    def _leave(self, reader: object) -> None:
        self.readers.discard(reader)
        self._listen_no_more()

    def end(self) -> None:
        """Listen no longer for the sake of the history."""
        self._history = None
        self._listen_no_more()

    def _listen(self) -> None:
        if self._unsubscribe is None:
            self._recent = Recent(time())
            self._unsubscribe = self.shown.subscribe(self._hear)
            self._see()

    def _listen_no_more(self) -> None:
        if self._unsubscribe is not None and not (self.readers or self._history):
            self._unsubscribe()
            self._unsubscribe = None
            self._unshown.take()
            if self._second_look is not None:
                self._second_look.cancel()
                self._second_look = None

    def _hear(self, event: Event) -> None:
        self._unshown.add(event)
        self._recent.hear(event)
        if isinstance(event, ConnectionClosed) and self._second_look is None:
            loop = asyncio.get_running_loop()
            self._second_look = loop.call_later(SECOND_LOOK_SECONDS, self._look_again)

    def _look_again(self) -> None:
        self._second_look = None
        self._see()
        if looking.counts(self.shown)[State.CLOSED]:
            loop = asyncio.get_running_loop()
            self._second_look = loop.call_later(SECOND_LOOK_SECONDS, self._look_again)

    def _see(self) -> None:
        # What was published before now is heard before all is counted anew.
        looking.settle(self.shown)
        self._recent.see(*looking.pulse(self.shown), time())

    # Showing.

    def machine(self, pools: Iterable[str]) -> bytes:
        """Return how a stream begins: what stays, and what was measured so far."""
        self._see()
        return b"event: machine\ndata: %b\n\n" % dumps(
            {
                "states": list(State),
                "transitions": TRANSITIONS,
                "pools": list(pools),
                "settings": pictures.settings(self.shown),
                "past": self._recent.slots(),
            }
        )

    async def picture(self) -> bytes:
        """Return the next picture as an event of the stream; empty if it cannot be made."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bytes] = loop.create_future()
        self._picture_waiters.add(waiter)
        if self._tick is None:
            self._tick = loop.call_soon(self._show)
        try:
            return await waiter
        finally:
            self._picture_waiters.discard(waiter)

    def _show(self) -> None:
        """Make a picture, if anybody waits for one, and see to the next."""
        self._tick = None
        if not self._picture_waiters:
            return
        self._tick = asyncio.get_running_loop().call_later(PICTURE_SECONDS, self._show)
        try:
            frame = b"data: %b\n\n" % dumps(self._picture())
        except Exception:
            logger.exception("a debug page of %r broke down; the pool goes on", self.shown)
            frame = b""
        for waiter in self._picture_waiters:
            if not waiter.done():
                waiter.set_result(frame)

    def _picture(self) -> dict[str, Any]:
        self._see()
        picture = pictures.picture(self.shown) | self._unshown.take()
        return picture | {
            "slots": self._recent.slots(PICTURE_SLOTS),
            "minute": self._recent.summary(),
        }

    def snapshot(self) -> bytes:
        """Return the snapshot as JSON, the same to all for as long as a picture lasts."""
        if not self._snapshot:
            self._snapshot = dumps(self.shown.snapshot().to_dict())
            asyncio.get_running_loop().call_later(PICTURE_SECONDS, self._forget)
        return self._snapshot

    def _forget(self) -> None:
        self._snapshot = b""

    def dump(self) -> bytes:
        """Return all that there is to be seen as JSON: what was measured only if it is listened."""
        measured = None
        if self._unsubscribe is not None:
            self._see()
            measured = {"minute": self._recent.summary(), "slots": self._recent.slots()}
        return dumps(
            {
                "versions": pictures.versions(),
                "settings": pictures.settings(self.shown),
                "snapshot": self.shown.snapshot().to_dict(),
                "measured": measured,
            }
        )


class Reader:
    """An open stream; it may say, before it ends, that its client comes back within so long."""

    __slots__ = ("returns_within",)

    def __init__(self) -> None:
        self.returns_within = 0.0


class _Unshown:
    """The events that a page has not been shown yet, so many at most: loans crowd out no others."""

    def __init__(self) -> None:
        self._count = 0
        self._loans: deque[tuple[int, Event]] = deque(maxlen=20)
        self._others: deque[tuple[int, Event]] = deque(maxlen=80)

    def add(self, event: Event) -> None:
        kind = type(event)
        if kind is ConnectionCheckOutStarted:
            return  # seen among the waiters, or by its end
        self._count += 1
        (self._loans if kind in _LOANS else self._others).append((self._count, event))

    def take(self) -> dict[str, Any]:
        kept = sorted([*self._loans, *self._others], key=lambda numbered: numbered[0])
        events = [asdict(event) | {"kind": type(event).__name__} for _, event in kept]
        skipped = self._count - len(kept)
        self._count = 0
        self._loans.clear()
        self._others.clear()
        return {"events": events, "skipped": skipped}
