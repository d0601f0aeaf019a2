"""What there is to look at: a pool, or a group of them, of which a pool is the case of one.

Exporters and pages see either through these functions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final, NamedTuple

from wspool._connection.borrow import Borrow
from wspool._connection.states import State
from wspool._group import pictures
from wspool._group.members import Member
from wspool._group.pools import WebsocketPools
from wspool._group.roster import Roster
from wspool._pool import introspection
from wspool._pool.introspection import WaiterSnapshot
from wspool._pool.pool import WebsocketConnectionPool
from wspool._pool.stats import Stats

Shown = WebsocketConnectionPool | WebsocketPools


def pools_of(shown: Shown) -> list[WebsocketConnectionPool]:
    """Return the pools; of a group those that were removed too, until they are closed."""
    if isinstance(shown, WebsocketConnectionPool):
        return [shown]
    return [member.pool for member in shown._roster.known]


def by_name(shown: Iterable[Shown]) -> dict[str, WebsocketConnectionPool]:
    """Return all their pools; of two of one name the first that is open."""
    found: dict[str, WebsocketConnectionPool] = {}
    for one in shown:
        for pool in pools_of(one):
            if pool.name not in found or found[pool.name].is_closed:
                found[pool.name] = pool
    return found


def groups_of(shown: Iterable[Shown]) -> list[WebsocketPools]:
    """Return the groups among them."""
    return [one for one in shown if isinstance(one, WebsocketPools)]


class Unserved(NamedTuple):
    """Those whom no pool of a group serves: how many wait, and what became of others."""

    waiters: int
    stats: Stats


OF_UNSERVED: Final = {"pending_requests", "waits", "wait_seconds", "timeouts", "refusals"}
"""The metrics that there are of them."""


def unserved(shown: Iterable[Shown]) -> dict[str, Unserved]:
    """Return those whom no pool of a group serves, by the group's name."""
    rosters = [group._roster for group in groups_of(shown)]
    return {roster.name: Unserved(len(roster.unserved), roster.account.stats) for roster in rosters}


class Membership(NamedTuple):
    """A pool of a group and how it stands there: "in", "out" or "removed".

    `out_until` is in Unix seconds, None unless it is out.
    """

    key: str
    pool: WebsocketConnectionPool
    health: str
    out_until: float | None
    why: str
    losses: int


def members_of(group: WebsocketPools) -> list[Membership]:
    """Return the members of a group, and those that were removed and are not closed yet."""
    return [_membership(member, group._roster) for member in group._roster.known]


def _membership(member: Member, roster: Roster) -> Membership:
    health = member.health
    standing = "in" if health.is_in else "out"
    if pictures.is_removed(member, roster):
        standing = "removed"
    until = pictures.out_until(member)
    key = pictures.key_text(member.key)
    return Membership(key, member.pool, standing, until, health.why, health.losses)


def is_started(shown: Shown) -> bool:
    """Return whether it belongs to an event loop."""
    if isinstance(shown, WebsocketConnectionPool):
        return shown.is_started
    return shown._roster.is_started


def waiting(shown: Shown) -> list[WaiterSnapshot]:
    """Return the oldest of those who wait, for one pool or for any."""
    return pictures.waiting(pools_of(shown), _loans(shown))


def counts(shown: Shown) -> Counter[State]:
    """Return how many connections are in each state."""
    return pictures.counts(pools_of(shown))


def places(shown: Shown) -> int:
    """Return how many places are taken of `max_connections`."""
    if isinstance(shown, WebsocketConnectionPool):
        return len(shown._router.queues)
    return len(shown._roster.total._held)  # a dial that has no lease yet has no place


def pulse(shown: Shown) -> tuple[dict[tuple[str, int], State], list[float]]:
    """Return each connection's state, and for how long each borrower has waited, in seconds."""
    pools, states = pools_of(shown), dict[tuple[str, int], State]()
    for pool in pools:
        states |= introspection.pulse(pool)
    now = pictures.now_of(pools)
    return states, [now - loan._since for loan in _loans(shown)]


def settle(shown: Shown) -> None:
    """Let the listeners hear what has been published: see `introspection.settle`."""
    if isinstance(shown, WebsocketPools):
        shown._roster.account.settle(shown._roster.loop)
    for pool in pools_of(shown):
        introspection.settle(pool)


def _loans(shown: Shown) -> list[Borrow]:
    if isinstance(shown, WebsocketConnectionPool):
        return list(shown._router.line)
    return shown._roster.all_waiting()
