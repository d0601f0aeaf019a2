"""Servers in the process that are not aiohttp's: uvicorn, and one that does not speak HTTP."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from tests.conftest import until


@asynccontextmanager
async def uvicorn_with(app: Any, port: int = 0, **options: Any) -> AsyncIterator[str]:
    """Serve an ASGI application with uvicorn, and give its WebSocket URI; 0: any free port."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        # The other implementation on `websockets` has deprecated parts.
        config = uvicorn.Config(
            app, ws="websockets-sansio", lifespan="off", log_config=None, **options
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await until(lambda: server.started, "uvicorn has started")
        yield f"ws://127.0.0.1:{listener.getsockname()[1]}/"
        server.should_exit = True
        await serving


@asynccontextmanager
async def of_another_protocol(secret: str) -> AsyncIterator[int]:
    """Greet as a mail server does, with a secret and an escape sequence; give the port."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"220 \x1b[31m{secret}\r\nx\r\n\r\n".encode())
        await writer.drain()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as listening:
        yield listening.sockets[0].getsockname()[1]
