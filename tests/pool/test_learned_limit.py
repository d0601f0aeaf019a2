"""The server's own limit: learned from its refusals, kept to, and asked about by one at a time.

The pauses between probes are seconds; here they are shortened.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from tests.conftest import MakePool, echoes, until
from tests.support.crowd import Crowded, Evicting, crowd, many
from tests.support.inside import queues_of, router_of
from wspool import (
    ConnectionClosedError,
    ConnectionPoolExhaustedError,
    ConnectionPoolTimeoutError,
    ConnectionUnavailableError,
    LocalQuota,
    WebsocketConnection,
    WebsocketConnectionPool,
    WebsocketError,
    events,
)
from wspool._pool import limit as limit_module
from wspool.testing import Server

PAUSE = 0.2
"""Seconds to the first probe."""


def is_full(error: WebsocketError) -> bool:
    """Return whether a provider that answers 403 or closes with 4008 is full."""
    match error:
        case ConnectionUnavailableError():
            return error.status == 403
        case ConnectionClosedError():
            return error.code == 4008
    return False


@pytest.fixture
def pools(make_pool: MakePool) -> Callable[..., WebsocketConnectionPool]:
    """Make pools that probe sooner."""

    def make(**options: Any) -> WebsocketConnectionPool:
        pool = make_pool(**{"cleanup_interval": 0.05} | options)
        router_of(pool).limit.first_pause = PAUSE
        return pool

    return make


async def hold(pool: WebsocketConnectionPool, count: int) -> list[WebsocketConnection]:
    """Borrow so many that live."""
    held = [await pool.acquire(timeout=None) for _ in range(count)]
    for connection in held:
        assert await echoes(connection)
    return held


# Learning.


@pytest.mark.parametrize("refusal", [429, 503, 403, 1013, 4008])
async def test_many_who_are_patient_see_no_error_and_the_server_few_dials(
    refusal: int, make_pool: MakePool
) -> None:
    """Of 40 that want 50 connections: what has begun with the first refusal, and one probe."""
    async with Crowded(5, refusal) as server:
        pool = make_pool(uri=server.uri, is_full=is_full)
        outcome = await crowd(pool, 2.0)
        assert outcome.errors == []
        assert outcome.loans > 20
        assert pool.learned_limit == 5
        assert server.refused <= 10
        assert pool.trouble is None
        assert pool.total_connections == 5
        await pool.close_all()


async def test_the_first_refusal_calls_off_all_other_dials(make_pool: MakePool) -> None:
    """Those that wait for their turn, and those that wait out a failure."""
    async with Crowded(2, 429) as server:
        pool = make_pool(uri=server.uri, max_connecting=3)
        first, second = await hold(pool, 2)
        waiting = [asyncio.create_task(pool.acquire(timeout=None)) for _ in range(20)]
        await until(lambda: pool.learned_limit == 2, "it is learned")
        assert not queues_of(pool).connecting
        assert server.refused <= 3
        assert pool.waiters == 20
        assert await echoes(first)
        await pool.release(second)
        await until(lambda: pool.waiters == 19, "one is served by what comes back")
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await pool.close_all()


async def test_one_whose_answer_is_under_way_may_still_be_admitted(
    server: Server, make_pool: MakePool
) -> None:
    """It was at the server before the one that was refused; the limit counts it afterwards."""
    pool = make_pool()
    await hold(pool, 1)
    server.delay = 0.3
    slow = asyncio.create_task(pool.acquire(timeout=None))
    await until(lambda: len(server.requests) == 2, "it is at the server")
    server.delay, server.refusals = 0.0, [web.Response(status=429)]
    late = asyncio.create_task(pool.acquire(timeout=None))
    await until(lambda: pool.learned_limit == 1, "the other is refused")
    connection = await slow
    assert await echoes(connection)
    await until(lambda: pool.learned_limit == 2, "two are admitted")
    await pool.release(connection)
    assert await echoes(await late)


async def test_a_refusal_while_nothing_is_open_teaches_nothing(
    server: Server, make_pool: MakePool, no_backoff: None
) -> None:
    """The first five dials of an empty pool are refused: a rate limit, or a ban."""
    pool = make_pool(max_connections=10)
    server.refuse(429, times=5)
    outcome = await crowd(pool, 0.5)
    assert outcome.errors == []
    assert pool.learned_limit is None
    assert pool.total_connections == 10


async def test_a_ban_is_the_gates_business(server: Server, make_pool: MakePool) -> None:
    pool = make_pool(max_retries=1)
    server.refuse(429)
    with pytest.raises(ConnectionUnavailableError):
        await pool.acquire(timeout=None)
    assert pool.learned_limit is None
    assert pool.trouble is not None


async def test_after_a_refusal_with_nothing_open_a_success_wakes_one_other_dial(
    server: Server, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a server that turns out to be full is not asked by all of them at once."""
    monkeypatch.setattr("backoff.full_jitter", lambda longest: 600.0)
    pool = make_pool()
    server.refuse(429, times=9)
    server.delay = 0.02
    waiting = [asyncio.create_task(pool.acquire(timeout=None)) for _ in range(10)]
    done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    [served] = done
    server.refuse(429, times=9)
    assert await echoes(served.result())
    await until(lambda: pool.learned_limit == 1, "one has asked again")
    assert len(server.requests) == 11
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_and_all_others_when_that_one_is_admitted(
    server: Server, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backoff.full_jitter", lambda longest: 600.0)
    pool = make_pool()
    server.refuse(429, times=9)
    server.delay = 0.02
    waiting = [asyncio.create_task(pool.acquire(timeout=None)) for _ in range(10)]
    done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for served in done:
        assert await echoes(served.result())
    async with asyncio.timeout(10.0):
        await asyncio.gather(*waiting)
    assert pool.learned_limit is None
    assert pool.total_connections == 10


async def test_learn_limit_false_is_the_behaviour_without_it(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool(learn_limit=False, max_retries=1)
    await hold(pool, 1)
    server.refuse(429)
    with pytest.raises(ConnectionUnavailableError) as caught:
        await pool.acquire(timeout=0)
    assert caught.value.status == 429
    assert pool.learned_limit is None
    assert pool.trouble is not None


async def test_a_close_during_on_connect_is_a_refusal_too(make_pool: MakePool) -> None:
    async def greet(connection: WebsocketConnection) -> None:
        assert await echoes(connection, "hello")

    seen: list[WebsocketError] = []

    def note(error: WebsocketError) -> bool:
        seen.append(error)
        return is_full(error)

    async with Crowded(2, 4008, after=0.05) as server:
        pool = make_pool(uri=server.uri, on_connect=greet, is_full=note)
        await hold(pool, 2)
        with pytest.raises(ConnectionPoolExhaustedError):
            await pool.acquire(timeout=0)
        assert pool.learned_limit == 2
        [error] = seen
        assert isinstance(error, ConnectionClosedError)
        assert (error.code, error.reason) == (4008, "full")
        await pool.close_all()


async def test_a_close_that_comes_late_costs_its_borrower_only(make_pool: MakePool) -> None:
    async with Crowded(2, 1013, after=0.05) as server:
        pool = make_pool(uri=server.uri)
        first, _ = await hold(pool, 2)
        async with pool.get_connection(timeout=0) as connection:
            with pytest.raises(ConnectionClosedError):
                await connection.recv()
        assert pool.learned_limit == 2
        assert pool.trouble is None
        assert await echoes(first)
        await pool.close_all()


async def test_where_a_refusal_follows_the_handshake_that_of_others_says_nothing(
    make_pool: MakePool,
) -> None:
    """A server that closes everybody after its handshake admits nobody."""
    async with Crowded(0, 1013, after=0.05) as server:
        pool = make_pool(uri=server.uri, warmup_connections=10)
        await pool.start()
        await until(lambda: server.refused == 10, "it has closed all")
        await until(lambda: not pool.total_connections, "that is noticed")
        assert pool.learned_limit is None
        assert pool.trouble is not None
        await pool.close_all()


# While it holds.


async def test_one_that_may_not_wait_is_told_what_the_server_said(
    server: Server, make_pool: MakePool
) -> None:
    """The one whose dial is refused, and all who come later, for whom none is made."""
    pool = make_pool()
    held = await hold(pool, 3)
    server.refuse(429)
    for _ in range(3):
        with pytest.raises(ConnectionPoolExhaustedError) as caught:
            await pool.acquire(timeout=0)
        assert not isinstance(caught.value, ConnectionPoolTimeoutError)
        text = str(caught.value)
        assert "the server answered 429" in text
        assert "max=50 (the server admits 3)" in text
        assert "pass timeout=" in text
    assert len(server.requests) == 4
    await pool.release(held.pop())
    assert await pool.acquire(timeout=0)


async def test_the_patient_wait_in_order_and_to_their_timeout(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool()
    held = await hold(pool, 2)
    server.refuse(429)
    order: list[int] = []

    async def wait(number: int) -> None:
        async with pool.get_connection(timeout=None):
            order.append(number)

    waiting = []
    for number in range(5):
        waiting.append(asyncio.create_task(wait(number)))
        await until(lambda: pool.waiters == len(waiting), "it waits")
        await until(lambda: pool.learned_limit == 2, "no dial is made for it")
    with pytest.raises(ConnectionPoolTimeoutError, match="the server admits 2"):
        await pool.acquire(timeout=0.1)
    for connection in held:
        await pool.release(connection)
    await asyncio.gather(*waiting)
    assert order == [0, 1, 2, 3, 4]
    assert len(server.requests) == 3


async def test_a_full_server_is_no_trouble_and_closes_no_gate(
    server: Server, make_pool: MakePool
) -> None:
    """One that is lost is replaced at once, `Retry-After` or not."""
    pool = make_pool()
    held = await hold(pool, 3)
    server.refuse(429, headers={"Retry-After": "3600"})
    with pytest.raises(ConnectionPoolExhaustedError):
        await pool.acquire(timeout=0)
    assert pool.trouble is None
    assert router_of(pool).gate.streak == 0
    await pool.release(held.pop(), force_remove=True)
    await until(lambda: len(queues_of(pool)) == 2, "its place is free")
    async with asyncio.timeout(2.0):
        assert await echoes(await pool.acquire())
    assert pool.stats.failures == {"status 429": 1}


async def test_what_the_pool_keeps_ready_keeps_to_it_and_never_probes(
    server: Server, pools: Callable[..., WebsocketConnectionPool]
) -> None:
    pool = pools(min_connections=5, min_idle=3, max_retries=1)
    await pool.start()
    held = await hold(pool, 4)
    await until(lambda: pool.total_connections == 7, "three are ready")
    server.refuse(429, times=50)
    waiting = await hold(pool, 3)
    await until(lambda: pool.learned_limit == 7, "one more is refused")
    refused = len(server.requests)
    now = time.monotonic()
    await until(lambda: time.monotonic() - now > 4 * PAUSE, "probes are due")
    assert len(server.requests) == refused
    for connection in held + waiting:
        await pool.release(connection)


async def test_a_warm_up_beyond_it_ends_with_what_the_server_admits(make_pool: MakePool) -> None:
    async with Crowded(5, 429) as server:
        pool = make_pool(uri=server.uri, warmup_connections=30)
        await pool.start()
        assert pool.total_connections == pool.learned_limit == 5
        assert server.refused <= 9
        await pool.close_all()


async def test_with_a_quota_a_refused_dial_gives_its_lease_back(
    server: Server, make_pool: MakePool
) -> None:
    quota = LocalQuota(10)
    pool = make_pool(quota=quota)
    await hold(pool, 3)
    server.refuse(503)
    with pytest.raises(ConnectionPoolExhaustedError):
        await pool.acquire(timeout=0)
    await until(lambda: len(quota._held) == 3, "the lease is back")


async def test_with_a_quota_the_smaller_of_the_two_holds(
    server: Server, pools: Callable[..., WebsocketConnectionPool]
) -> None:
    """A probe that waits for the quota is one, and shows nothing."""
    quota = LocalQuota(4)
    pool = pools(quota=quota, connection_timeout=0.3)
    await hold(pool, 3)
    server.refuse(429)
    with pytest.raises(ConnectionPoolExhaustedError):
        await pool.acquire(timeout=0)
    taken = await quota.acquire()
    waiting = asyncio.create_task(pool.acquire(timeout=None))
    await until(lambda: pool.stats.failures["quota"], "a probe got no lease")
    assert pool.learned_limit == 3
    quota.release(taken)
    assert await echoes(await waiting)
    await until(lambda: pool.learned_limit == 4, "the next one has")
    assert server.most_open == 4


# Probes.


async def test_a_probe_is_made_only_while_somebody_waits(
    server: Server, pools: Callable[..., WebsocketConnectionPool]
) -> None:
    pool = pools()
    held = await hold(pool, 2)
    server.refuse(429)
    with pytest.raises(ConnectionPoolExhaustedError):
        await pool.acquire(timeout=0)
    now = time.monotonic()
    await until(lambda: time.monotonic() - now > 3 * PAUSE, "it is due")
    assert len(server.requests) == 3
    waiting = asyncio.create_task(pool.acquire(timeout=None))
    assert await echoes(await waiting)
    assert len(server.requests) == 4
    await until(lambda: pool.learned_limit == 3, "it has lived")
    assert len(held) == 2


async def test_a_limit_that_was_raised_is_found_one_by_one(
    pools: Callable[..., WebsocketConnectionPool],
) -> None:
    async with Crowded(3, 429) as server:
        pool = pools(uri=server.uri)
        async with many(pool) as outcome:
            await until(lambda: pool.learned_limit == 3, "it is learned")
            server.admitted = 6
            await until(lambda: pool.learned_limit == 6, "it is found", within=20.0)
            assert server.most_open == 6
        assert outcome.errors == []


async def test_a_limit_that_was_lowered_is_found_as_connections_go(
    pools: Callable[..., WebsocketConnectionPool],
) -> None:
    """Nobody is cut off by us, and the patient see no error."""
    async with Crowded(6, 429) as server:
        pool = pools(uri=server.uri, max_uses=20)
        async with many(pool) as outcome:
            await until(lambda: pool.learned_limit == 6, "it is learned")
            server.admitted = 3
            await until(lambda: pool.learned_limit == 3, "it is found", within=20.0)
            assert pool.total_connections <= 4  # with one that asks
        assert outcome.errors == []


async def test_never_more_than_one_probe_is_under_way(
    server: Server, pools: Callable[..., WebsocketConnectionPool]
) -> None:
    pool = pools()
    await hold(pool, 2)
    server.refuse(429)
    waiting = [asyncio.create_task(pool.acquire(timeout=None)) for _ in range(5)]
    await until(lambda: pool.learned_limit == 2, "it is learned")
    server.delay = None
    await until(lambda: queues_of(pool).connecting, "the probe is under way")
    now = time.monotonic()
    while time.monotonic() - now < 4 * PAUSE:
        assert len(queues_of(pool).connecting) == 1
        await asyncio.sleep(0.01)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_probe_that_is_used_up_within_a_second_has_succeeded(
    pools: Callable[..., WebsocketConnectionPool],
) -> None:
    """As where each connection serves one session."""
    async with Crowded(2, 429) as server:
        pool = pools(uri=server.uri, max_uses=1)
        async with many(pool, borrowers=20) as outcome:
            await until(lambda: pool.learned_limit == 2, "it is learned")
            server.admitted = 4
            await until(lambda: pool.learned_limit == 4, "it is found", within=20.0)
        assert outcome.errors == []


async def test_it_is_forgotten_when_nobody_has_waited_for_long(
    server: Server, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limit_module, "FORGOTTEN_SECONDS", 0.3)
    pool = make_pool()
    await hold(pool, 2)
    server.refuse(429)
    with pytest.raises(ConnectionPoolExhaustedError):
        await pool.acquire(timeout=0)
    assert pool.learned_limit == 2
    await until(lambda: pool.learned_limit is None, "it is forgotten")
    assert await echoes(await pool.acquire(timeout=0))


# A server that admits the newest, and closes the oldest.


PEACE = 2.5
"""Seconds without a dial: half the pause before the first probe."""


@pytest.mark.parametrize("code", [1008, 4000, None])
async def test_one_that_closes_the_oldest_for_the_newest_is_left_in_peace(
    code: int | None, make_pool: MakePool
) -> None:
    """While 40 want a connection."""
    async with Evicting(5, code) as server:
        pool = make_pool(uri=server.uri)
        router_of(pool).gate.waits = (0.05,)  # it refuses some, too: those that nobody had used yet
        async with many(pool):
            await until(lambda: router_of(pool).limit.is_evicting, "it is learned", within=30.0)
            quiet = "it is not asked"
            await until(lambda: time.monotonic() - server.asked[-1] > PEACE, quiet, within=30.0)
            # Fewer, if dials that it had admitted were called off; probes make up for that.
            assert 1 <= (pool.learned_limit or 0) <= 6


async def test_its_probes_cost_one_connection_each_and_are_ever_rarer(
    pools: Callable[..., WebsocketConnectionPool],
) -> None:
    async with Evicting(3, 1008) as server:
        pool = pools(uri=server.uri)
        router_of(pool).gate.waits = (0.05,)
        async with many(pool, borrowers=20):
            limit = router_of(pool).limit
            await until(lambda: limit._pause >= 4 * PAUSE, "probes have cost others", within=30.0)
            assert 1 <= (pool.learned_limit or 0) <= 4


async def test_one_that_ends_each_session_is_none_of_those(make_pool: MakePool) -> None:
    """It closes with 1000 what has served once, while others are admitted."""

    async def serve_once(peer: Any) -> None:
        await peer.send(await peer.recv())
        await asyncio.sleep(0.01)
        await peer.close(1000)

    async with Server(serve_once) as server:
        pool = make_pool(uri=server.uri, max_connections=8)

        async def session() -> None:
            for _ in range(10):
                async with pool.get_connection(timeout=None) as connection:
                    assert await echoes(connection)
                    async for _ in connection:
                        pass

        await asyncio.gather(*(session() for _ in range(8)))
        assert pool.learned_limit is None
        await pool.close_all()


# What there is to see.


async def test_each_change_is_an_event(
    server: Server, pools: Callable[..., WebsocketConnectionPool]
) -> None:
    pool = pools()
    told: list[events.LimitLearned] = []
    pool.subscribe(lambda event: isinstance(event, events.LimitLearned) and told.append(event))
    await hold(pool, 2)
    server.refuse(429)
    assert await echoes(await pool.acquire(timeout=None))
    await until(lambda: len(told) == 2, "the limit has changed twice")
    first, second = told
    assert (first.pool, first.limit, second.limit) == (pool.name, 2, 3)
    assert "the server answered 429" in first.why
    assert second.why == "one more was admitted"
    assert "s3cret" not in repr(told)


async def test_it_is_in_the_repr_and_in_the_snapshot(server: Server, make_pool: MakePool) -> None:
    pool = make_pool()
    await hold(pool, 2)
    assert repr(pool).endswith("max=50>")
    assert pool.snapshot().learned_limit is None
    server.refuse(429)
    with pytest.raises(ConnectionPoolExhaustedError):
        await pool.acquire(timeout=0)
    assert repr(pool).endswith("max=50 (the server admits 2)>")
    assert pool.snapshot().learned_limit == pool.snapshot().to_dict()["learned_limit"] == 2
