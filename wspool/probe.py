"""`python -m wspool probe`: find out about a server, and say what to set.

It speaks to the server without a pool, since it wants to see what a pool hides: pings, pongs, the
parts of a handshake, the close code. It is gentle: it says how many dials it will make, makes them
one after the other, and gives no phase longer than it has to have. What it finds goes to `advice`;
no header, user-info or query value is shown.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus
from socket import gaierror
from time import perf_counter
from typing import Any, Final

import aiohttp
from aiohttp import WSMessage, WSMsgType

from wspool import wire
from wspool.advice import (
    Advice,
    Capacity,
    Close,
    Dial,
    Message,
    Observation,
    Target,
    Watch,
    advise,
    report,
    span,
)
from wspool.dialing import EARLY
from wspool.errors import scrub_error, scrub_text, scrub_uri, secrets_of
from wspool.top import Trouble, printable, status_name

PATIENCE: Final = 10.0
"""Seconds for a handshake and for a reply."""

PONG: Final = 2.0
"""Seconds for a pong and for a greeting."""

PINGS: Final = 3
"""Pings on each connection."""

PAUSE: Final = 0.25
"""Seconds between two dials, and of silence after which a reply is complete."""

RAMP: Final = 0.05
"""Seconds between two of the dials of --connections."""

GOODBYE: Final = 1.0
"""Seconds for the server to answer a close."""

LIMIT: Final = 1000
"""Pings of the server, on one connection, whose times are remembered."""

Show = Callable[[str, float, float], None]
"""Shows of a phase how much is done, and of how much."""


def nothing(*_: object) -> None:
    """Show nothing."""


_marks: ContextVar[dict[str, float]] = ContextVar("wspool_probe_marks")
"""When the parts of the dial under way began and ended."""


@dataclass(frozen=True)
class Plan:
    """What to find out; times are in seconds."""

    dials: int = 5
    listen: float = 2.0
    idle: float | None = None
    connections: int = 0

    def __str__(self) -> str:
        parts = [f"{self.dials} dials one after the other"]
        if self.idle is not None:
            parts.append(f"up to 3 that stay for {self.idle:g} s")
        if self.connections:
            parts.append(f"up to {self.connections} at once")
        return ", ".join(parts)


# One connection.


class Line:
    """A WebSocket that is read from its first moment to its end; the server's pings are answered."""

    def __init__(self, websocket: aiohttp.ClientWebSocketResponse, secrets: list[str]) -> None:
        self.websocket = websocket
        self.opened = self.heard = perf_counter()
        self.messages = 0
        self.first: Message | None = None
        self.close: Close | None = None
        self._secrets = secrets
        self._socket = wire.Socket(websocket)
        self._pings: deque[float] = deque(maxlen=LIMIT)
        # What `ask` waits for: which frame it is, and the time of its arrival or None at the end.
        self._wanted: Callable[[WSMessage], bool] = lambda frame: False
        self._answer: asyncio.Future[float | None] | None = None
        self._beat_task: asyncio.Task[None] | None = None
        self.reader_task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            while self.close is None:
                frame = await self.websocket.receive()
                if frame.type is WSMsgType.CLOSING:
                    return  # by us
                if frame.type is WSMsgType.CLOSE:
                    self._end(frame.data or 1005, frame.extra or "")
                elif frame.type is WSMsgType.CLOSED:
                    self._end(1006)
                elif frame.type is WSMsgType.ERROR:
                    self._end(int(getattr(frame.data, "code", 1006)), str(frame.data))
                else:
                    await self._take(frame)
        except (OSError, aiohttp.ClientError):
            self._end(1006)
        finally:
            self._settle(None)

    def _end(self, code: int, reason: str = "") -> None:
        reason = printable(scrub_text(reason, self._secrets))
        self.close = Close(perf_counter() - self.opened, code, reason)

    async def _take(self, frame: WSMessage) -> None:
        now = perf_counter()
        if is_message(frame):
            self.heard = now
            self.messages += 1
            if self.first is None:
                is_text = frame.type is WSMsgType.TEXT
                size = len(frame.data.encode() if is_text else frame.data)
                self.first = Message(now - self.opened, "text" if is_text else "binary", size)
        elif frame.type is WSMsgType.PING:
            self._pings.append(now - self.opened)
            await self.websocket.pong(frame.data)
        if self._wanted(frame):
            self._settle(now)

    def _settle(self, at: float | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(at)

    async def ask(
        self,
        wanted: Callable[[WSMessage], bool],
        patience: float,
        send: Callable[[], Awaitable[object]] | None = None,
    ) -> float | None:
        """Send, and return when the first such frame arrived, or None if none did."""
        if self.reader_task.done():
            return None
        self._answer = asyncio.get_running_loop().create_future()
        self._wanted = wanted
        with suppress(TimeoutError, OSError, aiohttp.ClientError):
            async with asyncio.timeout(patience):
                if send is not None:
                    await send()
                return await self._answer
        return None

    async def ping(self) -> float | None:
        """Return the round trip of a ping in seconds, or None."""
        began, payload = perf_counter(), str(perf_counter()).encode()

        def is_pong(frame: WSMessage) -> bool:
            return frame.type is WSMsgType.PONG and bytes(frame.data) == payload

        at = await self.ask(is_pong, PONG, lambda: self.websocket.ping(payload))
        return None if at is None else at - began

    async def reply(self, text: str) -> float | None:
        """Send a message and return when the next one came, or None."""
        return await self.ask(is_message, PATIENCE, lambda: self.websocket.send_str(text))

    async def quiet(self) -> None:
        """Return when nothing has come for a while, or is still coming after a long one."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while (left := self.heard + PAUSE - perf_counter()) > 0:
                    await asyncio.sleep(left)

    def beat(self, act: Callable[[], Awaitable[object]]) -> None:
        """Act again and again until the end.

        The waits grow with the time, so that whatever the server's idle limit is, they are a
        quarter of it when it comes, and there are few of them in all.
        """

        async def beat() -> None:
            with suppress(OSError, aiohttp.ClientError):
                while True:
                    await asyncio.sleep(max(PAUSE, (perf_counter() - self.opened) / 4))
                    await act()

        self._beat_task = asyncio.create_task(beat())

    async def wait(self, seconds: float, show: Callable[[float], None]) -> None:
        """Return when the server has closed, or after so many seconds since the handshake."""
        while (left := self.opened + seconds - perf_counter()) > 0 and not self.reader_task.done():
            await asyncio.wait([self.reader_task], timeout=min(0.1, left))
            show(min(perf_counter() - self.opened, seconds))

    def seen(self) -> Watch:
        """Return all that has come so far."""
        seconds = self.close.after if self.close else perf_counter() - self.opened
        return Watch(seconds, self.messages, self.first, tuple(self._pings), self.close)

    async def hang_up(self) -> None:
        """Say goodbye and return when the socket is gone, soon, by force if need be."""
        if self._beat_task is not None:
            self._beat_task.cancel()
        try:
            async with asyncio.timeout(GOODBYE):
                await self.websocket.close()
                await self._socket.wait_gone()
        except (TimeoutError, OSError, aiohttp.ClientError):
            pass
        finally:
            self._socket.abort()
            self.reader_task.cancel()
            await asyncio.wait([self.reader_task])


def is_message(frame: WSMessage) -> bool:
    return frame.type in (WSMsgType.TEXT, WSMsgType.BINARY)


# Dialling.


class Dialler:
    """Makes connections to the target, each with the times of its handshake."""

    def __init__(self, target: Target, session: aiohttp.ClientSession) -> None:
        self.target = target
        self.secrets = secrets_of(target.uri, target.headers)
        self._session = session
        self._ssl = ssl.create_default_context()
        if target.is_insecure:
            self._ssl.check_hostname = False
            self._ssl.verify_mode = ssl.CERT_NONE
        self._ssl.sslobject_class = _TimedTls

    async def dial(self) -> tuple[Dial, Line]:
        """Return the times and the connection, which is the caller's to hang up."""
        target, marks = self.target, {"began": perf_counter()}
        _marks.set(marks)
        async with asyncio.timeout(PATIENCE):
            websocket = await self._session.ws_connect(
                target.uri,
                headers=target.headers,
                protocols=target.protocols,
                ssl=self._ssl,
                compress=15,
                autoping=False,
                autoclose=False,
                timeout=aiohttp.ClientWSTimeout(ws_receive=None, ws_close=GOODBYE),
            )
        line = Line(websocket, self.secrets)
        connected = marks["connected"]
        resolved = marks.get("resolved", marks["connecting"])
        secure = marks.get("tls", connected)
        dial = Dial(
            dns=resolved - marks["resolving"] if "resolving" in marks else None,
            tcp=secure - resolved,
            tls=connected - secure if "tls" in marks else None,
            upgrade=line.opened - connected,
            total=line.opened - marks["began"],
        )
        return dial, line

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[Dial, Line]]:
        dial, line = await self.dial()
        try:
            yield dial, line
        finally:
            await line.hang_up()

    def why(self, error: BaseException) -> str:
        """Return in one line, without secrets, why a dial has failed."""
        return printable(scrub_text(self._why(error), self.secrets))

    def _why(self, error: BaseException) -> str:
        is_tls = self.target.uri.lower().startswith("wss:")
        other = "ws://" if is_tls else "wss://"
        scrubbed = str(scrub_error(error, self.secrets)) or type(error).__name__
        match error:
            case TimeoutError():
                return f"no answer within {PATIENCE:g} s"
            case aiohttp.WSServerHandshakeError(status=HTTPStatus.SWITCHING_PROTOCOLS):
                return f"the server's handshake is wrong: {error.message}"
            case aiohttp.WSServerHandshakeError():
                return _refusal(error)
            case aiohttp.ClientConnectorDNSError() | gaierror():
                return "there is no address for this host name"
            case aiohttp.ClientConnectorCertificateError():
                wrong = error.certificate_error
                return f"the certificate is not valid: {wrong}; --insecure does without"
            case aiohttp.ClientSSLError():
                return f"the TLS handshake failed; is it {other}? {scrubbed}"
            case aiohttp.ServerDisconnectedError() | ConnectionResetError():
                return f"the server hung up during the handshake; is it {other}?"
            case aiohttp.ClientResponseError():
                return f"the answer is not HTTP; is it {other}?"
        return scrubbed


def _refusal(error: aiohttp.WSServerHandshakeError) -> str:
    """Name the status that came in the place of a handshake, in our words."""
    hint = ""
    if error.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        hint = "; -H 'Name: value' sends what it asks for"
    elif retry_after := (error.headers or {}).get("Retry-After"):
        hint = f"; Retry-After is {retry_after}"
    return f"the server answered {status_name(error.status)}, not with a WebSocket handshake{hint}"


class _TimedTls(ssl.SSLObject):
    """Notes when the TLS handshake begins, which aiohttp's tracing counts with TCP's."""

    def do_handshake(self) -> None:
        _marks.get().setdefault("tls", perf_counter())
        super().do_handshake()


def tracing() -> aiohttp.TraceConfig:
    """Return what notes the parts of each dial."""
    config = aiohttp.TraceConfig()

    def mark(name: str) -> Any:
        async def note(*_: object) -> None:
            _marks.get()[name] = perf_counter()

        return note

    config.on_connection_create_start.append(mark("connecting"))
    config.on_dns_resolvehost_start.append(mark("resolving"))
    config.on_dns_resolvehost_end.append(mark("resolved"))
    config.on_connection_create_end.append(mark("connected"))
    return config


# The questions.


async def observe(target: Target, plan: Plan, show: Show = nothing) -> Observation:
    """Ask the server all that the plan has, or raise Trouble."""
    connector = aiohttp.TCPConnector(limit=0, use_dns_cache=False)
    async with aiohttp.ClientSession(connector=connector, trace_configs=[tracing()]) as session:
        dialler, number = Dialler(target, session), 1
        try:
            seen = await _listen(dialler, plan, show)
            show("dials", 1, plan.dials)
            for number in range(2, plan.dials + 1):
                await asyncio.sleep(PAUSE)
                seen = replace(seen, dials=(*seen.dials, await _visit(dialler, seen)))
                show("dials", number, plan.dials)
            number += 1
            if plan.idle is not None:
                seen = await _idle(dialler, plan.idle, seen, show)
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            why = f"{dialler.why(error)}{f' (at dial {number})' if number > 1 else ''}"
            raise Trouble(f"{scrub_uri(target.uri)}: {why}") from None
        if plan.connections:
            capacity = await _fill(dialler, plan.connections, show)
            seen = replace(seen, capacity=capacity)
    return seen


async def _listen(dialler: Dialler, plan: Plan, show: Show) -> Observation:
    """Make the first dial and send nothing: does the server greet, push, ping, close?"""
    async with dialler.connection() as (dial, line):
        await line.wait(plan.listen, lambda done: show("listening", done, plan.listen))
        seen = line.seen()
        if seen.close is not None and seen.close.after < EARLY:
            how = f"the server closed {span(seen.close.after)} after the handshake: {seen.close}"
            raise Trouble(f"{scrub_uri(dialler.target.uri)}: {how}")
        if seen.first is not None and seen.first.after < EARLY:
            dial = replace(dial, greeting=dial.total + seen.first.after)
        return Observation(
            uri=scrub_uri(dialler.target.uri),
            dials=(dial,),
            listening=seen,
            protocol=line.websocket.protocol,
            is_compressed=bool(line.websocket.compress),
        )


async def _visit(dialler: Dialler, seen: Observation) -> Dial:
    """Make another dial and talk: for the greeting, a reply, pongs, a reply on a used connection.

    What was not answered on the connection before is not asked for again.
    """
    text = dialler.target.text
    before = seen.dials[-1]
    is_first = len(seen.dials) == 1
    began = perf_counter()
    async with dialler.connection() as (dial, line):
        if before.greeting is not None:
            if line.first is None:
                await line.ask(is_message, PONG)
            if line.first is not None:
                dial = replace(dial, greeting=dial.total + line.first.after)
        if text is not None and (is_first or before.fresh is not None):
            at = await line.reply(text)
            dial = replace(dial, fresh=None if at is None else at - began)
        if is_first or before.pings:
            pings: list[float] = []
            while len(pings) < PINGS and (round_trip := await line.ping()) is not None:
                pings.append(round_trip)
            dial = replace(dial, pings=tuple(pings))
        if text is not None and dial.fresh is not None:
            await line.quiet()
            sent = perf_counter()
            at = await line.reply(text)
            dial = replace(dial, reused=None if at is None else at - sent)
        return replace(dial, close=line.close)


async def _idle(dialler: Dialler, seconds: float, seen: Observation, show: Show) -> Observation:
    """Leave a connection alone until the server closes it; do others stay that are not silent?"""
    text = dialler.target.text
    lines: list[Line] = []
    try:
        for _ in range(2 if text is None else 3):
            lines.append((await dialler.dial())[1])
        silent, pinging, *rest = lines
        pinging.beat(pinging.websocket.ping)
        if text is not None:
            rest[0].beat(partial(rest[0].websocket.send_str, text))
        await silent.wait(seconds, lambda done: show("idle", done, seconds))
        if silent.close is not None:  # see that the others do not just stay a little longer
            enough = 1.1 * silent.close.after + 1
            await asyncio.gather(*(line.wait(enough, nothing) for line in lines[1:]))
        watches = [line.seen() for line in lines]
    finally:
        await _hang_up(lines)
    show("idle", seconds, seconds)
    sending_watch = watches[2] if text is not None else None
    return replace(seen, silent=watches[0], pinging=watches[1], sending=sending_watch)


async def _fill(dialler: Dialler, count: int, show: Show) -> Capacity:
    """Open one connection after the other, and keep them, until the server says no."""
    lines: list[Line] = []
    refusal = ""
    try:
        while len(lines) < count and not refusal:
            try:
                lines.append((await dialler.dial())[1])
            except (TimeoutError, aiohttp.ClientError, OSError) as error:
                refusal = dialler.why(error)
            show("connections", len(lines), count)
            # After the last, as long as a server takes that refuses by closing.
            await asyncio.sleep(RAMP if len(lines) < count else EARLY / 2)
            closed = [line.close for line in lines if line.close is not None]
            if closed and not refusal:
                refusal = f"one was closed after {span(closed[-1].after)}, {closed[-1]}"
        return Capacity(count, len(lines) - len(closed), refusal)
    finally:
        await _hang_up(lines)


async def _hang_up(lines: list[Line]) -> None:
    await asyncio.gather(*(line.hang_up() for line in lines))


# Showing.


@contextmanager
def display() -> Iterator[Show]:
    """Give a Show: a bar for each phase where there are a terminal and rich, else nothing."""
    try:
        from rich.console import Console
        from rich.progress import Progress, TaskID
    except ImportError:
        yield nothing
        return
    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield nothing
        return
    bars: dict[str, TaskID] = {}
    with Progress(console=console, transient=True) as progress:

        def show(phase: str, done: float, total: float) -> None:
            if phase not in bars:
                bars[phase] = progress.add_task(phase, total=total)
            progress.update(bars[phase], completed=done)

        yield show


# The command.


def run(args: argparse.Namespace) -> int:
    """Probe the server and return the exit status, as `--help` tells it."""
    target = Target(args.uri, dict(args.header), tuple(args.subprotocol), args.send, args.insecure)
    plan = Plan(args.dials, args.listen, args.idle, args.connections)
    try:
        if not args.json:
            print(f"{scrub_uri(target.uri)}: {plan}\n", flush=True)
        with display() as show:
            seen = asyncio.run(observe(target, plan, show))
    except Trouble as trouble:
        print(f"wspool probe: {trouble}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    advice = advise(seen, target)
    print(_json(seen, advice) if args.json else f"{report(seen, target)}\n\n{advice.code()}")
    return 0


def _json(seen: Observation, advice: Advice) -> str:
    arguments = {a.name: {"value": a.value, "why": a.why} for a in advice.arguments}
    found = {"observation": seen.to_dict(), "arguments": arguments, "notes": advice.notes}
    return json.dumps(found | {"code": advice.code()}, indent=2)
