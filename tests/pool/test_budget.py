"""How much is read in one turn of the event loop, and who waits for the next."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from wspool._connection import budget
from wspool._connection.budget import MAX_WOKEN, Budget


@pytest.fixture
def no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each turn be used up by whoever reads first in it."""
    monkeypatch.setattr(budget, "TURN_SECONDS", -1.0)


async def turns_until(done: asyncio.Future[object]) -> int:
    turns = 0
    while not done.done():
        turns += 1
        await asyncio.sleep(0)
    return turns


@pytest.mark.usefixtures("no_time")
async def test_each_turn_one_reads_in_order_of_arrival() -> None:
    shared = Budget()
    read: list[int] = []

    async def reader(number: int) -> None:
        await shared.breathe()
        read.append(number)

    turns = await turns_until(asyncio.gather(*map(reader, range(100))))
    assert read == list(range(100))
    assert 100 <= turns < 250


async def test_while_there_is_time_many_read_in_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "TURN_SECONDS", 60.0)
    shared = Budget()
    assert not shared.is_spent
    monkeypatch.setattr(shared, "_ends_at", 0.0)  # but in this turn there is no more
    readers = asyncio.gather(*(shared.breathe() for _ in range(10 * MAX_WOKEN)))
    assert await turns_until(readers) < 30


@pytest.mark.usefixtures("no_time")
async def test_a_crowd_that_waits_does_not_use_up_the_turns_by_asking(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the loop does for each that reads is bounded, however many wait behind it."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.BaseEventLoop):
        pytest.skip("what this loop does cannot be counted")
    call_soon = loop.call_soon
    calls = 0

    def count(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return call_soon(*args, **options)

    monkeypatch.setattr(loop, "call_soon", count)
    shared = Budget()
    crowd = 10 * MAX_WOKEN
    await asyncio.gather(*(shared.breathe() for _ in range(crowd)))
    assert calls < crowd * 2 * MAX_WOKEN


@pytest.mark.usefixtures("no_time")
async def test_whoever_is_cancelled_while_it_waits_holds_up_nobody() -> None:
    shared = Budget()
    readers = [asyncio.create_task(shared.breathe()) for _ in range(20)]
    for number in (*range(10), 13, 19):
        await asyncio.sleep(0)
        readers[number].cancel()
    async with asyncio.timeout(10):
        await asyncio.wait(readers)
    assert not shared._waiting
    assert not readers[12].cancelled()
