"""What is shown of a pool, as JSON. No header, user-info or query value gets into it."""

from __future__ import annotations

import inspect
import json
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import version
from time import time
from typing import Any, Final

from yarl import URL

from wspool._connection.scrubbing import shown_subprotocol, shown_uri
from wspool._pool import introspection
from wspool._pool.introspection import ConnectionSnapshot, as_dict
from wspool._pool.pool import WebsocketConnectionPool

MAX_ROWS: Final = 100
"""Connections of each state in a picture, those that have been in it for longest: 20 µs apiece."""

_GIVEN: Final = frozenset(inspect.signature(WebsocketConnectionPool).parameters)


def picture(pool: WebsocketConnectionPool) -> dict[str, Any]:
    """Return what a snapshot says, but for the histories, and with `MAX_ROWS` as its limit.

    A whole snapshot with its JSON takes 15 µs a connection, twice a second: too much for 5,000.
    """
    return {
        "name": pool.name,
        "at": time(),
        "uri": shown_uri(pool.uri),
        "is_started": pool.is_started,
        "is_closed": pool.is_closed,
        "counts": introspection.counts(pool),
        "waiters": pool.waiters,
        "max_connections": pool.max_connections,
        "learned_limit": pool.learned_limit,
        "max_streams": pool.max_streams,
        "connections": [row(shown) for shown in introspection.connections(pool, MAX_ROWS)],
        "gone": [row(shown) for shown in introspection.gone(pool)],
        "waiting": [as_dict(waiter) for waiter in introspection.waiting(pool)],
        "stats": pool.stats.to_dict(),
        "failure": introspection.failure(pool),
    }


def row(shown: ConnectionSnapshot) -> dict[str, Any]:
    """Return a connection's picture, with its last move in the place of its history."""
    found = vars(shown).copy()
    borrower, history = found["borrower"], found.pop("history")
    return found | {
        "borrower": vars(borrower) if borrower is not None else None,
        "streams": [as_dict(stream) for stream in shown.streams],
        "why": history[-1].why if history else "",
        "was": history[-1].source if history else "",
    }


def connection(pool: WebsocketConnectionPool, id: str) -> dict[str, Any] | None:
    """Return one connection with its history; None when it is forgotten."""
    shown = introspection.found(pool, id)
    if shown is None:
        return None
    return row(shown) | {"history": [move._asdict() for move in shown.history]}


def settings(pool: WebsocketConnectionPool) -> dict[str, Any]:
    """Return the settings that are in force, by name; of what may be a secret only its kind."""
    options = vars(introspection.options(pool)) | {"uri": shown_uri(pool.uri)}
    headers = options["headers"]
    if isinstance(headers, Mapping):
        options["headers"] = ", ".join(map(str, headers)) or None
    given = options["connect_options"]
    shown = {name: _shown(value) for name, value in options.items() if name in _GIVEN}
    return shown | {name: _shown_option(name, value) for name, value in given.items()}


def _shown(value: Any) -> Any:
    """Return a setting of the pool's own as it is, or the name of what it does."""
    if callable(value) and not isinstance(value, type):
        return f"{getattr(value, '__qualname__', type(value).__name__)}()"
    return value if isinstance(value, bool | int | float | str | None) else type(value).__name__


def _shown_option(name: str, value: Any) -> Any:
    """Return an option of `ws_connect`, of which many may hold a secret."""
    if name == "protocols":
        return ", ".join(shown_subprotocol(str(one)) or "" for one in value)
    if name == "proxy" and isinstance(value, str | URL):
        return shown_uri(value)
    return value if isinstance(value, bool | int | float | None) else type(value).__name__


def versions() -> dict[str, str]:
    """Return what the process runs on."""
    return {
        "wspool": sys.modules["wspool"].__version__,  # the parent, which is always there
        "aiohttp": version("aiohttp"),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def dumps(value: Any) -> bytes:
    """Return JSON that is also safe where somebody takes it for HTML."""
    return json.dumps(value).replace("<", "\\u003c").encode()
