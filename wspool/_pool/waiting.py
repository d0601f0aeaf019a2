"""The line: the loans that wait for a link, served in order of arrival.

asyncio's Semaphore, Condition and `wait_for` have each lost a wake-up or a result when a waiter
was cancelled (python/cpython gh-90155, gh-112202, gh-86296). Here a loan is in the line or it is
not, its future is done or it is not, and one that is cancelled after it was served is passed on.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Iterator

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


class Line:
    """The loans that wait, oldest first."""

    __slots__ = ("latest", "loans", "max_streams")

    def __init__(self) -> None:
        self.loans: OrderedDict[Borrow, None] = OrderedDict()
        # The last number that was given to an arrival.
        self.latest = 0
        # How many streams have room on one link.
        self.max_streams = 1

    def __len__(self) -> int:
        return len(self.loans)

    def __contains__(self, loan: Borrow) -> bool:
        return loan in self.loans

    def __iter__(self) -> Iterator[Borrow]:
        return iter(list(self.loans))

    def arrive(self) -> int:
        """Return the number of an arrival; also that of a dial, so that the two can be compared."""
        self.latest += 1
        return self.latest

    def join(self, loan: Borrow) -> asyncio.Future[None]:
        """Take a loan in; return what is done when it is served, or has failed."""
        loop = asyncio.get_running_loop()
        loan._waiter = loop.create_future()
        loan._arrival = self.arrive()
        loan._since = loop.time()
        loan._failure = loan._horizon = None
        self.loans[loan] = None
        return loan._waiter

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
                return loan
            self.leave(loan)
        return None

    def oldest_for_used(self) -> Borrow | None:
        """Return the oldest loan that takes a used connection."""
        oldest = self.oldest()
        if oldest is None or not oldest._wants_new:
            return oldest
        return next((one for one in self if not (one._wants_new or one._waiter.done())), None)

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
        return sum(not (loan._is_stream or loan._waiter.done()) for loan in self.loans)

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

    def fail(self, loan: Borrow, error: BaseException) -> None:
        """End a loan's wait with an error."""
        self.leave(loan)
        if not loan._waiter.done():
            loan._waiter.set_exception(error)
