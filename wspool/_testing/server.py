"""The server of `wspool.testing`, and what it can be given to do: a handler, or a `Script`.

It is a real server, aiohttp's, on loopback. It knows nothing of recordings.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple, Self

from aiohttp import WebSocketError, WSMsgType, web

Handler = Callable[["Peer"], Awaitable[None]]
"""The script for a connection: what the server does with it, from the handshake to the close."""

TURNS: Final = 10
"""Of the loop, within which a handler that is in `recv` or `send` sees that its client is gone."""


class Speaking:
    """What can be said and heard, on a connection or on one stream of it."""

    async def recv(self) -> str | bytes:
        """Return the next message."""
        raise NotImplementedError

    async def send(self, message: str | bytes) -> None:
        """Send a message."""
        raise NotImplementedError

    async def recv_json(self) -> Any:
        """Return the next message, decoded from JSON; errors are those of `recv` and of `json`."""
        return json.loads(await self.recv())

    async def expect(self, expected: object) -> None:
        """Receive the next message, which must be this one.

        A str or bytes is compared as it is, anything else with the message's JSON; what may have
        any value there is `unittest.mock.ANY`. Raises AssertionError for another message, and
        when the connection is over before one has come.
        """
        try:
            message: object = await self.recv()
        except ConnectionError as over:
            raise AssertionError(f"expected {expected!r}, but {over}") from None
        if isinstance(message, str | bytes) and not isinstance(expected, str | bytes):
            message = json.loads(message)
        if message != expected:
            raise AssertionError(f"expected {expected!r}, received {message!r}")

    async def send_json(self, value: Any) -> None:
        """Send this as JSON, in a text message; raises ConnectionError as `send` does."""
        await self.send(json.dumps(value))

    def __aiter__(self) -> Self:
        """Iterate over the messages, until the connection is over."""
        return self

    async def __anext__(self) -> str | bytes:
        try:
            return await self.recv()
        except ConnectionError:
            raise StopAsyncIteration from None


class Peer(Speaking):
    """One connection as the server sees it; a handler gets it, and `Server.peers` has it.

    `number` counts the handshakes from 1, `request` is the handshake as aiohttp has it (path,
    query, headers), `received` are the messages that were read so far. `websocket` is aiohttp's
    own object, for what is not here.
    """

    def __init__(
        self,
        number: int,
        request: web.Request,
        websocket: web.WebSocketResponse,
        all_received: list[str | bytes],
    ) -> None:
        self.number = number
        self.request = request
        self.websocket = websocket
        self.received: list[str | bytes] = []
        self._all_received = all_received
        # Whether a message could not be sent, whatever else there is to see of the connection.
        self._has_failed = False
        self._unmuted = asyncio.Event()
        self._unmuted.set()

    # What it receives.

    async def recv(self) -> str | bytes:
        """Return the next message.

        Raises ConnectionError when the connection is over, which ends a handler quietly, and
        aiohttp.WebSocketError, which does not, when the client has broken the protocol.
        """
        while True:
            frame = await self.websocket.receive()
            if frame.type is WSMsgType.TEXT or frame.type is WSMsgType.BINARY:
                message: str | bytes = frame.data
                self.received.append(message)
                self._all_received.append(message)
                return message
            if frame.type is WSMsgType.CLOSE:
                raise ConnectionError(f"the client has closed it: {frame.data} {frame.extra!r}")
            if frame.type is WSMsgType.ERROR and isinstance(frame.data, WebSocketError):
                raise frame.data
            if frame.type not in (WSMsgType.PING, WSMsgType.PONG):
                raise ConnectionError("the connection is lost, or closed by the server")

    # What it does.

    async def send(self, message: str | bytes) -> None:
        """Send a message; raises ConnectionError when the connection is over."""
        try:
            if isinstance(message, str):
                await self.websocket.send_str(message)
            else:
                await self.websocket.send_bytes(message)
        except ConnectionError:
            self._has_failed = True
            raise

    async def flood(self, messages: Iterable[str | bytes]) -> None:
        """Send all of these, as fast as the client takes them.

        There may be no end to them. Meanwhile nothing is read, not even the client's close.
        Raises ConnectionError when the connection is over.
        """
        for message in messages:
            await self.send(message)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close properly, and wait for the client's answer. So does a handler that returns."""
        await self.websocket.close(code=code, message=reason.encode())

    def drop(self) -> None:
        """Cut the TCP connection without a word: the client finds it lost, with code 1006."""
        self._unmuted.set()
        if self.request.transport is not None:
            self.request.transport.abort()

    def mute(self) -> None:
        """Answer nothing from now on, neither messages nor pings nor a close, as a hung host.

        What a handler sends of its own accord still leaves; one that returns closes nothing. A
        client that goes meanwhile is not noticed before `unmute`.
        """
        self._unmuted.clear()
        if self.request.transport is not None:
            self.request.transport.pause_reading()

    def unmute(self) -> None:
        """Go on, with what has come meanwhile."""
        self._unmuted.set()
        transport = self.request.transport
        if transport is not None and not transport.is_closing():
            transport.resume_reading()

    def _is_over(self) -> bool:
        transport = self.request.transport
        is_closed = self.websocket.closed or transport is None or transport.is_closing()
        return is_closed or self._has_failed


async def echo(peer: Peer) -> None:
    """Answer each message with itself; `#n` with the connection's number at the server."""
    async for message in peer:
        await peer.send(str(peer.number) if message == "#n" else message)


class Admission(NamedTuple):
    """A handshake that a script accepts: the subprotocols that it speaks, and what it does then."""

    protocols: tuple[str, ...]
    handler: Handler


class Script:
    """What a server can have in the place of a handler: it decides about handshakes as well."""

    async def admit(self, request: web.Request) -> web.Response | Admission:
        """Return the response that refuses this handshake, or its admission."""
        raise NotImplementedError

    async def finish(self, error: BaseException | None) -> None:
        """End with the server's block, which has failed by this error or ended well.

        What this raises fails the test, unless that has failed already.
        """


class Server:
    """A WebSocket server on loopback, at a port that a restart keeps; use `async with`.

    `handler` is what it does with each connection, or what `record` or `replay` returned; without
    one it echoes. `port` is where it listens; with 0 it is any free one, which is in `port` once
    the server has started. `ssl_context` makes it a TLS server; `websocket_options` are those of
    aiohttp's WebSocketResponse: `protocols`, `heartbeat`, `autoping` and others. Raises TypeError
    for an option that there is not.

    A handler that fails, by an expectation or any other exception, closes its connection with
    1011 and fails the test: the end of the `async with` block raises the first such exception, or
    where the block itself ends by one, adds a note to that. A ConnectionError because the client
    has gone is no failure.

    Set at any time: `handler`, and `delay`, the seconds before a handshake is answered (None:
    never). To look at: `received`, the messages of all connections; `requests`, the handshakes,
    refused ones included; `peers`, all connections, and `open`, those at work; `most_open`, the
    most of these at a time; `refusals`, the answers to the next handshakes; `failures`, what
    handlers have raised.
    """

    def __init__(
        self,
        handler: Handler | Script = echo,
        *,
        port: int = 0,
        ssl_context: ssl.SSLContext | None = None,
        **websocket_options: Any,
    ) -> None:
        web.WebSocketResponse(**websocket_options)  # a wrong option would fail each handshake
        self.handler = handler
        self.ssl_context = ssl_context
        self.websocket_options = websocket_options
        self.refusals: list[web.Response] = []
        self.delay: float | None = 0.0
        self.port: int = port
        self.received: list[str | bytes] = []
        self.requests: list[web.Request] = []
        self.most_open: int = 0
        self.open: list[Peer] = []
        self.peers: list[Peer] = []
        self.failures: list[BaseException] = []
        self._runner: web.AppRunner | None = None
        self._serving: set[asyncio.Task[Any]] = set()

    @property
    def uri(self) -> str:
        """Where it listens, `ws://127.0.0.1:port/`; every path is served."""
        if not self.port:
            raise RuntimeError("the server has no port before it starts: use `async with server`")
        scheme = "wss" if self.ssl_context else "ws"
        return f"{scheme}://127.0.0.1:{self.port}/"

    def refuse(
        self, status: int = 503, *, headers: Mapping[str, str] | None = None, times: int = 1
    ) -> None:
        """Answer the next handshakes, so many `times`, with this HTTP status and no WebSocket."""
        self.refusals += [web.Response(status=status, headers=headers) for _ in range(times)]

    async def start(self) -> None:
        """Listen, or listen again after a `stop`. `async with` does it at the beginning."""
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
        """Stop listening, so that dials are refused, and drop every connection."""
        if self._runner is None:
            return
        for site in self._runner.sites:
            await site.stop()
        for peer in self.open:
            peer.drop()
        for _ in range(TURNS):
            await asyncio.sleep(0)
        # Those that see nothing of it: asleep, or withholding the answer to a handshake.
        if asleep := self._serving - {asyncio.current_task()}:
            for task in asleep:
                task.cancel()
            await asyncio.wait(asleep)
        await self._runner.cleanup()
        self._runner = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        await self.stop()
        if isinstance(self.handler, Script):
            try:
                await self.handler.finish(error or next(iter(self.failures), None))
            except Exception as late:
                self.failures.append(late)
        if error is not None:
            for failure in self.failures:
                error.add_note(f"A handler of the test's server has failed: {failure!r}")
        elif self.failures:
            first, *others = self.failures
            for other in others:
                first.add_note(f"Another handler has failed: {other!r}")
            raise first

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            return await self._answer(request)
        finally:
            self._serving.discard(task)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if self.delay is None:
            await asyncio.get_running_loop().create_future()
        else:
            await asyncio.sleep(self.delay)
        if self.refusals:
            return self.refusals.pop(0)
        handler, options = self.handler, self.websocket_options
        if isinstance(handler, Script):
            try:
                admitted = await handler.admit(request)
            except Exception as failure:
                self.failures.append(failure)
                return web.Response(status=500, text="the script of the test's server has failed")
            if isinstance(admitted, web.Response):
                return admitted
            handler = admitted.handler
            options = {"protocols": admitted.protocols, "max_msg_size": 0} | options
        websocket = web.WebSocketResponse(**options)
        peer = Peer(len(self.peers) + 1, request, websocket, self.received)
        try:
            await websocket.prepare(request)
        except ConnectionError:  # the client has gone during its handshake
            return web.Response(status=500)
        self.peers.append(peer)
        self.open.append(peer)
        self.most_open = max(self.most_open, len(self.open))
        try:
            await handler(peer)
            await peer._unmuted.wait()
        except BaseException as failure:  # that of pytest.fail() is no Exception
            task = asyncio.current_task()
            if isinstance(failure, KeyboardInterrupt | SystemExit) or (task and task.cancelling()):
                raise
            if not (isinstance(failure, ConnectionError) and peer._is_over()):
                failure.add_note(f"This was in the server's handler of connection {peer.number}.")
                self.failures.append(failure)
                await peer.close(1011, "the handler of the test's server has failed")
        finally:
            self.open.remove(peer)
        return websocket
