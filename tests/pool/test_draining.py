"""What happens to a connection between its release and its next use."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from aiohttp import WSMsgType

from tests.conftest import MakePool, until
from tests.support.inside import link_of, wire_of
from wspool import (
    CloseReason,
    ConnectionBusyError,
    ConnectionClosedError,
    ConnectionDrainTimeoutError,
    ConnectionPoolExhaustedError,
    PendingConnection,
    State,
    WebsocketConnection,
    WebsocketConnectionPool,
)
from wspool.testing import Handler, Peer, Server

Drained = list[tuple[int, str | bytes]]

NEVER = 60.0
"""Seconds that no test lasts."""


@pytest.fixture
def drained() -> Drained:
    """The connection's number and the message, for each that on_drained was told of."""
    return []


@pytest.fixture
def make_draining(make_pool: MakePool, drained: Drained) -> Callable[..., WebsocketConnectionPool]:
    """Make pools that record what they drain, and in which no silence or timeout ends a drain."""

    def make(**options: Any) -> WebsocketConnectionPool:
        def note(connection: WebsocketConnection, message: str | bytes) -> None:
            drained.append((connection.id, message))

        neutral = {"drain_timeout": NEVER, "drain_quiet_period": NEVER, "on_drained": note}
        return make_pool(**neutral | options)

    return make


def replies(*messages: str | bytes) -> Handler:
    """Return a handler that answers each message with all of these."""

    async def reply(peer: Peer) -> None:
        async for _ in peer:
            for answer in messages:
                await peer.send(answer)

    return reply


def is_done(message: str | bytes) -> bool:
    return message == "done"


async def peer_of(server: Server) -> Peer:
    """Return the only peer, once the server has it."""
    await until(lambda: server.open, "the server has a connection")
    assert len(server.open) == 1
    return server.open[0]


def why_closed(connection: WebsocketConnection) -> str:
    assert connection.state is State.CLOSED
    return connection.history[-1].why


async def leave_by(
    error: type[BaseException],
    pool: WebsocketConnectionPool,
    message: str | None = None,
    replies: int = 0,
) -> WebsocketConnection:
    """Borrow, send the message if there is one, read some replies, and leave by this error."""
    with suppress(error):
        async with pool.get_connection() as connection:
            if message is not None:
                await connection.send(message)
            for _ in range(replies):
                await connection.recv()
            raise error
    return connection


# Silence.


async def test_a_quiet_period_gives_a_connection_back(make_draining: MakePool) -> None:
    pool = make_draining(check_server_data_on_release=True, drain_quiet_period=0.05)
    connection = await pool.acquire()
    await pool.release(connection)
    assert connection.is_draining
    assert (pool.pending_connections, pool.available_connections, pool.total_connections) == (
        1,
        0,
        1,
    )
    await until(lambda: pool.available_connections == 1, "the drain has ended")
    assert pool.pending_connections == 0
    assert [line.trigger for line in connection.history[-2:]] == ["drain", "drained"]
    assert (await pool.acquire()).id == connection.id


async def test_a_message_begins_the_quiet_period_anew(
    server: Server, make_draining: MakePool, drained: Drained
) -> None:
    """As long as messages keep coming, no quiet period ends a drain; drain_timeout does."""
    pool = make_draining(
        check_server_data_on_release=True, drain_quiet_period=5.0, drain_timeout=0.2
    )
    connection = await pool.acquire()
    await pool.release(connection)
    peer = await peer_of(server)
    while connection.is_draining:
        so_far = len(drained)
        await peer.send("more")
        await until(
            lambda n=so_far: len(drained) > n or not connection.is_draining, "it is drained"
        )
    assert why_closed(connection) == CloseReason.DRAIN
    assert isinstance(connection.cause, ConnectionDrainTimeoutError)
    assert "drain_timeout" in str(connection.cause)
    assert link_of(connection).drained_messages == pool.stats.drained_messages > 1


async def test_drain_timeout_closes_a_connection_with_its_cause(make_draining: MakePool) -> None:
    pool = make_draining(check_server_data_on_release=True, drain_timeout=0.05)
    connection = await pool.acquire()
    await pool.release(connection)
    await until(lambda: connection.state is State.CLOSED, "the drain has ended")
    assert why_closed(connection) == CloseReason.DRAIN
    assert isinstance(connection.cause, ConnectionDrainTimeoutError)
    assert pool.stats.closes == {"drain": 1}


async def test_a_drain_is_open_to_inspection(make_draining: MakePool) -> None:
    """A connection that is drained carries its PendingConnection, whose flag is nothing more."""
    pool = make_draining(check_server_data_on_release=True, drain_quiet_period=0.05)
    connection = await pool.acquire()
    await pool.release(connection)
    pending = link_of(connection).owner
    assert isinstance(pending, PendingConnection)
    assert pool.connections == (pending.connection,)
    assert pending.connection.id == connection.id
    assert pending.drain_timeout == NEVER
    assert pending.drain_condition is None
    assert pending.drain_task is not None
    assert not pending.drain_task.done()
    assert await pending.mark_completed()
    assert not await pending.mark_completed()
    assert connection.is_draining
    await until(lambda: pool.available_connections, "the drain has ended all the same")
    assert link_of(connection).owner is None


async def test_a_draining_connection_is_nobodys(make_draining: MakePool) -> None:
    """Neither who has released a connection nor who looks at it can use it while it is drained."""
    pool = make_draining(check_server_data_on_release=True)
    connection = await pool.acquire()
    await pool.release(connection)
    [shown] = pool.connections
    for nobodys, why in [(connection, "is over"), (shown, "it is draining and not lent")]:
        with pytest.raises(ConnectionBusyError, match=why):
            await nobodys.send("mine")
        with pytest.raises(ConnectionBusyError, match=why):
            await nobodys.recv()
    assert connection.is_draining


async def test_a_close_during_the_drain_is_the_servers(
    server: Server, make_draining: MakePool
) -> None:
    pool = make_draining(check_server_data_on_release=True)
    connection = await pool.acquire()
    await pool.release(connection)
    peer = await peer_of(server)
    await peer.close(4000, "bye")
    await until(lambda: connection.state is State.CLOSED, "the close is noticed")
    assert why_closed(connection) == CloseReason.SERVER
    assert (connection.close_code, connection.close_reason) == (4000, "bye")
    assert pool.total_connections == 0


# What acquire does meanwhile.


async def test_acquire_raises_while_all_are_drained(make_draining: MakePool) -> None:
    """With acquire_timeout=0 a draining connection counts as in use."""
    pool = make_draining(max_connections=2, check_server_data_on_release=True)
    for connection in [await pool.acquire(), await pool.acquire()]:
        await pool.release(connection)
    assert (pool.pending_connections, pool.busy_connections) == (2, 0)
    with pytest.raises(ConnectionPoolExhaustedError, match="draining=2"):
        await pool.acquire()


async def test_acquire_may_wait_for_a_drain(make_draining: MakePool) -> None:
    pool = make_draining(
        max_connections=1, check_server_data_on_release=True, drain_quiet_period=0.05
    )
    connection = await pool.acquire()
    await pool.release(connection)
    assert (await pool.acquire(timeout=10.0)).id == connection.id


async def test_a_drain_that_fails_serves_its_waiter_with_a_new_connection(
    make_draining: MakePool,
) -> None:
    pool = make_draining(max_connections=1, check_server_data_on_release=True, drain_timeout=0.05)
    connection = await pool.acquire()
    await pool.release(connection)
    assert (await pool.acquire(timeout=10.0)).id == 2


# The condition.


@pytest.mark.parametrize("is_draining", [True, False])
async def test_a_refused_message_closes_the_connection(
    server: Server, make_draining: MakePool, drained: Drained, is_draining: bool
) -> None:
    """drain_condition is asked in the drain and of strays while idle; False closes."""
    pool = make_draining(
        check_server_data_on_release=is_draining, drain_condition=lambda m: m != "bad"
    )
    connection = await pool.acquire()
    await pool.release(connection)
    peer = await peer_of(server)
    await peer.send("good")
    await until(lambda: drained, "the good one is drained")
    assert connection.is_connected
    await peer.send("bad")
    await until(lambda: connection.state is State.CLOSED, "the connection is given up")
    assert why_closed(connection) == CloseReason.DRAIN
    assert drained == [(1, "good"), (1, "bad")]


@pytest.mark.parametrize("empty", ["", b""])
async def test_by_default_an_empty_message_is_refused(
    server: Server, make_draining: MakePool, empty: str | bytes
) -> None:
    pool = make_draining(check_server_data_on_release=True)
    connection = await pool.acquire()
    await pool.release(connection)
    peer = await peer_of(server)
    await peer.send(b"\0")
    await until(lambda: link_of(connection).drained_messages == 1, "any other message is drained")
    assert connection.is_draining
    await peer.send(empty)
    await until(lambda: connection.state is State.CLOSED, "the connection is given up")
    assert why_closed(connection) == CloseReason.DRAIN


@pytest.mark.parametrize("name", ["drain_condition", "drain_until", "on_drained"])
async def test_a_callable_that_raises_costs_its_connection_alone(
    server: Server, make_draining: MakePool, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """One record with a traceback is logged; the other connections go on."""

    def fails(*_: object) -> bool:
        raise ZeroDivisionError("a fault of the user's")

    pool = make_draining(
        **{"check_server_data_on_release": True, "drain_quiet_period": 0.3, name: fails}
    )
    unlucky = await pool.acquire()
    peer = await peer_of(server)
    peer.mute()
    await unlucky.send("an answer is awaited")
    lucky = await pool.acquire()
    await pool.release(lucky)
    await pool.release(unlucky)
    await peer.send("a message")
    await until(lambda: unlucky.state is State.CLOSED, "the connection is given up")
    assert why_closed(unlucky) == CloseReason.ERROR
    assert isinstance(unlucky.cause, ZeroDivisionError)
    [record] = caplog.records
    assert (record.name, record.levelno) == ("wspool", logging.ERROR)
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError
    await until(lambda: pool.available_connections, "the other one is clean")
    again = await pool.acquire()
    assert again.id == lucky.id
    await again.send("still there")
    assert await again.recv() == "still there"


# The named last message.


async def test_the_last_message_ends_the_drain(
    server: Server, make_draining: MakePool, drained: Drained
) -> None:
    pool = make_draining(max_connections=1, drain_until=is_done)
    connection = await pool.acquire()
    await connection.send("work")
    await pool.release(connection)
    assert connection.is_draining
    peer = await peer_of(server)
    await until(lambda: drained, "the echo is drained")
    await peer.send("not yet")
    await until(lambda: drained[1:], "the next one is drained")
    assert connection.is_draining
    await peer.send("done")
    await until(lambda: pool.available_connections, "the drain has ended")
    assert drained == [(1, "work"), (1, "not yet"), (1, "done")]


async def test_a_borrower_that_read_the_last_message_has_cleaned_up(
    server: Server, make_draining: MakePool, drained: Drained
) -> None:
    """Then the connection is idle when release returns; no drain, no task."""
    server.handler = replies("part", "done")
    pool = make_draining(max_connections=1, drain_until=is_done)
    for _ in range(3):
        async with pool.get_connection() as connection:
            await connection.send("work")
            assert [await connection.recv(), await connection.recv()] == ["part", "done"]
        assert connection.state is State.IDLE
        assert connection.history[-1].trigger == "checkin"
    assert not drained


async def test_what_was_sent_after_the_last_message_needs_a_drain(
    server: Server, make_draining: MakePool, drained: Drained
) -> None:
    """A last message that was read does not answer for what was sent after it."""
    server.handler = replies("done")
    pool = make_draining(max_connections=1, drain_until=is_done)
    async with pool.get_connection() as connection:
        await connection.send("work")
        assert await connection.recv() == "done"
        await connection.send("more work")
    assert connection.state is State.DRAINING
    await until(lambda: pool.available_connections, "the other last message has come")
    assert drained == [(1, "done")]


async def test_strays_behind_the_last_message_are_drained_at_once(
    server: Server, make_draining: MakePool, drained: Drained
) -> None:
    server.handler = replies("done", "stray")
    pool = make_draining(max_connections=1, drain_until=is_done)
    async with pool.get_connection() as connection:
        await connection.send("work")
        assert await connection.recv() == "done"
        await until(lambda: wire_of(connection).has_news, "the stray has arrived")
    assert connection.state is State.IDLE
    assert drained == [(1, "stray")]


async def test_a_loan_without_a_send_needs_no_last_message(make_draining: MakePool) -> None:
    """drain_until alone does not drain what cannot be dirty."""
    pool = make_draining(max_connections=1, drain_until=is_done)
    for _ in range(2):
        async with pool.get_connection() as connection:
            pass
        assert connection.state is State.IDLE


# The fence.


async def test_a_pong_proves_a_connection_clean(
    server: Server, make_draining: MakePool, drained: Drained
) -> None:
    """What the server had sent before its pong goes to on_drained, and not to the next one."""
    may_answer = asyncio.Event()

    async def late(peer: Peer) -> None:
        async for message in peer.websocket:
            if message.type is WSMsgType.PING:
                await may_answer.wait()
                await peer.send("late 1")
                await peer.send("late 2")
                await peer.websocket.pong(message.data)
            else:
                await peer.send(message.data)

    server.handler = late
    server.websocket_options["autoping"] = False
    pool = make_draining(max_connections=1, drain_fence=True)
    async with pool.get_connection() as connection:
        await connection.send("mine")
        assert await connection.recv() == "mine"
    assert connection.is_draining
    assert not drained
    may_answer.set()
    async with pool.get_connection(timeout=10.0) as again:
        assert again.id == connection.id
        await again.send("theirs")
        assert await again.recv() == "theirs"
    assert drained == [(1, "late 1"), (1, "late 2")]
    assert pool.stats.drained_messages == link_of(connection).drained_messages == 2


async def test_a_fence_that_a_mute_peer_never_answers_ends_at_drain_timeout(
    server: Server, make_draining: MakePool
) -> None:
    pool = make_draining(drain_fence=True, drain_timeout=0.1)
    connection = await pool.acquire()
    peer = await peer_of(server)
    peer.mute()
    await connection.send("work")
    await pool.release(connection)
    await until(lambda: connection.state is State.CLOSED, "the drain has ended")
    assert isinstance(connection.cause, ConnectionDrainTimeoutError)
    peer.unmute()


# The hook.


async def test_on_release_may_talk_to_the_server(
    server: Server, make_draining: MakePool, drained: Drained
) -> None:
    """The hook has the wire to itself: it sends, and it reads its replies."""
    heard: list[str | bytes] = []

    async def unsubscribe(connection: WebsocketConnection) -> None:
        await connection.send("unsubscribe")
        while (message := await connection.recv()) != "unsubscribe":
            heard.append(message)

    pool = make_draining(max_connections=1, on_release=unsubscribe)
    connection = await pool.acquire()
    await connection.send("subscribe")
    await pool.release(connection)
    assert connection.is_draining
    assert (await pool.acquire(timeout=10.0)).id == connection.id
    assert (await peer_of(server)).received == ["subscribe", "unsubscribe"]
    assert (heard, drained) == (["subscribe"], [])


@pytest.mark.parametrize("error", [None, ZeroDivisionError])
async def test_an_on_release_that_has_read_the_last_message_leaves_nothing_to_wait_for(
    server: Server, make_draining: MakePool, error: type[BaseException] | None
) -> None:
    """As with a borrower; what has come behind it is disposed of."""

    async def unsubscribe(connection: WebsocketConnection) -> None:
        await connection.send("done")
        while not is_done(await connection.recv()):
            pass

    pool = make_draining(on_release=unsubscribe, drain_until=is_done)
    if error is None:
        async with pool.get_connection() as connection:
            await connection.send("work")
    else:
        connection = await leave_by(error, pool, "work")
    await until(lambda: connection.state is State.IDLE, "the connection is clean")
    assert server.peers[0].received == ["work", "done"]


async def test_nobody_else_sends_while_on_release_runs(make_draining: MakePool) -> None:
    may_end = asyncio.Event()

    async def hook(connection: WebsocketConnection) -> None:
        await may_end.wait()

    pool = make_draining(on_release=hook)
    connection = await pool.acquire()
    await pool.release(connection)
    with pytest.raises(ConnectionBusyError):
        await connection.send("mine")
    may_end.set()
    await until(lambda: pool.available_connections, "the hook has ended")


async def test_an_on_release_that_raises_discards_the_connection(
    make_draining: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails(connection: WebsocketConnection) -> None:
        raise ZeroDivisionError("a fault of the user's")

    pool = make_draining(max_connections=1, on_release=fails)
    connection = await pool.acquire()
    await pool.release(connection)
    await until(lambda: connection.state is State.CLOSED, "the connection is given up")
    assert why_closed(connection) == CloseReason.ERROR
    assert isinstance(connection.cause, ZeroDivisionError)
    [record] = caplog.records
    assert record.exc_info is not None
    assert (await pool.acquire()).id == 2


async def test_an_on_release_that_hangs_ends_at_drain_timeout(make_draining: MakePool) -> None:
    async def hangs(connection: WebsocketConnection) -> None:
        await connection.recv()

    pool = make_draining(on_release=hangs, drain_timeout=0.05)
    connection = await pool.acquire()
    await pool.release(connection)
    await until(lambda: connection.state is State.CLOSED, "the drain has ended")
    assert isinstance(connection.cause, ConnectionDrainTimeoutError)


@pytest.mark.parametrize("has_until", [True, False])
async def test_on_release_runs_after_an_exception_too(
    server: Server, make_draining: MakePool, has_until: bool
) -> None:
    """It tells the server to stop, whether the connection can be used again or not."""

    async def cancel(connection: WebsocketConnection) -> None:
        await connection.send("done")

    pool = make_draining(on_release=cancel, drain_until=is_done if has_until else None)
    connection = await leave_by(ZeroDivisionError, pool, "work")
    peer = server.peers[0]
    await until(lambda: not pool.pending_connections, "the drain has ended")
    assert connection.state is (State.IDLE if has_until else State.CLOSED)
    await until(lambda: peer.received == ["work", "done"], "the server was told")


# Leaving by an exception.


@pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError, KeyboardInterrupt])
@pytest.mark.parametrize(
    "options", [{}, {"check_server_data_on_release": True}, {"drain_fence": True}]
)
async def test_an_exception_after_a_send_closes_the_connection(
    make_draining: MakePool, error: type[BaseException], options: dict[str, bool]
) -> None:
    """Neither silence nor a pong says that the server has finished thinking."""
    pool = make_draining(drain_quiet_period=0.05, **{} | options)
    connection = await leave_by(error, pool, "work")
    assert why_closed(connection) == CloseReason.ERROR
    assert pool.total_connections == 0


async def test_an_exception_after_a_send_is_drained_up_to_the_last_message(
    server: Server, make_draining: MakePool, drained: Drained
) -> None:
    """With drain_until only the named message ends that drain: silence and a pong do not."""
    is_finished = asyncio.Event()

    async def work(peer: Peer) -> None:
        async for _ in peer:
            await peer.send("begun")
            await is_finished.wait()
            await peer.send("done")

    server.handler = work
    pool = make_draining(drain_until=is_done, drain_fence=True, drain_quiet_period=0.0)
    connection = await leave_by(ZeroDivisionError, pool, "work")
    await until(lambda: drained, "the drain is reading")
    assert connection.is_draining
    is_finished.set()
    await until(lambda: pool.available_connections, "the last message has come")
    assert drained == [(1, "begun"), (1, "done")]


async def test_an_exception_after_the_last_message_costs_nothing(make_draining: MakePool) -> None:
    """A borrower that has read the last message and then fails gives back a clean connection."""
    pool = make_draining(drain_until=is_done)
    connection = await leave_by(ZeroDivisionError, pool, "done", replies=1)
    assert connection.state is State.IDLE


@pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError])
async def test_an_exception_without_a_send_is_as_clean_as_none(
    make_draining: MakePool, error: type[BaseException]
) -> None:
    """Where the borrower began no send, nothing can be under way."""
    pool = make_draining()
    for _ in range(2):
        connection = await leave_by(error, pool)
        assert (connection.id, connection.state) == (1, State.IDLE)


async def test_a_cancelled_recv_without_a_send_is_clean(make_draining: MakePool) -> None:
    """A listener that only waited is cancelled: its connection can be used again."""
    pool = make_draining()

    async def listen() -> None:
        async with pool.get_connection() as connection:
            await connection.recv()

    listening = asyncio.create_task(listen())
    await until(lambda: pool.busy_connections, "it listens")
    listening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listening
    assert (pool.available_connections, pool.total_connections) == (1, 1)


# Strays.


@pytest.mark.parametrize("is_checked", [False, True])
async def test_strays_while_idle_are_never_read_by_a_borrower(
    server: Server, make_draining: MakePool, drained: Drained, is_checked: bool
) -> None:
    """With draining on or off, what arrives between two loans goes to on_drained."""
    pool = make_draining(
        max_connections=1, check_server_data_on_release=is_checked, drain_quiet_period=0.02
    )
    expected = 0
    for _ in range(4):
        async with pool.get_connection(timeout=10.0) as connection:
            await connection.send("mine")
            assert await connection.recv() == "mine"
        peer = await peer_of(server)
        await until(lambda: pool.available_connections, "it is idle")
        await peer.send("stray")
        expected += 1
        # Either the next acquire finds it, or a sweep has been faster.
        await until(
            lambda c=connection, n=expected: wire_of(c).has_news or len(drained) == n,
            "it has arrived",
        )
    async with pool.get_connection(timeout=10.0) as connection:
        await connection.send("theirs")
        assert await connection.recv() == "theirs"
    assert drained == [(1, "stray")] * 4
    assert pool.stats.drained_messages == link_of(connection).drained_messages == 4


async def test_strays_are_disposed_of_without_any_acquire(
    server: Server, make_draining: MakePool, drained: Drained
) -> None:
    pool = make_draining()
    await pool.release(connection := await pool.acquire())
    peer = await peer_of(server)
    await peer.send("one")
    await peer.send(b"two")
    await until(lambda: len(drained) == 2, "the sweep has seen them")
    assert drained == [(1, "one"), (1, b"two")]
    assert connection.state is State.IDLE


@pytest.mark.parametrize("is_checked", [False, True])
async def test_messages_unread_at_release_go_to_on_drained(
    server: Server, make_draining: MakePool, drained: Drained, is_checked: bool
) -> None:
    """In their order, those included that were read ahead for a borrower who did not ask."""
    server.handler = replies("1", "2", "3")
    pool = make_draining(
        max_connections=1, check_server_data_on_release=is_checked, drain_quiet_period=0.02
    )
    async with pool.get_connection() as connection:
        await connection.send("work")
        assert await connection.recv() == "1"
        await connection.ping()  # its pong comes behind the rest, which is kept for recv
    async with pool.get_connection(timeout=10.0) as connection:
        assert drained == [(1, "2"), (1, "3")]
        await connection.send("work")
        assert await connection.recv() == "1"
    await until(lambda: len(drained) == 4, "the rest is drained")
    assert pool.stats.drained_messages == 4


async def test_a_close_behind_unread_messages_is_noticed_at_release(
    server: Server, make_draining: MakePool, drained: Drained
) -> None:
    async def last_words(peer: Peer) -> None:
        await peer.recv()
        await peer.send("last words")
        await peer.close(1001)

    server.handler = last_words
    pool = make_draining()
    connection = await pool.acquire()
    await connection.send("work")
    wire = wire_of(connection)
    await until(
        lambda: len(wire.frames) + len(wire.inbox or ()) == 2 or not connection.is_connected,
        "both are here",
    )
    await pool.release(connection)
    await until(lambda: connection.state is State.CLOSED, "the close is noticed")
    assert why_closed(connection) == CloseReason.SERVER
    with pytest.raises(ConnectionClosedError):
        await connection.recv()
