"""The code on all pages runs, tables have what the code has, and links lead somewhere."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import re
import sys
import tomllib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import wspool
from tests import ROOT
from tests.support.pages import DOCS, PAGES, README, Block, anchors, blocks, links, rows, text_of
from tests.support.redis_server import RedisServer
from wspool import CloseReason, WebsocketConnectionPool, WebsocketError, WebsocketPools
from wspool.testing import Peer, Server

pytestmark = pytest.mark.once

MAX_README_LINES = 250
LOCAL = "ws://localhost:8080/"
HAVE_TESTS_OF_THEIR_OWN = {DOCS / "providers.md", DOCS / "howto" / "recording.md"}
BLOCKS = [b for page in PAGES if page not in HAVE_TESTS_OF_THEIR_OWN for b in blocks(page)]
URLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]


async def answer(peer: Peer) -> None:
    """Do what the borrowers on the pages expect: stream, log in, be silent, or echo."""
    async for message in peer:
        assert isinstance(message, str)
        if message.startswith('{"type": "create"'):
            for kind in ("part", "part", "completed"):
                await peer.send(json.dumps({"type": kind}))
        elif message == '{"type": "login"}':
            await peer.send('{"type": "ready"}')
        elif "without an answer" not in message:
            await peer.send(message)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
async def test_each_block_of_python_runs(
    block: Block, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    async with Server(answer) as server:
        if "asyncio.run(" in block.code or LOCAL in block.code:
            printed = await run_as_script(block.code.replace(LOCAL, server.uri))
        else:
            names: dict[str, Any] = {"uri": server.uri}
            async with RedisServer() if "redis_url" in block.code else nullcontext() as redis:
                names["redis_url"] = redis.url if redis is not None else ""
                printed = await run_in_this_loop(block, names, capsys)
        has_its_own_server = "wspool.testing" in block.code
        assert server.peers or has_its_own_server, "the example did not connect"
        async with asyncio.timeout(10):  # only a net
            while server.open:
                await asyncio.sleep(0.005)
    assert printed.strip(), "the example printed nothing"
    assert not list(recwarn)
    if block.prints is not None:
        assert printed == block.prints
    for said in re.findall(r"# (closed|1)\b", block.code):
        assert said in printed.splitlines(), f"the comment says that {said!r} is printed"


async def run_as_script(code: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-c", code),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, complaint = await process.communicate()
    assert (process.returncode, complaint.decode()) == (0, "")
    return printed.decode()


async def run_in_this_loop(
    block: Block, names: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> str:
    """Run a block with `await` at its top level, as `python -m asyncio` would."""
    numbered = "\n" * (block.line - 1) + block.code
    compiled = compile(numbered, str(block.page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    running = eval(compiled, names)
    if inspect.isawaitable(running):
        async with asyncio.timeout(30):  # only a net
            await running
    if "lifespan" in names:  # an application, which is started and ended as its server would
        async with names["lifespan"](names["app"]) as state:
            async with state["pool"].get_connection() as connection:
                print(connection)
        names |= state
    made = names["pools"] if "pools" in names else names["pool"]
    assert isinstance(made, WebsocketConnectionPool | WebsocketPools)
    assert made.is_closed
    return capsys.readouterr().out


# The README.


def test_the_readme_counts_the_faults_that_have_a_test() -> None:
    tests = (ROOT / "tests" / "pool" / "test_pathologies.py").read_text(encoding="utf-8")
    count = len(re.findall(r"^(?:async )?def test_", tests, re.MULTILINE))
    assert f"** {count} faults that were seen in pools" in text_of(README)


def test_the_readme_is_read_in_ten_minutes() -> None:
    assert len(text_of(README).splitlines()) <= MAX_README_LINES


def test_the_first_example_needs_no_server_of_the_readers() -> None:
    first = next(iter(blocks(README)))
    assert "wspool.testing" in first.code
    assert "asyncio.run(" in first.code


def test_the_realistic_service_has_25_lines_of_code_at_most() -> None:
    _, service, *_ = blocks(README)
    assert len([line for line in service.code.splitlines() if line.strip()]) <= 25


def test_the_readme_has_no_link_or_picture_that_a_package_index_would_lose() -> None:
    assert links(README) == []
    text = text_of(README)
    defined = dict(re.findall(r"^\[([\w-]+)\]: (\S+)$", text, re.MULTILINE))
    assert set(re.findall(r"\]\[([\w-]+)\]", text)) == set(defined)
    for target in defined.values():
        assert target.startswith((URLS["Documentation"] + "/", URLS["Source"] + "/")), target


def test_the_addresses_in_the_readme_are_those_of_pages_and_files() -> None:
    pictures = {Path(link).name for page in PAGES for link in links(page) if link[-4:] == ".png"}
    for target in re.findall(r"^\[[\w-]+\]: (\S+)$", text_of(README), re.MULTILINE):
        page = target.removeprefix(URLS["Documentation"] + "/")
        file = target.removeprefix(URLS["Source"] + "/blob/main/")
        if page.startswith("_images/"):
            assert page.removeprefix("_images/") in pictures, target
        elif page != target:
            assert (DOCS / (page or "index.html")).with_suffix(".md").exists(), target
        else:
            assert (ROOT / file).exists(), target


def test_the_commands_are_those_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        for target in re.findall(r"`make ([\w-]+)`", text_of(page)):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


# The reference.


def test_the_options_are_the_constructors_with_its_defaults() -> None:
    documented = {
        row[0].strip("`"): row[1].strip("`") for row in rows("reference/options.md", "option")
    }
    actual = {}
    for parameter in inspect.signature(WebsocketConnectionPool).parameters.values():
        stars = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        has_default = parameter.default is not parameter.empty
        actual[stars + parameter.name] = repr(parameter.default) if has_default else ""
    assert documented == actual


def test_the_options_are_in_seven_groups_each_in_the_constructors_order() -> None:
    order = list(inspect.signature(WebsocketConnectionPool).parameters)
    tables = re.findall(r"^\| option \|.*\n(?:\|.*\n)+", text_of("reference/options.md"), re.M)
    assert len(tables) == 7
    for table in tables:
        names = re.findall(r"^\| `\**(\w+)`", table, re.MULTILINE)
        assert names == sorted(names, key=order.index)


def test_every_number_among_the_options_has_a_unit() -> None:
    for name, default, unit, meaning in rows("reference/options.md", "option"):
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
    listed = {row[0].strip("`") for row in rows("reference/errors.md", "error")}
    assert listed == errors - {"WebsocketError"}


def test_every_reason_of_a_close_is_in_the_table() -> None:
    listed = re.findall(
        r"`(\w+)`", "".join(row[0] for row in rows("reference/events.md", "reason"))
    )
    assert sorted(listed) == sorted(map(str, CloseReason))


@pytest.mark.parametrize("module", ["prometheus", "opentelemetry"])
def test_every_metric_is_in_a_table(module: str) -> None:
    pytest.importorskip({"opentelemetry": "opentelemetry.metrics"}.get(module, "prometheus_client"))
    said = __import__(f"wspool.{module}", fromlist=[""]).__doc__
    metrics = set(re.findall(r"^    ([\w{}]+)  ", said, re.MULTILINE))
    assert len(metrics) >= 10
    heading = {"prometheus": "type", "opentelemetry": "unit"}[module]
    assert metrics == {row[0].strip("`") for row in rows("reference/metrics.md", heading)}


# Links.


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_within_the_documentation_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_the_contents() -> None:
    listed = {DOCS / "index.md"}
    for page in PAGES:
        for contents in re.findall(r"^```{toctree}\n(.*?)^```$", text_of(page), re.S | re.M):
            names = re.findall(r"^(?:\w+ <)?([\w/]+)>?$", contents, re.MULTILINE)
            listed |= {page.parent / f"{name}.md" for name in names}
    assert set(PAGES) - {README} == listed
