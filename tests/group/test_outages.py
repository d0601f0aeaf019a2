"""A member whose server fails is out, and comes back by a probe of the group's own."""

from __future__ import annotations

import asyncio

import pytest

from tests.conftest import echoes, until
from tests.group.conftest import MakeGroup, hang, key_of, uris
from tests.support.inside import wire_of
from wspool import (
    ConnectionClosedError,
    ConnectionUnavailableError,
    LocalQuota,
    WebsocketPools,
)
from wspool._group import health, roster
from wspool._pool.gate import Gate
from wspool.testing import Peer, Server

Servers = dict[str, Server]


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a member be out for a tenth of a second, and live after a twentieth."""
    monkeypatch.setattr(health, "PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(roster, "EARLY_SECONDS", 0.05)


def is_in(group: WebsocketPools, key: str) -> bool:
    return group._roster.members[key].health.is_in


async def refuse_once(group: WebsocketPools, server: Server, key: str) -> None:
    server.refuse(403)
    with pytest.raises(ConnectionUnavailableError):
        await group.acquire(key)


async def test_a_dial_that_fails_for_good_puts_a_member_out(
    servers: Servers, make_group: MakeGroup
) -> None:
    group = make_group(uris(servers, "ab"), choose="first")
    await refuse_once(group, servers["a"], "a")
    [shown, _] = group.snapshot().members
    assert not shown.is_in
    assert "403" in shown.why
    assert shown.out_until is not None
    for _ in range(3):
        async with group.get_connection() as connection:
            assert key_of(group, connection) == "b"


async def test_who_names_its_key_uses_it_all_the_same(
    servers: Servers, make_group: MakeGroup
) -> None:
    group = make_group(uris(servers, "ab"))
    await refuse_once(group, servers["a"], "a")
    async with group.get_connection("a") as connection:
        assert await echoes(connection)
    assert not is_in(group, "a")


async def test_no_more_than_half_of_the_members_are_out(
    servers: Servers, make_group: MakeGroup
) -> None:
    group = make_group(uris(servers, "abc"))
    for key in "abc":
        await refuse_once(group, servers[key], key)
    assert [is_in(group, key) for key in "abc"] == [False, True, True]


async def drop_at_x(peer: Peer) -> None:
    async for message in peer:
        if message == "x":
            peer.drop()
            return
        await peer.send(message)


async def lose_one(group: WebsocketPools, key: str) -> None:
    """Lose a connection in a loan in which it was of use."""
    async with group.get_connection(key) as connection:
        assert await echoes(connection)
        await connection.send("x")
        with pytest.raises(ConnectionClosedError):
            await connection.recv()


async def test_five_losses_in_loans_in_a_row_put_it_out(make_group: MakeGroup) -> None:
    async with Server(drop_at_x) as dropping, Server() as well:
        group = make_group({"a": {"uri": dropping.uri}, "b": {"uri": well.uri}})
        for count in range(1, 6):
            await lose_one(group, "a")
            assert is_in(group, "a") == (count < 5)
        assert "5 connections were lost in a row" in group.snapshot().members[0].why


async def test_a_loan_that_ends_well_begins_the_row_anew(make_group: MakeGroup) -> None:
    async with Server(drop_at_x) as dropping, Server() as well:
        group = make_group({"a": {"uri": dropping.uri}, "b": {"uri": well.uri}})
        for _ in range(3):
            for _ in range(4):
                await lose_one(group, "a")
            async with group.get_connection("a") as connection:
                assert await echoes(connection)
        assert is_in(group, "a")


async def test_a_loan_whose_connection_is_lost_unnoticed_has_not_ended_well(
    make_group: MakeGroup,
) -> None:
    async with Server(drop_at_x) as dropping, Server() as well:
        group = make_group({"a": {"uri": dropping.uri}, "b": {"uri": well.uri}})
        for _ in range(4):
            await lose_one(group, "a")
        async with group.get_connection("a") as connection:
            assert await echoes(connection)
            await connection.send("x")
            await until(wire_of(connection).has_unread, "the end of file has come")
        await lose_one(group, "a")
        assert not is_in(group, "a")


async def test_it_comes_back_by_a_probe_that_has_lived_and_not_by_a_borrower(
    servers: Servers, make_group: MakeGroup, short_pauses: None
) -> None:
    group = make_group(uris(servers, "ab"), choose="first")
    await refuse_once(group, servers["a"], "a")
    before = group["a"].stats.borrows
    await until(lambda: is_in(group, "a"), "it is in again")
    assert group["a"].stats.borrows == before
    async with group.get_connection() as connection:
        assert key_of(group, connection) == "a"
        assert not connection.reused


async def test_a_probe_leaves_the_greeting_to_the_first_borrower(
    make_group: MakeGroup, short_pauses: None
) -> None:
    async def greet(peer: Peer) -> None:
        await peer.send("welcome")
        async for message in peer:
            await peer.send(message)

    async with Server(greet) as greeting, Server() as well:
        group = make_group({"a": {"uri": greeting.uri}, "b": {"uri": well.uri}}, choose="first")
        group.eject("a", 0.05)
        await until(lambda: is_in(group, "a"), "it is in again")
        async with group.get_connection() as connection:
            assert await connection.recv() == "welcome"


async def test_a_probe_that_fails_is_repeated_until_one_lives(
    servers: Servers, make_group: MakeGroup, short_pauses: None, no_backoff: None
) -> None:
    group = make_group(uris(servers, "ab"), choose="first", max_retries=1)
    for _ in range(4):
        servers["a"].refuse(403)
    with pytest.raises(ConnectionUnavailableError):
        await group.acquire("a")
    await until(lambda: is_in(group, "a"), "it is in again")
    assert group["a"].stats.dial_failures == 4


async def test_one_that_waits_is_served_by_a_member_that_comes_back(
    servers: Servers, make_group: MakeGroup, short_pauses: None
) -> None:
    options = uris(servers, "ab")
    options["b"]["max_connections"] = 1
    group = make_group(options, acquire_timeout=None)
    async with group.get_connection("b"):
        group.eject("a", 0.3)
        async with asyncio.timeout(10), group.get_connection() as connection:
            assert key_of(group, connection) == "a"


async def test_one_that_a_member_dialled_for_when_it_was_put_out_is_served_by_another(
    servers: Servers, make_group: MakeGroup
) -> None:
    options = uris(servers, "ab")
    options["a"]["on_connect"] = hang
    group = make_group(options, choose="first")
    waiting = asyncio.create_task(group.acquire())
    await until(lambda: group["a"].waiters, "it waits for the dial")
    group.eject("a", 60)
    connection = await waiting
    assert key_of(group, connection) == "b"
    await group.release(connection)


async def test_with_all_out_the_one_that_is_due_first_is_tried(
    servers: Servers, make_group: MakeGroup
) -> None:
    group = make_group(uris(servers, "abc"))
    for key, seconds in (("a", 60), ("b", 30), ("c", 90)):
        group.eject(key, seconds)
    for _ in range(3):
        async with group.get_connection() as connection:
            assert key_of(group, connection) == "b"


async def test_a_member_that_always_refuses_costs_the_others_nothing(
    servers: Servers, make_group: MakeGroup
) -> None:
    """It is dialled once, and then left alone until its probe is due."""
    for _ in range(50):
        servers["a"].refuse(503)
    group = make_group(uris(servers, "ab"), max_retries=1, acquire_timeout=5.0)

    async def borrow() -> None:
        for _ in range(20):
            async with group.get_connection() as connection:
                assert key_of(group, connection) == "b"
                assert await echoes(connection)

    await asyncio.gather(*(borrow() for _ in range(8)))
    assert group["a"].stats.dial_failures <= 8
    assert not is_in(group, "a")


async def test_however_many_members_are_down_each_is_asked_and_the_last_ones_refusal_is_the_error(
    make_group: MakeGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have been down for long: none of them will dial so soon that one may wait for it."""
    failure = ConnectionUnavailableError("refused", kind="connect")
    options = {key: {"uri": "ws://127.0.0.1:9/"} for key in range(300)}
    group = make_group(options)
    monkeypatch.setattr(Gate, "failure", property(lambda gate: failure), raising=False)
    due = property(lambda gate: asyncio.get_running_loop().time() + 1000.0, lambda gate, at: None)
    monkeypatch.setattr(Gate, "next_attempt", due, raising=False)
    for member in group._roster.members.values():
        member.router.gate.streak = 5
    with pytest.raises(ConnectionUnavailableError, match="refused"):
        await group.acquire()
    assert group.waiters == 0


async def test_a_member_whose_quota_gives_nothing_keeps_nobody_from_the_others(
    servers: Servers, make_group: MakeGroup
) -> None:
    """One member's dial waits for the quota already when the second borrower comes."""
    options = uris(servers, "ab")
    options["a"]["quota"] = quota = LocalQuota(1)
    lease = await quota.acquire()
    group = make_group(options, max_connections=4, choose="first", acquire_timeout=5.0)
    for count in range(1, 4):
        async with asyncio.timeout(2):
            connection = await group.acquire()
        assert key_of(group, connection) == "b"
        assert group["b"].busy_connections == count
    quota.release(lease)
    await group.close_all()
