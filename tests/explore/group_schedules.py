"""Schedules of a group: several borrowers, two members and a total, in an order of chance's.

As `schedules.py` does for one pool: no I/O, a seeded loop, and after each step all is looked at
that must hold between steps.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any, Final, cast

from tests.explore.network import WILD, Network, Temper
from tests.explore.schedules import Loop, Violation, key_of
from wspool import (
    ConnectionClosedError,
    WebsocketConnection,
    WebsocketError,
    WebsocketPools,
    WebsocketStream,
)
from wspool._connection.borrow import Borrow
from wspool._group.members import Member
from wspool._pool.streaming import lanes_of

HORIZON: Final = 2000.0
"""Seconds of the loop's time after which nobody may be at it any more."""

HOPELESS: Final = Temper(refuse=1.0)

MILD: Final = Temper(refuse=0.05, reset=0.02, close=0.02, delays=(0.0, 0.01, 0.3))


class GroupWorld:
    """A loop, a network for each member, and the group, watched."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.events: Counter[str] = Counter()
        options: dict[str, Any] = {}
        if loop.chance(0.3):
            options["check_after_idle"] = loop.choose((0.0, 0.1))
        most = loop.choose((1, 2, 5))
        # How many streams share a connection; None: there are none.
        self.max_streams = loop.choose((None, None, 1, 2, 3))
        if self.max_streams is not None:
            options |= {"max_streams": self.max_streams, "route": key_of}
        uris = {key: {"uri": f"ws://{key}/"} for key in "ab"}
        self.total = loop.choose((1, 2, 3))
        self.group = WebsocketPools(
            uris,
            max_connections=self.total,
            choose=loop.choose(("spread", "first")),
            acquire_timeout=loop.choose((None, 0.0, 0.5, 30.0)),
            max_retries=loop.choose((1, 2)),
            idle_timeout=20.0,
            connection_timeout=5.0,
            close_timeout=1.0,
            **options,
        )
        self.has_checks = "check_after_idle" in options
        self.networks = {}
        for key in "ab":
            pool = self.group[key]
            pool._router.options.resize(most)
            network = self.networks[key] = Network(
                loop, loop.choose((WILD, WILD, MILD, MILD, HOPELESS))
            )
            pool._session.opened = cast(Any, network)
        loop.after_step = lambda task, callback: self.check()
        self.troubles: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: self.troubles.append(context))
        self.borrowers: list[asyncio.Task[None]] = []

    @property
    def members(self) -> list[Member]:
        return list(self.group._roster.members.values())

    # What holds between two steps.

    def check(self) -> None:
        if self.troubles:
            raise Violation(f"an exception reached the loop: {self.troubles}")
        if self.loop.now > HORIZON:
            raise Violation(f"somebody waits for ever: {self.group!r}")
        sockets = sum(len(network.open) for network in self.networks.values())
        if sockets > self.total:
            raise Violation(f"{sockets} sockets, and the total is {self.total}")
        lent = [loan for member in self.members for loan in lent_by(member)]
        if len({id(loan) for loan in lent}) < len(lent):
            raise Violation(f"a loan was served twice: {self.group!r}")
        crowd = self.group._roster.crowd
        for loan, standing in crowd.loans.items():
            lines = [member for member in self.members if loan in member.line.loans]
            if not loan._waiter.done() and lines != (
                [standing.host] if standing.host is not None else []
            ):
                raise Violation(f"a loan stands where its host is not: {self.group!r}")
            if loan in lent:
                raise Violation(f"a loan that was served stands in the crowd: {self.group!r}")
        for member in self.members:
            stray = set(member.line.loans) & set(lent)
            if stray:
                raise Violation(f"a loan that was served stands in a line: {self.group!r}")
        self._check_idle()

    def _check_idle(self) -> None:
        """Nobody waits while a member that is in has a connection to lend."""
        waiting = [one for one in self.group._roster.crowd.loans if not one._waiter.done()]
        if not waiting or self.has_checks or self.group.is_closed:
            return
        for member in self.members:
            if not member.health.is_in:
                continue
            if member.router.queues.idle:
                raise Violation(f"somebody waits beside an idle one: {self.group!r}")
            # One that was cancelled in this very tick is about to leave.
            alone = [one for one in self.group._roster.crowd.loans if not one._is_stream]
            alone += [one for one in member.line.loans if not one._is_stream]
            if not alone and member.router.streaming.next_shared(0) is not None:
                raise Violation(f"somebody waits beside a free slot: {self.group!r}")

    # What happens.

    async def loan(self) -> None:
        key = self.loop.choose((None, None, None, "a", "b"))
        if self.max_streams is not None and self.loop.chance(0.7):
            async with self.group.get_stream(key) as stream:
                self.events["streams"] += 1
                self._check_uri(key, stream.connection)
                await self._ask(stream, f"question {stream.claim(str(self.events['streams']))}")
        else:
            async with self.group.get_connection(key) as connection:
                self.events["loans"] += 1
                self._check_uri(key, connection)
                await self._ask(connection, "question")

    def _check_uri(self, key: str | None, connection: WebsocketConnection) -> None:
        if key is not None and connection.uri != f"ws://{key}/":
            raise Violation(f"{key} got a connection to {connection.uri}")

    async def _ask(self, lent: WebsocketConnection | WebsocketStream, question: str) -> None:
        async with asyncio.timeout(2):
            await lent.send(question)
            answer = await lent.recv()
        if isinstance(lent, WebsocketStream) and key_of(answer) not in lent.keys:
            raise Violation(f"{lent!r} with {lent.keys} got {answer!r}")

    async def borrow(self) -> None:
        for _ in range(4):
            try:
                await self.loan()
            except asyncio.CancelledError:
                self.events["cancelled"] += 1
            except ConnectionClosedError:
                self.events["lost"] += 1
            except WebsocketError as error:
                self.events[type(error).__name__] += 1
            except TimeoutError:
                self.events["no answer"] += 1
            await asyncio.sleep(self.loop.choose((0.0, 0.01, 0.5)))

    async def bother(self) -> None:
        """Cancel and eject, now and then."""
        for _ in range(self.loop.choose((2, 9, 20))):
            for _ in range(self.loop.choose((1, 3, 10, 30))):
                await asyncio.sleep(0)
            if self.loop.chance(0.5):
                await asyncio.sleep(self.loop.choose((0.01, 0.3, 1.0)))
            if self.loop.chance(0.8):
                task = self.loop.choose(self.borrowers)
                task.cancel()
            else:
                self.group.eject(self.loop.choose("ab"), self.loop.choose((0.0, 0.3, 5.0)))
                self.events["ejected"] += 1

    async def main(self) -> None:
        self.group._roster.enter()
        self.borrowers = [self.loop.create_task(self.borrow()) for _ in range(5)]
        bothering = self.loop.create_task(self.bother())
        await asyncio.wait([*self.borrowers, bothering])
        for task in (*self.borrowers, bothering):
            if not task.cancelled():
                task.result()
        self.events["out"] += sum(not member.health.is_in for member in self.members)
        for member in self.members:
            if any(loan._lender for loan in lent_by(member)):
                raise Violation(f"nobody is there, and something is lent: {self.group!r}")
        if self.group.waiters:
            raise Violation(f"nobody is there, and somebody waits: {self.group!r}")
        await self.group.close_all()
        if self.group._roster.total._held:
            raise Violation(f"a lease was not given back: {self.group._roster.total!r}")


def lent_by(member: Member) -> list[Borrow]:
    """Return the loans and the streams that a member has lent."""
    lent: list[Borrow] = []
    for link in member.router.queues:
        if link.is_shared:
            lent += [lane.owner for lane in lanes_of(link) if isinstance(lane.owner, Borrow)]
        elif link.loan is not None:
            lent.append(link.loan)
    return lent


def explore_group(seed: int) -> Counter[str]:
    """Run the schedule of this seed; return what has happened in it."""
    loop = Loop(seed)
    state = random.getstate()
    random.seed(0)
    world = GroupWorld(loop)
    try:
        loop.run_until_complete(world.main())
    except BaseException:
        loop.before_step, loop.after_step = lambda _: None, lambda _, __: None
        world.group._roster.begin_closing()
        for member in world.members:
            member.router.is_closing = True
            for link in member.router.queues:
                link.loan = None
        while tasks := asyncio.all_tasks(loop):
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.wait(tasks))
        raise
    finally:
        random.setstate(state)
        loop.close()
    return world.events
