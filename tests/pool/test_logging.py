"""The log: each transition is DEBUG, each loss is INFO, and in normal life there is no warning."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import pytest

from tests.conftest import MakePool, echoes, until
from tests.support.inside import link_of, router_of
from wspool import ConnectionUnavailableError, State, WebsocketConnection, WebsocketConnectionPool
from wspool._connection import states
from wspool.testing import Server

LINE = re.compile(
    r"#(?P<id>\d+) (?P<source>\w+) → (?P<dest>\w+)  (?P<trigger>\w+)(?: \((?P<why>\w+)\))?"
    r"  (?P<seconds>\d+\.\d) s (?P<left>\w+)"
)
"""The form of a transition's line."""


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "wspool")
    return caplog


def lines(log: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [r.getMessage() for r in log.records if r.name == "wspool" and r.levelno == level]


def alarms(log: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged at WARNING or above."""
    records = (r for r in log.records if r.name == "wspool" and r.levelno >= logging.WARNING)
    return [record.getMessage() for record in records]


async def lose_idle(
    server: Server, pool: WebsocketConnectionPool, log: pytest.LogCaptureFixture
) -> str:
    """Let the server close the pool's only, idle connection; return the INFO line."""
    await server.peers[-1].close(4001, "grüß dich")
    await until(lambda: lines(log, logging.INFO), "the loss is logged")
    [line] = lines(log, logging.INFO)
    return line


# Transitions.


async def test_each_transition_is_one_debug_line_in_the_documented_form(
    make_pool: MakePool, log: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(check_server_data_on_release=True, drain_quiet_period=0.01)
    connection = await pool.acquire()
    await pool.release(connection)
    await until(lambda: connection.state is State.IDLE, "it is drained")
    pool.expire_connections()
    assert [line.split("  ")[:2] for line in lines(log, logging.DEBUG)] == [
        ["#1 connecting → idle", "connected"],
        ["#1 idle → busy", "checkout"],
        ["#1 busy → draining", "drain"],
        ["#1 draining → idle", "drained"],
        ["#1 idle → closed", "close (expired)"],
    ]


async def test_a_debug_line_says_how_long_it_was_in_the_state_that_it_leaves(
    make_pool: MakePool, log: pytest.LogCaptureFixture
) -> None:
    pool = make_pool()
    connection = await pool.acquire()
    await pool.release(connection)
    link = link_of(connection)
    clock = link.clock
    link.clock = lambda: clock() + 0.8
    log.clear()
    states.checkout(link, "acquire")
    assert lines(log, logging.DEBUG) == ["#1 idle → busy  checkout  0.8 s idle"]
    link.clock = lambda: clock() + 61.8
    states.checkin(link, "release")
    assert lines(log, logging.DEBUG)[1:] == ["#1 busy → idle  checkin  61.0 s busy"]


async def test_the_debug_lines_are_the_histories(
    server: Server, make_pool: MakePool, log: pytest.LogCaptureFixture
) -> None:
    """One for each transition of each connection, in order, in the one form; nothing beside."""
    pool = make_pool(max_connections=3, acquire_timeout=None, drain_fence=True)

    async def borrow() -> None:
        async with pool.get_connection() as connection:
            assert await echoes(connection)

    await asyncio.gather(*(borrow() for _ in range(6)))
    await until(lambda: pool.available_connections == 3, "all are drained")
    connections = pool.connections
    await pool.close_all()
    matches = [LINE.fullmatch(line) for line in lines(log, logging.DEBUG)]
    assert all(matches)
    for connection in connections:
        logged = [m for m in matches if m is not None and int(m["id"]) == connection.id]
        assert [(m["trigger"], m["source"], m["dest"]) for m in logged] == [
            move[:3] for move in connection.history
        ]
        assert all(m["left"] == m["source"] for m in logged)
        assert [m["why"] for m in logged if m["why"]] == ["pool"]
    assert len(matches) == sum(len(connection.history) for connection in connections)


async def test_a_refused_transition_is_not_logged(
    make_pool: MakePool, log: pytest.LogCaptureFixture
) -> None:
    pool = make_pool()
    connection = await pool.acquire()
    log.clear()
    with pytest.raises(states.IllegalTransitionError):
        states.checkout(link_of(connection), "acquire")
    assert log.records == []


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])
async def test_without_debug_no_record_is_built_for_a_transition(
    make_pool: MakePool,
    log: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    level: int,
) -> None:
    """Neither a record nor its text: the factory of records is not called."""
    log.set_level(level, "wspool")
    built: list[object] = []
    factory = logging.getLogRecordFactory()

    def build(*args: Any, **details: Any) -> logging.LogRecord:
        if args[0] == "wspool":
            built.append(args)
        return factory(*args, **details)

    logging.setLogRecordFactory(build)
    monkeypatch.setattr(states, "_log", lambda *details: built.append(details))
    try:
        pool = make_pool()
        for _ in range(3):
            async with pool.get_connection() as connection:
                assert await echoes(connection)
        pool.expire_connections()
        await pool.close_all()
    finally:
        logging.setLogRecordFactory(factory)
    assert built == []


# Losses.


async def test_a_loss_is_one_info_line_that_says_who_why_and_how_old(
    server: Server, make_pool: MakePool, log: pytest.LogCaptureFixture
) -> None:
    pool = make_pool()
    connection = await pool.acquire()
    await pool.release(connection)
    link = link_of(connection)
    clock = link.clock
    link.clock = lambda: clock() + 42.0
    link.born -= 58.0
    line = await lose_idle(server, pool, log)
    assert re.fullmatch(
        r"lost #1: closed by the server, code 4001 'grüß dich'; it was idle for 42\.\d s, "
        r"is 100\.\d s old and was lent 1 times",
        line,
    )
    assert alarms(log) == []


async def lose_by_reset(server: Server, pool: WebsocketConnectionPool) -> None:
    await pool.acquire()
    server.peers[0].drop()


async def lose_by_muteness(server: Server, pool: WebsocketConnectionPool) -> None:
    await pool.release(await pool.acquire())
    server.peers[0].mute()
    await pool.release(await pool.acquire(timeout=10.0))
    server.peers[0].unmute()


async def lose_by_error(server: Server, pool: WebsocketConnectionPool) -> None:
    try:
        async with pool.get_connection() as connection:
            assert await echoes(connection, "hello")
            raise LookupError
    except LookupError:
        pass


REFUSING: dict[str, Any] = {"drain_fence": True, "drain_condition": lambda message: False}
"""Options under which every drained message costs the connection."""


async def lose_by_drain(server: Server, pool: WebsocketConnectionPool) -> None:
    connection = await pool.acquire()
    await connection.send("refused")
    await pool.release(connection)


@pytest.mark.parametrize(
    ("lose", "options", "how"),
    [
        (lose_by_reset, {}, r"closed by the server, code 1006; it was busy for"),
        (
            lose_by_muteness,
            {"check_after_idle": 0.0},
            r"closed \(stale\), code 1000; it was busy for",
        ),
        (lose_by_error, {}, r"closed \(error\), code 1000; it was busy for"),
        (lose_by_drain, REFUSING, r"closed \(drain\), code 1000; it was draining for"),
    ],
)
async def test_a_loss_of_each_kind_is_info(
    server: Server,
    make_pool: MakePool,
    log: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    lose: Any,
    options: dict[str, Any],
    how: str,
) -> None:
    monkeypatch.setattr("wspool._pool.errands.CHECK_SECONDS", 0.03)
    pool = make_pool(max_connections=1, **options)
    await lose(server, pool)
    await until(lambda: lines(log, logging.INFO), "it is logged")
    [line] = lines(log, logging.INFO)
    assert re.match(rf"lost #1: {how} \d", line)
    assert alarms(log) == []


async def test_what_was_closed_on_purpose_is_no_loss(
    make_pool: MakePool, log: pytest.LogCaptureFixture
) -> None:
    """By the borrower, by force, to make room, past its uses, expired, at the end."""
    pool = make_pool(max_connections=1, acquire_timeout=10.0)
    connection = await pool.acquire()
    await connection.close()
    await pool.release(connection)
    await pool.release(await pool.acquire())
    await pool.release(await pool.acquire_new(), force_remove=True)
    async with pool.get_connection():
        pool._router.options.max_uses = 1
    pool._router.options.max_uses = None
    async with pool.get_connection():
        pass
    pool.expire_connections()
    async with pool.get_connection():
        pass
    await pool.close_all()
    assert lines(log, logging.INFO) == []
    assert alarms(log) == []


# Normal life.


async def test_a_normal_life_has_no_warning(
    server: Server, make_pool: MakePool, log: pytest.LogCaptureFixture
) -> None:
    """Started, borrowed, waited for, drained, kept alive, checked, idle for too long, closed."""
    pool = make_pool(
        max_connections=2,
        warmup_connections=1,
        acquire_timeout=None,
        check_after_idle=0.01,
        drain_until=lambda message: message == "last",
        keepalive_interval=0.02,
        cleanup_interval=0.01,
        leak_threshold=60.0,
    )
    log.set_level(logging.DEBUG)  # all loggers, asyncio's and aiohttp's too
    await pool.start()

    async def borrow() -> None:
        async with pool.get_connection() as connection:
            await connection.send("first")
            await connection.send("last")
            assert await connection.recv() == "first"

    await asyncio.gather(*(borrow() for _ in range(8)))
    await until(lambda: pool.available_connections == 2, "all are drained")
    link = link_of(pool.connections[0])
    moves = len(link.moves)
    await until(lambda: len(link.moves) != moves or moves == 16, "it is kept alive")
    await borrow()
    pool._router.options.idle_timeout = 0.01
    await until(lambda: pool.stats.closes["idle"] == 2, "both were idle for too long")
    pool._router.options.idle_timeout = 60.0
    await borrow()
    await pool.close_all()
    assert [r.getMessage() for r in log.records if r.levelno >= logging.WARNING] == []
    assert lines(log, logging.INFO) == []


async def test_a_restart_of_the_server_is_info(
    server: Server, make_pool: MakePool, log: pytest.LogCaptureFixture
) -> None:
    """One line for each connection that is lost, and none while nobody dials in vain."""
    pool = make_pool(max_connections=3)
    router_of(pool).gate.waits = (0.01,)
    connections = [await pool.acquire() for _ in range(3)]
    for connection in connections:
        await pool.release(connection)
    await server.stop()
    await server.start()
    await until(lambda: len(lines(log, logging.INFO)) == 3, "three losses are logged")
    async with pool.get_connection() as connection:
        assert await echoes(connection)
    assert len(lines(log, logging.INFO)) == 3
    assert alarms(log) == []


async def test_a_dial_that_fails_with_nobody_waiting_is_one_warning(
    server: Server, make_pool: MakePool, log: pytest.LogCaptureFixture
) -> None:
    server.refuse(401)
    pool = make_pool(warmup_connections=1)
    await pool.start()
    [warning] = alarms(log)
    assert warning.startswith("No connection to ws://127.0.0.1:")
    assert "401" in warning


async def test_a_dial_that_fails_is_told_to_who_waits_and_not_to_the_log(
    server: Server, make_pool: MakePool, log: pytest.LogCaptureFixture
) -> None:
    server.refuse(401)
    pool = make_pool()
    with pytest.raises(ConnectionUnavailableError):
        await pool.acquire()
    assert alarms(log) == []
    assert lines(log, logging.INFO) == []


async def test_a_hook_that_raises_is_logged_with_its_traceback(
    make_pool: MakePool, log: pytest.LogCaptureFixture
) -> None:
    async def broken(connection: WebsocketConnection) -> None:
        raise LookupError("a bug of the hook's")

    pool = make_pool(on_release=broken)
    await pool.release(await pool.acquire())
    await until(lambda: alarms(log), "it is logged")
    assert alarms(log) == ["on_release raised; closing #1"]
    [record] = [r for r in log.records if r.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], LookupError)


async def test_closing_with_borrowers_is_a_warning_with_the_counts(
    make_pool: MakePool, log: pytest.LogCaptureFixture
) -> None:
    pool = make_pool()
    await pool.acquire()
    await pool.close_all()
    assert len(alarms(log)) == 1
    assert "busy=1" in log.text  # formatted when it was logged


async def test_everything_is_logged_as_wspool(
    server: Server, make_pool: MakePool, log: pytest.LogCaptureFixture
) -> None:
    """One logger for the package, so that one line of configuration is enough."""
    pool = make_pool(warmup_connections=2)
    server.refuse(401)
    await pool.start()
    await pool.release(await pool.acquire())
    await lose_idle(server, pool, log)
    await pool.close_all()
    ours = [r for r in log.records if "wspool" in r.pathname and "tests" not in r.pathname]
    assert {r.name for r in ours} == {"wspool"}
    assert {r.levelno for r in ours} == {logging.DEBUG, logging.INFO, logging.WARNING}
