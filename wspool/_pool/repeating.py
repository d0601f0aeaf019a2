"""Repeating: `run`, which does its work once more when a reused connection was lost under it.

A connection that has been idle may be closed by its server in the very moment in which it is lent,
and no look beforehand can tell. The work then fails at no fault of anybody's, mostly before the
server has seen anything of it. HTTP clients send such a request again (RFC 9112, 9.3.1), and so
does this, under the same conditions: others have used the connection, nothing has come back on it,
and whoever calls has said that the work may be done twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, TypeVar, TypeVarTuple

from wspool._connection.borrow import Lender, lend
from wspool._connection.errors import ConnectionClosedError
from wspool._connection.loan import WebsocketConnection
from wspool._connection.states import CLOSED, CloseReason
from wspool._pool.listeners import Events
from wspool._pool.stats import Stats

T = TypeVar("T")
Args = TypeVarTuple("Args")

WINDOW_SECONDS: Final = 10.0
SHARE: Final = 0.2
"""Share of the loans of the last `WINDOW_SECONDS` that may be repeated within these: a server that
is in trouble gets no more than a fifth of load on top."""

LEAST_PER_SECOND: Final = 1.0
"""Repetitions that are allowed however few loans there were."""


class Attempt:
    """The first loan of a run, from its beginning on: whether its connection said anything."""

    __slots__ = ("_has_heard", "_received", "loan")

    def __init__(self, loan: WebsocketConnection) -> None:
        wire = loan._served().wire
        assert wire is not None
        self.loan = loan
        # A reused connection is lent with nothing unread; what is kept for the loan came in it.
        self._received = wire.received_messages - len(wire.inbox or ())
        self._has_heard = wire.transport.note_arrival()

    def was_in_vain(self) -> bool:
        """Return whether the connection was a reused one, and is lost without a word of answer.

        Of a server that says goodbye, bytes have come in any case: there it is messages that count.
        Without a CLOSE a part of a message counts as well, which nobody else would know of.
        """
        link, has_heard = self.loan._served(), self._has_heard()
        wire = link.wire
        assert wire is not None
        is_lost = link.state is CLOSED and link.moves[-1][2] is CloseReason.SERVER
        if not (is_lost and self.loan.reused) or wire.is_exposed:
            return False
        return wire.received_messages == self._received and not (
            link.close_code == 1006 and has_heard
        )

    def end(self) -> None:
        """Listen no more: the work has ended otherwise."""
        self._has_heard()


class Repeating:
    """The runs of one pool, and how many of them it has repeated lately."""

    def __init__(self, stats: Stats, events: Events) -> None:
        self._stats, self._events = stats, events
        # When the last loans were repeated. How many loans there had been at which time: the first
        # of these readings is as old as the window, or older.
        self._repeats: deque[float] = deque()
        self._readings: deque[tuple[float, int]] = deque([(float("-inf"), 0)])

    def read(self, now: float) -> None:
        """Note how many loans there have been; the upkeep does so all the time."""
        self._readings.append((now, self._stats.borrows))
        while self._readings[1][0] <= now - WINDOW_SECONDS:
            self._readings.popleft()

    def is_within_budget(self, now: float) -> bool:
        """Return whether one more loan may be repeated."""
        while self._repeats and self._repeats[0] <= now - WINDOW_SECONDS:
            self._repeats.popleft()
        loans = self._stats.borrows - self._readings[0][1]
        return len(self._repeats) < max(SHARE * loans, LEAST_PER_SECOND * WINDOW_SECONDS)

    def may_repeat(self, attempt: Attempt) -> bool:
        """Return whether the work of a loan that has failed is to be done once more; count it."""
        link = attempt.loan._served()
        now = link.clock()
        if not attempt.was_in_vain() or not self.is_within_budget(now):
            return False
        self._repeats.append(now)
        self._stats.repeats += 1
        self._events.repeated(link)
        return True

    def again(
        self, lender: Lender, timeout: float | None, attempt: Attempt
    ) -> WebsocketConnection | None:
        """Return a loan in which work that has failed is to be done once more, if it is; count it.

        A fresh one: what has closed one connection may be about to close all that are idle.
        """
        if not self.may_repeat(attempt):
            return None
        return WebsocketConnection(lender, timeout, True)


Again = Callable[[Attempt], WebsocketConnection | None]
"""Returns a loan in which work is to be done once more, if it is to be."""


async def run(
    loan: WebsocketConnection,
    again: Again,
    work: Callable[[WebsocketConnection, *Args], Awaitable[T]],
    args: tuple[*Args],
    frame: FrameType,
) -> T:
    """Do the work in this loan, and perhaps `again` in another one."""
    attempt: Attempt | None = None
    second: WebsocketConnection | None = None
    try:
        await lend(loan, frame)
        attempt = Attempt(loan)
        with given_back(loan):
            return await work(loan, *args)
    except ConnectionClosedError:
        if attempt is None or (second := again(attempt)) is None:
            raise
    finally:
        if attempt is not None:
            attempt.end()
    await lend(second, frame)
    with given_back(second):
        return await work(second, *args)


@contextmanager
def given_back(loan: WebsocketConnection) -> Iterator[None]:
    """End a loan as its own `async with` does."""
    is_failed = True
    try:
        yield
        is_failed = False
    finally:
        lender = loan._lender
        if not loan._is_over and lender is not None:  # else the work has given it back itself
            lender._router.give_back(loan, is_failed)
