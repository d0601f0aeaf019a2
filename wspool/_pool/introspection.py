"""What the pool looks like: frozen pictures of it, for people, logs and JSON.

Nothing here changes anything, and nothing is computed before somebody looks. No header, user-info
or query value gets into a picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import time
from typing import TYPE_CHECKING, Any, Final

from wspool._connection.callsites import Borrower, at_work_in, borrowed_at, task_name
from wspool._connection.errors import shown_uri
from wspool._connection.link import Transition, WebsocketConnection
from wspool._pool.stats import Stats
from wspool._pool.waiting import Waiter

if TYPE_CHECKING:
    from wspool._pool.pool import WebsocketConnectionPool

OLDEST: Final = 100
"""Waiters in a picture, of however many."""


@dataclass(frozen=True)
class BorrowerSnapshot:
    """Who has a connection or waits for one.

    `borrowed_at` is the `file:line` of the call of `acquire`, `at` where in its own code the task
    waits now, as `file:line in function`. Both are None where there is no task.
    """

    task: str | None
    borrowed_at: str
    at: str | None


@dataclass(frozen=True)
class ConnectionSnapshot:
    """One connection. Durations are in seconds, the times of transitions in Unix seconds.

    `idle_seconds` is None unless it is idle; a check or a keepalive does not begin it anew. `rtt`
    is the last ping's round trip. Bytes are those of the messages' payload. `is_overdue`: lent for
    longer than `leak_threshold`. `borrower` is None unless a user has it. `subprotocol` is the one
    that the server chose; do not offer a secret as one.
    """

    id: int
    state: str
    seconds_in_state: float
    age: float
    uses: int
    idle_seconds: float | None
    rtt: float | None
    sent_messages: int
    sent_bytes: int
    received_messages: int
    received_bytes: int
    drained_messages: int
    subprotocol: str | None
    close_code: int | None
    close_reason: str
    borrower: BorrowerSnapshot | None
    is_overdue: bool
    history: tuple[Transition, ...]


@dataclass(frozen=True)
class WaiterSnapshot:
    """Somebody who waits in `acquire`, or, if he `wants_new`, in `acquire_new`.

    `seconds`: for how long.
    """

    seconds: float
    wants_new: bool
    borrower: BorrowerSnapshot


@dataclass(frozen=True)
class PoolSnapshot:
    """The pool at one moment: counts for each state, limits, and every connection.

    `at` is in Unix seconds. `waiters` is how many wait, `waiting` the 100 oldest of them. `gone`
    are the last 32 connections that have left, with the reason in their history.
    """

    name: str
    at: float
    uri: str
    is_started: bool
    is_closed: bool
    counts: dict[str, int]
    waiters: int
    max_connections: int
    min_connections: int
    max_connecting: int
    connections: tuple[ConnectionSnapshot, ...]
    gone: tuple[ConnectionSnapshot, ...]
    waiting: tuple[WaiterSnapshot, ...]
    stats: Stats

    def to_dict(self) -> dict[str, Any]:
        """Return it as dicts, lists, strings and numbers, as `json.dumps` takes them."""
        return vars(self) | {
            "counts": dict(self.counts),
            "connections": [as_dict(connection) for connection in self.connections],
            "gone": [as_dict(connection) for connection in self.gone],
            "waiting": [as_dict(waiter) for waiter in self.waiting],
            "stats": self.stats.to_dict(),
        }


def as_dict(shown: ConnectionSnapshot | WaiterSnapshot) -> dict[str, Any]:
    """Do what `dataclasses.asdict` does, in a fifth of the time."""
    picture = dict(vars(shown))
    if shown.borrower is not None:
        picture["borrower"] = dict(vars(shown.borrower))
    if isinstance(shown, ConnectionSnapshot):
        picture["history"] = [line._asdict() for line in shown.history]
    return picture


def snapshot_connection(
    connection: WebsocketConnection, leak_threshold: float | None = None
) -> ConnectionSnapshot:
    now = connection.clock()
    borrower = connection.borrower
    is_idle = connection in connection.queues.idle
    return ConnectionSnapshot(
        id=connection.id,
        state=str(connection.state),
        seconds_in_state=connection.seconds_in_state,
        age=now - connection.born,
        uses=connection.uses,
        idle_seconds=now - connection.idle_since if is_idle else None,
        rtt=connection.rtt,
        sent_messages=connection.sent_messages,
        sent_bytes=connection.sent_bytes,
        received_messages=connection.received_messages,
        received_bytes=connection.received_bytes,
        drained_messages=connection.drained_messages,
        subprotocol=connection.subprotocol,
        close_code=connection.close_code,
        close_reason=connection.close_reason,
        borrower=_snapshot_borrower(borrower) if borrower is not None else None,
        is_overdue=connection.is_overdue(leak_threshold),
        history=connection.history,
    )


def _snapshot_borrower(borrower: Borrower) -> BorrowerSnapshot:
    return BorrowerSnapshot(task_name(borrower), borrowed_at(borrower), at_work_in(borrower))


def snapshot_waiter(waiter: Waiter, now: float) -> WaiterSnapshot:
    return WaiterSnapshot(now - waiter.since, waiter.wants_new, _snapshot_borrower(waiter.borrower))


def snapshot_pool(pool: WebsocketConnectionPool) -> PoolSnapshot:
    router = pool.router
    options, queues = router.options, router.queues
    waiters = list(router.line)
    threshold = options.leak_threshold
    return PoolSnapshot(
        name=pool.name,
        at=time(),
        uri=shown_uri(pool.uri),
        is_started=pool.is_started,
        is_closed=pool.is_closed,
        counts={str(state): count for state, count in queues.counts().items()},
        waiters=len(waiters),
        max_connections=options.max_connections,
        min_connections=options.min_connections,
        max_connecting=options.max_connecting,
        connections=tuple(snapshot_connection(c, threshold) for c in queues),
        gone=tuple(snapshot_connection(c) for c in list(queues.gone)),
        waiting=tuple(snapshot_waiter(w, router.clock()) for w in waiters[:OLDEST]),
        stats=pool.stats.copy(),
    )
