"""The server that benchmarks talk to: a process of its own, so that its work is not measured.

/        each message comes back
/late    each comes back after LATE_SECONDS
/stream  to a number, so many small messages come back, which were encoded beforehand
"""

from __future__ import annotations

import argparse
import asyncio
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from aiohttp import WSMsgType, web

from tests import ROOT

MOST = 15_000
"""Connections at a time."""

LATE_SECONDS = 0.05
"""Of a message's way there and back, as from a server that is far away."""

BACKLOG = 4096
"""Connections that may wait to be accepted: with fewer, a burst of them loses a second."""


def allow_files(count: int) -> None:
    """Let this process have so many files open, and some more; OSError if that is not possible."""
    try:
        import resource
    except ImportError:
        return  # Windows has no such limit
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 100
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise OSError(f"at most {hard} open files are allowed (ulimit -Hn), not {wanted}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextmanager
def echo_server(*, delay: float = 0.0, certificate: Path | None = None) -> Iterator[str]:
    """Give the URI of an echo server in a child process, which ends with the block.

    `delay` is in seconds before a handshake is answered; with a certificate it speaks TLS.
    """
    arguments = ["--delay", str(delay)]
    if certificate is not None:
        arguments += ["--certificate", str(certificate)]
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.server", *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:  # leaving closes the child's stdin, and waits for its end
        assert child.stdout is not None
        yield child.stdout.readline().strip()


async def serve(delay: float, certificate: Path | None) -> None:
    """Serve until the parent closes our stdin, or is gone."""

    async def handle(request: web.Request) -> web.StreamResponse:
        if delay:
            await asyncio.sleep(delay)
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        await {"/stream": stream, "/late": late}.get(request.path, echo)(request, websocket)
        return websocket

    with suppress(OSError):  # the client says so, where it needs them
        allow_files(MOST)
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    app = web.Application()
    app.router.add_get("/{tail:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context, backlog=BACKLOG).start()
    scheme = "ws" if context is None else "wss"
    print(f"{scheme}://127.0.0.1:{runner.addresses[0][1]}/", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


async def echo(_: web.Request, websocket: web.WebSocketResponse) -> None:
    async for message in websocket:
        if message.type is WSMsgType.TEXT:
            await websocket.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await websocket.send_bytes(message.data)


async def late(_: web.Request, websocket: web.WebSocketResponse) -> None:
    loop = asyncio.get_running_loop()
    sends = set[asyncio.Task[None]]()

    def answer(message: str) -> None:
        task = loop.create_task(websocket.send_str(message))
        sends.add(task)
        task.add_done_callback(sends.discard)

    async for message in websocket:
        loop.call_later(LATE_SECONDS, answer, message.data)


async def stream(request: web.Request, websocket: web.WebSocketResponse) -> None:
    async for message in websocket:
        assert request.transport is not None
        request.transport.write(frames(int(message.data)))


@cache
def frames(count: int) -> bytes:
    """Return so many text messages as they are on the wire (RFC 6455, 5.2)."""
    payloads = (f"message {number}".encode() for number in range(count))
    return b"".join(bytes((0x81, len(payload))) + payload for payload in payloads)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--certificate", type=Path)
    asyncio.run(serve(**vars(parser.parse_args())))
