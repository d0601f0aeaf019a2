"""Checks, keepalives and other hooks where they meet each other and what borrowers do."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.conftest import MakePool, echoes, until
from tests.pool.test_errands import ALWAYS, made_idle
from tests.support.inside import link_of, router_of
from wspool import (
    ConnectionBusyError,
    ConnectionPoolExhaustedError,
    State,
    WebsocketConnection,
    WebsocketConnectionPool,
)
from wspool.testing import Server


async def check_begun(
    pool: WebsocketConnectionPool, server: Server, connection: WebsocketConnection
) -> None:
    """Begin a check that is not answered yet, and for which nobody waits any more."""
    for peer in server.peers:
        peer.mute()
    task = asyncio.create_task(pool.acquire(timeout=None))
    await until(lambda: connection.is_busy, "it is being checked")
    task.cancel()
    await asyncio.wait([task])


def resume(server: Server) -> None:
    for peer in server.peers:
        peer.unmute()


async def test_after_a_resize_nobody_waits_for_a_check_whose_connection_will_go(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool(**ALWAYS, max_connections=2)
    connections = await made_idle(pool, 2)
    lent = await pool.acquire()
    [other] = [connection for connection in connections if connection.id != lent.id]
    await check_begun(pool, server, other)
    task = asyncio.create_task(pool.acquire(timeout=0))
    await until(lambda: pool.waiters == 1, "it waits for the check")
    pool.resize(1)
    resume(server)
    with pytest.raises(ConnectionPoolExhaustedError):
        await task
    await pool.release(lent)


async def test_an_acquire_new_is_not_overtaken_by_who_takes_the_checked_one(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool(**ALWAYS, max_connections=1)
    [connection] = await made_idle(pool)
    await check_begun(pool, server, connection)
    new = asyncio.create_task(pool.acquire_new(timeout=0))
    await until(lambda: pool.waiters == 1, "one waits")
    later = asyncio.create_task(pool.acquire(timeout=None))
    await until(lambda: pool.waiters == 2, "both wait")
    resume(server)
    first = await new
    assert first.id != connection.id
    await pool.release(first)
    await pool.release(await later)


@pytest.mark.usefixtures("caplog")
async def test_a_reader_that_a_borrower_forgot_costs_the_connection_and_no_place(
    make_pool: MakePool,
) -> None:
    pool = make_pool(**ALWAYS, max_connections=1)
    connection = await pool.acquire()
    reader = asyncio.create_task(connection.websocket.receive())
    await asyncio.sleep(0)
    await pool.release(connection)
    assert await echoes(await pool.acquire(timeout=5))
    assert connection.state is State.CLOSED
    await reader


async def test_a_borrower_may_read_the_websocket_itself(
    server: Server, make_pool: MakePool
) -> None:
    """The sweep leaves it alone, also between the arrival of a message and his turn."""
    pool = make_pool()
    connection = await pool.acquire()
    reader = asyncio.create_task(connection.websocket.receive())
    await until(lambda: server.peers, "the server has it")
    await server.peers[0].send("for him")
    while not reader.done():
        router_of(pool).attending.attend(link_of(connection))
        await asyncio.sleep(0)
    assert (await reader).data == "for him"


async def test_what_is_sent_directly_makes_the_last_message_an_old_one(
    make_pool: MakePool,
) -> None:
    pool = make_pool(drain_until=lambda message: message == "last")
    connection = await pool.acquire()
    assert await echoes(connection, "last")
    await connection.websocket.send_str("a question")
    await pool.release(connection)
    assert connection.state is State.DRAINING


async def test_a_reader_that_a_keepalive_left_takes_nothing_from_a_borrower(
    make_pool: MakePool,
) -> None:
    readers: list[asyncio.Task[Any]] = []

    async def careless(connection: WebsocketConnection) -> None:
        readers.append(asyncio.create_task(connection.recv()))
        await asyncio.sleep(0.01)

    pool = make_pool(keepalive=careless, keepalive_interval=0.05)
    [connection] = await made_idle(pool)
    await until(lambda: connection.state is State.CLOSED, "it is discarded")
    async with pool.get_connection() as another:
        assert await echoes(another, "mine")
    outcomes = await asyncio.gather(*readers, return_exceptions=True)
    assert "mine" not in outcomes


async def test_a_failed_dial_does_not_end_who_waits_for_a_check(
    server: Server, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(**ALWAYS, max_connections=3, max_retries=1)
    first, second = await made_idle(pool, 2)
    monkeypatch.setattr("wspool._pool.errands.CHECK_SECONDS", 0.2)
    link_of(first).handshake_seconds = 60.0  # so that its check has all the time
    server.refuse(401)
    for peer in server.peers:
        peer.mute()
    task = asyncio.create_task(pool.acquire(timeout=0))
    await until(lambda: second.state is State.CLOSED, "the first check has failed")
    await until(lambda: pool.stats.dial_failures, "the dial has failed")
    server.peers[0].unmute()
    assert (await task).id == first.id
    server.peers[1].unmute()
    await asyncio.wait([task])


async def test_a_task_that_a_hook_left_behind_has_no_right_in_the_next(
    make_pool: MakePool,
) -> None:
    """It closes the pool like anybody else, too: a keepalive at work is ended."""
    let_go = asyncio.Event()
    closing: list[asyncio.Task[None]] = []
    is_ended = False

    async def on_connect(connection: WebsocketConnection) -> None:
        async def later() -> None:
            await let_go.wait()
            with pytest.raises(ConnectionBusyError):
                await connection.send("mine")
            await pool.close_all()

        closing.append(asyncio.create_task(later()))

    async def keepalive(connection: WebsocketConnection) -> None:
        nonlocal is_ended
        try:
            await asyncio.Event().wait()
        finally:
            is_ended = True

    pool = make_pool(on_connect=on_connect, keepalive=keepalive, keepalive_interval=0.05)
    [connection] = await made_idle(pool)
    await until(lambda: connection.is_busy, "it is being kept alive")
    let_go.set()
    await closing[0]
    assert is_ended
