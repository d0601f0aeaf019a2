"""The options of aiohttp's `ws_connect` that a pool passes on: their types, and their checks.

They are checked when the pool is made, since a dial comes later, and in a task that nobody reads.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from ssl import SSLContext
from typing import Any, Final, TypedDict

import aiohttp
from aiohttp.typedefs import LooseHeaders, Query
from yarl import URL

from wspool._pool.checks import Check, count, flag, found, optional, seconds

Ssl = SSLContext | bool | aiohttp.Fingerprint


class ConnectOptions(TypedDict, total=False):
    """Options of `aiohttp.ClientSession.ws_connect`, as further arguments of a pool."""

    protocols: Iterable[str]
    """Subprotocols to offer, such as `["v1"]`."""
    heartbeat: float | None
    """Seconds between pings of aiohttp's own; the pong must come within the half of it."""
    compress: int
    """Window bits of deflate, 9 to 15; 0, the default: no compression."""
    max_msg_size: int
    """Bytes of the largest message that is taken, by default 4 MiB; 0: no limit."""
    ssl: Ssl
    """A context; False: certificates are not checked."""
    server_hostname: str | None
    """The name that the certificate must have, if it is not the URI's."""
    origin: str | None
    """The header of that name."""
    params: Query
    """To be added to the URI's query."""
    auth: aiohttp.BasicAuth | None
    """For the server."""
    proxy: str | URL | None
    """The URL of an HTTP proxy."""
    proxy_auth: aiohttp.BasicAuth | None
    """For the proxy."""
    proxy_headers: LooseHeaders | None
    """For the proxy."""
    decode_text: bool
    """False: the text of messages arrives as bytes."""
    verify_ssl: bool | None
    """As `ssl=False`, which aiohttp prefers."""
    fingerprint: bytes | None
    """As `ssl=aiohttp.Fingerprint(…)`, which aiohttp prefers."""
    ssl_context: SSLContext | None
    """As `ssl`, which aiohttp prefers."""


ConnectOptions.__module__ = "wspool"

_OURS: Final = {
    "timeout": "connection_timeout for the handshake, close_timeout for the goodbye",
    "receive_timeout": "asyncio.timeout around recv()",
    "autoping": "nothing: pings are always answered",
    "autoclose": "nothing: a close is always answered",
    "method": "nothing: the handshake is a GET",
}
"""Options of `ws_connect` that are the pool's own business, and what to use instead."""

_ELSEWHERE: Final = {
    "additional_headers": "headers",
    "extra_headers": "headers",
    "subprotocols": "protocols",
    "compression": "compress",
    "max_size": "max_msg_size",
    "ping_interval": "heartbeat",
    "ping_timeout": "heartbeat",
    "open_timeout": "connection_timeout",
}
"""Arguments of `websockets.connect` by names that are none here, and what is here for that."""


def _protocols(name: str, value: object) -> tuple[str, ...]:
    """The names, for any number of dials; they are not shown, since some hold a key."""
    allowed = "an iterable of strings, such as ['v1']"
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise TypeError(f"{name} is of type {type(value).__name__}; it must be {allowed}")
    names = tuple(value)
    for one in names:
        if not isinstance(one, str):
            kind = type(one).__name__
            raise TypeError(f"{name} has an item of type {kind}; it must be {allowed}")
    return names


def _compress(name: str, value: object) -> int:
    bits = count(at_least=0)(name, value)
    if 0 < bits < 9 or bits > 15:
        raise ValueError(found(name, value, "0, or the window bits of deflate, 9 to 15"))
    return bits


def _kind(allowed: str, *kinds: type, is_secret: bool = False) -> Check[Any]:
    """An object of one of these types."""

    def check(name: str, value: object) -> Any:
        if not isinstance(value, kinds):
            what = f"of type {type(value).__name__}" if is_secret else repr(value)
            raise TypeError(f"{name} is {what}; it must be {allowed}")
        return value

    return check


_basic_auth = _kind("an aiohttp.BasicAuth or None", aiohttp.BasicAuth, is_secret=True)
_string = _kind("a string or None", str)

_CHECKS: Final[dict[str, Check[Any]]] = {
    "protocols": _protocols,
    "heartbeat": optional(seconds(above_zero=True)),
    "compress": _compress,
    "max_msg_size": count(at_least=0),
    "ssl": optional(
        _kind(
            "an ssl.SSLContext, False for no check, True or an aiohttp.Fingerprint",
            *(SSLContext, bool, aiohttp.Fingerprint),
        )
    ),
    "server_hostname": optional(_string),
    "origin": optional(_string),
    "params": optional(
        _kind("a mapping, pairs or a string", str, Mapping, Sequence, is_secret=True)
    ),
    "auth": optional(_basic_auth),
    "proxy": optional(_kind("a URL or None", str, URL, is_secret=True)),
    "proxy_auth": optional(_basic_auth),
    "proxy_headers": optional(_kind("a mapping or pairs", Mapping, Iterable, is_secret=True)),
    "decode_text": flag,
    "verify_ssl": optional(flag),
    "fingerprint": optional(_kind("bytes or None", bytes)),
    "ssl_context": optional(_kind("an ssl.SSLContext or None", SSLContext)),
}


def check_connect_options(options: Any, settings: Iterable[str]) -> dict[str, Any]:
    """Return the options as a dial takes them; `settings` are the pool's own arguments."""
    for name in options:
        if name in _OURS:
            raise TypeError(f"{name!r} is the pool's own business; use {_OURS[name]}")
        if name in _ELSEWHERE:
            instead = _ELSEWHERE[name]
            raise TypeError(f"{name!r} is an argument of websockets' connect; use {instead}")
        if name not in _CHECKS and name not in known_to_aiohttp():
            raise TypeError(_unknown(name, settings))
    return {
        name: _CHECKS[name](name, value) if name in _CHECKS else value
        for name, value in options.items()
    }


def _unknown(name: str, settings: Iterable[str]) -> str:
    from difflib import get_close_matches  # takes 3 ms, and is for a mistake

    what = f"{name!r} is neither an argument of the pool nor an option of aiohttp's ws_connect"
    if close := get_close_matches(name, [*settings, *_CHECKS], n=1):
        return f"{what}; did you mean {close[0]}?"
    return f"{what}, which are: {', '.join(sorted(known_to_aiohttp()))}"


def known_to_aiohttp() -> set[str]:
    """Return the options that a pool may pass on to the aiohttp that is installed.

    A later one than this file knows of may have more of them.
    """
    known = inspect.signature(aiohttp.ClientSession.ws_connect).parameters
    return known.keys() - _OURS.keys() - {"self", "url", "headers"}
