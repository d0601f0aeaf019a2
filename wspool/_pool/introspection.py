"""What the pool looks like: frozen pictures of it, for people, logs and JSON.

Nothing here changes anything, and nothing is computed before somebody looks. No header, user-info
or query value gets into a picture.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from time import time
from typing import Any, Final, Protocol

from wspool._connection.borrow import Borrow
from wspool._connection.callsites import Callsite, at_work_in, line_of, task_name
from wspool._connection.exporting import exported
from wspool._connection.link import Link, Transition
from wspool._connection.queues import MAX_GONE
from wspool._connection.scrubbing import shown_subprotocol, shown_uri
from wspool._connection.sharing import Lane
from wspool._connection.states import State
from wspool._pool.options import Options
from wspool._pool.routing import Router
from wspool._pool.stats import Stats
from wspool._pool.streaming import lanes_of

MAX_WAITERS: Final = 100
"""Those in a picture, of however many; the oldest."""


@exported
@dataclass(frozen=True)
class BorrowerSnapshot:
    """The task that has a connection, or waits for one.

    `borrowed_at` is the `file:line` of the call of `acquire`, `at` where in its own code the task
    waits now, as `file:line in function`. Both are None where there is no task.
    """

    task: str | None
    borrowed_at: str
    at: str | None


@exported
@dataclass(frozen=True)
class StreamSnapshot:
    """One stream of a connection, lent (`state` busy) or draining, for `seconds_in_state`.

    `keys` says how many it has claimed, `unread_messages` and `unread_bytes` what has come and was
    not read. `is_overdue`: lent for longer than `leak_threshold`.
    """

    slot: int
    number: int
    state: str
    seconds_in_state: float
    keys: int
    unread_messages: int
    unread_bytes: int
    borrower: BorrowerSnapshot | None
    is_overdue: bool


@exported
@dataclass(frozen=True)
class ConnectionSnapshot:
    """One connection. Durations are in seconds, the times of transitions in Unix seconds.

    `idle_seconds` is None unless it is idle; a check or a keepalive does not begin it anew. `rtt`
    is the last ping's round trip. Bytes are those of the messages' payload. `is_overdue`: lent for
    longer than `leak_threshold`. `borrower` is None unless a user has it alone; `streams` are those
    of users that share it. `subprotocol` is the one that the server chose, or "…" if it looks like
    a key.
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
    streams: tuple[StreamSnapshot, ...] = ()


@exported
@dataclass(frozen=True)
class WaiterSnapshot:
    """A caller that waits in `acquire` or, with `wants_new`, in `acquire_new`.

    `seconds`: for how long.
    """

    seconds: float
    wants_new: bool
    borrower: BorrowerSnapshot


@exported
@dataclass(frozen=True)
class Trouble:
    """Why dials fail: the last one has, and no connection has lived since.

    `kind` is that of the `ConnectionUnavailableError`, `failure` its text, without secrets.
    `attempts` have failed in a row since `since`. `next_attempt` is when the next is due, None
    while one is under way or none is wanted. The two times are in Unix seconds.
    """

    kind: str
    since: float
    attempts: int
    next_attempt: float | None
    failure: str


@exported
@dataclass(frozen=True)
class PoolSnapshot:
    """The pool at one moment: counts for each state, limits, and every connection.

    `at` is in Unix seconds. `waiters` is how many wait, `waiting` the 100 oldest of them. `gone`
    are the last 32 connections that have left, with the reason in their history. `failure` is why
    the last attempt of a dial has failed, None once a connection has lived. `learned_limit` is how
    many the server admits, None while that is not known.
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
    failure: str | None = None
    learned_limit: int | None = None
    max_streams: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Return it as dicts, lists, strings and numbers, as `json.dumps` takes them."""
        return vars(self) | {
            "counts": dict(self.counts),
            "connections": [as_dict(connection) for connection in self.connections],
            "gone": [as_dict(connection) for connection in self.gone],
            "waiting": [as_dict(waiter) for waiter in self.waiting],
            "stats": self.stats.to_dict(),
        }


def as_dict(shown: ConnectionSnapshot | StreamSnapshot | WaiterSnapshot) -> dict[str, Any]:
    """Do what `dataclasses.asdict` does, in a fifth of the time."""
    picture = dict(vars(shown))
    if shown.borrower is not None:
        picture["borrower"] = dict(vars(shown.borrower))
    if isinstance(shown, ConnectionSnapshot):
        picture["history"] = [move._asdict() for move in shown.history]
        picture["streams"] = [as_dict(stream) for stream in shown.streams]
    return picture


class Pool(Protocol):
    """What is looked at: either pool."""

    name: str

    @property
    def uri(self) -> Any: ...
    @property
    def is_started(self) -> bool: ...
    @property
    def is_closed(self) -> bool: ...
    @property
    def _router(self) -> Router: ...


def snapshot_pool(pool: Pool) -> PoolSnapshot:
    router = pool._router
    options = router.options
    now = router.clock() if router.line else 0.0
    return PoolSnapshot(
        name=pool.name,
        at=time(),
        uri=shown_uri(pool.uri),
        is_started=pool.is_started,
        is_closed=pool.is_closed,
        counts={str(state): count for state, count in counts(pool).items()},
        waiters=len(router.line),
        max_connections=options.max_connections,
        min_connections=options.min_connections,
        max_connecting=options.max_connecting,
        connections=tuple(_snapshot(link, router) for link in router.queues),
        gone=tuple(shown for _, shown in gone([pool])),
        waiting=tuple(waiting(router.line, now)),
        stats=router.stats.copy(),
        failure=failure(pool),
        learned_limit=router.limit.learned,
        max_streams=options.max_streams,
    )


def counts(pool: Pool) -> dict[State, int]:
    """Return how many connections are in each state; from any thread."""
    return pool._router.queues.counts()


def streams(pool: Pool) -> dict[State, int]:
    """Return how many streams are lent, and how many are draining; from any thread.

    It looks at each of them, in a pool that has any: 1,000 take 0.1 ms.
    """
    router = pool._router
    links = list(router.queues.busy) if router.streaming.has_route else []
    # A link may lose its sharing's lanes, but never its sharing.
    shared = [list(link.sharing.lanes.values()) for link in links if link.is_shared]
    draining = sum(lane.is_draining for lanes in shared for lane in lanes)
    return {State.BUSY: sum(map(len, shared)) - draining, State.DRAINING: draining}


def options(pool: Pool) -> Options:
    """Return the settings in force, secrets included."""
    return pool._router.options


def pulse(pool: Pool) -> dict[tuple[str, int], State]:
    """Return each connection's state by the pool's name and its id."""
    return {(pool.name, link.id): link.state for link in pool._router.queues}


def settle(pool: Pool) -> None:
    """Let the listeners hear what has been published, as they do soon by themselves.

    They are called in the pool's loop alone: elsewhere this does nothing.
    """
    router = pool._router
    if pool.is_started and router.tasks.loop is asyncio._get_running_loop():
        router.events.tell()


def failure(pool: Pool) -> str | None:
    """Return why the last attempt of a dial has failed; None once a connection has lived."""
    error = pool._router.gate.failure
    return str(error) if error is not None else None


def trouble(pool: Pool) -> Trouble | None:
    """Return why dials fail; None once a connection has lived. From any thread."""
    router = pool._router
    gate = router.gate
    error, due = gate.failure, gate.next_attempt
    if error is None:
        return None
    next_attempt = due - router.clock() + time() if due is not None else None
    return Trouble(error.kind, gate.failing_since, gate.failures, next_attempt, str(error))


Found = tuple[Pool, ConnectionSnapshot]
"""A connection, with the pool that it is one of."""


def connections(pools: Sequence[Pool], most: int) -> list[Found]:
    """Return at most so many of each state, those that have been in it for longest."""
    shown: list[Found] = []
    for state in State:
        known = [
            (pool, link) for pool in pools for link in islice(pool._router.queues[state], most)
        ]
        if len(pools) > 1:
            known.sort(key=lambda one: _last_moved(one[1]))
        shown += [(pool, _snapshot(link, pool._router)) for pool, link in known[:most]]
    return shown


def gone(pools: Sequence[Pool]) -> list[Found]:
    """Return the last connections that have left, in that order."""
    known = [(pool, link) for pool in pools for link in list(pool._router.queues.gone)]
    if len(pools) > 1:
        known.sort(key=lambda one: _last_moved(one[1]))
    return [(pool, _snapshot(link, pool._router)) for pool, link in known[-MAX_GONE:]]


def _last_moved(link: Link) -> float:
    return link.moves[-1][1] if link.moves else link.born


def found(pool: Pool, id: str) -> ConnectionSnapshot | None:
    """Return the connection of this id, if it is not forgotten yet."""
    router = pool._router
    known = chain(router.queues, list(router.queues.gone))
    return next((_snapshot(link, router) for link in known if str(link.id) == id), None)


def waiting(loans: Iterable[Borrow], now: float) -> list[WaiterSnapshot]:
    """Return those who wait, oldest first, up to a number; one time for all, so that it is so."""
    return [_snapshot_waiter(loan, now) for loan in islice(loans, MAX_WAITERS)]


def _snapshot(link: Link, router: Router) -> ConnectionSnapshot:
    now, wire, loan = link.clock(), link.wire, link.loan
    is_idle = link in link.queues.idle
    threshold = router.options.leak_threshold
    streams = tuple(_snapshot_stream(lane, threshold) for lane in lanes_of(link))
    return ConnectionSnapshot(
        id=link.id,
        state=str(link.state),
        seconds_in_state=link.seconds_in_state,
        age=now - link.born,
        uses=link.uses,
        idle_seconds=now - link.idle_since if is_idle else None,
        rtt=wire.rtt if wire is not None else None,
        sent_messages=wire.sent_messages if wire is not None else 0,
        sent_bytes=wire.sent_bytes if wire is not None else 0,
        received_messages=wire.received_messages if wire is not None else 0,
        received_bytes=wire.received_bytes if wire is not None else 0,
        drained_messages=link.drained_messages,
        subprotocol=shown_subprotocol(wire.websocket.protocol) if wire is not None else None,
        close_code=link.close_code,
        close_reason=link.close_reason,
        borrower=_snapshot_borrower(loan._callsite) if loan and not link.is_shared else None,
        is_overdue=link.is_overdue(threshold) or any(stream.is_overdue for stream in streams),
        history=link.history,
        streams=streams,
    )


def _snapshot_stream(lane: Lane, threshold: float | None) -> StreamSnapshot:
    seconds, callsite = lane.sharing.link.clock() - lane.since, lane.callsite
    return StreamSnapshot(
        slot=lane.slot,
        number=lane.number,
        state=str(lane.state),
        seconds_in_state=seconds,
        keys=len(lane.keys),
        unread_messages=len(lane.entries),
        unread_bytes=lane.unread_bytes,
        borrower=_snapshot_borrower(callsite) if lane.is_lent and callsite is not None else None,
        is_overdue=lane.is_lent and threshold is not None and seconds > threshold,
    )


def _snapshot_borrower(callsite: Callsite) -> BorrowerSnapshot:
    return BorrowerSnapshot(task_name(callsite), line_of(callsite), at_work_in(callsite))


def _snapshot_waiter(loan: Borrow, now: float) -> WaiterSnapshot:
    assert loan._callsite is not None
    return WaiterSnapshot(now - loan._since, loan._wants_new, _snapshot_borrower(loan._callsite))
