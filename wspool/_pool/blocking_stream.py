"""The stream for threads: a `WebsocketStream` without `await`, as `blocking.py` has connections."""

from __future__ import annotations

import json
from collections.abc import Hashable
from typing import Any

from wspool._connection.exporting import exported
from wspool._connection.loan import WebsocketConnection
from wspool._connection.routes import UNPARSED
from wspool._connection.states import State
from wspool._connection.stream import WebsocketStream
from wspool._connection.unclaimed import Entry
from wspool._pool.blocking_borrow import BlockingBorrow, Lender, same


@exported
class BlockingWebsocketStream(BlockingBorrow[WebsocketStream]):
    """One share of a WebSocket: a `WebsocketStream` without `await`.

    Threads may share it, but only one may be in `recv`. All times are in seconds, and a `timeout`
    of None means for ever; what has run into one raises TimeoutError.
    """

    __slots__ = ()

    _what, _block = "a stream of connection", "get_stream"

    connection: WebsocketConnection = same()
    state: State = same()
    number: int = same()
    slot: int = same()
    keys: tuple[Hashable, ...] = same()
    reused: bool = same()
    borrowed_at: str | None = same()
    is_clean: bool = same()
    outstanding: int | None = same()

    def __init__(self, lender: Lender, stream: WebsocketStream) -> None:
        super().__init__(lender, stream)

    def claim(self, key: Hashable = None) -> Any:
        """Let messages with this key be this stream's; without one it is a new number."""
        return self._lender._portal.call(lambda: self._mirrored.claim(key))

    def send(self, message: str | bytes, *, timeout: float | None = None) -> None:
        """Send a text or a binary message. Out of time, it may be sent nevertheless."""
        self._wait(lambda: self._mirrored.send(message), timeout, "was not sent")

    def recv(self, timeout: float | None = None) -> str | bytes:
        """Return the next message of this stream; out of time, none is lost."""
        return self._next(timeout)[0]

    def send_json(self, value: Any, *, timeout: float | None = None) -> None:
        """Send a value as a JSON text message."""
        self.send(json.dumps(value), timeout=timeout)

    def recv_json(self, timeout: float | None = None) -> Any:
        """Return the next message, parsed as JSON: by the `route` already, if that is a path."""
        message, value = self._next(timeout)
        return json.loads(message) if value is UNPARSED else value

    def ping(self, timeout: float | None = None) -> float:
        """Send a ping, wait for its pong and return the round trip."""
        return self._wait(self._mirrored.ping, timeout, "had no pong")

    def __next__(self) -> str | bytes:
        """Return the next message, until the server closes normally (1000 or 1001)."""
        try:
            return self._wait(self._mirrored._next_or_end, undo=self._mirrored._put_back)[0]
        except StopAsyncIteration:
            raise StopIteration from None

    def _next(self, timeout: float | None) -> Entry:
        mirrored = self._mirrored
        return self._wait(mirrored._next, timeout, "had no message", mirrored._put_back)

    def _named(self) -> str:
        return f"The stream in slot {self.slot} of connection #{self.connection.id}"
