"""`python -m wspool probe`: what it finds out is true, and the call that it prints works.

Against servers of different make: aiohttp's, `websockets`, uvicorn, with and without TLS, and one
behind nginx, which cuts an idle WebSocket. Where there is no nginx that part is skipped, and fails
if WSPOOL_REQUIRE_ALL=1. What it recommends is a table of its own, without a network.
"""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import shutil
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import WSMsgType, web
from websockets.asyncio.server import Request, ServerConnection, serve

from tests.conftest import echoes, skip, until
from tests.support import commands
from tests.support.strangers import of_another_protocol, uvicorn_with
from wspool import ConnectionClosedError, ConnectionUnavailableError, WebsocketConnectionPool
from wspool._cli import commands as command_line
from wspool._cli import probe, tapping
from wspool._cli.advice import advise, report
from wspool._cli.answers import Answer, Mark, definition_of_last, drains, last_mark
from wspool._cli.observations import (
    Capacity,
    Close,
    Dial,
    Message,
    Observation,
    Target,
    Watch,
)
from wspool.testing import Peer, Server, echo

CANARY = "canary-7531"
SECRETS = ("-H", f"Authorization: Bearer {CANARY}")
QUICK = ("--listen", "0.1", "--dials", "2")
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
NGINX_LIMIT = 5.0

needs_unix = pytest.mark.skipif(
    sys.platform == "win32", reason="there is neither a SIGINT to send to a process nor a pty"
)

RunHere = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture
def run_here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> RunHere:
    """Run a probe that makes shorter pauses."""
    monkeypatch.setattr(probe, "PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(tapping, "PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(tapping, "FIRST_PAUSE_SECONDS", 0.5)
    return partial(commands.run_here, capsys, "probe")


def code_of(out: str) -> str:
    """Return the code that a probe has printed, which goes on to the end."""
    match = re.search(r"^(?:import |from wspool import)", out, re.MULTILINE)
    assert match is not None, out
    return out[match.start() :]


@asynccontextmanager
async def made_by(code: str) -> AsyncIterator[WebsocketConnectionPool]:
    """Execute the code as it stands and give the pool that it makes."""
    names: dict[str, Any] = {}
    exec(compile(code, "<printed>", "exec"), names)
    async with names["pool"] as pool:
        yield pool


async def borrow(code: str) -> None:
    """Execute the code as it stands; a borrow from its pool succeeds, twice."""
    async with made_by(code) as pool:
        for _ in range(2):
            async with pool.get_connection() as connection:
                assert await echoes(connection)


def options_of(pool: WebsocketConnectionPool) -> Any:
    return pool._router.options


# Servers.


@asynccontextmanager
async def by_aiohttp() -> AsyncIterator[str]:
    async with Server() as server:
        yield server.uri


@asynccontextmanager
async def by_websockets(
    context: ssl.SSLContext | None = None, **options: Any
) -> AsyncIterator[str]:
    async def answer(peer: ServerConnection) -> None:
        async for message in peer:
            await peer.send(message)

    async with serve(answer, "127.0.0.1", 0, ssl=context, **options) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        yield f"{'wss' if context else 'ws'}://127.0.0.1:{port}/"


@asynccontextmanager
async def by_uvicorn() -> AsyncIterator[str]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        while (event := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": event["text"]})

    async with uvicorn_with(app) as uri:
        yield uri


@asynccontextmanager
async def by_nginx(upstream: str, directory: Path) -> AsyncIterator[str]:
    """Serve what is upstream; an idle WebSocket is cut after NGINX_LIMIT seconds."""
    assert NGINX is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{kind}_temp_path {directory}/{kind};" for kind in kinds)
    (directory / "nginx.conf").write_text(
        f"""
        daemon off; master_process off; pid {directory}/pid;
        events {{}}
        http {{
            access_log off; {paths}
            server {{
                listen 127.0.0.1:{port};
                location / {{
                    proxy_pass {upstream.replace("ws:", "http:")};
                    proxy_http_version 1.1;
                    proxy_set_header Upgrade $http_upgrade;
                    proxy_set_header Connection "upgrade";
                    proxy_read_timeout {NGINX_LIMIT:g}s;
                }}
            }}
        }}
        """
    )
    process = await asyncio.create_subprocess_exec(
        NGINX, "-e", "stderr", "-p", str(directory), "-c", str(directory / "nginx.conf")
    )
    try:
        await until(lambda: _accepts(port) or process.returncode is not None, "nginx listens")
        assert process.returncode is None
        yield f"ws://127.0.0.1:{port}/"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@asynccontextmanager
async def slow_line(server: Server) -> AsyncIterator[str]:
    """Forward to the server; what comes from there comes with 2 MB a second."""

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, here = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.gather(copy(reader, here, 0.0), copy(there, writer, 1 / 2_000_000))

    async def copy(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds_per_byte: float
    ) -> None:
        while data := await reader.read(20_000):
            await asyncio.sleep(len(data) * seconds_per_byte)
            writer.write(data)
            await writer.drain()
        writer.close()

    listener = await asyncio.start_server(forward, "127.0.0.1", 0)
    async with listener:
        yield f"ws://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"


def _accepts(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def certified(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


# The call that it prints.


@pytest.mark.parametrize("made", [by_aiohttp, by_websockets, by_uvicorn])
async def test_the_call_for_a_server_works_as_it_is_printed(
    run_here: RunHere, made: Callable[[], Any]
) -> None:
    async with made() as uri:
        status, out, err = await run_here(*QUICK, "--send", "hello", uri)
        assert (status, err) == (0, "")
        code = code_of(out)
        assert f'uri="{uri}",' in code
        assert "check_after_idle=5.0,  # pings are answered in" in code
        assert "connection_timeout" not in code
        assert "# no compress: the server takes it, but too few answers came" in code
        assert "# no drain option: each answer was one message" in code
        assert re.search(r"reuse saves -?\d+%", code)
        assert all("  # " in line for line in code.splitlines() if line.startswith("    "))
        await borrow(code)


async def test_the_call_for_a_server_with_tls_works_as_it_is_printed(
    authority: trustme.CA,
    certified: ssl.SSLContext,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In processes of their own, where the authority is one of the system's."""
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    async with by_websockets(certified) as uri:
        status, out, err = await commands.run("probe", *QUICK, uri)
        assert (status, err) == (0, "")
        assert re.search(r"^  TLS +\d", out, re.MULTILINE)
        assert "ssl=" not in out
        borrowing = (
            "import asyncio\n"
            "async def main():\n"
            "    async with pool, pool.get_connection() as connection:\n"
            "        await connection.send('hello')\n"
            "        print(await connection.recv())\n"
            "asyncio.run(main())\n"
        )
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-c", f"{code_of(out)}\n{borrowing}"),
            cwd=commands.ROOT,
            stdout=asyncio.subprocess.PIPE,
        )
        printed, _ = await process.communicate()
        assert (process.returncode, printed) == (0, b"hello\n")


async def test_an_insecure_call_is_insecure_as_well(
    run_here: RunHere, certified: ssl.SSLContext
) -> None:
    async with by_websockets(certified) as uri:
        status, out, _ = await run_here(*QUICK, "--insecure", uri)
        assert status == 0
        assert "ssl=False,  # as given: --insecure" in out
        await borrow(code_of(out))


@pytest.mark.parametrize("more", [(), ("--json",)], ids=["text", "json"])
async def test_secrets_are_sent_and_not_printed_and_the_call_reads_them_elsewhere(
    server: Server, run_here: RunHere, monkeypatch: pytest.MonkeyPatch, more: tuple[str]
) -> None:
    uri = server.uri.replace("//", f"//alice:{CANARY}@") + f"path?token={CANARY}"
    header = ("-H", f"X-Api-Key: {CANARY}")
    status, out, err = await run_here(*more, *QUICK, *header, uri)
    assert (status, err) == (0, "")
    assert CANARY not in out
    assert "alice" not in out
    monkeypatch.setenv("WSPOOL_URI", uri)
    monkeypatch.setenv("WSPOOL_HEADER_X_API_KEY", CANARY)
    await borrow(json.loads(out)["code"] if more else code_of(out))
    assert len(server.requests) == 3
    for request in server.requests:
        assert request.query["token"] == request.headers["X-Api-Key"] == CANARY
        assert request.headers["Authorization"].startswith("Basic ")


async def test_a_greeting_is_read_by_the_call(server: Server, run_here: RunHere) -> None:
    async def greet(peer: Peer) -> None:
        await peer.send("grüße")
        await echo(peer)

    server.handler = greet
    status, out, _ = await run_here(*QUICK, "--send", "hello", server.uri)
    assert status == 0
    assert re.search(r"^greeting +text, 7 bytes, after", out, re.MULTILINE)
    assert re.search(r"^messages unasked +none", out, re.MULTILINE)
    assert [peer.received for peer in server.peers] == [[], ["hello"] * 3]
    await borrow(code_of(out))


async def test_a_server_that_pushes_is_no_server_that_greets(
    server: Server, run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the pool disposes of what it pushes."""

    async def push(peer: Peer) -> None:
        async def often() -> None:
            while True:
                await asyncio.sleep(0.3)
                await peer.send("news")

        pushing = asyncio.create_task(often())
        await echo(peer)
        pushing.cancel()

    server.handler = push
    monkeypatch.setattr(probe, "EARLY_SECONDS", 0.1)
    status, out, _ = await run_here("--listen", "0.9", "--dials", "2", server.uri)
    assert status == 0
    assert re.search(r"^greeting +none", out, re.MULTILINE)
    assert re.search(r"^messages unasked +\d+ in ", out, re.MULTILINE)
    code = code_of(out)
    assert "on_drained=on_drained,  # " in code
    await borrow(code)


async def test_a_subprotocol_that_the_server_takes_is_in_the_call(run_here: RunHere) -> None:
    """One that it does not take is not shown: it may be a token."""
    async with Server(protocols=("two",)) as server:
        offered = ("--subprotocol", "bearer.sesame", "--subprotocol", "two")
        status, out, _ = await run_here(*QUICK, *offered, server.uri)
        assert status == 0
        assert "sesame" not in out
        assert re.search(r"^subprotocol +offered 2; took two$", out, re.MULTILINE)
        async with made_by(code_of(out)) as pool, pool.get_connection() as connection:
            assert connection.subprotocol == "two"


async def test_a_subprotocol_that_looks_like_a_key_is_not_shown(run_here: RunHere) -> None:
    key = "openai-insecure-api-key.sk-proj1a2b3c4d5e"
    async with Server(protocols=(key,)) as server:
        for form in ((), ("--json",)):
            status, out, err = await run_here(*QUICK, *form, "--subprotocol", key, server.uri)
            assert (status, err) == (0, "")
            assert "1a2b3c" not in out
            assert "WSPOOL_SUBPROTOCOL" in out


async def test_a_redirect_is_not_followed(server: Server, run_here: RunHere) -> None:
    """The headers would go along to wherever it points."""
    async with Server() as other:
        server.refuse(302, headers={"Location": other.uri})
        status, _, err = await run_here(*QUICK, "-H", "X-Key: sesame", server.uri)
        assert status == 2
        assert "the server answered 302 Found instead of a WebSocket handshake" in err
        assert not other.requests


async def test_endless_pings_cost_no_time(
    run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked of such a server is asked for as long as of others, and no longer."""
    pings = b"\x89\x04ping" * 10_000

    async def flood(peer: Peer) -> None:
        transport = peer.request.transport
        assert transport is not None
        while not transport.is_closing():
            transport.write(pings)
            await asyncio.sleep(0.001)

    monkeypatch.setattr(tapping, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(tapping, "REPLY_SECONDS", 0.5)
    async with Server(flood) as server, asyncio.timeout(10.0):
        status, out, _ = await run_here("--listen", "0.3", "--dials", "2", server.uri)
        assert status == 0
        assert re.search(r"^server.s pings", out, re.MULTILINE)


async def test_a_server_that_answers_no_pings_is_not_asked_to(
    run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pongs that come unasked are no answers."""

    async def send_other_pongs(peer: Peer) -> None:
        async for message in peer.websocket:
            if message.type is WSMsgType.PING:
                await peer.websocket.pong(b"unasked")
            else:
                await peer.send(message.data)

    monkeypatch.setattr(tapping, "ANSWER_SECONDS", 0.1)
    async with Server(send_other_pongs, autoping=False, compress=False) as server:
        status, out, _ = await run_here("--listen", "0.2", "--dials", "3", server.uri)
        assert status == 0
        assert re.search(r"^ping +not answered$", out, re.MULTILINE)
        assert re.search(r"^compression +offered; not taken$", out, re.MULTILINE)
        code = code_of(out)
        assert "# no check_after_idle, heartbeat or drain_fence: the server does not" in code
        assert "compress=" not in code
        await borrow(code)


async def test_a_server_that_closes_after_each_reply_is_used_once(run_here: RunHere) -> None:
    async def answer_once(peer: Peer) -> None:
        message = await peer.websocket.receive()
        if message.type is WSMsgType.TEXT:
            await peer.send(message.data)
            await peer.close(1000)

    async with Server(answer_once) as server:
        status, out, _ = await run_here(*QUICK, "--send", "hello", server.uri)
        assert status == 0
        assert "max_uses=1,  # the server closed each connection after a reply, code 1000" in out
        assert "does not answer pings" not in out
        await borrow(code_of(out))


async def test_a_server_that_closes_after_two_replies_is_used_twice(run_here: RunHere) -> None:
    async def answer_twice(peer: Peer) -> None:
        for _ in range(2):
            await peer.send(await peer.recv())
        await peer.close(1000)

    async with Server(answer_twice) as server:
        status, out, _ = await run_here(*QUICK, "--send", "hello", server.uri)
        assert status == 0
        assert "max_uses=2,  # the server closed each connection after 2 replies" in out
        await borrow(code_of(out))


# How an answer ends.


def answering(
    *messages: str, last: str | None = None, pause: float = 0.0
) -> Callable[[Peer], Awaitable[None]]:
    """Return a handler that answers "question" with these messages, and echoes all else."""

    async def handle(peer: Peer) -> None:
        async for message in peer:
            if message != "question":
                await peer.send(message)
                continue
            for part in messages:
                await peer.send(part)
            await asyncio.sleep(pause)
            if last is not None:
                await peer.send(last)

    return handle


async def leave_early(code: str, rest: int) -> None:
    """Leave an answer after its first message: the rest costs no connection, and nobody gets it."""
    async with made_by(code) as pool:
        for n in range(1, 4):
            async with pool.get_connection() as connection:
                await connection.send("question")
                await connection.recv()
            await until(lambda: not pool.pending_connections, "the rest is drained")
            assert pool.stats.drained_messages == n * rest
        assert pool.stats.dials == 1


PARTS = ('{"type": "part"}',) * 5


async def test_an_answer_of_six_messages_is_counted_and_its_last_one_ends_the_drain(
    run_here: RunHere,
) -> None:
    """N5: and there is neither a compression without a gain, nor a timeout below the default."""
    async with Server(answering(*PARTS, last='{"type": "completed", "cost": 3}')) as server:
        status, out, _ = await run_here("--listen", "0.1", "--send", "question", server.uri)
        assert status == 0
        assert re.search(r"^answer +6 messages, the last within ", out, re.MULTILINE)
        assert re.search(r'^its last message +{"type": "completed", "cost": 3}$', out, re.MULTILINE)
        code = code_of(out)
        assert 'return json.loads(message).get("type") == "completed"' in code
        assert "drain_until=is_last,  # each of 12 answers ended with it, and" in code
        assert "compress=" not in code
        assert "connection_timeout=" not in code
        assert "drain_fence=" not in code
        await leave_early(code, rest=5)


async def test_a_fence_that_holds_is_proposed_where_no_message_is_marked_as_the_last(
    run_here: RunHere,
) -> None:
    """aiohttp answers a ping when the handler comes back to read."""
    async with Server(answering(*PARTS, pause=0.02, last=PARTS[0])) as server:
        status, out, _ = await run_here(*QUICK, "--send", "question", server.uri)
        assert status == 0
        assert re.search(r"^fence +the pong came behind the answer in 1 of 1$", out, re.MULTILINE)
        code = code_of(out)
        assert "drain_fence=True,  # in 1 of 1 answers the pong came behind the last" in code
        await leave_early(code, rest=5)


async def test_a_fence_that_does_not_hold_is_not_proposed(run_here: RunHere) -> None:
    """`websockets` answers a ping while the handler is still at work."""

    async def answer_late(peer: ServerConnection) -> None:
        async for message in peer:
            if message != "question":
                await peer.send(message)
                continue
            for part in PARTS:
                await peer.send(part)
                await asyncio.sleep(0.02)

    async with serve(answer_late, "127.0.0.1", 0) as server:
        uri = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/"
        status, out, _ = await run_here(*QUICK, "--send", "question", uri)
        assert status == 0
        code = code_of(out)
        assert "# no drain_fence: in 1 of 1 answers the pong came before the end" in code
        assert "drain_fence=" not in code
        assert "check_server_data_on_release=True,  # only silence says" in code
        await leave_early(code, rest=4)


async def test_a_message_after_a_pause_belongs_to_the_answer(run_here: RunHere) -> None:
    """From the first answer on, whose pauses nobody knows yet."""
    async with Server(answering("part", pause=0.2, last="end")) as server:
        status, out, _ = await run_here(*QUICK, "--send", "question", server.uri)
        assert status == 0
        assert re.search(r"^answer +2 messages", out, re.MULTILINE)
        assert 'return message == "end"' in code_of(out)


async def test_an_answer_without_an_end_is_said_to_have_none(
    run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def go_on(peer: Peer) -> None:
        await peer.recv()
        while True:
            await peer.send("more")
            await asyncio.sleep(0.01)

    monkeypatch.setattr(tapping, "REPLY_SECONDS", 0.5)
    async with Server(go_on) as server:
        status, out, _ = await run_here(*QUICK, "--send", "hello", server.uri)
        assert status == 0
        assert "; more was coming" in out
        assert "# no drain option: an answer was still coming when the probe" in code_of(out)


@pytest.mark.parametrize("form", [(), ("--json",)], ids=["text", "json"])
async def test_the_last_message_is_shown_without_secrets(
    run_here: RunHere, form: tuple[str, ...]
) -> None:
    last = json.dumps({"type": "end", "token": CANARY, "text": "\x1b[31m" + "x" * 1000})
    async with Server(answering("part", last=last)) as server:
        status, out, _ = await run_here(*form, *QUICK, *SECRETS, "--send", "question", server.uri)
        assert status == 0
        assert CANARY not in out
        assert "\x1b" not in out
        assert "x" * 100 not in out


async def test_heartbeats_that_are_messages_are_not_pushes(
    server: Server, run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the pool keeps them from borrowers."""
    beats: list[Peer] = []

    async def beat(peer: Peer) -> None:
        async def often() -> None:
            while True:
                await asyncio.sleep(0.1)
                await peer.send('{"type": "ping", "at": 1}')
                beats.append(peer)

        beating = asyncio.create_task(often())
        await echo(peer)
        beating.cancel()

    server.handler = beat
    monkeypatch.setattr(probe, "EARLY_SECONDS", 0.05)
    status, out, _ = await run_here("--listen", "0.9", "--dials", "2", server.uri)
    assert status == 0
    assert re.search(r"^heartbeats +\d, as messages$", out, re.MULTILINE)
    assert re.search(r"^messages unasked +none", out, re.MULTILINE)
    code = code_of(out)
    assert re.search(r"control=control,  # \d heartbeats came as messages in ", code)
    assert "on_drained" not in code
    async with made_by(code) as pool, pool.get_connection() as connection:
        before = len(beats)
        await until(lambda: len(beats) > before + 1, "heartbeats have come")
        assert await echoes(connection)


async def test_a_greeting_that_must_be_answered_is_answered_by_the_call(
    run_here: RunHere,
) -> None:
    """The server closes a connection on which nobody has logged in, whatever it does later."""

    async def demand(peer: Peer) -> None:
        await peer.send("who is there?")
        try:
            async with asyncio.timeout(1.5):
                await peer.send(f"welcome, {await peer.recv()}")
        except TimeoutError:
            await peer.close(4001, "log in")
            return
        await echo(peer)

    async with Server(demand) as server:
        more = ("--idle", "3", "--send", "alice")
        status, out, _ = await run_here(*QUICK, *more, server.uri)
        assert status == 0
        assert "one message prevents that" in out
        code = code_of(out)
        assert "on_connect=on_connect,  # without a message a connection was closed" in code
        assert "keepalive" not in code
        assert "idle_timeout" not in code
        await borrow(code)
        assert server.peers[-1].received[0] == "alice"


async def test_compression_is_proposed_where_it_has_saved_time(
    run_here: RunHere,
) -> None:
    """Behind a slow line, on which 200 kB of text take long; not where there is no such line."""
    text = "and so on " * 20_000
    async with Server(answering("part", last=text)) as server, slow_line(server) as slow:
        for uri, is_proposed in ((server.uri, False), (slow, True)):
            status, out, _ = await run_here("--listen", "0.1", "--send", "question", uri)
            assert status == 0
            assert ("compress=15,  # answers took " in code_of(out)) == is_proposed, out


# How it goes about.


async def test_it_makes_the_dials_that_it_says_and_says_goodbye_to_each(
    server: Server, run_here: RunHere
) -> None:
    codes: list[int | None] = []

    async def note(peer: Peer) -> None:
        await echo(peer)
        codes.append(peer.websocket.close_code)

    server.handler = note
    more = ("--connections", "3", "--idle", "0.2")
    status, out, _ = await run_here("--listen", "0.1", *more, server.uri)
    assert status == 0
    assert "5 dials one after the other, up to 4 that stay for 0.2 s, up to 3 at once" in out
    await until(lambda: not server.open, "all are gone")
    assert codes == [1000] * (5 + 2 + 3)
    assert server.most_open == 3


async def test_json_has_the_observations_the_arguments_and_the_code(
    server: Server, run_here: RunHere
) -> None:
    status, out, err = await run_here("--json", *QUICK, server.uri)
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert len(found["observation"]["dials"]) == 2
    assert found["observation"]["listening"]["close"] is None
    assert found["arguments"]["uri"] == {"value": f'"{server.uri}"', "why": "as given"}
    await borrow(found["code"])


async def test_the_parts_of_a_handshake_are_its_whole(certified: ssl.SSLContext) -> None:
    async with by_websockets(certified) as uri:
        target = Target(uri.replace("127.0.0.1", "localhost"), is_insecure=True)
        seen = await probe.observe(target, probe.Plan(dials=2, listen=0.1))
    for dial in seen.dials:
        assert dial.dns is not None
        assert dial.tls is not None
        parts = (dial.dns, dial.tcp, dial.tls, dial.upgrade)
        assert min(parts) > 0
        assert sum(parts) <= dial.total


@needs_unix
async def test_ctrl_c_ends_it_without_a_traceback(server: Server) -> None:
    async with (
        commands.start("probe", "--listen", "3600", server.uri) as process,
        asyncio.timeout(60),
    ):
        await until(lambda: server.open, "it listens", within=30)
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
        assert (process.returncode, err) == (130, b"")


@needs_unix
async def test_a_terminal_shows_what_it_is_about(server: Server) -> None:
    async with (
        commands.terminal(24, 100) as (tty, written),
        commands.start("probe", *QUICK, server.uri, stderr=tty) as process,
        asyncio.timeout(60),
    ):
        out, _ = await process.communicate()
        assert process.returncode == 0
        assert "listening" in written()
        assert "dials" in written()
        await until(lambda: "\x1b[?25h" in written(), "the cursor is back")
        assert "\x1b" not in out.decode()


# The questions that are asked on request.


def idle_for(seconds: float, *, but_for: WSMsgType | None = None) -> Callable[[Peer], Any]:
    """Return a handler that closes, with 4002, what sends no such frame for so long."""

    async def close_when_idle(peer: Peer) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(seconds) as limit:
                async for message in peer.websocket:
                    if message.type is WSMsgType.PING:
                        await peer.websocket.pong(message.data)
                    else:
                        await peer.send(message.data)
                    if message.type is but_for:
                        limit.reschedule(loop.time() + seconds)
        except TimeoutError:
            await peer.close(4002)

    return close_when_idle


async def test_idle_limits_are_found_and_what_prevents_them(tmp_path: Path) -> None:
    """All at once, since it takes as long as it takes; each call works as it is printed."""
    kinds: dict[str, WSMsgType | None] = {
        "neither": None,
        "pings": WSMsgType.PING,
        "messages": WSMsgType.TEXT,
    }
    async with AsyncExitStack() as stack:
        uris: dict[str, str] = {}
        for name, kind in kinds.items():
            server = Server(idle_for(2.0, but_for=kind), autoping=False)
            uris[name] = (await stack.enter_async_context(server)).uri
        for made in (by_uvicorn, by_websockets):
            uris[made.__name__] = await stack.enter_async_context(made())
        uris["pinging"] = await stack.enter_async_context(by_websockets(ping_interval=0.5))
        if NGINX is not None:
            upstream = uris["by_websockets"]
            uris["nginx"] = await stack.enter_async_context(by_nginx(upstream, tmp_path))
        targets = {name: Target(uri, text="hello") for name, uri in uris.items()}
        found = await asyncio.gather(
            *(
                probe.observe(target, probe.Plan(2, 0.1, 8.0 if name == "nginx" else 2.5))
                for name, target in targets.items()
            )
        )
        seen = dict(zip(targets, found, strict=True))
        advice = {name: advise(seen[name], target) for name, target in targets.items()}
        for name in targets:
            await borrow(advice[name].code())
    arguments = {
        name: {a.name: a.value for a in advised.arguments} for name, advised in advice.items()
    }
    for name in kinds:
        close = seen[name].idle_close
        assert close is not None
        assert close.code == 4002
        assert abs(close.after - 2.0) < 1.0
        assert seen[name].prevents(seen[name].pinging) == (name == "pings")
        assert seen[name].prevents(seen[name].sending) == (name == "messages")
    options = ("idle_timeout", "keepalive", "keepalive_interval")
    for name, expected in zip(kinds, (options[:1], options[2:], options[1:]), strict=True):
        assert tuple(o for o in options if o in arguments[name]) == expected
    for name in ("by_uvicorn", "by_websockets", "pinging"):
        assert seen[name].idle_close is None
        assert not {"idle_timeout", "keepalive_interval"} & arguments[name].keys()
    assert seen["by_uvicorn"].longest.ping_interval is None
    interval = seen["pinging"].longest.ping_interval
    assert interval is not None
    assert interval > 0.25
    if "nginx" not in seen:
        skip("nginx is missing; all is well with the other servers")
    cut = seen["nginx"].idle_close
    assert cut is not None
    assert (cut.code, abs(cut.after - NGINX_LIMIT) < 1.0) == (1006, True)
    assert "keepalive_interval" in arguments["nginx"]


@pytest.mark.parametrize("status", [HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE])
async def test_a_server_that_refuses_the_fourth_has_room_for_three(
    run_here: RunHere, status: HTTPStatus
) -> None:
    admitted: list[ServerConnection] = []

    def refuse(peer: ServerConnection, request: Request) -> Any:
        open_ones = [one for one in admitted if one.state.name == "OPEN"]
        if len(open_ones) >= 3:
            return peer.respond(status, "full\n")
        admitted.append(peer)
        return None

    async with by_websockets(process_request=refuse) as uri:
        ended, out, _ = await run_here(*QUICK, "--connections", "10", uri)
        assert ended == 0
        why = f"the server answered {status.value} {status.phrase}"
        assert re.search(rf"^connections +3 of 10 at once; then {why}", out, re.MULTILINE)
        assert f"max_connections=3,  # more were refused: {why}" in out
        assert f"# no is_full: the pool knows what {status.value} means while 3 were open" in out
        await borrow(code_of(out))


def is_full_of(out: str) -> Callable[[object], bool]:
    """Return the callable that a probe has printed for is_full."""
    [found] = re.findall(r"^    is_full=(lambda error: .* == \d+),  # so the server ", out, re.M)
    made: Callable[[object], bool] = eval(found)
    return made


async def test_a_status_that_no_pool_knows_is_what_is_full_looks_for(
    server: Server, run_here: RunHere
) -> None:
    refuse = server.refuse

    async def echo_and_look(peer: Peer) -> None:
        if len(server.open) == 2:
            refuse(403)
        await echo(peer)

    server.handler = echo_and_look
    status, out, _ = await run_here(*QUICK, "--connections", "10", server.uri)
    assert status == 0
    assert "so the server refuses while 2 were open" in out
    is_full = is_full_of(out)
    assert is_full(ConnectionUnavailableError(status=403))
    assert not is_full(ConnectionUnavailableError(status=401))
    assert not is_full(ConnectionClosedError(code=403))
    await borrow(code_of(out))


@pytest.mark.parametrize("code", [4008, 1008])
async def test_a_close_code_that_no_pool_knows_is_what_is_full_looks_for(
    server: Server, run_here: RunHere, code: int
) -> None:
    async def close_the_second(peer: Peer) -> None:
        if len(server.open) > 1:
            await peer.close(code, "full")
        await echo(peer)

    server.handler = close_the_second
    status, out, _ = await run_here(*QUICK, "--connections", "10", server.uri)
    assert status == 0
    assert "so the server refuses while 1 was open" in out
    is_full = is_full_of(out)
    assert is_full(ConnectionClosedError(code=code))
    assert not is_full(ConnectionClosedError(code=4001))
    assert not is_full(ConnectionUnavailableError(status=code))


async def test_what_says_nothing_of_a_limit_is_not_looked_for(
    server: Server, run_here: RunHere
) -> None:
    """A socket that is cut; and the oldest connection, closed for the newest."""

    async def cut_the_second(peer: Peer) -> None:
        if len(server.open) > 1:
            return peer.drop()
        return await echo(peer)

    async def close_the_oldest(peer: Peer) -> None:
        if len(server.open) > 2:
            await server.open[0].close(4008, "too many")
        await echo(peer)

    for handler in (cut_the_second, close_the_oldest):
        server.handler = handler
        status, out, _ = await run_here(*QUICK, "--connections", "10", server.uri)
        assert status == 0
        assert "# no is_full: nothing tells this refusal, while" in out


@pytest.mark.parametrize("asked", [4, 10])
async def test_a_server_that_closes_the_fourth_has_room_for_three(
    server: Server, run_here: RunHere, asked: int
) -> None:
    """Even if it takes its time to close it, and others come meanwhile."""

    async def close_the_fourth(peer: Peer) -> None:
        if len(server.open) > 3:
            await asyncio.sleep(0.1)
            await peer.close(1013, "full\nimport os\x1b[31m")
        await echo(peer)

    server.handler = close_the_fourth
    status, out, _ = await run_here(*QUICK, "--connections", str(asked), server.uri)
    assert status == 0
    assert len(server.requests) < 2 + 10
    assert "max_connections=3,  # more were refused: one was closed after" in out
    assert "# no is_full: the pool knows what 1013 means while 3 were open" in out
    assert "code 1013 'full import os" in out  # still in the comment
    assert "\x1b" not in out
    await borrow(code_of(out))


# Errors.


async def trouble(run_here: RunHere, *arguments: str) -> str:
    """Return what is said, which is one line, without secrets and with status 2."""
    status, out, err = await run_here(*QUICK, *SECRETS, *arguments)
    assert status == 2
    assert "pool" not in out
    assert err.count("\n") == 1
    assert CANARY not in out + err
    assert err.startswith("wspool probe: ws")
    return err.partition(": ")[2].partition(": ")[2].rstrip("\n")


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        (401, "the server answered 401 Unauthorized; -H 'Name: value' sends what it asks for"),
        (
            403,
            "the server answered 403 Forbidden; -H 'Name: value' sends what it asks for, "
            "unless the path is wrong",
        ),
        (404, "the server answered 404 Not Found"),
        (200, "the server answered 200 OK instead of a WebSocket handshake"),
        (429, "the server answered 429 Too Many Requests; Retry-After: 7"),
        (599, "the server answered 599"),
    ],
)
async def test_a_status_is_named_in_our_words(
    server: Server, run_here: RunHere, status: int, shown: str
) -> None:
    headers = {"Retry-After": "7"} if status == 429 else {}
    server.refusals = [web.Response(status=status, reason=f"echo {CANARY}", headers=headers)]
    assert await trouble(run_here, f"{server.uri}?token={CANARY}") == shown
    assert len(server.requests) == 1


async def test_a_refusal_later_on_says_at_which_dial(server: Server, run_here: RunHere) -> None:
    async def refuse_the_next(peer: Peer) -> None:
        server.refusals = [web.Response(status=429)]
        await echo(peer)

    server.handler = refuse_the_next
    assert (await trouble(run_here, server.uri)).endswith("(at dial 2)")


async def test_a_closed_port_is_one_line(run_here: RunHere) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = f"ws://127.0.0.1:{closed.getsockname()[1]}/?token={CANARY}"
        assert "Cannot connect to host" in await trouble(run_here, uri)


async def test_a_host_without_an_address_is_one_line(
    run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    found = await trouble(run_here, f"wss://nowhere.invalid/?token={CANARY}")
    assert found == "there is no address for this host name"


async def test_tls_that_does_not_come_about_is_one_line(
    server: Server, run_here: RunHere, certified: ssl.SSLContext
) -> None:
    # The server's side of a broken handshake is reported to the loop, in debug mode.
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: complaints.append(context["message"])
    )
    found = await trouble(run_here, server.uri.replace("ws:", "wss:"))
    assert found.startswith("the TLS handshake failed; is it ws://?")
    async with by_websockets(certified) as uri:
        assert "CERTIFICATE_VERIFY_FAILED" in (found := await trouble(run_here, uri))
        assert found.endswith("--insecure does without")
        found = await trouble(run_here, uri.replace("wss:", "ws:"))
        assert found.endswith("is it wss://?")
    assert set(complaints) <= {"Error on transport creation for incoming connection"}


async def test_a_server_of_another_protocol_is_one_line(run_here: RunHere) -> None:
    async with of_another_protocol(CANARY) as port:
        uri = f"ws://127.0.0.1:{port}/"
        assert (await trouble(run_here, uri)).startswith("the answer is not HTTP")


async def test_a_server_that_does_not_answer_is_one_line(
    server: Server, run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tapping, "REPLY_SECONDS", 0.1)
    server.delay = None
    assert await trouble(run_here, server.uri) == "no answer within 0.1 s"


async def test_a_server_that_closes_at_once_is_one_line(server: Server, run_here: RunHere) -> None:
    async def refuse(peer: Peer) -> None:
        await peer.send("no")
        await peer.close(1008, f"bad token {CANARY}\x1b[31m")

    server.handler = refuse
    found = await trouble(run_here, server.uri)
    assert re.fullmatch(r"the server closed .+ after the handshake: code 1008 'bad .+'", found)
    assert "\x1b" not in found


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (("http://127.0.0.1/",), "use ws://host/path"),
        (("",), "use ws://host/path"),
        (("localhost:8080",), "uri is without // and a host; use ws://host/path"),
        ((f"ws://alice:{CANARY}@host:port/",), "use ws://host/path"),
        (("ws://127.0.0.1/", "-H", CANARY), "not a header"),
        (("ws://127.0.0.1/", "--dials", "1"), "'1' is not a whole number of at least 2"),
        (("ws://127.0.0.1/", "--idle", "nan"), "'nan' is not a number of at least 0.1"),
        (("ws://127.0.0.1/", "--connections", "0"), "'0' is not a whole number of at least 1"),
    ],
)
def test_a_bad_argument_is_named_with_status_2(
    arguments: tuple[str, ...], shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        command_line.main(["probe", *arguments])
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert shown in err
    assert CANARY not in err


# The advice, without a network.

DIAL = Dial(None, 0.01, None, 0.02, 0.03, pings=(0.004,))
SEEN = Observation("ws://host/", (DIAL, DIAL), Watch(2.0))
GREETING = Message(0.1, "text", 5)
GREETED = tuple(replace(DIAL, greeting=0.25) for _ in range(2))
TARGET = Target("ws://host/")
CUT = Watch(20.0, close=Close(20.0, 1006))
STAYS = Watch(23.0)


def answer(*texts: str | bytes, seconds: float = 0.1, **more: Any) -> Answer:
    return Answer(len(texts), 0.01, seconds, 0.01, "…", texts=texts, **more)


def measured(packed: float, plain: float) -> tuple[Dial, ...]:
    """Return dials whose answers took so long with compression, and without."""
    return tuple(
        replace(
            DIAL,
            answers=tuple(
                answer("one", seconds=seconds + n / 1000, is_compressed=is_compressed)
                for n in range(4)
            ),
        )
        for seconds, is_compressed in ((packed, True), (plain, False))
    )


def stream(last: str | bytes, before: str | bytes = '{"type": "part"}') -> tuple[str | bytes, ...]:
    return (before, before, last)


@pytest.mark.parametrize(
    ("streams", "mark"),
    [
        pytest.param([("one",), ("one",)], None, id="single messages"),
        pytest.param([stream("[DONE]", "part")] * 2, Mark("", "[DONE]"), id="a word"),
        pytest.param([stream("[DONE]")] * 2, Mark("", "[DONE]"), id="a word after objects"),
        pytest.param(
            [stream('{"type": "end", "id": "a"}'), stream('{"type": "end", "id": "b"}')],
            Mark("type", "end"),
            id="a type",
        ),
        pytest.param(
            [stream('{"a": "x", "event": "end"}')] * 2, Mark("event", "end"), id="the likelier key"
        ),
        pytest.param(
            [stream('{"n": 1, "final": true}', '{"n": 2, "final": false}')] * 2,
            Mark("final", True),
            id="a flag",
        ),
        pytest.param([stream('{"type": "end"}', b"sound")] * 2, Mark("type", "end"), id="binary"),
        pytest.param([stream('{"type": "end"}', "text")] * 2, None, id="no objects elsewhere"),
        pytest.param([stream('{"type": "part"}')] * 2, None, id="all the same"),
        pytest.param([stream('{"type": "a"}'), stream('{"type": "b"}')], None, id="two ends"),
        pytest.param(
            [stream('{"type": "end"}'), stream('{"type": "end"}', '{"type": "end"}')],
            None,
            id="in the middle too",
        ),
        pytest.param([stream(b"end")] * 2, None, id="a binary end"),
        pytest.param(
            [stream('{"header": {"event": "finished"}}', '{"header": {"event": "result"}}')] * 2,
            Mark("header.event", "finished"),
            id="a type in a header",
        ),
        pytest.param(
            [stream('{"header": {"event": "finished"}}', '{"header": 1}')] * 2,
            None,
            id="a header that is no object elsewhere",
        ),
        pytest.param([stream("[1]", "[" * 100_000)] * 2, Mark("", "[1]"), id="hostile JSON"),
    ],
)
def test_the_last_message_is_known_by_what_no_other_message_has(
    streams: list[tuple[str | bytes, ...]], mark: Mark | None
) -> None:
    """And the function that is printed tells it from all others."""
    answers = [answer(*texts) for texts in streams]
    assert last_mark(answers) == mark
    if mark is not None:
        names: dict[str, Any] = {}
        exec(f"import json\n{definition_of_last(mark, answers)}", names)
        for texts in streams:
            assert [names["is_last"](text) for text in texts] == [False, False, True]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        pytest.param(
            [answer("a", "a", before_pong=2)] * 2, ["drain_fence"], id="a fence that holds"
        ),
        pytest.param(
            [answer("a", "a", before_pong=2), answer("a", "a", before_pong=1)],
            ["check_server_data_on_release"],
            id="a fence that held once",
        ),
        pytest.param([answer("a", "a")] * 2, ["check_server_data_on_release"], id="no pongs"),
        pytest.param([answer("a", before_pong=1)] * 2, [], id="one message"),
        pytest.param([answer("a", "a", is_whole=False)] * 2, [], id="more was coming"),
        pytest.param(
            [answer("a", "end", seconds=7.0), answer("a", "end")],
            ["drain_until", "drain_timeout"],
            id="a long answer",
        ),
        pytest.param(
            [replace(answer("a", "end"), pause=1.1)] * 2,
            ["drain_until", "drain_quiet_period"],
            id="an answer with pauses",
        ),
        pytest.param(
            [replace(answer("a", "a"), first=1.1)] * 2,
            ["check_server_data_on_release", "drain_quiet_period"],
            id="an answer that begins late",
        ),
    ],
)
def test_the_drain_follows_from_the_answers(answers: list[Answer], expected: list[str]) -> None:
    assert [argument.name for argument in drains(answers, has_pushes=False)] == expected


def test_where_the_server_also_pushes_only_a_marked_last_message_ends_an_answer() -> None:
    marked, unmarked = [answer("a", "end")] * 2, [answer("a", "a", before_pong=2)] * 2
    assert [one.name for one in drains(marked, has_pushes=True)] == ["drain_until"]
    assert not list(drains(unmarked, has_pushes=True))


@pytest.mark.parametrize(
    ("seen", "target", "expected"),
    [
        pytest.param({}, {}, {"check_after_idle": "5.0"}, id="nothing special"),
        pytest.param(
            {"dials": (DIAL, replace(DIAL, total=0.31))},
            {},
            {"check_after_idle": "5.0"},
            id="a slow handshake for which the default is enough",
        ),
        pytest.param(
            {"dials": (DIAL, replace(DIAL, total=1.31))},
            {},
            {"connection_timeout": "14.0", "check_after_idle": "5.0"},
            id="a slower handshake",
        ),
        pytest.param({"dials": (replace(DIAL, pings=()),) * 2}, {}, {}, id="no pongs"),
        pytest.param(
            {"dials": GREETED, "listening": Watch(2.0, 1, GREETING)},
            {},
            {"check_after_idle": "5.0", "on_connect": "on_connect"},
            id="a greeting",
        ),
        pytest.param(
            {"listening": Watch(2.0, 3, Message(1.5, "text", 5))},
            {},
            {"check_after_idle": "5.0", "on_drained": "on_drained"},
            id="pushes",
        ),
        pytest.param(
            {"dials": (GREETED[0], DIAL), "listening": Watch(2.0, 1, GREETING)},
            {},
            {"check_after_idle": "5.0", "on_drained": "on_drained"},
            id="no greeting on each",
        ),
        pytest.param(
            {"protocol": "two"},
            {"protocols": ("one", "two")},
            {"protocols": '("two",)', "check_after_idle": "5.0"},
            id="a subprotocol",
        ),
        pytest.param(
            {"is_compressed": True},
            {},
            {"check_after_idle": "5.0"},
            id="compression that nobody has measured",
        ),
        pytest.param(
            {"is_compressed": True, "dials": measured(0.05, 0.08)},
            {},
            {"compress": "15", "check_after_idle": "5.0"},
            id="compression that saves time",
        ),
        pytest.param(
            {"is_compressed": True, "dials": measured(0.08, 0.08)},
            {},
            {"check_after_idle": "5.0"},
            id="compression that saves nothing",
        ),
        pytest.param(
            {"silent": CUT, "pinging": CUT, "sending": STAYS, "once": STAYS},
            {"text": "hello"},
            {"on_connect": "on_connect", "check_after_idle": "5.0"},
            id="a server that waits for a first message",
        ),
        pytest.param(
            {"listening": Watch(2.0, 3, heartbeat=Mark("type", "ping"), heartbeats=3)},
            {},
            {"control": "control", "check_after_idle": "5.0"},
            id="heartbeats as messages",
        ),
        pytest.param(
            {"dials": (DIAL, replace(DIAL, answers=(answer("a", "b"),) * 2, close=CUT.close))},
            {},
            {"max_uses": "2", "check_after_idle": "5.0"},
            id="two answers on each connection",
        ),
        pytest.param(
            {"silent": CUT, "pinging": CUT},
            {},
            {"idle_timeout": "16.0", "check_after_idle": "5.0"},
            id="an idle limit",
        ),
        pytest.param(
            {"listening": Watch(1.5, close=Close(1.5, 4000))},
            {},
            {"idle_timeout": "1.2", "check_after_idle": "0.6"},
            id="an idle limit while it listened",
        ),
        pytest.param(
            {"silent": CUT, "pinging": STAYS, "sending": STAYS},
            {"text": "hello"},
            {"keepalive_interval": "10.0", "check_after_idle": "5.0"},
            id="an idle limit that pings prevent",
        ),
        pytest.param(
            {"silent": CUT, "pinging": CUT, "sending": STAYS},
            {"text": "hello"},
            {"keepalive": "keepalive", "keepalive_interval": "10.0", "check_after_idle": "5.0"},
            id="an idle limit that messages prevent",
        ),
        pytest.param(
            {"silent": Watch(100.0), "pinging": Watch(100.0)},
            {},
            {"idle_timeout": "80.0", "check_after_idle": "5.0"},
            id="no idle limit for long",
        ),
        pytest.param(
            {"capacity": Capacity(10, 7, "429")},
            {},
            {"check_after_idle": "5.0", "max_connections": "7"},
            id="refused",
        ),
        pytest.param({"capacity": Capacity(10, 10)}, {}, {"check_after_idle": "5.0"}, id="room"),
        pytest.param(
            {"capacity": Capacity(10, 0, "429")}, {}, {"check_after_idle": "5.0"}, id="no room"
        ),
        pytest.param(
            {},
            {"uri": "ws://host/?a=b", "headers": {"X-A.b": "c"}, "is_insecure": True},
            {
                "uri": 'os.environ["WSPOOL_URI"]',
                "headers": '{"X-A.b": os.environ["WSPOOL_HEADER_X_A_B"]}',
                "ssl": "False",
                "check_after_idle": "5.0",
            },
            id="secrets",
        ),
    ],
)
def test_the_arguments_follow_from_the_observations(
    seen: dict[str, Any],
    target: dict[str, Any],
    expected: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the code that has them makes a pool with them."""
    asked = replace(TARGET, **target)
    advice = advise(replace(SEEN, **seen), asked)
    assert {a.name: a.value for a in advice.arguments} == {"uri": '"ws://host/"'} | expected
    assert all(a.why for a in advice.arguments)
    monkeypatch.setenv("WSPOOL_URI", asked.uri)
    monkeypatch.setenv("WSPOOL_HEADER_X_A_B", "c")
    names: dict[str, Any] = {}
    exec(compile(advice.code(), "<printed>", "exec"), names)
    options = options_of(names["pool"])
    for name in expected.keys() - {"ssl", "protocols", "compress"}:
        assert getattr(options, name), name


@pytest.mark.parametrize("text", ["hello", '{"type": "KeepAlive"}', "it's", "'\"", "\\\n\x1b", "ü"])
def test_the_keepalive_of_the_code_sends_the_text(text: str) -> None:
    replied = tuple(replace(DIAL, fresh=0.1, reused=0.02) for _ in range(2))
    seen = replace(SEEN, dials=replied, silent=CUT, pinging=CUT, sending=STAYS)
    code = advise(seen, replace(TARGET, text=text)).code()
    (sent,) = re.findall(r"^    await connection\.send\((.+)\)$", code, re.MULTILINE)
    assert ast.literal_eval(sent) == text
    assert "    await connection.recv()" in code
    assert "reuse saves 80% of a reply's time: 100.0 ms with the dial, 20.0 ms without" in code


def test_the_report_says_what_keeps_a_connection_and_what_does_not() -> None:
    seen = replace(SEEN, silent=CUT, pinging=CUT, sending=STAYS)
    expected = "closed after 20.0 s, code 1006 (no CLOSE frame); pings do not prevent that; "
    assert f"{expected}messages prevent that" in report(seen, replace(TARGET, text="hello"))
