"""Streams for threads: many of them share a connection, and an interrupted call loses nothing."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.pool.test_streams import rpc
from wspool import (
    BlockingWebsocketConnectionPool,
    BlockingWebsocketStream,
    ConnectionBusyError,
    ConnectionPoolExhaustedError,
    State,
)
from wspool.testing import Server


@pytest.fixture
def pool() -> Iterator[BlockingWebsocketConnectionPool]:
    started, stop = threading.Event(), threading.Event()
    found: list[str] = []

    def serve() -> None:
        async def main() -> None:
            async with Server(rpc) as server:
                found.append(server.uri)
                started.set()
                await asyncio.to_thread(stop.wait)

        asyncio.run(main())

    thread = threading.Thread(target=serve)
    thread.start()
    started.wait()
    with BlockingWebsocketConnectionPool(
        uri=found[0], max_connections=1, max_streams=8, route="id", acquire_timeout=10.0
    ) as pool:
        yield pool
    stop.set()
    thread.join()


def ask(stream: BlockingWebsocketStream, params: Any) -> Any:
    key = stream.claim()
    stream.send_json({"id": key, "params": params})
    answer = stream.recv_json(timeout=10.0)
    assert answer["id"] == key
    return answer["result"]


def fail(pool: BlockingWebsocketConnectionPool) -> None:
    """Leave a stream by an exception, with an answer under way."""
    with pool.get_stream() as stream:
        stream.send_json({"id": stream.claim(), "method": "late"})
        raise KeyError


def test_threads_share_a_connection_and_get_their_own_answers(
    pool: BlockingWebsocketConnectionPool,
) -> None:
    def work(number: int) -> None:
        for n in range(20):
            with pool.get_stream() as stream:
                assert ask(stream, [number, n]) == [number, n]
                assert 1 <= stream.slot <= 8

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(work, range(12)))
    assert pool.stats.dials == 1
    assert pool.stats.borrows == 240
    assert pool.available_connections == 1


def test_a_stream_has_what_that_of_the_loop_has(pool: BlockingWebsocketConnectionPool) -> None:
    stream = pool.acquire_stream()
    assert (stream.slot, stream.number, stream.state, stream.keys) == (1, 1, State.BUSY, ())
    assert stream.claim("a") == "a"
    assert stream.keys == ("a",)
    assert stream.connection.id == 1
    assert not stream.reused
    assert stream.is_clean
    assert "test_blocking_streams.py" in (stream.borrowed_at or "")
    assert stream.ping(timeout=10.0) > 0
    with pytest.raises(TimeoutError, match="slot 1 of connection #1 had no message within"):
        stream.recv(timeout=0.01)
    stream.send(json.dumps({"id": "a", "params": 1}))
    assert next(stream) == '{"id": "a", "result": 1}'
    pool.release_stream(stream)
    with pytest.raises(ConnectionBusyError):
        stream.send("too late")


def test_releasing_twice_is_a_warning(
    pool: BlockingWebsocketConnectionPool, caplog: pytest.LogCaptureFixture
) -> None:
    stream = pool.acquire_stream()
    pool.release_stream(stream)
    pool.release_stream(stream)
    assert "releasing it does nothing" in caplog.text


def test_an_exception_ends_the_stream_and_nothing_else(
    pool: BlockingWebsocketConnectionPool,
) -> None:
    with pool.get_stream() as other:
        with pytest.raises(KeyError):
            fail(pool)
        assert ask(other, 1) == 1
    assert pool.stats.dials == 1


def test_a_stream_that_is_dropped_gives_its_slot_back(
    pool: BlockingWebsocketConnectionPool,
) -> None:
    with pytest.warns(ResourceWarning, match="use `with pool.get_stream"):
        pool.acquire_stream()
    held = [pool.acquire_stream() for _ in range(8)]
    with pytest.raises(ConnectionPoolExhaustedError):
        pool.acquire_stream(timeout=0.05)
    for stream in held:
        pool.release_stream(stream)


def test_a_stream_that_was_given_back_is_seen_to_be(pool: BlockingWebsocketConnectionPool) -> None:
    """As nothing of it is drained, it is over once its block is."""
    for _ in range(100):
        with pool.get_stream() as stream:
            assert stream.state is State.BUSY
        assert stream.state is State.CLOSED
