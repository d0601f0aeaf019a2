"""The stream: one borrow of a share of a link, and what the borrower has in hand.

It is to a lane of a sharing what a loan is to a link: `lane.owner is self` is its right, and when
it is over it has none any more. See `sharing.py`, which reads for all.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from time import time
from typing import Any

from wspool._connection.borrow import Borrow, Lender
from wspool._connection.callsites import line_of
from wspool._connection.dialogue import GIVEN_UP
from wspool._connection.errors import (
    ConnectionBusyError,
    ConnectionClosedError,
    StreamOverflowError,
    WebsocketError,
)
from wspool._connection.exporting import exported
from wspool._connection.link import Link
from wspool._connection.loan import WebsocketConnection, view_of
from wspool._connection.routes import UNPARSED
from wspool._connection.sharing import Lane
from wspool._connection.states import State
from wspool._connection.unclaimed import Entry
from wspool._connection.wire import CLOSE_FRAME, Wire


@exported
class WebsocketStream(Borrow):
    """One borrower's share of a WebSocket, whose messages carry keys; others have theirs.

    It receives the messages whose key it has claimed, as the pool's `route` finds it, and no
    others. What is a property here may be read at any time, also when the stream is over. To
    claim, to send, to receive and to ping is the right of whoever has borrowed it, until it is
    given back: afterwards that is a ConnectionBusyError, or a ConnectionClosedError if the
    connection was lost before.
    """

    __slots__ = ("_is_cut_off", "_is_receiving", "_lane")

    _is_stream = True

    def __init__(self, lender: Lender | None, timeout: float | None = None) -> None:
        self._link = None
        self._has_sent = False
        self._last_message = None
        self._outstanding = None
        self._lender = lender
        self._timeout = timeout
        self._prefer = None
        self._callsite = None
        # Its share, once it is served.
        self._lane: Lane | None = None
        # Whether a task is in recv; whether the link was closed by the time that it was over.
        self._is_receiving = self._is_cut_off = False

    # What there is to see.

    @property
    def connection(self) -> WebsocketConnection:
        """The connection, to look at: to use it is no right of one of its streams."""
        return view_of(self._served())

    @property
    def state(self) -> State:
        """Busy while it is lent, draining afterwards, and closed when it or its connection is."""
        return self._share.state

    @property
    def number(self) -> int:
        """Its number, which never repeats on this connection: they count from 1 and only rise."""
        return self._share.number

    @property
    def slot(self) -> int:
        """Its place on the connection, from 1 to `max_streams`: nobody else has it meanwhile."""
        return self._share.slot

    @property
    def keys(self) -> tuple[Hashable, ...]:
        """What it has claimed, in order."""
        return tuple(self._share.keys)

    @property
    def reused(self) -> bool:
        """Whether somebody has used this connection before this stream, or uses it beside it."""
        self._served()
        return self._uses > 1

    @property
    def borrowed_at(self) -> str | None:
        """Where it was borrowed, as `file:line`; None if a hook has it."""
        return line_of(self._callsite) if self._callsite is not None else None

    def __repr__(self) -> str:
        lane, link = self._lane, self._link
        if lane is None or link is None:
            return "<WebsocketStream, not yet lent>"
        over = " (this stream is over)" if lane.owner is not self else ""
        return f"<WebsocketStream {lane.slot} of {link.shown()}{over}>"

    # What a borrower does.

    async def __aexit__(self, kind: type[BaseException] | None, *error: object) -> None:
        lane, lender = self._lane, self._lender
        assert lender is not None
        if lane is not None and lane.owner is self:  # else it was ended inside the block
            lender._router.streaming.give_back(self, kind is not None)

    def claim(self, key: Hashable = None) -> Any:
        """Let messages with this key be this stream's until it has drained; return the key.

        Without a key it is a new number, as `number` counts them. What came with the key up to a
        second ago, and was nobody's, is received first. Raises ValueError for a key that a stream
        of this connection has claimed, this one included, and that has not drained yet; TypeError
        for what is not hashable; and what `send` raises for a stream that is over.
        """
        lane = self._lane
        if lane is None or lane.owner is not self:  # as `_lane_of_mine`, inlined: so three times
            raise self._refusal("claim")
        sharing = lane.sharing
        if sharing.link.owner is not sharing:
            raise self._refusal("claim")
        if key is None:
            key = sharing.draw()
        sharing.claim(lane, key)
        return key

    async def recv(self) -> str | bytes:
        """Return the next message of this stream, in the order of arrival.

        A recv that is cancelled or timed out has taken nothing. Raises ConnectionClosedError or
        StreamOverflowError once the messages that came before have been read, ConnectionBusyError
        when the stream is not the caller's or another task is in its recv.
        """
        message, _ = await self._next()
        return message

    async def recv_json(self) -> Any:
        """Return the next message, parsed as JSON: by the `route` already, if that is a path.

        Raises what `recv` raises, and ValueError for a message that is not JSON: it is taken.
        """
        message, value = await self._next()
        return json.loads(message) if value is UNPARSED else value

    async def ping(self) -> float:
        """Send a ping, wait for its pong and return the round trip in seconds.

        What arrives meanwhile is kept for those whose it is. Put `asyncio.timeout` around it.
        Raises ConnectionClosedError and ConnectionBusyError as `send` does.
        """
        self._wire("ping")
        lane = self._share
        seconds = await lane.sharing.ping(lane, self)
        if seconds is None:
            raise self._refusal("ping")
        return seconds

    async def __anext__(self) -> str | bytes:
        """Return the next message, until the server closes normally (1000 or 1001)."""
        return (await self._next_or_end())[0]

    async def _next_or_end(self) -> Entry:
        try:
            return await self._next()
        except ConnectionClosedError as error:
            if self._is_end(error):
                raise StopAsyncIteration from None
            raise

    async def _next(self) -> Entry:
        lane = self._lane
        if lane is None or lane.owner is not self:
            raise self._refusal("recv")
        if self._is_receiving:
            raise ConnectionBusyError(
                f"Another task is in recv on the stream in slot {lane.slot} of connection "
                f"#{self._served().id}; one at a time may wait for its messages"
            )
        entry: Entry | None
        if lane.entries:
            entry = lane.take()
        else:
            self._is_receiving = True
            try:
                entry = await lane.sharing.next_entry(lane, self)
            except BaseException:
                self._last_message = GIVEN_UP
                raise
            finally:
                self._is_receiving = False
            if entry is None:
                raise self._refusal("recv")
        self._last_message = entry[0]
        if self._outstanding is not None:
            self._count_down(entry[0])
        wire = lane.sharing.link.wire
        if wire is not None:
            wire.last_activity = time()
        return entry

    # The right to the share.

    @property
    def _share(self) -> Lane:
        self._served()
        assert self._lane is not None
        return self._lane

    def _owns(self, link: Link) -> bool:
        lane = self._lane
        return lane is not None and lane.owner is self and link.owner is lane.sharing

    def _lane_of_mine(self, doing: str) -> Lane:
        lane = self._lane
        if lane is None or lane.owner is not self:
            raise self._refusal(doing)
        return lane

    def _link_of_mine(self, doing: str) -> Link:
        return self._lane_of_mine(doing).sharing.link

    def _wire(self, doing: str) -> Wire:
        lane = self._lane
        if lane is None or lane.owner is not self:
            raise self._refusal(doing)
        sharing = lane.sharing
        wire = sharing.link.wire
        if wire is not None and wire.frames and wire.frames[-1][0].type is CLOSE_FRAME:
            sharing.attend()  # else what is sent now would seem to have been taken
        if wire is None or wire.is_lost or sharing.link.owner is not sharing or lane.is_overflowed:
            raise self._refusal(doing)
        return wire

    @property
    def _is_over(self) -> bool:
        return self._share.owner is not self

    def _last_read(self) -> str | bytes | None:
        lane, last = self._lane, self._last_message
        assert lane is not None
        return None if lane.entries or lane.is_overflowed or last is GIVEN_UP else last

    def _put_back(self, entry: Entry) -> None:
        """Let the next recv return this entry: the one that had taken it was given up."""
        if not self._is_over:
            self._share.put_back(entry)

    def _refusal(self, doing: str) -> WebsocketError:
        """Return why this stream cannot do that now."""
        link, lane = self._served(), self._share
        if lane.owner is self:
            if lane.is_overflowed and link.owner is lane.sharing:
                return StreamOverflowError(
                    f"Cannot {doing}: more than max_unread bytes came for the stream in slot "
                    f"{lane.slot} of connection #{link.id}, lent at {self.borrowed_at}, while it "
                    "was not in recv and others were; what came after that is lost"
                )
            return link.closed_error()
        if self._is_cut_off:
            return link.closed_error()
        return ConnectionBusyError(
            f"Cannot {doing}: this stream, in slot {lane.slot} of connection #{link.id}, lent at "
            f"{self.borrowed_at}, is over; get another one from the pool"
        )


def stream_of_hook(lane: Lane, after: WebsocketStream) -> WebsocketStream:
    """Return a stream of the pool's own on the share of one that was given back."""
    stream = WebsocketStream(None)
    stream._link, stream._lane, stream._uses = after._link, lane, after._uses
    stream._take_over(after)
    if lane.is_overflowed:  # it may go on: what is missing was its borrower's
        lane.is_overflowed = False
        if stream._last_message is not GIVEN_UP:
            stream._last_message = None
    return stream
