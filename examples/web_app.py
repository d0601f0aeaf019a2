#!/usr/bin/env python3
"""An aiohttp application that asks a WebSocket server over one pool, and shows that pool.

    pip install 'wspool[prometheus]'
    UPSTREAM_URI=ws://localhost:8080/ python examples/web_app.py    # at http://127.0.0.1:8000

    GET /ask?text=hello   sends the text to the WebSocket server and returns the next message
    GET /debug/wspool/    the pool, live: put it behind your own authentication
    GET /health           "ok", or "degraded" while the WebSocket server admits nobody
    GET /metrics          for Prometheus

Without UPSTREAM_URI the server is one of its own, that echoes. The pool is made when the
application starts, so each worker process has one, with its own limit, page and metrics:

    gunicorn examples.web_app:make_runner -k aiohttp.GunicornWebWorker --workers 2

`handler_cancellation=True` is for clients that hang up. Without it their handlers wait on for
answers that nobody wants, and keep the connections from others.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import aiohttp
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from wspool import (
    ConnectionClosedError,
    ConnectionPoolExhaustedError,
    ConnectionUnavailableError,
    WebsocketConnectionPool,
    debug,
)
from wspool.prometheus import register
from wspool.testing import Server

UPSTREAM_URI = os.environ.get("UPSTREAM_URI", "")
MAX_CONNECTIONS = 20
UNAVAILABLE = "all connections are in use, or the server is away; try later"
URI = web.AppKey("URI", str)
SESSION = web.AppKey("SESSION", aiohttp.ClientSession)
POOL = web.AppKey("POOL", WebsocketConnectionPool)


async def clients(app: web.Application) -> AsyncIterator[None]:
    """Open the session and the pool with the application, and close them with it."""
    async with AsyncExitStack() as stack:
        uri = app[URI] or (await stack.enter_async_context(Server())).uri
        # Each WebSocket holds a place in the connector: 20 for the pool leave 80 for requests.
        connector = aiohttp.TCPConnector(limit=MAX_CONNECTIONS + 80)
        app[SESSION] = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        app[POOL] = await stack.enter_async_context(
            WebsocketConnectionPool(
                uri=uri,
                session=app[SESSION],
                name="upstream",
                max_connections=MAX_CONNECTIONS,
                # Who waits has a place in a line that is short, and a deadline.
                acquire_timeout=5.0,
                max_waiting=MAX_CONNECTIONS,
            )
        )
        register(app[POOL])
        yield


async def ask(request: web.Request) -> web.Response:
    text = request.query.get("text", "")
    try:
        async with request.app[POOL].get_connection() as connection:
            # Inside the block: a question without an answer costs the connection, so that the
            # answer cannot reach the next borrower.
            async with asyncio.timeout(10):
                await connection.send(text)
                answer = await connection.recv()
    except (ConnectionPoolExhaustedError, ConnectionUnavailableError):
        # Before TimeoutError: who waited in vain gets an error that is that too.
        raise web.HTTPServiceUnavailable(text=UNAVAILABLE) from None
    except ConnectionClosedError:
        raise web.HTTPBadGateway(text="the server has hung up") from None
    except TimeoutError:
        raise web.HTTPGatewayTimeout(text="the server did not answer in time") from None
    return web.Response(body=answer)


async def health(request: web.Request) -> web.Response:
    """Say that this process lives: to restart it would not bring the WebSocket server back."""
    trouble = request.app[POOL].trouble
    status = {"status": "degraded", "kind": trouble.kind} if trouble else {"status": "ok"}
    return web.json_response(status)


async def metrics(request: web.Request) -> web.Response:
    return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def make_app(uri: str = "") -> web.Application:
    app = web.Application()
    app[URI] = uri
    app.cleanup_ctx.append(clients)
    app.router.add_get("/ask", ask)
    app.router.add_get("/health", health)
    app.router.add_get("/metrics", metrics)
    debug.setup(app, POOL)
    return app


async def make_runner() -> web.AppRunner:
    return web.AppRunner(make_app(UPSTREAM_URI), handler_cancellation=True)


if __name__ == "__main__":
    port = int(os.environ.get("PORT", "8000"))
    web.run_app(make_app(UPSTREAM_URI), host="127.0.0.1", port=port, handler_cancellation=True)
