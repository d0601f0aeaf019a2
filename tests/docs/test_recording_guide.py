"""The guide to recording does what it says, and its tests play without a network.

That is shown in a network namespace which has nothing but loopback. Where the system does not let
us make one, that part is skipped.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT
from tests.support.pages import DOCS
from tests.support.suites import NO_OTHER_PLUGINS, PYTEST, run
from wspool.testing import Peer, Server

pytestmark = pytest.mark.once

CANARY = "canary-7531"
WITH_TOKEN = NO_OTHER_PLUGINS | {"TRANSLATOR_TOKEN": CANARY}
QUIETLY = (*PYTEST, "-q", "-p", "pytest_asyncio.plugin")

IN_A_NAMESPACE = """
import fcntl, os, socket, struct, sys
names = [name for _, name in socket.if_nameindex()]
assert names == ["lo"], names
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:  # as `ip link set lo up` does
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 1))
os.execv(sys.argv[1], sys.argv[1:])
"""


def blocks() -> list[str]:
    text = (DOCS / "howto" / "recording.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


async def run_without_network(*command: str, cwd: Path) -> tuple[int, str]:
    try:
        status, printed = await run(
            "unshare", "--user", "--map-root-user", "--net", "true", cwd=cwd
        )
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if status:
        pytest.skip(f"there may be no network namespace of our own: {printed.strip()}")
    unshare = ("unshare", "--user", "--map-root-user", "--net")
    inside = (*unshare, sys.executable, "-c", IN_A_NAMESPACE)
    return await run(*inside, *command, cwd=cwd, **NO_OTHER_PLUGINS)


async def translate(peer: Peer) -> None:
    """Do what the guide's server does, for those who have the token."""
    assert peer.request.headers["Authorization"] == f"Bearer {CANARY}"
    while True:
        request = await peer.recv_json()
        await peer.send_json({"id": request["id"], "text": request["text"].upper()})


@pytest.fixture
async def translator() -> AsyncIterator[Server]:
    async with Server(translate) as server:
        yield server


@pytest.fixture
def suite(tmp_path: Path, translator: Server) -> Path:
    """The guide's tests in a directory, for a server that is here."""
    for block in blocks():
        if name := re.match(r"# (\w+\.py)\n", block):
            code = block.replace("wss://example.com/v1", translator.uri)
            (tmp_path / name[1]).write_text(code, encoding="utf-8")
    return tmp_path


async def test_the_tests_of_the_guide_are_recorded_once_and_need_no_network_then(
    suite: Path, translator: Server
) -> None:
    status, printed = await run(*QUIETLY, cwd=suite, **NO_OTHER_PLUGINS)
    assert status == 1
    assert "there is no such recording: make it with record() or --wspool-record" in printed
    assert not translator.requests

    status, printed = await run(*QUIETLY, "--wspool-record", cwd=suite, **WITH_TOKEN)
    assert status == 0, printed
    assert translator.requests
    file = suite / "recordings" / "test_translating" / "test_it_translates.jsonl"
    assert CANARY not in file.read_text(encoding="utf-8")

    await translator.stop()
    status, printed = await run(*QUIETLY, cwd=suite, **NO_OTHER_PLUGINS)
    assert status == 0, printed
    status, printed = await run_without_network(*QUIETLY, cwd=suite)
    assert status == 0, printed


async def test_a_changed_client_fails_with_the_difference(suite: Path) -> None:
    status, printed = await run(*QUIETLY, "--wspool-record", cwd=suite, **WITH_TOKEN)
    assert status == 0, printed
    test = suite / "test_translating.py"
    test.write_text(test.read_text(encoding="utf-8").replace('"text": text', '"txt": text'))
    status, printed = await run(*QUIETLY, cwd=suite, **NO_OTHER_PLUGINS)
    assert status == 1
    assert re.search(r'-  "text": "\w+",\\n\+  "txt": "\w+",', printed), printed


async def test_the_tests_of_the_example_need_no_network() -> None:
    command = (*QUIETLY, "-p", "wspool.pytest_plugin", "examples/recorded_tests.py")
    status, printed = await run_without_network(*command, cwd=ROOT)
    assert status == 0, printed
    assert "2 passed" in printed


async def test_the_code_without_pytest_runs(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"uri": server.uri}
    code = compile(blocks()[-1], "recording.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    await eval(code, names)
    assert names["recorded"] == "hello"
    assert len(server.requests) == 1, "the second run has asked the replay"
    assert (tmp_path / "turns.jsonl").exists()
