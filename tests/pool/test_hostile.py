"""Servers that keep to no rule: each costs its own connections, and nobody else anything.

What each attack costs, and what is left afterwards, `tests/explore/attacks.py` measures.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.conftest import MakePool, echoes, until
from tests.pool.test_attending import traced
from tests.support.inside import link_of, queues_of, wire_of
from wspool import CloseReason, ConnectionBusyError, ConnectionClosedError, WebsocketConnection
from wspool._connection.aiohttp_internals import WOULD_BLOCK, is_congested, step
from wspool._connection.wire import MAX_INBOX_BYTES
from wspool.testing import Peer, Server


class Panic(BaseException):
    """Of a Rust extension, or gevent's Timeout: no Exception, and no end of the program."""


# A peer that does not read.

PONG_BYTES = 131


async def ping_and_read_nothing(peer: Peer) -> None:
    await peer.recv()
    peer.mute()
    assert peer.request.transport is not None
    sock = peer.request.transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    while True:
        for _ in range(200):
            await peer.websocket.ping(b"?" * 125)
        await asyncio.sleep(0)


async def in_recv(connection: WebsocketConnection) -> None:
    await connection.recv()


async def in_ping(connection: WebsocketConnection) -> None:
    await connection.ping()


async def asleep(connection: WebsocketConnection) -> None:
    await asyncio.sleep(60.0)


@pytest.mark.parametrize("hold", [in_recv, in_ping, asleep, None])
async def test_no_pong_is_written_to_a_peer_that_does_not_read(
    server: Server,
    make_pool: MakePool,
    hold: Callable[[WebsocketConnection], Awaitable[None]] | None,
) -> None:
    """Whoever reads, no more waits to be sent than the pong that was one too many."""
    server.handler = ping_and_read_nothing
    pool = make_pool(max_connections=1)
    connection = await pool.acquire()
    wire = wire_of(connection)
    transport: Any = wire.transport._transport
    transport.set_write_buffer_limits(high=1000)
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    await connection.send("begin")
    holding = asyncio.create_task(hold(connection)) if hold is not None else None
    if hold is None:
        await pool.release(connection)
    await until(lambda: is_congested(wire.websocket), "the peer takes no more", within=30.0)
    await asyncio.sleep(0.6)  # for the upkeep to come by, which reads on
    assert transport.get_write_buffer_size() <= 1000 + PONG_BYTES
    await pool.close_all()
    if holding is not None:
        holding.cancel()
        await asyncio.wait({holding})
        assert holding.cancelled() or isinstance(holding.exception(), ConnectionClosedError)
    assert not pool.connections


async def test_a_future_that_was_given_up_can_be_awaited_by_others() -> None:
    """As aiohttp's, that all wait for who write to a peer which does not read."""
    shared = asyncio.get_running_loop().create_future()

    async def write() -> str:
        await shared
        return "written"

    assert step(write()) is WOULD_BLOCK
    assert step(write()) is WOULD_BLOCK
    writing = asyncio.create_task(write())
    await asyncio.sleep(0)
    assert step(write()) is WOULD_BLOCK
    shared.set_result(None)
    assert await writing == "written"


# A flood.


async def flood(peer: Peer) -> None:
    await peer.flood(itertools.repeat(bytes(100_000)))


async def test_a_ping_beside_an_endless_flood_fails_and_what_is_kept_is_bounded(
    server: Server, make_pool: MakePool
) -> None:
    server.handler = flood
    pool = make_pool(max_connections=1)
    async with pool.get_connection() as connection:
        for _ in range(3):
            async with asyncio.timeout(30.0):
                with pytest.raises(ConnectionBusyError, match="be in recv meanwhile"):
                    await connection.ping()
            assert wire_of(connection).inbox_bytes <= MAX_INBOX_BYTES + 2 * 100_000
    await pool.close_all()


async def test_a_check_of_a_connection_that_is_flooded_keeps_no_more_than_a_ping_does(
    server: Server, make_pool: MakePool
) -> None:
    """Before the first loan what comes may be a greeting, which is kept."""
    size = 1024 * 1024

    async def flood_before_the_pong(peer: Peer) -> None:
        frame = await peer.websocket.receive()
        await peer.flood([bytes(size)] * 40)
        await peer.websocket.pong(frame.data)
        await peer.websocket.receive()

    server.handler = flood_before_the_pong
    server.websocket_options["autoping"] = False
    pool = make_pool(max_connections=1, warmup_connections=1, check_after_idle=0.0)
    await pool.start()
    with traced() as memory:
        connection = await pool.acquire(timeout=10.0)  # this one, or another if the pong is late
        _, peak = memory()
    assert peak < 12 * size
    await pool.release(connection)
    await pool.close_all()


@pytest.mark.parametrize("frame", ["ping", "pong"])
async def test_a_recv_beside_endless_pings_lets_others_work(
    server: Server, make_pool: MakePool, frame: str
) -> None:
    """None is a message that the recv would end with, and each turn of the loop has its end."""

    async def annoy(peer: Peer) -> None:
        while True:
            for _ in range(500):
                await getattr(peer.websocket, frame)(b"?")
            await asyncio.sleep(0)

    async with Server() as other:
        server.handler = annoy
        pool, quiet = make_pool(), make_pool(uri=other.uri)
        async with pool.get_connection() as annoyed, quiet.get_connection() as connection:
            receiving = asyncio.create_task(annoyed.recv())
            for number in range(20):
                async with asyncio.timeout(10.0):
                    assert await echoes(connection, f"message {number}")
            assert not receiving.done()
            receiving.cancel()
            await asyncio.wait({receiving})
        await pool.close_all()


async def test_a_peer_that_answers_a_close_with_a_flood_is_cut_off(
    server: Server, make_pool: MakePool
) -> None:
    """After as much as a server may have had under way, and long before `close_timeout`."""

    async def flood_the_close(peer: Peer) -> None:
        await peer.websocket.receive()
        transport: Any = peer.request.transport
        while not transport.is_closing():
            transport.write(b"\x81\x01x" * 20)
            await asyncio.sleep(0.002)

    server.handler = flood_the_close
    server.websocket_options["autoclose"] = False
    pool = make_pool(warmup_connections=3, close_timeout=60.0)
    await pool.start()
    async with asyncio.timeout(20.0):
        await pool.close_all()


# Callables of users that raise what is no Exception.


def on_drained(*_: object) -> None:
    raise Panic("on purpose")


async def a_hook(connection: WebsocketConnection) -> None:
    raise Panic("on purpose")


CALLABLES: list[dict[str, Any]] = [
    {"on_drained": on_drained},
    {"drain_condition": on_drained},
    {"control": on_drained},
    {"drain_until": on_drained},
    {"on_release": a_hook},
    {"on_close": a_hook},
    {"keepalive": a_hook, "keepalive_interval": 0.05},
]


@pytest.mark.parametrize("options", CALLABLES, ids=lambda options: str(next(iter(options))))
async def test_what_is_no_exception_costs_a_connection_and_neither_a_place_nor_the_upkeep(
    server: Server, make_pool: MakePool, options: dict[str, Any]
) -> None:
    """Raised for a message that comes to an idle connection, and for one after a release."""
    peers: deque[Peer] = deque()

    async def greet(peer: Peer) -> None:
        peers.append(peer)
        async for message in peer:
            await peer.send(message)
            await peer.send("one more")

    server.handler = greet
    pool = make_pool(max_connections=1, check_server_data_on_release=True, **options)
    for _ in range(3):
        connection = await pool.acquire(timeout=10.0)
        try:
            await connection.send("hello")
            await connection.recv()
        except ConnectionClosedError:
            pass  # what `control` raised has cost it
        await pool.release(connection)
        await until(lambda: not queues_of(pool).draining, "the drain has ended")
        if queues_of(pool).idle:
            await peers[-1].send("to nobody")
        (router,) = [pool._router]
        assert router.tasks
        assert pool._upkeep_task is not None
        assert not pool._upkeep_task.done()
    await asyncio.sleep(0.6)
    await until(lambda: not queues_of(pool).closed, "what was closed is gone")
    assert not pool._upkeep_task.done()
    await pool.close_all()
    assert not pool.connections


async def test_a_peer_whose_tcp_is_half_closed_is_lost(server: Server, make_pool: MakePool) -> None:
    async def half_close(peer: Peer) -> None:
        transport = peer.request.transport
        assert isinstance(transport, asyncio.Transport)
        transport.write_eof()
        await asyncio.sleep(60.0)

    server.handler = half_close
    pool = make_pool(warmup_connections=2)
    await pool.start()
    links = [link_of(view) for view in pool.connections]
    await until(lambda: not pool.available_connections, "both are lost")
    assert {link.moves[-1][2] for link in links} <= {CloseReason.SERVER}
    await pool.close_all()
