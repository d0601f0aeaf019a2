"""`python -m wspool top`, against an application that serves the snapshots of a real pool."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any, Self

import pytest
import trustme
from aiohttp import web
from aiohttp.test_utils import TestServer
from rich.console import Console

from tests.conftest import MakePool, until
from tests.support import commands
from tests.support.strangers import of_another_protocol
from wspool import Stats, WebsocketConnection, WebsocketConnectionPool, debug
from wspool._cli import commands as command_line
from wspool._cli import snapshots, top
from wspool._cli.shared import printable
from wspool._pool.introspection import BorrowerSnapshot, PoolSnapshot, WaiterSnapshot
from wspool.testing import Peer, Server

CANARY = "canary-7531"

needs_unix = pytest.mark.skipif(
    sys.platform == "win32", reason="there is neither a SIGINT to send to a process nor a pty"
)

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Application:
    """Serves the snapshot of a pool at `/debug/snapshot`; `answer` takes the place of that."""

    def __init__(self, pool: WebsocketConnectionPool, context: ssl.SSLContext | None = None):
        self.pool = pool
        self.context = context
        self.answer: Answer | None = None
        self.requests: list[web.Request] = []
        # The JSON of the last answer.
        self.served: Any = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http{'s' if self.context else ''}://127.0.0.1:{self.port}/debug"

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/debug/snapshot", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(
            self._runner, "127.0.0.1", self.port, ssl_context=self.context, reuse_address=True
        )
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if self.answer is not None:
            return await self.answer(request)
        text = json.dumps(self.pool.snapshot().to_dict())
        self.served = json.loads(text)
        return web.json_response(text=text)


@pytest.fixture
async def application(make_pool: MakePool) -> AsyncIterator[Application]:
    async with Application(make_pool(name="speech")) as application:
        yield application


start = partial(commands.start, "top")
run = partial(commands.run, "top")


@pytest.fixture
def run_here(capsys: pytest.CaptureFixture[str]) -> Callable[..., Awaitable[tuple[int, str, str]]]:
    """Run top in a thread of this process, which takes less time."""

    async def run_here(*arguments: str) -> tuple[int, str, str]:
        return await commands.run_here(capsys, "top", *arguments)

    return run_here


RunHere = Callable[..., Awaitable[tuple[int, str, str]]]


def drawn(view: top.View, width: int = 120, height: int = 40) -> list[str]:
    """Return the lines of the picture, as a terminal of that size shows them."""
    file = io.StringIO()
    console = Console(file=file, width=width, height=height, force_terminal=True, color_system=None)
    console.print(top.picture(view, height))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def in_spaces(line: str) -> str:
    """Return the line with single spaces."""
    return " ".join(line.split())


async def idle_ones(pool: WebsocketConnectionPool, count: int) -> list[WebsocketConnection]:
    connections = [await pool.acquire() for _ in range(count)]
    for connection in connections:
        await pool.release(connection)
    return connections


async def closed_ones(pool: WebsocketConnectionPool, count: int) -> None:
    connections = [await pool.acquire() for _ in range(count)]
    for connection in connections:
        await connection.close()
        await pool.release(connection)
    await until(lambda: len(pool.snapshot().gone) == count, "they are gone")


def read_back(pool: WebsocketConnectionPool) -> PoolSnapshot:
    snapshot: PoolSnapshot = snapshots.as_made(
        PoolSnapshot, json.loads(json.dumps(pool.snapshot().to_dict()))
    )
    return snapshot


# Reading.


async def test_what_is_read_is_the_snapshot_that_was_served(make_pool: MakePool) -> None:
    """With connections in several states, one that has gone, a borrower and a waiter."""
    pool = make_pool(max_connections=3, acquire_timeout=None)
    one, two, gone = [await pool.acquire() for _ in range(3)]
    await pool.release(gone, force_remove=True)
    await until(lambda: len(pool.snapshot().gone) == 1, "the third is gone")
    third = await pool.acquire()
    waiting = asyncio.create_task(pool.acquire())
    await until(lambda: pool.waiters, "one waits")
    snapshot = pool.snapshot()
    assert snapshot.connections
    assert snapshot.gone
    assert snapshot.waiting
    assert snapshots.as_made(PoolSnapshot, json.loads(json.dumps(snapshot.to_dict()))) == snapshot
    for connection in (one, two, third):
        await pool.release(connection)
    await pool.release(await waiting)


async def test_a_field_that_a_newer_version_adds_is_no_trouble(make_pool: MakePool) -> None:
    snapshot = make_pool().snapshot()
    found = json.loads(json.dumps(snapshot.to_dict() | {"weather": "fine"}))
    assert snapshots.as_made(PoolSnapshot, found) == snapshot


async def test_a_field_that_an_older_version_lacks_is_as_if_there_was_nothing_to_say(
    make_pool: MakePool,
) -> None:
    snapshot = make_pool().snapshot()
    found = json.loads(json.dumps(snapshot.to_dict()))
    del found["failure"]
    assert snapshots.as_made(PoolSnapshot, found) == snapshot


async def test_json_is_the_snapshot_and_nothing_else(application: Application) -> None:
    await idle_ones(application.pool, 2)
    status, out, err = await run("--once", "--json", application.url)
    assert (status, err) == (0, "")
    assert json.loads(out) == application.served
    assert len(application.served["connections"]) == 2


async def test_json_needs_no_rich(
    application: Application, run_here: RunHere, without_rich: None
) -> None:
    status, out, err = await run_here("--once", "--json", application.url)
    assert (status, err) == (0, "")
    assert json.loads(out) == application.served


@pytest.fixture
def without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "rich"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "rich", None)


@pytest.mark.parametrize(
    "end", ["", "/", "/snapshot", "/snapshot/", "?pool=a%26b", "/snapshot?pool=a%26b"]
)
async def test_the_page_or_its_snapshot_both_are_an_address(
    application: Application, run_here: RunHere, end: str
) -> None:
    status, _, err = await run_here("--once", application.url + end)
    assert (status, err) == (0, "")
    assert application.requests[-1].path == "/debug/snapshot"
    assert application.requests[-1].query.get("pool") == ("a&b" if "?" in end else None)


async def test_the_debug_page_is_an_address_for_each_of_its_pools(
    make_pool: MakePool, run_here: RunHere
) -> None:
    app = web.Application()
    debug.setup(app, make_pool(name="speech"), make_pool(name="quotes & news"))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/debug/wspool"
    assert (await run_here("--once", url))[1].startswith("speech not started  connecting 0")
    assert (await run_here("--once", f"{url}/?pool=quotes+%26+news"))[1].startswith("quotes & news")
    assert "404 Not Found; is that" in await trouble(run_here, f"{url}?pool=other")
    await runner.cleanup()


async def test_an_address_without_a_scheme_is_one_of_http(
    application: Application, run_here: RunHere
) -> None:
    for url in (application.url, f"alice:{CANARY}@{application.url.partition('//')[2]}"):
        status, out, err = await run_here("--once", url.removeprefix("http://"))
        assert (status, err) == (0, "")
        assert out.startswith("speech ")
    assert "Authorization" in application.requests[-1].headers


async def test_headers_are_sent_and_never_printed(
    application: Application, run_here: RunHere
) -> None:
    headers = ("-H", f"Authorization: Bearer {CANARY}", "--header", f"X-Key:{CANARY}:x")
    status, out, err = await run_here("--once", "--json", *headers, application.url)
    assert (status, err) == (0, "")
    sent = application.requests[-1].headers
    assert (sent["Authorization"], sent["X-Key"]) == (f"Bearer {CANARY}", f"{CANARY}:x")
    assert CANARY not in out


async def test_user_info_of_the_address_is_sent_as_basic_authentication(
    application: Application, run_here: RunHere
) -> None:
    url = application.url.replace("//", f"//alice:{CANARY}@")
    status, out, err = await run_here("--once", url)
    assert (status, err) == (0, "")
    assert application.requests[-1].headers["Authorization"].startswith("Basic ")
    assert CANARY not in out


@pytest.mark.parametrize("bad", ["X", "Authorization:", ": v", "A B: v", f"X: {CANARY}\r\nY: z"])
async def test_a_bad_header_is_status_2_and_not_shown(
    capsys: pytest.CaptureFixture[str], bad: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        command_line.main(["top", "-H", bad, "http://127.0.0.1/"])
    err = capsys.readouterr().err
    assert caught.value.code == 2
    assert "argument -H/--header: not a header; use 'Name: value'" in err
    assert CANARY not in err


# What goes wrong.


async def trouble(run_here: RunHere, *arguments: str) -> str:
    """Run top, which ends with one line of trouble, and return that without its beginning."""
    status, out, err = await run_here("--once", *arguments)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert CANARY not in err
    beginning = "wspool top: "
    assert err.startswith(beginning)
    return err.removeprefix(beginning).rstrip("\n")


SECRETS = ("-H", f"Authorization: {CANARY}")


async def test_an_address_that_is_down_is_one_line(run_here: RunHere) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        url = f"http://127.0.0.1:{port}/debug?token={CANARY}"
        found = await trouble(run_here, *SECRETS, url)
    assert found.startswith(f"http://127.0.0.1:{port}/debug/snapshot?…: Cannot connect to host")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "no url",
        f"ws://alice:{CANARY}@127.0.0.1/",
        f"alice:{CANARY}@/debug",
        f"{CANARY}:port/",
        f"http://?{CANARY}",
        f"http://{CANARY}:port/",
        f"http://{CANARY}:99999/",
        f"file:///{CANARY}",
    ],
)
async def test_a_bad_address_is_one_line_that_does_not_show_it(run_here: RunHere, url: str) -> None:
    assert "http://host/path" in await trouble(run_here, url)


async def test_user_info_beside_an_authorization_header_is_one_line(
    application: Application, run_here: RunHere
) -> None:
    url = application.url.replace("//", f"//alice:{CANARY}@")
    assert await trouble(run_here, *SECRETS, url)


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        (401, "the server answered 401 Unauthorized; -H 'Name: value' sends what"),
        (404, "the server answered 404 Not Found; is that the prefix of the debug page"),
        (302, "the server answered 302 Found"),
        (204, "the server answered 204 No Content"),
        (503, "the server answered 503 Service Unavailable"),
        (599, "the server answered 599"),
    ],
)
async def test_a_status_other_than_200_is_named_in_our_words(
    application: Application, run_here: RunHere, status: int, shown: str
) -> None:
    async def refuse(request: web.Request) -> web.Response:
        location = {"Location": f"{application.url}/elsewhere"}
        return web.Response(status=status, reason=f"echo {CANARY}", headers=location)

    application.answer = refuse
    assert shown in await trouble(run_here, *SECRETS, application.url)
    assert len(application.requests) == 1


def without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda served: {k: v for k, v in served.items() if k != name}


def with_(**fields: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda served: served | fields


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (lambda served: {"status": "ok"}, "it has no 'at'"),
        (lambda served: [served], "it is of another type"),
        (lambda served: None, "it is of another type"),
        (without("waiting"), "it has no 'waiting'"),
        (with_(name=7), "name is of another type"),
        (with_(is_closed=0), "is_closed is of another type"),
        (with_(waiters=True), "waiters is of another type"),
        (with_(at="now"), "at is of another type"),
        (with_(at=float("nan")), "at is of another type"),
        (with_(at=10**400), "at is of another type"),
        (with_(counts={"idle": 1}), "counts has no 'busy'"),
        (with_(counts=["idle"]), "counts is of another type"),
        (with_(waiting=[{}]), "an item of waiting has no 'borrower'"),
        (with_(gone={}), "gone is of another type"),
        (with_(stats={"borrows": True}), "stats has no 'closes'"),
    ],
)
async def test_the_json_of_another_service_is_one_line(
    application: Application, run_here: RunHere, change: Callable[[Any], Any], shown: str
) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response(change(application.pool.snapshot().to_dict()))

    application.answer = answer
    found = await trouble(run_here, "--json", application.url)
    assert found.endswith(f"the answer is not the snapshot of a pool: {shown}")


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff\xfe", b"[" * 200_000, b"1" * 10_000])
async def test_what_is_not_json_is_one_line(
    application: Application, run_here: RunHere, body: bytes
) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=body)

    application.answer = answer
    assert (await trouble(run_here, application.url)).endswith("the answer is not JSON")


async def test_an_answer_without_end_is_one_line(
    application: Application, run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "MAX_ANSWER_BYTES", 2**16)

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" " * 2**14)

    application.answer = answer
    found = await trouble(run_here, application.url)
    assert found.endswith("the answer has more than 65,536 bytes")


async def test_a_mute_server_is_one_line(
    application: Application, run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "ANSWER_SECONDS", 0.05)

    ended = asyncio.Event()

    async def be_mute(request: web.Request) -> web.StreamResponse:
        await ended.wait()
        return web.Response()

    application.answer = be_mute
    assert (await trouble(run_here, application.url)).endswith("no answer within 0.05 s")
    ended.set()


async def test_a_server_of_another_protocol_is_one_line(run_here: RunHere) -> None:
    async with of_another_protocol(CANARY) as port:
        found = await trouble(run_here, *SECRETS, f"http://127.0.0.1:{port}/?token={CANARY}")
    assert "\x1b" not in found
    assert "not readable as HTTP" in found


async def test_a_certificate_that_nobody_trusts_is_one_line(
    make_pool: MakePool, run_here: RunHere
) -> None:
    # The server's side of the broken handshake is reported to the loop, in debug mode.
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: complaints.append(context["message"])
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with Application(make_pool(), context) as application:
        assert "CERTIFICATE_VERIFY_FAILED" in await trouble(run_here, *SECRETS, application.url)
        plain = application.url.replace("https", "http")
        assert await trouble(run_here, *SECRETS, plain)
    assert not application.requests
    assert set(complaints) <= {"Error on transport creation for incoming connection"}


async def test_trouble_is_one_line_of_the_process_as_well() -> None:
    """No traceback, and no warning of what was left open."""
    status, out, err = await run("--once", "-H", f"A: {CANARY}", "http://127.0.0.1:9/")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("python -m wspool top: http://127.0.0.1:9/snapshot: Cannot connect")


async def test_json_without_once_is_refused(run_here: RunHere) -> None:
    assert await run_here("--json", "http://127.0.0.1/") == (
        2,
        "",
        "wspool top: --json needs --once\n",
    )


@pytest.mark.parametrize("interval", ["0", "nan", "inf", "-1", "x"])
def test_a_bad_interval_is_named(capsys: pytest.CaptureFixture[str], interval: str) -> None:
    with pytest.raises(SystemExit) as caught:
        command_line.main(["top", "--interval", interval, "http://127.0.0.1/"])
    assert caught.value.code == 2
    assert f"argument --interval: '{interval}' is not a number" in capsys.readouterr().err


# Lines, where there is no terminal.


async def test_once_is_one_line_with_every_state(
    application: Application, run_here: RunHere, without_rich: None
) -> None:
    await idle_ones(application.pool, 2)
    status, out, err = await run_here("--once", application.url)
    assert (status, err) == (0, "")
    assert out == (
        "speech open  connecting 0  idle 2  busy 0  draining 0  closed 0"
        " | waiting 0  borrows/s –  dials/s –\n"
    )


@needs_unix
async def test_a_line_for_each_look_through_an_outage_and_until_ctrl_c(
    application: Application,
) -> None:
    async with start("--interval", "0.1", application.url) as process, asyncio.timeout(60):
        assert process.stdout is not None

        async def line_with(text: str) -> str:
            assert process.stdout is not None
            while text not in (line := (await process.stdout.readline()).decode()):
                assert line
            return line

        assert "idle 0" in await line_with("borrows/s –")
        await idle_ones(application.pool, 2)
        line = await line_with("idle 2")
        assert re.search(r"waiting 0  borrows/s \d+\.\d  dials/s \d+\.\d$", line)
        await application.__aexit__()
        line = await line_with("trying again")
        assert re.match(r"speech \d+ s old; trying again: http://127\.0\.0\.1:\d+/debug/s", line)
        await application.__aenter__()
        await line_with("idle 2")
        await application.pool.close_all()
        assert (await line_with("closed  ")).startswith("speech closed  connecting 0")
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
    assert (process.returncode, err) == (130, b"")


async def test_a_reader_who_leaves_ends_it_without_a_traceback(application: Application) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    async with start("--interval", "0.1", application.url, stdout=write_end) as process:
        os.close(write_end)
        async with asyncio.timeout(60):
            _, err = await process.communicate()
    assert (process.returncode, err) == (1, b"")


async def test_a_rate_is_of_the_time_between_two_pictures(make_pool: MakePool) -> None:
    first = read_back(make_pool())
    stats = Stats(**vars(first.stats) | {"borrows": 30, "dials": 1})
    view = top.View(first).following(replace(first, at=first.at + 2.0, stats=stats))
    assert view.rates == (15.0, 0.5)


async def test_there_is_no_rate_from_one_pool_to_the_next(make_pool: MakePool) -> None:
    """A process that was started anew counts from 0."""
    first = read_back(make_pool())
    before = replace(first, stats=Stats(**vars(first.stats) | {"borrows": 30}))
    assert top.View(before).following(replace(first, at=first.at + 2.0)).rates is None
    assert top.View(first).following(first).rates is None


# Pictures, for a terminal.


async def test_the_picture_shows_states_waiters_connections_and_the_gone(
    make_pool: MakePool,
) -> None:
    async with Server(say_when_to_close) as server:
        pool = make_pool(
            uri=server.uri, name="speech", max_connections=3, acquire_timeout=None, drain_fence=True
        )
        lost, idle, busy = [await pool.acquire() for _ in range(3)]
        await lost.send("close")
        await until(lambda: not lost.is_connected, "the server has closed it")
        await pool.release(lost)
        await pool.release(idle)
        await until(lambda: len(pool.snapshot().gone) == 1, "it is gone")
        draining = await pool.acquire()
        server.peers[draining.id - 1].mute()
        await draining.send("hello")
        await pool.release(draining)
        other = await pool.acquire()

        async def wait() -> WebsocketConnection:
            return await pool.acquire()

        waiting = asyncio.create_task(wait(), name="customer")
        await until(lambda: pool.waiters, "one waits")
        lines = [in_spaces(line) for line in drawn(top.View(read_back(pool)))]
        assert lines[0] == f"speech open 0 s old {server.uri}"
        assert "busy 2 ██ lent to a borrower" in lines
        assert "draining 1 █ given back early; its late reply is read first" in lines
        waits = next(line for line in lines if line.startswith("waiting 1"))
        assert re.fullmatch(
            r"waiting 1 the oldest for \d+\.\d s: customer at cli/test_top\.py:\d+", waits
        )
        table = lines[lines.index("id state for age uses rtt sent received borrower") + 1 :]
        name = re.escape(asyncio.current_task().get_name())  # type: ignore[union-attr]
        for row, (connection, state, sent) in zip(
            table,
            [(busy, "busy", 0), (other, "busy", 0), (draining, "draining", 1)],
            strict=False,
        ):
            who = "" if state == "draining" else rf" {name} at cli/test_top\.py:\d+"
            pattern = rf"#{connection.id} {state} \d+\.\d s \d+ s \d( \d+\.\d ms)? {sent} 0{who}"
            assert re.fullmatch(pattern, row), row
        gone = lines[lines.index("id was closed uses why code and reason") + 1 :]
        assert re.fullmatch(rf"#{lost.id} busy \d+ s ago 1 server 4000 \[red\]b\[2Jye", gone[0])
        await pool.release(busy)
        await pool.release(await waiting)
        await pool.release(other)


async def say_when_to_close(peer: Peer) -> None:
    async for message in peer:
        if message == "close":
            await peer.close(4000, "[red]b\x1b[2J\u202eye")


async def test_what_the_server_says_stays_text(make_pool: MakePool) -> None:
    """Neither markup nor control characters, and no character that cannot be encoded."""
    pool = make_pool()
    await idle_ones(pool, 1)
    await closed_ones(pool, 1)
    hostile = "[red]x[/red] [/] :smile: \x1b]0;title\x07\x9b2J\r\n\u2028\u202e\ud800 \\[b]"
    shown = "[red]x[/red] [/] :smile: ]0;title2J \\[b]"
    snapshot = read_back(pool)
    gone = replace(snapshot.gone[0], close_reason=hostile, state=hostile)
    waiter = WaiterSnapshot(1.0, False, BorrowerSnapshot(hostile, "/app/x.py:1", None))
    texts = {"name": hostile, "uri": hostile, "waiting": (waiter,)}
    view = top.View(replace(snapshot, **texts, gone=(gone,), connections=(gone,)))
    text = "\n".join(drawn(view, width=200))
    assert text.encode().decode() == text
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", text)
    assert text.count(shown) == 5
    view.trouble = printable(hostile)
    assert drawn(view, width=200)[0].count(shown) == 2
    view.trouble = ""
    assert shown in top.line(view)


async def test_the_last_that_has_gone_is_the_first_of_them(make_pool: MakePool) -> None:
    pool = make_pool()
    await closed_ones(pool, 3)
    snapshot = read_back(pool)
    rows = [line.split()[0] for line in drawn(top.View(snapshot))[-3:]]
    assert rows == [f"#{connection.id}" for connection in reversed(snapshot.gone)]


@pytest.mark.parametrize("height", [17, 24, 60])
@pytest.mark.parametrize("width", [40, 80, 200])
async def test_a_picture_fits_the_terminal_and_says_how_many_more_there_are(
    make_pool: MakePool, width: int, height: int
) -> None:
    pool = make_pool()
    await closed_ones(pool, 3)
    await idle_ones(pool, 2)
    snapshot = read_back(pool)
    one, two = snapshot.connections
    many = tuple(replace(two, id=number) for number in range(100, 0, -1))
    view = top.View(replace(snapshot, connections=many, gone=snapshot.gone * 10, name="n" * 300))
    lines = drawn(view, width, height)
    assert len(lines) == height - 1
    assert max(map(len, lines)) <= width
    [at] = [number for number, line in enumerate(lines) if line.startswith("… and")]
    rows = lines[lines.index("", lines.index("") + 1) + 2 : at]
    assert int(lines[at].split()[2]) + len(rows) == 100
    if width > 40:
        assert [int(row.split()[0][1:]) for row in rows] == [*range(1, len(rows) + 1)]
    few = drawn(top.View(replace(snapshot, connections=(one,), gone=())), width, height)
    assert not [line for line in few if line.startswith("… and")]


async def test_trouble_is_in_the_header_of_the_picture(make_pool: MakePool) -> None:
    view = top.View(read_back(make_pool(name="speech")), trouble="no answer")
    assert in_spaces(drawn(view)[0]) == "speech 0 s old trying again: no answer"


@needs_unix
async def test_a_terminal_shows_it_live_until_ctrl_c(application: Application) -> None:
    async with (
        commands.terminal(24, 100) as (tty, written),
        start("--interval", "0.1", application.url, stdout=tty) as process,
        asyncio.timeout(60),
    ):
        await until(lambda: "open, and ready to be borrowed" in written(), "it shows", within=30)
        await idle_ones(application.pool, 1)
        await until(lambda: re.search(r"#1\b.*idle", written()), "it shows the connection")
        await application.__aexit__()
        await until(lambda: "trying again" in written(), "it says that the server is gone")
        await application.__aenter__()
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
        assert (process.returncode, err) == (130, b"")
        await until(lambda: written().rstrip().endswith("\x1b[?25h"), "the cursor is back")


@needs_unix
@pytest.mark.parametrize(
    ("keys", "names"),
    [
        (["n", "n", "n"], ["one", "two & more", "three", "one"]),
        (["\x1b[C", "\t", "\x1b[D"], ["one", "two & more", "three", "two & more"]),
        (["p", "x", "P"], ["one", "three", "two & more"]),
    ],
)
async def test_keys_switch_the_pool_and_q_quits(
    make_pool: MakePool, keys: list[str], names: list[str]
) -> None:
    """And the terminal is left as it was."""
    import termios

    app = web.Application()
    debug.setup(app, *(make_pool(name=name) for name in ("one", "two & more", "three")))
    shown = ["one"]
    async with (
        TestServer(app) as server,
        commands.terminal(24, 100) as (tty, screen),
        start(
            *("--interval", "0.1", str(server.make_url("/debug/wspool"))), stdin=tty, stdout=tty
        ) as process,
        asyncio.timeout(60),
    ):
        before = termios.tcgetattr(tty)
        await until(
            lambda: "n next  one" in in_plain(screen()), "it says which keys there are", within=30
        )
        for key in keys:
            seen = len(screen())
            screen.press(key)
            if key != "x":
                shown.append(names[len(shown)])
                news = f"n next  {shown[-1]}  "
                await until(lambda seen=seen, news=news: news in in_plain(screen()[seen:]), news)  # type: ignore[misc]
        screen.press("q")
        _, err = await process.communicate()
        assert (process.returncode, err) == (0, b"")
        assert termios.tcgetattr(tty) == before
    assert shown == names


def in_plain(written: str) -> str:
    """Return what was written without its colours."""
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", written)


@needs_unix
async def test_once_in_a_terminal_is_one_picture(application: Application) -> None:
    await idle_ones(application.pool, 1)
    async with (
        commands.terminal(24, 100) as (tty, written),
        start("--once", application.url, stdout=tty) as process,
        asyncio.timeout(60),
    ):
        _, err = await process.communicate()
        assert (process.returncode, err) == (0, b"")
        await until(lambda: "code and reason" in written(), "it has all been written")
        assert written().count("open, and ready to be borrowed") == 1
        assert "\x1b[?25l" not in written()


async def test_a_terminal_without_rich_is_told_what_to_install(
    application: Application, run_here: RunHere, without_rich: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "pip install 'wspool[rich]'" in await trouble(run_here, application.url)
