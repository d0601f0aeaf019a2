"""What a handshake carries reaches the server as it was given."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest
from aiohttp import web
from multidict import CIMultiDict, MultiDict
from yarl import URL

from tests.conftest import MakePool
from wspool import WebsocketConnectionPool
from wspool.testing import Server

SIGNED = "?sig=a%2Fb%2Bc%3D%3D&path=%2Fv1%2Fspeech&q=%20x"


def raw(server: Server) -> list[tuple[str, str]]:
    """Return the headers of the last handshake, in their order and as they were written."""
    return [(name.decode(), value.decode()) for name, value in server.requests[-1].raw_headers]


async def handshake(make_pool: MakePool, **options: Any) -> None:
    async with make_pool(**options).get_connection():
        pass


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("kind", [CIMultiDict, MultiDict])
async def test_a_header_that_is_given_twice_is_sent_twice(
    server: Server, make_pool: MakePool, kind: Any, fresh: bool
) -> None:
    headers = kind([("Impersonate-Group", "admins"), ("Impersonate-Group", "readers")])
    given: Any = (lambda: headers) if fresh else headers
    await handshake(make_pool, headers=given)
    assert server.requests[-1].headers.getall("Impersonate-Group") == ["admins", "readers"]


async def test_a_borrower_reads_the_headers_that_were_sent(
    server: Server, make_pool: MakePool
) -> None:
    headers = CIMultiDict([("X-One", "1"), ("X-One", "2")])
    pool = make_pool(headers=headers)
    async with pool.get_connection() as connection:
        headers.clear()
        assert connection.headers["X-One"] == "1"
        assert list(connection.headers.items()) == [("X-One", "1"), ("X-One", "2")]


async def test_the_case_of_a_header_is_kept(server: Server, make_pool: MakePool) -> None:
    await handshake(make_pool, headers={"x-API-key": "value", "Ocp-Apim-KEY": "value"})
    names = [name for name, _ in raw(server)]
    assert "x-API-key" in names
    assert "Ocp-Apim-KEY" in names


@pytest.mark.parametrize("how", ["a URL", "a callable", "an async callable"])
async def test_an_encoded_url_is_sent_byte_for_byte(
    server: Server, make_pool: MakePool, how: str
) -> None:
    url = URL(f"{server.uri}v1%2Fspeech{SIGNED}", encoded=True)

    async def fetch() -> URL:
        return url

    uri: Any = {"a URL": url, "a callable": lambda: url, "an async callable": fetch}[how]
    await handshake(make_pool, uri=uri)
    assert server.requests[-1].raw_path == f"/v1%2Fspeech{SIGNED}"


async def test_parameters_may_have_a_key_twice(server: Server, make_pool: MakePool) -> None:
    await handshake(make_pool, params=[("model", "a"), ("model", "b"), ("x", "1")])
    assert server.requests[-1].raw_path == "/?model=a&model=b&x=1"
    await handshake(make_pool, params=MultiDict([("k", "1"), ("k", "2")]))
    assert server.requests[-1].query.getall("k") == ["1", "2"]


async def test_subprotocols_keep_their_order(server: Server, make_pool: MakePool) -> None:
    await handshake(make_pool, protocols=("v2.json", "v1.json", "plain"))
    assert server.requests[-1].headers["Sec-WebSocket-Protocol"] == "v2.json,v1.json,plain"


async def test_the_origin_is_sent_as_it_is(server: Server, make_pool: MakePool) -> None:
    await handshake(make_pool, origin="https://app.example:8443")
    assert server.requests[-1].headers["Origin"] == "https://app.example:8443"


async def test_a_pool_with_a_session_of_its_own_keeps_no_cookies() -> None:
    """A balancer's sticky cookie would send every dial to the backend of the first."""
    cookies: list[str | None] = []

    async def serve(request: web.Request) -> web.StreamResponse:
        cookies.append(request.headers.get("Cookie"))
        websocket = web.WebSocketResponse()
        websocket.set_cookie("backend", f"{len(cookies)}")
        await websocket.prepare(request)
        await websocket.receive()
        return websocket

    app = web.Application()
    app.router.add_get("/", serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    uri = f"ws://localhost:{runner.addresses[0][1]}/"  # cookies of addresses are kept by nobody
    async with WebsocketConnectionPool(uri=uri) as pool:
        for _ in range(8):
            await pool.acquire_new()
    await runner.cleanup()
    assert cookies == [None] * 8


async def test_a_users_session_does_with_cookies_as_it_likes(
    server: Server, make_pool: MakePool
) -> None:
    jar = aiohttp.CookieJar(unsafe=True)
    jar.update_cookies({"backend": "7"}, URL(server.uri.replace("ws", "http")))
    async with aiohttp.ClientSession(cookie_jar=jar) as session:
        await handshake(make_pool, session=session)
    assert server.requests[-1].headers["Cookie"] == "backend=7"
