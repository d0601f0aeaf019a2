"""Whom a returned connection goes to, and what a changed limit costs whom."""

from __future__ import annotations

import asyncio

import pytest

from tests.conftest import MakePool, until
from wspool import ConnectionPoolExhaustedError, WebsocketConnection, WebsocketConnectionPool
from wspool.testing import Server


@pytest.fixture
def pool(make_pool: MakePool) -> WebsocketConnectionPool:
    return make_pool(max_connections=3)


async def borrow_all(pool: WebsocketConnectionPool) -> list[WebsocketConnection]:
    return [await pool.acquire() for _ in range(3)]


async def test_room_is_made_only_for_the_acquire_new_that_is_next(
    pool: WebsocketConnectionPool,
) -> None:
    """One further down the line does not cost those before it a connection that they could use."""
    first, second, _ = await borrow_all(pool)
    waiting = [
        asyncio.create_task(acquire(timeout=None))
        for acquire in (pool.acquire_new, pool.acquire, pool.acquire, pool.acquire_new)
    ]
    await until(lambda: pool.waiters == 4, "all wait")
    await pool.release(first)
    assert pool.stats.closes == {"room": 1}
    await pool.release(second)
    assert pool.stats.closes == {"room": 1}
    assert (await waiting[1]).id == second.id
    new = await waiting[0]
    assert new.uses == 1
    for task in waiting:
        task.cancel()


async def test_dials_that_outlive_a_resize_leave_no_surplus(
    server: Server, pool: WebsocketConnectionPool
) -> None:
    server.delay = 0.05
    acquiring = [asyncio.create_task(pool.acquire()) for _ in range(3)]
    await until(lambda: len(server.requests) == 3, "three dials are under way")
    for task in acquiring:
        task.cancel()
    await asyncio.wait(acquiring)
    pool.resize(1)
    await until(lambda: len(pool.connections) == 1, "the surplus is gone")
    assert pool.available_connections == 1


async def test_only_the_surplus_is_closed_after_a_resize(pool: WebsocketConnectionPool) -> None:
    """What is being closed already does not count as surplus again."""
    connections = await borrow_all(pool)
    pool.resize(2)
    for connection in connections:
        await pool.release(connection)
    assert pool.available_connections == 2
    assert pool.stats.closes == {"room": 1}


async def test_the_goodbye_of_a_surplus_connection_is_no_place_to_wait_for(
    pool: WebsocketConnectionPool,
) -> None:
    first, _, _ = await borrow_all(pool)
    pool.resize(2)
    await pool.release(first)
    with pytest.raises(ConnectionPoolExhaustedError):
        await pool.acquire(timeout=0)
