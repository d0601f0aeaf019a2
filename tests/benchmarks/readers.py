"""What the readers of the live page cost the loans beside them.

    python -m tests.benchmarks.readers [readers=1000] [connections=50] [seconds=10]

A pool with an echo server in another process lends to eight tasks, for an echo each time, while so
many readers, in a third process, take the page's stream. Of each half it says how many loans there
were a second, how long the longest pause of the event loop was, and what the readers were served.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from time import perf_counter
from typing import Final

from aiohttp import web

from tests.benchmarks.server import echo_server
from wspool import WebsocketConnectionPool, debug

BORROWERS: Final = 8
PAUSE_SECONDS: Final = 0.005
"""Between two looks at the clock: a pause is what a look comes late by."""


async def take(port: int, pictures: list[int], refused: list[int]) -> None:
    """Read one stream to its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /debug/wspool/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    try:
        if b" 200 " not in await reader.readline():
            refused.append(1)
            return
        while chunk := await reader.read(1 << 20):
            pictures.append(chunk.count(b"\ndata: {") + chunk.startswith(b"data: {"))
    finally:
        writer.close()


async def read_all(port: int, readers: int, seconds: float) -> None:
    """Be so many readers for so long, and print what they were served."""
    pictures: list[int] = []
    refused: list[int] = []
    streams = [asyncio.create_task(take(port, pictures, refused)) for _ in range(readers)]
    await asyncio.sleep(seconds)
    for stream in streams:
        stream.cancel()
    await asyncio.wait(streams)
    print(sum(pictures), len(refused), flush=True)


async def lend(pool: WebsocketConnectionPool, seconds: float) -> tuple[float, float]:
    """Return the loans a second and the longest pause in seconds."""
    loans, longest = 0, 0.0

    async def borrow() -> None:
        nonlocal loans
        while True:
            async with pool.get_connection(timeout=None) as connection:
                await connection.send("hello")
                await connection.recv()
            loans += 1

    tasks = [asyncio.create_task(borrow()) for _ in range(BORROWERS)]
    began = before = perf_counter()
    while before - began < seconds:
        await asyncio.sleep(PAUSE_SECONDS)
        now = perf_counter()
        longest = max(longest, now - before - PAUSE_SECONDS)
        before = now
    rate = loans / (before - began)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    return rate, longest


@contextlib.asynccontextmanager
async def served(pool: WebsocketConnectionPool) -> AsyncIterator[int]:
    app = web.Application()
    debug.setup(app, pool)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def compare(uri: str, readers: int, connections: int, seconds: float) -> None:
    async with (
        WebsocketConnectionPool(
            uri=uri, max_connections=connections, min_connections=connections
        ) as pool,
        served(pool) as port,
    ):
        while pool.snapshot().counts["idle"] < connections:
            await asyncio.sleep(0.05)
        rate, longest = await lend(pool, seconds)
        print(f"nobody:         {rate:6.0f} loans a second, longest pause {longest:.3f} s")
        command = [sys.executable, "-m", __spec__.name, "read"]
        process = await asyncio.create_subprocess_exec(
            *command, *map(str, (port, readers, seconds)), stdout=asyncio.subprocess.PIPE
        )
        rate, longest = await lend(pool, seconds + 1)
        pictures, refused = (await process.communicate())[0].split()
        print(
            f"{readers:5} readers:  {rate:6.0f} loans a second, longest pause {longest:.3f} s, "
            f"{int(pictures) / seconds:.0f} pictures a second served, {int(refused)} refused"
        )


def main(readers: int = 1000, connections: int = 50, seconds: float = 10) -> None:
    with echo_server() as uri:
        asyncio.run(compare(uri, readers, connections, seconds))


if __name__ == "__main__":
    if sys.argv[1:2] == ["read"]:
        asyncio.run(read_all(*map(int, sys.argv[2:4]), float(sys.argv[4])))
    else:
        main(*map(int, sys.argv[1:]))
