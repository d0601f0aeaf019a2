"""Streams: several borrowers on one connection, each with the messages of its own keys."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.conftest import MakePool, until, why_closed
from tests.support.inside import link_of, queues_of, router_of, wire_of
from wspool import (
    CloseReason,
    ConnectionBusyError,
    ConnectionClosedError,
    ConnectionPoolExhaustedError,
    ConnectionPoolTimeoutError,
    ConnectionPoolUnavailableError,
    State,
    StreamOverflowError,
    WebsocketConnection,
    WebsocketConnectionPool,
    WebsocketStream,
)
from wspool._connection import budget
from wspool._connection import sharing as sharing_module
from wspool._connection.routes import UNPARSED
from wspool.testing import Peer, Server


async def rpc(peer: Peer) -> None:
    """Answer as a JSON-RPC server does: each question's id with its params, in any order.

    `push` sends its params as they are; `late` answers after the next question; `mute` never.
    """
    late: list[Any] = []
    async for message in peer:
        question = json.loads(message)
        answer = {"id": question["id"], "result": question.get("params")}
        match question.get("method"):
            case "push":
                for pushed in question["params"]:
                    await peer.send_json(pushed)
            case "late":
                late.append(answer)
                continue
            case "mute":
                continue
            case "close":
                await peer.close(*question["params"])
                return
            case "drop":
                peer.drop()
                return
        await peer.send_json(answer)
        for answer in late:
            await peer.send_json(answer)
        late.clear()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with Server(rpc) as server:
        yield server


@pytest.fixture
def make(make_pool: MakePool) -> Callable[..., WebsocketConnectionPool]:
    def make(**options: Any) -> WebsocketConnectionPool:
        shared = {"max_connections": 2, "max_streams": 3, "route": ("params.subscription", "id")}
        return make_pool(**shared | options)

    return make


Make = Callable[..., WebsocketConnectionPool]


async def ask(stream: WebsocketStream, params: Any = None, method: str = "echo") -> Any:
    """Ask one question, and return the result of the next message, which must be its answer."""
    key = stream.claim()
    await stream.send_json({"id": key, "method": method, "params": params})
    answer = await stream.recv_json()
    assert answer["id"] == key
    return answer["result"]


async def fail(pool: WebsocketConnectionPool) -> None:
    """Leave a stream by an exception, with an answer under way."""
    async with pool.get_stream() as stream:
        await stream.send_json({"id": stream.claim(), "method": "late"})
        raise KeyError


async def read_all(stream: WebsocketStream, read: list[Any]) -> None:
    while True:
        read.append((await stream.recv_json())["n"])


def is_final(message: str | bytes) -> bool:
    return bool(json.loads(message).get("final"))


# Claims, numbers and slots.


async def test_streams_share_a_connection_and_get_their_own_answers_only(
    make: Make, server: Server
) -> None:
    pool = make()
    async with pool.get_stream() as a, pool.get_stream() as b:
        first, second = a.claim(), b.claim()
        await b.send_json({"id": second, "params": "b"})
        await a.send_json({"id": first, "params": "a"})
        assert await a.recv_json() == {"id": first, "result": "a"}
        assert await b.recv_json() == {"id": second, "result": "b"}
        assert a.connection.id == b.connection.id
        assert (a.slot, b.slot) == (1, 2)
        assert not a.reused
        assert b.reused
        assert queues_of(pool).counts()[State.BUSY] == 1
    assert len(server.requests) == 1
    assert pool.available_connections == 1


async def test_numbers_never_repeat_on_a_connection_and_slots_do(make: Make) -> None:
    pool = make()
    numbers, slots = [], []
    for _ in range(5):
        async with pool.get_stream() as stream:
            numbers += [stream.number, stream.claim(), stream.claim()]
            slots.append(stream.slot)
    assert numbers == list(range(1, 16))
    assert slots == [1] * 5


async def test_a_number_that_somebody_has_claimed_is_not_drawn(make: Make) -> None:
    async with make().get_stream() as stream:
        assert stream.claim(2) == 2
        assert stream.claim() == 3


async def test_a_key_may_be_claimed_once(make: Make) -> None:
    pool = make()
    async with pool.get_stream() as a, pool.get_stream() as b:
        assert a.claim("ctx-1") == "ctx-1"
        with pytest.raises(ValueError, match="'ctx-1' is claimed by this stream of connection #1"):
            a.claim("ctx-1")
        with pytest.raises(ValueError, match="'ctx-1' is claimed by the stream in slot 1"):
            b.claim("ctx-1")
        with pytest.raises(TypeError, match="must be hashable"):
            a.claim(["ctx"])
        assert a.keys == ("ctx-1",)
        assert await ask(b, "works") == "works"
    async with pool.get_stream() as c:
        assert c.claim("ctx-1") == "ctx-1"


async def test_a_stream_that_is_over_can_do_nothing_and_be_read(make: Make) -> None:
    pool = make()
    async with pool.get_stream() as stream:
        key = stream.claim()
    for use in (stream.recv, stream.recv_json, stream.ping, lambda: stream.send("x")):
        with pytest.raises(ConnectionBusyError, match=r"slot 1 of connection #1.*is over"):
            await use()
    with pytest.raises(ConnectionBusyError):
        stream.claim()
    assert (stream.slot, stream.number, stream.state) == (1, 1, State.CLOSED)
    assert stream.keys == (key,)
    with pytest.raises(ConnectionBusyError, match="borrowed once"):
        async with stream:
            pass


async def test_the_connection_of_a_stream_is_to_look_at(make: Make) -> None:
    async with make().get_stream() as stream:
        assert isinstance(stream.connection, WebsocketConnection)
        assert stream.connection.is_connected
        with pytest.raises(ConnectionBusyError):
            await stream.connection.recv()
        with pytest.raises(ConnectionBusyError):
            await stream.connection.close()
        assert await ask(stream, 1) == 1


# Routing.


async def test_a_push_that_comes_before_its_key_is_claimed_is_received(make: Make) -> None:
    """As of `eth_subscribe`: the node pushes before the client has read the subscription's id."""
    async with make().get_stream() as stream:
        first = {"method": "sub", "params": {"subscription": "0x1", "result": 1}}
        assert await ask(stream, [first], "push") == [first]
        stream.claim("0x1")
        assert await stream.recv_json() == first


async def test_what_came_before_its_key_was_claimed_is_received_first(make: Make) -> None:
    """Also where something with another key of the stream's has come after it, and is unread."""
    async with make().get_stream() as stream:
        pushes = [{"params": {"subscription": "0x1"}, "n": n} for n in range(3)]
        await stream.send_json({"id": stream.claim(), "method": "push", "params": pushes})
        await stream.send_json({"id": stream.claim(), "params": "the end"})
        assert (await stream.recv_json())["result"] == pushes
        lane = link_of(stream.connection).sharing.lanes[stream.slot]
        await until(lambda: lane.entries, "the end has come")
        stream.claim("0x1")
        assert [(await stream.recv_json())["n"] for _ in range(3)] == [0, 1, 2]
        assert (await stream.recv_json())["result"] == "the end"


async def test_a_push_that_nobody_claims_is_disposed_of_after_a_second(make: Make) -> None:
    drained: list[str | bytes] = []
    pool = make(on_drained=lambda connection, message: drained.append(message))
    async with pool.get_stream() as stream:
        push = {"params": {"subscription": "0x1"}}
        await ask(stream, [push], "push")
        assert not drained
        await until(lambda: drained, "the push was disposed of")
        assert json.loads(drained[0]) == push
        stream.claim("0x1")
        assert await ask(stream, 1) == 1


async def test_unknown_keys_are_kept_within_bounds(make: Make) -> None:
    drained: list[str | bytes] = []
    pool = make(on_drained=lambda connection, message: drained.append(message))
    async with pool.get_stream() as stream:
        pushes = [{"params": {"subscription": n}, "x": "x" * 100_000} for n in range(100, 110)]
        await ask(stream, pushes, "push")
        sharing = link_of(stream.connection).sharing
        assert 400_000 < sharing.unclaimed.bytes <= 512 * 1024
        assert len(drained) == 5
        stream.claim(109)
        assert (await stream.recv_json())["params"] == {"subscription": 109}


@pytest.mark.parametrize(
    "message", ["no json", b"\xff\x00", '{"id": null}', "[1]", '{"id": [1]}', "{}", "[" * 10_000]
)
async def test_what_has_no_key_belongs_to_nobody(make_pool: MakePool, message: str | bytes) -> None:
    async def say(peer: Peer) -> None:
        await peer.recv()
        await peer.send(message)
        await peer.send_json({"id": 2})
        await peer.recv()

    drained: list[str | bytes] = []
    async with Server(say) as server:
        pool = make_pool(
            uri=server.uri,
            route="id",
            max_streams=2,
            on_drained=lambda connection, message: drained.append(message),
        )
        async with pool.get_stream() as stream:
            stream.claim()
            await stream.send("go")
            assert await stream.recv_json() == {"id": 2}
            assert drained == [message]


async def test_a_route_that_raises_is_logged_once_and_harms_nobody(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    def route(message: str | bytes) -> Any:
        value = json.loads(message)
        if value.get("bad"):
            raise KeyError("on purpose")
        return value.get("unhashable") or value["id"]

    pool = make(route=route)
    async with pool.get_stream() as stream:
        pushes = [{"bad": True}, {"bad": True}, {"unhashable": [1]}]
        assert await ask(stream, pushes, "push") == pushes
        assert await ask(stream, 1) == 1
    assert [record.levelname for record in caplog.records].count("ERROR") == 1
    assert "route raised" in caplog.text


async def test_json_is_parsed_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[object] = []
    loads = json.loads

    def count(message: Any, **options: Any) -> Any:
        parsed.append(message)
        return loads(message, **options)

    async with make().get_stream() as stream:
        monkeypatch.setattr("wspool._connection.routes.json.loads", count)
        key = stream.claim()
        await stream.send_json({"id": key})
        assert await stream.recv_json() == {"id": key, "result": None}
        # Once by the server of the test, which has the question, and once by the pool.
        assert len(parsed) == 2


async def test_much_that_waits_is_kept_as_it_came(make: Make) -> None:
    """Parsed, it may take many times the memory that max_unread allows."""
    pool = make()
    async with pool.get_stream() as stream, pool.get_stream() as other:
        key = stream.claim()
        flood = [{"id": key, "n": n, "x": [0] * 5000} for n in range(20)]
        await ask(other, flood, "push")
        entries = link_of(stream.connection).sharing.lanes[stream.slot].entries
        parsed = [value is not UNPARSED for _, value in entries]
        assert parsed == [True] * sum(parsed) + [False] * (20 - sum(parsed))
        assert 1 < sum(parsed) < 10
        assert [await stream.recv_json() for _ in flood] == flood


async def test_a_callable_route_leaves_the_parsing_to_recv_json(make: Make) -> None:
    pool = make(route=lambda message: int(json.loads(message)["id"]))
    async with pool.get_stream() as stream:
        assert await ask(stream, "x") == "x"


async def test_a_path_counts_in_lists(make_pool: MakePool, server: Server) -> None:
    """As of Phoenix: [join_ref, ref, topic, event, payload]."""

    async def phoenix(peer: Peer) -> None:
        async for message in peer:
            await peer.send(message)

    server.handler = phoenix
    pool = make_pool(route="2", max_streams=2)
    async with pool.get_stream() as a, pool.get_stream() as b:
        a.claim("room:a")
        b.claim("room:b")
        await a.send_json([None, "1", "room:b", "say", {}])
        await b.send_json([None, "1", "room:a", "say", {}])
        assert (await a.recv_json())[2] == "room:a"
        assert (await b.recv_json())[2] == "room:b"


# Reading for all, and handing over.


async def test_the_reader_hands_over_when_it_is_cancelled(make: Make) -> None:
    pool = make()
    async with pool.get_stream() as a, pool.get_stream() as b, pool.get_stream() as c:
        for stream in (a, b):
            await stream.send_json({"id": stream.claim(), "method": "late"})
        first = asyncio.create_task(a.recv_json())
        await asyncio.sleep(0)
        second = asyncio.create_task(b.recv_json())
        await asyncio.sleep(0)
        first.cancel()
        await c.send_json({"id": c.claim()})
        assert (await second)["id"] == b.keys[0]
        assert (await c.recv_json())["id"] == c.keys[0]
        with pytest.raises(asyncio.CancelledError):
            await first
        assert (await a.recv_json())["id"] == a.keys[0], "what was cancelled has taken nothing"


async def test_many_streams_ask_at_once_while_some_are_cancelled(make: Make) -> None:
    pool = make(max_streams=16, max_connections=2, acquire_timeout=None)
    answered = cancelled = 0

    async def worker(number: int) -> None:
        nonlocal answered, cancelled
        for n in range(30):
            try:
                async with pool.get_stream() as stream, asyncio.timeout(0.03 * ((n + number) % 9)):
                    assert await ask(stream, [number, n]) == [number, n]
                    answered += 1
            except TimeoutError:
                cancelled += 1

    await asyncio.gather(*(worker(number) for number in range(64)))
    assert answered + cancelled == 64 * 30
    assert answered > 200
    assert cancelled > 200
    assert all(not link.sharing.lanes for link in queues_of(pool))
    await until(lambda: not pool.busy_connections, "every slot is free")


async def test_one_task_at_a_time_may_be_in_recv_of_a_stream(make: Make) -> None:
    async with make().get_stream() as stream:
        stream.claim()
        reading = asyncio.create_task(stream.recv())
        await asyncio.sleep(0)
        with pytest.raises(ConnectionBusyError, match="one at a time"):
            await stream.recv()
        reading.cancel()


async def test_a_ping_runs_beside_all_readers(make: Make) -> None:
    pool = make()
    async with pool.get_stream() as a, pool.get_stream() as b:
        readings = [asyncio.create_task(stream.recv_json()) for stream in (a, b)]
        await asyncio.sleep(0)
        assert await a.ping() > 0
        assert await b.ping() > 0
        for stream in (a, b):
            await stream.send_json({"id": stream.claim(), "params": stream.slot})
        assert [answer["result"] for answer in await asyncio.gather(*readings)] == [1, 2]
        assert await a.ping() > 0


async def test_a_task_that_outlives_its_stream_reads_nothing_of_the_others(make: Make) -> None:
    pool = make()
    async with pool.get_stream() as other:
        async with pool.get_stream() as stream:
            stray = asyncio.create_task(stream.recv())
            await asyncio.sleep(0)
        assert await ask(other, 1) == 1
        with pytest.raises(ConnectionBusyError):
            await stray
        assert await ask(other, 2) == 2


# Lending.


async def test_64_callers_on_a_cold_pool_make_exactly_4_dials(make: Make, server: Server) -> None:
    pool = make(max_streams=16, max_connections=50)
    gate = asyncio.Event()

    async def call(number: int) -> int:
        async with pool.get_stream() as stream:
            await gate.wait()
            assert await ask(stream, number) == number
            return stream.connection.id

    calls = [asyncio.create_task(call(number)) for number in range(64)]
    await until(lambda: pool.stats.borrows == 64, "all have a stream")
    gate.set()
    ids = await asyncio.gather(*calls)
    assert len(server.requests) == pool.stats.dials == 4
    assert sorted(map(ids.count, set(ids))) == [16] * 4


async def test_one_connection_is_filled_before_the_next(make: Make) -> None:
    pool = make(warmup_connections=2)
    await pool.start()
    streams = [await pool.acquire_stream() for _ in range(5)]
    assert [stream.connection.id for stream in streams] == [2, 2, 2, 1, 1]
    await pool.release_stream(streams[0])
    assert (await pool.acquire_stream()).connection.id in (1, 2)
    with pytest.raises(ConnectionPoolExhaustedError):
        [await pool.acquire_stream() for _ in range(2)]
    for link in list(queues_of(pool).busy):
        for lane in list(link.sharing.lanes.values()):
            await pool.release_stream(lane.owner)
    assert pool.available_connections == 2


async def test_whoever_waits_gets_the_next_free_slot(make: Make) -> None:
    pool = make(max_connections=1, acquire_timeout=5.0)
    streams = [await pool.acquire_stream() for _ in range(3)]
    waiting = [asyncio.create_task(pool.acquire_stream()) for _ in range(2)]
    await until(lambda: pool.waiters == 2, "two wait")
    await pool.release_stream(streams[1])
    assert (await waiting[0]).slot == 2
    waiting[1].cancel()
    await pool.release_stream(streams[0])
    await until(lambda: waiting[1].done(), "it is cancelled")
    async with pool.get_stream(timeout=0) as stream:
        assert stream.slot == 1
    for stream in (waiting[0].result(), streams[2]):
        await pool.release_stream(stream)
    held = [await pool.acquire_stream() for _ in range(3)]
    with pytest.raises(ConnectionPoolTimeoutError):
        await pool.acquire_stream(timeout=0.01)
    for stream in held:
        await pool.release_stream(stream)


async def test_a_connection_is_lent_alone_when_it_is_idle(make: Make) -> None:
    """Who wants one for itself is not starved by streams that come and go."""
    pool = make(max_connections=1, acquire_timeout=5.0)
    first = await pool.acquire_stream()
    alone = asyncio.create_task(pool.acquire())
    await until(lambda: pool.waiters == 1, "it waits")
    later = asyncio.create_task(pool.acquire_stream())
    await until(lambda: pool.waiters == 2, "a stream that comes later waits, too")
    await pool.release_stream(first)
    connection = await alone
    assert connection.state is State.BUSY
    assert not later.done()
    await pool.release(connection)
    await pool.release_stream(await later)


async def test_a_stream_served_in_the_tick_of_its_cancellation_leaves_its_slot(make: Make) -> None:
    pool = make(max_connections=1, max_streams=1, acquire_timeout=5.0)
    first = await pool.acquire_stream()
    waiting = asyncio.create_task(pool.acquire_stream())
    await until(lambda: pool.waiters == 1, "it waits")
    await pool.release_stream(first)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    async with pool.get_stream(timeout=0) as stream:
        assert stream.slot == 1
    assert pool.stats.borrows == 2


# The end of a stream.


async def test_without_a_drain_option_the_slot_is_free_at_once_and_late_answers_are_nobodys(
    make: Make,
) -> None:
    drained: list[Any] = []
    pool = make(on_drained=lambda connection, message: drained.append(json.loads(message)))
    async with pool.get_stream() as other:
        async with pool.get_stream() as stream:
            key = stream.claim()
            await stream.send_json({"id": key, "method": "late"})
        async with pool.get_stream() as stream:
            assert stream.slot == 2
            assert await ask(stream, 1) == 1
        assert await ask(other, 2) == 2
    assert drained == [{"id": key, "result": None}]


async def test_an_exception_harms_no_neighbour(make: Make) -> None:
    pool = make()
    async with pool.get_stream() as other:
        with pytest.raises(KeyError):
            await fail(pool)
        assert await ask(other, 1) == 1
        assert other.connection.is_connected
    async with pool.get_stream() as stream:
        assert stream.connection.id == 1


async def test_a_connection_with_an_answer_given_up_is_lent_alone_to_nobody(make: Make) -> None:
    """The late answer would be the next borrower's first message."""
    pool = make()
    with pytest.raises(KeyError):
        await fail(pool)
    async with pool.get_connection() as connection:
        assert connection.id == 2


async def test_a_stream_drains_by_itself_and_holds_its_slot_until_then(make: Make) -> None:
    pool = make(max_connections=1, drain_until=lambda message: b"end" in message.encode())  # type: ignore[union-attr]
    async with pool.get_stream() as other:
        async with pool.get_stream() as stream:
            key = stream.claim("ctx")
            await stream.send_json({"id": key, "method": "late", "params": "end"})
            slot = stream.slot
        assert stream.state is State.DRAINING
        async with pool.get_stream() as third:
            assert third.slot == 3
            with pytest.raises(ValueError, match="still draining"):
                third.claim("ctx")
            with pytest.raises(ConnectionPoolExhaustedError):
                await pool.acquire_stream()
            assert await ask(third, "end") == "end"
            await until(lambda: stream.state is State.CLOSED, "it has drained")
            third.claim("ctx")
        async with pool.get_stream() as fourth:
            assert fourth.slot == slot
        assert other.connection.state is State.BUSY


async def test_what_a_stream_has_not_read_is_not_drained_message_by_message(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among many that have read enough for this turn of the loop, each message would take one."""
    monkeypatch.setattr(budget, "TURN_SECONDS", -1.0)
    pool = make(drain_until=is_final)
    async with pool.get_stream() as other:
        async with pool.get_stream() as stream:
            key = stream.claim()
            await stream.send_json({"id": key, "method": "mute"})
            answer = [{"id": key, "n": n, "final": n == 89} for n in range(90)]
            await ask(other, answer, "push")
            lane = link_of(stream.connection).sharing.lanes[stream.slot]
            await until(lambda: len(lane.entries) == 90, "all has come")
        turns = 0
        while stream.state is not State.CLOSED:
            turns += 1
            await asyncio.sleep(0)
        assert turns < 10


async def test_a_fence_ends_the_drain_of_a_stream(make: Make) -> None:
    pool = make(drain_fence=True)
    async with pool.get_stream() as other:
        reading = asyncio.create_task(other.recv())
        async with pool.get_stream() as stream:
            await stream.send_json({"id": stream.claim()})
        assert stream.state is State.DRAINING
        await until(lambda: stream.state is State.CLOSED, "the pong has come, read by another")
        reading.cancel()


async def test_a_stream_that_does_not_drain_retires_its_connection_after_its_neighbours(
    make: Make,
) -> None:
    pool = make(drain_until=is_final, drain_timeout=0.05)
    async with pool.get_stream() as other:
        async with pool.get_stream() as stream:
            await stream.send_json({"id": stream.claim(), "method": "mute"})
        connection = other.connection
        await until(lambda: stream.state is State.CLOSED, "the drain has ended")
        assert connection.is_connected
        async with pool.get_stream() as new:
            assert new.connection.id == 2
        key = other.claim()
        await other.send_json({"id": key, "method": "push", "params": [{"id": key, "final": 1}]})
        await other.recv()
    await until(lambda: connection.state is State.CLOSED, "it is closed")
    assert why_closed(connection) is CloseReason.DRAIN


async def test_on_release_gets_the_stream_and_may_end_its_answer(make: Make) -> None:
    got: list[WebsocketStream] = []

    async def cancel(stream: WebsocketStream) -> None:
        got.append(stream)
        assert not stream.is_clean
        [key] = stream.keys
        final = {"id": key, "final": True}
        await stream.send_json({"id": 0, "method": "push", "params": [final]})

    pool = make(on_release=cancel, drain_until=is_final)
    async with pool.get_stream() as other:
        async with pool.get_stream() as stream:
            await stream.send_json({"id": stream.claim(), "method": "mute"})
        await until(lambda: stream.state is State.CLOSED, "it has drained")
        assert got[0] is not stream
        with pytest.raises(ConnectionBusyError):
            await got[0].send("too late")
        assert other.connection.is_connected


async def test_an_on_release_that_raises_retires_the_connection(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(stream: WebsocketStream) -> None:
        raise KeyError("on purpose")

    pool = make(on_release=fail)
    async with pool.get_stream() as other:
        async with pool.get_stream() as stream:
            pass
        await until(lambda: stream.state is State.CLOSED, "the drain has ended")
        assert await ask(other, 1) == 1
        connection = other.connection
    await until(lambda: connection.state is State.CLOSED, "it is closed")
    assert "on_release raised" in caplog.text


async def test_force_remove_closes_the_connection_when_the_neighbours_are_done(make: Make) -> None:
    pool = make()
    a, b = await pool.acquire_stream(), await pool.acquire_stream()
    connection = a.connection
    await pool.release_stream(a, force_remove=True)
    assert await ask(b, 1) == 1
    async with pool.get_stream() as c:
        assert c.connection.id == 2
    await pool.release_stream(b)
    assert why_closed(connection) is CloseReason.USER


async def test_outstanding_counts_per_stream(make: Make) -> None:
    pool = make(drain_until=is_final)
    async with pool.get_stream() as a, pool.get_stream() as b:
        for stream in (a, b):
            key = stream.claim()
            finals = [{"id": key, "final": 1}] * 2
            await stream.send_json({"id": key, "method": "push", "params": finals})
            stream.outstanding = 2
        await a.recv()
        assert (a.outstanding, b.outstanding) == (1, 2)
        assert not a.is_clean
        await a.recv()
        assert a.is_clean
        assert not b.is_clean


async def test_releasing_twice_is_a_warning(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    pool = make()
    stream = await pool.acquire_stream()
    await pool.release_stream(stream)
    await pool.release_stream(stream)
    assert "releasing it does nothing" in caplog.text


# The end of a connection.


async def test_when_the_link_is_lost_each_stream_reads_what_had_come(make: Make) -> None:
    pool = make()
    async with pool.get_stream() as a, pool.get_stream() as b, pool.get_stream() as c:
        for stream in (a, b):
            await stream.send_json({"id": stream.claim(), "params": stream.slot})
        blocked = asyncio.create_task(c.recv())
        await asyncio.sleep(0)
        await c.send_json({"id": c.claim(), "method": "close", "params": [4000, "so long"]})
        with pytest.raises(ConnectionClosedError, match="so long"):
            await blocked
        for stream in (a, b):
            assert (await stream.recv_json())["result"] == stream.slot
            with pytest.raises(ConnectionClosedError) as caught:
                await stream.recv()
            assert caught.value.code == 4000
            with pytest.raises(ConnectionClosedError):
                await stream.send("x")
            with pytest.raises(ConnectionClosedError):
                stream.claim()
            assert stream.state is State.CLOSED
    with pytest.raises(ConnectionClosedError):
        await a.recv()
    async with pool.get_stream() as stream:
        assert await ask(stream, 1) == 1


async def test_iterating_ends_when_the_server_closes_normally(make: Make) -> None:
    async with make().get_stream() as stream:
        key = stream.claim()
        await stream.send_json({"id": key})
        await stream.send_json({"id": key, "method": "close", "params": [1000]})
        assert [json.loads(message) async for message in stream] == [{"id": key, "result": None}]


async def test_a_drop_ends_all_streams_and_their_drains(make: Make) -> None:
    pool = make(drain_until=is_final)
    async with pool.get_stream() as a:
        async with pool.get_stream() as b:
            await b.send_json({"id": b.claim(), "method": "mute"})
        await a.send_json({"id": a.claim(), "method": "drop"})
        with pytest.raises(ConnectionClosedError):
            await a.recv()
        assert b.state is State.CLOSED
    await until(lambda: not len(queues_of(pool)), "nothing is left")


# Who is too slow.


async def test_who_reads_too_slowly_while_others_read_ends_alone(make: Make) -> None:
    pool = make(max_unread=10_000)
    events: list[Any] = []
    pool.subscribe(events.append)
    async with pool.get_stream() as sleeper, pool.get_stream() as other:
        key = sleeper.claim()
        flood = [{"id": key, "n": n, "x": "x" * 1000} for n in range(100)]
        assert len(await ask(other, flood, "push")) == 100
        assert await ask(other, 1) == 1
        read: list[int] = []
        with pytest.raises(StreamOverflowError, match="max_unread"):
            await read_all(sleeper, read)
        assert read == list(range(len(read)))
        assert 5 < len(read) < 12
        with pytest.raises(StreamOverflowError):
            await sleeper.send("x")
        assert await ask(other, 2) == 2
    assert [type(e).__name__ for e in events].count("StreamOverflowed") == 1


async def test_who_reads_alone_never_overflows(make: Make) -> None:
    pool = make(max_unread=1000)
    async with pool.get_stream() as stream:
        key = stream.claim()
        flood = [{"id": key, "n": n, "x": "x" * 2000} for n in range(500)]
        await stream.send_json({"id": key, "method": "push", "params": flood})
        for n in range(500):
            assert (await stream.recv_json())["n"] == n
            await asyncio.sleep(0)


async def test_who_is_in_recv_never_overflows_whoever_reads(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor while it lets the event loop go on, having read for others: another reads then."""
    monkeypatch.setattr(sharing_module, "MIN_FRAMES", 1)
    monkeypatch.setattr(budget, "TURN_SECONDS", -1.0)  # each turn is used up at once
    pool = make(max_unread=1000)
    async with pool.get_stream() as a, pool.get_stream() as b, pool.get_stream() as stream:
        keys = [one.claim() for one in (a, b, stream)]
        few = [{"id": key, "n": n} for n in range(2) for key in keys[:2]]
        flood = [{"id": keys[2], "n": n, "x": "x" * 300} for n in range(20)]

        async def read(one: WebsocketStream, count: int) -> None:
            for _ in range(20):
                for n in range(count):
                    assert (await one.recv_json())["n"] == n

        readers = [asyncio.create_task(read(one, 2)) for one in (a, b)]
        readers.append(asyncio.create_task(read(stream, 20)))
        await asyncio.sleep(0)
        for _ in range(20):
            await stream.send_json({"method": "push", "params": few + flood, "id": None})
        await asyncio.gather(*readers)


async def test_one_reads_at_a_time_also_while_it_lets_the_event_loop_go_on(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that wait for each other before every message would let a flood through drop by drop."""
    monkeypatch.setattr(sharing_module, "MIN_FRAMES", 1)
    monkeypatch.setattr(budget, "TURN_SECONDS", -1.0)
    breathe = budget.Budget.breathe
    chats, pausing = set[Any](), set[Any]()
    most = times = 0

    async def count(self: budget.Budget) -> None:
        nonlocal most, times
        task = asyncio.current_task()
        if task not in chats:  # the pool's own, which looks after all connections
            return await breathe(self)
        times += 1
        pausing.add(task)
        most = max(most, len(pausing))
        await breathe(self)
        pausing.remove(task)

    monkeypatch.setattr(budget.Budget, "breathe", count)
    pool = make(max_unread=1000)
    async with pool.get_stream() as sleeper, pool.get_stream() as a, pool.get_stream() as b:
        key = sleeper.claim()

        async def chat(stream: WebsocketStream) -> None:
            flood = [{"id": key, "x": "x" * 100}] * 50
            for _ in range(5):
                assert len(await ask(stream, flood, "push")) == 50

        chats |= {asyncio.create_task(chat(stream)) for stream in (a, b)}
        await asyncio.gather(*chats)
    assert most == 1
    assert times > 20


async def test_a_ping_ends_whose_pong_was_read_while_it_let_the_event_loop_go_on(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the pool, which looks after all connections; nothing more comes that would end a read."""
    pool = make()
    async with pool.get_stream() as stream:
        sharing, wire = link_of(stream.connection).sharing, wire_of(stream.connection)
        pinging = asyncio.current_task()
        breathe = budget.Budget.breathe

        async def read_meanwhile(self: budget.Budget) -> None:
            while asyncio.current_task() is pinging and wire.rtt is None:
                sharing.attend()
                await asyncio.sleep(0)
            await breathe(self)

        monkeypatch.setattr(budget.Budget, "breathe", read_meanwhile)
        flood = [{"x": "x" * 50_000}] * 40
        await stream.send_json({"id": None, "method": "push", "params": flood})
        await until(lambda: wire.is_flooded, "there is much that is nobody's")
        async with asyncio.timeout(5):
            assert await stream.ping() == wire.rtt


async def test_the_last_message_of_an_overflowed_stream_ends_its_drain(make: Make) -> None:
    pool = make(max_unread=10_000, drain_until=is_final)
    async with pool.get_stream() as other:
        async with pool.get_stream() as sleeper:
            key = sleeper.claim()
            await sleeper.send_json({"id": key, "method": "mute"})
            flood = [{"id": key, "n": n, "x": "x" * 1000, "final": n == 99} for n in range(100)]
            await ask(other, flood, "push")
        await until(lambda: sleeper.state is State.CLOSED, "it has drained")
        assert other.connection.is_connected
        async with pool.get_stream() as next_one:
            assert next_one.connection.id == other.connection.id


async def test_on_release_may_end_the_answer_of_an_overflowed_stream(make: Make) -> None:
    """It reads what is left, and what comes then; the connection stays, with its neighbours."""
    read: list[Any] = []

    async def end(stream: WebsocketStream) -> None:
        assert not stream.is_clean
        ask = stream.claim()
        await stream.send_json({"id": ask, "method": "echo"})
        while (answer := await stream.recv_json())["id"] != ask:
            read.append(answer["n"])

    pool = make(max_unread=10_000, drain_fence=True, on_release=end)
    async with pool.get_stream() as other:
        async with pool.get_stream() as sleeper:
            key = sleeper.claim()
            await sleeper.send_json({"id": key, "method": "mute"})
            flood = [{"id": key, "n": n, "x": "x" * 1000} for n in range(100)]
            await ask(other, flood, "push")
        await until(lambda: sleeper.state is State.CLOSED, "it has drained")
        assert read == list(range(len(read)))
        assert 5 < len(read) < 12
        async with pool.get_stream() as next_one:
            assert next_one.connection.id == other.connection.id


# Limits, ages and the pool's own business.


async def test_max_uses_counts_streams(make: Make) -> None:
    pool = make(max_uses=4)
    ids = []
    async with pool.get_stream() as long:
        for _ in range(5):
            async with pool.get_stream() as stream:
                ids.append(stream.connection.id)
        assert await ask(long, 1) == 1
    assert ids == [1, 1, 1, 2, 2]


async def test_expired_connections_end_with_their_last_stream(make: Make) -> None:
    pool = make()
    async with pool.get_stream() as old:
        pool.expire_connections()
        async with pool.get_stream() as new:
            assert new.connection.id == 2
        assert await ask(old, 1) == 1
        connection = old.connection
    assert why_closed(connection) is CloseReason.EXPIRED


async def test_within_the_grace_an_expired_connection_still_takes_streams(make: Make) -> None:
    pool = make(max_connections=1)
    async with pool.get_stream() as old:
        pool.expire_connections(grace=0.3)
        async with pool.get_stream() as other:
            assert other.connection.id == 1
            assert await ask(other, 1) == 1
        connection = old.connection
        await asyncio.sleep(0.35)
        with pytest.raises(ConnectionPoolExhaustedError):
            await pool.acquire_stream()
        assert await ask(old, 1) == 1
    assert why_closed(connection) is CloseReason.EXPIRED


async def test_max_lifetime_ends_a_connection_with_its_last_stream(make: Make) -> None:
    pool = make(max_lifetime=0.05)
    async with pool.get_stream() as old:
        await asyncio.sleep(0.06)
        async with pool.get_stream() as new:
            assert new.connection.id == 2
        assert await ask(old, 1) == 1
        connection = old.connection
    assert why_closed(connection) is CloseReason.LIFETIME


async def test_after_a_resize_the_emptiest_connections_are_not_filled(make: Make) -> None:
    pool = make(max_connections=2)
    streams = [await pool.acquire_stream() for _ in range(4)]
    await pool.release_stream(streams[0])
    pool.resize(1)
    async with pool.get_stream() as stream:
        assert stream.connection.id == streams[1].connection.id
    await pool.release_stream(streams[3])
    await until(lambda: len(queues_of(pool)) == 1, "the surplus is closed")
    for stream in streams[1:3]:
        await pool.release_stream(stream)


async def test_checks_and_keepalives_come_only_when_no_stream_is_open(make: Make) -> None:
    kept: list[WebsocketConnection] = []

    async def keepalive(connection: WebsocketConnection) -> None:
        kept.append(connection)

    pool = make(keepalive=keepalive, keepalive_interval=0.01, check_after_idle=0.0)
    async with pool.get_stream() as stream:
        for n in range(3):
            await asyncio.sleep(0.3)
            assert await ask(stream, n) == n
        assert not kept
    await until(lambda: kept, "the idle one is kept alive")
    async with pool.get_stream(timeout=5) as stream:
        assert await ask(stream, 1) == 1


async def test_pings_are_answered_while_nobody_reads(make_pool: MakePool) -> None:
    async with Server(rpc, heartbeat=1.0) as server:
        pool = make_pool(uri=server.uri, route="id", max_streams=2)
        async with pool.get_stream() as stream:
            await asyncio.sleep(2.5)
            assert await ask(stream, 1) == 1


async def test_closing_waits_for_streams_and_drains_none(make: Make) -> None:
    pool = make(drain_until=is_final, acquire_timeout=5.0)
    lent = await pool.acquire_stream()
    drained = await pool.acquire_stream()
    await drained.send_json({"id": drained.claim(), "method": "mute"})
    await pool.release_stream(drained)
    closing = asyncio.create_task(pool.close_all(None))
    await until(lambda: pool.is_closed, "it closes")
    with pytest.raises(ConnectionPoolUnavailableError):
        await pool.acquire_stream()
    key = lent.claim()
    await lent.send_json({"id": key})
    assert (await lent.recv_json())["id"] == key
    assert not closing.done()
    await pool.release_stream(lent)
    await closing


async def test_closing_without_a_timeout_ends_the_streams(make: Make) -> None:
    pool = make()
    stream = await pool.acquire_stream()
    reading = asyncio.create_task(stream.recv())
    await asyncio.sleep(0)
    await pool.close_all()
    with pytest.raises(ConnectionClosedError, match="pool closed"):
        await reading
    await pool.release_stream(stream)


async def test_a_stream_that_is_forgotten_is_named(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make(leak_threshold=0.01)
    stream = await pool.acquire_stream()
    await until(lambda: "leak_threshold" in caplog.text, "it is named")
    assert re.search(r"the stream in slot 1 of #1 (.*) at \S*test_streams\.py:\d+, ", caplog.text)
    await pool.release_stream(stream)


async def test_a_picture_has_the_streams_of_each_connection(make: Make) -> None:
    pool = make(leak_threshold=0.01, drain_until=is_final)
    async with pool.get_stream() as a, pool.get_stream() as b:
        b.claim()
        async with pool.get_stream() as c:
            await c.send_json({"id": c.claim(), "method": "mute"})
        await asyncio.sleep(0.02)
        picture = pool.snapshot()
        [connection] = picture.connections
        assert picture.max_streams == 3
        assert connection.borrower is None
        assert connection.is_overdue
        assert [(s.slot, s.number, s.state, s.keys) for s in connection.streams] == [
            (1, a.number, "busy", 0),
            (2, b.number, "busy", 1),
            (3, c.number, "draining", 1),
        ]
        assert [stream.is_overdue for stream in connection.streams] == [True, True, False]
        first, _, last = connection.streams
        assert first.borrower is not None
        assert "test_streams.py" in first.borrower.borrowed_at
        assert last.borrower is None
        json.dumps(picture.to_dict())
        with pytest.raises(ConnectionPoolExhaustedError, match="is lent for longest"):
            [await pool.acquire() for _ in range(3)]
        for link in list(queues_of(pool).busy):
            if not link.is_shared:
                await pool.release(link.loan)


# Bad input.


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"max_streams": 2}, ValueError, "max_streams is 2, but route is None"),
        ({"max_streams": 0, "route": "id"}, ValueError, "max_streams is 0"),
        ({"max_streams": True, "route": "id"}, TypeError, "max_streams"),
        ({"max_streams": 2, "route": "id", "max_unread": 0}, ValueError, "max_unread is 0"),
        ({"route": ""}, ValueError, "route is ''"),
        ({"route": "a..b"}, ValueError, r"route is 'a\.\.b'"),
        ({"route": ()}, ValueError, r"route is \(\)"),
        ({"route": 7}, TypeError, "route is 7"),
        ({"route": ("id", 7)}, TypeError, "route is"),
        ({"route": asyncio.sleep}, TypeError, "route is"),
        (
            {"route": "id", "check_server_data_on_release": True},
            ValueError,
            "check_server_data_on_release",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        WebsocketConnectionPool(uri="ws://localhost/", **options)


async def test_a_pool_without_a_route_has_no_streams(make_pool: MakePool) -> None:
    with pytest.raises(ValueError, match="route"):
        make_pool().get_stream()


def test_the_routing_has_streams_only_where_there_is_a_route() -> None:
    assert router_of(WebsocketConnectionPool(uri="ws://localhost/")).streaming.has_route is False


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "wspool")
