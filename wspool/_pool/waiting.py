"""The line: the loans that wait for a link, served in order of arrival.

asyncio's Semaphore, Condition and `wait_for` have each lost a wake-up or a result when a waiter
was cancelled (python/cpython gh-90155, gh-112202, gh-86296). Here a loan is in the line or it is
not, its future is done or it is not, and one that is cancelled after it was served is passed on.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, Protocol

from wspool._connection.borrow import Borrow


class Places:
    """Counts the links that so many loans need, where several streams share one."""

    __slots__ = ("_alone", "_max_streams", "_streams")

    def __init__(self, max_streams: int) -> None:
        self._max_streams = max_streams
        self._alone = self._streams = 0

    def add(self, loan: Borrow) -> None:
        if loan._is_stream:
            self._streams += 1
        else:
            self._alone += 1

    def before(self, loan: Borrow) -> int:
        """Return how many links those that were added need, before this one needs any."""
        if loan._is_stream:
            return self._alone + self._streams // self._max_streams
        return self.total

    @property
    def total(self) -> int:
        return self._alone + -(-self._streams // self._max_streams)


class Beyond(Protocol):
    """The line of a group of pools, as one of its pools knows it.

    A loan that stands there, whom any of several pools may serve, may stand in the line of one of
    them as well, which dials for it. By whichever it is served, it leaves both in that step.
    """

    def __contains__(self, loan: Borrow, /) -> bool: ...

    def leave(self, loan: Borrow) -> None:
        """Take a loan out, if it is in, and out of whichever pool's line it stands in."""

    def refuse(self, loan: Borrow, error: BaseException) -> None:
        """Hear that this pool has nothing for a loan, which has left its line."""

    def reconsider(self) -> None:
        """Hear that the dials of this pool have begun to fail."""

    def adopt(self) -> None:
        """Let those stand in this line for whom no pool dials, as far as it has room."""


NOBODY: Final[Mapping[Borrow, Any]] = MappingProxyType({})


class Line:
    """The loans that wait, oldest first."""

    __slots__ = ("beyond", "crowd", "latest", "loans", "max_streams")

    def __init__(self) -> None:
        # The line of the group, if the pool is one of a group; those in it who may be served here.
        self.crowd: Beyond | None = None
        self.beyond = NOBODY
        self.loans: OrderedDict[Borrow, None] = OrderedDict()
        # The last number that was given to an arrival.
        self.latest = 0
        # How many streams have room on one link.
        self.max_streams = 1

    def __len__(self) -> int:
        return len(self.loans)

    def __contains__(self, loan: Borrow) -> bool:
        return loan in self.loans or loan in self.beyond

    def takers(self) -> list[Borrow]:
        """Return all who may be served here, oldest first."""
        if not self.beyond:
            return list(self.loans)
        return sorted({**self.loans, **self.beyond}, key=lambda loan: loan._since)

    def __iter__(self) -> Iterator[Borrow]:
        return iter(list(self.loans))

    def arrive(self) -> int:
        """Return the number of an arrival; also that of a dial, so that the two can be compared."""
        self.latest += 1
        return self.latest

    def join(self, loan: Borrow, now: float) -> asyncio.Future[None]:
        """Take a loan in; return what is done when it is served, or has failed."""
        waiter = loan._waiter = asyncio.get_running_loop().create_future()
        loan._since = now
        self.take_in(loan)
        return waiter

    def take_in(self, loan: Borrow) -> None:
        """Take a loan in that has begun to wait."""
        self.latest += 1
        loan._arrival = self.latest
        loan._failure = loan._horizon = None
        self.loans[loan] = None

    def rejoin(self, loan: Borrow) -> None:
        """Take a loan in again, at the head: it was served with what it could not take."""
        loan._waiter = asyncio.get_running_loop().create_future()
        self.loans[loan] = None
        self.loans.move_to_end(loan, last=False)

    def leave(self, loan: Borrow) -> None:
        """Take a loan out, if it is still in."""
        self.loans.pop(loan, None)

    def oldest(self) -> Borrow | None:
        """Return the oldest loan; one that was cancelled in this very tick leaves instead."""
        while self.loans:
            loan = next(iter(self.loans))
            if not loan._waiter.done():
                return loan if not self.beyond else self._older(loan)
            self.leave(loan)
        return self._older(None) if self.beyond else None

    def _older(self, own: Borrow | None) -> Borrow | None:
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

    @property
    def alone(self) -> int:
        """Return how many want a link for themselves."""
        if not (self.loans or self.beyond):
            return 0
        return sum(not (loan._is_stream or loan._waiter.done()) for loan in self.takers())

    def place_of(self, loan: Borrow) -> int:
        """Return how many links those need who are before a loan that may be served here."""
        places = Places(self.max_streams)
        for one in self.takers():
            if one is loan:
                break
            if not one._waiter.done():
                places.add(one)
        return places.before(loan)

    def links_for(self, loans: Iterable[Borrow]) -> int:
        """Return how many links these loans need."""
        places = Places(self.max_streams)
        for loan in loans:
            places.add(loan)
        return places.total

    def placed(self) -> Iterator[tuple[int, Borrow]]:
        """Give each loan that waits with the number of links that those before it need."""
        places = Places(self.max_streams)
        for loan in self:
            if not loan._waiter.done():
                yield places.before(loan), loan
                places.add(loan)

    def serve(self, loan: Borrow) -> None:
        """Wake up a loan that has got its link."""
        self.leave(loan)
        loan._waiter.set_result(None)
        if self.crowd is not None:
            self.crowd.leave(loan)

    def fail(self, loan: Borrow, error: BaseException) -> None:
        """End a loan's wait with an error."""
        self.leave(loan)
        if loan._waiter.done():
            return
        if self.crowd is not None and loan in self.crowd:
            self.crowd.refuse(loan, error)
        else:
            loan._waiter.set_exception(error)
