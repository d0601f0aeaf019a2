"""The debug page as HTTP: what it serves, to whom, and what it costs while nobody looks."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.resources import files
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from tests.conftest import MakePool, echoes, until
from wspool import ConnectionUnavailableError, State, WebsocketConnectionPool, debug
from wspool._connection import states
from wspool._debug import pictures, site, views
from wspool.testing import Server

POOL = web.AppKey("POOL", WebsocketConnectionPool)
HERE = "/debug/wspool"
FILES = ["/", "/page.js", "/charts.js", "/diagram.js", "/page.css", "/icon.svg"]
DATA = ["/snapshot", "/diagram", "/connection?id=1", "/pools", "/dump"]
HOSTILE = "</script><img src=x onerror=alert(1)>\n\ndata: {}\n\n"

Client = TestClient[web.Request, web.Application]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a page have fifty pictures a second."""
    monkeypatch.setattr(views, "PICTURE_SECONDS", 0.02)


@asynccontextmanager
async def serving(*pools: Any, **options: Any) -> AsyncIterator[Client]:
    app = web.Application()
    debug.setup(app, *pools, **options)
    async with TestClient(TestServer(app)) as client:
        yield client


async def get(client: Client, path: str) -> Any:
    async with client.get(HERE + path) as response:
        assert response.status == 200, await response.text()
        if response.content_type == "application/json":
            return await response.json()
        return await response.text()


class Page:
    """The stream of an open page."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def next(self) -> tuple[str, Any]:
        """Return the name of the next event and its data; ("", None) at the end."""
        async with asyncio.timeout(10):
            frame = await self.response.content.readuntil(b"\n\n") or b"event: \ndata: null"
        lines = dict(line.split(": ", 1) for line in frame.decode().splitlines() if line)
        assert set(lines) <= {"event", "data"}, frame
        return lines.get("event", "message"), json.loads(lines["data"])

    async def picture(self, condition: Callable[[Any], object] = bool) -> Any:
        """Return the next picture for which this is true."""
        async with asyncio.timeout(10):
            while True:
                name, data = await self.next()
                assert name, "the stream has ended"
                if name == "message" and condition(data):
                    return data


@asynccontextmanager
async def opened(client: Client, path: str = "/events") -> AsyncIterator[Page]:
    async with client.get(HERE + path) as response:
        assert response.status == 200
        yield Page(response)


@asynccontextmanager
async def borrowing(pool: WebsocketConnectionPool, count: int) -> AsyncIterator[None]:
    """Let so many tasks borrow a connection or wait for one, and stay where they are."""
    enough = asyncio.Event()

    async def borrow() -> None:
        async with pool.get_connection(timeout=None):
            await enough.wait()

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(borrow(), name=f"borrower {number}")
        await until(lambda: pool.busy_connections + pool.waiters == count, "all are there")
        await until(lambda: not pool._router.queues.connecting, "all that can have theirs")
        yield
        enough.set()


def still(value: Any) -> Any:
    """Return the value without what changes by the mere passing of time: numbers with a point."""
    if isinstance(value, dict):
        return {k: still(v) for k, v in value.items() if not isinstance(v, float)}
    return [still(item) for item in value] if isinstance(value, list) else value


# What is served.


@pytest.mark.parametrize("path", ["", *FILES, *DATA, "/nothing", "/snapshot?pool=nobody"])
async def test_every_answer_forbids_what_a_page_could_be_misused_for(
    make_pool: MakePool, path: str
) -> None:
    async with (
        serving(make_pool()) as client,
        client.get(HERE + path, allow_redirects=False) as response,
    ):
        check_headers(response)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
async def test_the_streams_answer_does_so_too(make_pool: MakePool, method: str) -> None:
    async with (
        serving(make_pool()) as client,
        client.request(method, HERE + "/events") as response,
    ):
        check_headers(response)
        assert response.status == (405 if method == "POST" else 200)
        assert method == "POST" or response.content_type == "text/event-stream"


def check_headers(response: aiohttp.ClientResponse) -> None:
    policy = dict(
        part.strip().split(" ", 1)
        for part in response.headers["Content-Security-Policy"].split(";")
    )
    assert policy == {
        **dict.fromkeys(["script-src", "style-src", "connect-src", "img-src"], "'self'"),
        **dict.fromkeys(["default-src", "base-uri", "form-action", "frame-ancestors"], "'none'"),
    }
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Access-Control-Allow-Origin" not in response.headers


@pytest.mark.parametrize("path", ["", *FILES, *DATA, "/events"])
async def test_nothing_but_get_and_head_is_allowed(make_pool: MakePool, path: str) -> None:
    async with serving(make_pool()) as client:
        for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"):
            async with client.request(method, HERE + path) as response:
                assert response.status == 405
                assert response.headers["Allow"] == "GET,HEAD"
        async with client.head(HERE + path) as response:
            assert response.status == 200
            assert await response.read() == b""


async def test_nothing_that_is_served_refers_to_a_place_outside(make_pool: MakePool) -> None:
    """Not to another host, and not to the root, for a proxy may have rewritten the path."""
    async with serving(make_pool()) as client:
        for path in FILES:
            text = (await get(client, path)).replace("http://www.w3.org/2000/svg", "")
            assert not re.search(r"//\w|@import|data:|(?:src|href|from)\W{1,2}/", text), path


async def test_no_markup_is_ever_made_of_text() -> None:
    for name in ("page.js", "charts.js", "diagram.js"):
        script = (files("wspool") / "page" / name).read_text()
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|DOMParser|setHTML|srcdoc|eval|"
            r"createContextualFragment|new Function",
            script,
        )


async def test_without_its_slash_the_page_is_found_by_a_relative_redirect(
    make_pool: MakePool,
) -> None:
    async with serving(make_pool(name="a b")) as client:
        path = HERE + "?pool=a%20b"
        async with client.get(path, allow_redirects=False) as response:
            assert response.status == 302
            assert response.headers["Location"] == "wspool/?pool=a%20b"
        async with client.get(path) as response:
            assert response.status == 200
            assert response.content_type == "text/html"


# What it shows.


async def test_the_snapshot_is_the_pools_own(server: Server, make_pool: MakePool) -> None:
    pool = make_pool(name="upstream")
    async with serving(pool) as client:
        await pool.release(await pool.acquire(), force_remove=True)
        await until(lambda: len(pool._router.queues.gone) == 1, "it is gone")
        async with borrowing(pool, 2):
            shown = await get(client, "/snapshot")
            picture = json.loads(json.dumps(pool.snapshot().to_dict()))
            assert still(shown) == still(picture)
            assert shown.keys() == picture.keys()
            assert shown["connections"][0].keys() == picture["connections"][0].keys()


async def test_the_diagram_is_the_pools_own(make_pool: MakePool) -> None:
    pool = make_pool()
    async with serving(pool) as client, pool.get_connection():
        async with client.get(HERE + "/diagram") as response:
            assert response.content_type == "text/plain"
            assert await response.text() == pool.state_diagram()
        assert "busy (1)" in await get(client, "/diagram")


async def test_pools_are_told_apart_by_name_and_the_first_is_shown_unasked(
    make_pool: MakePool,
) -> None:
    one, two = make_pool(name="one", max_connections=1), make_pool(name="two & more")
    async with serving(one, two) as client, two.get_connection():
        assert (await get(client, "/snapshot"))["name"] == "one"
        assert (await get(client, "/snapshot?pool=two+%26+more"))["name"] == "two & more"
        assert "busy (0)" in await get(client, "/diagram")
        assert "busy (1)" in await get(client, "/diagram?pool=two+%26+more")
        assert await get(client, "/connection?id=1") is None
        assert (await get(client, "/connection?id=1&pool=two+%26+more"))["state"] == "busy"
        async with opened(client, "/events?pool=two+%26+more") as page:
            assert (await page.next())[1]["pools"] == ["one", "two & more"]
            assert (await page.picture())["name"] == "two & more"
        for path in ("/snapshot", "/diagram", "/connection", "/events"):
            async with client.get(f"{HERE}{path}?pool=nobody") as response:
                assert response.status == 404
                assert response.content_type == "text/plain"
                assert "'nobody'" in await response.text()
                assert "'two & more'" in await response.text()


async def test_a_connection_is_shown_with_its_history_until_it_is_forgotten(
    make_pool: MakePool,
) -> None:
    pool = make_pool()
    async with serving(pool) as client:
        async with borrowing(pool, 1):
            [connection] = pool.connections
            shown = await get(client, f"/connection?id={connection.id}")
            [expected] = json.loads(json.dumps(pool.snapshot().to_dict()["connections"]))
            assert [line["trigger"] for line in shown["history"]] == ["connected", "checkout"]
            of = {"pool": pool.name, "max_streams": 1}
            assert still(shown) == still(expected) | of | {"why": "acquire", "was": "idle"}
            assert "test_debug.py" in shown["borrower"]["borrowed_at"]
        await pool.release(await pool.acquire(), force_remove=True)
        gone = await get(client, f"/connection?id={connection.id}")
        assert gone["state"] == "closed"
        assert gone["history"][-1]["why"] == "user"
        assert gone["borrower"] is None
        for unknown in ("999", "x", ""):
            assert await get(client, f"/connection?id={unknown}") is None


async def test_the_stream_begins_with_the_table_of_the_state_machine(make_pool: MakePool) -> None:
    pool = make_pool()
    async with serving(pool) as client, opened(client) as page:
        name, table = await page.next()
    assert name == "machine"
    assert table.pop("settings")["max_connections"] == pool.max_connections
    assert [slot["loans"] for slot in table.pop("past")][-1] == 0
    assert table == {
        "states": [str(state) for state in State],
        "transitions": states.TRANSITIONS,
        "pools": [pool.name],
    }


async def test_a_picture_says_what_a_snapshot_does_but_for_the_histories(
    make_pool: MakePool,
) -> None:
    pool = make_pool(max_connections=3, leak_threshold=1e-6)
    async with serving(pool) as client:
        await pool.release(await pool.acquire(), force_remove=True)
        await until(lambda: len(pool._router.queues.gone) == 1, "it is gone")
        async with borrowing(pool, 5):
            async with opened(client) as page:
                shown = await page.picture()
            expected = json.loads(json.dumps(pool.snapshot().to_dict()))
    for row in expected["connections"] + expected["gone"]:
        last = row.pop("history")[-1]
        row["why"], row["was"] = last["why"], last["source"]
        row["pool"], row["max_streams"] = pool.name, expected["max_streams"]
    del expected["min_connections"], expected["max_connecting"], expected["max_streams"]
    del shown["slots"], shown["minute"]
    assert shown.pop("places") == 3
    assert shown.pop("members") is None
    assert still(shown) == still(expected) | {"events": [], "skipped": 0}
    assert shown["failure"] is None
    assert [row["is_overdue"] for row in shown["connections"]] == [True] * 3
    assert [waiter["borrower"]["task"] for waiter in shown["waiting"]] == [
        "borrower 3",
        "borrower 4",
    ]


async def test_of_each_state_those_that_are_in_it_for_longest_are_listed(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "MAX_ROWS", 2)
    pool = make_pool()
    lent = [await pool.acquire() for _ in range(7)]
    idle = [lent[5], lent[1], lent[3]]
    for connection in idle:
        await pool.release(connection)
    async with serving(pool) as client, opened(client) as page:
        shown = await page.picture()
    assert [(row["state"], row["id"]) for row in shown["connections"]] == [
        ("idle", lent[5].id),
        ("idle", lent[1].id),
        ("busy", lent[0].id),
        ("busy", lent[2].id),
    ]
    assert shown["counts"] == {str(k): v for k, v in pool._router.queues.counts().items()}


async def test_each_open_page_is_told_each_event_once(make_pool: MakePool) -> None:
    pool = make_pool()
    async with serving(pool) as client, opened(client) as one, opened(client) as two:
        for page in (one, two):
            await page.picture()
        await pool.release(await pool.acquire())
        expected = ["ConnectionCreated", "ConnectionReady", "ConnectionCheckedOut"]
        for page in (one, two):
            kinds: list[str] = ["PoolReady"]
            while "ConnectionCheckedIn" not in kinds:
                kinds += [e["kind"] for e in (await page.picture())["events"]]
            assert [k for k in kinds if k != "PoolReady"] == [*expected, "ConnectionCheckedIn"]
        assert (await one.picture())["events"] == []


async def test_a_crowd_of_loans_hides_no_other_event(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool()
    await pool.release(await pool.acquire())
    async with serving(pool) as client, opened(client) as page:
        await page.picture()
        pool.expire_connections()
        await pool.release(await pool.acquire())
        for _ in range(100):
            await pool.release(await pool.acquire())
        seen = [await page.picture(lambda picture: picture["events"])]
        while sum(len(p["events"]) + p["skipped"] for p in seen) < 204:
            seen.append(await page.picture())
    events = [event["kind"] for picture in seen for event in picture["events"]]
    assert events.index("PoolCleared") < events.index("ConnectionClosed")
    assert events.count("ConnectionCreated") == 1
    assert sum(picture["skipped"] for picture in seen) > 100
    assert [e["at"] for p in seen for e in p["events"]] == sorted(
        e["at"] for p in seen for e in p["events"]
    )


async def test_a_picture_says_why_the_last_dial_has_failed(
    server: Server, make_pool: MakePool
) -> None:
    server.refusals = [web.Response(status=503)]
    pool = make_pool(max_retries=1)
    async with serving(pool) as client, opened(client) as page:
        with pytest.raises(ConnectionUnavailableError):
            await pool.acquire()
        shown = await page.picture(lambda picture: picture["failure"])
        assert "the server answered 503" in shown["failure"]
        assert shown["failure"] == (await get(client, "/snapshot"))["failure"]


async def test_a_closed_pool_is_shown_as_closed(make_pool: MakePool) -> None:
    pool = make_pool()
    async with serving(pool) as client, opened(client) as page:
        before = await page.picture()
        assert (before["is_started"], before["is_closed"]) == (False, False)
        await pool.start()
        await page.picture(lambda picture: picture["is_started"])
        await pool.close_all()
        shown = await page.picture(lambda picture: picture["is_closed"])
        assert not any(shown["counts"].values())


# What it costs, and how it ends.


async def test_while_no_page_is_open_there_is_no_task_and_no_subscription(
    make_pool: MakePool,
) -> None:
    pool = make_pool()
    await pool.start()
    app = web.Application()
    tasks = asyncio.all_tasks()
    debug.setup(app, pool)
    server = TestServer(app)
    await server.start_server()
    async with aiohttp.ClientSession() as session:
        for path in ("/snapshot", "/diagram", "/"):
            async with session.get(server.make_url(HERE + path)) as response:
                await response.read()
            assert not pool._router.events.listeners
        async with session.head(server.make_url(HERE + "/events")) as response:
            assert response.status == 200
        async with session.get(server.make_url(HERE + "/events")) as response:
            await response.content.readline()
            assert len(pool._router.events.listeners) == 1
    await until(lambda: not pool._router.events.listeners, "the page's subscription has ended")
    await until(lambda: asyncio.all_tasks() == tasks, "no task is left")
    await server.close()


async def test_a_client_that_vanishes_takes_its_page_along(make_pool: MakePool) -> None:
    pool = make_pool()
    async with serving(pool) as client:
        async with opened(client) as page, opened(client) as other:
            await page.picture()
            await other.picture()
            handlers = client.server.runner.server
            assert handlers is not None
            assert len(handlers.connections) == 2
            connection = page.response.connection
            assert connection is not None
            assert connection.transport is not None
            connection.transport.abort()
            await until(lambda: len(handlers.connections) == 1, "the one is gone")
            await other.picture()
            assert pool._router.events.listeners
        await until(lambda: not pool._router.events.listeners, "the other is gone")


@asynccontextmanager
async def stuck(pool: WebsocketConnectionPool, client: Client) -> AsyncIterator[asyncio.Transport]:
    """Open a page whose client takes nothing, until its stream waits for it."""
    request = f"GET {HERE}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port, limit=1024)
    writer.write(request)
    await until(lambda: pool._router.events.listeners, "the page is open")
    try:
        yield writer.transport
    finally:
        writer.transport.abort()
        del reader


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note the pool's name for each picture that is made."""
    made: list[str] = []
    make = pictures.picture

    def picture(pool: WebsocketConnectionPool) -> dict[str, Any]:
        made.append(pool.name)
        return make(pool)

    monkeypatch.setattr(pictures, "picture", picture)
    return made


async def test_all_that_look_at_a_pool_share_each_picture(
    make_pool: MakePool, made: list[str]
) -> None:
    """Thirty see those of the same moments; of another pool there are none until it is shown."""
    pool, other = make_pool(name="one"), make_pool(name="other")
    async with serving(pool, other) as client, AsyncExitStack() as stack:
        pages = [await stack.enter_async_context(opened(client)) for _ in range(30)]
        times = [(await pages[-1].picture())["at"] for _ in range(3)]
        for page in pages[:-1]:
            shared = [await page.picture(lambda picture: picture["at"] == times[0])]
            shared += [await page.picture() for _ in times[1:]]
            assert [picture["at"] for picture in shared] == times
        assert "other" not in made
        async with opened(client, "/events?pool=other") as page:
            assert (await page.picture())["name"] == "other"
        assert "other" in made


async def test_no_picture_is_made_while_nobody_reads(make_pool: MakePool, made: list[str]) -> None:
    """A reader that comes and goes leaves at most the tick that it has begun."""
    pool = make_pool()
    async with serving(pool) as client:
        for _ in range(5):
            async with opened(client) as page:
                await page.picture()
            await until(lambda: not pool._router.events.listeners, "it is gone")
            count = len(made)
            await asyncio.sleep(5 * views.PICTURE_SECONDS)
            assert len(made) == count


async def test_snapshots_that_are_asked_for_at_once_are_made_once(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is served for as long as a picture lasts, and no longer."""
    brief, lasting = make_pool(name="brief"), make_pool(name="lasting")
    async with serving(brief, lasting) as client:
        await get(client, "/snapshot")
        monkeypatch.setattr(views, "PICTURE_SECONDS", 3600.0)
        first = await get(client, "/snapshot?pool=lasting")
        async with borrowing(brief, 1), borrowing(lasting, 1), asyncio.timeout(10):
            while (await get(client, "/snapshot"))["counts"]["busy"] != 1:
                await asyncio.sleep(0.02)
            assert await get(client, "/snapshot?pool=lasting") == first


async def test_more_streams_than_are_allowed_are_refused_in_plain_words(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever their pools; one that ends gives its place to another."""
    monkeypatch.setattr(site, "MAX_READERS", 3)
    one, two = make_pool(name="one"), make_pool(name="two")
    async with serving(one, two) as client, AsyncExitStack() as stack:
        for path in ("/events", "/events?pool=two"):
            await stack.enter_async_context(opened(client, path))
        async with opened(client) as page:
            await page.picture()
            for method in ("GET", "HEAD"):
                async with client.request(method, HERE + "/events?pool=two") as response:
                    assert response.status == 503
                    check_headers(response)
                    text = await response.text()
                    assert ("3 debug pages are open" in text) == (method == "GET")
            assert (await get(client, "/snapshot"))["name"] == "one"
            await page.picture()
        async with asyncio.timeout(10):
            while True:
                async with client.head(HERE + "/events") as response:
                    if response.status == 200:
                        break
                await asyncio.sleep(0.02)
        async with opened(client) as page:
            await page.picture()


async def test_a_stream_that_nobody_takes_keeps_one_picture_and_holds_up_no_other(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others have theirs, and what waits for the stalled one does not grow."""
    make = pictures.picture
    padding = "x" * 30_000
    monkeypatch.setattr(pictures, "picture", lambda pool: make(pool) | {"padding": padding})
    pool = make_pool()
    async with serving(pool) as client, stuck(pool, client), opened(client) as page:
        handlers = client.server.runner.server
        assert handlers is not None

        def waiting_bytes() -> int:
            transports = [handler.transport for handler in handlers.connections]
            assert len(transports) == 2
            return max(t.get_write_buffer_size() for t in transports if t is not None)

        while not waiting_bytes():  # until the buffers of the operating system are full
            await page.picture()
        for _ in range(20):
            await page.picture()
            assert waiting_bytes() < 2 * len(padding)


@pytest.fixture
def huge(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make pictures of 10 MB; they are counted."""
    count: list[int] = []

    def picture(pool: WebsocketConnectionPool) -> dict[str, Any]:
        count.append(1)
        return {"huge": "x" * 10_000_000}

    monkeypatch.setattr(pictures, "picture", picture)
    return count


async def test_a_client_that_takes_nothing_is_cut_off(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, huge: list[int]
) -> None:
    monkeypatch.setattr(debug, "TAKE_SECONDS", 0.1)
    pool = make_pool()
    async with serving(pool) as client, stuck(pool, client) as transport:
        await until(lambda: not pool._router.events.listeners, "the stream has ended")
        handlers = client.server.runner.server
        assert handlers is not None
        await until(lambda: not handlers.connections, "the server has let go of the socket")
        assert not transport.is_closing()
        assert huge == [1]


@pytest.mark.usefixtures("huge")
async def test_a_client_that_takes_nothing_does_not_hold_up_a_shutdown(
    make_pool: MakePool,
) -> None:
    pool = make_pool()
    async with serving(pool) as client, stuck(pool, client):
        async with asyncio.timeout(8):  # the patience with a client is 10 s, aiohttp's is 60 s
            await client.server.close()
        assert not pool._router.events.listeners


async def test_a_shutdown_ends_the_streams_at_once(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "PICTURE_SECONDS", 3600.0)
    pool = make_pool()
    async with serving(pool) as client, opened(client) as page, opened(client) as other:
        await page.picture()
        await other.next()
        async with asyncio.timeout(8):
            await client.server.close()
        assert not pool._router.events.listeners
        assert not pool.is_closed


async def test_a_shutdown_in_the_moment_of_a_picture_ends_the_stream_too(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is sent after it: whoever does not take that would hold up the shutdown."""
    app = web.Application()
    pool = make_pool()
    sub = debug.setup(app, pool)
    make = pictures.picture
    endings: list[asyncio.Task[None]] = []

    def picture(pool: WebsocketConnectionPool) -> dict[str, Any]:
        endings.append(asyncio.create_task(sub.shutdown()))
        return make(pool)

    monkeypatch.setattr(pictures, "picture", picture)
    async with TestClient(TestServer(app)) as client, opened(client) as page:
        assert (await page.next())[0] == "machine"
        assert await page.next() == ("", None)
    await asyncio.gather(*endings)


async def test_a_page_that_breaks_reaches_the_log_and_not_the_pool(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(name="upstream")
    async with serving(pool) as client, pool.get_connection() as connection:
        async with opened(client) as page, opened(client) as other:
            await page.picture()
            await other.picture()
            monkeypatch.setattr(pictures, "row", lambda *_: 1 / 0)
            with caplog.at_level(logging.ERROR, logger="wspool"):
                for broken in (page, other):
                    async with asyncio.timeout(10):
                        assert await broken.response.content.read() is not None
        assert not pool._router.events.listeners
        assert caplog.text.count("a debug page of") == 1, "it is said once for all that look"
        assert "ZeroDivisionError" in caplog.text
        assert await echoes(connection)
        monkeypatch.undo()
        async with opened(client) as page:
            assert await page.picture()


# What nobody may see.


def tells_of_the_close(picture: Any) -> bool:
    return any(event.get("code") == 4001 for event in picture["events"])


async def test_no_secret_is_in_any_answer(server: Server, make_pool: MakePool) -> None:
    uri = server.uri.replace("//", "//canary-user:canary-password@") + "?token=canary-token"
    pool = make_pool(uri=uri, headers={"key": "canary-header", "Cookie": "c=canary-cookie"})
    async with serving(pool) as client:
        texts = []
        async with opened(client) as page, pool.get_connection() as connection:
            texts.append(repr(await page.picture()))
            lost = await pool.acquire()
            request = server.peers[-1].request
            quoted = f"bad {request.query['token']} {request.headers['key']}"
            await server.peers[-1].close(4001, quoted)
            await until(lambda: lost.state is State.CLOSED, "the server has closed it")
            await pool.release(lost)
            texts.append(repr(await page.picture(tells_of_the_close)))
            for id in (connection.id, lost.id):
                texts.append(repr(await get(client, f"/connection?id={id}")))
            for path in ("/snapshot", "/diagram", "/snapshot?pool=x"):
                async with client.get(HERE + path) as response:
                    texts += [await response.text(), repr(response.headers)]
    assert "bad … …" in texts[1], "the reason is shown but for the secrets"
    for text in texts:
        assert "canary" not in text


async def test_a_hostile_close_reason_stays_inside_its_json_string(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool()
    async with serving(pool) as client, opened(client) as page:
        connection = await pool.acquire()
        await server.peers[0].close(4001, HOSTILE)
        await until(lambda: connection.state is State.CLOSED, "the server has closed it")
        await pool.release(connection)
        await until(lambda: pool._router.queues.gone, "it is gone")
        shown = await page.picture(lambda picture: picture["gone"])
        assert shown["gone"][0]["close_reason"] == HOSTILE
        await page.picture()  # the stream's frames are whole
        for path in ("/snapshot", f"/connection?id={connection.id}"):
            async with client.get(HERE + path) as response:
                assert response.content_type == "application/json"
                text = await response.text()
            assert "<" not in text
            assert json.dumps(HOSTILE).replace("<", "\\u003c") in text


async def test_the_applications_own_authentication_guards_all_of_it(make_pool: MakePool) -> None:
    @web.middleware
    async def guard(request: web.Request, handler: Any) -> web.StreamResponse:
        if request.headers.get("Authorization") != "Bearer sesame":
            raise web.HTTPUnauthorized
        response: web.StreamResponse = await handler(request)
        return response

    app = web.Application(middlewares=[guard])
    pool = make_pool()
    debug.setup(app, pool)
    async with TestClient(TestServer(app)) as client:
        for path in ("", *FILES, *DATA, "/events", "/nothing"):
            async with client.get(HERE + path) as response:
                assert response.status == 401
        assert not pool._router.events.listeners
        headers = {"Authorization": "Bearer sesame"}
        async with client.get(HERE + "/snapshot", headers=headers) as response:
            assert response.status == 200


# Whom it answers.


async def answer(client: Client, head: str) -> tuple[int, str]:
    """Return the status and the body of the answer to a request with this head."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(head.replace("\n", "\r\n").encode() + b"\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(10):
        status = int((await reader.readline()).split()[1])
        body = "" if status == 200 else (await reader.read()).partition(b"\r\n\r\n")[2].decode()
    writer.close()
    return status, body


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST:80", "localhost.", "app.localhost:1", "127.0.0.1", "127.9.9.9:1"),
        *("[::1]", "[::1]:8000", "[0:0:0:0:0:0:0:1]", "debug.example.org", "Debug.Example.ORG.:99"),
        *("192.0.2.7:80", "[2001:db8::7]:80", "localhost:99999", "localhost:"),
    ],
)
async def test_it_answers_for_loopback_and_for_allowed_hosts(
    make_pool: MakePool, host: str
) -> None:
    hosts = ["debug.example.ORG", "192.0.2.7", "2001:DB8:0::7"]
    async with serving(make_pool(), allowed_hosts=hosts) as client:
        for path in ("/", "/snapshot", "/events"):
            assert (await answer(client, f"GET {HERE}{path} HTTP/1.1\nHost: {host}"))[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.evil.example"),
        *("evil@localhost", "localhost@evil.example", "xlocalhost", "[::2]:80", "[localhost]"),
        *("::2", "192.0.2.7", "0.0.0.0", "", "localhost:evil", "a b", "localhost/evil", "*"),
    ],
)
async def test_another_host_is_refused_in_plain_words(make_pool: MakePool, host: str) -> None:
    """As a name is that leads here by DNS rebinding: for the page, its JSON and its stream."""
    pool = make_pool()
    async with serving(pool, allowed_hosts=["debug.example.org"]) as client:
        for path in ("", *FILES, *DATA, "/events", "/nothing"):
            status, body = await answer(client, f"GET {HERE}{path} HTTP/1.1\nHost: {host}")
            assert status == 403
            assert f"does not answer for the host {host!r}" in body
            assert "allowed_hosts" in body
        async with client.get(HERE + "/", headers={"Host": host}) as response:
            check_headers(response)
    assert not pool._router.events.listeners


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (f"GET http://localhost{HERE}/ HTTP/1.1\nHost: localhost", 200),
        (f"GET http://[::1]:80{HERE}/ HTTP/1.1\nHost: localhost", 200),
        (f"GET http://evil.example{HERE}/ HTTP/1.1\nHost: localhost", 403),
        (f"GET http://localhost{HERE}/ HTTP/1.1\nHost: evil.example", 403),
        (f"GET http://localhost@evil.example{HERE}/ HTTP/1.1\nHost: localhost", 403),
        (f"GET {HERE}/ HTTP/1.0", 403),
    ],
)
async def test_a_host_in_the_request_line_counts_too_and_none_is_none(
    make_pool: MakePool, line: str, status: int
) -> None:
    async with serving(make_pool()) as client:
        assert (await answer(client, line))[0] == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://localhost.evil.example:80"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "http://evil.example", "Upgrade": "websocket", "Connection": "upgrade"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, 200),
        ({"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}, 200),
        ({"Origin": "http://localhost:3000", "Host": "localhost:8000"}, 403),
        ({"Origin": "http://localhost:8000", "Host": "localhost:8000"}, 200),
    ],
)
async def test_what_a_page_of_another_site_asks_for_is_refused(
    make_pool: MakePool, headers: dict[str, str], status: int
) -> None:
    """By fetch, as a stream, as a WebSocket or as an image; a link may lead here from anywhere."""
    async with serving(make_pool()) as client:
        for path in ("/", "/snapshot", "/events"):
            async with client.get(HERE + path, headers=headers) as response:
                assert response.status == status
                check_headers(response)
                assert status == 200 or "no page of another site" in await response.text()


async def test_with_a_star_it_answers_for_any_host(make_pool: MakePool) -> None:
    async with serving(make_pool(), allowed_hosts=["*"]) as client:
        for host in ("evil.example", "[::2]:80", "evil.example:99999", "a b", ""):
            assert (await answer(client, f"GET {HERE}/ HTTP/1.1\nHost: {host}"))[0] == 200
        headers = {"Host": "any.example", "Sec-Fetch-Site": "cross-site"}
        async with client.get(HERE + "/snapshot", headers=headers) as response:
            assert response.status == 403


@pytest.mark.parametrize(
    "wrong", ["", "a b", "http://a.example", "a.example/x", "*.a.example", "a@b", "bücher.example"]
)
async def test_what_is_no_host_is_refused(make_pool: MakePool, wrong: str) -> None:
    with pytest.raises(ValueError, match="use a name as browsers send it") as info:
        debug.setup(web.Application(), make_pool(), allowed_hosts=["a.example", wrong])
    assert repr(wrong) in str(info.value)


@pytest.mark.parametrize("wrong", ["a.example:80", "[::1]:80"])
async def test_a_host_with_a_port_is_refused(make_pool: MakePool, wrong: str) -> None:
    with pytest.raises(ValueError, match="without a port"):
        debug.setup(web.Application(), make_pool(), allowed_hosts=[wrong])


async def test_one_text_is_not_taken_for_several_hosts(make_pool: MakePool) -> None:
    with pytest.raises(TypeError, match="it must be several, as in a list"):
        debug.setup(web.Application(), make_pool(), allowed_hosts="a.example")


# Setting it up.


async def test_the_prefix_is_the_users_choice(make_pool: MakePool) -> None:
    pool = make_pool()
    async with serving(pool, prefix="/pools") as client:
        async with client.get("/pools/snapshot") as response:
            assert (await response.json())["name"] == pool.name
        async with client.get(HERE + "/snapshot") as response:
            assert response.status == 404


@pytest.mark.parametrize("prefix", ["", "/", "debug", "/debug/", "//x", "/{x}", "/a b", "/a?b", 7])
async def test_a_wrong_prefix_is_refused(make_pool: MakePool, prefix: Any) -> None:
    with pytest.raises(ValueError, match="must be a path such as '/debug/wspool'") as info:
        debug.setup(web.Application(), make_pool(), prefix=prefix)
    assert repr(prefix) in str(info.value)


async def test_a_prefix_that_is_taken_is_refused(make_pool: MakePool) -> None:
    app = web.Application()
    debug.setup(app, make_pool())
    with pytest.raises(ValueError, match="serves something already"):
        debug.setup(app, make_pool())
    debug.setup(app, make_pool(), prefix="/debug/another")


async def test_two_pools_of_one_name_are_refused(make_pool: MakePool) -> None:
    with pytest.raises(ValueError, match=r"\['twin', 'twin'\]; give each a name of its own"):
        debug.setup(web.Application(), make_pool(name="twin"), make_pool(name="twin"))


@pytest.mark.parametrize("wrong", [(), (None,), ("pool",), ([],)])
async def test_what_is_no_pool_is_refused(wrong: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match=r"no pool to show|is no WebsocketConnectionPool, no"):
        debug.setup(web.Application(), *wrong)


async def test_a_pool_that_is_made_at_the_start_is_given_by_its_key(
    server: Server, make_pool: MakePool
) -> None:
    async def pools(app: web.Application) -> AsyncIterator[None]:
        async with WebsocketConnectionPool(uri=server.uri, name="late") as pool:
            app[POOL] = pool
            yield

    app = web.Application()
    debug.setup(app, POOL, make_pool(name="early"))
    app.cleanup_ctx.append(pools)
    async with TestClient(TestServer(app)) as client:
        assert (await get(client, "/snapshot"))["name"] == "late"
        assert (await get(client, "/snapshot?pool=early"))["name"] == "early"
        async with opened(client) as page:
            assert (await page.picture())["is_started"]


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        (None, LookupError, "make it in a cleanup_ctx"),
        ("twin", ValueError, "give each a name of its own"),
    ],
)
async def test_a_key_without_a_pool_of_its_own_stops_the_start(
    make_pool: MakePool, name: str | None, error: type[Exception], says: str
) -> None:
    app = web.Application()
    debug.setup(app, POOL, make_pool(name="twin"))
    if name is not None:
        app[POOL] = make_pool(name=name)
    runner = web.AppRunner(app)
    with pytest.raises(error, match=says):
        await runner.setup()
    await runner.cleanup()
