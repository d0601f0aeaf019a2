#!/usr/bin/env python3
"""Print what the connections of a pool go through while things happen to them.

    python examples/watch_states.py

It starts a small WebSocket server of its own, and takes about two seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from wspool import ConnectionClosedError, WebsocketConnectionPool


async def serve(request: web.Request) -> web.WebSocketResponse:
    """Answer "count" with 1, 2, 3 and "end", "leave" with a close, and all else with itself."""
    websocket = web.WebSocketResponse()
    await websocket.prepare(request)
    async for message in websocket:
        if message.data == "count":
            for answer in ("1", "2", "3", "end"):
                await websocket.send_str(answer)
                await asyncio.sleep(0.05)
        elif message.data == "leave":
            await websocket.close(code=1001, message=b"going away")
        else:
            await websocket.send_str(message.data)
    return websocket


@asynccontextmanager
async def server() -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/", serve)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"ws://127.0.0.1:{runner.addresses[0][1]}/"
    await runner.cleanup()


class Watch:
    """Prints the transitions that connections have made since the last time it was asked."""

    def __init__(self, pool: WebsocketConnectionPool) -> None:
        self.pool = pool
        self.shown: dict[int, int] = {}

    def show(self, happening: str) -> None:
        print(happening)
        picture = self.pool.snapshot()
        for connection in sorted((*picture.gone, *picture.connections), key=lambda c: c.id):
            for move in connection.history[self.shown.get(connection.id, 0) :]:
                print(f"    #{connection.id}  {move.source:>10} → {move.dest:<8}  {move.why}")
            self.shown[connection.id] = len(connection.history)
        counts = [f"{count} {state}" for state, count in picture.counts.items() if count]
        print(f"    now: {', '.join(counts) or 'no connection'}\n")


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


async def main() -> None:
    async with server() as uri:
        pool = WebsocketConnectionPool(
            uri=uri,
            warmup_connections=2,
            idle_timeout=1.0,
            cleanup_interval=0.1,
            drain_until=lambda message: message == "end",
        )
        watch = Watch(pool)

        await pool.start()
        watch.show("Warm-up: two connections are opened before anybody asks.")

        async with pool.get_connection() as connection:
            watch.show("A borrower has one to itself,")
            await connection.send("end")
            await connection.recv()
        watch.show("and gives it back: the last message has been read, so it is clean.")

        async with pool.get_connection() as connection:
            await connection.send("count")
            await connection.recv()
        watch.show("Another leaves after the first of four messages,")
        await until(lambda: not connection.is_draining)
        watch.show("and the connection is idle again once the last one has been drained.")

        try:
            async with pool.get_connection() as connection:
                await connection.send("leave")
                await connection.recv()
        except ConnectionClosedError as error:
            watch.show(f"The server closes a connection, with code {error.code}.")

        await until(lambda: pool.total_connections == 0)
        watch.show("Nobody came for longer than idle_timeout.")

        async with pool.get_connection():
            await pool.close_all()
            watch.show("The pool is closed while somebody has a connection.")


if __name__ == "__main__":
    asyncio.run(main())
