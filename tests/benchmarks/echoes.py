"""What a conversation costs in a loan: with one message, with many, with ten thousand borrowers."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from time import perf_counter
from typing import Any, Final

import aiohttp

from tests.benchmarks import draining
from tests.benchmarks.goals import OURS, THEIRS, AtMost, Faster, Share
from tests.benchmarks.peers import plain_pool, websockets_pool
from tests.benchmarks.side_by_side import Body, Comparison, in_turns
from tests.benchmarks.suite import Bench, benchmark

ECHO: Final = "borrow, echo, give back"
MESSAGE: Final = "hello"
PLAIN_POOL: Final = "asyncio-connection-pool of aiohttp WebSockets"
P99: Final = "the same: 99th percentile of the waits"
PIPELINED: Final = 64
CONNECTIONS: Final = 50


def borrowed_echo(pool: Any) -> Body:
    async def echo() -> None:
        async with pool.get_connection() as connection:
            await connection.send(MESSAGE)
            await connection.recv()

    return echo


def held_echo(websocket: aiohttp.ClientWebSocketResponse) -> Body:
    async def echo() -> None:
        await websocket.send_str(MESSAGE)
        await websocket.receive()

    return echo


@benchmark(
    "an echo over a held aiohttp WebSocket",
    "the same code, to show the noise",
    AtMost(),
    uvloop=True,
)
async def echo_noise(bench: Bench) -> Comparison:
    async with bench.websocket() as websocket, bench.websocket() as other:
        return await bench.compare(held_echo(websocket), held_echo(other), rounds=3)


@benchmark(ECHO, "an echo over a held aiohttp WebSocket", AtMost(1.10), uvloop=True)
async def echo(bench: Bench) -> Comparison:
    async with bench.pool() as pool, bench.websocket() as websocket:
        return await bench.compare(borrowed_echo(pool), held_echo(websocket), rounds=3)


@benchmark(ECHO, PLAIN_POOL, AtMost(0.97), uvloop=True)
async def echo_plain(bench: Bench) -> Comparison:
    async with bench.pool() as pool, aiohttp.ClientSession() as session:
        theirs = plain_pool(lambda: session.ws_connect(bench.uri), size=1)

        async def echo() -> None:
            async with theirs.get_connection() as websocket:
                await websocket.send_str(MESSAGE)
                await websocket.receive()

        return await bench.compare(borrowed_echo(pool), echo, rounds=3)


@benchmark(ECHO, "aio-websocket-pool", Faster(1.3), uvloop=True)
async def echo_websockets(bench: Bench) -> Comparison:
    async with bench.pool() as pool, websockets_pool(bench.uri, 1) as theirs:
        return await bench.compare(borrowed_echo(pool), borrowed_echo(theirs))


@benchmark(ECHO, "aiohttp: connect, echo, close", Faster(5), uvloop=True)
async def echo_connecting(bench: Bench) -> Comparison:
    return await compare_connecting(bench, bench.uri)


@benchmark(f"{ECHO} (TLS)", "connect, echo, close (EC P-256 certificate)", Faster(12), uvloop=True)
async def echo_connecting_tls(bench: Bench) -> Comparison:
    context = ssl.create_default_context()
    bench.servers.authority.configure_trust(context)
    return await compare_connecting(bench, bench.servers.tls, ssl=context)


async def compare_connecting(bench: Bench, uri: str, **options: Any) -> Comparison:
    async with bench.pool(uri=uri, **options) as pool, aiohttp.ClientSession() as session:

        async def connecting_echo() -> None:
            async with session.ws_connect(uri, **options) as websocket:
                await websocket.send_str(MESSAGE)
                await websocket.receive()

        return await bench.compare(borrowed_echo(pool), connecting_echo, longer=2)


@benchmark(f"{PIPELINED} pipelined echoes in a loan", "raw aiohttp", AtMost(1.04), uvloop=True)
async def pipelined(bench: Bench) -> Comparison:
    async with bench.pool() as pool, bench.websocket() as websocket:

        async def ours() -> None:
            async with pool.get_connection() as connection:
                for _ in range(PIPELINED):
                    await connection.send(MESSAGE)
                for _ in range(PIPELINED):
                    await connection.recv()

        async def theirs() -> None:
            for _ in range(PIPELINED):
                await websocket.send_str(MESSAGE)
            for _ in range(PIPELINED):
                await websocket.receive()

        return await bench.compare(ours, theirs, rounds=3)


@benchmark("{messages} small messages received in a loan", "raw aiohttp", AtMost(1.08), uvloop=True)
async def stream(bench: Bench) -> Comparison:
    count, number = bench.scale.messages, str(bench.scale.messages)
    async with bench.pool(uri=bench.uri + "stream") as pool:
        async with bench.websocket("stream") as websocket:

            async def ours() -> None:
                async with pool.get_connection() as connection:
                    await connection.send(number)
                    for _ in range(count):
                        await connection.recv()

            async def theirs() -> None:
                await websocket.send_str(number)
                for _ in range(count):
                    await websocket.receive()

            return await bench.compare(ours, theirs)


@benchmark(
    f"{{borrowers}} borrowers, {CONNECTIONS} connections",
    "asyncio.Queue of aiohttp WebSockets",
    AtMost(1.25),
)
async def crowd(bench: Bench) -> Comparison:
    return (await bench.once(beside_a_queue))[0]


@benchmark(P99, "asyncio.Queue of aiohttp WebSockets", AtMost(1.25))
async def crowd_p99(bench: Bench) -> Comparison:
    return (await bench.once(beside_a_queue))[1]


@benchmark(f"{{borrowers}} borrowers, {CONNECTIONS} connections", PLAIN_POOL, AtMost(0.95))
async def crowd_plain(bench: Bench) -> Comparison:
    return (await bench.once(beside_the_plain_pool))[0]


@benchmark(P99, PLAIN_POOL, AtMost(0.95))
async def crowd_plain_p99(bench: Bench) -> Comparison:
    return (await bench.once(beside_the_plain_pool))[1]


async def beside_a_queue(bench: Bench) -> tuple[Comparison, Comparison]:
    async with AsyncExitStack() as stack:
        queue: asyncio.Queue[aiohttp.ClientWebSocketResponse] = asyncio.Queue()
        for _ in range(CONNECTIONS):
            queue.put_nowait(await stack.enter_async_context(bench.websocket()))

        async def borrow(waited: Callable[[], object]) -> None:
            websocket = await queue.get()
            waited()
            try:
                await websocket.send_str(MESSAGE)
                await websocket.receive()
            finally:
                queue.put_nowait(websocket)

        return await crowds(bench, borrow)


async def beside_the_plain_pool(bench: Bench) -> tuple[Comparison, Comparison]:
    async with aiohttp.ClientSession() as session:
        pool = plain_pool(lambda: session.ws_connect(bench.uri), size=CONNECTIONS)

        async def borrow(waited: Callable[[], object]) -> None:
            async with pool.get_connection() as websocket:
                waited()
                await websocket.send_str(MESSAGE)
                await websocket.receive()

        await asyncio.gather(*(borrow(bool) for _ in range(CONNECTIONS)))  # it dials
        return await crowds(bench, borrow)


async def crowds(
    bench: Bench, theirs: Callable[[Callable[[], object]], Awaitable[None]]
) -> tuple[Comparison, Comparison]:
    """Compare the time for all borrowers, and the 99th percentile of their waits.

    Each calls what it is given when its wait is over.
    """
    async with bench.pool(warmup_connections=CONNECTIONS, acquire_timeout=None) as pool:
        count = bench.scale.borrowers
        waits: dict[str, list[float]] = {OURS: [], THEIRS: []}

        async def ours(waited: Callable[[], object]) -> None:
            async with pool.get_connection() as connection:
                waited()
                await connection.send(MESSAGE)
                await connection.recv()

        async def measure(
            way: str, borrow: Callable[[Callable[[], object]], Awaitable[None]]
        ) -> float:
            ends: list[float] = []

            async def borrower() -> None:
                began = perf_counter()
                await borrow(lambda: ends.append(perf_counter() - began))

            start = perf_counter()
            await asyncio.gather(*(borrower() for _ in range(count)))
            seconds = perf_counter() - start
            waits[way].append(sorted(ends)[count * 99 // 100])
            return seconds

        ways = {OURS: lambda: measure(OURS, ours), THEIRS: lambda: measure(THEIRS, theirs)}
        times = await in_turns(ways, bench.scale.rounds)
        return times, Comparison(waits)


@benchmark(f"{ECHO}, with `drain_fence`", "without a drain", Share(0.4))
async def fence(bench: Bench) -> Comparison:
    return await drained(bench, "drain_fence")


@benchmark(f"{ECHO}, with `drain_until`", "without a drain", Share(0.95))
async def drain_until(bench: Bench) -> Comparison:
    return await drained(bench, "drain_until")


async def drained(bench: Bench, way: str) -> Comparison:
    compared = await bench.once(drains)
    return Comparison({OURS: compared.rounds[way], THEIRS: compared.rounds[draining.NO_DRAIN]})


async def drains(bench: Bench) -> Comparison:
    return await draining.compare(
        bench.uri, rounds=bench.scale.rounds, round_seconds=5 * bench.scale.round_seconds
    )
