"""Pools and groups as Prometheus metrics, read at a scrape: for the extra `prometheus`.

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

Of a group each pool has these, as long as it is a member. Acquires that no pool has served, since
any could have, have the group's name for their `pool`. Further, with the label `group`:

    wspool_group_max                  gauge: max_connections, of all pools together
    wspool_group_places               gauge: places that are taken of these
    wspool_group_member_in{pool}      gauge: 1 if the pool serves those without a key, else 0

Keys are no labels, since they may be secrets: a pool is named after the group, with a number. Who
wants to tell pools apart by key gives them names, as `name` in their options.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from wspool._group import looking
from wspool._group.looking import Shown
from wspool._group.pools import WebsocketPools
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


Read = Callable[[Any], Mapping[Any, float]]

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
    """The histograms of a pool, or of each of a group; listens to it, and does not hold it."""

    def __init__(self, shown: Shown) -> None:
        self._shown = ref(shown)
        self._of: dict[str, dict[str, _Histogram]] = {}
        self._changing = threading.Lock()  # by a scrape, and by the events of a new pool
        self._metrics = {kind: name for name, (_, kinds) in _HISTOGRAMS.items() for kind in kinds}

    def hear(self, event: Any) -> None:
        if (metric := self._metrics.get(type(event))) is not None:
            if (known := self._of.get(event.pool)) is None:
                known = self._keep(event.pool)[event.pool]
            known[metric].add(event.duration)

    def read(self) -> dict[str, dict[str, _Histogram]]:
        """Return the histograms of each pool, and of those whom none has served."""
        return self._keep().copy()

    def _keep(self, *pools: str) -> dict[str, dict[str, _Histogram]]:
        """Begin what is new, and forget what is gone, since pools may come and go for ever."""
        with self._changing:
            known = self._of
            names = [*pools, *_names(self._shown())]
            self._of = {name: known.get(name) or _histograms_of_one() for name in names}
            return self._of


def _histograms_of_one() -> dict[str, _Histogram]:
    return {name: _Histogram() for name in _HISTOGRAMS}


def _names(shown: Shown | None) -> Iterator[str]:
    """Give the names of its pools, and its own."""
    if shown is not None:
        yield shown.name
        yield from (pool.name for pool in looking.pools_of(shown))


class PoolCollector(Collector):
    """Reads pools and groups, which it holds weakly. A registry takes one; `add` gives it more."""

    def __init__(self, *pools: WebsocketConnectionPool | WebsocketPools) -> None:
        self._shown: WeakValueDictionary[str, Shown] = WeakValueDictionary()
        self._durations: WeakKeyDictionary[Shown, _Durations] = WeakKeyDictionary()
        for pool in pools:
            self.add(pool)

    def add(
        self, pool: WebsocketConnectionPool | WebsocketPools, *, histograms: bool = True
    ) -> Callable[[], None]:
        """Export this pool or group too, and return a callable that ends that.

        The histograms, and with them percentiles, cost some microseconds a loan. Raises ValueError
        for a name that is taken; a closed pool gives its place to a new one.
        """
        name = pool.name
        known = self._shown.get(name)
        if known is not None and not known.is_closed:
            raise ValueError(
                f"A pool named {name!r} is exported already: {known!r}; give each its own name"
            )
        unsubscribe: Callable[[], object] = bool
        if histograms:
            durations = self._durations[pool] = _Durations(pool)
            unsubscribe = pool.subscribe(durations.hear)
        self._shown[name] = pool
        added = ref(pool)

        def remove() -> None:
            unsubscribe()
            if (pool := added()) is not None and self._shown.get(name) is pool:
                del self._shown[name]
                self._durations.pop(pool, None)

        return remove

    def describe(self) -> list[Metric]:
        """Return the metrics without numbers, as registries ask for."""
        return [*_families([]), *_histograms([])]

    def collect(self) -> list[Metric]:
        """Return the numbers of this moment, from any thread."""
        shown = [one for one in (known() for known in self._shown.valuerefs()) if one is not None]
        durations = [self._durations[one] for one in shown if one in self._durations]
        return [*_families(shown), *_histograms(durations)]


def _families(shown: Sequence[Shown]) -> list[Metric]:
    pools, unserved = looking.by_name(shown), looking.unserved(shown)
    what = "Connections that the server admits, where that was learned"
    learned = GaugeMetricFamily("wspool_learned_limit", what, labels=("pool",))
    for name, pool in pools.items():
        if (limit := pool.learned_limit) is not None:
            learned.add_metric((name,), limit)
    families: list[Metric] = [learned, *_of_groups(looking.groups_of(shown))]
    for kind, table in ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)):
        for metric, (what, label, read) in table.items():
            labels = ("pool", label) if label else ("pool",)
            family = kind(f"wspool_connection_{metric}", what, labels=labels)
            readable: dict[str, Any] = {**pools}
            if metric in looking.OF_UNSERVED:
                readable |= unserved
            for name, one in readable.items():
                for value, number in read(one).items():
                    family.add_metric((name, value)[: len(labels)], number)
            families.append(family)
    return families


def _of_groups(groups: Sequence[WebsocketPools]) -> list[Metric]:
    most = GaugeMetricFamily("wspool_group_max", "Limit of all pools", labels=("group",))
    places = GaugeMetricFamily("wspool_group_places", "Places taken", labels=("group",))
    what = "Whether a pool serves those without a key"
    is_in = GaugeMetricFamily("wspool_group_member_in", what, labels=("group", "pool"))
    for group in groups:
        most.add_metric((group.name,), group.max_connections)
        places.add_metric((group.name,), looking.places(group))
        for member in looking.members_of(group):
            is_in.add_metric((group.name, member.pool.name), member.health == "in")
    return [most, places, is_in]


def _histograms(all_durations: Sequence[_Durations]) -> list[Metric]:
    pools = {name: of for durations in all_durations for name, of in durations.read().items()}
    families: list[Metric] = []
    for metric, (what, _) in _HISTOGRAMS.items():
        family = HistogramMetricFamily(f"wspool_connection_{metric}", what, labels=("pool",))
        for name, histograms in pools.items():
            family.add_metric((name,), *histograms[metric].read())
        families.append(family)
    return families


_collectors: WeakKeyDictionary[CollectorRegistry, PoolCollector] = WeakKeyDictionary()
_lock = threading.Lock()


def register(
    pool: WebsocketConnectionPool | WebsocketPools,
    registry: CollectorRegistry = REGISTRY,
    *,
    histograms: bool = True,
) -> Callable[[], None]:
    """Export a pool or a group through a registry, and return a callable that ends that.

    The histograms, and with them percentiles, cost some microseconds a loan. Raises ValueError for
    a name that is taken; a closed pool gives its place to a new one.
    """
    with _lock:
        if (collector := _collectors.get(registry)) is None:
            collector = PoolCollector()
            registry.register(collector)
            _collectors[registry] = collector
        return collector.add(pool, histograms=histograms)
