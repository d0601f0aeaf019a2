"""A test loop that explores schedules: what runs next, what the network does, who is cancelled.

`Loop` has a clock of its own and runs one ready callback at a time, a seeded random one; when none
is ready it jumps to the next timer. `World` puts a pool on it, and on a network that is as open
(`network.py`), and checks after each step what must hold at all times. The same seed gives the same
schedule, to the last step.

Callbacks run in any order, which is more than asyncio allows: what holds here holds there.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import heapq
import math
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar, cast
from unittest import mock

from aiohttp import WSMsgType

import wspool
from tests import IS_WHOLE
from tests.explore.network import CALM, NO_REPLY, WILD, Network, Socket, Temper
from tests.support.inside import link_of
from wspool import (
    CloseReason,
    ConnectionBusyError,
    ConnectionClosedError,
    ConnectionPoolExhaustedError,
    ConnectionUnavailableError,
    LocalQuota,
    State,
    WebsocketConnection,
    WebsocketConnectionPool,
    WebsocketError,
    WebsocketStream,
)
from wspool._connection import budget
from wspool._connection.borrow import Borrow
from wspool._connection.link import Link
from wspool._pool.waiting import Places

T = TypeVar("T")
Task = asyncio.Task[Any]

SCHEDULES: Final = int(os.environ.get("WSPOOL_SCHEDULES", 2000 if IS_WHOLE else 300))
"""How many a test explores."""

HORIZON: Final = 120.0
"""Virtual seconds after which whoever still waits is taken to wait for ever."""

ENDLESS: Final = 1.0
"""Seconds of the processor's time after which a step, which takes microseconds, is without end."""

CORE: Final = Path(wspool.__file__).parent


class Violation(AssertionError):
    """Something that must hold at all times did not."""


class _Future(asyncio.Future[Any]):
    """A future whose place in a set does not depend on its address."""

    def __init__(self, number: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._number = number

    def __hash__(self) -> int:
        return self._number


class Loop(asyncio.BaseEventLoop):
    """An event loop without I/O, in which a seeded generator decides what is open."""

    def __init__(self, seed: int, *, is_shuffling: bool = True) -> None:
        super().__init__()
        self.set_debug(False)  # a traceback for each callback would take most of the time
        self.random = random.Random(seed)
        self.is_shuffling = is_shuffling
        self.now = 0.0
        self.steps = self.decisions = self._futures = 0
        # Called around each step, with the task whose step it is, if it is one's.
        self.before_step: Callable[[Task | None], None] = lambda task: None
        self.after_step: Callable[[Task | None, object], None] = lambda task, callback: None

    def choose(self, options: Sequence[T]) -> T:
        self.decisions += len(options) > 1
        return options[self.random.randrange(len(options))]

    def chance(self, probability: float) -> bool:
        self.decisions += 0 < probability < 1
        return self.random.random() < probability

    def time(self) -> float:
        return self.now

    def create_future(self) -> asyncio.Future[Any]:
        self._futures += 1
        return _Future(self._futures, self)

    def _write_to_self(self) -> None:
        """Wake the loop up from a wait for I/O, of which there is none."""

    def _run_once(self) -> None:
        ready, timers = cast(Any, self)._ready, cast(Any, self)._scheduled
        while timers and (not ready or timers[0]._when <= self.now):
            timer = heapq.heappop(timers)
            timer._scheduled = False
            if not timer._cancelled:
                self.now = max(self.now, timer._when)
                ready.append(timer)
        if not ready:
            raise Violation("nobody can move any more")
        if self.is_shuffling:
            ready.rotate(-self.choose(range(len(ready))))
        handle = ready.popleft()
        if not handle._cancelled:
            self.steps += 1
            callback = handle._callback
            owner = getattr(callback, "__self__", None)
            task = owner if isinstance(owner, asyncio.Task) else None
            self.before_step(task)
            self._run_to_its_end(handle)
            self.after_step(task, callback)

    def _run_to_its_end(self, handle: asyncio.Handle) -> None:
        is_endless = False

        def interrupt(*_: object) -> None:
            nonlocal is_endless
            is_endless = True
            raise Violation("a step does not end")

        signal.signal(signal.SIGVTALRM, interrupt)
        signal.setitimer(signal.ITIMER_VIRTUAL, ENDLESS)
        handle._run()  # which keeps to itself what the callback raises
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        if is_endless:
            raise Violation("a step does not end")


def is_last(message: str | bytes) -> bool:
    return str(message).startswith("last")


OPTIONS: Final[dict[str, Any]] = {
    "uri": "ws://server/",
    "max_connections": 2,
    "max_retries": 2,
    "connection_timeout": 1.0,
    "close_timeout": 0.5,
    "drain_timeout": 1.0,
    "drain_quiet_period": 0.1,
    "acquire_timeout": 3.0,
}


class World:
    """A loop, a network and a pool, watched."""

    def __init__(self, loop: Loop, temper: Temper = CALM, **options: Any) -> None:
        self.loop = loop
        self.network = Network(loop, temper)
        self.pool = WebsocketConnectionPool(**{**OPTIONS, **options})
        self.pool._session.opened = cast(Any, self.network)
        self.quota: LocalQuota | None = options.get("quota")
        self.trace: list[object] = []
        # Tasks by order of appearance; how often each has yielded.
        self._numbers: dict[Task, int] = {}
        self._yields: Counter[Task] = Counter()
        # Who was cancelled, at which lines of the core; who is to be when about to go on.
        self.cancelled: dict[Task, list[tuple[str, int]]] = {}
        self._doomed: set[Task] = set()
        # Who is to be cancelled after which yield, and whether late.
        self._plans: dict[Task, tuple[int, bool]] = {}
        self.on_yield: Callable[[Task], None] = self._follow_plan
        # The present loan of each link, and the step in which it began.
        self._lent: dict[Link, tuple[WebsocketConnection | None, int]] = {}
        # The most places that may be taken: above max_connections only just after a resize.
        self._most = self.pool._router.options.max_connections
        # The links that were begun beyond what was known to be admitted, and have not lived yet.
        self._probes: set[Link] = set()
        self._newest = 0
        # In how many steps a limit was known.
        self.limited = 0
        # Whether a check was not answered, and none has been since.
        self._is_suspicious = False
        self._has_errands = bool(options.keys() & {"check_after_idle", "keepalive_interval"})
        # The links that the pool has borrowed itself, and how often it has, by what for.
        self._errands: dict[Link, str] = {}
        self.errands: Counter[str] = Counter()
        # What nobody had asked for and nobody has seen, by the step in which it arrived.
        self._unseen: dict[int, Link] = {}
        self.network.on_stray = self._note_stray
        # Tasks that `on_drained` or a borrower has begun, until they may do no more.
        self.guests: list[Task] = []
        self._is_ending = False
        # Of each loan that a failed dial has spoken to: what else had begun by then.
        self._hopes: dict[WebsocketConnection, set[Link]] = {}
        # What was found within a step, where raising would be an error of the pool's.
        self._judged: list[str] = []
        # When each link that has expired is to be gone; which of these have gone before or were let
        # go, and which links were opened, since the last time that all of them expired.
        self._deadlines: dict[Link, float] = {}
        self._early: set[Link] = set()
        self._let_go: set[Link] = set()
        self._fresh: set[Link] = set()
        self._resizes = 0
        # How many messages had come on the connection of a loan when it began.
        self._heard: dict[WebsocketConnection | None, int] = {}
        patience, supply = self.pool._router.patience, self.pool._router.supply
        patience.speak = partial(self._judge_failures, patience.speak)  # type: ignore[method-assign]
        supply.serve = partial(self._judge_dials, supply.serve)  # type: ignore[method-assign]
        loop.set_exception_handler(self._on_trouble)
        loop.before_step, loop.after_step = self._before, self._after
        self._troubles: list[dict[str, Any]] = []

    def _on_trouble(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._troubles.append(context)

    # Around each step.

    def cancel(self, task: Task, *, is_late: bool = False) -> None:
        """Cancel a task that waits: now, or in the moment in which it would have gone on."""
        if is_late:
            self._doomed.add(task)
        else:
            self.cancelled[task] = list(lines_of(task))
            task.cancel()

    def _follow_plan(self, task: Task) -> None:
        k, is_late = self._plans.get(task, (0, False))
        if k == self._yields[task]:
            self.cancel(task, is_late=is_late)

    def _before(self, task: Task | None) -> None:
        if task in self._doomed:
            self._doomed.discard(task)
            self.cancel(task)

    def _after(self, task: Task | None, callback: object) -> None:
        counts = tuple(self.pool._router.queues.counts().values())
        if task is None:
            name = getattr(callback, "__qualname__", type(callback).__name__)
            self.trace.append((name, self.loop.now, counts))
        else:
            number = self._numbers.setdefault(task, len(self._numbers))
            self.trace.append((number, task.done(), self.loop.now, counts))
            if not task.done():
                self._yields[task] += 1
                self.on_yield(task)
        self._check()

    def _check(self) -> None:
        """What holds after each step."""
        queues = self.pool._router.queues
        limit = self._limit
        for state in State:
            for link in queues[state]:
                if link.state is not state:
                    raise Violation(f"{link!r} is in the queue {state}")
                if link.loan is not None and state not in (State.BUSY, State.CLOSED):
                    raise Violation(f"{link!r} is lent")
                if (link.owner is None) != (state is State.IDLE):
                    raise Violation(f"{link!r} belongs to {link.owner!r}")
        for link in queues.busy:
            if link not in self._lent or self._lent[link][0] is not link.loan:
                self._lent[link] = (link.loan, self.loop.steps)
                self._heard[link.loan] = _socket_of(link).heard
                if link.loan is not None and not self._is_checked(link):
                    raise Violation(f"{link!r} is lent unchecked")
                if link.loan is not None:
                    self._check_spares()
                    self._check_in_grace(link)
                    self._check_replacements()
            if link.loan is None and (link.task is None or is_over(link.task)):
                raise Violation(f"{link!r} belongs to nobody")
            if link.is_shared:
                self._check_shares(link)
        if self._has_errands:
            self._watch_errands()
        if self._deadlines:
            self._watch_expired()
        self._watch_probes()
        self._most = max(limit, min(self._most, len(queues)))
        if len(queues) > self._most:
            raise Violation(f"{len(queues)} places are taken: {self.pool!r}")
        if len(self.network.open) > len(queues):
            raise Violation(f"{len(self.network.open)} sockets are open: {self.pool!r}")
        if self.quota is not None:
            if not len(self.network.open) <= len(self.quota._held) <= self.quota.limit:
                raise Violation(f"{len(self.network.open)} sockets are open: {self.quota!r}")
        if self._judged:
            raise Violation(self._judged[0])
        if self._troubles:
            raise Violation(f"an exception reached the loop: {self._troubles}")
        if self.loop.now > HORIZON:
            raise Violation(f"somebody waits for ever: {self.pool!r}")

        if len(self.pool._router.line) and not self.pool.is_closed:
            self._check_line()

    @property
    def _limit(self) -> int:
        """How many places there are: those on trial have one each, beyond what is known."""
        limit = self.pool._router.limit
        most = self.pool._router.options.max_connections
        return most if limit.learned is None else min(most, limit.learned + len(limit.trials))

    def _watch_probes(self) -> None:
        """Beyond what the server is known to admit, one is dialled at a time, for who waits."""
        router = self.pool._router
        queues, learned = router.queues, router.limit.learned
        self._probes = {link for link in self._probes if link.state is not State.CLOSED}
        self._probes &= cast(Any, router.limit.trials)
        for link in queues.connecting:
            on_trial = len(router.limit.trials - {link})
            if link.id <= self._newest or learned is None:
                continue
            if len(queues) - on_trial > learned:
                self._probes.add(link)
                if not len(router.line):
                    raise Violation(f"a probe for nobody: {self.pool!r}")
        self._newest = max((self._newest, *(link.id for link in queues.all)))
        self.limited += learned is not None
        if over := [link for link in router.limit.trials if link in queues.closed]:
            raise Violation(f"{over} are closed, and on trial: {self.pool!r}")
        known = [link for link in queues.all - queues.closed.keys() - router.limit.trials]
        dialled = sum(link.state is State.CONNECTING for link in known)
        if learned is not None and dialled and len(known) > learned:
            raise Violation(f"{dialled} dials are not called off: {self.pool!r}")
        if len(self._probes) > 1:
            raise Violation(f"{len(self._probes)} probes: {self.pool!r}")

    def _check_shares(self, link: Link) -> None:
        """A shared link has streams, no two of them a slot or a key, and none that nobody owns."""
        sharing, most = link.sharing, self.pool.max_streams
        if link.owner is not sharing or not 1 <= len(sharing.lanes) <= most:
            raise Violation(f"{link!r} has {len(sharing.lanes)} streams")
        for slot, lane in sharing.lanes.items():
            if lane.owner is None or lane.slot != slot or lane.is_lent is lane.is_draining:
                raise Violation(f"slot {slot} of {link!r} belongs to {lane.owner!r}")
            if lane.entries and lane.waiter is not None and not lane.waiter.done():
                raise Violation(f"slot {slot} of {link!r} waits beside its messages")
            if lane.is_draining and (lane.task is None or is_over(lane.task)):
                raise Violation(f"nobody drains slot {slot} of {link!r}")
        keys = [(key, lane) for lane in sharing.lanes.values() for key in lane.keys]
        if dict(keys) != sharing.keys or len(keys) != len(sharing.keys):
            raise Violation(f"the keys of {link!r} are not those of its streams")
        is_read = link.wire is not None and link.wire.is_reading
        waiting = list(sharing._waiting)
        if waiting and not is_read and not any(waiter.done() for waiter in waiting):
            if not self._is_breathing(link):
                raise Violation(f"all wait for another to read {link!r}")

    def _is_breathing(self, link: Link) -> bool:
        """Whether whoever reads lets the loop go on before the next message."""
        return bool(link.budget._waiting)

    def _check_spares(self) -> None:
        """After a checkout `min_idle` are ready or on their way, as far as there is room."""
        router = self.pool._router
        queues = router.queues
        spare = len(queues.idle) + len(queues.connecting) + router.capacity.errands
        has_room = len(queues) < self._limit
        if has_room and not router.line.loans and spare < router.options.min_idle:
            raise Violation(f"nothing is ready for the next one: {self.pool!r}")

    def _check_in_grace(self, lent: Link) -> None:
        """Nothing is lent after its grace."""
        if self._deadlines.get(lent, math.inf) <= self.loop.now:
            raise Violation(f"{lent!r} is lent, and was to be gone: {self.pool!r}")

    def _check_replacements(self) -> None:
        """After a checkout, and when all expire, each old one in use has a fresh one to follow."""
        router, now = self.pool._router, self.loop.now
        queues, deadlines = router.queues, self._deadlines
        in_use = sum(
            link.loan is not None and link in deadlines and link.retire_at > now
            for link in queues.busy
        )
        to_follow = sum(
            link.loan is None and link not in deadlines and link.state is not State.CLOSED
            for link in queues
        )
        has_room = len(queues) < self._limit
        if has_room and not router.line.loans and to_follow < in_use:
            raise Violation(f"{in_use} old ones are in use, and not replaced: {self.pool!r}")

    def _watch_expired(self) -> None:
        """Within its grace an old one goes for a fresh one, or as the one that makes room."""
        queues = self.pool._router.queues
        self._fresh.update(
            link
            for state in (State.IDLE, State.BUSY, State.DRAINING)
            for link in queues[state]
            if link not in self._deadlines
        )
        for link in queues.closed:
            if link in self._deadlines and link not in self._let_go:
                _, at, why = link.moves[-1]
                if why == CloseReason.EXPIRED and at < self._deadlines[link]:
                    self._early.add(link)
        if len(self._early) > len(self._fresh) + 1 + self._resizes:
            raise Violation(f"{len(self._early)} went for {self._fresh}: {self.pool!r}")

    def _expire(self) -> None:
        grace, router = self.loop.choose((0.0, 0.2, 2.0)), self.pool._router
        self.pool._enter()  # what it dials at the start is old, too
        self._early, self._fresh = set(), set()
        for link in router.queues:
            if link.state is not State.CLOSED:
                end = self.loop.now + grace
                self._deadlines[link] = min(self._deadlines.get(link, math.inf), end)
                if link.retire_at == -math.inf:
                    self._let_go.add(link)
        self.pool.expire_connections(grace)
        if not self.pool.is_closed:
            self._check_replacements()

    async def expire(self) -> None:
        for _ in range(3):
            await asyncio.sleep(self.loop.choose((0.0, 0.02, 0.1, 0.5, 1.0)))
            self._expire()

    def _check_line(self) -> None:
        """Nobody waits in vain: not beside what he could have, nor for what he did not ask for."""
        router = self.pool._router
        queues, limit = router.queues, self._limit
        waiting = [loan for loan in router.line if not loan._waiter.done()]
        self._check_free_slots(waiting)
        for_used = sum(not loan._wants_new for loan in waiting)
        checks = list(self._errands.values()).count("check")
        if for_used and queues.idle:
            if self._overdue(next(reversed(queues.idle))) < 0 or checks < for_used:
                raise Violation(f"somebody waits beside an idle one: {self.pool!r}")
        hopes = 0 if self._is_suspicious else min(checks, for_used)
        # While nothing is open, no dial begins for a loan whose hope is at work.
        begun = [link.number for link in queues.connecting if link.number]
        wanted = router.line.links_for(waiting)
        if not router.capacity.open:
            wanted = router.line.links_for(
                loan
                for loan in waiting
                if loan._horizon is None or loan._horizon < min(begun, default=math.inf)
            )
        if len(queues) < limit and wanted > len(queues.connecting) + hopes:
            raise Violation(f"somebody waits beside room for a dial: {self.pool!r}")
        # What neither a borrower nor a drain holds comes by itself.
        lent = sum(link.loan is not None for link in queues.busy)
        own = limit - lent - len(queues.draining)
        coming = max(0, own, len(queues.connecting) + len(queues.idle))
        places = Places(router.line.max_streams)
        for loan in waiting:
            place = places.before(loan)
            places.add(loan)
            if place >= coming and loan._timeout == 0:
                raise Violation(f"timeout=0 waits for a borrower: {self.pool!r}")

    def _check_free_slots(self, waiting: list[Borrow]) -> None:
        """No stream that is first waits beside a free slot of a link that is good."""
        router = self.pool._router
        if not (waiting and waiting[0]._is_stream) or router.capacity.surplus > 0:
            return
        if len(waiting) < len(router.line):
            return  # until one that was cancelled has left, it may have kept the place
        for link in router.queues.busy:
            has_room = link.is_shared and len(link.sharing.lanes) < self.pool.max_streams
            if has_room and link.is_connected:
                if router.retiring.why_returned(link) is None:
                    raise Violation(f"a stream waits beside a free slot: {self.pool!r}")

    def _left(self, loan: WebsocketConnection, failed: Link | None = None) -> int:
        """Return how many of the dials that were a loan's hope may still serve somebody."""
        hopes = self._hopes.get(loan, set())
        return sum(link.state is State.CONNECTING and link is not failed for link in hopes)

    def _judge_failures(
        self, speak: Callable[..., bool], failure: ConnectionUnavailableError, failed: Link
    ) -> bool:
        """Whoever fails has nothing left that could serve it; whoever goes on waiting has."""
        router = self.pool._router
        queues, capacity = router.queues, router.capacity
        begun = {link for link in queues.connecting if link.number and link is not failed}
        line = list(router.line)
        for loan in line:
            if loan._arrival < failed.number:
                self._hopes.setdefault(loan, begun)
        is_anybody = speak(failure, failed)
        unheld = max(0, self._limit - capacity.held)
        places = Places(router.line.max_streams)
        for loan in line:
            place = places.before(loan)
            is_waiting = loan in router.line
            if loan not in self._hopes and not is_waiting:
                self._judged.append(
                    f"a loan failed by a dial that began before it came: {self.pool!r}"
                )
            if loan in self._hopes:
                own = self._left(loan, failed) + len(queues.idle) + capacity.errands
                coming = min(unheld, own)
                is_patient = loan._timeout != 0
                may_wait = place < coming or (is_patient and coming + capacity.held > 0)
                if may_wait and not is_waiting:
                    self._judged.append(f"a loan failed that could still be served: {self.pool!r}")
                assert loan._failure is not None
                if is_waiting and not (may_wait or (is_patient and loan._failure.kind == "quota")):
                    self._judged.append(f"a loan waits on, and for nothing: {self.pool!r}")
            if is_waiting:
                places.add(loan)
        return is_anybody

    def _judge_dials(self, serve: Callable[[int], None], promised: int) -> None:
        """While nothing is open, none begins for a loan whose hope is at work."""
        router = self.pool._router
        before = len(router.queues.connecting)
        entitled = [loan for loan in router.line if not self._left(loan)]
        serve(promised)
        begun = len(router.queues.connecting) - before
        if begun > router.line.links_for(entitled) and not router.capacity.open:
            self._judged.append(f"a server that refuses is dialled for no need: {self.pool!r}")

    def _watch_errands(self) -> None:
        """Note the errands that have begun and ended, and what the checks say of the server."""
        router, before = self.pool._router, self._errands
        self._errands = {
            link: link.moves[-1][2] for link in router.queues.busy if link.loan is None
        }
        if len(self._errands) != router.capacity.errands:
            raise Violation(f"errands are counted that are over: {self.pool!r}")
        for link, errand in self._errands.items():
            self.errands[errand] += link not in before
        for link, errand in before.items():
            if errand == "check" and link not in self._errands:
                if link.state is not State.CLOSED:
                    self._is_suspicious = False
                elif link.moves[-1][2] == CloseReason.STALE:
                    self._is_suspicious = True
        if "check" not in self._errands.values():
            self._is_suspicious = False

    def _overdue(self, link: Link) -> float:
        """Return for how many seconds a check has been due; below 0, in how many it will be."""
        after = self.pool._router.options.check_after_idle
        since = max(link.idle_since, link.checked_at)
        return self.loop.now - since - after if after is not None else -math.inf

    def _is_checked(self, link: Link) -> bool:
        """Whether it was not idle for so long that it must answer first; or it did."""
        if link.checked_at > link.idle_since:
            assert link.wire is not None
            return _socket_of(link).ponged_at >= link.idle_since
        return self._overdue(link) <= 0

    def _note_stray(self, socket: Socket) -> None:
        """What arrives while the pool owns a connection, and before it is lost, is shown.

        But for what a server sends behind its CLOSE.
        """
        queues = self.pool._router.queues
        for link in (*queues.idle, *queues.busy, *queues.draining):
            if link.wire is not None and link.wire.websocket is socket.client:
                is_closed = any(frame.type is WSMsgType.CLOSE for frame, _ in link.wire.frames)
                if link.loan is None and link.uses and not is_closed:
                    self._unseen[self.loop.steps] = link

    # What borrowers do.

    def see(self, message: str | bytes) -> str:
        """Read a message, whoever does: what was unasked for has been seen."""
        kind, about = str(message).split(" ", 1)
        if kind == "stray":
            self._unseen.pop(int(about), None)
        return kind

    async def ask(self, connection: WebsocketConnection, question: str) -> None:
        """Ask and read the answer; a message that is not for this borrower is a violation."""
        loan, lent_at = self._lent.get(link_of(connection), (None, 0))
        if loan is not connection:
            lent_at = self.loop.steps
        await connection.send(question)
        while True:
            message = await connection.recv()
            self.see(message)
            kind, about = str(message).split(" ", 1)
            if kind == "stray":  # before the first loan it is a greeting
                if int(about) < lent_at and connection.reused:
                    raise Violation(f"what came in step {about} is read in a loan of {lent_at}")
            elif about != question:
                raise Violation(f"{question!r} was asked, and {kind} {about!r} read")
            elif kind == "last":
                return

    async def ask_on(self, stream: WebsocketStream, name: str) -> None:
        """Ask on a stream and read the answer; a message of another's is a violation."""
        key = stream.claim(f"{name}-{stream.claim()}")
        await stream.send(key)
        while True:
            kind, about = str(await stream.recv()).split(" ", 1)
            if about != key:
                raise Violation(f"{key!r} was asked, and {kind} {about!r} read")
            if kind == "last":
                return

    async def stream(self, name: str) -> None:
        """Borrow a stream in one way or another, ask, think, and give it back."""
        loop, pool = self.loop, self.pool
        timeout, patience = loop.choose((0, 0.2, 3.0, None)), loop.choose((0.02, 0.5, 5.0))
        try:
            if loop.chance(0.7):
                async with pool.get_stream(timeout=timeout) as stream, asyncio.timeout(patience):
                    self._check_slot(stream)
                    for n in range(loop.choose((1, 2))):
                        await self.ask_on(stream, f"{name}.{n}")
                    await asyncio.sleep(self.network.delay())
                if loop.chance(0.3):
                    self.guests.append(loop.create_task(self.outlive(stream)))
                return
            stream = await pool.acquire_stream(timeout=timeout)
            self._check_slot(stream)
            is_dropped = True
            try:
                async with asyncio.timeout(patience):
                    await self.ask_on(stream, name)
                    await stream.ping()
                    is_dropped = loop.chance(0.1)
            finally:
                await pool.release_stream(stream, force_remove=is_dropped)
        except (WebsocketError, TimeoutError):
            pass  # told what went wrong, as promised

    def _check_slot(self, stream: WebsocketStream) -> None:
        lane = stream._lane
        if lane is None or lane.owner is not stream or not lane.sharing.link.is_shared:
            raise Violation(f"{stream!r} is lent, and lost already")

    async def loan(self, name: str) -> None:
        """Borrow in one way or another, ask, think, and give back; the server may spoil it."""
        loop, pool = self.loop, self.pool
        timeout, patience = loop.choose((0, 0.2, 3.0, None)), loop.choose((0.02, 0.5, 5.0))
        is_new = loop.chance(0.25)
        try:
            if loop.chance(0.4):
                await self.run_work(name, timeout, patience)
                return
            if loop.chance(0.5):
                get = pool.get_new_connection if is_new else pool.get_connection
                async with get(timeout=timeout) as connection, asyncio.timeout(patience):
                    self._check_alive(connection)
                    await self.ask(connection, name)
                    await asyncio.sleep(self.network.delay())
                if loop.chance(0.3):
                    self.guests.append(loop.create_task(self.outlive(connection)))
                return
            began = loop.now
            try:
                connection = await (pool.acquire_new if is_new else pool.acquire)(timeout=timeout)
            finally:
                if timeout and loop.now > began + timeout:
                    raise Violation(f"an acquire with {timeout=} took {loop.now - began}")
            is_dropped = True
            self._check_alive(connection)
            try:
                async with asyncio.timeout(patience):
                    await self.ask(connection, name)
                    is_dropped = loop.chance(0.1)
            finally:
                await pool.release(connection, force_remove=is_dropped)
        except (WebsocketError, TimeoutError) as error:
            # Told what went wrong, as promised.
            if timeout != 0 and type(error) is ConnectionPoolExhaustedError:
                raise Violation(f"one that is patient is sent away: {error}") from error

    async def run_work(self, name: str, timeout: float | None, patience: float) -> None:
        """Let the pool run work, which is done twice if it was in vain, and else not."""
        loans: list[WebsocketConnection] = []

        async def work(connection: WebsocketConnection) -> None:
            loans.append(connection)
            self._check_alive(connection)
            if self.loop.chance(0.2):
                socket = _socket_of(link_of(connection))
                self.loop.call_later(self.network.delay(), socket.lose)
            async with asyncio.timeout(patience):
                await self.ask(connection, name)
                await asyncio.sleep(self.network.delay())

        try:
            await self.pool.run(work, timeout=timeout)
        except ConnectionClosedError:
            if len(loans) == 1 and self._was_in_vain(loans[0]):
                raise Violation(f"{loans[0]!r} was lost, and its work not repeated") from None
            raise
        finally:
            if loans[1:] and (loans[1].reused or not self._was_in_vain(loans[0])):
                self._judged.append(f"work was done on {loans[0]!r} and again on {loans[1]!r}")

    def _was_in_vain(self, loan: WebsocketConnection) -> bool:
        link = link_of(loan)
        is_lost = link.state is State.CLOSED and link.moves[-1][2] == CloseReason.SERVER
        heard = _socket_of(link).heard
        return is_lost and loan.reused and self._heard.get(loan, heard) == heard

    def _check_alive(self, connection: WebsocketConnection) -> None:
        if link_of(connection).owner is not connection:
            raise Violation(f"{connection!r} is lent, and lost already")

    async def outlive(self, connection: WebsocketConnection | WebsocketStream) -> None:
        """As a task that was left behind by a loan, go on speaking and reading."""
        await asyncio.sleep(self.loop.choose((0.0, 0.01, 0.3)))
        try:
            if self.loop.chance(0.5):
                await connection.send("too late")
            else:
                await connection.recv()
        except (ConnectionBusyError, ConnectionClosedError):
            return
        raise Violation(f"a loan that is over still speaks or reads: {connection!r}")

    async def greet(self, connection: WebsocketConnection) -> None:
        """As a hook, say hello and read the answer."""
        await connection.send("hello")
        while self.see(await connection.recv()) != "last":
            pass

    async def compete(self) -> None:
        """As another pool, have sockets of the same quota."""
        assert self.quota is not None
        for _ in range(2):
            lease = await self.quota.acquire()
            await asyncio.sleep(self.loop.choose((0.0, 0.1, 1.0)))
            self.quota.release(lease)

    async def resize(self) -> None:
        for _ in range(2):
            self._resize()
            await asyncio.sleep(self.loop.choose((0.0, 0.02, 0.3)))

    def _resize(self) -> None:
        limit = self.loop.choose((1, 2, 3))
        self._most = max(self._most, limit)
        self._resizes += 1
        self.pool.resize(limit)

    def meddle(self, connection: WebsocketConnection, message: str | bytes) -> None:
        """As `on_drained`, do what may be done to a pool, and sometimes raise."""
        self.see(message)
        loop, pool = self.loop, self.pool
        if self._is_ending or pool.is_closed or loop.chance(0.6):
            return
        match loop.choose(("raise", "resize", "expire", "borrow", "borrow", "close")):
            case "raise":
                raise KeyError("on purpose")
            case "resize":
                self._resize()
            case "expire":
                self._expire()
            case "borrow" if len(self.guests) < 4:
                self.guests.append(loop.create_task(self.loan("guest")))
            case "close" if loop.chance(0.2):
                self.guests.append(loop.create_task(pool.close_all()))

    async def suffer(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Do something that is perhaps cancelled, after some step."""
        task = self.loop.create_task(coroutine)
        if self.loop.chance(0.5):
            self._plans[task] = (self.loop.choose(range(1, 7)), self.loop.chance(0.5))
        await asyncio.wait([task])
        self.judge(task)
        await asyncio.sleep(self.loop.choose((self.network.delay(), 1.0)))

    async def borrow(self, name: str) -> None:
        for n in range(2):
            await self.suffer(self.loan(f"{name}{n}"))

    async def share(self, name: str) -> None:
        for n in range(3):
            borrow = self.loan if self.loop.chance(0.2) else self.stream
            await self.suffer(borrow(f"{name}{n}"))

    def judge(self, task: Task) -> None:
        """A task ends cancelled if it was cancelled, and else not; errors are not lost."""
        if task.cancelled() != (task in self.cancelled):
            raise Violation(f"{task!r}, cancelled at {self.cancelled.get(task)}")
        if not task.cancelled():
            task.result()

    async def finish(self) -> None:
        """All capacity can be had; and closing leaves nothing and nobody behind."""
        self._is_ending = True
        while guests := [guest for guest in self.guests if not guest.done()]:
            await asyncio.wait(guests)
        self.network.temper = CALM
        self.network.limit = None
        pool = self.pool
        if not pool.is_closed:
            seize = [self._seize() for _ in range(pool._router.options.max_connections)]
            for connection in await asyncio.gather(*seize):
                await pool.release(connection)
        await pool.close_all()
        for guest in self.guests:
            guest.result()
        if self.pool._router.options.on_drained is not None and self._unseen:
            raise Violation(f"nobody saw {self._unseen}")
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if left or self.network.open or len(pool._router.queues) or pool.waiters:
            raise Violation(f"{left} and {self.network.open} are left of {pool!r}")
        if self.quota is not None and (self.quota._held or self.quota._waiting):
            raise Violation(f"leases are left: {self.quota!r}")
        if pool.is_started and not self.network.is_closed:
            raise Violation("the session is not closed")

    async def _seize(self) -> WebsocketConnection:
        while True:
            try:
                return await self.pool.acquire(timeout=None)
            except wspool.ConnectionUnavailableError:
                pass  # of a dial from before the network calmed down

    def run(self, main: Coroutine[Any, Any, object]) -> None:
        """Run to the end; after a failure, clean up so that it is the only thing heard of."""
        state = random.getstate()
        random.seed(0)  # of the pool's jitters
        try:
            self.loop.run_until_complete(main)
        except BaseException:
            self.loop.before_step, self.loop.after_step = lambda _: None, lambda _, __: None
            self.pool._router.is_closing = True
            for link in self.pool._router.queues:
                link.loan = None
            while tasks := asyncio.all_tasks(self.loop):
                for task in tasks:
                    task.cancel()
                self.loop.run_until_complete(asyncio.wait(tasks))
            raise
        finally:
            random.setstate(state)
            self.loop.close()


def _socket_of(link: Link) -> Socket:
    assert link.wire is not None
    return cast(Socket, cast(Any, link.wire.websocket)._response)


def lines_of(task: Task) -> Iterator[tuple[str, int]]:
    """Give the lines of the core that a task is suspended at: file and line, outermost first."""
    awaiting: Any = task.get_coro()
    while awaiting is not None:
        if type(awaiting).__name__.startswith("async_generator_a"):  # it hides its generator
            awaiting = next(r for r in gc.get_referents(awaiting) if hasattr(r, "ag_frame"))
        if type(awaiting).__name__ == "coroutine_wrapper":  # so does that of an acquire
            [awaiting] = gc.get_referents(awaiting)
        frame = getattr(awaiting, "cr_frame", None) or getattr(awaiting, "ag_frame", None)
        if frame is not None and CORE in Path(frame.f_code.co_filename).parents:
            yield Path(frame.f_code.co_filename).name, frame.f_lineno
        awaiting = getattr(awaiting, "cr_await", None) or getattr(awaiting, "ag_await", None)


def is_over(task: Task) -> bool:
    """Whether a task has ended, but for what its callbacks will do after a cancellation."""
    return task.done() and not task.cancelled()


class Outcome(NamedTuple):
    """What a schedule was: a hash of all its steps, their number, the choices, what happened."""

    trace: str
    steps: int
    decisions: int
    events: Counter[str]


def explore(seed: int, task_factory: Any = None) -> Outcome:
    """Run the schedule of this seed: 3 borrowers, 2 connections, 1 upkeep, a wild network."""
    loop = Loop(seed)
    loop.set_task_factory(task_factory)

    async def greet(connection: WebsocketConnection) -> None:
        await world.greet(connection)

    options = _options(loop, greet)
    if loop.chance(0.3):
        options["on_drained"] = lambda *what: world.meddle(*what)
    if loop.chance(0.3):
        options["quota"] = LocalQuota(3, loop.choose((None, 10.0)))
    options["min_idle"] = loop.choose((0, 0, 1, 2))
    options["learn_limit"] = loop.chance(0.7)
    options["max_connections"] = loop.choose((2, 2, 3))
    world = World(loop, WILD, **options)
    if options["learn_limit"]:  # else one that wants a new connection may wait for ever
        world.network.limit = loop.choose((None, 1, 2))

    async def main() -> None:
        borrowers = [loop.create_task(world.borrow(name)) for name in "abc"]
        if loop.chance(0.3):
            borrowers.append(loop.create_task(world.resize()))
        if loop.chance(0.3):
            borrowers.append(loop.create_task(world.expire()))
        if world.quota is not None:
            borrowers += [loop.create_task(world.compete()) for _ in range(3)]
        if loop.chance(0.3):
            await asyncio.sleep(loop.choose((0.0, 0.02, 0.1, 0.5)))
            await world.suffer(world.pool.close_all(loop.choose((0.0, 0.1, None))))
        await asyncio.gather(*borrowers)
        await world.finish()

    # Not by the processor's time: each frame is the last of a turn, or none is.
    with mock.patch.object(budget, "TURN_SECONDS", -1.0 if loop.chance(0.3) else math.inf):
        world.run(main())
    digest = hashlib.blake2b(repr(world.trace).encode(), digest_size=8).hexdigest()
    stats = world.pool.stats
    names = (
        "borrows",
        "waits",
        "timeouts",
        "dials",
        "dial_failures",
        "drained_messages",
        "repeats",
    )
    events = stats.closes + Counter({name: getattr(stats, name) for name in names})
    events["cancelled"] = len(world.cancelled)
    events["quota"] = stats.failures["quota"]
    events += world.errands
    events["full"] = stats.failures["status 429"]
    events["limited"] = world.limited
    return Outcome(digest, loop.steps, loop.decisions, events)


def key_of(message: str | bytes) -> str:
    """Return whose a message is: what the server is asked, it repeats."""
    return str(message).split(" ")[-1]


def explore_streams(seed: int) -> Outcome:
    """Run the schedule of this seed: 5 borrowers of streams, and now and then of a connection."""
    loop = Loop(seed)

    async def say_bye(stream: WebsocketStream) -> None:
        if not stream.is_clean:
            await stream.send(NO_REPLY.decode())
            await stream.ping()

    world = World(
        loop,
        WILD,
        max_streams=loop.choose((1, 2, 3)),
        route=key_of,
        max_unread=loop.choose((1, 4 * 2**20)),
        max_connecting=loop.choose((1, 2)),
        min_connections=loop.choose((0, 0, 1)),
        max_uses=loop.choose((None, None, None, 2, 5)),
        max_lifetime=loop.choose((None, None, None, 0.3)),
        idle_timeout=loop.choose((60.0, 0.3)),
        cleanup_interval=loop.choose((5.0, 0.25)),
        drain_until=loop.choose((None, is_last)),
        drain_fence=loop.chance(0.3),
        on_release=loop.choose((None, None, say_bye)),
        check_after_idle=loop.choose((None, None, 0.0)),
    )

    async def main() -> None:
        borrowers = [loop.create_task(world.share(name)) for name in "abcde"]
        if loop.chance(0.3):
            borrowers.append(loop.create_task(world.resize()))
        if loop.chance(0.3):
            await asyncio.sleep(loop.choose((0.0, 0.02, 0.1, 0.5)))
            await world.suffer(world.pool.close_all(loop.choose((0.0, 0.1, None))))
        await asyncio.gather(*borrowers)
        await world.finish()
        for link in world.pool._router.queues.gone:
            if link.sharing is not None and link.sharing.lanes:
                raise Violation(f"streams are left on {link!r}")

    with mock.patch.object(budget, "TURN_SECONDS", -1.0 if loop.chance(0.3) else math.inf):
        world.run(main())
    digest = hashlib.blake2b(repr(world.trace).encode(), digest_size=8).hexdigest()
    stats = world.pool.stats
    names = ("borrows", "waits", "timeouts", "dials", "dial_failures", "drained_messages")
    events = stats.closes + Counter({name: getattr(stats, name) for name in names})
    events["cancelled"] = len(world.cancelled)
    return Outcome(digest, loop.steps, loop.decisions, events)


async def _pause(connection: WebsocketConnection) -> None:
    await asyncio.sleep(0.01)


async def _show_life(connection: WebsocketConnection) -> None:
    await connection.send(NO_REPLY.decode())


async def _ping(connection: WebsocketConnection) -> None:
    await connection.ping()


async def _fail(connection: WebsocketConnection) -> None:
    await connection.ping()
    raise KeyError("on purpose")


Hook = Callable[[WebsocketConnection], Awaitable[None]]


def _options(loop: Loop, greet: Hook) -> dict[str, Any]:
    hooks: tuple[Hook | None, ...] = (None, None, _pause, greet)
    errands: dict[str, Any] = {}
    if loop.chance(0.5):
        errands["check_after_idle"] = loop.choose((0.0, 0.0, 0.1))
    if loop.chance(0.4):
        errands["keepalive_interval"] = loop.choose((0.2, 0.5))
        errands["keepalive"] = loop.choose((None, greet, _show_life, _ping, _fail))
    return errands | {
        "max_connecting": loop.choose((1, 2)),
        "min_connections": loop.choose((0, 0, 1)),
        "max_uses": loop.choose((None, None, None, None, 1)),
        "max_lifetime": loop.choose((None, None, None, 0.3)),
        "idle_timeout": loop.choose((60.0, 0.3)),
        "cleanup_interval": loop.choose((5.0, 0.25)),
        "check_server_data_on_release": loop.chance(0.3),
        "drain_until": loop.choose((None, is_last)),
        "drain_fence": loop.chance(0.3),
        "on_connect": loop.choose(hooks),
        "on_release": loop.choose(hooks[:3]),
    }
