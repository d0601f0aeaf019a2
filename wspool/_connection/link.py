"""The link: one place in a pool, from its dial to its end.

The state machine moves it between the queues (`states.py`). It has a wire from the handshake on,
and at most one owner at a time: whoever may send and receive. After every await an owner looks
whether it still is that. A link knows nothing of pools; it calls `on_close` once, when it enters
the state closed: whoever made it then says goodbye.
"""

from __future__ import annotations

import asyncio
import random
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from time import time
from typing import Any, Final, NamedTuple, Protocol

import aiohttp

from wspool._connection import states
from wspool._connection.budget import Budget, clock_of
from wspool._connection.errors import ConnectionBusyError, ConnectionClosedError
from wspool._connection.exporting import exported
from wspool._connection.queues import Queues
from wspool._connection.scrubbing import forget_frames, scrub_text, scrub_uri, secrets_of
from wspool._connection.states import BUSY, CLOSED, MAX_HISTORY, CloseReason, Moved, State
from wspool._connection.wire import MAX_INBOX_BYTES, Control, Ping, Wire

NEVER: Final = float("inf")


class Permit(Protocol):
    """The lease of a socket, where there is a quota."""

    @property
    def is_lost(self) -> bool:
        """Whether somebody else has its place."""

    def leave(self) -> None:
        """Tell the quota that the socket is being closed."""

    def release(self) -> None:
        """Tell the quota that the socket is gone."""


@exported
class Transition(NamedTuple):
    """One entry of a connection's history.

    `at` is in Unix seconds, `why` in a word: for a close it is a `CloseReason`.
    """

    trigger: str
    source: State
    dest: State
    at: float
    why: str


class Link:
    """One connection, or the attempt at one."""

    __slots__ = (
        "__weakref__",
        "_gone_waiters",
        "born",
        "budget",
        "cause",
        "checked_at",
        "clock",
        "close_code",
        "close_reason",
        "context",
        "created_at",
        "dial_seconds",
        "drained_messages",
        "given",
        "handshake_seconds",
        "headers",
        "id",
        "idle_since",
        "is_flooding",
        "is_last",
        "jitter",
        "kept_alive_at",
        "loan",
        "moves",
        "named_use",
        "number",
        "on_close",
        "opened_at",
        "owner",
        "permit",
        "queues",
        "retire_at",
        "retire_why",
        "sharing",
        "state",
        "task",
        "uri",
        "uses",
        "view",
        "wire",
    )

    def __init__(
        self,
        id: int,
        queues: Queues[Link],
        loop: asyncio.AbstractEventLoop,
        budget: Budget,
        on_close: Callable[[Link], object],
    ) -> None:
        # Counts the pool's links from 1.
        self.id = id
        # What the state machine moves: see states.py. This is the birth.
        self.state = State.CONNECTING
        self.queues = queues
        self.moves: deque[Moved] = deque(maxlen=MAX_HISTORY)
        self.clock = clock_of(loop)
        self.born = loop.time()
        self.created_at = time()
        # Called once, right after the link has entered the state closed.
        self.on_close = on_close

        # Who has the right to the wire: a loan, an errand, a drain, a dial, a goodbye, or nobody.
        self.owner: object | None = None
        # The loan that has it in hand: its owner while it is busy, and afterwards, if the link was
        # closed under the loan, whoever may read what came before. A `WebsocketConnection`, or the
        # sharing of several streams, which stays from the first of these on.
        self.loan: Any = None
        self.sharing: Any = None
        # The pool's task at work on it: the dial, an errand, the drain.
        self.task: asyncio.Task[None] | None = None
        # A weak reference to how it is shown to those who have no right to it: see loan.py.
        self.view: Any = None
        # The time for which its wire is read while nobody waits for a message.
        self.budget = budget
        # From the handshake on; that of an attempt that failed is dropped.
        self.wire: Wire | None = None
        self.permit: Permit | None = None
        # Says of a message whether it is the last of an answer, where that is known.
        self.is_last: Callable[[str | bytes], object] | None = None
        # Whatever the users of this connection want to remember of it.
        self.context: Any = None

        # Those of the last dial attempt, secrets included; the secrets that were sent beside them.
        self.uri = ""
        self.headers: dict[str, str] = {}
        self.given: tuple[str, ...] = ()
        # How long the handshake took, and all of the attempt that succeeded, in seconds.
        self.handshake_seconds = self.dial_seconds = 0.0
        # Its dial's place among the arrivals of those who wait, drawn when it begins; 0 before.
        self.number = 0

        # By its clock: open since, idle since, to be retired at; the last time that a check was
        # answered, and that a keepalive went well.
        self.opened_at: float | None = None
        self.idle_since = 0.0
        self.retire_at = NEVER
        self.retire_why = CloseReason.LIFETIME
        self.checked_at = self.kept_alive_at = float("-inf")
        # From 0 to 1: where in a spread of times this link's is.
        self.jitter = random.random()

        # Loans so far, the present one included; the one that a warning has named as overdue.
        self.uses = self.named_use = 0
        # Messages that no borrower has read.
        self.drained_messages = 0
        # At the last look more was unread than aiohttp's queue holds: the rest is still coming.
        self.is_flooding = False

        self.close_code: int | None = None
        self.close_reason = ""
        self.cause: BaseException | None = None
        self._gone_waiters: list[asyncio.Future[None]] = []

    def __repr__(self) -> str:
        """Show it as its users know it."""
        return f"<WebsocketConnection {self.shown()}>"

    def shown(self) -> str:
        closed = f" {self.close_code}" if self.close_code is not None else ""
        return f"#{self.id} {self.state}{closed} {scrub_uri(self.uri)} uses={self.uses}"

    # What there is to see.

    @property
    def is_connected(self) -> bool:
        """Whether messages can be exchanged, as far as the event loop has heard."""
        wire = self.wire
        if wire is None or wire.is_lost or self.state is CLOSED:
            return False
        return not wire.websocket.closed

    @property
    def is_open(self) -> bool:
        """Whether its WebSocket is open, and was so for a loan to be possible."""
        wire = self.wire
        return wire is not None and not wire.is_lost and self.opened_at is not None

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
        """How long the present loan has lasted, the link's end included."""
        if self.state is BUSY:
            return self.seconds_in_state
        lent = (at for move, at, _ in reversed(list(self.moves)) if move.trigger == "checkout")
        return self.clock() - next(lent)

    @property
    def is_shared(self) -> bool:
        """Whether streams have it, lent or draining, or had it when it was closed."""
        return self.loan is not None and self.loan is self.sharing

    def is_overdue(self, threshold: float | None) -> bool:
        """Whether a user has had it alone for longer than so many seconds."""
        is_lent = self.loan is not None and not self.is_shared
        return threshold is not None and is_lent and self.seconds_lent > threshold

    @property
    def has_news(self) -> bool:
        """Whether something was read that nobody has looked at."""
        return self.wire is not None and self.wire.has_news

    # What its owner does.

    async def next_message(self, owner: object, until: Ping | None = None) -> str | bytes | None:
        """Return the next message for this owner.

        None when no more can come: the link is lost or closed, the owner is another, or the ping
        `until` is answered, so that all that was sent before its pong has been returned.
        """
        wire = self.wire
        assert wire is not None
        while True:
            if wire.is_flooded:
                await self.budget.breathe()
            if until is not None and until.answered is not None:
                return None
            if self.owner is not owner:
                return wire.at_hand() if self.loan is owner else None
            if (ready := wire.at_hand()) is not None:
                return ready
            if wire.is_lost:
                return None
            if wire.is_reading:
                await wire.turn()
            elif (message := await wire.read()) is not None:
                if self.owner is owner:
                    return message
                wire.keep(message)
            else:
                await self.budget.breathe()

    async def ping(self, owner: object) -> float | None:
        """Return the seconds until a pong, or None if the owner cannot get one any more.

        Raises ConnectionBusyError when more has come before it than the inbox may hold.
        """
        wire = self.wire
        assert wire is not None
        ping = await wire.send_ping()
        while ping.answered is None:
            if wire.is_lost or self.owner is not owner:
                return None
            if wire.is_reading:
                await wire.turn()
            elif wire.inbox_bytes >= MAX_INBOX_BYTES:
                raise ConnectionBusyError(
                    f"The pong on connection #{self.id} is behind more than {MAX_INBOX_BYTES >> 10}"
                    " KiB of messages that nobody has read: be in recv meanwhile"
                )
            else:
                await self.budget.breathe()
                if wire.is_reading or self.owner is not owner:
                    continue
                if (message := await wire.read()) is not None:
                    wire.keep(message)
        return ping.answered - ping.sent

    def unread(self) -> Iterator[str | bytes]:
        """Give the messages that the event loop has already read: see `Wire.unread`."""
        return iter(()) if self.wire is None else self.wire.unread()

    # The wire.

    def attach(
        self, websocket: aiohttp.ClientWebSocketResponse, control: Control | None = None
    ) -> Wire:
        """Take the WebSocket of a handshake that succeeded."""
        wire = self.wire = Wire(websocket, self._lost, self.budget, control)
        return wire

    def _lost(self, why: CloseReason, code: int, reason: str, cause: BaseException | None) -> None:
        """Hear from the wire that nothing more can be read or written."""
        if self.state is CLOSED:
            return
        # A server may quote the token that it refuses.
        self.close_reason = scrub_text(reason, self.secrets()) if reason else ""
        forget_frames(cause)
        self.close_code, self.cause = code, cause
        if self.state is not State.CONNECTING:  # there, the dial will try again
            self.close(why)

    def secrets(self) -> tuple[str, ...]:
        """Return what must never be shown of the last dial attempt."""
        return secrets_of(self.uri, self.headers, self.given)

    async def close_wire(self, timeout: float) -> None:
        """Close the WebSocket and return when its transport is gone, after `timeout` by force."""
        if self.wire is not None:
            # A peer's code is echoed (RFC 6455, 5.5.1); 1005 and 1006 are never sent (7.4.1), and
            # a peer that has sent the latter has broken the protocol.
            code = {None: 1000, 1005: 1000, 1006: 1002}.get(self.close_code, self.close_code)
            await self.wire.close(timeout, code or 1000, self.close_reason)

    async def drop_wire(self, timeout: float) -> None:
        """Close and forget the WebSocket of an attempt that failed after its handshake."""
        await self.close_wire(timeout)
        self._return_permit()
        self.wire = None
        if self.state is State.CONNECTING:  # what ended the attempt has not ended the link
            self.close_code, self.close_reason, self.cause = None, "", None

    def abort(self) -> None:
        """Cut the transport off, without a word."""
        if self.wire is not None:
            self.wire.transport.abort()

    # The end.

    def close(
        self,
        why: CloseReason,
        *,
        code: int = 1000,
        reason: str = "",
        cause: BaseException | None = None,
    ) -> bool:
        """Enter the state closed, from whichever; False if it was closed already."""
        if self.state is CLOSED:
            return False
        states.close(self, why)
        self.owner = None  # until the goodbye has it
        if self.close_code is None:
            self.close_code, self.close_reason = code, reason
        if cause is not None:
            self.cause = cause
        if self.wire is not None:
            if self.is_shared:
                self.loan.close()
            elif self.loan is not None:  # the goodbye reads over what came before
                self.wire.rescue()
            self.wire.wake()
        self.on_close(self)
        return True

    def retire(self) -> None:
        """Close it as soon as nobody uses it."""
        self.retire_at, self.retire_why = float("-inf"), CloseReason.RETIRED
        if self.state is State.IDLE:
            self.close(CloseReason.RETIRED)

    def closed_error(self) -> ConnectionClosedError:
        reused = f"; it was a reused one, lent {self.uses} times" if self.uses > 1 else ""
        return ConnectionClosedError(
            f"Connection #{self.id}: {self.how_closed()}{reused}",
            code=self.close_code,
            reason=self.close_reason,
        )

    def how_closed(self) -> str:
        """Return who closed it, with code and reason."""
        who = {
            CloseReason.SERVER: "closed by the server",
            CloseReason.PROTOCOL: "closed by us, for what the server has sent",
            CloseReason.POOL: "pool closed",
        }
        if self.state is CLOSED:
            why = CloseReason(self.moves[-1][2])
        else:  # during its dial
            why = CloseReason.SERVER
        how = who.get(why, f"closed ({why})")
        code = f", code {self.close_code}" if self.close_code is not None else ""
        if why is CloseReason.PROTOCOL and self.close_code == 1009:
            code += " (max_msg_size)"
        reason = f" {self.close_reason!r}" if self.close_reason else ""
        return f"{how}{code}{reason}"

    def when_gone(self, callback: Callable[[], None]) -> None:
        """Call back when the transport is gone; at once, if it is."""
        if self.wire is None:
            callback()
        else:
            self.wire.transport.when_gone(callback)

    def free(self) -> None:
        """Leave the last queue: the transport is gone, and the place is free."""
        self.queues.remove(self)
        self._return_permit()
        if self.wire is not None:
            if self.loan is None:  # else its borrower may still read what came before the close
                self.wire.inbox = self.sharing = None
            self.wire.wake()
        gone_waiters, self._gone_waiters = self._gone_waiters, []
        for waiter in gone_waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait_gone(self) -> None:
        """Return when a closed link has freed its place."""
        while self in self.queues.closed:
            waiter = asyncio.get_running_loop().create_future()
            self._gone_waiters.append(waiter)
            await waiter

    def _return_permit(self) -> None:
        permit, self.permit = self.permit, None
        if permit is not None:
            permit.release()

    def __del__(self) -> None:
        if getattr(self, "loan", None) is not None and self.state is BUSY and not self.is_shared:
            warnings.warn(
                f"connection #{self.id}, borrowed at {self.loan.borrowed_at}, was dropped without "
                "being given back: release it, or use `async with pool.get_connection()`",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )
