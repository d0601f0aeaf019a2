"""The quota: a limit on sockets and dials that several pools share, asked before each attempt.

The core knows only the protocol `Quota`: `acquire` waits for a lease, `release` is told when the
socket is gone. `LocalQuota` is the one for pools of one event loop; `wspool.redis` has the one for
a fleet of processes.

An idle connection holds its lease until it is closed: `idle_timeout` says how soon a pool that
needs less gives its share to those that need more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Final, Protocol
from weakref import WeakSet

from wspool._connection.exporting import exported

MARGIN: Final = 0.1
"""Share by which dials are further apart than `dials_per_second` asks for.

At the server they arrive less evenly than they leave: in a window of a second there are no more
than allowed as long as none is later than another by about this share of it.
"""


def interval_of(dials_per_second: float | None) -> float:
    """Return the seconds between two dials."""
    if dials_per_second is None:
        return 0.0
    if not dials_per_second > 0:
        raise ValueError(f"dials_per_second is {dials_per_second!r}; it must be above 0, or None")
    return (1 + MARGIN) / dials_per_second


@exported
class Quota(Protocol):
    """What says whether there may be one more socket: the argument `quota` of a pool.

    A lease is any object; if its attribute `is_lost` becomes true, somebody else has its place,
    and the connection is closed as soon as nobody uses it.
    """

    async def acquire(self) -> Any:
        """Wait until one more dial may begin, and return its lease.

        A call that is cancelled must hold nothing.
        """

    def release(self, lease: Any, /) -> Awaitable[object] | None:
        """Take back the lease of a socket that is gone.

        It may be a coroutine function. Only `close_all()` waits for it, and for `close_timeout` at
        most.
        """


class Lease:
    """The right to one socket."""

    __slots__ = ("__weakref__", "begins", "id", "is_lost")

    def __init__(self, id: str = "") -> None:
        self.id: str = id
        # The loop's time before which its dial may not begin.
        self.begins: float = 0.0
        self.is_lost: bool = False


class LeaseQueue:
    """Those who wait for a lease, in order of arrival. Whoever inherits from it serves them.

    Futures of our own, as in the pool's line: whoever is cancelled after it was given something
    passes it on.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: dict[Lease, asyncio.Future[None]] = {}
        # Leases that were given and not taken back. Those of a pool that was dropped go with it.
        self._held: WeakSet[Lease] = WeakSet()

    async def acquire(self) -> Lease:
        """Wait for a lease."""
        given = self._enter().create_future()
        lease = self._make()
        self._waiting[lease] = given
        try:
            self._serve()
            await given
        except BaseException:
            self._waiting.pop(lease, None)
            self.release(lease)
            raise
        return lease

    def release(self, lease: Lease) -> asyncio.Future[None]:
        """Take a lease back at once, and return a future that is done when that is through."""
        raise NotImplementedError

    def _enter(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None and not self._loop.is_closed():
                raise RuntimeError(
                    f"{self!r} belongs to the event loop {self._loop!r}, not to {loop!r}. "
                    "LocalQuota is for the pools of one loop, RedisQuota needs one for each"
                )
            self._begin(loop)
        return loop

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting.clear()
        self._held.clear()

    def _make(self) -> Lease:
        return Lease()

    def _serve(self) -> None:
        """Give out what there is."""
        raise NotImplementedError

    def _give(self, lease: Lease) -> None:
        self._held.add(lease)
        given = self._waiting.pop(lease)
        if not given.done():
            given.set_result(None)


@exported
class LocalQuota(LeaseQueue):
    """A limit on the sockets, and the dials per second, of all pools of one event loop.

    limit: sockets at most.
    dials_per_second: attempts of dials that may begin in a second, evenly spaced; None: no limit.

    Callers are served in the order of their arrival. Raises ValueError for a limit or a rate of 0
    or less.
    """

    def __init__(self, limit: int, dials_per_second: float | None = None) -> None:
        super().__init__()
        if limit < 1:
            raise ValueError(f"limit is {limit!r}; it must be at least 1")
        self.limit = limit
        self._interval = interval_of(dials_per_second)
        # The loop's time at which the next dial may begin, and what waits for that.
        self._not_before = float("-inf")
        self._alarm: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return (
            f"<LocalQuota limit={self.limit} leases={len(self._held)} waiting={len(self._waiting)}>"
        )

    def release(self, lease: Lease) -> asyncio.Future[None]:
        """Take a lease back at once, and return a future that is done."""
        self._held.discard(lease)
        self._serve()
        done = self._enter().create_future()
        done.set_result(None)
        return done

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        super()._begin(loop)
        self._not_before, self._alarm = float("-inf"), None

    def _serve(self) -> None:
        loop = self._enter()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        while self._waiting and len(self._held) < self.limit:
            now = loop.time()
            if now < self._not_before:
                self._alarm = loop.call_at(self._not_before, self._serve)
                return
            self._not_before = now + self._interval
            self._give(next(iter(self._waiting)))
