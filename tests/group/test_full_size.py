"""Groups at the size for which they are: a thousand keys, many loans, hundreds of conversations.

`make test` has each of them small, `make test-all` as it is meant.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from statistics import mean
from typing import Any

import pytest

from tests import IS_WHOLE
from tests.conftest import echoes
from tests.group.conftest import MakeGroup
from wspool import WebsocketConnection
from wspool.testing import Peer, Server


class Counting:
    """A server that says which key a connection is for, and counts how many are open."""

    def __init__(self) -> None:
        self.open: set[Peer] = set()
        self.most = 0

    async def serve(self, peer: Peer) -> None:
        self.open.add(peer)
        self.most = max(self.most, len(self.open))
        try:
            await peer.send(peer.request.headers["X-Key"])
            async for message in peer:
                await peer.send(f"{peer.request.headers['X-Key']} {message}")
        finally:
            self.open.discard(peer)


def options_at(server: Server) -> Any:
    async def options_of(key: str) -> dict[str, Any]:
        return {"uri": server.uri, "headers": {"X-Key": key}}

    return options_of


async def check_key(connection: WebsocketConnection, key: str) -> None:
    """Compare what the server has said at first, and nobody else has read."""
    if connection.context is None:
        connection.context = await connection.recv()
    assert connection.context == key


async def test_no_key_starves_another_however_uneven_their_loads_are(
    make_group: MakeGroup,
) -> None:
    """Under a load after Zipf, whose borrowers always want more, each of them gets its share.

    Twice as much, or half as much, at most; and there are never more sockets than the total.
    """
    keys, total, rounds = (1000, 50, 4) if IS_WHOLE else (20, 5, 4)
    counting = Counting()
    async with Server(counting.serve) as server:
        group = make_group(options_at(server), max_connections=total, acquire_timeout=None)
        crowd = [key for key in range(keys) for _ in range(max(1, round(keys / 10 / (key + 1))))]
        served: Counter[int] = Counter()
        is_over = asyncio.Event()

        async def borrow(key: int) -> None:
            while not is_over.is_set():
                async with group.get_connection(f"key {key}") as connection:
                    await check_key(connection, f"key {key}")
                served[key] += 1
                if served.total() >= rounds * len(crowd):
                    is_over.set()

        async with asyncio.timeout(570), group:
            await asyncio.gather(*(borrow(key) for key in crowd))
        assert counting.most <= total
        fair = served.total() / len(crowd)
        shares = {key: served[key] / count / fair for key, count in Counter(crowd).items()}
        assert min(shares.values()) >= 0.5, min(shares.items(), key=lambda item: item[1])
        assert max(shares.values()) <= 2.0, max(shares.items(), key=lambda item: item[1])


@pytest.mark.parametrize("loans", [100_000 if IS_WHOLE else 300])
async def test_no_loan_is_ever_of_another_keys_connection(
    make_group: MakeGroup, loans: int
) -> None:
    """Keys come and go, borrowers are cancelled, connections break, and headers stay apart."""
    keys, total, borrowers = (26, 50, 12) if IS_WHOLE else (12, 6, 8)
    counting, chance = Counting(), random.Random(19)
    async with Server(counting.serve) as server:
        group = make_group(
            options_at(server), max_connections=total, acquire_timeout=None, idle_timeout=0.5
        )
        done = 0

        async def use(key: str) -> None:
            async with group.get_connection(key) as connection:
                await check_key(connection, key)
                if chance.random() < 0.05:
                    await connection.send("hello")
                    assert await connection.recv() == f"{key} hello"
                if chance.random() < 0.001:
                    await connection.close()

        async def borrow() -> None:
            nonlocal done
            while done < loans:
                key = f"key {chance.randrange(keys)}"
                if chance.random() < 0.02:
                    task = asyncio.create_task(use(key))
                    await asyncio.sleep(chance.random() * 0.002)
                    task.cancel()
                    await asyncio.wait({task})
                    if not task.cancelled():
                        task.result()
                else:
                    await use(key)
                done += 1
                if chance.random() < 0.0005 and key in group:
                    group.remove(key)

        async with asyncio.timeout(570), group:
            await asyncio.gather(*(borrow() for _ in range(borrowers)))
        assert counting.most <= total


@pytest.mark.parametrize("members", [1, 2])
async def test_conversations_find_their_own_connections_while_there_are_enough(
    make_group: MakeGroup, members: int
) -> None:
    """Of 200, 50 at most are active at a time, on 50 connections; a fork never waits."""
    conversations, total = (200, 50) if IS_WHOLE else (40, 10)
    chance = random.Random(3)
    async with Server() as server:
        uris = {n: {"uri": server.uri} for n in range(members)}
        group = make_group(uris, max_connections=total)
        own: list[bool] = []
        turns = 20

        async def turn(conversation: int, *, is_first: bool) -> None:
            async with group.get_connection(prefer=conversation) as connection:
                if not is_first:
                    own.append(connection.context == conversation)
                connection.context = conversation
                assert await echoes(connection, f"turn of {conversation}")

        async def be_active(conversation: int) -> None:
            for count in range(turns):
                await turn(conversation, is_first=count == 0)
                await asyncio.sleep(chance.random() * 0.01)

        async with asyncio.timeout(570):
            for _ in range(4):
                active = chance.sample(range(conversations), total)
                await asyncio.gather(*map(be_active, active))
        assert mean(own) >= 0.95, mean(own)
        # A second turn of a conversation at the same time, by callers that may not wait.
        for conversation in range(total // 2):
            async with (
                group.get_connection(prefer=conversation) as one,
                group.get_connection(prefer=conversation) as other,
            ):
                assert one._link is not other._link
                assert await echoes(other)
        assert group.waiters == 0
        assert group.stats.refusals == {}
        await group.close_all()
