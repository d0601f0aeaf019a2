"""No header, user-info or query value comes out anywhere, whoever repeats it to the pool."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import socket
import ssl
import struct
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
import trustme
from aiohttp import web
from yarl import URL

from tests.conftest import MakePool, until
from tests.support.inside import queues_of
from wspool import (
    ConnectionUnavailableError,
    WebsocketConnection,
    WebsocketConnectionPool,
    WebsocketError,
)
from wspool._connection.loan import view_of
from wspool._pool.dialing import Dial
from wspool.testing import Peer, Server

pytestmark = pytest.mark.usefixtures("no_backoff")

CANARY = "canary-7f3a9d51c0b8e26d"
"""The secret. No name of a test, a header or a parameter contains it."""

ENCODED = base64.b64encode(f"user:{CANARY}".encode()).decode()
"""As user-info arrives at the server."""

JWT = f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.{CANARY}"
"""A token whose signature is the secret."""

Options = Callable[[Server], dict[str, Any]]


async def fresh_headers() -> dict[str, str]:
    return {"Authorization": f"Bearer {CANARY}"}


def in_uri(part: str) -> Options:
    return lambda server: {"uri": server.uri.replace("ws://", "ws://" + part)}


CARRIERS: dict[str, Options] = {
    "header": lambda server: {"headers": {"X-Api-Key": CANARY}},
    "bearer": lambda server: {"headers": {"Authorization": f"Bearer {CANARY}"}},
    "fresh header": lambda server: {"headers": fresh_headers},
    "cookie": lambda server: {"headers": {"Cookie": f"theme=dark; session={CANARY}"}},
    "two headers": lambda server: {"headers": {"X-Env": CANARY[:6], "X-Key": CANARY}},
    "user-info": in_uri(f"user:{CANARY}@"),
    "query": lambda server: {"uri": f"{server.uri}?token={CANARY}&plain=1"},
    "escaped query": lambda server: {"uri": f"{server.uri}?token={quote(CANARY + ' +/ü')}"},
    "fresh uri": lambda server: {"uri": lambda: f"{server.uri}?token={CANARY}"},
    "basic": lambda server: {"headers": {"Authorization": f"Basic {ENCODED}"}},
    "token": lambda server: {"headers": {"Authorization": f"Bearer {JWT}"}},
    "auth": lambda server: {"auth": aiohttp.BasicAuth("user", CANARY)},
    "protocol": lambda server: {"protocols": ["realtime", f"key.{CANARY}"]},
    "params": lambda server: {"params": {"token": CANARY}},
    "params as pairs": lambda server: {"params": [("token", CANARY), ("plain", "1")]},
}
"""How the secret gets to the server."""

by_carrier = pytest.mark.parametrize("carrier", CARRIERS)


def repeated(request: web.Request) -> Iterator[str]:
    """Give what a server may quote: each header, cookie and query value, whole and in part."""
    for name in ("X-Api-Key", "X-Key", "Authorization", "Cookie", "Sec-WebSocket-Protocol"):
        if name in request.headers:
            yield request.headers[name]
            yield request.headers[name].split()[-1]
            yield request.headers[name].rpartition("=")[2]
            yield request.headers[name].rpartition(".")[2]
    yield f"cut off: {CANARY[:14]}"
    yield f"ends with {CANARY[-14:]}"
    yield base64.b64encode(CANARY.encode()).decode()
    yield quote(f"{CANARY}")
    yield json.dumps({"key": CANARY, "user": f"user:{CANARY}"})
    if request.query_string:
        yield request.raw_path
        yield request.query_string
        yield request.raw_path.split("?")[1].split("&")[0].partition("=")[2]
        yield request.query["token"]


QUOTES = 9
"""How many ways of quoting there are to try for any carrier."""


def quoted(request: web.Request, number: int) -> str:
    ways = list(dict.fromkeys(repeated(request)))
    return ways[number % len(ways)]


class Ears:
    """Hears all that a pool says: log, warnings, events; and looks at all that it shows."""

    def __init__(self, log: pytest.LogCaptureFixture) -> None:
        self.log = log
        self.events: list[Any] = []
        self.errors: list[BaseException] = []
        self.warnings: list[warnings.WarningMessage] = []

    def listen_to(self, pool: WebsocketConnectionPool) -> WebsocketConnectionPool:
        pool.subscribe(self.events.append)
        return pool

    def heard(self) -> Iterator[tuple[str, str]]:
        """Give each text with the name of where it is from."""
        formatter = logging.Formatter("%(name)s %(message)s")
        for record in self.log.records:
            if not record.name.startswith("aiohttp"):
                yield "log", formatter.format(record)
                yield "log", repr(record.args)
                if record.exc_info and record.exc_info[1] is not None:
                    yield from told_by(record.exc_info[1])
        for event in self.events:
            yield "event", repr(event)
        for warning in self.warnings:
            yield "warning", str(warning.message)
        for error in self.errors:
            yield from told_by(error)

    def seen(self, pool: WebsocketConnectionPool) -> Iterator[tuple[str, str]]:
        yield "repr of the pool", f"{pool!r} {pool!s} {pool._router!r} {pool._router.options!r}"
        yield "diagram", pool.state_diagram()
        yield "stats", f"{pool.stats!r} {json.dumps(pool.stats.to_dict())}"
        picture = pool.snapshot()
        yield "snapshot", f"{picture!r} {json.dumps(picture.to_dict(), ensure_ascii=False)}"
        for link in (*queues_of(pool), *queues_of(pool).gone):
            connection = view_of(link)
            yield "repr of a connection", f"{connection!r} {link!r} {link.loan!r} {link.owner!r}"
            yield "history", repr(connection.history)
            yield "reason of a close", f"{connection.close_reason} {link.how_closed()}"
            if connection.cause is not None:
                yield from told_by(connection.cause)

    def assert_no_canary(self, pool: WebsocketConnectionPool) -> None:
        texts = [*self.heard(), *self.seen(pool)]
        encoded = base64.b64encode(CANARY.encode()).decode()
        secrets = (CANARY, ENCODED, encoded, quote(CANARY), CANARY[:12], CANARY[-6:])
        leaks = [text for text in texts if any(secret in text[1] for secret in secrets)]
        assert not leaks, leaks
        frames = [where for where, _ in texts if where.startswith("locals of aiohttp")]
        assert not frames, frames


def told_by(error: BaseException) -> Iterator[tuple[str, str]]:
    """Give what an error says, its traceback and every error chained to it."""
    yield "traceback", "".join(traceback.format_exception(error))
    chain: list[BaseException | None] = [error]
    while chain:
        one = chain.pop()
        if one is not None:
            notes = getattr(one, "__notes__", [])
            yield f"{type(one).__name__}", f"{one!r} {one!s} {one.args!r} {notes!r}"
            if isinstance(one, WebsocketError):
                yield f"attributes of {type(one).__name__}", repr(vars(one))
            for frame, _ in traceback.walk_tb(one.__traceback__):
                module = frame.f_globals["__name__"]
                if module.startswith(("wspool.", "aiohttp.", "asyncio.", "yarl.")):
                    yield f"locals of {module}.{frame.f_code.co_name}", repr(frame.f_locals)
            chain += (one.__cause__, one.__context__, *getattr(one, "exceptions", ()))


@pytest.fixture
def ears(caplog: pytest.LogCaptureFixture) -> Iterator[Ears]:
    """At DEBUG, of every logger, asyncio's debug mode included."""
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ears = Ears(caplog)
        yield ears
        ears.warnings.extend(caught)


def test_the_ears_hear() -> None:
    """What is looked through is not empty: a secret in a chained error is found."""
    try:
        try:
            raise KeyError(CANARY)
        except KeyError:
            raise ValueError("other") from None
    except ValueError as error:
        found = [where for where, text in told_by(error) if CANARY in text]
    assert found == ["KeyError"]


@by_carrier
async def test_in_normal_life_nothing_is_shown(
    server: Server, make_pool: MakePool, ears: Ears, carrier: str
) -> None:
    """Borrowed, looked at, drained, waited for, released twice, resized, expired and closed."""
    pool = ears.listen_to(
        make_pool(**CARRIERS[carrier](server), max_connections=1, drain_fence=True)
    )
    async with pool.get_connection() as connection:
        sent = str(server.peers[0].request.raw_path) + repr(server.peers[0].request.headers)
        assert CANARY in sent or ENCODED in sent
        await connection.send("hello")
        ears.assert_no_canary(pool)
        for timeout in (0, 0.01):
            with pytest.raises(WebsocketError) as failed:
                await pool.acquire(timeout=timeout)
            ears.errors.append(failed.value)
    with pytest.raises(WebsocketError) as failed:
        await connection.send("not mine any more")
    ears.errors.append(failed.value)
    await pool.release(connection)
    await until(lambda: pool.available_connections, "it is drained")
    pool.expire_connections()
    await pool.close_all()
    with pytest.raises(WebsocketError) as failed:
        await pool.acquire()
    ears.errors.append(failed.value)
    ears.assert_no_canary(pool)
    assert len(ears.events) > 8


@pytest.mark.parametrize("number", range(QUOTES))
@by_carrier
async def test_a_close_that_quotes_the_secret(
    server: Server, make_pool: MakePool, ears: Ears, carrier: str, number: int
) -> None:
    """At a connection that is idle, and at one whose borrower is in recv."""

    async def refuse(peer: Peer) -> None:
        await peer.recv()
        await peer.close(4001, f"not valid: {quoted(peer.request, number)!r}")

    server.handler = refuse
    pool = ears.listen_to(make_pool(**CARRIERS[carrier](server), max_retries=1))
    async with pool.get_connection() as connection:
        await connection.send("am I welcome?")
        with pytest.raises(WebsocketError) as failed:
            await connection.recv()
        ears.errors.append(failed.value)
    assert "not valid" in connection.close_reason
    async with pool.get_connection(timeout=10) as connection:
        await connection.send("and later?")
        connection._has_sent = False
    await until(lambda: pool.stats.closes["server"] == 2, "the second is noticed")
    await pool.close_all()
    ears.assert_no_canary(pool)


@pytest.mark.parametrize("number", range(QUOTES))
@by_carrier
async def test_a_refused_handshake_that_quotes_the_secret(
    server: Server,
    make_pool: MakePool,
    ears: Ears,
    monkeypatch: pytest.MonkeyPatch,
    carrier: str,
    number: int,
) -> None:
    """In its reason phrase, its headers and its body; told to a waiter, and to the log."""

    async def refuse(request: web.Request) -> web.StreamResponse:
        text = quoted(request, number)
        header = text.encode("ascii", "replace").decode()
        return web.Response(status=503, reason=header, text=text, headers={"X-Why": header})

    monkeypatch.setattr(server, "_serve", refuse)
    await server.stop()
    await server.start()
    options = {**CARRIERS[carrier](server), "max_retries": 2}
    pool = ears.listen_to(make_pool(**options, warmup_connections=1))
    await pool.start()
    with pytest.raises(WebsocketError) as failed:
        await pool.acquire()
    ears.errors.append(failed.value)
    with pytest.raises(WebsocketError) as failed:
        await pool.acquire(timeout=5)
    ears.errors.append(failed.value)
    await pool.close_all()
    ears.assert_no_canary(pool)


@pytest.mark.parametrize("kind", ["header", "cookie", "auth"])
async def test_a_shared_session_has_secrets_of_its_own(
    server: Server, make_pool: MakePool, ears: Ears, kind: str
) -> None:
    """Quoted by a refusal's reason phrase, and by a close."""

    async def refuse(peer: Peer) -> None:
        await peer.recv()
        await peer.close(4001, f"not valid: {CANARY}")

    server.handler = refuse
    given: dict[str, Any] = {
        "header": {"headers": {"X-Api-Key": CANARY}},
        "cookie": {"cookies": {"session": CANARY}, "cookie_jar": aiohttp.CookieJar(unsafe=True)},
        "auth": {"auth": aiohttp.BasicAuth("user", CANARY)},
    }[kind]
    async with aiohttp.ClientSession(**given) as session:
        pool = ears.listen_to(make_pool(session=session, max_retries=1))
        async with pool.get_connection() as connection:
            await connection.send("am I welcome?")
            with pytest.raises(WebsocketError) as failed:
                await connection.recv()
            ears.errors.append(failed.value)
        sent = repr(server.peers[0].request.headers)
        assert CANARY in sent or ENCODED in sent
        server.refusals.append(web.Response(status=503, reason=f"not {CANARY}"))
        with pytest.raises(WebsocketError) as failed:
            await pool.acquire(timeout=10.0)
        ears.errors.append(failed.value)
        await pool.close_all()
    ears.assert_no_canary(pool)


@by_carrier
async def test_a_hook_at_the_dial_that_quotes_the_secret(
    server: Server, make_pool: MakePool, ears: Ears, carrier: str
) -> None:
    """In its error, in the cause, in the context and in a note of it."""

    async def log_in(connection: WebsocketConnection) -> None:
        request = server.peers[-1].request
        ways = list(repeated(request))
        try:
            raise KeyError(ways[0])
        except KeyError as error:
            wrong = ValueError(f"refused: {ways[-1]}")
            wrong.add_note(f"the request was {ways}")
            raise wrong from error

    pool = ears.listen_to(make_pool(**CARRIERS[carrier](server), on_connect=log_in))
    with pytest.raises(WebsocketError) as failed:
        await pool.acquire()
    ears.errors.append(failed.value)
    ears.assert_no_canary(pool)


@by_carrier
async def test_a_dial_that_breaks_down_by_a_fault_of_the_pools(
    server: Server,
    make_pool: MakePool,
    ears: Ears,
    monkeypatch: pytest.MonkeyPatch,
    carrier: str,
) -> None:
    """It happens while a refusal is put into words, which has aiohttp's frames as its context."""

    def fail(*_: object) -> None:
        raise LookupError("a fault")

    server.refusals.append(web.Response(status=401))
    monkeypatch.setattr(Dial, "_words", fail)
    pool = ears.listen_to(make_pool(**CARRIERS[carrier](server)))
    with pytest.raises(WebsocketError, match="broke down") as failed:
        await pool.acquire()
    ears.errors.append(failed.value)
    assert "LookupError: a fault" in ears.log.text
    ears.assert_no_canary(pool)


@by_carrier
async def test_a_server_that_is_not_there(
    server: Server, make_pool: MakePool, ears: Ears, carrier: str
) -> None:
    options = CARRIERS[carrier](server)
    await server.stop()
    pool = ears.listen_to(make_pool(**options, max_retries=1, warmup_connections=1))
    await pool.start()
    with pytest.raises(WebsocketError) as failed:
        await pool.acquire()
    ears.errors.append(failed.value)
    ears.assert_no_canary(pool)
    await server.start()


@by_carrier
async def test_a_dial_that_times_out(
    server: Server, make_pool: MakePool, ears: Ears, carrier: str
) -> None:
    server.delay = None
    options = {"max_retries": 1, "connection_timeout": 0.05, "acquire_timeout": 5.0}
    pool = ears.listen_to(make_pool(**CARRIERS[carrier](server), **options))
    with pytest.raises(WebsocketError) as failed:
        await pool.acquire()
    ears.errors.append(failed.value)
    ears.assert_no_canary(pool)


@pytest.mark.parametrize(
    "uri",
    [
        f"http://user:{CANARY}@localhost/?token={CANARY}",
        f"ws://user:{CANARY}@:80/",
        f"ws://[{CANARY}/",
        f"ws://localhost:{CANARY}/",
    ],
)
@pytest.mark.parametrize("is_fresh", [False, True])
async def test_a_wrong_uri_is_refused_without_quoting_it(
    ears: Ears, uri: str, is_fresh: bool
) -> None:
    """Made with it, or given it by a callable; only a path is shown, which is none here."""
    if not is_fresh:
        with pytest.raises(ValueError, match="uri is") as refused:
            WebsocketConnectionPool(uri=uri)
        # Its frames have what the caller's have.
        ears.errors.append(refused.value.with_traceback(None))
        pool = WebsocketConnectionPool(uri="ws://localhost/")
    else:
        pool = ears.listen_to(WebsocketConnectionPool(uri=lambda: uri))
        with pytest.raises(WebsocketError) as failed:
            await pool.acquire()
        ears.errors.append(failed.value)
        await pool.close_all()
    ears.assert_no_canary(pool)


async def test_an_overdue_loan_and_a_failed_listener(
    server: Server, make_pool: MakePool, ears: Ears
) -> None:
    """The warnings of the pool's own care quote no setting."""
    pool = ears.listen_to(
        make_pool(
            headers={"Authorization": f"Bearer {CANARY}"},
            uri=f"{server.uri}?token={CANARY}",
            leak_threshold=0.01,
            cleanup_interval=0.01,
        )
    )

    def listener(event: object) -> None:
        raise LookupError

    pool.subscribe(listener)
    async with pool.get_connection():
        await until(lambda: "leak_threshold" in ears.log.text, "it is warned of")
    await until(lambda: "listener" in ears.log.text, "the listener was logged")
    await asyncio.sleep(0)
    ears.assert_no_canary(pool)


class Handshakes:
    """A server that refuses each handshake, and quotes what `quoted` finds in the request."""

    def __init__(self, quoted: Callable[[web.Request], str], **answer: Any) -> None:
        self._quoted = quoted
        self._answer = answer
        self.uri = ""

    async def _refuse(self, request: web.Request) -> web.StreamResponse:
        text = self._quoted(request)
        response = web.Response(status=403, reason=text, headers={"X-Why": text})
        for name in request.cookies:
            response.del_cookie(name)
        return response

    async def __aenter__(self) -> Handshakes:
        self._runner = web.ServerRunner(web.Server(self._refuse), shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.uri = f"ws://127.0.0.1:{self._runner.addresses[0][1]}/"
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._runner.cleanup()


async def sign(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    request.headers["X-Signed"] = CANARY
    return await handler(request)


async def test_a_cookie_that_the_refusal_takes_away(make_pool: MakePool, ears: Ears) -> None:
    """By the time that the error is written, the session has forgotten it."""
    async with Handshakes(lambda request: request.cookies.get("session", "none")) as refusing:
        jar = aiohttp.CookieJar(unsafe=True)
        jar.update_cookies({"session": CANARY}, URL(refusing.uri).with_scheme("http"))
        async with aiohttp.ClientSession(cookie_jar=jar) as session:
            pool = ears.listen_to(make_pool(uri=refusing.uri, session=session))
            with pytest.raises(ConnectionUnavailableError) as failed:
                await pool.acquire()
            await pool.close_all()
            assert not jar.filter_cookies(URL(refusing.uri))
    assert failed.value.headers["X-Why"] == "…"
    ears.errors.append(failed.value)
    ears.assert_no_canary(pool)


@pytest.mark.parametrize("when", ["refused", "closed"])
async def test_a_header_that_a_middleware_adds(
    server: Server, make_pool: MakePool, ears: Ears, when: str
) -> None:
    """What was really sent is known from the request."""

    async def close(peer: Peer) -> None:
        await peer.close(4001, f"not valid: {peer.request.headers['X-Signed']}")

    server.handler = close
    async with (
        Handshakes(lambda request: request.headers["X-Signed"]) as refusing,
        aiohttp.ClientSession(middlewares=(sign,)) as session,
    ):
        uri = refusing.uri if when == "refused" else server.uri
        pool = ears.listen_to(make_pool(uri=uri, session=session))
        with pytest.raises(WebsocketError) as failed:
            await (await pool.acquire()).recv()
        await pool.close_all()
    assert "…" in f"{failed.value} {vars(failed.value)}"
    ears.errors.append(failed.value)
    ears.assert_no_canary(pool)


@pytest.mark.parametrize("scheme", ["ws", "wss"])
async def test_a_proxy_of_the_environments(
    make_pool: MakePool, ears: Ears, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    async with Handshakes(lambda request: request.headers["Proxy-Authorization"]) as refusing:
        proxy = refusing.uri.replace("ws://", f"http://user:{CANARY}@")
        monkeypatch.setenv(f"{scheme}_proxy", proxy)
        async with aiohttp.ClientSession(trust_env=True) as session:
            pool = ears.listen_to(make_pool(uri=f"{scheme}://server.example/", session=session))
            with pytest.raises(ConnectionUnavailableError) as failed:
                await pool.acquire()
            await pool.close_all()
    assert failed.value.status == 403
    ears.errors.append(failed.value)
    ears.assert_no_canary(pool)


async def test_a_callable_whose_own_request_is_refused(make_pool: MakePool, ears: Ears) -> None:
    """As where a token is fetched, with a secret that the pool was never given."""
    async with (
        Handshakes(lambda request: "no") as login,
        aiohttp.ClientSession(raise_for_status=True) as session,
    ):
        uri = login.uri.replace("ws:", "http:")

        async def token() -> dict[str, str]:
            try:
                await session.post(f"{uri}?secret={CANARY}", headers={"X-Client": CANARY})
            except aiohttp.ClientError as error:
                raise LookupError("cannot log in") from error
            raise AssertionError

        pool = ears.listen_to(make_pool(uri="ws://localhost/", headers=token))
        with pytest.raises(ConnectionUnavailableError, match="cannot log in") as failed:
            await pool.acquire()
        await pool.close_all()
    ears.errors.append(failed.value)
    ears.assert_no_canary(pool)


async def test_a_send_that_fails_keeps_no_frame_that_has_the_message(
    make_pool: MakePool,
) -> None:
    """Where the first message logs in, aiohttp's frames have it."""
    pool = make_pool()
    async with pool.get_connection() as connection:
        wire = connection._link.wire
        assert wire is not None
        wire.transport.abort()
        with pytest.raises(WebsocketError) as failed:
            await connection.send(CANARY)
    assert isinstance(connection.cause, ConnectionError)
    told = [*told_by(failed.value), *told_by(connection.cause)]
    assert [where for where, _ in told if where.startswith("locals of wspool")]
    assert not [where for where, _ in told if where.startswith("locals of aiohttp")]


async def test_a_message_that_breaks_the_protocol_is_not_quoted(
    server: Server, make_pool: MakePool, ears: Ears
) -> None:
    """Its bytes are in the cause of aiohttp's error."""

    async def break_it(peer: Peer) -> None:
        await peer.recv()
        message = f"not valid: {CANARY}".encode() + b"\xff"
        assert peer.request.transport is not None
        peer.request.transport.write(bytes([0x81, len(message)]) + message)
        await peer.recv()

    server.handler = break_it
    pool = ears.listen_to(make_pool())
    async with pool.get_connection() as connection:
        await connection.send("hello")
        with pytest.raises(WebsocketError) as failed:
            await connection.recv()
    assert failed.value.code == 1007
    ears.errors.append(failed.value)
    await pool.close_all()
    ears.assert_no_canary(pool)


async def test_a_subprotocol_that_looks_like_a_key_is_in_no_picture(make_pool: MakePool) -> None:
    protocol = f"api-key.{CANARY}"
    async with Server(protocols=(protocol,)) as server:
        pool = make_pool(uri=server.uri, protocols=["realtime", protocol])
        async with pool.get_connection() as connection:
            assert connection.subprotocol == protocol
            picture = pool.snapshot()
            assert [link.subprotocol for link in picture.connections] == ["…"]
            assert CANARY not in json.dumps(picture.to_dict())


HEAD = (
    f"HTTP/1.1 403 Forbidden\r\nSet-Cookie: session={CANARY}; HttpOnly\r\nX-Trace: {CANARY}\r\n\r\n"
).encode()


@pytest.mark.parametrize("how", ["ends", "is reset", "is garbage"])
async def test_an_answer_that_stops_within_its_head_is_not_quoted(
    make_pool: MakePool, ears: Ears, how: str
) -> None:
    """Wherever it stops; it may set a cookie, which the pool has not had before."""

    async def answer(
        length: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD[:length] + (b"\x00\r\n\r\n" if how == "is garbage" else b""))
        if how == "is reset":
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.close()

    for length in (*range(1, len(HEAD) - 4, 5), *range(len(HEAD) - 4, len(HEAD))):
        async with await asyncio.start_server(partial(answer, length), "127.0.0.1", 0) as listening:
            uri = f"ws://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"
            pool = ears.listen_to(make_pool(uri=uri, max_retries=1))
            with pytest.raises(ConnectionUnavailableError) as failed:
                await pool.acquire()
            await pool.close_all()
            ears.errors.append(failed.value)
    ears.assert_no_canary(pool)
    kinds = {error.kind for error in ears.errors if isinstance(error, ConnectionUnavailableError)}
    assert ("handshake" if how == "is garbage" else "network") in kinds


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("session", ["the pool's", "shared"])
async def test_a_redirect_from_wss_to_ws_carries_nothing_away(
    server: Server, make_pool: MakePool, ears: Ears, session: str, status: int
) -> None:
    """Headers, subprotocols and user-info would be readable on the way."""
    authority = trustme.CA()
    theirs, ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    authority.configure_trust(ours)
    location = f"{server.uri}?from={CANARY}"

    async def redirect(request: web.BaseRequest) -> web.StreamResponse:
        assert request.headers["X-Api-Key"] == CANARY
        return web.Response(status=status, headers={"Location": location})

    runner = web.ServerRunner(web.Server(redirect), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=theirs).start()
    uri = f"wss://127.0.0.1:{runner.addresses[0][1]}/"
    given = {"uri": uri, "ssl": ours, "headers": {"X-Api-Key": CANARY}, "protocols": [CANARY]}
    async with aiohttp.ClientSession() as own:
        pool = make_pool(**given, **({"session": own} if session == "shared" else {}))
        with pytest.raises(ConnectionUnavailableError) as failed:
            await ears.listen_to(pool).acquire()
        await pool.close_all()
    await runner.cleanup()
    assert (failed.value.status, failed.value.attempts) == (status, 1)
    assert f"redirects ({status}) to {server.uri}?…" in str(failed.value)
    assert not server.requests
    ears.errors.append(failed.value)
    ears.assert_no_canary(pool)
