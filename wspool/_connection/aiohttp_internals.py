"""What a pool must know of an aiohttp WebSocket and cannot ask through its public interface.

Seven things, each in one place, each tested on every supported aiohttp:

- whether the event loop has read anything for a WebSocket that nobody receives from. aiohttp
  acts on pings, closes and lost transports only inside `receive()`, so `closed` says nothing. A
  look at the reader's queue costs 0.13 µs, stepping `receive()` by hand 2.4 µs, a task parked in
  it that the borrower's first `recv` awaits 5 µs, one that is cancelled at checkout 11 µs, against
  an echo of 70 to 100 µs over loopback; with a borrow, the echo takes 1.00, 1.13, 1.15 and 1.35
  times as long (Python 3.11, aiohttp 3.14.5; `python -m tests.benchmarks.watching`);
- whether a task is in `receive()`: another one there would get an error;
- whether reading is paused, because the queue is full: then more waits in the kernel's buffers;
- that a receive that was cancelled is no close: see `expect_close`;
- whether bytes have come that are no whole message, and of which no frame tells;
- how much is read off a socket at a time;
- when the transport is gone, and how to make it go: after `close()`, and even after the session
  was closed, it stays open for as long as the peer does not read what was sent.

Where the look is not possible, because an aiohttp to come keeps its queue elsewhere, it says that
there is something, and `step` finds out at a higher price.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar, cast

import aiohttp
from yarl import URL

T = TypeVar("T")

WOULD_BLOCK: Final = object()

TLS_CLOSE_SECONDS: Final = 0.1
"""For the peer's TLS close_notify, once both have closed the WebSocket: many never send one."""

MAX_CLOSE_FRAMES: Final = 64
"""Unread before a CLOSE that is waited for; what has sent more is cut off."""

MAX_REASON_BYTES: Final = 123
"""Of a CLOSE frame's reason (RFC 6455, 5.5)."""

READ_BYTES: Final = 64 * 1024
"""Are read off a socket at a time. For the 256 KiB of asyncio's own, glibc maps and unmaps memory
at each read, until the program has freed a larger block. Up to then, with these an echo takes 0.9
of the time (0.75 of the processor's), messages of a MiB half of it, many small ones the same."""

_MESSAGES: Final = frozenset({aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY})


UNSEEN: Final = (None,)
"""In the place of aiohttp's queue where that is elsewhere: there may always be something."""


def arrivals_of(websocket: aiohttp.ClientWebSocketResponse) -> Sequence[object]:
    """Return aiohttp's queue of the frames that were read, to ask whether it is empty."""
    try:
        arrivals: Sequence[object] = cast(Any, websocket)._reader._buffer
    except AttributeError:
        return UNSEEN
    return arrivals


def frames_of(
    websocket: aiohttp.ClientWebSocketResponse,
) -> tuple[Sequence[tuple[aiohttp.WSMessage, int]], Callable[[], Awaitable[aiohttp.WSMessage]]]:
    """Return the queue of the frames that were read, with their sizes, and what takes the first.

    That takes 0.3 µs, with all that `recv` does around it 0.7; `receive()` takes 1.1.
    """
    try:
        reader = cast(Any, websocket)._reader
        return reader._buffer, reader.read
    except AttributeError:
        return (), websocket.receive


def take_message(websocket: aiohttp.ClientWebSocketResponse) -> aiohttp.WSMessage | None:
    """Return the next frame if it is a message and has been read; None where `receive()` must see.

    It takes 0.4 µs, `receive()` 1.1 µs, and stepping that by hand 2.4 µs.
    """
    ours = cast(Any, websocket)
    try:
        buffer = ours._reader._buffer
        if not buffer or buffer[0][0].type not in _MESSAGES or ours._waiting or ours._closed:
            return None
    except AttributeError:
        return None
    try:
        ours._reader.read().send(None)  # does not wait: there is something
    except StopIteration as stop:
        return cast(aiohttp.WSMessage, stop.value)
    return None


def find_close(websocket: aiohttp.ClientWebSocketResponse) -> tuple[int, str] | None:
    """Return code and reason of a CLOSE that has been read and not been taken yet."""
    try:
        buffer = cast(Any, websocket)._reader._buffer
    except AttributeError:
        return None
    for frame, _ in buffer:
        if frame.type is aiohttp.WSMsgType.CLOSE:
            return frame.data or 1005, frame.extra or ""
    return None


def is_flooded(websocket: aiohttp.ClientWebSocketResponse) -> bool:
    """Return whether so much is unread that the transport is paused."""
    try:
        return bool(cast(Any, websocket)._reader._protocol._reading_paused)
    except AttributeError:
        return False


def is_congested(websocket: aiohttp.ClientWebSocketResponse) -> bool:
    """Return whether the peer does not take what was sent, so that a write would wait."""
    try:
        return bool(cast(Any, websocket)._response.connection.protocol._paused)
    except AttributeError:  # also where it is gone already
        return False


def unread_frames(websocket: aiohttp.ClientWebSocketResponse) -> int:
    """Return how many frames were read and not taken yet."""
    try:
        return len(cast(Any, websocket)._reader._buffer)
    except AttributeError:
        return 0


def is_being_read(websocket: aiohttp.ClientWebSocketResponse) -> bool:
    """Return whether a task is in `receive()`; another call would raise."""
    return bool(getattr(websocket, "_waiting", False))


def step(coroutine: Coroutine[Any, Any, T]) -> T | object:
    """Run a coroutine as far as it goes without waiting; `WOULD_BLOCK` if that is not its end.

    A `receive()` that would block has taken nothing, and a pong that would block is written: in
    both cases the coroutine is cancelled, and nothing is lost.
    """
    try:
        awaited = coroutine.send(None)
        if awaited is not None:  # a future that others may await, too: it is not awaited here
            awaited._asyncio_future_blocking = False
        coroutine.throw(asyncio.CancelledError())
    except StopIteration as stop:
        return cast(T, stop.value)
    except asyncio.CancelledError:
        return WOULD_BLOCK
    finally:
        coroutine.close()
    return WOULD_BLOCK


def expect_close(websocket: aiohttp.ClientWebSocketResponse) -> None:
    """Let `close()` wait for the peer's CLOSE although a `receive()` was once cancelled.

    A cancelled receive sets `close_code` for good, and with it `close()` takes the peer for gone
    and drops the socket at once, while the server still counts it.
    """
    cast(Any, websocket)._close_code = None


class _Unredirected:
    """A session that follows no redirect: a handshake's headers would go to whatever it names."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def request(self, *args: Any, **options: Any) -> Any:
        return self._session.request(*args, allow_redirects=False, **options)


async def connect(
    session: aiohttp.ClientSession, uri: str | URL, **options: Any
) -> aiohttp.ClientWebSocketResponse:
    """Make a handshake, as `session.ws_connect` does but for redirects: they are refusals.

    A session whose `ws_connect` is its own is left to that.
    """
    kind = type(session)
    handshake = getattr(kind, "_ws_connect", None)
    if handshake is None or kind.ws_connect is not aiohttp.ClientSession.ws_connect:
        websocket: Any = await session.ws_connect(uri, **options)
    else:
        websocket = await handshake(_Unredirected(session), uri, **options)
    return cast(aiohttp.ClientWebSocketResponse, websocket)


Breathe = Callable[[], Awaitable[None]]
"""Lets the loop go on, where it must."""

NEXT_TURN: Final[Breathe] = partial(asyncio.sleep, 0)


def sent_headers(websocket: aiohttp.ClientWebSocketResponse) -> Mapping[str, str]:
    """Return the headers of the handshake as they were sent, whoever has added them."""
    try:
        return cast(Mapping[str, str], cast(Any, websocket)._response.request_info.headers)
    except AttributeError:
        return {}


class Transport:
    """The transport below a WebSocket, taken while aiohttp still tells which one it is."""

    __slots__ = ("_protocol", "_response", "_transport")

    def __init__(self, websocket: aiohttp.ClientWebSocketResponse) -> None:
        self._response = cast(Any, websocket)._response
        connection = self._response.connection
        self._transport = connection.transport if connection is not None else None
        self._protocol: Any = connection.protocol if connection is not None else None
        if hasattr(self._transport, "max_size"):  # as those of asyncio's selector loops
            cast(Any, self._transport).max_size = READ_BYTES

    def abort(self) -> None:
        """Cut it off, without a word."""
        if self._transport is not None:
            self._transport.abort()
        self._response.close()  # or it would warn of being dropped unclosed

    def has_ended(self) -> bool:
        """Return whether no frame can come any more; true where that cannot be seen.

        It takes half the time of asking the WebSocket's reader, which knows the same.
        """
        protocol = self._protocol
        try:
            return protocol._payload_parser is None or protocol.transport is None
        except AttributeError:
            return True

    def note_arrival(self) -> Callable[[], bool]:
        """Listen for the next bytes; the callable returned ends that, and says whether any came.

        aiohttp calls one callback for all bytes, which the WebSocket's heartbeat may have set.
        """
        protocol = self._protocol
        has_come = False
        before = getattr(protocol, "_data_received_cb", None)

        def note() -> None:
            nonlocal has_come
            has_come = True
            end()
            if before is not None:
                before()

        def end() -> bool:
            if getattr(protocol, "_data_received_cb", None) is note:
                protocol._data_received_cb = before
            return has_come

        if hasattr(protocol, "_data_received_cb"):
            protocol._data_received_cb = note
        return end

    @property
    def _lost(self) -> asyncio.Future[None] | None:
        """Is done when the transport has called `connection_lost`; None where it long has."""
        return self._protocol.closed if self._protocol is not None else None

    def when_gone(self, callback: Callable[[], None]) -> None:
        """Call back when the transport has called `connection_lost`; at once, if it has."""
        lost = self._lost
        if lost is None or lost.done():
            callback()
        else:
            lost.add_done_callback(lambda _: callback())

    async def wait_gone(self) -> None:
        """Return when the transport has called `connection_lost`."""
        lost = self._lost
        if lost is not None:
            if not lost.done():
                # As asyncio.wait, which takes 10 µs: a cancellation ends this wait, and not `lost`.
                gone = asyncio.get_running_loop().create_future()
                self.when_gone(partial(_settle, gone))
                await gone
            lost.exception()

    async def close(
        self,
        websocket: aiohttp.ClientWebSocketResponse,
        timeout: float,
        code: int = 1000,
        reason: str = "",
        breathe: Breathe = NEXT_TURN,
    ) -> None:
        """Close the WebSocket and return when the transport is gone, after `timeout` by force.

        `breathe` is called before each frame that is read up to the peer's CLOSE.
        """
        # To be aborted ends each of the waits below, and takes half as long as a timeout around.
        loop = asyncio.get_running_loop()
        alarm = loop.call_later(timeout, self.abort)
        try:
            # The CLOSE is far: aiohttp would read up to it in one go.
            if is_flooded(websocket) or unread_frames(websocket) > MAX_CLOSE_FRAMES:
                self.abort()
            else:
                _let_breathe(websocket, breathe, self.abort)
                try:
                    await websocket.close(code=code, message=_cut(reason))
                except (OSError, aiohttp.ClientError):
                    self.abort()
                if self._has_written_all():
                    alarm.cancel()
                    alarm = loop.call_later(min(timeout, TLS_CLOSE_SECONDS), self.abort)
            await self.wait_gone()
        finally:
            alarm.cancel()
            self.abort()

    def _has_written_all(self) -> bool:
        if self._transport is None:
            return True
        try:
            return bool(self._transport.get_write_buffer_size() == 0)
        except AttributeError:  # of a loop whose transports do not tell
            return False


class _LastReader:
    """What a closing WebSocket reads from: so many frames at most, and none in a hurry."""

    def __init__(self, reader: Any, breathe: Breathe, abort: Callable[[], None]) -> None:
        self._reader, self._breathe, self._abort = reader, breathe, abort
        self._frames = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    async def read(self) -> Any:
        self._frames += 1
        if self._frames > MAX_CLOSE_FRAMES:
            self._abort()
            raise ConnectionResetError("the peer sends on and on, and no CLOSE")
        await self._breathe()
        return await self._reader.read()


def _let_breathe(
    websocket: aiohttp.ClientWebSocketResponse, breathe: Breathe, abort: Callable[[], None]
) -> None:
    ours = cast(Any, websocket)
    if hasattr(ours, "_reader"):
        ours._reader = _LastReader(ours._reader, breathe, abort)


def _cut(reason: str) -> bytes:
    """Return as much of a close reason as fits into a control frame, in whole characters."""
    return reason.encode(errors="replace")[:MAX_REASON_BYTES].decode(errors="ignore").encode()


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
