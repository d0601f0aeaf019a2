"""MongoDB's connection-pool specification (CMAP), as far as it speaks of what this pool does too.

Each test is named after a behaviour of the specification, or a file of its test suite:
https://github.com/mongodb/specifications/tree/master/source/connection-monitoring-and-pooling
Its words and ours: check out – acquire, check in – release, clear – `expire_connections`,
maxPoolSize – `max_connections`, minPoolSize – `min_connections`, maxIdleTimeMS – `idle_timeout`,
maxConnecting – `max_connecting`, waitQueueTimeoutMS – `acquire_timeout`.

One thing is different on purpose: a clear there pauses the pool and fails its wait queue, because
a monitor of the server will resume it. There is no such monitor here, so those who wait are served
with connections of the new generation.
"""

from __future__ import annotations

import asyncio

import pytest

from tests.conftest import MakePool, until, why_closed
from tests.support.inside import ids_of, link_of, queues_of
from wspool import (
    CloseReason,
    ConnectionClosedError,
    ConnectionPoolExhaustedError,
    ConnectionPoolTimeoutError,
    ConnectionPoolUnavailableError,
    ConnectionUnavailableError,
    State,
    WebsocketConnection,
    WebsocketConnectionPool,
)
from wspool.testing import Server


class Doorman:
    """An `on_connect` hook that holds dials back, and counts those that it holds."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.held = 0
        self.most_held = 0

    async def __call__(self, connection: WebsocketConnection) -> None:
        self.held += 1
        self.most_held = max(self.most_held, self.held)
        try:
            await self.opened.wait()
        finally:
            self.held -= 1


@pytest.fixture
def doorman() -> Doorman:
    return Doorman()


async def works(connection: WebsocketConnection) -> bool:
    await connection.send("hello")
    return await connection.recv() == "hello"


def is_empty(pool: WebsocketConnectionPool) -> bool:
    return not pool.connections


# Connections.


async def test_connection_must_have_an_id_and_ids_must_be_ordered(make_pool: MakePool) -> None:
    """The ids of a pool's connections are 1, 2, 3 and so on, and none is used twice."""
    pool = make_pool(max_connections=2)
    first, second = await pool.acquire(), await pool.acquire()
    await pool.release(second, force_remove=True)
    third = await pool.acquire(timeout=10.0)
    assert [connection.id for connection in (first, second, third)] == [1, 2, 3]


# Checking out.


async def test_checkout_of_a_new_connection(server: Server, make_pool: MakePool) -> None:
    """A pool without an idle connection opens one, and it is ready to be used."""
    pool = make_pool()
    connection = await pool.acquire()
    assert await works(connection)
    assert not connection.reused
    assert (len(server.requests), pool.busy_connections) == (1, 1)


async def test_checkout_of_multiple_connections(server: Server, make_pool: MakePool) -> None:
    """Who checks out at the same time gets different connections."""
    pool = make_pool(max_connections=5)
    connections = await asyncio.gather(*(pool.acquire() for _ in range(5)))
    assert len(ids_of(connections)) == len(server.requests) == 5


async def test_checkout_prefers_an_idle_connection(server: Server, make_pool: MakePool) -> None:
    """While a connection is idle nothing is dialled."""
    pool = make_pool(max_connections=5)
    connection = await pool.acquire()
    await pool.release(connection)
    assert (await pool.acquire()).id == connection.id
    assert len(server.requests) == 1


async def test_checkout_must_not_return_a_connection_idle_for_too_long(
    make_pool: MakePool,
) -> None:
    """Past `idle_timeout` a connection is closed, even where no cleanup has passed by yet."""
    pool = make_pool(idle_timeout=0.02, cleanup_interval=60.0)
    perished = await pool.acquire()
    await pool.release(perished)
    link = link_of(perished)
    await until(lambda: link.clock() - link.idle_since > 0.02, "it is idle for too long")
    assert pool.available_connections == 1
    assert (await pool.acquire()).id != perished.id
    assert why_closed(perished) == CloseReason.IDLE


async def test_checkout_must_not_return_a_stale_connection(make_pool: MakePool) -> None:
    """A connection of an earlier generation is closed, and not handed out."""
    pool = make_pool()
    stale = await pool.acquire()
    await pool.release(stale)
    pool.expire_connections()
    assert (await pool.acquire()).id != stale.id
    assert why_closed(stale) == CloseReason.EXPIRED


async def test_checkout_from_a_closed_pool_is_an_error(make_pool: MakePool) -> None:
    """After the close every check-out fails at once, whether the pool was started or not."""
    used, unused = make_pool(), make_pool()
    await used.start()
    for pool in (used, unused):
        await pool.close_all()
        with pytest.raises(ConnectionPoolUnavailableError):
            await pool.acquire()
        with pytest.raises(ConnectionPoolUnavailableError):
            await pool.acquire_new()


async def test_checkout_fails_with_the_error_of_the_connection(
    server: Server, make_pool: MakePool
) -> None:
    """A check-out whose connection cannot be established fails with the reason of that."""
    pool = make_pool(max_retries=1)
    server.refuse(503)
    with pytest.raises(ConnectionUnavailableError) as failed:
        await pool.acquire()
    assert (failed.value.status, failed.value.attempts) == (503, 1)


@pytest.mark.usefixtures("no_backoff")
async def test_failed_connections_give_their_places_back(
    server: Server, make_pool: MakePool
) -> None:
    """However many connections fail to be established, maxPoolSize of them can be had later."""
    pool = make_pool(max_connections=2, max_retries=1)
    server.refuse(401, times=6)
    for _ in range(6):
        with pytest.raises(ConnectionUnavailableError):
            await pool.acquire(timeout=10.0)
    assert await works(await pool.acquire(timeout=10.0))
    assert await works(await pool.acquire(timeout=10.0))


# The wait queue.


async def test_max_pool_size_is_enforced(server: Server, make_pool: MakePool) -> None:
    """With maxPoolSize connections out a check-out waits, and opens none beside them."""
    pool = make_pool(max_connections=3)
    connections = [await pool.acquire() for _ in range(3)]
    waiting = asyncio.create_task(pool.acquire(timeout=None))
    await until(lambda: pool.waiters == 1, "it waits")
    with pytest.raises(ConnectionPoolExhaustedError):
        await pool.acquire(timeout=0)
    await pool.release(connections[1])
    assert (await waiting).id == connections[1].id
    assert server.most_open == len(server.requests) == 3


async def test_wait_queue_fairness(make_pool: MakePool) -> None:
    """Who waits is served in order of arrival, and a newcomer overtakes nobody."""
    pool = make_pool(max_connections=1, acquire_timeout=None)
    connection = await pool.acquire()
    served: list[int] = []

    async def borrow(number: int) -> None:
        async with pool.get_connection():
            served.append(number)

    borrowers = []
    for number in range(20):
        borrowers.append(asyncio.create_task(borrow(number)))
        await asyncio.sleep(0)
        assert pool.waiters == number + 1
    await pool.release(connection)
    newcomer = asyncio.create_task(borrow(20))
    await asyncio.gather(*borrowers, newcomer)
    assert served == list(range(21))


async def test_wait_queue_timeout(make_pool: MakePool) -> None:
    """At the end of `acquire_timeout` a waiter leaves the queue with an error of its own."""
    pool = make_pool(max_connections=1, acquire_timeout=0.02)
    connection = await pool.acquire(timeout=None)
    with pytest.raises(ConnectionPoolTimeoutError) as timed_out:
        await pool.acquire()
    assert isinstance(timed_out.value, TimeoutError)
    assert "busy=1" in str(timed_out.value)
    assert (pool.waiters, pool.stats.timeouts) == (0, 1)
    await pool.release(connection)
    assert pool.available_connections == 1, "it was not given to the one who had left"
    assert (await pool.acquire()).id == connection.id


async def test_wait_queue_timeout_of_one_serves_the_next(make_pool: MakePool) -> None:
    """A waiter that has timed out is not in the way of those behind it."""
    pool = make_pool(max_connections=1)
    connection = await pool.acquire()
    hasty = asyncio.create_task(pool.acquire(timeout=0.02))
    await until(lambda: pool.stats.waits == 2, "the first waits, or has waited")
    patient = asyncio.create_task(pool.acquire(timeout=None))
    with pytest.raises(ConnectionPoolTimeoutError):
        await hasty
    await pool.release(connection)
    assert (await patient).id == connection.id


# maxConnecting.


@pytest.mark.parametrize("most", [1, 2])
async def test_max_connecting_is_enforced(
    server: Server, make_pool: MakePool, doorman: Doorman, most: int
) -> None:
    """No more than maxConnecting connections are being established at a time."""
    pool = make_pool(max_connections=6, max_connecting=most, on_connect=doorman)
    acquiring = [asyncio.create_task(pool.acquire()) for _ in range(6)]
    await until(lambda: doorman.held == most, "as many as allowed are held")
    assert len(server.requests) == most
    doorman.opened.set()
    assert len(ids_of(await asyncio.gather(*acquiring))) == 6
    assert doorman.most_held == most


async def test_max_connecting_default_is_enforced(make_pool: MakePool, doorman: Doorman) -> None:
    """Unless told otherwise, no more than ten are being established at a time (CMAP: two)."""
    pool = make_pool(max_connections=15, on_connect=doorman)
    acquiring = [asyncio.create_task(pool.acquire()) for _ in range(15)]
    await until(lambda: doorman.held == 10, "ten are held")
    doorman.opened.set()
    await asyncio.gather(*acquiring)
    assert doorman.most_held == 10


async def test_max_connecting_timeout(
    server: Server, make_pool: MakePool, doorman: Doorman
) -> None:
    """The wait for one's turn among maxConnecting counts towards the wait queue's timeout."""
    pool = make_pool(max_connections=2, max_connecting=1, on_connect=doorman)
    acquiring = asyncio.create_task(pool.acquire())
    await until(lambda: doorman.held, "the first is held")
    with pytest.raises(ConnectionPoolTimeoutError):
        await pool.acquire(timeout=0.02)
    assert len(server.requests) == 1
    doorman.opened.set()
    assert await works(await acquiring)


async def test_max_connecting_is_overtaken_by_a_returned_connection(
    server: Server, make_pool: MakePool, doorman: Doorman
) -> None:
    """Who waits for its turn to connect takes a connection that is checked in meanwhile."""
    pool = make_pool(max_connections=3, max_connecting=1, on_connect=doorman)
    doorman.opened.set()
    connection = await pool.acquire()
    doorman.opened.clear()
    first = asyncio.create_task(pool.acquire())
    await until(lambda: doorman.held == 1, "the first is held")
    second = asyncio.create_task(pool.acquire())
    await until(lambda: pool.waiters == 2, "the second waits")
    await pool.release(connection)
    assert (await first).id == connection.id, "the oldest waiter, whoever the dial was begun for"
    doorman.opened.set()
    assert (await second).id != connection.id
    await until(lambda: not pool.snapshot().counts["connecting"], "both dials have ended")
    assert (len(server.requests), doorman.most_held) == (3, 1)


# minPoolSize.


async def test_min_pool_size_is_filled(server: Server, make_pool: MakePool) -> None:
    """A pool opens minPoolSize connections without a check-out; `start` returns with them."""
    pool = make_pool(min_connections=3)
    await pool.start()
    assert (pool.available_connections, len(server.requests)) == (3, 3)
    assert (await pool.acquire()).uses == 1


async def test_min_pool_size_is_not_above_max_pool_size(make_pool: MakePool) -> None:
    """A minPoolSize above maxPoolSize is cut down to it, with a warning."""
    with pytest.warns(UserWarning, match="min_connections=3 is above max_connections=2"):
        pool = make_pool(min_connections=3, max_connections=2)
    await pool.start()
    assert pool.total_connections == 2


async def test_min_pool_size_is_filled_within_max_connecting(
    make_pool: MakePool, doorman: Doorman
) -> None:
    """Filling the pool up obeys maxConnecting."""
    pool = make_pool(min_connections=5, max_connecting=2, on_connect=doorman)
    starting = asyncio.create_task(pool.start())
    await until(lambda: doorman.held == 2, "two are held")
    doorman.opened.set()
    await starting
    assert (pool.available_connections, doorman.most_held) == (5, 2)


async def test_min_pool_size_is_kept_through_the_idle_time(make_pool: MakePool) -> None:
    """Connections that are idle for too long go, but not below minPoolSize."""
    pool = make_pool(min_connections=2, idle_timeout=0.02, cleanup_interval=0.02)
    connections = [await pool.acquire() for _ in range(5)]
    for connection in connections:
        await pool.release(connection)
    await until(lambda: len(pool.connections) == 2, "three are gone")
    assert pool.stats.closes == {CloseReason.IDLE: 3}
    assert pool.available_connections == 2


@pytest.mark.usefixtures("no_backoff")
async def test_min_pool_size_is_filled_after_losses(server: Server, make_pool: MakePool) -> None:
    """What the server closes is replaced in the background, up to minPoolSize."""
    pool = make_pool(min_connections=2, cleanup_interval=0.02)
    await pool.start()
    lost = pool.connections
    assert len(lost) == 2
    for peer in list(server.open):
        peer.drop()
    await until(lambda: all(c.state is State.CLOSED for c in lost), "the losses are noticed")
    await until(lambda: pool.available_connections == 2, "there are two again")
    assert not ids_of(lost) & ids_of(pool.connections)


@pytest.mark.usefixtures("no_backoff")
async def test_min_pool_size_is_filled_after_errors(
    server: Server, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    """An error in filling the pool up is told, and not the end of it."""
    pool = make_pool(min_connections=1, max_retries=1, cleanup_interval=0.02)
    server.refuse(503)
    await pool.start()
    assert "503" in caplog.text
    await until(lambda: pool.available_connections == 1, "it is filled up")


# Checking in.


async def test_check_in_makes_a_connection_available(make_pool: MakePool) -> None:
    """A connection that is checked in is idle, and whoever comes next gets it."""
    pool = make_pool()
    connection = await pool.acquire()
    assert (pool.available_connections, pool.busy_connections) == (0, 1)
    await pool.release(connection)
    assert (pool.available_connections, pool.busy_connections) == (1, 0)
    assert (await pool.acquire()).id == connection.id


async def test_check_in_of_a_closed_connection(make_pool: MakePool) -> None:
    """A connection that its borrower has closed is not available after its check-in."""
    pool = make_pool(max_connections=1)
    connection = await pool.acquire()
    await connection.close()
    await pool.release(connection)
    assert (why_closed(connection), pool.available_connections) == (CloseReason.USER, 0)
    assert await works(await pool.acquire())


@pytest.mark.usefixtures("no_backoff")
async def test_check_in_of_a_lost_connection(server: Server, make_pool: MakePool) -> None:
    """A connection that was lost while it was out is not available after its check-in."""
    pool = make_pool(max_connections=1)
    connection = await pool.acquire()
    server.open[0].drop()
    with pytest.raises(ConnectionClosedError):
        await connection.recv()
    await pool.release(connection)
    assert (why_closed(connection), pool.available_connections) == (CloseReason.SERVER, 0)
    assert await works(await pool.acquire(timeout=10.0))


async def test_check_in_of_a_stale_generation(make_pool: MakePool) -> None:
    """A connection that was out when the pool was cleared is closed at its check-in."""
    pool = make_pool()
    connection = await pool.acquire()
    pool.expire_connections()
    assert await works(connection), "its borrower is not disturbed"
    await pool.release(connection)
    assert (why_closed(connection), pool.available_connections) == (CloseReason.EXPIRED, 0)


async def test_check_in_after_the_pool_was_closed(make_pool: MakePool) -> None:
    """A connection that is checked in to a closing pool is closed."""
    pool = make_pool()
    connection = await pool.acquire()
    closing = asyncio.create_task(pool.close_all(timeout=None))
    await until(lambda: pool.is_closed, "the pool is closing")
    assert await works(connection), "its borrower may finish"
    await pool.release(connection)
    await closing
    assert why_closed(connection) == CloseReason.POOL


# Clearing.


async def test_clear_expires_idle_connections(server: Server, make_pool: MakePool) -> None:
    """Idle connections of an earlier generation are closed at once."""
    pool = make_pool()
    connections = [await pool.acquire() for _ in range(3)]
    for connection in connections:
        await pool.release(connection)
    pool.expire_connections()
    assert [why_closed(connection) for connection in connections] == [CloseReason.EXPIRED] * 3
    await until(lambda: is_empty(pool) and not server.open, "their sockets are gone")


async def test_clear_fills_the_pool_to_its_min_size(make_pool: MakePool) -> None:
    """After a clear the pool is filled up again, with connections of the new generation."""
    pool = make_pool(min_connections=2, cleanup_interval=0.02)
    await pool.start()
    stale = pool.connections
    pool.expire_connections()
    await until(lambda: pool.available_connections == 2, "there are two again")
    assert not ids_of(stale) & ids_of(queues_of(pool).idle)


async def test_clear_replaces_pending_connections(
    server: Server, make_pool: MakePool, doorman: Doorman
) -> None:
    """What was being established when the pool was cleared is handed to nobody.

    Where CMAP fails the check-out that waits for it, this one gets the next connection.
    """
    pool = make_pool(on_connect=doorman)
    acquiring = asyncio.create_task(pool.acquire())
    await until(lambda: doorman.held, "the dial is under way")
    (stale,) = pool.connections
    pool.expire_connections()
    doorman.opened.set()
    assert await works(connection := await acquiring)
    assert connection.id != stale.id
    assert (why_closed(stale), len(server.requests)) == (CloseReason.EXPIRED, 2)


async def test_clear_does_not_clear_the_wait_queue(make_pool: MakePool) -> None:
    """Who waits at a clear waits on, and gets a connection of the new generation.

    This is where the pool differs from CMAP on purpose.
    """
    pool = make_pool(max_connections=1)
    stale = await pool.acquire()
    waiting = asyncio.create_task(pool.acquire(timeout=None))
    await until(lambda: pool.waiters == 1, "it waits")
    pool.expire_connections()
    await pool.release(stale)
    assert await works(connection := await waiting)
    assert connection.id != stale.id


# Closing.


async def test_close_destroys_idle_connections(server: Server, make_pool: MakePool) -> None:
    """When the close returns, every idle connection is closed and its socket gone."""
    pool = make_pool()
    connections = [await pool.acquire() for _ in range(3)]
    for connection in connections:
        await pool.release(connection)
    await pool.close_all()
    assert [why_closed(connection) for connection in connections] == [CloseReason.POOL] * 3
    assert is_empty(pool)
    await until(lambda: not server.open, "the server has seen them go")


async def test_close_fails_waiters(make_pool: MakePool) -> None:
    """Who waits when the pool is closed gets an error at once, while borrowers may finish."""
    pool = make_pool(max_connections=1)
    connection = await pool.acquire()
    waiting = [asyncio.create_task(pool.acquire(timeout=None)) for _ in range(3)]
    await until(lambda: pool.waiters == 3, "three wait")
    closing = asyncio.create_task(pool.close_all(timeout=None))
    for waiter in waiting:
        with pytest.raises(ConnectionPoolUnavailableError):
            await waiter
    assert await works(connection)
    assert not closing.done()
    await pool.release(connection)
    await closing


async def test_close_calls_off_pending_connections(
    server: Server, make_pool: MakePool, doorman: Doorman
) -> None:
    """What is being established when the pool is closed is closed, and its check-out fails."""
    pool = make_pool(max_connecting=1, on_connect=doorman)
    acquiring = [asyncio.create_task(pool.acquire()) for _ in range(2)]
    await until(lambda: doorman.held, "one dial is under way, and one waits for its turn")
    pending = pool.connections
    await pool.close_all()
    for acquire in acquiring:
        with pytest.raises(ConnectionPoolUnavailableError):
            await acquire
    assert [why_closed(connection) for connection in pending] == [CloseReason.POOL] * 2
    assert is_empty(pool)
    await until(lambda: not server.open, "the server has seen it go")


async def test_close_of_a_closed_pool_is_no_error(make_pool: MakePool) -> None:
    """A pool may be closed as often as one likes."""
    pool = make_pool(min_connections=1)
    await pool.start()
    await asyncio.gather(pool.close_all(), pool.close_all())
    await pool.close_all()
    assert pool.is_closed
