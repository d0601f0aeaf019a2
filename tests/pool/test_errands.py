"""What the pool borrows connections for: checks before a hand-out, and keepalives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import MakePool, echoes, until
from tests.support.inside import ids_of, link_of, router_of, wire_of
from wspool import (
    CloseReason,
    ConnectionBusyError,
    ConnectionPoolExhaustedError,
    ConnectionPoolTimeoutError,
    State,
    WebsocketConnection,
    WebsocketConnectionPool,
)
from wspool.testing import Peer, Server, echo

ALWAYS: dict[str, Any] = {"check_after_idle": 0.0}
"""Options under which every idle connection is checked before it is lent."""


@pytest.fixture
def soon_mute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a check take a connection for mute after a tenth of the usual time."""
    monkeypatch.setattr("wspool._pool.errands.CHECK_SECONDS", 0.05)


async def made_idle(pool: WebsocketConnectionPool, count: int = 1) -> list[WebsocketConnection]:
    """Open this many connections and leave them idle; the last one was given back last."""
    connections = [await pool.acquire() for _ in range(count)]
    for connection in connections:
        await pool.release(connection)
    await until(lambda: pool.available_connections == count, "they are idle")
    return connections


def why_closed(connection: WebsocketConnection) -> str:
    assert connection.state is State.CLOSED
    return connection.history[-1].why


def triggers(connection: WebsocketConnection) -> list[tuple[str, str]]:
    return [(move.trigger, move.why) for move in connection.history]


# Checks.


async def test_a_connection_that_answers_a_ping_is_lent(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool(**ALWAYS)
    [connection] = await made_idle(pool)
    async with pool.get_connection() as again:
        assert again.id == connection.id
        assert await echoes(again)
    assert triggers(connection)[3:6] == [
        ("checkout", "check"),
        ("checkin", "check"),
        ("checkout", "acquire"),
    ]
    assert connection.rtt is not None
    assert len(server.requests) == 1


async def test_a_check_is_no_use(server: Server, make_pool: MakePool) -> None:
    pool = make_pool(**ALWAYS)
    [connection] = await made_idle(pool)
    server.peers[0].mute()
    link = link_of(connection)
    uses, borrows, idle_since = link.uses, pool.stats.borrows, link.idle_since
    task = asyncio.create_task(pool.acquire())
    await until(lambda: connection.is_busy, "it is being checked")
    task.cancel()
    server.peers[0].unmute()
    await until(lambda: not connection.is_busy, "the check is over")
    assert (link.uses, pool.stats.borrows) == (uses, borrows)
    assert link.idle_since == idle_since


async def test_a_connection_that_was_idle_for_less_is_not_checked(make_pool: MakePool) -> None:
    pool = make_pool(check_after_idle=3600)
    [connection] = await made_idle(pool)
    await pool.release(await pool.acquire())
    assert connection.rtt is None


async def test_nobody_else_has_a_connection_that_is_being_checked(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool(**ALWAYS)
    [connection] = await made_idle(pool)
    server.peers[0].mute()
    task = asyncio.create_task(pool.acquire())
    await until(lambda: connection.is_busy, "it is being checked")
    [shown] = pool.connections
    for nobodys, why in [(connection, "is over"), (shown, "it is busy and not lent")]:
        with pytest.raises(ConnectionBusyError, match=why):
            await nobodys.send("mine")
    server.peers[0].unmute()
    await pool.release(await task)


async def test_strays_during_a_check_reach_no_borrower(server: Server, make_pool: MakePool) -> None:
    drained: list[str | bytes] = []
    pool = make_pool(**ALWAYS, on_drained=lambda _, message: drained.append(message))
    [connection] = await made_idle(pool)
    peer = server.peers[0]
    peer.mute()
    task = asyncio.create_task(pool.acquire())
    await until(lambda: connection.is_busy, "it is being checked")
    await peer.send("stray")
    await until(lambda: drained == ["stray"], "the check has read it")
    peer.unmute()
    again = await task
    assert again.id == connection.id
    assert await echoes(again)
    await pool.release(again)


@pytest.mark.usefixtures("soon_mute")
async def test_a_mute_one_is_closed_and_a_dial_takes_its_place(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool(**ALWAYS, max_connections=1, close_timeout=60.0)
    [connection] = await made_idle(pool)
    server.peers[0].mute()
    async with pool.get_connection(timeout=5.0) as another:
        assert another.id != connection.id
        assert await echoes(another)
    assert why_closed(connection) == CloseReason.STALE
    server.peers[0].unmute()


@pytest.mark.usefixtures("soon_mute")
async def test_after_a_mute_one_the_rest_of_its_age_is_asked_beside_a_dial(
    server: Server, make_pool: MakePool
) -> None:
    """One check at first; once it is not answered all the others at once, and a dial."""
    pool = make_pool(**ALWAYS)
    connections = await made_idle(pool, 5)
    for peer in server.peers:
        peer.mute()
    task = asyncio.create_task(pool.acquire(timeout=10.0))
    await until(lambda: pool.busy_connections, "the check has begun")
    assert [c for c in connections if c.is_busy] == [connections[-1]]
    assert len(pool._router.queues.connecting) == 0
    await until(lambda: connections[-1].state is State.CLOSED, "it is found mute")
    assert [c.state for c in connections[:-1]] == [State.BUSY] * 4
    assert len(pool._router.queues.connecting) == 1
    async with asyncio.timeout(5):
        assert (await task).id not in ids_of(connections)
    await until(lambda: pool.total_connections == 1, "all of them are found mute")
    assert {why_closed(c) for c in connections} == {CloseReason.STALE}
    assert pool.stats.dials == 6
    for peer in server.peers:
        peer.unmute()


@pytest.mark.usefixtures("soon_mute")
async def test_where_all_places_are_mute_an_acquire_that_may_not_wait_gets_the_first_that_is_free(
    server: Server, make_pool: MakePool
) -> None:
    """k connections that are only being checked let k acquires wait for them, and no more."""
    pool = make_pool(**ALWAYS, max_connections=3)
    connections = await made_idle(pool, 3)
    for peer in server.peers:
        peer.mute()
    tasks = [asyncio.create_task(pool.acquire(timeout=0)) for _ in range(3)]
    await until(lambda: pool.waiters == 3, "three wait")
    with pytest.raises(ConnectionPoolExhaustedError):
        await pool.acquire(timeout=0)
    async with asyncio.timeout(5):
        lent = await asyncio.gather(*tasks)
    assert ids_of(lent).isdisjoint(ids_of(connections))
    for peer in server.peers:
        peer.unmute()


async def test_each_waiter_has_one_check(make_pool: MakePool) -> None:
    """Where all answer, two who wait cost two checks, and no dial."""
    pool = make_pool(**ALWAYS)
    connections = await made_idle(pool, 4)
    lent = await asyncio.gather(pool.acquire(), pool.acquire())
    assert ids_of(lent) == ids_of(connections[-2:])
    assert [c.rtt is not None for c in connections] == [False, False, True, True]
    assert pool.stats.dials == 4


async def test_a_deadline_ends_the_wait_for_a_check(server: Server, make_pool: MakePool) -> None:
    pool = make_pool(**ALWAYS, max_connections=1)
    [connection] = await made_idle(pool)
    server.peers[0].mute()
    with pytest.raises(ConnectionPoolTimeoutError):
        await pool.acquire(timeout=0.05)
    server.peers[0].unmute()
    await until(lambda: connection.state is State.IDLE, "the check is answered after all")


async def test_a_check_that_finds_the_connection_lost_serves_the_waiter_anew(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool(**ALWAYS, max_connections=1)
    [connection] = await made_idle(pool)
    server.peers[0].mute()
    task = asyncio.create_task(pool.acquire())
    await until(lambda: connection.is_busy, "it is being checked")
    server.peers[0].drop()
    assert await echoes(await task)
    assert why_closed(connection) == CloseReason.SERVER


async def test_a_new_connection_is_to_be_had_during_checks(
    server: Server, make_pool: MakePool
) -> None:
    """acquire_new at the limit waits for the connection that is being checked, and replaces it."""
    pool = make_pool(**ALWAYS, max_connections=1)
    [connection] = await made_idle(pool)
    server.peers[0].mute()
    task = asyncio.create_task(pool.acquire(timeout=5))
    await until(lambda: connection.is_busy, "it is being checked")
    task.cancel()
    new_task = asyncio.create_task(pool.acquire_new())
    await until(lambda: pool.waiters == 1, "it waits")
    server.peers[0].unmute()
    assert (await new_task).id != connection.id
    assert why_closed(connection) == CloseReason.ROOM


# Keepalives.


async def alive(connection: WebsocketConnection) -> None:
    await connection.send("keepalive")
    assert await connection.recv() == "keepalive"


@pytest.mark.parametrize("hook", [alive, None], ids=["a hook", "a ping"])
async def test_an_idle_connection_is_kept_alive_again_and_again(
    make_pool: MakePool, hook: Callable[..., Any] | None
) -> None:
    pool = make_pool(keepalive=hook, keepalive_interval=0.05)
    [connection] = await made_idle(pool)
    last = ("checkin", "keepalive")
    await until(lambda: triggers(connection).count(last) >= 3, "three keepalives")
    again = await pool.acquire()
    assert again.id == connection.id
    assert again.uses == 2
    assert await echoes(again)


async def test_a_keepalive_leaves_the_idle_age(make_pool: MakePool) -> None:
    pool = make_pool(
        keepalive=alive, keepalive_interval=0.05, idle_timeout=0.4, cleanup_interval=0.05
    )
    [connection] = await made_idle(pool)
    await until(lambda: connection.state is State.CLOSED, "it goes at idle_timeout")
    assert why_closed(connection) == CloseReason.IDLE
    assert ("checkin", "keepalive") in triggers(connection)


async def test_a_keepalive_leaves_the_order_of_reuse(make_pool: MakePool) -> None:
    """The last one given back is still the first to be lent, the longest idle first to go."""
    pool = make_pool(keepalive=alive, keepalive_interval=3600)
    first, second, third = await made_idle(pool, 3)
    for connection in (second, first):
        router_of(pool).errands.begin(link_of(connection), "keepalive")
        await until(lambda c=connection: not c.is_busy, "its keepalive is over")
    assert router_of(pool).attending.next_idle() is link_of(third)
    pool.resize(2)
    assert first.state is State.CLOSED
    assert second.state is State.IDLE


async def test_a_keepalive_that_raises_costs_its_connection(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(connection: WebsocketConnection) -> None:
        raise KeyError("broken")

    pool = make_pool(keepalive=broken, keepalive_interval=0.05, max_connections=1)
    [connection] = await made_idle(pool)
    await until(lambda: connection.state is State.CLOSED, "it is closed")
    assert why_closed(connection) == CloseReason.ERROR
    assert isinstance(connection.cause, KeyError)
    assert "keepalive raised" in caplog.text
    assert await echoes(await pool.acquire())


async def test_a_keepalive_that_does_not_end_costs_its_connection(make_pool: MakePool) -> None:
    async def hang(connection: WebsocketConnection) -> None:
        await asyncio.Event().wait()

    pool = make_pool(keepalive=hang, keepalive_interval=0.01, connection_timeout=0.3)
    [connection] = await made_idle(pool)
    await until(lambda: connection.state is State.CLOSED, "it is closed")
    assert why_closed(connection) == CloseReason.STALE


async def test_at_the_limit_an_acquire_waits_for_a_keepalive_whatever_its_timeout(
    make_pool: MakePool,
) -> None:
    let_go = asyncio.Event()

    async def slow(connection: WebsocketConnection) -> None:
        await let_go.wait()

    pool = make_pool(keepalive=slow, keepalive_interval=0.05, max_connections=1)
    [connection] = await made_idle(pool)
    await until(lambda: connection.is_busy, "it is being kept alive")
    task = asyncio.create_task(pool.acquire(timeout=0))
    await until(lambda: pool.waiters == 1, "it waits")
    with pytest.raises(ConnectionPoolExhaustedError):
        await pool.acquire(timeout=0)
    let_go.set()
    assert (await task).id == connection.id


async def test_below_the_limit_an_acquire_does_not_wait_for_a_keepalive(
    make_pool: MakePool,
) -> None:
    async def hang(connection: WebsocketConnection) -> None:
        await asyncio.Event().wait()

    pool = make_pool(keepalive=hang, keepalive_interval=0.05)
    [connection] = await made_idle(pool)
    await until(lambda: connection.is_busy, "it is being kept alive")
    assert (await pool.acquire()).id != connection.id


async def test_closing_does_not_wait_for_a_keepalive(make_pool: MakePool) -> None:
    async def hang(connection: WebsocketConnection) -> None:
        await asyncio.Event().wait()

    pool = make_pool(keepalive=hang, keepalive_interval=0.05)
    [connection] = await made_idle(pool)
    await until(lambda: connection.is_busy, "it is being kept alive")
    async with asyncio.timeout(5):
        await pool.close_all(timeout=None)
    assert why_closed(connection) == CloseReason.POOL


async def test_an_expired_connection_goes_when_its_keepalive_is_over(make_pool: MakePool) -> None:
    let_go = asyncio.Event()

    async def slow(connection: WebsocketConnection) -> None:
        await let_go.wait()

    pool = make_pool(keepalive=slow, keepalive_interval=0.05)
    [connection] = await made_idle(pool)
    await until(lambda: connection.is_busy, "it is being kept alive")
    pool.expire_connections()
    assert connection.is_busy
    let_go.set()
    await until(lambda: connection.state is State.CLOSED, "it goes")
    assert why_closed(connection) == CloseReason.EXPIRED


async def test_what_a_keepalive_leaves_unread_reaches_no_borrower(
    server: Server, make_pool: MakePool
) -> None:
    """The reply that a ping in the hook has read, and put aside, is a stray afterwards."""
    drained: list[str | bytes] = []

    async def careless(connection: WebsocketConnection) -> None:
        await connection.send("keepalive")
        await connection.ping()

    pool = make_pool(
        keepalive=careless,
        keepalive_interval=0.05,
        on_drained=lambda _, message: drained.append(message),
    )
    [connection] = await made_idle(pool)
    last = ("checkin", "keepalive")
    await until(lambda: last in triggers(connection), "one keepalive")
    async with pool.get_connection() as again:
        assert again.id == connection.id
        assert await echoes(again)
    assert set(drained) == {"keepalive"}


# A server that pings while a hook of the user's thinks.


@pytest.mark.parametrize("hook", ["on_connect", "on_release", "keepalive"])
async def test_pings_are_answered_while_a_hook_thinks(
    server: Server, make_pool: MakePool, hook: str
) -> None:
    thinking = asyncio.Event()
    is_lost = False

    async def think(connection: WebsocketConnection) -> None:
        nonlocal is_lost
        thinking.set()
        await asyncio.sleep(1.5)
        is_lost = wire_of(connection).is_lost

    server.websocket_options["heartbeat"] = 0.6
    options = {"keepalive_interval": 0.05} if hook == "keepalive" else {}
    pool = make_pool(**options, **{hook: think})
    connection = await pool.acquire()
    await pool.release(connection)
    await thinking.wait()
    wire = wire_of(connection)
    await until(lambda: pool.available_connections or wire.is_lost, "the hook is over")
    assert not wire.is_lost
    assert not is_lost


async def test_a_greeting_that_a_ping_in_on_connect_has_read_reaches_the_first_borrower(
    server: Server, make_pool: MakePool
) -> None:
    async def greet(peer: Peer) -> None:
        await peer.send("greeting")
        await echo(peer)

    async def on_connect(connection: WebsocketConnection) -> None:
        await connection.ping()

    server.handler = greet
    pool = make_pool(on_connect=on_connect)
    for expected in ("greeting", "mine"):
        async with pool.get_connection() as connection:
            await connection.send("mine")
            assert await connection.recv() == expected
            if expected == "greeting":
                assert await connection.recv() == "mine"
