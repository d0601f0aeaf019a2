"""What a server's own limit costs a pool that was not told of it.

`python -m tests.benchmarks.limits [seconds]`: 40 patient borrowers on a pool that may have 50
connections, at servers that admit 5, and beside it in the same seconds as many on a pool whose
`max_connections` is 5. Printed are the loans of both, the dials that were refused, and the errors.
nginx and HAProxy are left out where they are missing.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from tests.support.crowd import Crowded, Evicting, crowd
from tests.support.proxies import SBIN, Nginx, haproxy
from wspool import (
    ConnectionClosedError,
    ConnectionUnavailableError,
    WebsocketConnectionPool,
    WebsocketError,
)
from wspool.testing import Server

ADMITTED: Final = 5
HOLD_SECONDS: Final = 0.05
SERVERS: Final = ("429", "503", "1013", "403", "4008", "nginx", "haproxy", "evicting")


def is_full(error: WebsocketError) -> bool:
    if isinstance(error, ConnectionUnavailableError):
        return error.status == 403
    return isinstance(error, ConnectionClosedError) and error.code == 4008


@asynccontextmanager
async def serving(kind: str) -> AsyncIterator[str]:
    """Give the URI of a server that admits so many."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if kind.isdigit():
            server: Server = await stack.enter_async_context(Crowded(ADMITTED, int(kind)))
            yield server.uri
        elif kind == "evicting":
            yield (await stack.enter_async_context(Evicting(ADMITTED, 1008))).uri
        else:
            server = await stack.enter_async_context(Server())
            if kind == "nginx":
                nginx = Nginx(server.uri, directory, ADMITTED)
                yield (await stack.enter_async_context(nginx.running())).uri
            else:
                yield await stack.enter_async_context(haproxy(server.uri, directory, ADMITTED))


async def measure(kind: str, seconds: float) -> str:
    """Return the line of one server."""
    async with AsyncExitStack() as stack:
        pools = []
        for most in (50, ADMITTED):
            uri = await stack.enter_async_context(serving(kind))
            pool = WebsocketConnectionPool(uri=uri, max_connections=most, is_full=is_full)
            pools.append(await stack.enter_async_context(pool))
        learning, told = await asyncio.gather(
            *(crowd(pool, seconds, hold=HOLD_SECONDS) for pool in pools)
        )
        share = learning.loans / told.loans
        refused = pools[0].stats.dial_failures
        learned = pools[0].learned_limit
    return (
        f"{kind:9} {learning.loans / seconds:8.1f} {told.loans / seconds:8.1f} {share:7.1%} "
        f"{refused:8} {len(learning.errors):7} {learned!s:>8}"
    )


async def main(seconds: float) -> None:
    print(f"{'server':9} {'loans/s':>8} {'told 5':>8} {'share':>7} refused  errors  learned")
    there = [kind for kind in SERVERS if kind.isdigit() or kind == "evicting"]
    there += [kind for kind in ("nginx", "haproxy") if shutil.which(kind, path=SBIN)]
    for kind in there:
        print(await measure(kind, seconds), flush=True)


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 60.0))
