"""The dial: from a link that is only a plan to one with an open WebSocket.

This file says what an attempt is, what is transient, and what failed, in words. It does not know
who waits for the link, nor how many there may be.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import socket
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import aiohttp
from multidict import CIMultiDict, MultiMapping

from wspool._connection.aiohttp_internals import connect, sent_headers
from wspool._connection.errors import (
    ENDS_PROGRAM,
    ConnectionClosedError,
    ConnectionUnavailableError,
    WebsocketError,
)
from wspool._connection.link import NEVER, Link
from wspool._connection.loan import lend_to_hook
from wspool._connection.scrubbing import (
    given_by,
    scrub_error,
    scrub_text,
    scrub_uri,
    secrets_in,
    sent_in,
)
from wspool._pool.checks import check_uri
from wspool._pool.gate import MAX_RETRY_AFTER_SECONDS, Gate
from wspool._pool.options import Options
from wspool._pool.stats import Stats
from wspool._pool.tasks import is_cancelled

_TRANSIENT_STATUSES: Final = frozenset({408, 425, 429})
_UNREACHABLE: Final = frozenset(
    {errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH}
)

_CHECKS: Final = {
    "Invalid upgrade header": "its Upgrade header is not `websocket`",
    "Invalid connection header": "its Connection header is not `Upgrade`, and nothing beside it",
    "Invalid challenge response": "its Sec-WebSocket-Accept header does not fit the key",
}
"""What aiohttp says of a handshake's answer with status 101 that it refuses, in our words."""


class Dial:
    """The owner of a link that is connecting."""

    __slots__ = ("_doing", "asked_at", "is_at_server", "is_last_attempt", "link", "was_full")

    def __init__(self, link: Link) -> None:
        self.link = link
        # When the handshake of the last attempt began; whether its answer is still to come.
        self.asked_at = NEVER
        self.is_at_server = False
        # Whether it is to fail by the present attempt, if that fails.
        self.is_last_attempt = False
        # Whether it has failed because the server is full.
        self.was_full = False
        # What the present attempt is at.
        self._doing = ""

    async def run(
        self,
        options: Options,
        session: aiohttp.ClientSession,
        gate: Gate,
        stats: Stats,
        is_full: Callable[[Link, ConnectionUnavailableError, WebsocketError], bool],
    ) -> None:
        """Open the link's WebSocket and run `on_connect`; it stays in the state connecting.

        `is_full` is asked of each failure, and of what the server has said, whether the server is
        full: then this dial is over, and the gate hears nothing of it.

        Raises ConnectionUnavailableError, whose cause shows no secrets. Ends silently when
        somebody else has closed the link meanwhile.
        """
        link = self.link
        retry_after = 0.0
        attempt = 0
        while True:
            await gate.wait(self, retry_after)
            if gate.permits is not None and gate.permits.shares:
                try:
                    link.permit = await gate.permits.acquire()
                except ConnectionUnavailableError as error:
                    error.attempts = attempt
                    stats.failures[error.kind] += 1
                    if error.kind != "quota":  # one that is full says nothing of the next dial
                        gate.failed(gate.round, error)
                    raise
            attempt += 1
            in_round = gate.round
            try:
                await self._attempt(options, session)
            except ENDS_PROGRAM:
                raise
            except BaseException as error:
                if is_cancelled(error):
                    raise
                # What is kept of it shows no secrets, not even as a local variable of this frame.
                failure, may_go_better = self._failure(error, attempt), is_transient(error)
                said = link.closed_error() if failure.kind == "closed" else failure
            else:
                return
            finally:
                self.is_at_server = False
            await link.drop_wire(options.close_timeout)
            if link.owner is not self:
                return
            stats.failures[failure.kind] += 1
            if is_full(link, failure, said):
                self.was_full = True
                break
            gate.failed(in_round, failure)
            retry_after = failure.retry_after or 0.0
            is_final = attempt >= options.max_retries or retry_after > MAX_RETRY_AFTER_SECONDS
            if is_final or not may_go_better or self.is_last_attempt:
                break
        # Raised out here, the error has no unscrubbed context.
        raise failure

    async def _attempt(self, options: Options, session: aiohttp.ClientSession) -> None:
        link = self.link
        began = link.clock()
        async with asyncio.timeout(options.connection_timeout):
            self._doing = "uri"
            uri = check_uri(await _fresh(options.uri))
            link.uri = str(uri)
            self._doing = "headers"
            link.headers = _copied(await _fresh(options.headers))
            link.given = given_by(link.uri, options.connect_options, session)
            self._doing = "handshake"
            self.is_at_server = True
            called = self.asked_at = link.clock()
            websocket = await connect(
                session,
                uri,
                headers=link.headers,
                autoping=False,
                autoclose=False,
                timeout=aiohttp.ClientWSTimeout(ws_receive=None, ws_close=options.close_timeout),
                **options.connect_options,
            )
            link.handshake_seconds = link.clock() - called
            sent = sent_in(sent_headers(websocket))
            link.given += tuple(value for value in sent if value not in link.headers.values())
            wire = link.attach(websocket, options.control)
            if options.on_connect is not None:
                self._doing = "on_connect"
                await lend_to_hook(link, options.on_connect)
                if wire.is_lost:
                    raise ConnectionClosedError(
                        "the server closed the connection during on_connect"
                    )
        link.dial_seconds = link.clock() - began

    def _failure(self, cause: BaseException, attempts: int) -> ConnectionUnavailableError:
        """Return what failed, in words without secrets."""
        link = self.link
        secrets = sorted({*link.secrets(), *secrets_in(cause)}, key=len, reverse=True)
        shown = scrub_error(cause, secrets)
        is_ours = self._doing != "handshake" and not isinstance(cause, ConnectionClosedError)
        if is_ours and not isinstance(cause, TimeoutError):
            kind, what = "error", f"`{self._doing}` raised {type(cause).__name__}: {shown}"
        else:
            kind, what = kind_of(cause), self._words(cause, shown, secrets)
        status = headers = retry_after = None
        if isinstance(cause, aiohttp.ClientResponseError):
            status = cause.status
            if cause.headers:
                headers = _shown_headers(cause.headers, secrets)
                retry_after = _retry_after(cause.headers.get("Retry-After", ""))
        until = f"; it asks to wait {retry_after:.0f} s" if retry_after is not None else ""
        times = "1 attempt" if attempts == 1 else f"{attempts} attempts"
        error = ConnectionUnavailableError(
            f"No connection to {scrub_uri(link.uri)} after {times}: {what}{until}",
            kind=kind,
            status=status,
            attempts=attempts,
            retry_after=retry_after,
            headers=headers,
        )
        error.__cause__ = shown
        return error

    def _words(self, cause: BaseException, shown: BaseException, secrets: Sequence[str]) -> str:
        match cause:
            case TimeoutError() if not str(cause):
                return f"no answer within connection_timeout ({self._doing})"
            case aiohttp.ClientConnectorError():
                return _no_transport(cause, secrets)
            case aiohttp.ClientHttpProxyError():
                return f"the proxy answered {cause.status}"
            case aiohttp.WSServerHandshakeError() if cause.status == 101:
                check = _CHECKS.get(cause.message, "the extensions are not those offered")
                return f"the server's handshake fails a check: {check}"
            case aiohttp.WSServerHandshakeError() if 300 <= cause.status < 400:
                to = scrub_uri(cause.headers.get("Location", "") if cause.headers else "")
                return (
                    f"the server redirects ({cause.status}) to {scrub_text(to, secrets)}; a "
                    "handshake is not redirected, since its headers would go along: use that URI "
                    "if it is right"
                )
            case aiohttp.WSServerHandshakeError():
                return f"the server answered {cause.status} instead of a WebSocket handshake"
            case aiohttp.ClientResponseError():
                first: BaseException = cause
                while first.__cause__ is not None:
                    first = first.__cause__
                kind = type(first).__name__
                return f"the server's answer could not be read as HTTP ({kind})"
            case aiohttp.ServerDisconnectedError():
                return "the server has closed the connection before its answer was complete"
            case aiohttp.ClientOSError():
                return f"the connection broke before the server's answer was complete: {shown}"
        return str(shown) or type(shown).__name__


def _no_transport(error: aiohttp.ClientConnectorError, secrets: Sequence[str]) -> str:
    """Return which step towards a transport has failed, and why."""
    reason = error.os_error
    why = scrub_text(reason.strerror or str(reason) or type(reason).__name__, secrets)
    where = f"{error.host}:{error.port}"
    match error:
        case _ if (path := getattr(error, "path", None)) is not None:
            return f"cannot connect to the socket {path}: {why}"
        case _ if reason.errno in (errno.EMFILE, errno.ENFILE):
            return f"no socket can be opened ({why}): raise the limit, or lower max_connections"
        case aiohttp.ClientConnectorDNSError():
            return f"the host name {error.host} does not resolve: {why}"
        case aiohttp.ClientProxyConnectionError():
            return f"the proxy {where} cannot be reached: {why}"
        case aiohttp.ClientConnectorCertificateError():
            why = getattr(error.certificate_error, "verify_message", "") or why
            return f"the certificate of {where} is not accepted: {why}"
        case aiohttp.ClientSSLError():
            return f"the TLS handshake with {where} failed: {why}"
    return f"cannot connect to {where}: {why}"


async def _fresh(value: Any) -> Any:
    """Return a setting, asked anew if it is a callable."""
    if callable(value):
        value = value()
        if inspect.isawaitable(value):
            value = await value
    return value


def _copied(headers: Any) -> Any:
    """Return a copy in which a header that was given twice is there twice."""
    return CIMultiDict(headers) if isinstance(headers, MultiMapping) else dict(headers)


def is_transient(error: BaseException) -> bool:
    """Return whether another attempt may go better: the network failed, or the server is busy."""
    match error:
        case ConnectionClosedError():
            return True
        case WebsocketError():  # of another pool: ConnectionPoolTimeoutError is an OSError too
            return False
        case aiohttp.ClientResponseError():
            return error.status in _TRANSIENT_STATUSES or error.status >= 500
        case aiohttp.ClientSSLError():
            return False
        case aiohttp.ClientConnectionError() | TimeoutError() | ConnectionError():
            return True
        case socket.gaierror():
            return True
        case OSError():
            return error.errno in _UNREACHABLE
    return False


def kind_of(error: BaseException) -> str:
    """Return in a word what failed."""
    match error:
        case ConnectionClosedError():
            return "closed"
        case WebsocketError():
            return "error"
        case aiohttp.ClientHttpProxyError() | aiohttp.ClientProxyConnectionError():
            return "proxy"
        case aiohttp.WSServerHandshakeError() if error.status != 101:
            return f"status {error.status}"
        case aiohttp.ClientResponseError():
            return "handshake"
        case TimeoutError():
            return "timeout"
        case aiohttp.ClientConnectorDNSError() | socket.gaierror():
            return "dns"
        case aiohttp.ClientSSLError():
            return "tls"
        case aiohttp.ClientConnectionError() | OSError():
            return "network"
    return "error"


def _retry_after(value: str) -> float | None:
    """Return the seconds of a Retry-After header: a number or a date (RFC 9110, 10.2.3)."""
    value = value.strip()
    try:
        if value.isdecimal():
            return min(float(value), _YEAR_SECONDS)
        date = parsedate_to_datetime(value)
        if date.tzinfo is None:
            date = date.replace(tzinfo=UTC)
        seconds = (date - datetime.now(UTC)).total_seconds()
    except (ValueError, OverflowError):  # it may be anything
        return None
    return min(max(0.0, seconds), _YEAR_SECONDS)


_YEAR_SECONDS: Final = 365 * 86400.0


def _shown_headers(headers: Any, secrets: Sequence[str]) -> CIMultiDict[str]:
    """Return the headers of an answer as they may be shown: no cookies, and no secret of ours."""
    shown = CIMultiDict[str]()
    for name, value in headers.items():
        if name.lower() in ("location", "content-location"):
            value = scrub_uri(value)
        if name.lower() not in ("set-cookie", "set-cookie2"):
            shown.add(name, scrub_text(value, secrets))
    return shown
