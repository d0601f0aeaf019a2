"""One borrow, of whatever kind: what stands in the line of a pool, and what its lender is to it.

What loans and streams do alike is here; what each has a right to is its own affair.
"""

from __future__ import annotations

import asyncio
import json
import sys
from time import time
from types import FrameType
from typing import Any, ClassVar, Protocol, Self, TypeVar

import aiohttp

from wspool._connection.callsites import Callsite
from wspool._connection.dialogue import GIVEN_UP, NEW, Dialogue
from wspool._connection.errors import (
    ConnectionBusyError,
    ConnectionClosedError,
    ConnectionUnavailableError,
)
from wspool._connection.link import Link
from wspool._connection.states import CLOSED, CloseReason
from wspool._connection.wire import TEXT, Wire, encoded

B = TypeVar("B", bound="Borrow")


class LoanRouter(Protocol):
    """What a borrow needs of the routing."""

    async def wait(self, loan: Any) -> None:
        """Return when the loan was served."""

    def give_back(self, loan: Any, is_failed: bool, /) -> None:
        """End the loan."""

    @property
    def streaming(self) -> Any:
        """Where streams end, by a `give_back` of the same kind."""


class Lender(Protocol):
    """The pool, as a borrow knows it; it is not dropped while it has borrowers."""

    @property
    def _router(self) -> LoanRouter: ...

    def _lend_at_once(self, loan: Any, frame: FrameType) -> bool:
        """Check who borrows, and serve the loan if that needs no wait."""


class Borrow(Dialogue):
    """What a pool must know of whoever waits for a link, or for a share of one."""

    __slots__ = (
        "_arrival",
        "_callsite",
        "_failure",
        "_gate_closed",
        "_horizon",
        "_lender",
        "_prefer",
        "_since",
        "_timeout",
        "_uses",
        "_waiter",
    )

    # Whether a share of a link will do, beside other borrowers.
    _is_stream: ClassVar[bool] = False

    # None: of the pool's own, or a view.
    _lender: Lender | None
    # Seconds for which it may wait; the context that it would like best, or NEW.
    _timeout: float | None
    _prefer: Any
    # Who borrows, and where in the code.
    _callsite: Callsite | None
    # While it stands in the line: what wakes it up, its number and the loop's time when it
    # arrived, and for how long the gate had been closed by then; the last failure of a dial
    # that spoke to it, and the number of the last dial that had begun at the first of these.
    _waiter: asyncio.Future[None]
    _arrival: int
    _since: float
    _gate_closed: float
    _failure: ConnectionUnavailableError | None
    _horizon: int | None
    # Once it is served: which use of the link it is.
    _uses: int

    async def __aenter__(self) -> Self:
        lender = self._lender
        assert lender is not None
        if not lender._lend_at_once(self, sys._getframe(1)):
            await lender._router.wait(self)
        return self

    async def send(self, message: str | bytes) -> None:
        """Send a text or a binary message, as it is.

        Raises ConnectionClosedError when the connection is lost (the message may or may not have
        arrived), StreamOverflowError when messages of a stream are, ConnectionBusyError when it is
        not the caller's, TypeError for anything else than str and bytes, UnicodeEncodeError for a
        str that is no text.
        """
        wire = self._wire("send")
        if type(message) is str:
            payload, kind = message.encode(), TEXT  # as `encoded` does
        else:
            payload, kind = encoded(message)
        self._has_sent = True
        if self._last_message is not GIVEN_UP:
            self._last_message = None
        wire.unfinished_sends += 1
        try:
            await wire.websocket.send_frame(payload, kind)
        except (OSError, aiohttp.ClientError) as error:
            wire.fail(error)
            raise self._served().closed_error() from error
        wire.unfinished_sends -= 1
        wire.sent_messages += 1
        wire.sent_bytes += len(payload)
        wire.last_activity = time()

    async def send_json(self, value: Any) -> None:
        """Send a value as a JSON text message. Raises what `send` and `json.dumps` raise."""
        await self.send(json.dumps(value))

    def __aiter__(self) -> Self:
        return self

    def _is_end(self, error: ConnectionClosedError) -> bool:
        """Whether the server has closed normally, so that an iteration ends without an error."""
        link = self._served()
        is_by_server = link.state is CLOSED and link.moves[-1][2] is CloseReason.SERVER
        return is_by_server and error.code in (1000, 1001)

    def _owns(self, link: Link) -> bool:
        """Whether this link, which it was served, is its own to use."""
        raise NotImplementedError

    def _taken_error(self) -> ConnectionBusyError:
        """Return what to raise where it was borrowed, and is to be borrowed once more."""
        return ConnectionBusyError(
            f"{self!r} was borrowed once; call get_connection(), or get_stream(), for each "
            "`async with`"
        )

    @property
    def _wants_new(self) -> bool:
        return self._prefer is NEW

    @property
    def _is_over(self) -> bool:
        """Whether it was given back."""
        raise NotImplementedError

    def _wire(self, doing: str) -> Wire:
        """Return the wire, if it is this borrow's to use, and works."""
        raise NotImplementedError


async def lend(borrow: B, frame: FrameType) -> B:
    """Borrow on behalf of whoever is in this frame."""
    lender = borrow._lender
    assert lender is not None
    if not lender._lend_at_once(borrow, frame):
        await lender._router.wait(borrow)
    return borrow
