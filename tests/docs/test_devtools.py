"""The guide to Chromium's DevTools protocol, with the browser itself.

Where there is none the tests are skipped, and fail if WSPOOL_REQUIRE_ALL=1.
"""

from __future__ import annotations

import asyncio
import re

import aiohttp
import pytest

from examples import devtools
from tests.conftest import MakePool, needs_chromium, until
from tests.support.commands import start_python
from wspool.testing import Peer, Server

pytestmark = pytest.mark.once


@pytest.fixture(autouse=True)
def browser() -> str:
    return needs_chromium()


async def test_ten_tasks_take_ten_pages_over_three_connections() -> None:
    async with start_python("examples/devtools.py") as process:
        async with asyncio.timeout(60):  # only a net
            out, err = map(bytes.decode, await process.communicate())
    assert process.returncode == 0, err
    assert not re.search("Traceback|Error|Warning", err), err
    *pages, summary = out.splitlines()
    titles = [title for title, size in re.findall(r"^(.+): ([\d,]+) bytes of PNG$", out, re.M)]
    assert len(pages) == 10
    assert sorted(titles) == sorted(f"Page {n}" for n in range(1, 11))
    [(borrows, dials, drained)] = re.findall(
        r"(\d+) pages, (\d+) connections, (\d+) drained", summary
    )
    assert (borrows, dials) == ("10", "3")
    # A loan leaves the event of its end and the reply; the last three may be cut short by the end.
    assert int(drained) >= 2 * 7


async def test_a_cancelled_task_leaves_no_page_behind_and_a_connection_that_goes_on(
    server: Server, make_pool: MakePool
) -> None:
    server.delay = None  # a page from there does not come
    async with devtools.chromium() as uri:

        async def relay(peer: Peer) -> None:
            """Stand between the pool and the browser, to count."""
            async with aiohttp.ClientSession() as session, session.ws_connect(uri) as browser:

                async def back() -> None:
                    async for message in browser:
                        await peer.send(message.data)

                async with asyncio.TaskGroup() as group:
                    going_back = group.create_task(back())
                    async for message in peer.websocket:
                        await browser.send_str(message.data)
                    going_back.cancel()

        async with Server(relay) as between:
            pool = make_pool(
                uri=between.uri,
                max_connections=1,
                acquire_timeout=30.0,
                drain_until=devtools.is_goodbye,
            )
            url = server.uri.replace("ws:", "http:")
            slow = asyncio.create_task(devtools.look(pool, url))
            await until(lambda: server.requests or slow.done(), "the page is being loaded")
            slow.cancel()
            await asyncio.wait([slow])
            assert slow.cancelled()
            title, picture = await devtools.look(pool, "data:text/html,<title>quick</title>")
            assert title == "quick"
            assert picture.startswith(b"\x89PNG\r\n")
            async with pool.get_connection() as connection:
                left = await devtools.call(connection, "Target.getBrowserContexts")
            assert left["browserContextIds"] == []
            await pool.close_all()
        assert len(between.requests) == 1
