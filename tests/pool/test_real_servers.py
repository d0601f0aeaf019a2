"""The pool against two servers of different make, with and without TLS.

Proves that what goes over the wire works with aiohttp's server and with `websockets`: every kind
of message, subprotocols, compression, and that a second borrower gets the first one's socket, as
counted by the server. And that a session may be shared, and settings may be callables.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import aiohttp
import pytest
import trustme
from websockets.asyncio.server import ServerConnection, serve

from tests.conftest import MakePool, until
from tests.support.inside import wire_of
from wspool import ConnectionUnavailableError, WebsocketConnection
from wspool.testing import Server

MAX_SIZE = 8 * 2**20
SUBPROTOCOL = "reply.v2"


class Endpoint(NamedTuple):
    """A server that echoes; `handshakes` has one entry, its subprotocol, per handshake."""

    uri: str
    handshakes: list[str | None]


class Tls(NamedTuple):
    server: ssl.SSLContext
    client: ssl.SSLContext


@pytest.fixture(scope="module")
def tls() -> Tls:
    """Contexts for a server with a certificate of its own authority, and for clients of it."""
    authority = trustme.CA()
    contexts = Tls(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context())
    authority.issue_cert("127.0.0.1").configure_cert(contexts.server)
    authority.configure_trust(contexts.client)
    return contexts


@pytest.fixture(params=["ws", "wss"])
def security(request: pytest.FixtureRequest, tls: Tls) -> Tls | None:
    return tls if request.param == "wss" else None


@pytest.fixture(params=["aiohttp", "websockets"])
async def endpoint(request: pytest.FixtureRequest, security: Tls | None) -> AsyncIterator[Endpoint]:
    context = security and security.server
    handshakes: list[str | None] = []
    if request.param == "aiohttp":
        options: dict[str, Any] = {"protocols": (SUBPROTOCOL,), "max_msg_size": MAX_SIZE}
        async with Server(ssl_context=context, **options) as server:
            answer = server.handler

            async def count_and_answer(peer: Any) -> None:
                handshakes.append(peer.websocket.ws_protocol)
                await answer(peer)

            server.handler = count_and_answer
            yield Endpoint(server.uri, handshakes)
    else:

        async def echo(peer: ServerConnection) -> None:
            handshakes.append(peer.subprotocol)
            async for message in peer:
                await peer.send(message)

        # Without a subprotocol in common `websockets` would refuse clients that ask for none.
        async with serve(
            echo,
            "127.0.0.1",
            0,
            ssl=context,
            max_size=MAX_SIZE,
            subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]
            select_subprotocol=lambda _, offered: SUBPROTOCOL if offered else None,  # type: ignore
        ) as listener:
            port = next(iter(listener.sockets)).getsockname()[1]
            scheme = "wss" if security else "ws"
            yield Endpoint(f"{scheme}://127.0.0.1:{port}/", handshakes)


@pytest.fixture
def options(endpoint: Endpoint, security: Tls | None) -> dict[str, Any]:
    """What a pool to the endpoint needs."""
    return {"uri": endpoint.uri} | ({"ssl": security.client} if security else {})


async def ask(connection: WebsocketConnection, message: str | bytes) -> None:
    """Send a message and take its echo, which is equal, and of the same type."""
    await connection.send(message)
    reply = await connection.recv()
    assert type(reply) is type(message)
    assert reply == message


@pytest.mark.parametrize(
    "message",
    [
        pytest.param("grüße 🙂", id="text"),
        pytest.param(bytes(range(256)), id="binary"),
        pytest.param("", id="empty"),
        pytest.param("ü" * (3 * 2**19), id="3 MiB of text"),
        pytest.param(bytes(range(256)) * (3 * 2**12), id="3 MiB"),
    ],
)
@pytest.mark.parametrize("compress", [0, 15], ids=["plain", "deflated"])
async def test_any_message_goes_both_ways_for_two_borrowers_of_one_socket(
    endpoint: Endpoint,
    options: dict[str, Any],
    make_pool: MakePool,
    message: str | bytes,
    compress: int,
) -> None:
    pool = make_pool(compress=compress, **options)
    async with pool.get_connection() as first:
        await ask(first, message)
        assert bool(first.websocket.compress) is bool(compress)
    async with pool.get_connection() as second:
        assert second.id == first.id
        assert second.reused
        await ask(second, message)
    assert len(endpoint.handshakes) == 1


async def test_a_subprotocol_is_agreed_on_once_for_all_borrowers(
    endpoint: Endpoint, options: dict[str, Any], make_pool: MakePool
) -> None:
    pool = make_pool(protocols=("reply.v3", SUBPROTOCOL), **options)
    for _ in range(2):
        async with pool.get_connection() as connection:
            assert connection.websocket.protocol == SUBPROTOCOL
            await ask(connection, "hello")
    assert endpoint.handshakes == [SUBPROTOCOL]


async def test_the_pings_of_either_side_are_answered(
    endpoint: Endpoint, options: dict[str, Any], make_pool: MakePool
) -> None:
    pool = make_pool(**options)
    async with pool.get_connection() as connection:
        assert await connection.ping() >= 0
        await ask(connection, "after the ping")
    assert len(endpoint.handshakes) == 1


async def test_closing_the_pool_closes_the_sockets_in_order(
    endpoint: Endpoint, options: dict[str, Any], make_pool: MakePool
) -> None:
    """The server answers the CLOSE with its code; nothing is aborted."""
    pool = make_pool(warmup_connections=3, **options)
    await pool.start()
    connections = pool.connections
    assert len(connections) == 3
    await pool.close_all()
    assert [wire_of(connection).websocket.close_code for connection in connections] == [1000] * 3
    assert len(endpoint.handshakes) == 3


async def test_a_certificate_that_cannot_be_verified_is_tried_once(
    tls: Tls, make_pool: MakePool
) -> None:
    # The server's side of the broken handshake is reported to the loop, in debug mode.
    loop = asyncio.get_running_loop()
    complaints: list[str] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context["message"]))
    async with Server(ssl_context=tls.server) as server:
        pool = make_pool(uri=server.uri)
        with pytest.raises(ConnectionUnavailableError) as caught:
            await pool.acquire()
        assert caught.value.attempts == 1
        assert isinstance(caught.value.__cause__, aiohttp.ClientConnectorCertificateError)
        assert not server.requests
    assert set(complaints) <= {"Error on transport creation for incoming connection"}


# The session.


async def test_a_shared_session_is_used_and_not_closed(server: Server, make_pool: MakePool) -> None:
    async with aiohttp.ClientSession(headers={"X-Session": "shared"}) as session:
        pool = make_pool(session=session)
        async with pool.get_connection() as connection:
            await ask(connection, "hello")
        await pool.close_all()
        assert server.requests[0].headers["X-Session"] == "shared"
        assert not session.closed
        await until(lambda: not server.open, "the server has lost the pool's connection")
        # It still works for its owner.
        async with session.ws_connect(server.uri) as websocket:
            await websocket.send_str("#n")
            assert await websocket.receive_str() == "2"


async def test_the_pools_own_session_is_closed_with_it(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[aiohttp.ClientSession] = []
    close = aiohttp.ClientSession.close

    async def closing(session: aiohttp.ClientSession) -> None:
        closed.append(session)
        await close(session)

    monkeypatch.setattr(aiohttp.ClientSession, "close", closing)
    pool = make_pool()
    async with pool.get_connection() as connection:
        await ask(connection, "hello")
    assert not closed
    await pool.close_all()
    await pool.close_all()
    assert len(closed) == 1
    assert closed[0].closed


@pytest.mark.parametrize("name", ["limit", "limit_per_host"])
async def test_a_connector_with_too_few_places_is_refused_at_start(
    server: Server, make_pool: MakePool, name: str
) -> None:
    """The error names the limit, the setting to change and the value that it needs."""
    places: dict[str, Any] = {"limit": 0, name: 2}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(**places)) as session:
        pool = make_pool(session=session, max_connections=3)
        with pytest.raises(ValueError) as caught:
            await pool.start()
        for part in (f"{name}=2", f"TCPConnector({name}=…)", "max_connections=3"):
            assert part in str(caught.value)
        assert not pool.is_started
        with pytest.raises(ValueError):
            await pool.acquire()
        assert not server.requests


@pytest.mark.parametrize("name", ["limit", "limit_per_host"])
async def test_a_connector_with_no_place_to_spare_is_a_warning_to_the_caller(
    make_pool: MakePool, name: str
) -> None:
    places: dict[str, Any] = {"limit": 0, name: 2}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(**places)) as session:
        pool = make_pool(session=session, max_connections=2)
        with pytest.warns(UserWarning, match=f"{name}=2") as caught:
            await pool.start()
        assert [warning.filename for warning in caught] == [__file__]
        async with pool.get_connection() as first, pool.get_connection() as second:
            await ask(first, "first")
            await ask(second, "second")
        await pool.close_all()


@pytest.mark.parametrize("limit", [0, 3])
async def test_a_connector_with_places_to_spare_is_fine(
    server: Server, make_pool: MakePool, limit: int
) -> None:
    connector = aiohttp.TCPConnector(limit=limit, limit_per_host=limit)
    async with aiohttp.ClientSession(connector=connector) as session:
        pool = make_pool(session=session, max_connections=2, warmup_connections=2)
        await pool.start()
        assert len(server.requests) == 2
        await pool.close_all()


async def test_resize_checks_the_connector_again(make_pool: MakePool) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=5)) as session:
        pool = make_pool(session=session, max_connections=2)
        await pool.start()
        with pytest.raises(ValueError, match="limit=5"):
            pool.resize(6)
        pool.resize(4)
        await pool.close_all()


# Settings that are asked anew.

soon_again = pytest.mark.parametrize("waits", [(0.01,)], ids=["soon again"])
"""A dial that has failed is tried again in a hundredth of a second."""


def plain(template: str) -> Callable[[], str]:
    """Return a callable that gives the template with 1, 2, … at its calls."""
    calls: list[None] = []

    def fresh() -> str:
        calls.append(None)
        return template.format(len(calls))

    return fresh


def asynchronous(template: str) -> Callable[[], Any]:
    fresh = plain(template)

    async def fresh_later() -> str:
        await until(lambda: True, "it is somebody else's turn")
        return fresh()

    return fresh_later


@soon_again
@pytest.mark.parametrize("kind", [plain, asynchronous])
async def test_a_callable_uri_is_called_for_every_attempt(
    server: Server,
    make_pool: MakePool,
    kind: Callable[[str], Callable[[], Any]],
) -> None:
    server.refuse(503)
    pool = make_pool(uri=kind(f"{server.uri}?signature={{}}"))
    async with pool.get_connection() as first, pool.get_connection() as second:
        assert [request.query["signature"] for request in server.requests] == ["1", "2", "3"]
        assert [str(c.uri)[-1] for c in (first, second)] == ["2", "3"]


@soon_again
@pytest.mark.parametrize("kind", [plain, asynchronous])
async def test_callable_headers_are_called_for_every_attempt(
    server: Server,
    make_pool: MakePool,
    kind: Callable[[str], Callable[[], Any]],
) -> None:
    server.refuse(503)
    token = kind("Bearer {}")

    async def headers() -> dict[str, str]:
        value = token()
        return {"Authorization": value if isinstance(value, str) else await value}

    def plain_headers() -> dict[str, str]:
        return {"Authorization": token()}

    pool = make_pool(headers=plain_headers if kind is plain else headers)
    async with pool.get_connection() as first, pool.get_connection() as second:
        tokens = [request.headers["Authorization"] for request in server.requests]
        assert tokens == ["Bearer 1", "Bearer 2", "Bearer 3"]
        assert [c.headers["Authorization"] for c in (first, second)] == tokens[1:]


async def test_headers_in_a_mapping_are_read_at_each_dial(
    server: Server, make_pool: MakePool
) -> None:
    headers = {"Authorization": "Bearer old"}
    pool = make_pool(headers=headers)
    async with pool.get_connection():
        headers["Authorization"] = "Bearer new"
        async with pool.get_connection():
            tokens = [request.headers["Authorization"] for request in server.requests]
            assert tokens == ["Bearer old", "Bearer new"]
