"""Whatever happens to a pool, in whatever order: its queues tell the truth and no slot is lost.

Hypothesis makes up the stories: of borrowers and servers that do everything they may do, and of
time that passes. After each action the pool is checked; at the end of each story all of its
capacity must be there. Here time is the machine's own, and passes only where a story says so: see
`Loop`. The sockets are real.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.explore.schedules import SCHEDULES
from tests.support.inside import link_of
from wspool import (
    ConnectionClosedError,
    ConnectionPoolExhaustedError,
    ConnectionPoolUnavailableError,
    ConnectionUnavailableError,
    State,
    WebsocketConnection,
    WebsocketConnectionPool,
)
from wspool._connection.link import Link
from wspool.testing import Peer, Server

TICKS = st.sampled_from([0, 1, 2, 3, 5, 8, 13, 40])
"""How many turns the event loop gets after an action: the next may come in the middle of it."""

WHICH = st.integers(min_value=0, max_value=9)
"""Picks one of several: the index wraps around."""

CAPACITY = (ConnectionPoolExhaustedError, ConnectionUnavailableError)


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose time stands still unless it is put forward."""

    now = 1000.0

    def time(self) -> float:
        return self.now


def is_last(message: str | bytes) -> bool:
    return str(message).startswith("last ")


# How the pool tells that a connection is clean.
DRAINS: dict[str, dict[str, Any]] = {
    "none": {},
    "until": {"drain_until": is_last, "drain_timeout": 5.0},
    "fence": {"drain_fence": True, "drain_timeout": 5.0},
    "quiet": {"check_server_data_on_release": True, "drain_timeout": 5.0},
}

# What the server does with a request. "silence" never ends, "trail" goes on after the last one.
MODES = ["reply", "flood", "slow", "silence", "drop", "close"]


async def answer(peer: Peer, request: str, mode: str) -> None:
    if mode == "silence":
        return
    if mode == "drop":
        return peer.drop()
    if mode == "close":
        return await peer.close(1001)
    if mode == "slow":
        await asyncio.sleep(1.0)
    for _ in range(300 if mode == "flood" else 1):
        await peer.send(f"part {request}")
    await peer.send(f"last {request}")
    if mode == "trail":
        await peer.send(f"trail {request}")
        await peer.send(f"trail {request}")


class Story(RuleBasedStateMachine):
    """A pool, its server, and what the actions have set off so far.

    An action that is not possible does nothing, instead of being held back by a precondition: what
    Hypothesis draws may not depend on sockets, or it could not tell the same story twice.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loop = Loop()
        self.loop.set_debug(True)
        self.troubles: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.troubles.append(context))
        self.server = Server(self.serve)
        self.loop.run_until_complete(self.server.start())
        # Peers that read nothing any more, and so do not even see that the client is gone.
        self.mute: list[Peer] = []
        # Which loan each request belongs to.
        self.asked: dict[str, WebsocketConnection] = {}
        # The most sockets that there may be: above max_connections only just after a resize.
        self.most_sockets = 0
        self.drain = ""
        self.options: dict[str, Any] = {}
        self.acquiring: list[asyncio.Task[WebsocketConnection]] = []
        self.cancelled: set[asyncio.Task[Any]] = set()
        # Borrowed by hand, and the exchanges on them; borrowed with `async with`.
        self.borrowed: list[WebsocketConnection] = []
        self.exchanges: dict[WebsocketConnection, asyncio.Task[None]] = {}
        self.borrowers: list[asyncio.Task[None]] = []
        self.returned: list[WebsocketConnection] = []
        # Whatever else was set off, on this side and on the server's.
        self.errands: list[asyncio.Task[None]] = []
        self.server_errands: list[asyncio.Task[None]] = []
        self.pool: WebsocketConnectionPool

    @initialize(
        drain=st.sampled_from(sorted(DRAINS)),
        max_connections=st.integers(1, 4),
        max_connecting=st.integers(1, 2),
        min_connections=st.integers(0, 1),
        max_uses=st.sampled_from([None, None, 3]),
        max_lifetime=st.sampled_from([None, None, 30.0]),
        check_after_idle=st.sampled_from([None, 0.0, 0.5]),
        keepalive_interval=st.sampled_from([None, None, 1.0]),
    )
    def begin(self, drain: str, **options: Any) -> None:
        self.drain = drain
        self.options = options
        self.open()

    def open(self) -> None:
        self.pool = WebsocketConnectionPool(
            uri=self.server.uri,
            idle_timeout=20.0,
            close_timeout=1.0,
            connection_timeout=10.0,
            **self.options,
            **DRAINS[self.drain],
        )
        self.most_sockets = self.max_connections
        lend = self.pool._router.lend

        def checked_lend(link: Link, loan: WebsocketConnection, now: float | None = None) -> None:
            lend(link, loan, now)
            if link.uses > 1:  # else it may be a greeting
                assert not link.has_news, "something is unread at the checkout"
                assert not list(link.unread()), "the inbox is full at the checkout"

        self.pool._router.lend = checked_lend  # type: ignore[method-assign]

    @property
    def max_connections(self) -> int:
        return self.pool._router.options.max_connections

    async def serve(self, peer: Peer) -> None:
        """Answer each request, one after the other, in the way that it asks for."""
        if (count := self.sockets()) > self.most_sockets:
            self.troubles.append({"message": f"{count} sockets at the server: {self.pool!r}"})
        async for request in peer:
            await answer(peer, *str(request).split())

    def sockets(self) -> int:
        """Return how many sockets the server has, as far as it listens."""
        runner = self.server._runner
        assert runner is not None
        assert runner.server is not None
        mute = [peer.request.transport for peer in self.mute]
        transports = [protocol.transport for protocol in runner.server.connections]
        return sum(1 for t in transports if t and not t.is_closing() and t not in mute)

    # The loop.

    def do(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run what never really waits; nothing else runs between its steps."""
        self.loop.run_until_complete(coroutine)

    def tick(self, ticks: int) -> None:
        async def turns() -> None:
            for _ in range(ticks):
                await asyncio.sleep(0)

        self.do(turns())

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Let things happen, and time pass, until a condition is true."""
        for _ in range(3000):
            if condition():
                return
            self.tick(10)
            self.loop.now += 0.05
        raise AssertionError(f"it never came true that {what}: {self.pool!r}")

    def task(self, coroutine: Any) -> asyncio.Task[Any]:
        return self.loop.create_task(coroutine)

    def cancel(self, task: asyncio.Task[Any]) -> None:
        if task.cancel():
            self.cancelled.add(task)

    def ended(self, tasks: list[asyncio.Task[Any]], *expected: type[BaseException]) -> list[Any]:
        """Take out the tasks that have ended, and return the results of those that went well."""
        results = []
        for task in [task for task in tasks if task.done()]:
            tasks.remove(task)
            if task.cancelled():
                assert task in self.cancelled
                continue
            assert task not in self.cancelled, f"the cancellation was swallowed: {task}"
            if (error := task.exception()) is None:
                results.append(task.result())
            else:
                assert isinstance(error, expected), f"{task}: {error!r}"
        return results

    def collect(self) -> None:
        """Look at what has ended by itself."""
        unavailable = (ConnectionPoolUnavailableError,) if self.pool.is_closed else ()
        self.borrowed += self.ended(self.acquiring, *CAPACITY, *unavailable)
        self.ended(self.borrowers, ConnectionClosedError, *CAPACITY, *unavailable)
        self.ended(self.errands)
        self.ended(self.server_errands, ConnectionError)
        for exchange in self.exchanges.values():
            if exchange.done() and not exchange.cancelled():
                error = exchange.exception()
                assert error is None or isinstance(error, ConnectionClosedError), repr(error)

    # Borrowers.

    @rule(timeout=st.sampled_from([0, None, 3.0]), is_new=st.booleans(), ticks=TICKS)
    def acquire(self, timeout: float | None, is_new: bool, ticks: int) -> None:
        acquire = self.pool.acquire_new if is_new else self.pool.acquire
        self.acquiring.append(self.task(acquire(timeout=timeout)))
        self.tick(ticks)

    @rule(which=WHICH, ticks=TICKS)
    def cancel_an_acquire(self, which: int, ticks: int) -> None:
        if not self.acquiring:
            return
        self.cancel(self.acquiring[which % len(self.acquiring)])
        self.tick(ticks)

    @rule(which=WHICH, is_first=st.booleans(), ticks=TICKS)
    def cancel_an_acquire_in_the_tick_of_a_release(
        self, which: int, is_first: bool, ticks: int
    ) -> None:
        for _ in range(self.max_connections + 1):  # until one has to wait
            if not self.acquiring:
                self.acquiring.append(self.task(self.pool.acquire(timeout=None)))
                self.tick(40)
                self.collect()
        if not (self.acquiring and self.borrowed):
            return
        acquiring = self.acquiring[0]  # the oldest, whom the release serves

        async def both() -> None:
            if is_first:
                self.cancel(acquiring)
            await self.give_back(which, force_remove=False)
            self.cancel(acquiring)

        self.do(both())
        self.tick(ticks)

    @rule(which=WHICH, force_remove=st.booleans(), ticks=TICKS)
    def release(self, which: int, force_remove: bool, ticks: int) -> None:
        if not self.borrowed:
            return
        self.do(self.give_back(which, force_remove=force_remove))
        self.tick(ticks)

    async def give_back(self, which: int, *, force_remove: bool) -> None:
        connection = self.borrowed.pop(which % len(self.borrowed))
        exchange = self.exchanges.pop(connection, None)
        if exchange is not None:
            self.errands.append(self.task(self.watch(exchange)))
            # After a request whose reply is still to come only these can tell when it has come.
            went_well = exchange.done() and not (exchange.cancelled() or exchange.exception())
            force_remove |= not went_well and self.drain not in ("until", "fence")
        await self.pool.release(connection, force_remove=force_remove)
        self.returned.append(connection)

    async def watch(self, exchange: asyncio.Task[None]) -> None:
        await asyncio.wait([exchange])
        self.ended([exchange], ConnectionClosedError)

    @rule(which=WHICH, force_remove=st.booleans())
    def release_twice(self, which: int, force_remove: bool) -> None:
        if not self.returned:
            return
        connection = self.returned[which % len(self.returned)]

        async def release() -> None:
            before = (connection.state, repr(self.pool))
            await self.pool.release(connection, force_remove=force_remove)
            assert (connection.state, repr(self.pool)) == before

        self.do(release())

    @rule(which=WHICH, mode=st.sampled_from([*MODES, "trail"]), ticks=TICKS)
    def exchange(self, which: int, mode: str, ticks: int) -> None:
        if not self.borrowed:
            return
        connection = self.borrowed[which % len(self.borrowed)]
        if connection in self.exchanges:
            if not self.exchanges[connection].done():
                return  # one at a time
            previous = self.exchanges[connection]
            if previous.cancelled() or previous.exception():
                return  # who does not know what is still coming asks nothing more
        self.exchanges[connection] = self.task(self.talk(connection, mode))
        self.tick(1 + ticks)

    async def talk(self, connection: WebsocketConnection, mode: str) -> None:
        """Send a request, and find that what comes back belongs to it."""
        if mode == "trail" and self.drain in ("none", "until"):
            mode = "reply"  # these do not promise to survive it
        request = str(len(self.asked))
        self.asked[request] = connection
        await connection.send(f"{request} {mode}")
        while True:
            kind, belongs_to = str(await connection.recv()).split()
            if kind == "stray":
                continue
            assert self.asked[belongs_to] is connection, f"{kind} of {belongs_to} came to {request}"
            if kind == "last" and belongs_to == request:
                return

    async def leave_unread(self, connection: WebsocketConnection) -> None:
        """Send a request whose reply takes its time, and do not wait for it."""
        if self.drain in ("until", "fence"):  # the others do not promise to survive it
            request = str(len(self.asked))
            self.asked[request] = connection
            await connection.send(f"{request} slow")

    @rule(which=WHICH, ticks=TICKS)
    def cancel_an_exchange(self, which: int, ticks: int) -> None:
        if not self.exchanges:
            return
        self.cancel(list(self.exchanges.values())[which % len(self.exchanges)])
        self.tick(ticks)

    @rule(which=WHICH, ticks=TICKS)
    def borrower_closes(self, which: int, ticks: int) -> None:
        if not self.borrowed:
            return
        connection = self.borrowed[which % len(self.borrowed)]
        self.errands.append(self.task(connection.close()))
        self.tick(ticks)

    @rule(
        mode=st.sampled_from([*MODES, "trail", "nothing", "unread", "unread"]),
        timeout=st.sampled_from([0, None, 3.0]),
        count=st.integers(1, 3),
        ticks=TICKS,
    )
    def borrow(self, mode: str, timeout: float | None, count: int, ticks: int) -> None:
        async def borrow() -> None:
            async with self.pool.get_connection(timeout=timeout) as connection:
                if mode == "unread":
                    await self.leave_unread(connection)
                elif mode != "nothing":
                    await self.talk(connection, mode)

        self.borrowers += [self.task(borrow()) for _ in range(count)]
        self.tick(ticks)

    @rule(which=WHICH, ticks=TICKS)
    def cancel_a_borrower(self, which: int, ticks: int) -> None:
        if not self.borrowers:
            return
        self.cancel(self.borrowers[which % len(self.borrowers)])
        self.tick(ticks)

    # The server.

    @rule(
        which=WHICH,
        how=st.sampled_from(["reset", "close 1000", "close 1012", "become mute"]),
        ticks=TICKS,
    )
    def server_drops(self, which: int, how: str, ticks: int) -> None:
        if not self.server.open:
            return
        peer = self.server.open[which % len(self.server.open)]
        if peer.request.transport is None or peer.request.transport.is_closing():
            return
        if how == "reset":
            peer.drop()
        elif how == "become mute":
            peer.mute()
            self.mute.append(peer)
        else:
            self.server_errands.append(self.task(peer.close(int(how.removeprefix("close ")))))
        self.tick(ticks)

    @rule(which=WHICH, count=st.sampled_from([1, 1, 3, 3, 5000]), ticks=TICKS)
    def server_sends_unasked(self, which: int, count: int, ticks: int) -> None:
        if not self.server.open:
            return

        async def flood(peer: Peer) -> None:
            for _ in range(count):
                await peer.send("stray 0")

        peer = self.server.open[which % len(self.server.open)]
        self.server_errands.append(self.task(flood(peer)))
        self.tick(ticks)

    @rule(status=st.sampled_from([503, 429, 401]), count=st.integers(1, 4))
    def server_refuses(self, status: int, count: int) -> None:
        self.server.refuse(status, times=count)

    @rule(delay=st.sampled_from([0.0, 0.5, 30.0]))
    def server_is_late(self, delay: float) -> None:
        self.server.delay = delay

    # The rest of the world.

    @rule(ticks=st.integers(1, 50))
    def nothing_happens(self, ticks: int) -> None:
        self.tick(ticks)

    @rule(seconds=st.sampled_from([0.25, 0.25, 1.0, 5.0, 11.0, 31.0]), ticks=TICKS)
    def time_passes(self, seconds: float, ticks: int) -> None:
        self.loop.now += seconds
        self.tick(ticks)

    @rule(ticks=TICKS)
    def expire(self, ticks: int) -> None:
        if not self.pool.is_started:
            return

        async def expire() -> None:
            self.pool.expire_connections()

        self.do(expire())
        self.tick(ticks)

    @rule(max_connections=st.integers(1, 5), ticks=TICKS)
    def resize(self, max_connections: int, ticks: int) -> None:
        async def resize() -> None:
            self.pool.resize(max_connections)

        self.most_sockets = max(max_connections, len(self.pool.connections))
        self.do(resize())
        self.tick(ticks)

    @rule(timeout=st.sampled_from([0.0, 3.0]), ticks=TICKS, is_rare=st.integers(0, 3))
    def close_and_open_another(self, timeout: float, ticks: int, is_rare: int) -> None:
        if is_rare:
            return
        self.close(timeout, ticks)
        self.options["max_connections"] = self.max_connections
        self.open()

    def close(self, timeout: float, ticks: int = 0) -> None:
        closing = self.task(self.pool.close_all(timeout))
        self.tick(1 + ticks)
        self.check()
        self.until(closing.done, "the pool is closed")
        assert closing.exception() is None
        assert not self.pool.connections
        self.until(lambda: not self.sockets(), "the server has heard of it, too")
        self.give_all_back()
        self.check()

    def give_all_back(self) -> None:
        while self.borrowed:
            self.do(self.give_back(0, force_remove=False))

        def is_over() -> bool:
            self.collect()
            return not (self.acquiring or self.borrowed or self.borrowers or self.errands)

        self.until(is_over, "all borrowers have ended")

    # The truth.

    @invariant()
    def check(self) -> None:
        self.collect()
        assert not self.troubles
        router = self.pool._router
        queues = router.queues
        links = list(queues)
        assert len(links) == len(set(links))
        for state in State:
            assert all(link.state is state for link in queues[state])
            assert all((link.owner is None) == (state is State.IDLE) for link in queues[state])
        lent = [link for link in queues.busy if link.loan is not None]
        assert all(link.owner is link.loan for link in lent)
        assert len(queues.busy) - len(lent) == router.capacity.errands
        for connection in self.borrowed:
            assert (connection.state is State.BUSY) == (link_of(connection) in queues.busy)
        self.most_sockets = max(self.max_connections, min(self.most_sockets, len(links)))
        assert len(links) <= self.most_sockets
        assert self.sockets() <= self.most_sockets
        if not self.pool.is_closed:
            waiting = [loan for loan in router.line if not loan._waiter.done()]
            checks = router.errands.checks
            assert router.capacity.room <= 0 or len(waiting) <= len(queues.connecting) + checks
            assert not queues.idle or checks >= sum(not loan._wants_new for loan in waiting)

    def teardown(self) -> None:
        try:
            if self.drain:
                self.end()
        finally:
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.tick(10)
            self.loop.close()

    def end(self) -> None:
        """The last action: all is well again, and all of the capacity is there."""
        self.server.delay = 0.0
        self.server.refusals.clear()
        for peer in self.mute:
            peer.unmute()
        self.mute.clear()
        for task in (*self.acquiring, *self.borrowers, *self.server_errands):
            self.cancel(task)
        self.give_all_back()
        self.loop.now += 0.6  # what is idle is due for a check

        everything = [
            self.task(self.pool.acquire(timeout=120.0)) for _ in range(self.max_connections)
        ]
        self.until(lambda: all(task.done() for task in everything), "all has been acquired")
        self.borrowed = [task.result() for task in everything]
        assert len({connection.id for connection in self.borrowed}) == self.max_connections
        for connection in self.borrowed:
            self.exchanges[connection] = self.task(self.talk(connection, "reply"))
        self.until(lambda: all(t.done() for t in self.exchanges.values()), "all have talked")
        assert not any(exchange.exception() for exchange in self.exchanges.values())
        one_more = self.task(self.pool.acquire(timeout=0))
        self.until(one_more.done, "one more was refused")
        assert isinstance(one_more.exception(), ConnectionPoolExhaustedError)

        self.close(0.0)
        self.until(lambda: not self.sockets() and not self.server.open, "no socket is left")
        stopping = self.task(self.server.stop())
        self.until(stopping.done, "the server has stopped")
        self.until(lambda: not asyncio.all_tasks(self.loop), "no task is left")
        gc.collect()
        assert not self.troubles


def test_random_actions_leave_the_pool_with_the_truth_and_all_its_slots() -> None:
    """Each connection is in the queue of its state and in no other, the server never has more
    than `max_connections` sockets, everybody reads only what belongs to him, nobody waits beside
    an idle connection or room for one, but for a check that is under way, and in the end all of
    the capacity can be acquired."""
    run_state_machine_as_test(
        Story,
        settings=settings(
            max_examples=min(40, max(5, SCHEDULES // 50)),
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
