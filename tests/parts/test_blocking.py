"""The pool for threads: what it does as the async one does, and what threads can do to it.

The server is in the test's event loop, and so whatever blocks is called in another thread. What is
about signals, forks and the end of a program is a program of its own.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import inspect
import itertools
import logging
import os
import random
import signal
import socket
import sys
import threading
import time
import warnings
from asyncio import to_thread
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Final

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from tests import IS_WHOLE, ROOT
from tests.benchmarks.server import echo_server
from tests.conftest import MakePool, skip, until
from tests.support.inside import queues_of, wire_of
from wspool import (
    BlockingWebsocketConnection,
    BlockingWebsocketConnectionPool,
    ConnectionBusyError,
    ConnectionClosedError,
    ConnectionPoolExhaustedError,
    ConnectionPoolTimeoutError,
    ConnectionPoolUnavailableError,
    ConnectionUnavailableError,
    State,
    WebsocketConnection,
    WebsocketConnectionPool,
)
from wspool._pool import calls, portal
from wspool.events import Event, PoolClosed
from wspool.testing import Peer, Server

MakeBlocking = Callable[..., BlockingWebsocketConnectionPool]

BORROWS = 1000 if IS_WHOLE else 100
"""Of each of the 64 threads."""


def pool_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("wspool")]


@pytest.fixture(autouse=True)
async def no_thread_is_left() -> AsyncIterator[None]:
    yield
    gc.collect()
    await until(lambda: not pool_threads(), "the pools' threads have ended")


@pytest.fixture
async def make_blocking(server: Server) -> AsyncIterator[MakeBlocking]:
    """Make blocking pools to the test's server that are closed when the test ends."""
    with ExitStack() as stack:

        def make(**options: Any) -> BlockingWebsocketConnectionPool:
            defaults = {"uri": server.uri, "close_timeout": 1.0}
            pool = BlockingWebsocketConnectionPool(**defaults | options)
            stack.callback(pool.close_all)
            return pool

        yield make
        await to_thread(stack.close)


@pytest.fixture
def echo_uri() -> Iterator[str]:
    """A server in a process of its own, which leaves this one to the threads."""
    with echo_server() as uri:
        yield uri


def echoes(connection: BlockingWebsocketConnection, message: str = "hello") -> bool:
    connection.send(message)
    return connection.recv() == message


# As the async pool.


async def test_a_connection_is_borrowed_used_and_borrowed_again(
    server: Server, make_blocking: MakeBlocking
) -> None:
    def story() -> None:
        with make_blocking() as pool:
            with pool.get_connection() as connection:
                assert echoes(connection)
                assert (connection.state, connection.uses) == (State.BUSY, 1)
                assert (pool.busy_connections, pool.available_connections) == (1, 0)
            assert (pool.busy_connections, pool.available_connections) == (0, 1)
            again = pool.acquire()
            assert (again.id, again.reused) == (connection.id, True)
            with pool.get_new_connection() as new:
                assert new.id != again.id
            pool.release(again)
            pool.release(pool.acquire_new(), force_remove=True)
            assert pool.stats.borrows == 4
        assert pool.is_closed

    await to_thread(story)
    assert len(server.requests) == 3
    await until(lambda: not server.open, "all is closed")


def test_every_public_name_of_the_async_ones_exists() -> None:
    # Whose `close` is what `aclose` is there.
    assert public(WebsocketConnectionPool) - {"aclose"} <= public(BlockingWebsocketConnectionPool)
    assert public(WebsocketConnection) <= public(BlockingWebsocketConnection)
    for name in (
        *("send", "recv", "ping", "close", "send_json", "recv_json", "id", "uri", "headers"),
        *("state", "history", "websocket", "is_connected", "is_busy", "is_draining", "reused"),
        *("uses", "created_at", "last_activity", "close_code", "close_reason", "cause", "rtt"),
        *("subprotocol", "borrowed_at", "context"),
    ):
        assert hasattr(BlockingWebsocketConnection, name)
        assert hasattr(WebsocketConnection, name)


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_the_arguments_are_those_of_the_async_pool() -> None:
    ours, theirs = (
        inspect.signature(kind)
        for kind in (BlockingWebsocketConnectionPool, WebsocketConnectionPool)
    )
    assert list(ours.parameters.items()) == list(theirs.parameters.items())
    for name in ("acquire", "acquire_new", "get_connection", "get_new_connection", "close_all"):
        ours = inspect.signature(getattr(BlockingWebsocketConnectionPool, name))
        theirs = inspect.signature(getattr(WebsocketConnectionPool, name))
        assert list(ours.parameters.items()) == list(theirs.parameters.items())


async def test_json_iteration_and_pings(server: Server, make_blocking: MakeBlocking) -> None:
    async def count(peer: Peer) -> None:
        await peer.websocket.receive()
        for number in range(3):
            await peer.send(str(number))
        await peer.close()

    server.handler = count

    def story() -> None:
        with make_blocking().get_connection() as connection:
            assert connection.ping(timeout=10.0) > 0
            connection.send_json({"to": 3})
            assert connection.recv_json(timeout=10.0) == 0
            assert list(connection) == ["1", "2"]
            assert (connection.is_connected, connection.close_code) == (False, 1000)
            with pytest.raises(ConnectionClosedError):
                connection.send("into the void")

    await to_thread(story)


async def test_a_recv_out_of_time_loses_nothing(
    server: Server, make_blocking: MakeBlocking
) -> None:
    def story() -> None:
        with make_blocking().get_connection() as connection:
            with pytest.raises(TimeoutError, match=r"no message within 0\.01 s"):
                connection.recv(timeout=0.01)
            assert echoes(connection)
            connection.send("at hand")
            connection.ping()  # its pong is behind the message
            assert connection.recv(timeout=0) == "at hand"

    await to_thread(story)


async def test_acquire_waits_for_as_long_as_it_is_told_to(make_blocking: MakeBlocking) -> None:
    def story() -> None:
        pool = make_blocking(max_connections=1)
        with pool.get_connection():
            with pytest.raises(ConnectionPoolExhaustedError):
                pool.acquire()
            with pytest.raises(ConnectionPoolTimeoutError):
                pool.acquire(timeout=0.01)
            with pytest.raises(ValueError, match="timeout is -1"):
                pool.acquire(timeout=-1)
            with ThreadPoolExecutor() as threads:
                waiting = threads.submit(pool.acquire, timeout=None)
                spin_until(lambda: pool.waiters == 1)
                assert pool.stats.waits == 3
                pool.resize(2)
                pool.release(waiting.result())

    await to_thread(story)


USES: Final[dict[str, Callable[[BlockingWebsocketConnection], object]]] = {
    "send": lambda connection: connection.send("stale"),
    "recv": lambda connection: connection.recv(timeout=10.0),
    "ping": lambda connection: connection.ping(timeout=10.0),
    "iterate": lambda connection: next(iter(connection)),
}
"""What may be called on a connection, and is refused once that is over."""


def spin_until(condition: Callable[[], object]) -> None:
    """Wait in a thread; the time limit is only a net."""
    never = threading.Event()
    for _ in range(2000):
        if condition():
            return
        never.wait(0.005)
    raise AssertionError("it never came true")


async def test_two_threads_in_recv_are_one_too_many(
    server: Server, make_blocking: MakeBlocking
) -> None:
    def story() -> None:
        with make_blocking().get_connection() as connection, ThreadPoolExecutor() as threads:
            first = threads.submit(connection.recv)
            spin_until(lambda: wire_of(connection._mirrored).is_receiving)
            with pytest.raises(ConnectionBusyError):
                connection.recv()
            connection.send("for the first")
            assert first.result() == "for the first"

    await to_thread(story)


async def test_a_block_left_by_an_exception_costs_the_connection_only_after_a_send(
    make_blocking: MakeBlocking,
) -> None:
    def story() -> None:
        pool = make_blocking()
        with suppress(ZeroDivisionError), pool.get_connection() as connection:
            raise ZeroDivisionError
        assert connection.state is State.IDLE
        with suppress(ZeroDivisionError), pool.get_connection() as connection:
            connection.send("a question")
            raise ZeroDivisionError
        assert connection.state is State.CLOSED
        assert pool.stats.closes == {"error": 1}

    await to_thread(story)


async def test_a_loan_that_has_ended_touches_no_later_one(
    make_blocking: MakeBlocking, caplog: pytest.LogCaptureFixture
) -> None:
    def story() -> None:
        pool = make_blocking()
        with pool.get_connection() as earlier:
            pool.release(earlier)  # the end of the block knows
        with pytest.raises(ConnectionBusyError, match=r"this loan of connection #1, .* is over"):
            earlier.send("too late")
        with pool.get_connection() as later:
            assert later.id == earlier.id
            for too_late in (earlier.recv, earlier.close, lambda: earlier.send("too late")):
                with pytest.raises(
                    ConnectionBusyError, match=r"this loan of connection #1, .* is over"
                ):
                    too_late()
            assert not caplog.records
            pool.release(earlier, force_remove=True)
            make_blocking().release(later)
            assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
            assert echoes(later)

    await to_thread(story)


async def test_a_context_goes_with_the_connection_and_only_its_borrower_sets_it(
    make_blocking: MakeBlocking,
) -> None:
    def story() -> None:
        pool = make_blocking()
        with pool.get_connection() as earlier:
            assert earlier.context is None
            earlier.context = "a conversation"
        with pool.get_connection() as later:
            assert (later.id, later.context) == (earlier.id, "a conversation")
            with pytest.raises(ConnectionBusyError, match="is over"):
                earlier.context = "too late"
            assert later.context == "a conversation"
            with pytest.raises(AttributeError):
                later.uses = 0

    await to_thread(story)


def line() -> int:
    """Return the number of the line that calls."""
    return sys._getframe(1).f_lineno


async def test_a_borrower_is_known_by_its_thread_and_line(make_blocking: MakeBlocking) -> None:
    def story() -> None:
        threading.current_thread().name = "the borrower"
        pool = make_blocking()
        with pool.get_connection() as one:
            assert one.borrowed_at == f"{__file__}:{line() - 1}"
            two = pool.acquire()
            assert two.borrowed_at == f"{__file__}:{line() - 1}"
            borrowers = [connection.borrower for connection in pool.snapshot().connections]
            assert [borrower.task for borrower in borrowers] == ["the borrower"] * 2
            pool.release(two)

    await to_thread(story)


async def test_a_session_of_another_loop_is_refused(server: Server) -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(TypeError, match="let `session` be a callable"):
            BlockingWebsocketConnectionPool(uri=server.uri, session=session)
    with pytest.raises(ValueError, match="max_connections is 0"):
        BlockingWebsocketConnectionPool(uri=server.uri, max_connections=0)


# What `session` makes.


async def test_a_session_is_made_in_the_pools_loop_and_closed_with_it(
    make_blocking: MakeBlocking,
) -> None:
    made: list[tuple[aiohttp.ClientSession, str]] = []

    def make() -> aiohttp.ClientSession:
        session = aiohttp.ClientSession()
        made.append((session, threading.current_thread().name))
        return session

    def story() -> None:
        pool = make_blocking(session=make, name="its own")
        assert made == []
        with pool.get_connection() as connection:
            assert echoes(connection)
        [(session, thread)] = made
        assert thread == "wspool its own"
        assert not session.closed
        pool.close_all()
        assert session.closed

    await to_thread(story)
    assert len(made) == 1


async def test_the_async_pool_takes_such_a_callable_too(make_pool: MakePool) -> None:
    async with make_pool(session=aiohttp.ClientSession) as pool:
        assert isinstance(pool._session.opened, aiohttp.ClientSession)
        assert await ask(pool, "hello") == "hello"
    assert pool._session.opened.closed


async def test_a_session_that_cannot_be_made_is_the_callers_error_and_made_by_the_next_call(
    make_blocking: MakeBlocking,
) -> None:
    outcomes: list[Any] = [ZeroDivisionError("no proxy"), "a session", None]

    def make() -> Any:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome or aiohttp.ClientSession()

    def story() -> None:
        pool = make_blocking(session=make)
        with pytest.raises(ZeroDivisionError, match="no proxy"):
            pool.start()
        with pytest.raises(TypeError, match="session\\(\\) returned 'a session'"):
            pool.acquire()
        with pool.get_connection() as connection:
            assert echoes(connection)

    await to_thread(story)

    async def coroutine() -> aiohttp.ClientSession:
        return aiohttp.ClientSession()

    for wrong in (coroutine, "a session"):
        with pytest.raises(TypeError, match="a plain callable that makes one"):
            make_blocking(session=wrong)


async def test_a_session_whose_connector_is_too_small_is_refused_and_closed(
    make_blocking: MakeBlocking,
) -> None:
    made: list[aiohttp.ClientSession] = []

    def make() -> aiohttp.ClientSession:
        made.append(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=3)))
        return made[-1]

    def story() -> None:
        pool = make_blocking(session=make, max_connections=4)
        for _ in range(2):
            with pytest.raises(ValueError, match="limit=3"):
                pool.acquire()
        pool.close_all()

    await to_thread(story)
    assert [session.closed for session in made] == [True]


async def test_a_unix_socket(tmp_path: Path, make_blocking: MakeBlocking) -> None:
    async def echo(request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        async for message in websocket:
            await websocket.send_str(message.data)
        return websocket

    path = str(tmp_path / "socket")
    app = web.Application()
    app.router.add_get("/", echo)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, path).start()

    def make() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=aiohttp.UnixConnector(path, limit=0))

    def story() -> None:
        pool = make_blocking(uri="ws://unix/", session=make)
        with pool.get_connection() as connection:
            assert echoes(connection)
        pool.close_all()

    try:
        await to_thread(story)
    finally:
        await runner.cleanup()


async def test_a_cookie_jar(server: Server, make_blocking: MakeBlocking) -> None:
    """What it holds goes along, and it is the user's to fill."""

    def make() -> aiohttp.ClientSession:
        jar = aiohttp.CookieJar(unsafe=True)  # cookies for an address, too
        jar.update_cookies({"backend": "seven"}, URL(server.uri).with_scheme("http"))
        return aiohttp.ClientSession(cookie_jar=jar)

    def story() -> None:
        with make_blocking(session=make).get_connection() as connection:
            assert echoes(connection)

    await to_thread(story)
    assert server.peers[0].request.cookies["backend"] == "seven"


class Resolver(AbstractResolver):
    """Knows one host."""

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        assert host == "nowhere.invalid"
        return [
            ResolveResult(
                hostname=host, host="127.0.0.1", port=port, family=socket.AF_INET, proto=0, flags=0
            )
        ]

    async def close(self) -> None:
        pass


async def test_a_resolver(server: Server, make_blocking: MakeBlocking) -> None:
    def make() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=Resolver()))

    def story() -> None:
        uri = server.uri.replace("127.0.0.1", "nowhere.invalid")
        with make_blocking(uri=uri, session=make).get_connection() as connection:
            assert echoes(connection)

    await to_thread(story)
    assert server.peers[0].request.host.startswith("nowhere.invalid")


async def test_a_proxy_of_the_environments(
    server: Server, make_blocking: MakeBlocking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `trust_env`; the server takes the place of the proxy, and sees what that would see."""
    monkeypatch.setenv("ws_proxy", server.uri.replace("ws:", "http:"))

    def story() -> None:
        pool = make_blocking(
            uri="ws://nowhere.invalid/", session=lambda: aiohttp.ClientSession(trust_env=True)
        )
        with pool.get_connection() as connection:
            assert echoes(connection)

    await to_thread(story)
    assert server.peers[0].request.host == "nowhere.invalid"


async def test_what_on_connect_has_learnt_is_the_borrowers_to_read(
    make_blocking: MakeBlocking,
) -> None:
    async def log_in(connection: WebsocketConnection) -> None:
        await connection.send("session 7")
        connection.context = await connection.recv()

    def story() -> None:
        pool = make_blocking(on_connect=log_in)
        for _ in range(2):
            with pool.get_connection() as connection:
                assert connection.context == "session 7"
        assert pool.stats.borrows == 2

    await to_thread(story)


# What is sent without a wait.

posts = pytest.mark.skipif(sys.version_info < (3, 12), reason="every send is waited for")


@contextmanager
def busy(pool: BlockingWebsocketConnectionPool) -> Iterator[None]:
    """Let the pool's thread do nothing until the block is left."""
    is_busy, may_go_on = threading.Event(), threading.Event()
    pool._portal.soon(lambda: (is_busy.set(), may_go_on.wait(30.0)))
    assert is_busy.wait(30.0)
    try:
        yield
    finally:
        may_go_on.set()


def lose_in_the_very_moment(
    pool: BlockingWebsocketConnectionPool, connection: BlockingWebsocketConnection
) -> None:
    """Send on a connection that is lost between the call and what the pool's thread does."""
    with busy(pool):
        pool._portal.soon(wire_of(connection._mirrored).fail, ConnectionResetError("in between"))
        connection.send("lost")


@posts
async def test_a_send_in_a_block_waits_for_nothing_and_whoever_looks_sees_it(
    make_blocking: MakeBlocking,
) -> None:
    def story() -> None:
        with make_blocking() as pool, pool.get_connection() as connection:
            with busy(pool):
                connection.send("hello")
            assert not connection.is_clean
            assert connection.recv() == "hello"
            for number in range(100):  # each waits for the one before
                connection.send(f"{number}")
            assert [connection.recv() for _ in range(100)] == [f"{number}" for number in range(100)]

    await to_thread(story)


@posts
@pytest.mark.parametrize("use", USES)
async def test_the_next_call_tells_what_a_send_that_was_not_waited_for_has_met(
    make_blocking: MakeBlocking, use: str
) -> None:
    def story() -> None:
        with make_blocking() as pool:
            with pool.get_connection() as connection:
                lose_in_the_very_moment(pool, connection)
                with pytest.raises(ConnectionClosedError):
                    USES[use](connection)
            with pool.get_connection() as connection:
                assert echoes(connection)

    await to_thread(story)


@posts
async def test_the_end_of_the_block_tells_what_no_other_call_has_told(
    make_blocking: MakeBlocking,
) -> None:
    def story() -> None:
        with make_blocking(max_connections=1) as pool:
            with pytest.raises(ConnectionClosedError), pool.get_connection() as connection:
                lose_in_the_very_moment(pool, connection)
            with suppress(ZeroDivisionError), pool.get_connection() as connection:
                lose_in_the_very_moment(pool, connection)
                raise ZeroDivisionError
            assert pool.busy_connections == 0
            with pool.get_connection() as connection:
                assert echoes(connection)

    await to_thread(story)


@posts
async def test_work_whose_last_send_was_lost_is_done_once_more(make_blocking: MakeBlocking) -> None:
    def story() -> None:
        with make_blocking(max_connections=1) as pool:
            with pool.get_connection() as connection:
                assert echoes(connection)
            calls: list[int] = []

            def publish(connection: BlockingWebsocketConnection) -> None:
                calls.append(connection.id)
                if len(calls) == 1:
                    lose_in_the_very_moment(pool, connection)
                else:
                    connection.send("sent")

            pool.run(publish)
            assert len(set(calls)) == 2

    await to_thread(story)


async def test_what_is_wrong_with_a_message_is_told_at_once(make_blocking: MakeBlocking) -> None:
    def story() -> None:
        with make_blocking() as pool, pool.get_connection() as connection:
            for wrong, error in ((1, TypeError), ("\ud800", UnicodeEncodeError)):
                with pytest.raises(error):
                    connection.send(wrong)  # type: ignore[arg-type]
            assert echoes(connection)

    await to_thread(story)


async def test_what_was_acquired_and_what_is_known_to_be_lost_is_sent_with_a_wait(
    make_blocking: MakeBlocking,
) -> None:
    def story() -> None:
        with make_blocking() as pool:
            acquired = pool.acquire()
            with ThreadPoolExecutor() as threads:
                with busy(pool):
                    sending = threads.submit(acquired.send, "hello")
                    spin_until(lambda: pool._portal._lives[0].entrants)
                    assert not sending.done()
                sending.result()
            assert acquired.recv() == "hello"
            pool.release(acquired)
            with pool.get_connection() as connection:
                pool._portal.call(
                    lambda: wire_of(connection._mirrored).fail(ConnectionResetError())
                )
                with pytest.raises(ConnectionClosedError):
                    connection.send("lost")

    await to_thread(story)


# Threads that outlive their loan.


@pytest.fixture
def hooks() -> dict[str, Any]:
    """Hooks that talk with the server, and whose messages are their own, too."""

    def hook(name: str) -> Callable[[WebsocketConnection], Any]:
        async def talk(connection: WebsocketConnection) -> None:
            await connection.send(f"of {name}")
            assert await connection.recv() == f"of {name}"

        return talk

    return {name: hook(name) for name in ("on_connect", "on_release", "on_close")}


@pytest.mark.parametrize("has_hooks", [False, True])
@pytest.mark.parametrize("use", USES)
async def test_a_thread_that_outlives_its_block_is_refused_and_disturbs_nobody(
    server: Server, make_blocking: MakeBlocking, hooks: dict[str, Any], has_hooks: bool, use: str
) -> None:
    """Whether the connection is idle, lent again or in a hook's hand."""

    def story() -> None:
        pool = make_blocking(max_connections=1, acquire_timeout=20.0, **hooks if has_hooks else {})
        is_over = threading.Event()
        refused = 0

        def outlive(connection: BlockingWebsocketConnection) -> int:
            refused = 0
            while not is_over.is_set():
                with pytest.raises(ConnectionBusyError, match="is over"):
                    USES[use](connection)
                refused += 1
            return refused

        with ThreadPoolExecutor() as threads:
            with pool.get_connection() as stale:
                assert echoes(stale)
            late = threads.submit(outlive, stale)
            try:
                for number in range(50):
                    with pool.get_connection() as connection:
                        assert connection.id == stale.id
                        assert echoes(connection, f"{number}")
            finally:
                is_over.set()
            refused = late.result()
        assert refused > 0
        pool.close_all()

    await to_thread(story)
    assert "stale" not in server.received


async def test_a_reader_that_waits_when_the_loan_ends_gets_nothing(
    make_blocking: MakeBlocking,
) -> None:
    """Another borrower's message least of all: the connection is not handed on."""

    def story() -> None:
        pool = make_blocking(max_connections=1, acquire_timeout=20.0)
        with ThreadPoolExecutor() as threads:
            with pool.get_connection() as first:
                reader = threads.submit(first.recv)
                spin_until(lambda: wire_of(first._mirrored).is_receiving)
            with pool.get_connection() as second:
                assert echoes(second)
            assert isinstance(reader.exception(timeout=10.0), ConnectionClosedError)
            assert second.id != first.id

    await to_thread(story)


@pytest.mark.parametrize("count", [500, pytest.param(3000, marks=pytest.mark.long)])
async def test_loans_with_threads_left_behind_mix_no_messages(
    server: Server, make_blocking: MakeBlocking, count: int
) -> None:
    """In neither direction; each message that is read is the reader's own."""
    foreign: list[object] = []

    def story() -> None:
        pool = make_blocking(max_connections=4, acquire_timeout=None)
        pool.start()
        loop = pool._portal._lives[0].loop
        assert loop is not None
        loop.set_debug(False)  # with it, this takes five times as long

        def outlive(connection: BlockingWebsocketConnection, number: int) -> None:
            try:
                if number % 2:
                    connection.send(f"late {number}")
                else:
                    foreign.append(connection.recv())
            except (ConnectionBusyError, ConnectionClosedError):
                return
            foreign.append(number)

        def borrow(number: int) -> None:
            with pool.get_connection() as connection:
                for part in range(2):
                    connection.send(f"{number} {part}")
                    if (reply := connection.recv()) != f"{number} {part}":
                        foreign.append(reply)
            left.append(leftover.submit(outlive, connection, number))

        left: list[Future[None]] = []
        with ThreadPoolExecutor(8) as leftover, ThreadPoolExecutor(8) as borrowers:
            for one in [borrowers.submit(borrow, number) for number in range(count)]:
                one.result()
            for late in left:
                late.result()
        assert pool.stats.borrows == len(left) == count

    await to_thread(story)
    assert foreign == []
    assert not [message for message in server.received if str(message).startswith("late")]


# Events, hooks, and where it is called.


async def test_events_and_hooks_come_from_the_pools_own_thread(
    make_blocking: MakeBlocking,
) -> None:
    seen: dict[str, str] = {}

    async def on_connect(connection: WebsocketConnection) -> None:
        await connection.send("hello")
        await connection.recv()
        seen["hook"] = threading.current_thread().name

    def story() -> None:
        pool = make_blocking(name="hooked", on_connect=on_connect)
        unsubscribe = pool.subscribe(
            lambda event: seen.update({type(event).__name__: threading.current_thread().name})
        )
        with pool.get_connection() as connection:
            assert connection.history[0].trigger == "connected"
        spin_until(lambda: "ConnectionCheckedIn" in seen)
        assert "idle (1)" in pool.state_diagram()
        unsubscribe()
        pool.expire_connections()
        assert pool.stats.closes == {"expired": 1}
        assert "PoolCleared" not in seen

    await to_thread(story)
    assert {"hook", "ConnectionCreated", "ConnectionCheckedIn"} < set(seen)
    assert set(seen.values()) == {"wspool hooked"}


async def test_a_pool_may_be_logged_while_the_loop_logs(
    make_blocking: MakeBlocking, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler holds its lock while it shows what it is given, and the loop waits for that."""
    caplog.set_level(logging.DEBUG, "wspool")

    def story() -> None:
        with make_blocking() as pool:
            for _ in range(20):
                with pool.get_connection() as connection:
                    pass
                began = time.monotonic()
                logging.getLogger("wspool").warning("%r %r", pool, connection)
                assert time.monotonic() - began < portal.CATCH_UP_SECONDS

    await to_thread(story)


async def test_a_call_from_the_pools_own_thread_is_an_error_and_no_deadlock(
    make_blocking: MakeBlocking,
) -> None:
    async def on_connect(_: WebsocketConnection) -> None:
        pool.acquire()

    pool = make_blocking(on_connect=on_connect)
    with pytest.raises(ConnectionUnavailableError) as caught:
        await to_thread(pool.acquire)
    assert "wait for itself" in str(caught.value.__cause__)


@pytest.mark.parametrize("where", ["hook", "listener"])
async def test_a_callable_that_exits_ends_the_pool_and_nobody_waits_for_ever(
    make_blocking: MakeBlocking, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    """It would end the program of an async pool; here it is in another thread."""

    async def hook(_: WebsocketConnection) -> None:
        if where == "hook":
            sys.exit("the password is wrong")

    def listener(_: Event) -> None:
        sys.exit("the disk is full")

    def story() -> None:
        pool = make_blocking(on_connect=hook)
        if where == "listener":
            pool.subscribe(listener)
        with pytest.raises(ConnectionPoolUnavailableError):
            pool.acquire(timeout=None)
        pool.close_all()

    await asyncio.wait_for(to_thread(story), 30.0)
    gc.collect()  # the task that the hook has ended
    assert "has ended <WebsocketConnectionPool" in caplog.text


async def test_it_may_be_called_where_a_loop_is_running(make_blocking: MakeBlocking) -> None:
    """As in a cell of a notebook. That loop is blocked meanwhile."""

    async def cell() -> None:
        with make_blocking() as pool, pool.get_connection() as connection:
            assert echoes(connection)

    await to_thread(lambda: asyncio.run(cell()))


# Closing.


async def test_close_all_ends_whoever_waits_and_the_thread(
    server: Server, make_blocking: MakeBlocking
) -> None:
    def story() -> None:
        pool = make_blocking(max_connections=1)
        connection = pool.acquire()
        with ThreadPoolExecutor() as threads:
            in_recv = threads.submit(connection.recv)
            in_line = threads.submit(pool.acquire, timeout=None)
            spin_until(lambda: pool.waiters and wire_of(connection._mirrored).is_receiving)
            closing = [threads.submit(pool.close_all) for _ in range(3)]
            with pytest.raises(ConnectionClosedError, match="pool closed"):
                in_recv.result()
            with pytest.raises(ConnectionPoolUnavailableError):
                in_line.result()
            for one in closing:
                one.result()
        assert not pool_threads()
        assert pool.connections == ()

    await to_thread(story)
    await until(lambda: not server.open, "the socket is gone")


async def test_a_closed_pool_answers_as_the_async_one(
    server: Server, make_blocking: MakeBlocking, caplog: pytest.LogCaptureFixture
) -> None:
    def story() -> None:
        pool = make_blocking()
        pool.subscribe(lambda event: None)
        with pool.get_connection() as connection:
            pool.close_all()
            for closed in (connection.recv, connection.ping, lambda: connection.send("more")):
                with pytest.raises(ConnectionClosedError, match="pool closed"):
                    closed()
            with pytest.raises(ConnectionClosedError, match="pool closed"):
                connection.recv(timeout=1.0)
            connection.close()
        for refused in (pool.acquire, pool.acquire_new):
            with pytest.raises(ConnectionPoolUnavailableError):
                refused()
        for silent in (pool.start, pool.close_all, pool.expire_connections):
            silent()
        pool.resize(3)
        assert not pool_threads()

    await to_thread(story)
    assert [r.getMessage() for r in caplog.records if "not lent" in r.getMessage()] == []


async def test_whoever_calls_in_the_last_moment_is_not_forgotten(
    make_blocking: MakeBlocking,
) -> None:
    def story() -> None:
        pool = make_blocking()
        pool.start()
        enter = pool._portal._enter
        has_entered = threading.Event()

        def enter_and_tell(begin: Callable[[], object]) -> bool:
            is_open = enter(begin)
            has_entered.set()
            return is_open

        def call_and_wait(event: Event) -> None:
            if isinstance(event, PoolClosed):
                calls.append(threads.submit(pool.acquire))
                has_entered.wait()

        calls: list[Future[Any]] = []
        pool._portal._enter = enter_and_tell
        pool.subscribe(call_and_wait)
        with ThreadPoolExecutor() as threads:
            pool.close_all()
            with pytest.raises(ConnectionPoolUnavailableError):
                calls[0].result(timeout=10.0)

    await to_thread(story)


async def test_a_pool_that_was_never_used_has_no_thread_and_closes(
    make_blocking: MakeBlocking,
) -> None:
    pool = make_blocking()
    pool.subscribe(lambda event: None)
    assert "not started" in repr(pool)
    assert not pool_threads()
    pool.close_all()
    assert pool.is_closed
    with pytest.raises(ConnectionPoolUnavailableError):
        pool.acquire()
    assert not pool_threads()


async def test_without_a_thread_to_be_had_the_call_fails_and_the_next_one_tries_again(
    make_blocking: MakeBlocking, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    pool = make_blocking()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="can't start"):
            pool.start()
    assert not pool.is_started
    await to_thread(pool.start)
    assert pool.is_started


async def test_close_all_lets_borrowers_finish_for_as_long_as_it_is_told_to(
    make_blocking: MakeBlocking,
) -> None:
    def story() -> None:
        pool = make_blocking()
        with ThreadPoolExecutor() as threads:
            with pool.get_connection() as connection:
                closing = threads.submit(pool.close_all, None)
                spin_until(lambda: pool.is_closed)
                assert echoes(connection)
            closing.result()

    await to_thread(story)


# What is dropped.


async def test_a_pool_that_is_dropped_closes_its_sockets_and_warns(server: Server) -> None:
    def story() -> str:
        pool = BlockingWebsocketConnectionPool(uri=server.uri)
        with pool.get_connection():
            pass
        with pytest.warns(ResourceWarning, match="dropped without being closed") as caught:
            del pool
        return str(caught[0].message)

    assert f"made at {__file__}:" in await to_thread(story)
    await until(lambda: not server.open, "its sockets are closed")


async def test_a_pool_is_not_dropped_while_it_has_a_borrower(server: Server) -> None:
    def story() -> None:
        connection = BlockingWebsocketConnectionPool(uri=server.uri).acquire()
        gc.collect()
        assert echoes(connection)
        connection._lender.close_all()

    await to_thread(story)


@pytest.mark.parametrize("has_sent", [False, True])
async def test_a_connection_that_is_dropped_comes_back(
    make_blocking: MakeBlocking, has_sent: bool
) -> None:
    def story() -> None:
        pool = make_blocking(max_connections=1)
        connection = pool.acquire()
        if has_sent:
            connection.send("a question")
        with pytest.warns(ResourceWarning, match=f"borrowed at {__file__}:.* was dropped"):
            del connection
        with pool.get_connection(timeout=10.0) as connection:
            assert echoes(connection)
            assert connection.reused is not has_sent

    await to_thread(story)


def messages(
    pool: BlockingWebsocketConnectionPool, message: str = "hello"
) -> Iterator[str | bytes]:
    """Borrow for as long as somebody iterates."""
    with pool.get_connection(timeout=20.0) as connection:
        while True:
            connection.send(message)
            yield connection.recv()


async def test_a_generator_that_is_dropped_gives_its_loan_back_and_waits_for_nothing(
    make_blocking: MakeBlocking,
) -> None:
    """Its `with` has done what it is there for: nobody is warned."""

    def story() -> None:
        pool = make_blocking(max_connections=1)
        may_go_on = threading.Event()
        for _ in range(3):
            stream = messages(pool)
            assert next(stream) == "hello"
            may_go_on.clear()
            pool._portal.soon(may_go_on.wait)  # nothing comes of a wait for the loop
            del stream
            assert pool.busy_connections == 1
            may_go_on.set()
        with pool.get_connection(timeout=10.0) as connection:
            assert echoes(connection)
        assert pool.stats.closes == {"error": 3}

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        await asyncio.wait_for(to_thread(story), 30.0)
        gc.collect()
    assert not caught


async def test_a_hook_may_drop_such_a_generator_in_the_loops_own_thread(
    make_blocking: MakeBlocking,
) -> None:
    def story() -> None:
        pool = make_blocking(max_connections=1)
        stream = messages(pool)
        next(stream)
        pool._portal.call(stream.close)
        with pool.get_connection(timeout=10.0) as connection:
            assert echoes(connection)

    await to_thread(story)


ABANDONED = """\
import gc, random, sys, threading
from wspool import BlockingWebsocketConnectionPool

def messages(pool):
    with pool.get_connection(timeout=30.0) as connection:
        connection.send("hello")
        yield connection.recv()

def abandon(pool, count):
    for number in range(count):
        stream = messages(pool)
        assert next(stream) == "hello"
        cycle = [stream]
        cycle.append(cycle)
        gc.set_threshold(random.randint(1, 100))
        del stream, cycle  # the collector finds it in the middle of anything

with BlockingWebsocketConnectionPool(uri=sys.argv[1], max_connections=8) as pool:
    threads = [threading.Thread(target=abandon, args=(pool, int(sys.argv[2]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    with pool.get_connection() as connection:
        connection.send("hello")
        assert connection.recv() == "hello"
    assert pool.stats.borrows == 4 * int(sys.argv[2]) + 1, pool
    print(pool.busy_connections)
"""


@pytest.mark.parametrize(
    ("runs", "count"), [(2, 100), pytest.param(5, 500, marks=pytest.mark.long)]
)
async def test_the_collector_may_finalise_loans_in_the_middle_of_anything(
    echo_uri: str, runs: int, count: int
) -> None:
    """Hundreds of generators in cycles with a loan inside, a program; four threads at a time."""
    for _ in range(runs):
        printed, complaints = await run(ABANDONED, echo_uri, str(count))
        assert (printed, complaints) == ("0\n", "")


# Whoever is interrupted.


class GivenUp(Exception):
    """In the place of a KeyboardInterrupt, which only a main thread gets."""


Outcome = Callable[..., Any]


def at_once(outcome: Outcome) -> Outcome:
    """Interrupted when the loop has been told what to do, and nothing else."""

    def give_up(*_: object) -> Any:
        raise GivenUp

    return give_up


def too_late(outcome: Outcome) -> Outcome:
    """Interrupted when the outcome is there, and about to be taken."""

    def give_up(*call: object) -> Any:
        outcome(*call)
        raise GivenUp

    return give_up


@pytest.fixture(params=[at_once, too_late])
def interrupted(request: pytest.FixtureRequest) -> Callable[[Callable[[], object]], None]:
    """Call something that is interrupted in a bad moment."""

    def call(function: Callable[[], object]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(calls.Call, "outcome", request.param(calls.Call.outcome))
            with pytest.raises(GivenUp):
                function()

    return call


async def test_whoever_is_interrupted_in_recv_may_call_it_again_at_once(
    make_blocking: MakeBlocking,
) -> None:
    """Also where the loop hears of both only now: the first one leaves before the second begins."""

    def story() -> None:
        with make_blocking() as pool, ExitStack() as stack, ThreadPoolExecutor() as threads:
            connection = pool.acquire()

            def give_up(*_: object) -> Any:
                spin_until(lambda: wire_of(connection._mirrored).is_receiving)
                stack.enter_context(busy(pool))
                raise GivenUp

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(calls.Call, "outcome", give_up)
                with pytest.raises(GivenUp):
                    connection.recv()
            receiving = threads.submit(connection.recv)
            spin_until(lambda: len(pool._portal._lives[0].entrants) == 2)
            stack.close()
            connection.send("hello")
            assert receiving.result() == "hello"

    await to_thread(story)


async def test_a_connection_that_was_won_and_given_up_goes_to_the_next(
    server: Server, make_blocking: MakeBlocking, interrupted: Callable[..., None]
) -> None:
    def story() -> None:
        pool = make_blocking(max_connections=1)
        pool.start()
        for _ in range(2):  # a new one, and the idle one
            interrupted(lambda: pool.acquire(timeout=None))
            with pool.get_connection(timeout=10.0) as connection:
                assert echoes(connection)
        assert pool.available_connections == 1

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        await to_thread(story)
    assert not caught
    assert len(server.requests) == 1


async def test_a_message_that_was_read_and_given_up_is_read_by_the_next_recv(
    make_blocking: MakeBlocking, interrupted: Callable[..., None]
) -> None:
    def story() -> None:
        with make_blocking().get_connection() as connection:
            for number in range(3):
                connection.send(str(number))
            connection.ping()
            interrupted(connection.recv)
            assert [connection.recv() for _ in range(2)] == ["0", "1"]
            interrupted(connection.__next__)
            assert connection.recv() == "2"

    await to_thread(story)


async def test_a_release_that_is_interrupted_is_done(
    make_blocking: MakeBlocking, interrupted: Callable[..., None]
) -> None:
    def story() -> None:
        pool = make_blocking(max_connections=1)
        connection = pool.acquire()
        interrupted(lambda: pool.release(connection))
        with pool.get_connection(timeout=10.0):
            pass

    await to_thread(story)


async def test_a_release_that_is_interrupted_before_it_began_is_done(
    make_blocking: MakeBlocking,
) -> None:
    def story() -> None:
        pool = make_blocking(max_connections=1)
        connection = pool.acquire()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pool._portal, "_enter", at_once(print))
            with pytest.raises(GivenUp):
                pool.release(connection)
        with pool.get_connection(timeout=10.0):
            pass

    await to_thread(story)


# The collector may finalise the sockets of a loop that never ran before the loop, which complains.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_start_that_is_interrupted_at_any_line_is_made_up_for_by_the_next_call(
    make_blocking: MakeBlocking,
) -> None:
    traced = portal.Portal._start.__code__

    def is_interrupted(pool: BlockingWebsocketConnectionPool, number: int) -> bool:
        lines = itertools.count()

        def trace(frame: FrameType, event: str, arg: object) -> Any:
            if event == "line" and next(lines) == number:
                raise GivenUp
            return trace if frame.f_code is traced else None

        sys.settrace(trace)
        try:
            pool.start()
        except GivenUp:
            return True
        finally:
            sys.settrace(None)
        return False

    def story() -> None:
        for number in itertools.count():
            pool = make_blocking()
            if not is_interrupted(pool, number):
                break
            pool.start()
            pool.close_all()
        assert number >= 10

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # loops that never ran
        await to_thread(story)
        gc.collect()


async def start(program: str, *arguments: str, warn: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", warn, "-c", program, *arguments),
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@asynccontextmanager
async def running(
    program: str, *arguments: str, warn: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a program that is not to outlive the test."""
    process = await start(program, *arguments, warn=warn)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def run(program: str, *arguments: str, warn: str = "default") -> tuple[str, str]:
    """Run a program to its good end and return what it printed, and its complaints."""
    async with running(program, *arguments, warn=warn) as process, asyncio.timeout(60):
        printed, complaints = await process.communicate()
    assert process.returncode == 0, complaints.decode()
    return printed.decode(), complaints.decode()


INTERRUPTED = """\
import signal, sys, threading
from wspool import BlockingWebsocketConnectionPool

main = threading.main_thread()
with BlockingWebsocketConnectionPool(uri=sys.argv[1], max_connections=1) as pool:

    def interrupted(function, is_under_way):
        def interrupt():
            while not is_under_way():
                pass
            signal.pthread_kill(main.ident, signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        try:
            function()
        except KeyboardInterrupt:
            print("interrupted")
        thread.join()

    with pool.get_connection() as connection:
        interrupted(lambda: pool.acquire(timeout=None), lambda: pool.waiters)
        interrupted(connection.recv, lambda: connection._mirrored._link.wire.is_receiving)
        connection.send("hello")
        assert connection.recv() == "hello"
        interrupted(lambda: pool.close_all(timeout=None), lambda: pool.is_closed)
        connection.send("still here")
        assert connection.recv() == "still here"
assert not pool.waiters and not pool.connections, pool
print(pool.stats.closes, threading.enumerate() == [main])
"""


async def test_ctrl_c_gives_up_the_wait_and_nothing_else(server: Server) -> None:
    """In acquire the place in the line, in recv no message, in close_all only the waiting."""
    printed, complaints = await run(INTERRUPTED, server.uri)
    assert printed.splitlines() == [*["interrupted"] * 3, "Counter({'pool': 1}) True"]
    assert complaints == ""


CROSSFIRE = """\
import random, signal, sys, threading, time
from wspool import BlockingWebsocketConnectionPool

class Interrupted(Exception):
    pass

is_armed = is_over = False
counts = {"interrupted": 0, "replies": 0}

def interrupt():
    while not is_over:
        time.sleep(random.uniform(0.0, 0.002))
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

def handle(*_):  # once for each loan
    global is_armed
    if is_armed:
        is_armed = False
        counts["interrupted"] += 1
        raise Interrupted

signal.signal(signal.SIGUSR1, handle)
with BlockingWebsocketConnectionPool(uri=sys.argv[1], max_connections=1) as pool:
    thread = threading.Thread(target=interrupt)
    thread.start()
    for number in range(int(sys.argv[2])):
        try:
            is_armed = True
            with pool.get_connection(timeout=20.0) as connection:
                connection.send(str(number))
                assert connection.recv() == str(number)
                counts["replies"] += 1
        except Interrupted:
            pass
        is_armed = False
    is_over = True
    thread.join()
    with pool.get_connection(timeout=20.0) as connection:
        connection.send("hello")
        assert connection.recv() == "hello"
    print(min(counts.values()) > 0, counts, pool.busy_connections, pool)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="there are no such signals")
async def test_interrupts_between_any_two_instructions_cost_no_place(echo_uri: str) -> None:
    """One for each loan, wherever the thread is: in the package, or in the block."""
    printed, _ = await run(CROSSFIRE, echo_uri, "1000")
    assert printed.startswith("True")
    assert "} 0 <" in printed
    assert "idle=1 busy=0" in printed


TERMINATED = """\
import logging, random, signal, sys, time
from wspool import BlockingWebsocketConnectionPool, WebsocketError

logging.getLogger("wspool").setLevel(logging.ERROR)  # it warns of loans that are cut off

def terminate(*_):
    pool.close_all()
    print("closed", pool.is_closed, pool.total_connections)

signal.signal(signal.SIGTERM, terminate)
signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGTERM))
rng, rounds = random.Random(int(sys.argv[2])), int(sys.argv[3])
began = time.monotonic()
with BlockingWebsocketConnectionPool(uri=sys.argv[1]) as pool, pool.get_connection() as connection:
    connection.send("hello")
    connection.recv()
longest = 3 * (time.monotonic() - began)
for number in range(rounds):
    pool = BlockingWebsocketConnectionPool(uri=sys.argv[1], max_connections=2)
    signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-4, longest))
    try:
        while True:
            with pool.get_connection(timeout=20.0) as connection:
                connection.send("hello")
                connection.recv()
            pool.release(pool.acquire(timeout=20.0))
    except WebsocketError:
        assert pool.is_closed
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no such signals")
@pytest.mark.parametrize("count", [20, pytest.param(100, marks=pytest.mark.long)])
async def test_a_handler_of_sigterm_may_close_the_pool_wherever_the_thread_is(
    echo_uri: str, count: int
) -> None:
    """In each of so many programs 20 times: in its start, in a loan, in a wait, between them."""
    turn = asyncio.Semaphore(2)

    async def terminate(seed: int) -> None:
        async with turn:
            printed, complaints = await run(TERMINATED, echo_uri, str(seed), "20")
        assert (printed, complaints) == ("closed True 0\n" * 20, ""), seed

    async with asyncio.TaskGroup() as group:
        for seed in range(count):
            group.create_task(terminate(seed))


# Greenlets in the place of threads.

GREEN = """\
import sys

if sys.argv[2] == "gevent":
    from gevent import monkey
    monkey.patch_all(thread="thread" in sys.argv)
else:
    import eventlet
    eventlet.monkey_patch(thread="thread" in sys.argv)

from wspool import BlockingWebsocketConnectionPool

def ask(pool):
    try:
        with pool.get_connection() as connection:
            connection.send("hello")
            return connection.recv()
    except RuntimeError as error:
        return error

pools = [BlockingWebsocketConnectionPool(uri=sys.argv[1], acquire_timeout=5.0) for _ in range(2)]
for pool in pools * 3:
    print(ask(pool))
for pool in pools:
    pool.close_all()
"""


@pytest.mark.parametrize(
    ("library", "patched"), [("gevent", ["thread"]), ("gevent", []), ("eventlet", ["thread"])]
)
async def test_greenlets_in_the_place_of_threads_are_refused_and_nothing_hangs(
    echo_uri: str, library: str, patched: list[str]
) -> None:
    """With two pools; gevent's selector, too, is none for a thread."""
    needs(library)
    printed, complaints = await run(GREEN, echo_uri, library, *patched, warn="ignore")
    assert complaints == ""
    refusals = printed.splitlines()
    assert len(refusals) == 6
    for refusal in refusals:
        assert f"and {library} has put its own in the place of these. Use it in a" in refusal


async def test_eventlet_that_leaves_threads_alone_is_fine(echo_uri: str) -> None:
    needs("eventlet")
    printed, complaints = await run(GREEN, echo_uri, "eventlet", warn="ignore")
    assert (printed, complaints) == ("hello\n" * 6, "")


def needs(library: str) -> None:
    if importlib.util.find_spec(library) is None:
        skip(f"{library} is not installed")


# Forks, and the end of a program.

FORKED = """\
import gc, os, sys, warnings
from wspool import BlockingWebsocketConnectionPool

def ask(pool):
    with pool.get_connection() as connection:
        connection.send("#n")
        return connection.recv()

def in_child(function):
    sys.stdout.flush()
    child = os.fork()
    if not child:
        function()
        sys.stdout.flush()
        gc.collect()
        sys.exit()  # as a worker of gunicorn ends
    assert os.waitpid(child, 0)[1] == 0

def use_in_vain():
    pool.release(lent)
    pool.close_all()
    for use in (pool.acquire, lambda: lent.send("hello")):
        try:
            use()
        except RuntimeError as error:
            says = f"was started in process {os.getppid()}", "Start it after the fork"
            print([text in str(error) for text in says])

# Python 3.12 warns of each fork beside threads.
warnings.filterwarnings("ignore", "This process", DeprecationWarning)
early = BlockingWebsocketConnectionPool(uri=sys.argv[1])
in_child(lambda: print("child:", ask(early), early.close_all()))
with BlockingWebsocketConnectionPool(uri=sys.argv[1]) as pool:
    print("parent:", ask(pool))
    lent = pool.acquire()
    in_child(use_in_vain)
    lent.send("#n")
    print("parent:", lent.recv(), ask(pool))
    pool.release(lent)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
async def test_a_fork_gets_a_pool_of_its_own_or_a_clear_error(server: Server) -> None:
    """One that was not started begins in the child; the parent's sockets are left alone."""
    printed, complaints = await run(FORKED, server.uri)
    assert complaints == ""
    assert printed.splitlines() == [
        "child: 1 None",
        "parent: 2",
        *["[True, True]"] * 2,
        "parent: 2 3",
    ]


LEFT_OPEN = """\
import sys, threading
from wspool import BlockingWebsocketConnectionPool

pool = BlockingWebsocketConnectionPool(uri=sys.argv[1], close_timeout=float(sys.argv[2]))
with pool.get_connection() as connection:
    connection.send("hello")
    connection.recv()
lent = pool.acquire()
threading.Thread(target=lambda: [pool.release(pool.acquire()) for _ in range(100)]).start()
"""


async def test_a_program_that_ends_without_close_all_ends_with_a_warning(server: Server) -> None:
    """The server gets its CLOSE frames, and a thread that is still at work can finish."""
    uri = server.uri.replace("127.0.0.1", "localhost")  # looked up in a thread of the loop's
    _, complaints = await run(LEFT_OPEN, uri, "5")
    assert "ResourceWarning: <WebsocketConnectionPool" in complaints
    assert "was still open at the end of the program" in complaints
    assert "Traceback" not in complaints
    assert "Task was destroyed" not in complaints
    await until(lambda: not server.open, "the connections are closed")
    assert {peer.websocket.close_code for peer in server.peers} == {1000}


async def test_a_mute_server_does_not_hold_up_the_end_of_a_program(server: Server) -> None:
    async def become_mute(peer: Peer) -> None:
        await peer.send(str(await peer.websocket.receive_str()))
        peer.mute()
        await asyncio.Event().wait()

    server.handler = become_mute
    _, complaints = await run(LEFT_OPEN.partition("lent =")[0], server.uri, "0.2")
    assert "was still open" in complaints
    await server.stop()


# A crowd.


class Unlucky(Exception):
    pass


def test_64_threads_on_16_connections_get_their_own_replies(echo_uri: str) -> None:
    """With exceptions in some blocks, before the send, after it and after the reply."""
    wrong: list[tuple[str, object]] = []

    def borrow_often(number: int) -> int:
        rng = random.Random(number)
        for count in range(BORROWS):
            request = f"{number} {count}"
            fate = rng.random()
            try:
                with pool.get_connection() as connection:
                    if fate < 0.01:
                        raise Unlucky
                    connection.send(request)
                    if fate < 0.02:
                        raise Unlucky
                    if (reply := connection.recv()) != request:
                        wrong.append((request, reply))
                    if fate < 0.03:
                        raise Unlucky
            except Unlucky:
                pass
        return BORROWS

    with (
        BlockingWebsocketConnectionPool(
            uri=echo_uri, max_connections=16, acquire_timeout=None
        ) as pool,
        ThreadPoolExecutor(64) as threads,
    ):
        pool.start()
        pool._portal._lives[0].loop.set_debug(False)  # with it, this takes five times as long
        assert sum(threads.map(borrow_often, range(64))) == 64 * BORROWS
        assert wrong == []
        assert pool.stats.borrows == 64 * BORROWS
        assert pool.total_connections <= 16
        assert pool.busy_connections == pool.waiters == 0
        assert set(pool.stats.closes) == {"error"}


# The async pool, from a thread.


async def ask(pool: WebsocketConnectionPool, text: str) -> str | bytes:
    async with pool.get_connection() as connection:
        await connection.send(text)
        return await connection.recv()


async def test_threads_use_an_async_pool_through_its_loop(make_pool: MakePool) -> None:
    pool = make_pool(max_connections=2, acquire_timeout=None)
    loop = asyncio.get_running_loop()

    def in_a_thread(text: str) -> str | bytes:
        return asyncio.run_coroutine_threadsafe(ask(pool, text), loop).result()

    texts = [f"text {number}" for number in range(20)]
    assert await asyncio.gather(*(to_thread(in_a_thread, text) for text in texts)) == texts
    assert (pool.stats.borrows, pool.available_connections) == (20, 2)


async def test_a_thread_that_gives_up_such_a_call_cancels_its_loan(
    server: Server, make_pool: MakePool
) -> None:
    async def be_silent(peer: Peer) -> None:
        await peer.websocket.receive()
        await peer.websocket.receive()

    server.handler = be_silent
    pool = make_pool(max_connections=1)
    loop = asyncio.get_running_loop()

    def give_up() -> None:
        future = asyncio.run_coroutine_threadsafe(ask(pool, "hello"), loop)
        # Not sooner: what has sent nothing leaves a clean connection.
        spin_until(
            lambda: any(
                link.loan is not None and link.loan._has_sent for link in queues_of(pool).busy
            )
        )
        future.cancel()

    await to_thread(give_up)
    await until(lambda: not pool.connections, "the connection is closed, and its place is free")
    assert pool.stats.closes == {"error": 1}


async def test_an_async_pool_called_in_another_thread_says_whose_it_is(
    make_pool: MakePool,
) -> None:
    pool = make_pool()
    await pool.start()
    with pytest.raises(RuntimeError, match="Make a pool for each loop"):
        await to_thread(lambda: asyncio.run(ask(pool, "hello")))
