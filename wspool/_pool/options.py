"""The settings of a pool: their names, their types, and what each may be.

A new one is a line in `Settings` here, and an argument with its description in `configured.py`;
`tests/core/test_options.py` says which place was forgotten.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Generic, Never, Self, TypeVar, overload

import aiohttp
from yarl import URL

from wspool._connection.errors import WebsocketError
from wspool._connection.loan import WebsocketConnection
from wspool._connection.routes import Route
from wspool._connection.stream import WebsocketStream
from wspool._connection.wire import Control
from wspool._pool import checks
from wspool._pool.checks import Check, count, flag, hook, optional, plain_callable, seconds
from wspool._pool.connect_options import check_connect_options
from wspool.quota import Quota

DrainConditionCallback = Callable[[str | bytes], bool]
"""Is asked of each message that is drained: False gives the connection up."""

Uri = str | URL | Callable[[], str | Awaitable[str]]
"""A URI, or a callable, plain or async, that returns one for each attempt of a dial."""

Headers = Mapping[str, str] | Callable[[], Mapping[str, str] | Awaitable[Mapping[str, str]]]
"""Headers of the handshake, or a callable, plain or async, that returns them for each attempt."""

Hook = Callable[[WebsocketConnection], Awaitable[object]]
"""A coroutine function that gets a connection while nobody else has it."""

IsFull = Callable[[WebsocketError], object]
"""Is asked of a refusal's error: whether that is how the server refuses when it is full."""

StreamHook = Callable[[WebsocketStream], Awaitable[object]]
"""A coroutine function that gets a stream when its borrower has given it back."""

_Drained = Callable[[WebsocketConnection, str | bytes], object]
_Session = aiohttp.ClientSession | Callable[[], aiohttp.ClientSession]

T = TypeVar("T")


class _AcquireTimeout(float):
    def __repr__(self) -> str:
        return "acquire_timeout"


ACQUIRE_TIMEOUT: Final[float] = _AcquireTimeout("-inf")
"""As the `timeout` of a call that borrows, the default: the pool's `acquire_timeout`."""


# The arguments of a method that borrows. It has no docstring, which editors would show instead.
def in_time(*, timeout: float | None = ACQUIRE_TIMEOUT) -> None: ...


# Those of one that takes a used connection.
def preferring(*, prefer: Any = None, timeout: float | None = ACQUIRE_TIMEOUT) -> None: ...


_names = itertools.count(1)


class Setting(Generic[T]):
    """One setting: its check, and the read-only attribute of a pool that shows it."""

    def __init__(self, check: Check[T]) -> None:
        self.check = check

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else getattr(instance._options, self.name)

    def __set__(self, instance: object, value: Never) -> None:
        change = "resize() changes it" if self.name == "max_connections" else "make another pool"
        raise AttributeError(f"{self.name} is read-only: it is given to the constructor; {change}")


class Settings:
    """All settings, in the groups of `docs/reference/options.md`."""

    # Limits.
    max_connections: Setting[int] = Setting(count(at_least=1))
    warmup_connections: Setting[int] = Setting(count(at_least=0))
    acquire_timeout: Setting[float | None] = Setting(optional(seconds()))
    max_waiting: Setting[int | None] = Setting(optional(count(at_least=0)))
    min_connections: Setting[int] = Setting(count(at_least=0))
    min_idle: Setting[int] = Setting(count(at_least=0))
    quota: Setting[Quota | None] = Setting(optional(checks.quota))
    learn_limit: Setting[bool] = Setting(flag)
    is_full: Setting[IsFull | None] = Setting(optional(plain_callable))

    # Streams.
    max_streams: Setting[int] = Setting(count(at_least=1))
    route: Setting[Route | None] = Setting(optional(checks.route))
    max_unread: Setting[int] = Setting(count(at_least=1))

    # Dialling and closing.
    uri: Setting[Uri] = Setting(checks.uri)
    headers: Setting[Headers] = Setting(checks.headers)
    max_retries: Setting[int] = Setting(count(at_least=1))
    connection_timeout: Setting[float] = Setting(seconds(above_zero=True))
    session: Setting[_Session | None] = Setting(optional(checks.session))
    max_connecting: Setting[int] = Setting(count(at_least=1))
    close_timeout: Setting[float] = Setting(seconds())

    # Idle connections.
    idle_timeout: Setting[float] = Setting(seconds(above_zero=True))
    cleanup_interval: Setting[float] = Setting(seconds(above_zero=True))
    max_lifetime: Setting[float | None] = Setting(optional(seconds(above_zero=True)))
    max_uses: Setting[int | None] = Setting(optional(count(at_least=1)))
    check_after_idle: Setting[float | None] = Setting(optional(seconds()))
    keepalive: Setting[Hook | None] = Setting(optional(hook))
    keepalive_interval: Setting[float | None] = Setting(optional(seconds(above_zero=True)))

    # Draining.
    check_server_data_on_release: Setting[bool] = Setting(flag)
    drain_timeout: Setting[float] = Setting(seconds(above_zero=True))
    drain_quiet_period: Setting[float] = Setting(seconds())
    drain_condition: Setting[DrainConditionCallback | None] = Setting(optional(plain_callable))
    drain_until: Setting[DrainConditionCallback | None] = Setting(optional(plain_callable))
    drain_fence: Setting[bool] = Setting(flag)

    # Hooks.
    on_connect: Setting[Hook | None] = Setting(optional(hook))
    on_release: Setting[Hook | StreamHook | None] = Setting(optional(hook))
    on_close: Setting[Hook | None] = Setting(optional(hook))
    on_drained: Setting[_Drained | None] = Setting(optional(plain_callable))
    control: Setting[Control | None] = Setting(optional(plain_callable))

    # Observing.
    name: Setting[str] = Setting(checks.label)
    leak_threshold: Setting[float | None] = Setting(optional(seconds(above_zero=True)))

    # Those of aiohttp.
    connect_options: Setting[Mapping[str, Any]] = Setting(
        lambda _, given: MappingProxyType(check_connect_options(given, SETTINGS))
    )


SETTINGS: Final[dict[str, Setting[Any]]] = {
    name: setting for name, setting in vars(Settings).items() if isinstance(setting, Setting)
}

if TYPE_CHECKING:
    _Typed = Settings
else:
    _Typed = object  # with plain attributes: a loan reads some, and a `Setting` is slow to read


class Options(_Typed):
    """What a pool was given, checked. `max_connections` changes by resize().

    It has no repr, because of its secrets, and is no dataclass, which takes 2 ms to make.
    """

    # `on_release`, as it is called: with streams after one of these, and never after a loan.
    on_loan_release: Hook | None
    on_stream_release: StreamHook | None
    # Whether the end of an answer can be told; whether a release without an exception may have to
    # be followed by a drain.
    tells_ends: bool
    may_drain: bool
    # Whether an idle connection may have to be checked, or kept alive.
    has_errands: bool

    def __init__(self, given: Mapping[str, Any]) -> None:
        for name, setting in SETTINGS.items():
            vars(self)[name] = setting.check(name, given[name])
        self._check_streams()
        self.tells_ends = self.drain_until is not None or self.drain_fence
        has_check = self.check_server_data_on_release or self.on_loan_release is not None
        self.may_drain = self.tells_ends or has_check
        self.has_errands = bool(self.check_after_idle is not None or self.keepalive_interval)
        if self.min_idle > self.max_connections:
            most = f"at most max_connections={self.max_connections}"
            raise ValueError(checks.found("min_idle", self.min_idle, most))
        if self.keepalive is not None and self.keepalive_interval is None:
            raise ValueError("keepalive needs keepalive_interval, the seconds between two of them")
        for name in ("warmup_connections", "min_connections"):
            if getattr(self, name) > self.max_connections:
                warnings.warn(
                    f"{name}={getattr(self, name)} is above max_connections="
                    f"{self.max_connections}; {self.max_connections} are used",
                    UserWarning,
                    stacklevel=3,
                )
                vars(self)[name] = self.max_connections
        vars(self)["name"] = self.name or f"pool-{next(_names)}"

    def _check_streams(self) -> None:
        """Check what concerns streams, and say whose `on_release` is."""
        has_route = self.route is not None
        if self.max_streams > 1 and not has_route:
            raise ValueError(
                f"max_streams is {self.max_streams}, but route is None: say how to tell from a "
                'message whose it is, by a path such as "id" or a callable'
            )
        if has_route and self.check_server_data_on_release:
            raise ValueError(
                "check_server_data_on_release waits until a connection is silent, which one with "
                "streams (route is given) may never be: leave it out, and use drain_until or "
                "drain_fence"
            )
        hook: Any = self.on_release
        self.on_loan_release, self.on_stream_release = (None, hook) if has_route else (hook, None)

    def resize(self, max_connections: int) -> None:
        vars(self).update(max_connections=max_connections)
