"""Every error that the pool raises, and the scrubbing of errors that it passes on.

This module knows nothing of connections. What leaves it may be logged: headers, user-info and
query values are taken out of the causes that aiohttp gives us.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Final

import aiohttp
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL


class WebsocketError(RuntimeError):
    """The base of all errors of this package. Without a message it carries its default one."""

    message: str
    """What was asked, what was found, what to do; without secrets."""
    default_message: ClassVar[str] = "WebSocket error"

    def __init__(self, message: str | None = None) -> None:
        self.message = message or self.default_message
        super().__init__(self.message)


class ConnectionPoolExhaustedError(WebsocketError):
    """All connections are in use, and the caller may not wait (any longer) for one."""

    default_message = "All connections of the pool are in use"


class ConnectionPoolTimeoutError(ConnectionPoolExhaustedError, TimeoutError):
    """No connection could be had within the caller's timeout; the message has the pool's counts.

    It is a `TimeoutError`, and with that an `OSError`: a rule "retry every OSError" would see it.
    """

    default_message = "No connection within the timeout"


class ConnectionPoolUnavailableError(WebsocketError):
    """The pool is closed."""

    default_message = "The pool is closed"


class ConnectionUnavailableError(WebsocketError):
    """A dial failed for good. `__cause__` is the last failure, without secrets.

    `kind` says in a word what failed: "dns", "network", "timeout", "tls", "status 503" (the
    server's HTTP status), "closed", "quota" (no lease within the time) or "error", which includes
    the user's callables. `status` is that status if there is one, `attempts` how many attempts were
    made, `retry_after` the seconds that the server asked to wait, if it did.
    """

    kind: str
    status: int | None
    attempts: int
    retry_after: float | None

    default_message = "No connection could be made"

    def __init__(
        self,
        message: str | None = None,
        *,
        kind: str = "error",
        status: int | None = None,
        attempts: int = 0,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status
        self.attempts = attempts
        self.retry_after = retry_after


class ConnectionClosedError(WebsocketError):
    """The connection is closed. `code` and `reason` are those of the CLOSE frame.

    Without a CLOSE frame `code` is 1006, for one without a code 1005 (RFC 6455, 7.1.5).
    """

    code: int | None
    reason: str

    default_message = "The connection is closed"

    def __init__(
        self, message: str | None = None, *, code: int | None = None, reason: str = ""
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


class ConnectionBusyError(WebsocketError):
    """The right to send and to receive belongs to somebody else just now."""

    default_message = "The connection is in use by another owner"


class ConnectionDrainTimeoutError(WebsocketError):
    """A drain did not end within `drain_timeout`; kept as the `cause` of the connection's close."""

    default_message = "The connection was still receiving data at the end of drain_timeout"


class IllegalTransitionError(WebsocketError):
    """A trigger that the state machine does not allow in this state. Nothing has moved."""

    default_message = "The state machine does not allow this"


def scrub_uri(uri: object) -> str:
    """Return the URI without user-info, query values and fragment, fit for a log."""
    try:
        url = URL(str(uri))
        shown = str(url.with_user(None).with_query(None).with_fragment(None))
        return f"{shown}?…" if url.query_string else shown
    except ValueError:
        return "(not a URI)"


_SEPARATORS: Final = re.compile(r"[\s,;=&\"]+")

SHORTEST_SECRET: Final = 4
"""Characters: a shorter value, such as a version number, protects nothing and is in every text."""

SHORTEST_PART: Final = 8
"""Characters: a shorter part of a value is more likely a word than a secret."""


def shown_uri(uri: object) -> str:
    """Return the URI as it may be shown; a callable by its name."""
    if callable(uri):
        return f"{getattr(uri, '__qualname__', type(uri).__name__)}()"
    return scrub_uri(uri)


def secrets_of(uri: str, headers: Mapping[str, str], params: Any = None) -> list[str]:
    """Return the strings of a dial that must never be shown, the longest first.

    A server may quote a part: the token of "Bearer <token>", a cookie, a value as it was encoded.
    """
    whole = [str(value) for value in headers.values()]
    try:
        url = URL(uri).extend_query(params or {})
    except ValueError:
        whole.append(uri)
    else:
        whole += [url.query_string, url.raw_query_string, *url.query.values()]
        user, password = url.user or "", url.password or ""
        whole += [user, url.raw_user or "", password, url.raw_password or ""]
        if user or password:
            whole.append(base64.b64encode(f"{user}:{password}".encode()).decode())
    parts = [part for secret in whole for part in _SEPARATORS.split(secret)]
    found = {secret for secret in whole if len(secret) >= SHORTEST_SECRET}
    found.update(part for part in parts if len(part) >= SHORTEST_PART)
    return sorted(found, key=len, reverse=True)


def scrub_error(error: BaseException, secrets: Iterable[str]) -> BaseException:
    """Return the error, or what is left of it once the secrets are out, fit to be a `__cause__`.

    aiohttp puts the whole URL into the text of a refused handshake and the request's headers into
    its repr; those errors are built anew with neither.
    """
    # A repr shows some characters of a secret by escapes.
    forms = {form for secret in secrets for form in (secret, repr(secret)[1:-1])}
    secrets = sorted(forms, key=len, reverse=True)
    if isinstance(error, aiohttp.ClientResponseError):
        url = URL(scrub_uri(error.request_info.real_url))
        no_headers: CIMultiDictProxy[str] = CIMultiDictProxy(CIMultiDict())
        request = aiohttp.RequestInfo(url, error.request_info.method, no_headers, url)
        return type(error)(
            request, (), status=error.status, message=scrub_text(error.message, secrets)
        )
    if isinstance(error, aiohttp.InvalidURL):
        return aiohttp.InvalidURL(scrub_uri(error.url), error.description)
    if isinstance(error, aiohttp.NonHttpUrlClientError):
        return aiohttp.NonHttpUrlClientError(scrub_uri(error.args[0]))
    if isinstance(error, aiohttp.ClientConnectorError) and not _shows_a_proxy(error):
        return error
    for shown in _chain(error):
        text = "".join([str(shown), repr(shown), *getattr(shown, "__notes__", ())])
        if scrub_text(text, secrets) != text or _shows_a_proxy(shown):
            return ConnectionUnavailableError(
                f"{type(error).__name__}: {scrub_text(str(error), secrets)}"
            )
    return error


def scrub_text(text: str, secrets: Iterable[str]) -> str:
    """Return the text without the secrets."""
    for secret in secrets:
        text = text.replace(secret, "…")
    return text


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Give the error with all that is chained to it, each once: a chain may be a ring."""
    following: list[BaseException | None] = [error]
    seen: list[BaseException] = []
    while following:
        chained = following.pop()
        if chained is not None and not any(chained is one for one in seen):
            seen.append(chained)
            yield chained
            following += (chained.__cause__, chained.__context__)


def _shows_a_proxy(error: BaseException) -> bool:
    key = getattr(error, "_conn_key", None)
    return key is not None and key.proxy is not None
