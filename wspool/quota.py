"""The quota: a limit on sockets and dials that several pools share, asked before each attempt.

The core knows only the protocol `Quota`: `acquire` waits for a lease, `release` is told when the
socket is gone. `LocalQuota` is the one for pools of one event loop; `wspool.redis` has the one for
a fleet of processes.

An idle connection holds its lease until somebody else waits for one: then that of any pool which
is idle for longest is closed, as CloseReason.ROOM, and what comes back is for whoever has waited
longest. For that a quota knows the pools by `Holder`; one of a user's own need not.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Iterable
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


class Holder(Protocol):
    """A pool, as a quota knows it that may have to ask for a lease back."""

    def wanted(self, leases: int) -> int:
        """Return how many of so many leases, for which its dials wait, somebody waits for."""

    @property
    def since(self) -> float:
        """The loop's time since when somebody waits there; infinity if nobody does."""

    @property
    def idle_since(self) -> float:
        """The time since when its longest-idle link is idle; infinity if none is."""

    @property
    def idle_times(self) -> list[float]:
        """The times since when its idle links are idle."""

    def give_up(self) -> None:
        """Close that link."""


def longest_idle(holders: Iterable[Holder]) -> Holder | None:
    """Return who has the link that is idle for longest, if any is idle."""
    holder = min(holders, key=lambda holder: holder.idle_since, default=None)
    return holder if holder is not None and holder.idle_since < float("inf") else None


class Lease:
    """The right to one socket."""

    __slots__ = ("__weakref__", "asked", "begins", "holder", "id", "is_lost")

    def __init__(self, id: str = "") -> None:
        self.id: str = id
        # Whose it is, if that is a pool.
        self.holder: Holder | None = None
        # The loop's time at which it was asked for, and that before which its dial may not begin.
        self.asked: float = 0.0
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
        # Of these, those whose sockets are being closed.
        self._leaving: WeakSet[Lease] = WeakSet()

    async def acquire(self) -> Lease:
        """Wait for a lease."""
        return await self._acquire(None)

    async def _acquire(self, holder: Holder | None) -> Lease:
        """Wait for a lease, for a pool that may have to give one up."""
        given = self._enter().create_future()
        lease = self._make()
        lease.holder, lease.asked = holder, self._enter().time()
        self._waiting[lease] = given
        try:
            self._serve()
            self._reclaim()
            await given
        except BaseException:
            self._waiting.pop(lease, None)
            self.release(lease)
            raise
        return lease

    def release(self, lease: Lease) -> asyncio.Future[None]:
        """Take a lease back at once, and return a future that is done when that is through."""
        raise NotImplementedError

    def _leave(self, lease: Lease) -> None:
        """Hear that the socket of a lease is being closed."""
        if lease in self._held:
            self._leaving.add(lease)

    def _reclaim(self) -> None:
        """See to it that idle links close as far as leases are missing that somebody waits for."""
        raise NotImplementedError

    def _is_owed(self, holder: Holder) -> bool:
        """Return whether what this one gets back is for others, who have waited for longer."""
        raise NotImplementedError

    def _leases_of(self) -> Counter[Holder]:
        """Return for how many leases the dials of each pool wait."""
        return Counter(lease.holder for lease in self._waiting if lease.holder is not None)

    def _holders(self) -> set[Holder]:
        """Return the pools that hold leases."""
        return {lease.holder for lease in self._held if lease.holder is not None}

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
        self._leaving.clear()

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

    Who waits is served in order of arrival, and has idle connections closed, those of other pools
    too, to be served. Raises ValueError for a limit or a rate of 0 or less.
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
        self._leaving.discard(lease)
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
            self._give(self._next())

    def _next(self) -> Lease:
        """Return whose turn it is: a dial's for the one who has waited longest, whenever it began.

        Of those for whom nobody waits it is the first one's.
        """
        leases_of = self._leases_of()

        def since(lease: Lease) -> float:
            holder = lease.holder
            if holder is None:
                return lease.asked
            return holder.since if holder.wanted(leases_of[holder]) else float("inf")

        return min(self._waiting, key=since)

    def _reclaim(self) -> None:
        """Have as many of the longest-idle links closed as leases are missing."""
        while self._waiting:
            holder = longest_idle(self._holders())
            # The question that costs most comes last: at the limit, nearly all are in use.
            if holder is None or not self._is_missing():
                return
            holder.give_up()

    def _is_owed(self, holder: Holder) -> bool:
        if not self._waiting:
            return False  # as nearly always
        return self._is_missing(before=holder)

    def _is_missing(self, beside: int = 0, before: Holder | None = None) -> bool:
        """Return whether a lease must come back before all who wait have theirs, and some beside.

        `before`: those only who have waited for longer than this one's.
        """
        coming = len(self._leaving) + max(0, self.limit - len(self._held)) - beside
        since = before.since if before is not None else float("inf")
        for holder, leases in self._leases_of().items():
            if coming < 0:
                break
            if holder is not before and holder.since < since:
                coming -= holder.wanted(leases)
        return coming < 0
