"""The interface that this package implements, name by name, and what is promised of its use."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import json
import logging
import re
import threading
import time
import warnings
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from aiohttp import ClientWebSocketResponse

from tests.conftest import MakePool, until
from tests.support.inside import link_of, queues_of, wire_of
from wspool import (
    ConnectionBusyError,
    ConnectionClosedError,
    ConnectionPoolExhaustedError,
    ConnectionPoolTimeoutError,
    ConnectionPoolUnavailableError,
    ConnectionUnavailableError,
    PendingConnection,
    State,
    WebsocketConnection,
    WebsocketConnectionPool,
)
from wspool.testing import Peer, Server

SECRET = "hunter2"


async def ticks(number: int) -> None:
    """Let the event loop go round a few times; how long that takes does not matter."""
    for _ in range(number):
        await asyncio.sleep(0)


# The constructor.

INTERFACE: dict[str, object] = {
    "uri": inspect.Parameter.empty,
    "headers": None,
    "idle_timeout": 60.0,
    "max_connections": 50,
    "max_retries": 3,
    "cleanup_interval": 5.0,
    "connection_timeout": 10.0,
    "warmup_connections": 0,
    "check_server_data_on_release": False,
    "drain_timeout": 10.0,
    "drain_quiet_period": 2.0,
    "drain_condition": None,
}

ADDED: dict[str, object] = {
    "session": None,
    "name": None,
    "acquire_timeout": 0.0,
    "max_waiting": None,
    "max_connecting": 10,
    "min_connections": 0,
    "min_idle": 0,
    "max_lifetime": None,
    "max_uses": None,
    "check_after_idle": None,
    "keepalive": None,
    "keepalive_interval": None,
    "on_connect": None,
    "on_release": None,
    "on_close": None,
    "control": None,
    "drain_until": None,
    "drain_fence": False,
    "on_drained": None,
    "close_timeout": 5.0,
    "leak_threshold": None,
    "quota": None,
    "learn_limit": True,
    "is_full": None,
    "max_streams": 1,
    "route": None,
    "max_unread": 4 * 1024 * 1024,
}


def test_the_constructor_has_the_interfaces_arguments_first_then_ours() -> None:
    *named, _ = inspect.signature(WebsocketConnectionPool).parameters.values()
    assert list({p.name: p.default for p in named}.items())[: len(INTERFACE)] == [
        *INTERFACE.items()
    ]
    assert {p.name: p.default for p in named} == INTERFACE | ADDED
    assert {type(p.default) for p in named if p.name in ("idle_timeout", "drain_timeout")} == {
        float
    }


def test_every_argument_but_the_uri_is_keyword_only_and_the_rest_is_for_ws_connect() -> None:
    uri, *named, rest = inspect.signature(WebsocketConnectionPool).parameters.values()
    assert (uri.name, uri.kind) == ("uri", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    assert {parameter.kind for parameter in named} == {inspect.Parameter.KEYWORD_ONLY}
    assert rest.kind is inspect.Parameter.VAR_KEYWORD


# Names.


@pytest.mark.parametrize(
    "name", ["start", "release", "run", "close_all", "aclose", "__aenter__", "__aexit__"]
)
def test_a_method_of_the_pool_that_waits_is_a_coroutine_function(name: str) -> None:
    assert inspect.iscoroutinefunction(getattr(WebsocketConnectionPool, name))


@pytest.mark.parametrize(
    "name",
    [
        "get_connection",
        "get_new_connection",
        "expire_connections",
        "resize",
        "snapshot",
        "state_diagram",
    ],
)
def test_a_method_of_the_pool_that_does_not_wait_is_plain(name: str) -> None:
    method = getattr(WebsocketConnectionPool, name)
    assert callable(method)
    assert not inspect.iscoroutinefunction(method)


def test_release_takes_a_connection_and_the_keyword_force_remove() -> None:
    _, connection, force_remove = inspect.signature(
        WebsocketConnectionPool.release
    ).parameters.values()
    assert connection.name == "connection"
    assert (force_remove.name, force_remove.default) == ("force_remove", False)
    assert force_remove.kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize(
    "name",
    [
        "uri",
        "headers",
        "is_closed",
        "is_started",
        "total_connections",
        "available_connections",
        "busy_connections",
        "pending_connections",
        "stats",
        "connections",
    ],
)
def test_what_the_pool_shows_cannot_be_assigned(name: str) -> None:
    pool = WebsocketConnectionPool(uri="ws://localhost/")
    getattr(pool, name)
    with pytest.raises(AttributeError):
        setattr(pool, name, None)


@pytest.mark.parametrize("name", ["send", "recv", "ping", "close", "send_json", "recv_json"])
def test_a_method_of_a_connection_is_a_coroutine_function(name: str) -> None:
    assert inspect.iscoroutinefunction(getattr(WebsocketConnection, name))


def test_a_pending_connection_has_the_interfaces_arguments() -> None:
    names = list(inspect.signature(PendingConnection).parameters)
    assert names == ["connection", "drain_timeout", "drain_condition"]


def test_a_pending_connection_is_completed_once_without_pool_and_loop() -> None:
    """Its coroutine never waits, so that it can be stepped by hand."""

    def run(coroutine: Any) -> Any:
        with pytest.raises(StopIteration) as caught:
            coroutine.send(None)
        return caught.value.value

    connection = cast(WebsocketConnection, object())
    before = time.time()
    pending = PendingConnection(connection, 2.5, bool)
    assert before <= pending.created_at <= time.time()
    assert pending.connection is connection
    assert pending.drain_timeout == 2.5
    assert pending.drain_condition is bool
    assert pending.drain_task is None
    assert isinstance(pending.pending_id, str)
    assert pending.pending_id != PendingConnection(connection, 2.5, None).pending_id
    assert run(pending.mark_completed()) is True
    assert run(pending.mark_completed()) is False
    assert run(pending.mark_completed()) is False


# A pool before, during and after its life.


def test_a_pool_can_be_made_without_a_loop() -> None:
    pool = WebsocketConnectionPool(uri="ws://localhost/")
    assert not pool.is_started
    assert not pool.is_closed
    assert pool.uri == "ws://localhost/"
    assert pool.total_connections == 0
    assert pool.available_connections == 0
    assert pool.busy_connections == 0
    assert pool.pending_connections == 0
    assert pool.connections == ()
    assert "not started" in repr(pool)
    assert json.dumps(pool.snapshot().to_dict())


def test_a_pool_made_outside_a_loop_works_in_one() -> None:
    async def use(pool: WebsocketConnectionPool, server: Server) -> object:
        async with pool, pool.get_connection() as connection:
            await connection.send("hello")
            return await connection.recv()

    with asyncio.Runner() as runner:
        server = Server()
        runner.run(server.start())
        pool = WebsocketConnectionPool(uri=server.uri)
        assert runner.run(use(pool, server)) == "hello"
        runner.run(server.stop())


def test_headers_are_empty_for_none_and_otherwise_what_was_given() -> None:
    assert WebsocketConnectionPool(uri="ws://localhost/").headers == {}
    headers = {"X-Key": "a"}
    assert WebsocketConnectionPool(uri="ws://localhost/", headers=headers).headers is headers


async def test_headers_are_read_at_each_dial(server: Server, make_pool: MakePool) -> None:
    headers = {"X-Key": "a"}
    pool = make_pool(headers=headers)
    first = await pool.acquire()
    headers["X-Key"] = "b"
    second = await pool.acquire()
    assert [request.headers["X-Key"] for request in server.requests] == ["a", "b"]
    assert (first.headers, second.headers) == ({"X-Key": "a"}, {"X-Key": "b"})
    await pool.release(first)
    await pool.release(second)


async def test_acquire_starts_a_pool_that_was_not_started(make_pool: MakePool) -> None:
    pool = make_pool()
    connection = await pool.acquire()
    assert pool.is_started
    await pool.release(connection)


async def test_start_returns_when_the_warm_up_is_over(server: Server, make_pool: MakePool) -> None:
    pool = make_pool(warmup_connections=3)
    await pool.start()
    assert pool.is_started
    assert pool.available_connections == 3
    assert len(server.requests) == 3


async def test_a_second_start_returns_and_opens_nothing(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool(warmup_connections=2)
    await pool.start()
    await pool.start()
    assert pool.total_connections == 2
    assert len(server.requests) == 2


async def test_five_starts_at_once_open_one_set_of_connections_and_all_wait_for_it(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool(warmup_connections=2)
    seen: list[int] = []

    async def start() -> None:
        await pool.start()
        seen.append(pool.available_connections)

    await asyncio.gather(*(start() for _ in range(5)))
    assert seen == [2] * 5
    assert len(server.requests) == 2


async def test_a_start_after_the_close_returns_and_opens_nothing(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool(warmup_connections=2)
    await pool.start()
    await pool.close_all()
    await pool.start()
    assert pool.is_closed
    assert pool.total_connections == 0
    assert len(server.requests) == 2


async def test_a_closed_pool_lends_nothing(make_pool: MakePool) -> None:
    pool = make_pool()
    async with pool:
        assert pool.is_started
        assert not pool.is_closed
    assert pool.is_closed
    with pytest.raises(ConnectionPoolUnavailableError):
        await pool.acquire()
    with pytest.raises(ConnectionPoolUnavailableError):
        await pool.acquire_new()
    with pytest.raises(ConnectionPoolUnavailableError):
        async with pool.get_connection():
            pytest.fail("nothing was to be lent")


async def test_a_pool_that_never_started_can_be_closed_and_dials_nothing(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool(warmup_connections=2)
    await pool.close_all()
    await pool.close_all()
    assert pool.is_closed
    assert not server.requests


async def test_the_counts_follow_a_connection(server: Server, make_pool: MakePool) -> None:
    pool = make_pool(check_server_data_on_release=True)

    def counts() -> tuple[int, int, int, int]:
        return (
            pool.total_connections,
            pool.available_connections,
            pool.busy_connections,
            pool.pending_connections,
        )

    connection = await pool.acquire()
    assert counts() == (1, 0, 1, 0)
    assert [one.id for one in pool.connections] == [connection.id]
    await pool.release(connection)
    assert counts() == (1, 0, 0, 1)
    assert connection.is_draining
    pending = link_of(connection).owner
    assert isinstance(pending, PendingConnection)
    assert pool.connections == (pending.connection,)
    with pytest.raises(ConnectionBusyError):
        await connection.close()
    assert counts() == (1, 0, 0, 1)
    await server.peers[0].close()
    await until(lambda: connection.state is State.CLOSED, "the close is noticed")
    assert counts() == (0, 0, 0, 0)


# Releasing what is not lent.


@pytest.mark.parametrize("force_remove", [False, True])
async def test_releasing_another_pools_connection_is_only_a_warning_in_the_log(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture, force_remove: bool
) -> None:
    ours, theirs = make_pool(), make_pool()
    connection = await theirs.acquire()
    with caplog.at_level(logging.WARNING, "wspool"):
        await ours.release(connection, force_remove=force_remove)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert f"#{connection.id}" in record.getMessage()
    assert connection.is_busy
    assert theirs.busy_connections == 1
    assert ours.total_connections == 0
    await connection.send("still mine")
    assert await connection.recv() == "still mine"
    await theirs.release(connection)


@pytest.mark.parametrize("force_remove", [False, True])
async def test_releasing_twice_is_only_a_warning_in_the_log(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture, force_remove: bool
) -> None:
    pool = make_pool()
    connection = await pool.acquire()
    await pool.release(connection)
    with caplog.at_level(logging.WARNING, "wspool"):
        await pool.release(connection, force_remove=force_remove)
    [warning] = [record for record in caplog.records if record.name == "wspool"]
    assert "releasing it does nothing" in warning.getMessage()
    assert [one.id for one in pool.connections] == [connection.id]
    assert connection.state is State.IDLE


async def test_a_connection_that_its_borrower_closed_is_released_silently(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool()
    connection = await pool.acquire()
    await connection.close()
    await pool.release(connection)
    assert not caplog.records
    assert pool.total_connections == 0


# Pictures.


def secret_pool(server: Server, make_pool: MakePool, **options: Any) -> WebsocketConnectionPool:
    uri = f"ws://{SECRET}:{SECRET}@127.0.0.1:{server.port}/?token={SECRET}"
    return make_pool(uri=uri, headers={"X-Key": SECRET}, **options)


async def test_a_snapshot_goes_through_json_with_every_documented_key_and_no_secret(
    server: Server, make_pool: MakePool
) -> None:
    pool = secret_pool(server, make_pool, name="speech")
    async with pool.get_connection() as connection:
        await connection.send("hello")
        await connection.recv()
        gone = await pool.acquire()
        await pool.release(gone, force_remove=True)
        await until(lambda: link_of(gone) in queues_of(pool).gone, "the connection is gone")
        text = json.dumps(pool.snapshot().to_dict())
    assert SECRET not in text
    picture = json.loads(text)
    assert set(picture) == {
        "name", "at", "uri", "is_started", "is_closed", "counts", "waiters", "max_connections",
        "min_connections", "max_connecting", "connections", "gone", "waiting", "stats", "failure",
        "learned_limit", "max_streams",
    }  # fmt: skip
    assert picture["name"] == "speech"
    assert picture["uri"] == f"ws://127.0.0.1:{server.port}/?…"
    assert picture["is_started"] is True
    assert picture["is_closed"] is False
    assert picture["counts"] == {
        "connecting": 0, "idle": 0, "busy": 1, "draining": 0, "closed": 0
    }  # fmt: skip
    assert (picture["waiters"], picture["max_connections"], picture["max_connecting"]) == (
        0,
        50,
        10,
    )
    [there], [left] = picture["connections"], picture["gone"]
    for shown in (there, left):
        assert set(shown) == {
            "id", "state", "seconds_in_state", "age", "uses", "idle_seconds", "rtt",
            "sent_messages", "sent_bytes", "received_messages", "received_bytes",
            "drained_messages", "subprotocol", "close_code", "close_reason", "borrower",
            "is_overdue", "history", "streams",
        }  # fmt: skip
        for line in shown["history"]:
            assert set(line) == {"trigger", "source", "dest", "at", "why"}
    assert (there["id"], there["state"], there["uses"]) == (connection.id, "busy", 1)
    assert [line["trigger"] for line in left["history"]] == ["connected", "checkout", "close"]
    assert left["history"][-1]["why"] == "user"
    seconds = [picture["stats"].pop(name) for name in ("wait_seconds", "dial_seconds")]
    assert all(second > 0 for second in seconds)
    assert picture["stats"] == {
        "borrows": 2, "waits": 2, "timeouts": 0, "dials": 2, "failures": {},
        "drained_messages": 0, "repeats": 0, "overflows": 0, "refusals": {}, "closes": {"user": 1},
    }  # fmt: skip


async def test_a_snapshot_does_not_change_afterwards(make_pool: MakePool) -> None:
    pool = make_pool()
    connection = await pool.acquire()
    before = pool.snapshot()
    picture = before.to_dict()
    await pool.release(connection, force_remove=True)
    assert before.to_dict() == picture
    assert before.stats.closes == {}


async def test_a_repr_is_one_line_with_the_counts_and_no_secret(
    server: Server, make_pool: MakePool
) -> None:
    pool = secret_pool(server, make_pool, name='it\'s "two"', max_connections=7)
    connection = await pool.acquire()
    assert repr(pool) == (
        "<WebsocketConnectionPool 'it\\'s \"two\"' "
        f"ws://127.0.0.1:{server.port}/?… connecting=0 idle=0 busy=1 draining=0 closed=0 "
        "waiting=0 max=7>"
    )
    assert repr(connection) == (
        f"<WebsocketConnection #1 busy ws://127.0.0.1:{server.port}/?… uses=1>"
    )
    await pool.release(connection)


async def test_the_state_diagram_has_the_counts(make_pool: MakePool) -> None:
    pool = make_pool(warmup_connections=3)
    await pool.start()
    connection = await pool.acquire()
    lines = pool.state_diagram().splitlines()
    assert lines[0] == "stateDiagram-v2"
    assert "    idle: idle (2)" in lines
    assert "    busy: busy (1)" in lines
    assert "    draining: draining (0)" in lines
    assert "    idle --> busy: checkout" in lines
    await pool.release(connection)


async def test_what_the_pool_shows_may_be_looked_at_from_any_thread(make_pool: MakePool) -> None:
    pool = make_pool()
    connection = await pool.acquire()

    def look() -> tuple[object, ...]:
        pool.snapshot().to_dict()
        repr(pool)
        return (pool.busy_connections, pool.stats.borrows, connection.history[-1].trigger)

    assert await asyncio.to_thread(look) == (1, 1, "checkout")
    await pool.release(connection)


# A connection.


async def test_a_connection_shows_where_it_goes_and_how_it_is(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool(headers={"X-Key": "a"})
    before = time.time()
    connection = await pool.acquire()
    assert connection.uri == server.uri
    assert connection.headers == {"X-Key": "a"}
    assert connection.is_connected
    assert connection.is_busy
    assert not connection.is_draining
    assert not connection.reused
    assert (connection.id, connection.uses, connection.state) == (1, 1, State.BUSY)
    assert isinstance(connection.websocket, ClientWebSocketResponse)
    assert before <= connection.created_at <= time.time()
    await connection.close(4000, "enough")
    assert not connection.is_connected
    assert not connection.is_busy
    assert (connection.close_code, connection.close_reason) == (4000, "enough")
    assert server.peers[0].websocket.close_code == 4000
    assert [line.trigger for line in connection.history] == ["connected", "checkout", "close"]
    await pool.release(connection)


async def test_last_activity_is_that_of_the_last_of_the_messages_that_came_together(
    make_pool: MakePool,
) -> None:
    pool = make_pool()
    async with pool.get_connection() as connection:
        for _ in range(2):
            await connection.send("hello")
        wire = wire_of(connection)
        await until(lambda: len(wire.frames) + len(wire.inbox or ()) == 2, "both are here")
        wire.last_activity = 0.0
        await connection.recv()
        await connection.recv()
        assert connection.last_activity == wire.last_activity > 0.0


async def test_last_activity_is_the_unix_time_of_the_last_message(make_pool: MakePool) -> None:
    async with make_pool().get_connection() as connection:
        before = time.time()
        await connection.send("hello")
        sent = connection.last_activity
        assert before <= sent <= time.time()
        await connection.recv()
        assert sent <= connection.last_activity <= time.time()


async def test_text_comes_back_as_str_and_binary_as_bytes(make_pool: MakePool) -> None:
    async with make_pool().get_connection() as connection:
        for message in ("text", b"bytes", "", b""):
            await connection.send(message)
            received = await connection.recv()
            assert received == message
            assert type(received) is type(message)


@pytest.mark.parametrize("message", [None, 5, ["a"], {"a": 1}])
async def test_sending_anything_else_is_a_type_error(make_pool: MakePool, message: Any) -> None:
    async with make_pool().get_connection() as connection:
        with pytest.raises(TypeError, match=type(message).__name__):
            await connection.send(message)


async def test_json_goes_there_and_back(make_pool: MakePool) -> None:
    async with make_pool().get_connection() as connection:
        await connection.send_json({"a": [1, None, "ü"]})
        assert await connection.recv_json() == {"a": [1, None, "ü"]}


async def test_iteration_gives_every_message_until_the_server_closes_normally(
    server: Server, make_pool: MakePool
) -> None:
    async def three_and_out(peer: Peer) -> None:
        await peer.recv()
        for number in range(3):
            await peer.send(str(number))
        await peer.close(1000)

    server.handler = three_and_out
    async with make_pool().get_connection() as connection:
        await connection.send("go")
        assert [message async for message in connection] == ["0", "1", "2"]


async def test_iteration_raises_when_the_server_closes_otherwise(
    server: Server, make_pool: MakePool
) -> None:
    async def one_and_out(peer: Peer) -> None:
        await peer.recv()
        await peer.send("0")
        await peer.close(1011, "oops")

    server.handler = one_and_out
    seen = []
    async with make_pool().get_connection() as connection:
        await connection.send("go")

        async def iterate() -> None:
            async for message in connection:
                seen.append(message)

        with pytest.raises(ConnectionClosedError, match="oops") as caught:
            await iterate()
    assert seen == ["0"]
    assert (caught.value.code, caught.value.reason) == (1011, "oops")


async def test_iteration_raises_when_the_pool_closes(make_pool: MakePool) -> None:
    """The stream is not over: the server had more to say."""
    pool = make_pool()
    connection = await pool.acquire()

    async def iterate() -> list[str | bytes]:
        return [message async for message in connection]

    task = asyncio.create_task(iterate())
    await ticks(3)
    await pool.close_all()
    with pytest.raises(ConnectionClosedError, match="pool closed"):
        await task


async def test_ping_returns_the_round_trip_in_seconds(make_pool: MakePool) -> None:
    async with make_pool().get_connection() as connection:
        round_trip = await connection.ping()
        assert isinstance(round_trip, float)
        assert round_trip > 0
        assert connection.rtt == round_trip


async def test_a_server_that_says_why_and_closes_at_once_is_not_dialled_for_ever(
    server: Server, make_pool: MakePool
) -> None:
    """Many servers refuse a token so: a handshake, an error message, a close."""

    async def refuse(peer: Peer) -> None:
        if peer.number > 20:  # the net of this test
            await peer.recv()
        await peer.send("bad token")
        await peer.close(1008, "bad token")

    server.handler = refuse
    pool = make_pool(max_retries=3)
    with contextlib.suppress(ConnectionUnavailableError):
        connection = await pool.acquire()
        await pool.release(connection)
    assert len(server.requests) <= 4


# Whose turn it is.


@pytest.mark.parametrize("doing", ["send", "recv", "ping"])
async def test_an_idle_connection_is_nobodys_to_use(make_pool: MakePool, doing: str) -> None:
    pool = make_pool()
    connection = await pool.acquire()
    await pool.release(connection)
    arguments = ["hello"] if doing == "send" else []
    [shown] = pool.connections
    for nobodys, why in [(connection, "is over"), (shown, "it is idle and not lent")]:
        with pytest.raises(ConnectionBusyError, match=why) as caught:
            await getattr(nobodys, doing)(*arguments)
        assert doing in str(caught.value)
    assert connection.state is State.IDLE


async def test_the_second_task_in_recv_gets_a_clear_error_and_the_first_its_message(
    make_pool: MakePool,
) -> None:
    async with make_pool().get_connection() as connection:
        first = asyncio.create_task(connection.recv())
        await ticks(1)
        with pytest.raises(ConnectionBusyError, match="Another task is in recv"):
            await connection.recv()
        await connection.send("hello")
        assert await first == "hello"


async def test_messages_that_come_before_a_pong_are_kept_in_order(make_pool: MakePool) -> None:
    async with make_pool().get_connection() as connection:
        for number in range(10):
            await connection.send(str(number))
        await connection.ping()
        assert [await connection.recv() for _ in range(10)] == [str(n) for n in range(10)]


async def test_pings_beside_recv_keep_the_messages_in_order(make_pool: MakePool) -> None:
    async with make_pool().get_connection() as connection:
        received: list[str | bytes] = []

        async def receive() -> None:
            while len(received) < 200:
                received.append(await connection.recv())

        async def ping() -> None:
            for _ in range(20):
                await connection.ping()

        async with asyncio.TaskGroup() as group:
            group.create_task(receive())
            for _ in range(5):
                group.create_task(ping())
            for number in range(200):
                await connection.send(str(number))
                await ticks(number % 3)
        assert received == [str(number) for number in range(200)]


async def test_a_recv_that_is_cancelled_at_any_moment_loses_nothing(make_pool: MakePool) -> None:
    async with make_pool().get_connection() as connection:
        received: list[str | bytes] = []
        for number in range(200):
            await connection.send(str(number))
            task = asyncio.create_task(connection.recv())
            await ticks(number % 12)
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                received.append(task.result())
        while len(received) < 200:
            received.append(await connection.recv())
        assert received == [str(number) for number in range(200)]
        assert connection.is_connected


async def test_a_ping_that_is_cancelled_leaves_the_messages_to_recv(make_pool: MakePool) -> None:
    async with make_pool().get_connection() as connection:
        for number in range(100):
            await connection.send(str(number))
            task = asyncio.create_task(connection.ping())
            await ticks(number % 12)
            task.cancel()
            await asyncio.wait({task})
            assert await connection.recv() == str(number)


# Loops and threads.

Use = Callable[[WebsocketConnectionPool, WebsocketConnection], Awaitable[object]]


async def enter(pool: WebsocketConnectionPool, connection: WebsocketConnection) -> None:
    async with pool.get_connection():
        pytest.fail("nothing was to be lent")


async def expire(pool: WebsocketConnectionPool, connection: WebsocketConnection) -> None:
    pool.expire_connections()


async def resize(pool: WebsocketConnectionPool, connection: WebsocketConnection) -> None:
    pool.resize(1)


USES: dict[str, Use] = {
    "start": lambda pool, _: pool.start(),
    "acquire": lambda pool, _: pool.acquire(),
    "acquire_new": lambda pool, _: pool.acquire_new(),
    "get_connection": enter,
    "release": lambda pool, connection: pool.release(connection),
    "run": lambda pool, _: pool.run(WebsocketConnection.ping),
    "expire_connections": expire,
    "resize": resize,
    "close_all": lambda pool, _: pool.close_all(),
}


async def error_of(use: Use, pool: WebsocketConnectionPool, connection: WebsocketConnection) -> str:
    """Return the text of the RuntimeError."""
    with pytest.raises(RuntimeError) as caught:
        await use(pool, connection)
    return str(caught.value)


@pytest.mark.parametrize("use", USES.values(), ids=USES)
async def test_use_from_another_thread_is_an_error_that_names_both_and_changes_nothing(
    make_pool: MakePool, use: Use
) -> None:
    pool = make_pool()
    connection = await pool.acquire()
    before = pool.snapshot()

    def elsewhere() -> tuple[str, int]:
        return asyncio.run(error_of(use, pool, connection)), threading.get_ident()

    text, other = await asyncio.to_thread(elsewhere)
    assert "belongs to" in text
    assert str(threading.get_ident()) in text
    assert str(other) in text
    assert len(re.findall(r"EventLoop|uvloop\.Loop", text)) == 2
    after = pool.snapshot()
    assert (after.counts, after.max_connections) == (before.counts, before.max_connections)
    assert not pool.is_closed
    assert connection.is_busy
    await pool.release(connection)


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_use_from_a_second_loop_is_an_error_that_names_both(use: Use) -> None:
    pool = WebsocketConnectionPool(uri="ws://localhost/")
    connection = cast(WebsocketConnection, object())
    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(pool.start())
        text = second.run(error_of(use, pool, connection))
        max_connections = pool._router.options.max_connections
        first.run(pool.close_all())
    assert "belongs to" in text
    assert len(re.findall(r"EventLoop|uvloop\.Loop", text)) == 2
    assert max_connections == 50


# Dropped.


@pytest.mark.parametrize("warmup_connections", [0, 2])
async def test_a_dropped_pool_gives_a_resource_warning_that_says_where_it_was_made(
    server: Server, warmup_connections: int
) -> None:
    line = inspect.currentframe().f_lineno + 1  # type: ignore[union-attr]
    pool = WebsocketConnectionPool(uri=server.uri, warmup_connections=warmup_connections)
    await pool.start()
    # aiohttp tells the loop, too, of the session that went with the pool.
    loop = asyncio.get_running_loop()
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda *_: None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del pool
        gc.collect()
        shown = [(w.category, str(w.message)) for w in caught]
        caught.clear()  # a warning holds its source, here the pool
        gc.collect()
        await until(lambda: not server.open, "the sockets are gone")
        gc.collect()
        shown += [(w.category, str(w.message)) for w in caught]
        caught.clear()
    loop.set_exception_handler(handler)
    ours = [text for _, text in shown if "WebsocketConnectionPool" in text]
    assert len(ours) == 1
    assert f"{__file__}:{line}" in ours[0]
    assert {category for category, _ in shown} == {ResourceWarning}


async def test_a_pool_that_was_closed_or_never_started_is_dropped_silently(server: Server) -> None:
    """The suite runs under -W error."""
    pool = WebsocketConnectionPool(uri=server.uri)
    del pool
    gc.collect()
    pool = WebsocketConnectionPool(uri=server.uri, warmup_connections=1)
    await pool.start()
    await pool.close_all()
    del pool
    gc.collect()


# No capacity.


async def test_an_exhausted_pool_raises_at_once_and_shows_its_counts_without_secrets(
    server: Server, make_pool: MakePool
) -> None:
    pool = secret_pool(server, make_pool, max_connections=1)
    connection = await pool.acquire()
    with pytest.raises(ConnectionPoolExhaustedError) as caught:
        await pool.acquire()
    assert "busy=1" in str(caught.value)
    assert "pass timeout=… to let it, or make the pool with acquire_timeout=…" in str(caught.value)
    assert SECRET not in str(caught.value)
    with pytest.raises(ConnectionPoolTimeoutError) as late:
        await pool.acquire(timeout=0.01)
    assert "No connection within 0.01 s; pass a longer timeout=…, or" in str(late.value)
    assert "a longer acquire_timeout=…: " in str(late.value)
    await pool.release(connection)


async def test_a_connection_is_used_again(server: Server, make_pool: MakePool) -> None:
    pool = make_pool()
    for _ in range(3):
        async with pool.get_connection() as connection:
            await connection.send("#n")
            assert await connection.recv() == "1"
    await pool.close_all()
    assert not server.open
