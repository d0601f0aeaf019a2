"""`python -m wspool record`: write down what a server says, without code.

With `--send` the command is the client as well; without it, any program is that is pointed to the
address which it prints.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import aiohttp
from aiohttp import WSMsgType

from wspool._cli.shared import Trouble, printable, program, status_name
from wspool._connection.scrubbing import scrub_uri
from wspool._testing import turns
from wspool._testing.recording import Recording
from wspool._testing.server import Server
from wspool._testing.turns import LOST, Close, Turn

REPLY_SECONDS: Final = 10.0
"""For the first message of an answer."""

WIDTH: Final = 100
"""Characters of a message that are shown."""


async def _record(args: argparse.Namespace) -> None:
    path = Path(args.file)
    if path.is_dir() or not args.file:
        raise Trouble(f"{args.file!r} is no name of a file")
    recording = Recording(args.uri, path, dict(args.header), ssl=not args.insecure)
    server = Server(recording)
    try:
        async with server:
            if args.send:
                await _talk(server, args)
            else:
                await _stand_between(server, args)
    except (OSError, ValueError) as error:  # of the recording: without secrets
        raise Trouble(str(error)) from None


async def _stand_between(server: Server, args: argparse.Namespace) -> None:
    """Return at Ctrl-C, which is the regular end here."""
    has_ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(signal.SIGINT, has_ended.set)
    except NotImplementedError:  # on Windows, where a handler may run anywhere

        def end(*_: object) -> None:
            loop.call_soon_threadsafe(has_ended.set)

        signal.signal(signal.SIGINT, end)
    print(
        f"{server.uri} stands for {scrub_uri(args.uri)}: let a client talk to it.\n"
        f"Ctrl-C ends it, and writes {args.file}.",
        flush=True,
    )
    await has_ended.wait()


async def _talk(server: Server, args: argparse.Namespace) -> None:
    """Send the messages one after the other, each when the answer before is complete."""
    async with aiohttp.ClientSession() as session:
        try:
            websocket = await session.ws_connect(
                server.uri, protocols=args.subprotocol, max_msg_size=0
            )
        except aiohttp.WSServerHandshakeError:
            return  # a refusal is recorded, and what else there is has failed the server
        async with websocket:
            with suppress(ConnectionError):
                await _listen(websocket, args.quiet, args.quiet)
                for message in args.send:
                    await websocket.send_str(message)
                    await _listen(websocket, REPLY_SECONDS, args.quiet)


async def _listen(
    websocket: aiohttp.ClientWebSocketResponse, first_seconds: float, quiet_seconds: float
) -> None:
    """Read until nothing comes for a while."""
    patience = first_seconds
    with suppress(TimeoutError):
        while True:
            frame = await websocket.receive(timeout=patience)
            if frame.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                raise ConnectionError("the server has closed")
            patience = quiet_seconds


# Showing.


def _show(recorded: list[Turn]) -> None:
    for turn in recorded:
        if turn.refusal is not None:
            print(f"#{turn.connection} x the server answers {status_name(turn.refusal.status)}")
        for message in turn.client:
            print(f"#{turn.connection} > {_short(message)}")
        for what, after in turn.server:
            shown = _close(what) if isinstance(what, Close) else f"< {_short(what)}"
            print(f"#{turn.connection} {shown}  ({after:.3f} s)")


def _close(close: Close) -> str:
    if close.code == LOST:
        return "x the connection is lost"
    return f"x the server closes with {close.code} {printable(close.reason)}".rstrip()


def _short(message: str | bytes) -> str:
    if isinstance(message, bytes):
        start = message[:16].hex(" ")
        return f"{len(message)} bytes: {start}{' …' if len(message) > 16 else ''}"
    text = printable(message)
    return text if len(text) <= WIDTH else f"{text[:WIDTH]}…"


# The command.


def run(args: argparse.Namespace) -> int:
    """Record, show what was recorded, and return the exit status, as `--help` tells it."""
    try:
        asyncio.run(_record(args))
        _, recorded = turns.read(Path(args.file))
    except Trouble as trouble:
        print(f"{program()} record: {printable(trouble)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if not args.send:
        print()
    _show(recorded)
    connections = len({turn.connection for turn in recorded})
    said = sum(1 for turn in recorded if turn.client)
    print(f"{args.file}: {_count(connections, 'handshake')}, {_count(said, 'turn')}")
    return 0


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
