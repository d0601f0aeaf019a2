"""Taking secrets out of what may be shown: URIs, texts, and the errors that aiohttp gives us.

What leaves this file may be logged: it has no header, no user-info and no query value of a dial.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

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
    whole.append(uri.partition("#")[0].partition("?")[2])  # as it is sent, if it was encoded
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
