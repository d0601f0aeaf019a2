"""Tests as users write them, run in a process of their own."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Final

from tests import ROOT

PYTEST: Final = (
    *(sys.executable, "-m", "pytest", "-W", "error", "-p", "no:cacheprovider"),
    *("-o", "asyncio_default_fixture_loop_scope=function"),
)

NO_OTHER_PLUGINS: Final = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
"""Environment in which pytest loads those that it is told to, which takes less time."""

HEAD: Final = """
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

"""
"""What a module of async tests begins with, pytest-asyncio's or anyio's; to be formatted."""


async def run(*command: str, cwd: Path, **environment: str) -> tuple[int, str]:
    """Run a command; return its exit status, and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"} | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(60):  # only a net
        printed = (await process.communicate())[0].decode()
    assert process.returncode is not None
    return process.returncode, printed
