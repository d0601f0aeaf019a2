"""What nobody reads is attended: at length, at full speed, and whatever the server is made with.

Servers with impatient pings run in the test's own event loop, for ten seconds in all. Those that
flood run in a process of their own: their memory is not counted, and they take no turns in the
event loop that they are to freeze.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import socket
import struct
import sys
import tracemalloc
import weakref
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType
from websockets.asyncio.server import ServerConnection, serve

from tests import IS_WHOLE
from tests.conftest import MakePool, echoes, until
from tests.support.inside import ids_of, link_of, queues_of, wire_of
from tests.support.strangers import uvicorn_with
from wspool import (
    CloseReason,
    ConnectionBusyError,
    State,
    WebsocketConnection,
    WebsocketConnectionPool,
)
from wspool._connection import budget
from wspool._connection.link import Link
from wspool._connection.wire import MAX_INBOX_BYTES
from wspool._pool import upkeep
from wspool._pool.routing import Router
from wspool.testing import Peer, Server

MIB = 2**20

IMPATIENT = 0.5
"""Seconds between a server's pings, and for their pongs."""

IDLE = 20
"""Connections that lie idle."""

SECONDS = 10.0 if IS_WHOLE else 3.0
"""For which they do."""


# For ten seconds.


class Host:
    """What a server does with its clients, whatever it is made with; it counts the handshakes.

    It answers `#id` with the number of the handshake, and from `stream` on sends 0, 1, 2 … until
    `stop`, which it answers with the count of those. Anything else it takes in silence.
    """

    def __init__(self) -> None:
        self.handshakes = 0

    async def converse(
        self, messages: AsyncIterator[Any], send: Callable[[str], Awaitable[None]]
    ) -> None:
        self.handshakes += 1
        number = self.handshakes
        stopping = asyncio.Event()

        async def stream() -> None:
            count = 0
            while not stopping.is_set():
                await send(str(count))
                count += 1
                await asyncio.sleep(0.01)
            await send(f"count {count}")

        async with asyncio.TaskGroup() as group:
            async for message in messages:
                if message == "#id":
                    await send(str(number))
                elif message == "stream":
                    group.create_task(stream())
                elif message == "stop":
                    stopping.set()
            stopping.set()


@contextlib.asynccontextmanager
async def served_by_websockets(host: Host) -> AsyncIterator[str]:
    async def handle(peer: ServerConnection) -> None:
        await host.converse(aiter(peer), peer.send)

    async with serve(
        handle, "127.0.0.1", 0, ping_interval=IMPATIENT, ping_timeout=IMPATIENT
    ) as server:
        yield f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/"


@contextlib.asynccontextmanager
async def served_by_uvicorn(host: Host) -> AsyncIterator[str]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def messages() -> AsyncIterator[str]:
            while (event := await receive())["type"] == "websocket.receive":
                yield event["text"]

        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        await host.converse(
            messages(), lambda message: send({"type": "websocket.send", "text": message})
        )

    async with uvicorn_with(app, ws_ping_interval=IMPATIENT, ws_ping_timeout=IMPATIENT) as uri:
        yield uri


async def ask(connection: WebsocketConnection, message: str) -> str | bytes:
    await connection.send(message)
    return await connection.recv()


async def identities(pool: WebsocketConnectionPool, question: str) -> dict[int, str | bytes]:
    """Borrow twenty at a time and give them back; return who they are to the server."""
    connections = [await pool.acquire() for _ in range(IDLE)]
    try:
        return {connection.id: await ask(connection, question) for connection in connections}
    finally:
        for connection in connections:
            await pool.release(connection)


async def the_idle_stay(pool: WebsocketConnectionPool, question: str = "#id") -> None:
    """Twenty connections that are idle for SECONDS are the same twenty to the server."""
    before = await identities(pool, question)
    assert len(set(before.values())) == IDLE
    await asyncio.sleep(SECONDS)
    assert pool.snapshot().counts["idle"] == IDLE
    assert await identities(pool, question) == before
    assert pool.stats.dials == IDLE
    assert not pool.stats.closes
    assert pool.stats.drained_messages == 0


async def the_borrowed_stay(pool: WebsocketConnectionPool) -> None:
    """Who only sends, and who sleeps, keeps his socket and all that the server sent meanwhile."""
    async with pool.get_connection() as sender, pool.get_connection() as sleeper:
        before = [await ask(connection, "#id") for connection in (sender, sleeper)]
        for connection in (sender, sleeper):
            await connection.send("stream")
        for _ in range(60):
            await sender.send("something")
            await asyncio.sleep(0.05)
        for connection in (sender, sleeper):
            await connection.send("stop")
            received = []
            while not (message := str(await connection.recv())).startswith("count"):
                received.append(message)
            assert message == f"count {len(received)}"
            assert received == [str(number) for number in range(len(received))]
            assert len(received) > 60
        assert [await ask(connection, "#id") for connection in (sender, sleeper)] == before


@pytest.mark.usefixtures("fair_clock")
async def test_impatient_servers_cost_no_connection(
    server: Server, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pings every 0.5 s that must be answered within 0.5 s are, idle or busy, without a handshake.

    And with `heartbeat` it is the client that pings and wants an answer that somebody must read.
    """
    pongs: Counter[aiohttp.ClientWebSocketResponse] = Counter()
    pong = aiohttp.ClientWebSocketResponse.pong

    async def counting(websocket: aiohttp.ClientWebSocketResponse, *args: Any) -> None:
        pongs[websocket] += 1
        await pong(websocket, *args)

    monkeypatch.setattr(aiohttp.ClientWebSocketResponse, "pong", counting)
    hosts = Host(), Host()
    async with served_by_websockets(hosts[0]) as first, served_by_uvicorn(hosts[1]) as second:
        patient = make_pool(heartbeat=IMPATIENT)
        pools = [(make_pool(uri=uri), make_pool(uri=uri)) for uri in (first, second)]
        async with asyncio.TaskGroup() as group:
            group.create_task(the_idle_stay(patient, "#n"))
            for idle, borrowed in pools:
                group.create_task(the_idle_stay(idle))
                group.create_task(the_borrowed_stay(borrowed))
        assert [host.handshakes for host in hosts] == [IDLE + 2] * 2
        assert len(server.requests) == IDLE
        for pool in (pool for pair in pools for pool in pair):
            assert min(pongs[wire_of(connection).websocket] for connection in pool.connections) >= 4
            await pool.close_all()


# Floods.

FLOODER = """
import asyncio
from websockets.asyncio.server import serve

victims = []

async def push(victim, count, size):
    for number in range(count):
        await victim.send(number.to_bytes(4, "big").ljust(size, b"."))
        await asyncio.sleep(0)  # the others' turn

async def handle(peer):
    if peer.request.path == "/victim":
        victims.append(peer)
    async for message in peer:
        if peer.request.path == "/control":
            count, size = map(int, message.split())
            await asyncio.gather(*(push(victim, count, size) for victim in victims))
        await peer.send(message)

async def main():
    options = {"compression": None, "ping_interval": None}
    async with serve(handle, "127.0.0.1", 0, **options) as server:
        print(next(iter(server.sockets)).getsockname()[1], flush=True)
        await asyncio.get_running_loop().create_future()

asyncio.run(main())
"""
"""A server that sends to all who came to /victim what somebody at /control asks for: `COUNT SIZE`.

It echoes everything, at /control once all is sent. Each message begins with its number.
"""


@pytest.fixture
async def flooder() -> AsyncIterator[str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", FLOODER),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30.0):
            port = int(await process.stdout.readline())
        yield f"ws://127.0.0.1:{port}"
    finally:
        process.kill()
        await process.wait()


def make_victims(
    make_pool: MakePool, uri: str, count: int
) -> tuple[WebsocketConnectionPool, dict[int, list[int]]]:
    """Return a pool to be flooded, and what each connection disposed of: numbers of messages."""
    drained: defaultdict[int, list[int]] = defaultdict(list)

    def on_drained(connection: WebsocketConnection, message: Any) -> None:
        drained[connection.id].append(int.from_bytes(message[:4], "big"))

    pool = make_pool(uri=f"{uri}/victim", warmup_connections=count, on_drained=on_drained)
    return pool, drained


@contextlib.contextmanager
def traced() -> Iterator[Callable[[], tuple[int, int]]]:
    """Give a function that returns the bytes allocated since: those now, and the most so far."""
    gc.collect()
    tracemalloc.start()
    try:
        yield tracemalloc.get_traced_memory
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("count", "size", "most"),
    [
        pytest.param(1000, 100, MIB, id="1,000 messages"),
        pytest.param(160, 64 * 1024, MIB, id="10 MB in small messages"),
        pytest.param(3, 3 * MIB, 6 * MIB, id="10 MB in large messages"),
    ],
)
async def test_what_is_pushed_at_idle_connections_is_not_piled_up(
    flooder: str, make_pool: MakePool, count: int, size: int, most: int
) -> None:
    """It takes less than 1 MiB a connection, is shown once each, and reaches no borrower.

    Of a single large message that is not true while it arrives: aiohttp puts it together from its
    pieces before anybody can dispose of it, which takes up to twice its size, so that
    `max_msg_size` is the bound. Afterwards nothing of it is left.
    """
    pool, drained = make_victims(make_pool, flooder, 4)
    await pool.start()
    victims = pool.connections
    async with make_pool(uri=f"{flooder}/control").get_connection() as control:
        with traced() as memory:
            command = f"{count} {size}"
            assert await ask(control, command) == command
            await until(
                lambda: (
                    pool.stats.drained_messages >= 4 * count
                    and not any(link_of(connection).is_flooding for connection in victims)
                ),
                "all of it is disposed of",
                within=60.0,
            )
            gc.collect()
            after, peak = memory()
    assert peak < 4 * most
    assert after < 4 * MIB
    borrowed = [await pool.acquire() for _ in victims]
    assert ids_of(borrowed) == ids_of(victims)
    for connection in borrowed:
        assert await echoes(connection, f"mine {connection.id}")
        await pool.release(connection)
    assert drained == {connection.id: list(range(count)) for connection in victims}


async def test_a_server_that_never_stops_does_not_freeze_the_event_loop(
    flooder: str, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While five idle connections receive at full speed, what is dealt with between two turns of
    the event loop takes a bounded time, here that of fifty messages. And nothing piles up."""
    ticks = itertools.count()
    monkeypatch.setattr(budget, "perf_counter", lambda: next(ticks) * budget.TURN_SECONDS / 50)
    loop = asyncio.get_running_loop()
    pool, drained = make_victims(make_pool, flooder, 5)
    await pool.start()
    seen = most = 0

    def turn() -> None:
        nonlocal seen, most, turning
        disposed = sum(map(len, drained.values()))
        most, seen = max(most, disposed - seen), disposed
        turning = loop.call_soon(turn)

    turning = loop.call_soon(turn)
    try:
        async with make_pool(uri=f"{flooder}/control").get_connection() as control:
            await control.send(f"{10**9} 1000")
            await until(lambda: len(drained) == 5, "all five are flooded")
            await until(lambda: seen > 20_000, "they receive", within=60)
            # The end of one sweep and the beginning of the next may fall into one turn.
            assert most <= 2 * (50 + 5 * (budget.MIN_FRAMES + 1))
            with traced() as memory:  # afterwards, because it slows the reading
                await asyncio.sleep(0.5)
                assert memory()[1] < 5 * MIB
    finally:
        turning.cancel()
    assert pool.available_connections == 5
    assert all(numbers == list(range(len(numbers))) for numbers in drained.values())
    await pool.close_all()


# Pings of the borrower.


@contextlib.asynccontextmanager
async def pinging(
    server: Server, make_pool: MakePool, answer: Callable[[Peer, bytes], Awaitable[object]]
) -> AsyncIterator[WebsocketConnection]:
    """Borrow a connection to a server that does with each ping what a test says."""

    async def handle(peer: Peer) -> None:
        async for message in peer.websocket:
            assert message.type is WSMsgType.PING
            await answer(peer, bytes(message.data))

    server.handler = handle
    server.websocket_options["autoping"] = False
    async with asyncio.timeout(10.0), make_pool().get_connection() as connection:
        yield connection


async def test_ping_waits_for_its_own_pong(server: Server, make_pool: MakePool) -> None:
    """Neither an unsolicited pong nor that of an earlier ping is its answer."""
    pings: list[bytes] = []

    async def withhold(peer: Peer, payload: bytes) -> None:
        pings.append(payload)

    async with pinging(server, make_pool, withhold) as connection:
        first, second = (asyncio.create_task(connection.ping()) for _ in range(2))
        await until(lambda: len(pings) == 2, "both pings have arrived")
        for payload, answered in [(b"unsolicited", 0), (pings[0], 1), (pings[1], 2)]:
            await server.peers[0].websocket.pong(payload)
            await server.peers[0].send("after the pong")
            assert await connection.recv() == "after the pong"
            await asyncio.gather(*[first, second][:answered])
            assert [first.done(), second.done()] == [answered > 0, answered > 1]


async def test_a_ping_behind_more_than_the_inbox_holds_fails_and_nothing_is_lost(
    server: Server, make_pool: MakePool
) -> None:
    """Four times what is kept for a sleeper comes before the pong, and recv gives it in order."""
    size = 64 * 1024
    expected = [bytes([number]) * size for number in range(4 * MAX_INBOX_BYTES // size)]

    async def flood(peer: Peer, payload: bytes) -> None:
        await peer.flood(expected)
        await peer.websocket.pong(payload)

    async with pinging(server, make_pool, flood) as connection:
        for _ in range(2):
            with pytest.raises(ConnectionBusyError, match="be in recv meanwhile"):
                await connection.ping()
            assert [await connection.recv() for _ in expected] == expected
        last = asyncio.create_task(connection.ping())
        assert [await connection.recv() for _ in expected] == expected
        assert await last > 0


async def test_one_pong_settles_all_pings_under_way(server: Server, make_pool: MakePool) -> None:
    """A server may answer only the latest of several pings, and nobody waits for ever."""
    pings: list[bytes] = []

    async def answer_the_tenth(peer: Peer, payload: bytes) -> None:
        pings.append(payload)
        if len(pings) == 10:
            await peer.send("before the pong")
            await peer.websocket.pong(payload)

    async with pinging(server, make_pool, answer_the_tenth) as connection:
        trips = await asyncio.gather(*(connection.ping() for _ in range(10)))
        assert len(set(pings)) == 10
        assert sorted(trips, reverse=True) == trips
        assert await connection.recv() == "before the pong"


# Losses.


def lose(peer: Peer, how: str) -> None:
    """Send a CLOSE frame alone, end the TCP connection without one, or reset it."""
    transport = peer.request.transport
    assert isinstance(transport, asyncio.Transport)
    if how == "CLOSE":
        transport.write(b"\x88\x06" + struct.pack("!H", 4001) + b"away")
    elif how == "FIN":
        transport.close()
    else:
        raw = transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


@pytest.mark.parametrize("how", ["CLOSE", "FIN", "RST"])
async def test_a_loss_is_seen_by_the_first_sweep_after_it(
    server: Server, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """What a sweep finds lost is no longer idle when it ends; it takes no acquire."""
    sweep = upkeep._sweep
    seen: list[Link] = []
    overlooked: list[Link] = []

    async def watched(ref: weakref.ref[Router]) -> list[Link]:
        lost = [link for link in queues_of(pool).idle if link.has_news]
        receiving = await sweep(ref)
        seen.extend(lost)
        overlooked.extend(link for link in lost if link.state is State.IDLE)
        return receiving

    monkeypatch.setattr(upkeep, "_sweep", watched)
    pool = make_pool(warmup_connections=5)
    await pool.start()
    await until(lambda: len(server.open) == 5, "the server has all")
    for peer in server.peers[:3]:
        lose(peer, how)
    await until(lambda: len(seen) == 3, "sweeps have come by")
    assert not overlooked
    assert pool.snapshot().counts["idle"] == pool.available_connections == 2
    await until(lambda: len(pool.snapshot().gone) == 3, "the lost ones are gone")
    picture = pool.snapshot()
    assert picture.counts == {state: 2 if state is State.IDLE else 0 for state in State}
    expected = (4001, "away") if how == "CLOSE" else (1006, "")
    assert {(gone.close_code, gone.close_reason) for gone in picture.gone} == {expected}
    assert pool.stats.closes == {CloseReason.SERVER: 3}
    assert pool.stats.borrows == 0
