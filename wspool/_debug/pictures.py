"""What is shown of a pool or a group, as JSON. No header, user-info or query value gets into it."""

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
from wspool._group import looking
from wspool._group.looking import Membership, Shown
from wspool._group.pools import WebsocketPools
from wspool._pool import introspection
from wspool._pool.introspection import ConnectionSnapshot, Pool, as_dict
from wspool._pool.pool import WebsocketConnectionPool

MAX_ROWS: Final = 100
"""Connections of each state in a picture, those that have been in it for longest: 20 µs apiece.

So many members of a group, too.
"""

_GIVEN: Final = frozenset(inspect.signature(WebsocketConnectionPool).parameters)


def picture(shown: Shown) -> dict[str, Any]:
    """Return what a snapshot says, but for the histories, and with `MAX_ROWS` as its limit.

    A whole snapshot with its JSON takes 15 µs a connection, twice a second: too much for 5,000.
    """
    pools = looking.pools_of(shown)
    return {
        "name": shown.name,
        "at": time(),
        "is_started": looking.is_started(shown),
        "is_closed": shown.is_closed,
        "counts": looking.counts(shown),
        "places": looking.places(shown),
        "waiters": shown.waiters,
        "max_connections": shown.max_connections,
        "connections": [row(*found) for found in introspection.connections(pools, MAX_ROWS)],
        "gone": [row(*found) for found in introspection.gone(pools)],
        "waiting": [as_dict(waiter) for waiter in looking.waiting(shown)],
        "stats": shown.stats.to_dict(),
        **(_of_a_group(shown) if isinstance(shown, WebsocketPools) else _of_a_pool(shown)),
    }


def _of_a_pool(pool: WebsocketConnectionPool) -> dict[str, Any]:
    return {
        "uri": shown_uri(pool.uri),
        "learned_limit": pool.learned_limit,
        "failure": introspection.failure(pool),
        "members": None,
    }


def _of_a_group(group: WebsocketPools) -> dict[str, Any]:
    """Return what is a group's alone, with those of its members first that give cause to look."""
    trouble = group.trouble
    members = looking.members_of(group)
    order = {"out": 0, "removed": 1, "in": 2}
    members.sort(
        key=lambda one: (order[one.health], -one.pool.waiters, -one.pool.total_connections)
    )
    return {
        "uri": "",
        "learned_limit": None,
        "failure": trouble.failure if trouble is not None else None,
        "members": {
            **{health: sum(one.health == health for one in members) for health in order},
            "rows": [_member(one) for one in members[:MAX_ROWS]],
        },
    }


def _member(member: Membership) -> dict[str, Any]:
    pool = member.pool
    return {
        "key": member.key,
        "pool": pool.name,
        "health": member.health,
        "out_until": member.out_until,
        "why": member.why or introspection.failure(pool) or "",
        "losses": member.losses,
        "counts": introspection.counts(pool),
        "waiters": pool.waiters,
        "max_connections": pool.max_connections,
        "learned_limit": pool.learned_limit,
        "borrows": pool.stats.borrows,
    }


def row(pool: Pool, shown: ConnectionSnapshot) -> dict[str, Any]:
    """Return a connection's picture, with its last move in the place of its history."""
    found = vars(shown).copy()
    borrower, history = found["borrower"], found.pop("history")
    return found | {
        "pool": pool.name,
        "max_streams": introspection.options(pool).max_streams,
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
    return row(pool, shown) | {"history": [move._asdict() for move in shown.history]}


def settings(shown: Shown) -> dict[str, Any]:
    """Return the settings that are in force, by name; of what may be a secret only its kind."""
    if isinstance(shown, WebsocketPools):
        names = ("max_connections", "choose", "acquire_timeout")
        return {name: getattr(shown, name) for name in names}
    options = vars(introspection.options(shown)) | {"uri": shown_uri(shown.uri)}
    headers = options["headers"]
    if isinstance(headers, Mapping):
        options["headers"] = ", ".join(map(str, headers)) or None
    given = options["connect_options"]
    found = {name: _shown(value) for name, value in options.items() if name in _GIVEN}
    return found | {name: _shown_option(name, value) for name, value in given.items()}


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
