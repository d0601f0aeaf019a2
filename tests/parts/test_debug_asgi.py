"""The debug page as an ASGI application, mounted on Starlette and served by uvicorn."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from tests.conftest import MakePool, until
from tests.parts.test_debug import FILES, HERE, HOSTILE, Page, borrowing, check_headers, still
from wspool import WebsocketConnectionPool, debug
from wspool._debug import asgi, site, views
from wspool.testing import Server

pytestmark = pytest.mark.once

uvicorn = pytest.importorskip("uvicorn")
applications = pytest.importorskip("starlette.applications")
routing = pytest.importorskip("starlette.routing")

DATA = ["/snapshot", "/diagram", "/connection?id=1", "/pools", "/dump"]

Lifespan = Callable[[Any], Any]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a page have fifty pictures a second."""
    monkeypatch.setattr(views, "PICTURE_SECONDS", 0.02)


@asynccontextmanager
async def uvicorn_with(app: Any, lifespan: str = "off") -> AsyncIterator[aiohttp.ClientSession]:
    """Give a session whose URLs are those of the application, and end its server gracefully."""
    config = uvicorn.Config(app, lifespan=lifespan, log_config=None, ws="none")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        base = f"http://127.0.0.1:{listener.getsockname()[1]}"
        task = asyncio.create_task(server._serve([listener]))
        await until(lambda: server.started or task.done(), "it is served")
        try:
            async with aiohttp.ClientSession(base) as session:
                yield session
        finally:
            server.should_exit = True
            async with asyncio.timeout(20):  # only a net
                await task


@asynccontextmanager
async def serving(*pools: Any, **options: Any) -> AsyncIterator[aiohttp.ClientSession]:
    mount = routing.Mount(HERE, app=debug.asgi(*pools, **options))
    async with uvicorn_with(applications.Starlette(routes=[mount])) as session:
        yield session


@asynccontextmanager
async def opened(client: aiohttp.ClientSession, path: str = "/events") -> AsyncIterator[Page]:
    async with client.get(HERE + path) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        check_headers(response)
        assert await response.content.readline() == b"retry: 100\n"
        yield Page(response)


@pytest.mark.parametrize("path", [*FILES, *DATA, "/nothing", "/snapshot?pool=nobody"])
async def test_it_answers_as_on_aiohttp(make_pool: MakePool, path: str) -> None:
    """With the same headers; to GET and HEAD, and to nothing else."""
    async with serving(make_pool()) as client:
        async with client.get(HERE + path) as response:
            check_headers(response)
            assert response.status == (404 if "no" in path else 200)
            body = await response.read()
            assert int(response.headers["Content-Length"]) == len(body) > 0
        async with client.head(HERE + path) as response:
            check_headers(response)
            assert await response.read() == b""
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            async with client.request(method, HERE + path) as response:
                assert response.status == (404 if path == "/nothing" else 405)
                check_headers(response)


async def test_the_snapshot_is_the_pools_own(make_pool: MakePool) -> None:
    one, two = make_pool(name="one"), make_pool(name="two & more")
    async with serving(one, two) as client, borrowing(two, 2):
        async with client.get(HERE + "/snapshot?pool=two+%26+more") as response:
            shown = await response.json()
        assert still(shown) == still(json.loads(json.dumps(two.snapshot().to_dict())))
        async with client.get(HERE + "/snapshot") as response:
            assert (await response.json())["name"] == "one"
        async with client.get(HERE + "/pools") as response:
            assert await response.json() == ["one", "two & more"]


async def test_a_stream_has_pictures_and_listens_only_as_long(make_pool: MakePool) -> None:
    pool = make_pool()
    async with serving(pool) as client:
        assert not pool._router.events.listeners
        async with opened(client) as page:
            assert (await page.next())[0] == "machine"
            await page.picture()
            await pool.release(await pool.acquire())
            shown = await page.picture(lambda picture: picture["stats"]["borrows"])
            assert shown["minute"]["use"]["count"] == 1
        await until(lambda: not pool._router.events.listeners, "its client is gone")


async def test_a_stream_ends_and_is_taken_up_without_a_gap(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What happens between two is in the second; if none comes, nobody listens on."""
    monkeypatch.setattr(asgi, "STREAM_SECONDS", 0.1)
    monkeypatch.setattr(asgi, "RETURN_SECONDS", 0.5)
    pool = make_pool()
    async with serving(pool) as client:
        async with opened(client) as page:
            while (await page.next())[0]:
                pass
        await pool.release(await pool.acquire())
        async with opened(client) as page:
            await page.next()
            shown = await page.picture()
            kinds = [event["kind"] for event in shown["events"]]
            assert kinds[-2:] == ["ConnectionCheckedOut", "ConnectionCheckedIn"]
            while (await page.next())[0]:
                pass
        await until(lambda: not pool._router.events.listeners, "nobody has come back")


async def test_an_open_stream_does_not_hold_up_a_shutdown(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asgi, "STREAM_SECONDS", 0.5)
    monkeypatch.setattr(asgi, "RETURN_SECONDS", 0.1)
    pool = make_pool()
    async with aiohttp.ClientSession() as patient:
        async with serving(pool) as client:
            async with client.get(HERE + "/pools") as response:
                base = str(response.url).removesuffix("/pools")
            stream = await patient.get(f"{base}/events")
            assert await stream.content.readline() == b"retry: 100\n"
        assert (await stream.read()).endswith(b"\n\n"), "it has ended well"
    await until(lambda: not pool._router.events.listeners, "the page's subscription has ended")


async def test_a_client_that_takes_nothing_is_given_up(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asgi, "TAKE_SECONDS", 0.1)
    pool = make_pool()
    sent = asyncio.Event()

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.body":
            sent.set()
            await asyncio.sleep(3600)

    async with asyncio.timeout(10):
        await debug.asgi(pool)(scope("/events"), never, send)
    assert sent.is_set()
    assert not pool._router.events.listeners


async def never() -> MutableMapping[str, Any]:
    await asyncio.sleep(3600)
    raise AssertionError


def scope(path: str, *, root: str = "", host: str = "localhost", **more: Any) -> dict[str, Any]:
    headers = [(b"host", host.encode())]
    return {
        "type": "http",
        "method": "GET",
        "path": path,
        "root_path": root,
        "query_string": b"",
        "headers": headers,
    } | more


async def answer(app: Callable[..., Awaitable[None]], asked: dict[str, Any]) -> tuple[int, str]:
    """Return status and body of an answer that is whole."""
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    await app(asked, never, send)
    start, body = sent
    assert not body["more_body"]
    location = dict(start["headers"]).get(b"location", b"").decode()
    return start["status"], location or body["body"].decode()


@pytest.mark.parametrize(
    ("path", "root", "is_there"),
    [
        ("/debug/snapshot", "/debug", True),  # as the specification has it
        ("/snapshot", "/debug", True),  # as some frameworks do
        ("/snapshot", "", True),
        ("/debug/nothing", "/debug", False),
        ("/debug/debug/snapshot", "/debug", False),
    ],
)
async def test_the_prefix_may_be_in_the_path_or_not(
    make_pool: MakePool, path: str, root: str, is_there: bool
) -> None:
    status, _ = await answer(debug.asgi(make_pool()), scope(path, root=root))
    assert status == (200 if is_there else 404)


async def test_without_its_slash_the_page_is_found_by_a_relative_redirect(
    make_pool: MakePool,
) -> None:
    asked = scope("/a/debug", root="/a/debug", query_string=b"pool=a%20b")
    assert await answer(debug.asgi(make_pool()), asked) == (302, "debug/?pool=a%20b")


async def test_it_answers_for_loopback_and_for_allowed_hosts(make_pool: MakePool) -> None:
    app = debug.asgi(make_pool(), allowed_hosts=["debug.example.org"])
    for host in ("localhost:8000", "127.0.0.1", "[::1]:1", "debug.example.org:443"):
        assert (await answer(app, scope("/snapshot", host=host)))[0] == 200
    for host in ("evil.example", "", "localhost.evil.example"):
        for path in (*FILES, "/snapshot", "/events", "/dump"):
            status, text = await answer(app, scope(path, host=host))
            assert status == 403
            assert repr(host) in text
    twice = scope("/snapshot")
    twice["headers"].append((b"host", b"evil.example"))
    assert (await answer(app, twice))[0] == 403
    none = scope("/snapshot", headers=[])
    assert (await answer(app, none))[0] == 403


@pytest.mark.parametrize(
    "headers",
    [
        [(b"origin", b"http://evil.example")],
        [(b"origin", b"null")],
        [(b"sec-fetch-site", b"cross-site"), (b"sec-fetch-mode", b"no-cors")],
    ],
)
async def test_what_a_page_of_another_site_asks_for_is_refused(
    make_pool: MakePool, headers: list[tuple[bytes, bytes]]
) -> None:
    app = debug.asgi(make_pool())
    for path in ("/", "/snapshot", "/events"):
        asked = scope(path)
        asked["headers"] += headers
        status, text = await answer(app, asked)
        assert status == 403
        assert "no page of another site" in text


async def test_more_streams_than_are_allowed_are_refused(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site, "MAX_READERS", 1)
    async with serving(make_pool()) as client, opened(client) as page:
        await page.picture()
        async with client.get(HERE + "/events") as response:
            assert response.status == 503
            assert "1 debug pages are open" in await response.text()


async def test_no_secret_is_in_any_answer(server: Server, make_pool: MakePool) -> None:
    uri = server.uri.replace("//", "//canary-user:canary-password@") + "?token=canary-token"
    pool = make_pool(
        uri=uri,
        headers={"key": "canary-header"},
        proxy=None,
        params={"q": "canary-parameter"},
        protocols=["canary-subprotocol-that-is-a-key-0123456789abcdef"],
    )
    async with serving(pool, history=True) as client, pool.get_connection():
        texts = []
        async with opened(client) as page:
            texts += [repr(await page.next()), repr(await page.picture())]
        for path in (*DATA, "/connection?id=1"):
            async with client.get(HERE + path) as response:
                texts += [await response.text(), repr(response.headers)]
    for text in texts:
        assert "canary" not in text


async def test_a_hostile_name_stays_text(make_pool: MakePool) -> None:
    pool = make_pool(name=HOSTILE.replace("\n", " "))
    app = debug.asgi(pool)
    for path in ("/pools", "/dump", "/snapshot"):
        assert "<" not in (await answer(app, scope(path)))[1]


async def test_a_pool_of_the_lifespan_is_given_by_its_key(server: Server) -> None:
    """An application that is started again shows its new pool."""
    pools: list[WebsocketConnectionPool] = []

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[dict[str, Any]]:
        async with WebsocketConnectionPool(uri=server.uri, name=f"pool {len(pools)}") as pool:
            pools.append(pool)
            yield {"pool": pool}

    mount = routing.Mount(HERE, app=debug.asgi("pool", history=True))
    app = applications.Starlette(routes=[mount], lifespan=lifespan)
    for number in range(2):
        async with uvicorn_with(app, lifespan="on") as client:
            async with client.get(HERE + "/snapshot") as response:
                assert (await response.json())["name"] == f"pool {number}"
            assert pools[number]._router.events.listeners
    assert not pools[0]._router.events.listeners


async def test_a_key_without_a_pool_is_said_in_plain_words(make_pool: MakePool) -> None:
    app = debug.asgi("pool")
    for state in ({}, {"state": {}}, {"state": {"pool": "no pool"}}):
        with pytest.raises(LookupError, match=r"yield {'pool': pool} in the lifespan"):
            await answer(app, scope("/snapshot", **state))


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
async def test_it_serves_http_alone(make_pool: MakePool, kind: str) -> None:
    with pytest.raises(RuntimeError, match=f"HTTP, and no {kind}"):
        await answer(debug.asgi(make_pool()), {"type": kind})


@pytest.mark.parametrize("wrong", [(), (None,), ([],)])
async def test_what_is_no_pool_is_refused(wrong: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match=r"no pool to show|is no WebsocketConnectionPool, no"):
        debug.asgi(*wrong)


async def test_two_pools_of_one_name_are_refused(make_pool: MakePool) -> None:
    with pytest.raises(ValueError, match="give each a name of its own"):
        debug.asgi(make_pool(name="twin"), make_pool(name="twin"))
