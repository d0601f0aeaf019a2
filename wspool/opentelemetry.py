"""Pools as OpenTelemetry metrics: for the extra `opentelemetry`.

The names follow OpenTelemetry's own for database connection pools (`db.client.connection.*`). All
begin with `wspool.connection.` and have the attribute `wspool.connection.pool.name`.

Read from the pool when the reader collects, in whatever thread that does it:

    count             {connection}  with the attribute wspool.connection.state
    max               {connection}  max_connections
    pending_requests  {request}     acquires that wait
    timeouts          {timeout}     acquires that waited in vain until their timeout
    borrows           {borrow}      loans
    dials             {dial}        dials that were begun
    dial_failures     {dial}        with the attribute error.type: ConnectionUnavailableError's kind
    closed            {connection}  with the attribute wspool.connection.reason, a CloseReason
    drained_messages  {message}     messages that no borrower has read

Histograms, in seconds, told by the pool's events, and so from `instrument` on:

    create_time       the attempt of a dial that succeeded
    wait_time         from acquire to the loan, 0 where one was idle
    use_time          a loan
    drain_time        a drain that ended well
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Final
from weakref import WeakKeyDictionary, WeakValueDictionary

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation

import wspool
from wspool.events import (
    ConnectionCheckedIn,
    ConnectionCheckedOut,
    ConnectionDrained,
    ConnectionReady,
    Event,
)
from wspool.pool import WebsocketConnectionPool
from wspool.states import CloseReason

PREFIX: Final = "wspool.connection."

BUCKETS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 600.0)
"""Bounds of the histograms' buckets in seconds, unless a view says otherwise.

Those that OpenTelemetry advises for database calls, and a minute and ten: loans can be long.
"""

Values = Iterable[tuple[dict[str, str], int]]


def _counts(pool: WebsocketConnectionPool) -> Values:
    counts = pool.router.queues.counts()
    return [({f"{PREFIX}state": state}, count) for state, count in counts.items()]


def _closes(pool: WebsocketConnectionPool) -> Values:
    closes = pool.stats.closes
    return [({f"{PREFIX}reason": reason}, closes[reason]) for reason in CloseReason]


def _failures(pool: WebsocketConnectionPool) -> Values:
    # A dict of a Counter is made in one step, whatever the event loop's thread does.
    failures = dict(pool.stats.failures)
    return [({"error.type": kind}, count) for kind, count in failures.items()]


class _Instruments:
    """The instruments of one meter provider, and the pools that they tell of."""

    def __init__(self, meter: Meter) -> None:
        self._pools: WeakValueDictionary[str, WebsocketConnectionPool] = WeakValueDictionary()
        numbers, totals = meter.create_observable_up_down_counter, meter.create_observable_counter

        def observe(
            create: Callable[..., object],
            name: str,
            unit: str,
            what: str,
            read: Callable[[WebsocketConnectionPool], Values],
        ) -> None:
            def callback(options: CallbackOptions) -> Iterable[Observation]:
                for known in self._pools.valuerefs():
                    if (pool := known()) is not None:
                        whose = {f"{PREFIX}pool.name": known.key}
                        for attributes, value in read(pool):
                            yield Observation(value, whose | attributes)

            create(PREFIX + name, [callback], unit=f"{{{unit}}}", description=what)

        observe(numbers, "count", "connection", "Connections by state", _counts)
        observe(
            *(numbers, "max", "connection", "The limit of connections"),
            lambda pool: [({}, pool.router.options.max_connections)],
        )
        observe(
            *(numbers, "pending_requests", "request", "Acquires that wait"),
            lambda pool: [({}, pool.waiters)],
        )
        observe(
            *(totals, "timeouts", "timeout", "Acquires that waited in vain"),
            lambda pool: [({}, pool.stats.timeouts)],
        )
        observe(totals, "borrows", "borrow", "Loans", lambda pool: [({}, pool.stats.borrows)])
        observe(totals, "dials", "dial", "Dials begun", lambda pool: [({}, pool.stats.dials)])
        observe(totals, "dial_failures", "dial", "Dials that failed, by kind", _failures)
        observe(totals, "closed", "connection", "Closed connections by reason", _closes)
        observe(
            *(totals, "drained_messages", "message", "Messages that no borrower has read"),
            lambda pool: [({}, pool.stats.drained_messages)],
        )

        self._histograms = {
            kind: meter.create_histogram(
                PREFIX + name, "s", what, explicit_bucket_boundaries_advisory=BUCKETS
            )
            for kind, name, what in (
                (ConnectionReady, "create_time", "Dial attempts that succeeded"),
                (ConnectionCheckedOut, "wait_time", "From acquire to the loan"),
                (ConnectionCheckedIn, "use_time", "Loans"),
                (ConnectionDrained, "drain_time", "Drains that ended well"),
            )
        }

    def add(self, pool: WebsocketConnectionPool) -> Callable[[], None]:
        name = pool.name
        known = self._pools.get(name)
        if known is not None and not known.is_closed:
            raise ValueError(
                f"A pool named {name!r} is instrumented already: {known!r}; "
                "give each pool a name of its own"
            )
        whose = {f"{PREFIX}pool.name": name}
        histograms = self._histograms

        def record(event: Event) -> None:
            if (histogram := histograms.get(type(event))) is not None:
                histogram.record(event.duration, whose)

        unsubscribe = pool.subscribe(record)
        self._pools[name] = pool
        ...
