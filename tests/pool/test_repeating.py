"""`run`: work in a loan, done once more when a reused connection was lost without an answer."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.conftest import MakePool, until
from tests.support.inside import link_of, queues_of, router_of, wire_of
from tests.support.strangers import uvicorn_with
from wspool import (
    BlockingWebsocketConnection,
    BlockingWebsocketConnectionPool,
    ConnectionClosedError,
    ConnectionPoolExhaustedError,
    ConnectionUnavailableError,
    WebsocketConnection,
    WebsocketConnectionPool,
)
from wspool._pool.repeating import LEAST_PER_SECOND, SHARE, WINDOW_SECONDS, Repeating
from wspool.events import Event, LoanRepeated
from wspool.testing import Peer, Server

LEAST = int(LEAST_PER_SECOND * WINDOW_SECONDS)


async def moody(peer: Peer) -> None:
    """Echo; at a word, be gone in one way or another, whatever follows."""
    async for message in peer:
        match str(message).split(":")[0]:
            case "drop" if peer.number == 1:
                return peer.drop()
            case "restart" if peer.number == 1:
                return await peer.close(1012, "service restart")
            case "always":
                return peer.drop()
            case "answer, drop":
                await peer.send("an answer")
                return peer.drop()
            case "answer, restart":
                await peer.send("an answer")
                return await peer.close(1012, "service restart")
            case "half, drop":
                transport = peer.request.transport
                assert isinstance(transport, asyncio.WriteTransport)
                transport.write(b"\x81\x7e\x10\x00" + b"half of an answer")  # of 4,096 bytes
                await asyncio.sleep(0.05)
                transport.close()
                return None
            case _:
                await peer.send(message)
    return None


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with Server(moody) as server:
        yield server


async def ask(connection: WebsocketConnection, question: str) -> str | bytes:
    await connection.send(question)
    return await connection.recv()


async def used(pool: WebsocketConnectionPool, count: int = 1) -> None:
    """Have so many connections in the pool that others have used."""
    lent = [await pool.acquire() for _ in range(count)]
    for connection in lent:
        await ask(connection, "hello")
        await pool.release(connection)


async def test_run_returns_what_the_work_does_and_gives_the_connection_back(
    make_pool: MakePool,
) -> None:
    pool = make_pool()

    async def double(connection: WebsocketConnection, question: str, times: int) -> str:
        return str(await ask(connection, question)) * times

    assert await pool.run(double, "echo", 2) == "echoecho"
    assert await pool.run(functools.partial(double, times=3), "echo") == "echoechoecho"
    assert pool.available_connections == 1
    assert pool.stats.borrows == 2
    assert pool.stats.repeats == 0


async def test_a_loan_of_run_says_where_it_was_asked_for(make_pool: MakePool) -> None:
    async def where(connection: WebsocketConnection) -> str | None:
        return connection.borrowed_at

    pool = make_pool()
    for _ in range(2):
        place = await pool.run(where)
        assert place is not None
        assert place.startswith(__file__)


@pytest.mark.parametrize("how", ["drop", "restart"])
async def test_what_a_lost_reused_connection_has_not_answered_is_done_once_more_on_a_fresh_one(
    server: Server, make_pool: MakePool, how: str
) -> None:
    pool = make_pool()
    events: list[Event] = []
    pool.subscribe(events.append)
    await used(pool)
    loans: list[tuple[int, bool]] = []

    async def work(connection: WebsocketConnection) -> str | bytes:
        loans.append((connection.id, connection.reused))
        return await ask(connection, how)

    assert await pool.run(work) == how
    assert loans == [(1, True), (2, False)]
    assert server.received == ["hello", how, how]
    await until(lambda: LoanRepeated in map(type, events), "it is told")
    assert [event.connection_id for event in events if isinstance(event, LoanRepeated)] == [1]
    assert pool.stats.repeats == 1
    assert pool.snapshot().stats.repeats == 1


async def test_a_send_that_finds_the_connection_lost_is_repeated_too(make_pool: MakePool) -> None:
    pool = make_pool()
    await used(pool)

    async def work(connection: WebsocketConnection) -> str | bytes:
        if connection.reused:
            link_of(connection).abort()
            await until(lambda: not connection.is_connected, "the loss is noticed")
        return await ask(connection, "once more")

    assert await pool.run(work) == "once more"
    assert pool.stats.repeats == 1


async def test_it_is_done_on_a_fresh_one_though_others_are_idle(
    server: Server, make_pool: MakePool
) -> None:
    """What has closed one of the idle ones may be about to close all."""
    pool = make_pool()
    await used(pool, 3)
    server.handler = moody

    async def work(connection: WebsocketConnection) -> bool:
        if connection.reused:
            await ask(connection, "always")
        return connection.reused

    assert await pool.run(work) is False
    assert pool.total_connections == 3


async def test_at_the_limit_it_waits_for_the_place_of_the_lost_one(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool(max_connections=2)
    await used(pool)
    lent = await pool.acquire_new()

    async def work(connection: WebsocketConnection) -> bool:
        if connection.reused:
            await ask(connection, "drop")
        return connection.reused

    assert await pool.run(work) is False
    assert server.most_open == 2
    await pool.release(lent)


async def test_a_fresh_connection_that_is_lost_is_no_reason_to_repeat(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool()
    with pytest.raises(ConnectionClosedError):
        await pool.run(ask, "drop")
    assert server.received == ["drop"]
    assert pool.stats.repeats == 0


async def test_the_second_time_is_the_last(server: Server, make_pool: MakePool) -> None:
    pool = make_pool()
    await used(pool)
    with pytest.raises(ConnectionClosedError, match="#2"):
        await pool.run(ask, "always")
    assert server.received == ["hello", "always", "always"]
    assert pool.stats.repeats == 1


@pytest.mark.parametrize("when", ["read", "unread", "kept", "early"])
@pytest.mark.parametrize("how", ["drop", "restart"])
async def test_after_a_message_nothing_is_repeated(
    server: Server, make_pool: MakePool, how: str, when: str
) -> None:
    """Read by the work or not, or kept for it because it came before the work had begun."""
    pool = make_pool()
    await used(pool)

    async def work(connection: WebsocketConnection) -> None:
        if when == "early":
            await connection.send("an answer")
            await asyncio.sleep(0)
        await connection.send(f"answer, {how}")
        if when == "read":
            assert await connection.recv() == "an answer"
        if when in ("kept", "unread"):
            await until(lambda: link_of(connection).has_news, "it has come")
        if when == "kept":
            router_of(pool).attending.attend(link_of(connection))
        await until(lambda: not connection.is_connected, "the connection is lost")
        await connection.send("more")

    with pytest.raises(ConnectionClosedError):
        await pool.run(work)
    assert pool.stats.repeats == 0
    assert server.received.count(f"answer, {how}") == 1


async def test_a_message_that_came_before_the_work_began_counts(make_pool: MakePool) -> None:
    """In the ticks between the loan and the work, and kept for it by the upkeep."""
    pool = make_pool(max_connections=1)
    connection = await pool.acquire()
    await ask(connection, "hello")

    async def work(connection: WebsocketConnection) -> None:
        await connection.send("drop")
        await until(lambda: not connection.is_connected, "the connection is lost")
        await connection.send("more")

    running = asyncio.create_task(pool.run(work, timeout=None))
    await until(lambda: pool.waiters, "it waits")
    await pool.release(connection)
    wire = wire_of(connection)
    wire.keep(wire._count("an early answer"))
    with pytest.raises(ConnectionClosedError):
        await running
    assert pool.stats.repeats == 0


async def test_after_a_part_of_a_message_nothing_is_repeated(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool()
    await used(pool)
    with pytest.raises(ConnectionClosedError) as caught:
        await pool.run(ask, "half, drop")
    assert caught.value.code == 1006
    assert server.received == ["hello", "half, drop"]
    assert pool.stats.repeats == 0


async def test_to_listen_for_parts_leaves_no_trace_and_spares_the_heartbeat(
    make_pool: MakePool,
) -> None:
    pool = make_pool(heartbeat=30.0)
    await used(pool)
    [link] = queues_of(pool).idle
    assert link.wire is not None
    protocol: Any = link.wire.transport._protocol
    before = protocol._data_received_cb
    assert before is not None
    await pool.run(ask, "echo")
    assert protocol._data_received_cb == before

    async def nothing(connection: WebsocketConnection) -> None:
        assert protocol._data_received_cb != before

    await pool.run(nothing)
    assert protocol._data_received_cb == before


@pytest.mark.parametrize("error", [ValueError, TimeoutError, OSError, asyncio.CancelledError])
async def test_an_error_of_the_works_own_is_not_repeated(
    server: Server, make_pool: MakePool, error: type[BaseException]
) -> None:
    """Even if the connection is lost as well."""
    pool = make_pool()
    await used(pool)

    async def work(connection: WebsocketConnection) -> None:
        await connection.send("drop")
        await until(lambda: not connection.is_connected, "the connection is lost")
        raise error("of the work's own")

    with pytest.raises(error):
        await pool.run(work)
    assert server.received == ["hello", "drop"]
    assert pool.stats.repeats == 0


async def test_the_loss_of_another_connection_is_an_error_of_the_works_own(
    make_pool: MakePool,
) -> None:
    pool = make_pool()
    await used(pool)

    async def work(connection: WebsocketConnection) -> None:
        raise ConnectionClosedError("another pool's")

    with pytest.raises(ConnectionClosedError, match="another"):
        await pool.run(work)
    assert pool.stats.repeats == 0


@pytest.mark.parametrize("who", ["work", "pool", "retire"])
async def test_what_was_closed_on_purpose_is_not_repeated(make_pool: MakePool, who: str) -> None:
    pool = make_pool()
    await used(pool)

    async def work(connection: WebsocketConnection) -> None:
        if who == "pool":
            await pool.close_all()
        else:
            await connection.close()
        await connection.send("more")

    with pytest.raises(ConnectionClosedError):
        await pool.run(work)
    assert pool.stats.repeats == 0


async def test_what_was_done_with_the_websocket_itself_is_not_repeated(
    make_pool: MakePool,
) -> None:
    """Nobody knows what came on it."""
    pool = make_pool()
    await used(pool)

    async def work(connection: WebsocketConnection) -> None:
        await connection.websocket.send_str("drop")
        assert (await connection.websocket.receive()).type is aiohttp.WSMsgType.CLOSED
        await connection.send("more")

    with pytest.raises(ConnectionClosedError):
        await pool.run(work)
    assert pool.stats.repeats == 0


async def test_when_there_is_no_second_connection_its_error_is_raised(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool(max_retries=1)
    await used(pool)
    server.refuse(403)
    with pytest.raises(ConnectionUnavailableError, match="403"):
        await pool.run(ask, "drop")
    assert pool.stats.repeats == 1
    assert pool.waiters == 0


async def test_the_timeout_is_that_of_acquire(make_pool: MakePool) -> None:
    pool = make_pool(max_connections=1)
    async with pool.get_connection():
        with pytest.raises(ConnectionPoolExhaustedError):
            await pool.run(ask, "echo")
        with pytest.raises(TimeoutError):
            await pool.run(ask, "echo", timeout=0.01)
        with pytest.raises(ValueError, match="timeout"):
            await pool.run(ask, "echo", timeout=-1.0)
    assert await pool.run(ask, "echo", timeout=None) == "echo"


# The budget.


async def test_no_more_are_repeated_than_the_budget_allows(
    server: Server, make_pool: MakePool
) -> None:
    """With few loans, as many as there are seconds in the window; the others get their error."""
    pool = make_pool(max_connections=20)
    await used(pool, 20)
    router_of(pool).repeating._readings[0] = (float("-inf"), pool.stats.borrows)

    async def work(connection: WebsocketConnection) -> bool:
        if connection.reused:
            await ask(connection, "always")
        return connection.reused

    ends = await asyncio.gather(
        *(pool.run(work, timeout=None) for _ in range(20)), return_exceptions=True
    )
    assert ends.count(False) == pool.stats.repeats == LEAST
    assert sum(isinstance(end, ConnectionClosedError) for end in ends) == 20 - LEAST


class Counts:
    """What the budget looks at, and nobody to tell."""

    borrows = 0


def test_the_budget_is_a_fifth_of_the_loans_of_the_last_ten_seconds() -> None:
    counts: Any = Counts()
    repeating = Repeating(counts, None)  # type: ignore[arg-type]
    for tenth in range(600):  # a minute with 100 loans a second
        counts.borrows += 10
        repeating.read(tenth / 10)
    assert SHARE * 100 * WINDOW_SECONDS == 200
    now = 59.9
    allowed = 0
    while repeating.is_within_budget(now):
        repeating._repeats.append(now)
        allowed += 1
    assert 198 <= allowed <= 202
    assert not repeating.is_within_budget(now + WINDOW_SECONDS - 0.1)
    assert repeating.is_within_budget(now + WINDOW_SECONDS)


def test_without_loans_one_a_second_may_be_repeated() -> None:
    counts: Any = Counts()
    repeating = Repeating(counts, None)  # type: ignore[arg-type]
    counts.borrows = 1_000_000
    for tenth in range(110):
        repeating.read(tenth / 10)
    allowed = 0
    while repeating.is_within_budget(11.0):
        repeating._repeats.append(11.0)
        allowed += 1
    assert allowed == LEAST


async def test_the_upkeep_reads_how_many_loans_there_are(make_pool: MakePool) -> None:
    pool = make_pool()
    await used(pool, 3)
    readings = router_of(pool).repeating._readings
    await until(lambda: readings[-1][1] == 3, "they are noted")


# A restart.


async def test_a_restart_of_uvicorn_under_load_fails_nobody(make_pool: MakePool) -> None:
    """It closes with 1012. What it has not answered is done again, on a fresh connection each."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (event := await receive())["type"] == "websocket.receive":
            await asyncio.sleep(0.02)
            await send({"type": "websocket.send", "text": event["text"]})

    loans: dict[str, list[tuple[bool, bool]]] = {}

    async def work(connection: WebsocketConnection, text: str) -> str | bytes:
        """Note whether the connection was reused, and whether the answer came."""
        loan = loans.setdefault(text, [])
        loan.append((connection.reused, False))
        answer = await ask(connection, text)
        loan[-1] = (connection.reused, True)
        return answer

    runs: list[asyncio.Task[str | bytes]] = []

    async def load(seconds: float) -> None:
        for _ in range(int(100 * seconds)):
            text = f"text {len(runs)}"
            runs.append(asyncio.create_task(pool.run(work, text)))
            await asyncio.sleep(0.01)

    async with uvicorn_with(application) as uri:
        pool = make_pool(uri=uri, acquire_timeout=60.0, max_retries=10)
        codes: list[int | None] = []
        pool.subscribe(lambda event: codes.append(getattr(event, "code", None)))
        await load(0.5)
        meanwhile = asyncio.create_task(load(1.0))
        await until(lambda: pool.busy_connections, "there is work under way")
    async with uvicorn_with(application, int(uri.split(":")[2].strip("/"))):
        await meanwhile
        answers = await asyncio.gather(*runs)
    assert answers == [f"text {n}" for n in range(150)]
    assert 1012 in codes
    repeated = [loan for loan in loans.values() if len(loan) > 1]
    assert len(repeated) == pool.stats.repeats <= max(LEAST, SHARE * pool.stats.borrows)
    assert all(loan == [(True, False), (False, True)] for loan in repeated)


# The pool for threads.


async def test_a_blocking_pool_repeats_as_well(server: Server) -> None:
    def work(connection: BlockingWebsocketConnection, question: str, times: int) -> str:
        connection.send(question)
        return str(connection.recv()) * times

    def story() -> None:
        with BlockingWebsocketConnectionPool(uri=server.uri) as pool:
            assert pool.run(work, "echo", 2, timeout=5.0) == "echoecho"
            assert pool.run(work, "drop", 2) == "dropdrop"
            assert pool.stats.repeats == 1
            assert pool.available_connections == 1
            with pytest.raises(ConnectionClosedError):
                pool.run(work, "always", 1)
            assert pool.stats.repeats == 2
            with pool.get_connection(), pytest.raises(ZeroDivisionError):
                pool.run(lambda connection: 1 / 0)
        with BlockingWebsocketConnectionPool(uri=server.uri) as pool:
            with pytest.raises(ConnectionClosedError):
                pool.run(work, "always", 1)
            assert pool.stats.repeats == 0

    await asyncio.to_thread(story)
