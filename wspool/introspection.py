"""What the pool looks like: frozen pictures of it, for people, logs and JSON.

Nothing here changes anything, and nothing is computed before somebody looks. No header, user-info
or query value gets into a picture.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from wspool.connection import Transition, WebsocketConnection
from wspool.errors import scrub_uri
from wspool.stats import Stats

if TYPE_CHECKING:
    from wspool.pool import WebsocketConnectionPool


@dataclass(frozen=True)
class ConnectionSnapshot:
    """One connection. Times are in seconds, those of transitions in Unix seconds."""

    id: int
    state: str
    seconds_in_state: float
    age: float
    uses: int
    close_code: int | None
    close_reason: str
    drained_messages: int
    history: tuple[Transition, ...]


@dataclass(frozen=True)
class PoolSnapshot:
    """The pool at one moment: counts for each state, limits, and every connection.

    `gone` are the last 32 connections that have left, with the reason in their history.
    """

    name: str
    uri: str
    is_started: bool
    is_closed: bool
    counts: dict[str, int]
    waiters: int
    max_connections: int
    max_connecting: int
    connections: tuple[ConnectionSnapshot, ...]
    gone: tuple[ConnectionSnapshot, ...]
    stats: Stats

    def to_dict(self) -> dict[str, Any]:
        """Return it as dicts, lists, strings and numbers, as `json.dumps` takes them."""
        picture = asdict(self)
        picture["stats"]["closes"] = dict(self.stats.closes)  # asdict garbles a Counter
        for connection in itertools.chain(picture["connections"], picture["gone"]):
            connection["history"] = [line._asdict() for line in connection["history"]]
        return picture


def snapshot_connection(connection: WebsocketConnection) -> ConnectionSnapshot:
    now = connection.clock()
    history = connection.history
    entered = connection.moves[-1][1] if connection.moves else connection.born
    return ConnectionSnapshot(
        id=connection.id,
        state=str(connection.state),
        seconds_in_state=now - entered,
        age=now - connection.born,
        uses=connection.uses,
        close_code=connection.close_code,
        close_reason=connection.close_reason,
        drained_messages=connection.drained_messages,
        history=history,
    )


def snapshot_pool(pool: WebsocketConnectionPool) -> PoolSnapshot:
    queues = pool.router.queues
    return PoolSnapshot(
        name=pool.name,
        uri=shown_uri(pool.uri),
        is_started=pool.is_started,
        is_closed=pool.is_closed,
        counts={str(state): count for state, count in queues.counts().items()},
        waiters=pool.waiters,
        max_connections=pool.router.options.max_connections,
        max_connecting=pool.router.options.max_connecting,
        connections=tuple(map(snapshot_connection, queues)),
        gone=tuple(map(snapshot_connection, list(queues.gone))),
        stats=replace(pool.stats, closes=pool.stats.closes.copy()),
    )


def shown_uri(uri: object) -> str:
    """Return the URI as it may be shown; a callable by its name."""
    if callable(uri):
        return f"{getattr(uri, '__qualname__', type(uri).__name__)}()"
    return scrub_uri(uri)
