"""A Redis server of the system's, in a process of its own, to which a test does what it wants."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import tempfile
from typing import Any, Final, Self

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as NotYet

from tests.conftest import skip

PROGRAM: Final = shutil.which("redis-server")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class RedisServer:
    """Serves Redis on loopback, without a disk, at a free port that a restart keeps."""

    def __init__(self) -> None:
        if PROGRAM is None:
            skip("there is no redis-server (Debian's package of that name has it)")
        self.port = free_port()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    async def start(self) -> None:
        assert PROGRAM is not None
        options = {"port": self.port, "bind": "127.0.0.1", "save": "", "appendonly": "no"}
        self._process = await asyncio.create_subprocess_exec(
            PROGRAM,
            *(text for name, value in options.items() for text in (f"--{name}", str(value))),
            cwd=tempfile.gettempdir(),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        async with asyncio.timeout(10), self.client() as client:
            while True:
                try:
                    await client.ping()
                    return
                except NotYet:
                    await asyncio.sleep(0.02)

    def client(self) -> Redis:
        return Redis.from_url(self.url, decode_responses=True)

    async def calls(self) -> int:
        """Return how many scripts have been run."""
        async with self.client() as client:
            stats: dict[str, Any] = await client.info("commandstats")
        return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha"))

    def pause(self) -> None:
        """Stop answering, as a machine that swaps; connections stay open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def stop(self) -> None:
        """End at once; the data is gone."""
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()
