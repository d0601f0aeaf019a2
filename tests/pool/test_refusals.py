"""What a refusal costs: those whom it must, for as long as it must, and it says why."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from tests.conftest import LOOP, MakePool, echoes, until
from tests.explore.hostile import RETRY_AFTERS
from tests.support.inside import router_of
from wspool import (
    ConnectionPoolExhaustedError,
    ConnectionPoolTimeoutError,
    ConnectionUnavailableError,
    WebsocketConnection,
    WebsocketConnectionPool,
    WebsocketError,
)
from wspool.testing import Peer, Server, echo

Refuse = Callable[[Peer], Awaitable[None]]


async def settle(attempts: list[asyncio.Task[WebsocketConnection]]) -> list[Any]:
    return await asyncio.gather(*attempts, return_exceptions=True)


# How often a server that refuses is asked.


def closes(code: int, after: float = 0.0, message: str = "") -> Refuse:
    async def refuse(peer: Peer) -> None:
        await asyncio.sleep(after)
        if message:
            await peer.send(message)
        await peer.close(code, "no")

    return refuse


async def resets(peer: Peer) -> None:
    peer.drop()


REFUSALS: dict[str, Refuse] = {
    "1013": closes(1013),
    "4008": closes(4008),
    "1000, unused": closes(1000),
    "a reset": resets,
    "an error message, then 1008": closes(1008, message="invalid key"),
    "4008 after 50 ms": closes(4008, after=0.05),
}

by_refusal = pytest.mark.parametrize("refusal", REFUSALS)


class Picky(Server):
    """A server that admits so many connections at a time."""

    def __init__(self, admitted: int, refuse: Refuse) -> None:
        super().__init__(self.decide)
        self.admitted = admitted
        self.refuse_peer = refuse
        self.inside: set[Peer] = set()
        self.refused = 0

    async def decide(self, peer: Peer) -> None:
        if len(self.inside) >= self.admitted:
            self.refused += 1
            await self.refuse_peer(peer)
            return
        self.inside.add(peer)
        try:
            await echo(peer)
        finally:
            self.inside.discard(peer)


async def use_again_and_again(
    pool: WebsocketConnectionPool, seconds: float, pause: float = 0.0
) -> None:
    """Borrow and ask, patiently; what a server that refuses does to a loan is borne."""
    end = asyncio.get_running_loop().time() + seconds
    while (left := end - asyncio.get_running_loop().time()) > 0:
        try:
            async with pool.get_connection(timeout=left) as connection:
                await asyncio.sleep(pause)
                await echoes(connection)
                await asyncio.sleep(0.05)
        except WebsocketError:
            await asyncio.sleep(0.01)


async def refused_dials(refusal: str, admitted: int, max_connecting: int, seconds: float) -> int:
    """Let 40 patient borrowers want 50 connections, and return how many dials were refused."""
    server = Picky(admitted, REFUSALS[refusal])
    async with server:
        options: dict[str, Any] = {"max_connecting": max_connecting, "close_timeout": 1.0}
        async with WebsocketConnectionPool(uri=server.uri, **options) as pool:
            # With a message that was sent, 1000 would be the end of a command.
            pause = 0.02 if refusal == "1000, unused" else 0.0
            await asyncio.gather(*(use_again_and_again(pool, seconds, pause) for _ in range(40)))
    return server.refused


@by_refusal
async def test_a_server_that_accepts_and_closes_is_asked_seldom(refusal: str) -> None:
    assert await refused_dials(refusal, 5, 10, seconds=1.0) <= 40


@pytest.mark.long
@pytest.mark.parametrize("max_connecting", [1, 10])
@pytest.mark.parametrize("admitted", [0, 5])
@by_refusal
async def test_at_most_40_dials_are_refused_in_five_seconds(
    refusal: str, admitted: int, max_connecting: int, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = await refused_dials(refusal, admitted, max_connecting, seconds=5.0)
    with capsys.disabled():
        print(
            f"\n{LOOP}: {refusal}, {admitted} admitted, {max_connecting} at work: "
            f"{refused} refused dials in 5 s"
        )
    assert refused <= 40


@by_refusal
async def test_a_minimum_that_cannot_be_kept_is_no_storm_and_one_warning(
    refusal: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And when it can be kept again, that is said once, too."""
    caplog.set_level(logging.INFO, "wspool")
    async with Picky(0, REFUSALS[refusal]) as server:
        pool = WebsocketConnectionPool(
            uri=server.uri,
            min_connections=20,
            learn_limit=False,  # nobody waits, so that nothing would ask whether there are more
            cleanup_interval=0.1,
            close_timeout=1.0,
        )
        router_of(pool).gate.waits = (0.3, 0.6, 2.0)
        async with pool:
            await asyncio.sleep(1.0)
            assert server.refused <= 80  # four times the minimum
            told = [r.getMessage() for r in caplog.records if "min_connections=20" in r.message]
            assert len(told) == 1
            assert "cannot be kept" in told[0]
            server.admitted = 100
            await until(lambda: pool.total_connections == 20, "they are all open")
            await until(lambda: "open again" in caplog.text, "it is said")
            told = [r.levelname for r in caplog.records if "min_connections=20" in r.message]
            assert told == ["WARNING", "INFO"]


@by_refusal
async def test_once_a_server_admits_again_all_are_served_soon(refusal: str) -> None:
    """Within the longest wait, a handshake and a second; here the longest wait is short."""
    async with Picky(0, REFUSALS[refusal]) as server:
        pool = WebsocketConnectionPool(uri=server.uri, max_connections=10, close_timeout=1.0)
        router_of(pool).gate.waits = (0.1, 0.5)
        async with pool:
            using = [asyncio.create_task(use_again_and_again(pool, 60.0)) for _ in range(10)]
            await until(lambda: server.refused >= 5, "it refuses")
            server.admitted = 100
            await until(lambda: pool.total_connections == 10, "all are open")
            for task in using:
                task.cancel()
            await asyncio.gather(*using, return_exceptions=True)


async def test_a_server_that_takes_one_command_for_each_connection_is_not_waited_for() -> None:
    """It reads a message, answers nothing, and closes with 1000: that is how it is used."""

    async def take_one(peer: Peer) -> None:
        await peer.recv()
        await peer.close(1000)

    async def command(pool: WebsocketConnectionPool) -> None:
        async with pool.get_connection(timeout=10.0) as connection:
            await connection.send("command")
            async for _ in connection:
                pass

    async with (
        Server(take_one) as server,
        WebsocketConnectionPool(uri=server.uri, max_connections=8) as pool,
    ):
        for _ in range(5):
            await asyncio.gather(*(command(pool) for _ in range(8)))
        assert router_of(pool).gate.streak == 0
    assert server.received == ["command"] * 40


# Whom a refusal concerns.


@asynccontextmanager
async def answering(answer: Callable[[int], int | None]) -> AsyncIterator[tuple[str, list[int]]]:
    """Serve echoes, or the status that is due for the n-th handshake; give URI and numbers."""
    numbers: list[int] = []

    async def serve(request: web.Request) -> web.StreamResponse:
        numbers.append(len(numbers) + 1)
        number = len(numbers)
        await asyncio.sleep(0.02)  # so that several are under way together
        if (status := answer(number)) is not None:
            return web.Response(status=status)
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        async for message in websocket:
            await websocket.send_str(message.data)
        return websocket

    app = web.Application()
    app.router.add_get("/", serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"ws://127.0.0.1:{runner.addresses[0][1]}/", numbers
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("status", [403, 503])
async def test_one_refusal_costs_one_caller_that_may_not_wait(status: int) -> None:
    """Ten on a cold pool, and one handshake is refused: the oldest nine are served."""
    options: dict[str, Any] = {"max_retries": 1, "learn_limit": False}
    async with answering(lambda n: status if n == 4 else None) as (uri, _):
        async with WebsocketConnectionPool(uri=uri, **options) as pool:
            acquiring = [asyncio.create_task(pool.acquire(timeout=0)) for _ in range(10)]
            outcomes = await settle(acquiring)
            *served, last = outcomes
            assert all(isinstance(one, WebsocketConnection) for one in served)
            assert isinstance(last, ConnectionUnavailableError)
            assert last.status == status


async def test_one_refusal_costs_nobody_that_is_patient() -> None:
    async with answering(lambda n: 403 if n == 4 else None) as (uri, _):
        async with WebsocketConnectionPool(uri=uri) as pool:
            acquiring = [asyncio.create_task(pool.acquire(timeout=5.0)) for _ in range(10)]
            assert all(isinstance(one, WebsocketConnection) for one in await settle(acquiring))


async def test_a_hook_that_says_no_once_costs_one_caller(make_pool: MakePool) -> None:
    def no() -> bool:
        return next(numbers) == 4

    numbers = iter(range(1, 100))

    async def on_connect(connection: WebsocketConnection) -> None:
        await connection.ping()
        if no():
            raise PermissionError("not this one")

    pool = make_pool(on_connect=on_connect)
    acquiring = [asyncio.create_task(pool.acquire(timeout=0)) for _ in range(10)]
    outcomes = await settle(acquiring)
    [error] = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    assert outcomes[-1] is error


async def test_a_server_that_admits_five_of_ten_serves_the_oldest_five_or_all() -> None:
    async with answering(lambda n: 403 if n > 5 else None) as (uri, _):
        async with WebsocketConnectionPool(uri=uri) as pool:
            acquiring = [asyncio.create_task(pool.acquire(timeout=0)) for _ in range(10)]
            outcomes = await settle(acquiring)
            kinds = [isinstance(outcome, WebsocketConnection) for outcome in outcomes]
            assert kinds == [True] * 5 + [False] * 5
        async with WebsocketConnectionPool(uri=uri, max_connections=10) as pool:

            async def use() -> None:
                async with pool.get_connection(timeout=10.0) as connection:
                    assert await echoes(connection)

    async with answering(lambda n: 403 if n > 5 else None) as (uri, _):
        async with WebsocketConnectionPool(uri=uri, max_connections=10) as pool:
            await asyncio.gather(*(use() for _ in range(10)))


@pytest.mark.parametrize("refused", range(1, 6))
async def test_the_oldest_have_the_best_chance(refused: int) -> None:
    """Whichever dial of five is refused, it is the youngest that fails."""
    async with answering(lambda n: 403 if n == refused else None) as (uri, _):
        async with WebsocketConnectionPool(uri=uri) as pool:
            acquiring = [asyncio.create_task(pool.acquire(timeout=0)) for _ in range(5)]
            outcomes = await settle(acquiring)
    kinds = [isinstance(outcome, WebsocketConnection) for outcome in outcomes]
    assert kinds == [True] * 4 + [False]


@pytest.mark.parametrize("timeout", [0, 30.0])
async def test_a_server_that_refuses_everybody_sees_one_round(timeout: float) -> None:
    async with answering(lambda _: 403) as (uri, numbers):
        async with WebsocketConnectionPool(uri=uri, max_connections=60) as pool:
            acquiring = [asyncio.create_task(pool.acquire(timeout=timeout)) for _ in range(60)]
            outcomes = await settle(acquiring)
    assert {type(outcome) for outcome in outcomes} == {ConnectionUnavailableError}
    assert len(numbers) == 10


async def test_who_comes_after_a_failed_dial_had_begun_has_a_dial_of_its_own() -> None:
    async with answering(lambda n: 403 if n == 1 else None) as (uri, numbers):
        async with WebsocketConnectionPool(uri=uri) as pool:
            first = asyncio.create_task(pool.acquire(timeout=0))
            await until(lambda: numbers, "its dial is under way")
            second = asyncio.create_task(pool.acquire(timeout=0))
            one, two = await settle([first, second])
    assert isinstance(one, WebsocketConnection)
    assert isinstance(two, ConnectionUnavailableError | WebsocketConnection)


# How long, and why.


def refused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def test_an_acquire_that_may_not_wait_is_told_at_once_while_the_gate_is_closed(
    make_pool: MakePool,
) -> None:
    """Its own retries would take no longer than a first caller's."""
    pool = make_pool(uri=f"ws://127.0.0.1:{refused_port()}/", max_retries=3)
    router_of(pool).gate.waits = (0.01, 0.02, 600.0, 600.0)
    with pytest.raises(ConnectionUnavailableError):
        await pool.acquire(timeout=0)
    with pytest.raises(ConnectionUnavailableError) as caught:
        await asyncio.wait_for(pool.acquire(timeout=0), 5.0)
    assert "the next is due in" in str(caught.value)
    assert caught.value.kind == "network"
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("kind", ["network", "status 429", "timeout"])
async def test_a_timeout_says_why_the_last_attempt_has_failed(
    server: Server, make_pool: MakePool, kind: str
) -> None:
    """Although the series of attempts goes on."""
    options: dict[str, Any] = {"connection_timeout": 0.05} if kind == "timeout" else {}
    if kind == "network":
        options["uri"] = f"ws://127.0.0.1:{refused_port()}/"
    elif kind == "timeout":
        server.delay = None
    else:
        server.refuse(429, times=100)
    pool = make_pool(max_retries=100, **options)
    router_of(pool).gate.waits = (600.0,)
    with pytest.raises(ConnectionPoolTimeoutError) as caught:
        await pool.acquire(timeout=0.3)
    failure = caught.value.__cause__
    assert isinstance(failure, ConnectionUnavailableError)
    assert failure.kind == kind
    assert str(failure) in str(caught.value)
    assert pool.stats.failures[kind] >= 1
    assert pool.snapshot().failure == str(failure)


async def test_the_failure_is_shown_until_a_dial_succeeds(
    server: Server, make_pool: MakePool
) -> None:
    server.refuse(503)
    pool = make_pool()
    router_of(pool).gate.waits = (0.01,)
    assert pool.snapshot().failure is None
    async with pool.get_connection():
        assert "503" in str(pool.snapshot().failure)
        await until(lambda: pool.snapshot().failure is None, "the connection has lived")


async def test_an_exhausted_pool_names_its_oldest_loan(make_pool: MakePool) -> None:
    pool = make_pool(max_connections=2)

    async def hold() -> WebsocketConnection:
        return await pool.acquire()

    first = await asyncio.create_task(hold(), name="the first")
    await asyncio.create_task(hold(), name="the second")
    for error, timeout in ((ConnectionPoolExhaustedError, 0), (ConnectionPoolTimeoutError, 0.01)):
        with pytest.raises(error) as caught:
            await pool.acquire(timeout=timeout)
        assert "'the first'" in str(caught.value)
        assert f"{first.borrowed_at}" in str(caught.value)
        assert "#1 " in str(caught.value)


# Which kind of refusal it was.


@asynccontextmanager
async def speaking(answer: bytes) -> AsyncIterator[str]:
    """Answer whatever comes with these bytes, and close."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(speak, "127.0.0.1", 0) as listening:
        yield f"ws://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"


async def refusal_of(pool: WebsocketConnectionPool) -> ConnectionUnavailableError:
    async with pool:
        with pytest.raises(ConnectionUnavailableError) as caught:
            await pool.acquire(timeout=0)
    return caught.value


SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"


@pytest.mark.parametrize(
    ("answer", "kind", "status", "parts"),
    [
        (
            b"HTTP/1.1 302 Found\r\nLocation: https://login.example/?next=s3cr3t-page\r\n\r\n",
            "status 302",
            302,
            ["redirects (302)", "https://login.example/"],
        ),
        (
            b"HTTP/1.1 301 Moved\r\nLocation: ws://other.example/\r\n\r\n",
            "status 301",
            301,
            ["redirects (301)", "ws://other.example/"],
        ),
        (b"HTTP/1.1 302 Found\r\n\r\n", "status 302", 302, ["redirects (302)"]),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            "status 200",
            200,
            ["answered 200"],
        ),
        (
            SWITCH + b"Connection: Upgrade, Keep-Alive\r\nSec-WebSocket-Accept: x\r\n\r\n",
            "handshake",
            101,
            ["fails a check", "Connection"],
        ),
        (
            SWITCH + b"Connection: Upgrade\r\nSec-WebSocket-Accept: wrong\r\n\r\n",
            "handshake",
            101,
            ["fails a check", "Sec-WebSocket-Accept"],
        ),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n",
            "handshake",
            101,
            ["fails a check", "Upgrade"],
        ),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "handshake", 400, ["could not be read as HTTP"]),
        (
            b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 20_000 + b"\r\n\r\n",
            "handshake",
            400,
            ["could not be read as HTTP", "LineTooLong"],
        ),
        (
            b"HTTP/1.1 200 OK\r\nSet-Cookie: session=s3cr3t-page\r\n",
            "network",
            None,
            ["before its answer was complete"],
        ),
        (b"", "network", None, ["before its answer was complete"]),
    ],
)
async def test_a_refusal_says_what_it_was(
    answer: bytes, kind: str, status: int | None, parts: list[str]
) -> None:
    async with speaking(answer) as uri:
        error = await refusal_of(WebsocketConnectionPool(uri=uri, max_retries=1))
    assert (error.kind, error.status) == (kind, status)
    for part in parts:
        assert part in str(error)
    assert "s3cr3t-page" not in f"{error} {error.__cause__} {error.headers}"


async def test_no_redirect_is_followed() -> None:
    """Not to the same server either: its headers go where they were meant to go."""
    paths: list[str] = []

    async def redirect(request: web.Request) -> web.StreamResponse:
        paths.append(request.path)
        raise web.HTTPTemporaryRedirect("/elsewhere")

    app = web.Application()
    app.router.add_get("/{tail:.*}", redirect)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    uri = f"ws://127.0.0.1:{runner.addresses[0][1]}/here"
    error = await refusal_of(WebsocketConnectionPool(uri=uri))
    await runner.cleanup()
    assert paths == ["/here"]
    assert error.status == 307


async def test_a_proxy_that_refuses_is_named() -> None:
    async with speaking(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n") as uri:
        proxy = uri.replace("ws:", "http:")
        pool = WebsocketConnectionPool(uri="wss://server.example/", proxy=proxy, max_retries=1)
        error = await refusal_of(pool)
    assert (error.kind, error.status) == ("proxy", 407)
    assert "the proxy answered 407" in str(error)


async def test_a_proxy_that_is_not_there_is_named() -> None:
    proxy = f"http://127.0.0.1:{refused_port()}"
    pool = WebsocketConnectionPool(uri="ws://server.example/", proxy=proxy, max_retries=1)
    assert (await refusal_of(pool)).kind == "proxy"


@pytest.mark.parametrize("name", ["uri", "headers", "on_connect"])
@pytest.mark.parametrize(
    "raised", [PermissionError(errno.EACCES, "not yours"), KeyError("token"), ValueError("no")]
)
async def test_what_a_callable_raises_is_an_error_that_names_it(
    server: Server, name: str, raised: Exception
) -> None:
    async def fail(*_: object) -> Any:
        raise raised

    options: dict[str, Any] = {"uri": server.uri, "max_retries": 1, name: fail}
    error = await refusal_of(WebsocketConnectionPool(**options))
    assert error.kind == "error"
    assert f"`{name}` raised {type(raised).__name__}" in str(error)


async def test_the_headers_of_the_answer_are_on_the_error(
    server: Server, make_pool: MakePool
) -> None:
    """Without cookies, and without what was a secret of the request."""
    server.refuse(
        403,
        headers={"X-Reason": "key s3cr3t-key is spent", "X-Limit": "5", "Set-Cookie": "id=12345"},
    )
    pool = make_pool(headers={"Authorization": "s3cr3t-key"})
    with pytest.raises(ConnectionUnavailableError) as caught:
        await pool.acquire()
    headers = caught.value.headers
    assert headers["x-limit"] == "5"
    assert headers["X-Reason"] == "key … is spent"
    assert "Set-Cookie" not in headers


@pytest.mark.parametrize("value", RETRY_AFTERS)
async def test_an_odd_retry_after_changes_the_text_at_most(
    server: Server, make_pool: MakePool, value: str
) -> None:
    """The failure is counted, waited after and told like any other."""
    server.refuse(503, headers={"Retry-After": value}, times=3)
    pool = make_pool(max_retries=3)
    router_of(pool).gate.waits = (0.01,)
    with pytest.raises(ConnectionUnavailableError) as caught:
        await asyncio.wait_for(pool.acquire(timeout=0), 10.0)
    assert (caught.value.kind, caught.value.status) == ("status 503", 503)
    assert pool.stats.failures["status 503"] == caught.value.attempts
