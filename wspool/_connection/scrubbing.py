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
from functools import lru_cache
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


_SEPARATORS: Final = re.compile(r"[\s,;:=&\"']+")
_TOKEN: Final = re.compile(r"e[yw][\w-]{8,}(\.[\w-]*){2,4}")
"""A signed or an encrypted JWT: it begins with "{" and a quote or white space in base64."""

SHORTEST_SECRET: Final = 4
"""Characters: a shorter value, such as a version number, protects nothing and is in every text."""

SHORTEST_PART: Final = 8
"""Characters: a shorter part of a value is more likely a word than a secret."""

SHORTEST_PIECE: Final = 12
"""Characters: what a server has cut off a secret, and is shorter, cannot be told from a word."""

_NO_SECRETS: Final = frozenset(
    {
        *("accept", "accept-encoding", "connection", "host", "origin", "upgrade", "user-agent"),
        *("sec-websocket-extensions", "sec-websocket-key", "sec-websocket-version"),
    }
)
"""Headers that aiohttp writes itself, in lower case."""

_KEY: Final = re.compile(r"(?=[^\W\d_]*\d)\w{8,}|\w{20,}")
"""Letters and digits in a long word, or a very long one: names of subprotocols have neither."""


def shown_uri(uri: object) -> str:
    """Return the URI as it may be shown; a callable by its name."""
    if callable(uri):
        return f"{getattr(uri, '__qualname__', type(uri).__name__)}()"
    return scrub_uri(uri)


def shown_subprotocol(protocol: str | None) -> str | None:
    """Return a subprotocol that the server took, or "…" if it looks like a key."""
    return "…" if protocol is not None and _KEY.search(protocol) else protocol


# What is secret.


def secrets_of(uri: str, headers: Mapping[str, str], given: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the strings of a dial that must never be shown, the longest first.

    `given` are further ones, as `given_by` and `sent_in` find them. A server may quote a part (the
    token of "Bearer <token>", a cookie, a JWT's signature), and in another form: as it was encoded,
    or decoded.
    """
    return _secrets(uri, (*map(str, headers.values()), *given))


@lru_cache(maxsize=32)
def _secrets(uri: str, values: tuple[str, ...]) -> tuple[str, ...]:
    whole = [*values, *_of_uri(uri)]
    whole += [part for value in whole for part in _decoded(value)]
    parts = [part for value in whole for part in _SEPARATORS.split(value)]
    parts += [part for token in parts if _TOKEN.fullmatch(token) for part in token.split(".")]
    found = {value for value in whole if len(value) >= SHORTEST_SECRET}
    found.update(part for part in parts if len(part) >= SHORTEST_PART)
    found.update([form for value in found for form in _forms(value)])
    return tuple(sorted(found, key=len, reverse=True))


def given_by(
    uri: str, options: Mapping[str, Any], session: aiohttp.ClientSession | None = None
) -> tuple[str, ...]:
    """Return what options of `ws_connect` and the session add to a dial that begins now.

    Later the session may have other cookies: a refusal may take the one away that it quotes.
    """
    found = list(_of_options(options))
    if isinstance(session, aiohttp.ClientSession):
        found += [*session.headers.values(), *_of_auth(session.auth)]
        with contextlib.suppress(ValueError):
            for cookie in session.cookie_jar.filter_cookies(URL(uri)).values():
                found += (cookie.value, cookie.coded_value)
    return tuple(map(str, found))


def sent_in(headers: Mapping[str, str]) -> tuple[str, ...]:
    """Return what the headers of a request say of its sender, whoever has added them."""
    return tuple(value for name, value in headers.items() if name.lower() not in _NO_SECRETS)


def secrets_in(error: BaseException) -> tuple[str, ...]:
    """Return the secrets of each request that the error, or what is chained to it, tells of."""
    found: set[str] = set()
    for one in _chain(error):
        if isinstance(one, aiohttp.ClientResponseError):
            sent = sent_in(one.request_info.headers)
            found.update(secrets_of(str(one.request_info.real_url), {}, sent))
    return tuple(found)


def _of_uri(uri: str) -> Iterator[str]:
    yield uri.partition("#")[0].partition("?")[2]  # as it is sent, if it was encoded
    try:
        url = URL(uri)
    except ValueError:
        yield uri
        return
    yield from (url.query_string, url.raw_query_string, *url.query.values())
    yield from _of_user(url.user or "", url.password or "")
    yield from (url.raw_user or "", url.raw_password or "", url.fragment, url.raw_fragment)


def _of_options(options: Mapping[str, Any]) -> Iterator[str]:
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
        for encoding in ("utf-8", "latin-1"):  # aiohttp's is the latter
            with contextlib.suppress(UnicodeEncodeError):
                yield base64.b64encode(f"{user}:{password}".encode(encoding)).decode()


def _decoded(value: str) -> Iterator[str]:
    """Give what the credentials of a Basic header say."""
    scheme, _, credentials = value.strip().partition(" ")
    if scheme.lower() == "basic":
        with contextlib.suppress(ValueError):
            plain = credentials.strip().replace("-", "+").replace("_", "/")  # base64url as well
            data = base64.b64decode(f"{plain}==")
            for encoding in ("utf-8", "latin-1"):
                with contextlib.suppress(UnicodeDecodeError):
                    pair = data.decode(encoding)
                    yield from (pair, *pair.split(":", 1))


def _forms(secret: str) -> Iterator[str]:
    """Give a secret as others may write it: percent-encoded, in base64, JSON, HTML, a repr."""
    for escaped in (quote(secret, safe=""), quote(secret), quote_plus(secret)):
        yield escaped
        yield re.sub("%[0-9A-F]{2}", lambda escape: escape[0].lower(), escaped)
    data = secret.encode("utf-8", "replace")
    yield base64.b64encode(data).decode().rstrip("=")
    yield base64.urlsafe_b64encode(data).decode().rstrip("=")
    yield json.dumps(secret)[1:-1]
    from html import escape  # a tenth of the import of all of this, for what is rarely needed

    yield escape(secret)
    yield repr(secret)[1:-1]
    yield repr(data)[2:-1]


# What is shown.


def scrub_error(error: BaseException, secrets: Iterable[str]) -> BaseException:
    """Return the error, or what is left of it once the secrets are out, fit to be a `__cause__`.

    aiohttp puts the whole URL into the text of a refused handshake and the request's headers into
    its repr; those errors are built anew with neither.
    """
    forget_frames(error)
    if isinstance(error, aiohttp.ClientResponseError):
        url = URL(scrub_uri(error.request_info.real_url))
        no_headers: CIMultiDictProxy[str] = CIMultiDictProxy(CIMultiDict())
        request = aiohttp.RequestInfo(url, error.request_info.method, no_headers, url)
        # What could not be read as HTTP is quoted from the head of the answer.
        message = error.message if error.__cause__ is None else "not readable as HTTP"
        is_known = type(error).__module__.startswith("aiohttp.")
        kind = type(error) if is_known else aiohttp.ClientResponseError
        return kind(request, (), status=error.status, message=scrub_text(message, secrets))
    if isinstance(error, aiohttp.ServerDisconnectedError):  # it holds the head of the answer
        return aiohttp.ServerDisconnectedError()
    if isinstance(error, aiohttp.InvalidURL):
        return aiohttp.InvalidURL(scrub_uri(error.url), error.description)
    if isinstance(error, aiohttp.NonHttpUrlClientError):
        return aiohttp.NonHttpUrlClientError(scrub_uri(error.args[0]))
    for one in _chain(error):
        text = _shown(one)
        if text is None or scrub_text(text, secrets) != text or _shows_a_proxy(one):
            shown = "" if _shown(error) is None else scrub_text(str(error), secrets)
            name = type(error).__name__
            return ConnectionUnavailableError(f"{name}: {shown}" if shown else name)
    return error


def _shown(error: BaseException) -> str | None:
    """Return all that may be shown of an error; None where its class fails at it."""
    try:
        return "".join([str(error), repr(error), *getattr(error, "__notes__", ())])
    except Exception:
        return None


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


def forget_frames(error: BaseException | None) -> None:
    """Take those frames from the error and its chain whose locals hold a dial's headers or URI.

    What a callable of the user's did is left, unless aiohttp was called in there.
    """
    for one in _chain(error):
        one.__traceback__ = _of_others(one.__traceback__)
        if isinstance(one, aiohttp.WebSocketError):  # its cause quotes a message
            one.__cause__ = one.__context__ = None


def _of_others(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and _package(trace) in _OURS:
        trace = trace.tb_next
    following = trace
    while following is not None:
        if _package(following) == "aiohttp":
            return None
        following = following.tb_next
    return trace


_OURS: Final = frozenset(
    {
        *("wspool", "aiohttp", "asyncio", "aiohappyeyeballs", "aiodns", "yarl", "multidict"),
        *("base64", "encodings", "http", "idna", "netrc", "socket", "ssl", "urllib"),
    }
)
"""Packages whose frames are between a pool and the network."""


def _package(trace: TracebackType) -> str:
    return str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Give the error with all that is chained to it, each once: a chain may be a ring."""
    following: list[BaseException | None] = [error]
    seen: list[BaseException] = []
    while following:
        chained = following.pop()
        if chained is not None and not any(chained is one for one in seen):
            seen.append(chained)
            yield chained
            following += (chained.__cause__, chained.__context__)
            if isinstance(chained, BaseExceptionGroup):
                following += chained.exceptions


def _shows_a_proxy(error: BaseException) -> bool:
    key = getattr(error, "_conn_key", None)
    return key is not None and key.proxy is not None
