"""What went wrong in pools that people trusted: a test for each, in the order of the list.

Each docstring says what went wrong and where it was seen. `tests/explore/mutations.py` has, for
each test, a small change to the package that puts the fault in, and shows that the test passes
without and fails with it.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import random
import re
import sys
import types
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType

from tests.conftest import MakePool, echoes, until
from tests.support.inside import link_of, queues_of
from wspool import (
    CloseReason,
    ConnectionClosedError,
    ConnectionPoolExhaustedError,
    ConnectionPoolTimeoutError,
    ConnectionPoolUnavailableError,
    ConnectionUnavailableError,
    IllegalTransitionError,
    State,
    WebsocketConnection,
    WebsocketConnectionPool,
)
from wspool._connection import states
from wspool._connection.budget import Budget
from wspool._connection.link import Link
from wspool._connection.queues import Queues
from wspool._pool.upkeep import tidy
from wspool.testing import Peer, Server

NET = 10.0
"""Seconds; a limit that only a fault reaches."""


@pytest.fixture
def waits() -> Sequence[float]:
    """Hardly any."""
    return (0.001,) * 5


async def ticks(count: int = 1) -> None:
    """Let the event loop go round, so many times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def every_slot_works(pool: WebsocketConnectionPool, slots: int) -> None:
    """Borrow as many connections as there are slots, use each, and give them back."""
    borrowed = [await pool.acquire(timeout=NET) for _ in range(slots)]
    with pytest.raises(ConnectionPoolExhaustedError):
        await pool.acquire(timeout=0.0)
    for connection in borrowed:
        assert await echoes(connection, f"on #{connection.id}")
        await pool.release(connection)


async def waiting(
    pool: WebsocketConnectionPool, timeout: float | None = None
) -> asyncio.Task[WebsocketConnection]:
    """Return a task that is the last in the pool's line."""
    before = pool.waiters
    task = asyncio.create_task(pool.acquire(timeout=timeout))
    await until(lambda: pool.waiters > before, "the task has joined the line")
    return task


async def hand_over_and_cancel(
    pool: WebsocketConnectionPool, *, is_cancelled_first: bool
) -> asyncio.Task[WebsocketConnection]:
    """Let a connection come back, and cancel the one who waits for it, in one tick."""
    connection = await pool.acquire()
    task = await waiting(pool)
    if is_cancelled_first:
        task.cancel()
    await pool.release(connection)
    if not is_cancelled_first:
        task.cancel()
    await asyncio.wait({task})
    return task


async def test_a_waiter_cancelled_at_the_hand_over_loses_no_connection(
    make_pool: MakePool,
) -> None:
    """The connection was owned by nobody: psycopg#509, asyncpg#547, aiopg#27."""
    pool = make_pool(max_connections=1)
    for is_cancelled_first in (False, True):
        await hand_over_and_cancel(pool, is_cancelled_first=is_cancelled_first)
        await every_slot_works(pool, 1)
    assert pool.stats.dials == 1


async def test_a_task_cancelled_at_the_hand_over_ends_cancelled(make_pool: MakePool) -> None:
    """The cancellation was lost, and the task went on with a connection: psycopg#1275."""
    pool = make_pool(max_connections=1)
    for is_cancelled_first in (False, True):
        task = await hand_over_and_cancel(pool, is_cancelled_first=is_cancelled_first)
        assert task.cancelled()
        assert pool.busy_connections == 0


async def test_a_slow_hook_does_not_absorb_the_cancellation_of_acquire(
    make_pool: MakePool,
) -> None:
    """A check loop caught the cancellation and went on: psycopg#1401."""
    may_go_on = asyncio.Event()

    async def log_in(connection: WebsocketConnection) -> None:
        await may_go_on.wait()

    pool = make_pool(on_connect=log_in, connection_timeout=60.0)

    async def acquire() -> None:
        async with asyncio.timeout(0.05):
            await pool.acquire()

    acquiring = asyncio.create_task(acquire())
    await until(acquiring.done, "the time limit around acquire has ended it")
    with pytest.raises(TimeoutError):
        await acquiring
    assert pool.waiters == 0
    may_go_on.set()
    await until(lambda: pool.available_connections == 1, "the dial has gone on without it")


@types.coroutine
def cancelled_at(
    step: int, coroutine: Coroutine[Any, Any, object], *, is_served: bool
) -> Generator[Any, Any, bool]:
    """Run a coroutine and cancel the task at this one of its waits; False if it has fewer.

    Either as it begins to wait, or, `is_served`, in the tick in which its wait is over.
    """
    task = asyncio.current_task()
    assert task is not None
    resume: Callable[[], Any] = lambda: coroutine.send(None)  # noqa: E731
    for wait in itertools.count(1):
        try:
            waited_for = resume()
        except StopIteration:
            return wait > step
        if wait == step:
            if is_served and waited_for is not None:
                waited_for.add_done_callback(lambda _: task.cancel())
            else:
                task.cancel()
        try:
            yield waited_for
        except BaseException as error:
            resume = lambda error=error: coroutine.throw(error)  # noqa: E731
        else:
            resume = lambda: coroutine.send(None)  # noqa: E731
    raise AssertionError("not reached")


async def use_everything(pool: WebsocketConnectionPool) -> None:
    """Go through every call of a borrower, with a dial, a drain and two closes."""
    async with pool.get_new_connection(timeout=NET) as connection:
        assert await echoes(connection)
        await connection.ping()
    async with pool.get_connection(timeout=NET) as connection:  # waits for the drain
        assert await echoes(connection)
    drained = await pool.acquire(timeout=NET)
    await pool.release(drained, force_remove=True)
    removed = await pool.acquire(timeout=NET)  # waits for the goodbye, and dials
    try:
        await removed.close()
    finally:
        await pool.release(removed)


async def test_a_cancellation_at_any_await_costs_nothing(make_pool: MakePool) -> None:
    """`except Exception` cleans up after all but a cancellation: psycopg#1208, livekit#2027."""
    pool = make_pool(max_connections=1, check_server_data_on_release=True, drain_fence=True)
    for is_served in (False, True):
        for step in itertools.count(1):

            async def run(step: int = step, is_served: bool = is_served) -> bool:
                return await cancelled_at(step, use_everything(pool), is_served=is_served)

            task = asyncio.create_task(run())
            await asyncio.wait({task})
            if not task.cancelled():
                assert not task.result(), f"the cancellation at wait {step} was lost"
                break
            await every_slot_works(pool, 1)
            await until(lambda: not pool.pending_connections, "the drain is over")
        assert step > 8

    for is_served in (False, True):
        for step in itertools.count(1):
            pool = make_pool(warmup_connections=2)
            await pool.start()

            async def close(
                pool: WebsocketConnectionPool = pool, step: int = step, is_served: bool = is_served
            ) -> bool:
                return await cancelled_at(step, pool.close_all(), is_served=is_served)

            task = asyncio.create_task(close())
            await asyncio.wait({task})
            await pool.close_all()
            assert not len(queues_of(pool))
            if not task.cancelled():
                break
        assert step > 1


async def test_the_second_waiter_is_served_when_the_first_is_cancelled_in_that_tick(
    make_pool: MakePool,
) -> None:
    """asyncio's own tools lost the result, or the wake-up: gh-86296, gh-112202, gh-90155."""
    pool = make_pool(max_connections=1)
    for is_cancelled_first in (False, True):
        connection = await pool.acquire()
        first, second = await waiting(pool), await waiting(pool)
        if is_cancelled_first:
            first.cancel()
        await pool.release(connection)
        if not is_cancelled_first:
            first.cancel()
        await ticks(1)
        assert pool.waiters == 0  # the second has it ...
        await ticks(1)
        assert first.cancelled()
        assert second.done()  # ... and knows
        again = await second
        assert again.id == connection.id
        await pool.release(again)


async def test_who_waits_is_not_overtaken_by_who_comes(make_pool: MakePool) -> None:
    """Newcomers took what those in the line were woken for: gh-90155, CMAP's fairness."""
    pool = make_pool(max_connections=1)
    held = await pool.acquire()
    served: list[int] = []

    async def borrow(number: int) -> None:
        for _ in range(3):
            connection = await pool.acquire(timeout=NET)
            served.append(number)
            # Gives back, and is in the very same tick a newcomer.
            await pool.release(connection)

    tasks = []
    for number in range(5):
        tasks.append(asyncio.create_task(borrow(number)))
        await until(lambda: pool.waiters == len(tasks), "it has joined the line")
    await pool.release(held)
    await asyncio.gather(*tasks)
    assert served == [*range(5)] * 3


async def test_a_failed_dial_frees_its_slot(server: Server, make_pool: MakePool) -> None:
    """The pool was full of connections that never came about: vert.x#5438, async-websocket#24."""
    pool = make_pool(max_connections=2, max_retries=1)
    server.refuse(503, times=6)
    for _ in range(6):
        with pytest.raises(ConnectionUnavailableError):
            await pool.acquire(timeout=NET)
    await every_slot_works(pool, 2)
    assert len(server.requests) == 8


async def test_a_waiter_gets_the_place_of_a_connection_that_is_dropped(
    make_pool: MakePool,
) -> None:
    """The waiter slept on beside an empty pool: bb8#167."""
    pool = make_pool(max_connections=1)
    bad = await pool.acquire()
    waiter = await waiting(pool, NET)
    await pool.release(bad, force_remove=True)
    good = await waiter
    assert good.id != bad.id
    assert await echoes(good)
    await pool.release(good)


async def test_there_are_no_more_dials_than_are_needed(server: Server, make_pool: MakePool) -> None:
    """Each waiter was counted again by each that came after it: bb8 f02f40f, HikariCP#774."""
    pool = make_pool(max_connections=50, max_connecting=50)
    server.delay = 0.02

    async def borrow() -> None:
        for _ in range(3):
            async with pool.get_connection(timeout=NET) as connection:
                assert await echoes(connection)

    await asyncio.gather(*(borrow() for _ in range(6)))
    assert len(server.requests) <= 6

    server.requests.clear()
    kept = make_pool(min_connections=3, cleanup_interval=0.005)
    await kept.start()
    assert len(server.requests) == 3
    server.open[-1].drop()
    await until(lambda: kept.available_connections == 2, "the loss was noticed")
    await until(lambda: kept.available_connections == 3, "the loss was made up for")
    assert len(server.requests) == 4


async def borrow_at_random(
    pool: WebsocketConnectionPool,
    server: Server,
    dice: random.Random,
    rounds: int,
    look: Callable[[], None],
) -> None:
    """Use the pool well and badly, by chance; `look` after each step."""
    for _ in range(rounds):
        action = dice.choice(
            ["return", "leave", "remove", "fail", "reset", "cancel", "new", "refuse"]
        )
        try:
            if action == "cancel":
                task = asyncio.create_task(pool.acquire(timeout=NET))
                await ticks(dice.randrange(12))
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await pool.release(await task)
            elif action == "refuse":
                server.refuse(503)
            elif action == "new":
                async with pool.get_new_connection(timeout=NET) as connection:
                    look()
                    assert await echoes(connection, "new")
            elif action == "remove":
                connection = await pool.acquire(timeout=NET)
                look()
                await pool.release(connection, force_remove=True)
            elif action == "fail":
                with suppress(ZeroDivisionError):
                    async with pool.get_connection(timeout=NET) as connection:
                        await connection.send("unanswered")
                        look()
                        raise ZeroDivisionError
            else:
                async with pool.get_connection(timeout=NET) as connection:
                    await connection.send("#n")
                    if action != "leave":
                        number = int(await connection.recv())
                        look()
                        peer = server.peers[number - 1]
                    if action == "reset":
                        peer.drop()
        except (ConnectionClosedError, ConnectionUnavailableError):
            pass
        look()


async def test_the_server_never_sees_more_sockets_than_the_maximum(
    server: Server, make_pool: MakePool
) -> None:
    """A slot was free before its socket was gone: puddle 2.2.1, psycopg#1176."""
    may_close = asyncio.Event()
    closing: list[Peer] = []

    async def close_late(peer: Peer) -> None:
        while (message := await peer.websocket.receive()).type is WSMsgType.TEXT:
            await peer.send(str(peer.number) if message.data == "#n" else message.data)
        if message.type is WSMsgType.CLOSE:
            closing.append(peer)
            await may_close.wait()
            await peer.close()

    server.handler = close_late
    server.websocket_options = {"autoclose": False}
    pool = make_pool(max_connections=3, close_timeout=NET)
    held = [await pool.acquire() for _ in range(3)]
    waiters = [await waiting(pool, NET) for _ in range(3)]
    for connection in held:
        await pool.release(connection, force_remove=True)
    await until(lambda: len(closing) == 3, "the server was asked to close")
    await ticks(300)  # a dial takes a tenth of that
    may_close.set()
    for waiter in waiters:
        await pool.release(await waiter)

    await asyncio.gather(
        *(
            borrow_at_random(pool, server, random.Random(seed), 20, lambda: None)
            for seed in range(6)
        )
    )
    assert len(server.peers) > 6
    assert server.most_open <= 3


async def test_every_count_is_the_truth_after_every_action(
    server: Server, make_pool: MakePool
) -> None:
    """A number was kept beside the connections, and drifted: deadpool 0.9.5, audex."""
    pool = make_pool(max_connections=3, max_retries=1)
    queues = queues_of(pool)

    def look() -> None:
        members = [link for state in State for link in queues[state]]
        assert len(set(members)) == len(members) == len(queues)
        for state in State:
            assert all(link.state is state for link in queues[state])
        assert not any(link in queues[state] for link in queues.gone for state in State)
        of = {state: sum(c.state is state for c in pool.connections) for state in State}
        assert pool.available_connections == of[State.IDLE]
        assert pool.busy_connections == of[State.BUSY]
        assert pool.pending_connections == of[State.DRAINING]
        assert pool.total_connections == of[State.IDLE] + of[State.BUSY] + of[State.DRAINING]

    server.refuse(503)
    await asyncio.gather(
        *(borrow_at_random(pool, server, random.Random(seed), 20, look) for seed in range(5))
    )
    await until(
        lambda: not queues.closed and not queues.connecting, "the dials and goodbyes are over"
    )
    look()
    assert pool.busy_connections == pool.pending_connections == 0
    await until(lambda: len(server.open) == pool.total_connections, "the server counts the same")


@asynccontextmanager
async def nobody_answers() -> AsyncIterator[tuple[str, list[asyncio.StreamWriter]]]:
    """Accept connections and read, but answer no handshake; give the URI and what is open."""
    sockets: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sockets.append(writer)
        with suppress(ConnectionError):
            await reader.read()  # to the end
        writer.close()
        sockets.remove(writer)

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        yield f"ws://127.0.0.1:{port}/", sockets


async def test_closing_during_a_dial_is_bounded_and_leaves_no_socket(make_pool: MakePool) -> None:
    """The closing waited for a handshake for ever: puddle 1.1.x, clickhouse-cs#560."""
    async with nobody_answers() as (uri, sockets):
        pool = make_pool(uri=uri, connection_timeout=600.0)
        acquiring = asyncio.create_task(pool.acquire())
        await until(lambda: sockets, "the handshake has begun")
        async with asyncio.timeout(NET):
            await pool.close_all()
        with pytest.raises(ConnectionPoolUnavailableError):
            await acquiring
        await until(lambda: not sockets, "the server has no socket")


async def test_closing_does_not_wait_for_a_borrower_that_never_returns(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    """The closing hung, and those in the line with it: asyncpg#547, sqlx#3952."""
    pool = make_pool(max_connections=1)
    kept = await pool.acquire()
    waiter = await waiting(pool)
    closing = asyncio.create_task(pool.close_all(timeout=0.1))
    with pytest.raises(ConnectionPoolUnavailableError):
        await waiter
    assert not closing.done()
    async with asyncio.timeout(NET):
        await closing
    assert any("closing with borrowers" in record.message for record in caplog.records)
    with pytest.raises(ConnectionClosedError, match="pool closed"):
        await kept.recv()


async def test_no_borrower_sees_a_connection_that_died_while_idle(
    server: Server, make_pool: MakePool
) -> None:
    """The first borrower after a server's close got the error: bifrost#3002, livekit#6513."""

    async def say_goodbye(peer: Peer) -> None:
        await peer.close(1001, "idle for too long")

    async def hang_up(peer: Peer) -> None:
        assert peer.request.transport is not None
        peer.request.transport.close()

    async def reset(peer: Peer) -> None:
        peer.drop()

    async def become_mute(peer: Peer) -> None:
        peer.mute()

    pool = make_pool(max_connections=1, acquire_timeout=NET)
    watchful = make_pool(max_connections=1, acquire_timeout=NET, heartbeat=0.4)
    for end in (say_goodbye, hang_up, reset, become_mute):
        borrowed_from = watchful if end is become_mute else pool
        async with borrowed_from.get_connection() as connection:
            assert await echoes(connection)
        await end(server.open[-1])
        if end is become_mute:
            await until(lambda c=connection: not c.is_connected, "the heartbeat has failed")
        else:
            await until(lambda c=connection: link_of(c).has_news, "the end has arrived")
        async with borrowed_from.get_connection() as other:
            assert await echoes(other)
        assert other.id != connection.id


async def test_a_late_reply_is_never_read_by_the_next_borrower(
    server: Server, make_pool: MakePool
) -> None:
    """Users saw other users' data, off by one reply: redis-py#2624, livekit#7081."""
    may_reply = asyncio.Event()

    async def reply_late(peer: Peer) -> None:
        async for message in peer:
            await may_reply.wait()
            await peer.send(f"reply to {message}")

    server.handler = reply_late
    pool = make_pool(max_connections=1, acquire_timeout=NET)

    async def ask(message: str) -> str | bytes:
        async with pool.get_connection() as connection:
            await connection.send(message)
            return await connection.recv()

    def has_asked() -> bool:
        return any(link.wire is not None and link.wire.sent_messages for link in queues_of(pool))

    first = asyncio.create_task(ask("mine"))
    await until(has_asked, "the first has asked")
    await until(lambda: server.open, "the server has heard")
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    second = asyncio.create_task(ask("theirs"))
    await until(lambda: pool.waiters or pool.busy_connections, "the second has come")
    may_reply.set()
    assert await second == "reply to theirs"


async def test_the_expiry_of_a_connection_spares_its_replacement(
    server: Server, make_pool: MakePool
) -> None:
    """A timer set for one closed what had come in its place: openclaw#105634, golang/go#21780."""
    loop = asyncio.get_running_loop()
    pool = make_pool(max_connections=1, idle_timeout=0.1, cleanup_interval=0.01)
    old = await pool.acquire()
    assert await echoes(old)
    await pool.release(old)
    expiry = loop.time() + 0.1
    server.open[-1].drop()
    await until(lambda: old.state is State.CLOSED, "the old one is lost")
    replacement = await pool.acquire(timeout=NET)
    assert replacement.id != old.id
    await until(lambda: loop.time() > expiry + 0.02, "the old one's time is over")
    assert replacement.state is State.BUSY
    assert await echoes(replacement)
    await pool.release(replacement)


async def test_attending_does_not_make_a_connection_younger(
    server: Server, make_pool: MakePool
) -> None:
    """What only kept a connection alive counted as use, and it never went: bifrost#3018."""

    async def pester(peer: Peer) -> None:
        await peer.recv()
        await peer.send("go")
        kind = WSMsgType.PONG
        while kind is WSMsgType.PONG:
            await peer.send("a stray message")
            await peer.websocket.ping()
            kind = (await peer.websocket.receive()).type
        await peer.close()

    server.handler = pester
    server.websocket_options = {"autoping": False, "autoclose": False}
    pool = make_pool(idle_timeout=0.1, cleanup_interval=0.01)
    async with pool.get_connection() as connection:
        await connection.send("go")
        assert await connection.recv() == "go"
    await until(lambda: connection.state is State.CLOSED, "it has been idle for too long")
    assert connection.history[-1].why == CloseReason.IDLE
    assert link_of(connection).drained_messages > 1


async def test_connections_of_one_age_do_not_go_in_one_moment(make_pool: MakePool) -> None:
    """All were made at once, expired at once and dialled at once: HikariCP#379, channels#568."""
    at_work = most_at_work = 0

    async def log_in(connection: WebsocketConnection) -> None:
        nonlocal at_work, most_at_work
        at_work += 1
        most_at_work = max(most_at_work, at_work)
        assert await echoes(connection)
        at_work -= 1

    random.seed(18)
    pool = make_pool(
        min_connections=20,
        max_lifetime=100.0,
        idle_timeout=600.0,
        max_connecting=3,
        on_connect=log_in,
    )
    await pool.start()
    now = asyncio.get_running_loop().time()
    most_at_once = 0
    for seconds in range(88, 102):
        pool._router.clock = lambda now=now + seconds: now
        closed = pool.stats.closes[CloseReason.LIFETIME]
        tidy(pool._router)
        at_once = pool.stats.closes[CloseReason.LIFETIME] - closed
        most_at_once = max(most_at_once, at_once)
    pool._router.clock = asyncio.get_running_loop().time
    assert pool.stats.closes[CloseReason.LIFETIME] == 20
    assert most_at_once < 10
    await until(lambda: pool.available_connections == 20, "all have been replaced")
    assert most_at_work <= 3


async def test_a_pool_that_lost_everything_fills_up_again(
    server: Server, make_pool: MakePool
) -> None:
    """After an outage the pool stayed empty until it was asked: psycopg#370, HikariCP#1474."""
    pool = make_pool(min_connections=2, cleanup_interval=0.01)
    await pool.start()
    assert pool.available_connections == 2
    await server.stop()
    await until(lambda: not pool.total_connections, "the outage has been noticed")
    await until(lambda: pool.stats.dial_failures, "a dial has failed")
    await server.start()
    await until(lambda: pool.available_connections == 2, "the minimum is back")


@pytest.mark.parametrize("waits", [(600.0,) * 5])
async def test_a_server_that_accepts_and_closes_is_not_dialled_in_a_loop(
    server: Server, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each handshake that succeeded ended the back-off: psycopg#709, golang/go#52459."""

    async def close_at_once(peer: Peer) -> None:
        await peer.close(1008, "no")

    server.handler = close_at_once
    monkeypatch.setattr("backoff.full_jitter", lambda longest: longest)
    pool = make_pool()

    async def borrow() -> None:
        connection = await pool.acquire(timeout=0.1)
        with pytest.raises(ConnectionClosedError):
            await connection.recv()
        await pool.release(connection)

    async def borrow_in_a_loop() -> None:
        for _ in range(5):
            await borrow()

    with pytest.raises(ConnectionPoolTimeoutError) as caught:
        await borrow_in_a_loop()
    assert "right after the handshake: closed by the server, code 1008 'no'" in str(
        caught.value.__cause__
    )
    assert len(server.requests) == 1


async def test_a_pool_made_without_a_loop_belongs_to_the_first_that_uses_it(
    server: Server,
) -> None:
    """Made in one loop and used in another, it broke obscurely: psycopg#219, SQLAlchemy#5823."""
    here = asyncio.get_running_loop()

    def elsewhere() -> None:
        pool = WebsocketConnectionPool(uri=server.uri, close_timeout=1.0)

        async def use() -> None:
            async with asyncio.timeout(NET), pool:
                async with pool.get_connection() as connection:
                    assert await echoes(connection)
                foreign = asyncio.run_coroutine_threadsafe(pool.acquire(), here)
                with pytest.raises(RuntimeError, match=r"belongs to the event loop .* called from"):
                    await asyncio.wrap_future(foreign)
                async with pool.get_connection() as connection:
                    assert await echoes(connection)

        asyncio.run(use())

    await asyncio.to_thread(elsewhere)


async def test_dropping_a_pool_warns_and_does_nothing_else(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`__del__` used an event loop that was closed by then: SQLAlchemy#5823."""
    troubles: list[str] = []
    monkeypatch.setattr(
        sys, "unraisablehook", lambda unraisable: troubles.append(repr(unraisable.exc_value))
    )

    async def forget() -> list[object]:
        async with aiohttp.ClientSession() as session:
            pool = WebsocketConnectionPool(uri=server.uri, session=session)
            return [pool, await pool.acquire()]

    def drop() -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            dropped.clear()
            gc.collect()
        return [f"{warning.category.__name__}: {warning.message}" for warning in caught]

    dropped = await asyncio.to_thread(asyncio.run, forget())
    # A warning that is recorded has a hold of the pool, and with it of the connection.
    said = [*drop(), *drop()]
    for what in (
        f"^ResourceWarning: <WebsocketConnectionPool .* made at {re.escape(__file__)}:",
        f"^ResourceWarning: connection #1, borrowed at {re.escape(__file__)}:",
    ):
        assert any(re.search(what, text) for text in said), said
    assert not [text for text in said if "never awaited" in text]
    assert not troubles


async def test_no_error_is_left_unretrieved_and_no_task_is_lost(
    server: Server, make_pool: MakePool
) -> None:
    """The loop reported, long after, errors that nobody had asked for: aiohttp#8641."""
    loop = asyncio.get_running_loop()
    troubles: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: troubles.append(context))
    pool = make_pool(max_connections=1, max_retries=1)

    # A dial fails that nobody waits for any more.
    server.delay = 0.02
    server.refuse(503)
    waiter = asyncio.create_task(pool.acquire())
    await until(lambda: server.requests, "the handshake has begun")
    waiter.cancel()
    gc.collect()
    await until(lambda: not len(queues_of(pool)), "the dial has failed")

    # A waiter is given an error and is cancelled, in one tick.
    kept = await pool.acquire()
    waiter = await waiting(pool)
    closing = asyncio.create_task(pool.close_all())
    if pool.is_closed:  # an eager task has closed it already
        waiter.cancel()
    else:
        loop.call_soon(waiter.cancel)
    await asyncio.wait({waiter, closing})
    assert waiter.cancelled()
    assert kept.state is State.CLOSED

    # Drains, in tasks that nobody waits for, find that they cannot write.
    async with WebsocketConnectionPool(uri=server.uri, drain_fence=True) as other:
        for _ in range(3):
            connection = await other.acquire()
            assert await echoes(connection)
            server.open[-1].drop()
            await until(lambda c=connection: link_of(c).has_news, "the reset has arrived")
            await other.release(connection)
            await until(lambda pool=other: not len(queues_of(pool)), "the connection is gone")
    del waiter, closing, kept, connection, other
    gc.collect()
    await ticks()
    assert not troubles


async def test_starting_five_times_at_once_is_starting_once(
    server: Server, make_pool: MakePool
) -> None:
    """Each caller made a set of connections: pythereum#10, psycopg#1300."""
    pool = make_pool(warmup_connections=3)
    await asyncio.gather(*(pool.start() for _ in range(5)))
    assert pool.available_connections == pool.total_connections == 3
    assert len(server.requests) == 3


async def test_cancelled_waiters_leave_nothing_behind(make_pool: MakePool) -> None:
    """Waiters that had gone stayed in the line, and each release went through them: \
django-async-backend#28."""
    pool = make_pool(max_connections=3)
    held = [await pool.acquire() for _ in range(3)]
    kinds = (pool.acquire, pool.acquire_new)
    tasks = [asyncio.create_task(kinds[number % 2](timeout=NET)) for number in range(1000)]
    await until(lambda: pool.waiters == 1000, "all are in the line")
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)
    assert pool.waiters == 0
    for connection in held:
        await pool.release(connection)
    await every_slot_works(pool, 3)
    assert pool.stats.dials == 3


async def test_acquire_keeps_to_its_deadline_whatever_goes_on_inside(
    server: Server, make_pool: MakePool
) -> None:
    """The time limit began anew with each retry: httpcore#823."""

    async def never(connection: WebsocketConnection) -> None:
        await asyncio.Event().wait()

    async def times_out(pool: WebsocketConnectionPool) -> None:
        with pytest.raises(ConnectionPoolTimeoutError):
            async with asyncio.timeout(NET):
                await pool.acquire(timeout=0.05)

    patient: dict[str, Any] = {"max_retries": 10_000, "connection_timeout": 600.0}
    await times_out(make_pool(on_connect=never, **patient))
    full = make_pool(max_connections=1, **patient)
    held = await full.acquire()
    await times_out(full)
    await full.release(held)
    server.refuse(503, headers={"Retry-After": "29"})
    await times_out(make_pool(**patient))
    async with nobody_answers() as (uri, sockets):
        mute = make_pool(uri=uri, **patient)
        await times_out(mute)
        await mute.close_all()
        await until(lambda: not sockets, "the server has no socket")


async def test_a_waiter_whose_time_is_up_is_not_served_any_more(make_pool: MakePool) -> None:
    """The connection went to somebody who had gone, and was lost: httpcore#502."""
    loop = asyncio.get_running_loop()
    pool = make_pool(max_connections=1)
    connection = await pool.acquire()
    waiter = await waiting(pool, 0.02)
    # Hold the loop up until both are due: it comes back in the tick in which the time is up.
    loop.call_later(0.02, pool._router.give_back, connection)
    both_due = loop.time() + 0.021
    while loop.time() < both_due:
        pass
    with pytest.raises(ConnectionPoolTimeoutError):
        await waiter
    assert pool.available_connections == 1
    again = await pool.acquire()
    assert again.id == connection.id
    await pool.release(again)


async def test_a_hook_that_raises_costs_the_connection_and_no_slot(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    """The connection went on as if its hook had done its work: sqlx#1915."""
    is_broken = True

    async def hook(connection: WebsocketConnection) -> None:
        if is_broken:
            raise LookupError("a user's mistake")

    def plain_hook(*_: object) -> bool:
        if is_broken:
            raise LookupError("a user's mistake")
        return True

    pool = make_pool(max_connections=1, on_connect=hook)
    with pytest.raises(ConnectionUnavailableError) as unavailable:
        await pool.acquire()
    assert isinstance(unavailable.value.__cause__, LookupError)
    assert unavailable.value.attempts == 1
    is_broken = False
    await every_slot_works(pool, 1)

    for options in (
        {"on_release": hook},
        {"drain_until": plain_hook},
        {"drain_condition": plain_hook},
        {"on_drained": plain_hook},
    ):
        (name,) = options
        pool = make_pool(max_connections=1, acquire_timeout=NET, **options)
        is_broken = True
        async with pool.get_connection() as connection:
            assert await echoes(connection)
            await connection.send("left unread")
            await until(lambda c=connection: link_of(c).has_news, "the reply has arrived")
        await until(lambda c=connection: c.state is State.CLOSED, "it is given up")
        assert connection.history[-1].why == CloseReason.ERROR
        assert any(
            record.levelno == logging.ERROR and name in record.message for record in caplog.records
        )
        is_broken = False
        async with pool.get_connection() as other:
            assert other.id != connection.id
            assert await echoes(other)


async def test_an_illegal_trigger_is_an_error_and_nothing_has_moved() -> None:
    """The move was half done when the error came."""
    legal = {(trigger, source): dest for trigger, source, dest in states.TRANSITIONS}
    way_to = {
        State.CONNECTING: [],
        State.IDLE: ["connected"],
        State.BUSY: ["connected", "checkout"],
        State.DRAINING: ["connected", "checkout", "drain"],
        State.CLOSED: ["close"],
    }
    assert way_to.keys() == set(State)
    for state, trigger in itertools.product(State, states.machine.events):
        queues: Queues[Link] = Queues()
        link = Link(1, queues, asyncio.get_running_loop(), Budget(), lambda _: None)
        queues.add(link)
        for step in way_to[state]:
            getattr(states, step)(link, "on the way")
        assert link.state is state
        moves = list(link.moves)
        if (trigger, state) in legal:
            getattr(states, trigger)(link, "legal")
            assert link.state == legal[trigger, state]
            assert link in queues[link.state]
            assert len(queues) == 1
            continue
        with pytest.raises(IllegalTransitionError, match=f"{trigger!r} .* {str(state)!r}"):
            getattr(states, trigger)(link, "illegal")
        assert link.state is state
        assert list(queues[state]) == list(queues) == [link]
        assert list(link.moves) == moves
