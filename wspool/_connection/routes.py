"""Routes: which key a message carries, and with that, whose message it is on a shared connection.

A route is a path into the message's JSON, several of which the first present counts, or a callable.
This file knows neither connections nor streams.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final

Route = str | Sequence[str] | Callable[[str | bytes], Hashable]
"""Where a message says whose it is."""

UNPARSED: Final[Any] = object()
"""In the place of a message's JSON, where nobody has parsed it yet."""

Sort = Callable[[str | bytes], tuple[Any, Any]]
"""Returns the key of a message, None if it is nobody's, and its JSON, if that was parsed."""


def check_route(route: object) -> None:
    """Raise TypeError or ValueError for what is no route."""
    allowed = (
        'a path such as "id" or "header.task_id", several of these, or a plain callable that takes '
        "the message and returns its key"
    )
    if callable(route):
        if any(map(inspect.iscoroutinefunction, (route, type(route).__call__))):
            raise TypeError(f"route is {route!r}; it must be {allowed}")
        return
    paths = (route,) if isinstance(route, str) else route
    if not isinstance(paths, (tuple, list)) or not all(isinstance(path, str) for path in paths):
        raise TypeError(f"route is {route!r}; it must be {allowed}")
    if not paths or not all(part for path in paths for part in path.split(".")):
        raise ValueError(f"route is {route!r}; it must be {allowed}")


def sorting(route: Route) -> Sort:
    """Return what finds the key of a message. It raises what a callable raises."""
    if not callable(route):
        paths = (route,) if isinstance(route, str) else tuple(route)
        return _sorting_by([path.split(".") for path in paths])

    def sort(message: str | bytes) -> tuple[Any, Any]:
        return route(message), UNPARSED

    return sort


def _sorting_by(paths: list[list[str]]) -> Sort:
    def sort(message: str | bytes) -> tuple[Any, Any]:
        try:
            value = json.loads(message)
        except (ValueError, RecursionError):
            return None, UNPARSED
        for path in paths:
            found = value
            for part in path:
                found = found.get(part) if type(found) is dict else _item(found, part)
                if found is None:
                    break
            else:
                return found, value
        return None, value

    return sort


def _item(value: Any, part: str) -> Any:
    """Return the item of a list that a number counts from 0, or None."""
    if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
        return value[int(part)]
    return None
