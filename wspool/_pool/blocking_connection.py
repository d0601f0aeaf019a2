"""The connection for threads: a `WebsocketConnection` without `await`."""

from __future__ import annotations

import json
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final, Never

import aiohttp

from wspool._connection.exporting import exported
from wspool._connection.idioms import refusing
from wspool._connection.link import Transition
from wspool._connection.loan import WebsocketConnection
from wspool._connection.states import State
from wspool._connection.wire import LARGE_BYTES
from wspool._pool.blocking_borrow import BlockingBorrow, Lender, Lent, same
from wspool._pool.calls import EAGERLY

NOT_ASYNC: Final = (
    "a blocking pool is used without async and await: write `with pool.get_connection() as "
    "connection:`; in asyncio, use a WebsocketConnectionPool"
)


@exported
class BlockingWebsocketConnection(BlockingBorrow[WebsocketConnection]):
    """One loan of a WebSocket to the server: a `WebsocketConnection` without `await`.

    Threads may share it, but only one may be in `recv`. All times are in seconds, and a `timeout`
    of None means for ever; what has run into one raises TimeoutError.
    """

    __slots__ = ()

    _what, _block = "connection", "get_connection"

    uri: str = same()
    headers: dict[str, str] = same()
    id: int = same()
    state: State = same()
    history: tuple[Transition, ...] = same()
    is_connected: bool = same()
    is_busy: bool = same()
    is_draining: bool = same()
    reused: bool = same()
    uses: int = same()
    created_at: float = same()
    last_activity: float = same()
    rtt: float | None = same()
    websocket: aiohttp.ClientWebSocketResponse = same()
    subprotocol: str | None = same()
    borrowed_at: str | None = same()
    close_code: int | None = same()
    close_reason: str = same()
    cause: BaseException | None = same()
    context: Any = same()
    is_clean: bool = same()
    outstanding: int | None = same()

    def __init__(self, lender: Lender, loan: WebsocketConnection) -> None:
        super().__init__(lender, loan)

    def send(self, message: str | bytes, *, timeout: float | None = None) -> None:
        """Send a text or a binary message. If the time is up, it may be sent nevertheless.

        In a `with`, and without a timeout, a message of less than 64 KiB is left to the pool's
        thread, from Python 3.12 on. If the connection is lost in that very moment, the next call on
        it raises ConnectionClosedError, or else the end of the block, which waits for it.
        """
        work = partial(self._mirrored.send, message)
        if EAGERLY and timeout is None and self._poster == get_ident() and self._can_post(message):
            self._posted = self._lender._portal.post(work)
        else:
            self._wait(work, timeout, "was not sent")

    def recv(self, timeout: float | None = None) -> str | bytes:
        """Return the next message, in the order of arrival. If the time is up, none is lost."""
        return self._wait(self._mirrored.recv, timeout, "had no message", self._put_back)

    def ping(self, timeout: float | None = None) -> float:
        """Send a ping, wait for its pong and return the round trip."""
        return self._wait(self._mirrored.ping, timeout, "had no pong")

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection for good and return when its socket is gone."""
        self._wait(lambda: self._mirrored.close(code, reason))

    def retire(self) -> None:
        """Let nobody have this connection any more: it closes when it is given back."""
        self._lender._portal.call(self._mirrored.retire)

    def send_json(self, value: Any, *, timeout: float | None = None) -> None:
        """Send a value as a JSON text message."""
        self.send(json.dumps(value), timeout=timeout)

    def recv_json(self, timeout: float | None = None) -> Any:
        """Return the next message, parsed as JSON."""
        return json.loads(self.recv(timeout))

    def __next__(self) -> str | bytes:
        """Return the next message, until the server closes normally (1000 or 1001)."""
        try:
            return self._wait(self._mirrored.__anext__, undo=self._put_back)
        except StopAsyncIteration:
            raise StopIteration from None

    if not TYPE_CHECKING:
        __await__ = __aenter__ = __aexit__ = refusing(NOT_ASYNC)
        __aiter__ = refusing("messages are read with `for message in connection:` here")

        def __enter__(self) -> Never:
            self._lender.release(self)
            raise TypeError(
                "acquire() has borrowed this connection already, and it was given back: write "
                "`with pool.get_connection() as connection:`"
            )

        __exit__ = __enter__

    def _can_post(self, message: str | bytes) -> bool:
        """Whether a send need not be waited for: nothing speaks against it that can be known.

        Neither the message nor the connection; nor is there a send before it that is not done.
        """
        if not isinstance(message, (str, bytes)) or len(message) >= LARGE_BYTES:
            return False
        if isinstance(message, str) and not message.isascii():
            message.encode()  # which may raise
        posted, link = self._posted, self._mirrored._link
        if (posted is not None and not posted.is_done) or link is None or link.wire is None:
            return False
        if posted is not None:
            posted.check()
        wire = link.wire
        is_mine = link.owner is self._mirrored
        return is_mine and not (wire.is_lost or wire.inbox or wire.has_unread())

    def _named(self) -> str:
        return f"Connection #{self.id}"

    def _put_back(self, message: str | bytes) -> None:
        self._mirrored._put_back(message)


class Block(Lent["BlockingWebsocketConnection"]):
    """A `with` that borrows a connection, and what to write in the place of a wrong one."""

    if not TYPE_CHECKING:
        __await__ = __aenter__ = __aexit__ = refusing(NOT_ASYNC)
