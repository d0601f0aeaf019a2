"""A WebSocket server that keeps to no rule, in a process of its own.

It speaks HTTP and frames by hand, so that it can break both. The path of a handshake says what it
does with that connection: `/echo` behaves, `/` does what a seeded generator says, and any other
is one of `ATTACKS`. A line on its stdin changes that: `calm` cuts off all that misbehave and lets
every path behave from now on, `rage` ends that.

`hostile_server` starts it; `python -m tests.explore.hostile SEED` is what that starts.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import random
import socket
import struct
import sys
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

from tests import ROOT

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

CHUNK_BYTES: Final = 64 * 1024
"""Of a flood, between two looks whether the connection is still there."""

BOMB_BYTES: Final = 4 * 1024 * 1024 - 1
"""Of a compressed message, once it is inflated: as much as aiohttp takes by default."""

GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""Goes into each accept key (RFC 6455, 1.3)."""


def frame(opcode: int, payload: bytes = b"", *, bits: int = 0x80, length: int = -1) -> bytes:
    """Return a frame; `bits` are FIN and the reserved ones, `length` what its head claims."""
    length = len(payload) if length < 0 else length
    if length < 126:
        head = struct.pack("!BB", bits | opcode, length)
    elif length < 65536:
        head = struct.pack("!BBH", bits | opcode, 126, length)
    else:
        head = struct.pack("!BBQ", bits | opcode, 127, length)
    return head + payload


def bomb(size: int = BOMB_BYTES) -> bytes:
    """Return a compressed message of zeros, which is a thousandth of what becomes of it."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = deflate.compress(bytes(size)) + deflate.flush(zlib.Z_SYNC_FLUSH)
    return frame(BINARY, data[:-4], bits=0xC0)


FLOODS: Final[dict[str, bytes]] = {
    "empty": frame(TEXT),
    "tiny": frame(TEXT, b"x"),
    "small": frame(TEXT, b"x" * 100),
    "large": frame(BINARY, bytes(1024 * 1024)),
    "pings": frame(PING, b"?"),
    "pongs": frame(PONG, b"!"),
    "fat-pings": frame(PING, bytes(125)),
    "mixed": frame(PING) + frame(TEXT, b"x") + frame(PONG) + frame(BINARY, bytes(5000)),
    "fragments": frame(TEXT, b"x", bits=0) + frame(CONTINUATION, b"x") + frame(PING),
    "endless-message": frame(CONTINUATION, bytes(1000), bits=0),
    "bombs": bomb(),
}
"""What is sent without end, by the name of the attack."""

BROKEN: Final[dict[str, bytes]] = {
    "opcode": frame(3, b"x"),
    "control opcode": frame(11, b"x"),
    "reserved bits": frame(TEXT, b"x", bits=0xF0),
    "masked": b"\x81\x81\x00\x00\x00\x00x",
    "not UTF-8": frame(TEXT, b"\xff\xfe"),
    "ping in fragments": frame(PING, b"x", bits=0),
    "ping too long": frame(PING, bytes(126)),
    "continuation of nothing": frame(CONTINUATION, b"x"),
    "text within a message": frame(TEXT, b"x", bits=0) + frame(TEXT, b"y"),
    "length of 2**63": frame(BINARY, length=2**63),
    "length above the limit": frame(BINARY, b"x", length=2**40),
    "close of one byte": frame(CLOSE, b"x"),
    "close code 1006": frame(CLOSE, struct.pack("!H", 1006)),
    "close code 0": frame(CLOSE, struct.pack("!H", 0)),
    "close reason not UTF-8": frame(CLOSE, struct.pack("!H", 1000) + b"\xff"),
    "no deflate": frame(TEXT, b"\xff\xff\xff", bits=0xC0),
    "bytes": bytes(range(255, 155, -1)),
}
"""What RFC 6455 forbids."""

RETRY_AFTERS: Final = (
    *("0", "0.1", "-1", "1e400", "9" * 400, "nan", "inf", "soon", "", " ", "0x10", "١٢", "1,2"),
    *("Fri, 31 Dec 9999 23:59:59 GMT", "Fri, 31 Dec 9999 23:59:59 -2359"),
    *("Mon, 00 Jan 0000 00:00:00 GMT", "Fri, 31 Feb 2027 25:61:61 GMT", "Thu, 01 Jan 1970 00:00"),
    *("Fri, 31 Dec 99999999999999999999 23:59:59 GMT", "Wed, 21 Oct 2026 07:28:00 +99999999"),
    *("Mon, 01 Jan 0001 00:00:00 +2359", "99999999", "1 2 3"),
)
"""What an answer asks a client to wait."""

LOCATIONS: Final = ("", "/", "ws://[", "http://127.0.0.1:1/", "//", "ws://user:pass@host:99999/")


def _answer(status: str, *headers: str) -> bytes:
    lines = (f"HTTP/1.1 {status}", "Content-Length: 0", *headers, "", "")
    return "\r\n".join(lines).encode("utf-8")


class Reset(Exception):
    """The connection is to be reset."""


class Session:
    """One connection: its handshake, then what its path asks for, while the client is answered."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, generator: random.Random
    ) -> None:
        self.reader, self.writer, self.random = reader, writer, generator
        self.transport = writer.transport
        self.is_compressed = False
        # Whether the client's frames are answered, as they should be.
        self.is_polite = True

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    # The handshake.

    async def read_head(self) -> tuple[str, dict[str, str]]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = (line.partition(":") for line in head[1:] if line)
        return head[0].split()[1], {name.lower(): value.strip() for name, _, value in fields}

    def acceptance(self, headers: dict[str, str]) -> bytes:
        digest = hashlib.sha1(headers["sec-websocket-key"].encode() + GUID).digest()
        lines = [
            "HTTP/1.1 101 Switching Protocols",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Accept: {base64.b64encode(digest).decode()}",
        ]
        if "permessage-deflate" in headers.get("sec-websocket-extensions", ""):
            self.is_compressed = True
            lines.append(
                "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; "
                "client_no_context_takeover"
            )
        return "\r\n".join([*lines, "", ""]).encode()

    async def refuse(self, headers: dict[str, str]) -> None:
        """Answer the handshake in one of the ways that open no WebSocket."""
        choose = self.random.choice
        good = self.acceptance(headers)
        kinds: tuple[Callable[[], bytes], ...] = (
            lambda: _answer("503 Busy", f"Retry-After: {choose(RETRY_AFTERS)}"),
            lambda: _answer("429 Slow", f"Retry-After: {choose(RETRY_AFTERS)}"),
            lambda: _answer(choose(("401 No", "403 No", "500 Oh", "200 OK", "999 What", "-1 x"))),
            lambda: _answer("302 Found", f"Location: {choose(LOCATIONS)}"),
            lambda: good.replace(b"Accept: ", b"Accept: x"),
            lambda: good.replace(b"Upgrade: websocket", b"Upgrade: h2c"),
            lambda: good.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: other\r\n\r\n"),
            lambda: self.random.randbytes(self.random.randrange(1, 5000)),
            lambda: b"HTTP/1.1 101 " + b"x" * 100_000,
            lambda: good[: self.random.randrange(len(good))],
            lambda: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
            lambda: b"",
        )
        data = choose(kinds)()
        match choose(("at once", "at once", "slowly", "reset", "silent")):
            case "at once":
                await self.write(data)
            case "slowly":
                for at in range(min(len(data), 200)):
                    await self.write(data[at : at + 1])
                    await asyncio.sleep(0.003)
            case "reset":
                self.writer.write(data)
                raise Reset
            case "silent":
                await asyncio.sleep(self.random.choice((0.1, 60.0)))

    # Being polite.

    async def answer_frames(self) -> None:
        """Answer the client's frames for as long as it is polite to; what breaks, ends."""
        read = self.reader.readexactly
        while True:
            first, second = await read(2)
            length = second & 127
            if length > 125:
                length = int.from_bytes(await read(2 if length == 126 else 8), "big")
            mask = await read(4)
            payload = await read(length)
            if not self.is_polite:
                continue
            keys = (mask * (length // 4 + 1))[:length]
            data = (int.from_bytes(payload, "big") ^ int.from_bytes(keys, "big")).to_bytes(
                length, "big"
            )
            opcode = first & 15
            if opcode == CLOSE:
                await self.write(frame(CLOSE, data))
                return
            if opcode in (TEXT, BINARY):
                # A compressed one, of which each stands for itself, goes back as it came.
                await self.write(frame(opcode, data, bits=first & 0xF0))
            elif opcode == PING:
                await self.write(frame(PONG, data))

    # Being hostile.

    async def flood(self, kind: str) -> None:
        """Send something without end, and read nothing."""
        unit = FLOODS[kind]
        if kind == "bombs" and not self.is_compressed:
            unit = FLOODS["large"]
        if kind == "endless-message":
            await self.write(frame(TEXT, b"x", bits=0))
        chunk = unit * max(1, CHUNK_BYTES // len(unit))
        self.is_polite = False
        self.transport.pause_reading()  # type: ignore[attr-defined]
        while True:
            await self.write(chunk)
            await asyncio.sleep(0)

    async def attack(self, path: str) -> None:
        """Do what the path names, for as long as it lasts."""
        if path in FLOODS:
            await self.flood(path)
        elif path == "huge-frame":
            await self.write(frame(BINARY, length=4 * 1024 * 1024 - 1))
            while True:
                await self.write(b"x")
                await asyncio.sleep(0.001)
        elif path == "mute":
            self.is_polite = False
            self.transport.pause_reading()  # type: ignore[attr-defined]
            await asyncio.sleep(3600.0)
        elif path == "half-close":
            self.is_polite = False
            self.writer.write_eof()
            await asyncio.sleep(3600.0)
        elif path == "close-and-flood":
            await self.write(frame(CLOSE, struct.pack("!H", 1001)))
            await self.flood("mixed")
        elif path == "no-close":
            self.is_polite = False
            await asyncio.sleep(3600.0)
        elif path == "broken":
            await self.write(self.random.choice(list(BROKEN.values())))
            await asyncio.sleep(3600.0)
        elif path == "reset":
            await asyncio.sleep(self.random.uniform(0.0, 0.2))
            raise Reset
        elif path == "refuse":
            pass
        else:
            await asyncio.sleep(3600.0)

    async def misbehave(self) -> None:
        """Do one thing after the other."""
        choose, chance = self.random.choice, self.random.random
        while True:
            self.is_polite = chance() < 0.9
            match choose(STEPS):
                case "wait":
                    await asyncio.sleep(choose((0.0, 0.01, 0.1, 0.5)))
                case "speak":
                    for _ in range(self.random.randrange(1, 300)):
                        self.writer.write(choose(VALID))
                    await self.writer.drain()
                case "slow":
                    for byte in choose(VALID)[:200]:
                        await self.write(bytes([byte]))
                        await asyncio.sleep(choose((0.0, 0.001)))
                case "huge":
                    await self.write(frame(BINARY, bytes(choose((300_000, 2_000_000, 4_194_305)))))
                case "broken":
                    await self.write(choose(list(BROKEN.values())))
                case "flood":
                    with suppress(TimeoutError):
                        async with asyncio.timeout(choose((0.05, 0.3, 1.0))):
                            await self.flood(choose(list(FLOODS)))
                    self.transport.resume_reading()  # type: ignore[attr-defined]
                case "attack":
                    await self.attack(choose(list(ATTACKS)))
                case "mute":
                    self.transport.pause_reading()  # type: ignore[attr-defined]
                    await asyncio.sleep(choose((0.1, 0.5, 5.0)))
                    self.transport.resume_reading()  # type: ignore[attr-defined]
                case "close":
                    code = choose((1000, 1001, 1012, 1013, 3000, 4999))
                    await self.write(frame(CLOSE, struct.pack("!H", code) + b"so long"))
                case "end":
                    return
                case "reset":
                    raise Reset


ATTACKS: Final = (
    *FLOODS,
    *("huge-frame", "mute", "half-close", "close-and-flood", "no-close", "broken", "reset"),
    "refuse",
)
"""What a path may name."""

STEPS: Final = (
    *("wait",) * 12,
    *("speak",) * 5,
    *("flood",) * 3,
    *("slow", "huge", "broken", "attack", "mute", "close", "end", "reset"),
)
"""What a hostile connection does next, by how often."""

VALID: Final = (
    *(FLOODS[kind] for kind in ("empty", "tiny", "small", "pings", "pongs", "mixed", "fragments")),
    frame(BINARY, bytes(20_000)),
)


class Hostile:
    """The server: its sessions, and whether it is calm."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.is_calm = False
        self.misbehaving: set[asyncio.Transport] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = Session(reader, writer, random.Random(self.random.random()))
        try:
            await self._serve(session)
        except Reset:
            raw = writer.get_extra_info("socket")
            with suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
            pass  # the client was faster
        finally:
            self.misbehaving.discard(writer.transport)
            writer.close()

    async def _serve(self, session: Session) -> None:
        path, headers = await session.read_head()
        name = path.strip("/")
        is_hostile = not self.is_calm and name != "echo"
        if is_hostile:
            self.misbehaving.add(session.transport)
            if name == "refuse" or (not name and session.random.random() < 0.3):
                await session.refuse(headers)
                return
        await session.write(session.acceptance(headers))
        answering = asyncio.ensure_future(session.answer_frames())
        jobs: list[Awaitable[None]] = [answering]
        if is_hostile:
            act = session.attack(name) if name else session.misbehave()
            jobs = [asyncio.ensure_future(act)]
        try:
            await jobs[0]
        finally:
            answering.cancel()
            await asyncio.wait({answering})
            if not answering.cancelled():
                answering.exception()

    def obey(self, command: str) -> None:
        self.is_calm = command == "calm"
        for transport in self.misbehaving if self.is_calm else ():
            transport.abort()


async def main(seed: int) -> None:
    hostile = Hostile(seed)
    server = await asyncio.start_server(hostile.serve, "127.0.0.1", 0, backlog=1000)
    print(server.sockets[0].getsockname()[1], flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        hostile.obey(line.strip())
        print(line.strip(), flush=True)
    os._exit(0)


@asynccontextmanager
async def hostile_server(seed: int) -> AsyncIterator[tuple[str, Callable[[str], Awaitable[None]]]]:
    """Start the server; give its address, and what tells it a command."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.explore.hostile", str(seed)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        cwd=ROOT,
    )
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None

    async def tell(command: str) -> None:
        stdin.write(f"{command}\n".encode())
        async with asyncio.timeout(30.0):
            assert (await stdout.readline()).decode().strip() == command

    try:
        async with asyncio.timeout(30.0):
            port = int(await stdout.readline())
        yield f"ws://127.0.0.1:{port}", tell
    finally:
        process.kill()
        await process.wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
