"""Whether a connection is ready when it is wanted: three figures, each against a real server.

    python -m tests.benchmarks.readiness [cold] [grace] [restart]

cold: 40 overlapping sessions, one per connection, with `min_idle=2` and handshakes of 150 ms; how
many wait for one. grace: the longest wait of 8 workers while `expire_connections(grace=5)` replaces
all that they use, and how many sockets the server sees. restart: 100 runs a second for 12 seconds,
in which uvicorn is restarted twice and closes with 1012; errors and repetitions.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections import Counter
from typing import Any

import uvicorn

from tests.support.redis_server import free_port
from wspool import WebsocketConnection, WebsocketConnectionPool
from wspool.events import ConnectionCheckedOut, Event, LoanRepeated
from wspool.testing import Server

HANDSHAKE_SECONDS = 0.15

COLD_SECONDS = 0.02
"""A wait beyond this is one for a handshake."""


async def echo(connection: WebsocketConnection, text: str) -> str | bytes:
    await connection.send(text)
    return await connection.recv()


def waits_of(pool: WebsocketConnectionPool) -> list[float]:
    """Return a list that will have the wait of each loan."""
    waits: list[float] = []

    def note(event: Event) -> None:
        if isinstance(event, ConnectionCheckedOut):
            waits.append(event.duration)

    pool.subscribe(note)
    return waits


async def cold() -> None:
    async with (
        Server() as server,
        WebsocketConnectionPool(uri=server.uri, min_idle=2, max_uses=1) as pool,
    ):
        server.delay = HANDSHAKE_SECONDS
        waits = waits_of(pool)

        async def session() -> None:
            async with pool.get_connection() as connection:
                for _ in range(10):
                    await echo(connection, "hello")
                    await asyncio.sleep(0.1)

        async with asyncio.TaskGroup() as sessions:
            for _ in range(40):
                sessions.create_task(session())
                await asyncio.sleep(0.1)
        slow = sum(wait > COLD_SECONDS for wait in waits)
        print(
            f"cold: {len(waits)} sessions, at most {server.most_open} sockets, {slow} cold, "
            f"longest wait {1000 * max(waits):.1f} ms"
        )


async def grace() -> None:
    limit = 12
    async with (
        Server() as server,
        WebsocketConnectionPool(
            uri=server.uri, max_connections=limit, acquire_timeout=None
        ) as pool,
    ):
        stop = asyncio.Event()

        async def work() -> None:
            while not stop.is_set():
                async with pool.get_connection() as connection:
                    await echo(connection, "hello")
                await asyncio.sleep(0.002)

        workers = [asyncio.create_task(work()) for _ in range(8)]
        await asyncio.sleep(1.0)
        server.delay = HANDSHAKE_SECONDS
        old = {connection.id for connection in pool.connections}
        waits = waits_of(pool)
        pool.expire_connections(grace=5.0)
        await asyncio.sleep(6.0)
        stop.set()
        await asyncio.gather(*workers)
        left = old & {connection.id for connection in pool.connections}
        print(
            f"grace: {len(waits)} loans, longest wait {1000 * max(waits):.1f} ms; {len(old)} old "
            f"ones, {len(left)} left; the server saw at most {server.most_open} of {limit} sockets"
        )


async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Echo, as an ASGI application."""
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        await asyncio.sleep(0.01)
        await send({"type": "websocket.send", "text": event["text"]})


async def restart() -> None:
    port = free_port()

    async def serve() -> tuple[uvicorn.Server, asyncio.Task[None]]:
        config = uvicorn.Config(
            application, port=port, log_level="critical", lifespan="off", ws="websockets-sansio"
        )
        server = uvicorn.Server(config)
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        task = asyncio.create_task(server._serve())
        while not server.started:
            await asyncio.sleep(0.01)
        return server, task

    server, serving = await serve()
    ends: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    async with WebsocketConnectionPool(
        uri=f"ws://127.0.0.1:{port}/", acquire_timeout=30.0, max_retries=10
    ) as pool:

        def note(event: Event) -> None:
            if isinstance(event, LoanRepeated):
                codes["repeated"] += 1
            elif (code := getattr(event, "code", None)) is not None:
                codes[str(code)] += 1

        pool.subscribe(note)

        async def one() -> None:
            try:
                ends[str(await pool.run(echo, "hello"))] += 1
            except Exception as error:
                ends[f"{type(error).__name__}: {error}"[:90]] += 1

        async def restart_it() -> None:
            nonlocal server, serving
            server.should_exit = True
            await serving
            server, serving = await serve()

        async with asyncio.TaskGroup() as runs:
            began = time.monotonic()
            for n in range(1200):
                runs.create_task(one())
                await asyncio.sleep(max(0.0, began + n / 100 - time.monotonic()))
                if n in (400, 800):
                    runs.create_task(restart_it())
        stats = pool.stats
        print(
            f"restart: {dict(ends)}; close codes {dict(codes)}; {stats.repeats} repetitions of "
            f"{stats.borrows} loans ({stats.repeats / stats.borrows:.1%})"
        )
    server.should_exit = True
    await serving


async def main(names: list[str]) -> None:
    for figure in (cold, grace, restart):
        if not names or figure.__name__ in names:
            await figure()


if __name__ == "__main__":
    logging.getLogger("wspool").setLevel(logging.CRITICAL)
    asyncio.run(main(sys.argv[1:]))
