"""Patience: who may wait, for what, and who is told that nothing can come any more.

Three sentences say whom a dial that has failed concerns. It draws its number when it begins, so it
speaks to those who were in the line by then. What else had begun at a loan's first such failure
stays its hope, one loan each in the order of the line; after that, for a patient one, whoever may
give something back. Dials that begin later may serve it but prolong nothing, and none begins for it
while nothing is open and its hope is at work.
"""

from __future__ import annotations

import asyncio
import copy
from bisect import bisect_right
from typing import Any

from wspool._connection.borrow import Borrow
from wspool._connection.errors import (
    ConnectionPoolExhaustedError,
    ConnectionUnavailableError,
    WebsocketError,
)
from wspool._connection.link import NEVER, Link
from wspool._connection.queues import Queues
from wspool._pool import telling
from wspool._pool.attending import Attending, is_same
from wspool._pool.capacity import Capacity
from wspool._pool.gate import Gate
from wspool._pool.limit import Limit
from wspool._pool.options import Options
from wspool._pool.stats import Stats
from wspool._pool.waiting import Line, Places


class Patience:
    """What those in the line of one pool may hope for."""

    def __init__(
        self,
        options: Options,
        stats: Stats,
        queues: Queues[Link],
        line: Line,
        capacity: Capacity,
        gate: Gate,
        limit: Limit,
        attending: Attending,
    ) -> None:
        self._options, self._stats = options, stats
        self._queues, self._line = queues, line
        self._capacity, self._gate, self._limit = capacity, gate, limit
        self._attending = attending

    def __repr__(self) -> str:
        """Say what the errors of those who get nothing show of the pool."""
        counts = " ".join(f"{state}={count}" for state, count in self._queues.counts().items())
        learned = self._limit.learned
        known = f" (the server admits {learned})" if learned is not None else ""
        return f"{counts} waiting={len(self._line)} max={self._options.max_connections}{known}"

    # Joining.

    def check(self, loan: Borrow) -> None:
        """Raise unless waiting is allowed, or needless: a link is to come anyway."""
        is_patient, most = loan._timeout != 0, self._options.max_waiting
        if is_patient and most is None:
            return
        waiting, coming = len(self._line), self._capacity.coming
        place = waiting
        if waiting >= coming:  # some may have been cancelled, and are about to leave
            places = Places(self._line.max_streams)
            waiting = 0
            for one in self._line.loans:
                if not one._waiter.done():
                    waiting += 1
                    places.add(one)
            place = places.before(loan)
        if not is_patient and not self._capacity.may_wait(place, coming, is_patient=False):
            raise self._exhausted()
        if most is not None and waiting - coming * self._line.max_streams >= most:
            raise telling.too_many_wait(self, most)

    def holds_out(self, loan: Borrow, dials: int) -> bool:
        """Return whether a loan leaves the idle links alone: each has a context that it would cost.

        It does while one with its own context is being checked, and while one of so many dials may
        give it another. Once dials fail, or have to wait for a quota, it takes what there is.
        """
        prefer, attending = loan._prefer, self._attending
        if prefer is None or not self._queues.idle or attending.has_fit(prefer):
            return False
        if attending.is_checked(prefer):
            return True
        permits = self._gate.permits
        return dials > 0 and not self._gate.streak and not (permits and permits.is_stuck)

    @property
    def dials(self) -> int:
        """How many loans may have a dial that is under way, or for which there is room."""
        return len(self._queues.connecting) + max(0, self._capacity.room)

    def taker(self, context: Any = None) -> Borrow | None:
        """Return the oldest loan in the line that takes what is idle.

        With the context of a link: one that prefers just that, if there is one.
        """
        dials = self.dials
        oldest: Borrow | None = None
        for loan in self._line.takers():
            if loan._waiter.done():
                continue
            if loan._wants_new:
                dials -= 1
            elif context is not None and is_same(context, loan._prefer):
                return loan
            elif oldest is None and self.holds_out(loan, dials):
                dials -= 1
            else:
                oldest = oldest or loan
                if context is None:
                    break
        return oldest

    def is_room_wanted(self) -> bool:
        """Whether an idle one must go, at the limit, for the oldest in the line: that wants a new
        one, and too few dials and goodbyes are under way."""
        oldest = self._line.oldest()
        if oldest is None or not oldest._wants_new or self._capacity.room > 0:
            return False
        return len(self._queues.connecting) + len(self._queues.closed) < self._line.leading_new()

    def check_at_the_head(self, loan: Borrow) -> None:
        """Raise unless a loan may wait on that was served, and could not take it."""
        coming = self._capacity.coming
        if not self._capacity.may_wait(0, coming, is_patient=loan._timeout != 0):
            raise self._exhausted()

    def _exhausted(self) -> ConnectionPoolExhaustedError:
        refusal = self._limit.refusal if self._limit.is_short else ""
        return telling.exhausted(self, self._queues, refusal)

    # What a failure means.

    def entitled(self) -> int:
        """Return how many dials may be begun for those who wait.

        While nothing is open, not those to whom a failure has spoken and whose hope is at work: a
        server that refuses everybody has seen enough.
        """
        line = self._line
        if self._capacity.open:
            return line.links_for(line.loans)
        first = min(self._begun(), default=NEVER)
        return line.links_for(
            loan for loan in line.loans if loan._horizon is None or loan._horizon < first
        )

    def _begun(self) -> list[int]:
        """Return the numbers of the dials that have begun and not ended, in order."""
        return sorted(link.number for link in self._queues.connecting if link.number)

    def speak(self, failure: ConnectionUnavailableError, failed: Link) -> bool:
        """Tell those whom a failed dial concerns; return whether there was anybody."""
        line, capacity = self._line, self._capacity
        begun = [number for number in self._begun() if number != failed.number]
        is_anybody = False
        places = Places(line.max_streams)
        for loan in line:
            if loan._arrival < failed.number:
                is_anybody = True
                loan._failure = failure
                loan._horizon = loan._horizon or line.latest
            if loan._horizon is not None and loan._failure is not None:
                is_patient = loan._timeout != 0
                coming = capacity.left(bisect_right(begun, loan._horizon))
                place = places.before(loan)
                may_wait = capacity.may_wait(place, coming, is_patient=is_patient)
                # What a quota has not given yet, it may still give.
                if not (may_wait or (is_patient and loan._failure.kind == "quota")):
                    line.fail(loan, _twin(loan._failure))
                    continue
            places.add(loan)
        return is_anybody

    # Waiting in vain.

    def time_out(self, loan: Borrow) -> None:
        """End a wait whose time is up."""
        seconds = loan._timeout
        assert seconds is not None
        self._stats.timeouts += 1
        failure = loan._failure or self._gate.failure
        error: WebsocketError = telling.timed_out(self, self._queues, seconds, failure)
        permits = self._gate.permits
        if permits is not None and permits.full is not None:
            error = permits.full.refusal(seconds)
        error.__cause__ = failure
        self._line.fail(loan, error)

    def turn_away_at_the_gate(self) -> bool:
        """Let nobody that may not wait stand at the gate for longer than its own retries take.

        That is, nobody to whom only a dial can come. Return whether there was anybody.
        """
        due = self._gate.next_attempt
        failure = self._gate.failure
        if due is None or failure is None:
            return False
        most = self._gate.patience(self._options.max_retries)
        seconds = due - asyncio.get_running_loop().time()
        is_anybody = False
        left = self._capacity.left(0)
        for place, loan in self._line.placed():
            if place < left:
                continue
            waited = self._gate.closed_seconds - loan._gate_closed
            if loan._timeout == 0 and waited + seconds > most:
                error = _twin(failure)
                error.message = (
                    f"No attempt is made now: the next is due in {seconds:.1f} s. Pass timeout=… "
                    f"to wait for it. {failure}"
                )
                error.args = (error.message,)
                self._line.fail(loan, error)
                is_anybody = True
        return is_anybody

    def turn_away_the_surplus(self) -> bool:
        """End the wait of those who may not wait for a borrower, and at a lower limit would.

        Return whether there was anybody.
        """
        is_anybody = False
        coming = self._capacity.coming
        for place, loan in self._line.placed():
            if not self._capacity.may_wait(place, coming, is_patient=loan._timeout != 0):
                self._line.fail(loan, self._exhausted())
                is_anybody = True
        return is_anybody


def _twin(failure: ConnectionUnavailableError) -> ConnectionUnavailableError:
    """Return an equal error: each that is raised has a traceback of its own."""
    twin = copy.copy(failure)
    twin.__cause__ = failure.__cause__
    return twin
