"""The loan: one borrow, from the call to its end, and what the borrower has in hand.

It is one object. `get_connection()` returns it, it stands in the line while it waits, it owns the
link while it is lent, and when it is over it has no right to anything any more: a task that
outlives its block can neither read nor disturb the next borrower's messages.

The right to the wire is `link.owner is self`. `link.loan is self` says that the loan is not over:
the two differ when the link was closed under it, and then what came before may still be read.

Hooks get a loan of the pool's own, good while the hook runs. Whoever only looks gets a view: the
same class, and never an owner.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Awaitable, Callable
from time import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp

from wspool._connection.borrow import Borrow, Lender
from wspool._connection.callsites import line_of
from wspool._connection.dialogue import GIVEN_UP, NEW
from wspool._connection.errors import (
    ConnectionBusyError,
    ConnectionClosedError,
    WebsocketError,
)
from wspool._connection.exporting import exported
from wspool._connection.facts import ConnectionFacts
from wspool._connection.idioms import refusing
from wspool._connection.link import Link
from wspool._connection.states import CLOSED, CloseReason
from wspool._connection.wire import (
    BINARY,
    CLOSE_FRAME,
    LARGE_BYTES,
    TEXT,
    Wire,
    check_close,
)

T = TypeVar("T")


@exported
class WebsocketConnection(Borrow, ConnectionFacts):
    """One loan of a WebSocket to the server.

    Its properties may be read at any time, also when the loan is over. Only the borrower may send,
    receive, ping and close, and only until the connection is given back. After that these raise
    ConnectionBusyError, or ConnectionClosedError if the connection was lost before.
    """

    __slots__ = ("_is_cut_off",)

    def __init__(
        self,
        lender: Lender | None,
        timeout: float | None = None,
        wants_new: bool = False,
        prefer: Any = None,
    ) -> None:
        self._link = None
        self._has_sent = False
        self._last_message = None
        self._outstanding = None
        self._lender = lender
        self._timeout = timeout
        self._prefer = NEW if wants_new else prefer
        self._callsite = None
        # Whether the link was closed by the time that the loan was over; unset where it was not.
        self._is_cut_off: bool

    # What there is to see.

    @property
    def reused(self) -> bool:
        """Whether somebody else has used this connection before this loan."""
        uses = self._served().uses if self._callsite is None else self._uses
        return uses > 1

    @property
    def borrowed_at(self) -> str | None:
        """Where the loan was taken, as `file:line`; None if nobody has borrowed it."""
        callsite = self._callsite
        if callsite is not None:
            return line_of(callsite)
        loan = self._served().loan
        return loan.borrowed_at if loan is not None and loan is not self else None

    @property
    def context(self) -> Any:
        """Whatever you set, for as long as the connection lives: later loans have it too.

        None at first. Only the present borrower, or a hook, may set it.
        """
        return self._served().context

    @context.setter
    def context(self, context: Any) -> None:
        self._link_of_mine("set the context").context = context

    @property
    def websocket(self) -> aiohttp.ClientWebSocketResponse:
        """The aiohttp WebSocket. Reading or writing it directly bypasses what the pool knows."""
        link = self._link_of_mine("use the WebSocket")
        assert link.wire is not None
        # What is done with it cannot be seen, so take it that something is sent.
        self._note_send()
        return link.wire.expose()

    def __repr__(self) -> str:
        link = self._link
        if link is None:
            return "<WebsocketConnection, not yet lent>"
        over = " (this loan is over)" if self._callsite is not None and self._is_over else ""
        return f"<WebsocketConnection {link.shown()}{over}>"

    if not TYPE_CHECKING:
        __await__ = refusing(
            "a connection is not awaited, nor is pool.get_connection(): write `async with "
            "pool.get_connection() as connection:`, or `connection = await pool.acquire()`"
        )
        __enter__ = __exit__ = refusing(
            "a connection is borrowed with `async with pool.get_connection() as connection:`, not "
            "with `with`; where there is no asyncio, use a BlockingWebsocketConnectionPool"
        )
        __iter__ = refusing("messages are read with `async for message in connection:`")

    # What a borrower does.

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        link, lender = self._link, self._lender
        assert link is not None
        assert lender is not None
        if link.loan is self:  # else it was ended inside the block
            lender._router.give_back(self, kind is not None)

    async def recv(self) -> str | bytes:
        """Return the next message, in the order of arrival.

        A recv that is cancelled or timed out has taken nothing. Raises ConnectionClosedError
        once the messages that came before the close have been read, ConnectionBusyError when the
        connection is not the caller's or another task is in recv.
        """
        link = self._link
        if (
            link is None
            or (wire := link.wire) is None
            or (link.owner is not self and link.loan is not self)  # as `_link_of_mine`, inlined
        ):
            raise self._refusal("recv")
        frames = wire.frames
        if frames and not (wire.is_receiving or wire.is_reading or wire.inbox):
            # As `at_hand`, without its calls: a stream takes half the time.
            frame, size = frames[0]
            if size < LARGE_BYTES and ((kind := frame.type) is TEXT or kind is BINARY):
                await wire.next_frame()  # does not wait
                wire.received_messages += 1
                wire.received_bytes += size
                data: str | bytes = frame.data
                self._last_message = data
                if self._outstanding is not None:
                    self._count_down(data)
                if not frames:  # a tenth of a stream's time, otherwise
                    wire.last_activity = time()
                return data
        if wire.is_receiving:
            raise ConnectionBusyError(
                f"Another task is in recv on connection #{link.id}; one at a time may wait for "
                "messages"
            )
        message, is_flooded = None, False
        if wire.inbox or wire.arrivals:
            # To take one of a flood may inflate the next, which must have its turn.
            is_flooded = wire.is_flooded
            message = wire.at_hand() if not is_flooded else None
        if message is None:
            wire.is_receiving = True
            try:
                if not (is_flooded or wire.is_reading or wire.is_lost) and link.owner is self:
                    # As `next_message` does, without one more coroutine on the way.
                    message = await wire.read()
                    if message is not None and link.owner is not self:
                        wire.keep(message)
                        message = None
                if message is None:
                    message = await link.next_message(self)
            except BaseException:
                self._last_message = GIVEN_UP
                raise
            finally:
                wire.is_receiving = False
        if message is None:
            raise self._refusal("recv")
        self._last_message = message
        if self._outstanding is not None:
            self._count_down(message)
        wire.last_activity = time()
        return message

    async def ping(self) -> float:
        """Send a ping, wait for its pong and return the round trip in seconds.

        It may run beside a `recv` and beside other pings; messages that arrive meanwhile are
        kept for `recv`, up to 512 KiB: beyond that the ping fails, with ConnectionBusyError. A pong
        settles all earlier pings: a server may answer only the latest (RFC 6455, 5.5.3). There is
        no time limit: put `asyncio.timeout` around it.
        Raises ConnectionClosedError and ConnectionBusyError as `send` does.
        """
        self._wire("ping")
        seconds = await self._served().ping(self)
        if seconds is None:
            raise self._refusal("ping")
        return seconds

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection for good and return when its socket is gone.

        `code` and `reason` are sent to the server, which has `close_timeout` seconds to answer. At
        most 123 bytes of the reason are sent. A connection that is closed already sends nothing,
        and raises nothing. A later `release` is silent. Raises ValueError for a code that may not
        be sent (RFC 6455, 7.4).
        """
        check_close(code, reason)
        link = self._served()
        if link.state is not CLOSED:
            if link.owner is not self:
                raise self._refusal("close")
            if self._callsite is None:
                link.task = None  # the hook's, which may wait for this, and ends by itself
            link.close(CloseReason.USER, code=code, reason=reason)
        await link.wait_gone()

    def retire(self) -> None:
        """Let nobody have this connection any more: it closes when it is given back.

        One that is idle closes at once. For servers that say that they are about to close. May be
        called on what `on_drained`, `pool.connections` and hooks have, and by the borrower.
        """
        link = self._served()
        if self._callsite is not None and self._is_over:
            raise self._refusal("retire")
        link.retire()

    async def recv_json(self) -> Any:
        """Return the next message, parsed as JSON.

        Raises what `recv` raises, and ValueError for a message that is not JSON: it is taken.
        """
        return json.loads(await self.recv())

    async def __anext__(self) -> str | bytes:
        """Return the next message, until the server closes normally (1000 or 1001)."""
        try:
            return await self.recv()
        except ConnectionClosedError as error:
            if self._is_end(error):
                raise StopAsyncIteration from None
            raise

    # The right to the wire.

    def _owns(self, link: Link) -> bool:
        return link.owner is self

    def _link_of_mine(self, doing: str) -> Link:
        link = self._served()
        if link.owner is not self and link.loan is not self:
            raise self._refusal(doing)
        return link

    def _wire(self, doing: str) -> Wire:
        link = self._link
        if link is None or link.owner is not self:
            raise self._refusal(doing)
        wire = link.wire
        assert wire is not None
        if wire.is_lost:
            raise link.closed_error()
        if wire.frames and wire.frames[-1][0].type is CLOSE_FRAME:
            wire.attend()  # else what is sent now would seem to have been taken
            if link.owner is not self:
                raise self._refusal(doing)
        return wire

    @property
    def _is_over(self) -> bool:
        return self._served().loan is not self

    def _put_back(self, message: str | bytes) -> None:
        """Let the next recv return this message: the one that had taken it was given up."""
        wire = self._served().wire
        if wire is not None and not self._is_over:
            wire.put_back(message)

    def _refusal(self, doing: str) -> WebsocketError:
        """Return why this loan cannot do that now."""
        link = self._served()
        if link.owner is self or link.loan is self:
            return link.closed_error()  # the right is there, and nothing more to be had
        if self._callsite is None:
            if link.state is CLOSED:
                return link.closed_error()
            return ConnectionBusyError(
                f"Cannot {doing} on connection #{link.id}: it is {link.state} and not lent to you; "
                "acquire it from the pool first"
            )
        if getattr(self, "_is_cut_off", False):
            return link.closed_error()
        return ConnectionBusyError(
            f"Cannot {doing}: this loan of connection #{link.id}, lent at {self.borrowed_at}, is "
            "over; acquire a connection from the pool"
        )


async def lend_to_hook(
    link: Link,
    hook: Callable[[WebsocketConnection], Awaitable[object]],
    after: WebsocketConnection | None = None,
) -> WebsocketConnection:
    """Let a hook of the user's own the link while it runs; return the loan that it had.

    `after`: the loan that was given back, if the hook is to clean up behind one.
    """
    owner = link.owner
    loan = WebsocketConnection(None)
    loan._link = link
    if after is not None:
        loan._take_over(after)
    link.owner = loan
    try:
        await called(hook, loan)
    finally:
        if link.owner is loan:
            link.owner = owner
    return loan


def called(hook: Callable[[T], Awaitable[object]], lent: T) -> Awaitable[object]:
    """Return what a hook of the user's returns, which is to be awaited."""
    awaitable = hook(lent)
    if not hasattr(awaitable, "__await__"):  # a lambda's, which could not be told before
        kind = type(awaitable).__name__
        raise TypeError(f"a hook returned {kind}, and no coroutine: define it with `async def`")
    return awaitable


def view_of(link: Link) -> WebsocketConnection:
    """Return how a link is shown to whoever has no right to it: one object, while it is held."""
    view: WebsocketConnection | None = link.view() if link.view is not None else None
    if view is None:
        view = WebsocketConnection(None)
        view._link = link
        link.view = weakref.ref(view)
    return view
