"""The command line, run in a process of its own as a user would."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent


@asynccontextmanager
async def start_python(
    *arguments: str, environment: Mapping[str, str] | None = None, **options: Any
) -> AsyncIterator[Process]:
    """Start Python on the package; at the end of the block it has ended, by force if need be."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", *arguments),
        **{"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE} | options,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"} | dict(environment or {}),
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def start(*arguments: str, **options: Any) -> AbstractAsyncContextManager[Process]:
    """Start `python -m wspool`."""
    return start_python("-m", "wspool", *arguments, **options)


async def run(*arguments: str) -> tuple[int, str, str]:
    """Run it to its end and return exit status, stdout and stderr."""
    async with start(*arguments) as process, asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()
