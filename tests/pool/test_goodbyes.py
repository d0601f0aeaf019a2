"""How a connection ends: soon, in the right words, and with what was still to be read."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import trustme
from aiohttp import WSCloseCode

from tests.conftest import MakePool, echoes, until, why_closed
from tests.support.inside import router_of, wire_of
from wspool import (
    CloseReason,
    ConnectionClosedError,
    State,
    WebsocketConnection,
    WebsocketConnectionPool,
)
from wspool.testing import Peer, Server


class Closes:
    """A handler that notes the code and the reason of each client's CLOSE."""

    def __init__(self) -> None:
        self.seen: list[tuple[int | None, str]] = []

    async def __call__(self, peer: Peer) -> None:
        while True:
            frame = await peer.websocket.receive()
            if frame.type.name != "TEXT":
                self.seen.append((peer.websocket.close_code, frame.extra or ""))
                return
            await peer.send(frame.data)


# TLS.


ACCEPT_KEY = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class HalfClosing(threading.Thread):
    """A TLS server that answers a CLOSE with a CLOSE, and then neither reads nor says anything.

    With `is_first` it sends its CLOSE as soon as it has received a message.
    """

    def __init__(self, context: ssl.SSLContext, *, is_first: bool) -> None:
        super().__init__(daemon=True)
        self.context = context
        self.is_first = is_first
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.sockets: list[ssl.SSLSocket] = []

    @property
    def uri(self) -> str:
        return f"wss://127.0.0.1:{self.listener.getsockname()[1]}/"

    def run(self) -> None:
        while True:
            try:
                plain, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(plain,), daemon=True).start()

    def serve(self, plain: socket.socket) -> None:
        tls = self.context.wrap_socket(plain, server_side=True)
        self.sockets.append(tls)
        head = b""
        while b"\r\n\r\n" not in head:
            head += tls.recv(4096)
        lines = (line.partition(b": ") for line in head.split(b"\r\n"))
        [key] = [value for name, _, value in lines if name.lower() == b"sec-websocket-key"]
        accept = base64.b64encode(hashlib.sha1(key + ACCEPT_KEY).digest())
        tls.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        tls.recv(4096)  # a message, or a CLOSE
        tls.sendall(b"\x88\x02\x03\xe8")
        if self.is_first:
            tls.recv(4096)  # the client's CLOSE

    def stop(self) -> None:
        self.listener.close()
        for tls in self.sockets:
            tls.close()


@pytest.fixture(params=[False, True], ids=["by the pool", "by the server"])
def half_closing(request: pytest.FixtureRequest) -> Iterator[tuple[HalfClosing, ssl.SSLContext]]:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    server = HalfClosing(context, is_first=request.param)
    server.start()
    yield server, trusting
    server.stop()


async def test_nobody_waits_for_a_close_notify_that_does_not_come(
    half_closing: tuple[HalfClosing, ssl.SSLContext],
) -> None:
    """Both have said CLOSE: the places are free soon, though `close_timeout` is a minute."""
    server, trusting = half_closing
    pool = WebsocketConnectionPool(
        uri=server.uri, ssl=trusting, max_connections=3, close_timeout=60.0
    )
    async with pool:
        connections = [await pool.acquire() for _ in range(3)]
        for connection in connections:
            if server.is_first:
                await connection.send("hello")
            await pool.release(connection, force_remove=not server.is_first)
        await until(lambda: not pool.connections, "their places are free", within=5.0)
        async with asyncio.timeout(5.0), pool.get_connection():
            pass
        async with asyncio.timeout(5.0):
            await pool.close_all()


async def test_a_peer_that_has_not_answered_the_close_has_all_its_time(make_pool: MakePool) -> None:
    """The tenth of a second is for TLS alone, and begins when both have closed."""
    closed_after: list[float] = []

    async def think(peer: Peer) -> None:
        await peer.recv()
        began = asyncio.get_running_loop().time()
        frame = await peer.websocket.receive()
        closed_after.append(asyncio.get_running_loop().time() - began)
        assert frame.type.name == "CLOSE"

    async with Server(think, autoclose=False) as server:
        pool = make_pool(uri=server.uri, close_timeout=0.5)
        async with pool.get_connection() as connection:
            await connection.send("hello")
            began = asyncio.get_running_loop().time()
            await connection.close()
            assert asyncio.get_running_loop().time() - began < 5.0
        await pool.close_all()


# Borrowers that have time.


@pytest.mark.usefixtures("fair_clock")
async def test_a_call_goes_on_within_the_grace_of_close_all(make_pool: MakePool) -> None:
    """The server's pings are answered until the last borrower is back."""

    async def impatient(peer: Peer) -> None:
        async for message in peer:
            await peer.send(message)

    async with Server(impatient, heartbeat=0.2) as server:
        pool = make_pool(uri=server.uri, cleanup_interval=60.0)
        connection = await pool.acquire()
        closing = asyncio.create_task(pool.close_all(timeout=30.0))
        await asyncio.sleep(1.0)  # the borrower waits for something else
        assert await echoes(connection, "still there")
        await pool.release(connection)
        await closing
    assert why_closed(connection) == CloseReason.POOL


# What the server has said before it closed.


async def stream(connection: WebsocketConnection) -> None:
    while True:
        await connection.send(b"x" * 2000)
        await asyncio.sleep(0)


async def test_a_sender_learns_why_the_server_has_closed(make_pool: MakePool) -> None:
    """And can read what came before: not 1006, whatever has cut the transport off."""

    async def refuse(peer: Peer) -> None:
        await peer.recv()
        await peer.send("error: too much audio")
        await peer.websocket.close(code=4008, message=b"slow down", drain=False)
        peer.drop()

    codes: list[tuple[int | None, str]] = []
    read: list[str | bytes] = []
    async with Server(refuse) as server:
        pool = make_pool(uri=server.uri, max_connections=1)
        for _ in range(30):
            async with pool.get_connection(timeout=30.0) as connection:
                with pytest.raises(ConnectionClosedError) as caught:
                    await stream(connection)
                codes.append((caught.value.code, caught.value.reason))
                read.append(await connection.recv())
                with pytest.raises(ConnectionClosedError) as caught:
                    await connection.recv()
                assert caught.value.code == connection.close_code == 4008
            router_of(pool).gate.streak = 0  # the next dial does not wait
    assert codes == [(4008, "slow down")] * 30
    assert read == ["error: too much audio"] * 30


async def test_nothing_is_sent_once_a_close_has_arrived(
    server: Server, make_pool: MakePool
) -> None:
    """It would seem to have been taken; what came before can still be read."""

    async def leave(peer: Peer) -> None:
        await peer.recv()
        await peer.send("so long")
        await peer.websocket.close(code=4008, message=b"enough", drain=False)

    server.handler = leave
    async with make_pool().get_connection() as connection:
        await connection.send("hello")
        wire = wire_of(connection)
        await until(lambda: len(wire.frames) == 2, "both have arrived")
        with pytest.raises(ConnectionClosedError) as caught:
            await connection.send("a question")
        assert (caught.value.code, wire.sent_messages) == (4008, 1)
        assert await connection.recv() == "so long"


# Our own limits.


async def test_a_message_above_our_limit_is_closed_by_us(make_pool: MakePool) -> None:
    async def talk(peer: Peer) -> None:
        await peer.recv()
        await peer.send("x" * 2000)
        await peer.recv()

    async with Server(talk) as server:
        pool = make_pool(uri=server.uri, max_msg_size=1000)
        async with pool.get_connection() as connection:
            await connection.send("hello")
            with pytest.raises(ConnectionClosedError) as caught:
                await connection.recv()
        for part in ("closed by us", "1009", "max_msg_size"):
            assert part in str(caught.value)
        assert "by the server" not in str(caught.value)
        assert why_closed(connection) == CloseReason.PROTOCOL
        assert caught.value.code == WSCloseCode.MESSAGE_TOO_BIG


async def test_a_bad_frame_is_closed_by_us(make_pool: MakePool) -> None:
    async def babble(peer: Peer) -> None:
        await peer.recv()
        assert peer.request.transport is not None
        peer.request.transport.write(b"\xff\xff\xff\xff")
        await peer.recv()

    async with Server(babble) as server:
        pool = make_pool(uri=server.uri)
        async with pool.get_connection() as connection:
            await connection.send("hello")
            with pytest.raises(ConnectionClosedError, match="closed by us"):
                await connection.recv()
    assert why_closed(connection) == CloseReason.PROTOCOL


# The words of a close.


@pytest.mark.parametrize(
    ("reason", "arrives"),
    [
        ("é" * 62, "é" * 61),
        ("x" + "é" * 61, "x" + "é" * 61),
        ("€" * 50, "€" * 41),
        ("😀" * 40, "😀" * 30),
        ("x" * 200, "x" * 123),
        ("bye\ud800", "bye?"),
        ("", ""),
    ],
)
async def test_a_long_reason_is_cut_at_a_character(
    make_pool: MakePool, reason: str, arrives: str
) -> None:
    closes = Closes()
    async with Server(closes, autoclose=False) as server:
        pool = make_pool(uri=server.uri)
        async with pool.get_connection() as connection:
            await connection.close(4001, reason)
        await until(lambda: closes.seen, "the server has heard it")
    assert closes.seen == [(4001, arrives)]


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, -1, 70000])
async def test_a_code_that_may_not_be_sent_is_refused(make_pool: MakePool, code: int) -> None:
    async with make_pool().get_connection() as connection:
        with pytest.raises(ValueError, match="code"):
            await connection.close(code)
        assert await echoes(connection)


@pytest.mark.parametrize(("code", "reason"), [("1000", ""), (1000.0, ""), (True, ""), (1000, b"x")])
async def test_what_is_no_code_and_no_reason_is_refused(
    make_pool: MakePool, code: Any, reason: Any
) -> None:
    async with make_pool().get_connection() as connection:
        with pytest.raises(TypeError):
            await connection.close(code, reason)
        assert await echoes(connection)


@pytest.mark.parametrize("compress", [0, 15])
async def test_what_cannot_be_encoded_is_an_error_of_the_caller_alone(
    make_pool: MakePool, compress: int
) -> None:
    pool = make_pool(compress=compress)
    async with pool.get_connection() as connection:
        for message in ("\ud800", "x" * 5000 + "\udfff"):
            with pytest.raises(UnicodeEncodeError):
                await connection.send(message)
        wrong: Any = {"not": "a message"}
        with pytest.raises(TypeError):
            await connection.send(wrong)
        assert await echoes(connection)
    assert pool.available_connections == 1
    assert connection.state is State.IDLE


# Retiring.


async def test_a_retired_connection_closes_when_it_is_given_back(make_pool: MakePool) -> None:
    pool = make_pool(max_connections=1)
    async with pool.get_connection() as connection:
        connection.retire()
        assert connection.state is State.BUSY
        assert await echoes(connection)
    assert why_closed(connection) == CloseReason.RETIRED
    async with pool.get_connection(timeout=5.0) as another:
        assert another.id != connection.id


async def test_a_retired_idle_connection_closes_at_once(
    server: Server, make_pool: MakePool
) -> None:
    """As when it says, while nobody reads, that it is about to go."""

    def on_drained(connection: WebsocketConnection, message: str | bytes) -> None:
        if message == "GoAway":
            connection.retire()

    pool = make_pool(on_drained=on_drained)
    async with pool.get_connection() as connection:
        pass
    await server.peers[0].send("GoAway")
    await until(lambda: connection.state is State.CLOSED, "it is closed")
    assert why_closed(connection) == CloseReason.RETIRED


@pytest.mark.parametrize("name", ["on_connect", "on_release", "keepalive"])
async def test_a_hook_may_retire_its_connection(make_pool: MakePool, name: str) -> None:
    async def retire(connection: WebsocketConnection) -> None:
        connection.retire()

    options: dict[str, Any] = {name: retire}
    if name == "keepalive":
        options["keepalive_interval"] = 0.05
    pool = make_pool(**options)
    async with pool.get_connection() as connection:
        assert await echoes(connection)
    await until(lambda: connection.state is State.CLOSED, "it is closed")
    assert why_closed(connection) == CloseReason.RETIRED


# The last word.


async def say_finish(connection: WebsocketConnection) -> None:
    await connection.send("session.finish")


ENDS = ["idle_timeout", "max_uses", "force_remove", "close", "expire", "retire", "pool", "error"]


@pytest.mark.parametrize("end", ENDS)
async def test_each_open_connection_that_the_pool_closes_has_its_last_word(
    server: Server, make_pool: MakePool, end: str
) -> None:
    options: dict[str, Any] = {
        "idle_timeout": {"idle_timeout": 0.05, "cleanup_interval": 0.05},
        "max_uses": {"max_uses": 1},
    }.get(end, {})
    pool = make_pool(on_close=say_finish, **options)
    if end == "error":
        with contextlib.suppress(KeyError):
            async with pool.get_connection() as connection:
                await connection.send("question")
                raise KeyError("on purpose")
    elif end in ("force_remove", "close"):
        connection = await pool.acquire()
        if end == "close":
            await connection.close()
        await pool.release(connection, force_remove=True)
    else:
        async with pool.get_connection() as connection:
            if end == "retire":
                connection.retire()
        if end == "expire":
            pool.expire_connections()
        elif end == "pool":
            await pool.close_all()
    await until(lambda: "session.finish" in server.received, "it was said")
    await until(lambda: not pool.connections, "it is gone")


async def test_all_of_many_have_their_last_word_side_by_side(
    server: Server, make_pool: MakePool
) -> None:
    async def wait_for_the_end(connection: WebsocketConnection) -> None:
        await connection.send("session.finish")
        assert await connection.recv() == "session.finish"

    pool = make_pool(on_close=wait_for_the_end, warmup_connections=29, close_timeout=30.0)
    await pool.start()
    await pool.close_all()
    assert server.received == ["session.finish"] * 29


async def test_one_that_the_server_has_closed_has_none(server: Server, make_pool: MakePool) -> None:
    words: list[int] = []

    async def on_close(connection: WebsocketConnection) -> None:
        words.append(connection.id)

    pool = make_pool(on_close=on_close)
    async with pool.get_connection() as connection:
        pass
    await server.peers[0].close()
    await until(lambda: not pool.connections, "it is gone")
    assert connection.state is State.CLOSED
    assert words == []


async def test_a_last_word_that_takes_too_long_is_cut_off(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    async def on_close(connection: WebsocketConnection) -> None:
        await asyncio.sleep(60.0)

    pool = make_pool(on_close=on_close, close_timeout=0.1)
    async with pool.get_connection():
        pass
    await asyncio.wait_for(pool.close_all(), 10.0)
    assert "on_close" in caplog.text
    assert "close_timeout" in caplog.text


async def test_a_last_word_that_raises_costs_nothing(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    async def on_close(connection: WebsocketConnection) -> None:
        raise KeyError("on purpose")

    pool = make_pool(on_close=on_close, max_connections=1, max_uses=1)
    for _ in range(3):
        async with pool.get_connection(timeout=5.0) as connection:
            assert await echoes(connection)
    await pool.close_all()
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 3


# Refilling.


async def test_a_minimum_is_refilled_when_one_goes(server: Server, make_pool: MakePool) -> None:
    """Not at the next cleanup: with one use for each, few pay for the handshake."""
    pool = make_pool(max_uses=1, min_connections=1, cleanup_interval=3600.0)
    await pool.start()
    for _ in range(8):
        async with pool.get_connection(timeout=5.0) as connection:
            assert await echoes(connection)
        await until(lambda: pool.available_connections == 1, "there is another")
    assert pool.stats.waits == 0


async def test_a_minimum_is_not_refilled_while_the_pool_closes(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool(min_connections=3)
    await pool.start()
    await pool.close_all()
    assert len(server.requests) == 3
