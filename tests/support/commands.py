"""The command line, run in a process of its own as a user would."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from tests import ROOT
from wspool._cli import commands as command_line


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


async def run_here(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run it in a thread of this process, which takes less time."""
    status = await asyncio.to_thread(command_line.main, arguments)
    return status, *capsys.readouterr()


class Screen:
    """What a process has written to a terminal so far, when called; and the keys of that."""

    def __init__(self, ours: int) -> None:
        self._ours = ours
        self.written = bytearray()

    def __call__(self) -> str:
        return self.written.decode(errors="replace")

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())


@asynccontextmanager
async def terminal(lines: int, columns: int) -> AsyncIterator[tuple[int, Screen]]:
    """Give a terminal for a process, and what was written to it so far."""
    import pty
    import termios

    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (lines, columns))
    screen = Screen(ours)
    loop = asyncio.get_running_loop()

    def read() -> None:
        try:
            screen.written.extend(os.read(ours, 65536))
        except OSError:  # the process has ended
            loop.remove_reader(ours)

    loop.add_reader(ours, read)
    try:
        yield theirs, screen
    finally:
        loop.remove_reader(ours)
        os.close(ours)
        os.close(theirs)
