"""What a group looks like: frozen pictures of it, for people, logs and JSON."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from time import time
from typing import Any

from wspool._connection.exporting import exported
from wspool._group.members import Member
from wspool._group.roster import Roster
from wspool._pool.introspection import PoolSnapshot


@exported
@dataclass(frozen=True)
class MemberSnapshot:
    """One pool of a group.

    `is_in`: whether it serves those who borrow without a key. `out_until` is when it is probed
    next, in Unix seconds, and `why` it is out; None and "" while it is in. `losses` are the
    connections that were lost in loans since one has ended well.
    """

    key: Hashable
    is_in: bool
    out_until: float | None
    why: str
    losses: int
    pool: PoolSnapshot


@exported
@dataclass(frozen=True)
class GroupSnapshot:
    """A group at one moment. `at` is in Unix seconds; `waiters` is how many wait, in all pools."""

    name: str
    at: float
    is_closed: bool
    choose: str
    max_connections: int
    total_connections: int
    waiters: int
    members: tuple[MemberSnapshot, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as dicts, lists, strings and numbers, with the keys as text."""
        members = [
            vars(member) | {"key": str(member.key), "pool": member.pool.to_dict()}
            for member in self.members
        ]
        return vars(self) | {"members": members}


def snapshot_group(roster: Roster, choose: str) -> GroupSnapshot:
    return GroupSnapshot(
        name=roster.name,
        at=time(),
        is_closed=roster.is_closing,
        choose=choose,
        max_connections=roster.total.limit,
        total_connections=roster.open,
        waiters=roster.waiting,
        members=tuple(_snapshot(member) for member in list(roster.members.values())),
    )


def _snapshot(member: Member) -> MemberSnapshot:
    health = member.health
    until = health.out_until
    clock = getattr(member.router, "clock", None)
    return MemberSnapshot(
        key=member.key,
        is_in=health.is_in,
        out_until=until - clock() + time() if until is not None and clock is not None else None,
        why=health.why,
        losses=health.losses,
        pool=member.pool.snapshot(),
    )
