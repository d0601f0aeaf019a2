"""What a server says is written down as it is, without secrets, or not at all; and played again.

The servers that are recorded are scripted ones; `test_recorded_dialogues.py` has others.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp import WSMsgType

from tests.conftest import until
from wspool import WebsocketConnectionPool
from wspool.testing import Peer, Server, echo, record, replay

Client = aiohttp.ClientWebSocketResponse
CANARY = "canary-7531"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "turns.jsonl"


@asynccontextmanager
async def connected(uri: str, **options: Any) -> AsyncIterator[Client]:
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(uri, max_msg_size=0, **options) as client,
    ):
        yield client


def lines_of(file: Path) -> list[dict[str, Any]]:
    """Return the lines after the header, without the times."""
    _, *lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    for line in lines:
        for action in line.get("server", []):
            assert action.pop("after") >= 0
    return lines


async def ask(client: Client, *messages: str | bytes) -> str | bytes:
    for message in messages:
        await (client.send_str if isinstance(message, str) else client.send_bytes)(message)  # type: ignore[operator]
    frame = await client.receive()
    assert frame.type in (WSMsgType.TEXT, WSMsgType.BINARY), frame
    answer: str | bytes = frame.data
    return answer


async def ending(client: Client) -> tuple[int | None, str]:
    """Return code and reason of the close, which must come before any message."""
    frame = await client.receive()
    assert frame.type in (WSMsgType.CLOSE, WSMsgType.CLOSED), frame
    return client.close_code, frame.extra or ""


# What is written.


async def serve(peer: Peer) -> None:
    """Greet, and do what the messages say."""
    await peer.send("welcome")
    async for message in peer:
        if message == "close":
            await peer.close(4001, "enough")
        elif message == "close without a code":
            await peer.websocket.send_frame(b"", WSMsgType.CLOSE)
        elif message == "drop":
            peer.drop()
        elif message != "more":
            await peer.send(message)
            await peer.send(b"\x00\xff")


async def talk(uri: str, server: Server) -> list[object]:
    """Say all that `serve` knows, be refused, and return all that came of it."""
    came: list[object] = []
    for last in ("close", "close without a code", "drop"):
        async with connected(uri) as client:
            came.append(await client.receive_str())
            came.append(await ask(client, "more", "größer"))
            came.append(await client.receive_bytes())
            came.append(await ask(client, b"bytes"))
            came.append(await client.receive_bytes())
            await client.send_str(last)
            came.append(await ending(client))
    server.refuse(429, headers={"Retry-After": "7"})
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with connected(uri):
            pass
    assert refused.value.headers is not None
    came += [refused.value.status, refused.value.headers["Retry-After"]]
    return came


async def test_a_turn_is_what_the_client_says_up_to_the_answer_and_the_answer(file: Path) -> None:
    """Greetings, closes with and without a code, losses and refusals are in it, too."""
    async with Server(serve) as real, Server(record(real.uri, file)) as server:
        await talk(server.uri, real)
    header = json.loads(file.read_text(encoding="utf-8").partition("\n")[0])
    assert header.pop("recorded_at").endswith("+00:00")
    expected = {"format": "wspool recording", "version": 1, "subprotocol": None, "turns": 13}
    assert header == expected
    dialogue: list[dict[str, Any]] = [
        {"client": [], "server": [{"text": "welcome"}]},
        {
            "client": [{"text": "more"}, {"text": "größer"}],
            "server": [{"text": "größer"}, {"base64": "AP8="}],
        },
        {
            "client": [{"base64": "Ynl0ZXM="}],
            "server": [{"base64": "Ynl0ZXM="}, {"base64": "AP8="}],
        },
    ]
    closes = {
        "close": {"close": 4001, "reason": "enough"},
        "close without a code": {"close": 1005, "reason": ""},
        "drop": {"close": 1006, "reason": ""},
    }
    wanted: list[dict[str, Any]] = []
    for number, (last, close) in enumerate(closes.items(), start=1):
        turns = [*dialogue, {"client": [{"text": last}], "server": [close]}]
        wanted += [{"connection": number} | turn for turn in turns]
    wanted.append({"connection": 4, "refused": 429, "retry_after": "7"})
    assert lines_of(file) == wanted
    assert "größer" in file.read_text(encoding="utf-8"), "it can be read by eye"


async def test_a_replay_says_and_does_all_that_the_server_did(file: Path) -> None:
    async with Server(serve) as real:
        async with Server(record(real.uri, file)) as server:
            recorded = await talk(server.uri, real)
        assert real.requests
    async with Server(replay(file)) as server:
        assert await talk(server.uri, Server()) == recorded


async def test_secrets_of_the_handshake_reach_the_server_and_not_the_file(file: Path) -> None:
    """Those that are given, and those of the client's own."""
    async with Server(protocols=["speech"]) as real:
        uri = real.uri.replace("//", f"//alice:{CANARY}1@") + f"path?token={CANARY}2&model=large"
        given = {"X-Api-Key": f"{CANARY}3", "X-Both": "given"}
        own = {
            "Authorization": f"Bearer {CANARY}4",
            "X-Own-Key": f"{CANARY}8",
            "X-Both": "own",
            "Cookie": f"a={CANARY}5",
        }
        async with Server(record(uri, file, headers=given)) as server:
            offered = ["speech", f"{CANARY}6"]
            there = f"{server.uri}further?ticket={CANARY}7"
            async with connected(there, headers=own, protocols=offered) as client:
                assert client.protocol == "speech"
                assert await ask(client, "hello") == "hello"
        [request] = real.requests
        assert request.path == "/path/further"
        assert dict(request.query) == {
            "token": f"{CANARY}2", "model": "large", "ticket": f"{CANARY}7"
        }  # fmt: skip
        assert request.headers["X-Api-Key"] == f"{CANARY}3"
        assert request.headers["X-Both"] == "given"
        assert request.headers["Authorization"].startswith("Basic ")
        assert request.headers["X-Own-Key"] == f"{CANARY}8"
        assert request.headers["Cookie"] == f"a={CANARY}5"
        assert request.headers["Sec-WebSocket-Protocol"] == ",".join(offered)
    written = file.read_text(encoding="utf-8")
    assert '"subprotocol": "speech"' in written
    for secret in (CANARY, "alice", "large", "path", "further"):
        assert secret not in written


async def test_a_uri_and_headers_may_be_asked_for_with_each_handshake(file: Path) -> None:
    tokens = iter("ab")
    async with Server() as real:
        recording = record(lambda: real.uri, file, headers=lambda: {"X-Token": next(tokens)})
        async with Server(recording) as server:
            for _ in range(2):
                async with connected(server.uri):
                    pass
        assert [request.headers["X-Token"] for request in real.requests] == ["a", "b"]


@pytest.mark.parametrize("who", ["client", "server", "close", "bytes"])
async def test_a_message_with_a_secret_of_the_handshake_is_not_written(
    file: Path, who: str
) -> None:
    """The test fails instead, and the error does not tell the secret."""

    async def tell(peer: Peer) -> None:
        if who != "client":
            token = peer.request.headers["Authorization"].removeprefix("Bearer ")
            if who == "close":
                await peer.close(4000, f"no {token}")
            else:
                await peer.send(f"hello, {token}" if who == "server" else f"\0{token}".encode())
        await echo(peer)

    async def say_it(scrub: Any = None) -> None:
        headers = {"Authorization": f"Bearer {CANARY}"}
        async with (
            Server(tell) as real,
            Server(record(real.uri, file, headers=headers, scrub=scrub)) as server,
            connected(server.uri) as client,
        ):
            if who == "client":
                await ask(client, f"I am {CANARY}")
            else:
                await client.receive()

    def scrub(message: str | bytes) -> str | bytes:
        if isinstance(message, bytes):
            return message.replace(CANARY.encode(), b"-")
        return message.replace(CANARY, "-")

    with pytest.raises(ValueError, match="says a secret of the handshake; take it out") as failed:
        await say_it()
    assert CANARY not in str(failed.value)
    assert not file.exists()
    await say_it(scrub)
    assert CANARY not in file.read_text(encoding="utf-8")


async def test_what_scrub_has_taken_out_is_taken_out_of_what_is_compared(file: Path) -> None:
    def scrub(message: str | bytes) -> str | bytes:
        return "log in as …" if str(message).startswith("log in") else message

    async with Server() as real, Server(record(real.uri, file, scrub=scrub)) as server:
        async with connected(server.uri) as client:
            assert await ask(client, "log in as alice") == "log in as alice"
    async with Server(replay(file, scrub=scrub)) as server:
        async with connected(server.uri) as client:
            assert await ask(client, "log in as bob") == "log in as …"


@pytest.mark.parametrize("how", ["the block", "the recording"])
async def test_only_a_block_that_ends_well_writes_and_it_writes_a_whole_file(
    file: Path, how: str
) -> None:
    """What was there before stays, and nothing else is left in the directory."""
    file.write_text("before", encoding="utf-8")

    def fail(message: object) -> Any:
        raise KeyError("in scrub")

    with pytest.raises(KeyError):
        await fall_over(file, fail if how == "the recording" else None)
    assert file.read_text(encoding="utf-8") == "before"
    assert [path.name for path in file.parent.iterdir()] == [file.name]


async def fall_over(file: Path, scrub: Any) -> None:
    async with (
        Server() as real,
        Server(record(real.uri, file, scrub=scrub)) as server,
        connected(server.uri) as client,
    ):
        await ask(client, "hello")
        if scrub is None:
            raise KeyError("in the block")


async def test_directories_that_are_missing_are_made(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b" / "turns.jsonl"
    async with Server() as real, Server(record(real.uri, file)) as server:
        async with connected(server.uri) as client:
            await ask(client, "hello")
    assert len(lines_of(file)) == 2


async def test_a_server_that_cannot_be_reached_fails_the_test_without_telling_secrets(
    file: Path,
) -> None:
    async with Server() as gone:
        uri = gone.uri
    with pytest.raises(ConnectionError, match="cannot be recorded") as failed:
        await dial_in_vain(record(f"{uri}?token={CANARY}", file))
    assert CANARY not in repr(failed.value) + repr(failed.value.__cause__)
    assert not file.exists()


async def dial_in_vain(script: Any) -> None:
    """Dial a server that answers with 500, and end well."""
    async with Server(script) as server:
        with pytest.raises(aiohttp.WSServerHandshakeError):
            async with connected(server.uri):
                pass


async def test_a_recording_has_one_subprotocol(file: Path) -> None:
    with pytest.raises(ValueError, match=r"chose the subprotocols \['a', 'b'\]"):
        await offer(file, "a", "b")
    assert not file.exists()


async def offer(file: Path, *protocols: str) -> None:
    async with Server(protocols=["a", "b"]) as real, Server(record(real.uri, file)) as server:
        for protocol in protocols:
            async with connected(server.uri, protocols=[protocol]):
                pass


async def test_a_client_that_closes_or_is_lost_closes_the_connection_to_the_server(
    file: Path,
) -> None:
    async with Server() as real, Server(record(real.uri, file)) as server:
        async with connected(server.uri) as client:
            await client.close(code=4002)
            await until(lambda: not real.open, "the server has noticed")
        async with connected(server.uri):
            server.open[-1].drop()
            await until(lambda: not real.open, "the server has noticed")
        assert [peer.websocket.close_code for peer in real.peers] == [4002, 1000]
    assert [line["client"] for line in lines_of(file)] == [[], []], "that is the client's matter"


async def test_messages_of_any_size_pass(file: Path) -> None:
    large = "x" * 5_000_000
    async with Server(max_msg_size=0) as real, Server(record(real.uri, file)) as server:
        async with connected(server.uri) as client:
            assert await ask(client, large) == large
    async with Server(replay(file)) as server, connected(server.uri) as client:
        assert await ask(client, large) == large


async def test_turns_are_in_the_order_in_which_they_begin(file: Path) -> None:
    async with Server() as real, Server(record(real.uri, file)) as server:
        async with connected(server.uri) as one, connected(server.uri) as other:
            for client, message in ((other, "a"), (one, "b"), (other, "c")):
                await ask(client, message)
    said = [(line["connection"], line["client"]) for line in lines_of(file)][2:]
    assert said == [(2, [{"text": "a"}]), (1, [{"text": "b"}]), (2, [{"text": "c"}])]


@pytest.mark.parametrize("is_verified", [True, False])
async def test_servers_with_tls_are_recorded(file: Path, is_verified: bool) -> None:
    authority = trustme.CA()
    here, there = (ssl.create_default_context(p) for p in ssl.Purpose)
    authority.issue_cert("127.0.0.1").configure_cert(there)
    authority.configure_trust(here)
    async with Server(ssl_context=there) as real:
        async with Server(record(real.uri, file, ssl=is_verified and here)) as server:
            assert server.uri.startswith("ws://")
            async with connected(server.uri) as client:
                assert await ask(client, "hello") == "hello"


async def test_pools_are_clients_as_any_other(file: Path) -> None:
    """The dialogue of a pool, with a login, is played to one of another size."""

    async def serve(peer: Peer) -> None:
        await peer.expect({"type": "login"})
        await peer.send_json({"type": "ready"})
        async for message in peer:
            await peer.send(f"you said {message!r}")

    async def log_in(connection: Any) -> None:
        await connection.send_json({"type": "login"})
        assert await connection.recv_json() == {"type": "ready"}

    async def ask_in_pool(pool: WebsocketConnectionPool, question: str) -> object:
        async with pool.get_connection(timeout=10) as connection:
            await connection.send(question)
            return await connection.recv()

    async def run(uri: str, size: int) -> list[object]:
        async with WebsocketConnectionPool(
            uri=uri, max_connections=size, on_connect=log_in
        ) as pool:
            return await asyncio.gather(*(ask_in_pool(pool, f"{n}") for n in range(20)))

    async with Server(serve) as real, Server(record(real.uri, file)) as server:
        recorded = await run(server.uri, 3)
    for size in (1, 3, 10):
        async with Server(replay(file)) as server:
            assert await run(server.uri, size) == recorded
            assert len(server.peers) <= size
