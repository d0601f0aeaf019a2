"""A pool to which everything has happened that a metric counts, with a connection in each state."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest

from tests.conftest import echoes, until
from wspool import (
    ConnectionPoolTimeoutError,
    ConnectionUnavailableError,
    PoolSnapshot,
    WebsocketConnectionPool,
)
from wspool.testing import Server

OPTIONS: Final[dict[str, Any]] = {
    "max_connections": 5,
    "max_retries": 1,
    "close_timeout": 30.0,
    "drain_until": lambda message: message == "the last",
    "drain_quiet_period": 30.0,
    "drain_timeout": 60.0,
}


@asynccontextmanager
async def full_life(server: Server, pool: WebsocketConnectionPool) -> AsyncIterator[PoolSnapshot]:
    """Lead a fresh pool with these options through it, and give its picture while it lasts."""
    server.refuse(403)
    with pytest.raises(ConnectionUnavailableError):
        await pool.acquire()
    idle, busy, draining, mute = [await pool.acquire() for _ in range(4)]
    assert await echoes(busy)
    assert await echoes(draining)
    server.peers[mute.id - 2].mute()
    await pool.release(mute, force_remove=True)
    await pool.release(draining)
    await server.peers[draining.id - 2].send("for nobody")
    await until(lambda: pool.stats.drained_messages, "a message is drained")
    await pool.release(idle)
    server.delay = None
    with pytest.raises(ConnectionPoolTimeoutError):
        await pool.acquire_new(timeout=0.01)
    waiting = asyncio.create_task(pool.acquire_new(timeout=None))
    await until(lambda: pool.waiters, "somebody waits")

    picture = pool.snapshot()
    assert set(picture.counts.values()) == {1}, "there is one in each state"
    assert picture.stats.failures == {"status 403": 1}
    assert picture.stats.refusals == {"connectionError": 1, "timeout": 1}
    assert picture.stats.closes == {"dial": 1, "user": 1}
    assert (picture.waiters, picture.stats.timeouts, picture.stats.drained_messages) == (1, 1, 1)
    assert min(picture.stats.wait_seconds, picture.stats.dial_seconds) > 0
    yield picture
    waiting.cancel()
    await asyncio.wait({waiting})
    server.peers[mute.id - 2].unmute()
