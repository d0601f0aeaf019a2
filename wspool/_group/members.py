"""The members of a group: a pool, the key that it is for, and its health.

To its pool's line a member is what stands beyond it (`waiting.Beyond`), to its pool's events who
watches (`listeners.Watch`).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Hashable
from typing import Final, Protocol

from wspool._connection.borrow import Borrow
from wspool._connection.errors import ConnectionUnavailableError
from wspool._connection.link import Link
from wspool._connection.loan import WebsocketConnection
from wspool._connection.states import CLOSED, CloseReason
from wspool._group.health import Health
from wspool._pool.pool import WebsocketConnectionPool

LOSSES: Final = frozenset({CloseReason.SERVER, CloseReason.PROTOCOL, CloseReason.STALE})
"""Why a connection goes by the server's doing."""


class CommonLine(Protocol):
    """The line of a group, as its members know it: see `crowd.py`."""

    def __contains__(self, loan: Borrow, /) -> bool: ...

    def leave(self, loan: Borrow) -> None:
        """Take a loan out, if it is in."""

    def refuse(self, loan: Borrow, member: Member, error: BaseException) -> None:
        """Hear that a member has nothing for a loan that it had hosted."""

    def reconsider(self, member: Member) -> None:
        """Hear that the dials of a member have begun to fail."""

    def let_host(self, member: Member) -> None:
        """Let a member host those without a host, as far as it has room."""


class Member:
    """One pool of a group. `put_out` is called with the member and a reason to be out."""

    def __init__(
        self,
        key: Hashable,
        pool: WebsocketConnectionPool,
        crowd: CommonLine,
        put_out: Callable[[Member, str], object],
    ) -> None:
        self.key = key
        self.pool = pool
        self.router = pool._router
        self.line = pool._router.line
        self.health = Health()
        self._crowd = crowd
        self._put_out = put_out
        # Since when it has neither a connection nor anybody who waits, if it has not.
        self.empty_since: float | None = None

    @property
    def spare_room(self) -> int:
        """For how many more links, beyond what its own line needs, it may dial."""
        router, line = self.router, self.line
        needed = line.links_for(line.loans) - len(router.queues.connecting)
        return router.capacity.room - max(0, needed)

    @property
    def is_failing(self) -> bool:
        """Whether its last attempt has failed, or a quota of its own keeps a dial waiting."""
        shares = self.router.permits.shares
        is_stuck = any(share.stuck for share in shares if not share.is_total)
        return is_stuck or self.router.gate.streak > 0

    @property
    def is_empty(self) -> bool:
        return not (self.router.queues.all or self.line.loans)

    def host(self, loan: Borrow) -> None:
        """Let a loan of the group's stand in this line as well, for which the pool then dials."""
        self.line.take_in(loan)
        loan._gate_closed = self.router.gate.closed_seconds

    async def dial_for_nobody(self) -> Link:
        """Return a fresh link, idle and never used; raise why there is none."""
        loan = WebsocketConnection(None, None, True)
        frame = sys._getframe()
        loan._callsite = frame.f_code, frame.f_lasti, asyncio.current_task()
        await self.router.wait(loan)
        link = loan._link
        assert link is not None
        self.router._pass_on(loan, link)
        return link

    # What stands beyond its line.

    def __contains__(self, loan: Borrow) -> bool:
        return loan in self._crowd

    def leave(self, loan: Borrow) -> None:
        self._crowd.leave(loan)

    def refuse(self, loan: Borrow, error: BaseException) -> None:
        self._crowd.refuse(loan, self, error)

    def reconsider(self) -> None:
        # Where a dial waits for the total, those of others would wait, too.
        if self.is_failing or not self.router.permits.is_stuck:
            self._crowd.reconsider(self)

    def adopt(self) -> None:
        self._crowd.let_host(self)

    # What its pool tells whoever watches.

    def dial_failed(self, failure: ConnectionUnavailableError) -> None:
        if failure.kind != "quota":  # which says nothing of the server
            self._put_out(self, str(failure))

    def lost(self, link: Link) -> None:
        if is_loss(link) and self.health.lost():
            how = f"{self.health.losses} connections were lost in a row; the last: "
            self._put_out(self, how + link.how_closed())

    def ended_well(self) -> None:
        self.health.losses = 0


def is_loss(link: Link) -> bool:
    """Return whether a link was closed by its server's doing."""
    return link.state is CLOSED and link.moves[-1][2] in LOSSES
