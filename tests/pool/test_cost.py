"""What one borrow of an idle connection costs, in calls and objects: counts, since times drift.

A budget that is exceeded is either a mistake or a decision; in the latter case it is changed here,
with the benchmark's figure (`python -m tests.benchmarks.looking`) in the commit message.
"""

from __future__ import annotations

import asyncio
import gc
import operator
import sys
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any, Final

import pytest

from tests.conftest import MakePool
from tests.support.calls import called_by
from tests.support.inside import router_of, wire_of
from wspool import WebsocketConnectionPool
from wspool._connection.aiohttp_internals import READ_BYTES
from wspool.testing import Peer, Server

CALLS: Final = 15
"""Calls of Python functions in one borrow."""

REPORTING_CALLS: Final = 0
"""Those that history and statistics add."""

PEAK: Final = 1060
"""Bytes in use at once within a borrow, more than between two: 1032 on 3.11, 1056 on 3.13.

The loan is 168 of them: what it says of one borrow is its own, and no part of the connection."""

REPORTING_BYTES: Final = 0
"""Those that history and statistics add: the peak is elsewhere."""

BLOCKS: Final = 0.1
"""Blocks of memory that a borrow leaves behind once the history is full: 0.03, of the loop's."""

BORROWS: Final = 200

Borrow = Callable[[], Awaitable[None]]
Measure = Callable[[WebsocketConnectionPool, Borrow], Awaitable[float]]


def measured(measure: Measure) -> float:
    """Return what is measured on a pool without listeners, in a loop without debug mode."""

    async def main() -> float:
        async with Server() as server, WebsocketConnectionPool(uri=server.uri) as pool:

            async def borrow() -> None:
                async with pool.get_connection():
                    pass

            for _ in range(50):  # the history is full, and the caches are warm
                await borrow()
            return await measure(pool, borrow)

    with asyncio.Runner(debug=False) as runner:
        return runner.run(main())


async def calls_of(pool: WebsocketConnectionPool, borrow: Borrow) -> float:
    """Return the calls of Python functions of one borrow, the caller's own apart."""
    calls = await called_by(borrow)
    assert calls[0].co_name == "borrow"
    return len(calls) - 1


async def blocks_of(pool: WebsocketConnectionPool, borrow: Borrow) -> float:
    """Return the objects that a borrow leaves behind: the mean of many."""
    gc.collect()
    gc.disable()
    try:
        before = sys.getallocatedblocks()
        for _ in range(BORROWS):
            await borrow()
        return (sys.getallocatedblocks() - before) / BORROWS
    finally:
        gc.enable()


async def peak_of(pool: WebsocketConnectionPool, borrow: Borrow) -> float:
    """Return the bytes in use at once within a borrow: the least of several."""
    peaks = []
    tracemalloc.start()
    try:
        for _ in range(10):
            await borrow()
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            await borrow()
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
    return min(peaks)


async def collections_of(pool: WebsocketConnectionPool, borrow: Borrow) -> float:
    """Return by how many objects that the collector tracks a borrow's count grows."""
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(BORROWS):
        await borrow()
    return (len(gc.get_objects()) - before) / BORROWS


class NoHistory(tuple[Any, ...]):
    """Takes the place of a link's moves, and stays at what was the last one."""

    append = staticmethod(bool)


class NoStats:
    """Takes the place of a pool's statistics, and stays at no loan."""

    borrows = 0
    __setattr__ = staticmethod(operator.is_)  # anything that is called without a Python function


def unreported(measure: Measure) -> Measure:
    """Return the measure of a pool that neither counts its loans nor has a history."""

    async def measure_so(pool: WebsocketConnectionPool, borrow: Borrow) -> float:
        router: Any = router_of(pool)
        [link] = router.queues.idle
        moves, stats = link.moves, router.stats
        link.moves, router.stats = NoHistory([moves[-1]]), NoStats()
        try:
            measured = await measure(pool, borrow)
            assert router.stats.borrows == 0
            return measured
        finally:
            link.moves, router.stats = moves, stats

    return measure_so


def test_a_borrow_makes_so_many_calls() -> None:
    assert 0.8 * CALLS <= measured(calls_of) <= CALLS


def test_history_and_statistics_add_no_calls() -> None:
    """The count of a loan is a sum; a line of the history is a tuple."""
    assert measured(calls_of) - measured(unreported(calls_of)) <= REPORTING_CALLS


def test_history_and_statistics_take_so_many_bytes_at_once() -> None:
    """A line of the history drops another one."""
    assert measured(peak_of) - measured(unreported(peak_of)) <= REPORTING_BYTES


def test_a_borrow_leaves_nothing_behind() -> None:
    """Neither in blocks of memory nor in objects for the garbage collector to walk over."""
    assert measured(blocks_of) <= BLOCKS
    assert measured(collections_of) <= 0.01


def test_a_borrow_takes_so_many_bytes_at_once() -> None:
    assert measured(peak_of) <= PEAK


async def test_a_socket_is_read_in_pieces_that_cost_no_mapping_of_memory(
    server: Server, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = b"x" * 16 * READ_BYTES

    async def send_much(peer: Peer) -> None:
        await peer.recv()
        await peer.send(message)

    server.handler = send_much
    pool = make_pool()
    async with pool.get_connection() as connection:
        protocol: Any = wire_of(connection).transport._protocol
        pieces: list[int] = []
        data_received = protocol.data_received

        def note(data: bytes) -> None:
            pieces.append(len(data))
            data_received(data)

        monkeypatch.setattr(protocol, "data_received", note)
        await connection.send("begin")
        assert await connection.recv() == message
    assert max(pieces) <= READ_BYTES
