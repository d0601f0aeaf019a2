"""How long a process waits for what another has idle, under one quota in Redis.

`python -m tests.explore.reclaiming` lets two processes take a full quota from each other, prints
how long the loans took, and exits with 1 if one took longer than a second, or if more connections
were closed than were waited for.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack

from tests.explore.fleet import CountingServer
from tests.support.members import join
from tests.support.redis_server import RedisServer

PROMISED_SECONDS = 1.0


async def measure(rounds: int, limit: int, wanted: int, idle_for: float) -> bool:
    """Print what was waited for; return whether all is as promised."""
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisServer())
        server = await stack.enter_async_context(CountingServer())
        rich, poor = [
            await stack.enter_async_context(join(server.uri, redis.url, limit=limit))
            for _ in range(2)
        ]
        await rich.borrow(limit)
        await rich.give_back()
        waits: list[float] = []
        for _ in range(rounds):
            await asyncio.sleep(idle_for)
            waits += await poor.borrow(wanted)
            await poor.give_back()
            # What the other has not given yet, so that it is the turn of that.
            await poor.borrow(limit)
            await poor.give_back()
            rich, poor = poor, rich
        closed = sum([sum((await member.closes()).values()) for member in (rich, poor)])
    print(
        f"{rounds} times {wanted} of {limit} leases, all idle in another process for {idle_for} s: "
        f"median {statistics.median(waits):.3f} s, at most {max(waits):.3f} s; {closed} "
        f"connections closed, {rounds * limit} were waited for; sockets at most: "
        f"{server.most_sockets}",
        flush=True,
    )
    return max(waits) <= PROMISED_SECONDS and closed == rounds * limit


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.explore.reclaiming", description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--limit", type=int, default=10)
    options = parser.parse_args(arguments)
    outcomes = [
        asyncio.run(measure(options.rounds, options.limit, wanted, idle_for))
        for wanted in (1, options.limit)
        for idle_for in (0.0, 1.0)
    ]
    return 0 if all(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
