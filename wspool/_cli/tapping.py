"""One WebSocket as a probe wants it: with all that aiohttp and the pool deal with in silence.

The server's pings and the pongs to ours, the close code and when it came, the parts of the
handshake. This file asks no questions of its own, and no text that leaves it has secrets.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from http import HTTPStatus
from socket import gaierror
from time import perf_counter
from typing import Any, Final

import aiohttp
from aiohttp import WSMessage, WSMsgType

from wspool._cli.answers import Answer, heartbeat_mark, marks
from wspool._cli.observations import Close, Dial, Message, Target, Watch
from wspool._cli.shared import printable, status_name
from wspool._connection.aiohttp_internals import Transport, connect
from wspool._connection.budget import Budget
from wspool._connection.scrubbing import given_by, scrub_error, scrub_text, secrets_of

REPLY_SECONDS: Final = 10.0
"""For a handshake, for a reply to begin, and for the rest of it."""

ANSWER_SECONDS: Final = 2.0
"""For a pong, and for a greeting."""

PAUSE_SECONDS: Final = 0.25
"""Between two dials, and the least silence after which an answer is over."""

FIRST_PAUSE_SECONDS: Final = 2.0
"""The silence after which the first answer is over: nobody knows yet how long its pauses are."""

CLOSE_SECONDS: Final = 1.0
"""For the server to answer a close."""

MAX_WORD_BYTES: Final = 1024
"""Of a message that may be a heartbeat."""

LIMIT: Final = 1000
"""Pings of the server, on one connection, whose times are remembered; messages of an answer."""

MAX_TEXT_BYTES: Final = 1024 * 1024
"""Of an answer whose messages are compared with those of others."""

SHOWN: Final = 80
"""Characters of a message that are shown."""

_marks: ContextVar[dict[str, float]] = ContextVar("wspool_probe_marks")
"""When the parts of the dial under way began and ended."""


class Heard:
    """The messages since a question, when they came, and which of them came before a pong."""

    def __init__(self, before: Sequence[Answer]) -> None:
        self.began = self.latest = self.first = perf_counter()
        self.messages = 0
        self.pause = 0.0
        self.last: str | bytes = ""
        self.texts: list[str | bytes] | None = []
        self.before_pong: int | None = None
        self._bytes = 0
        # What earlier answers tell of this one: how long it may pause, and how much is to come.
        pauses = [2 * answer.pause for answer in before] or [FIRST_PAUSE_SECONDS]
        self._patience = max(PAUSE_SECONDS, *pauses)
        self._expected = min((answer.messages for answer in before), default=0)

    def add(self, message: str | bytes, now: float) -> None:
        self.messages += 1
        if self.messages == 1:
            self.first = now
        else:
            self.pause = max(self.pause, now - self.latest)
        self.latest, self.last = now, message
        self._bytes += len(message)
        if self._bytes > MAX_TEXT_BYTES or self.messages > LIMIT:
            self.texts = None
        if self.texts is not None:
            self.texts.append(message)

    def left(self, is_pong_due: bool) -> float:
        """Return for how long there must be silence still until the answer is over.

        A server that has paused for some time may do so again, and longer.
        """
        patience = max(self._patience, 2 * self.pause)
        if self.messages < self._expected:
            patience = max(patience, FIRST_PAUSE_SECONDS)
        if is_pong_due and self.before_pong is None:
            patience = max(patience, ANSWER_SECONDS)
        return self.latest + patience - perf_counter()


class Tap:
    """A WebSocket that is read from its first moment to its end; pings are answered."""

    def __init__(
        self, websocket: aiohttp.ClientWebSocketResponse, secrets: tuple[str, ...]
    ) -> None:
        self.websocket = websocket
        self.opened = perf_counter()
        self.messages = 0
        self.first: Message | None = None
        self.close: Close | None = None
        self._secrets = secrets
        self._transport = Transport(websocket)
        self._pings: deque[float] = deque(maxlen=LIMIT)
        # What came before any question, as far as it is short, and what came since the last one.
        self._unasked: deque[str | bytes] = deque(maxlen=LIMIT)
        self._heard: Heard | None = None
        self._fence = b""
        # What `ask` waits for: which frame it is, and the time of its arrival or None at the end.
        self._wanted: Callable[[WSMessage], bool] = lambda frame: False
        self._answer: asyncio.Future[float | None] | None = None
        self._beat_task: asyncio.Task[None] | None = None
        self.reader_task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            budget = Budget()
            while self.close is None:
                await budget.breathe()  # what has arrived is received without a wait
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
            self.messages += 1
            if self._heard is not None:
                self._heard.add(frame.data, now)
            elif len(frame.data) < MAX_WORD_BYTES:
                self._unasked.append(frame.data)
            if self.first is None:
                is_text = frame.type is WSMsgType.TEXT
                size = len(frame.data.encode() if is_text else frame.data)
                self.first = Message(now - self.opened, "text" if is_text else "binary", size)
        elif frame.type is WSMsgType.PING:
            self._pings.append(now - self.opened)
            await self.websocket.pong(frame.data)
        elif frame.type is WSMsgType.PONG and self._fence and bytes(frame.data) == self._fence:
            if self._heard is not None and self._heard.before_pong is None:
                self._heard.before_pong = self._heard.messages
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

        at = await self.ask(is_pong, ANSWER_SECONDS, lambda: self.websocket.ping(payload))
        return None if at is None else at - began

    async def answer(
        self, text: str, before: Sequence[Answer], *, with_ping: bool = False
    ) -> Answer | None:
        """Send a message and return what comes until there is silence, or None for nothing.

        How long a silence that takes is learned from the answers before. With a ping right behind
        the question, the answer says what came before its pong.
        """
        self._heard = heard = Heard(before)
        self._fence = str(heard.began).encode() if with_ping else b""

        async def send() -> None:
            await self.websocket.send_str(text)
            if with_ping:
                await self.websocket.ping(self._fence)

        if await self.ask(is_message, REPLY_SECONDS, send) is None:
            return None
        is_whole = False
        with suppress(TimeoutError):
            async with asyncio.timeout(REPLY_SECONDS):
                while (left := heard.left(with_ping)) > 0 and not self.reader_task.done():
                    await asyncio.wait([self.reader_task], timeout=min(left, PAUSE_SECONDS))
                is_whole = True
        return Answer(
            messages=heard.messages,
            first=heard.first - heard.began,
            seconds=heard.latest - heard.began,
            pause=heard.pause,
            last=self._shown(heard.last),
            is_whole=is_whole,
            is_compressed=bool(self.websocket.compress),
            before_pong=heard.before_pong,
            texts=None if heard.texts is None else tuple(heard.texts),
        )

    def _shown(self, message: str | bytes) -> str:
        """Return a message as people may see it."""
        if isinstance(message, bytes):
            return f"{len(message)} bytes"
        text = printable(scrub_text(message, self._secrets))
        return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"

    def beat(self, act: Callable[[], Awaitable[object]]) -> None:
        """Act again and again until the end.

        The waits grow with the time, so that whatever the server's idle limit is, they are a
        quarter of it when it comes, and there are few of them in all.
        """

        async def beat() -> None:
            with suppress(OSError, aiohttp.ClientError):
                while True:
                    await asyncio.sleep(max(PAUSE_SECONDS, (perf_counter() - self.opened) / 4))
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
        mark = heartbeat_mark(self._unasked)
        beats = sum(mark in marks(text) for text in self._unasked) if mark else 0
        return Watch(
            seconds, self.messages, self.first, tuple(self._pings), self.close, mark, beats
        )

    async def hang_up(self) -> None:
        """Say goodbye and return when the socket is gone, soon, by force if need be."""
        if self._beat_task is not None:
            self._beat_task.cancel()
        try:
            await self._transport.close(self.websocket, CLOSE_SECONDS)
        finally:
            self.reader_task.cancel()
            await asyncio.wait([self.reader_task])


def is_message(frame: WSMessage) -> bool:
    return frame.type in (WSMsgType.TEXT, WSMsgType.BINARY)


class Dialler:
    """Makes connections to the target, each with the times of its handshake."""

    def __init__(self, target: Target, session: aiohttp.ClientSession) -> None:
        self.target = target
        given = given_by(target.uri, {"protocols": target.protocols})
        self.secrets = secrets_of(target.uri, target.headers, given)
        self._session = session
        self._is_tls = target.uri.lower().startswith("wss:")
        self._ssl = _context(target.is_insecure) if self._is_tls else True

    async def dial(self, *, compress: bool = True) -> tuple[Dial, Tap]:
        """Return the times and the connection, which is the caller's to hang up.

        Compression is offered, or not.
        """
        target, marks = self.target, {"began": perf_counter()}
        _marks.set(marks)
        async with asyncio.timeout(REPLY_SECONDS):
            websocket = await connect(
                self._session,
                target.uri,
                headers=target.headers,
                protocols=target.protocols,
                ssl=self._ssl,
                compress=15 if compress else 0,
                autoping=False,
                autoclose=False,
                timeout=aiohttp.ClientWSTimeout(ws_receive=None, ws_close=CLOSE_SECONDS),
            )
        tap = Tap(websocket, self.secrets)
        connected = marks["connected"]
        resolved = marks.get("resolved", marks["connecting"])
        secure = marks.get("tls", connected)
        dial = Dial(
            dns=resolved - marks["resolving"] if "resolving" in marks else None,
            tcp=secure - resolved,
            tls=connected - secure if "tls" in marks else None,
            upgrade=tap.opened - connected,
            total=tap.opened - marks["began"],
        )
        return dial, tap

    @asynccontextmanager
    async def connection(self, *, compress: bool = True) -> AsyncIterator[tuple[Dial, Tap]]:
        dial, tap = await self.dial(compress=compress)
        try:
            yield dial, tap
        finally:
            await tap.hang_up()

    def why(self, error: BaseException) -> str:
        """Return in one line, without secrets, why a dial has failed."""
        return printable(scrub_text(self._why(error), self.secrets))

    def _why(self, error: BaseException) -> str:
        other = "ws://" if self._is_tls else "wss://"
        scrubbed = str(scrub_error(error, self.secrets)) or type(error).__name__
        match error:
            case TimeoutError():
                return f"no answer within {REPLY_SECONDS:g} s"
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
    if error.status < HTTPStatus.BAD_REQUEST:
        hint = " instead of a WebSocket handshake"
    elif error.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        hint = "; -H 'Name: value' sends what it asks for"
        if error.status == HTTPStatus.FORBIDDEN:  # what ASGI servers say to an unknown path, too
            hint += ", unless the path is wrong"
    elif error.headers and "Retry-After" in error.headers:
        hint = f"; Retry-After: {error.headers['Retry-After']}"
    return f"the server answered {status_name(error.status)}{hint}"


def _context(is_insecure: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if is_insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.sslobject_class = _TimedTls
    return context


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
