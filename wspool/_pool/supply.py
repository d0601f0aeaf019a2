"""Supply: the dials of one pool, how they end, and whom a failure speaks to."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable
from functools import partial

import aiohttp

from wspool._connection import states
from wspool._connection.errors import ConnectionUnavailableError
from wspool._connection.link import Link
from wspool._connection.queues import Queues
from wspool._connection.states import CloseReason, State
from wspool._pool.capacity import Capacity
from wspool._pool.dialing import Dial, Gate
from wspool._pool.listeners import Events
from wspool._pool.options import Options
from wspool._pool.retiring import Retiring
from wspool._pool.stats import Stats
from wspool._pool.tasks import Tasks, close_if_still
from wspool._pool.waiting import Line

logger = logging.getLogger("wspool")


class Supply:
    """What one pool has dialled and will dial."""

    def __init__(
        self,
        options: Options,
        stats: Stats,
        events: Events,
        queues: Queues[Link],
        line: Line,
        capacity: Capacity,
        retiring: Retiring,
        tasks: Tasks,
        on_close: Callable[[Link], object],
        then: Callable[[Dial, ConnectionUnavailableError | None], bool],
    ) -> None:
        self._options, self._stats, self._events = options, stats, events
        self._queues, self._line = queues, line
        self._capacity, self._retiring, self._tasks = capacity, retiring, tasks
        # What each link calls when it closes, and each dial when it has ended, well or badly.
        self._on_close = on_close
        self._then = then
        self._ids = itertools.count(1)
        # From start() on.
        self.gate: Gate
        self._session: aiohttp.ClientSession

    def start(self, session: aiohttp.ClientSession, gate: Gate) -> None:
        """Begin with what is wanted at the start."""
        self._session = session
        self.gate = gate
        self.dial(max(self._options.warmup_connections, self._options.min_connections))

    def refill(self) -> None:
        """Begin the dials that `min_connections` is short of."""
        have = self._capacity.open + len(self._queues.connecting)
        self.dial(min(self._options.min_connections - have, self._capacity.room))

    def dial(self, count: int) -> None:
        """Begin so many dials."""
        for _ in range(count):
            link = Link(
                next(self._ids),
                self._queues,
                self._tasks.loop,
                self._on_close,
                self._retiring.generation,
            )
            self._queues.add(link)
            self._stats.dials += 1
            self._events.created(link)
            link.arrival = self._line.arrive()
            dial = link.owner = Dial(link)
            link.task = self._tasks.spawn(
                self._work(dial), partial(close_if_still, link, State.CONNECTING, CloseReason.DIAL)
            )

    async def _work(self, dial: Dial) -> None:
        failure: ConnectionUnavailableError | None = None
        try:
            await dial.run(self._options, self._session, self.gate)
        except ConnectionUnavailableError as error:
            failure = error
        except Exception:
            # A fault of this package's: it must not cost a place, and those who wait, as well.
            logger.exception("the dial of #%d broke down", dial.link.id)
            failure = ConnectionUnavailableError("The dial broke down; the log says where")
        if not self._then(dial, failure):
            dial.link.abort()

    def succeeded(self, dial: Dial) -> None:
        """Let the link of a dial that went well be idle."""
        link = dial.link
        now = link.opened_at = link.idle_since = link.clock()
        self._retiring.begin(link, now)
        self._stats.dial_seconds += link.dial_seconds
        states.connected(link, "dialled")
        link.owner = None
        self._events.ready(link)

    def failed(self, dial: Dial, failure: ConnectionUnavailableError) -> None:
        """Close the link of a dial that failed for good, and tell whom it concerns."""
        self._stats.failures[failure.kind] += 1
        self.gate.failure = failure
        if not self.fail_waiters(failure, dial.link.arrival):
            is_full = failure.kind == "quota"  # as a fleet's normally is
            logger.log(logging.INFO if is_full else logging.WARNING, "%s", failure)
        dial.link.close(CloseReason.DIAL, cause=failure)
        self._call_off()

    def lost(self, link: Link) -> None:
        """Count a link that the server has closed, if that says something about the next dial."""
        gate = self.gate
        if gate.lost(link):
            failure = gate.failure = ConnectionUnavailableError(
                "The server closes connections right after the handshake, with code "
                f"{link.close_code} {link.close_reason!r}",
                attempts=gate.streak,
            )
            if gate.streak >= self._options.max_retries:
                self.fail_waiters(failure, link.arrival)

    def fail_waiters(self, failure: ConnectionUnavailableError, arrival: int) -> bool:
        """End those who waited when a dial began, unless a borrower may still help them.

        Returns whether there was anybody.
        """
        is_anybody = False
        errands = self._capacity.errands - max(0, self._capacity.surplus)
        for place, loan in enumerate(self._line):
            if loan._arrival > arrival:
                continue
            is_anybody = True
            loan._failure = failure
            # What comes back from an errand will do for those who may not wait for a borrower.
            may_come = place < errands
            if loan._timeout != 0:  # what a quota has not given yet, it may still give
                may_come = self._capacity.open > 0 or failure.kind == "quota"
            if not may_come:
                twin = copy.copy(failure)  # each has a traceback of its own
                twin.__cause__ = failure.__cause__
                self._line.fail(loan, twin)
        return is_anybody

    def _call_off(self) -> None:
        """After a failure, give up the dials that have not begun and that nobody waits for."""
        connecting = self._queues.connecting
        surplus = len(connecting) - len(self._line) - self._options.min_connections
        for link in reversed(list(connecting)):
            if surplus > 0 and not self.gate.is_at_work(link.owner):
                surplus -= 1
                link.close(CloseReason.DIAL)
