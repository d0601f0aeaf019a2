"""Links that go soon are lent until their replacements are open: expiring with grace, lifetimes."""

from __future__ import annotations

import asyncio

import pytest

from tests.conftest import MakePool, echoes, until
from tests.support.inside import ids_of, link_of, queues_of, router_of
from wspool import CloseReason, LocalQuota, State, WebsocketConnection, WebsocketConnectionPool
from wspool.testing import Server

SOON = 0.05
"""Seconds between clean-ups."""

LONG = 60.0
"""Seconds of grace that no test sees the end of."""


async def borrowed(pool: WebsocketConnectionPool, count: int) -> list[WebsocketConnection]:
    return [await pool.acquire() for _ in range(count)]


async def made_idle(pool: WebsocketConnectionPool, count: int) -> list[WebsocketConnection]:
    lent = await borrowed(pool, count)
    for connection in lent:
        await pool.release(connection)
    return lent


def why_closed(connection: WebsocketConnection) -> str:
    assert connection.state is State.CLOSED
    return connection.history[-1].why


# Grace.


async def test_an_old_one_is_lent_until_its_replacement_is_open(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool()
    busy = await pool.acquire()
    server.delay = None
    pool.expire_connections(grace=LONG)
    assert len(queues_of(pool).connecting) == 1
    await pool.release(busy)
    for _ in range(3):
        async with pool.get_connection() as connection:
            assert connection.id == 1
            assert await echoes(connection)
    assert pool.stats.dials == 2
    await pool.close_all()


async def test_it_closes_when_the_replacement_is_open(make_pool: MakePool) -> None:
    """An idle one then, one in use when it is given back."""
    pool = make_pool()
    first, second = await borrowed(pool, 2)
    pool.expire_connections(grace=LONG)
    await pool.release(second)
    await until(lambda: pool.stats.dials == 4 and pool.available_connections == 2, "both are open")
    assert why_closed(second) == CloseReason.EXPIRED
    assert await echoes(first, "undisturbed")
    await pool.release(first)
    assert why_closed(first) == CloseReason.EXPIRED
    assert ids_of(queues_of(pool).idle) == {3, 4}
    assert not router_of(pool).replacing.outdated


async def test_what_nobody_needs_is_not_replaced_and_closes_when_the_grace_is_over(
    make_pool: MakePool,
) -> None:
    pool = make_pool(cleanup_interval=3600.0)
    old = await made_idle(pool, 4)
    pool.expire_connections(grace=0.3)
    async with pool.get_connection() as connection:
        assert connection.id == 4
    await until(lambda: 5 in ids_of(queues_of(pool).idle), "the replacement is open")
    assert why_closed(connection) == CloseReason.EXPIRED
    assert pool.available_connections == 4
    began = router_of(pool).clock()
    await until(lambda: pool.available_connections == 1, "the grace is over")
    assert router_of(pool).clock() - began < 5.0
    assert {why_closed(one) for one in old} == {CloseReason.EXPIRED}
    assert pool.stats.dials == 5


async def test_within_the_grace_all_of_them_are_lent(make_pool: MakePool, server: Server) -> None:
    pool = make_pool()
    await made_idle(pool, 3)
    server.delay = None
    pool.expire_connections(grace=LONG)
    assert ids_of(await borrowed(pool, 3)) == {1, 2, 3}
    assert len(queues_of(pool).connecting) == 3
    assert pool.stats.waits == 3
    await pool.close_all()


async def test_after_the_grace_one_in_use_goes_when_it_is_given_back(make_pool: MakePool) -> None:
    pool = make_pool(max_connections=1)
    busy = await pool.acquire()
    pool.expire_connections(grace=0.01)
    link = link_of(busy)
    await until(lambda: link.clock() >= link.retire_at, "the grace is over")
    assert await echoes(busy, "undisturbed")
    await pool.release(busy)
    assert why_closed(busy) == CloseReason.EXPIRED


@pytest.mark.parametrize("options", [{"min_connections": 2}, {"min_idle": 2}], ids=str)
async def test_what_is_kept_is_replaced_though_nobody_needs_it(
    server: Server, make_pool: MakePool, options: dict[str, int]
) -> None:
    """At no time are fewer ready than are to be kept."""
    pool = make_pool(**options, warmup_connections=4, cleanup_interval=3600.0)
    await pool.start()
    server.delay = 0.05
    least: list[int] = []
    pool.subscribe(lambda event: least.append(pool.available_connections))
    pool.expire_connections(grace=1.0)
    await until(lambda: ids_of(queues_of(pool).idle) == {5, 6}, "the new ones alone are left")
    assert min(least) >= 2
    assert pool.stats.dials == 6


async def test_at_the_limit_an_idle_one_goes_first_one_at_a_time(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool(min_connections=3, max_connections=3, cleanup_interval=3600.0)
    await pool.start()
    server.delay = 0.02
    least: list[int] = []
    pool.subscribe(lambda event: least.append(pool.total_connections))
    pool.expire_connections(grace=LONG)
    await until(lambda: ids_of(queues_of(pool).idle) == {4, 5, 6}, "all are replaced")
    assert server.most_open == 3
    assert min(least) >= 2
    assert pool.stats.closes == {"expired": 3}


async def test_at_the_limit_those_that_nobody_needs_go_first(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool(max_connections=3, cleanup_interval=3600.0)
    old = await made_idle(pool, 3)
    busy = await pool.acquire()
    pool.expire_connections(grace=LONG)
    await until(lambda: pool.stats.dials == 4 and pool.available_connections == 2, "one is new")
    assert why_closed(old[0]) == CloseReason.EXPIRED
    assert old[1].state is State.IDLE
    assert busy.state is State.BUSY
    assert server.most_open == 3


async def test_at_the_limit_nobody_loses_what_it_waits_for(
    server: Server, make_pool: MakePool
) -> None:
    """While somebody waits, old ones are handed on and none is closed for a replacement."""
    pool = make_pool(max_connections=1, cleanup_interval=SOON)
    busy = await pool.acquire()
    pool.expire_connections(grace=LONG)
    for _ in range(3):
        waiting = asyncio.create_task(pool.acquire(timeout=None))
        await until(lambda: pool.waiters, "it waits")
        await pool.release(busy)
        busy = await waiting
        assert busy.id == 1
    assert pool.stats.dials == 1
    await pool.release(busy)
    await until(lambda: ids_of(queues_of(pool).idle) == {2}, "nobody needs it any more")
    assert server.most_open == 1


async def test_a_refused_replacement_costs_no_old_one(server: Server, make_pool: MakePool) -> None:
    """The next borrower has it tried again."""
    pool = make_pool(max_retries=1, cleanup_interval=3600.0)
    busy = await pool.acquire()
    server.refuse(403)
    pool.expire_connections(grace=LONG)
    await pool.release(busy)
    await until(lambda: pool.stats.dial_failures, "it is refused")
    async with pool.get_connection() as connection:
        assert connection.id == 1
        assert await echoes(connection)
    await until(lambda: ids_of(queues_of(pool).idle) == {3}, "it is replaced")


async def test_a_dial_under_way_is_old_too(server: Server, make_pool: MakePool) -> None:
    """It may have read the credentials of before; whoever waits for it gets it all the same."""
    pool = make_pool()
    server.delay = 0.05
    acquiring = asyncio.create_task(pool.acquire())
    await until(lambda: server.requests, "the handshake has begun")
    pool.expire_connections(grace=LONG)
    old = await acquiring
    assert old.id == 1
    await until(lambda: pool.available_connections == 1, "the replacement is open")
    await pool.release(old)
    assert why_closed(old) == CloseReason.EXPIRED


async def test_expiring_without_grace_ends_the_grace_of_before(make_pool: MakePool) -> None:
    pool = make_pool(max_connections=2)
    idle, busy = await borrowed(pool, 2)
    await pool.release(idle)
    pool.expire_connections(grace=LONG)
    pool.expire_connections()
    assert why_closed(idle) == CloseReason.EXPIRED
    await pool.release(busy)
    assert why_closed(busy) == CloseReason.EXPIRED


async def test_a_later_grace_does_not_prolong_an_earlier_one(make_pool: MakePool) -> None:
    pool = make_pool(cleanup_interval=SOON)
    await made_idle(pool, 2)
    pool.expire_connections(grace=0.1)
    pool.expire_connections(grace=LONG)
    await until(lambda: not pool.total_connections, "the earlier one is over")
    assert pool.stats.closes == {"expired": 2}


async def test_the_quota_is_kept(server: Server, make_pool: MakePool) -> None:
    pool = make_pool(quota=LocalQuota(1), cleanup_interval=SOON)
    busy = await pool.acquire()
    pool.expire_connections(grace=0.2)
    await pool.release(busy)
    await until(lambda: ids_of(queues_of(pool).idle) == {2}, "its lease is free after the grace")
    assert server.most_open == 1


@pytest.mark.parametrize(
    ("grace", "error"),
    [(-1, ValueError), (float("nan"), ValueError), ("5", TypeError), (None, TypeError)],
)
async def test_a_wrong_grace_is_an_error_and_nothing_happens(
    make_pool: MakePool, grace: float, error: type[Exception]
) -> None:
    pool = make_pool()
    await made_idle(pool, 1)
    with pytest.raises(error, match="grace is"):
        pool.expire_connections(grace)
    assert pool.available_connections == 1


async def test_with_a_margin_nobody_waits_and_the_limit_is_kept(
    server: Server, make_pool: MakePool
) -> None:
    """8 workers go on while all their connections are replaced, one by one."""
    pool = make_pool(max_connections=10, acquire_timeout=None)
    await made_idle(pool, 8)
    server.delay = 0.15
    is_over = False

    async def work() -> None:
        while not is_over:
            async with pool.get_connection() as connection:
                assert await echoes(connection)

    workers = [asyncio.create_task(work()) for _ in range(8)]
    await until(lambda: pool.busy_connections == 8, "all work")
    dials, waits = pool.stats.dials, pool.stats.waits
    pool.expire_connections(grace=LONG)
    await until(lambda: pool.stats.closes["expired"] == dials, "all are replaced")
    is_over = True
    await asyncio.gather(*workers)
    assert pool.stats.waits == waits
    assert pool.stats.dials == 2 * dials
    assert server.most_open <= 10


# Lifetimes.


@pytest.mark.usefixtures("fair_clock")
@pytest.mark.parametrize("options", [{"min_connections": 2}, {"min_idle": 2}], ids=str)
async def test_what_is_kept_and_grows_old_is_replaced_first(
    server: Server, make_pool: MakePool, options: dict[str, int]
) -> None:
    pool = make_pool(**options, max_lifetime=1.0, cleanup_interval=0.01)
    await pool.start()
    server.delay = 0.01
    least: list[int] = []
    pool.subscribe(lambda event: least.append(pool.available_connections))
    await until(lambda: pool.stats.closes["lifetime"] == 4, "two generations have gone")
    assert min(least) >= 2
    assert server.most_open <= 4


async def test_nobody_is_older_than_its_lifetime(server: Server, make_pool: MakePool) -> None:
    """Though it cannot be replaced."""
    pool = make_pool(min_connections=1, max_lifetime=0.2, max_retries=1, cleanup_interval=0.01)
    await pool.start()
    server.refuse(403, times=1000)
    [old] = pool.connections
    await until(lambda: old.state is State.CLOSED, "it is gone")
    assert why_closed(old) == CloseReason.LIFETIME


async def test_what_is_not_kept_and_grows_old_is_not_replaced(make_pool: MakePool) -> None:
    pool = make_pool(min_connections=1, max_lifetime=0.5, cleanup_interval=0.01)
    await made_idle(pool, 3)
    await until(lambda: pool.stats.closes["lifetime"] == 3, "all have gone")
    assert pool.stats.dials == 4
