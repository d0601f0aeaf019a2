"""Processes of a fleet, each with a pool under one quota in Redis, that do as they are told.

As a program it is one of them: it answers each line on stdin with one on stdout, both of JSON, and
ends with stdin.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests import ROOT


class Member:
    """A process, as whoever has started it sees it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def _ask(self, what: str, count: int = 0) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([what, count]).encode() + b"\n")
        line = await self.process.stdout.readline()
        assert line, "it has ended"
        return json.loads(line)

    async def borrow(self, count: int) -> list[float]:
        """Borrow so many at once; return how many seconds each has taken."""
        seconds: list[float] = await self._ask("borrow", count)
        return seconds

    async def give_back(self) -> None:
        """Give back all that was borrowed."""
        await self._ask("give back")

    async def closes(self) -> dict[str, int]:
        """Return how many connections were closed, for each reason."""
        closes: dict[str, int] = await self._ask("closes")
        return closes

    async def idle(self) -> int:
        """Return how many connections are idle."""
        count: int = await self._ask("idle")
        return count


@asynccontextmanager
async def join(uri: str, redis_url: str, **quota: Any) -> AsyncIterator[Member]:
    """Start a process; at the end of the block it ends."""
    task = {"uri": uri, "redis_url": redis_url, "quota": quota}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "tests.support.members", json.dumps(task)),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Member(process)
        await asyncio.wait_for(process.communicate(b""), 30)
        assert process.returncode == 0, "it has failed"
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def _obey(*, uri: str, redis_url: str, quota: dict[str, Any]) -> None:
    from wspool import WebsocketConnection, WebsocketConnectionPool
    from wspool.redis import RedisQuota

    lent: list[WebsocketConnection] = []

    async def borrow() -> float:
        began = time.monotonic()
        lent.append(await pool.acquire(timeout=30.0))
        return time.monotonic() - began

    async with (
        RedisQuota(redis_url, "members", **quota) as leases,
        WebsocketConnectionPool(uri=uri, quota=leases, idle_timeout=3600.0) as pool,
    ):
        while line := await asyncio.to_thread(sys.stdin.readline):
            answer: Any = None
            match json.loads(line):
                case ["borrow", count]:
                    answer = await asyncio.gather(*(borrow() for _ in range(count)))
                case ["give back", _]:
                    while lent:
                        await pool.release(lent.pop())
                case ["closes", _]:
                    answer = pool.stats.closes
                case ["idle", _]:
                    answer = pool.available_connections
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(_obey(**json.loads(sys.argv[1])))
