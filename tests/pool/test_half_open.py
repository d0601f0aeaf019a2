"""Peers that vanish without a FIN, and each of the means by which that is noticed.

A peer vanishes in two ways: behind a proxy that stops forwarding and keeps its sockets open, as a
network does that has lost a host; and as a process that is stopped, whose kernel goes on taking
connections and bytes. In both nothing tells the client: only its own waiting can.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Protocol

import pytest

from tests import ROOT
from tests.conftest import MakePool, echoes, until
from tests.support.inside import ids_of, link_of
from tests.support.proxy import Proxy
from wspool import (
    CloseReason,
    ConnectionClosedError,
    ConnectionDrainTimeoutError,
    ConnectionPoolTimeoutError,
    ConnectionUnavailableError,
    State,
    WebsocketConnection,
    WebsocketConnectionPool,
)
from wspool.testing import Server

HEARTBEAT = 0.4
"""Short enough to wait for, long enough for a busy machine to answer in half of it."""

FAR_OFF = 3600.0
"""What would take this long has not happened in a test."""

NET = 20.0
"""A time limit that only a fault reaches."""

SERVER = """
import asyncio, sys
from wspool.testing import Server

async def main():
    server = Server()
    server.port = int(sys.argv[1])
    async with server:
        print(server.port, flush=True)
        await asyncio.to_thread(sys.stdin.read)  # until whoever started this is gone

asyncio.run(main())
"""


class Process:
    """A WebSocket server that echoes, in a process of its own."""

    def __init__(self, port: int = 0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def stop(self) -> None:
        self._process.send_signal(signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


class Peer(Protocol):
    """A server that can vanish; `port` is where its first connections go."""

    port: int

    def uri(self) -> str:
        """Return what to dial now."""

    async def vanish(self, *, is_replaced: bool = False) -> None:
        """Fall silent. If it is replaced, who connects from now on gets an answer."""

    async def come_back(self) -> None: ...


class Proxied:
    """The test's own server, behind a proxy that freezes."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.port = proxy.port

    def uri(self) -> str:
        return f"ws://127.0.0.1:{self.port}/"

    async def vanish(self, *, is_replaced: bool = False) -> None:
        await self.proxy.freeze("forward" if is_replaced else "hold")

    async def come_back(self) -> None:
        await self.proxy.thaw()


class Stopped:
    """A process that is stopped. Its replacement is another server, at another address."""

    def __init__(self, process: Process, replacement: Server) -> None:
        self._process, self._replacement = process, replacement
        self._is_replaced = False
        self.port = process.port

    def uri(self) -> str:
        return self._replacement.uri if self._is_replaced else f"ws://127.0.0.1:{self.port}/"

    async def vanish(self, *, is_replaced: bool = False) -> None:
        self._process.stop()
        self._is_replaced = is_replaced

    async def come_back(self) -> None:
        self._process.resume()
        self._is_replaced = False


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a connection for mute in a tenth of a second."""
    monkeypatch.setattr("wspool._pool.errands.CHECK_SECONDS", 0.1)


@pytest.fixture
def waits() -> Sequence[float]:
    """Dial again after a failure in a tenth of a second."""
    return (0.1,)


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    process = Process()
    yield process
    process.kill()


@pytest.fixture
async def proxy(server: Server) -> AsyncIterator[Proxy]:
    async with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture(params=["proxy", "process"])
async def peer(request: pytest.FixtureRequest, server: Server) -> AsyncIterator[Peer]:
    if request.param == "proxy":
        async with Proxy(server.port) as proxy:
            yield Proxied(proxy)
    else:
        stopped = Stopped(request.getfixturevalue("process"), server)
        yield stopped
        await stopped.come_back()


def sockets_to(port: int) -> int:
    """Count the sockets of this process that are connected to the port."""
    count = 0
    for number in map(int, os.listdir("/dev/fd")):
        with contextlib.suppress(OSError):
            a_socket = socket.socket(fileno=number)
            try:
                if a_socket.family == socket.AF_INET:
                    count += a_socket.getpeername()[1] == port
            finally:
                a_socket.detach()
    return count


async def borrow(pool: WebsocketConnectionPool, count: int) -> list[WebsocketConnection]:
    """Borrow this many connections at a time; each of them works."""
    async with asyncio.timeout(NET):
        lent = await asyncio.gather(*(pool.acquire(timeout=None) for _ in range(count)))
        assert all(await asyncio.gather(*(echoes(connection) for connection in lent)))
    return lent


async def made_idle(pool: WebsocketConnectionPool, count: int) -> list[WebsocketConnection]:
    """Open this many connections, use them and leave them idle."""
    connections = await borrow(pool, count)
    for connection in connections:
        await pool.release(connection)
    assert pool.available_connections == count
    idle_since = link_of(connections[-1]).idle_since
    await until(lambda: pool._router.clock() > idle_since, "uvloop's clock, of milliseconds, is on")
    return connections


def why_closed(*connections: WebsocketConnection) -> set[str]:
    return {
        connection.history[-1].why if connection.state is State.CLOSED else str(connection.state)
        for connection in connections
    }


def are_closed(*connections: WebsocketConnection) -> bool:
    return all(connection.state is State.CLOSED for connection in connections)


# Nothing is set.


async def test_a_vanished_peer_is_not_noticed_by_itself(peer: Peer, make_pool: MakePool) -> None:
    """Without any of the settings a connection is lent that nobody answers on."""
    pool = make_pool(uri=peer.uri)
    [connection] = await made_idle(pool, 1)
    await peer.vanish()
    again = await pool.acquire()
    assert again.id == connection.id
    await again.send("anybody there?")
    assert again.is_connected
    await peer.come_back()
    assert await again.recv() == "anybody there?"


async def test_a_process_that_is_killed_is_noticed_by_itself(make_pool: MakePool) -> None:
    """Its kernel says so, idle or busy; one that was only stopped is killed, then started again."""
    mortal = Process()
    try:
        pool = make_pool(uri=f"ws://127.0.0.1:{mortal.port}/", max_connections=2)
        idle, busy = await borrow(pool, 2)
        await pool.release(idle)
        mortal.stop()
        mortal.kill()
        await until(lambda: are_closed(idle, busy), "both are found lost")
        assert why_closed(idle, busy) == {CloseReason.SERVER}
        await pool.release(busy)
        mortal = Process(mortal.port)
        await borrow(pool, 2)
        await pool.close_all()
    finally:
        mortal.kill()


# A heartbeat.


async def test_a_heartbeat_finds_idle_connections_lost_without_an_acquire(
    peer: Peer, make_pool: MakePool
) -> None:
    pool = make_pool(uri=peer.uri, heartbeat=HEARTBEAT)
    connections = await made_idle(pool, 3)
    borrows = pool.stats.borrows
    await peer.vanish()
    await until(lambda: not pool.connections, "they are gone")
    assert why_closed(*connections) == {CloseReason.SERVER}
    assert sockets_to(peer.port) == 0
    assert (pool.stats.dials, pool.stats.borrows) == (3, borrows)


async def test_a_heartbeat_finds_the_connection_of_a_borrower_who_sleeps(
    peer: Peer, make_pool: MakePool
) -> None:
    """He sees it from `is_connected`, and his place is free before he gives it back."""
    pool = make_pool(uri=peer.uri, heartbeat=HEARTBEAT, max_connections=1)
    [connection] = await borrow(pool, 1)
    await peer.vanish(is_replaced=True)
    await until(lambda: are_closed(connection), "it is found lost")
    assert why_closed(connection) == {CloseReason.SERVER}
    assert not connection.is_connected
    with pytest.raises(ConnectionClosedError):
        await connection.send("too late")
    [other] = await borrow(pool, 1)
    await pool.release(connection)
    assert other.state is State.BUSY


async def test_a_heartbeat_ends_a_recv(peer: Peer, make_pool: MakePool) -> None:
    pool = make_pool(uri=peer.uri, heartbeat=HEARTBEAT)
    [connection] = await borrow(pool, 1)
    await peer.vanish()
    await connection.send("anybody there?")
    with pytest.raises(ConnectionClosedError):
        await asyncio.wait_for(connection.recv(), NET)
    assert why_closed(connection) == {CloseReason.SERVER}


async def send_for_ever(connection: WebsocketConnection) -> None:
    while True:
        await connection.send(bytes(2**20))


async def test_a_heartbeat_ends_a_send_that_nobody_takes(peer: Peer, make_pool: MakePool) -> None:
    """What fills all buffers on the way keeps neither its sender nor the socket for ever."""
    pool = make_pool(uri=peer.uri, heartbeat=HEARTBEAT, close_timeout=0.2)
    [connection] = await borrow(pool, 1)
    await peer.vanish()
    with pytest.raises(ConnectionClosedError):
        await asyncio.wait_for(send_for_ever(connection), NET)
    assert why_closed(connection) == {CloseReason.SERVER}
    await until(lambda: not sockets_to(peer.port), "the socket is gone")


async def test_a_heartbeat_ends_a_drain(peer: Peer, make_pool: MakePool) -> None:
    """A last message that cannot come any more is not waited for until drain_timeout."""
    pool = make_pool(
        uri=peer.uri,
        heartbeat=HEARTBEAT,
        drain_until=lambda message: message == "last",
        drain_quiet_period=FAR_OFF,
        drain_timeout=FAR_OFF,
    )
    async with pool.get_connection() as connection:
        assert await echoes(connection)
        await peer.vanish()
        await connection.send("last")
    assert connection.is_draining
    await until(lambda: are_closed(connection), "it is found lost")
    assert why_closed(connection) == {CloseReason.SERVER}


async def test_with_a_heartbeat_min_connections_come_back_by_themselves(
    peer: Peer, make_pool: MakePool
) -> None:
    """The lost ones are replaced, with no acquire, once the peer answers again."""
    pool = make_pool(
        uri=peer.uri,
        heartbeat=HEARTBEAT,
        min_connections=2,
        max_connections=2,
        cleanup_interval=0.1,
    )
    await pool.start()
    lost = pool.connections
    await peer.vanish()
    await until(lambda: are_closed(*lost), "they are found lost")
    await until(lambda: len(pool._router.queues.connecting) == 2, "two are dialled in vain")
    await peer.come_back()
    await until(lambda: pool.available_connections == 2, "two are back")
    assert pool.stats.borrows == 0
    assert pool.stats.closes == {"server": 2}
    await borrow(pool, 2)


# A check before the hand-out.


async def test_a_check_gives_a_working_connection_for_a_mute_one(
    peer: Peer, make_pool: MakePool
) -> None:
    """All mute ones are found in one go, and each place of the pool is of use again."""
    pool = make_pool(uri=peer.uri, check_after_idle=0.0, max_connections=4)
    mute = await made_idle(pool, 4)
    await peer.vanish(is_replaced=True)
    task = asyncio.create_task(pool.acquire(timeout=NET))
    await until(lambda: are_closed(mute[-1]), "the first is found mute")
    assert State.IDLE not in {connection.state for connection in mute}
    connection = await task
    assert connection.id not in ids_of(mute)
    assert await echoes(connection)
    await until(lambda: are_closed(*mute), "all are found mute")
    assert why_closed(*mute) == {CloseReason.STALE}
    others = await borrow(pool, 3)
    assert ids_of(others).isdisjoint(ids_of(mute))
    assert pool.busy_connections == 4


async def times_out(pool: WebsocketConnectionPool, timeout: float) -> None:
    with pytest.raises(ConnectionPoolTimeoutError):
        await asyncio.wait_for(pool.acquire(timeout=timeout), NET)


@pytest.mark.parametrize("timeout", [0.05, 0.5], ids=["during the check", "during the dial"])
async def test_where_nothing_is_reachable_an_acquire_times_out_and_no_place_is_lost(
    peer: Peer, make_pool: MakePool, timeout: float
) -> None:
    pool = make_pool(uri=peer.uri, check_after_idle=0.0, max_connections=3)
    mute = await made_idle(pool, 3)
    await peer.vanish()
    await asyncio.gather(*(times_out(pool, timeout) for _ in range(5)))
    assert len(pool.connections) <= 3
    await until(lambda: are_closed(*mute), "all are found mute")
    assert why_closed(*mute) == {CloseReason.STALE}
    await peer.come_back()
    lent = await borrow(pool, 3)
    assert ids_of(lent).isdisjoint(ids_of(mute))
    assert repr(pool._router) == "connecting=0 idle=0 busy=3 draining=0 closed=0 waiting=0 max=3"


async def test_where_nothing_is_reachable_max_retries_end_an_acquire_without_a_timeout(
    peer: Peer, make_pool: MakePool
) -> None:
    """The failed dial has cost no place either."""
    pool = make_pool(
        uri=peer.uri,
        check_after_idle=0.0,
        max_connections=2,
        max_retries=1,
        connection_timeout=0.3,
    )
    await made_idle(pool, 2)
    await peer.vanish()
    with pytest.raises(ConnectionUnavailableError, match="no answer within connection_timeout"):
        await pool.acquire(timeout=NET)
    await until(lambda: not pool.connections, "nothing is left")
    await peer.come_back()
    await borrow(pool, 2)


async def test_where_new_connections_are_refused_no_place_is_lost(
    proxy: Proxy, make_pool: MakePool
) -> None:
    """The attempts go on as long as the pool allows, and the timeout names their failure."""
    pool = make_pool(
        uri=f"ws://127.0.0.1:{proxy.port}/", check_after_idle=0.0, max_connections=3, max_retries=99
    )
    mute = await made_idle(pool, 3)
    await proxy.freeze("refuse")
    await times_out(pool, 0.5)
    await until(lambda: are_closed(*mute), "all are found mute")
    assert why_closed(*mute) == {CloseReason.STALE}
    assert len(pool.connections) <= 3
    await proxy.thaw()
    await borrow(pool, 3)


# A keepalive.


async def test_a_keepalive_interval_finds_idle_connections_mute_without_an_acquire(
    peer: Peer, make_pool: MakePool
) -> None:
    pool = make_pool(uri=peer.uri, keepalive_interval=0.1)
    connections = await made_idle(pool, 3)
    borrows = pool.stats.borrows
    await peer.vanish()
    await until(lambda: not pool.connections, "they are gone")
    assert why_closed(*connections) == {CloseReason.STALE}
    assert sockets_to(peer.port) == 0
    assert (pool.stats.dials, pool.stats.borrows) == (3, borrows)


async def test_a_keepalive_interval_says_nothing_of_a_busy_connection(
    peer: Peer, make_pool: MakePool
) -> None:
    pool = make_pool(uri=peer.uri, keepalive_interval=0.1)
    idle, busy = await borrow(pool, 2)
    await pool.release(idle)
    await peer.vanish()
    await until(lambda: are_closed(idle), "the idle one is found mute")
    assert busy.is_connected
    await peer.come_back()
    assert await echoes(busy)


# The borrower's own deadline.


async def asked_in_vain(
    pool: WebsocketConnectionPool, question: str | None = "anybody there?"
) -> WebsocketConnection:
    """Leave the block by a deadline of its own, and return the connection that it had."""
    connection = None
    with contextlib.suppress(TimeoutError):
        async with pool.get_connection() as connection:
            if question is not None:
                await connection.send(question)
            async with asyncio.timeout(0.1):
                raise AssertionError(await connection.recv())
    assert connection is not None
    return connection


@pytest.mark.parametrize("is_replaced", [False, True], ids=["recovered", "replaced"])
async def test_a_borrowers_own_deadline_keeps_the_connection_from_the_next(
    peer: Peer, make_pool: MakePool, is_replaced: bool
) -> None:
    """It is closed within close_timeout, and the next borrower gets one that works."""
    pool = make_pool(uri=peer.uri, max_connections=1, close_timeout=0.2)
    await made_idle(pool, 1)
    await peer.vanish(is_replaced=is_replaced)
    connection = await asked_in_vain(pool)
    assert why_closed(connection) == {CloseReason.ERROR}
    if not is_replaced:
        await peer.come_back()
    [other] = await borrow(pool, 1)
    assert other.id != connection.id


async def test_a_deadline_with_nothing_sent_proves_nothing(peer: Peer, make_pool: MakePool) -> None:
    """A borrower who only listened gives the connection back, whatever ended his waiting."""
    pool = make_pool(uri=peer.uri)
    await made_idle(pool, 1)
    await peer.vanish()
    connection = await asked_in_vain(pool, question=None)
    assert connection.state is State.IDLE
    await peer.come_back()


async def test_a_deadline_that_waits_for_a_last_message_ends_at_drain_timeout(
    peer: Peer, make_pool: MakePool
) -> None:
    """With `drain_until` the reply is waited for; what does not answer is closed all the same."""
    pool = make_pool(
        uri=peer.uri,
        max_connections=1,
        close_timeout=0.2,
        drain_until=lambda message: True,
        drain_timeout=0.2,
    )
    await made_idle(pool, 1)
    await peer.vanish(is_replaced=True)
    connection = await asked_in_vain(pool)
    assert connection.is_draining
    [other] = await borrow(pool, 1)
    assert other.id != connection.id
    assert why_closed(connection) == {CloseReason.DRAIN}
    assert isinstance(connection.cause, ConnectionDrainTimeoutError)


async def test_silence_after_a_release_is_no_sign_of_life(peer: Peer, make_pool: MakePool) -> None:
    """A drain that ends by silence hands on a connection whose peer has vanished."""
    pool = make_pool(uri=peer.uri, check_server_data_on_release=True, drain_quiet_period=0.1)
    async with pool.get_connection() as connection:
        assert await echoes(connection)
        await peer.vanish()
    assert connection.is_draining
    await until(lambda: not connection.is_draining, "the drain is over")
    assert connection.state is State.IDLE
    await peer.come_back()


# Closing the pool.


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"heartbeat": HEARTBEAT},
        {"check_after_idle": 0.0, "keepalive_interval": 0.1},
    ],
    ids=["nothing set", "heartbeat", "checks"],
)
async def test_close_all_ends_though_the_peer_is_mute(
    peer: Peer, make_pool: MakePool, options: dict[str, Any]
) -> None:
    """Idle, busy, draining and dialling: close_timeout bounds them all, and no socket is left."""
    pool = make_pool(
        uri=peer.uri,
        max_connections=5,
        close_timeout=0.2,
        drain_until=lambda message: message == "last",
        drain_quiet_period=FAR_OFF,
        drain_timeout=FAR_OFF,
        connection_timeout=FAR_OFF,
        **options,
    )
    idle, busy, receiving, draining = await borrow(pool, 4)
    assert sockets_to(peer.port) == 4
    await pool.release(idle)
    await peer.vanish()
    await draining.send("last")
    await pool.release(draining)
    recv_task = asyncio.create_task(receiving.recv())
    acquire_task = asyncio.create_task(pool.acquire_new(timeout=None))
    await until(lambda: sockets_to(peer.port) == 5, "another one is dialled")
    async with asyncio.timeout(NET):
        await pool.close_all()
    assert sockets_to(peer.port) == 0
    assert pool.connections == ()
    assert are_closed(idle, busy, receiving, draining)
    ends = await asyncio.gather(recv_task, acquire_task, return_exceptions=True)
    assert all(isinstance(end, Exception) for end in ends)


# A short interruption.


async def test_a_short_freeze_loses_nothing(peer: Peer, make_pool: MakePool) -> None:
    """Shorter than every limit: what was sent meanwhile arrives, and the same connections serve."""
    pool = make_pool(
        uri=peer.uri, heartbeat=30.0, keepalive_interval=30.0, max_connections=3, close_timeout=NET
    )
    idle, busy, receiving = await borrow(pool, 3)
    await pool.release(idle)
    recv_task = asyncio.create_task(receiving.recv())
    await peer.vanish()
    for message in ("one", "two"):
        await busy.send(message)
        await receiving.send(message)
    again = await pool.acquire()
    assert again.id == idle.id
    await again.send("three")
    ping_task = asyncio.create_task(busy.ping())
    await asyncio.sleep(0.3)  # a sweep looks at them
    assert not recv_task.done()
    await peer.come_back()
    async with asyncio.timeout(NET):
        assert [await busy.recv(), await busy.recv()] == ["one", "two"]
        assert [await recv_task, await receiving.recv()] == ["one", "two"]
        assert await again.recv() == "three"
        await ping_task
    for connection in (again, busy, receiving):
        await pool.release(connection)
    assert ids_of(await borrow(pool, 3)) == ids_of((idle, busy, receiving))
    assert pool.stats.dials == 3
    assert not pool.stats.closes


async def test_a_check_that_a_short_freeze_holds_up_is_answered_after_it(
    peer: Peer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one who waits for it gets that very connection, and nothing is dialled."""
    monkeypatch.setattr("wspool._pool.errands.CHECK_SECONDS", NET)
    pool = make_pool(uri=peer.uri, check_after_idle=0.0, connection_timeout=NET)
    [connection] = await made_idle(pool, 1)
    await peer.vanish()
    task = asyncio.create_task(pool.acquire(timeout=NET))
    await until(lambda: connection.is_busy, "it is being checked")
    await peer.come_back()
    again = await task
    assert again.id == connection.id
    assert await echoes(again)
    assert pool.stats.dials == 1
