"""The demo, run as its user runs it: in a process of its own, unless it ends before it begins."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import socket
import sys
from functools import partial

import pytest

from tests import ROOT
from tests.conftest import until
from tests.support import commands
from wspool._cli import commands as command_line
from wspool._cli import demo
from wspool.testing import Peer, Server

pytestmark = pytest.mark.once


needs_unix = pytest.mark.skipif(sys.platform == "win32", reason="there is no pty")

start = partial(commands.start, "demo")
run = partial(commands.run, "demo")


def number(summary: str, name: str) -> int:
    """Return the number in a line of the summary."""
    match = re.search(rf"^{re.escape(name)} +([\d,]+)", summary, re.MULTILINE)
    assert match is not None, f"no {name!r} in:\n{summary}"
    return int(match[1].replace(",", ""))


def transitions(summary: str) -> dict[str, int]:
    """Return how often each transition was taken, by `source trigger dest`."""
    lines = re.findall(r"^ +(\w+) --(\w+)-+> (\w+) +([\d,]+)$", summary, re.MULTILINE)
    assert len(lines) == 9, summary
    return {" ".join(names): int(count.replace(",", "")) for *names, count in lines}


async def test_nothing_is_lost_while_the_server_drops_connections() -> None:
    status, out, err = await run("--seconds", "1", "--drop-rate", "0.05", "--connections", "3")
    assert (status, err) == (0, "")
    assert number(out, "lost") == number(out, "wrong replies") == 0
    assert number(out, "replies") > 0
    assert number(out, "drops injected") > 0
    assert number(out, "handshakes saved") > 0
    assert number(out, "handshakes made") > 3
    assert " of 0\n" not in out  # each way was measured


async def test_the_books_agree_with_one_another(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "EARLY_SHARE", 0.2)  # or it may be that nobody leaves
    monkeypatch.setattr(logging.getLogger("wspool"), "handlers", [])
    status, out, _ = await commands.run_here(
        capsys, "demo", "--seconds", "1", "--drop-rate", "0.05"
    )
    assert status == 0
    borrows = number(out, "borrows")
    assert borrows == sum(number(out, name) for name in ("replies", "left early", "errors"))
    assert borrows == number(out, "handshakes made") + number(out, "handshakes saved")
    taken = transitions(out)
    assert borrows == taken["idle checkout busy"]
    assert taken["connecting connected idle"] == number(out, "handshakes made")
    assert min(taken.values()) >= 0
    # What entered the state busy has left it; so for draining.
    leaving = ("busy checkin idle", "busy drain draining", "busy close closed")
    assert borrows == sum(taken[name] for name in leaving)
    drained = taken["draining drained idle"]
    assert taken["busy drain draining"] == drained + taken["draining close closed"]
    assert drained > 0
    closed = sum(taken[f"{state} close closed"] for state in ("idle", "busy", "draining"))
    assert taken["connecting connected idle"] == closed
    assert taken["busy drain draining"] <= number(out, "left early")


async def test_without_drops_no_borrower_sees_an_error() -> None:
    status, out, err = await run("--seconds", "1", "--drop-rate", "0", "--borrowers", "5")
    assert (status, err) == (0, "")
    assert number(out, "errors") == number(out, "drops injected") == 0
    assert number(out, "handshakes made") <= 5


async def test_where_there_is_no_terminal_each_line_shows_every_state() -> None:
    _, out, _ = await run("--seconds", "1")
    lines = [line for line in out.splitlines() if "messages/s" in line]
    assert lines
    for state in ("connecting", "idle", "busy", "draining", "closed"):
        assert all(re.search(rf"\b{state} \d", line) for line in lines)
    assert "\x1b" not in out


async def test_a_server_of_ones_own_is_used(server: Server) -> None:
    status, out, err = await run("--seconds", "1", "--uri", server.uri)
    assert (status, err) == (0, "")
    assert number(out, "lost") == number(out, "wrong replies") == number(out, "drops injected") == 0
    assert number(out, "replies") > 0
    assert number(out, "handshakes made") <= 5
    # At the server: the ids of the requests, each once.
    ids = [int(m) for peer in server.peers for m in peer.received if str(m).isdecimal()]
    assert sorted(ids) == list(range(1, number(out, "borrows") + 1))


async def test_a_wrong_reply_is_found_out() -> None:
    async def answer_the_last_but_one(peer: Peer) -> None:
        last: str | bytes = ""
        async for message in peer:
            if message.isdecimal() and int(message) > 100:
                await peer.send(last)
            else:
                await peer.send(message)
            last = message

    async with Server(answer_the_last_but_one) as server:
        status, out, _ = await run("--seconds", "1", "--uri", server.uri)
    assert status == 1
    assert number(out, "wrong replies") > 0


async def test_an_unreachable_server_is_one_line_and_status_2() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = f"ws://127.0.0.1:{closed.getsockname()[1]}/?token=secret"
        status, out, err = await run("--uri", uri)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("python -m wspool demo: No connection to ws://127.0.0.1:")
    assert "secret" not in err


async def test_a_server_that_does_not_echo_is_one_line_and_status_2() -> None:
    async def be_mute(peer: Peer) -> None:
        async for _ in peer:
            pass

    async with Server(be_mute) as server:
        status, out, err = await run("--uri", server.uri)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert "echo server" in err


@pytest.mark.parametrize("uri", ["http://127.0.0.1/", "ws://", "", "no uri", "ws://host:port/"])
def test_a_bad_uri_is_one_line_and_status_2(
    uri: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("wspool"), "handlers", [])  # it adds one
    assert command_line.main(["demo", "--uri", uri]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "ws://host/path" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("--seconds", "0"),
        ("--seconds", "nan"),
        ("--seconds", "inf"),
        ("--connections", "0"),
        ("--connections", "2.5"),
        ("--borrowers", "-1"),
        ("--drop-rate", "1.5"),
        ("--drop-rate", "x"),
    ],
)
def test_a_bad_option_is_named_with_status_2(
    arguments: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command_line.main(["demo", *arguments])
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"error: argument {arguments[0]}: '{arguments[1]}' is not a" in err


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT to send to a process")
async def test_ctrl_c_ends_it_with_the_summary_so_far() -> None:
    async with start("--seconds", "3600") as process, asyncio.timeout(60):
        assert process.stdout is not None
        seen = b""
        while b"messages/s" not in seen:
            seen += await process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
    assert (process.returncode, err) == (130, b"")
    assert number(out.decode(), "replies") > 0
    assert number(out.decode(), "lost") == 0


async def test_a_reader_who_leaves_ends_it_without_a_traceback() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "wspool", "demo", "--seconds", "3600"),
        stdout=write_end,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    os.close(write_end)
    async with asyncio.timeout(60):
        _, err = await process.communicate()
    assert (process.returncode, err) == (1, b"")


@needs_unix
async def test_it_fits_a_terminal_of_60_columns() -> None:
    """The table has whole words in it, and the summary no line that the terminal would break."""
    async with (
        commands.terminal(40, 60) as (tty, screen),
        start("--seconds", "1", stdout=tty, environment={"COLUMNS": "60"}) as process,
        asyncio.timeout(60),
    ):
        _, err = await process.communicate()
        assert (process.returncode, err) == (0, b"")
        await until(lambda: "draining --close" in screen(), "it has all been written")
    lines = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", screen()).replace("\r", "\n").splitlines()
    assert max(map(len, lines)) <= 60
    text = " ".join(" ".join(lines).replace("│", " ").split())
    assert "…" not in text
    assert "without a pool each borrow needs one" in text
    assert number("\n".join(lines), "lost") == 0


def test_the_program_calls_itself_by_the_name_that_it_was_started_with(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for started_as, name in (
        ("/usr/lib/python3/site-packages/wspool/__main__.py", "python -m wspool"),
        ("/usr/bin/wspool", "wspool"),
    ):
        monkeypatch.setattr(sys, "argv", [started_as])
        with pytest.raises(SystemExit):
            command_line.main(["demo", "--help"])
        assert capsys.readouterr().out.startswith(f"usage: {name} demo ")
        assert command_line.main(["top", "ws://nowhere/"]) == 2
        assert capsys.readouterr().err.startswith(f"{name} top: ")
