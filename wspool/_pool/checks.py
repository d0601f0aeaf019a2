"""What a right value is: one check for each kind of setting.

A check is called with the setting's name and with what was given, and returns the latter. What is
wrong is a TypeError or a ValueError that names the setting, says what was found and what it must
be. Of what may be a secret only the type is shown.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import aiohttp
from yarl import URL

from wspool._connection.routes import check_route
from wspool._connection.scrubbing import scrub_uri

T = TypeVar("T")

Check = Callable[[str, object], T]


def seconds(*, above_zero: bool = False) -> Check[float]:
    """A finite number of seconds."""

    def check(name: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(found(name, value, "a number of seconds"))
        if not 0 <= value <= sys.float_info.max or (above_zero and value == 0):
            least = "above 0" if above_zero else "of at least 0"
            raise ValueError(found(name, value, f"a finite number of seconds {least}"))
        return value

    return check


def count(*, at_least: int) -> Check[int]:
    """A whole number."""

    def check(name: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(found(name, value, "a whole number"))
        if value < at_least:
            raise ValueError(found(name, value, f"a whole number of at least {at_least}"))
        return value

    return check


def optional(check: Check[T]) -> Check[T | None]:
    """None, or what another check takes."""

    def check_unless_none(name: str, value: object) -> T | None:
        return None if value is None else check(name, value)

    return check_unless_none


def flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(found(name, value, "True or False"))
    return value


def plain_callable(name: str, value: object) -> Any:
    """A callable that is not async: its coroutine would be taken for True."""
    if not callable(value):
        raise TypeError(found(name, value, "a callable or None"))
    if is_async(value):
        raise TypeError(found(name, value, "a plain callable, not a coroutine function"))
    return value


def hook(name: str, value: object) -> Any:
    """A callable that is async. What a lambda returns is only known when it is called."""
    if not callable(value):
        raise TypeError(found(name, value, "a coroutine function (async def) or None"))
    if not is_async(value) and getattr(value, "__name__", "") != "<lambda>":
        raise TypeError(found(name, value, "a coroutine function: define it with `async def`"))
    return value


def is_async(called: Callable[..., object]) -> bool:
    """Whether calling this gives a coroutine, as far as that can be known."""
    while isinstance(called, functools.partial):
        called = called.func
    # A mock of a coroutine function has the flag too, whatever inspect says of it.
    flags = getattr(getattr(called, "__code__", None), "co_flags", 0)
    return (
        inspect.iscoroutinefunction(called)
        or bool(isinstance(flags, int) and flags & inspect.CO_COROUTINE)
        or inspect.iscoroutinefunction(type(called).__call__)
    )


def uri(name: str, value: object) -> Any:
    return value if callable(value) else check_uri(value)


def headers(name: str, value: object) -> Any:
    if value is None:
        return {}
    if not (isinstance(value, Mapping) or callable(value)):
        kind = type(value).__name__  # the value is a secret
        raise TypeError(f"{name} is of type {kind}; it must be a mapping of strings or a callable")
    return value


def session(name: str, value: object) -> Any:
    if not isinstance(value, aiohttp.ClientSession) and (not callable(value) or is_async(value)):
        allowed = "an aiohttp.ClientSession, a plain callable that makes one, or None"
        raise TypeError(found(name, value, allowed))
    return value


def quota(name: str, value: object) -> Any:
    if not all(callable(getattr(value, method, None)) for method in ("acquire", "release")):
        allowed = "an object with acquire and release, such as a LocalQuota, or None"
        raise TypeError(found(name, value, allowed))
    return value


def route(name: str, value: object) -> Any:
    """Where a message says whose it is: paths into its JSON, or a plain callable."""
    check_route(value)
    return value


def label(name: str, value: object) -> str:
    """A pool's name, which has to stay whole in a log line and as a metric's label; "" for None."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError(found(name, value, "a string or None"))
    if not value.isprintable():  # one lone surrogate, and a whole scrape cannot be encoded
        shown = ", ".join(
            sorted({ascii(character) for character in value if not character.isprintable()})
        )
        raise ValueError(f"{name} is {value!a}; it must be printable text, without {shown}")
    return value


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


_timeout = optional(seconds())
_grace = seconds()


def check_timeout(timeout: float | None) -> None:
    """Check the `timeout` argument of a call: seconds, or None for no limit."""
    _timeout("timeout", timeout)


def check_grace(grace: float) -> None:
    """Check the `grace` argument of a call: seconds."""
    _grace("grace", grace)


def found(name: str, value: object, allowed: str) -> str:
    return f"{name} is {value!r}; it must be {allowed}"
