"""What Prometheus is told: the numbers of the snapshot, without secrets, from any thread."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any
from unittest.mock import Mock

import aiohttp
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
    CloseReason,
    ConnectionClosedError,
    ConnectionPoolExhaustedError,
    ConnectionPoolTimeoutError,
    ConnectionUnavailableError,
    PoolSnapshot,
    WebsocketConnectionPool,
    events,
)
from wspool._pool.dialing import kind_of
from wspool.testing import Server

pytest.importorskip("prometheus_client", reason="the extra 'prometheus' is not installed")

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from wspool.prometheus import BUCKETS, KINDS, REASONS, PoolCollector, register

pytestmark = pytest.mark.usefixtures("no_backoff")

Numbers = dict[tuple[str, frozenset[str]], float]
"""A number for each metric and its labels' values, the pool's name among them."""


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def scraped(registry: CollectorRegistry) -> Numbers:
    """Return what a Prometheus server reads in the text of a scrape, but for the histograms."""
    numbers: Numbers = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        assert family.documentation
        if family.type == "histogram":
            continue
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.values()))
            assert key not in numbers, f"{key} is there twice"
            numbers[key] = sample.value
    return numbers


def expected(picture: PoolSnapshot) -> Numbers:
    """Return the same numbers, taken from a snapshot."""
    stats = picture.stats
    numbers: Numbers = {}

    def put(name: str, number: float, *labels: str) -> None:
        numbers[f"wspool_connection_{name}", frozenset({picture.name, *labels})] = number

    def put_all(name: str, counts: Mapping[str, int]) -> None:
        for label, number in counts.items():
            put(name, number, label)

    put_all("count", picture.counts)
    put("max", picture.max_connections)
    if picture.learned_limit is not None:
        numbers["wspool_learned_limit", frozenset({picture.name})] = picture.learned_limit
    put("pending_requests", picture.waiters)
    put("borrows_total", stats.borrows)
    put("waits_total", stats.waits)
    put("wait_seconds_total", stats.wait_seconds)
    put("timeouts_total", stats.timeouts)
    put("dials_total", stats.dials)
    put("dial_seconds_total", stats.dial_seconds)
    put_all("dial_failures_total", dict.fromkeys(KINDS, 0) | stats.failures)
    put_all("closed_total", dict.fromkeys(map(str, CloseReason), 0) | stats.closes)
    put("drained_messages_total", stats.drained_messages)
    put("repeats_total", stats.repeats)
    put("stream_overflows_total", stats.overflows)
    states = [stream.state for shown in picture.connections for stream in shown.streams]
    put_all("streams", {state: states.count(state) for state in ("busy", "draining")})
    put("max_streams", picture.max_streams)
    put_all("refusals_total", dict.fromkeys(REASONS, 0) | stats.refusals)
    return numbers


def names_of_pools(registry: CollectorRegistry) -> set[str]:
    [family] = [f for f in registry.collect() if f.name == "wspool_connection_max"]
    return {sample.labels["pool"] for sample in family.samples}


async def test_a_scrape_has_the_numbers_of_the_snapshot(
    server: Server, make_pool: MakePool, registry: CollectorRegistry
) -> None:
    """With a connection in each state, a waiter, a failure, a timeout and a drained message."""
    pool = make_pool(**OPTIONS)
    register(pool, registry)
    assert scraped(registry) == expected(pool.snapshot())
    async with full_life(server, pool) as picture:
        assert scraped(registry) == expected(picture)


async def test_streams_are_counted_and_their_loans_are_loans(
    make_pool: MakePool, registry: CollectorRegistry
) -> None:
    async with Server(tell_as_often_as_asked) as server:
        pool = make_pool(uri=server.uri, **OPTIONS_OF_STREAMS)
        register(pool, registry)
        async with life_of_streams(pool) as picture:
            assert scraped(registry) == expected(picture)
        await until(lambda: histograms(registry)["use_duration_seconds"]["count"] == 5, "told")
        found = {name: histogram["count"] for name, histogram in histograms(registry).items()}
        assert found["wait_duration_seconds"] == 6, "the one that was called off included"
        assert found["drain_duration_seconds"] == 2


def test_the_reasons_that_begin_at_0_are_those_of_refusals() -> None:
    assert {*REASONS, "cancelled"} == {str(reason) for reason in events.CheckOutFailure}


def histograms(registry: CollectorRegistry) -> dict[str, dict[str, float]]:
    """Return the samples of each histogram, those of buckets by their bound."""
    return {
        family.name.removeprefix("wspool_connection_"): {
            sample.labels.get("le", sample.name.rpartition("_")[2]): sample.value
            for sample in family.samples
        }
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        if family.type == "histogram"
    }


async def test_histograms_have_the_durations_of_the_events(
    make_pool: MakePool, registry: CollectorRegistry
) -> None:
    pool = make_pool(max_connections=1)
    heard: list[events.Event] = []
    pool.subscribe(heard.append)
    remove = register(pool, registry)
    async with pool.get_connection():
        waiting = asyncio.create_task(pool.acquire(timeout=None))
        await until(lambda: pool.waiters, "somebody waits")
        with pytest.raises(ConnectionPoolTimeoutError):
            await pool.acquire(timeout=0.01)
    await pool.release(await waiting)
    await until(lambda: isinstance(heard[-1], events.ConnectionCheckedIn), "all is told")
    waits = events.ConnectionCheckedOut | events.ConnectionCheckOutFailed
    for name, kind in (
        ("wait_duration_seconds", waits),
        ("use_duration_seconds", events.ConnectionCheckedIn),
        ("dial_duration_seconds", events.ConnectionReady),
    ):
        durations = [event.duration for event in heard if isinstance(event, kind)]
        found = histograms(registry)[name]
        assert found.pop("sum") == pytest.approx(sum(durations))
        assert found.pop("count") == found.pop("+Inf") == len(durations) > 0
        assert {float(bound): count for bound, count in found.items()} == {
            bound: sum(duration <= bound for duration in durations) for bound in BUCKETS
        }
    assert len(pool._router.events.listeners) == 2
    remove()
    assert len(pool._router.events.listeners) == 1


def test_without_histograms_nobody_listens(registry: CollectorRegistry) -> None:
    pool = WebsocketConnectionPool(uri="ws://localhost/")
    register(pool, registry, histograms=False)
    assert not pool._router.events.listeners
    assert not any(histograms(registry).values())
    assert names_of_pools(registry) == {pool.name}


async def test_pools_are_told_apart_by_name(
    make_pool: MakePool, registry: CollectorRegistry
) -> None:
    """In one collector, whether it is the registry's or one's own."""
    speech, market = make_pool(name="speech"), make_pool(name="market", max_connections=7)
    register(speech, registry)
    register(market, registry)
    await speech.acquire()
    both = expected(speech.snapshot()) | expected(market.snapshot())
    assert scraped(registry) == both
    other = CollectorRegistry()
    other.register(PoolCollector(speech, market))
    assert scraped(other) == both


def test_a_registry_takes_one_collector(registry: CollectorRegistry) -> None:
    """A second one, whose metrics would be there twice, is refused by name."""
    registry.register(PoolCollector())
    with pytest.raises(ValueError, match="wspool_connection_count"):
        registry.register(PoolCollector())


async def test_a_name_that_is_taken_is_refused(
    make_pool: MakePool, registry: CollectorRegistry
) -> None:
    """Also for the very same pool; a pool that is closed gives its place to a new one."""
    pool, twin = make_pool(name="twin"), make_pool(name="twin", max_connections=7)
    unregister = register(pool, registry)
    for again in (pool, twin):
        with pytest.raises(ValueError, match="A pool named 'twin' is exported already"):
            register(again, registry)
    with pytest.raises(ValueError, match="'twin'"):
        PoolCollector(pool, twin)
    await pool.acquire()
    assert scraped(registry) == expected(pool.snapshot())
    await pool.close_all()
    register(twin, registry)
    assert scraped(registry) == expected(twin.snapshot())
    unregister()
    assert names_of_pools(registry) == {"twin"}, "the new one is still there"


def test_a_pool_is_exported_until_it_is_unregistered(
    make_pool: MakePool, registry: CollectorRegistry
) -> None:
    pool, other = make_pool(name="pool"), make_pool(name="other")
    unregister = register(pool, registry)
    register(other, registry)
    assert names_of_pools(registry) == {"pool", "other"}
    for _ in range(2):
        unregister()
        assert names_of_pools(registry) == {"other"}
    register(pool, registry)
    assert names_of_pools(registry) == {"pool", "other"}


def test_a_pool_that_is_gone_vanishes(registry: CollectorRegistry) -> None:
    """Neither the collector nor what unregisters keeps it alive."""
    pool = WebsocketConnectionPool(uri="ws://localhost/", name="short-lived")
    unregister = register(pool, registry)
    assert names_of_pools(registry) == {"short-lived"}
    del pool
    gc.collect()
    assert names_of_pools(registry) == set()
    unregister()


async def test_secrets_are_not_exported(
    server: Server, make_pool: MakePool, registry: CollectorRegistry
) -> None:
    """Neither those of headers and URI nor what a server says while it refuses and closes."""
    secret = "canary7"
    uri = server.uri.replace("://", f"://{secret}:{secret}@") + f"?key={secret}"
    pool = make_pool(uri=uri, headers={"X-Key": secret}, max_retries=1)
    register(pool, registry)
    server.refusals.append(web.Response(status=401, reason=secret, headers={"X": secret}))
    with pytest.raises(ConnectionUnavailableError):
        await pool.acquire()
    connection = await pool.acquire()
    assert secret in str(server.requests[-1].url)
    await server.peers[0].close(4000, secret)
    await until(lambda: connection.state == "closed", "the close is noticed")
    text = generate_latest(registry).decode()
    assert 'kind="status 401"' in text
    assert secret not in text


def calls_of_a_scrape(collector: PoolCollector) -> int:
    """Return how many functions are called, C functions included."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    gc.collect()
    gc.disable()  # finalizers would count
    sys.setprofile(count)
    try:
        collector.collect()
    finally:
        sys.setprofile(None)
        gc.enable()
    return calls


async def test_a_scrape_costs_the_same_however_many_connections_there_are(
    make_pool: MakePool,
) -> None:
    pool = make_pool()
    collector = PoolCollector(pool)
    collector.collect()
    without = calls_of_a_scrape(collector)
    connections = [await pool.acquire() for _ in range(20)]
    for connection in connections[:10]:
        await pool.release(connection)
    assert calls_of_a_scrape(collector) == without


async def test_scrapes_from_another_thread_under_load(
    server: Server, make_pool: MakePool, registry: CollectorRegistry
) -> None:
    """None fails, no total goes down, and the last one has the numbers of the snapshot."""
    pool = make_pool(max_connections=8, acquire_timeout=None, max_uses=5, max_retries=1)
    register(pool, registry)
    done = asyncio.Event()

    async def borrow(number: int) -> None:
        while not done.is_set():
            with contextlib.suppress(ConnectionUnavailableError):
                async with pool.get_connection() as connection:
                    assert await echoes(connection, str(number))

    async def refuse() -> None:
        for status in range(500, 520):
            server.refuse(status)
            await until(lambda: not server.refusals, "a dial is refused")

    def scrape() -> list[Numbers]:
        scrapes = []
        while len(scrapes) < 100 or not refusing.done():
            scrapes.append(scraped(registry))
            time.sleep(0)  # the other thread's turn
        return scrapes

    async with asyncio.TaskGroup() as group:
        for number in range(16):
            group.create_task(borrow(number))
        refusing = group.create_task(refuse())
        scrapes = await asyncio.to_thread(scrape)
        done.set()
    scrapes.append(scraped(registry))
    assert scrapes[-1] == expected(pool.snapshot())
    totals: Counter[Any] = Counter()
    for numbers in scrapes:
        for key, number in numbers.items():
            if key[0].endswith("_total"):
                assert number >= totals[key], key
                totals[key] = number
    loans = ("wspool_connection_borrows_total", frozenset({pool.name}))
    assert len({numbers[loans] for numbers in scrapes}) > 5, "there was a load"


@pytest.mark.parametrize(
    "error",
    [
        *(TimeoutError(), OSError(), ValueError(), ConnectionPoolTimeoutError()),
        *(aiohttp.ClientConnectionError(), aiohttp.ServerDisconnectedError()),
        *(ConnectionClosedError(), aiohttp.ClientPayloadError(), socket.gaierror()),
        aiohttp.ClientProxyConnectionError(Mock(), OSError()),
        aiohttp.WSServerHandshakeError(Mock(), (), status=101),
    ],
    ids=lambda error: type(error).__name__,
)
def test_the_kinds_that_begin_at_0_are_those_of_dials(error: Exception) -> None:
    assert kind_of(error) in KINDS


async def test_whatever_a_server_says_the_scrape_stays_whole(
    make_pool: MakePool, registry: CollectorRegistry
) -> None:
    """Bytes that are no UTF-8 get neither into a label nor into the errors, which are logged."""
    head = b"HTTP/1.1 %d \xff\xfe\r\nLocation: http://h/\xff\xed\xa0\x80\r\n\r\n"
    statuses = [200, 302, 404, 599, 999]
    kinds = {f"status {status}" for status in statuses}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head % statuses.pop())
        writer.close()

    listener = await asyncio.start_server(answer, "127.0.0.1")
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        pool = make_pool(uri=f"ws://127.0.0.1:{port}/", name='quotes " and \\', max_retries=1)
        register(pool, registry)
        while statuses:
            with pytest.raises(ConnectionUnavailableError) as caught:
                await pool.acquire()
            assert str(caught.value).encode()
    assert pool.stats.failures.keys() == kinds
    assert scraped(registry) == expected(pool.snapshot())


def test_the_package_does_not_import_the_client() -> None:
    """Nor OpenTelemetry's: both are for those who ask for them."""
    script = (
        "import sys, wspool\n"
        "print(sorted({'prometheus_client', 'opentelemetry', 'wspool.prometheus',"
        " 'wspool.opentelemetry'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert printed.stdout == b"[]\n"


async def test_a_learned_limit_is_a_gauge_while_there_is_one(
    server: Server, make_pool: MakePool, registry: CollectorRegistry
) -> None:
    pool = make_pool(name="speech")
    register(pool, registry)
    assert registry.get_sample_value("wspool_learned_limit", {"pool": "speech"}) is None
    await pool.acquire()
    server.refuse(429)
    with pytest.raises(ConnectionPoolExhaustedError):
        await pool.acquire(timeout=0)
    assert registry.get_sample_value("wspool_learned_limit", {"pool": "speech"}) == 1
    failures = {"pool": "speech", "kind": "status 429"}
    assert registry.get_sample_value("wspool_connection_dial_failures_total", failures) == 1
