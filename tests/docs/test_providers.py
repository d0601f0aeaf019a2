"""What `docs/providers.md` advises can be given to a pool, and does what it says."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.conftest import MakePool, echoes, until
from tests.support.pages import DOCS, code, python, rows
from wspool import WebsocketConnectionPool
from wspool.testing import Peer, Server

NAMES: dict[str, Any] = {}
exec(python("providers.md"), NAMES)

PROVIDERS = [pytest.param(cells, id=cells[0]) for cells in rows("providers.md", "last message")]
LAST = [
    pytest.param(cells, id=cells[0]) for cells in rows("providers.md", "last message") if cells[-1]
]


def settings(cells: list[str]) -> dict[str, Any]:
    made: dict[str, Any] = eval(f"dict({code(cells[1])})", NAMES)
    return made


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


@pytest.mark.parametrize("cells", LAST)
async def test_a_connection_is_clean_at_the_last_message(
    server: Server, make_pool: MakePool, cells: list[str]
) -> None:
    wanted = {"drain_until", "drain_timeout", "drain_quiet_period"}
    made = {name: value for name, value in settings(cells).items() if name in wanted}
    pool = make_pool(**made)
    async with pool.get_connection() as connection:
        assert await echoes(connection, "a part of the answer")
        await connection.send(a_message(code(cells[-1])))
    await until(lambda: pool.available_connections, "it came, and the connection is clean")


async def test_a_go_away_closes_an_idle_connection(server: Server, make_pool: MakePool) -> None:
    [gemini] = [param.values[0] for param in PROVIDERS if "Gemini" in str(param.id)]
    pool = make_pool(drain_condition=settings(gemini)["drain_condition"])
    await pool.release(await pool.acquire())
    await server.peers[0].send('{"goAway": {"timeLeft": "60s"}}')
    await until(lambda: not pool.total_connections, "it is closed before anybody gets it")


@pytest.mark.parametrize("provider", ["Deepgram", "OKX"])
async def test_a_keepalive_leaves_the_connection_clean(
    server: Server, make_pool: MakePool, provider: str
) -> None:
    [cells] = [param.values[0] for param in PROVIDERS if provider in str(param.id)]

    async def answer(peer: Peer) -> None:
        async for message in peer.websocket:
            peer.received.append(message.data)
            if "KeepAlive" not in message.data:  # Deepgram does not answer that
                await peer.send(message.data)

    server.handler = answer
    pool = make_pool(keepalive=settings(cells)["keepalive"], keepalive_interval=0.05)
    await pool.release(await pool.acquire())
    await until(lambda: server.peers[0].received, "the keepalive was sent")
    [said] = set(server.peers[0].received)
    assert said in ('{"type": "KeepAlive"}', "ping")
    async with pool.get_connection(timeout=10) as connection:
        assert await echoes(connection)
    assert len(server.peers) == 1


@pytest.mark.parametrize("cells", PROVIDERS)
def test_each_provider_has_a_source(cells: list[str]) -> None:
    found = re.fullmatch(r"\[.+\]\[(\w+)\]", cells[0])
    assert found
    text = (DOCS / "providers.md").read_text(encoding="utf-8")
    assert re.search(rf"^\[{found[1]}\]: https://", text, re.MULTILINE)
