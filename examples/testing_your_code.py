#!/usr/bin/env python3
"""Tests of a client that uses a pool, against a server that does what each test asks for.

    pip install wspool pytest pytest-asyncio
    python examples/testing_your_code.py         runs them and prints their names
    python -m pytest examples/testing_your_code.py

Neither needs a network or the real provider.
"""

from __future__ import annotations

import asyncio
from typing import Self

import pytest

from wspool import ConnectionClosedError, WebsocketConnectionPool
from wspool.testing import Peer, Server

# What is tested.


class Translator:
    """Asks a provider for translations, and a second time when the connection was lost.

    `patience` is in seconds, for an answer; without one in time, `translate` raises TimeoutError.
    """

    def __init__(self, uri: str, patience: float = 10.0) -> None:
        self.patience = patience
        self.pool = WebsocketConnectionPool(uri=uri, max_connections=5, close_timeout=patience)

    async def __aenter__(self) -> Self:
        await self.pool.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.pool.close_all()

    async def translate(self, text: str) -> str:
        try:
            return await self._ask(text)
        except ConnectionClosedError:
            return await self._ask(text)

    async def _ask(self, text: str) -> str:
        # Inside the block: a question without an answer costs the connection, so that the answer
        # cannot reach the next borrower.
        async with self.pool.get_connection() as connection, asyncio.timeout(self.patience):
            await connection.send_json({"type": "translate", "text": text})
            answer = await connection.recv_json()
        return str(answer["text"])


# The tests.

pytestmark = pytest.mark.asyncio


async def provide(peer: Peer) -> None:
    """Do what the provider does when all is well."""
    while True:
        request = await peer.recv_json()
        await peer.send_json({"type": "translation", "text": request["text"].upper()})


async def test_it_asks_as_the_provider_wants_it_and_returns_the_text() -> None:
    async def greet(peer: Peer) -> None:
        await peer.expect({"type": "translate", "text": "good day"})
        await peer.send_json({"type": "translation", "text": "guten Tag"})

    async with Server(greet) as server, Translator(server.uri) as translator:
        assert await translator.translate("good day") == "guten Tag"


async def test_a_refused_handshake_is_tried_again() -> None:
    async with Server(provide) as server, Translator(server.uri) as translator:
        server.refuse(503)
        assert await translator.translate("good day") == "GOOD DAY"
        assert len(server.requests) == 2


async def test_a_question_on_a_connection_that_is_lost_is_asked_again() -> None:
    async def drop_the_first(peer: Peer) -> None:
        if peer.number == 1:
            await peer.recv()
            peer.drop()
        await provide(peer)

    async with Server(drop_the_first) as server, Translator(server.uri) as translator:
        assert await translator.translate("good day") == "GOOD DAY"
        assert len(server.received) == 2


async def test_a_provider_that_hangs_costs_one_question_and_its_connection() -> None:
    async def mute_the_first(peer: Peer) -> None:
        if peer.number == 1:
            peer.mute()
        await provide(peer)

    async with Server(mute_the_first) as server, Translator(server.uri, patience=0.2) as translator:
        with pytest.raises(TimeoutError):
            await translator.translate("good day")
        assert await translator.translate("good evening") == "GOOD EVENING"
        assert len(server.peers) == 2


if __name__ == "__main__":
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            asyncio.run(test())
            print(name, "passed")
