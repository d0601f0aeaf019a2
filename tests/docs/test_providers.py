"""What `docs/providers.md` advises can be given to a pool, and does what it says."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest

from tests.conftest import MakePool, echoes, until
from tests.support.pages import DOCS, code, python, rows
from wspool import State, WebsocketConnectionPool
from wspool.testing import Peer, Server, echo

NAMES: dict[str, Any] = {}
exec(python("providers.md"), NAMES)

PROVIDERS = [pytest.param(cells, id=cells[0]) for cells in rows("providers.md", "last message")]
LAST = [
    pytest.param(cells, id=cells[0]) for cells in rows("providers.md", "last message") if cells[-1]
]


def settings(cells: list[str]) -> dict[str, Any]:
    made: dict[str, Any] = eval(f"dict({code(cells[1])})", NAMES)
    return made


def provider(name: str) -> list[str]:
    [cells] = [param.values[0] for param in PROVIDERS if name in str(param.id)]
    return list(cells)  # type: ignore[arg-type]


SHARED = [pytest.param(cells, id=cells[0]) for cells in rows("providers.md", "ends a stream")]


@pytest.mark.parametrize("cells", SHARED)
async def test_streams_of_a_provider_share_a_connection_and_drain(
    cells: list[str], make_pool: MakePool
) -> None:
    """Each ends by the message in the last column, or by the fence."""
    last = json.loads(code(cells[-1])) if cells[-1] else None
    options = settings(cells)
    fields = ("contextId", "context_id", "stream_id", "id")
    field = next(field for field in last or {"id": ""} if field in fields)

    async def serve(peer: Peer) -> None:
        async for message in peer:
            key = json.loads(message).get("key")
            if key is not None:
                await peer.send_json({field: key, "part": 1})
                await peer.send_json((last or {}) | {field: key})

    async with Server(serve, protocols=options.pop("protocols", [])) as server:
        pool = make_pool(uri=server.uri, **options)
        async with pool.get_stream() as other:
            for _ in range(3):
                async with pool.get_stream() as stream:
                    await stream.send_json({"key": stream.claim(str(stream.number))})
                    assert (await stream.recv_json())["part"] == 1
                await until(lambda stream=stream: stream.state is State.CLOSED, "it has drained")
            assert other.connection.is_connected
        assert pool.stats.dials == 1


def a_message(text: str) -> str | bytes:
    """Return what the page shows: a text message as it is, a binary one as Python writes it."""
    return eval(text) if text.startswith('b"') else text


@pytest.mark.parametrize("cells", PROVIDERS)
def test_a_pool_takes_the_settings(cells: list[str]) -> None:
    WebsocketConnectionPool(uri="wss://localhost/", **settings(cells))


@pytest.mark.parametrize("cells", LAST)
def test_drain_until_knows_the_last_message_from_others(cells: list[str]) -> None:
    is_last = settings(cells)["drain_until"]
    assert is_last(a_message(code(cells[-1])))
    for other in ("{}", '{"type": "error"}', "text", b"\x00audio", b"", "[1]", "1"):
        assert not is_last(other)


# What each provider does, played by a server.


async def answers_in_parts(peer: Peer, last: str | bytes) -> None:
    """Answer each question with two parts and the last message, thinking in between."""
    async for question in peer:
        for part in ("1", "2"):
            await peer.send(f"{question!s} {part}")
            await asyncio.sleep(0.02)
        await peer.send(last)


@pytest.mark.parametrize("cells", LAST)
async def test_the_next_borrower_reads_nothing_of_an_answer_that_was_left(
    server: Server, make_pool: MakePool, cells: list[str]
) -> None:
    server.handler = lambda peer: answers_in_parts(peer, a_message(code(cells[-1])))
    pool = make_pool(**settings(cells) | {"max_connections": 1, "acquire_timeout": 10.0})
    async with pool.get_connection() as connection:
        await connection.send("first")
        assert await connection.recv() == "first 1"
    async with pool.get_connection() as connection:
        await connection.send("second")
        assert await connection.recv() == "second 1"
    assert len(server.peers) == 1


async def speaks(peer: Peer) -> None:
    """Speak what it is told to until `Clear`, and end nothing that was cleared by `Flushed`."""
    async for message in peer:
        if message == '{"type": "Clear"}':
            await peer.send('{"type": "Cleared"}')
        else:
            await peer.send(b"audio")


async def test_an_answer_that_deepgram_is_told_to_clear_costs_a_round_trip(
    server: Server, make_pool: MakePool
) -> None:
    server.handler = speaks
    pool = make_pool(**settings(provider("Deepgram")))
    async with pool.get_connection() as connection:
        await connection.send_json({"type": "Speak", "text": "hello"})
        assert await connection.recv() == b"audio"
        await connection.send_json({"type": "Clear"})
    await until(lambda: pool.available_connections, "it is clean long before drain_timeout")
    assert len(server.peers) == 1


@pytest.mark.parametrize("name", ["OpenAI Realtime", "Gemini Live"])
async def test_one_conversation_to_a_connection_has_a_spare_that_is_open(
    server: Server, make_pool: MakePool, name: str
) -> None:
    async def greet(peer: Peer) -> None:
        await peer.send(f"session {peer.number}")
        await echo(peer)

    server.handler = greet
    pool = make_pool(**settings(provider(name)))
    await pool.start()
    async with pool.get_connection() as connection:
        assert await connection.recv() == "session 2"
        assert await echoes(connection)
        await until(lambda: pool.available_connections == 2, "it is replaced before anybody asks")
    assert pool.available_connections == 2
    assert len(server.peers) == 3


@pytest.mark.parametrize(("name", "a_second"), [("Binance", 1), ("OKX", 3), ("Coinbase", 8)])
async def test_dials_come_no_faster_than_the_provider_takes_them(
    server: Server, make_pool: MakePool, name: str, a_second: int
) -> None:
    began: list[float] = []
    clock = asyncio.get_running_loop().time

    async def note(peer: Peer) -> None:
        began.append(clock())
        await echo(peer)

    server.handler = note
    pool = make_pool(**settings(provider(name)), warmup_connections=a_second + 2, max_connecting=50)
    await pool.start()
    await until(lambda: len(began) == a_second + 2, "all are open")
    # The first may be late, and the last is not early.
    assert began[-1] - began[0] > (a_second + 1) / a_second - 0.1
    assert pool.stats.dial_failures == 0


SHORTER = 20
"""By how much the seconds of an idle limit are shorter here."""


@pytest.mark.usefixtures("fair_clock")
@pytest.mark.parametrize(("name", "limit"), [("Deepgram", 10.0), ("OKX", 30.0)])
async def test_a_keepalive_keeps_what_the_provider_would_close(
    server: Server, make_pool: MakePool, name: str, limit: float
) -> None:
    async def impatient(peer: Peer) -> None:
        while True:
            try:
                message = await asyncio.wait_for(peer.recv(), limit / SHORTER)
            except TimeoutError:
                await peer.close(1011, "nothing was said for too long")
                return
            if "KeepAlive" not in str(message):  # Deepgram does not answer that
                await peer.send("pong" if message == "ping" else message)

    server.handler = impatient
    made = settings(provider(name))
    made["keepalive_interval"] /= SHORTER
    # With room for another, one that is being kept alive is not waited for.
    pool = make_pool(**made | {"max_connections": 1, "cleanup_interval": 0.02})
    await pool.release(await pool.acquire())
    await until(lambda: len(server.received) >= 3, "it was kept alive for a while")
    async with pool.get_connection(timeout=10.0) as connection:
        assert await echoes(connection)
    assert len(server.peers) == 1


async def test_elevenlabs_is_asked_to_wait_longer(server: Server, make_pool: MakePool) -> None:
    pool = make_pool(**settings(provider("ElevenLabs")))
    await pool.release(await pool.acquire())
    assert server.requests[0].query["inactivity_timeout"] == "180"


async def test_a_go_away_closes_an_idle_connection(server: Server, make_pool: MakePool) -> None:
    pool = make_pool(drain_condition=settings(provider("Gemini"))["drain_condition"])
    await pool.release(await pool.acquire())
    await server.peers[0].send('{"goAway": {"timeLeft": "60s"}}')
    await until(lambda: not pool.total_connections, "it is closed before anybody gets it")


@pytest.mark.parametrize("cells", PROVIDERS)
def test_each_provider_has_a_source(cells: list[str]) -> None:
    found = re.fullmatch(r"\[.+\]\[(\w+)\]", cells[0])
    assert found
    text = (DOCS / "providers.md").read_text(encoding="utf-8")
    assert re.search(rf"^\[{found[1]}\]: https://", text, re.MULTILINE)


async def test_of_several_keys_one_that_is_revoked_costs_no_caller_anything() -> None:
    async with (
        Server() as server,
        NAMES["pools_of_keys"](
            "openai", ["canary-1", "canary-2", "canary-3"], uri=server.uri, max_connections=6
        ) as pools,
    ):
        server.refuse(401)
        for _ in range(6):
            async with pools.get_connection() as connection:
                assert await echoes(connection)
        out = [member for member in pools.snapshot().members if not member.is_in]
        assert len(out) == 1
        assert "401" in out[0].why
        assert out[0].pool.name.startswith("openai key ")
        async with pools.get_connection("key 2") as connection:
            assert connection.headers["Authorization"] == "Bearer canary-2"
        assert "canary" not in repr(pools)
