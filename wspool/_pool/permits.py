"""Permits: a pool's side of its quotas.

Nothing that a quota does, be it slow, broken or gone, costs the pool more than the dials that wait
for it.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from wspool._connection.errors import ENDS_PROGRAM, ConnectionUnavailableError
from wspool._connection.link import Link
from wspool._connection.queues import Queues
from wspool._pool.options import Options
from wspool._pool.tasks import is_cancelled
from wspool._pool.waiting import Line
from wspool.quota import LeaseQueue, Quota

logger = logging.getLogger("wspool")

STUCK_SECONDS: Final = 0.1
"""After which a dial that waits for a quota is one that whoever has another choice gives up."""


class Permit:
    """A lease of each quota, as a connection holds them."""

    __slots__ = ("_leases",)

    def __init__(self, leases: Sequence[tuple[Share, Any]]) -> None:
        self._leases = leases

    @property
    def is_lost(self) -> bool:
        return any(getattr(lease, "is_lost", False) for _, lease in self._leases)

    def leave(self) -> None:
        """Tell the quotas that the socket is being closed."""
        for share, lease in self._leases:
            if isinstance(share.quota, LeaseQueue):
                share.quota._leave(lease)

    def release(self) -> None:
        """Tell the quotas that the socket is gone."""
        for share, lease in self._leases:
            share.release(lease)


class Permits:
    """What a pool has of its quotas: its own, and the total of a group.

    They know the pool by its line and its links; `make_room` closes those that are idle for
    longest, and `on_stuck` is called when a dial has waited for a while.
    """

    def __init__(
        self,
        options: Options,
        line: Line,
        queues: Queues[Link],
        make_room: Callable[[int], object],
        on_stuck: Callable[[], object],
    ) -> None:
        self.shares: list[Share] = []
        self._options, self._line, self._queues = options, line, queues
        self._make_room, self._on_stuck = make_room, on_stuck
        if options.quota is not None:
            self.add(options.quota)

    def add(self, quota: Quota, *, is_total: bool = False) -> None:
        """Let each socket need a lease of this quota, too."""
        self.shares.append(
            Share(
                *(quota, is_total, self._options.connection_timeout, self._options.close_timeout),
                line=self._line,
                queues=self._queues,
                shares=self.shares,
                make_room=self._make_room,
                on_stuck=self._on_stuck,
            )
        )

    @property
    def is_stuck(self) -> bool:
        """Whether a dial has waited for a while."""
        return any(share.stuck for share in self.shares)

    @property
    def is_owed(self) -> bool:
        """Whether a link that comes back is for somebody who waits in another pool."""
        return any(share.is_owed for share in self.shares)

    @property
    def releases(self) -> set[asyncio.Future[Any]]:
        """The leases that are being taken back."""
        return {release for share in self.shares for release in share.releases}

    @property
    def full(self) -> Share | None:
        """The quota of the pool's own for which a dial waits, if one does."""
        return next((one for one in self.shares if one.waiting and not one.is_total), None)

    def reclaim(self) -> None:
        """Let those have leases for whom dials wait."""
        for share in self.shares:
            share.reclaim()

    async def acquire(self) -> Permit:
        """Raise ConnectionUnavailableError, which names the quota that does not give a lease."""
        leases: list[tuple[Share, Any]] = []
        try:
            for share in self.shares:
                leases.append((share, await share.acquire()))
        except BaseException:
            for share, lease in leases:
                share.release(lease)
            raise
        return Permit(leases)


class Share:
    """What a pool has of one quota, and what it asks of that.

    `timeout` seconds for a lease, and `release_timeout` to take it back. `is_total`: the quota is a
    group's total.
    """

    def __init__(
        self,
        quota: Quota,
        is_total: bool,
        timeout: float,
        release_timeout: float,
        *,
        line: Line,
        queues: Queues[Link],
        shares: Sequence[Share],
        make_room: Callable[[int], object],
        on_stuck: Callable[[], object],
    ) -> None:
        self.quota = quota
        self.is_total = is_total
        self._timeout = timeout
        self._release_timeout = release_timeout
        self._line, self._idle, self._connecting = line, queues.idle, queues.connecting
        # All of the pool's, in the order in which a dial asks.
        self._shares = shares
        self._make_room, self._on_stuck = make_room, on_stuck
        # The dials that wait, and those that have done so for long; the leases that are being
        # taken back.
        self.waiting: set[asyncio.Task[Any] | None] = set()
        self.stuck: set[asyncio.Task[Any] | None] = set()
        self.releases: set[asyncio.Future[Any]] = set()

    # What a quota may ask.

    def wanted(self, leases: int) -> int:
        """Return for how many of these leases, which its dials wait for, somebody waits.

        That is, beyond those whom dials that have theirs may serve.
        """
        at_work = len(self.waiting) - leases  # given in this tick
        for link in self._connecting:
            if link.permit is not None:
                at_work += 1
        if self._shares[-1] is not self:
            later = self._shares[self._shares.index(self) + 1 :]
            at_work += sum(len(share.waiting) for share in later)
        return max(0, min(len(self._line) - at_work, leases))

    @property
    def since(self) -> float:
        """The loop's time since when somebody waits here; infinity if nobody does."""
        loan = self._line.oldest()
        return loan._since if loan is not None else float("inf")

    @property
    def idle_since(self) -> float:
        """The time since when its longest-idle link is idle; infinity if none is."""
        link = next(iter(self._idle), None)
        return link.idle_since if link is not None else float("inf")

    @property
    def idle_times(self) -> list[float]:
        """The times since when its idle links are idle."""
        return [link.idle_since for link in self._idle]

    def give_up(self) -> None:
        """Close the link that is idle for longest."""
        self._make_room(1)

    # What the pool does.

    @property
    def is_owed(self) -> bool:
        """Whether a link that comes back is for somebody who waits in another pool."""
        return isinstance(self.quota, LeaseQueue) and self.quota._is_owed(self)

    def reclaim(self) -> None:
        """Let the quota see to it that those get leases for whom dials wait."""
        if self.waiting and isinstance(self.quota, LeaseQueue):
            self.quota._reclaim()

    async def acquire(self) -> Any:
        """Raise ConnectionUnavailableError, which names the quota, if it does not give a lease."""
        task = asyncio.current_task()
        self.waiting.add(task)
        alarm = asyncio.get_running_loop().call_later(STUCK_SECONDS, self._get_stuck, task)
        try:
            async with asyncio.timeout(self._timeout) as timer:
                quota = self.quota
                asked: Awaitable[Any]
                asked = quota._acquire(self) if isinstance(quota, LeaseQueue) else quota.acquire()
                return await asked
        except ENDS_PROGRAM:
            raise
        except BaseException as error:
            if is_cancelled(error):
                raise
            if timer.expired():
                raise self.refusal(self._timeout) from None
            raise ConnectionUnavailableError(
                f"No connection: {self.quota!r} raised {type(error).__name__}: {error}"
            ) from error
        finally:
            alarm.cancel()
            self.waiting.discard(task)
            self.stuck.discard(task)

    def _get_stuck(self, task: asyncio.Task[Any] | None) -> None:
        self.stuck.add(task)
        self._on_stuck()

    def refusal(self, seconds: float) -> ConnectionUnavailableError:
        return ConnectionUnavailableError(
            f"No connection: no lease within {seconds} s of {self.quota!r}. If it is full, raise "
            "its limit",
            kind="quota",
        )

    def release(self, lease: Any) -> None:
        try:
            answer = self.quota.release(lease)
            if not inspect.isawaitable(answer):
                return
            release = asyncio.ensure_future(answer)
        except ENDS_PROGRAM:
            raise
        except BaseException:
            logger.exception("%r raised in release", self.quota)
            return
        self.releases.add(release)
        limit = release.get_loop().call_later(self._release_timeout, release.cancel)

        def has_ended(release: asyncio.Future[Any]) -> None:
            limit.cancel()
            self.releases.discard(release)
            if not release.cancelled() and (error := release.exception()) is not None:
                logger.error("%r raised in release", self.quota, exc_info=error)

        release.add_done_callback(has_ended)
