#!/usr/bin/env python3
"""Ten tasks ask one Chromium for pages, as streams of one connection to its DevTools protocol.

    python examples/devtools.py [--uri ws://127.0.0.1:9222/devtools/browser/…]

Without the URI of a browser it starts Debian's (apt-get install chromium). Each task takes the
title and a picture of a page in a context of its own; the pool reads what comes late.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from wspool import WebsocketConnectionPool, WebsocketStream

GOODBYE = 1_000_000_000  # the id of the last command of a stream is above this, others are below
OPTIONS: dict[str, Any] = {
    "max_streams": 20,
    "route": ("sessionId", "id"),  # what comes from a page has its session's id
    "drain_until": lambda message: json.loads(message).get("id", 0) > GOODBYE,
}
TITLE = """new Promise(tell => {
    const loaded = () => tell(document.title);
    document.readyState == "complete" ? loaded() : addEventListener("load", loaded);
})"""


@asynccontextmanager
async def chromium() -> AsyncIterator[str]:
    """Run a browser without a window, with a profile of its own; yield its endpoint's URI."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        raise SystemExit("there is no chromium on the PATH: install it, or give --uri")
    options = ["--headless", "--disable-gpu", "--remote-debugging-port=0"]
    options += ["--no-sandbox"] * (os.geteuid() == 0)  # root, as in containers, gets none
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            *(program, *options, f"--user-data-dir={profile}"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            written = Path(profile, "DevToolsActivePort")  # its port and its path
            while not written.exists() or len(lines := written.read_text().split()) < 2:
                if process.returncode is not None:
                    raise SystemExit(f"{program} {' '.join(options)} has ended: try it by hand")
                await asyncio.sleep(0.05)
            yield f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def call(
    stream: WebsocketStream, method: str, session: str | None = None, **params: Any
) -> Any:
    """Send a command and return its result; the events that come before it are passed over."""
    command = {"id": stream.claim(), "method": method, "params": params}
    await stream.send_json(command | ({"sessionId": session} if session else {}))
    while (reply := await stream.recv_json()).get("id") != command["id"]:
        pass
    if "error" in reply:
        raise RuntimeError(f"{method}: {reply['error']['message']}")
    return reply["result"]


async def look(pool: WebsocketConnectionPool, url: str) -> tuple[str, bytes]:
    """Return the title of a page and its picture, a PNG."""
    async with pool.get_stream() as stream, asyncio.timeout(30):
        ask = partial(call, stream)
        # A context goes with its connection too, should this process end before the goodbye.
        creating = asyncio.create_task(ask("Target.createBrowserContext", disposeOnDetach=True))
        try:
            context = await asyncio.shield(creating)
            page = await ask("Target.createTarget", url="about:blank", **context)
            session = stream.claim(
                (await ask("Target.attachToTarget", **page, flatten=True))["sessionId"]
            )
            await ask("Page.navigate", session, url=url)
            title = await ask("Runtime.evaluate", session, expression=TITLE, awaitPromise=True)
            picture = await ask("Page.captureScreenshot", session)
            return title["result"]["value"], base64.b64decode(picture["data"])
        finally:
            # Nobody waits for the reply: the pool reads on up to it, and then lends the slot.
            goodbye = {"id": stream.claim(GOODBYE + stream.number), "params": await creating}
            await stream.send_json(goodbye | {"method": "Target.disposeBrowserContext"})


async def main(uri: str | None) -> None:
    async with nullcontext(uri) if uri else chromium() as uri:
        pool = WebsocketConnectionPool(uri=uri, max_connections=1, acquire_timeout=None, **OPTIONS)
        async with pool, asyncio.TaskGroup() as group:
            for n in range(1, 11):
                group.create_task(show(pool, f"data:text/html,<title>Page {n}</title><h1>{n}</h1>"))
        print(f"{pool.stats.borrows} pages over {pool.stats.dials} connection")


async def show(pool: WebsocketConnectionPool, url: str) -> None:
    title, picture = await look(pool, url)
    print(f"{title}: {len(picture):,} bytes of PNG")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Look at pages in Chromium.")
    parser.add_argument("--uri", help="of a browser's endpoint; without it, one is started")
    asyncio.run(main(parser.parse_args().uri))
