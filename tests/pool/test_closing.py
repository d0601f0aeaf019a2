"""The end of a pool, of a connection and of a loan: whoever ends it, nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import aiohttp
import pytest

from tests.conftest import MakePool, echoes, until, why_closed
from tests.support.inside import is_lent, wire_of
from wspool import (
    CloseReason,
    ConnectionClosedError,
    ConnectionPoolUnavailableError,
    ConnectionUnavailableError,
    State,
    WebsocketConnection,
    WebsocketConnectionPool,
)
from wspool._connection import aiohttp_internals
from wspool.testing import Server


async def nothing_is_open(server: Server, pool: WebsocketConnectionPool) -> None:
    """Check that the pool has no connection and no task, and the server no socket."""
    assert pool.is_closed
    assert (len(pool._router.queues), pool.total_connections, pool.waiters) == (0, 0, 0)
    assert not pool._router.tasks
    await until(lambda: not server.open, "the server has no socket")


# All at once.


async def test_close_all_leaves_no_task_and_no_socket(server: Server, make_pool: MakePool) -> None:
    before = asyncio.all_tasks()
    pool = make_pool(check_server_data_on_release=True, warmup_connections=2)
    await pool.start()
    busy, draining = await pool.acquire_new(), await pool.acquire_new()
    await pool.release(draining)
    server.delay = 0.5
    dialling = asyncio.create_task(pool.acquire_new())
    await until(lambda: pool._router.queues.connecting, "it dials")
    await pool.close_all()
    with pytest.raises(ConnectionPoolUnavailableError):
        await dialling
    assert why_closed(busy) == why_closed(draining) == CloseReason.POOL
    await nothing_is_open(server, pool)
    await until(lambda: not server.open, "the server has seen them go")
    clients = [t for t in asyncio.all_tasks() - before if "wspool" in repr(t.get_coro())]
    assert not clients


async def test_mute_peers_are_aborted_side_by_side(server: Server, make_pool: MakePool) -> None:
    """Each has the whole of close_timeout to itself, and at its end all sockets are gone."""
    pool = make_pool(close_timeout=0.2, warmup_connections=5)
    await pool.start()
    await until(lambda: len(server.open) == 5, "the server has them all")
    for peer in server.open:
        peer.mute()
    most_closed = 0
    closing = asyncio.create_task(pool.close_all())
    while not closing.done():
        most_closed = max(most_closed, len(pool._router.queues.closed))
        assert len(pool._router.queues.closed) in (0, 5) or most_closed == 5
        await asyncio.wait({closing}, timeout=0.01)
    assert most_closed == 5
    for peer in server.peers:
        peer.unmute()
    await nothing_is_open(server, pool)


async def test_a_peer_that_takes_no_bytes_is_aborted(server: Server, make_pool: MakePool) -> None:
    """Unsent bytes in the transport's buffer keep no socket open."""
    pool = make_pool(close_timeout=0.2)
    connection = await pool.acquire()
    await until(lambda: server.open, "the server has it")
    server.open[0].mute()

    async def stuff() -> None:
        while True:
            await connection.send(bytes(1024 * 1024))

    stuffing = asyncio.create_task(stuff())
    await until(lambda: wire_of(connection).sent_messages, "something was sent")
    await pool.close_all()
    with pytest.raises(ConnectionClosedError):
        await stuffing
    server.peers[0].unmute()
    await nothing_is_open(server, pool)


async def test_close_all_twice_is_close_all_once(server: Server, make_pool: MakePool) -> None:
    pool = make_pool(warmup_connections=3)
    await pool.start()
    await pool.close_all()
    await nothing_is_open(server, pool)
    await pool.close_all()
    assert pool.stats.closes == {"pool": 3}


async def test_a_second_close_all_waits_for_the_first(server: Server, make_pool: MakePool) -> None:
    """Whichever returns first, nothing is left."""
    pool = make_pool(warmup_connections=2, close_timeout=0.2)
    await pool.start()
    await until(lambda: len(server.open) == 2, "the server has both")
    server.open[0].mute()
    closings = {asyncio.create_task(pool.close_all()) for _ in range(5)}
    done, _ = await asyncio.wait(closings, return_when=asyncio.FIRST_COMPLETED)
    assert done
    assert len(pool._router.queues) == 0
    await asyncio.gather(*closings)
    server.peers[0].unmute()
    server.peers[1].unmute()
    await nothing_is_open(server, pool)


async def test_a_cancelled_close_all_goes_on(server: Server, make_pool: MakePool) -> None:
    """The caller is cancelled at once; the closing is not, and can be waited for again."""
    pool = make_pool(warmup_connections=3, close_timeout=0.2)
    await pool.start()
    await until(lambda: len(server.open) == 3, "the server has them")
    for peer in server.open:
        peer.mute()
    closing = asyncio.create_task(pool.close_all())
    await until(lambda: pool.is_closed, "the closing has begun")
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert len(pool._router.queues.closed) == 3
    await pool.close_all()
    for peer in server.peers:
        peer.unmute()
    await nothing_is_open(server, pool)


async def test_close_all_before_start_only_closes(server: Server, make_pool: MakePool) -> None:
    pool = make_pool()
    await pool.close_all()
    await nothing_is_open(server, pool)
    assert not server.requests
    await pool.start()
    with pytest.raises(ConnectionPoolUnavailableError):
        await pool.acquire()


# During something else.


@pytest.mark.parametrize("method", ["acquire", "acquire_new"])
async def test_close_all_ends_an_acquire_whose_handshake_hangs(
    server: Server, make_pool: MakePool, method: str
) -> None:
    """A server that takes the request and never answers is left, and sees the end of file."""
    requests: list[bytes] = []
    ends: list[bytes] = []

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        with contextlib.suppress(ConnectionError):
            ends.append(await reader.read())
        writer.close()

    async with await asyncio.start_server(hang, "127.0.0.1", 0) as mute:
        port = mute.sockets[0].getsockname()[1]
        pool = make_pool(uri=f"ws://127.0.0.1:{port}/", connection_timeout=60.0)
        acquiring = asyncio.create_task(getattr(pool, method)())
        await until(lambda: requests, "the handshake hangs")
        await pool.close_all()
        with pytest.raises(ConnectionPoolUnavailableError):
            await acquiring
        await until(lambda: ends, "the socket is gone")
    await nothing_is_open(server, pool)


async def test_close_all_ends_those_who_wait(server: Server, make_pool: MakePool) -> None:
    """At once, while a borrower may still have time to finish."""
    pool = make_pool(max_connections=1)
    connection = await pool.acquire()
    waiting = [
        asyncio.create_task(acquire(timeout=60.0))
        for acquire in (pool.acquire, pool.acquire_new, pool.acquire)
    ]
    await until(lambda: pool.waiters == 3, "they wait")
    closing = asyncio.create_task(pool.close_all(timeout=None))
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [ConnectionPoolUnavailableError] * 3
    assert await echoes(connection, "still mine")
    await pool.release(connection)
    await closing
    await nothing_is_open(server, pool)


async def test_close_all_ends_a_borrowers_recv(server: Server, make_pool: MakePool) -> None:
    """And says who did it; a ping ends as well."""
    pool = make_pool()
    connection = await pool.acquire()
    await until(lambda: server.open, "the server has it")
    server.open[0].mute()
    receiving = asyncio.create_task(connection.recv())
    pinging = asyncio.create_task(connection.ping())
    await until(lambda: wire_of(connection).is_in_use, "both wait")
    await pool.close_all()
    for task in (receiving, pinging):
        with pytest.raises(ConnectionClosedError, match="pool closed"):
            await task
    with pytest.raises(ConnectionClosedError, match="pool closed"):
        await connection.send("too late")
    server.peers[0].unmute()
    await nothing_is_open(server, pool)


async def test_close_all_from_on_connect(server: Server, make_pool: MakePool) -> None:
    """It does not wait for its own hook, and the dial's result goes to nobody."""
    pools: list[WebsocketConnectionPool] = []
    has_returned = False

    async def close(connection: WebsocketConnection) -> None:
        nonlocal has_returned
        await pools[0].close_all()
        has_returned = True

    pools.append(pool := make_pool(on_connect=close))
    with pytest.raises(ConnectionPoolUnavailableError):
        await pool.acquire()
    await until(lambda: has_returned, "the hook goes on")
    await pool.close_all()
    await until(lambda: not pool._router.tasks, "the hook's task has ended")
    await nothing_is_open(server, pool)


async def test_close_all_from_on_release(server: Server, make_pool: MakePool) -> None:
    """It does not wait for its own hook."""
    pools: list[WebsocketConnectionPool] = []
    has_returned = False

    async def close(connection: WebsocketConnection) -> None:
        nonlocal has_returned
        await pools[0].close_all()
        has_returned = True

    pools.append(pool := make_pool(on_release=close))
    await pool.release(await pool.acquire())
    await until(lambda: has_returned, "the hook goes on")
    await pool.close_all()
    await until(lambda: not pool._router.tasks, "the hook's task has ended")
    await nothing_is_open(server, pool)


async def test_close_all_ends_a_hook_that_hangs(server: Server, make_pool: MakePool) -> None:
    is_cancelled = False

    async def hang(connection: WebsocketConnection) -> None:
        nonlocal is_cancelled
        try:
            await connection.recv()
        except asyncio.CancelledError:
            is_cancelled = True
            raise

    pool = make_pool(on_release=hang, drain_timeout=60.0)
    await pool.release(await pool.acquire())
    await until(lambda: wire_of(pool.connections[0]).is_receiving, "the hook hangs")
    await pool.close_all()
    assert is_cancelled
    await nothing_is_open(server, pool)


# Letting borrowers finish.


async def test_close_all_lets_borrowers_finish(
    server: Server, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody is cut off who gives back in time, and nothing is logged."""
    pool = make_pool()
    connections = [await pool.acquire() for _ in range(3)]
    closing = asyncio.create_task(pool.close_all(timeout=60.0))
    await until(lambda: pool.is_closed, "the closing has begun")
    with pytest.raises(ConnectionPoolUnavailableError):
        await pool.acquire()
    for connection in connections:
        assert not closing.done()
        assert await echoes(connection, "undisturbed")
        await pool.release(connection)
        assert why_closed(connection) == CloseReason.POOL
    await closing
    await nothing_is_open(server, pool)
    assert not caplog.records


async def test_close_all_does_not_wait_for_ever(
    server: Server, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    """Who has not given back at the end of the time loses his connection, with a warning."""
    pool = make_pool()
    connection = await pool.acquire()
    await pool.close_all(timeout=0.05)
    assert why_closed(connection) == CloseReason.POOL
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "busy=1" in caplog.text  # as it was then; a repr made now would say busy=0
    await nothing_is_open(server, pool)


async def test_a_borrower_whose_connection_is_lost_is_not_waited_for(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool()
    connection = await pool.acquire()
    assert await echoes(connection, "alive")
    closing = asyncio.create_task(pool.close_all(timeout=None))
    await until(lambda: pool.is_closed, "the closing has begun")
    server.peers[0].drop()
    with pytest.raises(ConnectionClosedError):
        await connection.recv()
    await closing
    await nothing_is_open(server, pool)


# Afterwards.


@pytest.mark.parametrize("force_remove", [False, True])
async def test_release_after_close_all_is_silent(
    server: Server, make_pool: MakePool, caplog: pytest.LogCaptureFixture, force_remove: bool
) -> None:
    pool = make_pool()
    connection = await pool.acquire()
    await pool.close_all()
    caplog.clear()
    await pool.release(connection, force_remove=force_remove)
    assert why_closed(connection) == CloseReason.POOL
    assert not caplog.records
    await nothing_is_open(server, pool)


async def test_acquire_after_close_all_raises(make_pool: MakePool) -> None:
    pool = make_pool()
    async with pool:
        pass
    for acquire in (pool.acquire, pool.acquire_new):
        with pytest.raises(ConnectionPoolUnavailableError):
            await acquire()
        with pytest.raises(ConnectionPoolUnavailableError):
            await acquire(timeout=None)
    with pytest.raises(ConnectionPoolUnavailableError):
        async with pool.get_connection():
            pass


async def test_a_pool_is_a_context_manager(server: Server, make_pool: MakePool) -> None:
    """An exception passes through, and the pool is closed."""
    with contextlib.suppress(ZeroDivisionError):
        async with make_pool(warmup_connections=2) as pool:
            assert pool.available_connections == 2
            raise ZeroDivisionError
    await nothing_is_open(server, pool)


# The session.


async def test_a_shared_session_is_not_closed(server: Server, make_pool: MakePool) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        async with make_pool(session=session) as pool, pool.get_connection() as connection:
            assert await echoes(connection, "alive")
        await nothing_is_open(server, pool)
        assert not session.closed


async def test_a_session_closed_under_the_pool_is_noticed(
    server: Server, make_pool: MakePool
) -> None:
    """Idle and busy connections are closed without an acquire; an acquire fails clearly."""
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    pool = make_pool(session=session)
    idle, silent, receiving = [await pool.acquire() for _ in range(3)]
    await pool.release(idle)
    task = asyncio.create_task(receiving.recv())
    await until(lambda: wire_of(receiving).is_in_use, "it is in recv")
    await session.close()
    with pytest.raises(ConnectionClosedError):
        await task
    await until(lambda: not pool.total_connections, "the others are noticed")
    assert idle.state is silent.state is State.CLOSED
    with pytest.raises(ConnectionUnavailableError):
        await pool.acquire()
    await pool.close_all()
    await nothing_is_open(server, pool)


# One connection, one loan.


async def test_a_borrower_may_close_his_connection(
    server: Server, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    """When close() returns its socket is gone and its place free; the release is silent."""
    pool = make_pool(max_connections=1)
    connection = await pool.acquire()
    await connection.close(4002, "enough")
    assert not len(pool._router.queues)
    assert why_closed(connection) == CloseReason.USER
    await until(lambda: not server.open, "the server has seen it go")
    assert server.peers[0].websocket.close_code == 4002
    await connection.close()
    other = await pool.acquire()
    await pool.release(connection)
    assert not caplog.records
    assert pool.busy_connections == 1
    assert await echoes(other, "undisturbed")


async def test_a_borrower_may_close_inside_the_context_manager(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool()
    async with pool.get_connection() as connection:
        await connection.close()
    assert not caplog.records
    assert pool.total_connections == 0


async def test_a_context_manager_releases_only_its_own_lease(make_pool: MakePool) -> None:
    """A loan that was ended inside the block is somebody else's by its end."""
    pool = make_pool(max_connections=1)
    async with pool.get_connection() as connection:
        await pool.release(connection)
        other = await pool.acquire()
        assert other.id == connection.id
    assert other.is_busy
    assert is_lent(other)
    assert await echoes(other, "still mine")


async def test_releasing_twice_is_a_warning_and_nothing_else(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool, stranger = make_pool(), make_pool()
    connection = await pool.acquire()
    await stranger.release(connection, force_remove=True)
    assert connection.is_busy
    await pool.release(connection)
    await pool.release(connection, force_remove=True)
    assert connection.state is State.IDLE
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


@pytest.mark.parametrize("doing", ["recv", "ping"])
async def test_a_connection_released_under_a_reader_is_closed(
    server: Server, make_pool: MakePool, doing: str
) -> None:
    """The task that still reads gets an error, and never somebody else's message."""
    pool = make_pool(max_connections=1)
    connection = await pool.acquire()
    await until(lambda: server.open, "the server has it")
    server.open[0].mute()
    reading = asyncio.create_task(getattr(connection, doing)())
    await until(lambda: wire_of(connection).is_in_use, "it reads")
    await pool.release(connection)
    assert connection.state is State.CLOSED
    with pytest.raises(ConnectionClosedError):
        await reading
    server.peers[0].unmute()
    other = await pool.acquire()
    assert other.id != connection.id
    assert await echoes(other, "mine")


# Without a look at aiohttp's queue.


async def test_the_pool_works_where_the_look_is_not_possible(
    server: Server, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an aiohttp that keeps its queue elsewhere, stepping receive() finds everything out."""
    unseen = aiohttp_internals.UNSEEN
    monkeypatch.setattr(aiohttp_internals, "arrivals_of", lambda websocket: unseen)
    monkeypatch.setattr(aiohttp_internals.Transport, "has_ended", lambda transport: True)
    drained: list[str | bytes] = []
    pool = make_pool(max_connections=2, on_drained=lambda _, message: drained.append(message))
    for _ in range(3):
        async with pool.get_connection() as connection:
            assert await echoes(connection, "mine")
            assert await connection.ping() >= 0
    assert connection.id == 1

    await server.peers[0].send("stray")
    await until(lambda: drained, "the stray is disposed of")
    async with pool.get_connection() as connection:
        assert await echoes(connection, "mine again")
        await server.peers[0].send("kept")
        await until(lambda: wire_of(connection).received_messages == 6, "a sweep has kept it")
        assert await connection.recv() == "kept"
    assert drained == ["stray"]

    await server.peers[0].close(4003)
    await until(lambda: connection.state is State.CLOSED, "the close is noticed")
    assert connection.close_code == 4003
    async with pool.get_connection() as other:
        assert await echoes(other, "mine")
    await pool.close_all()
    await nothing_is_open(server, pool)
