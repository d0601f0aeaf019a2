"""Doors: what a loan of a group borrows from, before it is known which pool serves it.

A door is the lender of a loan until then; from then on that is the pool, as if the loan had been
borrowed from it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from types import FrameType
from typing import Self

from wspool._connection.borrow import Borrow
from wspool._connection.errors import (
    ConnectionPoolExhaustedError,
    ConnectionPoolTimeoutError,
    ConnectionPoolUnavailableError,
    ConnectionUnavailableError,
)
from wspool._connection.link import Link
from wspool._group.members import Member
from wspool._group.roster import Roster
from wspool._pool.attending import is_same
from wspool._pool.checks import check_timeout
from wspool._pool.options import ACQUIRE_TIMEOUT
from wspool._pool.stats import count_refusal


class Door:
    """A door of a group: what lends a loan, and routes it while it waits."""

    __slots__ = ()

    @property
    def _router(self) -> Self:
        return self

    @property
    def streaming(self) -> Self:
        return self

    def _lend_at_once(self, loan: Borrow, frame: FrameType) -> bool:
        """Check who borrows, and serve the loan if that needs no wait."""
        raise NotImplementedError

    async def wait(self, loan: Borrow) -> None:
        """Return when the loan was served."""
        raise NotImplementedError

    def give_back(self, loan: Borrow, is_failed: bool) -> None:
        raise AssertionError("a loan that was served is given back to the pool that serves it")


class CommonDoor(Door):
    """For those who take a connection of any member."""

    __slots__ = ("_acquire_timeout", "_roster")

    def __init__(self, roster: Roster, acquire_timeout: float | None) -> None:
        self._roster, self._acquire_timeout = roster, acquire_timeout

    def _lend_at_once(self, loan: Borrow, frame: FrameType) -> bool:
        roster = self._roster
        loop = roster.enter()
        if loan._callsite is not None:
            raise loan._taken_error()
        if loan._timeout is not ACQUIRE_TIMEOUT:
            check_timeout(loan._timeout)
        loan._callsite = frame.f_code, frame.f_lasti, asyncio.current_task(loop)
        roster.begin_with_the_next()
        # Those that would lend one with a context, which may be one to find, or one to spare.
        others: list[Member] = []
        for member in roster.order():
            if loan._is_stream:
                if member.router.streaming.lend_at_once(loan):
                    loan._lender = member.pool
                    return True
                continue
            if not (idle := member.router.queues.idle):
                continue
            if loan._prefer is not None or next(reversed(idle)).context is not None:
                others.append(member)
            elif member.router.lend_idle(loan):
                loan._lender = member.pool
                return True
        others.sort(key=lambda member: not _has_fit(member, loan))
        for member in others:
            if member.router.lend_idle(loan):
                loan._lender = member.pool
                return True
        return False

    async def wait(self, loan: Borrow) -> None:
        """Return when the loan was served."""
        roster, crowd = self._roster, self._roster.crowd
        if loan._timeout is ACQUIRE_TIMEOUT:
            loan._timeout = self._acquire_timeout
        loop = asyncio.get_running_loop()
        loan._since = loop.time()
        alarm: asyncio.TimerHandle | None = None
        roster.account.events.check_out_started()
        try:
            roster.check_total(loan)
            if loan._timeout:
                alarm = loop.call_later(loan._timeout, self._time_out, loan)
            crowd.join(loan)
            await loan._waiter
            while (link := loan._link) is None or not loan._owns(link):
                # Lost in the tick in which it was served: it waits on at the head.
                assert link is not None
                self._pass_on(loan, link)
                loan._link = None
                if roster.is_closing:
                    raise ConnectionPoolUnavailableError(f"The group {roster!r} was closed")
                crowd.join(loan, at_the_head=True)
                await loan._waiter
        except BaseException as error:
            self._leave(loan)
            roster.account.count_refusal(error, loop.time() - loan._since)
            raise
        finally:
            if alarm is not None:
                alarm.cancel()
        member = roster.member_of(link)
        assert member is not None
        loan._lender = member.pool
        waited = loop.time() - loan._since
        stats = member.router.stats
        stats.waits += 1
        stats.wait_seconds += waited
        member.router._count_loan(loan, link, waited)

    def _leave(self, loan: Borrow) -> None:
        """End a wait in vain, and let nobody miss what was meant for it."""
        self._roster.crowd.leave(loan)
        if loan._link is not None:  # cancelled in the tick in which it was served
            self._pass_on(loan, loan._link)

    def _pass_on(self, loan: Borrow, link: Link) -> None:
        member = self._roster.member_of(link)
        if member is not None:
            member.router._pass_on(loan, link)

    def _time_out(self, loan: Borrow) -> None:
        standing = self._roster.crowd.loans.get(loan)
        if standing is None or loan._waiter.done():
            return
        failure = loan._failure if standing.host is not None else None
        cause = failure or standing.error
        last = f"; the last failure: {cause}" if cause is not None else ""
        error = ConnectionPoolTimeoutError(
            f"No connection within {loan._timeout} s: {self._roster!r}{last}"
        )
        error.__cause__ = cause
        self._roster.account.stats.timeouts += 1
        self._roster.crowd.fail(loan, error)


class KeyDoor(Door):
    """For one loan, of a connection of the pool of one key, which may have to be made first."""

    __slots__ = ("_acquire_timeout", "_frame", "_key", "_roster")

    def __init__(self, roster: Roster, acquire_timeout: float | None, key: Hashable) -> None:
        self._roster, self._acquire_timeout = roster, acquire_timeout
        self._key = key
        # Who borrows.
        self._frame: FrameType

    def _lend_at_once(self, loan: Borrow, frame: FrameType) -> bool:
        self._roster.enter()
        self._frame = frame
        member = self._roster.members.get(self._key)
        if member is None:
            if loan._timeout is not ACQUIRE_TIMEOUT:
                check_timeout(loan._timeout)
            return False
        return self._lend(member, loan)

    def _lend(self, member: Member, loan: Borrow) -> bool:
        pool = member.pool
        if loan._is_stream:
            member.router.streaming.check_route()
        is_lent = pool._lend_at_once(loan, self._frame)
        loan._lender = pool
        if not is_lent:
            if loan._timeout is ACQUIRE_TIMEOUT:
                loan._timeout = pool.acquire_timeout
            try:
                self._roster.check_total(loan, member)
            except ConnectionPoolExhaustedError as error:
                count_refusal(member.router.stats, error)
                member.router.events.check_out_failed(error, 0.0)
                raise
        return is_lent

    async def wait(self, loan: Borrow) -> None:
        """Make the pool first, if there is none, and return when the loan was served.

        Where pools are made as they are needed, one that was removed has a successor for those who
        wait; one that a mapping has given has none.
        """
        roster, lender = self._roster, loan._lender
        assert lender is not None
        clock = asyncio.get_running_loop().time
        seconds = self._acquire_timeout if loan._timeout is ACQUIRE_TIMEOUT else loan._timeout
        began = clock()
        is_lent = False
        while not is_lent:
            if lender is self:
                made = await self._make(seconds, began)
                lender = made.pool
                if seconds:  # of which a part is over
                    loan._timeout = max(0.001, seconds - (clock() - began))
                is_lent = self._lend(made, loan)
            else:
                try:
                    await lender._router.wait(loan)
                    is_lent = True
                except ConnectionPoolUnavailableError:
                    member = roster.members.get(self._key)
                    is_current = member is not None and member.pool is lender
                    if roster.is_fixed or roster.is_closing or is_current:
                        raise
                    lender, loan._callsite = self, None

    async def _make(self, seconds: float | None, began: float) -> Member:
        """Return the pool, which is made if there is none."""
        roster = self._roster
        while (member := roster.members.get(self._key)) is None:
            clock = asyncio.get_running_loop().time
            left = max(0.001, seconds - (clock() - began)) if seconds else None
            try:
                async with asyncio.timeout(left) as timer:
                    await roster.make(self._key)
            except TimeoutError as error:
                if not timer.expired():
                    raise
                late = ConnectionPoolTimeoutError(
                    f"No connection within {seconds} s: options_of has not returned. {roster!r}"
                )
                roster.account.stats.timeouts += 1
                roster.account.count_refusal(late, clock() - began)
                raise late from error
        return member


class OtherDoor(Door):
    """For one loan of a connection of the first of these members that has one."""

    __slots__ = ("_frame", "_members")

    def __init__(self, members: list[Member]) -> None:
        self._members = members
        self._frame: FrameType

    def _lend_at_once(self, loan: Borrow, frame: FrameType) -> bool:
        self._frame = frame
        return False

    async def wait(self, loan: Borrow) -> None:
        """Return when the loan was served."""
        seconds, clock = loan._timeout, asyncio.get_running_loop().time
        began, last = clock(), self._members[-1]
        for member in self._members:
            if member is not last and member.spare_room <= 0 and not member.router.queues.idle:
                continue  # it is full, and the next one may not be
            loan._lender, loan._callsite = member.pool, None
            try:
                if not member.pool._lend_at_once(loan, self._frame):
                    await member.router.wait(loan)
            except (ConnectionUnavailableError, ConnectionPoolUnavailableError):
                if member is last:
                    raise
                if seconds:  # of which a part is over
                    loan._timeout = max(0.001, seconds - (clock() - began))
            else:
                return


def _has_fit(member: Member, loan: Borrow) -> bool:
    """Return whether a member has an idle link with just the context that a loan prefers."""
    return any(is_same(link.context, loan._prefer) for link in list(member.router.queues.idle))
