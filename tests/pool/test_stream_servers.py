"""Streams against servers that count what is open, as those of speech do, and one that floods."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import tracemalloc
from time import perf_counter
from typing import Any

import pytest

from tests import IS_WHOLE
from tests.conftest import MakePool, until
from tests.support.inside import link_of, queues_of
from wspool import StreamOverflowError, WebsocketStream
from wspool.testing import Peer, PeerStream, Server, Streams

INTERRUPTIONS = 10_000 if IS_WHOLE else 600
FLOOD = 100 if IS_WHOLE else 20
"""MiB."""


def is_final(message: str | bytes) -> bool:
    return bool(json.loads(message).get("is_final"))


async def close_context(stream: WebsocketStream) -> None:
    """As `on_release`, cancel what is under way."""
    if not stream.is_clean:
        for key in stream.keys:
            await stream.send_json({"context_id": key, "close_context": True})


def late_contexts(most: int, seconds: float) -> Streams:
    """A server with so many contexts on a connection at most, each of which lets go late.

    At one more it closes with 1008, as ElevenLabs does at the sixth.
    """

    async def context(stream: PeerStream) -> None:
        has_spoken = False
        async for message in stream:
            said = json.loads(message)
            if said.get("close_context") or said.get("flush"):
                if not has_spoken:
                    return  # it was closed a moment ago, and that was said
                await asyncio.sleep(seconds)
                await stream.send_json({"context_id": stream.key, "is_final": True})
                return
            has_spoken = True
            await stream.send_json({"context_id": stream.key, "audio": said["text"]})

    return Streams(context, "context_id", max_streams=most)


async def speak(pool: Any, seed: int, key: str | None = None) -> None:
    """Say something, and be interrupted at some moment, or listen to the end."""
    dice = random.Random(seed)
    async with pool.get_stream(timeout=None) as stream:
        context = stream.claim(key and key.format(stream.slot))
        try:
            async with asyncio.timeout(dice.choice((0.0, 0.001, 0.01, 5.0))):
                await stream.send_json({"context_id": context, "text": str(seed)})
                audio = await stream.recv_json()
                assert audio == {"context_id": context, "audio": str(seed)}
                if dice.random() < 0.1:
                    await stream.send_json({"context_id": context, "flush": True})
                    assert (await stream.recv_json())["is_final"]
        except TimeoutError:
            pass


@pytest.mark.parametrize(
    ("most", "seconds", "names", "key"),
    [
        pytest.param(5, 0.3, None, None, id="five contexts, closed late"),
        pytest.param(16, 0.02, 32, "lane-{}", id="sixteen lanes of 32 names"),
    ],
)
async def test_a_server_that_counts_contexts_never_sees_one_too_many(
    make_pool: MakePool, most: int, seconds: float, names: int | None, key: str | None
) -> None:
    contexts = late_contexts(most, seconds)
    async with Server(contexts) as server:
        pool = make_pool(
            uri=server.uri,
            max_connections=400 // most,
            max_streams=most,
            route="context_id",
            drain_until=is_final,
            on_release=close_context,
            acquire_timeout=None,
        )
        numbers = iter(range(INTERRUPTIONS))

        async def caller() -> None:
            for number in numbers:
                await speak(pool, number, key)

        async with asyncio.TaskGroup() as callers:
            for _ in range(420):
                callers.create_task(caller())
        assert contexts.refused == 0
        assert contexts.most_open == most, "the server was as full as it may be"
        assert names is None or len(set(contexts.keys)) <= names
        assert pool.stats.borrows == INTERRUPTIONS
        await until(lambda: not pool.busy_connections, "every slot is free again")


async def test_a_flood_at_a_stream_that_sleeps_costs_its_neighbours_nothing(
    make_pool: MakePool,
) -> None:
    chunk = "x" * 65_000

    async def serve(peer: Peer) -> None:
        floods = []

        async def flood(key: int) -> None:
            for _ in range(FLOOD * 16):
                await peer.send_json({"id": key, "chunk": chunk})
                await asyncio.sleep(0)
            await peer.send_json({"id": key, "is_final": True})

        async for message in peer:
            said = json.loads(message)
            if said.get("flood"):
                floods.append(asyncio.create_task(flood(said["id"])))
            else:
                await peer.send_json({"id": said["id"]})
        for task in floods:
            task.cancel()

    async with Server(serve) as server:
        pool = make_pool(
            uri=server.uri, route="id", max_streams=4, max_unread=2**20, drain_until=is_final
        )

        async def ask(stream: WebsocketStream, took: list[float]) -> None:
            began = perf_counter()
            await stream.send_json({"id": stream.keys[0]})
            await stream.recv()
            took.append(perf_counter() - began)

        async with pool.get_stream() as a, pool.get_stream() as b:
            for stream in (a, b):
                stream.claim()
            calm, wild = list[float](), list[float]()
            while len(calm) < 300:
                await asyncio.gather(ask(a, calm), ask(b, calm))
            async with pool.get_stream() as sleeper:
                key = sleeper.claim()
                lane = link_of(sleeper.connection).sharing.lanes[sleeper.slot]
                tracemalloc.start()
                try:
                    await sleeper.send_json({"id": key, "flood": True})
                    most = 0
                    while not lane.missed_ends:
                        await asyncio.gather(ask(a, wild), ask(b, wild))
                        most = max(most, lane.unread_bytes)
                finally:
                    peak = tracemalloc.get_traced_memory()[1]
                    tracemalloc.stop()
                assert 2**19 < most <= 2**20
                assert peak < 2**20 + 2 * 2**20, "what the server has in its hands included"
                for _ in range(len(lane.entries)):
                    await sleeper.recv()
                with pytest.raises(StreamOverflowError):
                    await sleeper.recv()
            assert len(wild) > 10
            print(f"p99: {p99(calm) * 1000:.2f} ms calm, {p99(wild) * 1000:.2f} ms in the flood")
            print(f"peak {peak / 2**20:.1f} MiB, {len(wild)} answers")
            assert a.connection.is_connected
            await until(lambda: len(link_of(a.connection).sharing.lanes) == 2, "it has drained")
        assert len(queues_of(pool)) == 1


def p99(took: list[float]) -> float:
    return statistics.quantiles(took, n=100)[98]
