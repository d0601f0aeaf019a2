"""What a call costs over a connection that many callers share."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any, Final

import aiohttp

from tests.benchmarks.goals import OURS, THEIRS, AtMost, Faster
from tests.benchmarks.server import LATE_SECONDS
from tests.benchmarks.side_by_side import Body, Comparison
from tests.benchmarks.suite import Bench, benchmark

CALLERS: Final = 64
CALLS: Final = 10
"""Of each caller, in one turn of a comparison."""

FLOOD_MESSAGES: Final = 256
FLOOD_TEXT: Final = "x" * 4000
"""A mebibyte in all, for a stream that does not read."""


class HandWritten:
    """A reader task with a future for each call, as users write it: nobody gives up."""

    def __init__(self, websocket: aiohttp.ClientWebSocketResponse) -> None:
        self._websocket = websocket
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._websocket:
            answer = json.loads(message.data)
            if (waiter := self._answers.pop(answer["id"], None)) is not None:
                waiter.set_result(answer)

    async def call(self, params: Any) -> Any:
        number = next(self._ids)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._websocket.send_str(json.dumps({"id": number, "params": params}))
        return await answer

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


def by_many(call: Any, callers: int = CALLERS, calls: int = CALLS) -> Body:
    async def caller() -> None:
        for _ in range(calls):
            await call("hello")

    async def run() -> None:
        await asyncio.gather(*(caller() for _ in range(callers)))

    return run


def call_on_a_stream(pool: Any) -> Any:
    async def call(params: Any) -> Any:
        async with pool.get_stream(timeout=None) as stream:
            await stream.send_json({"id": stream.claim(), "params": params})
            return await stream.recv_json()

    return call


def call_alone(pool: Any) -> Any:
    numbers = itertools.count(1)

    async def call(params: Any) -> Any:
        async with pool.get_connection(timeout=None) as connection:
            await connection.send_json({"id": next(numbers), "params": params})
            return await connection.recv_json()

    return call


@benchmark(
    f"{CALLERS} callers, a stream for each call, over one socket",
    "a reader task with futures, written by hand",
    AtMost(1 / 0.9),
    uvloop=AtMost(),
)
async def streams(bench: Bench) -> Comparison:
    options = {"max_streams": CALLERS, "route": "id"}
    async with bench.pool(**options) as pool, bench.websocket() as websocket:
        theirs = HandWritten(websocket)
        compared = await bench.compare(by_many(call_on_a_stream(pool)), by_many(theirs.call))
        await theirs.close()
        return compared.per(CALLERS * CALLS)


async def call_on_a_held_stream(pool: Any, bench: Bench) -> Comparison:
    async with bench.websocket() as websocket:
        theirs = HandWritten(websocket)
        streams = [await pool.acquire_stream() for _ in range(CALLERS)]

        async def caller(stream: Any) -> None:
            for _ in range(CALLS):
                await stream.send_json({"id": stream.claim(), "params": "hello"})
                await stream.recv_json()

        async def ours() -> None:
            await asyncio.gather(*map(caller, streams))

        compared = await bench.compare(ours, by_many(theirs.call))
        await theirs.close()
        for stream in streams:
            await pool.release_stream(stream)
        return compared.per(CALLERS * CALLS)


@benchmark(
    f"{CALLERS} callers, a stream each for many calls, over one socket",
    "a reader task with futures, written by hand",
    AtMost(1 / 0.9),
    uvloop=AtMost(),
)
async def held_streams(bench: Bench) -> Comparison:
    async with bench.pool(max_streams=CALLERS, route="id") as pool:
        return await call_on_a_held_stream(pool, bench)


@benchmark(
    "a call behind 1 MiB for a stream that does not read",
    "a reader task with futures, written by hand, which drops it",
    AtMost(2),
)
async def flooded_stream(bench: Bench) -> Comparison:
    options = {"max_streams": 2, "route": "id", "max_unread": len(FLOOD_TEXT)}
    async with (
        bench.pool(**options) as pool,
        bench.websocket() as websocket,
        pool.get_stream() as sleeper,
        pool.get_stream() as stream,
    ):
        hand_written = HandWritten(websocket)
        flood = json.dumps({"id": sleeper.claim(), "params": FLOOD_TEXT})
        unknown = json.dumps({"id": 0, "params": FLOOD_TEXT})
        key = stream.claim()

        async def ours() -> None:
            for _ in range(FLOOD_MESSAGES):
                await stream.send(flood)
            await stream.send_json({"id": key, "params": "hello"})
            await stream.recv_json()

        async def theirs() -> None:
            for _ in range(FLOOD_MESSAGES):
                await websocket.send_str(unknown)
            await hand_written.call("hello")

        compared = await bench.compare(ours, theirs)
        await hand_written.close()
        return compared


@benchmark(
    f"{CALLERS} callers over one socket, answers after {1000 * LATE_SECONDS:.0f} ms",
    "four connections, alone",
    Faster(10),
)
async def streams_far(bench: Bench) -> Comparison:
    uri = bench.uri + "late"
    options = {"max_streams": CALLERS, "route": "id", "uri": uri}
    async with bench.pool(**options) as pool, bench.pool(uri=uri, warmup_connections=4) as four:
        compared = await bench.compare(
            by_many(call_on_a_stream(pool), calls=1), by_many(call_alone(four), calls=1)
        )
        return Comparison({way: compared.rounds[way] for way in (OURS, THEIRS)}).per(CALLERS)
