"""The pool's settings, checked once, when the pool is made.

Every setting is described where it is an argument, in `WebsocketConnectionPool`. A wrong one is a
TypeError or a ValueError that names it, says what was found and what is allowed.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, cast

import aiohttp
from yarl import URL

from wspool._connection.loan import WebsocketConnection
from wspool._connection.scrubbing import scrub_uri
from wspool._connection.wire import Control
from wspool.quota import Quota

DEFAULT: Final = cast(float, object())
"""Stands for `acquire_timeout` where a call is given no timeout of its own."""

DrainConditionCallback = Callable[[str | bytes], bool]
"""Is asked of each message that is drained: False gives the connection up."""

Uri = str | URL | Callable[[], str | Awaitable[str]]
Headers = Mapping[str, str] | Callable[[], Mapping[str, str] | Awaitable[Mapping[str, str]]]
Hook = Callable[[WebsocketConnection], Awaitable[object]]

_OURS: Final = {
    "timeout": "connection_timeout for the handshake, close_timeout for the goodbye",
    "receive_timeout": "asyncio.timeout around recv()",
    "autoping": "nothing: pings are always answered",
    "autoclose": "nothing: a close is always answered",
    "method": "nothing: the handshake is a GET",
}
"""Options of `ws_connect` that are the pool's own business, and what to use instead."""

_WEBSOCKETS: Final = {
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


class Options:
    """What `WebsocketConnectionPool` was given, checked. `max_connections` changes by resize().

    It has no repr, because of its secrets, and is no dataclass, which takes 2 ms to make.
    """

    uri: Uri
    headers: Headers
    idle_timeout: float
    max_connections: int
    max_retries: int
    cleanup_interval: float
    connection_timeout: float
    warmup_connections: int
    check_server_data_on_release: bool
    drain_timeout: float
    drain_quiet_period: float
    drain_condition: DrainConditionCallback | None
    acquire_timeout: float | None
    max_waiting: int | None
    max_connecting: int
    min_connections: int
    min_idle: int
    max_lifetime: float | None
    max_uses: int | None
    check_after_idle: float | None
    keepalive: Hook | None
    keepalive_interval: float | None
    on_connect: Hook | None
    on_release: Hook | None
    on_close: Hook | None
    control: Control | None
    drain_until: DrainConditionCallback | None
    drain_fence: bool
    on_drained: Callable[[WebsocketConnection, str | bytes], object] | None
    close_timeout: float
    leak_threshold: float | None
    quota: Quota | None
    connect_options: dict[str, Any]
    # Whether a release without an exception may have to be followed by a drain.
    may_drain: bool

    def __init__(self, **settings: Any) -> None:
        vars(self).update(settings)
        has_mark = self.drain_until is not None or self.drain_fence
        has_check = self.check_server_data_on_release or self.on_release is not None
        self.may_drain = has_mark or has_check
        if not callable(self.uri):
            self.uri = check_uri(self.uri)
        if self.headers is None:
            self.headers = {}
        if not (isinstance(self.headers, Mapping) or callable(self.headers)):
            kind = type(self.headers).__name__  # the value is a secret
            raise TypeError(
                f"headers is of type {kind}; it must be a mapping of strings or a callable"
            )
        for name in ("idle_timeout", "cleanup_interval", "connection_timeout", "drain_timeout"):
            _seconds(name, getattr(self, name), above_zero=True)
        for name in ("drain_quiet_period", "close_timeout"):
            _seconds(name, getattr(self, name))
        for name in ("acquire_timeout", "check_after_idle"):
            if (value := getattr(self, name)) is not None:
                _seconds(name, value)
        for name in ("max_lifetime", "keepalive_interval", "leak_threshold"):
            if (value := getattr(self, name)) is not None:
                _seconds(name, value, above_zero=True)
        for name in ("max_connections", "max_retries", "max_connecting"):
            check_count(name, getattr(self, name), at_least=1)
        for name in ("warmup_connections", "min_connections", "min_idle"):
            check_count(name, getattr(self, name), at_least=0)
        if self.min_idle > self.max_connections:
            most = f"at most max_connections={self.max_connections}"
            raise ValueError(_found("min_idle", self.min_idle, most))
        if self.max_waiting is not None:
            check_count("max_waiting", self.max_waiting, at_least=0)
        if self.max_uses is not None:
            check_count("max_uses", self.max_uses, at_least=1)
        for name in ("check_server_data_on_release", "drain_fence"):
            if not isinstance(value := getattr(self, name), bool):
                raise TypeError(_found(name, value, "True or False"))
        for name in (
            *("drain_condition", "drain_until", "on_drained", "control"),
            *("on_connect", "on_release", "on_close", "keepalive"),
        ):
            if (value := getattr(self, name)) is not None and not callable(value):
                raise TypeError(_found(name, value, "a callable or None"))
        for name in ("drain_condition", "drain_until", "on_drained", "control"):
            value = getattr(self, name)
            if any(map(inspect.iscoroutinefunction, (value, type(value).__call__))):
                raise TypeError(_found(name, value, "a plain callable, not a coroutine function"))
        for method in ("acquire", "release"):
            if self.quota is not None and not callable(getattr(self.quota, method, None)):
                allowed = "an object with acquire and release, such as a LocalQuota, or None"
                raise TypeError(_found("quota", self.quota, allowed))
        if self.keepalive is not None and self.keepalive_interval is None:
            raise ValueError("keepalive needs keepalive_interval, the seconds between two of them")
        _check_connect_options(self.connect_options)
        for name in ("warmup_connections", "min_connections"):
            if getattr(self, name) > self.max_connections:
                warnings.warn(
                    f"{name}={getattr(self, name)} is above max_connections="
                    f"{self.max_connections}; {self.max_connections} are used",
                    UserWarning,
                    stacklevel=3,
                )
                setattr(self, name, self.max_connections)


def check_name(name: object) -> str | None:
    """Return the pool's name, which has to stay whole in a log line and as a metric's label."""
    if name is None:
        return None
    if not isinstance(name, str):
        raise TypeError(_found("name", name, "a string or None"))
    if not name.isprintable():  # one lone surrogate, and a whole scrape cannot be encoded
        shown = ", ".join(
            sorted({ascii(character) for character in name if not character.isprintable()})
        )
        raise ValueError(f"name is {name!a}; it must be printable text, without {shown}")
    return name


def check_uri(uri: object) -> str | URL:
    """Return the URI as it was given, or raise what is wrong with it, without its secrets."""
    if not isinstance(uri, (str, URL)):
        kind = type(uri).__name__  # the value may hold a secret
        raise TypeError(f"uri is of type {kind}; it must be a string, a yarl.URL or a callable")
    try:
        url = URL(uri)
    except ValueError:
        url = None
    if url is None:  # raised out here, the error has no context, which quotes the URI
        raise ValueError("uri is not a URI; use ws://host/path or wss://host/path")
    if str(url) and not url.absolute:  # localhost:8080, whose scheme would be localhost
        raise ValueError("uri is without // and a host; use ws://host/path or wss://host/path")
    if url.scheme not in ("ws", "wss") or not url.host:
        shown = repr(scrub_uri(url)) if str(url) else "empty"
        raise ValueError(f"uri is {shown}; use ws://host/path or wss://host/path")
    return uri


def check_count(name: str, value: object, *, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(_found(name, value, "a whole number"))
    if value < at_least:
        raise ValueError(_found(name, value, f"a whole number of at least {at_least}"))


def _seconds(name: str, value: object, *, above_zero: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(_found(name, value, "a number of seconds"))
    if not 0 <= value <= sys.float_info.max or (above_zero and value == 0):
        least = "above 0" if above_zero else "of at least 0"
        raise ValueError(_found(name, value, f"a finite number of seconds {least}"))


def check_timeout(timeout: float | None) -> None:
    """Check the `timeout` argument of a call: seconds, or None for no limit."""
    if timeout is not None:
        _seconds("timeout", timeout)


def check_connector(session: aiohttp.ClientSession | None, wanted: int) -> None:
    """Refuse a shared session that would let dials wait for ever."""
    if session is None or session.connector is None:
        return
    for name in ("limit", "limit_per_host"):
        limit = getattr(session.connector, name)
        advice = f"set TCPConnector({name}=…) above max_connections={wanted}, or to 0 for none"
        if 0 < limit < wanted:
            raise ValueError(
                f"The shared session's connector has {name}={limit}, and each WebSocket "
                f"holds a place in it for life: {advice}, or lower max_connections"
            )
        if limit == wanted:
            warnings.warn(
                f"The shared session's connector has {name}={limit}: once the pool is full, "
                f"the application's own requests on it will hang; {advice}",
                UserWarning,
                stacklevel=4,
            )


def _check_connect_options(options: Mapping[str, Any]) -> None:
    for name in options.keys() & _OURS.keys():
        raise TypeError(f"{name!r} is the pool's own business; use {_OURS[name]}")
    for name in options.keys() & _WEBSOCKETS.keys():
        raise TypeError(f"{name!r} is an argument of websockets' connect; use {_WEBSOCKETS[name]}")
    known = inspect.signature(aiohttp.ClientSession.ws_connect).parameters
    allowed = known.keys() - _OURS.keys() - {"self", "url", "headers"}
    for name in options.keys() - allowed:
        raise TypeError(
            f"{name!r} is neither an argument of the pool nor an option of aiohttp's ws_connect, "
            f"which are: {', '.join(sorted(allowed))}"
        )


def _found(name: str, value: object, allowed: str) -> str:
    return f"{name} is {value!r}; it must be {allowed}"
