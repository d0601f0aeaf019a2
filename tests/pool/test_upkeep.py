"""What goes on in a pool while nobody calls: sweeps, retirement, refilling."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from aiohttp import WSMsgType
from websockets.asyncio.server import ServerConnection, serve

from tests.conftest import MakePool, echoes, until, why_closed
from tests.support.inside import ids_of, link_of, queues_of, wire_of
from wspool import (
    CloseReason,
    ConnectionPoolExhaustedError,
    State,
    WebsocketConnection,
    WebsocketConnectionPool,
)
from wspool._connection.wire import MAX_INBOX_BYTES
from wspool.testing import Peer, Server

SOON = 0.05
"""Seconds between clean-ups."""


async def borrow(pool: WebsocketConnectionPool, count: int) -> list[WebsocketConnection]:
    return [await pool.acquire() for _ in range(count)]


async def made_idle(pool: WebsocketConnectionPool, count: int = 1) -> list[WebsocketConnection]:
    """Open this many connections, use each once, and leave them idle."""
    connections = await borrow(pool, count)
    for connection in connections:
        assert await echoes(connection, "first use")
        await pool.release(connection)
    return connections


async def still_lent(
    pool: WebsocketConnectionPool, connection: WebsocketConnection
) -> WebsocketConnection:
    """Return a loan of this very connection: the one in force, or else a new one."""
    if not connection.is_busy:
        again = await pool.acquire()
        assert again.id == connection.id
        return again
    return connection


# What is too old.


async def test_idle_timeout_closes(server: Server, make_pool: MakePool) -> None:
    pool = make_pool(idle_timeout=0.1, cleanup_interval=SOON)
    connections = await made_idle(pool, 3)
    await until(lambda: not len(pool._router.queues), "all are gone")
    assert {why_closed(connection) for connection in connections} == {CloseReason.IDLE}
    assert pool.stats.closes == {"idle": 3}
    await until(lambda: not server.open, "the server has seen them go")


async def test_idle_timeout_spares_the_busy(make_pool: MakePool) -> None:
    """A connection that is lent is not idle, however little its borrower does."""
    pool = make_pool(idle_timeout=0.1, cleanup_interval=SOON)
    busy, idle = await borrow(pool, 2)
    await pool.release(idle)
    await until(lambda: idle.state is State.CLOSED, "the idle one is closed")
    assert busy.is_busy
    assert await echoes(busy, "still here")


async def test_idle_timeout_is_not_put_off_by_strays(server: Server, make_pool: MakePool) -> None:
    """What the server sends unasked is no use of the connection."""
    pool = make_pool(idle_timeout=0.3, cleanup_interval=SOON)
    [connection] = await made_idle(pool)
    link = link_of(connection)
    while connection.state is State.IDLE:
        so_far = link.drained_messages
        await server.peers[0].send("stray")
        await until(
            lambda n=so_far: link.drained_messages > n or link.state is State.CLOSED,
            "the stray is gone",
        )
    assert why_closed(connection) == CloseReason.IDLE


async def test_acquire_never_lends_what_is_too_old(make_pool: MakePool) -> None:
    """An idle connection past its time is not lent, even before a clean-up came by."""
    pool = make_pool(idle_timeout=0.05, cleanup_interval=60.0)
    [old] = await made_idle(pool)
    link = link_of(old)
    await until(lambda: link.clock() - link.idle_since > 0.05, "it is too old")
    assert old.state is State.IDLE
    assert (await pool.acquire()).id != old.id
    assert why_closed(old) == CloseReason.IDLE


async def test_max_lifetime_retires_the_idle(make_pool: MakePool) -> None:
    pool = make_pool(max_lifetime=0.2, cleanup_interval=SOON)
    connections = await made_idle(pool, 3)
    await until(lambda: not len(pool._router.queues), "all are gone")
    assert {why_closed(connection) for connection in connections} == {CloseReason.LIFETIME}


async def test_max_lifetime_is_spread(make_pool: MakePool) -> None:
    """Connections of one age are retired at different times, up to 10 % early, never late."""
    pool = make_pool(max_lifetime=1000.0)
    links = [link_of(connection) for connection in await borrow(pool, 5)]
    lifetimes = [link.retire_at - (link.opened_at or 0.0) for link in links]
    assert len(set(lifetimes)) == 5
    assert all(900.0 <= lifetime <= 1000.0 for lifetime in lifetimes)


async def test_max_lifetime_cuts_nobody_off(make_pool: MakePool) -> None:
    """A borrowed connection past its lifetime goes when it is given back."""
    pool = make_pool(max_lifetime=0.05, cleanup_interval=SOON)
    connection = await pool.acquire()
    link = link_of(connection)
    await until(lambda: link.clock() >= link.retire_at, "its time is over")
    assert await echoes(connection, "still here")
    await pool.release(connection)
    assert why_closed(connection) == CloseReason.LIFETIME


async def test_max_uses_retires_at_the_last_release(make_pool: MakePool) -> None:
    pool = make_pool(max_uses=2)
    for expected in [1, 1, 2, 2, 3]:
        async with pool.get_connection() as connection:
            assert connection.id == expected
            assert await echoes(connection, "used")
    assert pool.stats.closes == {"uses": 2}


# What is lost.


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_lost_idle_connection_leaves_without_an_acquire(
    server: Server, make_pool: MakePool, how: str
) -> None:
    """The sweep notices a CLOSE frame and a reset; no queue keeps the connection."""
    pool = make_pool()
    lost, kept = await made_idle(pool, 2)
    if how == "close":
        await server.peers[0].close(4001, "go away")
    else:
        server.peers[0].drop()
    await until(lambda: len(pool._router.queues) == 1, "the lost one is gone")
    assert why_closed(lost) == CloseReason.SERVER
    expected = (4001, "go away") if how == "close" else (1006, "")
    assert (lost.close_code, lost.close_reason) == expected
    assert link_of(lost) in queues_of(pool).gone
    assert [connection.id for connection in pool.connections] == [kept.id]


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_lost_busy_connection_is_noticed_without_a_recv(
    server: Server, make_pool: MakePool, how: str
) -> None:
    """A borrower that thinks can see from `is_connected` that his connection is lost."""
    pool = make_pool(max_connections=1)
    connection = await pool.acquire()
    assert await echoes(connection, "alive")
    if how == "close":
        await server.peers[0].close()
    else:
        server.peers[0].drop()
    await until(lambda: not connection.is_connected, "the loss is noticed")
    assert why_closed(connection) == CloseReason.SERVER
    async with pool.get_connection(timeout=10.0) as other:
        assert await echoes(other, "the place is free")
    await pool.release(connection)


# Pings of the server.


@pytest.mark.parametrize("is_busy", [False, True])
async def test_pings_of_websockets_are_answered(make_pool: MakePool, is_busy: bool) -> None:
    """A server that drops who does not answer its pings keeps a connection that nobody reads."""
    peers: list[ServerConnection] = []

    async def echo(peer: ServerConnection) -> None:
        peers.append(peer)
        async for message in peer:
            await peer.send(message)

    async with serve(echo, "127.0.0.1", 0, ping_interval=0.2, ping_timeout=0.5) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        pool = make_pool(uri=f"ws://127.0.0.1:{port}/")
        connection = await pool.acquire()
        if not is_busy:
            await pool.release(connection)
        latencies: set[float] = set()

        def has_answered() -> bool:
            latencies.add(peers[0].latency)
            return len(latencies) > 4 or not connection.is_connected

        await until(lambda: peers, "the server has it")
        await until(has_answered, "four pings are answered")
        assert connection.is_connected
        assert connection.state is (State.BUSY if is_busy else State.IDLE)
        assert await echoes(await still_lent(pool, connection), "alive")
        await pool.close_all()


@pytest.mark.parametrize("is_busy", [False, True])
async def test_pings_of_aiohttp_are_answered(
    server: Server, make_pool: MakePool, is_busy: bool
) -> None:
    """aiohttp's heartbeat waits for half its interval."""
    pongs = 0

    async def count_pongs(peer: Peer) -> None:
        nonlocal pongs
        async for message in peer.websocket:
            if message.type is WSMsgType.PONG:
                pongs += 1
            else:
                await peer.send(message.data)

    server.handler = count_pongs
    server.websocket_options |= {"heartbeat": 1.0, "autoping": False}
    pool = make_pool()
    connection = await pool.acquire()
    if not is_busy:
        await pool.release(connection)
    await until(lambda: pongs >= 3 or not connection.is_connected, "three pings are answered")
    assert connection.is_connected
    assert await echoes(await still_lent(pool, connection), "alive")


@pytest.mark.parametrize("is_busy", [False, True])
async def test_heartbeat_notices_a_peer_that_went_mute(
    server: Server, make_pool: MakePool, is_busy: bool
) -> None:
    """With aiohttp's own heartbeat a dead peer is noticed though nobody reads."""
    pool = make_pool(heartbeat=0.2)
    connection = await pool.acquire()
    assert await echoes(connection, "alive")
    if not is_busy:
        await pool.release(connection)
    server.peers[0].mute()
    await until(lambda: connection.state is State.CLOSED, "the loss is noticed")
    assert why_closed(connection) == CloseReason.SERVER
    server.peers[0].unmute()


# What arrives while nobody reads.


async def test_a_sleeping_borrowers_messages_are_kept_in_order(
    server: Server, make_pool: MakePool
) -> None:
    """Messages that a sweep reads ahead come out of recv first, and in the order of arrival."""
    pool = make_pool()
    connection = await pool.acquire()
    assert await echoes(connection, "awake")
    for number in range(100):
        await server.peers[0].send(f"{number}")
    await until(lambda: wire_of(connection).received_messages == 101, "a sweep has read them")
    last_activity = connection.last_activity
    for number in range(100, 200):
        await server.peers[0].send(f"{number}")
    assert [await connection.recv() for _ in range(200)] == [f"{n}" for n in range(200)]
    assert connection.last_activity > last_activity
    assert pool.stats.drained_messages == 0


async def test_messages_before_a_close_reach_a_sleeping_borrower(
    server: Server, make_pool: MakePool
) -> None:
    """The close that a sweep has seen comes out of `async for` behind the messages before it."""
    pool = make_pool()
    connection = await pool.acquire()
    assert await echoes(connection, "awake")
    for message in ("one", "two"):
        await server.peers[0].send(message)
    await server.peers[0].close()
    await until(lambda: not connection.is_connected, "a sweep has seen the close")
    assert [message async for message in connection] == ["one", "two"]


async def test_what_is_kept_for_a_sleeping_borrower_is_bounded(
    server: Server, make_pool: MakePool
) -> None:
    """At the size of the inbox reading stops, the server has to wait, and nothing is lost."""
    total, size = 400, 64 * 1024
    sent = 0

    async def flood(peer: Peer) -> None:
        nonlocal sent
        await peer.recv()
        for number in range(total):
            await peer.send(number.to_bytes(4, "big") * (size // 4))
            sent += 1
        await peer.recv()

    server.handler = flood
    pool = make_pool()
    connection = await pool.acquire()
    await connection.send("go")
    wire = wire_of(connection)
    await until(lambda: wire.is_flooded, "reading has stopped at aiohttp's queue")
    await until(lambda: wire.received_messages * size >= MAX_INBOX_BYTES, "the inbox is full")
    await until(lambda: wire.is_flooded, "reading has stopped behind the inbox")
    kept = wire.received_messages
    assert kept * size <= MAX_INBOX_BYTES + size
    assert sent < total
    for number in range(total):
        assert await connection.recv() == number.to_bytes(4, "big") * (size // 4)
    assert wire.received_messages == sent == total


async def test_tiny_messages_fill_the_inbox_too(server: Server, make_pool: MakePool) -> None:
    """Each message counts with its overhead, so that a flood of empty ones is bounded."""
    total = 3 * MAX_INBOX_BYTES // 128

    async def flood(peer: Peer) -> None:
        await peer.recv()
        await peer.flood([""] * total)
        await peer.recv()

    server.handler = flood
    pool = make_pool()
    connection = await pool.acquire()
    await connection.send("go")
    wire = wire_of(connection)
    await until(lambda: wire.received_messages * 128 >= MAX_INBOX_BYTES, "the inbox is full")
    assert wire.received_messages == MAX_INBOX_BYTES // 128
    for _ in range(total):
        assert await connection.recv() == ""


async def flood_or_echo(peer: Peer) -> None:
    """Answer each message with itself, and `flood` with 10 MB behind that."""
    async for message in peer:
        await peer.send(message)
        if message == "flood":
            await peer.flood([bytes(64 * 1024)] * 160)


async def test_a_flood_at_an_idle_connection_is_disposed_of(
    server: Server, make_pool: MakePool
) -> None:
    """10 MB that nobody asked for are read and gone, and the next one reads only his reply."""
    server.handler = flood_or_echo
    pool = make_pool(max_connections=1)
    async with pool.get_connection() as connection:
        assert await echoes(connection, "flood")
    await until(lambda: pool.stats.drained_messages == 160, "all of it is drained")
    await until(lambda: not link_of(connection).is_flooding, "a look finds nothing more")
    assert connection.state is State.IDLE
    async with pool.get_connection() as again:
        assert again.id == connection.id
        assert await echoes(again, "mine")


async def test_a_connection_is_not_lent_in_the_middle_of_a_flood(
    server: Server, make_pool: MakePool
) -> None:
    """Where more is still to come, the connection is given up for a new one."""
    server.handler = flood_or_echo
    pool = make_pool(max_connections=1, acquire_timeout=10.0)
    async with pool.get_connection() as connection:
        assert await echoes(connection, "flood")
        await until(lambda: wire_of(connection).is_flooded, "more is coming than is read")
    async with pool.get_connection() as other:
        assert await echoes(other, "mine")


async def test_what_a_sweep_left_of_a_flood_reaches_no_borrower(
    server: Server, make_pool: MakePool
) -> None:
    """An acquire in the tick of a sweep does not mistake the emptied queue for the end of it."""
    pool = make_pool(max_connections=1, acquire_timeout=10.0)
    async with pool.get_connection() as connection:
        assert await echoes(connection, "awake")
    assert pool._upkeep_task is not None
    pool._upkeep_task.cancel()  # its sweep is made by hand below
    peer = server.peers[0]

    async def flood() -> None:
        with contextlib.suppress(ConnectionError):
            await peer.flood([bytes(64 * 1024)] * 160)

    flooding = asyncio.create_task(flood())
    await until(lambda: wire_of(connection).is_flooded, "more is coming than is read")
    pool._router.attending.attend(link_of(connection))
    async with pool.get_connection() as other:
        assert await echoes(other, "mine")
    await pool.close_all()
    await flooding


# What is to be there.


@pytest.mark.usefixtures("no_backoff")
async def test_min_connections_are_opened_and_kept(make_pool: MakePool) -> None:
    """start() opens them, and idle_timeout leaves them alone, but not those beyond."""
    pool = make_pool(min_connections=2, idle_timeout=0.1, cleanup_interval=SOON)
    await pool.start()
    assert pool.available_connections == 2
    await made_idle(pool, 4)
    await until(lambda: pool.total_connections == 2, "the surplus is gone")
    assert pool.stats.closes == {"idle": 2}
    now = pool._router.clock()
    oldest = max(now - link.idle_since for link in queues_of(pool))
    await until(lambda: pool._router.clock() - now > 0.3 - oldest, "the rest is too old as well")
    assert pool.total_connections == 2
    assert pool.stats.dials == 4


@pytest.mark.usefixtures("no_backoff")
async def test_min_connections_are_refilled(server: Server, make_pool: MakePool) -> None:
    """After losses and after an outage they come back without an acquire."""
    pool = make_pool(min_connections=3, cleanup_interval=SOON, max_retries=1)
    old = await made_idle(pool, 3)
    server.peers[0].drop()
    await until(lambda: pool.stats.dials == 4, "one loss is one dial")
    await until(lambda: pool.available_connections == 3, "it is replaced")
    await server.stop()
    await until(lambda: pool.stats.dial_failures, "a dial has failed")
    await server.start()
    await until(lambda: pool.available_connections == 3, "they are back")
    assert ids_of(old).isdisjoint(ids_of(pool.connections))
    for connection in await borrow(pool, 3):
        assert await echoes(connection, "alive")


async def test_max_lifetime_and_min_connections_go_together(make_pool: MakePool) -> None:
    """What is retired is replaced."""
    pool = make_pool(min_connections=2, max_lifetime=0.3, cleanup_interval=SOON)
    await pool.start()
    await until(lambda: pool.stats.closes["lifetime"] >= 4, "two generations have gone")
    await until(lambda: pool.available_connections == 2, "they are replaced")


# Changes under way.


async def test_expired_connections_go(make_pool: MakePool) -> None:
    """Idle ones at once, busy ones when they come back; new ones stay."""
    pool = make_pool()
    busy, idle, other = await borrow(pool, 3)
    await pool.release(idle)
    await pool.release(other)
    pool.expire_connections()
    assert {why_closed(idle), why_closed(other)} == {CloseReason.EXPIRED}
    assert await echoes(busy, "undisturbed")
    fresh = await pool.acquire()
    assert fresh.id == 4
    await pool.release(busy)
    assert why_closed(busy) == CloseReason.EXPIRED
    await pool.release(fresh)
    assert fresh.state is State.IDLE


async def test_a_dial_that_has_expired_is_replaced_for_its_waiter(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool()
    server.delay = 0.05
    acquiring = asyncio.create_task(pool.acquire())
    await until(lambda: server.requests, "the handshake has begun")
    pool.expire_connections()
    connection = await acquiring
    assert connection.id == 2
    assert pool.stats.closes == {"expired": 1}
    assert await echoes(connection, "new")


async def test_expired_connections_are_refilled(make_pool: MakePool) -> None:
    pool = make_pool(min_connections=2, cleanup_interval=SOON)
    await pool.start()
    pool.expire_connections()
    assert pool.available_connections == 0
    await until(lambda: pool.available_connections == 2, "they are replaced")
    assert ids_of(queues_of(pool).idle) == {3, 4}


async def test_a_draining_connection_expires_too(make_pool: MakePool) -> None:
    pool = make_pool(check_server_data_on_release=True, drain_quiet_period=0.05)
    connection = await pool.acquire()
    await pool.release(connection)
    assert connection.is_draining
    pool.expire_connections()
    await until(lambda: connection.state is State.CLOSED, "the drain has ended")
    assert why_closed(connection) == CloseReason.EXPIRED


async def test_resize_up_serves_those_who_wait(server: Server, make_pool: MakePool) -> None:
    pool = make_pool(max_connections=1)
    await pool.acquire()
    waiting = [asyncio.create_task(pool.acquire(timeout=10.0)) for _ in range(2)]
    await until(lambda: pool.waiters == 2, "both wait")
    pool.resize(3)
    assert {connection.id for connection in await asyncio.gather(*waiting)} == {2, 3}
    with pytest.raises(ConnectionPoolExhaustedError):
        await pool.acquire()
    assert server.most_open == 3


async def test_resize_down_closes_the_longest_idle(make_pool: MakePool) -> None:
    pool = make_pool(max_connections=4)
    first, *_, last = connections = await made_idle(pool, 4)
    pool.resize(1)
    assert pool.connections[0].id == last.id
    assert (pool.available_connections, why_closed(first)) == (1, CloseReason.ROOM)
    assert pool.stats.closes == {"room": 3}
    await until(lambda: list(queues_of(pool)) == [link_of(last)], "the sockets are gone")
    assert [connection.id for connection in pool.connections] == [last.id]
    assert all(connection.state is State.CLOSED for connection in connections[:3])


async def test_resize_below_the_busy_cuts_nobody_off(server: Server, make_pool: MakePool) -> None:
    """The surplus closes at release, and no more are dialled until there is room."""
    pool = make_pool(max_connections=3)
    connections = await borrow(pool, 3)
    pool.resize(1)
    for connection in connections:
        assert await echoes(connection, "undisturbed")
    with pytest.raises(ConnectionPoolExhaustedError):
        await pool.acquire()
    for connection in connections:
        await pool.release(connection)
        link = link_of(connection)
        await until(lambda link=link: link not in queues_of(pool).closed, "its socket is gone")
    assert [connection.id for connection in pool.connections] == [connections[2].id]
    assert pool.stats.closes == {"room": 2}
    assert len(server.requests) == 3


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, None])
async def test_resize_takes_whole_numbers_from_1(make_pool: MakePool, wrong: Any) -> None:
    pool = make_pool(max_connections=2)
    with pytest.raises((TypeError, ValueError), match="max_connections"):
        pool.resize(wrong)
    assert pool.snapshot().max_connections == 2


# What it costs.


async def test_there_is_one_task_for_the_pool_and_none_per_connection(
    make_pool: MakePool,
) -> None:
    """Idle and busy connections are attended by the pool's one task."""
    pool = make_pool(warmup_connections=20)
    await pool.start()
    assert pool.available_connections == 20
    assert len(pool._router.tasks) == 1
    for connection in await borrow(pool, 10):
        assert await echoes(connection, "busy")
    assert (pool.busy_connections, len(pool._router.tasks)) == (10, 1)


async def test_a_pool_that_was_dropped_is_not_kept_alive_by_its_upkeep(server: Server) -> None:
    """The task holds the pool weakly: the warning comes, and the task ends."""
    pool = WebsocketConnectionPool(uri=server.uri)
    await pool.start()
    assert pool._session.opened is not None
    await pool._session.opened.close()  # its own warning is not what is tested here
    tasks = set(pool._router.tasks)
    with pytest.warns(ResourceWarning, match="dropped without being closed"):
        del pool
    await until(lambda: all(task.done() for task in tasks), "the upkeep has ended")
