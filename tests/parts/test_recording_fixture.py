"""The fixture for recordings, in each way to run async tests, with a server that is gone later."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.suites import HEAD, NO_OTHER_PLUGINS, PYTEST, run
from wspool.testing import Server

TESTS = (
    HEAD
    + """

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
)


@pytest.mark.parametrize(
    ("mode", "mark"),
    [("strict", "pytest.mark.asyncio"), ("strict", "pytest.mark.anyio"), ("auto", "[]")],
)
async def test_it_records_with_the_option_and_else_plays(
    mode: str, mark: str, tmp_path: Path
) -> None:
    """Each test has files of its own; one that asks otherwise than recorded fails."""

    command = (*PYTEST, f"--asyncio-mode={mode}", "-p", "pytest_asyncio.plugin")
    command += ("-p", "anyio.pytest_plugin")
    async with Server() as real:
        (tmp_path / "conftest.py").write_text('pytest_plugins = ["wspool.pytest_plugin"]\n')
        (tmp_path / "test_it.py").write_text(TESTS.format(marks=mark, uri=real.uri))
        status, printed = await run(*command, "--wspool-record", cwd=tmp_path, **NO_OTHER_PLUGINS)
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
    status, printed = await run(*command, cwd=tmp_path, **NO_OTHER_PLUGINS)
    assert status == 1
    assert "2 passed" in printed, printed
    assert "1 failed" in printed, printed
    assert "-hello" in printed, printed
    assert "+hallo" in printed, printed
