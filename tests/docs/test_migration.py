"""What `docs/migrating.md` says of this pool, line by line.

The docstring of a test is the line that it proves; where another module has the test, it is that
one's docstring. Neither side may say what the other does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import re
import ssl
import sys
from typing import Any

import aiohttp
import pytest
from aiohttp import ClientSession, WSMsgType, web

import wspool
from tests.conftest import MakePool, echoes, until
from tests.pool import test_regressions
from tests.pool.test_interface import INTERFACE
from tests.support.inside import link_of
from tests.support.pages import code, rows
from wspool import (
    ConnectionBusyError,
    ConnectionClosedError,
    ConnectionPoolExhaustedError,
    ConnectionPoolTimeoutError,
    ConnectionPoolUnavailableError,
    ConnectionUnavailableError,
    State,
    WebsocketConnection,
    WebsocketConnectionPool,
    WebsocketError,
)
from wspool.testing import Peer, Server


def claims(module: Any) -> set[str]:
    """Return the docstrings of a module's tests, each on one line, without number and full stop."""
    tests = [test for test in vars(module).values() if inspect.isfunction(test)]
    said = [" ".join((test.__doc__ or "").split()) for test in tests if "test_" in test.__name__]
    return {re.sub(r"^\d+\. |\.$", "", one) for one in said if one}


def test_each_line_of_the_page_has_its_test_and_each_test_its_line() -> None:
    lines = {cells[-1] for cells in rows("migrating.md", "here")}
    assert lines - claims(test_regressions) == claims(sys.modules[__name__])
    assert claims(test_regressions) <= lines


@pytest.mark.parametrize(("_", "argument"), rows("migrating.md", "argument here"))
async def test_each_argument_is_taken(_: str, argument: str) -> None:
    names = {"context": ssl.create_default_context(), "ClientSession": ClientSession}
    made = eval(f"dict({code(argument)})", names)
    pool = WebsocketConnectionPool(uri="ws://localhost/", **made)
    assert not pool.is_started
    if session := made.get("session"):
        await session.close()


# From aio-websocket-pool: the same names.


def test_the_constructor() -> None:
    """
    The constructor takes the same twelve arguments with the same defaults, all but `uri` by name
    """
    ours = inspect.signature(WebsocketConnectionPool).parameters
    assert len(INTERFACE) == 12
    assert {name: ours[name].default for name in INTERFACE} == INTERFACE
    by_name = {name for name in INTERFACE if ours[name].kind is inspect.Parameter.KEYWORD_ONLY}
    assert by_name == INTERFACE.keys() - {"uri"}


async def test_the_methods(make_pool: MakePool) -> None:
    """The methods are the same, and are awaited as there"""
    pool = make_pool()
    await pool.start()
    connection = await pool.acquire()
    await pool.release(connection)
    new = await pool.acquire_new()
    await pool.release(new, force_remove=True)
    assert new.id != connection.id
    await pool.close_all()


async def test_the_context_managers(make_pool: MakePool) -> None:
    """Pool and connections are used with `async with` as there"""
    async with make_pool() as pool:
        async with pool.get_connection() as connection:
            assert await echoes(connection)
        async with pool.get_new_connection() as new:
            assert await echoes(new)
    assert pool.is_closed


async def test_the_properties(make_pool: MakePool) -> None:
    """The properties are the same, before the start and after the close too"""
    names = ("total_connections", "available_connections", "busy_connections")
    pool = make_pool()

    def seen() -> list[int]:
        return [getattr(pool, name) for name in (*names, "pending_connections")]

    assert (pool.is_started, pool.is_closed, seen()) == (False, False, [0, 0, 0, 0])
    await pool.acquire()
    assert (pool.is_started, pool.is_closed, seen()) == (True, False, [1, 0, 1, 0])
    await pool.close_all()
    assert (pool.is_started, pool.is_closed, seen()) == (True, True, [0, 0, 0, 0])


async def test_the_connection(make_pool: MakePool) -> None:
    """A connection has the same methods and properties"""
    connection = await make_pool().acquire()
    before = connection.last_activity
    assert (connection.is_connected, connection.is_busy, connection.is_draining) == (
        (True, True, False)
    )
    await connection.send("hello")
    assert await connection.recv() == "hello"
    assert connection.last_activity >= before
    await connection.ping()
    await connection.close()
    assert not connection.is_connected


def test_the_errors() -> None:
    """The errors have the same names, and are all `WebsocketError` and `RuntimeError`"""
    for name in (
        *("WebsocketError", "ConnectionClosedError", "ConnectionBusyError"),
        *("ConnectionUnavailableError", "ConnectionPoolUnavailableError"),
        *("ConnectionPoolExhaustedError", "ConnectionDrainTimeoutError"),
    ):
        assert issubclass(getattr(wspool, name), WebsocketError)
    assert issubclass(WebsocketError, RuntimeError)


@pytest.mark.parametrize(("left", "then"), [("", "closed"), ("more", "idle")])
async def test_the_default_drain_condition(
    server: Server, make_pool: MakePool, left: str, then: str
) -> None:
    """Without a `drain_condition` an empty message closes the connection, any other is drained"""
    pool = make_pool(drain_until=lambda message: message == "last")
    async with pool.get_connection() as connection:
        assert await echoes(connection)
        await connection.send("a question")
    assert connection.is_draining
    await server.peers[0].send(left)
    await server.peers[0].send("last")
    await until(lambda: connection.state == then, then)


# From aio-websocket-pool: what differs.


async def test_further_arguments(server: Server, make_pool: MakePool) -> None:
    """Further arguments are those of aiohttp's `ws_connect`, and one that it does not have is a
    `TypeError`"""
    pool = make_pool(origin="https://example.com")
    await pool.acquire()
    assert server.requests[0].headers["Origin"] == "https://example.com"
    with pytest.raises(TypeError, match="max_queue"):
        make_pool(max_queue=16)


async def test_the_websocket(make_pool: MakePool) -> None:
    """`connection.websocket` is aiohttp's `ClientWebSocketResponse`"""
    connection = await make_pool().acquire()
    assert isinstance(connection.websocket, aiohttp.ClientWebSocketResponse)


async def test_the_length(make_pool: MakePool) -> None:
    """A pool has no length; `total_connections` is what it was"""
    pool = make_pool()
    await pool.release(await pool.acquire())
    assert pool.total_connections == 1
    assert not hasattr(pool, "__len__")


async def test_connections_are_the_pools(make_pool: MakePool) -> None:
    """A connection is made, lent and taken back by a pool alone"""
    with pytest.raises(TypeError):
        WebsocketConnection(uri="ws://localhost/")  # type: ignore[call-arg]
    for name in ("connect", "acquire", "release", "session"):
        assert not hasattr(WebsocketConnection, name)
    connection = await make_pool().acquire()
    with pytest.raises(ConnectionBusyError):
        await connection.__aenter__()
    assert await echoes(connection)


async def test_a_closed_connection(server: Server, make_pool: MakePool) -> None:
    """`send` and `recv` on a connection that is closed raise `ConnectionClosedError`, with `.code`
    and `.reason`"""
    connection = await make_pool().acquire()
    await server.peers[0].close(4000, "enough")
    for use in (connection.recv(), connection.send("hello")):
        with pytest.raises(ConnectionClosedError) as raised:
            await use
        assert (raised.value.code, raised.value.reason) == (4000, "enough")


async def test_the_ping(make_pool: MakePool) -> None:
    """`ping()` returns the round trip in seconds when the pong has come"""
    connection = await make_pool().acquire()
    assert 0 < await connection.ping() < 10


async def test_acquire_new_at_the_limit(make_pool: MakePool) -> None:
    """`acquire_new` at the limit closes the connection that has been idle for longest, to make
    room"""
    pool = make_pool(max_connections=2)
    first, second = await pool.acquire(), await pool.acquire()
    await pool.release(first)
    await pool.release(second)
    new = await pool.acquire_new()
    assert (first.state, second.state, new.state) == (State.CLOSED, State.IDLE, State.BUSY)


async def test_an_exception_in_the_block(make_pool: MakePool) -> None:
    """A connection on which something was sent is closed when an exception leaves the block"""
    pool = make_pool()
    with contextlib.suppress(KeyError):
        async with pool.get_connection() as unused:
            raise KeyError
    with contextlib.suppress(KeyError):
        async with pool.get_connection() as connection:
            await connection.send("a question")
            raise KeyError
    assert connection.id == unused.id, "nothing was sent: it was given back"
    assert connection.state is State.CLOSED


async def test_the_order_of_reuse(make_pool: MakePool) -> None:
    """The connection that was given back last is lent first, so that the others become old and
    the pool shrinks"""
    pool = make_pool(idle_timeout=0.3, cleanup_interval=0.02)
    borrowed = [await pool.acquire() for _ in range(3)]
    for connection in borrowed:
        await pool.release(connection)

    async def shrinks() -> None:
        while pool.total_connections > 1:
            async with pool.get_connection() as connection:
                assert connection.id == borrowed[-1].id
                await asyncio.sleep(0.01)

    await asyncio.wait_for(shrinks(), 10)


async def test_a_close_while_idle(server: Server, make_pool: MakePool) -> None:
    """A connection that the server closes while it is idle is noticed, and its place is free"""
    pool = make_pool(max_connections=1)
    await pool.release(await pool.acquire())
    await server.peers[0].close(1001, "going away")
    await until(lambda: pool.total_connections == 0, "it is gone, with nobody looking")
    async with pool.get_connection() as connection:
        assert await echoes(connection)


async def test_another_thread(make_pool: MakePool) -> None:
    """A call from another thread is a `RuntimeError` that names both loops, and nothing has
    happened"""
    pool = make_pool()
    await pool.release(await pool.acquire())
    ours = str(asyncio.get_running_loop())
    with pytest.raises(RuntimeError) as raised:
        await asyncio.to_thread(asyncio.run, pool.acquire())
    assert ours in str(raised.value)
    assert str(raised.value).count("EventLoop") == 2
    assert pool.available_connections == pool.total_connections == 1


# From ClientSession.ws_connect.


async def test_a_session_of_ones_own(server: Server, make_pool: MakePool) -> None:
    """A pool takes your session, and dials with its cookies and headers"""
    cookies = aiohttp.CookieJar(unsafe=True)  # loopback has an address for a name
    async with ClientSession(headers={"X-Key": "ours"}, cookie_jar=cookies) as session:
        cookies.update_cookies({"crumb": "1"}, aiohttp.client.URL(server.uri).with_scheme("http"))
        async with make_pool(session=session) as pool:
            await pool.acquire()
        assert not session.closed
    assert server.requests[0].headers["X-Key"] == "ours"
    assert server.requests[0].cookies == {"crumb": "1"}


async def test_send(server: Server, make_pool: MakePool) -> None:
    """`send` takes both, and sends a str as text and bytes as binary"""
    connection = await make_pool().acquire()
    for message in ("text", b"binary"):
        await connection.send(message)
        await connection.recv()
    assert server.peers[0].received == ["text", b"binary"]


async def test_json(server: Server, make_pool: MakePool) -> None:
    """`send_json` and `recv_json` send and receive JSON in a text message"""
    connection = await make_pool().acquire()
    await connection.send_json({"a": [1]})
    assert await connection.recv_json() == {"a": [1]}
    assert server.peers[0].received == ['{"a": [1]}']


async def test_recv(make_pool: MakePool) -> None:
    """`recv` returns the message itself, a str or bytes"""
    connection = await make_pool().acquire()
    assert await echoes(connection, "text")
    await connection.send(b"binary")
    assert await connection.recv() == b"binary"


async def test_recv_at_the_end(server: Server, make_pool: MakePool) -> None:
    """`recv` raises `ConnectionClosedError` with `.code` and `.reason` once all that came before
    the close is read"""
    connection = await make_pool().acquire()
    await server.peers[0].send("the last words")
    await server.peers[0].close(4000, "enough")
    assert await connection.recv() == "the last words"
    with pytest.raises(ConnectionClosedError) as raised:
        await connection.recv()
    assert (raised.value.code, raised.value.reason) == (4000, "enough")


@pytest.mark.parametrize("code", [1000, 1001, 1011])
async def test_iteration(server: Server, make_pool: MakePool, code: int) -> None:
    """`async for` gives messages until the server closes with 1000 or 1001, and raises otherwise"""
    connection = await make_pool().acquire()
    await server.peers[0].send("one")
    await server.peers[0].send("two")
    await server.peers[0].close(code)
    raises = pytest.raises(ConnectionClosedError) if code == 1011 else contextlib.nullcontext()
    read = []
    with raises:
        async for message in connection:
            read.append(message)
    assert read == ["one", "two"]


async def test_a_timeout_around_recv(make_pool: MakePool) -> None:
    """`asyncio.timeout` around `recv` loses no message, and leaves the connection usable"""
    connection = await make_pool().acquire()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await connection.recv()
    for text in ("one", "two"):
        assert await echoes(connection, text)


async def test_a_ping_beside_recv(make_pool: MakePool) -> None:
    """`ping` may be awaited beside a `recv`, which keeps its messages"""
    connection = await make_pool().acquire()
    receiving = asyncio.ensure_future(connection.recv())
    await asyncio.gather(connection.ping(), connection.send("hello"), connection.ping())
    assert await receiving == "hello"


async def test_the_close(server: Server, make_pool: MakePool) -> None:
    """`close(code, reason)` takes the reason as a str"""
    ended: list[WSMsgType] = []

    async def listen(peer: Peer) -> None:
        message = await peer.websocket.receive()
        ended.append((message.data, message.extra))

    server.handler = listen
    connection = await make_pool().acquire()
    await connection.close(4001, "tschüß")
    await until(lambda: ended, "the server has heard it")
    assert ended == [(4001, "tschüß")]


async def test_the_subprotocol(server: Server, make_pool: MakePool) -> None:
    """`connection.subprotocol` is what the server chose of `protocols`"""
    server.websocket_options = {"protocols": ["v2"]}
    connection = await make_pool(protocols=["v1", "v2"]).acquire()
    assert connection.subprotocol == "v2"


async def test_the_close_code(server: Server, make_pool: MakePool) -> None:
    """`connection.close_code` is the code of the CLOSE frame, and `close_reason` its text"""
    connection = await make_pool().acquire()
    assert connection.close_code is None
    await server.peers[0].close(4000, "enough")
    with pytest.raises(ConnectionClosedError):
        await connection.recv()
    assert (connection.close_code, connection.close_reason) == (4000, "enough")


async def test_pings_while_idle(server: Server, make_pool: MakePool) -> None:
    """Pings of the server are answered while a connection is idle"""
    pongs: list[bytes] = []

    async def ping(peer: Peer) -> None:
        await peer.websocket.ping(b"are you there?")
        message = await peer.websocket.receive()
        pongs.append(message.data)
        await peer.websocket.receive()

    server.handler = ping
    server.websocket_options = {"autoping": False}
    pool = make_pool(warmup_connections=1)
    await pool.start()
    await until(lambda: pongs, "the pong has come")
    assert pongs == [b"are you there?"]
    assert pool.available_connections == 1


def test_the_pools_own_business() -> None:
    """The options that are the pool's own business are a `TypeError` that says what to use
    instead"""
    for name in ("timeout", "receive_timeout", "autoping", "autoclose"):
        with pytest.raises(TypeError, match="use "):
            WebsocketConnectionPool(uri="ws://localhost/", **{name: None})


async def test_a_refusal(server: Server, make_pool: MakePool) -> None:
    """`ConnectionUnavailableError` has the `.status`, and aiohttp's error without secrets as its
    cause"""
    server.refusals.append(web.Response(status=403))
    pool = make_pool(uri=f"{server.uri}?token=hunter2", headers={"X-Key": "swordfish"})
    with pytest.raises(ConnectionUnavailableError) as raised:
        await pool.acquire()
    cause = raised.value.__cause__
    assert raised.value.status == 403
    assert isinstance(cause, aiohttp.WSServerHandshakeError)
    assert "hunter2" not in f"{cause} {cause!r}"
    assert "swordfish" not in f"{cause} {cause!r}"


async def test_a_session_that_is_too_small(make_pool: MakePool) -> None:
    """A session whose connector admits fewer than `max_connections` is a `ValueError` at the
    start"""
    async with ClientSession() as session:
        pool = make_pool(session=session, max_connections=101)
        with pytest.raises(ValueError, match="limit=100"):
            await pool.start()


# From websockets with a queue.


async def test_min_connections(server: Server, make_pool: MakePool) -> None:
    """`min_connections` are open when `start` returns, and are replaced when they are lost"""
    pool = make_pool(min_connections=2, cleanup_interval=0.05)
    await pool.start()
    assert pool.available_connections == 2
    server.open[0].drop()
    await until(lambda: len(server.peers) == 3, "another one was dialled")
    await until(lambda: pool.available_connections == 2, "there are as many as before")


async def test_a_block(make_pool: MakePool) -> None:
    """`async with pool.get_connection()` lends a connection, and takes it back however the block
    is left"""
    pool = make_pool()
    for leave in (None, KeyError, asyncio.CancelledError):
        with contextlib.suppress(KeyError, asyncio.CancelledError):
            async with pool.get_connection() as connection:
                assert pool.busy_connections == 1
                assert await echoes(connection)
                if leave is not None:
                    raise leave
        assert pool.busy_connections == 0


async def test_the_order_of_waiting(make_pool: MakePool) -> None:
    """With `acquire_timeout=None` acquires wait for as long as it takes, and are served in the
    order of arrival"""
    pool = make_pool(max_connections=1, acquire_timeout=None)
    served: list[int] = []

    async def borrow(number: int) -> None:
        async with pool.get_connection():
            served.append(number)

    async with pool.get_connection():
        waiting = [asyncio.create_task(borrow(number)) for number in range(5)]
        await until(lambda: pool.waiters == 5, "all wait")
    await asyncio.gather(*waiting)
    assert served == [0, 1, 2, 3, 4]


async def test_a_timeout(make_pool: MakePool) -> None:
    """An `acquire` whose `timeout` is over raises `ConnectionPoolTimeoutError`, which is a
    `TimeoutError`"""
    pool = make_pool(max_connections=1)
    async with pool.get_connection():
        with pytest.raises(ConnectionPoolTimeoutError) as raised:
            await pool.acquire(timeout=0.01)
    assert isinstance(raised.value, TimeoutError)


async def test_how_many_are_idle(make_pool: MakePool) -> None:
    """`available_connections` is how many are idle"""
    pool = make_pool(warmup_connections=2)
    await pool.start()
    assert pool.available_connections == 2
    await pool.acquire()
    assert pool.available_connections == 1


async def test_a_loss(server: Server, make_pool: MakePool) -> None:
    """A connection that is lost frees its place, and the next `acquire` dials"""
    pool = make_pool(max_connections=1)
    with contextlib.suppress(ConnectionClosedError):
        async with pool.get_connection() as connection:
            server.open[0].drop()
            await connection.recv()
    async with pool.get_connection(timeout=10) as another:
        assert await echoes(another)
    assert another.id != connection.id


# From other pools.


async def test_entering_an_acquire(make_pool: MakePool) -> None:
    """
    `async with pool.get_connection()` borrows and gives back; entering an `acquire` is a
    `TypeError` that says so
    """
    pool: Any = make_pool()
    async with pool.get_connection() as connection:
        assert await echoes(connection)
    with pytest.raises(TypeError, match=r"`async with pool\.get_connection\(\) as connection:`"):
        async with pool.acquire():
            pytest.fail("nothing was to be lent")
    assert pool.busy_connections == 0


async def test_awaiting_a_get_connection(make_pool: MakePool) -> None:
    """
    `acquire` is awaited, and `release` gives back; awaiting a `get_connection` is a `TypeError`
    that says so
    """
    pool: Any = make_pool()
    connection = await pool.acquire()
    await pool.release(connection)
    with pytest.raises(TypeError, match=r"`connection = await pool\.acquire\(\)`"):
        await pool.get_connection()
    assert pool.busy_connections == 0


async def test_a_timeout_by_position(make_pool: MakePool) -> None:
    """
    A timeout has its name, `acquire(timeout=5)`; without it, it is a `TypeError` that says so
    """
    pool: Any = make_pool()
    await pool.release(await pool.acquire(timeout=5))
    with pytest.raises(TypeError, match=r"write acquire\(timeout=5\)"):
        await pool.acquire(5)


@pytest.mark.parametrize("name", ["connection", "getconn", "putconn", "close"])
def test_names_of_other_pools(make_pool: MakePool, name: str) -> None:
    """A name of another pool's is an `AttributeError` that says what is used here"""
    with pytest.raises(AttributeError, match=f"no attribute '{name}': use "):
        getattr(make_pool(), name)


async def test_aclose(make_pool: MakePool) -> None:
    """`aclose` closes the pool, as `close_all` does"""
    async with contextlib.aclosing(make_pool()) as pool, pool.get_connection() as connection:
        assert await echoes(connection)
    assert pool.is_closed
    assert pool.total_connections == 0


def test_settings(make_pool: MakePool) -> None:
    """Each argument of the constructor can be read from the pool, under its name"""
    pool = make_pool(acquire_timeout=5.0)
    assert (pool.acquire_timeout, pool.max_connections) == (5.0, 50)
    for name in inspect.signature(WebsocketConnectionPool).parameters:
        assert hasattr(pool, name)


# From livekit's ConnectionPool.


async def test_what_is_called_for_each_dial(server: Server, make_pool: MakePool) -> None:
    """`uri`, `headers` and `on_connect` are called for each dial, and may be async"""
    called: list[str] = []

    async def uri() -> str:
        called.append("uri")
        return server.uri

    async def headers() -> dict[str, str]:
        called.append("headers")
        return {}

    async def on_connect(connection: WebsocketConnection) -> None:
        called.append("on_connect")

    pool = make_pool(uri=uri, headers=headers, on_connect=on_connect)
    for _ in range(2):
        await pool.release(await pool.acquire_new())
    assert sorted(called) == ["headers", "headers", "on_connect", "on_connect", "uri", "uri"]


async def test_close_all(server: Server, make_pool: MakePool) -> None:
    """`close_all()` leaves no socket open, and needs no callback"""
    pool = make_pool()
    await pool.release(await pool.acquire())
    await pool.acquire_new()
    await pool.close_all()
    await until(lambda: not server.open, "the server has none open")
    with pytest.raises(ConnectionPoolUnavailableError):
        await pool.acquire()


async def test_the_lifetime(make_pool: MakePool) -> None:
    """A connection older than `max_lifetime` is closed, idle or given back, whether or not
    somebody acquires"""
    pool = make_pool(max_lifetime=0.2, cleanup_interval=0.05)
    idle, busy = await pool.acquire(), await pool.acquire()
    await pool.release(idle)
    await until(lambda: idle.state is State.CLOSED, "the idle one is retired")
    link = link_of(busy)
    await until(lambda: link.clock() > link.retire_at, "the busy one is as old")
    assert busy.state is State.BUSY
    await pool.release(busy)
    assert busy.state is State.CLOSED


async def test_the_idle_timeout(make_pool: MakePool) -> None:
    """`idle_timeout` counts from the last use"""
    pool = make_pool(idle_timeout=0.3, cleanup_interval=0.02)
    connection = await pool.acquire()
    await asyncio.sleep(0.4)  # older than that, and used all the time
    await pool.release(connection)
    assert connection.state is State.IDLE
    await until(lambda: connection.state is State.CLOSED, "then it was idle for so long")
    *_, given_back, closed = connection.history
    assert closed.at - given_back.at > 0.3


async def test_the_warm_up(make_pool: MakePool) -> None:
    """`warmup_connections` are open when `start` returns"""
    pool = make_pool(warmup_connections=2)
    await pool.start()
    assert pool.available_connections == 2


async def test_acquire_and_release(make_pool: MakePool) -> None:
    """`acquire`, `release` and `release` with `force_remove` are what they are in a `finally` of
    your own"""
    pool = make_pool()
    connection = await pool.acquire()
    await pool.release(connection)
    again = await pool.acquire()
    assert again.id == connection.id
    await pool.release(again, force_remove=True)
    assert again.state is State.CLOSED


async def test_expiring(make_pool: MakePool) -> None:
    """`expire_connections()` closes the idle ones at once, and the busy ones when they come back"""
    pool = make_pool()
    idle, busy = await pool.acquire(), await pool.acquire()
    await pool.release(idle)
    pool.expire_connections()
    assert (idle.state, busy.state) == (State.CLOSED, State.BUSY)
    await pool.release(busy)
    assert busy.state is State.CLOSED


async def test_the_maximum(server: Server, make_pool: MakePool) -> None:
    """At `max_connections` an `acquire` raises or waits, and the server sees no more sockets"""
    pool = make_pool(max_connections=2)

    async def borrow() -> None:
        async with pool.get_connection(timeout=None) as connection:
            assert await echoes(connection)

    await asyncio.gather(*(borrow() for _ in range(20)))
    await pool.acquire()
    await pool.acquire()
    with pytest.raises(ConnectionPoolExhaustedError):
        await pool.acquire()
    assert server.most_open == 2
