"""`min_idle`: what is ready beyond what is in use, before anybody asks for it."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from tests.conftest import MakePool, echoes, until
from tests.support.inside import queues_of
from wspool import LocalQuota, WebsocketConnection
from wspool.testing import Server

SOON = 0.05
"""Seconds between clean-ups."""

NEVER = 3600.0
"""Seconds between clean-ups, in tests of what does not wait for the next one."""


async def test_start_opens_them_and_idle_timeout_spares_them(make_pool: MakePool) -> None:
    """Those beyond go, however many of the others are in use."""
    pool = make_pool(min_idle=2, idle_timeout=0.1, cleanup_interval=SOON)
    await pool.start()
    assert pool.available_connections == 2
    lent = [await pool.acquire() for _ in range(5)]
    await until(lambda: pool.available_connections == 2, "two more are ready")
    for connection in lent[:3]:
        await pool.release(connection)
    assert pool.available_connections == 5
    await until(lambda: pool.available_connections == 2, "the surplus is gone")
    now = pool._router.clock()
    await until(lambda: pool._router.clock() - now > 0.3, "the rest is too old as well")
    assert pool.available_connections == 2
    assert pool.stats.closes == {"idle": 3}


async def test_each_checkout_begins_the_next_dial_at_once(make_pool: MakePool) -> None:
    pool = make_pool(min_idle=2, cleanup_interval=NEVER)
    await pool.start()
    for dials in (3, 4, 5):
        await pool.acquire()
        assert len(queues_of(pool).connecting) == 1
        assert pool.stats.dials == dials
        await until(lambda: pool.available_connections == 2, "it is ready")
    assert pool.stats.waits == 0


async def test_one_that_was_waited_for_begins_the_next_dials_too(make_pool: MakePool) -> None:
    pool = make_pool(min_idle=1, cleanup_interval=NEVER)
    await pool.start()
    lent = await asyncio.gather(*(pool.acquire() for _ in range(3)))
    assert len(lent) == 3
    await until(lambda: pool.available_connections == 1, "one is ready beyond those in use")
    assert pool.stats.dials == 4


async def test_a_connection_that_comes_back_is_one_of_them(make_pool: MakePool) -> None:
    """No more are opened for a pool that is used by one at a time."""
    pool = make_pool(min_idle=1, cleanup_interval=NEVER)
    await pool.start()
    for _ in range(10):
        async with pool.get_connection() as connection:
            assert await echoes(connection)
    await until(lambda: pool.available_connections == 2, "nothing is under way")
    assert pool.stats.dials == 2


async def test_they_keep_to_max_connections(server: Server, make_pool: MakePool) -> None:
    pool = make_pool(min_idle=2, max_connections=3, cleanup_interval=NEVER)
    await pool.start()
    lent = [await pool.acquire() for _ in range(3)]
    assert pool.stats.dials == 3
    await pool.release(lent.pop())
    again = await pool.acquire()
    assert pool.stats.dials == server.most_open == 3
    assert await echoes(again)


async def test_start_keeps_to_a_limit_that_was_lowered_before(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool(min_idle=2, min_connections=2, warmup_connections=3, max_connections=3)
    pool.resize(1)
    await pool.start()
    assert pool.total_connections == pool.stats.dials == server.most_open == 1


async def test_they_keep_to_the_quota(server: Server, make_pool: MakePool) -> None:
    """A dial that waits for a lease of it is one dial, however many checkouts there are."""
    pool = make_pool(min_idle=1, quota=LocalQuota(2), cleanup_interval=NEVER)
    await pool.start()
    first, second = await pool.acquire(), await pool.acquire()
    await until(lambda: queues_of(pool).connecting, "the next one waits for the quota")
    for _ in range(5):
        await pool.release(first)
        first = await pool.acquire()
    assert len(queues_of(pool).connecting) == 1
    assert server.most_open == 2
    await pool.release(second, force_remove=True)
    await until(lambda: pool.available_connections == 1, "the lease is there")
    assert server.most_open == 2


async def test_they_keep_to_max_connecting(server: Server, make_pool: MakePool) -> None:
    pool = make_pool(min_idle=3, max_connecting=1, cleanup_interval=NEVER)
    server.delay = None
    starting = asyncio.create_task(pool.start())
    await until(lambda: server.requests, "the first handshake is under way")
    assert len(queues_of(pool).connecting) == 3
    assert sum(link.number > 0 for link in queues_of(pool).connecting) == 1
    assert len(server.requests) == 1
    await pool.close_all()
    await starting


async def test_a_place_that_is_free_is_refilled_without_a_look(make_pool: MakePool) -> None:
    """At the limit, one that has served once makes way for the next as soon as it is gone."""
    pool = make_pool(min_idle=2, max_uses=1, max_connections=2, cleanup_interval=NEVER)
    await pool.start()
    for _ in range(3):
        async with pool.get_connection() as connection:
            assert await echoes(connection)
        await until(lambda: pool.available_connections == 2, "it is replaced")
    assert pool.stats.waits == 0


async def test_a_lost_minimum_is_refilled_at_the_limit_without_a_look(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool(min_connections=2, max_connections=2, cleanup_interval=NEVER)
    await pool.start()
    async with pool.get_connection() as connection:
        assert await echoes(connection)
    server.peers[connection.id - 1].drop()
    await until(lambda: pool.stats.dials == 3, "the loss is noticed, and replaced")
    await until(lambda: pool.available_connections == 2, "it is back")


async def test_a_dial_that_was_refused_is_not_repeated_before_the_next_checkout_or_look(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool(min_idle=1, max_retries=1, cleanup_interval=NEVER)
    await pool.start()
    server.refusals = [web.Response(status=403) for _ in range(5)]
    connection = await pool.acquire()
    await until(lambda: pool.stats.dial_failures == 1, "the spare is refused")
    await until(lambda: len(queues_of(pool).all) == 1, "its place is free")
    assert pool.stats.dials == 2
    await pool.release(connection)
    await pool.acquire()
    assert pool.stats.dials == 3


async def test_nothing_is_opened_beyond_those_who_wait(server: Server, make_pool: MakePool) -> None:
    """While somebody waits each dial is the line's."""
    pool = make_pool(min_idle=2, max_connections=10, cleanup_interval=NEVER)
    await pool.start()
    server.delay = None
    taken = [await pool.acquire(), await pool.acquire()]
    waiting = [asyncio.create_task(pool.acquire(timeout=None)) for _ in range(4)]
    await until(lambda: pool.waiters == 4, "they wait")
    pool.expire_connections()
    assert len(queues_of(pool).connecting) == 4
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    for connection in taken:
        await pool.release(connection)


async def test_expired_ones_are_replaced_but_not_in_a_closed_pool(make_pool: MakePool) -> None:
    pool = make_pool(min_idle=2, min_connections=1, cleanup_interval=NEVER)
    await pool.start()
    pool.expire_connections()
    await until(lambda: pool.available_connections == 2, "they are replaced")
    await pool.close_all()
    dials = pool.stats.dials
    pool.expire_connections()
    assert pool.stats.dials == dials


@pytest.mark.parametrize("at_a_time", [1, 10])
async def test_one_session_per_connection_does_not_begin_with_a_handshake(
    server: Server, make_pool: MakePool, at_a_time: int
) -> None:
    """40 sessions, each begun when one is ready, wait for none; each has its own connection."""
    server.delay = 0.15
    pool = make_pool(min_idle=2, max_uses=1, cleanup_interval=NEVER)
    await pool.start()
    lent: list[WebsocketConnection] = []
    for _ in range(40):
        await until(lambda: pool.available_connections, "one is ready")
        lent.append(await pool.acquire())
        assert await echoes(lent[-1])
        if len(lent) >= at_a_time:
            await pool.release(lent.pop(0))
    for connection in lent:
        await pool.release(connection)
    assert pool.stats.borrows == 40
    assert pool.stats.waits == 0
    assert len({connection.id for connection in lent}) == len(lent)


@pytest.mark.usefixtures("fair_clock")
async def test_of_40_overlapping_sessions_one_is_cold_at_most(
    server: Server, make_pool: MakePool
) -> None:
    """They begin every 100 ms, whatever is ready; a handshake takes 150 ms, a session a second."""
    pool = make_pool(min_idle=2, max_uses=1, acquire_timeout=None, cleanup_interval=NEVER)
    await pool.start()
    server.delay = 0.15

    async def session() -> None:
        async with pool.get_connection() as connection:
            assert await echoes(connection)
            await asyncio.sleep(1.0)

    async with asyncio.TaskGroup() as sessions:
        for _ in range(40):
            sessions.create_task(session())
            await asyncio.sleep(0.1)
    assert pool.stats.borrows == 40
    assert pool.stats.waits <= 1
    assert server.most_open >= 10
