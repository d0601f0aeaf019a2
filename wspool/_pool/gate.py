"""The gate: what every dial of a pool goes through, a turn, and a wait after failures.

It does not know why an attempt has failed, nor who waits for it.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from typing import Final, Protocol

import backoff

from wspool._connection.errors import ConnectionUnavailableError
from wspool._connection.link import Link
from wspool._pool.permits import Permits

_exponential = backoff.expo(factor=1.0, max_value=10.0)
next(_exponential)
WAITS_SECONDS: Final = tuple(islice(_exponential, 5))
"""How long to wait at most after one, two, … failures in a row; the last for all further ones."""

MAX_RETRY_AFTER_SECONDS: Final = 30.0
"""A server that asks for a longer wait is not waited for."""

EARLY_SECONDS: Final = 1.0
"""A close within this time, of a connection that was of no use yet, is a refusal.

Many servers refuse a token so: a handshake, an error message, a close.
"""


class Dialling(Protocol):
    """A dial, as the gate knows it: the owner of its link, until somebody has called it off."""

    link: Link


class Gate:
    """The gate of one pool.

    At most `limit` dials are at work at a time, those that wait out a failure included: a server
    that is down sees no more than `limit` times `max_retries` attempts, however many wait. The
    wait grows with each round of failures; attempts that were under way together are one round,
    those that full jitter has spread over a wait are several. So the more dials there are, the
    sooner the wait is at its longest, and the fewer attempts a server that is down has to see.

    A handshake is no success yet: many servers close at once whom they refuse. It is one when the
    link has lived for a second, or has received a message in a loan. Until then it neither ends the
    streak of failures nor wakes another dial.
    """

    def __init__(self, limit: int, permits: Permits | None = None) -> None:
        self._limit = limit
        # What each attempt needs of quotas.
        self.permits = permits
        # How long to wait at most after one, two, … failures in a row; the last for all others.
        self.waits: Sequence[float] = WAITS_SECONDS
        self._at_work: set[Dialling] = set()
        self._turns: OrderedDict[Dialling, asyncio.Future[None]] = OrderedDict()
        # When the attempts are due of those at work that wait, and what a success wakes up.
        self._due: dict[Dialling, float] = {}
        self._success_waiters: set[asyncio.Future[None]] = set()
        # Rounds of failures so far, and those since the last success.
        self.round = 0
        self.streak = 0
        self._failed_at = self._not_before = float("-inf")
        # Until when the next dial is to show whether the server is full, and not all at once.
        self._wary_until = float("-inf")
        # Why the last attempt has failed, until one succeeds; for reports, since when in Unix
        # seconds, and how many have.
        self.failure: ConnectionUnavailableError | None = None
        self.failing_since = 0.0
        self.failures = 0
        # When the next attempt is due; None while one is under way, or none is wanted.
        self.next_attempt: float | None = None
        # Since when it is closed, that is all that are at work wait; how long it was so before.
        self._closed_at = self._closed_before = 0.0
        # Called when a dial begins to wait.
        self.on_wait: Callable[[], object] = bool

    @staticmethod
    def _clock() -> float:
        return asyncio.get_running_loop().time()

    # Turns.

    @asynccontextmanager
    async def turn(self, dial: Dialling) -> AsyncIterator[None]:
        """Wait, in order of arrival, until this dial may begin; then let the next."""
        try:
            if self._turns or len(self._at_work) >= self._limit:
                turn = asyncio.get_running_loop().create_future()
                self._turns[dial] = turn
                await turn
            self._at_work.add(dial)
            self._look()
            yield
        finally:
            self._turns.pop(dial, None)
            self._at_work.discard(dial)
            while self._turns and len(self._at_work) < self._limit:
                following, turn = self._turns.popitem(last=False)
                # One that was called off has lost its link, and is about to hear of that.
                if not turn.done() and following.link.owner is following:
                    # At work from now on: a newcomer in this tick does not overtake it.
                    self._at_work.add(following)
                    turn.set_result(None)
            self._look()

    # Waits.

    async def wait(self, dial: Dialling, at_least: float = 0.0) -> None:
        """Wait until the next attempt is due; a success in the meantime makes it due at once.

        `at_least`: seconds that the server has asked this dial to wait, whatever others see.
        """
        if at_least > 0:
            await self._sleep(dial, at_least, asyncio.get_running_loop().create_future())
        pause = self._not_before - self._clock()
        if self.streak:
            longest = self.waits[min(self.streak, len(self.waits)) - 1]
            pause = max(pause, self._failed_at + backoff.full_jitter(longest) - self._clock())
        if self._clock() < self._wary_until and len(self._at_work) > 1:
            pause = max(pause, backoff.full_jitter(self.waits[0]))
        if pause > 0:
            success = asyncio.get_running_loop().create_future()
            self._success_waiters.add(success)
            try:
                await self._sleep(dial, pause, success)
            finally:
                self._success_waiters.discard(success)

    async def _sleep(self, dial: Dialling, seconds: float, woken: asyncio.Future[None]) -> None:
        self._due[dial] = self._clock() + seconds
        self._look()
        self.on_wait()
        try:
            await asyncio.wait({woken}, timeout=seconds)
        finally:
            del self._due[dial]
            self._look()

    def _look(self) -> None:
        """Note whether the gate is closed: all that are at work wait."""
        self._closed_before, self._closed_at = self.closed_seconds, self._clock()
        is_closed = 0 < len(self._at_work) <= len(self._due)
        self.next_attempt = min(self._due.values()) if is_closed else None

    @property
    def closed_seconds(self) -> float:
        """For how long it has been closed in all; that a timer was late does not count."""
        if self.next_attempt is None:
            return self._closed_before
        seconds = min(self._clock(), self.next_attempt) - self._closed_at
        return self._closed_before + max(0.0, seconds)

    def patience(self, attempts: int) -> float:
        """Return how long so many attempts take at most with nobody else's failures, in waits."""
        last = len(self.waits) - 1
        return sum(self.waits[min(n, last)] for n in range(attempts - 1))

    # What dials report.

    def failed(self, round: int, failure: ConnectionUnavailableError) -> None:
        """Count a failure of an attempt that began in this round."""
        # One that began before a failure that is over by now says nothing of the next dial.
        if round == self.round or self.streak:
            self._note(failure)
        pause = min(failure.retry_after or 0.0, MAX_RETRY_AFTER_SECONDS)
        self._not_before = max(self._not_before, self._clock() + pause)
        if round == self.round:
            self._count()

    def refused(self, failure: ConnectionUnavailableError) -> None:
        """Count a link that the server has closed right after its handshake."""
        self._note(failure)
        self._count()

    def restarts(self) -> None:
        """Count a server that has said it is not ready for the next dial."""
        if self._clock() - self._failed_at > EARLY_SECONDS:
            self._count()

    def _note(self, failure: ConnectionUnavailableError) -> None:
        if self.failure is None:
            self.failing_since, self.failures = time.time(), 0
        self.failure = failure
        self.failures += 1

    def _count(self) -> None:
        self.round += 1
        self.streak += 1
        self._failed_at = self._clock()

    def lived(self, link: Link, *, wakes_one: bool = False) -> None:
        """End the wait for all, if this link has shown that the server admits dials again.

        `wakes_one`: for one of them, since the server may be full, and would refuse the others.
        """
        if self.streak and link.opened_at is not None and link.opened_at >= self._failed_at:
            self.forgive()
            if wakes_one:
                self.suspect()
            self._wake(1 if wakes_one else None)

    def forgive(self) -> None:
        """Forget the failures: the server is there."""
        self.streak = 0
        self.failure = None
        self._not_before = self._wary_until = float("-inf")

    def suspect(self) -> None:
        """Let those dials that begin soon come one by one: the server may be full."""
        self._wary_until = self._clock() + self.waits[0]

    def admits(self) -> None:
        """Let all go on: the server was not full."""
        if not self.streak:
            self._wary_until = float("-inf")
            self._wake(None)

    def _wake(self, most: int | None) -> None:
        asleep = (success for success in self._success_waiters if not success.done())
        for success in list(islice(asleep, most)):
            success.set_result(None)
