"""Whose message it is: greetings, answers that were given up or come late, heartbeats."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.conftest import MakePool, echoes, until, why_closed
from tests.explore.network import CALM
from tests.explore.schedules import Loop, World
from tests.support.inside import link_of, router_of, wire_of
from wspool import (
    CloseReason,
    ConnectionUnavailableError,
    State,
    WebsocketConnection,
    WebsocketConnectionPool,
)
from wspool._pool.waiting import Line
from wspool.testing import Peer, Server


async def next_reads(pool: WebsocketConnectionPool, within: float = 0.3) -> list[str | bytes]:
    """Return what the next borrower reads without having asked for anything."""
    read: list[str | bytes] = []
    async with pool.get_connection(timeout=5.0) as connection:
        try:
            async with asyncio.timeout(within):
                while True:
                    read.append(await connection.recv())
        except TimeoutError:
            pass
    return read


# The first message.


def greeting(after: float | None) -> Callable[[Peer], Awaitable[None]]:
    async def greet(peer: Peer) -> None:
        if after is not None:
            await asyncio.sleep(after)
        await peer.send(f"welcome {peer.number}")
        async for message in peer:
            await peer.send(message)

    return greet


@pytest.mark.parametrize("after", [None, 0.0, 0.001, 0.01])
@pytest.mark.parametrize("warmed", [False, True])
async def test_a_greeting_is_read_by_the_first_borrower(
    server: Server, make_pool: MakePool, after: float | None, warmed: bool
) -> None:
    """60 of 60, whether it comes with the handshake or after it."""
    server.handler = greeting(after)
    pool = make_pool(max_connections=60, warmup_connections=60 if warmed else 0)
    if warmed:
        await pool.start()
        await asyncio.sleep(0.3)  # the sweep has come by, too

    connections = await asyncio.gather(*(pool.acquire(timeout=10.0) for _ in range(60)))
    welcomes = await asyncio.gather(*(connection.recv() for connection in connections))
    assert sorted(map(str, welcomes)) == sorted(f"welcome {peer.number}" for peer in server.peers)
    for connection in connections:
        assert await echoes(connection)
        await pool.release(connection)


async def test_the_second_borrower_reads_no_greeting(server: Server, make_pool: MakePool) -> None:
    server.handler = greeting(None)
    pool = make_pool(max_connections=1)
    async with pool.get_connection() as connection:
        await until(lambda: link_of(connection).has_news, "it has arrived")
    assert await next_reads(pool) == []


async def test_a_loan_that_was_cancelled_when_it_was_served_leaves_the_greeting(
    server: Server, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.handler = greeting(None)
    pool = make_pool(max_connections=1)
    serve = Line.serve

    def serve_and_cancel(line: Line, loan: WebsocketConnection) -> None:
        serve(line, loan)
        acquiring.cancel()

    with monkeypatch.context() as patch:
        patch.setattr(Line, "serve", serve_and_cancel)
        acquiring = asyncio.create_task(pool.acquire(timeout=5.0))
        await asyncio.wait([acquiring])
    assert acquiring.cancelled()
    async with pool.get_connection() as connection:
        assert connection.uses == 1
        assert await connection.recv() == "welcome 1"


async def test_what_on_connect_has_left_is_the_first_borrowers(
    server: Server, make_pool: MakePool
) -> None:
    async def greet(peer: Peer) -> None:
        await peer.send("first")
        await peer.send("second")
        await peer.recv()

    async def on_connect(connection: WebsocketConnection) -> None:
        assert await connection.recv() == "first"

    server.handler = greet
    pool = make_pool(on_connect=on_connect)
    async with pool.get_connection() as connection:
        assert await connection.recv() == "second"


async def test_more_than_a_greeting_is_a_stream_and_disposed_of(
    server: Server, make_pool: MakePool
) -> None:
    drained: list[str | bytes] = []

    async def stream(peer: Peer) -> None:
        for n in range(100):
            await peer.send(f"{n}" + "x" * 2000)
        await peer.recv()

    server.handler = stream
    pool = make_pool(warmup_connections=1, on_drained=lambda _, message: drained.append(message))
    await pool.start()
    await until(lambda: len(drained) == 100, "all of it is disposed of")
    assert await next_reads(pool) == []


@pytest.mark.parametrize("errand", ["check", "keepalive", "a keepalive of one's own"])
async def test_an_errand_leaves_the_greeting(
    server: Server, make_pool: MakePool, errand: str
) -> None:
    server.handler = greeting(None)

    async def keepalive(connection: WebsocketConnection) -> None:
        assert await echoes(connection, "are you there?")

    options: dict[str, Any] = {"check_after_idle": 0.0}
    if errand != "check":
        options = {"keepalive_interval": 0.1}
    if errand == "a keepalive of one's own":
        options["keepalive"] = keepalive
    pool = make_pool(warmup_connections=1, **options)
    await pool.start()
    [view] = pool.connections
    await until(lambda: wire_of(view).inbox, "the greeting is kept")
    if errand != "check":
        await until(lambda: len(view.history) >= 5, "there were two keepalives")
    async with pool.get_connection() as connection:
        assert await connection.recv() == "welcome 1"


# An answer that was given up.


async def slow(peer: Peer) -> None:
    async for message in peer:
        await asyncio.sleep(0.1)
        await peer.send(f"answer to {message}")
        await peer.send("end")


def is_end(message: str | bytes) -> bool:
    return message == "end"


async def ask_and_give_up(connection: WebsocketConnection, question: str = "A") -> None:
    await connection.send(question)
    try:
        async with asyncio.timeout(0.01):
            await connection.recv()
    except TimeoutError:
        pass  # inside the block


@pytest.mark.parametrize("options", [{}, {"drain_fence": True}, {"drain_until": is_end}])
async def test_an_answer_that_was_given_up_in_the_block_reaches_nobody(
    server: Server, make_pool: MakePool, options: dict[str, Any]
) -> None:
    server.handler = slow
    pool = make_pool(max_connections=1, **options)
    async with pool.get_connection() as connection:
        await ask_and_give_up(connection)
    assert await next_reads(pool) == []
    if "drain_until" in options:
        assert len(server.requests) == 1
    else:
        assert why_closed(connection) == CloseReason.ERROR


async def test_an_answer_that_was_given_up_in_its_middle_reaches_nobody(
    server: Server, make_pool: MakePool
) -> None:
    async def halting(peer: Peer) -> None:
        await peer.recv()
        await peer.send("part")
        await asyncio.sleep(0.1)
        await peer.send("the rest")
        await peer.recv()

    server.handler = halting
    pool = make_pool(max_connections=1)
    async with pool.get_connection() as connection:
        await connection.send("A")
        assert await connection.recv() == "part"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(connection.recv(), 0.01)
    assert await next_reads(pool) == []


async def test_what_is_sent_after_giving_up_does_not_make_it_good(
    server: Server, make_pool: MakePool
) -> None:
    server.handler = slow
    pool = make_pool(max_connections=1)
    async with pool.get_connection() as connection:
        await ask_and_give_up(connection)
        await connection.send("never mind")
    assert why_closed(connection) == CloseReason.ERROR


async def test_an_answer_that_came_in_a_second_attempt_was_not_given_up(
    server: Server, make_pool: MakePool
) -> None:
    server.handler = slow
    pool = make_pool(max_connections=1)
    async with pool.get_connection() as connection:
        await ask_and_give_up(connection)
        assert [await connection.recv(), await connection.recv()] == ["answer to A", "end"]
    assert pool.available_connections == 1


async def test_a_recv_in_vain_where_nothing_was_sent_is_no_answer_given_up(
    make_pool: MakePool,
) -> None:
    pool = make_pool(max_connections=1)
    async with pool.get_connection() as connection:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(connection.recv(), 0.01)
    assert pool.available_connections == 1


async def test_who_knows_that_nothing_is_to_come_may_say_so(make_pool: MakePool) -> None:
    """As when a borrower reads until it is quiet."""
    pool = make_pool(max_connections=1)
    async with pool.get_connection() as connection:
        assert await echoes(connection)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(connection.recv(), 0.01)
        assert not connection.is_clean
        connection.outstanding = 0
        assert connection.is_clean
    assert pool.available_connections == 1


@pytest.mark.parametrize("has_end", [False, True])
async def test_a_hook_that_gives_up_costs_the_connection(
    server: Server, make_pool: MakePool, has_end: bool
) -> None:
    """Unless the drain can tell when what it asked for is over."""
    server.handler = slow
    pool = make_pool(
        max_connections=1, on_release=ask_and_give_up, drain_until=is_end if has_end else None
    )
    async with pool.get_connection() as connection:
        pass
    assert await next_reads(pool) == []
    assert (connection.state is State.CLOSED) == (not has_end)


async def test_a_keepalive_that_gives_up_costs_the_connection(
    server: Server, make_pool: MakePool
) -> None:
    server.handler = slow
    pool = make_pool(keepalive=ask_and_give_up, keepalive_interval=0.05)
    async with pool.get_connection() as connection:
        pass
    await until(lambda: connection.state is State.CLOSED, "it was given up")
    assert why_closed(connection) == CloseReason.STALE


# A send without an end.


async def test_a_loan_that_ends_with_a_send_is_warned_of_once(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(max_connections=1)
    for _ in range(3):
        async with pool.get_connection() as connection:
            await connection.send("and nobody reads the answer")
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    for part in ("drain_until", "drain_fence", "check_server_data_on_release", __file__):
        assert part in record.getMessage()


@pytest.mark.parametrize(
    "options",
    [
        {"drain_until": is_end},
        {"drain_fence": True},
        {"check_server_data_on_release": True, "drain_quiet_period": 0.01},
        {"max_uses": 1},
    ],
)
async def test_a_pool_that_knows_ends_does_not_warn(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture, options: dict[str, Any]
) -> None:
    async with make_pool(**options).get_connection() as connection:
        await connection.send("end")
    assert not caplog.records


async def test_loans_that_read_last_are_not_warned_of(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool()
    async with pool.get_connection() as connection:
        assert await echoes(connection)
    async with pool.get_connection():
        pass
    async with pool.get_connection() as connection:
        await connection.websocket.send_str("directly")
    assert not caplog.records


# Clean, and how many answers are to come.


async def test_clean_is_what_has_sent_nothing_or_read_the_end(
    server: Server, make_pool: MakePool
) -> None:
    server.handler = slow
    async with make_pool(drain_until=is_end).get_connection() as connection:
        states = [connection.is_clean]
        await connection.send("A")
        states.append(connection.is_clean)
        await connection.recv()
        states.append(connection.is_clean)
        await connection.recv()
        states.append(connection.is_clean)
        await connection.send("B")
        states.append(connection.is_clean)
    assert states == [True, False, False, True, False]


def has_id(message: str | bytes) -> bool:
    return "id" in json.loads(message)


async def numbered(peer: Peer) -> None:
    async for message in peer:
        await asyncio.sleep(0.02)
        await peer.send_json({"note": "on it"})
        await peer.send_json({"id": json.loads(message)["id"]})


@pytest.mark.parametrize("read", range(4))
async def test_who_pipelines_says_how_many_answers_are_to_come(
    server: Server, make_pool: MakePool, read: int
) -> None:
    """However many it has read itself, the next borrower reads none of the others."""
    server.handler = numbered
    pool = make_pool(max_connections=1, drain_until=has_id)
    async with pool.get_connection() as connection:
        for id in range(3):
            await connection.send_json({"id": id})
        connection.outstanding = 3
        for _ in range(2 * read):
            await connection.recv()
        assert connection.outstanding == 3 - read
        assert connection.is_clean == (read == 3)
    assert await next_reads(pool) == []
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("value", "error"), [(-1, ValueError), (1.0, TypeError), ("1", TypeError), (True, TypeError)]
)
async def test_what_is_no_count_is_refused(
    make_pool: MakePool, value: Any, error: type[Exception]
) -> None:
    async with make_pool(drain_until=is_end).get_connection() as connection:
        connection.outstanding = 2
        with pytest.raises(error, match="outstanding"):
            connection.outstanding = value
        assert connection.outstanding == 2
        assert await echoes(connection)


async def test_answers_cannot_be_counted_without_drain_until(make_pool: MakePool) -> None:
    async with make_pool().get_connection() as connection:
        with pytest.raises(ValueError, match="drain_until"):
            connection.outstanding = 1


async def test_with_a_last_message_and_a_check_trailers_are_waited_for(
    server: Server, make_pool: MakePool
) -> None:
    async def trail(peer: Peer) -> None:
        await peer.recv()
        await peer.send("end")
        await asyncio.sleep(0.05)
        await peer.send("a trailer")
        await peer.recv()

    server.handler = trail
    pool = make_pool(
        max_connections=1,
        drain_until=is_end,
        check_server_data_on_release=True,
        drain_quiet_period=0.2,
    )
    for _ in range(2):
        async with pool.get_connection(timeout=5.0) as connection:
            await connection.send("A")
            assert await connection.recv() == "end"
        assert await next_reads(pool) == []
        pool.expire_connections()


async def test_a_hook_can_see_whether_there_is_anything_to_cancel(
    server: Server, make_pool: MakePool
) -> None:
    server.handler = slow
    cancelled: list[bool] = []

    async def on_release(connection: WebsocketConnection) -> None:
        cancelled.append(not connection.is_clean)
        if not connection.is_clean:
            await connection.send("cancel")

    pool = make_pool(max_connections=1, on_release=on_release, drain_until=is_end)
    async with pool.get_connection() as connection:
        await connection.send("A")
        await connection.recv()
        await connection.recv()
    await until(lambda: pool.available_connections, "there was nothing to wait for")
    async with pool.get_connection() as connection:
        await connection.send("B")
    await until(lambda: pool.available_connections, "it is drained")
    async with pool.get_connection():
        pass
    await until(lambda: pool.available_connections, "there was nothing to wait for")
    assert cancelled == [False, True, False]


async def test_a_hook_that_begins_a_drain_in_vain_is_named(
    server: Server, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer_questions_only(peer: Peer) -> None:
        async for message in peer:
            if message == "A":
                await peer.send("end")

    async def on_release(connection: WebsocketConnection) -> None:
        await connection.send("cancel")

    server.handler = answer_questions_only
    pool = make_pool(
        on_release=on_release, drain_until=is_end, drain_timeout=0.1, drain_quiet_period=5.0
    )
    async with pool.get_connection() as connection:
        await connection.send("A")
        await connection.recv()
    await until(lambda: connection.state is State.CLOSED, "the drain has timed out")
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "on_release" in record.getMessage()
    assert "is_clean" in record.getMessage()


# Heartbeats in the messages.


async def test_empty_messages_on_an_idle_connection_are_heartbeats(
    server: Server, make_pool: MakePool
) -> None:
    async def beat(peer: Peer) -> None:
        for _ in range(5):
            await asyncio.sleep(0.05)
            await peer.send("")
        async for message in peer:
            await peer.send(message)

    server.handler = beat
    pool = make_pool(max_connections=1)
    async with pool.get_connection() as connection:
        pass
    await until(lambda: pool.stats.drained_messages == 5, "it has heard them")
    assert connection.state is State.IDLE


async def test_an_empty_message_after_a_loan_is_refused(
    server: Server, make_pool: MakePool
) -> None:
    async def reply(peer: Peer) -> None:
        await peer.recv()
        await peer.send("")

    server.handler = reply
    pool = make_pool(drain_until=is_end)
    async with pool.get_connection() as connection:
        await connection.send("A")
    await until(lambda: connection.state is State.CLOSED, "it is closed")
    assert why_closed(connection) == CloseReason.DRAIN


def pong(message: str | bytes) -> bool | str | None:
    """Answer a heartbeat with its number; another kind of it needs no answer."""
    if str(message).startswith("ping "):
        return str(message).replace("ping", "pong")
    return True if message == "still here" else None


class Demanding(Server):
    """It pings in the payload, and drops whoever does not answer in time."""

    def __init__(self) -> None:
        super().__init__(self.demand)
        self.pongs = 0
        self.dropped = 0

    async def demand(self, peer: Peer) -> None:
        answered = asyncio.Event()

        async def ping() -> None:
            for n in range(1000):
                answered.clear()
                await peer.send("still here")
                await peer.send(f"ping {n}")
                try:
                    async with asyncio.timeout(2.0):
                        await answered.wait()
                except TimeoutError:
                    self.dropped += 1
                    return peer.drop()
                await asyncio.sleep(0.03)

        pinging = asyncio.create_task(ping())
        try:
            async for message in peer:
                if str(message).startswith("pong "):
                    self.pongs += 1
                    answered.set()
                else:
                    await peer.send(message)
        finally:
            pinging.cancel()


async def test_the_pool_answers_heartbeats_in_whatever_state() -> None:
    """Idle, lent with and without a reader, draining; borrowers and on_drained see none."""
    seen: list[str | bytes] = []

    async def pause(connection: WebsocketConnection) -> None:
        await asyncio.sleep(0.2)

    async with (
        Demanding() as server,
        WebsocketConnectionPool(
            uri=server.uri,
            control=pong,
            on_connect=pause,
            on_release=pause,
            on_drained=lambda _, message: seen.append(message),
            warmup_connections=2,
            close_timeout=1.0,
        ) as pool,
    ):
        async with pool.get_connection() as connection:
            for n in range(5):
                assert await echoes(connection, f"{n}")
                await asyncio.sleep(0.05)
            reading = asyncio.create_task(connection.recv())
            await asyncio.sleep(0.2)
            await connection.send("one more")
            assert await reading == "one more"
            before = link_of(connection).idle_since
        await asyncio.sleep(0.6)
        assert link_of(connection).idle_since >= before
        assert pool.stats.dials == 2
        assert wire_of(connection).received_messages == 6
    assert server.pongs > 10
    assert server.dropped == 0
    assert seen == []


async def test_a_control_may_answer_bytes(server: Server, make_pool: MakePool) -> None:
    async def ping(peer: Peer) -> None:
        await peer.send(b"\x01")
        assert await peer.recv() == b"\x02"
        await peer.send("well done")

    server.handler = ping
    pool = make_pool(control=lambda message: b"\x02" if message == b"\x01" else None)
    async with pool.get_connection() as connection:
        assert await connection.recv() == "well done"


def raises(message: str | bytes) -> None:
    raise KeyError("on purpose")


CONTROLS: list[Callable[[str | bytes], Any]] = [
    raises,
    lambda message: 1,
    lambda message: False,
    lambda message: {},
    lambda message: "\ud800",
]


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("when", ["idle", "lent"])
async def test_a_control_that_fails_costs_its_connection_at_most(
    server: Server,
    make_pool: MakePool,
    caplog: pytest.LogCaptureFixture,
    control: Callable[[str | bytes], Any],
    when: str,
) -> None:
    def careful(message: str | bytes) -> Any:
        return control(message) if message == "bad" else None

    pool = make_pool(control=careful, max_connections=2)
    bad, good = await pool.acquire(), await pool.acquire()
    await until(lambda: len(server.peers) == 2, "the server has both")
    if when == "idle":
        await pool.release(bad)
    await server.peers[bad.id - 1].send("bad")
    if when == "lent":
        with pytest.raises(Exception, match="closed"):
            await bad.recv()
        await pool.release(bad)
    await until(lambda: bad.state is State.CLOSED, "it is closed")
    assert why_closed(bad) == CloseReason.ERROR
    assert any("control" in record.getMessage() for record in caplog.records)
    assert await echoes(good)
    await pool.release(good)
    async with pool.get_connection(timeout=5.0), pool.get_connection(timeout=5.0):
        pass


async def ask_later(message: str | bytes) -> None:
    """No plain callable."""


@pytest.mark.parametrize("control", [ask_later, 5, "ping"])
def test_what_can_be_no_control_is_refused(control: Any) -> None:
    with pytest.raises(TypeError, match="control"):
        WebsocketConnectionPool(uri="ws://localhost/", control=control)


# Served and lost in one tick.


def lose_as_it_is_served(seed: int, timeout: float | None, *, is_shuffling: bool) -> list[str]:
    """Lose a connection between its hand-over and the next step; return who was served."""
    world = World(Loop(seed, is_shuffling=is_shuffling), CALM, max_connections=1)
    served: list[str] = []

    async def borrow(name: str) -> None:
        async with world.pool.get_connection(timeout=timeout) as connection:
            assert connection.is_connected, "a dead one was lent"
            served.append(name)
            await world.ask(connection, name)

    async def main() -> None:
        first = await world.pool.acquire()
        waiting = []
        for name in "ab":
            waiting.append(world.loop.create_task(borrow(name)))
            await asyncio.sleep(0.001)
        [socket] = world.network.open
        router_of(world.pool).give_back(first)
        socket.lose()
        wire_of(first).attend()
        assert first.state is State.CLOSED
        await asyncio.gather(*waiting)
        await world.finish()

    world.run(main())
    assert world.pool.stats.borrows == 4  # the first, both, and one at the end
    return served


@pytest.mark.parametrize("is_shuffling", [False, True])
@pytest.mark.parametrize("timeout", [3.0, None])
def test_a_loan_whose_connection_is_lost_as_it_is_served_waits_on(
    is_shuffling: bool, timeout: float | None
) -> None:
    """At the head of the line, within its deadline, and in whatever order things happen."""
    for seed in range(100):
        assert lose_as_it_is_served(seed, timeout, is_shuffling=is_shuffling) == ["a", "b"]


async def test_a_connection_refused_to_all_is_still_an_error(make_pool: MakePool) -> None:
    server = Server()
    async with server:
        server.refuse(401, times=5)
        pool = make_pool(uri=server.uri)
        with pytest.raises(ConnectionUnavailableError):
            await pool.acquire(timeout=5.0)
        await pool.close_all()
