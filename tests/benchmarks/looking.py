"""What it costs that one can look inside a pool, per borrow of an idle connection.

python -m tests.benchmarks.looking [asyncio] [uvloop]

reports    history, statistics and the borrower's place, against a pool without them
listener   one that does nothing, against none; per event, the loop's call of it included
snapshot   of a pool with 1,000 connections, 990 of them in a queue only, and the same as JSON
scrape     of such a pool by Prometheus, from another thread, under load
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest

from tests.benchmarks.side_by_side import Body, chosen_loops, run, side_by_side
from tests.support.inside import queues_of
from wspool import Stats, WebsocketConnectionPool
from wspool._connection.link import Link
from wspool._connection.states import State
from wspool.prometheus import register

MANY: Final = 1000
"""Connections in the large pool."""

EVENTS: Final = 3
"""Events of one borrow of an idle connection: started, checked out, checked in."""

GOALS: Final = {"reports": 0.6, "listener": 1.0, "scrape": 20_000}
"""Microseconds at most: per borrow, per event, per scrape."""


class NoMoves(tuple[Any, ...]):
    """Takes the place of a link's moves, and stays at what was the last one."""

    append = staticmethod(bool)  # at the price of a call in C


class NoHistory:
    """While entered, a link's moves are not remembered."""

    def __init__(self, link: Link) -> None:
        self._link: Any = link
        self._moves = link.moves

    def __enter__(self) -> None:
        self._link.moves = NoMoves([self._moves[-1]])

    def __exit__(self, *exc: object) -> None:
        self._link.moves = self._moves


def borrowing(pool: WebsocketConnectionPool) -> Body:
    async def borrow() -> None:
        async with pool.get_connection():
            pass

    return borrow


def told(pool: WebsocketConnectionPool) -> Body:
    """Return a borrow after which the loop has its turn, in which listeners are called."""

    async def borrow() -> None:
        async with pool.get_connection():
            pass
        await asyncio.sleep(0)

    return borrow


async def opened(uri: str, count: int) -> WebsocketConnectionPool:
    pool = WebsocketConnectionPool(uri=uri, max_connections=count, warmup_connections=count)
    await pool.start()
    return pool


async def cost_of_reports(uri: str) -> float:
    """Return the seconds per borrow that the history takes, and the count and the place."""
    async with await opened(uri, 1) as full, await opened(uri, 1) as bare:
        with NoHistory(next(iter(queues_of(bare)))):
            ways = {"full": borrowing(full), "bare": borrowing(bare)}
            comparison = await side_by_side(ways, rounds=200)
        return comparison.difference("full", to="bare") + await cost_of_notes()


async def cost_of_notes() -> float:
    """Return the seconds for the count of loans and the tuple of who borrows.

    They are measured by themselves, as they have no switch.
    """
    loop, stats = asyncio.get_running_loop(), Stats()

    async def noted() -> None:
        for _ in range(100):
            stats.borrows += 1
            frame = sys._getframe(0)
            (frame.f_code, frame.f_lasti, asyncio.current_task(loop))

    async def nothing() -> None:
        for _ in range(100):
            pass

    comparison = await side_by_side({"noted": noted, "nothing": nothing}, rounds=50)
    return comparison.difference("noted", to="nothing") / 100


async def cost_of_a_listener(uri: str) -> float:
    """Return the seconds per event of a listener that does nothing."""
    async with await opened(uri, 1) as silent, await opened(uri, 1) as heard:
        heard.subscribe(lambda event: None)
        ways = {"silent": told(silent), "heard": told(heard)}
        comparison = await side_by_side(ways, rounds=200)
        return comparison.difference("heard", to="silent") / EVENTS


@asynccontextmanager
async def crowded(uri: str) -> AsyncIterator[WebsocketConnectionPool]:
    """Give a pool with ten connections, and as many without sockets as make it a thousand."""
    async with await opened(uri, 10) as pool:
        queues, loop = queues_of(pool), asyncio.get_running_loop()
        extras = [Link(number + 11, queues, loop, lambda link: None) for number in range(MANY - 10)]
        moves = next(iter(queues)).moves
        for extra in extras:
            queues.add(extra)
            extra.moves.extend(moves)
        pool.resize(MANY)  # or whatever is given back would be a surplus, and closed
        assert len(pool.connections) == MANY
        yield pool
        for extra in extras:
            del queues[State.CONNECTING][extra]
            queues.all.remove(extra)


async def cost_of_a_snapshot(uri: str) -> tuple[float, float]:
    """Return the seconds of a snapshot of many connections, and of its JSON."""
    async with crowded(uri) as pool:
        return timed(pool.snapshot), timed(lambda: json.dumps(pool.snapshot().to_dict()))


async def cost_of_a_scrape(uri: str) -> float:
    """Return the seconds of a scrape by Prometheus, in a thread, beside ten borrowers at work."""
    async with crowded(uri) as pool:
        registry = CollectorRegistry()
        register(pool, registry)
        borrowers = [asyncio.create_task(forever(pool)) for _ in range(10)]
        seconds = await asyncio.to_thread(timed, partial(generate_latest, registry), 99)
        assert not any(borrower.done() for borrower in borrowers)
        for borrower in borrowers:
            borrower.cancel()
        await asyncio.wait(borrowers)
        return seconds


async def forever(pool: WebsocketConnectionPool) -> None:
    while True:
        async with pool.get_connection() as connection:
            await connection.send("hello")
            await connection.recv()


def timed(body: Callable[[], object], rounds: int = 9) -> float:
    seconds = []
    for _ in range(rounds):
        began = perf_counter()
        body()
        seconds.append(perf_counter() - began)
    return median(seconds)


async def measure(uri: str) -> dict[str, float]:
    picture, text = await cost_of_a_snapshot(uri)
    return {
        "reports": 1e6 * await cost_of_reports(uri),
        "listener": 1e6 * await cost_of_a_listener(uri),
        "snapshot": 1e6 * picture,
        "as JSON": 1e6 * text,
        "scrape": 1e6 * await cost_of_a_scrape(uri),
    }


def show(loop: str, costs: dict[str, float]) -> None:
    print(f"\n{loop:10}        µs   goal")
    for name, cost in costs.items():
        print(f"{name:10} {cost:9,.2f}   {GOALS.get(name, '–')}")


if __name__ == "__main__":
    for loop in chosen_loops(__doc__):
        show(loop, run(measure, loop))
