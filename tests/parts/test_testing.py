"""The scripted server does what a test of one's own code asks for, and tells that test the truth.

Its clients here are aiohttp's, without a pool, except where the two meet.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import aiohttp
import pytest
import trustme

from tests.conftest import echoes, until
from tests.support.suites import HEAD, PYTEST, run
from wspool import WebsocketConnectionPool
from wspool.testing import Peer, Server

Client = aiohttp.ClientWebSocketResponse


@asynccontextmanager
async def connected(server: Server, **options: Any) -> AsyncIterator[Client]:
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(server.uri, **options) as client,
    ):
        yield client


async def close_code(client: Client) -> int | None:
    """Return the code of the close, which must come before any message."""
    frame = await client.receive()
    assert frame.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED), frame
    return client.close_code


# What it receives, and answers.


async def test_without_a_script_it_echoes() -> None:
    async with Server() as server, connected(server) as client:
        for message in ("hello", "#n"):
            await client.send_str(message)
        await client.send_bytes(b"bytes")
        assert [await client.receive_str() for _ in range(2)] == ["hello", "1"]
        assert await client.receive_bytes() == b"bytes"


async def test_it_has_all_that_it_received_in_the_order_of_arrival() -> None:
    async with Server() as server, connected(server) as one, connected(server) as other:
        for client, message in ((one, "a"), (other, "b"), (one, "c")):
            await client.send_str(message)
            await client.receive_str()
        assert server.received == ["a", "b", "c"]
        assert [peer.received for peer in server.peers] == [["a", "c"], ["b"]]


async def test_pings_that_a_script_answers_itself_are_no_messages() -> None:
    async with Server(autoping=False) as server, connected(server) as client:
        await client.ping()
        await client.send_str("hello")
        assert await client.receive_str() == "hello"


async def test_a_script_expects_and_answers() -> None:
    """Text and bytes as they are, all else as JSON, with ANY for what may be anything."""

    async def serve(peer: Peer) -> None:
        await peer.expect("hello")
        await peer.expect(b"bytes")
        await peer.expect({"type": "start", "id": ANY})
        await peer.send("text")
        await peer.send(b"bytes")
        await peer.send_json({"type": "started", "number": (await peer.recv_json())["number"]})

    async with Server(serve) as server, connected(server) as client:
        await client.send_str("hello")
        await client.send_bytes(b"bytes")
        await client.send_json({"type": "start", "id": 7})
        await client.send_json({"number": 8})
        assert await client.receive_str() == "text"
        assert await client.receive_bytes() == b"bytes"
        assert await client.receive_json() == {"type": "started", "number": 8}
        assert await close_code(client) == 1000, "the script is over"


# What is wrong reaches the test.


async def fail_in(server: Server, *messages: str, clients: int = 1) -> None:
    """Send these to a server that closes then, as one whose script has failed, and end."""
    async with server:
        for _ in range(clients):
            async with connected(server) as client:
                for message in messages:
                    await client.send_str(message)
                assert await close_code(client) == 1011, "the client is not left waiting"


@pytest.mark.parametrize(
    ("expected", "sent", "shown"),
    [
        ("hello", "hallo", "expected 'hello', received 'hallo'"),
        ({"id": 1}, '{"id": 2}', "expected {'id': 1}, received {'id': 2}"),
        (b"hello", "hello", "expected b'hello', received 'hello'"),
    ],
)
async def test_another_message_than_the_expected_fails_the_test(
    expected: object, sent: str, shown: str
) -> None:
    with pytest.raises(AssertionError) as failed:
        await fail_in(Server(lambda peer: peer.expect(expected)), sent)
    assert str(failed.value) == shown
    assert failed.value.__notes__ == ["This was in the server's handler of connection 1."]


async def test_a_message_that_does_not_come_before_the_client_leaves_fails_the_test() -> None:
    server = Server(lambda peer: peer.expect("hello"))
    await server.start()
    async with connected(server) as client:
        await client.close(code=4000)
    with pytest.raises(
        AssertionError, match="expected 'hello', but the client has closed it: 4000"
    ):
        await server.__aexit__(None, None, None)


async def test_a_message_that_does_not_come_before_the_block_ends_fails_the_test() -> None:
    server = Server(lambda peer: peer.expect("hello"))
    await server.start()
    async with connected(server) as client:
        with pytest.raises(AssertionError, match="expected 'hello', but the connection is lost"):
            await server.__aexit__(None, None, None)
        assert await close_code(client) == 1006


@pytest.mark.parametrize(
    "error",
    [
        AssertionError("not so"),
        ZeroDivisionError(),
        ConnectionError("to a third party"),
        asyncio.CancelledError("a task that it waits for"),
        pytest.fail.Exception("by pytest.fail(), and no Exception"),
    ],
)
async def test_whatever_a_script_raises_fails_the_test(error: BaseException) -> None:
    async def fail(peer: Peer) -> None:
        raise error

    with pytest.raises(type(error)) as failed:
        await fail_in(Server(fail))
    assert failed.value is error


async def test_a_client_that_breaks_the_protocol_fails_the_test() -> None:
    server = Server(max_msg_size=10)
    await server.start()
    async with connected(server) as client:
        await client.send_str("more than ten characters")
        assert await close_code(client) == 1009
    with pytest.raises(aiohttp.WebSocketError):
        await server.__aexit__(None, None, None)


async def test_of_several_failures_the_first_is_raised_and_tells_of_the_others() -> None:
    async def fail(peer: Peer) -> None:
        raise ValueError(f"of number {peer.number}")

    with pytest.raises(ValueError, match="of number 1") as failed:
        await fail_in(Server(fail), clients=2)
    assert "of number 2" in failed.value.__notes__[-1]


async def test_the_tests_own_exception_is_not_replaced_but_told_of_the_failure() -> None:
    """Here the test expects a message, where there is the close of a script that has failed."""
    with pytest.raises(KeyError) as failed:
        await fall_over(Server(lambda peer: peer.expect("hello")))
    assert "received 'hallo'" in failed.value.__notes__[0]


async def fall_over(server: Server) -> None:
    async with server, connected(server) as client:
        await client.send_str("hallo")
        await close_code(client)
        raise KeyError("the test's own")


@pytest.mark.parametrize("doing", ["receives", "sends"])
async def test_a_client_that_leaves_is_no_failure(doing: str) -> None:
    """An iteration ends, and so does a script that receives or sends."""
    ended = asyncio.Event()

    async def serve(peer: Peer) -> None:
        async for message in peer:
            assert message == "hello"
        ended.set()
        await (peer.recv() if doing == "receives" else peer.send("too late"))

    async with Server(serve) as server:
        async with connected(server) as client:
            await client.send_str("hello")
        await until(lambda: not server.open, "the server has noticed")
    assert server.received == ["hello"]
    assert ended.is_set()
    assert not server.failures


async def test_a_script_that_sleeps_does_not_hold_up_the_end() -> None:
    async def sleep(peer: Peer) -> None:
        await asyncio.sleep(3600)

    async with aiohttp.ClientSession() as session:
        async with asyncio.timeout(10), Server(sleep) as server:
            client = await session.ws_connect(server.uri)
        assert await close_code(client) == 1006
    assert not server.open


# What it does to its clients.


@pytest.mark.parametrize(
    ("end", "code"), [(Peer.drop, 1006), (lambda peer: peer.close(4001, "enough"), 4001)]
)
async def test_a_script_drops_or_closes(end: Callable[[Peer], Any], code: int) -> None:
    async def serve(peer: Peer) -> None:
        await peer.expect("hello")
        if (closing := end(peer)) is not None:
            await closing

    async with Server(serve) as server, connected(server) as client:
        await client.send_str("hello")
        assert await close_code(client) == code


async def test_the_test_drops_a_connection_whatever_its_script_does() -> None:
    async with Server() as server, connected(server) as client, connected(server) as other:
        server.peers[0].drop()
        assert await close_code(client) == 1006
        await until(lambda: server.open == [server.peers[1]], "the server has noticed")
        await other.send_str("hello")
        assert await other.receive_str() == "hello"


async def test_it_refuses_as_often_as_it_is_told_to() -> None:
    async with Server() as server:
        server.refuse(429, headers={"Retry-After": "7"}, times=2)
        server.refuse()
        for status, retry_after in ((429, "7"), (429, "7"), (503, None)):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                async with connected(server):
                    pass
            assert refused.value.status == status
            assert refused.value.headers is not None
            assert refused.value.headers.get("Retry-After") == retry_after
        async with connected(server) as client:
            await client.send_str("#n")
            assert await client.receive_str() == "1", "only handshakes that succeed are counted"
        assert (len(server.requests), len(server.peers)) == (4, 1)


async def test_it_delays_handshakes() -> None:
    """The time limit of the client is below the delay: by its clock, not by ours."""
    async with Server() as server:
        for delay in (60.0, None):
            server.delay = delay
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5), connected(server):
                    pass
        server.delay = 0.01
        async with connected(server) as client:
            await client.send_str("hello")
            assert await client.receive_str() == "hello"
        assert len(server.requests) == 3


async def test_a_handshake_that_is_never_answered_opens_nothing_at_the_end() -> None:
    async with aiohttp.ClientSession() as session:
        async with Server() as server:
            server.delay = None
            dialling = asyncio.create_task(session.ws_connect(server.uri))
            await until(lambda: server.requests, "the handshake has begun")
        with pytest.raises(aiohttp.ClientError):
            await dialling
    assert not server.peers


async def test_it_floods_as_fast_as_the_client_takes_it() -> None:
    async def flood(peer: Peer) -> None:
        await peer.expect("go")
        await peer.flood(str(number) for number in range(5000))

    async with Server(flood) as server, connected(server) as client:
        await client.send_str("go")
        assert [await client.receive_str() for _ in range(5000)] == [str(n) for n in range(5000)]


async def test_an_endless_flood_waits_for_the_client_and_ends_with_it() -> None:
    """The client is a pool, whose close has an end; that of aiohttp waits for an answer."""
    blocks = itertools.repeat(bytes(65536))
    async with Server(lambda peer: peer.flood(blocks)) as server:
        async with WebsocketConnectionPool(uri=server.uri, close_timeout=0.1) as pool:
            connection = await pool.acquire()
            assert await connection.recv() == bytes(65536)
        await until(lambda: not server.open, "the flood is over")
    assert not server.failures


async def test_a_mute_peer_answers_neither_messages_nor_pings_until_it_is_unmuted() -> None:
    async with Server() as server, connected(server, autoping=False) as client:
        await until(lambda: server.open, "the handshake is over for the server too")
        server.open[0].mute()
        await client.send_str("anybody there?")
        await client.ping(b"anybody there?")
        with pytest.raises(TimeoutError):
            await client.receive(timeout=0.1)
        server.open[0].unmute()
        assert await client.receive_str() == "anybody there?"
        assert (await client.receive()).type is aiohttp.WSMsgType.PONG


async def test_a_script_that_ends_mute_closes_nothing_until_it_is_unmuted() -> None:
    async def serve(peer: Peer) -> None:
        await peer.expect("hello")
        peer.mute()

    async with Server(serve) as server, connected(server) as client:
        await client.send_str("hello")
        with pytest.raises(TimeoutError):
            await client.receive(timeout=0.1)
        server.open[0].unmute()
        assert await close_code(client) == 1000


@pytest.mark.parametrize("how", ["dropped", "at the end of the block"])
async def test_a_mute_peer_can_go(how: str) -> None:
    async def be_mute(peer: Peer) -> None:
        peer.mute()

    async with aiohttp.ClientSession() as session:
        async with Server(be_mute) as server:
            client = await session.ws_connect(server.uri)
            await until(lambda: server.open, "it is mute")
            if how == "dropped":
                server.open[0].drop()
                await until(lambda: not server.open, "it is gone")
        assert await close_code(client) == 1006
    assert not server.open


async def test_after_a_stop_dials_are_refused_and_a_start_serves_at_the_same_address() -> None:
    async with Server() as server:
        uri = server.uri
        async with connected(server) as client:
            await server.stop()
            assert await close_code(client) == 1006
        with pytest.raises(aiohttp.ClientConnectorError):
            async with connected(server):
                pass
        await server.start()
        assert server.uri == uri
        async with connected(server) as client:
            await client.send_str("#n")
            assert await client.receive_str() == "2"


async def test_nobody_gets_in_while_it_stops() -> None:
    """A client that is dropped, and dials again at once, is refused."""

    async def come_back(server: Server) -> None:
        while True:
            async with connected(server) as client:
                await client.receive()

    async with Server() as server:
        coming_back = asyncio.create_task(come_back(server))
        await until(lambda: server.open, "it has come")
        await server.stop()
        with pytest.raises(aiohttp.ClientConnectorError):
            await coming_back
    assert len(server.requests) == 1


def test_without_a_start_it_has_no_address() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        _ = Server().uri


def test_an_option_that_there_is_not_is_refused_at_once_and_not_at_each_handshake() -> None:
    with pytest.raises(TypeError, match="'prot'"):
        Server(prot=8080)


async def test_it_listens_at_the_port_that_it_is_given() -> None:
    async with Server() as first:
        port = first.port
    async with Server(port=port) as server:
        assert server.uri == first.uri
        async with WebsocketConnectionPool(uri=server.uri) as pool:
            async with pool.get_connection() as connection:
                assert await echoes(connection)


async def test_it_knows_how_many_were_open_at_a_time() -> None:
    async with Server() as server:
        async with connected(server), connected(server):
            assert len(server.open) == 2
        async with connected(server):
            pass
        await until(lambda: not server.open, "all have left")
    assert (server.most_open, len(server.peers)) == (2, 3)


async def test_it_speaks_tls_and_shows_the_handshake() -> None:
    authority = trustme.CA()
    here, there = (ssl.create_default_context(p) for p in ssl.Purpose)
    authority.issue_cert("127.0.0.1").configure_cert(there)
    authority.configure_trust(here)
    async with Server(ssl_context=there, protocols=["speech"]) as server:
        assert server.uri.startswith("wss://")
        headers = {"Authorization": "Bearer token"}
        async with connected(server, ssl=here, headers=headers, protocols=["speech"]) as client:
            assert client.protocol == "speech"
        assert server.peers[0].request.headers["Authorization"] == "Bearer token"


# The fixture.

TESTS = (
    HEAD
    + """

async def test_it_echoes(websocket_server):
    assert await ask(websocket_server.uri, "hello") == "hello"
    assert websocket_server.received == ["hello"]


async def test_its_script_fails(websocket_server):
    websocket_server.handler = lambda peer: peer.expect("hallo")
    assert await ask(websocket_server.uri, "hello") == 1011
"""
)


@pytest.mark.parametrize(
    ("mode", "marks"),
    [("strict", ["pytest.mark.asyncio", "pytest.mark.anyio"]), ("auto", ["[]"])],
)
async def test_the_fixture_works_in_every_way_to_run_async_tests(
    mode: str, marks: list[str], tmp_path: Path
) -> None:
    """In both modes of pytest-asyncio, and with anyio's plugin; a script that fails is shown."""
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["wspool.pytest_plugin"]\n')
    for number, mark in enumerate(marks):
        (tmp_path / f"test_{number}.py").write_text(TESTS.format(marks=mark))
    _, printed = await run(*PYTEST, f"--asyncio-mode={mode}", cwd=tmp_path)
    assert printed.count("expected 'hallo', received 'hello'") >= len(marks), printed
    assert re.search(rf"{2 * len(marks)} passed, {len(marks)} error", printed), printed
