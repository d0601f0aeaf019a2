"""The line of those who wait for a connection: futures of our own, served in order of arrival.

asyncio's Semaphore, Condition and `wait_for` have each lost a wake-up or a result when a waiter
was cancelled (python/cpython gh-90155, gh-112202, gh-86296). Here a waiter is in the line or it
is not, its future is done or it is not, and whoever is cancelled after he was given something
passes it on.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator

from wspool._connection.callsites import Borrower
from wspool._connection.link import WebsocketConnection


class Waiter:
    """One `acquire` that waits. `arrival` orders waiters and dials in time."""

    __slots__ = ("arrival", "borrower", "failure", "future", "is_patient", "since", "wants_new")

    def __init__(
        self,
        future: asyncio.Future[WebsocketConnection],
        arrival: int,
        since: float,
        borrower: Borrower,
        *,
        wants_new: bool,
        is_patient: bool,
    ) -> None:
        self.future = future
        self.arrival = arrival
        # The loop's time at its arrival.
        self.since = since
        self.borrower = borrower
        # acquire_new(): only a connection that nobody has used will do.
        self.wants_new = wants_new
        # Whether it may wait for a borrower to give something back, or only for a dial.
        self.is_patient = is_patient
        # The last failed dial that it outlived.
        self.failure: BaseException | None = None


class Line:
    """The waiters, oldest first."""

    __slots__ = ("_arrivals", "waiters")

    def __init__(self) -> None:
        self.waiters: OrderedDict[Waiter, None] = OrderedDict()
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self.waiters)

    def __contains__(self, waiter: Waiter) -> bool:
        return waiter in self.waiters

    def __iter__(self) -> Iterator[Waiter]:
        return iter(list(self.waiters))

    def arrive(self) -> int:
        """Return the number of an arrival; also that of a dial, so that the two can be compared."""
        self._arrivals += 1
        return self._arrivals

    def join(self, borrower: Borrower, *, wants_new: bool, is_patient: bool) -> Waiter:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[WebsocketConnection] = loop.create_future()
        waiter = Waiter(
            future,
            self.arrive(),
            loop.time(),
            borrower,
            wants_new=wants_new,
            is_patient=is_patient,
        )
        self.waiters[waiter] = None
        return waiter

    def leave(self, waiter: Waiter) -> None:
        """Take a waiter out, if it is still in."""
        self.waiters.pop(waiter, None)

    def oldest(self) -> Waiter | None:
        """Return the oldest waiter; one that was cancelled in this very tick leaves instead."""
        while self.waiters:
            waiter = next(iter(self.waiters))
            if not waiter.future.done():
                return waiter
            self.leave(waiter)
        return None

    def oldest_for_used(self) -> Waiter | None:
        """Return the oldest waiter that takes a used connection."""
        oldest = self.oldest()
        if oldest is None or not oldest.wants_new:
            return oldest
        return next((w for w in self if not w.wants_new and not w.future.done()), None)

    def leading_new(self) -> int:
        """Return how many want a new connection and are before all who take a used one."""
        count = 0
        for waiter in self.waiters:
            if not waiter.wants_new:
                break
            count += not waiter.future.done()
        return count

    def give(self, waiter: Waiter, connection: WebsocketConnection) -> None:
        self.leave(waiter)
        waiter.future.set_result(connection)

    def fail(self, waiter: Waiter, error: BaseException) -> None:
        self.leave(waiter)
        if not waiter.future.done():
            waiter.future.set_exception(error)
