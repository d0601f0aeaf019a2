"""A real aiohttp WebSocket server that does to its clients whatever a test asks for."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Self, cast

from aiohttp import WSMsgType, web

Handler = Callable[["Peer"], Awaitable[None]]


class Peer:
    """One connection as the server sees it; `number` counts the handshakes from 1."""

    def __init__(self, number: int, request: web.Request, websocket: web.WebSocketResponse) -> None:
        self.number = number
        self.request = request
        self.websocket = websocket
        self.received: list[str | bytes] = []

    async def send(self, message: str | bytes) -> None:
        if isinstance(message, str):
            await self.websocket.send_str(message)
        else:
            await self.websocket.send_bytes(message)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        await self.websocket.close(code=code, message=reason.encode())

    def reset(self) -> None:
        """Cut the TCP connection without a word."""
        if self.request.transport is not None:
            self.request.transport.abort()

    def stop_reading(self) -> None:
        """Become mute: neither pings nor a close are answered from now on."""
        transport = cast(asyncio.Transport, self.request.transport)
        transport.pause_reading()

    def resume_reading(self) -> None:
        transport = cast(asyncio.Transport | None, self.request.transport)
        if transport is not None and not transport.is_closing():
            transport.resume_reading()


async def echo(peer: Peer) -> None:
    """Answer each message with itself; `#n` with the connection's number at the server."""
    async for message in peer.websocket:
        if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
            peer.received.append(message.data)
            await peer.send(str(peer.number) if message.data == "#n" else message.data)


class Server:
    """Serves WebSockets on loopback, at a free port that a restart keeps.

    `handler` is what is done with a connection, `refusals` are answered, one by one, in the place
    of handshakes, `delay` is in seconds before a handshake is answered (None: never).
    """

    def __init__(
        self,
        handler: Handler = echo,
        *,
        ssl_context: ssl.SSLContext | None = None,
        **websocket_options: Any,
    ) -> None:
        self.handler = handler
        self.ssl_context = ssl_context
        self.websocket_options = websocket_options
        self.refusals: list[web.Response] = []
        self.delay: float | None = 0.0
        self.port = 0
        # Requests so far, refused ones included; the most sockets at a time; open and all peers.
        self.requests: list[web.Request] = []
        self.most_open = 0
        self.open: list[Peer] = []
        self.peers: list[Peer] = []
        self._runner: web.AppRunner | None = None
        self._stopped = asyncio.Event()

    @property
    def uri(self) -> str:
        scheme = "wss" if self.ssl_context else "ws"
        return f"{scheme}://127.0.0.1:{self.port}/"

    async def start(self) -> None:
        self._stopped.clear()
        app = web.Application()
        app.router.add_get("/{tail:.*}", self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(
            self._runner, "127.0.0.1", self.port, ssl_context=self.ssl_context, reuse_address=True
        )
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop listening and cut every connection."""
        self._stopped.set()
        for peer in self.open:
            peer.reset()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if self.delay is None:
            await self._stopped.wait()
        elif self.delay:
            await asyncio.sleep(self.delay)
        if self.refusals:
            return self.refusals.pop(0)
        websocket = web.WebSocketResponse(**self.websocket_options)
        peer = Peer(len(self.peers) + 1, request, websocket)
        await websocket.prepare(request)
        self.peers.append(peer)
        self.open.append(peer)
        self.most_open = max(self.most_open, len(self.open))
        try:
            await self.handler(peer)
        finally:
            self.open.remove(peer)
        return websocket
