"""What the pool that this interface comes from got wrong, entry by entry: impossible here."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import WSMsgType

from tests.conftest import MakePool, echoes, until
from tests.support.inside import link_of, queues_of, wire_of
from wspool import (
    ConnectionClosedError,
    ConnectionPoolExhaustedError,
    ConnectionPoolUnavailableError,
    ConnectionUnavailableError,
    WebsocketConnectionPool,
)
from wspool.testing import Peer, Server


@pytest.fixture
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let dials be tried again at once."""
    monkeypatch.setattr("backoff.full_jitter", lambda longest: 0.0)


async def every_slot_works(pool: WebsocketConnectionPool, slots: int) -> None:
    """Borrow as many connections as there are slots, use each, and give them back."""
    borrowed = [await pool.acquire() for _ in range(slots)]
    with pytest.raises(ConnectionPoolExhaustedError):
        await pool.acquire()
    for connection in borrowed:
        assert await echoes(connection, f"on #{connection.id}")
        await pool.release(connection)
    assert pool.available_connections == pool.total_connections == slots


async def test_dead_idle_connections_cost_no_slot(server: Server, make_pool: MakePool) -> None:
    """1. However often the server restarts under idle connections, every slot can be borrowed."""
    pool = make_pool(max_connections=3)
    for _ in range(3):
        await every_slot_works(pool, 3)
        old = list(queues_of(pool))
        await server.stop()
        await server.start()
        # Dead and not looked at yet, or swept away just now: the next acquire copes with both.
        await until(lambda old=old: all(c.has_news for c in old), "the resets have arrived")
    await every_slot_works(pool, 3)


@pytest.mark.usefixtures("no_backoff")
async def test_dead_releases_and_cancelled_dials_cost_no_slot(
    server: Server, make_pool: MakePool
) -> None:
    """2. Neither a release of a dead connection nor a cancelled dial loses a slot."""
    pool = make_pool(max_connections=2)
    for _ in range(4):
        seen, unseen = await pool.acquire(), await pool.acquire()
        assert await echoes(seen, "one")
        assert await echoes(unseen, "two")
        for peer in list(server.open):
            peer.drop()
        with pytest.raises(ConnectionClosedError):
            await seen.recv()
        wire = wire_of(unseen)
        await until(lambda wire=wire: wire.has_news, "the other reset has arrived")
        await pool.release(seen)
        await pool.release(unseen)
        await until(lambda: not len(pool._router.queues), "both are gone")
    await every_slot_works(pool, 2)

    server.delay = 0.05
    for _ in range(4):
        pool.expire_connections()
        await until(lambda: not len(pool._router.queues), "the pool is empty")
        server.requests.clear()
        acquiring = asyncio.create_task(pool.acquire())
        await until(lambda: server.requests, "the handshake has begun")
        acquiring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await acquiring
        await until(lambda: pool.available_connections == 1, "the dial has gone on")
    await every_slot_works(pool, 2)


@pytest.mark.usefixtures("no_backoff")
async def test_errors_are_the_documented_ones(server: Server, make_pool: MakePool) -> None:
    """3. Every failure is an error of this package, and a 401 is not tried again."""
    pool = make_pool(max_connections=1, max_retries=2)
    server.refuse(401)
    with pytest.raises(ConnectionUnavailableError) as refused:
        await pool.acquire()
    assert (refused.value.status, refused.value.attempts, len(server.requests)) == (401, 1, 1)

    async with pool.get_connection() as connection:
        assert await echoes(connection, "alive")
        with pytest.raises(ConnectionPoolExhaustedError):
            await pool.acquire()

    await server.stop()
    with pytest.raises(ConnectionUnavailableError) as unreachable:
        await pool.acquire()
    assert (unreachable.value.status, unreachable.value.attempts) == (None, 2)

    await pool.close_all()
    with pytest.raises(ConnectionPoolUnavailableError):
        await pool.acquire()


async def test_a_named_last_message_makes_a_connection_clean_at_once(make_pool: MakePool) -> None:
    """4. With `drain_until` a clean connection is back before `release` has returned."""
    pool = make_pool(
        max_connections=1,
        drain_quiet_period=60.0,
        drain_timeout=60.0,
        drain_until=lambda message: message == "done",
    )
    for _ in range(3):
        connection = await pool.acquire()
        assert await echoes(connection, "done")
        await pool.release(connection)
        assert (pool.available_connections, pool.pending_connections) == (1, 0)


async def test_a_fence_makes_a_connection_clean_after_one_round_trip(make_pool: MakePool) -> None:
    """4. With `drain_fence` a clean connection is back without waiting for any silence."""
    pool = make_pool(
        max_connections=1,
        check_server_data_on_release=True,
        drain_quiet_period=60.0,
        drain_timeout=60.0,
        drain_fence=True,
    )
    for _ in range(3):
        connection = await pool.acquire(timeout=10.0)
        assert connection.id == 1
        assert await echoes(connection, "anything")
        await pool.release(connection)
        assert pool.pending_connections == 1


async def test_an_acquire_that_may_wait_outlives_the_quiet_period(make_pool: MakePool) -> None:
    """4. With silence alone an acquire raises only if it was told not to wait."""
    pool = make_pool(max_connections=1, check_server_data_on_release=True, drain_quiet_period=0.05)
    connection = await pool.acquire()
    await pool.release(connection)
    with pytest.raises(ConnectionPoolExhaustedError):
        await pool.acquire()
    assert (await pool.acquire(timeout=10.0)).id == connection.id


async def test_no_acquire_waits_for_somebody_elses_close(
    server: Server, make_pool: MakePool
) -> None:
    """5. While a mute peer is being closed, idle connections are lent and new ones are dialled."""
    pool = make_pool(max_connections=3, close_timeout=30.0)
    mute = await pool.acquire()
    await until(lambda: server.open, "the server has it")
    other = await pool.acquire()
    server.open[0].mute()
    await pool.release(other)
    await pool.release(mute, force_remove=True)

    reused, dialled = await pool.acquire(), await pool.acquire()
    assert reused.id == other.id
    assert await echoes(reused, "one")
    assert await echoes(dialled, "two")
    assert link_of(mute) in queues_of(pool).closed
    server.peers[0].unmute()


@pytest.mark.parametrize("is_refused", [False, True])
async def test_a_dial_in_flight_when_the_pool_closes_leaves_nothing(
    server: Server, make_pool: MakePool, is_refused: bool
) -> None:
    """6. `close_all` during a dial: no connection comes out, no count is off, no socket stays."""
    pool = make_pool()
    server.delay = 0.05
    if is_refused:
        server.refuse(500, times=9)
    acquiring = asyncio.create_task(pool.acquire())
    await until(lambda: server.requests, "the handshake began")
    await pool.close_all()
    with pytest.raises(ConnectionPoolUnavailableError):
        await acquiring
    assert (pool.total_connections, len(pool._router.queues)) == (0, 0)
    await until(lambda: not server.open, "the server has no socket")
    assert pool.total_connections == 0


async def test_the_warm_up_keeps_to_the_maximum(server: Server, make_pool: MakePool) -> None:
    """7. A warm-up above `max_connections` is cut down to it, with a warning."""
    with pytest.warns(UserWarning, match="warmup_connections=10 is above max_connections=3"):
        pool = make_pool(max_connections=3, warmup_connections=10)
    acquiring = [asyncio.create_task(pool.acquire()) for _ in range(2)]
    await asyncio.gather(*(pool.start() for _ in range(5)), *acquiring)
    await until(lambda: pool.total_connections == 3, "the warm-up is over")
    assert pool.busy_connections == 2
    assert len(server.requests) == server.most_open == 3


async def test_a_mute_peer_does_not_pass_for_a_live_one(
    server: Server, make_pool: MakePool
) -> None:
    """8. `ping` waits for the pong, and an idle connection without one is given up."""
    pool = make_pool(heartbeat=0.4)
    connection = await pool.acquire()
    await until(lambda: server.open, "the server has it")
    assert await connection.ping() >= 0
    server.open[0].mute()
    with pytest.raises((TimeoutError, ConnectionClosedError)):
        async with asyncio.timeout(0.1):
            await connection.ping()
    await pool.release(connection)
    await until(lambda: not connection.is_connected, "the heartbeat has failed")
    async with pool.get_connection() as other:
        assert await echoes(other, "alive")


@pytest.mark.parametrize("is_drained", [False, True])
async def test_a_cancelled_borrowers_late_reply_is_read_by_nobody_else(
    server: Server, make_pool: MakePool, is_drained: bool
) -> None:
    """9. The reply to a borrower that was cancelled never reaches the next one."""
    may_reply = asyncio.Event()

    async def reply_late(peer: Peer) -> None:
        async for message in peer.websocket:
            assert message.type is WSMsgType.TEXT
            await may_reply.wait()
            await peer.send(f"reply to {message.data}")

    server.handler = reply_late
    drained: list[str | bytes] = []
    options = {"drain_until": lambda message: True} if is_drained else {}
    pool = make_pool(
        max_connections=1,
        acquire_timeout=10.0,
        on_drained=lambda _, message: drained.append(message),
        **options,
    )

    async def borrow(message: str) -> str | bytes:
        async with pool.get_connection() as connection:
            await connection.send(message)
            return await connection.recv()

    first = asyncio.create_task(borrow("mine"))
    await until(lambda: pool.busy_connections, "the first has the connection")
    await until(lambda: wire_of(pool.connections[0]).sent_messages, "the first has sent")
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    second = asyncio.create_task(borrow("theirs"))
    await until(lambda: pool.waiters or pool.busy_connections, "the second has asked")
    may_reply.set()
    assert await second == "reply to theirs"
    assert drained == (["reply to mine"] if is_drained else [])
    assert len(server.peers) == (1 if is_drained else 2)


async def test_what_is_unread_at_release_is_read_by_nobody_else(
    server: Server, make_pool: MakePool
) -> None:
    """9. Replies that a borrower left unread are gone when the next one comes."""

    async def reply_twice(peer: Peer) -> None:
        async for message in peer:
            await peer.send(message)
            await peer.send(f"{message} again")

    server.handler = reply_twice
    pool = make_pool(max_connections=1)
    for number in range(5):
        async with pool.get_connection() as connection:
            assert await echoes(connection, f"message {number}")
            await until(lambda: wire_of(connection).has_news, "the second reply has arrived")
    assert (len(server.peers), pool.stats.drained_messages) == (1, 5)


async def test_mute_peers_are_closed_side_by_side(server: Server, make_pool: MakePool) -> None:
    """10. `close_all` says goodbye to all at once: none waits for the one before it."""
    pool = make_pool(close_timeout=0.3, warmup_connections=5)
    await pool.start()
    await until(lambda: len(server.open) == 5, "the server has them all")
    for peer in server.open:
        peer.mute()
    closing = asyncio.create_task(pool.close_all())
    await until(lambda: pool.is_closed, "the closing has begun")
    assert len(pool._router.queues.closed) == 5
    await closing
    assert len(pool._router.queues) == 0
    for peer in server.peers:
        peer.unmute()
    await until(lambda: not server.open, "the server has seen all sockets go")
