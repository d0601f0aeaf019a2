"""Repeating in a group: work whose connection was lost is done once more, by another member if need
be. When that is allowed is the pool's matter, with which the first loan was: `_pool/repeating.py`.
"""

from __future__ import annotations

from wspool._connection.loan import WebsocketConnection
from wspool._group.doors import OtherDoor
from wspool._group.roster import Roster
from wspool._pool.repeating import Attempt


def again(
    roster: Roster, attempt: Attempt, timeout: float | None, *, is_keyed: bool
) -> WebsocketConnection | None:
    """Return a loan in which work that has failed is to be done once more, if it is; count it.

    It is to be of another member, where one may serve and has a connection. The server that has
    just lost one may be down: it comes last.
    """
    member = roster.member_of(attempt.loan._served())
    if member is None or not member.router.repeating.may_repeat(attempt):
        return None
    others = [] if is_keyed else [one for one in roster.candidates() if one is not member]
    return WebsocketConnection(OtherDoor([*others, member]), timeout, True)
