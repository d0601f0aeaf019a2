"""What a pool tells its listeners: which events, in which order, and that they do no harm."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import random
import re
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import time
from typing import Any

import pytest

import wspool
from tests.conftest import MakePool, echoes, until
from tests.support.inside import link_of, queues_of
from wspool import (
    CloseReason,
    ConnectionPoolExhaustedError,
    ConnectionPoolTimeoutError,
    ConnectionPoolUnavailableError,
    ConnectionUnavailableError,
    State,
    WebsocketConnection,
    WebsocketConnectionPool,
    WebsocketError,
    events,
)
from wspool.events import (
    CheckOutFailure,
    ConnectionChecked,
    ConnectionCheckedIn,
    ConnectionCheckedOut,
    ConnectionCheckOutFailed,
    ConnectionCheckOutStarted,
    ConnectionClosed,
    ConnectionCreated,
    ConnectionDrained,
    ConnectionDrainStarted,
    ConnectionReady,
    Event,
    LimitLearned,
    LoanRepeated,
    PoolCleared,
    PoolClosed,
    PoolReady,
    StreamCheckedIn,
    StreamCheckedOut,
    StreamDrained,
    StreamOverflowed,
)
from wspool.testing import Server

pytestmark = pytest.mark.usefixtures("no_backoff")

FIELDS: dict[type[Event], list[str]] = {
    PoolReady: [],
    PoolCleared: [],
    PoolClosed: [],
    ConnectionCreated: ["connection_id"],
    ConnectionReady: ["connection_id", "duration"],
    ConnectionClosed: ["connection_id", "state", "reason", "code", "close_reason", "age"],
    ConnectionCheckOutStarted: [],
    ConnectionCheckOutFailed: ["reason", "duration"],
    ConnectionCheckedOut: ["connection_id", "duration"],
    ConnectionCheckedIn: ["connection_id", "duration"],
    ConnectionDrainStarted: ["connection_id"],
    ConnectionDrained: ["connection_id", "duration"],
    ConnectionChecked: ["connection_id", "errand", "duration"],
    LimitLearned: ["limit", "why"],
    LoanRepeated: ["connection_id"],
    StreamCheckedOut: ["connection_id", "slot", "number", "duration"],
    StreamCheckedIn: ["connection_id", "slot", "number", "duration"],
    StreamDrained: ["connection_id", "slot", "number", "duration"],
    StreamOverflowed: ["connection_id", "slot", "number", "unread_bytes"],
}
"""Every event, and its fields beside `pool` and `at`."""

FIRST_LOAN: list[type[Event]] = [
    ConnectionCheckOutStarted,
    ConnectionCreated,
    ConnectionReady,
    ConnectionCheckedOut,
]


def heard_from(pool: WebsocketConnectionPool) -> list[Any]:
    """Return a list that will have every event from now on."""
    heard: list[Any] = []
    pool.subscribe(heard.append)
    return heard


def kinds(heard: list[Any]) -> list[type[Event]]:
    return [type(event) for event in heard]


async def told(heard: list[Any], kind: type[Event], count: int = 1) -> Any:
    """Wait until an event of this kind has come so often, and return the last one."""
    found: list[Any] = []

    def has_come() -> bool:
        found[:] = [event for event in heard if type(event) is kind]
        return len(found) >= count

    await until(has_come, f"{count} of {kind.__name__} was told")
    return found[-1]


async def told_all() -> None:
    """Let the listeners be called with what was published by now."""
    await asyncio.sleep(0)


# The events themselves.


def test_every_event_is_in_this_list() -> None:
    found = {k for k in vars(events).values() if isinstance(k, type) and issubclass(k, Event)}
    assert found - {Event} == FIELDS.keys()


@pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: kind.__name__)
def test_an_event_is_frozen_and_has_the_pool_the_time_and_its_fields(kind: type[Event]) -> None:
    assert [field.name for field in dataclasses.fields(kind)] == ["pool", "at", *FIELDS[kind]]
    event = kind("speech", 1.5, *FIELDS[kind])
    assert (event.pool, event.at) == ("speech", 1.5)
    assert not hasattr(event, "__dict__")
    for name in ("pool", *FIELDS[kind]):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(event, name, None)
    assert event == kind("speech", 1.5, *FIELDS[kind])
    assert kind.__doc__


def test_each_event_and_nothing_else_is_published() -> None:
    """In one place each: a method that builds it, where somebody listens."""
    sources = "".join(path.read_text() for path in Path(wspool.__file__).parent.rglob("*.py"))
    published = re.findall(r"\b_publish\(\s*events\.(\w+)\(", sources)
    assert sorted(published) == sorted(kind.__name__ for kind in FIELDS)
    assert len(re.findall(r"\._publish\(", sources)) == len(FIELDS), "nothing else is published"


# Their order.


async def test_the_first_loan_is_told_in_the_order_of_cmap(make_pool: MakePool) -> None:
    """Check-out started, connection created, ready, checked out; and the times are right."""
    pool = make_pool(name="speech")
    heard = heard_from(pool)
    before = time()
    connection = await pool.acquire()
    await pool.release(connection)
    await told_all()
    assert kinds(heard) == [PoolReady, *FIRST_LOAN, ConnectionCheckedIn]
    assert {event.pool for event in heard} == {"speech"}
    at = [event.at for event in heard]
    assert at == sorted(at)
    assert before <= at[0]
    assert at[-1] <= time()
    *_, created, ready, checked_out, checked_in = heard
    assert {e.connection_id for e in (created, ready, checked_out, checked_in)} == {1}
    assert ready.duration == link_of(connection).dial_seconds > 0
    assert checked_out.duration >= ready.duration
    assert checked_in.duration >= 0


async def test_a_loan_of_an_idle_connection_is_started_out_and_in(make_pool: MakePool) -> None:
    pool = make_pool()
    await pool.release(await pool.acquire())
    heard = heard_from(pool)
    async with pool.get_connection():
        pass
    await told_all()
    assert kinds(heard) == [ConnectionCheckOutStarted, ConnectionCheckedOut, ConnectionCheckedIn]
    assert heard[1].duration == 0.0


async def test_the_durations_are_those_of_the_wait_and_of_the_loan(make_pool: MakePool) -> None:
    pool = make_pool(max_connections=1)
    first = await pool.acquire()
    heard = heard_from(pool)
    waiting = asyncio.create_task(pool.acquire(timeout=None))
    await until(lambda: pool.waiters, "the second waits")
    began = pool._router.clock()
    await until(lambda: pool._router.clock() - began > 0.02, "it has waited for a while")
    await pool.release(first)
    await pool.release(await waiting)
    await told(heard, ConnectionCheckedIn, 2)
    checked_out = await told(heard, ConnectionCheckedOut)
    assert 0.02 < checked_out.duration <= pool._router.clock() - began + 1
    lent = [event.duration for event in heard if type(event) is ConnectionCheckedIn]
    assert lent[0] > 0.02
    assert len(lent) == 2


async def test_the_pool_is_ready_before_its_warm_up(make_pool: MakePool) -> None:
    """`PoolReady` comes before the first connection is created."""
    pool = make_pool(warmup_connections=2)
    heard = heard_from(pool)
    await pool.start()
    await told_all()
    assert Counter(kinds(heard)) == {PoolReady: 1, ConnectionCreated: 2, ConnectionReady: 2}
    assert kinds(heard)[:3] == [PoolReady, ConnectionCreated, ConnectionCreated]


async def test_the_pool_is_ready_once(make_pool: MakePool) -> None:
    pool = make_pool()
    heard = heard_from(pool)
    await pool.start()
    await pool.start()
    await pool.acquire()
    await told_all()
    assert kinds(heard).count(PoolReady) == 1


async def fail_by_timeout(server: Server, pool: WebsocketConnectionPool) -> None:
    await pool.acquire(timeout=None)
    with pytest.raises(ConnectionPoolTimeoutError):
        await pool.acquire(timeout=0.01)


async def fail_by_exhaustion(server: Server, pool: WebsocketConnectionPool) -> None:
    await pool.acquire()
    with pytest.raises(ConnectionPoolExhaustedError):
        await pool.acquire(timeout=0)


async def fail_by_too_many_waiters(server: Server, pool: WebsocketConnectionPool) -> None:
    pool._router.options.max_waiting = 0
    await pool.acquire()
    with pytest.raises(ConnectionPoolExhaustedError):
        await pool.acquire(timeout=1)


async def fail_by_the_dial(server: Server, pool: WebsocketConnectionPool) -> None:
    server.refuse(403)
    with pytest.raises(ConnectionUnavailableError):
        await pool.acquire()


async def fail_by_the_close(server: Server, pool: WebsocketConnectionPool) -> None:
    connection = await pool.acquire()
    waiting = asyncio.create_task(pool.acquire(timeout=None))
    await until(lambda: pool.waiters, "it waits")
    closing = asyncio.create_task(pool.close_all(timeout=None))
    with pytest.raises(ConnectionPoolUnavailableError):
        await waiting
    await told_all()
    await pool.release(connection)
    await closing


async def fail_by_cancellation(server: Server, pool: WebsocketConnectionPool) -> None:
    await pool.acquire()
    waiting = asyncio.create_task(pool.acquire(timeout=None))
    await until(lambda: pool.waiters, "it waits")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


@pytest.mark.parametrize(
    ("fail", "reason"),
    [
        (fail_by_timeout, CheckOutFailure.TIMEOUT),
        (fail_by_exhaustion, CheckOutFailure.EXHAUSTED),
        (fail_by_too_many_waiters, CheckOutFailure.EXHAUSTED),
        (fail_by_the_dial, CheckOutFailure.CONNECTION_ERROR),
        (fail_by_the_close, CheckOutFailure.POOL_CLOSED),
        (fail_by_cancellation, CheckOutFailure.CANCELLED),
    ],
)
async def test_a_failed_check_out_says_why(
    server: Server,
    make_pool: MakePool,
    fail: Callable[[Server, WebsocketConnectionPool], Awaitable[None]],
    reason: CheckOutFailure,
) -> None:
    """It follows a start, comes once, and its duration is that of the wait."""
    pool = make_pool(max_connections=1)
    heard = heard_from(pool)
    began = pool._router.clock() if pool.is_started else asyncio.get_running_loop().time()
    await fail(server, pool)
    failed = await told(heard, ConnectionCheckOutFailed)
    assert failed.reason == reason
    assert 0 <= failed.duration <= pool._router.clock() - began
    count = Counter(kinds(heard))
    assert count[ConnectionCheckOutFailed] == 1
    assert count[ConnectionCheckOutStarted] == count[ConnectionCheckedOut] + 1
    order = [k for k in kinds(heard) if k in (ConnectionCheckOutStarted, ConnectionCheckOutFailed)]
    assert order[-2:] == [ConnectionCheckOutStarted, ConnectionCheckOutFailed]


def test_the_reasons_of_a_failure_are_strings_that_cmap_knows_too() -> None:
    assert {"timeout", "connectionError", "poolClosed"} < set(CheckOutFailure)
    assert set(CheckOutFailure) == {
        *("timeout", "exhausted", "connectionError", "poolClosed", "cancelled"),
    }


async def test_what_one_that_was_cancelled_could_not_take_was_not_checked_out(
    make_pool: MakePool,
) -> None:
    """Cancelled in the tick in which it was served: its check-out failed, and that is all."""
    pool = make_pool(max_connections=1)
    connection = await pool.acquire()
    heard = heard_from(pool)
    waiting = asyncio.create_task(pool.acquire(timeout=None))
    await until(lambda: pool.waiters, "it waits")
    await pool.release(connection)
    assert connection.is_busy
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await told_all()
    assert connection.state is State.IDLE
    assert kinds(heard) == [
        *(ConnectionCheckOutStarted, ConnectionCheckedIn, ConnectionCheckOutFailed),
    ]
    assert heard[-1].reason == CheckOutFailure.CANCELLED


async def test_a_drain_is_told_from_its_beginning_to_its_end(make_pool: MakePool) -> None:
    pool = make_pool(check_server_data_on_release=True, drain_quiet_period=0.02)
    connection = await pool.acquire()
    heard = heard_from(pool)
    await pool.release(connection)
    drained = await told(heard, ConnectionDrained)
    assert kinds(heard) == [ConnectionCheckedIn, ConnectionDrainStarted, ConnectionDrained]
    assert {event.connection_id for event in heard} == {1}
    assert drained.duration >= 0.015


async def test_a_drain_that_ends_badly_is_followed_by_the_close_alone(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool(drain_fence=True, drain_condition=lambda message: False)
    connection = await pool.acquire()
    heard = heard_from(pool)
    await connection.send("refused")
    await pool.release(connection)
    closed = await told(heard, ConnectionClosed)
    assert kinds(heard) == [ConnectionCheckedIn, ConnectionDrainStarted, ConnectionClosed]
    assert (closed.state, closed.reason) == (State.DRAINING, CloseReason.DRAIN)


async def test_a_check_is_told_and_is_no_check_out(make_pool: MakePool) -> None:
    pool = make_pool(check_after_idle=0.0)
    await pool.release(await pool.acquire())
    heard = heard_from(pool)
    connection = await pool.acquire()
    await told_all()
    assert kinds(heard) == [ConnectionCheckOutStarted, ConnectionChecked, ConnectionCheckedOut]
    checked = heard[1]
    assert (checked.connection_id, checked.errand) == (1, "check")
    assert checked.duration >= (connection.rtt or 0.0)


async def test_a_keepalive_is_told_and_is_no_check_out(make_pool: MakePool) -> None:
    pool = make_pool(keepalive_interval=0.02, cleanup_interval=0.01)
    await pool.release(await pool.acquire())
    heard = heard_from(pool)
    checked = await told(heard, ConnectionChecked)
    assert (checked.connection_id, checked.errand) == (1, "keepalive")
    assert set(kinds(heard)) == {ConnectionChecked}


@pytest.mark.parametrize("hook", ["ping", "its own"])
async def test_an_errand_that_fails_is_a_close_alone(
    server: Server, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, hook: str
) -> None:
    """A check without an answer, a keepalive that raises."""

    async def refuse(connection: WebsocketConnection) -> None:
        raise ValueError("no")

    monkeypatch.setattr("wspool._pool.errands.CHECK_SECONDS", 0.02)
    options: dict[str, Any] = {"keepalive_interval": 0.01, "cleanup_interval": 0.01}
    pool = make_pool(**options, keepalive=refuse if hook == "its own" else None)
    connection = await pool.acquire()
    server.peers[0].mute()
    heard = heard_from(pool)
    await pool.release(connection)
    closed = await told(heard, ConnectionClosed)
    assert kinds(heard) == [ConnectionCheckedIn, ConnectionClosed]
    reason = CloseReason.ERROR if hook == "its own" else CloseReason.STALE
    assert (closed.state, closed.reason) == (State.BUSY, reason)
    server.peers[0].unmute()


# Closing.


async def close_by_server(server: Server, pool: WebsocketConnectionPool) -> None:
    await pool.release(await pool.acquire())
    await server.peers[0].close(4001, "bye")


async def close_by_loss(server: Server, pool: WebsocketConnectionPool) -> None:
    await pool.acquire()
    server.peers[0].drop()


async def close_by_borrower(server: Server, pool: WebsocketConnectionPool) -> None:
    await (await pool.acquire()).close(4002, "enough")


async def close_by_force(server: Server, pool: WebsocketConnectionPool) -> None:
    await pool.release(await pool.acquire(), force_remove=True)


async def close_by_error(server: Server, pool: WebsocketConnectionPool) -> None:
    with contextlib.suppress(KeyError):
        async with pool.get_connection() as connection:
            await connection.send("hello")
            raise KeyError


async def close_by_expiry(server: Server, pool: WebsocketConnectionPool) -> None:
    await pool.release(await pool.acquire())
    pool.expire_connections()


async def close_by_uses(server: Server, pool: WebsocketConnectionPool) -> None:
    pool._router.options.max_uses = 1
    await pool.release(await pool.acquire())


async def close_by_idling(server: Server, pool: WebsocketConnectionPool) -> None:
    pool._router.options.idle_timeout = 0.01
    await pool.release(await pool.acquire())


async def close_by_age(server: Server, pool: WebsocketConnectionPool) -> None:
    pool._router.options.max_lifetime = 0.01
    await pool.release(await pool.acquire())


async def close_by_room(server: Server, pool: WebsocketConnectionPool) -> None:
    await pool.release(await pool.acquire())
    await pool.acquire_new(timeout=10)


async def close_by_dial(server: Server, pool: WebsocketConnectionPool) -> None:
    server.refuse(401)
    with pytest.raises(ConnectionUnavailableError):
        await pool.acquire()


async def close_by_pool(server: Server, pool: WebsocketConnectionPool) -> None:
    await pool.acquire()
    await pool.close_all()


@pytest.mark.parametrize(
    ("close", "state", "reason", "code", "close_reason"),
    [
        (close_by_server, "idle", "server", 4001, "bye"),
        (close_by_loss, "busy", "server", 1006, ""),
        (close_by_borrower, "busy", "user", 4002, "enough"),
        (close_by_force, "busy", "user", 1000, ""),
        (close_by_error, "busy", "error", 1000, ""),
        (close_by_expiry, "idle", "expired", 1000, ""),
        (close_by_uses, "busy", "uses", 1000, ""),
        (close_by_idling, "idle", "idle", 1000, ""),
        (close_by_age, "*", "lifetime", 1000, ""),
        (close_by_room, "idle", "room", 1000, ""),
        (close_by_dial, "connecting", "dial", None, ""),
        (close_by_pool, "busy", "pool", 1000, ""),
    ],
)
async def test_a_close_says_from_which_state_why_and_with_what_code(
    server: Server,
    make_pool: MakePool,
    close: Callable[[Server, WebsocketConnectionPool], Awaitable[None]],
    state: str,
    reason: str,
    code: int | None,
    close_reason: str,
) -> None:
    pool = make_pool(max_connections=1, cleanup_interval=0.02)
    heard = heard_from(pool)
    began = asyncio.get_running_loop().time()
    await close(server, pool)
    closed = await told(heard, ConnectionClosed)
    assert (closed.connection_id, closed.reason) == (1, reason)
    assert state in ("*", closed.state)
    assert closed.close_reason == close_reason
    assert 0 <= closed.age <= pool._router.clock() - began
    if code is not None:
        assert closed.code == code
    if close is close_by_expiry:
        assert kinds(heard)[-2:] == [PoolCleared, ConnectionClosed]


async def test_everything_is_told_when_close_all_returns_and_the_closing_last(
    make_pool: MakePool,
) -> None:
    """One idle, one draining, one lent, one being dialled, one who waits: all of it is told."""
    pool = make_pool(max_connections=4, check_server_data_on_release=True)
    heard = heard_from(pool)
    idle, draining, lent = [await pool.acquire() for _ in range(3)]
    pool._router.options.check_server_data_on_release = False
    await pool.release(idle)
    pool._router.options.check_server_data_on_release = True
    await pool.release(draining)
    new = asyncio.create_task(pool.acquire_new(timeout=None))
    waiting = asyncio.create_task(pool.acquire_new(timeout=None))
    await until(lambda: pool.waiters == 2, "two wait")
    closing = asyncio.create_task(pool.close_all(timeout=None))
    results = await asyncio.gather(new, waiting, return_exceptions=True)
    assert {type(result) for result in results} == {ConnectionPoolUnavailableError}
    await pool.release(lent)
    await closing
    assert type(heard[-1]) is PoolClosed
    count = Counter(kinds(heard))
    assert count[PoolClosed] == 1
    assert count[ConnectionCreated] == count[ConnectionClosed] == pool.stats.dials
    assert count[ConnectionCheckOutStarted] == 5
    assert count[ConnectionCheckOutFailed] == 2
    size = len(heard)
    await pool.close_all()
    await told_all()
    assert len(heard) == size


async def test_of_a_borrower_that_was_cut_off_the_check_in_may_follow_the_closing(
    make_pool: MakePool,
) -> None:
    """The end of its loan is told when it comes, with the seconds that it took; nothing else is."""
    pool = make_pool()
    heard = heard_from(pool)
    connection = await pool.acquire()
    await pool.close_all()
    assert type(heard[-1]) is PoolClosed
    await pool.release(connection)
    await told_all()
    assert kinds(heard)[-2:] == [PoolClosed, ConnectionCheckedIn]


async def test_a_pool_that_was_never_started_tells_nothing(make_pool: MakePool) -> None:
    pool = make_pool()
    heard = heard_from(pool)
    await pool.close_all()
    await told_all()
    assert heard == []


# The listeners.


async def test_listeners_are_called_after_the_routing_step(make_pool: MakePool) -> None:
    """Not within the call that caused the event, and what they see is whole."""
    pool = make_pool(max_connections=1)
    connection = await pool.acquire()
    link = link_of(connection)
    seen: list[tuple[type[Event], State, WebsocketConnection | None, int]] = []

    def look(event: Event) -> None:
        assert not pool._router._is_routing
        seen.append((type(event), link.state, link.loan, pool.waiters))

    pool.subscribe(look)
    pool._router.give_back(connection)
    assert seen == []
    await told_all()
    assert seen == [(ConnectionCheckedIn, State.IDLE, None, 0)]

    again = await pool.acquire()
    waiting = asyncio.create_task(pool.acquire(timeout=None))
    await until(lambda: pool.waiters, "it waits")
    await told_all()
    seen.clear()
    pool._router.give_back(again)
    following = await waiting
    await told_all()
    assert seen[0] == (ConnectionCheckedIn, State.BUSY, following, 0)
    assert [kind for kind, *_ in seen] == [ConnectionCheckedIn, ConnectionCheckedOut]


async def test_a_listener_sees_each_connection_in_one_queue_that_of_its_state(
    make_pool: MakePool,
) -> None:
    """And nobody waits while a connection is idle."""
    pool = make_pool(max_connections=3, acquire_timeout=None, drain_fence=True)
    wrong: list[object] = []
    heard = heard_from(pool)

    def look(event: Event) -> None:
        queues = queues_of(pool)
        links = list(queues)
        if not len(set(links)) == len(links) <= 3:
            wrong.append(links)
        wrong.extend(link for link in links if link not in queues[link.state])
        if pool.waiters and queues.idle:
            wrong.append(repr(pool))

    pool.subscribe(look)

    async def borrow() -> None:
        async with pool.get_connection() as connection:
            assert await echoes(connection)

    await asyncio.gather(*(borrow() for _ in range(20)))
    await told(heard, ConnectionDrained, 20)
    assert wrong == []


async def test_a_listener_may_call_the_pool(make_pool: MakePool) -> None:
    """On a check-out it expires all, on the close that follows it resizes, then it closes all."""
    pool = make_pool(max_connections=4)
    tasks: list[asyncio.Task[None]] = []
    heard = heard_from(pool)

    def act(event: Event) -> None:
        match event:
            case ConnectionCheckedOut(connection_id=1):
                pool.expire_connections()
            case PoolCleared():
                pool.resize(1)
                [lent] = queues_of(pool).busy
                tasks.append(asyncio.create_task(pool.release(lent.loan)))
            case ConnectionClosed(reason=CloseReason.EXPIRED):
                tasks.append(asyncio.create_task(pool.close_all()))

    pool.subscribe(act)
    await pool.acquire()
    await told(heard, PoolClosed)
    await asyncio.gather(*tasks)
    assert kinds(heard) == [
        *(PoolReady, *FIRST_LOAN),
        *(PoolCleared, ConnectionCheckedIn, ConnectionClosed, PoolClosed),
    ]
    assert pool.snapshot().max_connections == 1


async def test_a_listener_may_borrow_in_a_task(make_pool: MakePool) -> None:
    pool = make_pool(max_connections=1, acquire_timeout=None)
    tasks: list[asyncio.Task[bool]] = []

    async def borrow() -> bool:
        async with pool.get_connection() as connection:
            return await echoes(connection)

    def act(event: Event) -> None:
        if isinstance(event, ConnectionCheckedIn) and len(tasks) < 3:
            tasks.append(asyncio.create_task(borrow()))

    pool.subscribe(act)
    assert await borrow()
    await until(lambda: len(tasks) == 3, "each check-in led to the next loan")
    assert all(await asyncio.gather(*tasks))


async def test_each_listener_gets_each_event_in_order_of_subscription(make_pool: MakePool) -> None:
    pool = make_pool()
    calls: list[tuple[str, Event]] = []
    pool.subscribe(lambda event: calls.append(("first", event)))
    pool.subscribe(lambda event: calls.append(("second", event)))
    await pool.acquire()
    await told_all()
    assert [name for name, _ in calls] == ["first", "second"] * 5
    assert [event for _, event in calls[::2]] == [event for _, event in calls[1::2]]


async def test_the_same_listener_can_be_subscribed_twice(make_pool: MakePool) -> None:
    """It is called twice, and each subscription ends by itself."""
    pool = make_pool()
    heard: list[Event] = []
    unsubscribe = pool.subscribe(heard.append)
    pool.subscribe(heard.append)
    await pool.start()
    await told_all()
    assert kinds(heard) == [PoolReady, PoolReady]
    unsubscribe()
    unsubscribe()
    pool.expire_connections()
    await told_all()
    assert kinds(heard) == [PoolReady, PoolReady, PoolCleared]


async def test_after_unsubscribing_nothing_is_told(make_pool: MakePool) -> None:
    """Not what was published and not yet told either, and nothing is kept."""
    pool = make_pool()
    heard: list[Event] = []
    unsubscribe = pool.subscribe(heard.append)
    await pool.start()
    unsubscribe()
    await told_all()
    async with pool.get_connection():
        pass
    await told_all()
    assert heard == []
    assert not pool._router.events._untold


async def test_a_listener_may_unsubscribe_itself_and_others(make_pool: MakePool) -> None:
    """Whoever was unsubscribed is not called any more, not even with the present event."""
    pool = make_pool()
    heard: dict[str, list[Event]] = defaultdict(list)

    def once(event: Event) -> None:
        heard["once"].append(event)
        leave()
        leave_other()

    leave = pool.subscribe(once)
    leave_other = pool.subscribe(heard["other"].append)
    pool.subscribe(heard["third"].append)
    await pool.acquire()
    await told_all()
    assert kinds(heard["once"]) == [PoolReady]
    assert kinds(heard["third"]) == [PoolReady, *FIRST_LOAN]
    assert heard["other"] == []


async def test_a_listener_that_was_subscribed_by_another_hears_from_then_on(
    make_pool: MakePool,
) -> None:
    pool = make_pool()
    heard: list[Event] = []

    def subscribe(event: Event) -> None:
        if isinstance(event, PoolReady):
            pool.subscribe(heard.append)

    pool.subscribe(subscribe)
    await pool.acquire()
    await told_all()
    assert kinds(heard) == FIRST_LOAN


async def test_a_listener_that_raises_is_logged_once_and_harms_nothing(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    """The others hear everything, the pool works, and its next subscription is a new one."""
    pool = make_pool()

    def broken(event: Event) -> None:
        raise LookupError("a bug of the listener's")

    unsubscribe = pool.subscribe(broken)
    heard = heard_from(pool)
    for _ in range(3):
        async with pool.get_connection() as connection:
            assert await echoes(connection)
    await told_all()
    assert len(heard) == 5 + 1 + 2 * 3
    [record] = caplog.records
    assert (record.levelno, record.name) == (logging.ERROR, "wspool")
    assert "broken" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[0] is LookupError
    unsubscribe()
    pool.subscribe(broken)
    await pool.close_all()
    assert len(caplog.records) == 2
    assert type(heard[-1]) is PoolClosed


@pytest.mark.parametrize("listener", [None, "print", 1])
def test_a_listener_must_be_callable(listener: Any) -> None:
    pool = WebsocketConnectionPool(uri="ws://localhost/")
    with pytest.raises(TypeError, match="must be a plain callable"):
        pool.subscribe(listener)


async def test_nothing_is_built_while_nobody_listens(
    server: Server, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No event is made and no callback scheduled, whatever happens in the pool."""
    made: list[object] = []
    for kind in FIELDS:
        monkeypatch.setattr(wspool.events, kind.__name__, lambda *details: made.append(details))
    pool = make_pool(max_connections=2, check_after_idle=0.0, drain_fence=True)
    unsubscribe = pool.subscribe(print)
    unsubscribe()
    first, second = await pool.acquire(), await pool.acquire()
    with pytest.raises(ConnectionPoolExhaustedError):
        await pool.acquire(timeout=0)
    with pytest.raises(ConnectionPoolTimeoutError):
        await pool.acquire(timeout=0.01)
    await first.send("to be drained")
    await pool.release(first)
    await pool.release(second, force_remove=True)
    await until(lambda: pool.available_connections, "it is drained")
    assert (await pool.acquire()).id == first.id, "after a check"
    server.peers[0].drop()
    await until(lambda: not first.is_connected, "the loss is noticed")
    server.refuse(401)
    with pytest.raises(ConnectionUnavailableError):
        await pool.acquire(timeout=10)
    pool.expire_connections()
    await pool.close_all()
    assert made == []
    assert not pool._router.events._untold
    assert not pool._router.events._is_due


# Each connection's events are a path of the state machine.

PATH: dict[str, dict[type[Event], str]] = {
    "": {ConnectionCreated: "connecting"},
    "connecting": {ConnectionReady: "idle", ConnectionClosed: "closed"},
    "idle": {
        ConnectionChecked: "idle",
        ConnectionCheckedOut: "lent",
        ConnectionClosed: "closed",
    },
    "lent": {ConnectionCheckedIn: "returned", ConnectionClosed: "lost"},
    "lost": {ConnectionCheckedIn: "closed"},
    "returned": {
        ConnectionDrainStarted: "draining",
        ConnectionCheckedOut: "lent",
        ConnectionChecked: "idle",
        ConnectionClosed: "closed",
    },
    "draining": {ConnectionDrained: "idle", ConnectionClosed: "closed"},
    "closed": {LoanRepeated: "closed"},
}
"""What may follow on what. Errands are told at their end only, so they are within "idle"."""

STATES = {
    "connecting": {State.CONNECTING},
    "idle": {State.IDLE, State.BUSY},  # busy with an errand
    "lent": {State.BUSY},
    "returned": {State.BUSY, State.IDLE},
    "draining": {State.DRAINING},
}
"""From which state a connection may be closed."""


def test_the_path_has_every_event_of_a_connection() -> None:
    found = {kind for following in PATH.values() for kind in following}
    assert found == {
        kind
        for kind, fields in FIELDS.items()
        if "connection_id" in fields and "slot" not in fields
    }


@pytest.mark.parametrize("seed", range(3))
async def test_under_a_random_load_each_connection_goes_a_path_of_the_state_machine(
    server: Server, make_pool: MakePool, seed: int
) -> None:
    """Created once, ready at most once, closed exactly once; each start ends in one way."""
    dice = random.Random(seed)
    pool = make_pool(
        max_connections=4,
        acquire_timeout=None,
        check_after_idle=0.005,
        drain_fence=True,
        keepalive_interval=0.01,
        cleanup_interval=0.01,
        max_uses=12,
        max_retries=2,
    )
    heard = heard_from(pool)
    inside: list[WebsocketConnection] = []

    async def use(connection: WebsocketConnection) -> None:
        for _ in range(dice.randrange(3)):
            await echoes(connection)
        if dice.random() < 0.2:
            await connection.send("left unread")
        if dice.random() < 0.1:
            await connection.close()
        if dice.random() < 0.1:
            raise LookupError

    async def borrow() -> None:
        try:
            async with asyncio.timeout(dice.choice([None, None, 0.02])):
                loan = pool.get_new_connection if dice.random() < 0.2 else pool.get_connection
                async with loan() as connection:
                    inside.append(connection)
                    try:
                        await use(connection)
                    finally:
                        if connection in inside:  # else it was given back from outside
                            inside.remove(connection)
        except (WebsocketError, TimeoutError, LookupError):
            pass

    def disturb() -> None:
        match dice.randrange(12):
            case 0 if server.open:
                dice.choice(server.open).drop()
            case 1:
                server.refuse(dice.choice([401, 503]))
            case 2:
                pool.expire_connections()
            case 3:
                pool.resize(dice.randint(2, 5))
            case 4 | 5 | 6 | 7 if pool.waiters and inside:
                # An acquire that is cancelled in the very tick in which it is served.
                callsite = next(iter(pool._router.line))._callsite
                assert callsite is not None
                task = callsite[2]
                assert task is not None
                pool._router.give_back(inside.pop(dice.randrange(len(inside))))
                task.cancel()

    borrowers = []
    for _ in range(150):
        borrowers.append(asyncio.create_task(borrow()))
        for _ in range(dice.randrange(6)):
            await asyncio.sleep(0)
        disturb()
    async with asyncio.timeout(30):
        await asyncio.gather(*borrowers, return_exceptions=True)
    await pool.close_all()
    server.refusals.clear()

    where: dict[int, str] = defaultdict(str)
    for event in heard:
        number = getattr(event, "connection_id", None)
        if number is None:
            continue
        here, kind = where[number], type(event)
        assert kind in PATH[here], f"{event} in {here!r}"
        if isinstance(event, ConnectionClosed):
            assert event.state in STATES[here]
        where[number] = PATH[here][kind]
    assert set(where.values()) == {"closed"}
    assert list(where) == [*range(1, pool.stats.dials + 1)]
    count = Counter(kinds(heard))
    assert count[ConnectionCheckedOut] == count[ConnectionCheckedIn]
    starts = count[ConnectionCheckOutStarted]
    assert starts == pool.stats.borrows + count[ConnectionCheckOutFailed]
    closed = Counter(event.reason for event in heard if isinstance(event, ConnectionClosed))
    assert closed == pool.stats.closes
