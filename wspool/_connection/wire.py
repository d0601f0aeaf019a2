"""The wire: one WebSocket of one dial attempt, what is read from it, written to it, and its loss.

A wire knows neither pool nor loan, and not in which state the connection is that it belongs to:
whoever calls it has looked whether it may. It calls `on_lost` once, when nothing more can be read
or written.

One routine takes a frame off the WebSocket, `read`. Whoever waits for a message, sends a ping,
drains or attends goes through it, and never two at a time: the second waits for its turn and looks
again after each frame.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from time import perf_counter
from typing import Any, Final, Literal

import aiohttp
from aiohttp import WSMsgType

from wspool._connection import aiohttp_internals
from wspool._connection.budget import MESSAGE_OVERHEAD_BYTES, MIN_FRAMES, Budget
from wspool._connection.errors import ENDS_PROGRAM
from wspool._connection.states import CloseReason

logger = logging.getLogger("wspool")

MAX_INBOX_BYTES: Final = 512 * 1024
"""Bytes kept for an owner that is not in `recv`; at this size reading stops.

A message counts with `MESSAGE_OVERHEAD_BYTES` more than its length, as in aiohttp's own queue,
whose limit this is.
"""

LARGE_BYTES: Final = 64 * 1024
"""From this size on a message may be what a compressed one of a thousandth was inflated to."""

MAX_PINGS: Final = 1024
"""Unanswered pings that are remembered; a pong for an older one is not recognised."""

TEXT: Final = WSMsgType.TEXT
BINARY: Final = WSMsgType.BINARY
CLOSE_FRAME: Final = WSMsgType.CLOSE

OnLost = Callable[[CloseReason, int, str, BaseException | None], object]
"""Is told why, the close code, the reason, and the error, if there was one."""

Control = Callable[[str | bytes], bool | str | bytes | None]
"""Is asked of each message whether it is the pool's business, and what to answer."""


def encoded(message: str | bytes) -> tuple[bytes, WSMsgType]:
    """Return the payload and the kind of a message's frame, before anything is sent or counted.

    Raises TypeError for what is neither str nor bytes, UnicodeEncodeError for what is no text.
    """
    if isinstance(message, str):
        return message.encode(), TEXT
    if isinstance(message, bytes):
        return message, BINARY
    if isinstance(message, (bytearray, memoryview)):
        return bytes(message), BINARY
    kind = type(message).__name__
    raise TypeError(f"send() takes str or bytes, not {kind}; send_json() sends a value as JSON")


def check_close(code: object, reason: object) -> None:
    """Raise TypeError or ValueError for what may not stand in a CLOSE frame (RFC 6455, 7.4)."""
    if isinstance(code, bool) or not isinstance(code, int):
        raise TypeError(f"code is {code!r}; it must be a number, such as 1000")
    if not isinstance(reason, str):
        raise TypeError(f"reason is {reason!r}; it must be a string")
    if not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        raise ValueError(f"code is {code}; use 1000, or your own from 4000 to 4999")


def size_of(message: str | bytes) -> int:
    """Return the bytes of a message's payload."""
    if isinstance(message, str) and not message.isascii():
        return len(message.encode())
    return len(message)


class Ping:
    """A ping under way: when it was sent, and when a pong answered it, by perf_counter."""

    __slots__ = ("answered", "sent")

    def __init__(self, sent: float) -> None:
        self.sent = sent
        self.answered: float | None = None


class Wire:
    """One WebSocket, from its handshake to its end."""

    __slots__ = (
        "_control",
        "_is_closing",
        "_loop",
        "_on_lost",
        "_payloads",
        "_pings",
        "_turns",
        "arrivals",
        "budget",
        "frames",
        "inbox",
        "inbox_bytes",
        "is_cut_short",
        "is_exposed",
        "is_lost",
        "is_reading",
        "is_receiving",
        "last_activity",
        "next_frame",
        "received_bytes",
        "received_messages",
        "rtt",
        "sent_bytes",
        "sent_messages",
        "transport",
        "unfinished_sends",
        "websocket",
    )

    def __init__(
        self,
        websocket: aiohttp.ClientWebSocketResponse,
        on_lost: OnLost,
        budget: Budget,
        control: Control | None = None,
    ) -> None:
        self.websocket = websocket
        self.transport = aiohttp_internals.Transport(websocket)
        self._on_lost = on_lost
        # What is read for nobody in particular is read within this.
        self.budget = budget
        self._control = control
        self._loop = asyncio.get_running_loop()

        # The frames that the event loop has read and that are not in the inbox, in aiohttp's own
        # queue: the cheap look whether there are any.
        self.arrivals = aiohttp_internals.arrivals_of(websocket)
        # The same to take its first at once, and what takes it; empty where each message must be
        # looked at first, and while somebody else may read.
        self.frames: Sequence[tuple[aiohttp.WSMessage, int]]
        self.frames, self.next_frame = aiohttp_internals.frames_of(websocket)
        if control is not None:
            self.frames = ()
        # Messages read while nobody was in recv, in order. An empty deque takes 760 bytes.
        self.inbox: deque[str | bytes] | None = None
        self.inbox_bytes = 0

        # Nothing more can be read or written.
        self.is_lost = False
        # Whether a task is in `read`, and whether one is in the owner's `recv`; who waits to read.
        self.is_reading = False
        self.is_receiving = False
        self._turns: list[asyncio.Future[None]] = []
        # Whether `unread` left something behind, because the budget was spent.
        self.is_cut_short = False
        # Whether a borrower may be reading the WebSocket directly.
        self.is_exposed = False
        # From the closing handshake on, that alone reads.
        self._is_closing = False
        # Sends that have begun and did not end well; above 0, one may still leave later.
        self.unfinished_sends = 0
        self._pings: dict[bytes, Ping] = {}
        self._payloads = itertools.count(1)

        # The last ping's round trip in seconds.
        self.rtt: float | None = None
        # When a message was last sent or received by an owner, in Unix seconds; before that, 0.
        self.last_activity = 0.0
        # Messages, and the bytes of their payload.
        self.sent_messages = self.sent_bytes = 0
        self.received_messages = self.received_bytes = 0

    def expose(self) -> aiohttp.ClientWebSocketResponse:
        """Return the WebSocket for somebody to use it directly."""
        self.is_exposed = True
        self.frames = ()
        return self.websocket

    @property
    def is_in_use(self) -> bool:
        """Whether a task is in recv or ping, or a large compressed send may still leave."""
        if self.is_reading or self.is_receiving:
            return True
        if self.is_exposed and aiohttp_internals.is_being_read(self.websocket):
            return True  # directly
        # An uncompressed frame is written at once; only compressing may happen later.
        return self.unfinished_sends > 0 and bool(self.websocket.compress)

    @property
    def is_flooded(self) -> bool:
        """Whether more is unread than aiohttp's queue holds, so that the rest is still coming."""
        return aiohttp_internals.is_flooded(self.websocket)

    # Writing.

    async def send_ping(self) -> Ping:
        """Send a ping and do not wait for its pong; whoever reads settles it."""
        payload = next(self._payloads).to_bytes(8, "big")
        ping = self._pings[payload] = Ping(perf_counter())
        while len(self._pings) > MAX_PINGS:
            self._pings.pop(next(iter(self._pings)))
        await self._write(self.websocket.ping(payload))
        return ping

    async def _write(self, writing: Awaitable[None]) -> None:
        """Send what nobody waits for; a transport that is gone means a lost wire."""
        try:
            await writing
        except (OSError, aiohttp.ClientError) as error:
            self.fail(error)

    async def _answer(self, write: Callable[..., Awaitable[None]], *what: Any) -> None:
        """Answer what the peer has sent, unless it does not take what was sent before."""
        if not aiohttp_internals.is_congested(self.websocket):
            await self._write(write(*what))

    def fail(self, error: BaseException) -> None:
        """Hear that the transport is gone; but the server may have said why before."""
        code, reason = aiohttp_internals.find_close(self.websocket) or (1006, "")
        self.lose(CloseReason.SERVER, code, reason, error)

    # Reading.

    async def read(self) -> str | bytes | None:
        """Take one frame off the WebSocket. A message is returned; None: it was something else."""
        self.is_reading = True
        try:
            frame = await self.websocket.receive()
            kind = frame.type
            if kind is TEXT or kind is BINARY:
                if self._control is None or (answer := self._controlled(frame.data)) is None:
                    return self._count(frame.data)
                if answer is not True:
                    await self._answer(self.websocket.send_frame, *encoded(answer))
            elif kind is WSMsgType.PING:
                await self._answer(self.websocket.pong, frame.data)
            elif kind is WSMsgType.PONG:
                self._settle(bytes(frame.data))
            elif kind is CLOSE_FRAME:
                self.lose(CloseReason.SERVER, frame.data or 1005, frame.extra or "")
            elif isinstance(frame.data, aiohttp.WebSocketError):
                # aiohttp has closed it, because of what it has read.
                self.lose(CloseReason.PROTOCOL, frame.data.code, str(frame.data), frame.data)
            else:
                self.lose(CloseReason.SERVER, 1006, "", self.websocket.exception())
        except (OSError, aiohttp.ClientError) as error:
            self.fail(error)
        finally:
            self.is_reading = False
            if self._turns:
                self.wake()
        return None

    def _controlled(self, message: str | bytes) -> Literal[True] | str | bytes | None:
        """Ask `control` about a message: None, it is not its business; True, or an answer.

        One that raises, or returns something else, costs the wire.
        """
        assert self._control is not None
        try:
            answer = self._control(message)
            if answer is None or answer is True or isinstance(answer, (str, bytes)):
                if isinstance(answer, str):
                    answer.encode()
                return answer
            raise TypeError(f"it returned {answer!r}; it must return None, True, a str or bytes")
        except ENDS_PROGRAM:
            raise
        except BaseException as error:
            logger.exception("control raised; the connection is closed")
            self.lose(CloseReason.ERROR, 1000, "", error)
            return True

    def _count(self, message: str | bytes) -> str | bytes:
        self.received_messages += 1
        self.received_bytes += size_of(message)
        return message

    def _settle(self, payload: bytes) -> None:
        """Settle the ping of this pong and all earlier ones; other payloads are not ours."""
        if payload in self._pings:
            now = perf_counter()
            for earlier in list(self._pings):
                ping = self._pings.pop(earlier)
                ping.answered = now
                if earlier == payload:
                    self.rtt = now - ping.sent
                    return

    async def turn(self) -> None:
        """Wait until the present reader has dealt with a frame, or left."""
        turn = self._loop.create_future()
        self._turns.append(turn)
        await turn

    def wake(self) -> None:
        """Let all who wait for their turn look again."""
        turns, self._turns = self._turns, []
        for turn in turns:
            if not turn.done():
                turn.set_result(None)

    def at_hand(self) -> str | bytes | None:
        """Return the next message if the event loop has read it."""
        return self._take() if self.inbox else self._next_read()

    def _next_read(self) -> str | bytes | None:
        """Take the next message off aiohttp's queue, if it is one, and nobody reads."""
        if self.is_reading or self._is_closing or self._control is not None:
            return None
        frame = aiohttp_internals.take_message(self.websocket)
        return self._count(frame.data) if frame is not None else None

    def has_unread(self) -> bool:
        """Return whether something was read, or has ended, that is not in the inbox."""
        if self.arrivals or self.transport.has_ended():
            return True
        return self.is_exposed and self.websocket.closed  # by a borrower, directly

    def unread(self) -> Iterator[str | bytes]:
        """Give the messages that the event loop has already read; pings are answered, and so on.

        As many as the budget allows. Nothing is given while a task is reading: that one will see
        them.
        """
        while self.inbox:
            yield self._take()
        yield from self._arrived()

    def _arrived(self) -> Iterator[str | bytes]:
        frames = 0
        self.is_cut_short = False
        while not (self.is_reading or self.is_lost or self._is_closing) and self.has_unread():
            frames += 1
            if (frames > MIN_FRAMES or self.is_flooded) and self.budget.is_spent:
                self.is_cut_short = True
                return
            if self.is_exposed and aiohttp_internals.is_being_read(self.websocket):
                return  # by a borrower that uses the WebSocket directly
            message: object = self._next_read()
            if message is None:
                message = aiohttp_internals.step(self.read())
            if message is aiohttp_internals.WOULD_BLOCK:
                return
            if message is not None:
                yield message  # type: ignore[misc]

    @property
    def has_news(self) -> bool:
        """Whether something was read that nobody has looked at."""
        return bool(self.inbox or self.has_unread())

    def attend(self) -> None:
        """Read for an owner that is not in recv, up to the size of the inbox."""
        if self.inbox_bytes < MAX_INBOX_BYTES:
            for message in self._arrived():
                self.keep(message)
                if self.inbox_bytes >= MAX_INBOX_BYTES:
                    return
        elif self.websocket.closed and not self.is_reading:
            # A heartbeat has failed: aiohttp gives out nothing more, read or not.
            self.lose(CloseReason.SERVER, 1006, "", self.websocket.exception())

    def rescue(self) -> None:
        """Keep the messages that have arrived, up to the size of the inbox, before a goodbye."""
        while self.inbox_bytes < MAX_INBOX_BYTES:
            if self.is_flooded and self.budget.is_spent:
                return
            if (message := self._next_read()) is None:
                return
            self.keep(message)

    def set_aside(self) -> deque[str | bytes]:
        """Return what is in the inbox, for it to be put before whatever comes meanwhile."""
        inbox, self.inbox, self.inbox_bytes = self.inbox, None, 0
        return inbox if inbox is not None else deque()

    def put_before(self, messages: Iterable[str | bytes]) -> None:
        """Let these messages be given before those of the inbox."""
        for message in (*messages, *self.set_aside()):
            self.keep(message)

    def keep(self, message: str | bytes) -> None:
        """Put a message into the inbox."""
        if self.inbox is None:
            self.inbox = deque()
        self.inbox.append(message)
        self.inbox_bytes += len(message) + MESSAGE_OVERHEAD_BYTES

    def _take(self) -> str | bytes:
        assert self.inbox is not None
        message = self.inbox.popleft()
        if not self.inbox:
            self.inbox = None
        self.inbox_bytes -= len(message) + MESSAGE_OVERHEAD_BYTES
        return message

    def put_back(self, message: str | bytes) -> None:
        """Let this message be the next that is given: whoever had taken it was given up."""
        self.keep(message)
        assert self.inbox is not None
        self.inbox.rotate(1)

    # The end.

    def lose(
        self, why: CloseReason, code: int, reason: str, cause: BaseException | None = None
    ) -> None:
        """Nothing more can be read or written: the server has closed, or the transport is gone."""
        if not self.is_lost:
            self.is_lost = True
            self.wake()
            self._on_lost(why, code, reason, cause)

    async def close(self, timeout: float, code: int, reason: str) -> None:
        """Close with a CLOSE frame and return when the transport is gone, after `timeout` by force.

        Without a peer that answers, and even after the session was closed, a transport whose bytes
        are not taken would stay open for ever: it is aborted.
        """
        if not self.is_lost:
            aiohttp_internals.expect_close(self.websocket)
        self._is_closing = True
        self.frames = ()
        await self.transport.close(self.websocket, timeout, code, reason, self.budget.breathe)
