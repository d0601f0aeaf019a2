"""Pools as Prometheus metrics, read at the moment of a scrape: for the extra `prometheus`.

Between two scrapes nothing is done. A scrape reads the lengths of queues and `pool.stats`: its
cost does not depend on how many connections there are, and it may come from any thread. One that
comes from another thread may count a connection that moves in that very moment twice or not at all.

Every metric begins with `wspool_connection_` and has the label `pool`, the pool's name:

    count{state}               gauge: connections by state
    max                        gauge: max_connections
    pending_requests           gauge: acquires that wait
    borrows_total              loans
    waits_total                acquires that had to wait, those that still do included
    wait_seconds_total         seconds of the waits that are over, however they ended
    timeouts_total             acquires that waited in vain until their timeout
    dials_total                dials that were begun
    dial_seconds_total         seconds of the attempts that succeeded
    dial_failures_total{kind}  dials that failed, by the `kind` of ConnectionUnavailableError
    closed_total{reason}       closed connections, by CloseReason
    drained_messages_total     messages that no borrower has read
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakValueDictionary, ref

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

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


def _failures(pool: WebsocketConnectionPool) -> Mapping[Any, float]:
    # A dict of a Counter is made in one step, whatever the event loop's thread does.
    return dict.fromkeys(KINDS, 0) | dict(pool.stats.failures)


def _closes(pool: WebsocketConnectionPool) -> Mapping[Any, float]:
    return {reason: pool.stats.closes[reason] for reason in CloseReason}


Read = Callable[[WebsocketConnectionPool], Mapping[Any, float]]

_GAUGES: Final[dict[str, tuple[str, str, Read]]] = {
    # Name: what it is, the label beside the pool's name ("": none), the number for each value.
    "count": ("Connections by state", "state", introspection.counts),
    "max": ("max_connections", "", lambda pool: {"": pool.max_connections}),
    "pending_requests": ("Acquires that wait", "", lambda pool: {"": pool.waiters}),
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
}


class PoolCollector(Collector):
    """Reads pools, which it holds weakly. A registry takes one; `add` gives it more pools."""

    def __init__(self, *pools: WebsocketConnectionPool) -> None:
        self._pools: WeakValueDictionary[str, WebsocketConnectionPool] = WeakValueDictionary()
        for pool in pools:
            self.add(pool)

    def add(self, pool: WebsocketConnectionPool) -> Callable[[], None]:
        """Export this pool too, and return a callable that ends that.

        Raises ValueError for a name that is taken; a closed pool gives its place to a new one.
        """
        name = pool.name
        known = self._pools.get(name)
        if known is not None and not known.is_closed:
            raise ValueError(
                f"A pool named {name!r} is exported already: {known!r}; give each its own name"
            )
        self._pools[name] = pool
        added = ref(pool)

        def remove() -> None:
            if (pool := added()) is not None and self._pools.get(name) is pool:
                del self._pools[name]

        return remove

    def describe(self) -> list[Metric]:
        """Return the metrics without numbers, as registries ask for."""
        return _families({})

    def collect(self) -> list[Metric]:
        """Return the numbers of this moment, from any thread."""
        pools = {known.key: known() for known in self._pools.valuerefs()}
        return _families({name: pool for name, pool in pools.items() if pool is not None})


def _families(pools: Mapping[str, WebsocketConnectionPool]) -> list[Metric]:
    families: list[Metric] = []
    for kind, table in ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)):
        for metric, (what, label, read) in table.items():
            labels = ("pool", label) if label else ("pool",)
            family = kind(f"wspool_connection_{metric}", what, labels=labels)
            for name, pool in pools.items():
                for value, number in read(pool).items():
                    family.add_metric((name, value)[: len(labels)], number)
            families.append(family)
    return families


_collectors: WeakKeyDictionary[CollectorRegistry, PoolCollector] = WeakKeyDictionary()
_lock = threading.Lock()


def register(
    pool: WebsocketConnectionPool, registry: CollectorRegistry = REGISTRY
) -> Callable[[], None]:
    """Export a pool through a registry, and return a callable that ends that.

    Raises ValueError for a name that is taken; a closed pool gives its place to a new one.
    """
    with _lock:
        if (collector := _collectors.get(registry)) is None:
            collector = PoolCollector()
            registry.register(collector)
            _collectors[registry] = collector
        return collector.add(pool)
