"""Streams of a group: a share of a connection of whichever member has a free slot."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from tests.conftest import until
from tests.group.conftest import MakeGroup, hang, uris
from wspool import (
    BlockingWebsocketPools,
    CloseReason,
    ConnectionPoolExhaustedError,
    WebsocketStream,
)
from wspool.testing import Server

Servers = dict[str, Server]

SHARED: dict[str, Any] = {"max_streams": 2, "route": "id"}


async def ask(stream: WebsocketStream) -> None:
    key = stream.claim()
    await stream.send_json({"id": key})
    assert await stream.recv_json() == {"id": key}


def one_each(servers: Servers) -> dict[str, dict[str, Any]]:
    """Return the options of two pools, each of one connection."""
    return {key: {**options, "max_connections": 1} for key, options in uris(servers, "ab").items()}


def uri_of(stream: WebsocketStream) -> str:
    return stream.connection.uri


async def test_a_key_gives_a_stream_of_its_own_pool(
    servers: Servers, make_group: MakeGroup
) -> None:
    group = make_group(uris(servers, "ab"), **SHARED)
    for key in "abb":
        async with group.get_stream(key) as stream:
            assert uri_of(stream) == servers[key].uri
            await ask(stream)
    stream = await group.acquire_stream("a")
    await ask(stream)
    await group.release_stream(stream)
    assert group["a"].available_connections == group["b"].available_connections == 1


async def test_without_a_key_a_free_slot_comes_before_a_dial(
    servers: Servers, make_group: MakeGroup
) -> None:
    group = make_group(one_each(servers), **SHARED)
    streams = [await group.acquire_stream() for _ in range(4)]
    assert Counter(map(uri_of, streams)) == {servers[key].uri: 2 for key in "ab"}
    assert group.total_connections == 2
    await asyncio.gather(*map(ask, streams))
    for stream in streams:
        await group.release_stream(stream)


async def test_who_waits_gets_the_first_slot_that_is_free_of_any_member(
    servers: Servers, make_group: MakeGroup
) -> None:
    group = make_group(one_each(servers), acquire_timeout=30.0, **SHARED)
    streams = [await group.acquire_stream() for _ in range(4)]
    for key in "ab":
        waiting = asyncio.create_task(group.acquire_stream())
        await until(lambda: group.waiters == 1, "one waits")
        gone = next(one for one in streams if uri_of(one) == servers[key].uri)
        streams.remove(gone)
        await group.release_stream(gone)
        streams.append(await waiting)
        assert uri_of(streams[-1]) == servers[key].uri
    assert group.total_connections == 2
    with pytest.raises(ConnectionPoolExhaustedError, match="may not wait"):
        await group.acquire_stream(timeout=0)
    for stream in streams:
        await group.release_stream(stream)


async def test_a_crowd_of_streams_is_not_dialled_for_one_by_one(
    servers: Servers, make_group: MakeGroup
) -> None:
    group = make_group(uris(servers, "ab"), acquire_timeout=30.0, max_streams=8, route="id")
    inside = asyncio.Barrier(32)

    async def take() -> None:
        async with group.get_stream() as stream:
            await inside.wait()
            await ask(stream)

    await asyncio.gather(*(take() for _ in range(32)))
    assert sum(len(server.requests) for server in servers.values()) <= 8


async def test_a_member_that_refuses_leaves_its_streams_to_the_others(
    servers: Servers, make_group: MakeGroup
) -> None:
    await servers["a"].stop()
    group = make_group(uris(servers, "ab"), choose="first", max_retries=1, **SHARED)
    async with group.get_stream() as stream:
        assert uri_of(stream) == servers["b"].uri
        await ask(stream)
    assert not group.snapshot().members[0].is_in


async def test_a_stream_that_is_served_while_its_host_goes_out_stands_in_no_line(
    servers: Servers, make_group: MakeGroup
) -> None:
    """One who wanted a connection alone fails then, and had kept the other's from becoming fuller.

    The stream that stood behind that one, for the same host, has its slot in the same step.
    """
    options = one_each(servers)
    options["a"].update(on_connect=hang, max_connections=2)
    group = make_group(options, choose="first", **SHARED)
    first = await group.acquire_stream("b")
    alone = asyncio.create_task(group.acquire(timeout=0.0))
    await until(lambda: group["a"].waiters == 1, "a dials for the one")
    waiting = asyncio.create_task(group.acquire_stream(timeout=10.0))
    await until(lambda: group["a"].waiters == 2, "and for the other")
    group.eject("a", 60)
    with pytest.raises(ConnectionPoolExhaustedError):
        await alone
    stream = await waiting
    assert uri_of(stream) == servers["b"].uri
    assert group.waiters == group["a"].waiters == group["b"].waiters == 0
    for one in (first, stream):
        await group.release_stream(one)


async def test_a_stream_whose_connection_is_lost_before_it_runs_waits_on(
    servers: Servers, make_group: MakeGroup
) -> None:
    group = make_group(uris(servers, "a"), max_connections=1, acquire_timeout=30.0, **SHARED)
    first, other = [await group.acquire_stream() for _ in range(2)]
    waiting = asyncio.create_task(group.acquire_stream())
    await until(lambda: group.waiters == 1, "one waits")
    lost = first.connection
    link = lost._link
    assert link is not None
    # Its release serves the one that waits, which loses the connection in this very tick.
    group["a"]._router.streaming.give_back(first)
    assert group.waiters == 0
    link.close(CloseReason.SERVER)
    stream = await waiting
    assert stream.connection.id != lost.id
    await ask(stream)
    for one in (stream, other):
        await group.release_stream(one)


async def test_without_a_route_the_error_says_so(servers: Servers, make_group: MakeGroup) -> None:
    options = uris(servers, "ab")
    options["a"] |= SHARED
    group = make_group(options)
    async with group.get_stream("a") as stream:
        await ask(stream)
    with pytest.raises(ValueError, match="route"):
        group.get_stream()
    with pytest.raises(ValueError, match="route"):
        await group.acquire_stream("b")
    with pytest.raises(KeyError):
        group.get_stream("c")


async def test_what_another_group_has_lent_is_not_released(
    servers: Servers, make_group: MakeGroup, caplog: pytest.LogCaptureFixture
) -> None:
    group, other = (make_group(uris(servers, "a"), **SHARED) for _ in range(2))
    async with group.get_stream() as stream:
        await other.release_stream(stream)
        assert "not lent by this group" in caplog.text
        await ask(stream)


async def test_threads_share_the_connections_of_a_group(servers: Servers) -> None:
    def work() -> None:
        with BlockingWebsocketPools(
            uris(servers, "ab"), max_connections=2, close_timeout=1.0, **SHARED
        ) as pools:
            streams = [pools.acquire_stream() for _ in range(4)]
            for stream in streams:
                key = stream.claim()
                stream.send_json({"id": key})
                assert stream.recv_json(timeout=10) == {"id": key}
                pools.release_stream(stream)
            with pools.get_stream("b") as stream:
                assert stream.connection.uri == servers["b"].uri
            assert pools.total_connections == 2

    await asyncio.to_thread(work)
