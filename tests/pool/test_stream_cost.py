"""What one call on a stream costs, in calls and objects, as `test_cost.py` has it for a loan.

The benchmark of the figures is `python -m tests.benchmarks --only streams`.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import wspool
from tests.support.calls import called_by
from tests.support.inside import link_of
from wspool import WebsocketConnectionPool, WebsocketStream
from wspool.testing import Server

HELD: Final = 25
"""Calls of the package's functions for a question and its answer on a stream that is held.

That a coroutine goes on counts as a call, too."""

BESIDE: Final = 32
"""The same while another stream reads for all, which then goes on."""

EACH: Final = 48
"""The same with a stream that is borrowed for it and given back."""

STREAMS: Final = 200

PACKAGE: Final = str(Path(wspool.__file__).parent)

Call = Callable[[], Awaitable[object]]
Measure = Callable[[Call], Awaitable[float]]


async def call_on(stream: WebsocketStream) -> Any:
    key = stream.claim()
    await stream.send_json({"id": key})
    answer = await stream.recv_json()
    assert answer == {"id": key}
    return answer


def measured(measure: Measure, *, is_held: bool, is_beside: bool = False) -> float:
    """Return what is measured of a call on a pool without listeners, in a loop without debug mode.

    Another stream has the connection as well, so that it stays shared; `is_beside`: it reads.
    """

    async def main() -> float:
        options: dict[str, Any] = {"max_connections": 1, "max_streams": 4, "route": "id"}
        async with Server() as server, WebsocketConnectionPool(uri=server.uri, **options) as pool:
            async with pool.get_stream() as other, pool.get_stream() as held:

                async def on_held() -> None:
                    await call_on(held)

                async def on_its_own() -> None:
                    async with pool.get_stream() as stream:
                        await call_on(stream)

                reading = asyncio.create_task(other.recv()) if is_beside else None
                call = on_held if is_held else on_its_own
                for _ in range(10):
                    await call()
                assert link_of(other.connection).sharing.lanes[1].is_awaited is is_beside
                try:
                    return await measure(call)
                finally:
                    if reading is not None:
                        reading.cancel()
                        await asyncio.wait([reading])

    with asyncio.Runner(debug=False) as runner:
        return runner.run(main())


async def calls_of(call: Call) -> float:
    """Return the calls of the package's functions, the server's apart."""
    files = [code.co_filename for code in await called_by(call)]
    return sum(file.startswith(PACKAGE) and "_testing" not in file for file in files)


async def objects_of(call: Call) -> float:
    """Return by how many objects that the collector tracks a call's count grows, without it."""
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for _ in range(STREAMS):
            await call()
        return (len(gc.get_objects()) - before) / STREAMS
    finally:
        gc.enable()


def test_a_call_on_a_held_stream_makes_so_many_calls() -> None:
    assert 0.8 * HELD <= measured(calls_of, is_held=True) <= HELD


def test_a_call_that_another_stream_reads_for_makes_so_many_calls() -> None:
    assert 0.8 * BESIDE <= measured(calls_of, is_held=True, is_beside=True) <= BESIDE


def test_a_call_on_a_stream_of_its_own_makes_so_many_calls() -> None:
    assert 0.8 * EACH <= measured(calls_of, is_held=False) <= EACH


def test_a_stream_leaves_nothing_behind() -> None:
    """Nothing for the garbage collector to walk over, and no circle for it to find."""
    assert measured(objects_of, is_held=False) <= 0.05
