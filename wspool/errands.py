"""Errands: what the pool itself borrows an idle connection for, a check or a keepalive.

Like a borrower's, the connection is busy meanwhile; unlike a borrower's loan, an errand is no use:
the connection comes back as long idle as it was. What a server sends beside the answer is disposed
of as if the connection were idle.
"""

from __future__ import annotations

import asyncio
from typing import Final

from wspool.connection import WebsocketConnection
from wspool.draining import Discard, dispose, run_hook
from wspool.options import Options
from wspool.states import CloseReason
from wspool.stats import Stats

MUTE: Final = 0.5
"""Seconds for the pong of a check; if the handshake was slow, twice what that took.

A handshake is at least two round trips, a ping is one. A server that is merely slow costs a new
handshake here; a mute one costs every borrower that waits for it this time.
"""


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
