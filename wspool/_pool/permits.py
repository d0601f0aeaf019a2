"""Permits: a pool's side of its quota.

Nothing that a quota does, be it slow, broken or gone, costs the pool more than the dials that wait
for it.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import Any

from wspool._connection.errors import ENDS_PROGRAM, ConnectionUnavailableError
from wspool._pool.tasks import is_cancelled
from wspool.quota import Quota

logger = logging.getLogger("wspool")


class Permit:
    """A lease, as a connection holds it."""

    __slots__ = ("_lease", "_permits")

    def __init__(self, permits: Permits, lease: Any) -> None:
        self._permits = permits
        self._lease = lease

    @property
    def is_lost(self) -> bool:
        return bool(getattr(self._lease, "is_lost", False))

    def release(self) -> None:
        """Tell the quota that the socket is gone."""
        self._permits.release(self._lease)


class Permits:
    """What a pool asks of its quota: `timeout` seconds for a lease, and as many to take it back."""

    def __init__(self, quota: Quota, timeout: float, release_timeout: float) -> None:
        self.quota = quota
        self._timeout = timeout
        self._release_timeout = release_timeout
        # The dials that wait; the leases that are being taken back.
        self.waiting: set[asyncio.Task[Any] | None] = set()
        self.releases: set[asyncio.Future[Any]] = set()

    async def acquire(self) -> Permit:
        """Raise ConnectionUnavailableError, which names the quota, if it does not give a lease."""
        task = asyncio.current_task()
        self.waiting.add(task)
        try:
            async with asyncio.timeout(self._timeout) as timer:
                lease = await self.quota.acquire()
        except ENDS_PROGRAM:
            raise
        except BaseException as error:
            if is_cancelled(error):
                raise
            if timer.expired():
                raise self.full(self._timeout) from None
            raise ConnectionUnavailableError(
                f"No connection: {self.quota!r} raised {type(error).__name__}: {error}"
            ) from error
        finally:
            self.waiting.discard(task)
        return Permit(self, lease)

    def full(self, seconds: float) -> ConnectionUnavailableError:
        return ConnectionUnavailableError(
            f"No connection: no lease within {seconds} s of {self.quota!r}. If it is full, raise "
            "its limit, or have idle connections closed sooner (idle_timeout)",
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
