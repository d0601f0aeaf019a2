"""Pools as Prometheus metrics, read at the moment of a scrape: for the extra `prometheus`.

A scrape reads the lengths of queues and `pool.stats`: its cost does not depend on how many
connections there are, unless they have streams, and it may come from any thread. One that comes
from another thread may count a connection that moves in that very moment twice or not at all.
Between two scrapes nothing is done but for the histograms, which the pool's events tell, from `add`
or `register` on.

`wspool_learned_limit` is a gauge, and there only while a pool has a `learned_limit`. Every other
metric begins with `wspool_connection_`; all have the label `pool`, the pool's name:

    count{state}               gauge: connections by state
    max                        gauge: max_connections
    pending_requests           gauge: acquires that wait
    streams{state}             gauge: streams that are lent (busy) or draining
    max_streams                gauge: max_streams, of each connection
    borrows_total              loans, of connections and of streams
    waits_total                acquires that had to wait, those that still do included
    wait_seconds_total         seconds of the waits that are over, however they ended
    timeouts_total             acquires that waited in vain until their timeout
    dials_total                dials that were begun
    dial_seconds_total         seconds of the attempts that succeeded
    dial_failures_total{kind}  dials that failed, by the `kind` of ConnectionUnavailableError
    closed_total{reason}       closed connections, by CloseReason
    drained_messages_total     messages that no borrower has read
    repeats_total              loans that `run` has repeated
    stream_overflows_total     streams that have lost messages, since they did not read
    refusals_total{reason}     acquires that got nothing, by CheckOutFailure, but for cancelled ones

    wait_duration_seconds      histogram: an acquire, whatever came of it; 0 where one was idle
    use_duration_seconds       histogram: a loan
    drain_duration_seconds     histogram: a drain that ended well
    dial_duration_seconds      histogram: the attempt of a dial that succeeded
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakValueDictionary, ref

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from wspool import events
from wspool._connection.states import CloseReason
from wspool._pool import introspection
from wspool._pool.pool import WebsocketConnectionPool

__all__ = ["PoolCollector", "register"]

KINDS: Final = (
    *("dns", "network", "proxy", "tls", "timeout", "handshake", "closed", "quota", "error"),
)
"""Kinds of failures that are 0 from the start: `rate()` does not see a series' first value.

The HTTP statuses of refused handshakes, such as "status 503", appear when they occur.
"""


REASONS: Final = ("timeout", "exhausted", "connectionError", "poolClosed")
"""Those of refusals, which are 0 from the start too."""

BUCKETS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 600.0),
)
"""Bounds of the histograms' buckets, in seconds: loans can be long."""


def _failures(pool: WebsocketConnectionPool) -> Mapping[Any, float]:
    # A dict of a Counter is made in one step, whatever the event loop's thread does.
    return dict.fromkeys(KINDS, 0) | dict(pool.stats.failures)


def _closes(pool: WebsocketConnectionPool) -> Mapping[Any, float]:
    return {reason: pool.stats.closes[reason] for reason in CloseReason}


def _refusals(pool: WebsocketConnectionPool) -> Mapping[Any, float]:
    return dict.fromkeys(REASONS, 0) | dict(pool.stats.refusals)


Read = Callable[[WebsocketConnectionPool], Mapping[Any, float]]

_GAUGES: Final[dict[str, tuple[str, str, Read]]] = {
    # Name: what it is, the label beside the pool's name ("": none), the number for each value.
    "count": ("Connections by state", "state", introspection.counts),
    "max": ("max_connections", "", lambda pool: {"": pool.max_connections}),
    "pending_requests": ("Acquires that wait", "", lambda pool: {"": pool.waiters}),
    "streams": ("Streams by state", "state", introspection.streams),
    "max_streams": ("max_streams", "", lambda pool: {"": introspection.options(pool).max_streams}),
}

_COUNTERS: Final[dict[str, tuple[str, str, Read]]] = {
    "borrows": ("Loans", "", lambda pool: {"": pool.stats.borrows}),
    "waits": ("Acquires that had to wait", "", lambda pool: {"": pool.stats.waits}),
    "wait_seconds": ("Seconds of ended waits", "", lambda pool: {"": pool.stats.wait_seconds}),
    "timeouts": ("Acquires that waited in vain", "", lambda pool: {"": pool.stats.timeouts}),
    "dials": ("Dials begun", "", lambda pool: {"": pool.stats.dials}),
    "dial_seconds": ("Seconds of good attempts", "", lambda pool: {"": pool.stats.dial_seconds}),
    "dial_failures": ("Dials that failed, by kind", "kind", _failures),
    "closed": ("Closed connections by reason", "reason", _closes),
    "drained_messages": ("Unread messages", "", lambda pool: {"": pool.stats.drained_messages}),
    "repeats": ("Loans that run has repeated", "", lambda pool: {"": pool.stats.repeats}),
    "stream_overflows": ("Streams too slow", "", lambda pool: {"": pool.stats.overflows}),
    "refusals": ("Acquires that got nothing, by reason", "reason", _refusals),
}

_HISTOGRAMS: Final[dict[str, tuple[str, list[type[Any]]]]] = {
    "wait_duration_seconds": (
        "Acquires, whatever came of them",
        [events.ConnectionCheckedOut, events.StreamCheckedOut, events.ConnectionCheckOutFailed],
    ),
    "use_duration_seconds": ("Loans", [events.ConnectionCheckedIn, events.StreamCheckedIn]),
    "drain_duration_seconds": (
        "Drains that ended well",
        [events.ConnectionDrained, events.StreamDrained],
    ),
    "dial_duration_seconds": ("Dial attempts that succeeded", [events.ConnectionReady]),
}


class _Histogram:
    """How many durations are in each bucket, the last of which has no bound, and their sum."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(BUCKETS, seconds)] += 1
        self._sum += seconds

    def read(self) -> tuple[list[tuple[str, float]], float]:
        """Return for each bound how many are not above it, and the sum; from any thread."""
        counts, total = self._counts.copy(), self._sum
        bounds = [*map(str, BUCKETS), "+Inf"]
        return list(zip(bounds, accumulate(counts), strict=True)), total


class _Durations:
    """The histograms of one pool; listens to it, and does not hold it."""

    def __init__(self) -> None:
        self.of = {name: _Histogram() for name in _HISTOGRAMS}
        self._by_kind = {
            kind: self.of[name] for name, (_, kinds) in _HISTOGRAMS.items() for kind in kinds
        }

    def hear(self, event: Any) -> None:
        if (histogram := self._by_kind.get(type(event))) is not None:
            histogram.add(event.duration)


class PoolCollector(Collector):
    """Reads pools, which it holds weakly. A registry takes one; `add` gives it more pools."""

    def __init__(self, *pools: WebsocketConnectionPool) -> None:
        self._pools: WeakValueDictionary[str, WebsocketConnectionPool] = WeakValueDictionary()
        self._durations: WeakKeyDictionary[WebsocketConnectionPool, _Durations] = (
            WeakKeyDictionary()
        )
        for pool in pools:
            self.add(pool)

    def add(self, pool: WebsocketConnectionPool, *, histograms: bool = True) -> Callable[[], None]:
        """Export this pool too, and return a callable that ends that.

        The histograms, and with them percentiles, cost some microseconds a loan. Raises ValueError
        for a name that is taken; a closed pool gives its place to a new one.
        """
        name = pool.name
        known = self._pools.get(name)
        if known is not None and not known.is_closed:
            raise ValueError(
                f"A pool named {name!r} is exported already: {known!r}; give each its own name"
            )
        unsubscribe: Callable[[], object] = bool
        if histograms:
            durations = self._durations[pool] = _Durations()
            unsubscribe = pool.subscribe(durations.hear)
        self._pools[name] = pool
        added = ref(pool)

        def remove() -> None:
            unsubscribe()
            if (pool := added()) is not None and self._pools.get(name) is pool:
                del self._pools[name]
                self._durations.pop(pool, None)

        return remove

    def describe(self) -> list[Metric]:
        """Return the metrics without numbers, as registries ask for."""
        return [*_families({}), *_histograms({})]

    def collect(self) -> list[Metric]:
        """Return the numbers of this moment, from any thread."""
        known = {one.key: one() for one in self._pools.valuerefs()}
        pools = {name: pool for name, pool in known.items() if pool is not None}
        durations = {name: self._durations.get(pool) for name, pool in pools.items()}
        return [*_families(pools), *_histograms(durations)]


def _families(pools: Mapping[str, WebsocketConnectionPool]) -> list[Metric]:
    what = "Connections that the server admits, where that was learned"
    learned = GaugeMetricFamily("wspool_learned_limit", what, labels=("pool",))
    for name, pool in pools.items():
        if (limit := pool.learned_limit) is not None:
            learned.add_metric((name,), limit)
    families: list[Metric] = [learned]
    for kind, table in ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)):
        for metric, (what, label, read) in table.items():
            labels = ("pool", label) if label else ("pool",)
            family = kind(f"wspool_connection_{metric}", what, labels=labels)
            for name, pool in pools.items():
                for value, number in read(pool).items():
                    family.add_metric((name, value)[: len(labels)], number)
            families.append(family)
    return families


def _histograms(pools: Mapping[str, _Durations | None]) -> list[Metric]:
    families: list[Metric] = []
    for metric, (what, _) in _HISTOGRAMS.items():
        family = HistogramMetricFamily(f"wspool_connection_{metric}", what, labels=("pool",))
        for name, durations in pools.items():
            if durations is not None:
                family.add_metric((name,), *durations.of[metric].read())
        families.append(family)
    return families


_collectors: WeakKeyDictionary[CollectorRegistry, PoolCollector] = WeakKeyDictionary()
_lock = threading.Lock()


def register(
    pool: WebsocketConnectionPool,
    registry: CollectorRegistry = REGISTRY,
    *,
    histograms: bool = True,
) -> Callable[[], None]:
    """Export a pool through a registry, and return a callable that ends that.

    The histograms, and with them percentiles, cost some microseconds a loan. Raises ValueError for
    a name that is taken; a closed pool gives its place to a new one.
    """
    with _lock:
        if (collector := _collectors.get(registry)) is None:
            collector = PoolCollector()
            registry.register(collector)
            _collectors[registry] = collector
        return collector.add(pool, histograms=histograms)
