"""Repeating in a group: work whose connection was lost is done once more, by another member if need
be. When that is allowed is the pool's matter, with which the first loan was: `_pool/repeating.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import FrameType
from typing import TypeVar, TypeVarTuple

from wspool._connection.borrow import Lender
from wspool._connection.errors import ConnectionClosedError, ConnectionUnavailableError
from wspool._connection.loan import WebsocketConnection
from wspool._group.roster import Roster
from wspool._pool.repeating import Attempt, given_back, lend

T = TypeVar("T")
Args = TypeVarTuple("Args")


async def run(
    roster: Roster,
    loan: WebsocketConnection,
    work: Callable[[WebsocketConnection, *Args], Awaitable[T]],
    args: tuple[*Args],
    timeout: float | None,
    frame: FrameType,
    *,
    is_keyed: bool,
) -> T:
    """Do the work in this loan, and perhaps in a second one."""
    attempt: Attempt | None = None
    lender = loan._lender
    assert lender is not None
    try:
        await lend(loan, lender, frame)
        attempt = Attempt(loan)
        with given_back(loan, _lender_of(loan)):
            return await work(loan, *args)
    except ConnectionClosedError:
        member = roster.member_of(loan._served())
        if member is None or attempt is None or not member.router.repeating.may_repeat(attempt):
            raise
    finally:
        if attempt is not None:
            attempt.end()
    others = [] if is_keyed else [one for one in roster.candidates() if one is not member]
    # The server that has just lost one may be down: it comes last.
    pools = [one.pool for one in (*others, member)]
    for pool in pools:
        loan = WebsocketConnection(pool, timeout, True)
        try:
            await lend(loan, pool, frame)
        except ConnectionUnavailableError:
            if pool is pools[-1]:
                raise
        else:
            break
    with given_back(loan, _lender_of(loan)):
        return await work(loan, *args)


def _lender_of(loan: WebsocketConnection) -> Lender:
    """Return the pool that has served a loan."""
    lender = loan._lender
    assert lender is not None
    return lender
