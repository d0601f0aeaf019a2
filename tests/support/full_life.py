"""A pool to which everything has happened that a metric counts, with a connection in each state."""

from __future__ import annotations

import asyncio
import json
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
from wspool.testing import Peer, Server

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


OPTIONS_OF_STREAMS: Final[dict[str, Any]] = {
    "max_connections": 1,
    "max_streams": 3,
    "max_unread": 1000,
    "route": "id",
    "drain_until": lambda message: "last" in message,
    "drain_timeout": 60.0,
}


async def tell_as_often_as_asked(peer: Peer) -> None:
    """A server that says a thing to an id so many times."""
    async for message in peer:
        asked = json.loads(message)
        for _ in range(asked["times"]):
            await peer.send_json({"id": asked["id"], "says": asked["says"]})


@asynccontextmanager
async def life_of_streams(pool: WebsocketConnectionPool) -> AsyncIterator[PoolSnapshot]:
    """Lead a fresh pool with these options, to the server above, through all that streams do."""
    async with pool.get_stream() as reader, pool.get_stream() as sleeper:
        for stream in (reader, sleeper):
            stream.claim()
        await reader.send_json({"id": sleeper.keys[0], "times": 100, "says": "more"})
        await reader.send_json({"id": reader.keys[0], "times": 1, "says": "it is the last"})
        await reader.recv()
        await pool.release_stream(await pool.acquire_stream())
        drained = await pool.acquire_stream()
        await drained.send_json({"id": drained.claim(), "times": 1, "says": "the last"})
        await pool.release_stream(drained)
        await until(lambda: drained.state == "closed", "it has drained")
        draining = await pool.acquire_stream()
        await draining.send_json({"id": draining.claim(), "times": 0, "says": ""})
        await pool.release_stream(draining)
        waiting = asyncio.create_task(pool.acquire_stream(timeout=None))
        await until(lambda: pool.waiters, "somebody waits")

        picture = pool.snapshot()
        [connection] = picture.connections
        assert [s.state for s in connection.streams] == ["busy", "busy", "draining"]
        assert (picture.stats.borrows, picture.stats.waits) == (5, 2)
        assert (picture.stats.overflows, picture.waiters) == (1, 1)
        yield picture
        waiting.cancel()
        await asyncio.wait({waiting})
        await reader.send_json({"id": draining.keys[0], "times": 1, "says": "the last"})
        await until(lambda: draining.state == "closed", "all has drained")
