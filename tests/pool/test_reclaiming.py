"""A quota takes leases back: whoever waits has what is idle for longest, of whichever pool."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.conftest import MakePool, echoes, until, why_closed
from tests.support.inside import queues_of
from wspool import CloseReason, ConnectionUnavailableError, LocalQuota, WebsocketConnectionPool


async def made_idle(pool: WebsocketConnectionPool, count: int = 1) -> list[Any]:
    lent = [await pool.acquire_new() for _ in range(count)]
    for connection in lent:
        await pool.release(connection)
    return lent


async def test_who_waits_has_the_longest_idle_link_of_any_pool(make_pool: MakePool) -> None:
    quota = LocalQuota(3)
    first, second, third = (make_pool(quota=quota, idle_timeout=3600) for _ in range(3))
    [oldest] = await made_idle(first)
    [younger] = await made_idle(second)
    [youngest] = await made_idle(first)
    async with asyncio.timeout(5), third.get_connection() as connection:
        assert await echoes(connection)
        assert why_closed(oldest) == CloseReason.ROOM
        assert younger.is_connected
        assert youngest.is_connected
        assert not quota._is_missing()


async def test_no_more_are_closed_than_are_waited_for(make_pool: MakePool) -> None:
    quota = LocalQuota(6)
    rich, poor = make_pool(quota=quota), make_pool(quota=quota)
    await made_idle(rich, 6)
    async with asyncio.timeout(5):
        lent = await asyncio.gather(*(poor.acquire() for _ in range(2)))
    await asyncio.sleep(0.3)  # a sweep
    assert rich.available_connections == 4
    for connection in lent:
        await poor.release(connection)


async def test_what_comes_back_is_for_whoever_has_waited_longest(make_pool: MakePool) -> None:
    """Although others wait for it in its own pool, they came later."""
    quota = LocalQuota(1)
    busy, other = (make_pool(quota=quota, acquire_timeout=None) for _ in range(2))
    holding = await busy.acquire()
    order: list[str] = []

    async def borrow(pool: WebsocketConnectionPool, name: str) -> None:
        async with pool.get_connection():
            order.append(name)

    tasks = [asyncio.create_task(borrow(other, "first"))]
    await until(lambda: quota._waiting, "its dial waits")
    tasks.append(asyncio.create_task(borrow(busy, "second")))
    await until(lambda: busy.waiters == 1, "it waits")
    await busy.release(holding)
    async with asyncio.timeout(10):
        await asyncio.gather(*tasks)
    assert order == ["first", "second"]
    assert why_closed(holding) == CloseReason.ROOM


async def test_what_comes_back_is_lent_on_while_its_own_pool_has_waited_longest(
    make_pool: MakePool,
) -> None:
    quota = LocalQuota(1)
    busy, other = (make_pool(quota=quota, acquire_timeout=None) for _ in range(2))
    holding = await busy.acquire()
    own = asyncio.create_task(busy.acquire())
    await until(lambda: busy.waiters == 1, "it waits")
    later = asyncio.create_task(other.acquire())
    await until(lambda: other.waiters == 1, "it waits, too")
    await busy.release(holding)
    connection = await own
    assert connection.id == holding.id
    assert not later.done()
    await busy.release(connection)
    await other.release(await later)


async def test_nobody_is_closed_for_a_dial_that_nobody_waits_for(make_pool: MakePool) -> None:
    """Two pools that keep some ready would take them from each other for ever."""
    quota = LocalQuota(2)
    first = make_pool(quota=quota, min_idle=2, cleanup_interval=0.05)
    await first.start()
    await until(lambda: first.available_connections == 2, "they are ready")
    second = make_pool(quota=quota, min_idle=2, cleanup_interval=0.05)
    starting = asyncio.create_task(second.start())
    await until(lambda: quota._waiting, "it waits for a lease")
    await asyncio.sleep(0.6)  # sweeps
    assert first.stats.closes == {}
    assert second.total_connections == 0
    async with asyncio.timeout(5), second.get_connection():
        assert first.stats.closes == {CloseReason.ROOM: 1}
    await first.close_all()
    await starting


async def test_all_busy_the_one_that_waits_gets_its_own_error(make_pool: MakePool) -> None:
    quota = LocalQuota(1)
    busy, other = make_pool(quota=quota), make_pool(quota=quota)
    async with busy.get_connection():
        with pytest.raises(ConnectionUnavailableError, match="LocalQuota limit=1"):
            await other.acquire(timeout=0.1)
    assert queues_of(other).idle == {}


async def test_those_who_came_later_do_not_starve_one_pool(make_pool: MakePool) -> None:
    """A pool that always has somebody in its line lets the other have its turn."""
    quota = LocalQuota(2)
    hot, cold = (make_pool(quota=quota, acquire_timeout=None) for _ in range(2))
    is_over = False

    async def keep_busy() -> None:
        while not is_over:
            async with hot.get_connection() as connection:
                assert await echoes(connection)

    tasks = [asyncio.create_task(keep_busy()) for _ in range(8)]
    await until(lambda: hot.waiters >= 4, "they wait")
    for _ in range(10):
        async with asyncio.timeout(2), cold.get_connection() as connection:
            assert await echoes(connection)
    is_over = True
    await asyncio.gather(*tasks)


async def test_one_that_prefers_a_context_takes_what_is_idle_when_its_dial_waits(
    make_pool: MakePool,
) -> None:
    quota = LocalQuota(2)
    other, pool = make_pool(quota=quota), make_pool(quota=quota)
    async with other.get_connection():
        async with pool.get_connection() as connection:
            connection.context = "b"
        async with asyncio.timeout(5), pool.get_connection(prefer="a") as connection:
            assert connection.context is None
