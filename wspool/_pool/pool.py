"""The pool as its users see it: made, started, borrowed from, looked at, closed.

Read `_connection/states.py` first: what a connection goes through. Then `routing.py`, which moves
links between the queues of those states and serves whoever waits.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import warnings
from collections.abc import Awaitable, Callable
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any, Self, TypeVar, TypeVarTuple

from wspool._connection import states
from wspool._connection.borrow import Borrow, lend
from wspool._connection.dialogue import NEW
from wspool._connection.errors import ConnectionPoolUnavailableError
from wspool._connection.exporting import exported
from wspool._connection.idioms import awaited, refuse_position, refusing, shown_as
from wspool._connection.loan import WebsocketConnection, view_of
from wspool._connection.scrubbing import shown_uri
from wspool._connection.stream import WebsocketStream
from wspool._pool import upkeep
from wspool._pool.checks import check_grace, check_timeout
from wspool._pool.configured import Configured
from wspool._pool.listeners import Events, Listener
from wspool._pool.options import ACQUIRE_TIMEOUT, SETTINGS, in_time, preferring
from wspool._pool.repeating import run
from wspool._pool.routing import Router
from wspool._pool.sessions import Session
from wspool._pool.stats import Stats

if TYPE_CHECKING:
    from wspool._pool.introspection import PoolSnapshot, Trouble

T = TypeVar("T")
Args = TypeVarTuple("Args")


@exported
class WebsocketConnectionPool(Configured):
    """A pool of reusable WebSocket client connections to one URI, for one event loop.

    A call from another loop, thread or process than the one that started it is a RuntimeError.
    """

    def _set_up(self, maker: FrameType) -> None:
        self._router = Router(self._options, Events(self.name))
        self._session = Session(self.session)
        # The loop that the pool belongs to, from start() on.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = self._pid = 0
        self._upkeep_task: asyncio.Task[None] | None = None
        self._closing_task: asyncio.Task[None] | None = None
        self._made_at = f"{maker.f_code.co_filename}:{maker.f_lineno}"

    # What people look at. All of it may be read from any thread.

    @property
    def is_started(self) -> bool:
        """Whether `start()` was called, or a first `acquire` did that."""
        return self._loop is not None

    @property
    def is_closed(self) -> bool:
        """Whether `close_all()` was called; there may still be goodbyes under way."""
        return self._router.is_closing

    @property
    def learned_limit(self) -> int | None:
        """How many connections the server admits, as far as it has told; None: it has not."""
        return self._router.limit.learned

    @property
    def total_connections(self) -> int:
        """The connections that are open: idle, busy and draining."""
        return self._router.capacity.open

    @property
    def available_connections(self) -> int:
        """The connections that are idle."""
        return len(self._router.queues.idle)

    @property
    def busy_connections(self) -> int:
        """The connections that are lent, or used by the pool for a check or a keepalive."""
        return len(self._router.queues.busy)

    @property
    def pending_connections(self) -> int:
        """The connections that are being drained."""
        return len(self._router.queues.draining)

    @property
    def waiters(self) -> int:
        """How many wait in `acquire`."""
        return len(self._router.line)

    @property
    def stats(self) -> Stats:
        """What happened since the pool was made."""
        return self._router.stats

    @property
    def trouble(self) -> Trouble | None:
        """Why dials fail, for health endpoints: None unless the last one has, and none has lived
        since. Connections that are open may work all the same."""
        if self._router.gate.failure is None:
            return None
        from wspool._pool.introspection import trouble  # as in snapshot()

        return trouble(self)

    @property
    def connections(self) -> tuple[WebsocketConnection, ...]:
        """All that exist, in whatever state: those that are dialled or closed too.

        They are to look at, not to use.
        """
        return tuple(map(view_of, self._router.queues))

    def snapshot(self) -> PoolSnapshot:
        """Return a frozen picture of the pool; its `.to_dict()` is fit for JSON."""
        from wspool._pool.introspection import (
            snapshot_pool,  # the pictures' classes take 3 ms to make
        )

        return snapshot_pool(self)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with each event from now on; return a callable that ends that.

        An event is one of the frozen dataclasses in `wspool.events`. A listener is plain and quick:
        it is called in the event loop, after the routing step. One that raises is logged once.
        Raises TypeError for what cannot be called.
        """
        return self._router.events.subscribe(listener)

    def state_diagram(self) -> str:
        """Return the state machine as a Mermaid diagram with the count of each state."""
        return states.diagram(self._router.queues.counts())

    def __repr__(self) -> str:
        if not hasattr(self, "_router"):  # a wrong setting: in a traceback with local variables
            return "<WebsocketConnectionPool, not made>"
        status = " closed" if self.is_closed else "" if self.is_started else " not started"
        shown = f"{self.name!r}{status} {shown_uri(self.uri)} {self._router!r}"
        return f"<WebsocketConnectionPool {shown}>"

    # Starting.

    async def start(self) -> None:
        """Start the pool and return when the warm-up is over, whatever came of it.

        A server that is down is a warning in the log; the pool works once it is back. Started
        twice, or after `close_all()`, it returns. Raises ValueError if the shared session's
        connector admits fewer connections than `max_connections`.
        """
        if self.is_closed:
            return
        self._enter()
        connecting = self._router.queues.connecting
        dials = [link.task for link in connecting if link.task is not None]
        if dials:
            await asyncio.wait(dials)

    def _enter(self) -> asyncio.AbstractEventLoop:
        """Check that the caller runs in the pool's loop; the first one's loop becomes that."""
        loop: asyncio.AbstractEventLoop | None
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if loop is self._loop and loop is not None:
            return loop
        if self._loop is not None or loop is None:
            raise RuntimeError(
                f"{self!r} belongs to the event loop {self._loop!r} in thread {self._thread} of "
                f"process {self._pid}; it was called from the loop {loop!r} in thread "
                f"{threading.get_ident()} of process {os.getpid()}. Make a pool for each loop"
            )
        session = self._session.open(self.max_connections)
        self._loop, self._thread, self._pid = loop, threading.get_ident(), os.getpid()
        self._router.events.pool_ready()
        self._router.start(loop, session)
        self._upkeep_task = upkeep.begin(self._router)
        return loop

    # Borrowing.

    @awaited
    async def acquire(
        self, *, prefer: Any = None, timeout: float | None = ACQUIRE_TIMEOUT
    ) -> WebsocketConnection:
        """Return a connection to be given back with `release`: an idle one, or a new one.

        Args:
            prefer: Rather a connection with this `context`. If none is idle, you get one without a
                context, else a new one where there is room, else the one that is idle for longest,
                and its context is None from then on: nobody waits for a particular connection.
                Whoever prefers nothing gets one without a context while there is one.
            timeout: Seconds for waiting, dialling, hooks and all, in the place of the pool's
                `acquire_timeout`. 0: not to wait for capacity, and a dial then takes what its
                attempts take; None: for ever.

        Raises:
            ConnectionPoolExhaustedError: There is no capacity, and waiting is not allowed.
            ConnectionPoolTimeoutError: The time is up.
            ConnectionUnavailableError: The dial failed, or waited for the `quota` until then.
            ConnectionPoolUnavailableError: The pool is closed.
        """
        loan = WebsocketConnection(self, timeout, False, prefer)
        if not self._lend_at_once(loan, sys._getframe(1)):
            await self._router.wait(loan)
        return loan

    @awaited
    async def acquire_new(self, *, timeout: float | None = ACQUIRE_TIMEOUT) -> WebsocketConnection:
        """Return a connection that nobody has used; otherwise as `acquire`.

        At the limit the longest-idle connection, or else the next that is returned, is closed to
        make room.
        """
        loan = WebsocketConnection(self, timeout, True)
        self._lend_at_once(loan, sys._getframe(1))
        await self._router.wait(loan)
        return loan

    @shown_as(preferring)
    def get_connection(
        self, *wrong: object, prefer: Any = None, timeout: float | None = ACQUIRE_TIMEOUT
    ) -> WebsocketConnection:
        """Return a connection that is acquired and given back by `async with`.

        Left by an exception after something was sent, the connection is not handed on: it is
        drained up to the message that `drain_until` names, or closed. The errors are those of
        `acquire`, and come where the block is entered.

        Args:
            prefer: As that of `acquire`.
            timeout: In seconds, as that of `acquire`.
        """
        if wrong:
            refuse_position("get_connection", wrong)
        return WebsocketConnection(self, timeout, False, prefer)

    @shown_as(in_time)
    def get_new_connection(
        self, *wrong: object, timeout: float | None = ACQUIRE_TIMEOUT
    ) -> WebsocketConnection:
        """Return the same as `get_connection`, around `acquire_new`."""
        if wrong:
            refuse_position("get_new_connection", wrong)
        return WebsocketConnection(self, timeout, True)

    async def acquire_stream(self, *, timeout: float | None = ACQUIRE_TIMEOUT) -> WebsocketStream:
        """Return a stream, a share of a connection, to be given back with `release_stream`.

        Timeout and errors are those of `acquire`. Raises ValueError in a pool without `route`.
        """
        return await lend(self.get_stream(timeout=timeout), sys._getframe(1))

    def get_stream(self, *, timeout: float | None = ACQUIRE_TIMEOUT) -> WebsocketStream:
        """Return a stream that is acquired and given back by `async with`.

        It is one of up to `max_streams` borrowers of a connection, and receives the messages with
        the keys that it claims. Given back, it is drained by itself; left by an exception, it
        harms none of its neighbours. Raises ValueError in a pool without `route`.
        """
        self._router.streaming.check_route()
        return WebsocketStream(self, timeout)

    async def release_stream(self, stream: WebsocketStream, *, force_remove: bool = False) -> None:
        """Give a stream back; with `force_remove` its connection closes when its neighbours go.

        Nothing waits for the network. Releasing what is over is a warning in the log.
        """
        if asyncio.get_running_loop() is not self._loop and self.is_started:
            self._enter()
        self._router.streaming.give_back(stream, force_remove=force_remove)

    async def release(self, connection: WebsocketConnection, *, force_remove: bool = False) -> None:
        """Give a connection back.

        Everything is done before the first await, and nothing waits for the network. Releasing
        what is not lent by this pool, or not any more, is a warning in the log.

        Args:
            connection: What `acquire` or `acquire_new` has returned.
            force_remove: Close it, so that nobody gets it any more.
        """
        if asyncio.get_running_loop() is not self._loop and self.is_started:
            self._enter()
        self._router.give_back(connection, force_remove=force_remove)

    async def run(
        self,
        work: Callable[[WebsocketConnection, *Args], Awaitable[T]],
        *args: *Args,
        timeout: float | None = ACQUIRE_TIMEOUT,
    ) -> T:
        """Return what `await work(connection, *args)` does, with a connection on loan.

        For work that does no harm if it is done twice: if the connection is lost under it, it may
        be called once more, with a fresh connection, and the server may then have done all of it
        twice. That happens only if others had used the first connection before and nothing was
        received from it in this loan, for a fifth of the loans of the last 10 seconds at most, and
        for at least 10 in these. Any other error of the work's, a TimeoutError too, is raised as it
        is. `timeout`, in seconds, is for each of the two connections; it and the errors are those
        of `acquire`, and a ConnectionClosedError that is not made up for is raised.
        """
        again = partial(self._router.repeating.again, self, timeout)
        loan = WebsocketConnection(self, timeout)
        return await run(loan, again, work, args, sys._getframe(1))

    def _lend_at_once(self, loan: Borrow, frame: FrameType) -> bool:
        """Check who borrows, and note where; serve the loan if that needs no wait."""
        router = self._router
        if router.is_closing:
            raise ConnectionPoolUnavailableError(f"{self!r} is closed; make a new one")
        if asyncio.get_running_loop() is not self._loop:
            self._enter()
        if loan._callsite is not None:
            raise loan._taken_error()
        if loan._timeout is not ACQUIRE_TIMEOUT:
            check_timeout(loan._timeout)
        if router.events.listeners:
            router.events.check_out_started()
        loan._callsite = frame.f_code, frame.f_lasti, asyncio.current_task(self._loop)
        if loan._is_stream:
            return router.streaming.lend_at_once(loan)
        return loan._prefer is not NEW and router.lend_idle(loan)

    # Closing.

    def expire_connections(self, grace: float = 0.0) -> None:
        """Replace every connection that there is: idle ones now, busy ones when they come back.

        For `grace` seconds the old ones are still lent, while their replacements are dialled: one
        for each that is in use or is borrowed meanwhile, and those of `min_connections` and
        `min_idle`. Each old one closes when its replacement is open, what nobody needs when the
        grace is over. At the limit an old one that is idle closes first. Raises TypeError or
        ValueError if it is no number of seconds.
        """
        check_grace(grace)
        self._enter()
        self._router.expire(grace)

    def resize(self, max_connections: int) -> None:
        """Change `max_connections`. Nobody is cut off: a surplus goes when it is given back.

        Args:
            max_connections: Sockets at most, from now on.

        Raises:
            TypeError: It is no whole number.
            ValueError: It is below 1, or the shared session's connector admits fewer connections.
        """
        SETTINGS["max_connections"].check("max_connections", max_connections)
        if self.is_started:
            self._enter()
        self._session.check(max_connections)
        self._router.resize(max_connections)

    async def close_all(self, timeout: float | None = 0.0) -> None:
        """Close the pool and everything in it, and return when the last socket is gone.

        Waiters get ConnectionPoolUnavailableError at once. A second call waits for the first;
        cancelled, the closing goes on; called from a hook, it does not wait for that hook.

        Args:
            timeout: Seconds for borrowers to finish first; None: as long as they need.
        """
        check_timeout(timeout)
        if not self.is_started:
            self._router.close()
            await self._session.close()  # it was refused at the start
            return
        loop = self._enter()
        # A closing that was itself cancelled, as at the end of asyncio.run, is begun anew.
        if self._closing_task is None or self._closing_task.cancelled():
            task = asyncio.current_task()
            spared = task if task in self._router.tasks else None  # a hook's
            self._closing_task = asyncio.Task(self._finish(timeout, spared), loop=loop)
            self._router.close()
        await asyncio.shield(self._closing_task)

    async def _finish(self, timeout: float | None, spared: asyncio.Task[None] | None) -> None:
        assert self._upkeep_task is not None
        await self._router.closing.wait_returned(timeout)
        self._upkeep_task.cancel()
        await self._router.finish(spared)
        await self._session.close()
        self._router.events.pool_closed()
        self._router.events.tell()

    async def aclose(self) -> None:
        """Close the pool, as `close_all()` without a timeout does: for `contextlib.aclosing`."""
        await self.close_all()

    if not TYPE_CHECKING:
        __enter__ = __exit__ = refusing(
            "a pool is entered with `async with`; where there is no asyncio, use a "
            "BlockingWebsocketConnectionPool"
        )

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close_all()

    def __del__(self) -> None:
        if getattr(self, "_loop", None) is not None and not self.is_closed:
            warnings.warn(
                f"{self!r}, made at {self._made_at}, was dropped without being closed: "
                "await close_all(), or use `async with`",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )
