"""nginx and HAProxy in front of a server, each admitting so many WebSockets and no more."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from tests.conftest import skip, until

SBIN: Final = f"{os.environ.get('PATH', '')}:/usr/sbin"


def program(name: str) -> str:
    """Return where it is; skip the test where it is missing."""
    path = shutil.which(name, path=SBIN)
    return path or skip(f"there is no {name}")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _accepts(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@asynccontextmanager
async def _running(port: int, *command: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await until(lambda: _accepts(port) or process.returncode is not None, "it listens")
        assert process.returncode is None
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


class Nginx:
    """nginx with `limit_conn`, which answers 503 to one more."""

    def __init__(self, upstream: str, directory: Path, admitted: int) -> None:
        self._upstream, self._directory = upstream, directory
        self._port = _free_port()
        self.uri = f"ws://127.0.0.1:{self._port}/"
        self._process: asyncio.subprocess.Process | None = None
        self._write(admitted)

    def _write(self, admitted: int) -> None:
        directory = self._directory
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        paths = "".join(f"{kind}_temp_path {directory}/{kind};" for kind in kinds)
        (directory / "nginx.conf").write_text(
            f"""
            daemon off; pid {directory}/pid; worker_processes 1;
            events {{ worker_connections 512; }}
            http {{
                log_format status "$status";
                access_log {directory}/access.log status; {paths}
                limit_conn_zone $binary_remote_addr zone=sockets:1m;
                server {{
                    listen 127.0.0.1:{self._port};
                    location / {{
                        limit_conn sockets {admitted};
                        proxy_pass {self._upstream.replace("ws:", "http:")};
                        proxy_http_version 1.1;
                        proxy_set_header Upgrade $http_upgrade;
                        proxy_set_header Connection "upgrade";
                    }}
                }}
            }}
            """
        )

    @property
    def refused(self) -> int:
        """How often it has answered 503."""
        return (self._directory / "access.log").read_text().split().count("503")

    def reload(self, admitted: int) -> None:
        """Admit another number from now on; what is open stays open, and counts."""
        assert self._process is not None
        self._write(admitted)
        self._process.send_signal(signal.SIGHUP)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Nginx]:
        directory = str(self._directory)
        command = (program("nginx"), "-e", "stderr", "-p", directory, "-c")
        async with _running(self._port, *command, f"{directory}/nginx.conf") as self._process:
            yield self


@asynccontextmanager
async def haproxy(upstream: str, directory: Path, admitted: int) -> AsyncIterator[str]:
    """HAProxy, whose server has `maxconn`: one more waits for 100 ms, and is answered 503."""
    port = _free_port()
    (directory / "haproxy.cfg").write_text(
        f"""
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    timeout tunnel 1h
    timeout queue 100ms
frontend public
    bind 127.0.0.1:{port}
    default_backend sockets
backend sockets
    retries 0
    server one {upstream.removeprefix("ws://").rstrip("/")} maxconn {admitted}
"""
    )
    async with _running(port, program("haproxy"), "-db", "-f", str(directory / "haproxy.cfg")):
        yield f"ws://127.0.0.1:{port}/"
