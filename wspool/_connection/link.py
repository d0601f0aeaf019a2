"""One connection: an aiohttp WebSocket, its state, and the right to read and write it.

A connection knows nothing of pools. It carries the queues that the state machine moves it
between, and it calls `on_close` once, when it enters the state closed: whoever made it then says
goodbye to the socket.

There is one routine that takes a frame off the wire, `_read`. `recv`, `ping`, the drain and the
pool's attending all go through it, and never two at a time: who comes second waits for his turn
and looks again after each frame.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import warnings
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextvars import ContextVar
from time import monotonic, perf_counter, time
from typing import Any, Final, NamedTuple, Self

import aiohttp
from aiohttp import WSMsgType

from wspool._connection import aiohttp_internals as wire
from wspool._connection import states
from wspool._connection.callsites import Borrower, borrowed_at
from wspool._connection.errors import (
    ConnectionBusyError,
    ConnectionClosedError,
    scrub_text,
    scrub_uri,
    secrets_of,
)
from wspool._connection.queues import Queues
from wspool._connection.states import BUSY, CLOSED, HISTORY, CloseReason, Moved, State
from wspool.quota import Permit

INBOX_BYTES: Final = 512 * 1024
"""Bytes kept for a borrower who is not in `recv`; at this size reading stops.

A message counts with 128 bytes more than its length, as in aiohttp's own queue, whose limit this
is, so that a flood of tiny ones is bounded too.
"""
_MESSAGE_OVERHEAD: Final = 128

NEVER: Final = float("inf")

_TEXT: Final = WSMsgType.TEXT
_BINARY: Final = WSMsgType.BINARY

PINGS: Final = 1024
"""Unanswered pings that are remembered; a pong for an older one is not recognised."""


class HookRun:
    """One run of a hook of the user's: it, and tasks that it has begun, may use the wire."""

    __slots__ = ("connection",)

    def __init__(self, connection: WebsocketConnection) -> None:
        self.connection = connection


_in_hook: ContextVar[HookRun | None] = ContextVar("wspool_hook", default=None)


def _always() -> bool:
    return True


def _size(message: str | bytes) -> int:
    """Return the bytes of a message's payload."""
    if isinstance(message, str) and not message.isascii():
        return len(message.encode())
    return len(message)


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """Return `loop.time`, or what it calls: 0.06 µs less, several times for each loan."""
    if type(loop).time is asyncio.BaseEventLoop.time:
        return monotonic
    return loop.time


class Transition(NamedTuple):
    """One line of a connection's history.

    `at` is in Unix seconds, `why` in a word: for a close it is a `CloseReason`.
    """

    trigger: str
    source: State
    dest: State
    at: float
    why: str


class Ping:
    """A ping under way: when it was sent, and when a pong answered it, by perf_counter."""

    __slots__ = ("answered", "sent")

    def __init__(self, sent: float) -> None:
        self.sent = sent
        self.answered: float | None = None


class WebsocketConnection:
    """A WebSocket to the server, lent to one borrower at a time.

    What is declared here may be read at any time, by anybody. To send, to receive and to ping is
    the borrower's right alone.
    """

    id: int
    """Counts the pool's connections from 1."""
    uri: str
    """That of the last dial attempt, secrets included."""
    headers: dict[str, str]
    """Those of the last dial attempt, secrets included."""
    state: State
    """Where in its life it is."""
    created_at: float
    """When its dial was decided on, in Unix seconds."""
    last_activity: float
    """When a message was last sent or received (the last one, where several have come together), in
    Unix seconds; before that, `created_at`."""
    uses: int
    """Loans so far, the present one included."""
    close_code: int | None
    """Code of the CLOSE frame, 1006 without one, 1005 for one without a code; None while open."""
    close_reason: str
    """Text of the CLOSE frame."""
    cause: BaseException | None
    """The error that closed it, if one did."""

    __slots__ = (
        "__weakref__",
        "_frames",
        "_hook",
        "_inbox_bytes",
        "_is_exposed",
        "_is_reading",
        "_is_receiving",
        "_last_message",
        "_loop",
        "_next_frame",
        "_payloads",
        "_pings",
        "_sending",
        "_turns",
        "_websocket",
        "arrival",
        "born",
        "borrower",
        "cause",
        "checked_at",
        "clock",
        "close_code",
        "close_reason",
        "created_at",
        "dial_seconds",
        "drained_messages",
        "generation",
        "handshake",
        "has_sent",
        "headers",
        "id",
        "idle_since",
        "inbox",
        "is_flooding",
        "is_lost",
        "jitter",
        "kept_alive_at",
        "last_activity",
        "lease",
        "leases",
        "look",
        "moves",
        "on_close",
        "opened",
        "overdue_lease",
        "params",
        "pending",
        "permit",
        "queues",
        "received_bytes",
        "received_messages",
        "retire_at",
        "retire_why",
        "round",
        "rtt",
        "sent_bytes",
        "sent_messages",
        "socket",
        "state",
        "task",
        "uri",
        "uses",
    )

    def __init__(
        self,
        id: int,
        queues: Queues[WebsocketConnection],
        loop: asyncio.AbstractEventLoop,
        on_close: Callable[[WebsocketConnection], None],
        generation: int = 0,
    ) -> None:
        self.id = id
        # What the state machine moves: see states.py. This is the birth.
        self.state = State.CONNECTING
        self.queues = queues
        self.moves: deque[Moved] = deque(maxlen=HISTORY)
        self.clock = clock_of(loop)
        # Called once, right after the connection has entered the state closed.
        self.on_close = on_close
        # The number of `expire_connections()` calls before this connection's birth.
        self.generation = generation
        self.uri = ""
        self.headers = {}
        # The query values that ws_connect adds to the URI.
        self.params: Any = None
        self.created_at = self.last_activity = time()
        self.born = loop.time()
        self._loop = loop
        self._websocket: aiohttp.ClientWebSocketResponse | None = None
        self.socket: wire.Socket | None = None
        # The pool's task that owns the wire: the dial, the drain, an errand.
        self.task: asyncio.Task[None] | None = None
        # The lease of its socket, where there is a quota.
        self.permit: Permit | None = None
        # The drain under way, a PendingConnection.
        self.pending: Any = None

        # The loop's seconds: open since, idle since, to be retired at; the last time that a check
        # was answered, and that a keepalive went well.
        self.opened: float | None = None
        self.idle_since = 0.0
        self.retire_at = NEVER
        self.retire_why = CloseReason.LIFETIME
        self.checked_at = self.kept_alive_at = float("-inf")
        # From 0 to 1: where in a spread of times this connection's is.
        self.jitter = random.random()
        # How long the handshake took, and all of the attempt that succeeded, in seconds.
        self.handshake = self.dial_seconds = 0.0
        # When the dial began: its place among the arrivals of waiters, the gate's round.
        self.arrival = self.round = 0

        # Loans to users so far, this one included.
        self.uses = 0
        # The number of the loan in force, 0 when no user has the connection.
        self.lease = 0
        self.leases = 0
        # Who took the loan, and where.
        self.borrower: Borrower | None = None
        # The loan that a warning has named as taking too long.
        self.overdue_lease = 0
        # Whether something was sent in this loan, so that a reply may be under way.
        self.has_sent = False
        # Sends that have begun and did not end well; above 0, one may still leave later.
        self._sending = 0
        # The last message that recv returned, unless something was sent after it.
        self._last_message: str | bytes | None = None
        # The run of a hook that has the right to the wire.
        self._hook: HookRun | None = None

        # The wire: nobody can be read from any more; who reads; who waits to.
        self.is_lost = False
        # At the last look more was unread than aiohttp's queue holds: the rest is still coming.
        self.is_flooding = False
        self._is_reading = False
        self._is_receiving = False
        # Whether a borrower may be reading the WebSocket directly.
        self._is_exposed = False
        self._turns: list[asyncio.Future[None]] = []
        # Messages read while nobody was in recv, in order. An empty deque takes 760 bytes.
        self.inbox: deque[str | bytes] | None = None
        self._inbox_bytes = 0
        # The cheap look: whether the event loop has read something that is not in the inbox.
        self.look: Callable[[], object] = _always
        # aiohttp's own queue of them; left alone while somebody else may read.
        self._frames: Sequence[tuple[aiohttp.WSMessage, int]] = ()
        self._pings: dict[bytes, Ping] = {}
        self._payloads = itertools.count(1)
        # The last ping's round trip in seconds.
        self.rtt: float | None = None

        # Messages, and the bytes of their payload.
        self.sent_messages = self.sent_bytes = 0
        self.received_messages = self.received_bytes = 0
        self.drained_messages = 0
        self.close_code = None
        self.close_reason = ""
        self.cause = None

    # What people look at.

    @property
    def websocket(self) -> aiohttp.ClientWebSocketResponse:
        """The aiohttp WebSocket. Reading or writing it directly bypasses what the pool knows.

        Raises ConnectionClosedError when there is none, for want of a handshake that succeeded.
        """
        if self._websocket is None:
            raise ConnectionClosedError(f"Connection #{self.id} has no WebSocket yet")
        # What is done with it cannot be seen, so take it that something is sent.
        self.has_sent = self._is_exposed = True
        self._frames = ()
        self._last_message = None
        return self._websocket

    @property
    def is_connected(self) -> bool:
        """Whether messages can be exchanged, as far as the event loop has heard."""
        if self._websocket is None or self.is_lost or self.state is State.CLOSED:
            return False
        return not self._websocket.closed

    @property
    def is_busy(self) -> bool:
        """Whether it is lent, or the pool itself uses it for a check or a keepalive."""
        return self.state is State.BUSY

    @property
    def is_draining(self) -> bool:
        """Whether it was given back and is being cleaned."""
        return self.state is State.DRAINING

    @property
    def reused(self) -> bool:
        """Whether somebody else has used this connection before the present borrower."""
        return self.uses > 1

    @property
    def history(self) -> tuple[Transition, ...]:
        """The last 16 transitions, oldest first."""
        offset = time() - self.clock()
        return tuple(
            Transition(move.trigger, move.source, move.dest, at + offset, why)
            for move, at, why in list(self.moves)
        )

    @property
    def seconds_in_state(self) -> float:
        return self.clock() - (self.moves[-1][1] if self.moves else self.born)

    @property
    def seconds_before(self) -> float:
        """How long it was in the state before this one."""
        return self.moves[-1][1] - (self.moves[-2][1] if len(self.moves) > 1 else self.born)

    @property
    def seconds_lent(self) -> float:
        """How long the present loan has lasted, its connection's end included."""
        if self.state is BUSY:
            return self.seconds_in_state
        lent = (at for move, at, _ in reversed(list(self.moves)) if move.trigger == "checkout")
        return self.clock() - next(lent)

    @property
    def borrowed_at(self) -> str | None:
        """Where the present loan was taken, as `file:line`, or None."""
        borrower = self.borrower
        return borrowed_at(borrower) if borrower is not None else None

    def is_overdue(self, threshold: float | None) -> bool:
        """Whether a user has had it for longer than so many seconds."""
        return threshold is not None and self.lease > 0 and self.seconds_lent > threshold

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol that the server chose, or None."""
        return self._websocket.protocol if self._websocket is not None else None

    def __repr__(self) -> str:
        closed = f" {self.close_code}" if self.close_code is not None else ""
        return (
            f"<WebsocketConnection #{self.id} {self.state}{closed} {scrub_uri(self.uri)} "
            f"uses={self.uses}>"
        )

    # What a borrower does.

    async def send(self, message: str | bytes) -> None:
        """Send a text or a binary message.

        Raises ConnectionClosedError when the connection is lost (the message may or may not have
        arrived), ConnectionBusyError when it is not the caller's, TypeError for anything else
        than str and bytes.
        """
        websocket = self._check_right("send")
        if isinstance(message, str):
            send = websocket.send_str(message)
        elif isinstance(message, (bytes, bytearray, memoryview)):
            send = websocket.send_bytes(message)
        else:
            raise TypeError(f"send() takes str or bytes, not {type(message).__name__}")
        self.has_sent = True
        self._last_message = None
        self._sending += 1
        try:
            await send
        except (OSError, aiohttp.ClientError) as error:
            self._lose(1006, "", error)
            raise self._closed_error() from error
        self._sending -= 1
        self.sent_messages += 1
        self.sent_bytes += _size(message)
        self.last_activity = time()

    async def recv(self) -> str | bytes:
        """Return the next message, in the order of arrival.

        A recv that is cancelled or timed out has taken nothing. Raises ConnectionClosedError
        once the messages that came before the close have been read, ConnectionBusyError when the
        connection is not the caller's or another task is in recv.
        """
        frames = self._frames
        if frames and self.lease and not (self._is_receiving or self._is_reading or self.inbox):
            # As `_at_hand`, without its calls: a stream takes half the time.
            frame, size = frames[0]
            if (kind := frame.type) is _TEXT or kind is _BINARY:
                await self._next_frame()  # does not wait
                self.received_messages += 1
                self.received_bytes += size
                data: str | bytes = frame.data
                self._last_message = data
                if not frames:  # a tenth of a stream's time, otherwise
                    self.last_activity = time()
                return data
        if self._is_receiving:
            raise ConnectionBusyError(
                f"Another task is in recv on connection #{self.id}; one at a time may wait for "
                "messages"
            )
        lease = self.lease
        message = self._at_hand() if lease else None
        if message is None:
            self._check_right("recv")
            self._is_receiving = True
            try:
                message = await self.next_message(lease)
            finally:
                self._is_receiving = False
        if message is None:
            raise self._closed_error()
        self._last_message = message
        self.last_activity = time()
        return message

    async def ping(self) -> float:
        """Send a ping, wait for its pong and return the round trip in seconds.

        It may run beside a `recv` and beside other pings; messages that arrive meanwhile are
        kept for `recv`, however many. A pong settles all earlier pings: a server may answer only
        the latest (RFC 6455, 5.5.3). There is no time limit: put `asyncio.timeout` around it.
        Raises ConnectionClosedError and ConnectionBusyError as `send` does.
        """
        self._check_right("ping")
        lease = self.lease
        ping = await self.send_ping()
        while ping.answered is None:
            if self.is_lost or self.lease != lease or self.state is State.CLOSED:
                raise self._closed_error()
            if self._is_reading:
                await self._turn()
            elif (message := await self._read()) is not None:
                self._keep(message)
        return ping.answered - ping.sent

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection for good and return when its socket is gone.

        `code` and `reason` are sent to the server, which has `close_timeout` seconds to answer.
        Closed already, it sends nothing, and raises nothing. A later `release` is silent.
        """
        self.finish(CloseReason.USER, code=code, reason=reason)
        while self in self.queues.closed:
            await self._turn()

    async def send_json(self, value: Any) -> None:
        """Send a value as a JSON text message. Raises what `send` and `json.dumps` raise."""
        await self.send(json.dumps(value))

    async def recv_json(self) -> Any:
        """Return the next message, parsed as JSON.

        Raises what `recv` raises, and ValueError for a message that is not JSON: it is taken.
        """
        return json.loads(await self.recv())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str | bytes:
        """Return the next message, until the server closes normally (1000 or 1001)."""
        try:
            return await self.recv()
        except ConnectionClosedError as error:
            is_by_server = self.state is State.CLOSED and self.moves[-1][2] is CloseReason.SERVER
            if is_by_server and error.code in (1000, 1001):
                raise StopAsyncIteration from None
            raise

    # The right to the wire.

    def _check_right(self, doing: str) -> aiohttp.ClientWebSocketResponse:
        """Return the WebSocket if the caller may use it now: the borrower, or a hook at work."""
        websocket = self._websocket
        if not self.lease and not (self._hook and _in_hook.get() is self._hook):
            if self.state is State.CLOSED:
                raise self._closed_error()
            raise ConnectionBusyError(
                f"Cannot {doing} on connection #{self.id}: it is {self.state} and not lent to "
                "you; acquire it from the pool first"
            )
        if websocket is None or self.is_lost or self.state is CLOSED:
            raise self._closed_error()
        return websocket

    def lend(self, borrower: Borrower) -> None:
        """Begin a loan to a user: he alone may send and receive until it ends."""
        self.leases = self.lease = self.leases + 1
        self.uses += 1
        self.has_sent = False
        self._last_message = None  # what a hook has read is no answer to this borrower
        self.borrower = borrower

    def end_loan(self) -> tuple[bool, str | bytes | None]:
        """End the loan. Whoever is still in recv or ping finds that he has lost the right.

        Returns whether somebody is, and what recv returned last, if nothing was sent and nothing
        has arrived since.
        """
        is_in_use = self._is_reading or self._is_receiving
        if not is_in_use and (self._is_exposed or self._sending):
            is_in_use = self.is_in_use
        left = is_in_use, None if self.inbox else self._last_message
        self.lease = 0
        self.borrower = None
        self._last_message = None
        return left

    @property
    def is_in_use(self) -> bool:
        """Whether a task is in recv or ping, or a large compressed send may still leave."""
        if self._is_reading or self._is_receiving:
            return True
        if self._is_exposed and self._websocket is not None and wire.is_being_read(self._websocket):
            return True  # directly
        # An uncompressed frame is written at once; only compressing may happen later.
        return self._sending > 0 and self._websocket is not None and bool(self._websocket.compress)

    async def run_hook(self, hook: Callable[[WebsocketConnection], Awaitable[object]]) -> None:
        """Run a hook of the user's, which alone may send and receive meanwhile."""
        self._hook = HookRun(self)
        token = _in_hook.set(self._hook)
        try:
            await hook(self)
        finally:
            self._hook = None
            _in_hook.reset(token)

    @staticmethod
    def in_hook() -> WebsocketConnection | None:
        """The connection whose hook the calling task runs, or that hook's task, while it runs."""
        run = _in_hook.get()
        return run.connection if run is not None and run.connection._hook is run else None

    # Reading.

    async def _read(self) -> str | bytes | None:
        """Take one frame off the wire. A message is returned; the rest is dealt with: None."""
        websocket = self._websocket
        assert websocket is not None
        self._is_reading = True
        try:
            frame = await websocket.receive()
            kind = frame.type
            if kind is _TEXT or kind is _BINARY:
                return self._count(frame.data)
            if kind is WSMsgType.PING:
                await self._write(websocket.pong(frame.data))
            elif kind is WSMsgType.PONG:
                self._settle(bytes(frame.data))
            elif kind is WSMsgType.CLOSE:
                self._lose(frame.data or 1005, frame.extra or "")
            elif kind is WSMsgType.ERROR:
                code = getattr(frame.data, "code", None)
                self._lose(int(code or 1006), str(frame.data), frame.data)
            else:
                self._lose(1006, "", websocket.exception())
        except (OSError, aiohttp.ClientError) as error:
            self._lose(1006, "", error)
        finally:
            self._is_reading = False
            self._wake()
        return None

    def _at_hand(self) -> str | bytes | None:
        """Return the next message if the event loop has read it."""
        return self._take() if self.inbox else self._next_read()

    def _next_read(self) -> str | bytes | None:
        """Take the next message off aiohttp's queue, if it is one, and nobody reads."""
        if self._is_reading or self._websocket is None:
            return None
        frame = wire.take_message(self._websocket)
        return self._count(frame.data) if frame is not None else None

    def _count(self, message: str | bytes) -> str | bytes:
        self.received_messages += 1
        self.received_bytes += _size(message)
        return message

    async def next_message(self, lease: int, until: Ping | None = None) -> str | bytes | None:
        """Return the next message for the holder of this lease.

        None when no more can come: the connection is lost or closed, the lease has ended, or the
        ping `until` is answered, so that all that was sent before its pong has been returned.
        """
        while True:
            if self.lease != lease or (until is not None and until.answered is not None):
                return None
            if (ready := self._at_hand()) is not None:
                return ready
            if self.is_lost or self.state is CLOSED:
                return None
            if self._is_reading:
                await self._turn()
            elif (message := await self._read()) is not None:
                return message if self.lease == lease else None

    def unread(self) -> Iterator[str | bytes]:
        """Give the messages that the event loop has already read; pings are answered, and so on.

        Nothing is given while a task is reading: that one will see them.
        """
        while self.inbox:
            yield self._take()
        yield from self._arrived()

    def _arrived(self) -> Iterator[str | bytes]:
        websocket = self._websocket
        while not (websocket is None or self._is_reading or self.is_lost):
            if not self.look() or (self.state is CLOSED and websocket.closed):
                return  # from the goodbye's beginning on, the goodbye reads
            if self._is_exposed and wire.is_being_read(websocket):
                return  # by a borrower that uses `websocket` directly
            message: object = self._next_read()
            if message is None:
                message = wire.step(self._read())
            if message is wire.WOULD_BLOCK:
                return
            if message is not None:
                yield message  # type: ignore[misc]

    def has_news(self) -> bool:
        """Whether something was read that nobody has looked at."""
        return bool(self.inbox or self.look())

    def is_flooded(self) -> bool:
        """Whether more is unread than aiohttp's queue holds, so that the rest is still coming."""
        return self._websocket is not None and wire.is_flooded(self._websocket)

    def attend(self) -> None:
        """Read for an owner who is not in recv, up to the size of the inbox."""
        if self._inbox_bytes < INBOX_BYTES:
            for message in self._arrived():
                self._keep(message)
                if self._inbox_bytes >= INBOX_BYTES:
                    return
        elif self._websocket is not None and self._websocket.closed and not self._is_reading:
            # A heartbeat has failed: aiohttp gives out nothing more, read or not.
            self._lose(1006, "", self._websocket.exception())

    def _keep(self, message: str | bytes) -> None:
        if self.inbox is None:
            self.inbox = deque()
        self.inbox.append(message)
        self._inbox_bytes += len(message) + _MESSAGE_OVERHEAD

    def _take(self) -> str | bytes:
        assert self.inbox is not None
        message = self.inbox.popleft()
        if not self.inbox:
            self.inbox = None
        self._inbox_bytes -= len(message) + _MESSAGE_OVERHEAD
        return message

    def put_back(self, message: str | bytes) -> None:
        """Let the next recv return this message: the one that had taken it was given up."""
        self._keep(message)
        assert self.inbox is not None
        self.inbox.rotate(1)

    async def send_ping(self) -> Ping:
        """Send a ping and do not wait for its pong; whoever reads settles it."""
        websocket = self._websocket
        assert websocket is not None
        payload = next(self._payloads).to_bytes(8, "big")
        ping = self._pings[payload] = Ping(perf_counter())
        while len(self._pings) > PINGS:
            self._pings.pop(next(iter(self._pings)))
        await self._write(websocket.ping(payload))
        return ping

    def _settle(self, payload: bytes) -> None:
        """Settle the ping of this pong and all earlier ones; other payloads are not ours."""
        if payload in self._pings:
            now = perf_counter()  # uvloop's clock has milliseconds only
            for earlier in list(self._pings):
                ping = self._pings.pop(earlier)
                ping.answered = now
                if earlier == payload:
                    self.rtt = now - ping.sent
                    return

    async def _turn(self) -> None:
        """Wait until the present reader has dealt with a frame, or left."""
        turn = self._loop.create_future()
        self._turns.append(turn)
        await turn

    def _wake(self) -> None:
        turns, self._turns = self._turns, []
        for turn in turns:
            if not turn.done():
                turn.set_result(None)

    async def _write(self, write: Awaitable[None]) -> None:
        """Send a control frame; a transport that is gone means a lost connection."""
        try:
            await write
        except (OSError, aiohttp.ClientError) as error:
            self._lose(1006, "", error)

    # The end.

    def finish(
        self,
        why: CloseReason,
        *,
        code: int = 1000,
        reason: str = "",
        cause: BaseException | None = None,
    ) -> bool:
        """Enter the state closed, from whichever; False if it was closed already."""
        if self.state is State.CLOSED:
            return False
        states.close(self, why)
        if self.close_code is None:
            self.close_code, self.close_reason = code, reason
        if cause is not None:
            self.cause = cause
        self._wake()
        self.on_close(self)
        return True

    def _lose(self, code: int, reason: str, cause: BaseException | None = None) -> None:
        """The server closed, or the transport is gone: nothing more can be read or written."""
        if self.is_lost:
            return
        self.is_lost = True
        self._wake()
        if self.state is not State.CLOSED:
            # A server may quote the token that it refuses.
            self.close_reason = scrub_text(reason, secrets_of(self.uri, self.headers, self.params))
            self.close_code, self.cause = code, cause
            if self.state is not State.CONNECTING:  # there, the dial will try again
                self.finish(CloseReason.SERVER)

    def _closed_error(self) -> ConnectionClosedError:
        reused = f"; it was a reused one, lent {self.uses} times" if self.reused else ""
        return ConnectionClosedError(
            f"Connection #{self.id}: {self.how_closed()}{reused}",
            code=self.close_code,
            reason=self.close_reason,
        )

    def how_closed(self) -> str:
        """Return who closed it, with code and reason."""
        who = {CloseReason.SERVER: "closed by the server", CloseReason.POOL: "pool closed"}
        if self.state is State.CLOSED:
            why = CloseReason(self.moves[-1][2])
            how = who.get(why, f"closed ({why})")
        else:
            how = who[CloseReason.SERVER] if self.is_lost else "no longer yours"
        code = f", code {self.close_code}" if self.close_code is not None else ""
        reason = f" {self.close_reason!r}" if self.close_reason else ""
        return f"{how}{code}{reason}"

    def attach(self, websocket: aiohttp.ClientWebSocketResponse) -> None:
        """Take the WebSocket of a handshake that succeeded."""
        self._websocket = websocket
        self.look = wire.lookout(websocket)
        self._frames, self._next_frame = wire.frames_of(websocket)
        self.socket = wire.Socket(websocket)
        self.is_lost = False

    async def hang_up(self, timeout: float) -> None:
        """Close the socket with a CLOSE frame and return when it is gone, after `timeout` by force.

        Without a peer that answers, and even after the session was closed, a socket whose bytes
        are not taken would stay open for ever: it is aborted.
        """
        websocket, socket = self._websocket, self.socket
        if websocket is None or socket is None:
            return
        # A peer's code is echoed (RFC 6455, 5.5.1); 1005 and 1006 are never sent (7.4.1).
        code = self.close_code if self.close_code not in (None, 1005, 1006) else 1000
        if not self.is_lost:
            wire.expect_close(websocket)
        self._frames = ()  # from now on the goodbye reads
        await socket.hang_up(websocket, timeout, code, self.close_reason)

    def abort(self) -> None:
        """Cut the socket off, without a word."""
        if self.socket is not None:
            self.socket.abort()

    async def detach(self, timeout: float) -> None:
        """Hang up and forget the WebSocket of a dial attempt that failed after its handshake."""
        await self.hang_up(timeout)
        self._return_permit()
        self._websocket = self.socket = None
        self.look = _always
        self._frames = ()
        self.inbox = None
        self._inbox_bytes = 0
        if self.state is State.CONNECTING:  # what ended the attempt has not ended the connection
            self.close_code, self.close_reason, self.cause = None, "", None

    def when_gone(self, callback: Callable[[], None]) -> None:
        """Call back when the socket is gone; at once, if it is."""
        if self.socket is None:
            callback()
        else:
            self.socket.when_gone(callback)

    def leave(self) -> None:
        """Leave the last queue: the socket is gone, and the place is free."""
        self.queues.remove(self)
        self._return_permit()
        if not self.lease:  # else its borrower may still read what came before the close
            self.inbox = None
        self._wake()

    def _return_permit(self) -> None:
        permit, self.permit = self.permit, None
        if permit is not None:
            permit.release()

    def __del__(self) -> None:
        if getattr(self, "lease", 0) and self.state is State.BUSY:
            warnings.warn(
                f"connection #{self.id}, borrowed at {self.borrowed_at}, was dropped without "
                "being given back: release it, or use `async with pool.get_connection()`",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )
