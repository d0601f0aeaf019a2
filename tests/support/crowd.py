"""Servers that admit so many connections and no more, and many who want one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from tests.conftest import echoes
from wspool import WebsocketConnectionPool, WebsocketError
from wspool.testing import Peer, Server, echo


class Crowded(Server):
    """A server that refuses whoever is beyond the limit: by a status, or by a close code."""

    def __init__(self, admitted: int, refusal: int, *, after: float = 0.0) -> None:
        super().__init__(self._decide)
        self.admitted = admitted
        self.refusal = refusal
        # Seconds before a close.
        self.after = after
        self.headers: dict[str, str] = {}
        self.refused = 0
        # When it was asked, refusals included.
        self.asked: list[float] = []
        self._inside: list[int] = []

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(time.monotonic())
        if self.refusal < 1000 and len(self._inside) >= self.admitted:
            self.refused += 1
            return web.Response(status=self.refusal, headers=self.headers)
        self._inside.append(id(request))
        try:
            return await super()._answer(request)
        finally:
            self._inside.remove(id(request))

    async def _decide(self, peer: Peer) -> None:
        if self._inside.index(id(peer.request)) >= self.admitted:
            self.refused += 1
            if self.after:
                await asyncio.sleep(self.after)
            await peer.close(self.refusal, "full")
        else:
            await echo(peer)


class Evicting(Server):
    """A server that admits everybody, and closes the oldest that is one too many."""

    def __init__(self, admitted: int, code: int | None) -> None:
        super().__init__(self._decide)
        self.admitted = admitted
        # None: it drops the connection.
        self.code = code
        self.inside: list[Peer] = []
        self.asked: list[float] = []
        self._closing: set[asyncio.Task[None]] = set()

    async def _decide(self, peer: Peer) -> None:
        self.asked.append(time.monotonic())
        self.inside.append(peer)
        if len(self.inside) > self.admitted:
            oldest = self.inside.pop(0)
            if self.code is None:
                oldest.drop()
            else:
                closing = asyncio.create_task(oldest.close(self.code, "one too many"))
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
        try:
            await echo(peer)
        finally:
            if peer in self.inside:
                self.inside.remove(peer)


@dataclass
class Outcome:
    """What many borrowers have had of a pool."""

    loans: int = 0
    errors: list[WebsocketError] = field(default_factory=list)


@asynccontextmanager
async def many(
    pool: WebsocketConnectionPool, *, borrowers: int = 40, hold: float = 0.02
) -> AsyncIterator[Outcome]:
    """Let patient borrowers ask, and hold the connection for a while, again and again.

    At the end of the block each gives back what it has.
    """
    outcome, is_over = Outcome(), asyncio.Event()

    async def borrow() -> None:
        while not is_over.is_set():
            try:
                async with pool.get_connection(timeout=None) as connection:
                    assert await echoes(connection)
                    await asyncio.sleep(hold)
                outcome.loans += 1
            except WebsocketError as error:
                outcome.errors.append(error)
                await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(borrowers):
            tasks.create_task(borrow())
        try:
            yield outcome
        finally:
            is_over.set()


async def crowd(
    pool: WebsocketConnectionPool, seconds: float, *, borrowers: int = 40, hold: float = 0.02
) -> Outcome:
    """Let them do so for so many seconds; return what they have had."""
    async with many(pool, borrowers=borrowers, hold=hold) as outcome:
        await asyncio.sleep(seconds)
    return outcome
