#!/usr/bin/env python3
"""A server that wants a signed URL and a young token for each handshake.

    python examples/short_lived_tokens.py [API]

API is the http:// or https:// address of the service that hands these out, over `POST /sign` and
`POST /token`. Without it the service is `StandIn`, below.
"""

from __future__ import annotations

import asyncio
import secrets
import sys

from aiohttp import ClientSession, WSCloseCode, web
from aiohttp.test_utils import TestServer

from wspool import ConnectionUnavailableError, WebsocketConnectionPool

TOKEN_SECONDS = 2.0
"""How long a token is good for; real ones are for minutes."""


class Access:
    """What a handshake needs. The pool asks for it before each attempt, retries included.

    An error of ours fails the attempt like one of the server's: 503 and a lost network are tried
    again, 401 is not.
    """

    def __init__(self, session: ClientSession, api: str) -> None:
        self.session = session
        self.api = api.rstrip("/")

    async def uri(self) -> str:
        """Return a URL that opens one connection, once."""
        return await self._post("sign")

    async def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {await self._post('token')}"}

    async def _post(self, path: str) -> str:
        async with self.session.post(f"{self.api}/{path}", raise_for_status=True) as response:
            return await response.text()


def make_pool(session: ClientSession, access: Access) -> WebsocketConnectionPool:
    return WebsocketConnectionPool(
        uri=access.uri,  # the callables, not what they return
        headers=access.headers,
        session=session,  # one for the WebSockets and for the requests of `access`
        max_connections=20,  # of the 100 that the session's connector admits
        acquire_timeout=10.0,
        connection_timeout=5.0,  # for one attempt, with its two requests
        # The server cuts a connection off when its token is over: replace it at half of that age.
        max_lifetime=TOKEN_SECONDS / 2,
    )


class StandIn:
    """Plays the service: refuses old tokens with 401, and URLs that were used with 403."""

    def __init__(self) -> None:
        # When each token ends; the signatures that nobody has used.
        self.tokens: dict[str, float] = {}
        self.signatures: set[str] = set()
        self.app = web.Application()
        self.app.router.add_post("/sign", self.sign)
        self.app.router.add_post("/token", self.token)
        self.app.router.add_get("/stream", self.stream)

    async def sign(self, request: web.Request) -> web.Response:
        self.signatures.add(signature := secrets.token_hex())
        return web.Response(text=f"ws://{request.host}/stream?signature={signature}")

    async def token(self, request: web.Request) -> web.Response:
        token = secrets.token_hex()
        self.tokens[token] = asyncio.get_running_loop().time() + TOKEN_SECONDS
        return web.Response(text=token)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        if request.query["signature"] not in self.signatures:
            return web.Response(status=403)
        self.signatures.remove(request.query["signature"])
        end = self.tokens.get(request.headers["Authorization"].removeprefix("Bearer "), 0.0)
        if end <= asyncio.get_running_loop().time():
            return web.Response(status=401)
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        try:
            async with asyncio.timeout_at(end):
                async for message in websocket:
                    await websocket.send_str(message.data)
        except TimeoutError:
            await websocket.close(code=WSCloseCode.POLICY_VIOLATION, message=b"token is over")
        return websocket


async def main(api: str | None = None) -> None:
    async with TestServer(StandIn().app) as server, ClientSession() as session:
        access = Access(session, api or str(server.make_url("/")))
        async with make_pool(session, access) as pool:
            for _ in range(4):
                async with pool.get_connection() as connection:
                    await connection.send("hello")
                    print(f"{await connection.recv()!r} on connection {connection.id}")
                await asyncio.sleep(0.4)

        old = {"Authorization": "Bearer that-of-yesterday"}
        async with WebsocketConnectionPool(uri=access.uri, headers=old, session=session) as pool:
            try:
                await pool.acquire()
            except ConnectionUnavailableError as error:
                print(error.message)  # after 1 attempt: the same token would be refused again


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
