"""What there is to see of a group: its events, numbers, page, metrics and picture in a terminal."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import weakref
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from rich.console import Console

from tests.conftest import until
from tests.group.conftest import MakeGroup, uris
from wspool import (
    ConnectionPoolExhaustedError,
    ConnectionPoolTimeoutError,
    ConnectionUnavailableError,
    GroupSnapshot,
    State,
    WebsocketPools,
    debug,
)
from wspool._cli import snapshots, top
from wspool._debug import pictures, views
from wspool.testing import Server

Servers = dict[str, Server]
Client = TestClient[web.Request, web.Application]

HERE = "/debug/wspool"
NOWHERE = "ws://127.0.0.1:1/"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a page have fifty pictures a second."""
    monkeypatch.setattr(views, "PICTURE_SECONDS", 0.02)


@asynccontextmanager
async def serving(*groups: Any, **options: Any) -> AsyncIterator[Client]:
    app = web.Application()
    debug.setup(app, *groups, **options)
    async with TestClient(TestServer(app)) as client:
        yield client


async def get(client: Client, path: str) -> Any:
    async with client.get(HERE + path) as response:
        assert response.status == 200, await response.text()
        return await response.json()


@asynccontextmanager
async def pictures_of(client: Client, query: str = "") -> AsyncIterator[Any]:
    """Open a page, and give an iterator over its events: names with their data."""

    async def events(response: Any) -> AsyncIterator[Any]:
        while frame := await response.content.readuntil(b"\n\n"):
            *name, data = frame.decode().strip().splitlines()
            yield bool(name), json.loads(data.removeprefix("data: "))

    async with client.get(f"{HERE}/events{query}") as response, asyncio.timeout(20):
        yield events(response)


async def callable_options(server: Server) -> Any:
    async def options_of(key: str) -> dict[str, Any]:
        return {"uri": server.uri}

    return options_of


# Events and numbers.


async def test_who_subscribes_hears_of_all_pools_those_made_later_included(
    servers: Servers, make_group: MakeGroup
) -> None:
    group = make_group(await callable_options(servers["a"]), name="customers")
    heard: list[Any] = []
    unsubscribe = group.subscribe(heard.append)
    for key in ("one", "two"):
        async with group.get_connection(key):
            pass
    await until(lambda: len(heard) >= 12, "all events are there")
    kinds = Counter((event.pool, type(event).__name__) for event in heard)
    for pool in ("customers-1", "customers-2"):
        for kind in ("CheckOutStarted", "Created", "Ready", "CheckedOut", "CheckedIn"):
            assert kinds[pool, f"Connection{kind}"] == 1, kinds
    unsubscribe()
    heard.clear()
    async with group.get_connection("one"), group.get_connection("three"):
        pass
    await asyncio.sleep(0)
    assert heard == []
    with pytest.raises(TypeError, match="plain callable"):
        group.subscribe(None)  # type: ignore[arg-type]


async def test_a_wait_in_vain_for_any_member_is_counted_and_told_once(
    servers: Servers, make_group: MakeGroup
) -> None:
    group = make_group(uris(servers, "ab"), max_connections=1, name="regions")
    heard: list[Any] = []
    group.subscribe(heard.append)
    async with group.get_connection():
        with pytest.raises(ConnectionPoolTimeoutError):
            await group.acquire(timeout=0.01)
        with pytest.raises(ConnectionPoolExhaustedError):
            await group.acquire()
        with pytest.raises(ConnectionPoolExhaustedError):
            await group.acquire("b")
    await asyncio.sleep(0)
    assert group.stats.refusals == {"timeout": 1, "exhausted": 2}
    assert group.stats.timeouts == 1
    assert group.stats.wait_seconds >= 0.01
    refused = [event for event in heard if type(event).__name__ == "ConnectionCheckOutFailed"]
    assert [(event.pool, str(event.reason)) for event in refused] == [
        ("regions", "timeout"),
        ("regions", "exhausted"),
        ("regions-2", "exhausted"),
    ]


async def test_the_numbers_of_a_group_do_not_fall_when_a_pool_goes(
    servers: Servers, make_group: MakeGroup
) -> None:
    group = make_group(uris(servers, "abc"))
    for key in "aab":
        async with group.get_connection(key):
            pass
    before = group.stats
    lent = await group.acquire("a")
    group.remove("a")
    assert group.stats.borrows == before.borrows + 1 == 4
    picture = group.snapshot()
    assert [member.is_removed for member in picture.members] == [True, False, False]
    assert picture.total_connections == 2
    await group.release(lent)
    await until(lambda: len(group.snapshot().members) == 2, "it is closed")
    assert group.stats.borrows == 4
    assert group.stats.dials == 2
    assert group.total_connections == 1


async def test_trouble_is_there_only_when_no_pool_can_be_dialled(
    servers: Servers, make_group: MakeGroup
) -> None:
    group = make_group({"bad": {"uri": NOWHERE}, "worse": {"uri": NOWHERE}}, max_retries=1)
    assert group.trouble is None
    with pytest.raises(ConnectionUnavailableError):
        await group.acquire()
    assert group.trouble is not None
    assert group.trouble.kind == "network"
    mixed = make_group({"bad": {"uri": NOWHERE}, **uris(servers, "a")}, max_retries=1)
    with pytest.raises(ConnectionUnavailableError):
        await mixed.acquire("bad")
    assert mixed["bad"].trouble is not None
    assert mixed.trouble is None


async def test_two_pools_of_one_name_are_refused(servers: Servers, make_group: MakeGroup) -> None:
    with pytest.raises(ValueError, match="two pools of the group 'g' are called 'x'"):
        make_group({key: {"uri": NOWHERE, "name": "x"} for key in "ab"}, name="g")


async def test_a_picture_has_all_who_wait_the_oldest_first(
    servers: Servers, make_group: MakeGroup
) -> None:
    group = make_group(uris(servers, "ab"), max_connections=1, acquire_timeout=None)
    async with group.get_connection("a"):
        tasks = []
        for name, key in (("first", None), ("second", "b"), ("third", None)):
            tasks.append(asyncio.create_task(group.acquire(key), name=name))
            await until(lambda: group.waiters == len(tasks), "it waits")
        picture = group.snapshot()
        assert [waiter.borrower.task for waiter in picture.waiting] == ["first", "second", "third"]
        assert picture.counts["busy"] == 1
    for task in tasks:
        await group.release(await task)


# The page.


async def test_the_page_of_a_group_has_its_members_and_leads_to_each(
    servers: Servers, make_group: MakeGroup
) -> None:
    group = make_group(uris(servers, "abc"), name="regions", max_connections=5)
    async with serving(group) as client, group.get_connection("b"):
        group.eject("c", 60.0)
        async with pictures_of(client) as events:
            is_named, table = await anext(events)
            assert is_named
            assert table["pools"] == ["regions"]
            assert table["settings"] == {
                "max_connections": 5,
                "choose": "spread",
                "acquire_timeout": 0.0,
            }
            _, shown = await anext(events)
        assert shown["name"] == "regions"
        assert (shown["places"], shown["max_connections"]) == (1, 5)
        assert shown["counts"]["busy"] == 1
        members = shown["members"]
        assert (members["in"], members["out"], members["removed"]) == (2, 1, 0)
        assert [row["key"] for row in members["rows"]] == ["c", "b", "a"]
        out = members["rows"][0]
        assert (out["health"], out["why"]) == ("out", "ejected")
        assert 55 < out["out_until"] - shown["at"] <= 60
        [connection] = shown["connections"]
        assert (connection["pool"], connection["state"]) == ("regions-2", "busy")
        detail = await get(client, f"/connection?pool=regions-2&id={connection['id']}")
        assert detail["borrower"]["task"] == asyncio.current_task().get_name()  # type: ignore[union-attr]
        names = ["regions", "regions-1", "regions-2", "regions-3"]
        assert await get(client, "/pools") == names
        assert (await get(client, "/snapshot"))["members"][1]["key"] == "b"
        assert (await get(client, "/snapshot?pool=regions-2"))["counts"]["busy"] == 1
        async with pictures_of(client, "?pool=regions-2") as events:
            await anext(events)
            _, shown = await anext(events)
        assert (shown["name"], shown["members"]) == ("regions-2", None)
        assert (await get(client, "/dump"))["snapshot"]["name"] == "regions"


async def test_pools_that_are_made_and_removed_appear_and_go(
    servers: Servers, make_group: MakeGroup
) -> None:
    group = make_group(await callable_options(servers["a"]), name="customers")
    async with serving(group) as client, pictures_of(client) as events:
        await anext(events)
        _, shown = await anext(events)
        assert shown["members"]["rows"] == []
        async with group.get_connection("one"):
            pass
        heard = 0
        async for _, shown in events:
            heard += len(shown["events"])
            if shown["counts"]["idle"]:
                break
        assert [row["key"] for row in shown["members"]["rows"]] == ["one"]
        assert heard >= 3, "the events of the first loan are told"
        assert shown["minute"]["dial"]["count"] == 1
        group.remove("one")
        async for _, shown in events:
            if not shown["members"]["rows"]:
                break
        assert shown["stats"]["borrows"] == 1


async def test_connections_of_one_number_in_two_pools_are_measured_as_two(
    servers: Servers, make_group: MakeGroup
) -> None:
    group = make_group(uris(servers, "ab"))
    async with serving(group, history=True) as client:
        async with group.get_connection("a") as one, group.get_connection("b") as other:
            assert one.id == other.id
            await asyncio.sleep(0.05)
        measured = (await get(client, "/dump"))["measured"]
    assert measured["minute"]["use"]["count"] == 2
    assert sum(slot["loans"] for slot in measured["slots"]) == 2
    last = measured["slots"][-1]["means"]
    assert last["idle"] + last["busy"] + last["connecting"] <= 2


async def test_while_nobody_looks_nobody_listens(servers: Servers, make_group: MakeGroup) -> None:
    group = make_group(uris(servers, "ab"))
    pools = [group["a"], group["b"]]
    async with serving(group) as client:
        assert not any(pool._router.events.listeners for pool in pools)
        async with pictures_of(client) as events:
            await anext(events)
            assert all(pool._router.events.listeners for pool in pools)
        await until(lambda: not pools[0]._router.events.listeners, "nobody listens")
        assert not pools[1]._router.events.listeners
        assert not group._roster.account.events.listeners


async def test_of_many_members_those_are_listed_that_give_cause_to_look(
    servers: Servers, make_group: MakeGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "MAX_ROWS", 3)
    group = make_group({n: {"uri": servers["a"].uri} for n in range(30)})
    group._roster.enter()
    group.eject(28, 60)
    async with group.get_connection(29):
        members = pictures.picture(group)["members"]
    assert [row["key"] for row in members["rows"]] == ["28", "29", "0"]
    assert (members["in"], members["out"]) == (29, 1)


async def test_an_asgi_application_takes_a_group_and_the_key_of_one(
    servers: Servers, make_group: MakeGroup
) -> None:
    group = make_group(uris(servers, "a"), name="regions")
    scope = {"type": "http", "method": "GET", "path": "/pools", "headers": [(b"host", b"[::1]")]}
    for application, state in ((debug.asgi(group), {}), (debug.asgi("pools"), {"pools": group})):
        sent: list[Any] = []

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "http.disconnect"}

        await application({**scope, "state": state}, receive, send)
        assert json.loads(sent[1]["body"]) == ["regions", "regions-1"]


async def test_no_secret_of_a_group_is_on_the_page(make_group: MakeGroup) -> None:
    options = {"uri": "ws://u:canary-1@127.0.0.1:1/?t=canary-2", "headers": {"X": "canary-3"}}
    group = make_group({"a": options, "b": options}, max_retries=1)
    with pytest.raises(ConnectionUnavailableError):
        await group.acquire()
    async with serving(group) as client:
        for path in ("/snapshot", "/dump", "/pools", "/snapshot?pool=" + group["a"].name):
            assert "canary" not in json.dumps(await get(client, path))
        async with pictures_of(client) as events:
            for _ in range(2):
                assert "canary" not in json.dumps(await anext(events))


# In a terminal.


def drawn(snapshot: Any, width: int = 120, height: int = 40) -> list[str]:
    read = snapshots.as_made(GroupSnapshot, json.loads(json.dumps(snapshot.to_dict())))
    file = io.StringIO()
    console = Console(file=file, width=width, height=height, force_terminal=True, color_system=None)
    console.print(top.picture(top.View(read), height))
    return [" ".join(line.split()) for line in file.getvalue().splitlines()]


async def test_top_reads_a_group_and_draws_its_members(
    servers: Servers, make_group: MakeGroup
) -> None:
    group = make_group(uris(servers, "abc"), name="regions", max_connections=5)
    async with group.get_connection("b"):
        group.eject("c", 60.0)
        lines = drawn(group.snapshot())
        view = top.View(group.snapshot())
    assert lines[0] == "regions open 0 s old 1 of 5 open 1 of 3 out"
    table = lines[lines.index("pool health open busy waiting loans losses key why") + 1 :]
    assert table[0] in [f"regions-3 out, probed in {n} s 0 0 0 0 0 c ejected" for n in (59, 60)]
    assert table[1:3] == ["regions-2 in 1 1 0 1 0 b", "regions-1 in 0 0 0 0 0 a"]
    assert top.line(view) == (
        "regions open  connecting 0  idle 0  busy 1  draining 0  closed 0"
        " | waiting 0  borrows/s –  dials/s –"
    )


async def test_what_a_key_says_stays_text_and_a_picture_fits(make_group: MakeGroup) -> None:
    keys = [f"[red]{n}\x1b[2J\u202e" for n in range(50)]
    group = make_group({key: {"uri": NOWHERE} for key in keys})
    lines = drawn(group.snapshot(), height=30)
    assert len(lines) < 30
    assert any("[red]0[2J" in line for line in lines)
    assert lines[-1].startswith("… and 3")


# Metrics.


def scraped(registry: Any) -> dict[tuple[str, frozenset[str]], float]:
    found = {}
    for family in registry.collect():
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.values()))
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found


async def test_prometheus_is_told_of_each_pool_and_of_those_whom_none_serves(
    servers: Servers, make_group: MakeGroup
) -> None:
    pytest.importorskip("prometheus_client")
    from prometheus_client import CollectorRegistry, generate_latest

    from wspool.prometheus import register

    registry = CollectorRegistry()
    group = make_group(uris(servers, "ab"), name="g", max_connections=1, acquire_timeout=None)
    end = register(group, registry)
    async with group.get_connection("a"):
        with pytest.raises(ConnectionPoolTimeoutError):
            await group.acquire(timeout=0.01)
        group.eject("b", 60)
        waiting = asyncio.create_task(group.acquire())
        await until(lambda: group.waiters, "one waits")
        numbers = scraped(registry)
    await group.release(await waiting)
    generate_latest(registry)

    def number(name: str, *labels: str) -> float:
        return numbers[f"wspool_{name}", frozenset(labels)]

    assert number("connection_count", "g-1", "busy") == 1
    assert number("connection_timeouts_total", "g") == 1
    assert number("connection_refusals_total", "g", "timeout") == 1
    assert number("connection_use_duration_seconds_count", "g-1") == 0
    assert number("connection_wait_duration_seconds_count", "g") == 1
    pending = [n for (name, _), n in numbers.items() if name.endswith("_pending_requests")]
    assert sum(pending) == 1
    assert (number("group_max", "g"), number("group_places", "g")) == (1, 1)
    assert number("group_member_in", "g", "g-1") == 1
    assert number("group_member_in", "g", "g-2") == 0
    assert ("wspool_connection_borrows_total", frozenset({"g"})) not in numbers
    end()
    assert not [key for key in scraped(registry) if "g-1" in key[1]]


async def test_pools_come_and_go_in_metrics_under_the_names_that_their_options_give(
    servers: Servers, make_group: MakeGroup
) -> None:
    pytest.importorskip("prometheus_client")
    from prometheus_client import CollectorRegistry

    from wspool.prometheus import PoolCollector

    async def options_of(key: str) -> dict[str, Any]:
        return {"uri": servers["a"].uri, "name": f"region {key}"}

    group = make_group(options_of)
    registry, collector = CollectorRegistry(), PoolCollector(group)
    registry.register(collector)
    busy = ("wspool_connection_use_duration_seconds_count", frozenset({"region x"}))
    for _ in range(2):
        async with group.get_connection("x"):
            pass
        await asyncio.sleep(0)
        assert scraped(registry)[busy] == 1
        group.remove("x")
        await until(lambda: not group.snapshot().members, "it is closed")
        assert busy not in scraped(registry)
        async with group.get_connection("y"):  # what is gone is forgotten with the next
            pass
        await asyncio.sleep(0)
        group.remove("y")
        await until(lambda: not group.snapshot().members, "it is closed")


async def test_a_group_that_is_gone_vanishes(servers: Servers) -> None:
    pytest.importorskip("prometheus_client")
    from prometheus_client import CollectorRegistry

    from wspool.prometheus import PoolCollector

    registry, collector = CollectorRegistry(), PoolCollector()
    registry.register(collector)
    group = WebsocketPools(uris(servers, "a"), max_connections=1, name="g")
    collector.add(group)
    assert any("g-1" in key[1] for key in scraped(registry))
    gone = weakref.ref(group)
    del group
    gc.collect()
    assert gone() is None
    assert not any("g-1" in key[1] for key in scraped(registry))


async def test_opentelemetry_is_told_the_same(servers: Servers, make_group: MakeGroup) -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    from wspool.opentelemetry import instrument

    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    group = make_group(uris(servers, "ab"), name="g", max_connections=1)
    end = instrument(group, provider)
    async with group.get_connection("a"):
        with pytest.raises(ConnectionPoolTimeoutError):
            await group.acquire(timeout=0.01)
    await asyncio.sleep(0)
    data: Any = reader.get_metrics_data()
    points = {
        (metric.name, frozenset(point.attributes.values())): point
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
        for point in metric.data.data_points
    }

    def number(name: str, *attributes: str) -> float:
        return points[f"wspool.{name}", frozenset(attributes)].value  # type: ignore[no-any-return]

    assert number("connection.count", "g-1", State.IDLE) == 1
    assert number("connection.timeouts", "g") == 1
    assert number("group.max", "g") == number("group.places", "g") == 1
    assert number("group.member_in", "g", "g-2") == 1
    assert points["wspool.connection.use_time", frozenset({"g-1"})].count == 1
    end()
    provider.shutdown()


async def test_keys_that_are_broken_break_nothing_but_their_own_use(
    servers: Servers, make_group: MakeGroup
) -> None:
    class Broken:
        def __hash__(self) -> int:
            return 7

        def __eq__(self, other: object) -> bool:
            raise RuntimeError("no comparison")

        def __str__(self) -> str:
            raise RuntimeError("no text")

    group = make_group(await callable_options(servers["a"]))
    known = Broken()
    async with group.get_connection(known):
        with pytest.raises(RuntimeError, match="no comparison"):
            await group.acquire(Broken())
        with pytest.raises(TypeError, match="unhashable"):
            await group.acquire([])
        assert group.snapshot().to_dict()["members"][0]["key"] == "a Broken"
        assert pictures.picture(group)["members"]["rows"][0]["key"] == "a Broken"
    async with group.get_connection("other"), group.get_connection(known):
        assert len(group) == 2
