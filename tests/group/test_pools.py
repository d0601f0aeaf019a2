"""One door for many pools: who is served, by which, and under which total."""

from __future__ import annotations

import asyncio
import gc
import logging
import warnings
import weakref
from collections import Counter
from typing import Any

import aiohttp
import pytest

from tests.conftest import echoes, until, why_closed
from tests.group.conftest import MakeGroup, hang, key_of, uris
from wspool import (
    CloseReason,
    ConnectionBusyError,
    ConnectionPoolExhaustedError,
    ConnectionPoolTimeoutError,
    ConnectionPoolUnavailableError,
    ConnectionUnavailableError,
    WebsocketConnection,
    WebsocketPools,
)
from wspool.testing import Peer, Server

Servers = dict[str, Server]


# A mapping.


async def test_who_names_a_key_gets_a_connection_of_its_pool(
    servers: Servers, make_group: MakeGroup
) -> None:
    group = make_group(uris(servers, "ab"))
    for key in "abba":
        async with group.get_connection(key) as connection:
            assert await echoes(connection)
            assert key_of(group, connection) == key
            assert connection.uri == servers[key].uri
    assert group["a"].available_connections == 1
    assert list(group) == ["a", "b"]


async def test_who_does_not_gets_an_idle_one_before_any_is_dialled(
    servers: Servers, make_group: MakeGroup
) -> None:
    group = make_group(uris(servers, "abc"))
    async with group.get_connection("b"):
        pass
    for _ in range(5):
        async with group.get_connection() as connection:
            assert key_of(group, connection) == "b"
    assert group.total_connections == 1


async def test_spread_begins_with_another_member_each_time(
    servers: Servers, make_group: MakeGroup
) -> None:
    group = make_group(uris(servers, "abc"))
    lent = [await group.acquire() for _ in range(6)]
    assert Counter(key_of(group, one) for one in lent) == dict.fromkeys("abc", 2)
    for connection in lent:
        await group.release(connection)


async def test_first_takes_the_next_member_only_when_the_first_is_full(
    servers: Servers, make_group: MakeGroup
) -> None:
    options = uris(servers, "ab")
    options["a"]["max_connections"] = 2
    group = make_group(options, choose="first")
    lent = [await group.acquire() for _ in range(3)]
    assert [key_of(group, one) for one in lent] == ["a", "a", "b"]
    for connection in lent:
        await group.release(connection)


async def test_who_waits_is_served_by_whichever_member_has_one_first(
    servers: Servers, make_group: MakeGroup
) -> None:
    """Although another member dials for it: and then it is in no line any more."""
    group = make_group(uris(servers, "ab"), max_connections=2, acquire_timeout=None)
    lent = {key: await group.acquire(key) for key in "ab"}
    for key in "ab":
        waiting = asyncio.create_task(group.acquire())
        await until(lambda: group.waiters == 1, "it waits")
        await group.release(lent[key])
        connection = await waiting
        assert key_of(group, connection) == key
        assert group.waiters == 0
        assert group["a"].waiters == group["b"].waiters == 0
        lent[key] = connection
    for connection in lent.values():
        await group.release(connection)


async def test_who_waits_is_served_in_order_of_arrival_with_or_without_a_key(
    servers: Servers, make_group: MakeGroup
) -> None:
    group = make_group(uris(servers, "ab"), max_connections=1, acquire_timeout=None)
    holding = await group.acquire("a")
    order: list[str] = []

    async def borrow(name: str, key: str | None) -> None:
        async with group.get_connection(key):
            order.append(name)

    tasks = []
    for place, key in enumerate(["b", None, "a", None, "b"]):
        tasks.append(asyncio.create_task(borrow(str(place), key)))
        await until(lambda n=place + 1: group.waiters == n, "it waits")
    await group.release(holding)
    async with asyncio.timeout(20):
        await asyncio.gather(*tasks)
    assert order == list("01234")


async def test_one_that_is_cancelled_in_the_tick_in_which_it_is_served_passes_it_on(
    servers: Servers, make_group: MakeGroup
) -> None:
    group = make_group(uris(servers, "ab"), max_connections=1, acquire_timeout=None)
    holding = await group.acquire("a")
    first = asyncio.create_task(group.acquire())
    await until(lambda: group.waiters == 1, "it waits")
    second = asyncio.create_task(group.acquire())
    await until(lambda: group.waiters == 2, "it waits, too")
    await group.release(holding)
    first.cancel()
    connection = await second
    assert first.cancelled()
    assert connection.id == holding.id
    await group.release(connection)
    assert group["a"].available_connections == 1


async def test_one_that_is_lost_in_the_tick_in_which_it_is_served_is_not_lent(
    servers: Servers, make_group: MakeGroup
) -> None:
    group = make_group(uris(servers, "ab"), max_connections=1, acquire_timeout=None)
    holding = await group.acquire("a")
    waiting = asyncio.create_task(group.acquire())
    await until(lambda: group.waiters == 1, "it waits")
    await group.release(holding)
    link = holding._link
    assert link is not None
    link.close(CloseReason.ERROR)
    async with asyncio.timeout(10):
        connection = await waiting
    assert connection.is_connected
    assert await echoes(connection)
    await group.release(connection)


async def test_the_next_member_is_asked_in_the_same_call_when_one_refuses(
    servers: Servers, make_group: MakeGroup
) -> None:
    options = uris(servers, "ab")
    options["a"]["max_retries"] = 1
    group = make_group(options, choose="first")
    servers["a"].refuse(401)
    async with group.get_connection() as connection:
        assert key_of(group, connection) == "b"


async def test_the_next_member_is_asked_at_the_first_failed_attempt(
    servers: Servers, make_group: MakeGroup
) -> None:
    """The retries, which take seconds, are for the member; nobody waits for them here."""
    group = make_group(uris(servers, "ab"), choose="first")
    for _ in range(3):
        servers["a"].refuse(503)
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with group.get_connection() as connection:
        assert key_of(group, connection) == "b"
    assert group["a"].stats.dial_failures >= 1
    assert loop.time() - began < 5


async def test_when_all_refuse_the_last_refusal_is_the_error(
    servers: Servers, make_group: MakeGroup
) -> None:
    group = make_group(uris(servers, "ab"), max_retries=1)
    for key in "ab":
        servers[key].refuse(403)
    with pytest.raises(ConnectionUnavailableError, match="403"):
        await group.acquire(timeout=5)
    assert group.waiters == 0


async def test_a_member_that_is_removed_lets_its_loans_end_and_serves_nobody_else(
    servers: Servers, make_group: MakeGroup
) -> None:
    group = make_group(uris(servers, "ab"))
    connection = await group.acquire("a")
    group.remove("a")
    assert list(group) == ["b"]
    with pytest.raises(KeyError):
        group.get_connection("a")
    async with group.get_connection() as other:
        assert key_of(group, other) == "b"
    assert await echoes(connection)
    await group.release(connection)
    await until(lambda: not connection.is_connected, "it closes")


async def test_one_that_waits_for_a_member_that_is_removed_goes_on_to_the_next(
    servers: Servers, make_group: MakeGroup
) -> None:
    options = uris(servers, "ab")
    options["a"]["on_connect"] = hang
    group = make_group(options, choose="first")
    waiting = asyncio.create_task(group.acquire())
    await until(lambda: group["a"].waiters, "it waits for the dial")
    group.remove("a")
    connection = await waiting
    assert key_of(group, connection) == "b"
    await group.release(connection)


async def test_prefer_finds_the_context_in_whichever_member(
    servers: Servers, make_group: MakeGroup
) -> None:
    group = make_group(uris(servers, "abc"))
    lent = [await group.acquire(key) for key in "abc"]
    lent[1].context = "mine"
    for connection in lent:
        await group.release(connection)
    for _ in range(4):
        async with group.get_connection(prefer="mine") as connection:
            assert connection.context == "mine"
        async with group.get_connection() as connection:
            assert connection.context is None


# The total.


async def test_no_more_sockets_than_the_total_and_the_longest_idle_one_goes(
    servers: Servers, make_group: MakeGroup
) -> None:
    group = make_group(uris(servers, "abc"), max_connections=2)
    oldest = await group.acquire("a")
    await group.release(oldest)
    async with group.get_connection("b"):
        pass
    async with group.get_connection("c") as connection:
        assert await echoes(connection)
        assert group.total_connections == 2
    assert why_closed(oldest) == CloseReason.ROOM


@pytest.mark.parametrize("key", ["b", None])
async def test_at_the_total_who_may_not_wait_hears_so_at_once(
    servers: Servers, make_group: MakeGroup, key: str | None
) -> None:
    group = make_group(uris(servers, "ab"), max_connections=1)
    async with group.get_connection("a"):
        with pytest.raises(ConnectionPoolExhaustedError, match="max=1"):
            await group.acquire(key)
        with pytest.raises(ConnectionPoolTimeoutError):
            await group.acquire(key, timeout=0.05)
    assert group.waiters == 0
    async with group.get_connection(key) as connection:
        assert await echoes(connection)


# An async callable.


async def test_a_hundred_first_uses_of_a_key_make_one_pool(
    servers: Servers, make_group: MakeGroup
) -> None:
    calls: list[str] = []

    async def options_of(key: str) -> dict[str, Any]:
        calls.append(key)
        await asyncio.sleep(0.01)
        return {"uri": servers["a"].uri, "headers": {"X-Key": key}}

    group = make_group(options_of, max_connections=5, acquire_timeout=None)

    async def use() -> None:
        async with group.get_connection("k") as connection:
            assert await echoes(connection)

    await asyncio.gather(*(use() for _ in range(100)))
    assert calls == ["k"]
    assert len(group) == 1
    assert group.total_connections <= 5


async def test_options_of_that_raises_fails_only_those_who_wait_for_it(
    servers: Servers, make_group: MakeGroup
) -> None:
    calls = 0

    async def options_of(key: str) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise LookupError("no such customer")
        return {"uri": servers["a"].uri}

    group = make_group(options_of)
    with pytest.raises(LookupError, match="no such customer"):
        await group.acquire("k")
    async with group.get_connection("k") as connection:
        assert await echoes(connection)


async def test_one_of_those_who_wait_for_the_making_may_be_cancelled(
    servers: Servers, make_group: MakeGroup
) -> None:
    go_on = asyncio.Event()

    async def options_of(key: str) -> dict[str, Any]:
        await go_on.wait()
        return {"uri": servers["a"].uri}

    group = make_group(options_of)
    first, second = (asyncio.create_task(group.acquire("k")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})
    go_on.set()
    await group.release(await second)


async def test_the_making_counts_towards_the_timeout(make_group: MakeGroup) -> None:
    async def options_of(key: str) -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    group = make_group(options_of)
    with pytest.raises(ConnectionPoolTimeoutError, match="options_of"):
        await group.acquire("k", timeout=0.05)


async def test_a_pool_that_is_empty_for_idle_timeout_closes_and_is_made_anew(
    servers: Servers, make_group: MakeGroup
) -> None:
    async def options_of(key: str) -> dict[str, Any]:
        return {"uri": servers["a"].uri, "idle_timeout": 0.1, "cleanup_interval": 0.05}

    group = make_group(options_of)
    async with group.get_connection("k"):
        pool = group["k"]
    await until(lambda: "k" not in group, "it is gone")
    await until(lambda: pool.is_closed, "it is closed")
    async with group.get_connection("k") as connection:
        assert await echoes(connection)
        assert group["k"] is not pool


async def test_a_pool_that_goes_between_the_look_up_and_the_use_is_made_anew(
    servers: Servers, make_group: MakeGroup
) -> None:
    async def options_of(key: str) -> dict[str, Any]:
        return {"uri": servers["a"].uri}

    group = make_group(options_of)
    async with group.get_connection("k"):
        pass
    looked_up = group.get_connection("k")
    group.remove("k")
    async with looked_up as connection:
        assert await echoes(connection)


async def test_keys_stand_in_no_log(
    servers: Servers, make_group: MakeGroup, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "sk-live-0123456789"

    async def options_of(key: str) -> dict[str, Any]:
        return {"uri": servers["a"].uri, "headers": {"Authorization": key}, "max_retries": 1}

    group = make_group(options_of)
    async with group.get_connection(secret):
        pass
    servers["a"].refuse(401)
    group.expire_connections(secret)
    with pytest.raises(ConnectionUnavailableError) as caught:
        await group.acquire(secret)
    group.remove(secret)
    assert secret not in caplog.text
    assert secret not in str(caught.value) + repr(group)
    assert len(caplog.records) > 3


# Misuse, and the end.


async def test_wrong_arguments_are_named(servers: Servers) -> None:
    async def options_of(key: str) -> dict[str, Any]:
        return {}

    wrong: list[tuple[Any, dict[str, Any], str]] = [
        ({}, {}, "options_of"),
        ("ws://a", {}, "options_of"),
        (uris(servers, "a"), {"choose": "best"}, "choose"),
        (uris(servers, "a"), {"max_connections": 0}, "max_connections"),
        (uris(servers, "a"), {"acquire_timeout": -1}, "acquire_timeout"),
        (uris(servers, "a"), {"idle_timeout": -1}, "idle_timeout"),
    ]
    for given, arguments, name in wrong:
        with pytest.raises((TypeError, ValueError), match=name):
            WebsocketPools(given, **{"max_connections": 1} | arguments)
    group = WebsocketPools(options_of, max_connections=1)
    with pytest.raises(TypeError, match="key"):
        group.get_connection()
    with pytest.raises(KeyError):
        WebsocketPools(uris(servers, "a"), max_connections=1).get_connection("b")


async def test_a_loan_is_borrowed_once(servers: Servers, make_group: MakeGroup) -> None:
    group = make_group(uris(servers, "ab"))
    for key in ("a", None):
        loan = group.get_connection(key)
        async with loan:
            pass
        with pytest.raises(ConnectionBusyError):
            async with loan:
                pass


async def test_what_another_lends_is_not_released_here(
    servers: Servers, make_group: MakeGroup, caplog: pytest.LogCaptureFixture
) -> None:
    group, other = make_group(uris(servers, "a")), make_group(uris(servers, "a"))
    async with other.get_connection() as connection:
        await group.release(connection)
        assert "not lent by this group" in caplog.text
        assert await echoes(connection)


async def test_closing_ends_all_waits_and_borrowers_may_finish(
    servers: Servers, make_group: MakeGroup
) -> None:
    group = make_group(uris(servers, "ab"), max_connections=1, acquire_timeout=None)
    connection = await group.acquire("a")
    waiting = [asyncio.create_task(group.acquire(key)) for key in ("a", "b", None)]
    await until(lambda: group.waiters == 3, "they wait")
    closing = asyncio.create_task(group.close_all(None))
    await asyncio.wait(waiting)
    for task in waiting:
        assert isinstance(task.exception(), ConnectionPoolUnavailableError)
    assert await echoes(connection)
    await group.release(connection)
    await closing
    for key in ("a", None):
        with pytest.raises(ConnectionPoolUnavailableError):
            await group.acquire(key)


async def test_a_picture_has_the_members_with_their_keys(
    servers: Servers, make_group: MakeGroup
) -> None:
    group = make_group(uris(servers, "ab"), name="regions")
    async with group.get_connection("a"):
        group.eject("b", 60)
        picture = group.snapshot()
        shown = picture.to_dict()
    assert [member.key for member in picture.members] == ["a", "b"]
    assert [member.is_in for member in picture.members] == [True, False]
    assert picture.members[1].why == "ejected"
    assert shown["members"][0]["pool"]["counts"]["busy"] == 1
    assert picture.total_connections == 1
    assert "regions" in repr(group)


async def test_who_may_not_wait_hears_so_at_once_beside_a_dial_that_has_no_place(
    servers: Servers, make_group: MakeGroup
) -> None:
    """The dial was begun for one whose time was up."""
    group = make_group(uris(servers, "ab"), max_connections=1)
    async with group.get_connection():
        with pytest.raises(ConnectionPoolTimeoutError):
            await group.acquire(timeout=0.01)
        assert any(group[key]._router.queues.connecting for key in "ab")
        async with asyncio.timeout(1):
            with pytest.raises(ConnectionPoolExhaustedError, match="max_connections allows"):
                await group.acquire()


async def test_one_that_waits_for_a_pool_that_is_removed_gets_its_successor(
    servers: Servers, make_group: MakeGroup
) -> None:
    """The options may have been old ones, such as a token."""
    calls: list[str] = []

    async def options_of(key: str) -> dict[str, Any]:
        calls.append(key)
        return {"uri": servers["a" if len(calls) == 1 else "b"].uri, "max_connections": 1}

    group = make_group(options_of, acquire_timeout=5.0)
    async with group.get_connection("k"):
        waiting = asyncio.create_task(group.acquire("k"))
        await until(lambda: group.waiters, "it waits")
        group.remove("k")
        connection = await waiting
        assert connection.uri == servers["b"].uri
        await group.release(connection)
    assert calls == ["k", "k"]


async def test_one_that_waits_for_a_key_that_the_mapping_has_no_more_hears_so(
    servers: Servers, make_group: MakeGroup
) -> None:
    group = make_group(uris(servers, "ab"), max_connections=1, acquire_timeout=5.0)
    async with group.get_connection("a"):
        waiting = asyncio.create_task(group.acquire("a"))
        await until(lambda: group.waiters, "it waits")
        group.remove("a")
        with pytest.raises(ConnectionPoolUnavailableError):
            await waiting
        with pytest.raises(KeyError):
            group.get_connection("a")


async def test_options_of_that_is_cancelled_from_within_says_so(make_group: MakeGroup) -> None:
    async def options_of(key: str) -> dict[str, Any]:
        raise asyncio.CancelledError

    group = make_group(options_of)
    with pytest.raises(ConnectionPoolUnavailableError, match="options_of was cancelled"):
        await group.acquire("k")


async def test_closing_while_a_probe_is_under_way_ends_it(
    servers: Servers, make_group: MakeGroup
) -> None:
    options = uris(servers, "ab")
    options["a"]["on_connect"] = hang
    group = make_group(options)
    async with group.get_connection("b"):
        group.eject("a", 0.01)
        await until(lambda: group["a"]._router.queues.connecting, "it is being probed")
        assert group.waiters == 0
    async with asyncio.timeout(5):
        await group.close_all()
    assert not group._roster._tasks


@pytest.mark.parametrize("is_fixed", [True, False])
async def test_a_group_that_is_dropped_is_kept_by_none_of_its_timers(
    servers: Servers, is_fixed: bool
) -> None:
    async def options_of(key: str) -> dict[str, Any]:
        return {"uri": servers["a"].uri}

    options = uris(servers, "ab") if is_fixed else options_of
    session = aiohttp.ClientSession()
    group = WebsocketPools(options, max_connections=2, session=session)
    group._roster.enter()
    if is_fixed:
        group.eject("a", 60)
    assert group._roster._timers or group._roster._tidying
    gone = weakref.ref(group._roster)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it was not closed
        del group
        gc.collect()
    assert gone() is None
    await session.close()


async def moody(peer: Peer) -> None:
    async for message in peer:
        if message == "drop" and peer.number == 1:
            return peer.drop()
        await peer.send(message)
    return None


async def say(connection: WebsocketConnection, word: str) -> str | bytes:
    await connection.send(word)
    return await connection.recv()


async def test_work_whose_connection_was_lost_does_not_wait_for_a_member_that_is_full(
    servers: Servers, make_group: MakeGroup
) -> None:
    servers["a"].handler = moody
    options = uris(servers, "ab")
    options["b"]["max_connections"] = 1
    group = make_group(options, choose="first")
    async with group.get_connection("b"):
        assert await group.run(say, "hello") == "hello"
        assert await group.run(say, "drop") == "drop"
    assert len(servers["a"].requests) == 2


async def test_work_with_a_key_waits_both_times_for_as_long_as_its_pool_says(
    servers: Servers, make_group: MakeGroup
) -> None:
    servers["a"].handler = moody
    options = uris(servers, "a")
    options["a"].update(max_connections=1, acquire_timeout=10.0)
    group = make_group(options)
    before: list[asyncio.Task[None]] = []

    async def take() -> None:
        async with group.get_connection("a"):
            await until(lambda: group.waiters == 1, "the work waits for its second connection")

    async def drop(connection: WebsocketConnection) -> str | bytes:
        if not before:
            before.append(asyncio.create_task(take()))
            await until(lambda: group.waiters == 1, "another waits before it")
        return await say(connection, "drop")

    assert await group.run(say, "hello", key="a") == "hello"
    assert await group.run(drop, key="a") == "drop"
    await before[0]
