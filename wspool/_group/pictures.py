"""What a group looks like: frozen pictures of it, for people, logs and JSON."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from time import time
from typing import Any

from wspool._connection.borrow import Borrow
from wspool._connection.exporting import exported
from wspool._connection.states import State
from wspool._group.members import Member
from wspool._group.roster import Roster
from wspool._pool import introspection
from wspool._pool.introspection import PoolSnapshot, Trouble, WaiterSnapshot, as_dict
from wspool._pool.pool import WebsocketConnectionPool
from wspool._pool.stats import Stats


@exported
@dataclass(frozen=True)
class MemberSnapshot:
    """One pool of a group.

    `is_in`: whether it serves those who borrow without a key. `out_until` is when it is probed
    next, in Unix seconds, and `why` it is out; None and "" while it is in. `losses` are the
    connections that were lost in loans since one has ended well. `is_removed`: it serves nobody any
    more, and closes when its loans are over; its key may have a new pool.
    """

    key: Hashable
    is_in: bool
    out_until: float | None
    why: str
    losses: int
    is_removed: bool
    pool: PoolSnapshot


@exported
@dataclass(frozen=True)
class GroupSnapshot:
    """A group at one moment. `at` is in Unix seconds.

    `counts` and `stats` are of all pools together, those that are gone included. `waiters` is how
    many wait, for one pool or for any, `waiting` the 100 oldest of them.
    """

    name: str
    at: float
    is_started: bool
    is_closed: bool
    choose: str
    max_connections: int
    total_connections: int
    counts: dict[str, int]
    waiters: int
    waiting: tuple[WaiterSnapshot, ...]
    stats: Stats
    members: tuple[MemberSnapshot, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as dicts, lists, strings and numbers, with the keys as text."""
        members = [
            vars(member) | {"key": key_text(member.key), "pool": member.pool.to_dict()}
            for member in self.members
        ]
        return vars(self) | {
            "counts": dict(self.counts),
            "waiting": [as_dict(waiter) for waiter in self.waiting],
            "stats": self.stats.to_dict(),
            "members": members,
        }


def snapshot_group(roster: Roster, choose: str) -> GroupSnapshot:
    known, waiters = roster.known, roster.all_waiting()
    pools = [member.pool for member in known]
    return GroupSnapshot(
        name=roster.name,
        at=time(),
        is_started=roster.is_started,
        is_closed=roster.is_closing,
        choose=choose,
        max_connections=roster.total.limit,
        total_connections=roster.open,
        counts={str(state): count for state, count in counts(pools).items()},
        waiters=len(waiters),
        waiting=tuple(waiting(pools, waiters)),
        stats=roster.account.total,
        members=tuple(_snapshot(member, roster) for member in known),
    )


def _snapshot(member: Member, roster: Roster) -> MemberSnapshot:
    return MemberSnapshot(
        key=member.key,
        is_in=member.health.is_in,
        out_until=out_until(member),
        why=member.health.why,
        losses=member.health.losses,
        is_removed=is_removed(member, roster),
        pool=member.pool.snapshot(),
    )


def key_text(key: Hashable) -> str:
    """Return a key as text, whatever it does when it is asked for that."""
    try:
        return str(key)
    except Exception:
        return f"a {type(key).__name__}"


def out_until(member: Member) -> float | None:
    """Return until when a member is out, in Unix seconds."""
    until = member.health.out_until
    return until - member.router.clock() + time() if until is not None else None


def is_removed(member: Member, roster: Roster) -> bool:
    return roster.members.get(member.key) is not member


def counts(pools: Iterable[WebsocketConnectionPool]) -> Counter[State]:
    """Return how many connections are in each state, of all these pools."""
    total = Counter(dict.fromkeys(State, 0))
    for pool in pools:
        total.update(introspection.counts(pool))
    return total


def waiting(pools: Sequence[WebsocketConnectionPool], loans: list[Borrow]) -> list[WaiterSnapshot]:
    """Return the oldest of those who wait in these pools' loop."""
    oldest = heapq.nsmallest(introspection.MAX_WAITERS, loans, key=lambda loan: loan._since)
    return introspection.waiting(oldest, now_of(pools)) if oldest else []


def now_of(pools: Iterable[WebsocketConnectionPool]) -> float:
    """Return the time of these pools' loop; 0 while they belong to none."""
    return next((pool._router.clock() for pool in pools if pool.is_started), 0.0)


def trouble_of(roster: Roster) -> Trouble | None:
    """Return the trouble of the pool that is dialled next, if all pools are in trouble."""
    troubles = []
    for member in list(roster.members.values()):
        trouble = member.pool.trouble
        if trouble is None:
            return None
        troubles.append(trouble)
    return min(troubles, key=lambda trouble: trouble.next_attempt or 0.0, default=None)
