"""The roster: which pools there are, which of them are in, and what is done about the others.

A member is made when it is needed, put out when its server fails, probed by a dial of the group's
own, and closed when nobody needs it. Who waits is the crowd's business.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Mapping
from typing import Any, Final
from weakref import ref

from wspool._connection.borrow import Borrow
from wspool._connection.errors import (
    ConnectionPoolExhaustedError,
    ConnectionPoolUnavailableError,
    ConnectionUnavailableError,
)
from wspool._connection.link import Link
from wspool._group.account import Account
from wspool._group.crowd import Crowd
from wspool._group.health import may_go_out
from wspool._group.members import Member, is_loss
from wspool._pool.gate import EARLY_SECONDS
from wspool._pool.pool import WebsocketConnectionPool
from wspool._pool.tasks import weakly
from wspool._pool.waiting import NOBODY
from wspool.quota import LocalQuota, longest_idle

logger = logging.getLogger("wspool")

PoolOptions = Mapping[str, Any]
OptionsOf = Mapping[Any, PoolOptions] | Callable[[Any], Awaitable[PoolOptions]]

TIDY_SECONDS: Final = 5.0
"""Between two looks for pools that are empty, at most."""


class Roster:
    """The members of one group."""

    def __init__(
        self,
        name: str,
        options_of: OptionsOf,
        defaults: PoolOptions,
        max_connections: int,
        *,
        is_spreading: bool,
    ) -> None:
        self.name = name
        self._options_of = options_of
        self._defaults = defaults
        # Members of a mapping serve those without a key, too, and may be out.
        self.is_fixed = isinstance(options_of, Mapping)
        self.total = LocalQuota(max_connections)
        self.members: dict[Hashable, Member] = {}
        self.crowd = Crowd(self.candidates)
        # Those that serve whoever has no key, in their order, and where to begin the next time.
        self._in: list[Member] = []
        self._is_spreading = is_spreading
        self._turn = 0
        # By the queues of their links; one that was removed stays until its last loan is over.
        self._known: dict[int, Member] = {}
        self._numbers = itertools.count(1)
        self.account = Account(name, self._known)
        # What is under way: pools that are made, probes and closings; when probes are due.
        self._making: dict[Hashable, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: dict[Member, asyncio.TimerHandle] = {}
        self._tidying: asyncio.TimerHandle | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.is_closing = False
        if isinstance(options_of, Mapping):
            for key, options in options_of.items():
                self._add(key, options)

    def __repr__(self) -> str:
        status = " closed" if self.is_closing else ""
        out = f" out={len(self.members) - len(self._in)}" if self.is_fixed else ""
        return (
            f"{self.name!r}{status} pools={len(self.members)}{out} open={self.open} "
            f"waiting={self.waiting} max={self.total.limit}"
        )

    @property
    def is_started(self) -> bool:
        """Whether it belongs to an event loop."""
        return self.loop is not None

    @property
    def known(self) -> list[Member]:
        """The members, and those that were removed and are not closed yet; from any thread."""
        return list(self._known.values())

    @property
    def open(self) -> int:
        """The connections that are open, of all pools."""
        return sum(member.router.capacity.open for member in self.known)

    @property
    def unserved(self) -> list[Borrow]:
        """Those who wait in no pool's line: for whichever pool has a connection first."""
        standings = list(self.crowd.loans.items())
        return [loan for loan, standing in standings if standing.host is None]

    def all_waiting(self) -> list[Borrow]:
        """Return who waits, for one pool or for any."""
        lines = (loan for member in self.known for loan in member.line)
        users = [loan for loan in lines if loan._lender is not None]  # a probe has none
        return users + self.unserved

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self.all_waiting())

    def enter(self) -> asyncio.AbstractEventLoop:
        """Check that the group is open, and that the caller runs in its loop."""
        if self.is_closing:
            raise ConnectionPoolUnavailableError(f"The group {self!r} is closed; make a new one")
        loop = asyncio.get_running_loop()
        if loop is not self.loop:
            if self.loop is not None:
                raise RuntimeError(
                    f"The group {self!r} belongs to the event loop {self.loop!r}, and was called "
                    f"from {loop!r}. Make a group for each loop"
                )
            self.loop = loop
            for member in self.members.values():
                member.pool._enter()
            if not self.is_fixed:
                self._tidy()
        return loop

    # Who is asked.

    def begin_with_the_next(self) -> None:
        """Let the order begin with the next member, if loans are spread."""
        if self._is_spreading:
            self._turn += 1

    def order(self) -> list[Member]:
        """Return the members that are in, in the order in which to ask them this time."""
        members = self._in
        if not self._is_spreading or len(members) < 2:
            return members
        turn = self._turn % len(members)
        return members[turn:] + members[:turn]

    def candidates(self) -> list[Member]:
        """Return whom to ask; with all out, that is the one which is due first."""
        if self._in or not self.members or not self.is_fixed:
            return self.order()
        return [min(self.members.values(), key=lambda member: member.health.out_until or 0.0)]

    def member_of(self, link: Link) -> Member | None:
        return self._known.get(id(link.queues))

    def check_total(self, loan: Borrow, member: Member | None = None) -> None:
        """Raise, at the total, unless waiting is allowed or needless."""
        total = self.total
        if loan._timeout != 0 or not total._is_missing(beside=1):
            return
        if longest_idle(total._holders()) is not None:
            return
        asked = [member] if member is not None else self.candidates()
        for one in asked:
            # A dial that waits for a place itself brings nothing.
            dials = (link.permit is not None for link in one.router.queues.connecting)
            if one.router.capacity.errands or any(dials):
                return
        raise ConnectionPoolExhaustedError(
            "As many connections as the group's max_connections allows are in use, and this call "
            f"may not wait (pass a timeout, or set acquire_timeout): {self!r}"
        )

    # Coming and going.

    def _add(self, key: Hashable, options: PoolOptions) -> None:
        name = f"{self.name}-{next(self._numbers)}"  # without the key, which may be a secret
        limit = self.total.limit
        given = {"name": name, "max_connections": limit, **self._defaults, **options}
        pool = WebsocketConnectionPool(**given)
        if any(member.pool.name == pool.name for member in self.members.values()):
            raise ValueError(
                f"two pools of the group {self.name!r} are called {pool.name!r}; give each a name "
                "of its own, or none"
            )
        member = Member(key, pool, self.crowd, weakly(self._put_out))
        router = pool._router
        router.permits.add(self.total, is_total=True)
        self.members[key] = member
        self._known[id(router.queues)] = member
        self.account.open(member)
        if self.is_fixed:
            router.events.watch = member
            member.line.crowd = member
            member.line.beyond = self.crowd.loans
            self._in.append(member)

    async def make(self, key: Hashable) -> None:
        """Make the pool of a key, or wait for whoever does."""
        if self.is_fixed:
            raise KeyError(key)
        making = self._making.get(key)
        if making is None:
            loop = asyncio.get_running_loop()
            making = self._making[key] = asyncio.Task(self._make(key), loop=loop)
        await asyncio.wait({making})
        if making.cancelled():
            why = "was closed" if self.is_closing else "has no such pool: options_of was cancelled"
            raise ConnectionPoolUnavailableError(f"The group {self!r} {why}")
        making.result()

    async def _make(self, key: Hashable) -> None:
        try:
            assert not isinstance(self._options_of, Mapping)
            options: Any = self._options_of(key)
            if inspect.isawaitable(options):
                options = await options
            if not isinstance(options, Mapping):
                raise TypeError(
                    f"options_of returned a {type(options).__name__}; it must return a dict of "
                    "arguments of WebsocketConnectionPool"
                )
            self._add(key, options)
        finally:
            del self._making[key]

    def remove(self, key: Hashable, timeout: float | None) -> None:
        """Let nobody have a member any more, and close it."""
        member = self.members.pop(key)
        member.line.beyond = NOBODY
        member.router.events.watch = None
        if member in self._in:
            self._in.remove(member)
        self._stop_timer(member)
        self.crowd.abandon(member)
        self._spawn(self._close(member, timeout))

    async def _close(self, member: Member, timeout: float | None) -> None:
        await member.pool.close_all(timeout)
        if self._known.pop(id(member.router.queues), None) is not None:
            self.account.close(member)

    def _tidy(self) -> None:
        """Close the pools that have been empty for their `idle_timeout`, and look again."""
        loop = asyncio.get_running_loop()
        pause = TIDY_SECONDS
        for key, member in list(self.members.items()):
            pause = min(pause, member.pool.idle_timeout / 4)
            if not member.is_empty:
                member.empty_since = None
            elif member.empty_since is None:
                member.empty_since = loop.time()
            elif loop.time() - member.empty_since >= member.pool.idle_timeout:
                # To look one up and to stand in its line, or hold a link of it, is one step: so
                # nobody has looked this one up and not used it yet.
                self.remove(key, 0.0)
        self._tidying = loop.call_later(pause, weakly(self._tidy))

    # Health.

    def eject(self, member: Member, seconds: float) -> None:
        """Let a member be out for so long."""
        member.health.eject(asyncio.get_running_loop().time(), seconds, "ejected")
        self._go_out(member)

    def _put_out(self, member: Member, why: str) -> None:
        """Let a member be out, unless half of them are."""
        out, health = len(self.members) - len(self._in), member.health
        if self.is_closing or not health.is_in or not may_go_out(out, len(self.members)):
            return  # of one that is out already, its probe tells
        health.go_out(asyncio.get_running_loop().time(), why)
        logger.warning("%s is out, and will be probed: %s", member.pool.name, why)
        self._go_out(member)

    def _go_out(self, member: Member) -> None:
        member.line.beyond = NOBODY
        if member in self._in:
            self._in.remove(member)
        self._await_probe(member)
        self.crowd.abandon(member)

    def _await_probe(self, member: Member) -> None:
        self._stop_timer(member)
        due = member.health.out_until
        assert due is not None
        # The loop holds what a timer is given; a member would keep the group alive.
        begin, of = weakly(self._begin_probe), ref(member)
        self._timers[member] = asyncio.get_running_loop().call_at(due, begin, of)

    def _stop_timer(self, member: Member) -> None:
        if (timer := self._timers.pop(member, None)) is not None:
            timer.cancel()

    def _begin_probe(self, of: ref[Member]) -> None:
        member = of()
        if member is not None and not self.is_closing:
            self._timers.pop(member, None)
            self._spawn(self._probe(member))

    async def _probe(self, member: Member) -> None:
        """Dial, and let the member be in again if that connection lives."""
        health = member.health
        due = health.out_until
        failure = ""
        try:
            link = await member.dial_for_nobody()
            await asyncio.sleep(EARLY_SECONDS)
            if is_loss(link):
                failure = link.how_closed()
        except ConnectionPoolUnavailableError:
            return
        except ConnectionUnavailableError as error:
            failure = str(error)
        is_meant = health.out_until == due and self.members.get(member.key) is member
        if self.is_closing or not is_meant:
            return  # it was ejected, or removed, meanwhile
        if failure:
            health.go_out(asyncio.get_running_loop().time(), failure)
            self._await_probe(member)
            return
        member.router.gate.lived(link)  # else its next dial may wait, and others are asked first
        health.come_back()
        logger.info("%s is in again", member.pool.name)
        self._in = [one for one in self.members.values() if one.health.is_in]
        member.line.beyond = self.crowd.loans
        self.crowd.forgive(member)
        member.router.route()
        if not self._is_spreading:
            # Else the others, which have idle ones, would serve on for as long as there is load.
            for other in self._in[self._in.index(member) + 1 :]:
                other.pool.expire_connections()

    # The end.

    def begin_closing(self) -> None:
        """Serve nobody any more."""
        self.is_closing = True
        for loan in list(self.crowd.loans):
            error = ConnectionPoolUnavailableError(f"The group {self!r} was closed")
            self.crowd.fail(loan, error)
        for timer in (*self._timers.values(), self._tidying):
            if timer is not None:
                timer.cancel()
        for making in self._making.values():
            making.cancel()

    async def finish(self, timeout: float | None) -> None:
        """Close all members, and return when nothing is under way any more."""
        pools = [member.pool for member in self.members.values()]
        await asyncio.gather(*(pool.close_all(timeout) for pool in pools))
        while left := {*self._tasks, *self._making.values()}:
            await asyncio.wait(left)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.Task(coroutine, loop=asyncio.get_running_loop())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
