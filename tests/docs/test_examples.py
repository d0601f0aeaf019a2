"""The examples run, and do what their first lines say."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from tests import ROOT
from tests.conftest import until
from wspool import ConnectionClosedError
from wspool.testing import Server

pytestmark = pytest.mark.once


def load(name: str) -> ModuleType:
    """Import an example as a module, without running it as a script."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def run(name: str, *arguments: str) -> tuple[str, str, int | None]:
    """Run an example as a script; return what it printed, its complaints and its exit status."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", str(ROOT / "examples" / name), *arguments),
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONIOENCODING": "utf-8"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, complaint = await process.communicate()
    return printed.decode(), complaint.decode(), process.returncode


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_an_example_is_short_and_can_be_run(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) < 120
    is_a_script = any(line.startswith('if __name__ == "__main__"') for line in lines)
    assert os.access(path, os.X_OK) == lines[0].startswith("#!") == is_a_script


async def test_the_web_app_asks_over_the_pool(server: Server) -> None:
    example = load("web_app")
    async with TestClient(TestServer(example.make_app(server.uri))) as client:
        for text in ("hello", "and again"):
            async with client.get("/ask", params={"text": text}) as response:
                assert (response.status, await response.text()) == (200, text)
        assert len(server.requests) == 1, "the second question is asked on the same connection"
    await until(lambda: not server.open, "the application has closed its connections")


async def test_the_web_app_brings_a_server_of_its_own() -> None:
    example = load("web_app")
    async with TestClient(TestServer(example.make_app())) as client:
        async with client.get("/ask", params={"text": "hello"}) as response:
            assert (response.status, await response.text()) == (200, "hello")


async def test_the_web_app_lends_its_session_and_closes_it_itself(server: Server) -> None:
    example = load("web_app")
    app = example.make_app(server.uri)
    async with TestClient(TestServer(app)):
        session = app[example.SESSION]
        await app[example.POOL].close_all()
        assert not session.closed
    assert session.closed


async def test_watching_states_prints_every_move_of_the_story() -> None:
    printed, complaint, status = await run("watch_states.py")
    assert status == 0, complaint
    moves = re.findall(r"#\d+ +(\w+) → (\w+) +(\w+)", printed)
    for move in (
        ("connecting", "idle", "dialled"),
        ("idle", "busy", "acquire"),
        ("busy", "idle", "release"),
        ("busy", "draining", "release"),
        ("draining", "idle", "clean"),
        ("busy", "closed", "server"),
        ("idle", "closed", "idle"),
        ("busy", "closed", "pool"),
    ):
        assert move in moves, f"{move} is missing in:\n{printed}"
    assert "with code 1001" in printed
    assert "Traceback" not in complaint


async def test_the_tests_of_a_client_pass_as_a_script() -> None:
    printed, complaint, status = await run("testing_your_code.py")
    assert (status, complaint) == (0, "")
    assert printed.count(" passed\n") == 4


async def test_the_tests_of_a_client_fail_with_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that asks for the wrong thing is told what the server has expected."""
    example = load("testing_your_code")

    async def ask(self: Any, text: str) -> str:
        async with self.pool.get_connection() as connection:
            await connection.send_json({"type": "translate", "txt": text})
            return str((await connection.recv_json())["text"])

    monkeypatch.setattr(example.Translator, "_ask", ask)
    with pytest.raises(ConnectionClosedError) as failed:
        await example.test_it_asks_as_the_provider_wants_it_and_returns_the_text()
    assert "expected {'type': 'translate', 'text': 'good day'}" in failed.value.__notes__[0]
