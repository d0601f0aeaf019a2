"""The guide to Chromium's DevTools protocol, with the browser itself.

Where there is none the tests are skipped, and fail if WSPOOL_REQUIRE_ALL=1.
"""

from __future__ import annotations

import asyncio
import random
import re
from typing import Any

import pytest

from examples import devtools
from tests import IS_WHOLE
from tests.conftest import MakePool, needs_chromium, until
from tests.support.commands import start_python
from wspool.testing import Server

pytestmark = pytest.mark.once


@pytest.fixture(autouse=True)
def browser() -> str:
    return needs_chromium()


async def test_ten_tasks_take_ten_pages_over_one_connection() -> None:
    async with start_python("examples/devtools.py") as process:
        async with asyncio.timeout(60):  # only a net
            out, err = map(bytes.decode, await process.communicate())
    assert process.returncode == 0, err
    assert not re.search("Traceback|Error|Warning", err), err
    *pages, summary = out.splitlines()
    titles = [title for title, size in re.findall(r"^(.+): ([\d,]+) bytes of PNG$", out, re.M)]
    assert len(pages) == 10
    assert sorted(titles) == sorted(f"Page {n}" for n in range(1, 11))
    assert summary == "10 pages over 1 connection"


async def test_cancelled_tasks_leave_no_page_behind_and_their_neighbours_go_on(
    server: Server, make_pool: MakePool
) -> None:
    """Twenty tasks at a time, half of which are cancelled, at some moment or in the loading."""
    rounds = 5 if IS_WHOLE else 1
    server.delay = None  # a page from there does not come
    never = server.uri.replace("ws:", "http:")
    async with devtools.chromium() as uri:
        pool = make_pool(uri=uri, max_connections=1, acquire_timeout=60.0, **devtools.OPTIONS)

        async def ask(method: str) -> Any:
            async with pool.get_stream() as stream:
                result = await devtools.call(stream, method)
                await stream.send_json(
                    {"id": stream.claim(devtools.GOODBYE + stream.number), "method": method}
                )
                return result

        before = await ask("Target.getTargets")
        for seed in range(rounds):
            dice = random.Random(seed)
            pages = {
                n: asyncio.create_task(devtools.look(pool, f"data:text/html,<title>{n}</title>"))
                for n in range(10)
            }
            slow = [asyncio.create_task(devtools.look(pool, never)) for _ in range(10)]
            for task in slow[:-1]:
                await asyncio.sleep(dice.uniform(0.0, 0.2))
                task.cancel()
            await until(lambda: server.requests, "a page is being loaded", 60.0)
            slow[-1].cancel()
            for n, task in pages.items():
                title, picture = await task
                assert title == str(n)
                assert picture.startswith(b"\x89PNG\r\n")
            await asyncio.wait(slow)
            assert all(task.cancelled() for task in slow)
            await until(lambda: not pool.busy_connections, "every slot is back", 60.0)
            server.requests.clear()
            assert (await ask("Target.getBrowserContexts"))["browserContextIds"] == []
            assert len((await ask("Target.getTargets"))["targetInfos"]) == len(
                before["targetInfos"]
            )
        assert pool.stats.dials == 1
