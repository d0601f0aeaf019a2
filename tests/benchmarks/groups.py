"""What a loan costs that comes from one of many pools, next to one of a single pool."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from tests.benchmarks.checkouts import MANY, checkouts
from tests.benchmarks.goals import AtMost
from tests.benchmarks.side_by_side import Body, Comparison
from tests.benchmarks.suite import Bench, benchmark
from wspool import WebsocketPools

POOL: Final = "`async with pool.get_connection(): pass`"


@asynccontextmanager
async def group(bench: Bench, members: int, **options: Any) -> AsyncIterator[WebsocketPools]:
    """Give a group whose members have a connection each."""
    uris = {f"key {number}": {"uri": bench.uri} for number in range(members)}
    async with WebsocketPools(uris, max_connections=members, **options) as pools:
        for key in pools:
            await pools.release(await pools.acquire(key))
        yield pools


def with_a_key(pools: WebsocketPools) -> Body:
    async def check_out_often() -> None:
        for _ in range(MANY):
            async with pools.get_connection("key 1"):
                pass

    return check_out_often


@benchmark("the same of a group of 3, of any member", POOL, AtMost(1.5), uvloop=True)
async def group_any(bench: Bench) -> Comparison:
    async with group(bench, 3) as pools, bench.pool() as pool:
        return (await bench.compare(checkouts(pools), checkouts(pool))).per(MANY)


@benchmark('the same, `choose="first"`', POOL, AtMost(1.5), uvloop=True)
async def group_first(bench: Bench) -> Comparison:
    async with group(bench, 3, choose="first") as pools, bench.pool() as pool:
        return (await bench.compare(checkouts(pools), checkouts(pool))).per(MANY)


@benchmark("the same of a group of 1,000, by its key", POOL, AtMost(1.5), uvloop=True)
async def group_key(bench: Bench) -> Comparison:
    async with group(bench, 1000) as pools, bench.pool() as pool:
        return (await bench.compare(with_a_key(pools), checkouts(pool))).per(MANY)
