"""Dialling: what is tried again and what is not, how long is waited, and what the caller is told.

Proves that a refusal is asked for once, that what is transient is tried `max_retries` times, that
`Retry-After` is obeyed, that no error shows a secret, that a dial outlives the caller that gave
up, that `on_connect` comes before the borrower, and that a server that comes back is used again.
The gate, which all dials of a pool go through, is also tested alone, with a clock of its own.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import socket
import ssl
import threading
import traceback
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp import web
from yarl import URL

from tests.conftest import MakePool, until
from wspool import (
    CloseReason,
    ConnectionClosedError,
    ConnectionPoolTimeoutError,
    ConnectionPoolUnavailableError,
    ConnectionUnavailableError,
    State,
    WebsocketConnection,
    WebsocketConnectionPool,
)
from wspool._pool.dialing import Dial, is_transient
from wspool._pool.gate import Gate
from wspool.testing import Peer, Server, echo


@pytest.fixture
def waits() -> Sequence[float]:
    return (0.01,) * 5


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What each attempt asked the gate to wait at least; nothing is waited."""
    asked: list[float] = []

    async def wait(gate: Gate, dial: Dial, at_least: float = 0.0) -> None:
        asked.append(at_least)

    monkeypatch.setattr(Gate, "wait", wait)
    return asked


def refusals(*statuses: int, retry_after: object = None) -> list[web.Response]:
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return [web.Response(status=status, headers=headers) for status in statuses]


async def failure(pool: WebsocketConnectionPool) -> ConnectionUnavailableError:
    """Return the error with which an acquire ends; the failed dial then holds no place."""
    with pytest.raises(ConnectionUnavailableError) as caught:
        await pool.acquire()
    await until(lambda: not pool.connections, "the failed dial has given its place free")
    return caught.value


async def number_of(connection: WebsocketConnection) -> str:
    """Ask the server which of its handshakes this connection came from."""
    await connection.send("#n")
    reply = await connection.recv()
    assert isinstance(reply, str)
    return reply


# Refusals.


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 426])
async def test_a_refusal_is_not_tried_again(
    server: Server, make_pool: MakePool, status: int
) -> None:
    server.refusals = refusals(status)
    error = await failure(make_pool(max_retries=5))
    assert (error.status, error.attempts, error.retry_after) == (status, 1, None)
    assert isinstance(error.__cause__, aiohttp.WSServerHandshakeError)
    assert error.__cause__.status == status
    assert f"after 1 attempt: the server answered {status}" in str(error)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
async def test_a_server_that_is_busy_is_asked_again(
    server: Server, make_pool: MakePool, status: int
) -> None:
    server.refusals = refusals(status, status)
    async with make_pool(max_retries=3).get_connection() as connection:
        assert await number_of(connection) == "1"
    assert len(server.requests) == 3


async def test_max_retries_is_the_number_of_attempts_in_all(
    server: Server, make_pool: MakePool
) -> None:
    server.refusals = refusals(503, 502, 504, 500)
    pool = make_pool(max_retries=3)
    error = await failure(pool)
    assert (error.status, error.attempts) == (504, 3)
    assert "after 3 attempts" in str(error)
    assert len(server.requests) == 3
    assert (pool.stats.dials, pool.stats.dial_failures) == (1, 3)


async def test_the_place_of_a_failed_dial_is_free_again(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool(max_connections=1)
    server.refusals = refusals(401, 403)
    for status in (401, 403):
        assert (await failure(pool)).status == status
    async with pool.get_connection() as connection:
        assert await number_of(connection) == "1"


async def test_a_session_that_raises_for_status_makes_no_difference(
    server: Server, make_pool: MakePool
) -> None:
    """Such a session raises the base class ClientResponseError."""
    server.refusals = refusals(503, 401)
    async with aiohttp.ClientSession(raise_for_status=True) as session:
        pool = make_pool(session=session, max_connections=5)
        error = await failure(pool)
        assert (error.status, error.attempts) == (401, 2)
        await pool.close_all()


# Secrets.

SECRET = "s3cr3t"
ENCODED = b64encode(f"me:{SECRET}".encode()).decode()


@pytest.mark.parametrize("where", ["query", "params", "header", "user-info", "callables"])
@pytest.mark.parametrize("status", [401, 503])
async def test_a_refusal_shows_no_secret(
    server: Server,
    make_pool: MakePool,
    caplog: pytest.LogCaptureFixture,
    where: str,
    status: int,
) -> None:
    """Neither in a text, nor a repr, nor a traceback, nor a log, nor the pool's snapshot."""
    caplog.set_level(logging.DEBUG)
    server.refusals = refusals(*[status] * 4)
    query, headers = f"{server.uri}?token={SECRET}", {"Authorization": f"Bearer {SECRET}"}
    options: dict[str, dict[str, Any]] = {
        "query": {"uri": query},
        "params": {"params": {"token": SECRET}},
        "header": {"headers": headers},
        "user-info": {"uri": str(URL(server.uri).with_user("me").with_password(SECRET))},
        "callables": {"uri": lambda: query, "headers": lambda: headers},
    }
    pool = make_pool(max_retries=2, warmup_connections=1, **options[where])
    await pool.start()  # this one fails for nobody, into the log
    error = await failure(pool)
    assert error.status == status
    sent = f"{server.requests[0].path_qs} {server.requests[0].headers}"
    assert SECRET in sent or ENCODED in sent
    shown = [caplog.text, repr(pool), str(pool.snapshot()), *traceback.format_exception(error)]
    seen: BaseException | None = error
    while seen is not None:
        shown.append(f"{seen} {seen!r} {vars(seen)}")
        seen = seen.__cause__ or seen.__context__
    assert f"the server answered {status}" in caplog.text
    assert SECRET not in "".join(shown)
    assert ENCODED not in "".join(shown)


# Retry-After.


async def test_the_seconds_of_a_retry_after_are_waited(
    server: Server, make_pool: MakePool, asked: list[float]
) -> None:
    server.refusals = [*refusals(503, retry_after=1), *refusals(429, retry_after=30)]
    async with make_pool().get_connection() as connection:
        assert await number_of(connection) == "1"
    assert asked == [0.0, 1.0, 30.0]


async def test_a_retry_after_holds_for_one_attempt(
    server: Server, make_pool: MakePool, asked: list[float]
) -> None:
    server.refusals = [*refusals(503, retry_after=1), *refusals(503)]
    async with make_pool().get_connection():
        assert asked == [0.0, 1.0, 0.0]


async def test_the_date_of_a_retry_after_is_waited_for(
    server: Server, make_pool: MakePool, asked: list[float]
) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    server.refusals = refusals(503, retry_after=date)
    async with make_pool().get_connection():
        assert len(asked) == 2
        assert 0 < asked[1] <= 20


@pytest.mark.parametrize(
    "value", ["soon", "-5", "1.5", "", "²", "Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 99 Oct"]
)
async def test_a_retry_after_that_is_past_or_makes_no_sense_is_ignored(
    server: Server, make_pool: MakePool, asked: list[float], value: str
) -> None:
    server.refusals = refusals(503, retry_after=value)
    async with make_pool().get_connection():
        assert asked == [0.0, 0.0]


async def test_a_retry_after_that_is_too_long_fails_at_once(
    server: Server, make_pool: MakePool, asked: list[float]
) -> None:
    server.refusals = refusals(503, retry_after=3600)
    error = await failure(make_pool(max_retries=5))
    assert (error.status, error.attempts, error.retry_after) == (503, 1, 3600.0)
    assert "the server answered 503" in str(error)
    assert "it asks to wait 3600 s" in str(error)
    assert asked == [0.0]
    assert len(server.requests) == 1


# Servers that are down, or come and go.


@pytest.fixture
def mute_uri() -> Iterator[str]:
    """Where connections are taken, by the kernel, and nothing is ever answered."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"ws://127.0.0.1:{listener.getsockname()[1]}/"


async def test_a_server_that_is_down_is_tried_max_retries_times(
    server: Server, make_pool: MakePool
) -> None:
    await server.stop()
    attempts: list[None] = []

    def uri() -> str:
        attempts.append(None)
        return server.uri

    error = await failure(make_pool(uri=uri, max_retries=4))
    assert len(attempts) == error.attempts == 4
    assert error.status is None
    assert isinstance(error.__cause__, aiohttp.ClientConnectorError)
    assert f"No connection to ws://127.0.0.1:{server.port}/ after 4 attempts" in str(error)


async def test_a_server_that_never_answers_the_handshake_is_given_up(
    mute_uri: str, make_pool: MakePool
) -> None:
    error = await failure(make_pool(uri=mute_uri, connection_timeout=0.05, max_retries=2))
    assert (error.status, error.attempts) == (None, 2)
    assert isinstance(error.__cause__, TimeoutError)
    assert "connection_timeout" in str(error)


async def test_a_dial_in_vain_ends_with_the_callers_own_deadline(
    mute_uri: str, make_pool: MakePool
) -> None:
    pool = make_pool(uri=mute_uri)
    with pytest.raises(ConnectionPoolTimeoutError):
        await pool.acquire(timeout=0.05)
    assert pool.waiters == 0


async def test_a_server_that_is_down_at_start_is_a_warning_and_used_once_it_is_back(
    server: Server, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    await server.stop()
    pool = make_pool(uri=f"{server.uri}?token={SECRET}", warmup_connections=2)
    with caplog.at_level(logging.WARNING, "wspool"):
        await pool.start()
    records = [record for record in caplog.records if record.name == "wspool"]
    assert records
    assert {record.levelno for record in records} == {logging.WARNING}
    assert "after 3 attempts" in caplog.text
    assert SECRET not in caplog.text
    await until(lambda: not pool.connections, "the failed warm-up holds no place")

    await server.start()
    async with pool.get_connection() as connection:
        assert await number_of(connection) == "1"


async def test_min_connections_are_filled_once_the_server_is_back(
    server: Server, make_pool: MakePool
) -> None:
    await server.stop()
    pool = make_pool(min_connections=2, cleanup_interval=0.02)
    await pool.start()
    assert pool.available_connections == 0
    await server.start()
    await until(lambda: pool.available_connections == 2, "the pool is filled again")


async def test_a_restart_of_the_server_costs_no_place(server: Server, make_pool: MakePool) -> None:
    pool = make_pool(max_connections=2, warmup_connections=2)
    await pool.start()
    await server.stop()
    await until(lambda: not pool.connections, "the pool has noticed")
    assert pool.stats.closes == {CloseReason.SERVER: 2}
    await server.start()
    async with pool.get_connection() as first, pool.get_connection() as second:
        assert {await number_of(first), await number_of(second)} == {"3", "4"}


async def test_an_idle_connection_that_was_reset_is_not_handed_out(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool(max_connections=1)
    async with pool.get_connection() as lost:
        assert await number_of(lost) == "1"
    server.peers[0].drop()
    await until(lambda: not pool.connections, "the pool has noticed")
    assert (lost.state, lost.close_code, lost.is_connected) == (State.CLOSED, 1006, False)
    async with pool.get_connection() as connection:
        assert connection.id != lost.id
        assert await number_of(connection) == "2"


async def test_a_borrower_learns_of_a_reset_and_its_place_is_free(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool(max_connections=1)
    async with pool.get_connection() as lost:
        assert await number_of(lost) == "1"
        server.peers[0].drop()
        with pytest.raises(ConnectionClosedError, match="closed by the server") as caught:
            await lost.recv()
        assert caught.value.code == 1006
        with pytest.raises(ConnectionClosedError):
            await lost.send("too late")
        async with pool.get_connection() as connection:
            assert await number_of(connection) == "2"
            assert pool.total_connections == 1


async def test_a_borrower_that_does_not_read_loses_a_connection_that_is_reset(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool()
    async with pool.get_connection() as connection:
        server.peers[0].drop()
        await until(lambda: not connection.is_connected, "the sweep has noticed")
    assert pool.total_connections == 0


# Errors that are no refusals.


@pytest.mark.parametrize("uri", ["", "http://127.0.0.1/", "ws://", "ws://[", 5, None])
async def test_a_bad_uri_from_a_callable_is_not_tried_again(
    server: Server, make_pool: MakePool, uri: object
) -> None:
    error = await failure(make_pool(uri=lambda: uri))
    assert error.attempts == 1
    assert isinstance(error.__cause__, (ValueError, TypeError))
    assert not server.requests


@pytest.mark.parametrize("setting", ["uri", "headers"])
async def test_a_callable_that_raises_is_not_tried_again(
    server: Server, make_pool: MakePool, setting: str
) -> None:
    def broken() -> str:
        raise LookupError("no token")

    error = await failure(make_pool(**{setting: broken}))
    assert error.attempts == 1
    assert isinstance(error.__cause__, LookupError)
    assert not server.requests


async def test_a_callable_that_could_not_reach_its_network_is_called_again(
    server: Server, make_pool: MakePool
) -> None:
    troubles: list[Exception] = [ConnectionRefusedError(), TimeoutError()]

    async def headers() -> dict[str, str]:
        if troubles:
            raise troubles.pop()
        return {}

    async with make_pool(headers=headers).get_connection() as connection:
        assert await number_of(connection) == "1"
    assert len(server.requests) == 1


async def test_a_callable_that_takes_too_long_is_part_of_the_attempt(
    server: Server, make_pool: MakePool
) -> None:
    async def uri() -> str:
        await asyncio.Event().wait()
        return server.uri

    error = await failure(make_pool(uri=uri, connection_timeout=0.02, max_retries=2))
    assert error.attempts == 2
    assert isinstance(error.__cause__, TimeoutError)


@pytest.mark.parametrize("setting", ["headers", "on_connect"])
async def test_a_callable_that_cancels_itself_is_not_called_again(
    server: Server, make_pool: MakePool, setting: str
) -> None:
    """Say, because it awaits a token refresh that somebody has cancelled."""
    calls: list[None] = []

    async def awaits_what_was_cancelled(*args: object) -> dict[str, str]:
        calls.append(None)
        if len(calls) > 20:
            await asyncio.Event().wait()
        raise asyncio.CancelledError

    pool = make_pool(**{setting: awaits_what_was_cancelled})
    with pytest.raises(ConnectionUnavailableError) as caught:
        await pool.acquire(timeout=2.0)
    assert caught.value.attempts == len(calls) == 1


@pytest.mark.parametrize("value", [5, b"bytes", None])
async def test_a_header_that_is_no_string_is_a_failed_dial(
    server: Server, make_pool: MakePool, value: object
) -> None:
    pool = make_pool(headers=lambda: {"X-Number": value})
    with pytest.raises(ConnectionUnavailableError) as caught:
        await pool.acquire(timeout=2.0)
    assert caught.value.attempts == 1


@pytest.mark.parametrize(("query", "headers"), [("?v=1", {}), ("", {"X-Version": "1"})])
async def test_a_short_value_does_not_garble_an_error_that_cannot_hold_it(
    server: Server, make_pool: MakePool, query: str, headers: dict[str, str]
) -> None:
    """The text of a failed connect holds the host, and nothing of the query or the headers."""
    await server.stop()
    error = await failure(make_pool(uri=f"{server.uri}{query}", headers=headers))
    assert isinstance(error.__cause__, aiohttp.ClientConnectorError)
    assert f"cannot connect to 127.0.0.1:{server.port}" in str(error)


async def test_a_shared_session_that_was_closed_is_not_tried_again(
    server: Server, make_pool: MakePool
) -> None:
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    pool = make_pool(session=session)
    await pool.start()
    await session.close()
    error = await failure(pool)
    assert error.attempts == 1
    assert isinstance(error.__cause__, RuntimeError)
    assert "Session is closed" in str(error)


class Handshaking(threading.Thread):
    """A server of OpenSSL's that does TLS handshakes, one after the other, and hangs up."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(daemon=True)
        self.context = context
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"wss://127.0.0.1:{self.listener.getsockname()[1]}/"

    def run(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                with connection, suppress(OSError):
                    self.context.wrap_socket(connection, server_side=True).close()

    def __enter__(self) -> Handshaking:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.join()


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ("authority", "the certificate of 127.0.0.1:{} is not accepted: unable to get local"),
        ("name", "the certificate of 127.0.0.1:{} is not accepted: IP address mismatch"),
        ("version", "the TLS handshake with 127.0.0.1:{} failed: [SSL: TLSV1_ALERT_PROTOCOL"),
        ("client", "the TLS handshake with 127.0.0.1:{} failed: [SSL: "),
    ],
)
async def test_what_fails_of_tls_is_said(make_pool: MakePool, wrong: str, what: str) -> None:
    authority = trustme.CA()
    theirs, ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    name = "other.example" if wrong == "name" else "127.0.0.1"
    authority.issue_cert(name).configure_cert(theirs)
    (trustme.CA() if wrong == "authority" else authority).configure_trust(ours)
    if wrong == "version":
        theirs.minimum_version = ssl.TLSVersion.TLSv1_3
        ours.maximum_version = ssl.TLSVersion.TLSv1_2
    if wrong == "client":  # wants to see a certificate, which comes early enough in 1.2
        theirs.verify_mode = ssl.CERT_REQUIRED
        theirs.maximum_version = ssl.TLSVersion.TLSv1_2
    with Handshaking(theirs) as listening:
        error = await failure(make_pool(uri=listening.uri, ssl=ours))
        port = listening.listener.getsockname()[1]
    assert (error.kind, error.attempts) == ("tls", 1)
    assert f": {what.format(port)}" in str(error)


async def test_tls_with_a_server_that_has_none_is_said(server: Server, make_pool: MakePool) -> None:
    error = await failure(make_pool(uri=server.uri.replace("ws:", "wss:")))
    assert error.kind == "tls"
    assert f": the TLS handshake with 127.0.0.1:{server.port} failed: [SSL: WRONG" in str(error)


async def test_a_name_that_does_not_resolve_is_said(make_pool: MakePool) -> None:
    error = await failure(make_pool(uri="ws://no-such-host.invalid/", max_retries=1))
    assert error.kind == "dns"
    assert ": the host name no-such-host.invalid does not resolve: " in str(error)


async def test_a_proxy_that_cannot_be_reached_is_said(server: Server, make_pool: MakePool) -> None:
    await server.stop()
    proxy = f"http://user:password@127.0.0.1:{server.port}"
    error = await failure(make_pool(proxy=proxy, max_retries=1))
    assert error.kind == "proxy"
    assert f": the proxy 127.0.0.1:{server.port} cannot be reached: " in str(error)


async def test_a_unix_socket_that_is_not_there_is_said(make_pool: MakePool, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path, limit=0)) as session:
        error = await failure(make_pool(session=session, max_retries=1))
    assert f": cannot connect to the socket {path}: No such file" in str(error)


async def test_that_no_more_files_may_be_opened_is_said(make_pool: MakePool) -> None:
    """Also to whoever waits, who is told so when its own time is up."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        pool = make_pool(uri=f"ws://127.0.0.1:{listening.getsockname()[1]}/", max_retries=50)
        await pool.start()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        next_file = os.dup(0)
        os.close(next_file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (next_file, hard))
        try:
            with pytest.raises(ConnectionPoolTimeoutError) as caught:
                await pool.acquire(timeout=0.2)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await pool.close_all()
    assert "no socket can be opened (Too many open files)" in str(caught.value)


def refused(status: int) -> aiohttp.ClientResponseError:
    url = URL("ws://host/")
    request = aiohttp.RequestInfo(url, "GET", None, url)  # type: ignore[arg-type]
    return aiohttp.ClientResponseError(request, (), status=status)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (refused(401), False),
        (refused(408), True),
        (refused(501), True),
        (aiohttp.ServerDisconnectedError(), True),
        (aiohttp.ClientConnectionResetError(), True),
        (aiohttp.InvalidURL("ws://["), False),
        (ConnectionRefusedError(), True),
        (ConnectionResetError(), True),
        (BrokenPipeError(), True),
        (TimeoutError(), True),
        (socket.gaierror(socket.EAI_AGAIN, "try again"), True),
        (OSError(errno.EHOSTUNREACH, "no route"), True),
        (OSError(errno.EMFILE, "too many files"), False),
        (PermissionError(), False),
        (ssl.SSLCertVerificationError(), False),
        (ConnectionClosedError(code=1012), True),
        (ConnectionPoolTimeoutError(), False),
        (ConnectionUnavailableError(status=503), False),
        (ValueError(), False),
    ],
    ids=repr,
)
def test_only_what_may_go_better_is_transient(error: Exception, expected: bool) -> None:
    assert is_transient(error) is expected


# Dials and those who wait for them.


class Holding:
    """An `on_connect` that holds every dial until it is let go."""

    def __init__(self) -> None:
        self.begun = self.at_work = self.most = 0
        self.let_go = asyncio.Event()

    async def __call__(self, connection: WebsocketConnection) -> None:
        self.begun += 1
        self.at_work += 1
        self.most = max(self.most, self.at_work)
        try:
            await self.let_go.wait()
        finally:
            self.at_work -= 1


async def test_a_dial_outlives_the_caller_that_was_cancelled(
    server: Server, make_pool: MakePool
) -> None:
    hook = Holding()
    pool = make_pool(on_connect=hook)
    acquiring = asyncio.create_task(pool.acquire())
    await until(lambda: hook.begun, "the dial is under way")
    acquiring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await acquiring
    assert pool.waiters == 0
    (dialled,) = pool.connections
    assert dialled.state is State.CONNECTING

    hook.let_go.set()
    await until(lambda: pool.available_connections == 1, "the dial has ended idle")
    async with pool.get_connection() as connection:
        assert connection.id == dialled.id
        assert not connection.reused
    assert len(server.requests) == 1


async def test_an_acquire_joins_a_dial_that_nobody_waits_for(
    server: Server, make_pool: MakePool
) -> None:
    hook = Holding()
    pool = make_pool(on_connect=hook)
    given_up = asyncio.create_task(pool.acquire())
    await until(lambda: hook.begun, "the dial is under way")
    given_up.cancel()
    await asyncio.wait({given_up})
    joining = asyncio.create_task(pool.acquire())
    await until(lambda: pool.waiters == 1, "the next acquire waits")
    hook.let_go.set()
    connection = await joining
    assert await number_of(connection) == "1"
    await pool.release(connection)
    assert len(server.requests) == 1


async def test_no_more_than_max_connecting_handshakes_are_in_flight(
    server: Server, make_pool: MakePool
) -> None:
    hook = Holding()
    pool = make_pool(on_connect=hook, max_connecting=2)
    acquiring = [asyncio.create_task(pool.acquire()) for _ in range(6)]
    await until(lambda: hook.begun == 2, "two dials are under way")
    assert len(server.requests) == 2
    assert "connecting=6" in repr(pool)
    hook.let_go.set()
    for connection in await asyncio.gather(*acquiring):
        await pool.release(connection)
    assert (hook.begun, hook.most) == (6, 2)


async def test_every_waiter_is_told_of_a_server_that_refuses_them_all(
    server: Server, make_pool: MakePool
) -> None:
    """Each has an error of its own, so that tracebacks do not grow together."""
    server.refusals = refusals(*[503] * 200)
    pool = make_pool(max_retries=2, max_connecting=3)
    ends = await asyncio.gather(*(pool.acquire() for _ in range(20)), return_exceptions=True)
    assert {type(end) for end in ends} == {ConnectionUnavailableError}
    assert len({id(end) for end in ends}) == 20
    assert len(server.requests) <= 2 * 20
    await until(lambda: not pool.connections, "no place is held")


async def test_closing_the_pool_ends_a_dial(server: Server, make_pool: MakePool) -> None:
    hook = Holding()
    pool = make_pool(on_connect=hook)
    acquiring = asyncio.create_task(pool.acquire())
    await until(lambda: hook.begun, "the dial is under way")
    await pool.close_all()
    assert hook.at_work == 0
    with pytest.raises(ConnectionPoolUnavailableError):
        await acquiring
    await until(lambda: not server.open, "the server has lost the connection")


# on_connect.


async def log_in(connection: WebsocketConnection) -> None:
    await connection.send("log in")
    assert await connection.recv() == "log in"


async def test_on_connect_talks_to_the_server_before_the_borrower(
    server: Server, make_pool: MakePool
) -> None:
    states: list[State] = []

    async def on_connect(connection: WebsocketConnection) -> None:
        states.append(connection.state)
        await log_in(connection)

    pool = make_pool(on_connect=on_connect)
    for _ in range(2):
        async with pool.get_connection() as connection:
            await connection.send("hello")
            assert await connection.recv() == "hello"
    assert states == [State.CONNECTING]
    assert server.peers[0].received == ["log in", "hello", "hello"]
    assert connection.uses == 2


async def test_an_error_of_on_connect_is_a_failed_dial_that_keeps_its_place(
    server: Server, make_pool: MakePool
) -> None:
    troubles = [ValueError("wrong password")]

    async def on_connect(connection: WebsocketConnection) -> None:
        await log_in(connection)
        if troubles:
            raise troubles.pop()

    pool = make_pool(on_connect=on_connect, max_connections=1)
    error = await failure(pool)
    assert error.attempts == 1
    assert isinstance(error.__cause__, ValueError)
    assert "wrong password" in str(error)
    await until(lambda: not server.open, "the connection that failed is closed")
    async with pool.get_connection() as connection:
        assert await number_of(connection) == "2"
    assert server.most_open == 1


async def test_an_error_of_on_connect_shows_no_secret(server: Server, make_pool: MakePool) -> None:
    async def on_connect(connection: WebsocketConnection) -> None:
        raise ValueError(f"{connection.headers} {connection.uri}")

    pool = make_pool(
        uri=f"{server.uri}?token={SECRET}",
        headers={"Authorization": SECRET},
        on_connect=on_connect,
    )
    error = await failure(pool)
    assert SECRET not in "".join(traceback.format_exception(error))


async def test_a_network_error_in_on_connect_is_tried_again(
    server: Server, make_pool: MakePool
) -> None:
    async def reset_the_first(peer: Peer) -> None:
        if peer.number == 1:
            await peer.recv()
            peer.drop()
        await echo(peer)

    server.handler = reset_the_first
    pool = make_pool(on_connect=log_in)
    async with pool.get_connection() as connection:
        assert await number_of(connection) == "2"
        assert connection.is_connected
    assert pool.available_connections == 1
    assert server.most_open <= 2


async def test_a_close_in_a_failed_attempt_leaves_no_trace_on_the_connection(
    server: Server, make_pool: MakePool
) -> None:
    """What the first attempt's server said is not what the open connection was closed with."""

    async def restart_the_first(peer: Peer) -> None:
        if peer.number == 1:
            await peer.recv()
            await peer.close(1012, "restarting")
        else:
            await echo(peer)

    server.handler = restart_the_first
    pool = make_pool(on_connect=log_in)
    async with pool.get_connection() as connection:
        assert await number_of(connection) == "2"
        assert (connection.close_code, connection.close_reason) == (None, "")
        assert connection.cause is None
    await pool.close_all()
    assert connection.close_code == 1000
    await until(lambda: not server.open, "the server has seen the close")
    assert server.peers[1].websocket.close_code == 1000


async def test_a_server_that_closes_every_connection_in_on_connect_is_given_up(
    server: Server, make_pool: MakePool
) -> None:
    async def close(peer: Peer) -> None:
        await peer.close(1008, "who are you?")

    async def wait_for_hello(connection: WebsocketConnection) -> None:
        await connection.recv()

    server.handler = close
    error = await failure(make_pool(on_connect=wait_for_hello, max_retries=3))
    assert error.attempts == 3
    assert isinstance(error.__cause__, ConnectionClosedError)
    assert error.__cause__.code == 1008
    assert len(server.requests) == 3


async def test_a_message_before_a_close_is_heard_by_on_connect(
    server: Server, make_pool: MakePool
) -> None:
    async def greet(peer: Peer) -> None:
        await peer.send("hello")
        await echo(peer)

    greetings: list[str | bytes] = []

    async def on_connect(connection: WebsocketConnection) -> None:
        greetings.append(await connection.recv())

    server.handler = greet
    async with make_pool(on_connect=on_connect).get_connection() as connection:
        assert await number_of(connection) == "1"
    assert greetings == ["hello"]
