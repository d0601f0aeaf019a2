"""The real servers: anvil, graphql-ws, an MQTT broker, Chromium."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from examples import devtools
from tests.conftest import needs_chromium

HERE: Final = Path(__file__).parent

NPM: Final = os.environ.get("WSPOOL_NPM")
"""The directory with `node_modules`."""


def needs_npm() -> Path:
    """Return the directory; without one skip the test, which is never required of a machine."""
    if NPM is None:
        pytest.skip("WSPOOL_NPM names no directory with what tests/support/dialogues lists")
    return Path(NPM)


@asynccontextmanager
async def _started(*command: str | Path, port: str) -> AsyncIterator[str]:
    """Run a server that prints its port, and give its URI."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"WSPOOL_NPM": str(needs_npm().resolve())},
    )
    assert process.stdout is not None
    reading_task = None
    try:
        found = None
        while found is None:
            line = (await process.stdout.readline()).decode()
            assert line, f"{command[0]} has ended, or says nothing more"
            found = re.search(port, line)
        reading_task = asyncio.create_task(process.stdout.read())  # that its pipe does not fill up
        yield f"ws://127.0.0.1:{found[1]}/"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
        if reading_task is not None:
            await reading_task


@asynccontextmanager
async def anvil() -> AsyncIterator[str]:
    """An Ethereum node for development, whose time and accounts are always the same."""
    programs = list(needs_npm().glob("node_modules/@foundry-rs/anvil-*/bin/anvil"))
    if not programs:
        pytest.skip("WSPOOL_NPM names no directory with @foundry-rs/anvil")
    options = ("--port", "0", "--timestamp", "1700000000")
    async with _started(programs[0], *options, port=r"Listening on 127\.0\.0\.1:(\d+)") as uri:
        yield uri


@asynccontextmanager
async def graphql() -> AsyncIterator[str]:
    async with _started("node", HERE / "graphql.mjs", port=r"^(\d+)$") as uri:
        yield uri


@asynccontextmanager
async def mqtt() -> AsyncIterator[str]:
    async with _started("node", HERE / "mqtt.mjs", port=r"^(\d+)$") as uri:
        yield uri


@asynccontextmanager
async def chromium() -> AsyncIterator[str]:
    needs_chromium()
    async with devtools.chromium() as uri:
        yield uri
