"""The example for gunicorn, on a real one: a pool for each worker, made before the fork or not."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from tests import ROOT
from tests.conftest import until
from wspool.testing import Peer, Server

pytestmark = pytest.mark.once

pytest.importorskip("gunicorn")

WORKERS = 2


@asynccontextmanager
async def gunicorn(
    uri: str, *options: str, app: str = "gunicorn_app:app"
) -> AsyncIterator[aiohttp.ClientSession]:
    """Give a session whose URLs are those of the example, and end gunicorn gracefully."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "default::ResourceWarning:wspool", "-m", "gunicorn"),
            *("--bind", f"fd://{listener.fileno()}", "--workers", str(WORKERS), *options),
            *("--threads", "4", "--graceful-timeout", "10", f"examples.{app}"),
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "WSPOOL_URI": uri, "UPSTREAM_URI": uri},
            pass_fds=[listener.fileno()],
            stderr=asyncio.subprocess.PIPE,
        )
    try:
        # A connection for each request, which any worker may accept.
        connector = aiohttp.TCPConnector(force_close=True)
        base = f"http://127.0.0.1:{port}"
        async with aiohttp.ClientSession(base, connector=connector) as session:
            yield session
    finally:
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            _, complaints = await process.communicate()
    assert process.returncode == 0, complaints.decode()
    for trouble in ("Traceback", "ResourceWarning", "Task was destroyed", "WORKER TIMEOUT"):
        assert trouble not in complaints.decode()


@pytest.mark.parametrize("options", [[], ["--preload"]], ids=["loaded in the worker", "preloaded"])
async def test_each_worker_has_a_pool_of_its_own(server: Server, options: list[str]) -> None:
    """Its threads share the pool, it never has another worker's sockets, and it closes them."""
    seen: dict[int, set[int]] = defaultdict(set)  # the pools' connections by process
    async with gunicorn(server.uri, *options) as session:

        async def ask(text: str) -> None:
            async with session.get("/ask", params={"text": text}) as response:
                answer = await response.json()
            assert (response.status, answer["reply"]) == (200, text)
            seen[answer["pid"]].add(answer["connection"])

        async with asyncio.timeout(60):
            while len(seen) < WORKERS:
                await asyncio.gather(*(ask(f"text {number}") for number in range(20)))
        # Each had a handshake of its own; a dial may also have come too late for who wanted it.
        assert len(server.requests) >= sum(map(len, seen.values()))
    await until(lambda: not server.open, "the workers have closed their connections")
    assert {peer.websocket.close_code for peer in server.peers} == {1000}


async def test_a_client_of_aiohttps_worker_that_hangs_up_frees_the_connection(
    server: Server,
) -> None:
    """Long before the deadline of 10 seconds."""

    async def be_silent(peer: Peer) -> None:
        async for _ in peer:
            pass

    server.handler = be_silent
    worker = ("-k", "aiohttp.GunicornWebWorker")
    async with gunicorn(server.uri, *worker, app="web_app:make_runner") as session:
        asking = asyncio.create_task(session.get("/ask", params={"text": "hello"}))
        await until(lambda: server.received, "the question has come", within=30)
        asking.cancel()
        await until(lambda: not server.open, "what may still be answered is closed", within=5)
