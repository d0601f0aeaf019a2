"""Taking secrets out of what may be shown: URIs, texts, and the errors that aiohttp gives us.

What leaves this file may be logged: it has no header, cookie, user-info, subprotocol or query value
of a dial, as far as that can be known; the documentation says how far that is.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Final
from urllib.parse import quote, quote_plus

import aiohttp
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from wspool._connection.errors import ConnectionUnavailableError


def scrub_uri(uri: object) -> str:
    """Return the URI without user-info, query values and fragment, fit for a log."""
    try:
        url = URL(str(uri))
        shown = str(url.with_user(None).with_query(None).with_fragment(None))
        return f"{shown}?…" if url.query_string else shown
    except ValueError:
        return "(not a URI)"


_SEPARATORS: Final = re.compile(r"[\s,;=&\"]+")
_JWT: Final = re.compile(r"[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}")

SHORTEST_SECRET: Final = 4
"""Characters: a shorter value, such as a version number, protects nothing and is in every text."""

SHORTEST_PART: Final = 8
"""Characters: a shorter part of a value is more likely a word than a secret."""

SHORTEST_PIECE: Final = 12
"""Characters: what a server has cut off a secret, and is shorter, cannot be told from a word."""


def shown_uri(uri: object) -> str:
    """Return the URI as it may be shown; a callable by its name."""
    if callable(uri):
        return f"{getattr(uri, '__qualname__', type(uri).__name__)}()"
    return scrub_uri(uri)


def secrets_of(
    uri: str,
    headers: Mapping[str, str],
    options: Mapping[str, Any] | None = None,
    session: aiohttp.ClientSession | None = None,
) -> list[str]:
    """Return the strings of a dial that must never be shown, the longest first.

    `options` are those of `ws_connect`; `session` has headers, cookies and an auth of its own. A
    server may quote a part (the token of "Bearer <token>", a cookie, a JWT's signature), and in
    another form: as it was encoded, or decoded.
    """
    whole = [*headers.values(), *_given(options or {})]
    whole.append(uri.partition("#")[0].partition("?")[2])  # as it is sent, if it was encoded
    try:
        url = URL(uri)
        whole += [url.query_string, url.raw_query_string, *url.query.values()]
        whole += _of_user(url.user or "", url.password or "")
        whole += [url.raw_user or "", url.raw_password or ""]
    except ValueError:
        url = None
        whole.append(uri)
    if isinstance(session, aiohttp.ClientSession):
        whole += [*session.headers.values(), *_of_auth(session.auth)]
        if url is not None:
            whole += (cookie.value for cookie in session.cookie_jar.filter_cookies(url).values())
    whole = [str(value) for value in whole]
    whole += [part for value in whole for part in _decoded(value)]
    parts = [part for value in whole for part in _SEPARATORS.split(value)]
    parts += [part for token in parts if _JWT.fullmatch(token) for part in token.split(".")]
    found = {value for value in whole if len(value) >= SHORTEST_SECRET}
    found.update(part for part in parts if len(part) >= SHORTEST_PART)
    found.update([form for value in found for form in _forms(value)])
    return sorted(found, key=len, reverse=True)


def _given(options: Mapping[str, Any]) -> Iterator[str]:
    """Give what options of `ws_connect` send along."""
    for protocol in options.get("protocols", ()):
        yield from (protocol, *protocol.split("."))  # as in "api-key.<key>"
    yield from _of_auth(options.get("auth"))
    yield from _of_auth(options.get("proxy_auth"))
    if proxy := options.get("proxy"):
        with contextlib.suppress(ValueError):
            yield from _of_user(URL(proxy).user or "", URL(proxy).password or "")
    for name in ("headers", "proxy_headers"):
        yield from dict(options.get(name) or {}).values()
    if params := options.get("params"):
        with contextlib.suppress(ValueError, TypeError):
            url = URL().extend_query(params)
            yield from (url.query_string, url.raw_query_string, *url.query.values())


def _of_auth(auth: aiohttp.BasicAuth | None) -> Iterator[str]:
    if auth is not None:
        yield from _of_user(auth.login, auth.password)


def _of_user(user: str, password: str) -> Iterator[str]:
    yield from (user, password)
    if user or password:
        yield base64.b64encode(f"{user}:{password}".encode()).decode()


def _decoded(value: str) -> Iterator[str]:
    """Give what the credentials of a Basic header say."""
    scheme, _, credentials = value.partition(" ")
    if scheme.lower() == "basic":
        with contextlib.suppress(ValueError):
            pair = base64.b64decode(credentials.strip(), validate=True).decode()
            yield from (pair, *pair.split(":", 1))


def _forms(secret: str) -> Iterator[str]:
    """Give a secret as others may write it: percent-encoded, in base64, in JSON, in a repr."""
    yield quote(secret, safe="")
    yield quote(secret)
    yield quote_plus(secret)
    data = secret.encode("utf-8", "replace")
    yield base64.b64encode(data).decode().rstrip("=")
    yield base64.urlsafe_b64encode(data).decode().rstrip("=")
    yield json.dumps(secret)[1:-1]
    yield repr(secret)[1:-1]


def scrub_error(error: BaseException, secrets: Iterable[str]) -> BaseException:
    """Return the error, or what is left of it once the secrets are out, fit to be a `__cause__`.

    aiohttp puts the whole URL into the text of a refused handshake and the request's headers into
    its repr; those errors are built anew with neither.
    """
    for one in _chain(error):
        one.__traceback__ = _of_others(one.__traceback__)
    if isinstance(error, aiohttp.ClientResponseError):
        url = URL(scrub_uri(error.request_info.real_url))
        no_headers: CIMultiDictProxy[str] = CIMultiDictProxy(CIMultiDict())
        request = aiohttp.RequestInfo(url, error.request_info.method, no_headers, url)
        # What could not be read as HTTP is quoted from the head of the answer.
        message = error.message if error.__cause__ is None else "not readable as HTTP"
        return type(error)(request, (), status=error.status, message=scrub_text(message, secrets))
    if isinstance(error, aiohttp.ServerDisconnectedError):  # it holds the head of the answer
        return aiohttp.ServerDisconnectedError()
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
    """Return the text without the secrets, and without what it has of their beginnings and ends."""
    for secret in secrets:
        text = text.replace(secret, "…")
        if len(secret) > SHORTEST_PIECE:
            text = _without_pieces(text, secret)
    return text


def _without_pieces(text: str, secret: str) -> str:
    head, tail = secret[:SHORTEST_PIECE], secret[-SHORTEST_PIECE:]
    while (start := text.find(head)) >= 0:
        length = _in_common(text[start:], secret)
        text = f"{text[:start]}…{text[start + length :]}"
    while (start := text.find(tail)) >= 0:
        end = start + len(tail)
        length = _in_common(text[:end][::-1], secret[::-1])
        text = f"{text[: end - length]}…{text[end:]}"
    return text


def _in_common(one: str, other: str) -> int:
    """Return how many characters two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


def _of_others(trace: TracebackType | None) -> TracebackType | None:
    """Return what of a traceback is in a user's code: the locals of other frames hold the dial.

    That is, what a callable of the user's did; None where aiohttp was called again.
    """
    while trace is not None and _is_of(trace, _OURS):
        trace = trace.tb_next
    following = trace
    while following is not None:
        if _is_of(following, "aiohttp"):
            return None
        following = following.tb_next
    return trace


_OURS: Final = ("wspool", "aiohttp", "asyncio")


def _is_of(trace: TracebackType, packages: str | tuple[str, ...]) -> bool:
    module = trace.tb_frame.f_globals.get("__name__", "")
    return str(module).startswith(packages)


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
