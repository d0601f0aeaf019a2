"""What it costs to borrow and to give back, with nothing done in between."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from tests.benchmarks.goals import OURS, AtMost, Below, Faster, size
from tests.benchmarks.peers import plain_pool, websockets_pool
from tests.benchmarks.side_by_side import Body, Comparison
from tests.benchmarks.suite import Bench, Traced, benchmark
from wspool import WebsocketConnectionPool

MANY: Final = 100
"""Checkouts at a time, because one takes a few microseconds. The rows are for one of them."""

CHECKOUT: Final = "`async with pool.get_connection(): pass`"


def checkouts(pool: Any) -> Body:
    """Borrow and give back; all pools here have the same interface."""

    async def check_out_often() -> None:
        for _ in range(MANY):
            async with pool.get_connection():
                pass

    return check_out_often


@benchmark(CHECKOUT, "the same code, to show the noise", AtMost(), uvloop=True)
async def noise(bench: Bench) -> Comparison:
    async with bench.pool() as pool, bench.pool() as other:
        return (await bench.compare(checkouts(pool), checkouts(other))).per(MANY)


@benchmark(CHECKOUT, "asyncio-connection-pool, without sockets", AtMost(0.95), uvloop=True)
async def checkout(bench: Bench) -> Comparison:
    async def make() -> object:
        return object()

    theirs = plain_pool(make, size=1)
    async with bench.pool() as pool:
        return (await bench.compare(checkouts(pool), checkouts(theirs))).per(MANY)


@benchmark(CHECKOUT, "aio-websocket-pool", Faster(35), uvloop=True)
async def checkout_websockets(bench: Bench) -> Comparison:
    async with bench.pool() as pool, websockets_pool(bench.uri, 1) as theirs:
        return (await bench.compare(checkouts(pool), checkouts(theirs))).per(MANY)


@benchmark(
    "`acquire()`, `release()`", "asyncio.LifoQueue: `get()`, `put()`", AtMost(4), uvloop=True
)
async def acquire(bench: Bench) -> Comparison:
    queue: asyncio.LifoQueue[object] = asyncio.LifoQueue()
    queue.put_nowait(object())

    async def get_and_put() -> None:
        for _ in range(MANY):
            await queue.put(await queue.get())

    async with bench.pool() as pool:

        async def acquire_and_release() -> None:
            for _ in range(MANY):
                await pool.release(await pool.acquire())

        return (await bench.compare(acquire_and_release, get_and_put)).per(MANY)


@benchmark("a checkout with {idle} idle connections", "with 10", AtMost(1.1))
async def checkout_of_many(bench: Bench) -> Comparison:
    async with bench.many_idle() as many, bench.pool(warmup_connections=10) as few:
        return (await bench.compare(checkouts(many), checkouts(few))).per(MANY)


@benchmark(
    "a checkout after {cancelled} cancelled acquires",
    "without them",
    AtMost(1.1),
    uvloop=True,
)
async def checkout_after_cancelled(bench: Bench) -> Comparison:
    async with bench.pool() as pool, bench.pool() as other:
        await in_vain(pool, bench.scale.cancelled)
        return (await bench.compare(checkouts(pool), checkouts(other))).per(MANY)


@benchmark("memory kept of {cancelled} cancelled acquires", "", Below(4096, size), unit=size)
async def memory_after_cancelled(bench: Bench) -> Comparison:
    kept = []
    async with bench.pool() as pool:
        with Traced() as traced:
            await in_vain(pool, bench.scale.cancelled)  # what is made once, and kept
            for _ in range(3):
                before = traced.bytes()
                await in_vain(pool, bench.scale.cancelled)
                kept.append(traced.bytes() - before)
    return Comparison({OURS: kept})


async def in_vain(pool: WebsocketConnectionPool, count: int) -> None:
    """Let so many wait for a connection that never comes, and cancel them."""
    async with pool.get_connection():
        tasks = [asyncio.create_task(pool.acquire(timeout=None)) for _ in range(count)]
        await asyncio.sleep(0)
        assert pool.waiters == count
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
