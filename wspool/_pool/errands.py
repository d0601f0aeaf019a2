"""Errands: what the pool itself borrows an idle connection for, a check or a keepalive.

Like a borrower's, the connection is busy meanwhile; unlike a borrower's loan, an errand is no use:
the connection comes back as long idle as it was. What a server sends beside the answer is disposed
of as if the connection were idle.
"""

from __future__ import annotations

import asyncio
from typing import Final

from wspool._connection.link import WebsocketConnection
from wspool._connection.states import CloseReason
from wspool._pool.draining import Discard, dispose, run_hook
from wspool._pool.options import Options
from wspool._pool.stats import Stats
from wspool._pool.waiting import Line

MUTE: Final = 0.5
"""Seconds for the pong of a check; if the handshake was slow, twice what that took.

A handshake is at least two round trips, a ping is one. A server that is merely slow costs a new
handshake here; a mute one costs every borrower that waits for it this time.
"""


JITTER: Final = 0.1
"""Share of max_lifetime and keepalive_interval by which a connection's turn may come earlier, so
that not all have theirs at once."""


class Errands:
    """Which connections are on an errand, and when one is due."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.checks: set[WebsocketConnection] = set()
        self.keepalives: set[WebsocketConnection] = set()
        # Whether a check was not answered, and none has been since.
        self.is_suspicious = False
        # Seconds for which an idle connection is too young to be checked or closed.
        after = options.check_after_idle
        self.hot = options.idle_timeout if after is None else min(after, options.idle_timeout)

    def __len__(self) -> int:
        return len(self.checks) + len(self.keepalives)

    def is_check_due(self, connection: WebsocketConnection, now: float) -> bool:
        after = self._options.check_after_idle
        if after is None:
            return False
        # Also where the clock has not moved since: uvloop's has milliseconds only.
        return now - max(connection.idle_since, connection.checked_at) >= after

    def is_keepalive_due(self, connection: WebsocketConnection, now: float) -> bool:
        interval = self._options.keepalive_interval
        if interval is None:
            return False
        since = max(connection.idle_since, connection.kept_alive_at)
        return now - since >= interval * (1 - JITTER * connection.jitter)

    def begin_check(self, connection: WebsocketConnection) -> None:
        if not self.checks:
            self.is_suspicious = False
        self.checks.add(connection)

    def end(self, connection: WebsocketConnection) -> None:
        self.checks.discard(connection)
        self.keepalives.discard(connection)

    def promised(self, line: Line) -> int:
        """Return how many waiters a check will serve, as far as one knows, and need no dial."""
        if not self.checks or self.is_suspicious:
            return 0
        return min(len(self.checks), sum(not waiter.wants_new for waiter in line))


async def check(connection: WebsocketConnection, options: Options, stats: Stats) -> None:
    """Return when the server has answered a ping; raise Discard if it does not."""
    limit = min(options.connection_timeout, max(MUTE, 2 * connection.handshake))
    try:
        async with asyncio.timeout(limit):
            ping = await connection.send_ping()
            while (message := await connection.next_message(lease=0, until=ping)) is not None:
                dispose(connection, message, options, stats)
    except TimeoutError:
        raise Discard(CloseReason.STALE) from None
    connection.checked_at = connection.clock()


async def keep_alive(connection: WebsocketConnection, options: Options, stats: Stats) -> None:
    """Run the user's `keepalive`, or else a check; raise Discard if it raises or does not end."""
    if options.keepalive is None:
        await check(connection, options, stats)
    else:
        try:
            async with asyncio.timeout(options.connection_timeout):
                await run_hook(connection, options.keepalive, "keepalive")
        except TimeoutError:
            raise Discard(CloseReason.STALE) from None
    connection.kept_alive_at = connection.clock()
