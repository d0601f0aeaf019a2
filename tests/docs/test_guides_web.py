"""The web applications of `examples/`, each run as a process and asked over HTTP, as users do.

The test is the WebSocket server behind them, and counts the handshakes that reach it.
"""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple
from unittest.mock import ANY

import aiohttp
import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import until
from tests.support.commands import start_python
from wspool.testing import Peer, Server

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM to send"),
]

MOST: Final = 20
"""The connections that each application allows itself, and the requests that may wait for one."""

UNAVAILABLE: Final = "all connections are in use, or the server is away; try later"


class Application(NamedTuple):
    """Where a guide answers, where its debug page is, and an HTTP client for both."""

    url: str
    page: str
    http: aiohttp.ClientSession

    async def ask(self, text: str) -> tuple[int, str]:
        async with self.http.get(f"{self.url}/ask", params={"text": text}) as response:
            return response.status, await response.text()

    async def snapshot(self) -> Any:
        async with self.http.get(f"{self.page}snapshot") as response:
            assert response.status == 200
            return await response.json()

    async def metrics(self) -> dict[tuple[str, ...], float]:
        """Return the numbers by the metric's name and the values of its labels."""
        async with self.http.get(f"{self.url}/metrics") as response:
            assert response.status == 200
            families = list(text_string_to_metric_families(await response.text()))
        samples = [sample for family in families for sample in family.samples]
        return {(sample.name, *sample.labels.values()): sample.value for sample in samples}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@asynccontextmanager
async def run(*arguments: str, status: int, **environment: str) -> AsyncIterator[Process]:
    """Run a guide until the block ends; at a SIGTERM it must end with this status, and no trouble.

    It is in development mode, where every warning is an error.
    """
    async with start_python(*arguments, environment=environment) as process:
        try:
            yield process
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(30):  # only a net
                out, err = map(bytes.decode, await process.communicate())
            assert process.returncode == status, err
            assert not re.search("Traceback|Error|Warning", out + err), err


async def answers(url: str, process: Process, http: aiohttp.ClientSession) -> None:
    """Wait until something listens there."""
    while True:
        try:
            async with http.get(url):
                return
        except aiohttp.ClientConnectorError:
            assert process.returncode is None, "it has ended"
            await asyncio.sleep(0.02)


@pytest.fixture(params=["aiohttp", "fastapi"])
async def application(request: pytest.FixtureRequest, server: Server) -> AsyncIterator[Application]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    page = f"{url}/debug/wspool/"
    if request.param == "aiohttp":
        running = run("examples/web_app.py", status=0, UPSTREAM_URI=server.uri, PORT=str(port))
    else:
        # After a clean shutdown uvicorn raises the signal again, as processes should.
        running = run(
            "examples/fastapi_app.py",
            status=-signal.SIGTERM,
            UPSTREAM_URI=server.uri,
            PORT=str(port),
        )
    async with aiohttp.ClientSession() as http, running as process:
        await answers(url, process, http)
        yield Application(url, page, http)
        # Somebody has the debug page open when the application is told to end.
        async with http.get(page) as response:
            assert response.content_type == "text/html"
        events = await http.get(f"{page}events")
        async with asyncio.timeout(10):  # only a net
            while await events.content.readline() != b"event: machine\n":
                pass
    assert not server.open, "the pool was closed with the application"


async def test_without_its_server_an_application_is_degraded_and_not_dead(
    application: Application, server: Server
) -> None:
    async def health() -> Any:
        async with application.http.get(f"{application.url}/health") as response:
            assert response.status == 200
            return await response.json()

    assert await health() == {"status": "ok"}
    server.refusals = [web.Response(status=403)]
    assert await application.ask("hello") == (503, ANY)
    assert await health() == {"status": "degraded", "kind": "status 403"}
    assert await application.ask("hello") == (200, "hello")
    async with asyncio.timeout(30):  # only a net
        while await health() != {"status": "ok"}:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("application", ["aiohttp"], indirect=True)
async def test_a_client_that_hangs_up_frees_the_connection_long_before_the_deadline(
    application: Application, server: Server
) -> None:
    """N6: an application of aiohttp's does so only with `handler_cancellation`."""

    async def be_silent(peer: Peer) -> None:
        async for _ in peer:
            pass

    server.handler = be_silent
    asking = asyncio.create_task(application.ask("a question without an answer"))
    await until(lambda: server.received, "the question has come")
    assert (await application.snapshot())["counts"]["busy"] == 1
    asking.cancel()
    async with asyncio.timeout(5):  # the example's deadline is 10 seconds
        while (await application.snapshot())["counts"]["busy"]:
            await asyncio.sleep(0.02)
    await until(lambda: not server.open, "and what may still be answered is closed")


async def test_many_requests_share_few_connections_and_too_many_are_told_so(
    application: Application, server: Server
) -> None:
    may_answer = asyncio.Event()

    async def answer(peer: Peer) -> None:
        async for message in peer.websocket:
            peer.received.append(message.data)
            await may_answer.wait()
            await peer.send(message.data)

    server.handler = answer

    def ask(*numbers: int) -> list[asyncio.Task[tuple[int, str]]]:
        return [asyncio.create_task(application.ask(f"question {n}")) for n in numbers]

    served = ask(*range(MOST))
    await until(
        lambda: len([peer for peer in server.open if peer.received]) == MOST,
        "each connection has a question",
    )
    waiting = ask(*range(MOST, 2 * MOST))
    async with asyncio.timeout(10):  # only a net
        while (picture := await application.snapshot())["waiters"] < MOST:
            pass
    for status, text in await asyncio.gather(*ask(-1, -2, -3)):
        assert status == 503
        assert UNAVAILABLE in text
    assert picture["counts"]["busy"] == picture["max_connections"] == MOST
    metrics = await application.metrics()
    assert metrics["wspool_connection_count", "upstream", "busy"] == MOST
    assert metrics["wspool_connection_pending_requests", "upstream"] == MOST
    may_answer.set()
    assert await asyncio.gather(*served, *waiting) == [
        (200, f"question {n}") for n in range(2 * MOST)
    ]
    assert len(server.requests) == MOST, "nobody has made one connection more"


async def test_a_server_that_hangs_up_is_told_from_one_that_is_away(
    application: Application, server: Server
) -> None:
    async def answer_or_hang_up(peer: Peer) -> None:
        async for message in peer.websocket:
            if message.data == "hang up":
                break
            await peer.send(message.data)

    server.handler = answer_or_hang_up
    assert await application.ask("hello") == (200, "hello")
    status, text = await application.ask("hang up")
    assert status == 502
    assert "the server has hung up" in text
    await server.stop()
    status, text = await application.ask("hello")
    assert status == 503
    assert UNAVAILABLE in text


async def test_each_worker_of_uvicorn_has_a_pool_of_its_own() -> None:
    """A request is answered by any of them, and so is one for the page."""
    port = str(free_port())
    # uvicorn leaves it to the collector to close the socket that its workers share.
    python = ("-W", "ignore:unclosed <socket:ResourceWarning", "-m")
    command = ("uvicorn", "examples.fastapi_app:app", "--workers", "2", "--port", port)
    url = f"http://127.0.0.1:{port}"
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http,
        run(*python, *command, status=0) as process,
    ):
        await answers(url, process, http)
        application = Application(url, f"{url}/debug/wspool/", http)
        assert await application.ask("hello") == (200, "hello")
        dials: set[int] = set()
        async with asyncio.timeout(30):  # only a net
            while dials != {0, 1}:
                dials.add((await application.snapshot())["stats"]["dials"])
