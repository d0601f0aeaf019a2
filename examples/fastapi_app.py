#!/usr/bin/env python3
"""A FastAPI application that asks a WebSocket server over one pool, and shows that pool.

    pip install 'wspool[prometheus]' fastapi uvicorn
    python examples/fastapi_app.py    # or: uvicorn examples.fastapi_app:app; at port 8000

    GET /ask?text=hello   sends the text to the WebSocket server and returns the next message
    GET /health           "ok", or "degraded" while the WebSocket server admits nobody
    GET /metrics/         for Prometheus
    GET /debug/wspool/    the pool, live: put it behind your own authentication

UPSTREAM_URI=ws://localhost:8080/ names the WebSocket server; without it, it is one of the
application's own, that echoes. Lifespan makes the pool: each worker process of `--workers 2` has
one, with its own limit, page and metrics, and a request is answered by any of them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import make_asgi_app

from wspool import (
    ConnectionClosedError,
    ConnectionPoolExhaustedError,
    ConnectionUnavailableError,
    WebsocketConnectionPool,
    debug,
)
from wspool.prometheus import register
from wspool.testing import Server

UPSTREAM_URI = os.environ.get("UPSTREAM_URI")
MAX_CONNECTIONS = 20
UNAVAILABLE = "all connections are in use, or the server is away; try later"
ANSWERS: dict[type[Exception], tuple[int, str]] = {
    # The first that fits: for who waited in vain, an error that is a TimeoutError too.
    ConnectionPoolExhaustedError: (503, UNAVAILABLE),
    ConnectionUnavailableError: (503, UNAVAILABLE),
    ConnectionClosedError: (502, "the server has hung up"),
    TimeoutError: (504, "the server did not answer in time"),
}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """Open the pool with the application, in its event loop, and close it with it."""
    async with AsyncExitStack() as stack:
        uri = UPSTREAM_URI or (await stack.enter_async_context(Server())).uri
        pool = await stack.enter_async_context(
            WebsocketConnectionPool(
                uri=uri,
                name="upstream",
                max_connections=MAX_CONNECTIONS,
                # Who waits has a place in a line that is short, and a deadline.
                acquire_timeout=5.0,
                max_waiting=MAX_CONNECTIONS,
            )
        )
        register(pool)
        yield {"pool": pool}  # the state of each request


async def explain(request: Request, error: Exception) -> JSONResponse:
    status, detail = next(ANSWERS[kind] for kind in ANSWERS if isinstance(error, kind))
    return JSONResponse({"detail": detail}, status)


app = FastAPI(lifespan=lifespan, exception_handlers=dict.fromkeys(ANSWERS, explain))
app.mount("/metrics", make_asgi_app())
app.mount("/debug/wspool", debug.asgi("pool"))  # by its key in the state of each request


@app.get("/ask")
async def ask(request: Request, text: str = "") -> PlainTextResponse:
    async with request.state.pool.get_connection() as connection:
        # Inside the block: a question without an answer costs the connection, so that the
        # answer cannot reach the next borrower.
        async with asyncio.timeout(10):
            await connection.send(text)
            return PlainTextResponse(await connection.recv())


@app.get("/health")
async def health(request: Request) -> dict[str, str]:
    """Say that this process lives: to restart it would not bring the WebSocket server back."""
    trouble = request.state.pool.trouble
    return {"status": "degraded", "kind": trouble.kind} if trouble else {"status": "ok"}


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", 8000)))
