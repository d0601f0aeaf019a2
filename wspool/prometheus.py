"""Pools as Prometheus metrics, read at the moment of a scrape: for the extra `prometheus`.

Between two scrapes nothing is done. A scrape reads the lengths of queues and `pool.stats`, so its
cost does not depend on how many connections there are, and it may come from any thread; a
connection that moves between two queues in that very moment may be counted in both or in neither.
Pools are held weakly: one that is gone is gone from the next scrape too.

Every metric begins with `wspool_connection_` and has the label `pool`, the pool's name:

    count{state}             gauge: connections in this state
    max                      gauge: max_connections
    pending_requests         gauge: acquires that wait
    borrows_total            loans
    waits_total              acquires that had to wait, those that still do included
    wait_seconds_total       seconds of the waits that are over, however they ended
    timeouts_total           acquires that waited in vain until their timeout
    dials_total              dials that were begun
    dial_seconds_total       seconds of the attempts that succeeded
    dial_failures_total{kind}  dials that failed, by the `kind` of ConnectionUnavailableError
    closed_total{reason}     closed connections, by CloseReason
    drained_messages_total   messages that no borrower has read
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Final
from weakref import WeakKeyDictionary, WeakValueDictionary, ref

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from wspool.pool import WebsocketConnectionPool
from wspool.states import CloseReason

KINDS: Final = ("dns", "network", "timeout", "tls", "closed", "error")
"""Kinds of failures that are 0 from the start: `rate()` does not see a series' first value.

The HTTP statuses of refused handshakes, such as "status 503", appear when they occur.
"""

_COUNTERS: Final = {
    "borrows": "Loans",
    "waits": "Acquires that had to wait, those that still do included",
    "wait_seconds": "Seconds of the waits that are over, however they ended",
    "timeouts": "Acquires that waited in vain until their timeout",
    "dials": "Dials that were begun",
    "dial_seconds": "Seconds of the dial attempts that succeeded",
    "drained_messages": "Messages that no borrower has read",
}
"""The numbers of `pool.stats` that are exported as they are."""


class PoolCollector(Collector):
    """Reads pools when it is scraped. A registry takes one; for more pools there is `add`."""

    def __init__(self, *pools: WebsocketConnectionPool) -> None:
        self._pools: WeakValueDictionary[str, WebsocketConnectionPool] = WeakValueDictionary()
        for pool in pools:
            self.add(pool)

    def add(self, pool: WebsocketConnectionPool) -> Callable[[], None]:
        """Export this pool too; return a callable that ends that.

        Raises ValueError if there is one of the same name already, unless that one is closed.
        """
        name = pool.name
        known = self._pools.get(name)
        if known is not None and not known.is_closed:
            raise ValueError(
                f"A pool named {name!r} is exported already: {known!r}; "
                "give each pool a name of its own"
            )
        self._pools[name] = pool
        added = ref(pool)

        def remove() -> None:
            if (pool := added()) is not None and self._pools.get(name) is pool:
                del self._pools[name]

        return remove

    def describe(self) -> Iterable[Metric]:
        return _Families().all()

    def collect(self) -> Iterable[Metric]:
        families = _Families()
        for known in self._pools.valuerefs():
            if (pool := known()) is not None:
                families.read(known.key, pool)
        return families.all()


class _Families:
    """The metrics of one scrape."""

    def __init__(self) -> None:
        def gauge(name: str, what: str, *labels: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"wspool_connection_{name}", what, labels=("pool", *labels))

        def counter(name: str, what: str, *labels: str) -> CounterMetricFamily:
            return CounterMetricFamily(f"wspool_connection_{name}", what, labels=("pool", *labels))

        self.count = gauge("count", "Connections by state", "state")
        self.max = gauge("max", "The limit of connections, max_connections")
        self.pending_requests = gauge("pending_requests", "Acquires that wait")
        self.counters = {name: counter(name, what) for name, what in _COUNTERS.items()}
        self.dial_failures = counter("dial_failures", "Dials that failed, by kind", "kind")
        self.closed = counter("closed", "Closed connections by reason", "reason")

    def all(self) -> list[Metric]:
        """Return them in a fixed order."""
        gauges = (self.count, self.max, self.pending_requests)
        return [*gauges, *self.counters.values(), self.dial_failures, self.closed]

    def read(self, name: str, pool: WebsocketConnectionPool) -> None:
        stats = pool.stats
        for state, count in pool.router.queues.counts().items():
            self.count.add_metric((name, state), count)
        self.max.add_metric((name,), pool.router.options.max_connections)
        self.pending_requests.add_metric((name,), pool.waiters)
        for number, family in self.counters.items():
            family.add_metric((name,), getattr(stats, number))
        # A dict of a Counter is made in one step, whatever the event loop's thread does.
        for kind, count in (dict.fromkeys(KINDS, 0) | dict(stats.failures)).items():
            self.dial_failures.add_metric((name, kind), count)
        for reason in CloseReason:
            self.closed.add_metric((name, reason), stats.closes[reason])


_collectors: WeakKeyDictionary[CollectorRegistry, PoolCollector] = WeakKeyDictionary()
_lock = threading.Lock()


def register(
    *pools: WebsocketConnectionPool, registry: CollectorRegistry = REGISTRY
) -> Callable[[], None]:
    """Export these pools through a registry, beside those that it has; return what ends that.

    Raises ValueError for two pools of one name; a closed pool gives its place to a new one.
    """
    with _lock:
        if (collector := _collectors.get(registry)) is None:
            collector = PoolCollector()
            registry.register(collector)
            _collectors[registry] = collector
    removals: list[Callable[[], None]] = []

    def unregister() -> None:
        for remove in removals:
            remove()

    try:
        removals += map(collector.add, pools)
    except ValueError:
        unregister()
        raise
    return unregister
