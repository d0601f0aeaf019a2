"""A fleet of processes under one quota in Redis, against a server that counts.

`python -m tests.explore.fleet` runs 20 processes for a minute, kills half of them, prints what the
server and the workers saw, and exits with 1 if a limit was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from aiohttp import web

from tests import ROOT
from tests.support.redis_server import RedisServer
from wspool.redis import LASTS
from wspool.testing import Server

KEY = "fleet"


class CountingServer(Server):
    """Knows how many sockets there are, handshakes under way included, whose, and since when."""

    def __init__(self) -> None:
        super().__init__()
        self.sockets: Counter[str] = Counter()
        self.most_sockets = 0
        # When each handshake has arrived.
        self.dials: list[float] = []

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.sockets[request.path] += 1
        self.most_sockets = max(self.most_sockets, self.sockets.total())
        self.dials.append(time.monotonic())
        try:
            return await super()._serve(request)
        finally:
            self.sockets[request.path] -= 1

    def most_dials_per_second(self) -> int:
        """Return the most that have arrived in any second."""
        first = most = 0
        for last, at in enumerate(self.dials):
            while self.dials[first] <= at - 1.0:
                first += 1
            most = max(most, last - first + 1)
        return most


class Worker:
    """A process with tasks that borrow all the time, and drop some of what they have used."""

    def __init__(self, path: str, process: asyncio.subprocess.Process) -> None:
        self.path = path
        self.process = process

    async def report(self) -> dict[str, Any]:
        """Return how long each loan was waited for since the last report, and what went wrong."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"report\n")
        line = await self.process.stdout.readline()
        assert line, f"{self.path} has ended"
        report: dict[str, Any] = json.loads(line)
        return report


@asynccontextmanager
async def hire(server: Server, redis: RedisServer, name: str, **task: Any) -> AsyncIterator[Worker]:
    """Start a worker; at the end of the block it goes home, or has been killed."""
    task |= {"uri": server.uri + name, "redis_url": redis.url}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "tests.explore.fleet", "--work", json.dumps(task)),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=2**24,
    )
    try:
        yield Worker(f"/{name}", process)
        was_killed = process.returncode is not None
        await asyncio.wait_for(process.communicate(None if was_killed else b""), 30)
        assert was_killed or process.returncode == 0, f"{name} has failed"
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def work(
    *,
    uri: str,
    redis_url: str,
    limit: int,
    dials_per_second: float | None,
    lease: float,
    borrowers: int,
    hold: float,
    dropped: float,
    skew: float = 0.0,
) -> None:
    """Borrow until stdin ends, and report for each line; `skew` is what the wall clock is wrong."""
    right = time.time
    time.time = lambda: right() + skew
    from wspool import WebsocketConnectionPool, WebsocketError
    from wspool.redis import RedisQuota

    waits: list[float] = []
    errors = Counter[str]()

    async def borrow() -> None:
        while True:
            began = time.monotonic()
            try:
                async with pool.get_connection(timeout=60.0) as connection:
                    waits.append(time.monotonic() - began)
                    await connection.send("hello")
                    await connection.recv()
                    await asyncio.sleep(random.uniform(0, 2 * hold))
                    if random.random() < dropped:
                        await connection.close()
            except WebsocketError as error:
                errors[type(error).__name__] += 1

    quota = RedisQuota(redis_url, KEY, limit, dials_per_second, lease)
    async with quota, WebsocketConnectionPool(uri=uri, quota=quota, max_connections=limit) as pool:
        tasks = [asyncio.create_task(borrow()) for _ in range(borrowers)]
        while await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps({"waits": waits, "errors": errors}), flush=True)
            waits.clear()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def leases_since(redis: RedisServer, lasts: float, since: float) -> int:
    """Return how many leases were given or renewed after a time of Redis' clock."""
    async with redis.client() as client:
        return int(await client.zcount(f"{{{KEY}}}:leases", (since + lasts) * 1e6, "+inf"))


async def time_of(redis: RedisServer) -> float:
    async with redis.client() as client:
        seconds, microseconds = await client.time()
        return seconds + microseconds / 1e6


async def simulate(arguments: argparse.Namespace) -> bool:
    """Print what happens; return whether all is as promised."""
    limit, rate, lease = arguments.limit, arguments.rate, arguments.lease
    each = max(2, round(3 * limit / arguments.processes))
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisServer())
        server = await stack.enter_async_context(CountingServer())
        workers = []
        for number in range(arguments.processes):
            contract = hire(
                *(server, redis, f"worker-{number:02}"),
                **{"limit": limit, "dials_per_second": rate, "lease": lease},
                **{"borrowers": each, "hold": 2.0, "dropped": 0.3},
            )
            workers.append(await stack.enter_async_context(contract))
        await asyncio.gather(*(worker.report() for worker in workers))
        print(
            f"{len(workers)} processes with {each} borrowers each; together at most {limit} "
            f"sockets and {rate} dials a second; a lease lasts {lease} s",
            flush=True,
        )
        calls, requests = await redis.calls(), len(server.requests)
        await asyncio.sleep(arguments.seconds)
        calls = await redis.calls() - calls
        dials = Counter(request.path for request in server.requests[requests:])
        reports = await asyncio.gather(*(worker.report() for worker in workers))

        killed, since = time.monotonic(), await time_of(redis)
        for worker in workers[::2]:
            worker.process.kill()
        regained = 0.0
        while regained < 3 * lease:
            await asyncio.sleep(0.02)
            regained = time.monotonic() - killed
            if await leases_since(redis, lease * LASTS, since) == limit:
                break
        await asyncio.sleep(5)

    even = dials.total() / len(workers)
    print(f"\n{'worker':<12}{'dials':>6}{'loans':>7}   waited (s) 50 %    90 %    99 %     max")
    for worker, report in zip(workers, reports, strict=True):
        waits = sorted(report["waits"])
        cuts = [waits[int(share * (len(waits) - 1))] for share in (0.5, 0.9, 0.99, 1.0)]
        numbers = "".join(f"{cut:8.2f}" for cut in cuts)
        print(f"{worker.path[1:]:<12}{dials[worker.path]:>6}{len(waits):>7}{'':9}{numbers}")
    loans = sum(len(report["waits"]) for report in reports)
    print(f"\n{loans} loans, {dials.total()} dials, {calls} scripts run by Redis in that time")
    print("errors of borrowers:", sum((Counter(r["errors"]) for r in reports), Counter()) or "none")
    promises = [
        ("sockets at most", server.most_sockets, limit),
        ("dials in a second at most", server.most_dials_per_second(), rate),
        ("even share of dials / the least served worker's", even / min(dials.values()), 2),
        ("seconds until half of the workers had all leases", round(regained, 2), lease),
    ]
    for what, found, promised in promises:
        print(f"{what}: {found:g} (promised: {promised:g}){'' if found <= promised else '  <--'}")
    return all(found <= promised for _, found, promised in promises)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.explore.fleet", description=__doc__)
    parser.add_argument("--processes", type=int, default=20)
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--lease", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work:
        asyncio.run(work(**json.loads(options.work)))
        return 0
    return 0 if asyncio.run(simulate(options)) else 1


if __name__ == "__main__":
    sys.exit(main())
