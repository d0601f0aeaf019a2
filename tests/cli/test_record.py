"""`python -m wspool record` writes down a dialogue, its own or another program's."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import until
from tests.parts.test_recording import ask, connected, lines_of
from tests.support import commands
from wspool._cli import recording
from wspool.testing import Peer, Server, echo, replay

CANARY = "canary-7531"
SECRETS = ("-H", f"Authorization: Bearer {CANARY}")
RunHere = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture
def run_here(capsys: pytest.CaptureFixture[str]) -> RunHere:
    return partial(commands.run_here, capsys, "record", "--quiet", "0.1")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "turns.jsonl"


async def test_it_says_messages_one_after_the_other_and_a_replay_says_the_same(
    run_here: RunHere, server: Server, file: Path
) -> None:
    async def serve(peer: Peer) -> None:
        await peer.send("welcome \x1b[31m" + "x" * 200)
        async for message in peer:
            await peer.send(message)
            await peer.send(bytes(range(20)))
            if message == "b":
                await peer.close(4001, "enough")

    server.handler = serve
    uri = f"{server.uri}?token={CANARY}"
    said = ("--send", "a", "--send", "b", "--send", "c")
    status, out, err = await run_here(uri, str(file), *said, *SECRETS)
    assert (status, err) == (0, "")
    shown = re.sub(r"\d+\.\d{3} s", "…", out).splitlines()
    dump = "20 bytes: 00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f …"
    assert shown[0].startswith("#1 < welcome [31mxxx")
    assert len(shown[0]) < 120
    assert shown[1:] == [
        "#1 > a",
        "#1 < a  (…)",
        f"#1 < {dump}  (…)",
        "#1 > b",
        "#1 < b  (…)",
        f"#1 < {dump}  (…)",
        "#1 x the server closes with 4001 enough  (…)",
        f"{file}: 1 handshake, 2 turns",
    ]
    [request] = server.requests
    assert request.query["token"] == request.headers["Authorization"][7:] == CANARY
    assert CANARY not in out + file.read_text(encoding="utf-8")
    async with Server(replay(file)) as played, connected(played.uri) as client:
        assert str(await client.receive_str()).startswith("welcome")
        assert await ask(client, "a") == "a"
        assert await client.receive_bytes() == bytes(range(20))
        assert await ask(client, "b") == "b"


async def test_a_refusal_and_a_loss_are_shown_and_written(
    run_here: RunHere, server: Server, file: Path
) -> None:
    server.refuse(401)
    status, out, _ = await run_here(server.uri, str(file), "--send", "a")
    assert status == 0
    assert out.startswith("#1 x the server answers 401 Unauthorized\n")
    assert lines_of(file) == [{"connection": 1, "refused": 401}]

    async def drop(peer: Peer) -> None:
        await peer.recv()
        peer.drop()

    server.handler = drop
    status, out, _ = await run_here(server.uri, str(file), "--send", "a", "--send", "b")
    assert status == 0
    assert "#1 x the connection is lost" in out


async def test_a_subprotocol_is_offered(run_here: RunHere, file: Path) -> None:
    async with Server(protocols=["speech"]) as server:
        offered = ("--subprotocol", "other", "--subprotocol", "speech")
        status, _, _ = await run_here(server.uri, str(file), "--send", "a", *offered)
    assert status == 0
    assert '"subprotocol": "speech"' in file.read_text(encoding="utf-8")


async def test_an_answer_that_does_not_come_is_not_waited_for_for_ever(
    run_here: RunHere, server: Server, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "REPLY_SECONDS", 0.1)

    async def be_silent(peer: Peer) -> None:
        async for _ in peer:
            pass

    server.handler = be_silent
    status, out, _ = await run_here(server.uri, str(file), "--send", "a", "--send", "b")
    assert (status, out) == (0, f"#1 > a\n#1 > b\n{file}: 1 handshake, 1 turn\n")


async def test_what_goes_wrong_is_said_in_one_line_without_secrets(
    run_here: RunHere, file: Path, tmp_path: Path
) -> None:
    async with Server() as gone:
        uri = f"{gone.uri}?token={CANARY}"
        status, out, err = await run_here(uri, str(file), "--send", f"I am {CANARY}", *SECRETS)
        assert (status, out) == (2, "")
        assert "says a secret of the handshake" in err
        status, out, err = await run_here(uri, str(tmp_path), "--send", "a")
        assert (status, out) == (2, "")
        assert "is no name of a file" in err
        assert len(gone.requests) == 1, "nothing is asked for in vain"
    status, out, more = await run_here(uri, str(file), "--send", "a", *SECRETS)
    assert (status, out) == (2, "")
    assert "cannot be recorded" in more
    for line in (err, more):
        assert line.startswith("wspool record: ")
        assert line.count("\n") == 1
        assert CANARY not in line
    assert not file.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT to send to a process")
async def test_it_stands_between_other_programs_until_ctrl_c(server: Server, file: Path) -> None:
    server.handler = echo
    uri = f"{server.uri}?token={CANARY}"
    async with commands.start("record", uri, str(file)) as process, asyncio.timeout(60):
        assert process.stdout is not None
        first = (await process.stdout.readline()).decode()
        found = re.match(r"(ws://127\.0\.0\.1:\d+/) stands for ", first)
        assert found, first
        async with connected(found[1]) as client:
            assert await ask(client, "hello") == "hello"
            await until(lambda: server.open, "it is connected")
            process.send_signal(signal.SIGINT)
            out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert f"{file}: 1 handshake, 1 turn" in out.decode()
    assert CANARY not in first + out.decode()
    assert [line["client"] for line in lines_of(file)] == [[], [{"text": "hello"}]]
