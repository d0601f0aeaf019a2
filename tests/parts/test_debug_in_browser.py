"""The debug page in a real browser: Debian's Chromium without a window, driven by playwright.

Each test is held to it that the page complains of nothing in the console and asks nobody but its
own server. Where there is no browser the tests are skipped, and fail if WSPOOL_REQUIRE_ALL=1.
With WSPOOL_SCREENSHOTS=directory the pictures of both themes are kept there.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.conftest import MakePool, echoes, needs_chromium, until
from tests.support.inside import link_of
from wspool import (
    ConnectionUnavailableError,
    State,
    WebsocketConnectionPool,
    WebsocketPools,
    debug,
)
from wspool._connection import states
from wspool._debug import asgi, pictures, site, views
from wspool.testing import Server

pytestmark = pytest.mark.once

try:
    from playwright.async_api import Browser, Page, async_playwright
except ImportError:
    async_playwright = None  # type: ignore[assignment]

PHONE = {"width": 360, "height": 740}
HOSTILE = '<img src=x onerror="alert(1)"><script>alert(2)</script>'

NUMBERS = """() => {
    const text = (selector) => document.querySelector(selector).textContent;
    const nodes = [...document.querySelectorAll("#diagram .node")];
    const filters = [...document.querySelectorAll("#filters button")];
    const terms = [...document.querySelectorAll("#stats dt")];
    const rows = [...document.querySelectorAll("#connections tbody tr")];
    const cell = (row, n) => row.children[n].textContent;
    return {
        counts: Object.fromEntries(nodes.map((node) =>
            [node.dataset.state, +node.querySelector(".count").textContent])),
        filters: Object.fromEntries(filters.map((button) =>
            [button.dataset.state, +button.querySelector("b").textContent])),
        places: text("#places"),
        waiters: +text("#waiters"),
        overdue: +text("#overdue"),
        waiting: document.querySelectorAll("#waiting li").length,
        stats: Object.fromEntries(terms.map((term) =>
            [term.textContent, term.nextElementSibling.textContent])),
        rows: rows.map((row) => [+row.dataset.id, cell(row, 1), ...[4, 5, 6, 7].map((n) =>
            +cell(row, n)), row.classList.contains("overdue")]),
    };
}"""
"""What the page shows, read from its elements."""


def expected(pool: WebsocketConnectionPool) -> dict[str, Any]:
    """Return the same numbers from the pool's snapshot."""
    picture = pool.snapshot().to_dict()
    counts, connections, stats = picture["counts"], picture["connections"], picture["stats"]
    numbers = ("uses", "sent_messages", "received_messages", "drained_messages")
    total = sum(counts.values())
    return {
        "counts": counts,
        "filters": {"all": total, **counts, "gone": len(picture["gone"])},
        "places": f"{total} / {picture['max_connections']}",
        "waiters": picture["waiters"],
        "overdue": sum(c["is_overdue"] for c in connections),
        "waiting": len(picture["waiting"]),
        "stats": {
            name: ", ".join(f"{key} {count}" for key, count in value.items()) or "none"
            if isinstance(value, dict)
            else str(value)
            for name, value in (
                (name.replace("_", " "), value)
                for name, value in stats.items()
                if not isinstance(value, float)
            )
        },
        "rows": sorted(
            [c["id"], c["state"], *(c[name] for name in numbers), c["is_overdue"]]
            for c in connections
        ),
    }


async def numbers(page: Page) -> dict[str, Any]:
    shown: dict[str, Any] = await page.evaluate(NUMBERS)
    for name in ("wait time", "dial time"):
        shown["stats"].pop(name, None)
    return shown


async def eventually(read: Callable[[], Awaitable[Any]], wanted: Callable[[], Any]) -> None:
    """Wait until the page shows what is wanted; say what it showed instead."""
    shown = None
    try:
        async with asyncio.timeout(10):
            while (shown := await read()) != wanted():
                await asyncio.sleep(0.02)
    except TimeoutError:
        assert shown == wanted()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a page have ten pictures a second."""
    monkeypatch.setattr(views, "PICTURE_SECONDS", 0.1)


@pytest.fixture
def waits() -> list[float]:
    """Dial again at once, though the scene's server closes connections soon."""
    return [0.0]


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    chromium = needs_chromium(None if async_playwright else "playwright is not installed")
    async with async_playwright() as playwright:
        # Root, as in containers, gets no sandbox; only our own page is visited.
        browser = await playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        await browser.close()


OpenPage = Callable[..., Any]


@pytest.fixture
def tolerated() -> list[str]:
    """What the browser may complain of, since the test is about it."""
    return []


@pytest.fixture
async def look(browser: Browser, tolerated: list[str]) -> AsyncIterator[OpenPage]:
    """Open the debug page of some pools, and find no complaint and no foreign request after."""
    complaints: list[str] = []
    requests: list[str] = []
    async with AsyncExitStack() as stack:

        async def look(
            *pools: WebsocketConnectionPool,
            query: str = "",
            app: web.Application | None = None,
            **options: Any,
        ) -> Page:
            if app is None:
                app = web.Application()
                debug.setup(app, *pools)
            server = TestServer(app)
            await server.start_server()
            stack.push_async_callback(server.close)
            context = await browser.new_context(**options)
            stack.push_async_callback(context.close)
            context.set_default_timeout(10_000)
            page = await context.new_page()
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("dialog", lambda dialog: complaints.append(f"a dialog: {dialog.message}"))
            page.on("request", lambda request: requests.append(request.url))
            url = str(server.make_url("/debug/wspool/")) + query
            await page.goto(url)
            await page.wait_for_selector("#connections th")
            await page.locator("#stats dd").first.wait_for()
            return page

        yield look
    assert [text for text in complaints if text not in tolerated] == []
    assert {url.rpartition("/")[0].split("//")[1].split(":")[0] for url in requests} <= {
        "127.0.0.1"
    }


@pytest.fixture
async def scene(server: Server, make_pool: MakePool) -> AsyncIterator[WebsocketConnectionPool]:
    """A pool with connections in every state, three that are gone, and one who waits.

    #4 is idle, #5 to #7 are lent and overdue, #8 is being drained, #9 is closed but its server does
    not answer the goodbye, #10 waits for the answer to its handshake.
    """
    pool = make_pool(
        name="upstream",
        max_connections=8,
        connection_timeout=60.0,
        close_timeout=60.0,
        leak_threshold=1e-6,
        drain_until=lambda message: message == "bye",
        drain_quiet_period=60.0,
        drain_timeout=60.0,
    )
    try:
        for reason in (HOSTILE, "going away", ""):
            lost = await pool.acquire()
            assert await echoes(lost)
            await server.peers[-1].close(4001, reason)
            await until(lambda: not pool.connections, "it is gone")
            await pool.release(lost)
        lent = [await pool.acquire() for _ in range(6)]
        for count, connection in enumerate(lent):
            for _ in range(count):
                assert await echoes(connection)
        assert await echoes(lent[0], "bye")
        await pool.release(lent[0])
        await pool.release(lent[4])
        server.peers[-1].mute()
        await pool.release(lent[5], force_remove=True)
        server.delay = None
        waiter = asyncio.create_task(wait_for_a_new_one(pool), name="patient")
        await until(lambda: pool.waiters, "somebody waits for a new one")
        assert list(pool._router.queues.counts().values()) == [1, 1, 3, 1, 1]
        yield pool
        waiter.cancel()
        await asyncio.wait({waiter})
        for connection in lent[1:4]:
            await pool.release(connection, force_remove=True)
    finally:
        for peer in server.peers:
            peer.unmute()


async def wait_for_a_new_one(pool: WebsocketConnectionPool) -> None:
    await pool.acquire_new(timeout=None)


async def told(page: Page) -> list[str]:
    """Return what the rows say last: who has the connection, or why it went."""
    texts: list[str] = await page.locator("#connections td.told").all_text_contents()
    return texts


async def ids(page: Page) -> list[int]:
    texts = await page.locator("#connections td.id").all_text_contents()
    return [int(text.removeprefix("#")) for text in texts]


async def test_the_numbers_are_those_of_the_snapshot_in_three_moments(
    look: OpenPage, scene: WebsocketConnectionPool, server: Server
) -> None:
    page = await look(scene)
    await eventually(lambda: numbers(page), lambda: expected(scene))
    assert 0 not in (await numbers(page))["counts"].values()

    server.delay = 0.0
    idle = await scene.acquire()
    await echoes(idle)
    busy = next(c for c in scene.connections if c.is_busy and c.id != idle.id)
    await scene.release(link_of(busy).loan)
    await eventually(lambda: numbers(page), lambda: expected(scene))
    assert (await numbers(page))["counts"]["draining"] == 2

    await scene.release(idle, force_remove=True)
    for peer in server.peers:
        peer.unmute()
    await scene.close_all()
    await eventually(lambda: page.locator("#status").text_content(), lambda: "pool closed")
    await eventually(lambda: numbers(page), lambda: expected(scene))
    assert not any((await numbers(page))["counts"].values())


async def test_the_diagram_has_the_states_and_moves_of_the_table(
    look: OpenPage, make_pool: MakePool
) -> None:
    for size in ({"width": 1200, "height": 800}, PHONE):
        page = await look(make_pool(), viewport=size)
        names = await page.locator("#diagram .name").all_text_contents()
        moves = await page.locator("#diagram .trigger").all_text_contents()
        assert names == [str(state) for state in State]
        assert sorted(moves) == sorted(trigger for trigger, *_ in states.TRANSITIONS)
        boxes = [await box.bounding_box() for box in await page.locator("#diagram text").all()]
        picture = await page.locator("#diagram").bounding_box()
        for box in boxes:
            assert picture["x"] <= box["x"], "no label is cut off"
            assert box["x"] + box["width"] <= picture["x"] + picture["width"]
        assert not any(overlap(a, b) for a, b in itertools.combinations(boxes, 2))


def overlap(a: dict[str, float], b: dict[str, float]) -> bool:
    return (
        a["x"] < b["x"] + b["width"]
        and b["x"] < a["x"] + a["width"]
        and a["y"] + 4 < b["y"] + b["height"]
        and b["y"] + 4 < a["y"] + a["height"]
    )


async def test_a_click_on_a_title_sorts_and_another_turns_it_over(
    look: OpenPage, scene: WebsocketConnectionPool
) -> None:
    page = await look(scene)
    title = page.locator("#connections th", has_text="Sent")
    await eventually(lambda: ids(page), lambda: [4, 5, 6, 7, 8, 9, 10])
    await title.locator("button").click()
    assert await ids(page) == [10, 4, 5, 6, 7, 8, 9]
    assert await title.get_attribute("aria-sort") == "ascending"
    await title.locator("button").press("Enter")
    assert await ids(page) == [9, 8, 7, 6, 4, 5, 10]
    assert await title.get_attribute("aria-sort") == "descending"
    assert await page.locator("[aria-sort$=ending]").count() == 1
    await page.locator("#connections th button", has_text="State").click()
    assert await ids(page) == [10, 4, 5, 6, 7, 8, 9]
    for column in await page.locator("#connections th button").all():
        await column.click()
        assert sorted(await ids(page)) == [4, 5, 6, 7, 8, 9, 10]


async def test_a_click_on_a_state_leaves_its_connections(
    look: OpenPage, scene: WebsocketConnectionPool
) -> None:
    page = await look(scene)
    expected = {"connecting": [10], "idle": [4], "busy": [5, 6, 7], "draining": [8], "closed": [9]}
    for state, wanted in expected.items():
        button = page.locator(f"#filters [data-state={state}]")
        await button.click()
        assert await ids(page) == wanted
        assert await button.get_attribute("aria-pressed") == "true"
        assert await page.locator("#filters [aria-pressed=true]").count() == 1
    await page.locator("#filters [data-state=gone]").click()
    assert await ids(page) == [3, 2, 1], "the newest first"
    assert await page.locator("#connections td.state").all_text_contents() == ["busy"] * 3
    reasons = ["", " · going away", f" · {HOSTILE}"]
    assert await told(page) == [f"server · 4001{reason}" for reason in reasons]
    await page.locator("#filters [data-state=all]").click()
    assert await ids(page) == [4, 5, 6, 7, 8, 9, 10]


async def test_a_click_on_a_connection_shows_its_history_and_its_borrower(
    look: OpenPage, scene: WebsocketConnectionPool
) -> None:
    page = await look(scene)
    await page.locator("#connections tr[data-id='6'] td.told").click()
    details = page.locator("#details")
    await details.wait_for(state="visible")
    assert await page.locator("#details-title").text_content() == "#6 busy · overdue"
    facts = await page.locator("#facts").inner_text()
    assert "borrowed at" in facts
    assert f"{__file__}:" in facts
    lines = await page.locator("#history li").all_text_contents()
    assert [line[12:] for line in lines] == [
        "connecting → idle connected, dialled",
        "idle → busy checkout, acquire",
    ]
    connection = next(c for c in scene.connections if c.id == 6)
    await scene.release(link_of(connection).loan)
    await eventually(lambda: page.locator("#details-title").text_content(), lambda: "#6 draining")
    await page.locator("#history li", has_text="busy → draining drain, release").wait_for()
    await page.keyboard.press("Escape")
    await details.wait_for(state="hidden")
    row = page.locator("#connections tr[data-id='5'] button")
    await row.focus()
    await row.press("Enter")
    await details.wait_for(state="visible")
    assert await page.locator("#details-title").text_content() == "#5 busy · overdue"


async def test_who_waits_and_what_happened_is_told(
    look: OpenPage, scene: WebsocketConnectionPool
) -> None:
    page = await look(scene)
    waiting = await page.locator("#waiting li").all_text_contents()
    assert len(waiting) == 1
    assert "patient · parts/test_debug_in_browser.py" in waiting[0]
    assert "wants a new one" in waiting[0]
    loan = page.locator("#events li", has_text="#4 checked out").first
    idle = await scene.acquire()
    await loan.wait_for()
    await page.locator("#with-loans").uncheck()
    assert await loan.count() == 0
    await scene.release(idle, force_remove=True)
    await page.locator("#events li", has_text="#4 closed · busy · user · 1000").wait_for()


async def test_the_time_line_grows_from_when_the_page_is_opened(
    look: OpenPage, scene: WebsocketConnectionPool
) -> None:
    page = await look(scene)

    async def points() -> list[int]:
        paths = [
            await area.get_attribute("d") for area in await page.locator(".area[data-state]").all()
        ]
        return [path.count("L") for path in paths]

    before = await points()
    assert len(before) == len(State)
    assert min(before) > 0

    async def has_grown() -> bool:
        return min(await points()) > max(before) + 4

    await eventually(has_grown, lambda: True)
    assert await page.locator("#peak").text_content() == "8"


async def test_the_percentiles_are_those_that_the_load_has_measured(
    look: OpenPage, make_pool: MakePool
) -> None:
    """Under 400 loans a second, within 10 %; what is in use is measured, and not seen by chance."""
    asyncio.get_running_loop().set_debug(False)  # which takes longer than the loans do
    pool = make_pool(max_connections=32, acquire_timeout=None)
    page = await look(pool)
    waits: list[float] = []
    uses: list[float] = []
    chance = random.Random(3)

    async def borrow() -> None:
        began = perf_counter()
        async with pool.get_connection():
            lent = perf_counter()
            await asyncio.sleep(chance.uniform(0.03, 0.09))
            uses.append(perf_counter() - lent)
        waits.append(lent - began)

    began = perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(0, 1200, 40):  # so that some have to wait
            await asyncio.sleep(max(0.0, began + number / 400 - perf_counter()))
            for _ in range(40):
                group.create_task(borrow())
    span = perf_counter() - began

    async def counts() -> list[str]:
        return await page.locator("#percentiles tbody td:nth-child(5)").all_text_contents()

    await eventually(counts, lambda: ["1,200", "1,200", str(pool.stats.dials)])
    for name, times in (("wait", waits), ("use", uses)):
        for column, share in ((3, 0.95), (4, 0.99)):
            cell = page.locator(f"#percentiles [data-name={name}] :nth-child({column})")
            shown = in_seconds(str(await cell.text_content()))
            measured = sorted(times)[int(share * len(times))]
            # On a machine that has much else to do, a task sees its times later than the pool.
            assert shown == pytest.approx(measured, rel=0.1, abs=0.05), (name, share)
    async with opened_dump(page) as dump:
        busy = sum(slot["means"]["busy"] for slot in dump["measured"]["slots"])
    # Beside much else, a block ends later than its task has read the clock.
    assert busy == pytest.approx(sum(uses), rel=0.2), f"seconds of use in {span:.1f} s"


def in_seconds(text: str) -> float:
    value, unit = text.split()
    return float(value) / {"ms": 1000, "s": 1}[unit]


@asynccontextmanager
async def opened_dump(page: Page) -> AsyncIterator[Any]:
    """Download what the page offers."""
    async with page.expect_download() as download:
        await page.locator("#dump").click()
    file = await download.value
    assert file.suggested_filename.endswith(".json")
    yield json.loads(Path(await file.path()).read_text(encoding="utf-8"))


async def test_who_waits_is_drawn_with_how_long(look: OpenPage, make_pool: MakePool) -> None:
    pool = make_pool(max_connections=1)
    page = await look(pool)
    async with pool.get_connection():
        waiting = [asyncio.create_task(pool.acquire(timeout=None)) for _ in range(40)]
        bars = page.locator("#queue rect")
        await eventually(bars.count, lambda: 40)
        await eventually(page.locator("#waiters").text_content, lambda: "40")
        heights = await bars.evaluate_all(
            "(bars) => bars.map((bar) => +bar.getAttribute('height'))"
        )
        assert heights == sorted(heights, reverse=True), "the oldest is the first, and the highest"

        async def peak() -> bool:
            text = str(await page.locator("#peak-waiting").text_content())
            return int(text.split()[0]) >= 20

        await eventually(peak, lambda: True)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
    await eventually(bars.count, lambda: 0)


async def test_a_page_shows_what_was_before_it_where_a_history_is_kept(
    look: OpenPage, server: Server, make_pool: MakePool
) -> None:
    """Refusals and losses among it, and the settings in force, without what may be secret."""
    pool = make_pool(
        max_retries=1, headers={"key": "canary"}, params={"token": "canary"}, idle_timeout=77.0
    )
    app = web.Application()
    debug.setup(app, pool, history=True)
    server.refusals = [web.Response(status=503)]
    with pytest.raises(ConnectionUnavailableError):
        await pool.acquire()
    await pool.release(await pool.acquire())
    page = await look(app=app)
    assert await page.locator("#refused").text_content() == "1"
    assert await page.locator("#lost").text_content() == "1"
    reasons = await page.locator("#reasons dd").all_text_contents()
    assert reasons == ["connectionError 1", "dial 1"]
    await page.locator("#events li", has_text="check out failed").wait_for()
    settings = await page.locator("#settings").inner_text()
    assert "idle_timeout" in settings
    assert "77" in settings
    async with opened_dump(page) as dump:
        assert dump["settings"]["headers"] == "key"
        assert dump["snapshot"]["name"] == pool.name
        assert "canary" not in json.dumps(dump)
    assert "canary" not in await page.content()


async def test_a_paused_page_stands_still_and_goes_on(look: OpenPage, make_pool: MakePool) -> None:
    pool = make_pool()
    page = await look(pool)
    await page.locator("#pause").click()
    await pool.release(await pool.acquire())
    # Another page of the same pool shows it, so this one has heard of it too.
    witness = await look(pool)
    await eventually(lambda: numbers(witness), lambda: expected(pool))
    assert (await numbers(page))["counts"]["idle"] == 0
    await page.locator("#pause", has_text="Resume").click()
    await eventually(lambda: numbers(page), lambda: expected(pool))


async def test_what_a_server_says_stays_text(
    look: OpenPage, server: Server, make_pool: MakePool
) -> None:
    """In the rows, in the events and in the details; a dialog or an error would be a complaint."""
    pool = make_pool(name=HOSTILE)
    page = await look(pool)
    lost = await pool.acquire()
    await server.peers[0].close(4001, HOSTILE)
    await until(lambda: not pool.connections, "it is gone")
    await pool.release(lost)
    await page.locator("#events li", has_text=HOSTILE).wait_for()
    await page.locator("#filters [data-state=gone]").click()
    await eventually(lambda: told(page), lambda: [f"server · 4001 · {HOSTILE}"])
    await page.locator("#connections tbody tr").click()
    await page.locator("#facts dd", has_text=HOSTILE).wait_for()
    assert await page.locator("#name").text_content() == HOSTILE
    assert await page.locator("img, body script").count() == 0


async def test_a_stream_that_breaks_is_said_and_taken_up_again(
    look: OpenPage, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool()
    page = await look(pool)
    status = page.locator("#status")
    await eventually(status.text_content, lambda: "not started")
    await pool.start()
    await eventually(status.text_content, lambda: "live")
    with monkeypatch.context() as broken:
        broken.setattr(pictures, "picture", lambda _: 1 / 0)
        await eventually(status.text_content, lambda: "connection lost, trying again …")
    await eventually(status.text_content, lambda: "live")
    assert await page.locator("#legend [data-state]").count() == len(State)


async def test_why_the_last_dial_has_failed_is_said_until_one_is_well(
    look: OpenPage, server: Server, make_pool: MakePool
) -> None:
    pool = make_pool(max_retries=1)
    page = await look(pool)
    failure = page.locator("#failure")
    assert not await failure.is_visible()
    server.refusals = [web.Response(status=503)]
    with pytest.raises(ConnectionUnavailableError) as caught:
        await pool.acquire()
    assert "the server answered 503 instead of a WebSocket handshake" in str(caught.value)
    says = f"The last dial has failed: {caught.value}"
    await eventually(failure.text_content, lambda: says)
    assert await failure.is_visible()
    async with pool.get_connection() as connection:
        assert await echoes(connection)
        await eventually(failure.is_visible, lambda: False)


async def test_on_asgi_a_page_lives_on_from_stream_to_stream(
    browser: Browser, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each ends after a while; the page takes up the next, says nothing of it and loses no loan."""
    pytest.importorskip("uvicorn")
    from tests.parts.test_debug_asgi import serving

    monkeypatch.setattr(asgi, "STREAM_SECONDS", 0.3)
    streams: list[str] = []
    pool = make_pool()
    async with serving(pool) as client:
        page = await browser.new_page()
        page.on("request", lambda asked: asked.url.endswith("/events") and streams.append("one"))
        async with client.get("/debug/wspool/") as response:
            await page.goto(str(response.url))
        await page.locator("#stats dd").first.wait_for()
        await page.evaluate(
            """() => {
                window.said = [];
                new MutationObserver(() => said.push(document.getElementById("status").textContent))
                    .observe(document.getElementById("status"), {childList: true});
            }"""
        )
        loans = 0
        async with asyncio.timeout(60):
            while len(streams) < 5:
                await pool.release(await pool.acquire())
                loans += 1
                await asyncio.sleep(0.02)
        cell = page.locator("#percentiles [data-name=use] :nth-child(5)")
        await eventually(cell.text_content, lambda: str(loans))
        assert set(await page.evaluate("said")) <= {"live"}
        await page.close()


async def test_a_page_too_many_says_so(
    look: OpenPage, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, tolerated: list[str]
) -> None:
    page = await look(make_pool())
    tolerated.append(
        "Failed to load resource: the server responded with a status of 503 (Service Unavailable)"
    )
    monkeypatch.setattr(site, "MAX_READERS", 0)
    await page.reload()
    says = "too many pages are open: close one, then reload"
    await eventually(page.locator("#status").text_content, lambda: says)


async def test_a_page_of_another_site_holds_no_stream(
    browser: Browser, make_pool: MakePool
) -> None:
    """However it asks for one; a link on it leads to the page."""

    async def blank(request: web.Request) -> web.Response:
        return web.Response(text="<!doctype html>", content_type="text/html")

    async def note(request: web.Request, response: web.StreamResponse) -> None:
        if request.path.startswith("/debug/wspool/"):
            answers.append(response.status)

    answers: list[int] = []
    pool = make_pool()
    app = web.Application()
    app.router.add_get("/", blank)
    app.on_response_prepare.append(note)
    debug.setup(app, pool)
    async with TestServer(app) as server:
        stream = str(server.make_url("/debug/wspool/events"))
        page = await browser.new_page()
        await page.goto(str(server.make_url("/")).replace("127.0.0.1", "localhost"))
        for ask in (
            "(url) => { fetch(url, {mode: 'no-cors'}).catch(() => {}) }",
            "(url) => { fetch(url).catch(() => {}) }",
            "(url) => { new EventSource(url) }",
            "(url) => { new Image().src = url }",
            "(url) => { new WebSocket(url.replace('http', 'ws')) }",
        ):
            answers.clear()
            await page.evaluate(ask, stream)
            await until(lambda: answers, "it is answered")
            assert answers == [403], ask
        assert not pool._router.events.listeners
        answers.clear()
        url = stream.removesuffix("events")
        await page.evaluate("(url) => { location = url }", url)
        await page.wait_for_selector("#connections th")
        assert set(answers) == {200}
        await page.close()


async def test_one_page_leads_to_the_other_pools(look: OpenPage, make_pool: MakePool) -> None:
    one, two = make_pool(name="one"), make_pool(name="two & more")
    page = await look(one, two)
    assert await page.locator("#name").text_content() == "one"
    assert await page.locator("#pools [aria-current=page]").text_content() == "one"
    async with two.get_connection():
        await page.locator("#pools a", has_text="two & more").click()
        await eventually(lambda: page.locator("#name").text_content(), lambda: "two & more")
        await eventually(lambda: numbers(page), lambda: expected(two))
        await page.locator("#connections tbody tr").click()
        await page.locator("#history li", has_text="idle → busy").wait_for()
    assert await page.title() == "two & more · wspool"


async def test_a_group_shows_its_members_and_leads_to_each(
    look: OpenPage, server: Server, make_pool: MakePool
) -> None:
    """Keys are text, whatever is in them, and the row of one that is gone goes too."""
    regions = {
        HOSTILE: {"uri": server.uri},
        "far": {"uri": server.uri},
        "third": {"uri": server.uri},
    }
    async with WebsocketPools(regions, max_connections=4, name="regions") as group:
        page = await look(group, make_pool(name="alone"))

        async def members() -> list[list[str]]:
            rows: list[list[str]] = await page.evaluate(
                """() => [...document.querySelectorAll("#members tbody tr")].map((row) =>
                    [...row.children].map((cell) => cell.textContent))"""
            )
            return [[row[0], row[1].partition(" in ")[0], *row[2:]] for row in rows]

        await eventually(lambda: page.locator("#places").text_content(), lambda: "0 / 4")
        group.eject("third", 60.0)
        async with group.get_connection(HOSTILE), group.get_connection("far"):
            await eventually(
                members,
                lambda: [
                    ["third", "out, probed", "0", "0", "0", "0", "0", "ejected"],
                    [HOSTILE, "in", "1", "1", "0", "1", "0", ""],
                    ["far", "in", "1", "1", "0", "1", "0", ""],
                ],
            )
            assert await page.locator("#places").text_content() == "2 / 4"
            names = page.locator("#connections td.id")
            assert await names.all_text_contents() == ["1#1", "2#1"]
            await names.nth(1).click()
            await page.locator("#details-title", has_text="2#1 busy").wait_for()
            await page.locator("#history li", has_text="idle → busy").wait_for()
            await page.keyboard.press("Escape")
            directory = os.environ.get("WSPOOL_SCREENSHOTS")
            if directory:
                await page.screenshot(path=Path(directory) / "debug_page_group.png")
            await page.locator("#members a", has_text="far").click()
            await eventually(lambda: page.locator("#name").text_content(), lambda: "regions-2")
            assert not await page.locator("#group").is_visible()
            assert await page.locator("#connections td.id").all_text_contents() == ["#1"]
            links = await page.locator("#pools a").all_text_contents()
            assert links == ["regions", "alone", "regions-2"]
        await page.locator("#pools a", has_text="regions").first.click()
        group.remove("far")
        await eventually(
            lambda: page.locator("#members td:first-child").all_text_contents(),
            lambda: ["third", HOSTILE],
        )


async def test_a_phone_needs_no_sideways_scrolling_for_a_group_either(
    look: OpenPage, server: Server
) -> None:
    keys = ["near", "a-key-without-a-single-blank-" * 4]
    async with WebsocketPools(
        {key: {"uri": server.uri} for key in keys}, max_connections=4
    ) as group:
        group.eject(keys[1], 60.0)
        page = await look(group, viewport=PHONE, is_mobile=True, has_touch=True)
        await page.locator("#members tr[data-health=out]").wait_for()
        width = "() => [document.documentElement.scrollWidth, innerWidth]"
        assert await page.evaluate(width) == [PHONE["width"]] * 2


async def test_a_phone_needs_no_sideways_scrolling(
    look: OpenPage, scene: WebsocketConnectionPool
) -> None:
    page = await look(scene, viewport=PHONE, is_mobile=True, has_touch=True)
    await eventually(lambda: numbers(page), lambda: expected(scene))
    width = "() => [document.documentElement.scrollWidth, innerWidth]"
    assert await page.evaluate(width) == [PHONE["width"]] * 2
    await page.locator("#filters [data-state=gone]").tap()
    assert await page.evaluate(width) == [PHONE["width"]] * 2
    await page.locator("#connections tbody tr").first.tap()
    await page.locator("#details").wait_for(state="visible")
    assert await page.evaluate(width) == [PHONE["width"]] * 2
    assert await page.evaluate("(d => d.scrollWidth - d.clientWidth)(details)") == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_each_theme_is_legible(look: OpenPage, make_pool: MakePool, theme: str) -> None:
    """Text has a contrast of 4.5 with the card that it is on, and each state's colour one of 3."""
    pool = make_pool(
        name="upstream",
        max_connections=12,
        leak_threshold=5.0,
        drain_until=lambda message: message == "bye",
    )
    page = await look(pool, color_scheme=theme, viewport={"width": 1160, "height": 1160})
    colours: dict[str, str] = await page.evaluate(
        """() => Object.fromEntries(["card", "page", "ink", "quiet", "alarm", "connecting", "idle",
            "busy", "draining", "closed"].map((name) =>
            [name, getComputedStyle(document.documentElement).getPropertyValue("--" + name)]))"""
    )
    assert (luminance(colours["card"]) > luminance(colours["ink"])) == (theme == "light")
    for ground in ("card", "page"):
        for name in ("ink", "quiet", "alarm"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
    for state in State:
        assert contrast(colours[state], colours["card"]) >= 3, state
    directory = os.environ.get("WSPOOL_SCREENSHOTS")
    if directory:
        async with busy_times(pool):
            await page.screenshot(path=Path(directory) / f"debug_page_{theme}.png")


def luminance(colour: str) -> float:
    """Return the relative luminance of #rgb or #rrggbb, as WCAG 2 defines it."""
    digits = colour.strip().removeprefix("#")
    digits = digits if len(digits) == 6 else "".join(digit * 2 for digit in digits)
    shares = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted([luminance(one), luminance(other)])
    return (lighter + 0.05) / (darker + 0.05)


@asynccontextmanager
async def busy_times(pool: WebsocketConnectionPool) -> AsyncIterator[None]:
    """Let borrowers come and go until there is something to show."""
    chance = random.Random(11)

    async def order(number: int) -> None:
        await asyncio.sleep(number)
        while True:
            async with pool.get_connection(timeout=None) as connection:
                for _ in range(chance.randint(1, 4)):
                    await echoes(connection)
                await asyncio.sleep(chance.uniform(0.1, 1.0) if number else 60.0)
                if chance.random() < 0.85:  # else it is drained
                    await echoes(connection, "bye")
                if chance.random() < 0.05:
                    await connection.close()
            await asyncio.sleep(chance.uniform(0.0, 1.5))

    orders = [asyncio.create_task(order(n), name=f"order {1040 + n}") for n in range(22)]
    await asyncio.sleep(20)
    yield
    for task in orders:
        task.cancel()
    await asyncio.wait(orders)
