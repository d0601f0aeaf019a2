"""The crowd: those whom any member of a group may serve, in order of arrival.

A loan stands here once, and every member that is in looks here as it looks at its own line. One of
them, its host, has it in its line as well, and dials for it. It is one object with one future, and
whoever serves it takes it out of both places in that step: so it is served once.

When the host has nothing for it, it goes on to the next in the same step. It may stay without a
host, as long as some member has connections that may come back.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator

from wspool._connection.borrow import Borrow
from wspool._connection.errors import ConnectionPoolExhaustedError
from wspool._group.members import Member


class Standing:
    """How a loan stands in the crowd: its host, and the members that had nothing for it."""

    __slots__ = ("error", "host", "is_settling", "tried")

    def __init__(self) -> None:
        self.host: Member | None = None
        self.tried: set[Member] = set()
        # Why the last host had nothing.
        self.error: BaseException | None = None
        # Whether a host is being looked for, each of which may refuse at once.
        self.is_settling = False


class Crowd:
    """The crowd of one group. `candidates` returns the members to ask, in the order to ask them."""

    def __init__(self, candidates: Callable[[], Iterable[Member]]) -> None:
        self.loans: OrderedDict[Borrow, Standing] = OrderedDict()
        self._candidates = candidates

    def __len__(self) -> int:
        return len(self.loans)

    def __contains__(self, loan: Borrow) -> bool:
        return loan in self.loans

    # Coming.

    def join(self, loan: Borrow, *, at_the_head: bool = False) -> None:
        """Take a loan in, and let a member serve it at once, or dial for it.

        Raises why none can: ConnectionPoolExhaustedError, or what a member has said.
        """
        loan._waiter = asyncio.get_running_loop().create_future()
        standing = self.loans[loan] = Standing()
        if at_the_head:
            self.loans.move_to_end(loan, last=False)
        for member in self._candidates():
            router = member.router
            if member.line.beyond and (router.queues.idle or router.streaming.has_route):
                router.route()  # perhaps it has to be checked first
            if loan._waiter.done():
                return
        if standing.host is None:  # else one of them has adopted it
            self._settle(loan, standing)

    def _settle(self, loan: Borrow, standing: Standing) -> None:
        """Find a host for a loan, or something to wait for; otherwise it has failed."""
        if standing.is_settling:
            return  # the search that is under way goes on: of hundreds, each may refuse
        standing.is_settling = True
        try:
            has_host = self._find_host(loan, standing)
        finally:
            standing.is_settling = False
        if not has_host and not self._may_stay(loan, standing):
            self.fail(
                loan,
                standing.error
                or ConnectionPoolExhaustedError(
                    "All connections of all members are in use, and this call may not wait (pass a "
                    "timeout, or set acquire_timeout)"
                ),
            )

    def _find_host(self, loan: Borrow, standing: Standing) -> bool:
        """Let a member dial that has room; rather one whose dials do not fail at the moment."""
        hosts = [
            member
            for member in self._candidates()
            # With all out, whatever the one has that is asked, comes by its line alone.
            if (member.spare_room > 0 or not member.line.beyond) and member not in standing.tried
        ]
        for member in sorted(hosts, key=lambda member: member.is_failing):
            router = member.router
            try:
                router.patience.check(loan)
            except ConnectionPoolExhaustedError as error:  # `max_waiting`
                standing.error = standing.error or error
                continue
            standing.host = member
            member.host(loan)
            router.route()
            router.permits.reclaim()
            if member.is_failing and loan in member.line.loans:
                router.patience.turn_away_at_the_gate()
            if standing.host is not None or loan._waiter.done():
                return True
        return False

    def _may_stay(self, loan: Borrow, standing: Standing) -> bool:
        """Return whether something may come back for a loan that has no host."""
        for member in self._candidates():
            capacity = member.router.capacity
            if not member.line.beyond or (member in standing.tried and not capacity.open):
                continue
            place = member.line.place_of(loan)
            if capacity.may_wait(place, capacity.coming, is_patient=loan._timeout != 0):
                return True
        return False

    # Going.

    def leave(self, loan: Borrow) -> None:
        """Take a loan out of the crowd, and out of its host's line."""
        standing = self.loans.pop(loan, None)
        if standing is None:
            return
        if standing.host is not None:
            standing.host.line.leave(loan)
        if not loan._is_stream and self.loans:
            for member in self._candidates():
                if member.router.streaming.has_route:
                    member.router.route()  # for whom it may have kept one from becoming fuller

    def fail(self, loan: Borrow, error: BaseException) -> None:
        """End a loan's wait with an error."""
        if not loan._waiter.done():
            loan._waiter.set_exception(error)
        self.leave(loan)

    # What the members say.

    def refuse(self, loan: Borrow, member: Member, error: BaseException) -> None:
        """Go on to the next; without one, and with nothing that may come back, this was the end."""
        standing = self.loans[loan]
        standing.host, standing.error = None, error
        standing.tried.add(member)
        self._settle(loan, standing)

    def reconsider(self, member: Member) -> None:
        """Let others dial for those whose host's dials have begun to fail, if any can."""
        for loan, standing in self._hosted_by(member):
            if any(
                other.spare_room > 0 and not other.is_failing and other not in standing.tried
                for other in self._candidates()
                if other is not member
            ):
                self._take_from(member, loan, standing)
                self._settle(loan, standing)

    def let_host(self, member: Member) -> None:
        """Let a member host those without a host, as far as it has room to dial for them."""
        for loan, standing in self.loans.items():
            if member.spare_room <= 0:
                break
            if standing.host is None and member not in standing.tried and not loan._waiter.done():
                standing.host = member
                member.host(loan)

    def forgive(self, member: Member) -> None:
        """Let a member that is in again be asked again."""
        for standing in self.loans.values():
            standing.tried.discard(member)

    def abandon(self, member: Member) -> None:
        """Let nobody have this host any more: it is out, or gone."""
        for loan, standing in self._hosted_by(member):
            self._take_from(member, loan, standing)
            standing.tried.discard(member)
            self._settle(loan, standing)
        for loan, standing in list(self.loans.items()):  # who may have hoped for what it has lent
            if standing.host is None and not loan._waiter.done():
                self._settle(loan, standing)

    def _hosted_by(self, member: Member) -> Iterator[tuple[Borrow, Standing]]:
        """Give those whom a member hosts; what is done for one may serve, or fail, the next."""
        for loan, standing in list(self.loans.items()):
            if standing.host is member and not loan._waiter.done():
                yield loan, standing

    @staticmethod
    def _take_from(member: Member, loan: Borrow, standing: Standing) -> None:
        member.line.leave(loan)
        standing.host = None
        standing.tried.add(member)
