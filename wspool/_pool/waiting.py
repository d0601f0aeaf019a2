"""The line: the loans that wait for a link, served in order of arrival.

asyncio's Semaphore, Condition and `wait_for` have each lost a wake-up or a result when a waiter
was cancelled (python/cpython gh-90155, gh-112202, gh-86296). Here a loan is in the line or it is
not, its future is done or it is not, and one that is cancelled after it was served is passed on.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, Protocol

from wspool._connection.loan import WebsocketConnection


class Beyond(Protocol):
    """The line of a group of pools, as one of its pools knows it.

    A loan that stands there, whom any of several pools may serve, may stand in the line of one of
    them as well, which dials for it. By whichever it is served, it leaves both in that step.
    """

    def __contains__(self, loan: WebsocketConnection, /) -> bool: ...

    def leave(self, loan: WebsocketConnection) -> None:
        """Take a loan out, if it is in, and out of whichever pool's line it stands in."""

    def refuse(self, loan: WebsocketConnection, error: BaseException) -> None:
        """Hear that this pool has nothing for a loan, which has left its line."""

    def reconsider(self) -> None:
        """Hear that the dials of this pool have begun to fail."""

    def adopt(self) -> None:
        """Let those stand in this line for whom no pool dials, as far as it has room."""


NOBODY: Final[Mapping[WebsocketConnection, Any]] = MappingProxyType({})


class Line:
    """The loans that wait, oldest first."""

    __slots__ = ("beyond", "crowd", "latest", "loans")

    def __init__(self) -> None:
        # The line of the group, if the pool is one of a group; those in it who may be served here.
        self.crowd: Beyond | None = None
        self.beyond = NOBODY
        self.loans: OrderedDict[WebsocketConnection, None] = OrderedDict()
        # The last number that was given to an arrival.
        self.latest = 0

    def __len__(self) -> int:
        return len(self.loans)

    def __contains__(self, loan: WebsocketConnection) -> bool:
        return loan in self.loans or loan in self.beyond

    def takers(self) -> list[WebsocketConnection]:
        """Return all who may be served here, oldest first."""
        if not self.beyond:
            return list(self.loans)
        return sorted({**self.loans, **self.beyond}, key=lambda loan: loan._since)

    def __iter__(self) -> Iterator[WebsocketConnection]:
        return iter(list(self.loans))

    def arrive(self) -> int:
        """Return the number of an arrival; also that of a dial, so that the two can be compared."""
        self.latest += 1
        return self.latest

    def join(self, loan: WebsocketConnection) -> asyncio.Future[None]:
        """Take a loan in; return what is done when it is served, or has failed."""
        loop = asyncio.get_running_loop()
        loan._waiter = loop.create_future()
        loan._since = loop.time()
        self.take_in(loan)
        return loan._waiter

    def take_in(self, loan: WebsocketConnection) -> None:
        """Take a loan in that has begun to wait."""
        loan._arrival = self.arrive()
        loan._failure = loan._horizon = None
        self.loans[loan] = None

    def rejoin(self, loan: WebsocketConnection) -> None:
        """Take a loan in again, at the head: it was served with what it could not take."""
        loan._waiter = asyncio.get_running_loop().create_future()
        self.loans[loan] = None
        self.loans.move_to_end(loan, last=False)

    def leave(self, loan: WebsocketConnection) -> None:
        """Take a loan out, if it is still in."""
        self.loans.pop(loan, None)

    def oldest(self) -> WebsocketConnection | None:
        """Return the oldest loan; one that was cancelled in this very tick leaves instead."""
        while self.loans:
            loan = next(iter(self.loans))
            if not loan._waiter.done():
                return loan if not self.beyond else self._older(loan)
            self.leave(loan)
        return self._older(None) if self.beyond else None

    def _older(self, own: WebsocketConnection | None) -> WebsocketConnection | None:
        """Return the older of a loan and the oldest of the group's."""
        oldest = next((loan for loan in self.beyond if not loan._waiter.done()), None)
        if own is None or (oldest is not None and oldest._since < own._since):
            return oldest
        return own

    def leading_new(self) -> int:
        """Return how many want a new connection and are before all that take a used one."""
        count = 0
        for loan in self.loans:
            if not loan._wants_new:
                break
            count += not loan._waiter.done()
        return count

    def serve(self, loan: WebsocketConnection) -> None:
        """Wake up a loan that has got its link."""
        self.leave(loan)
        if self.crowd is not None:
            self.crowd.leave(loan)
        loan._waiter.set_result(None)

    def fail(self, loan: WebsocketConnection, error: BaseException) -> None:
        """End a loan's wait with an error."""
        self.leave(loan)
        if loan._waiter.done():
            return
        if self.crowd is not None and loan in self.crowd:
            self.crowd.refuse(loan, error)
        else:
            loan._waiter.set_exception(error)
