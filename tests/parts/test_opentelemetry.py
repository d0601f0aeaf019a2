"""What OpenTelemetry is told: the snapshot's numbers and the durations of the pool's events."""

from __future__ import annotations

import asyncio
import gc
import logging
from typing import Any

import pytest
from aiohttp import web

from tests.conftest import MakePool, echoes, until
from tests.support.full_life import (
    OPTIONS,
    OPTIONS_OF_STREAMS,
    full_life,
    life_of_streams,
    tell_as_often_as_asked,
)
from wspool import (
    ConnectionPoolExhaustedError,
    ConnectionUnavailableError,
    PoolSnapshot,
    WebsocketConnectionPool,
)
from wspool.events import (
    ConnectionCheckedIn,
    ConnectionCheckedOut,
    ConnectionDrained,
    ConnectionReady,
    Event,
)
from wspool.testing import Server

pytest.importorskip("opentelemetry.sdk.metrics", reason="opentelemetry-sdk is not installed")

from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, Metric, Sum

from wspool.opentelemetry import BUCKETS, instrument

pytestmark = pytest.mark.usefixtures("no_backoff")

POOL, STATE, REASON = (f"wspool.connection.{key}" for key in ("pool.name", "state", "reason"))

GAUGES = ("count", "max", "pending_requests", "streams", "max_streams")

Numbers = dict[tuple[str, frozenset[tuple[str, Any]]], float]
"""A number for each metric and its attributes."""


class Telemetry:
    """A meter provider whose metrics stay in the process."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)

    def metrics(self) -> dict[str, Metric]:
        data = self.reader.get_metrics_data()
        resources = data.resource_metrics if data is not None else []
        scopes = [scope for resource in resources for scope in resource.scope_metrics]
        assert {scope.scope.name for scope in scopes} <= {"wspool"}
        return {metric.name: metric for scope in scopes for metric in scope.metrics}

    def numbers(self) -> Numbers:
        """Return what is observed: all but the histograms."""
        return {
            (metric.name, frozenset(point.attributes.items())): point.value
            for metric in self.metrics().values()
            if isinstance(metric.data, Sum)
            for point in metric.data.data_points
        }

    def pools(self) -> set[str]:
        return {str(dict(attributes)[POOL]) for _, attributes in self.numbers()}

    def histogram(self, name: str) -> HistogramDataPoint:
        [point] = self.metrics()[f"wspool.connection.{name}"].data.data_points
        return point


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


def number_of(kind: type[Event], heard: list[Event]) -> int:
    return sum(isinstance(event, kind) for event in heard)


def expected(picture: PoolSnapshot) -> Numbers:
    """Return the numbers that a snapshot has."""
    stats = picture.stats
    states = [stream.state for shown in picture.connections for stream in shown.streams]
    rows: list[tuple[str, float, dict[str, str]]] = [
        ("max", picture.max_connections, {}),
        ("pending_requests", picture.waiters, {}),
        ("borrows", stats.borrows, {}),
        ("timeouts", stats.timeouts, {}),
        ("dials", stats.dials, {}),
        ("drained_messages", stats.drained_messages, {}),
        ("repeats", stats.repeats, {}),
        ("stream_overflows", stats.overflows, {}),
        ("max_streams", picture.max_streams, {}),
        *(("streams", states.count(state), {STATE: state}) for state in ("busy", "draining")),
        *(("count", number, {STATE: state}) for state, number in picture.counts.items()),
        *(("closed", number, {REASON: reason}) for reason, number in stats.closes.items()),
        *(("dial_failures", n, {"error.type": kind}) for kind, n in stats.failures.items()),
        *(("refusals", number, {REASON: reason}) for reason, number in stats.refusals.items()),
    ]
    return {
        (f"wspool.connection.{name}", frozenset({POOL: picture.name, **attributes}.items())): number
        for name, number, attributes in rows
    }


async def test_what_is_observed_has_the_numbers_of_the_snapshot(
    server: Server, make_pool: MakePool, telemetry: Telemetry
) -> None:
    """With a connection in each state, a waiter, a failure, a timeout and a drained message."""
    pool = make_pool(**OPTIONS)
    instrument(pool, telemetry.provider)
    assert telemetry.numbers() == expected(pool.snapshot())
    async with full_life(server, pool) as picture:
        assert await asyncio.to_thread(telemetry.numbers) == expected(picture)


async def test_histograms_have_the_durations_of_the_events(
    server: Server, make_pool: MakePool, telemetry: Telemetry
) -> None:
    """Of dials, waits, loans and drains, in seconds."""
    pool = make_pool(max_connections=1, drain_until=lambda message: message == "the last")
    heard: list[Event] = []
    pool.subscribe(heard.append)
    instrument(pool, telemetry.provider)
    async with pool.get_connection() as connection:
        assert await echoes(connection)
        waiting = asyncio.create_task(pool.acquire(timeout=None))
        await until(lambda: pool.waiters, "somebody waits")
    await server.peers[0].send("the last")
    await pool.release(await waiting)
    await until(lambda: number_of(ConnectionCheckedIn, heard) == 2, "all is told")
    for kind, name in (
        (ConnectionReady, "create_time"),
        (ConnectionCheckedOut, "wait_time"),
        (ConnectionCheckedIn, "use_time"),
        (ConnectionDrained, "drain_time"),
    ):
        durations = [event.duration for event in heard if isinstance(event, kind)]
        point = telemetry.histogram(name)
        assert point.attributes == {POOL: pool.name}
        assert (point.count, point.sum) == (len(durations), pytest.approx(sum(durations)))
        assert point.max == max(durations) > 0
        assert point.explicit_bounds == BUCKETS
    assert telemetry.histogram("use_time").count == telemetry.histogram("wait_time").count == 2


async def test_streams_are_counted_and_their_loans_are_loans(
    make_pool: MakePool, telemetry: Telemetry
) -> None:
    async with Server(tell_as_often_as_asked) as server:
        pool = make_pool(uri=server.uri, **OPTIONS_OF_STREAMS)
        instrument(pool, telemetry.provider)
        async with life_of_streams(pool) as picture:
            assert telemetry.numbers() == expected(picture)
        await until(lambda: telemetry.histogram("use_time").count == 5, "all is told")
        assert telemetry.histogram("wait_time").count == 5
        assert telemetry.histogram("drain_time").count == 2


async def test_units_are_those_of_the_semantic_conventions(
    server: Server, make_pool: MakePool, telemetry: Telemetry
) -> None:
    """Numbers in braces, durations in seconds; what goes up and down is no counter."""
    pool = make_pool(drain_until=lambda message: message == "hello", max_retries=1)
    instrument(pool, telemetry.provider)
    server.refuse(403)
    with pytest.raises(ConnectionUnavailableError):
        await pool.acquire()
    connection = await pool.acquire()
    await connection.send("hello")
    await pool.release(connection)
    await until(lambda: connection.state == "idle", "it is drained")
    await until(lambda: "wspool.connection.drain_time" in telemetry.metrics(), "it is told")
    found = telemetry.metrics()
    assert {name.removeprefix("wspool.connection."): m.unit for name, m in found.items()} == {
        "count": "{connection}",
        "max": "{connection}",
        "pending_requests": "{request}",
        "borrows": "{borrow}",
        "timeouts": "{timeout}",
        "dials": "{dial}",
        "dial_failures": "{dial}",
        "closed": "{connection}",
        "drained_messages": "{message}",
        "repeats": "{borrow}",
        "streams": "{stream}",
        "max_streams": "{stream}",
        "stream_overflows": "{stream}",
        "refusals": "{request}",
        "create_time": "s",
        "wait_time": "s",
        "use_time": "s",
        "drain_time": "s",
    }
    assert all(metric.description for metric in found.values())
    up_and_down = {n for n, m in found.items() if not getattr(m.data, "is_monotonic", True)}
    assert up_and_down == {f"wspool.connection.{n}" for n in GAUGES}


async def test_several_pools_share_the_instruments(
    make_pool: MakePool, telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    """The SDK would drop the callbacks of a second instrument of one name, without an error."""
    speech, market = make_pool(name="speech"), make_pool(name="market")
    instrument(speech, telemetry.provider)
    instrument(market, telemetry.provider)
    await market.acquire()
    assert telemetry.numbers() == expected(speech.snapshot()) | expected(market.snapshot())
    assert not caplog.records


async def test_a_name_that_is_taken_is_refused(make_pool: MakePool, telemetry: Telemetry) -> None:
    """Also for the very same pool; a pool that is closed gives its place to a new one."""
    pool, twin = make_pool(name="twin"), make_pool(name="twin", max_connections=7)
    end = instrument(pool, telemetry.provider)
    for again in (pool, twin):
        with pytest.raises(ValueError, match="A pool named 'twin' is instrumented already"):
            instrument(again, telemetry.provider)
    instrument(twin, Telemetry().provider)
    await pool.acquire()
    await pool.close_all()
    instrument(twin, telemetry.provider)
    end()
    assert telemetry.numbers() == expected(twin.snapshot())


async def test_a_pool_is_told_of_until_that_is_ended(
    make_pool: MakePool, telemetry: Telemetry
) -> None:
    """Nothing is observed any more, and no event is listened to."""
    pool = make_pool()
    end = instrument(pool, telemetry.provider)
    async with pool.get_connection():
        pass
    await until(lambda: "wspool.connection.use_time" in telemetry.metrics(), "the loan is told")
    for _ in range(2):
        end()
        assert telemetry.pools() == set()
        assert not pool._router.events.listeners
    instrument(pool, telemetry.provider)
    assert telemetry.pools() == {pool.name}


def test_a_pool_that_is_gone_vanishes(telemetry: Telemetry) -> None:
    """Neither the instruments nor what ends them keeps it alive."""
    pool = WebsocketConnectionPool(uri="ws://localhost/", name="short-lived")
    end = instrument(pool, telemetry.provider)
    assert telemetry.pools() == {"short-lived"}
    del pool
    gc.collect()
    assert telemetry.pools() == set()
    end()


@pytest.mark.parametrize("named", [(), ("before",), ("after",), ("before", "after")])
def test_the_global_provider_may_be_set_afterwards(
    make_pool: MakePool,
    telemetry: Telemetry,
    monkeypatch: pytest.MonkeyPatch,
    named: tuple[str, ...],
) -> None:
    """Pools instrumented before and after that share the instruments, named or not."""
    internal = metrics._internal
    monkeypatch.setattr(internal, "_METER_PROVIDER", None)
    monkeypatch.setattr(
        internal, "_METER_PROVIDER_SET_ONCE", type(internal._METER_PROVIDER_SET_ONCE)()
    )
    monkeypatch.setattr(internal, "_PROXY_METER_PROVIDER", type(internal._PROXY_METER_PROVIDER)())
    monkeypatch.setattr("wspool.opentelemetry._instruments", {})
    for name in ("before", "after"):
        instrument(make_pool(name=name), telemetry.provider if name in named else None)
        if name == "before":
            metrics.set_meter_provider(telemetry.provider)
    assert telemetry.pools() == {"before", "after"}


async def test_a_back_end_that_breaks_does_not_reach_the_pool(
    make_pool: MakePool,
    telemetry: Telemetry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The pool lends on, other listeners hear of it, and the log says once what is broken."""
    pool = make_pool()
    instrument(pool, telemetry.provider)
    heard: list[Event] = []
    pool.subscribe(heard.append)

    def broken(*_: object, **__: object) -> None:
        raise OSError("the back end is down")

    monkeypatch.setattr("opentelemetry.sdk.metrics.Histogram.record", broken)
    for _ in range(3):
        async with pool.get_connection() as connection:
            assert await echoes(connection)
    await until(lambda: number_of(ConnectionCheckedIn, heard) == 3, "another listener hears all")
    [record] = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert "a listener raised" in record.getMessage()
    assert pool.stats.borrows == 3


async def test_secrets_are_not_exported(
    server: Server, make_pool: MakePool, telemetry: Telemetry
) -> None:
    """Neither those of headers and URI nor what a server says while it refuses and closes."""
    secret = "canary7"
    uri = server.uri.replace("://", f"://{secret}:{secret}@") + f"?key={secret}"
    pool = make_pool(uri=uri, headers={"X-Key": secret}, max_retries=1)
    instrument(pool, telemetry.provider)
    server.refusals.append(web.Response(status=401, reason=secret, headers={"X": secret}))
    with pytest.raises(ConnectionUnavailableError):
        await pool.acquire()
    connection = await pool.acquire()
    await server.peers[0].close(4000, secret)
    await until(lambda: connection.state == "closed", "the close is noticed")
    exported = telemetry.reader.get_metrics_data().to_json()
    assert "status 401" in exported
    assert secret not in exported


async def test_a_learned_limit_is_a_gauge_while_there_is_one(
    server: Server, make_pool: MakePool, telemetry: Telemetry
) -> None:
    pool = make_pool(name="speech")
    instrument(pool, telemetry.provider)
    assert "wspool.learned_limit" not in telemetry.metrics()
    await pool.acquire()
    server.refuse(429)
    with pytest.raises(ConnectionPoolExhaustedError):
        await pool.acquire(timeout=0)
    [point] = telemetry.metrics()["wspool.learned_limit"].data.data_points
    assert (point.value, dict(point.attributes or {})) == (1, {POOL: "speech"})
