"""Pools and groups as OpenTelemetry metrics: for the extra `opentelemetry`.

The names follow OpenTelemetry's own for database connection pools (`db.client.connection.*`). All
begin with `wspool.connection.` and have the attribute `wspool.connection.pool.name`; but for
`wspool.learned_limit`, a gauge that is there only while a pool has a `learned_limit`.

Read from the pool when a reader collects, in whatever thread that does it:

    count             {connection}  with the attribute wspool.connection.state
    max               {connection}  max_connections
    pending_requests  {request}     acquires that wait
    streams           {stream}      lent or draining, with the attribute wspool.connection.state
    max_streams       {stream}      max_streams, of each connection
    borrows           {borrow}      loans, of connections and of streams
    timeouts          {timeout}     acquires that waited in vain until their timeout
    dials             {dial}        dials that were begun
    dial_failures     {dial}        with the attribute error.type: ConnectionUnavailableError's kind
    closed            {connection}  with the attribute wspool.connection.reason, a CloseReason
    drained_messages  {message}     messages that no borrower has read
    repeats           {borrow}      loans that `run` has repeated
    stream_overflows  {stream}      streams that have lost messages, since they did not read
    refusals          {request}     acquires that got nothing, with the attribute
                                    wspool.connection.reason, a CheckOutFailure; no cancelled ones

Histograms, in seconds, told by the pool's events, and so from `instrument` on:

    create_time       the attempt of a dial that succeeded
    wait_time         from acquire to the loan, 0 where one was idle
    use_time          a loan
    drain_time        a drain that ended well

Of a group each pool has these, as long as it is a member. Acquires that no pool has served, since
any could have, have the group's name for their pool. Further, with the attribute wspool.group.name:

    wspool.group.max        {connection}  max_connections, of all pools together
    wspool.group.places     {connection}  places that are taken of these
    wspool.group.member_in  {pool}        of each pool: 1 if it serves those without a key, else 0

Keys are no attributes, since they may be secrets: see `wspool.prometheus`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakValueDictionary, ref

from opentelemetry import metrics

from wspool import events
from wspool._group import looking
from wspool._group.looking import Shown
from wspool._group.pools import WebsocketPools
from wspool._pool import introspection
from wspool._pool.pool import WebsocketConnectionPool

__all__ = ["instrument"]

PREFIX: Final = "wspool.connection."
LEARNED: Final = "wspool.learned_limit"
POOL: Final = "wspool.connection.pool.name"
GROUP: Final = "wspool.group.name"
STATE: Final = "wspool.connection.state"
REASON: Final = "wspool.connection.reason"

BUCKETS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 600.0)
"""Bounds of the histograms' buckets in seconds, unless a view says otherwise.

Those that OpenTelemetry advises for database calls, and a minute and ten: loans can be long.
"""

Row = tuple[str, str, str, Callable[[Any], Mapping[Any, int]]]
"""Unit, description, an attribute beside the pool's name ("": none), the number for each value."""

_GAUGES: Final[dict[str, Row]] = {
    "count": ("{connection}", "By state", STATE, introspection.counts),
    "max": ("{connection}", "Limit", "", lambda pool: {"": pool.max_connections}),
    "pending_requests": ("{request}", "Acquires that wait", "", lambda pool: {"": pool.waiters}),
    "streams": ("{stream}", "By state", STATE, introspection.streams),
    "max_streams": (
        "{stream}",
        "Limit of each connection",
        "",
        lambda pool: {"": introspection.options(pool).max_streams},
    ),
}

_OF_GROUPS: Final[dict[str, tuple[str, str, Callable[[WebsocketPools], Mapping[str, int]]]]] = {
    # Unit, description, the number for each pool ("": for all together).
    "wspool.group.max": ("{connection}", "Limit of all", lambda group: {"": group.max_connections}),
    "wspool.group.places": ("{connection}", "Taken", lambda group: {"": looking.places(group)}),
    "wspool.group.member_in": (
        "{pool}",
        "Whether a pool serves those without a key",
        lambda group: {
            member.pool.name: int(member.health == "in") for member in looking.members_of(group)
        },
    ),
}

_LEARNED: Final[Row] = (
    "{connection}",
    "What the server admits, where that was learned",
    "",
    lambda pool: {"": limit} if (limit := pool.learned_limit) is not None else {},
)

_COUNTERS: Final[dict[str, Row]] = {
    "borrows": ("{borrow}", "Loans", "", lambda pool: {"": pool.stats.borrows}),
    "timeouts": ("{timeout}", "Waits in vain", "", lambda pool: {"": pool.stats.timeouts}),
    "dials": ("{dial}", "Dials begun", "", lambda pool: {"": pool.stats.dials}),
    # A dict of a Counter is made in one step, whatever the event loop's thread does.
    "dial_failures": ("{dial}", "By kind", "error.type", lambda pool: dict(pool.stats.failures)),
    "closed": ("{connection}", "By reason", REASON, lambda pool: dict(pool.stats.closes)),
    "drained_messages": ("{message}", "Unread", "", lambda pool: {"": pool.stats.drained_messages}),
    "repeats": ("{borrow}", "Loans repeated", "", lambda pool: {"": pool.stats.repeats}),
    "stream_overflows": ("{stream}", "Too slow", "", lambda pool: {"": pool.stats.overflows}),
    "refusals": ("{request}", "In vain", REASON, lambda pool: dict(pool.stats.refusals)),
}

_HISTOGRAMS: Final = {
    events.ConnectionReady: ("create_time", "Dial attempts that succeeded"),
    events.ConnectionCheckedOut: ("wait_time", "From acquire to the loan"),
    events.ConnectionCheckedIn: ("use_time", "Loans"),
    events.ConnectionDrained: ("drain_time", "Drains that ended well"),
}

_OF_STREAMS: Final[dict[type[Any], type[Any]]] = {
    # Which event of a connection says the same, so that they share a histogram.
    events.StreamCheckedOut: events.ConnectionCheckedOut,
    events.StreamCheckedIn: events.ConnectionCheckedIn,
    events.StreamDrained: events.ConnectionDrained,
}


class _Instruments:
    """The instruments of one meter provider, and the pools that they tell of, held weakly.

    A meter has each of them once: the SDK drops the callbacks of a second one of the same name.
    """

    def __init__(self, meter: metrics.Meter) -> None:
        self._shown: WeakValueDictionary[str, Shown] = WeakValueDictionary()
        gauge, counter = meter.create_observable_up_down_counter, meter.create_observable_counter
        for name, row in _GAUGES.items():
            gauge(PREFIX + name, [partial(self._observe, name, row)], row[0], row[1])
        for name, (unit, what, observe) in _OF_GROUPS.items():
            gauge(name, [partial(self._observe_groups, observe)], unit, what)
        meter.create_observable_gauge(
            LEARNED, [partial(self._observe, LEARNED, _LEARNED)], _LEARNED[0], _LEARNED[1]
        )
        for name, row in _COUNTERS.items():
            counter(PREFIX + name, [partial(self._observe, name, row)], row[0], row[1])
        self._histograms: dict[type[Any], metrics.Histogram] = {
            kind: meter.create_histogram(
                PREFIX + name, "s", what, explicit_bucket_boundaries_advisory=BUCKETS
            )
            for kind, (name, what) in _HISTOGRAMS.items()
        }
        for stream, connection in _OF_STREAMS.items():
            self._histograms[stream] = self._histograms[connection]

    def _all(self) -> list[Shown]:
        return [one for one in (known() for known in self._shown.valuerefs()) if one is not None]

    def _observe(
        self, metric: str, row: Row, _: metrics.CallbackOptions
    ) -> Iterator[metrics.Observation]:
        attribute, read = row[2:]
        shown = self._all()
        pools: dict[str, Any] = {**looking.by_name(shown)}
        if metric in looking.OF_UNSERVED:
            pools |= looking.unserved(shown)
        for name, pool in pools.items():
            for value, number in read(pool).items():
                attributes = {POOL: name, attribute: str(value)}
                attributes.pop("", None)
                yield metrics.Observation(number, attributes)

    def _observe_groups(
        self, read: Callable[[WebsocketPools], Mapping[str, int]], _: metrics.CallbackOptions
    ) -> Iterator[metrics.Observation]:
        for group in looking.groups_of(self._all()):
            for pool, number in read(group).items():
                attributes = {GROUP: group.name, POOL: pool}
                if not pool:
                    del attributes[POOL]
                yield metrics.Observation(number, attributes)

    def add(self, pool: Shown) -> Callable[[], None]:
        name = pool.name
        known = self._shown.get(name)
        if known is not None and not known.is_closed:
            raise ValueError(
                f"A pool named {name!r} is instrumented already: {known!r}; give each its own name"
            )
        histograms = self._histograms

        def record(event: Any) -> None:
            if (histogram := histograms.get(type(event))) is not None:
                histogram.record(event.duration, {POOL: event.pool})

        unsubscribe = pool.subscribe(record)
        self._shown[name] = pool
        added = ref(pool)

        def end() -> None:
            unsubscribe()
            if (pool := added()) is not None and self._shown.get(name) is pool:
                del self._shown[name]

        return end


class _Global:
    """In the place of the global meter provider, which may be set after a pool was instrumented."""


_global = _Global()
_instruments: WeakKeyDictionary[object, _Instruments] = WeakKeyDictionary()
_lock = threading.Lock()


def instrument(
    pool: WebsocketConnectionPool | WebsocketPools,
    meter_provider: metrics.MeterProvider | None = None,
) -> Callable[[], None]:
    """Export a pool or a group through this meter provider, and return a callable that ends that.

    None stands for the global provider.

    Raises ValueError for a name that is taken; a closed pool gives its place to a new one.
    """
    current = metrics.get_meter_provider()
    key: object = meter_provider or current
    with _lock:
        if key is current and key not in _instruments:
            key = _global
        if (instruments := _instruments.get(key)) is None:
            meter = metrics.get_meter("wspool", meter_provider=meter_provider)
            instruments = _instruments[key] = _Instruments(meter)
        return instruments.add(pool)
