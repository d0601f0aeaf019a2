"""What connections cost that nobody uses, and what it costs to open and to close many."""

from __future__ import annotations

import asyncio
import gc
import weakref
from contextlib import AsyncExitStack
from time import perf_counter
from typing import Final

import aiohttp

from tests.benchmarks.goals import OURS, THEIRS, AtMost, Below, seconds, size
from tests.benchmarks.server import allow_files
from tests.benchmarks.side_by_side import Comparison, in_turns
from tests.benchmarks.suite import LATENCY, Bench, Traced, benchmark
from tests.support.inside import router_of
from wspool import WebsocketConnectionPool
from wspool._pool import upkeep

BORROWS: Final = 20


@benchmark("the upkeep's look at {idle} idle connections", "", Below(0.008, seconds))
async def sweep(bench: Bench) -> Comparison:
    return Comparison({OURS: (await bench.once(sweeps))[0]})


@benchmark("the same: its longest pause", "", Below(0.003, seconds))
async def sweep_pause(bench: Bench) -> Comparison:
    return Comparison({OURS: (await bench.once(sweeps))[1]})


async def sweeps(bench: Bench) -> tuple[list[float], list[float]]:
    """Return, for each round, the loop's time in all and in its longest step.

    The round is driven by hand, step by step, and ends with the tidying-up, which in a pool is
    done only once in each `cleanup_interval`. The garbage collector waits.
    """
    in_all, longest = [], []
    async with bench.many_idle() as pool:
        for _ in range(bench.scale.rounds):
            await asyncio.sleep(bench.scale.round_seconds)
            gc.disable()
            try:
                steps = steps_of_sweep(pool)
            finally:
                gc.enable()
            in_all.append(sum(steps))
            longest.append(max(steps))
    return in_all, longest


def steps_of_sweep(pool: WebsocketConnectionPool) -> list[float]:
    router = router_of(pool)
    sweep = upkeep._sweep(weakref.ref(router))
    steps = []
    is_over = False
    while not is_over:
        router.budget._begin_anew()  # as the loop does it in each turn
        start = perf_counter()
        try:
            sweep.send(None)
        except StopIteration:
            upkeep.tidy(router)
            is_over = True
        steps.append(perf_counter() - start)
    return steps


@benchmark(
    f"memory for an idle connection, {BORROWS} echoes later",
    "raw aiohttp",
    AtMost(1.25),
    unit=size,
)
async def memory(bench: Bench) -> Comparison:
    count = bench.scale.kept

    async def ours() -> float:
        async with AsyncExitStack() as stack:
            with Traced() as traced:
                pool = await stack.enter_async_context(bench.pool(warmup_connections=count))

                async def echo() -> None:
                    async with pool.get_connection() as connection:
                        await connection.send("hello")
                        await connection.recv()

                for _ in range(BORROWS):
                    await asyncio.gather(*(echo() for _ in range(count)))
                await asyncio.sleep(2 * upkeep.SWEEP_SECONDS)
                return traced.bytes() / count

    async def theirs() -> float:
        async with AsyncExitStack() as stack:
            with Traced() as traced:
                connector = aiohttp.TCPConnector(limit=0)
                session = aiohttp.ClientSession(connector=connector)
                await stack.enter_async_context(session)
                websockets = []
                for _ in range(count):
                    websocket = await session.ws_connect(bench.uri)
                    websockets.append(await stack.enter_async_context(websocket))

                async def echo(websocket: aiohttp.ClientWebSocketResponse) -> None:
                    await websocket.send_str("hello")
                    await websocket.receive()

                for _ in range(BORROWS):
                    await asyncio.gather(*map(echo, websockets))
                return traced.bytes() / count

    return await in_turns({OURS: ours, THEIRS: theirs}, rounds=3)


@benchmark("warm-up of {connections}", "gather of `ws_connect`", AtMost(1.10))
async def warm_up(bench: Bench) -> Comparison:
    return (await bench.once(near))[0]


@benchmark("`close_all` of {connections}", "gather of `close`", AtMost(1.15))
async def close_all(bench: Bench) -> Comparison:
    return (await bench.once(near))[1]


@benchmark(
    f"warm-up of {{connections}}, {1000 * LATENCY:.0f} ms away",
    "gather of `ws_connect`",
    AtMost(1.10),
)
async def warm_up_distant(bench: Bench) -> Comparison:
    return (await open_and_close(bench, bench.servers.distant))[0]


async def near(bench: Bench) -> tuple[Comparison, Comparison]:
    return await open_and_close(bench, bench.uri)


async def open_and_close(bench: Bench, uri: str) -> tuple[Comparison, Comparison]:
    """Compare the times to open, and to close, a lot of connections."""
    allow_files(2 * bench.scale.connections)
    count = bench.scale.connections
    closing: dict[str, list[float]] = {OURS: [], THEIRS: []}

    async def ours() -> float:
        pool = WebsocketConnectionPool(
            uri=uri, max_connections=count, max_connecting=count, warmup_connections=count
        )
        start = perf_counter()
        await pool.start()
        opened = perf_counter()
        assert pool.available_connections == count
        await pool.close_all()
        closing[OURS].append(perf_counter() - opened)
        return opened - start

    async def theirs() -> float:
        start = perf_counter()
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        websockets = await asyncio.gather(*(session.ws_connect(uri) for _ in range(count)))
        opened = perf_counter()
        await asyncio.gather(*(websocket.close() for websocket in websockets))
        await session.close()
        closing[THEIRS].append(perf_counter() - opened)
        return opened - start

    opening = await in_turns({OURS: ours, THEIRS: theirs}, bench.scale.rounds)
    return opening, Comparison(closing)
