"""The snapshot is complete and right, whoever looks and whenever; overdue loans are named once."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import logging
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from time import time
from types import CodeType
from typing import Any

import aiohttp
import pytest

from tests.conftest import MakePool, until
from tests.support.inside import link_of
from wspool import (
    CloseReason,
    ConnectionPoolTimeoutError,
    State,
    WebsocketConnection,
    WebsocketConnectionPool,
)
from wspool._pool import upkeep
from wspool._pool.introspection import (
    MAX_WAITERS,
    BorrowerSnapshot,
    ConnectionSnapshot,
    PoolSnapshot,
)
from wspool._pool.routing import Router
from wspool.testing import Server

HERE = str(Path(__file__))


def place(marker: str) -> str:
    """Return `file:line` of the line of this file that ends with the comment `# at: marker`."""
    lines = Path(__file__).read_text().splitlines()
    [number] = [n for n, line in enumerate(lines, 1) if line.endswith(f"# at: {marker}")]
    return f"{HERE}:{number}"


def picture_of(
    pool: WebsocketConnectionPool, connection: WebsocketConnection
) -> ConnectionSnapshot:
    picture = pool.snapshot()
    [found] = [c for c in picture.connections + picture.gone if c.id == connection.id]
    return found


def later(connection: WebsocketConnection, seconds: float) -> None:
    """Let so many seconds pass, for the clock of this connection."""
    link = link_of(connection)
    clock = link.clock
    link.clock = lambda: clock() + seconds


# The connections.


async def test_a_connection_is_shown_in_each_state(server: Server, make_pool: MakePool) -> None:
    pool = make_pool(check_server_data_on_release=True, drain_quiet_period=0.05, close_timeout=60.0)
    server.delay = 0.05
    acquiring = asyncio.create_task(pool.acquire())
    await until(lambda: pool.connections, "it is being dialled")
    [dialled] = pool.connections
    shown = [picture_of(pool, dialled)]
    connection = await acquiring
    assert connection.id == dialled.id
    shown.append(picture_of(pool, connection))
    await pool.release(connection)
    shown.append(picture_of(pool, connection))
    await until(lambda: pool.available_connections, "it is drained")
    shown.append(picture_of(pool, connection))
    server.peers[0].mute()
    pool.expire_connections()
    shown.append(picture_of(pool, connection))
    server.peers[0].unmute()
    await until(lambda: pool.snapshot().gone, "it is gone")
    shown.append(picture_of(pool, connection))
    states = ["connecting", "busy", "draining", "idle", "closed", "closed"]
    assert [c.state for c in shown] == states
    assert {c.id for c in shown} == {1}
    assert [c.uses for c in shown] == [0, 1, 1, 1, 1, 1]
    assert [c.idle_seconds is not None for c in shown] == [state == "idle" for state in states]
    assert [c.borrower is not None for c in shown] == [state == "busy" for state in states]
    assert [c.close_code for c in shown] == [None] * 4 + [1000] * 2
    assert pool.snapshot().connections == ()


async def test_the_durations_are_seconds_by_the_loops_clock(make_pool: MakePool) -> None:
    pool = make_pool()
    connection = await pool.acquire()
    later(connection, 100)
    busy = picture_of(pool, connection)
    assert 100 <= busy.seconds_in_state <= busy.age < 110
    await pool.release(connection)
    later(connection, 50)
    idle = picture_of(pool, connection)
    assert idle.idle_seconds is not None
    assert 50 <= idle.seconds_in_state < 60
    assert 50 <= idle.idle_seconds < 60
    assert 150 <= idle.age < 160


async def test_a_keepalive_does_not_make_an_idle_connection_younger(make_pool: MakePool) -> None:
    """The idle age goes on, the time in the state begins anew, and the round trip is known."""
    pool = make_pool(keepalive_interval=0.03, cleanup_interval=0.01)
    connection = await pool.acquire()
    assert picture_of(pool, connection).rtt is None
    await pool.release(connection)
    link = link_of(connection)
    idle_since = link.idle_since
    await until(lambda: len(link.moves) > 6, "it was kept alive twice")
    await until(lambda: connection.state is State.IDLE, "it is back")
    picture = picture_of(pool, connection)
    assert picture.idle_seconds is not None
    assert picture.idle_seconds >= 0.05
    assert picture.idle_seconds <= link.clock() - idle_since
    assert picture.seconds_in_state < picture.idle_seconds
    assert picture.uses == 1
    assert picture.rtt is not None
    assert 0 < picture.rtt < 10


async def test_the_rtt_is_that_of_the_last_ping(make_pool: MakePool) -> None:
    pool = make_pool()
    connection = await pool.acquire()
    for _ in range(2):
        assert await connection.ping() == picture_of(pool, connection).rtt


@pytest.mark.parametrize(
    ("message", "size"),
    [("hello", 5), ("grüß € 𝄞", 15), ("", 0), (b"\x00\xff", 2), (b"\xc3\xbc" * 3, 6)],
    ids=["ASCII", "UTF-8", "nothing", "bytes", "bytes that are UTF-8"],
)
async def test_messages_and_the_bytes_of_their_payload_are_counted(
    make_pool: MakePool, message: str | bytes, size: int
) -> None:
    pool = make_pool()
    connection = await pool.acquire()
    for count in (1, 2):
        await connection.send(message)
        assert await connection.recv() == message
        await connection.ping()
        picture = picture_of(pool, connection)
        assert (picture.sent_messages, picture.sent_bytes) == (count, count * size)
        assert (picture.received_messages, picture.received_bytes) == (count, count * size)
        assert picture.drained_messages == 0


async def test_drained_messages_are_counted_and_were_received(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool(drain_fence=True)
    connection = await pool.acquire()
    for _ in range(3):
        await connection.send("left unread")
    await pool.release(connection)
    await until(lambda: connection.state is State.IDLE, "it is drained")
    await server.peers[0].send("a stray")
    await until(lambda: link_of(connection).drained_messages == 4, "the stray is disposed of")
    picture = picture_of(pool, connection)
    assert (picture.drained_messages, picture.received_messages) == (4, 4)
    assert pool.snapshot().stats.drained_messages == 4


async def test_what_closed_a_connection_is_shown_of_those_that_are_gone(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool()
    connection = await pool.acquire()
    await pool.release(connection)
    await server.peers[0].close(4001, "grüß dich")
    await until(lambda: pool.snapshot().gone, "it is gone")
    [picture] = pool.snapshot().gone
    assert (picture.close_code, picture.close_reason) == (4001, "grüß dich")
    assert picture.history[-1][:3] == ("close", State.IDLE, State.CLOSED)
    assert picture.history[-1].why is CloseReason.SERVER
    assert (picture.idle_seconds, picture.borrower) == (None, None)


async def test_the_last_32_that_are_gone_are_remembered(make_pool: MakePool) -> None:
    pool = make_pool(max_uses=1)
    for _ in range(35):
        async with pool.get_connection(timeout=10.0):
            pass
    await until(lambda: not pool.connections, "all are gone")
    assert [picture.id for picture in pool.snapshot().gone] == [*range(4, 36)]


async def test_the_history_is_the_last_16_transitions(make_pool: MakePool) -> None:
    """Oldest first, each from where the one before led to, in Unix seconds."""
    before = time()
    pool = make_pool()
    connection = await pool.acquire()
    history = picture_of(pool, connection).history
    assert [move[:3] for move in history] == [
        ("connected", "connecting", "idle"),
        ("checkout", "idle", "busy"),
    ]
    assert [move.why for move in history] == ["dialled", "acquire"]
    await pool.release(connection)
    for _ in range(10):
        async with pool.get_connection():
            pass
    picture = picture_of(pool, connection)
    assert len(picture.history) == 16
    assert [move.trigger for move in picture.history] == ["checkout", "checkin"] * 8
    assert all(a.dest == b.source for a, b in itertools.pairwise(picture.history))
    at = [move.at for move in history + picture.history]
    assert at == sorted(at)
    assert before - 0.1 <= at[0]
    assert at[-1] <= time() + 0.1


async def test_the_subprotocol_is_the_one_that_the_server_chose(make_pool: MakePool) -> None:
    async with Server(protocols=("v2", "v1")) as server:
        pool = make_pool(uri=server.uri, protocols=("v1",))
        connection = await pool.acquire()
        assert picture_of(pool, connection).subprotocol == "v1"
        await pool.close_all()


# The borrowers.

Use = Callable[[WebsocketConnection], Awaitable[object]]


async def in_recv(connection: WebsocketConnection) -> None:
    await connection.recv()  # at: in_recv


async def in_a_helper(connection: WebsocketConnection) -> None:
    async with asyncio.timeout(60):
        await in_recv(connection)


async def in_ping(connection: WebsocketConnection) -> None:
    await connection.ping()  # at: in_ping


async def in_iteration(connection: WebsocketConnection) -> None:
    async for _ in connection:  # at: in_iteration
        pass


async def in_sleep(connection: WebsocketConnection) -> None:
    await asyncio.sleep(60)  # at: in_sleep


async def in_a_future(connection: WebsocketConnection) -> None:
    await asyncio.get_running_loop().create_future()  # at: in_a_future


async def in_gather(connection: WebsocketConnection) -> None:
    await asyncio.gather(connection.recv(), asyncio.sleep(60))  # at: in_gather


async def in_a_task_group(connection: WebsocketConnection) -> None:
    async with asyncio.TaskGroup() as group:  # at: in_a_task_group
        group.create_task(in_recv(connection))


class Awaiting:
    """An awaitable of plain generators."""

    def __init__(self, connection: WebsocketConnection) -> None:
        self.connection = connection

    def __await__(self) -> Any:
        return (yield from self.connection.recv().__await__())  # at: in_an_awaitable


async def in_an_awaitable(connection: WebsocketConnection) -> None:
    await Awaiting(connection)


async def messages(connection: WebsocketConnection) -> AsyncIterator[str | bytes]:
    while True:
        yield await connection.recv()  # at: in_an_async_generator


async def in_an_async_generator(connection: WebsocketConnection) -> None:
    received = messages(connection)
    async with contextlib.aclosing(received):  # type: ignore[type-var]
        async for _ in received:
            pass


@contextlib.asynccontextmanager
async def session(connection: WebsocketConnection) -> AsyncIterator[None]:
    await connection.recv()  # at: in_a_context_manager
    yield


async def in_a_context_manager(connection: WebsocketConnection) -> None:
    async with session(connection):
        pass


USES: dict[Use, str] = {
    in_recv: "in_recv",
    in_a_helper: "in_recv",
    in_ping: "in_ping",
    in_iteration: "in_iteration",
    in_sleep: "in_sleep",
    in_a_future: "in_a_future",
    in_gather: "in_gather",
    in_a_task_group: "in_a_task_group",
    in_an_awaitable: "in_an_awaitable",
    in_an_async_generator: "in_an_async_generator",
    in_a_context_manager: "in_a_context_manager",
}
"""What a borrower may be doing, and the place of his own code where he does it."""


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
async def test_a_borrower_is_shown_where_its_own_code_waits(
    server: Server, make_pool: MakePool, use: Use
) -> None:
    """However deep in the package, in asyncio or in contextlib the wait itself is."""
    pool = make_pool()

    async def borrow() -> None:
        async with pool.get_connection() as connection:  # at: the loan
            server.peers[0].mute()
            await use(connection)

    task = asyncio.create_task(borrow(), name="borrower 7")
    await until(lambda: pool.busy_connections, "it is lent")
    await asyncio.sleep(0.01)
    borrower = pool.snapshot().connections[0].borrower
    task.cancel()
    server.peers[0].unmute()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert borrower is not None
    assert borrower.task == "borrower 7"
    assert borrower.borrowed_at == place("the loan")
    assert borrower.at is not None
    at, _, function = borrower.at.partition(" in ")
    assert at == place(USES[use])
    assert function.isidentifier()


@pytest.mark.parametrize("way", ["acquire", "acquire_new", "get_connection", "get_new_connection"])
async def test_a_loan_is_named_by_the_line_that_took_it(make_pool: MakePool, way: str) -> None:
    pool = make_pool()
    if way.startswith("acquire"):
        connection = await getattr(pool, way)()  # at: the call
        expected = place("the call")
    else:
        loan = getattr(pool, way)()
        connection = await loan.__aenter__()  # at: the entry
        expected = place("the entry")
    borrower = picture_of(pool, connection).borrower
    assert borrower is not None
    assert borrower.borrowed_at == connection.borrowed_at == expected
    await pool.release(connection)
    assert picture_of(pool, connection).borrower is None
    assert pool.connections[0].borrowed_at is None
    assert connection.borrowed_at == expected, "the loan that is over remembers"


async def test_a_borrower_whose_task_has_ended_is_nowhere(make_pool: MakePool) -> None:
    pool = make_pool()

    async def forget() -> WebsocketConnection:
        return await pool.acquire()

    connection = await asyncio.create_task(forget(), name="forgetful")
    borrower = picture_of(pool, connection).borrower
    assert borrower is not None
    assert (borrower.task, borrower.at) == ("forgetful", None)
    assert borrower.borrowed_at.startswith(f"{HERE}:")


async def test_code_beside_a_library_is_not_taken_for_it(
    make_pool: MakePool, server: Server
) -> None:
    """A file whose path only begins like a library's is the borrower's own."""
    file = str(Path(aiohttp.__file__).parent) + "_retry/client.py"
    code: CodeType = compile(
        "async def use(connection):\n    await connection.recv()\n", file, "exec"
    )
    scope: dict[str, Any] = {}
    exec(code, scope)
    pool = make_pool()

    async def borrow() -> None:
        async with pool.get_connection() as connection:
            await scope["use"](connection)

    task = asyncio.create_task(borrow())
    await until(lambda: pool.busy_connections, "it is lent")
    await asyncio.sleep(0.01)
    borrower = pool.snapshot().connections[0].borrower
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert borrower is not None
    assert borrower.at == f"{file}:2 in use"


async def test_an_errand_has_no_borrower(server: Server, make_pool: MakePool) -> None:
    pool = make_pool(check_after_idle=0.0, leak_threshold=1e-9)
    connection = await pool.acquire()
    await pool.release(connection)
    server.peers[0].mute()
    acquiring = asyncio.create_task(pool.acquire())
    await until(lambda: connection.is_busy, "it is being checked")
    picture = picture_of(pool, connection)
    assert (picture.state, picture.borrower, picture.is_overdue) == ("busy", None, False)
    server.peers[0].unmute()
    await acquiring


# The pool.


def test_a_pool_that_was_not_started_can_be_looked_at() -> None:
    picture = WebsocketConnectionPool(uri="ws://localhost/", name="speech").snapshot()
    assert (picture.name, picture.is_started, picture.is_closed) == ("speech", False, False)
    assert picture.counts == dict.fromkeys(State, 0)
    assert (picture.connections, picture.gone, picture.waiting) == ((), (), ())


async def test_counts_limits_and_stats_are_those_of_the_pool(make_pool: MakePool) -> None:
    before = time()
    pool = make_pool(max_connections=7, min_connections=2, max_connecting=3, name="speech")
    await pool.start()
    first = await pool.acquire()
    picture = pool.snapshot()
    assert picture.counts == {"connecting": 0, "idle": 1, "busy": 1, "draining": 0, "closed": 0}
    limits = (picture.max_connections, picture.min_connections, picture.max_connecting)
    assert limits == (7, 2, 3)
    assert (picture.is_started, picture.is_closed, picture.waiters) == (True, False, 0)
    assert before <= picture.at <= time()
    assert picture.stats == pool.stats
    assert picture.stats is not pool.stats
    await pool.release(first)
    await pool.close_all()
    closed = pool.snapshot()
    assert closed.is_closed
    assert closed.stats.closes == {"pool": 2}
    assert [c.history[-1].why for c in closed.gone] == ["pool", "pool"]


async def test_those_who_wait_are_shown_oldest_first(make_pool: MakePool) -> None:
    """With their task, the line of their acquire, where they wait, and for how long."""
    pool = make_pool(max_connections=1, acquire_timeout=None)
    connection = await pool.acquire()

    async def wait() -> None:
        await pool.acquire()  # at: a wait

    async def wait_for_a_new_one() -> None:
        async with pool.get_new_connection():  # at: a wait for a new one
            pass

    first = asyncio.create_task(wait(), name="first")
    await until(lambda: pool.waiters == 1, "the first waits")
    second = asyncio.create_task(wait_for_a_new_one(), name="second")
    await until(lambda: pool.waiters == 2, "both wait")
    since = [loan._since for loan in pool._router.line]
    picture = pool.snapshot()
    assert picture.waiters == 2
    assert [waiter.wants_new for waiter in picture.waiting] == [False, True]
    expected = [
        ("first", "a wait", "wait"),
        ("second", "a wait for a new one", "wait_for_a_new_one"),
    ]
    for waiter, (name, marker, function) in zip(picture.waiting, expected, strict=True):
        at = place(marker)
        assert waiter.borrower == BorrowerSnapshot(name, at, f"{at} in {function}")
    now = pool._router.clock()
    assert [0 <= w.seconds <= now - at for w, at in zip(picture.waiting, since, strict=True)]
    assert picture.waiting[0].seconds > picture.waiting[1].seconds > 0
    for task in (first, second):
        task.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    assert pool.snapshot().waiting == ()
    await pool.release(connection)


async def test_of_many_who_wait_the_100_oldest_are_shown(make_pool: MakePool) -> None:
    pool = make_pool(max_connections=1, acquire_timeout=None)
    await pool.acquire()
    tasks = [asyncio.create_task(pool.acquire(), name=str(n)) for n in range(MAX_WAITERS + 20)]
    await until(lambda: pool.waiters == len(tasks), "all wait")
    picture = pool.snapshot()
    assert picture.waiters == 120
    assert [w.borrower.task for w in picture.waiting] == [str(n) for n in range(100)]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_picture_is_frozen_and_stays_what_it_was(make_pool: MakePool) -> None:
    pool = make_pool()
    connection = await pool.acquire()
    picture = pool.snapshot()
    before = json.dumps(picture.to_dict())
    for part in (picture, picture.connections[0], picture.connections[0].borrower):
        assert part is not None
        field = dataclasses.fields(part)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, field, None)
    await connection.send("hello")
    await pool.release(connection, force_remove=True)
    await pool.close_all()
    assert json.dumps(picture.to_dict()) == before


def as_lists(value: Any) -> Any:
    """Return it with lists in the place of tuples, as JSON has them."""
    if isinstance(value, dict):
        return {key: as_lists(inner) for key, inner in value.items()}
    if isinstance(value, (tuple, list)):
        return [as_lists(inner) for inner in value]
    return value


async def test_a_picture_comes_back_from_json_as_it_was(
    server: Server, make_pool: MakePool
) -> None:
    """With connections in use, idle, being drained and gone, and with somebody who waits."""
    pool = make_pool(max_connections=3, drain_fence=True)
    busy, idle, drained = [await pool.acquire() for _ in range(3)]
    await pool.release(idle)
    server.peers[2].mute()
    await drained.send("unread")
    await pool.release(drained)
    gone = await pool.acquire()
    assert gone.id == idle.id
    await gone.close(4000, "€")
    waiting = asyncio.create_task(pool.acquire(timeout=None))
    waiting_too = asyncio.create_task(pool.acquire(timeout=None))
    await until(lambda: pool.waiters == 1, "one waits, one has got the last place")
    picture = pool.snapshot()
    [*_, last] = picture.gone
    assert (last.close_code, last.close_reason) == (4000, "€")
    assert picture.counts["draining"] == 1
    plain = picture.to_dict()
    assert json.loads(json.dumps(plain)) == as_lists(plain)
    assert plain.keys() == {field.name for field in dataclasses.fields(PoolSnapshot)}
    for shown in plain["connections"] + plain["gone"]:
        assert shown.keys() == {field.name for field in dataclasses.fields(ConnectionSnapshot)}
        for move in shown["history"]:
            assert move.keys() == {"trigger", "source", "dest", "at", "why"}
    server.peers[2].unmute()
    await asyncio.wait({waiting, waiting_too})
    assert busy.is_busy


async def test_a_thread_may_look_all_the_time_while_the_loop_is_busy(
    server: Server, make_pool: MakePool
) -> None:
    """No look fails, none shows a connection twice, and the pictures go through JSON."""
    pool = make_pool(max_connections=4, acquire_timeout=None, max_uses=100, drain_fence=True)
    looks = 0
    wrong: list[object] = []
    is_over = threading.Event()

    def look() -> None:
        nonlocal looks
        while not is_over.is_set():
            try:
                picture = pool.snapshot()
                ids = [c.id for c in picture.connections]
                if len(ids) != len(set(ids)):
                    wrong.append(ids)
                if looks % 20 == 0:
                    json.dumps(picture.to_dict())
                repr(pool), pool.state_diagram(), pool.stats.to_dict()
            except Exception as error:
                wrong.append(error)
            looks += 1

    async def borrow() -> None:
        while (looks < 500 or pool.stats.borrows <= 10) and not wrong:
            async with pool.get_connection() as connection:
                await connection.send("hello")
                if looks % 3:
                    await connection.recv()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    thread = threading.Thread(target=look)
    thread.start()
    try:
        async with asyncio.timeout(60):
            await asyncio.gather(*(borrow() for _ in range(6)))
    finally:
        is_over.set()
        await asyncio.to_thread(thread.join)
        sys.setswitchinterval(interval)
    assert wrong == []
    assert pool.stats.borrows > 10


# Loans that take too long.

Sweeps = Callable[[], Awaitable[None]]


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.fixture
def sweeps(monkeypatch: pytest.MonkeyPatch) -> Sweeps:
    """Return what waits for three more looks for overdue loans."""
    looks = 0
    warn = upkeep._warn_of_leaks

    def look(router: Router) -> None:
        nonlocal looks
        warn(router)
        looks += 1

    monkeypatch.setattr(upkeep, "_warn_of_leaks", look)

    async def wait() -> None:
        enough = looks + 3
        await until(lambda: looks >= enough, "the upkeep has looked three times")

    return wait


async def test_an_overdue_loan_is_warned_of_once_with_task_and_places(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture, sweeps: Sweeps
) -> None:
    pool = make_pool(leak_threshold=0.02, cleanup_interval=0.01)
    is_over = asyncio.Event()

    async def borrow() -> None:
        async with pool.get_connection() as connection:  # at: the overdue loan
            assert not picture_of(pool, connection).is_overdue
            await is_over.wait()  # at: the overdue wait

    task = asyncio.create_task(borrow(), name="the slow one")
    await until(lambda: warnings_in(caplog), "it is warned of")
    assert pool.snapshot().connections[0].is_overdue
    await sweeps()
    [warning] = warnings_in(caplog)
    assert warning.startswith("#1 has been lent for 0.")
    assert "leak_threshold is 0.02 s" in warning
    assert "the task 'the slow one'" in warning
    assert f"borrowed by the task 'the slow one' at {place('the overdue loan')}," in warning
    assert warning.endswith(f"which is now at {place('the overdue wait')} in borrow")
    is_over.set()
    await task
    assert not pool.snapshot().connections[0].is_overdue


async def test_a_second_loan_of_the_same_connection_is_warned_of_anew(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture, sweeps: Sweeps
) -> None:
    pool = make_pool(leak_threshold=0.02, cleanup_interval=0.01)
    for count in (1, 2):
        async with pool.get_connection() as connection:
            assert connection.id == 1
            await until(lambda c=count: len(warnings_in(caplog)) == c, "it is warned of")
            await sweeps()
    assert len(warnings_in(caplog)) == 2


async def test_two_overdue_loans_are_two_warnings(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture, sweeps: Sweeps
) -> None:
    pool = make_pool(leak_threshold=0.02, cleanup_interval=0.01)
    for _ in range(2):
        await pool.acquire()
    await until(lambda: len(warnings_in(caplog)) == 2, "both are warned of")
    await sweeps()
    assert sorted(text.split()[0] for text in warnings_in(caplog)) == ["#1", "#2"]
    assert [c.is_overdue for c in pool.snapshot().connections] == [True, True]


async def test_without_a_threshold_nothing_is_overdue(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture, sweeps: Sweeps
) -> None:
    pool = make_pool(cleanup_interval=0.01)
    connection = await pool.acquire()
    later(connection, 1e6)
    await sweeps()
    assert warnings_in(caplog) == []
    assert not picture_of(pool, connection).is_overdue
    assert not link_of(connection).is_overdue(None)
    assert link_of(connection).is_overdue(1e5)


async def test_an_errand_or_a_drain_is_never_overdue(
    server: Server, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    """However long they take: `connection_timeout` and `drain_timeout` are for those."""

    async def hang(connection: WebsocketConnection) -> None:
        await connection.recv()

    pool = make_pool(
        leak_threshold=0.02, cleanup_interval=0.01, keepalive=hang, keepalive_interval=0.01
    )
    connection = await pool.acquire()
    await pool.release(connection)
    await until(lambda: connection.is_busy, "it is being kept alive")
    await until(lambda: link_of(connection).seconds_in_state > 0.05, "for a while")
    assert not picture_of(pool, connection).is_overdue
    assert warnings_in(caplog) == []
    moves = len(connection.history)
    await server.peers[0].send("the keepalive's answer")
    await until(lambda: len(connection.history) > moves, "it is back")
    assert connection.history[moves].dest is State.IDLE


async def test_a_borrower_that_was_lost_is_shown_overdue_until_it_gives_back(
    server: Server, make_pool: MakePool, caplog: pytest.LogCaptureFixture, sweeps: Sweeps
) -> None:
    """Its connection is closed, and its loan goes on; there is nothing to warn of."""
    pool = make_pool(leak_threshold=0.02, cleanup_interval=0.01)
    connection = await pool.acquire()
    server.peers[0].drop()
    await until(lambda: pool.snapshot().gone, "it is gone")
    count = len(warnings_in(caplog))
    await sweeps()
    assert len(warnings_in(caplog)) == count
    assert picture_of(pool, connection).is_overdue
    await pool.release(connection)
    assert not picture_of(pool, connection).is_overdue


async def test_who_waits_for_a_connection_is_not_overdue(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(leak_threshold=60.0, max_connections=1, cleanup_interval=0.01)
    await pool.acquire()
    with pytest.raises(ConnectionPoolTimeoutError):
        await pool.acquire(timeout=0.05)
    assert warnings_in(caplog) == []
