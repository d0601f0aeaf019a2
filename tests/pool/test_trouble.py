"""`pool.trouble`: what a health endpoint says while dials fail."""

from __future__ import annotations

import asyncio
import dataclasses
import time

import pytest
from aiohttp import web

from tests.conftest import MakePool, echoes, until
from wspool import BlockingWebsocketConnectionPool, ConnectionUnavailableError, Trouble
from wspool.testing import Server


async def test_there_is_none_before_a_dial_nor_after_one_that_went_well(
    make_pool: MakePool,
) -> None:
    pool = make_pool()
    assert pool.trouble is None
    async with pool.get_connection() as connection:
        assert await echoes(connection)
    assert pool.trouble is None


async def test_a_refusal_is_told_until_a_connection_has_lived(
    server: Server, make_pool: MakePool
) -> None:
    """A handshake is no success yet: many servers close at once whom they refuse."""
    pool = make_pool(max_retries=1, headers={"Authorization": "Bearer s3cret"})
    server.refusals = [web.Response(status=403), web.Response(status=429)]
    began = time.time()
    with pytest.raises(ConnectionUnavailableError):
        await pool.acquire()
    first = pool.trouble
    assert first is not None
    assert (first.kind, first.attempts, first.next_attempt) == ("status 403", 1, None)
    assert began - 1 <= first.since <= time.time() + 1
    assert "answered 403" in first.failure
    assert "s3cret" not in str(first)
    with pytest.raises(ConnectionUnavailableError):
        await pool.acquire(timeout=None)
    second = pool.trouble
    assert second is not None
    assert (second.kind, second.attempts, second.since) == ("status 429", 2, first.since)
    connection = await pool.acquire(timeout=None)
    assert pool.trouble == second
    assert await echoes(connection)
    await until(lambda: pool.trouble is None, "it has shown life")


async def test_the_next_attempt_is_a_time_of_day(server: Server, make_pool: MakePool) -> None:
    pool = make_pool(acquire_timeout=None)
    server.refusals = [web.Response(status=503, headers={"Retry-After": "20"})]
    waiting = asyncio.create_task(pool.acquire())
    await until(lambda: pool.trouble and pool.trouble.next_attempt, "it waits")
    assert pool.trouble is not None
    assert pool.trouble.next_attempt is not None
    assert 10 < pool.trouble.next_attempt - pool.trouble.since < 30
    waiting.cancel()


async def test_connections_that_are_open_do_not_hide_it(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool(max_retries=1)
    connection = await pool.acquire()
    assert await echoes(connection)
    server.refusals = [web.Response(status=403)]
    with pytest.raises(ConnectionUnavailableError):
        await pool.acquire()
    assert await echoes(connection)
    assert pool.trouble is not None
    assert pool.trouble.kind == "status 403"


async def test_an_attempt_that_began_before_the_outage_was_over_brings_none_back(
    server: Server, make_pool: MakePool
) -> None:
    """It fails late, and says nothing of the next dial."""
    pool = make_pool(max_retries=1)
    gate = pool._router.gate
    round = gate.round
    server.refusals = [web.Response(status=503)]
    with pytest.raises(ConnectionUnavailableError):
        await pool.acquire()
    assert pool.trouble is not None
    connection = await pool.acquire(timeout=None)
    assert await echoes(connection)
    await until(lambda: pool.trouble is None, "the outage is over")
    gate.failed(round, ConnectionUnavailableError("late"))
    assert pool.trouble is None


async def test_it_is_frozen(server: Server, make_pool: MakePool) -> None:
    pool = make_pool(max_retries=1)
    server.refusals = [web.Response(status=403)]
    with pytest.raises(ConnectionUnavailableError):
        await pool.acquire()
    trouble = pool.trouble
    assert isinstance(trouble, Trouble)
    with pytest.raises(dataclasses.FrozenInstanceError):
        trouble.kind = "none"  # type: ignore[misc]


def test_threads_see_it_too() -> None:
    """Nothing listens at the port."""
    with BlockingWebsocketConnectionPool(uri="ws://127.0.0.1:9/", max_retries=1) as pool:
        assert pool.trouble is None
        with pytest.raises(ConnectionUnavailableError):
            pool.acquire()
        assert pool.trouble is not None
        assert pool.trouble.kind == "network"
