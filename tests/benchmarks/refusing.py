"""What a member that always refuses costs those who borrow of the others.

`python -m tests.benchmarks.refusing [seconds]`: in turns, for a second each, 20 borrowers of a
group of three members, all of which are well, and as many of one whose third refuses every
handshake. Printed are the percentiles of the time from asking for a connection to the answer to a
message, and the dials that were refused.
"""

from __future__ import annotations

import asyncio
import sys
from time import perf_counter
from typing import Final

from tests.benchmarks.server import echo_server
from wspool import WebsocketPools
from wspool.testing import Server

BORROWERS: Final = 20
TURN_SECONDS: Final = 1.0


async def load(pools: WebsocketPools, seconds: float) -> list[float]:
    """Return how long each took that has borrowed and asked in this time."""
    end = perf_counter() + seconds
    took: list[float] = []

    async def borrow() -> None:
        while (began := perf_counter()) < end:
            async with pools.get_connection() as connection:
                await connection.send("hello")
                await connection.recv()
            took.append(perf_counter() - began)

    await asyncio.gather(*(borrow() for _ in range(BORROWERS)))
    return took


async def measure(uri: str, seconds: float) -> None:
    async with Server() as refusing:
        refusing.refuse(times=100_000)
        well = {key: {"uri": uri} for key in "abc"}
        broken = well | {"c": {"uri": refusing.uri}}
        groups = {
            name: WebsocketPools(options, max_connections=BORROWERS, acquire_timeout=10.0)
            for name, options in (("all are well", well), ("one refuses", broken))
        }
        took: dict[str, list[float]] = {name: [] for name in groups}
        for number in range(max(2, round(seconds / TURN_SECONDS / 2))):
            for name in list(groups)[:: 1 if number % 2 else -1]:
                found = await load(groups[name], TURN_SECONDS)
                if number:  # the first is of the dials
                    took[name] += found
        for name, group in groups.items():
            times = sorted(took[name])
            p50, p99 = (1000 * times[int(share * len(times))] for share in (0.5, 0.99))
            print(
                f"{name:>14}: {len(times):,} loans, p50 {p50:.2f} ms, p99 {p99:.2f} ms, "
                f"{group.stats.dial_failures} dials refused"
            )
            await group.close_all()


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    with echo_server() as uri:
        asyncio.run(measure(uri, seconds))


if __name__ == "__main__":
    main()
