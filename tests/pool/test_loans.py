"""One loan is one object: what it may do while it lasts, and that it may nothing afterwards."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.conftest import MakePool, echoes, until
from tests.support.inside import link_of, router_of
from wspool import (
    CloseReason,
    ConnectionBusyError,
    ConnectionClosedError,
    State,
    WebsocketConnection,
    WebsocketConnectionPool,
)
from wspool.testing import Peer, Server

Use = Callable[[WebsocketConnection], Awaitable[object]]


async def touch(connection: WebsocketConnection) -> None:
    _ = connection.websocket


async def set_context(connection: WebsocketConnection) -> None:
    connection.context = "mine"


async def set_outstanding(connection: WebsocketConnection) -> None:
    connection.outstanding = 0


USES: dict[str, Use] = {
    "send": lambda connection: connection.send("mine"),
    "send_json": lambda connection: connection.send_json({}),
    "recv": lambda connection: connection.recv(),
    "recv_json": lambda connection: connection.recv_json(),
    "async for": lambda connection: anext(connection),
    "ping": lambda connection: connection.ping(),
    "close": lambda connection: connection.close(),
    "websocket": touch,
    "context": set_context,
    "outstanding": set_outstanding,
}

every_use = pytest.mark.parametrize("use", USES.values(), ids=USES.keys())


@pytest.fixture
def pool(make_pool: MakePool) -> WebsocketConnectionPool:
    return make_pool(max_connections=1, acquire_timeout=5.0)


# One object, from the call to the end.


async def test_it_is_what_get_connection_returns_and_what_the_block_has(
    pool: WebsocketConnectionPool,
) -> None:
    loan = pool.get_connection()
    async with loan as connection:
        assert connection is loan
        assert await echoes(connection)


async def test_two_loans_of_one_connection_are_two_objects_with_one_id(
    pool: WebsocketConnectionPool,
) -> None:
    async with pool.get_connection() as first:
        pass
    async with pool.get_connection() as second:
        assert second is not first
        assert second != first
        assert second.id == first.id
        assert (first.reused, second.reused) == (False, True)
        assert first.uses == second.uses == 2


async def test_a_loan_that_waits_is_what_stands_in_the_line(pool: WebsocketConnectionPool) -> None:
    first = await pool.acquire()
    loan = pool.get_connection()
    entering = asyncio.create_task(loan.__aenter__())
    await until(lambda: pool.waiters == 1, "it waits")
    assert list(router_of(pool).line) == [loan]
    await pool.release(first)
    await entering
    assert link_of(loan).owner is loan
    await pool.release(loan)


@every_use
async def test_before_the_block_it_has_no_connection(
    pool: WebsocketConnectionPool, use: Use
) -> None:
    with pytest.raises(ConnectionBusyError, match="async with"):
        await use(pool.get_connection())


async def test_it_can_be_shown_before_and_after_the_block(pool: WebsocketConnectionPool) -> None:
    loan = pool.get_connection()
    assert repr(loan) == "<WebsocketConnection, not yet lent>"
    async with loan:
        assert repr(loan).endswith("uses=1>")
    assert repr(loan).endswith("(this loan is over)>")


async def test_it_is_one_borrow_and_no_more(pool: WebsocketConnectionPool) -> None:
    loan = pool.get_connection()
    async with loan:
        with pytest.raises(ConnectionBusyError, match="get_connection"):
            await loan.__aenter__()
    with pytest.raises(ConnectionBusyError, match="get_connection"):
        await loan.__aenter__()
    assert pool.available_connections == 1


async def test_it_shows_public_names_only(pool: WebsocketConnectionPool) -> None:
    async with pool.get_connection() as connection:
        names = {name for name in dir(connection) if not name.startswith("__")}
    assert names == {
        *("send", "recv", "ping", "close", "send_json", "recv_json", "websocket"),
        *("id", "uri", "headers", "subprotocol", "state", "is_connected", "is_busy", "is_draining"),
        *("created_at", "last_activity", "uses", "reused", "borrowed_at", "rtt", "history"),
        *("close_code", "close_reason", "cause", "context", "is_clean", "outstanding", "retire"),
    }


# When it is over.


@every_use
async def test_a_loan_that_is_over_says_so(pool: WebsocketConnectionPool, use: Use) -> None:
    async with pool.get_connection() as connection:
        pass
    async with pool.get_connection() as another:
        with pytest.raises(ConnectionBusyError) as caught:
            await use(connection)
        for part in (f"#{another.id}", "over", f"lent at {__file__}:"):
            assert part in str(caught.value)
        assert await echoes(another)
        assert another.context is None


@pytest.mark.parametrize("how", ["by the server", "by the borrower"])
@every_use
async def test_a_loan_whose_connection_was_lost_under_it_says_that(
    server: Server, pool: WebsocketConnectionPool, use: Use, how: str
) -> None:
    async with pool.get_connection() as connection:
        if how == "by the borrower":
            await connection.close(4001, "enough")
        else:
            await server.peers[0].close(4001, "enough")
            with pytest.raises(ConnectionClosedError):
                await connection.recv()
    if use is USES["close"]:
        await use(connection)  # it is closed
        return
    with pytest.raises(ConnectionClosedError, match="enough") as caught:
        await use(connection)
    assert caught.value.code == 4001


async def test_what_may_be_read_stays_readable(server: Server, make_pool: MakePool) -> None:
    pool = make_pool(max_connections=1, headers={"X-Name": "value"})
    async with pool.get_connection() as connection:
        connection.context = "a session"
        await connection.ping()
        shown = connection.borrowed_at
    await pool.close_all()
    assert connection.state is State.CLOSED
    assert connection.history[-1].why == CloseReason.POOL
    assert (connection.uri, connection.headers) == (server.uri, {"X-Name": "value"})
    assert (connection.id, connection.uses, connection.reused) == (1, 1, False)
    assert (connection.close_code, connection.close_reason, connection.cause) == (1000, "", None)
    assert connection.borrowed_at == shown
    assert connection.context == "a session"
    assert connection.rtt is not None
    assert connection.created_at <= connection.last_activity
    assert connection.subprotocol is None
    assert not any((connection.is_connected, connection.is_busy, connection.is_draining))


@pytest.mark.parametrize("force_remove", [False, True])
async def test_the_release_of_one_that_is_over_moves_nothing(
    pool: WebsocketConnectionPool, caplog: pytest.LogCaptureFixture, force_remove: bool
) -> None:
    """It is a warning, also while a later loan has the connection."""
    first = await pool.acquire()
    await pool.release(first)
    second = await pool.acquire()
    for _ in range(2):
        caplog.clear()
        before = repr(pool), len(second.history)
        await pool.release(first, force_remove=force_remove)
        assert (repr(pool), len(second.history)) == before
        [record] = caplog.records
        assert record.levelno == logging.WARNING
        assert f"#{first.id} " in record.getMessage()
        assert "over" in record.getMessage()
    assert await echoes(second)
    await pool.release(second)


async def test_leaving_a_block_whose_loan_was_ended_in_it_touches_no_later_loan(
    pool: WebsocketConnectionPool, caplog: pytest.LogCaptureFixture
) -> None:
    async with pool.get_connection() as first:
        await pool.release(first)
        second = await pool.acquire()
    assert await echoes(second)
    assert not caplog.records
    await pool.release(second)


# Tasks that outlive their loan.


async def test_a_sender_that_outlives_its_block_says_nothing_to_the_server(
    server: Server, pool: WebsocketConnectionPool
) -> None:
    sent = 0

    async def chatter(connection: WebsocketConnection) -> None:
        nonlocal sent
        while True:
            await connection.send("from the first")
            sent += 1
            await asyncio.sleep(0)

    async def listen(peer: Peer) -> None:
        async for message in peer:
            if message == "from the second":
                await peer.send(message)

    server.handler = listen
    async with pool.get_connection() as first:
        chatting = asyncio.create_task(chatter(first))
        await until(lambda: sent > 3, "the first has sent something")
    async with pool.get_connection() as second:
        for _ in range(20):
            assert await echoes(second, "from the second")
    with pytest.raises(ConnectionBusyError):
        await chatting
    received = [str(message) for message in server.received]
    assert "from the first" not in received[received.index("from the second") :]


async def test_a_reader_that_outlives_its_block_takes_nothing(
    pool: WebsocketConnectionPool,
) -> None:
    """Also if it comes to its `recv` only when another has the connection."""
    let_go = asyncio.Event()
    taken: list[str | bytes] = []

    async def read(connection: WebsocketConnection) -> None:
        await let_go.wait()
        while True:
            taken.append(await connection.recv())

    async with pool.get_connection() as first:
        readers = [asyncio.create_task(read(first)) for _ in range(3)]
    async with pool.get_connection() as second:
        let_go.set()
        for n in range(10):
            assert await echoes(second, f"{n}")
    outcomes = await asyncio.gather(*readers, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ConnectionBusyError] * 3
    assert taken == []


async def test_a_reader_that_waits_when_the_loan_ends_costs_the_connection(
    pool: WebsocketConnectionPool,
) -> None:
    """What it has asked aiohttp for could not be called back."""
    async with pool.get_connection() as first:
        reader = asyncio.create_task(first.recv())
        await asyncio.sleep(0)
    with pytest.raises(ConnectionClosedError):
        await reader
    assert first.history[-1].why == CloseReason.ERROR
    async with pool.get_connection() as second:
        assert second.id != first.id


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.long)])
async def test_loans_with_tasks_left_behind_mix_no_messages(
    server: Server, make_pool: MakePool, count: int
) -> None:
    """In neither direction; each message that is read is the reader's own."""
    pool = make_pool(max_connections=4, acquire_timeout=None)
    foreign: list[object] = []
    left: set[asyncio.Task[None]] = set()

    async def outlive(connection: WebsocketConnection, number: int, turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        try:
            if number % 2:
                await connection.send(f"late {number}")
            else:
                foreign.append(await connection.recv())
        except (ConnectionBusyError, ConnectionClosedError):
            return
        foreign.append(number)

    async def borrow(number: int) -> None:
        async with pool.get_connection() as connection:
            for part in range(2):
                await connection.send(f"{number} {part}")
                if (reply := await connection.recv()) != f"{number} {part}":
                    foreign.append(reply)
        left.add(asyncio.create_task(outlive(connection, number, number % 7)))

    for first in range(0, count, 50):
        await asyncio.gather(*(borrow(number) for number in range(first, first + 50)))
    await asyncio.gather(*left)
    assert foreign == []
    assert not [message for message in server.received if str(message).startswith("late")]


# Loans of the pool's own, and views.


@pytest.mark.parametrize("name", ["on_connect", "on_release", "keepalive"])
async def test_a_hook_has_a_loan_that_is_good_while_it_runs(make_pool: MakePool, name: str) -> None:
    """Also in tasks that it has begun; and afterwards for none of them."""
    hooked: list[WebsocketConnection] = []
    late: list[asyncio.Task[object]] = []
    let_go = asyncio.Event()

    async def later(connection: WebsocketConnection, use: Use) -> object:
        await let_go.wait()
        return await use(connection)

    async def hook(connection: WebsocketConnection) -> None:
        assert await asyncio.create_task(echoes(connection, "from a task of the hook's"))
        connection.context = (connection.context or 0) + 1
        hooked.append(connection)
        late.extend(asyncio.create_task(later(connection, use)) for use in USES.values())

    options: dict[str, Any] = {name: hook}
    if name == "keepalive":
        options["keepalive_interval"] = 0.05
    pool = make_pool(max_connections=1, acquire_timeout=5.0, **options)
    async with pool.get_connection() as connection:
        await connection.send("hello")
        await connection.recv()
    await until(lambda: hooked and pool.available_connections, "the hook has run")
    async with pool.get_connection() as connection:
        assert connection.context == len(hooked)
        let_go.set()
        outcomes = await asyncio.gather(*late, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {ConnectionBusyError}
        assert await echoes(connection)


async def test_the_loan_of_a_hook_cannot_be_released(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    async def release(connection: WebsocketConnection) -> None:
        await pool.release(connection, force_remove=True)

    pool = make_pool(on_connect=release)
    async with pool.get_connection() as connection:
        assert await echoes(connection)
    [record] = caplog.records
    assert "not lent by this pool" in record.getMessage()


@every_use
async def test_a_view_shows_a_connection_and_has_no_right_to_it(
    pool: WebsocketConnectionPool, use: Use
) -> None:
    async with pool.get_connection() as connection:
        [view] = pool.connections
        assert view is not connection
        assert pool.connections[0] is view
        assert (view.id, view.state, view.uses) == (connection.id, State.BUSY, 1)
        assert view.borrowed_at == connection.borrowed_at
        with pytest.raises(ConnectionBusyError, match="not lent to you"):
            await use(view)
        assert await echoes(connection)
    assert view.state is State.IDLE
    assert view.borrowed_at is None


# Its context.


async def test_the_context_stays_with_the_connection(make_pool: MakePool) -> None:
    pool = make_pool(max_connections=2)
    first = await pool.acquire()
    assert first.context is None
    first.context = conversation = object()
    second = await pool.acquire()
    assert second.context is None
    await pool.release(second, force_remove=True)
    await pool.release(first)
    async with pool.get_connection() as again:
        assert again.context is conversation
        again.context = None
    assert first.context is None
