"""What lends to threads, be it a pool or a group of pools: how its borrows begin and end.

What an interrupted call had got is given back. What is interrupted later, on its way to the
variable of whoever called, is a borrow that nobody refers to: one that is dropped ends by itself,
and so does that of a `with` in a generator that is dropped. Neither waits: where the garbage
collector runs, a lock may be held that the loop needs.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Self, TypeVar, TypeVarTuple

from wspool._connection.borrow import lend
from wspool._connection.callsites import in_own_code
from wspool._connection.errors import ConnectionClosedError
from wspool._connection.loan import WebsocketConnection
from wspool._pool.blocking_borrow import B, BlockingBorrow, L, Lent, end
from wspool._pool.blocking_connection import BlockingWebsocketConnection
from wspool._pool.blocking_stream import BlockingWebsocketStream
from wspool._pool.checks import check_timeout
from wspool._pool.portal import Portal
from wspool._pool.repeating import Again, Attempt

logger = logging.getLogger("wspool")

T = TypeVar("T")
Args = TypeVarTuple("Args")


class BlockingLender:
    """A pool, or a group of pools, in the loop behind its portal."""

    _portal: Portal

    def release(
        self, connection: BlockingWebsocketConnection, *, force_remove: bool = False
    ) -> None:
        """Give a connection back; with `force_remove` it is closed. Does not wait for the network.

        Releasing what is not lent by this pool is a warning in the log.
        """
        self._release(connection, force_remove=force_remove)

    def release_stream(
        self, stream: BlockingWebsocketStream, *, force_remove: bool = False
    ) -> None:
        """Give a stream back; with `force_remove` its connection closes when its neighbours go.

        Releasing what is over is a warning in the log.
        """
        self._release(stream, force_remove=force_remove)

    def close(self) -> None:
        """Close it, as `close_all()` without a timeout does: for `contextlib.closing`."""
        self.close_all()

    def close_all(self, timeout: float | None = 0.0) -> None:
        """Close everything, and return when its thread has ended.

        Borrowers get `timeout` seconds to finish first, with None as long as they need. Waiters
        get ConnectionPoolUnavailableError at once. Interrupted, the closing goes on.
        """
        check_timeout(timeout)
        self._portal.close(timeout)

    def _lent(self, borrow: Callable[[], B]) -> Lent[B]:
        """Return a `with` that borrows, and gives back."""
        return Lent(self._portal, borrow)

    def _caught_up(self) -> None:
        self._portal.catch_up()

    def _lend(self, make: Callable[[], L], hand: Callable[[Self, L], B]) -> B:
        """Make a borrow in the loop, wait for it, and put it into a thread's hand."""
        frame = in_own_code(sys._getframe(1))

        async def borrow() -> B:
            return hand(self, await lend(make(), frame))

        return self._portal.wait(borrow, undo=lambda lent: end(lent._mirrored))

    def _run(
        self,
        borrow: Callable[[], BlockingWebsocketConnection],
        again: Again,
        work: Callable[[BlockingWebsocketConnection, *Args], T],
        args: tuple[*Args],
    ) -> T:
        """Do the work in a loan, and perhaps `again` in another one: as `repeating.run` does."""
        attempt: Attempt | None = None
        second: WebsocketConnection | None = None
        try:
            with self._lent(borrow) as connection:
                attempt = self._portal.call(partial(Attempt, connection._mirrored))
                return work(connection, *args)
        except ConnectionClosedError:
            if attempt is not None:
                second = self._portal.call(partial(again, attempt))
            if second is None:
                raise
        finally:
            if attempt is not None:
                self._portal.soon(attempt.end)
        lend_second = partial(self._lend, lambda: second, BlockingWebsocketConnection)
        with self._lent(lend_second) as connection:
            return work(connection, *args)

    def _release(self, lent: BlockingBorrow[Any], *, force_remove: bool) -> None:
        is_ours = lent._lender is self
        if not is_ours or self._end(lent, force_remove=force_remove) is False:
            logger.warning("%r is not lent by this pool; releasing it does nothing", lent)

    def _end(self, lent: BlockingBorrow[Any], **how: bool) -> bool | None:
        """End a borrow, even if that is interrupted; False if it was over."""
        if self._portal.is_foreign:
            return None  # it is the parent's
        ending = partial(end, lent._mirrored, **how)
        try:
            return self._portal.call(ending)
        except BaseException:
            self._portal.soon(ending)  # a second time does no harm
            raise

    def __del__(self) -> None:
        portal = getattr(self, "_portal", None)
        if portal is not None and portal.is_running:
            portal.stop()
            portal.warn("was dropped without being closed")
