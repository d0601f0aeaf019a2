"""What finding out that a connection is clean costs: borrows per second on one connection.

    python -m tests.benchmarks.draining [asyncio] [uvloop]

Each borrow sends a message, receives its reply and gives the connection back. The fence drains in
the background: the next borrower waits for it.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any, Final

from tests.benchmarks.side_by_side import Body, Comparison, chosen_loops, run, side_by_side
from wspool import WebsocketConnectionPool

NO_DRAIN: Final = "no drain"

WAYS: Final[dict[str, dict[str, Any]]] = {
    NO_DRAIN: {},
    "drain_fence": {"drain_fence": True},
    "drain_until": {"drain_until": lambda message: message == "the last one"},
}

GOALS: Final = {"drain_fence": 0.4, "drain_until": 0.95}
"""The least share of the borrows per second without a drain."""


def borrowing(pool: WebsocketConnectionPool) -> Body:
    async def borrow() -> None:
        async with pool.get_connection() as connection:
            await connection.send("the last one")
            await connection.recv()

    return borrow


async def compare(uri: str, *, rounds: int = 100, round_seconds: float = 0.05) -> Comparison:
    """Compare the ways; a round is so long that the drain which outlasts it is one of hundreds."""
    async with AsyncExitStack() as stack:
        ways = {}
        for way, options in WAYS.items():
            pool = WebsocketConnectionPool(
                uri=uri, max_connections=1, acquire_timeout=None, **options
            )
            ways[way] = borrowing(await stack.enter_async_context(pool))
        return await side_by_side(ways, rounds=rounds, round_seconds=round_seconds)


def show(loop: str, comparison: Comparison) -> None:
    print(f"\n{loop:12}  borrows/s  of no drain   goal")
    for way in WAYS:
        share = comparison.ratio(NO_DRAIN, way)
        goal = f"{GOALS[way]:.2f}" if way in GOALS else "–"
        print(f"{way:12} {1 / comparison.seconds(way):10,.0f} {share:11.2f} {goal:>6}")


if __name__ == "__main__":
    for loop in chosen_loops(__doc__):
        show(loop, run(compare, loop))
