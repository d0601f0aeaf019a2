"""A web application that asks a WebSocket server, over a pool that it also shows.

    python examples/web_app.py --uri ws://localhost:8080/

    GET /ask?text=hello   sends the text to the WebSocket server and returns the next message
    GET /debug/pool       the pool as JSON: counts, every connection, and why the last ones went

The pool and the application's own HTTP requests share one ClientSession.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web

from wspool import (
    ConnectionClosedError,
    ConnectionPoolExhaustedError,
    ConnectionUnavailableError,
    WebsocketConnectionPool,
)

URI = web.AppKey("URI", str)
SESSION = web.AppKey("SESSION", aiohttp.ClientSession)
POOL = web.AppKey("POOL", WebsocketConnectionPool)


async def clients(app: web.Application) -> AsyncIterator[None]:
    """Open the session and the pool with the application, and close them with it."""
    # Each WebSocket holds a place in the connector: 20 for the pool leave 80 for requests.
    connector = aiohttp.TCPConnector(limit=100)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        WebsocketConnectionPool(
            uri=app[URI],
            session=session,
            name="upstream",
            max_connections=20,
            acquire_timeout=5.0,
        ) as pool,
    ):
        app[SESSION] = session
        app[POOL] = pool
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
    except ConnectionPoolExhaustedError:
        raise web.HTTPServiceUnavailable(text="too many questions at once") from None
    except TimeoutError:
        raise web.HTTPGatewayTimeout(text="no answer") from None
    except (ConnectionUnavailableError, ConnectionClosedError) as error:
        raise web.HTTPBadGateway(text=error.message) from None
    if isinstance(answer, bytes):
        return web.Response(body=answer)
    return web.Response(text=answer)


async def debug_pool(request: web.Request) -> web.Response:
    return web.json_response(request.app[POOL].snapshot().to_dict())


def make_app(uri: str) -> web.Application:
    app = web.Application()
    app[URI] = uri
    app.cleanup_ctx.append(clients)
    app.router.add_get("/ask", ask)
    app.router.add_get("/debug/pool", debug_pool)
    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Ask a WebSocket server over HTTP.")
    parser.add_argument("--uri", required=True, help="of the WebSocket server: ws:// or wss://")
    parser.add_argument("--host", default="127.0.0.1", help="to listen at")
    parser.add_argument("--port", default=8000, type=int, help="to listen at")
    arguments = parser.parse_args()
    web.run_app(make_app(arguments.uri), host=arguments.host, port=arguments.port)
