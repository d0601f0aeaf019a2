"""A soak at a server with a limit of its own, which changes: `python -m tests.explore.limits`.

Its limit is below the pool's `max_connections`, and what is above it gets a status, a close right
after the handshake, or silence. Patient borrowers see none of that but, at worst, their deadline,
or a connection that was closed in their hands with the server's code.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Final

from aiohttp import web

from wspool import (
    ConnectionClosedError,
    ConnectionPoolExhaustedError,
    ConnectionPoolTimeoutError,
    WebsocketConnectionPool,
)
from wspool.testing import Peer, Server

CONNECTIONS: Final = 20
BORROWERS: Final = 60
PATIENCE_SECONDS: Final = 20.0
PHASE_SECONDS: Final = 1.0
"""Between two changes of the limit, and of what is done above it."""

REFUSALS: Final = ("429", "403", "1013", "silence")

REFUSED_PER_SECOND: Final = 15
"""Dials at most that are refused: 8 with a limit that stays, and each change lets it begin anew."""

NET: Final = 60.0


class LimitedServer(Server):
    """A server that admits so many connections at a time."""

    def __init__(self) -> None:
        super().__init__(self.serve)
        self.limit = CONNECTIONS
        self.refusal = REFUSALS[0]
        self.refused: Counter[str] = Counter()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if len(self.open) >= self.limit and self.refusal != "1013":
            self.refused[self.refusal] += 1
            if self.refusal != "silence":
                return web.Response(status=int(self.refusal))
            while request.transport is not None and not request.transport.is_closing():
                await asyncio.sleep(0.05)
            return web.Response(status=408)  # which nobody reads any more
        return await super()._answer(request)

    async def serve(self, peer: Peer) -> None:
        if len(self.open) > self.limit:
            self.refused["1013"] += 1
            await peer.close(1013, "try again later")
            return
        async for message in peer:
            await peer.send(message)
            if len(self.open) > self.limit:  # the limit has fallen
                return


class Crowd:
    """Who borrows, and what became of it."""

    def __init__(self, pool: WebsocketConnectionPool, chance: random.Random) -> None:
        self.pool = pool
        self.chance = chance
        self.replies = 0
        self.seen: Counter[str] = Counter()
        self.wrongs: list[str] = []
        self.is_over = False

    async def borrow_on(self, number: int) -> None:
        turn = 0
        while not self.is_over:
            turn += 1
            try:
                await self.borrow(f"{number}.{turn}")
            except ConnectionClosedError as error:
                self.seen[f"ConnectionClosedError {error.code}"] += 1
                if error.code not in (1000, 1013):
                    self.wrongs.append(repr(error))
            except ConnectionPoolTimeoutError:
                self.seen["ConnectionPoolTimeoutError"] += 1
            except Exception as error:
                self.wrongs.append(repr(error))

    async def borrow(self, request: str) -> None:
        async with self.pool.get_connection(timeout=PATIENCE_SECONDS) as connection:
            for part in range(self.chance.randrange(3)):
                await connection.send(f"{request}.{part}")
                if (reply := await connection.recv()) != f"{request}.{part}":
                    self.wrongs.append(f"{reply!r} came to {request}.{part}")
                self.replies += 1
                await asyncio.sleep(self.chance.uniform(0.0, 0.02))


async def count_places(pool: WebsocketConnectionPool) -> str | None:
    """Borrow every place and use it; return what is wrong."""
    got = [await pool.acquire(timeout=NET) for _ in range(CONNECTIONS)]
    for connection in got:
        await connection.send("hello")
        await connection.recv()
    try:
        await pool.acquire(timeout=0)
    except ConnectionPoolExhaustedError:
        return None
    finally:
        for connection in got:
            await pool.release(connection)
    return f"there is a place too many: {pool!r}"


async def soak(seconds: float, seed: int) -> tuple[LimitedServer, Crowd]:
    """Let the crowd borrow while the limit changes, and then count the places."""
    chance = random.Random(seed)
    async with LimitedServer() as server:
        pool = WebsocketConnectionPool(
            uri=server.uri,
            max_connections=CONNECTIONS,
            connection_timeout=0.5,
            close_timeout=1.0,
            cleanup_interval=0.2,
        )
        async with asyncio.timeout(seconds + 2 * NET), pool:
            crowd = Crowd(pool, chance)
            borrowing = [asyncio.create_task(crowd.borrow_on(n)) for n in range(BORROWERS)]
            for phase in range(max(1, round(seconds / PHASE_SECONDS))):
                server.refusal = REFUSALS[phase % len(REFUSALS)]
                server.limit = chance.randrange(2, CONNECTIONS)
                await asyncio.sleep(PHASE_SECONDS)
            crowd.is_over = True
            await asyncio.gather(*borrowing)
            server.limit = CONNECTIONS * 2
            if wrong := await count_places(pool):
                crowd.wrongs.append(wrong)
    if (refused := server.refused.total()) > REFUSED_PER_SECOND * max(seconds, 1.0):
        crowd.wrongs.append(f"{refused} dials were refused")
    return server, crowd


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.explore.limits", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args(argv)
    logging.getLogger("wspool").setLevel(logging.CRITICAL)
    server, crowd = asyncio.run(soak(chosen.seconds, chosen.seed))
    refused = ", ".join(f"{count} by {how}" for how, count in server.refused.items())
    seen = ", ".join(f"{count}x {what}" for what, count in crowd.seen.items()) or "no error"
    print(f"{crowd.replies} replies; dials refused: {refused}; borrowers saw {seen}")
    for wrong in crowd.wrongs[:20]:
        print("WRONG:", wrong)
    return int(bool(crowd.wrongs))


if __name__ == "__main__":
    sys.exit(main())
