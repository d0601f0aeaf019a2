"""The server and the TCP below aiohttp's WebSockets, as far as a schedule decides what they do.

The WebSocket on top is aiohttp's own `ClientWebSocketResponse`, with its queue and its writer, so
that what it does when it is cancelled or closed is not imitated. Here is what it stands on: frames
that arrive after a delay and in order, a transport that may be full, and a server that answers, or
refuses, hangs, resets, closes, goes mute and says things unasked, as often as its temper has it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import aiohttp
from aiohttp import WSMessage, WSMsgType
from aiohttp._websocket.reader import WebSocketDataQueue
from aiohttp.http_websocket import WebSocketWriter

if TYPE_CHECKING:
    from tests.explore.schedules import Loop


NO_REPLY: Final = b"no reply"
"""What the server takes as a sign of life, and does not answer."""


class Temper(NamedTuple):
    """How likely the server does something else than answer, and how slow all is (seconds)."""

    refuse: float = 0.0
    hang: float = 0.0
    reset: float = 0.0
    close: float = 0.0
    mute: float = 0.0
    stray: float = 0.0
    congest: float = 0.0
    delays: tuple[float, ...] = (0.01,)


CALM: Final = Temper()
WILD: Final = Temper(0.15, 0.05, 0.05, 0.08, 0.05, 0.2, 0.1, (0.0, 0.01, 0.05, 0.3))


class _Writer(WebSocketWriter):
    """aiohttp's writer, giving whole frames instead of bytes to the transport."""

    async def send_frame(self, message: bytes, opcode: int, compress: int | None = None) -> None:
        is_close = opcode == WSMsgType.CLOSE
        if self.transport.is_closing() or (self._closing and not is_close):
            raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")
        cast(Any, self.transport).write_frame(WSMsgType(opcode), message)
        if self.protocol._paused:
            await self.protocol._drain_helper()


class Socket:
    """One TCP connection: to aiohttp the transport, the protocol and the response in one.

    What is sent, in either direction, arrives after a delay and in order.
    """

    def __init__(self, network: Network) -> None:
        self.network, self.loop = network, network.loop
        self.connection = self.transport = self.protocol = self
        # None once nothing more is read.
        self._payload_parser: object | None = self
        self.closed: asyncio.Future[None] = self.loop.create_future()
        self._is_mute = self._is_closing = self._paused = self._reading_paused = False
        self._room: asyncio.Future[None] = self.loop.create_future()
        # When the last pong has arrived.
        self.ponged_at = float("-inf")
        self.client: aiohttp.ClientWebSocketResponse | None = None
        # Messages that have arrived before a CLOSE.
        self.heard = 0
        self._has_closed = False
        self._under_way: deque[Callable[[], None]] = deque()
        self.reader = WebSocketDataQueue(cast(Any, self), 2**16, loop=self.loop)
        network.open.append(self)

    def websocket(self, timeout: Any) -> aiohttp.ClientWebSocketResponse:
        us = cast(Any, self)
        self.client = aiohttp.ClientWebSocketResponse(
            self.reader, _Writer(us, us), None, us, timeout, False, False, self.loop
        )
        return self.client

    def go_mute(self) -> None:
        """Swallow what comes from now on, pings and closes included."""
        self._is_mute = True

    def pause_reading(self) -> None:
        self._reading_paused = True

    def resume_reading(self) -> None:
        self._reading_paused = False

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        """Close once all is sent, which to a congested peer may be never."""
        if not self._is_closing:
            self._is_closing, self._payload_parser = True, None
            if not self._paused:
                self.loop.call_soon(self.lose)

    def abort(self) -> None:
        self._is_closing, self._payload_parser = True, None
        self.loop.call_soon(self.lose)

    async def _drain_helper(self) -> None:
        await asyncio.shield(self._room)

    def write_frame(self, kind: WSMsgType, data: bytes) -> None:
        if not self._paused and self.loop.chance(self.network.temper.congest):
            self._paused, self._room = True, self.loop.create_future()
            if not self.loop.chance(self.network.temper.mute):
                self.loop.call_later(self.network.delay(), self._resume_writing)
        self._later(lambda: self._serve(kind, data))

    def _resume_writing(self) -> None:
        self._paused = False
        if not self._room.done():
            self._room.set_result(None)
        if self._is_closing:
            self.lose()

    def lose(self) -> None:
        """The connection is gone, on both sides."""
        if not self.closed.done():
            self._is_closing, self._payload_parser = True, None
            self.network.open.remove(self)
            self.network.admitted.discard(self)
            self.reader.feed_eof()
            self.closed.set_result(None)
            if not self._room.done():
                self._room.set_result(None)

    def _later(self, event: Callable[[], None]) -> None:
        self._under_way.append(event)
        self.loop.call_later(self.network.delay(), self._arrive)

    def _arrive(self) -> None:
        event = self._under_way.popleft()
        if not self.closed.done():
            event()

    # What the server does.

    def _serve(self, kind: WSMsgType, data: bytes) -> None:
        loop, temper = self.loop, self.network.temper
        self._is_mute = self._is_mute or loop.chance(temper.mute)
        if self._is_mute:
            return
        if kind is WSMsgType.PING:
            self.say(WSMsgType.PONG, data)
        elif kind is WSMsgType.CLOSE:
            self.say(WSMsgType.CLOSE, int.from_bytes(data[:2], "big"), "")
        elif kind is WSMsgType.TEXT and data != NO_REPLY:
            if loop.chance(temper.reset):
                self._later(self.lose)
            for part in ("part", "last"):
                if loop.chance(temper.stray):
                    self.stray()
                    self.say(WSMsgType.PING, b"server")
                self.say(WSMsgType.TEXT, f"{part} {data.decode()}")
            if loop.chance(temper.close):
                self.say(WSMsgType.CLOSE, loop.choose((1000, 1001, 1012)), "so long")
            elif loop.chance(temper.stray):
                self.stray()

    def say(self, kind: WSMsgType, data: Any, extra: str | None = None) -> None:
        def arrive() -> None:
            size = len(data) if isinstance(data, (str, bytes)) else 0
            self.reader.feed_data(WSMessage(kind, data, extra), size or 1)
            self._has_closed = self._has_closed or kind is WSMsgType.CLOSE
            self.heard += kind is WSMsgType.TEXT and not self._has_closed
            if kind is WSMsgType.PONG:
                self.ponged_at = self.loop.time()

        self._later(arrive)

    def stray(self) -> None:
        """Say something unasked, which tells in which step the client's loop has read it."""

        def arrive() -> None:
            message = WSMessage(WSMsgType.TEXT, f"stray {self.loop.steps}", None)
            self.reader.feed_data(message, 1)
            self.heard += not self._has_closed
            self.network.on_stray(self)

        self._later(arrive)


class Network:
    """The server, and in the place of the pool's `ClientSession` the way to it."""

    connector = None

    def __init__(self, loop: Loop, temper: Temper) -> None:
        self.loop = loop
        self.temper = temper
        self.open: list[Socket] = []
        # How many the server admits, None: any number; and those that it has.
        self.limit: int | None = None
        self.admitted: set[Socket] = set()
        # How the next handshakes fail, before chance decides.
        self.failures: list[Exception] = []
        self.is_closed = False
        # Called when something unasked has arrived.
        self.on_stray: Callable[[Socket], None] = lambda socket: None

    def delay(self) -> float:
        return self.loop.choose(self.temper.delays)

    async def ws_connect(self, uri: str, *, timeout: Any, **_: Any) -> Any:
        socket = Socket(self)  # the server sees it from the first packet on
        try:
            await asyncio.sleep(60.0 if self.loop.chance(self.temper.hang) else self.delay())
            if self.failures:
                raise self.failures.pop(0)
            if self.limit is not None and len(self.admitted) >= self.limit:
                raise handshake_error(429)
            self.admitted.add(socket)
            if self.loop.chance(self.temper.refuse):
                raise self.loop.choose((ConnectionRefusedError("refused"), handshake_error(503)))
            if self.loop.chance(self.temper.close):
                socket.say(WSMsgType.CLOSE, 1013, "try again later")
            if self.loop.chance(self.temper.mute):
                self.loop.call_later(self.delay(), socket.go_mute)
            return socket.websocket(timeout)
        except BaseException:
            socket.lose()
            raise

    async def close(self) -> None:
        await asyncio.sleep(self.delay())
        self.is_closed = True


def handshake_error(status: int, **headers: str) -> aiohttp.WSServerHandshakeError:
    """Return what aiohttp raises when the server answers with this status."""
    request = aiohttp.RequestInfo(cast(Any, "ws://server/"), "GET", cast(Any, {}))
    fields = cast(Any, {name.replace("_", "-"): value for name, value in headers.items()})
    return aiohttp.WSServerHandshakeError(request, (), status=status, headers=fields)
