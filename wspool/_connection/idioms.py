"""What is written for other pools: errors that say what to write here.

Type checkers see none of it: they refuse what is wrong by themselves. Nor does a right use reach
it, but for what `acquire` returns, which is wrapped: a coroutine cannot be taught what to say.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine, Generator
from operator import attrgetter, itemgetter
from typing import Any, Concatenate, Final, Never, ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")

ELSEWHERE: Final = {
    "close": "close_all",
    "connect": "get_connection",
    "connection": "get_connection",
    "disconnect": "close_all",
    "dispose": "close_all",
    "freesize": "available_connections",
    "get": "acquire",
    "get_idle_size": "available_connections",
    "get_max_size": "max_connections",
    "get_min_size": "min_connections",
    "get_size": "total_connections",
    "get_stats": "stats",
    "getconn": "acquire",
    "invalidate": "expire_connections",
    "max_size": "max_connections",
    "maxsize": "max_connections",
    "min_size": "min_connections",
    "minsize": "min_connections",
    "open": "start",
    "put": "release",
    "putconn": "release",
    "size": "total_connections",
    "terminate": "close_all",
    "wait_closed": "close_all",
}
"""What other pools have, and what is here for it."""


class Elsewhere:
    """An attribute that other pools have. There is none here: reading it says what there is.

    A `__getattr__` would do too, but it makes each right attribute slower.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, pool: object, kind: type) -> Never:
        what = f"{kind.__name__!r} object has no attribute {self._name!r}"
        instead = ELSEWHERE[self._name]
        raise AttributeError(f"{what}: use {instead}", name=self._name, obj=pool)


def refusing(advice: str) -> Callable[..., Never]:
    """Return a method, such as the `__enter__` of what has to be entered by `async with`."""

    def refuse(self: object, *arguments: object) -> Never:
        raise TypeError(advice)

    return refuse


def refuse_position(method: str, given: tuple[object, ...]) -> Never:
    """Refuse arguments without their names; `timeout` is the only one there is."""
    seconds = given[0] if isinstance(given[0], (int, float)) else "…"
    raise TypeError(f"{method}() takes its timeout by name: write {method}(timeout={seconds})")


def shown_as(
    shown: Callable[P, object],
) -> Callable[[Callable[..., R]], Callable[Concatenate[Any, P], R]]:
    """Let a method be checked, and shown, with these arguments: it tells of any others itself."""

    def decorate(method: Callable[..., R]) -> Callable[Concatenate[Any, P], R]:
        signature = inspect.signature(method)
        kept = [p for p in signature.parameters.values() if p.kind is not p.VAR_POSITIONAL]
        vars(method)["__signature__"] = signature.replace(parameters=kept)
        return method

    return decorate


class Borrowing(tuple[Coroutine[Any, Any, Any]]):
    """The coroutine of an `acquire`, and what to write in the place of entering it.

    It costs a loan 0.3 µs, of 4. A task takes it for a coroutine.
    """

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, Any]:
        return self[0].__await__()

    _coroutine = property(itemgetter(0))
    send = property(attrgetter("_coroutine.send"))
    throw = property(attrgetter("_coroutine.throw"))
    close = property(attrgetter("_coroutine.close"))

    # What is told of a task.
    __name__ = property(attrgetter("_coroutine.__qualname__"))
    cr_await = property(attrgetter("_coroutine.cr_await"))
    cr_code = property(attrgetter("_coroutine.cr_code"))
    cr_frame = property(attrgetter("_coroutine.cr_frame"))
    cr_running = property(attrgetter("_coroutine.cr_running"))

    def __repr__(self) -> str:
        return repr(self._coroutine)

    def _refuse(self, *arguments: object) -> Never:
        name = self._coroutine.__name__
        block = name.replace("acquire", "get") + "_connection"
        self.close()
        raise TypeError(
            f"{name}() is awaited, and what it returns is given back with release(): write "
            f"`async with pool.{block}() as connection:`, or `connection = await pool.{name}()`"
        )

    __aenter__ = __aexit__ = __enter__ = __exit__ = __aiter__ = __iter__ = _refuse


def awaited(method: Callable[P, R]) -> Callable[P, R]:
    """Let what an `acquire` returns say what to write to whoever enters it."""

    made = cast(Any, method)

    @functools.wraps(method)
    def call(pool: Any, *wrong: object, **options: Any) -> Any:
        if wrong:
            refuse_position(made.__name__, wrong)
        return Borrowing((made(pool, **options),))

    # It is a coroutine function for whoever asks, such as a mock or a web framework.
    if hasattr(inspect, "markcoroutinefunction"):  # from Python 3.12 on
        return cast(Callable[P, R], inspect.markcoroutinefunction(call))
    vars(call)["_is_coroutine"] = vars(asyncio.coroutines)["_is_coroutine"]
    return cast(Callable[P, R], call)
