"""What users write, for type checkers: it is never run, and both must take it without a complaint.

`assert_type` says what a checker has to know. A comment that lets it ignore an error says what it
has to refuse: it warns of one that is not needed.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable
from contextlib import AbstractAsyncContextManager
from typing import Any, assert_type

import aiohttp
from aiohttp import web
from opentelemetry.metrics import MeterProvider
from prometheus_client import CollectorRegistry

from wspool import (
    ACQUIRE_TIMEOUT,
    BlockingWebsocketConnection,
    BlockingWebsocketConnectionPool,
    BlockingWebsocketStream,
    BorrowerSnapshot,
    CloseReason,
    ConnectionClosedError,
    ConnectionPoolTimeoutError,
    ConnectionSnapshot,
    ConnectionUnavailableError,
    ConnectOptions,
    Control,
    DrainConditionCallback,
    GroupSnapshot,
    Headers,
    Hook,
    Listener,
    MemberSnapshot,
    PendingConnection,
    PoolSnapshot,
    State,
    Stats,
    StreamOverflowError,
    Transition,
    Trouble,
    Uri,
    WaiterSnapshot,
    WebsocketConnection,
    WebsocketConnectionPool,
    WebsocketError,
    WebsocketPools,
    WebsocketStream,
    debug,
    events,
    opentelemetry,
    prometheus,
)
from wspool.pytest_plugin import WebsocketRecording
from wspool.testing import Peer, PeerStream, Server, StreamHandler, Streams, record, replay


async def fresh_uri() -> str:
    return "wss://example.com/"


async def fresh_headers() -> dict[str, str]:
    return {"Authorization": "Bearer …"}


async def log_in(connection: WebsocketConnection) -> None:
    await connection.send_json({"type": "login"})


async def keep_alive(connection: WebsocketConnection) -> object:
    return await connection.recv()


def is_last(message: str | bytes) -> bool:
    return "completed" in str(message)


def keep(connection: WebsocketConnection, message: str | bytes) -> None: ...


is_fine: DrainConditionCallback = is_last


def make(session: aiohttp.ClientSession) -> list[WebsocketConnectionPool]:
    return [
        WebsocketConnectionPool(uri="wss://example.com/", headers={"X-Key": "…"}, heartbeat=20.0),
        WebsocketConnectionPool(uri=lambda: "wss://example.com/", headers=lambda: {"X-Key": "…"}),
        WebsocketConnectionPool(
            uri=fresh_uri,
            headers=fresh_headers,
            session=session,
            acquire_timeout=None,
            min_idle=2,
            max_lifetime=600,
            keepalive=keep_alive,
            keepalive_interval=8.0,
            on_connect=log_in,
            on_release=log_in,
            drain_until=is_last,
            drain_condition=is_fine,
            on_drained=keep,
        ),
        WebsocketConnectionPool(
            "wss://example.com/", protocols=["v1"], ssl=False, params={"a": "b"}
        ),
        WebsocketConnectionPool("wss://example.com/", {}),  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
        WebsocketConnectionPool("wss://example.com/", max_conections=3),  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
        WebsocketConnectionPool("wss://example.com/", heartbeat="5"),  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        WebsocketConnectionPool("wss://example.com/", protocols=5),  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        WebsocketConnectionPool("wss://example.com/", ssl="x"),  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        WebsocketConnectionPool(uri="wss://example.com/", idle_timeout="60"),  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        WebsocketConnectionPool(uri="wss://example.com/", on_connect=is_last),  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    ]


async def ask(connection: WebsocketConnection, question: str, times: int) -> int:
    await connection.send(question * times)
    return len(await connection.recv())


def ask_in_a_thread(connection: BlockingWebsocketConnection, question: str) -> str | bytes:
    connection.send(question)
    return connection.recv()


async def borrow(pool: WebsocketConnectionPool) -> None:
    async with pool as entered:
        assert_type(entered, WebsocketConnectionPool)
    assert_type(await pool.start(), None)
    async with pool.get_connection() as connection:
        assert_type(connection, WebsocketConnection)
    async with pool.get_new_connection(timeout=None) as connection:
        assert_type(connection, WebsocketConnection)
    loan: AbstractAsyncContextManager[WebsocketConnection] = pool.get_connection(timeout=1.0)
    async with loan:
        pass
    assert_type(pool.get_connection(), WebsocketConnection)
    assert_type(pool.get_new_connection(), WebsocketConnection)
    connection = await pool.acquire(timeout=5)
    assert_type(connection, WebsocketConnection)
    assert_type(await pool.acquire_new(), WebsocketConnection)
    assert_type(await pool.release(connection, force_remove=True), None)
    await pool.release(connection, True)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    assert_type(await pool.run(ask, "question", 2), int)
    assert_type(await pool.run(WebsocketConnection.ping, timeout=None), float)
    await pool.run(ask, "question", times=2)  # type: ignore[call-arg, arg-type] # pyright: ignore[reportCallIssue]
    await pool.run(ask, 2, "question")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    await pool.run(ask, "question")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    await pool.run(is_last, "question")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    await pool.acquire(5)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    pool.get_connection(5)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    await pool.acquire(timeout="5")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    pool.get_connection(timeout="5")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    await pool.get_connection()  # type: ignore[misc] # pyright: ignore[reportGeneralTypeIssues]
    async with pool.acquire():  # type: ignore[attr-defined] # pyright: ignore[reportGeneralTypeIssues]
        pass
    with pool.get_connection():  # type: ignore[attr-defined] # pyright: ignore[reportGeneralTypeIssues]
        pass
    with pool:  # type: ignore[attr-defined] # pyright: ignore[reportGeneralTypeIssues]
        pass
    for _ in connection:  # type: ignore[attr-defined] # pyright: ignore[reportGeneralTypeIssues, reportUnknownVariableType]
        pass
    pool.release(connection)  # type: ignore[unused-coroutine] # pyright: ignore[reportUnusedCoroutine]
    pool.acquire()  # type: ignore[unused-coroutine] # pyright: ignore[reportUnusedCoroutine]
    pool.close()  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    assert_type(await pool.aclose(), None)
    assert_type(pool.resize(10), None)
    assert_type(pool.expire_connections(), None)
    assert_type(await pool.close_all(timeout=None), None)


async def talk(connection: WebsocketConnection) -> None:
    assert_type(await connection.send("text"), None)
    await connection.send(b"bytes")
    await connection.send(1)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    await connection.send_json({"a": 1})
    assert_type(await connection.recv(), str | bytes)
    assert_type(await connection.recv_json(), Any)
    assert_type(await connection.ping(), float)
    async for message in connection:
        assert_type(message, str | bytes)
    connection.context = {"conversation": 1}
    connection.rtt = 0.1  # type: ignore[misc] # pyright: ignore[reportAttributeAccessIssue]
    assert_type(await connection.close(1000, "bye"), None)


async def share(pool: WebsocketConnectionPool) -> None:
    async with pool.get_stream(timeout=1.0) as stream:
        assert_type(stream, WebsocketStream)
        stream.claim("ctx-1")
        assert_type(await stream.send_json({"id": stream.claim()}), None)
        assert_type(await stream.send("text"), None)
        assert_type(await stream.recv(), str | bytes)
        assert_type(await stream.recv_json(), Any)
        assert_type(await stream.ping(), float)
        async for message in stream:
            assert_type(message, str | bytes)
        assert_type(stream.connection, WebsocketConnection)
        assert_type(stream.state, State)
        assert_type(stream.number, int)
        assert_type(stream.slot, int)
        assert_type(stream.keys, tuple[Hashable, ...])
        stream.outstanding = 2
        stream.slot = 1  # type: ignore[misc] # pyright: ignore[reportAttributeAccessIssue]
    assert_type(await pool.release_stream(await pool.acquire_stream(), force_remove=True), None)
    try:
        stream.claim()
    except StreamOverflowError as error:
        assert_type(error.message, str)


def share_in_threads(pool: BlockingWebsocketConnectionPool) -> None:
    with pool.get_stream(timeout=1.0) as stream:
        assert_type(stream, BlockingWebsocketStream)
        stream.send_json({"id": stream.claim()}, timeout=1.0)
        assert_type(stream.recv(timeout=1.0), str | bytes)
        for message in stream:
            assert_type(message, str | bytes)
    pool.release_stream(pool.acquire_stream())


def look(connection: WebsocketConnection) -> None:
    assert_type(connection.id, int)
    assert_type(connection.uri, str)
    assert_type(connection.headers, dict[str, str])
    assert_type(connection.subprotocol, str | None)
    assert_type(connection.state, State)
    assert_type(connection.is_connected, bool)
    assert_type(connection.is_busy, bool)
    assert_type(connection.is_draining, bool)
    assert_type(connection.created_at, float)
    assert_type(connection.last_activity, float)
    assert_type(connection.uses, int)
    assert_type(connection.reused, bool)
    assert_type(connection.borrowed_at, str | None)
    assert_type(connection.rtt, float | None)
    assert_type(connection.history, tuple[Transition, ...])
    assert_type(connection.history[-1].at, float)
    assert_type(connection.context, Any)
    assert_type(connection.close_code, int | None)
    assert_type(connection.close_reason, str)
    assert_type(connection.cause, BaseException | None)
    assert_type(connection.websocket, aiohttp.ClientWebSocketResponse)


async def wrap(pool: WebsocketConnectionPool, timeout: float | None = ACQUIRE_TIMEOUT) -> None:
    async with pool.get_connection(timeout=timeout):
        pass


def configure(pool: WebsocketConnectionPool | BlockingWebsocketConnectionPool) -> None:
    assert_type(pool.max_connections, int)
    assert_type(pool.acquire_timeout, float | None)
    assert_type(pool.on_connect, Hook | None)
    assert_type(pool.uri, Uri)
    assert_type(pool.headers, Headers)
    assert_type(pool.control, Control | None)
    pool.max_connections = 5  # type: ignore[assignment] # pyright: ignore[reportAttributeAccessIssue]
    options: ConnectOptions = {"heartbeat": 20.0, "protocols": ["v1"]}
    hook: Hook = log_in
    listener: Listener = print
    another = WebsocketConnectionPool("wss://example.com/", on_connect=hook, **options)
    another.subscribe(listener)
    WebsocketConnectionPool("wss://example.com/", on_connect=lambda one: one.send("hello"))
    WebsocketConnectionPool("wss://example.com/", on_connect=lambda one: None)  # type: ignore[arg-type,return-value] # pyright: ignore[reportArgumentType]


def look_at_the_pool(pool: WebsocketConnectionPool) -> None:
    assert_type(pool.name, str)
    assert_type(pool.is_started, bool)
    assert_type(pool.is_closed, bool)
    assert_type(pool.max_connections, int)
    assert_type(pool.total_connections, int)
    assert_type(pool.available_connections, int)
    assert_type(pool.busy_connections, int)
    assert_type(pool.pending_connections, int)
    assert_type(pool.waiters, int)
    assert_type(pool.connections, tuple[WebsocketConnection, ...])
    assert_type(pool.state_diagram(), str)
    assert_type(pool.stats, Stats)
    assert_type(pool.stats.closes, Counter[str])
    assert_type(pool.stats.to_dict(), dict[str, Any])
    picture = pool.snapshot()
    assert_type(picture, PoolSnapshot)
    assert_type(pool.trouble, Trouble | None)
    assert_type(pool.learned_limit, int | None)
    assert_type(picture.connections, tuple[ConnectionSnapshot, ...])
    assert_type(picture.waiting, tuple[WaiterSnapshot, ...])
    assert_type(picture.connections[0].borrower, BorrowerSnapshot | None)
    assert_type(picture.to_dict(), dict[str, Any])
    picture.name = "another"  # type: ignore[misc] # pyright: ignore[reportAttributeAccessIssue]


def listen(pool: WebsocketConnectionPool) -> None:
    def tell(event: events.Event) -> None:
        if isinstance(event, events.ConnectionClosed):
            assert_type(event.connection_id, int)
            assert_type(event.reason, str)
            assert_type(event.age, float)
            assert event.reason == CloseReason.IDLE

    assert_type(pool.subscribe(tell), Callable[[], None])


async def fail(pool: WebsocketConnectionPool) -> None:
    try:
        await pool.acquire()
    except ConnectionPoolTimeoutError as error:
        time_is_up: TimeoutError = error
        print(time_is_up)
    except ConnectionUnavailableError as error:
        assert_type(error.kind, str)
        assert_type(error.status, int | None)
        assert_type(error.attempts, int)
        assert_type(error.retry_after, float | None)
    except ConnectionClosedError as error:
        assert_type(error.code, int | None)
        assert_type(error.reason, str)
    except WebsocketError as error:
        assert_type(error.message, str)
        assert_type(error.default_message, str)


async def drain(connection: WebsocketConnection) -> None:
    pending = PendingConnection(connection, drain_timeout=1.0, drain_condition=None)
    assert_type(pending.connection, WebsocketConnection)
    assert_type(pending.drain_timeout, float)
    assert_type(pending.drain_condition, DrainConditionCallback | None)
    assert_type(pending.created_at, float)
    assert_type(pending.drain_task, asyncio.Task[None] | None)
    assert_type(pending.pending_id, str)
    assert_type(await pending.mark_completed(), bool)


def export(pool: WebsocketConnectionPool, app: web.Application, provider: MeterProvider) -> None:
    registry = CollectorRegistry()
    assert_type(prometheus.register(pool, registry), Callable[[], None])
    assert_type(prometheus.PoolCollector(pool).add(pool), Callable[[], None])
    assert_type(opentelemetry.instrument(pool), Callable[[], None])
    assert_type(opentelemetry.instrument(pool, provider), Callable[[], None])
    key = web.AppKey("pool", WebsocketConnectionPool)
    assert_type(debug.setup(app, pool, key, prefix="/debug"), web.Application)
    debug.setup(app, pool, allowed_hosts={"debug.example.org"}, history=True)
    served: Callable[[dict[str, Any], Any, Any], Awaitable[None]] = debug.asgi(pool, "key")
    del served
    assert_type(prometheus.register(pool, registry, histograms=False), Callable[[], None])


def borrow_in_a_thread() -> None:
    with BlockingWebsocketConnectionPool(
        uri="wss://example.com/", max_connections=5, on_connect=log_in
    ) as pool:
        with pool.get_connection(timeout=1.0) as connection:
            assert_type(connection, BlockingWebsocketConnection)
            connection.send("hello")
            assert_type(connection.recv(timeout=1.0), str | bytes)
            assert_type(connection.ping(), float)
            assert_type(connection.context, Any)
            connection.context = "mine"
            for message in connection:
                assert_type(message, str | bytes)
        assert_type(pool.acquire(), BlockingWebsocketConnection)
        assert_type(pool.run(ask_in_a_thread, "question", timeout=1.0), str | bytes)
        pool.run(ask_in_a_thread)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        assert_type(pool.snapshot(), PoolSnapshot)
        assert_type(pool.trouble, Trouble | None)
    BlockingWebsocketConnectionPool(uri="wss://example.com/", session=aiohttp.ClientSession)
    with pool.acquire():  # type: ignore[attr-defined] # pyright: ignore[reportGeneralTypeIssues]
        pass
    pool.acquire(5)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    pool.get_connection(5)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    BlockingWebsocketConnectionPool("wss://example.com/", max_conections=3)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    BlockingWebsocketConnectionPool(url="wss://example.com/")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]


async def options_of(key: str) -> dict[str, Any]:
    return {"uri": "wss://example.com/", "headers": {"Authorization": key}}


async def use_many_pools() -> None:
    regions = {"near": {"uri": "wss://a.example/"}, "far": {"uri": "wss://b.example/"}}
    async with WebsocketPools(regions, max_connections=50, choose="first", heartbeat=5) as pools:
        async with pools.get_connection(prefer="mine") as connection:
            assert_type(connection, WebsocketConnection)
        connection = await pools.acquire("near", timeout=1.0)
        await pools.release(connection)
        pools.eject("near", 60.0)
        pools.expire_connections("far")
        pools.remove("far")
        assert_type(pools["near"], WebsocketConnectionPool)
        picture = pools.snapshot()
        assert_type(picture, GroupSnapshot)
        assert_type(picture.members, tuple[MemberSnapshot, ...])
        assert_type(pools.stats, Stats)
        assert_type(pools.trouble, Trouble | None)
        pools.subscribe(print)()
    WebsocketPools(options_of, max_connections=50)
    WebsocketPools(regions, max_connections=5, choose="best")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


async def play_the_server_of_streams() -> None:
    async def answer(stream: PeerStream) -> None:
        await stream.expect({"type": "login"})
        assert_type(await stream.recv(), str | bytes)
        assert_type(stream.peer, Peer)
        assert_type(stream.key, Hashable)
        async for message in stream:
            assert_type(message, str | bytes)

    streams = Streams(answer, ("params.subscription", "id"), max_streams=5)
    async with Server(streams):
        assert_type(streams.most_open, int)
        assert_type(streams.refused, int)
    handler: StreamHandler = answer
    del handler


async def play_the_server() -> None:
    async def greet(peer: Peer) -> None:
        await peer.expect({"type": "login"})
        assert_type(await peer.recv(), str | bytes)

    async with Server(greet) as server:
        assert_type(server.uri, str)
        server.refuse(401, times=2)


def without_digits(message: str | bytes) -> str | bytes:
    return message if isinstance(message, bytes) else "".join(c for c in message if c.isalpha())


async def record_and_replay(websocket_recording: WebsocketRecording) -> None:
    async with Server(record("wss://example.com/", "turns.jsonl", headers={"X-Key": "…"})):
        pass
    for script in (
        record(lambda: "wss://example.com/", "turns.jsonl", headers=dict, scrub=without_digits),
        replay("turns.jsonl", ignore=("id",), pace=1.0, strict=False, scrub=without_digits),
    ):
        async with Server(script) as server:
            assert_type(server.uri, str)
    async with websocket_recording("wss://example.com/", ignore=["id"]) as server:
        assert_type(server, Server)
    replay("turns.jsonl", ignore=1)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    record("wss://example.com/")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
