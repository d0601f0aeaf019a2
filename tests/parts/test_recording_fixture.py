"""The fixture for recordings, in each way to run async tests, with a server that is gone later."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests import ROOT
from wspool.testing import Server

TESTS = """
import aiohttp
import pytest

pytestmark = {marks}


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def ask(uri, question):
    async with aiohttp.ClientSession() as session, session.ws_connect(uri) as client:
        await client.send_str(question)
        return (await client.receive()).data


def where():
    assert recording
    return {uri!r}


@pytest.mark.parametrize("question", ["a", "b/../c"])
async def test_it_asks(websocket_recording, question):
    global recording
    recording = websocket_recording.is_recording
    async with websocket_recording(where) as server:
        assert await ask(server.uri, question) == question
    assert websocket_recording.path.name.endswith("-2.jsonl")
    async with websocket_recording(where, ignore=["id"], strict=False) as server:
        assert await ask(server.uri, f"and {{question}}") == f"and {{question}}"


async def test_it_asks_otherwise(websocket_recording):
    async with websocket_recording({uri!r}) as server:
        answer = await ask(server.uri, "hello" if websocket_recording.is_recording else "hallo")
"""


@pytest.mark.parametrize(
    ("mode", "mark"),
    [("strict", "pytest.mark.asyncio"), ("strict", "pytest.mark.anyio"), ("auto", "[]")],
)
async def test_it_records_with_the_option_and_else_plays(
    mode: str, mark: str, tmp_path: Path
) -> None:
    """Each test has files of its own; one that asks otherwise than recorded fails."""

    async def run(*options: str) -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pytest", "-W", "error", f"--asyncio-mode={mode}", *options),
            *("-o", "asyncio_default_fixture_loop_scope=function", "-p", "no:cacheprovider"),
            *("-p", "pytest_asyncio.plugin", "-p", "anyio.pytest_plugin"),
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(60):
            printed = (await process.communicate())[0].decode()
        return process.returncode, printed

    async with Server() as real:
        (tmp_path / "conftest.py").write_text('pytest_plugins = ["wspool.pytest_plugin"]\n')
        (tmp_path / "test_it.py").write_text(TESTS.format(marks=mark, uri=real.uri))
        status, printed = await run("--wspool-record")
        assert status == 0, printed
        assert len(real.requests) == 5
        files = sorted(path.name for path in (tmp_path / "recordings" / "test_it").iterdir())
        assert files == [
            "test_it_asks[a]-2.jsonl",
            "test_it_asks[a].jsonl",
            "test_it_asks[b_.._c]-2.jsonl",
            "test_it_asks[b_.._c].jsonl",
            "test_it_asks_otherwise.jsonl",
        ]
    status, printed = await run()
    assert status == 1
    assert "2 passed" in printed, printed
    assert "1 failed" in printed, printed
    assert "-hello" in printed, printed
    assert "+hallo" in printed, printed
