"""The README's code runs, its tables have every option and error, its diagram is the machine's."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import re
import sys
from contextlib import nullcontext
from textwrap import dedent
from typing import Any

import pytest

import wspool
from tests import ROOT
from tests.support.redis_server import RedisServer
from wspool import CloseReason, WebsocketConnectionPool, WebsocketError
from wspool._connection import states
from wspool.testing import Peer, Server

pytestmark = pytest.mark.once

README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(language: str) -> list[tuple[int, str]]:
    """Return the line number and the text of each block in this language."""
    return [
        (TEXT[: match.start(2)].count("\n") + 1, match[2])
        for match in BLOCK.finditer(TEXT)
        if match[1] == language
    ]


def rows_of(text: str) -> list[str]:
    """Return the lines of the first table in this text, with its head."""
    found = re.search(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    assert found
    return found[0].splitlines()


def table(section: str) -> list[list[str]]:
    """Return the cells of the first table under a heading, without its head."""
    _, _, text = TEXT.partition(f"\n## {section}\n")
    assert text, f"the README has no section {section!r}"
    rows = rows_of(text.partition("\n## ")[0])[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


async def answer(peer: Peer) -> None:
    """Do what the README's borrowers expect: stream, log in, be silent, or echo."""
    async for message in peer:
        if message == '{"type": "create"}':
            for kind in ("part", "part", "completed"):
                await peer.send(json.dumps({"type": kind}))
        elif message == '{"type": "login"}':
            await peer.send('{"type": "ready"}')
        elif "without an answer" not in message:
            await peer.send(message)


@pytest.mark.parametrize(
    ("line", "code"), [pytest.param(*block, id=f"line {block[0]}") for block in blocks("python")]
)
async def test_each_example_runs(
    line: int, code: str, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    async with Server(answer) as server:
        if "ws://localhost:8080/" in code:
            printed = await run_as_script(code.replace("ws://localhost:8080/", server.uri))
        else:
            names: dict[str, object] = {"uri": server.uri}
            async with RedisServer() if "redis_url" in code else nullcontext() as redis:
                names["redis_url"] = redis.url if redis is not None else ""
                printed = await run_in_this_loop(code, line, names, capsys)
        has_its_own_server = "wspool.testing" in code
        assert server.peers or has_its_own_server, "the example did not connect"
        async with asyncio.timeout(10):  # only a net
            while server.open:
                await asyncio.sleep(0.005)
    assert printed.strip(), "the example printed nothing"
    assert not list(recwarn)
    for said in re.findall(r"# (closed|1)\b", code):
        assert said in printed.splitlines(), f"the comment says that {said!r} is printed"


async def run_as_script(code: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-c", code),
        cwd=README.parent,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, complaint = await process.communicate()
    assert (process.returncode, complaint.decode()) == (0, "")
    return printed.decode()


async def run_in_this_loop(
    code: str, line: int, names: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> str:
    """Run a block with `await` at its top level, as `python -m asyncio` would."""
    numbered = "\n" * (line - 1) + code
    compiled = compile(numbered, str(README), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    running = eval(compiled, names)
    if inspect.isawaitable(running):
        await running
    assert isinstance(names["pool"], WebsocketConnectionPool)
    assert names["pool"].is_closed
    return capsys.readouterr().out


async def test_the_lines_for_trying_it_out_start_a_server_that_echoes() -> None:
    found = re.search(r"^    from wspool.testing .*\n(?:    .*\n)*", TEXT, re.MULTILINE)
    assert found
    code = compile(dedent(found[0]), str(README), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names: dict[str, Any] = {}
    await eval(code, names)
    async with WebsocketConnectionPool(uri=names["uri"]) as pool, pool.get_connection() as one:
        await one.send("hello")
        assert await one.recv() == "hello"
    await names["server"].stop()


def test_the_first_example_has_ten_lines_at_most() -> None:
    _, code = blocks("python")[0]
    assert len([line for line in code.splitlines() if line]) <= 10


def test_the_diagram_is_the_machines() -> None:
    assert [code for _, code in blocks("mermaid")] == [states.diagram() + "\n"]


def test_the_options_are_the_constructors_with_its_defaults() -> None:
    documented = {row[0].strip("`"): row[1].strip("`") for row in table("Options")}
    actual = {}
    for parameter in inspect.signature(WebsocketConnectionPool).parameters.values():
        stars = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        has_default = parameter.default is not parameter.empty
        actual[stars + parameter.name] = repr(parameter.default) if has_default else ""
    assert documented == actual
    assert list(documented) == list(actual), "the order is the constructor's"


def test_every_number_among_the_options_has_a_unit() -> None:
    for name, default, unit, meaning in table("Options"):
        assert meaning
        if re.fullmatch(r"`[\d.]+`", default):
            assert unit, f"{name} has no unit"
        if re.fullmatch(r"`\d+\.\d+`", default):
            assert unit == "seconds", f"{name} is in seconds"


def test_every_error_is_in_the_table() -> None:
    errors = {
        name
        for name in wspool.__all__
        if isinstance(kind := getattr(wspool, name), type) and issubclass(kind, WebsocketError)
    }
    assert {row[0].strip("`") for row in table("Errors")} == errors - {"WebsocketError"}


def test_every_reason_of_a_close_that_is_listed_exists() -> None:
    _, _, text = TEXT.partition("The reasons of a close:\n")
    listed = re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in rows_of(text)[2:]))
    assert set(listed) <= {str(reason) for reason in CloseReason}


def test_the_links_to_files_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (README.parent / target).exists(), target


def test_the_commands_are_those_of_the_makefile() -> None:
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make (\w+)`", TEXT):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
