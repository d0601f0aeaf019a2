"""Two uvicorns, the first of which is killed, stopped and begun anew under 50 borrowers."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.conftest import until
from tests.group.conftest import MakeGroup
from tests.support.redis_server import free_port
from wspool import WebsocketConnection, WebsocketPools
from wspool._group import health

pytest.importorskip("uvicorn")

BORROWERS = 50


class Uvicorn:
    """One server in a process of its own, at a port that a restart keeps."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = free_port()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def options(self) -> dict[str, Any]:
        return {"uri": f"ws://127.0.0.1:{self.port}/"}

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "uvicorn", "tests.group.app:app", "--port", str(self.port)),
            *("--log-level", "error", "--lifespan", "off"),
            env={**os.environ, "NAME": self.name},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        async with asyncio.timeout(30):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    await writer.wait_closed()
                    return

    def tell(self, what: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(what)

    async def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process = None


@pytest.fixture
async def uvicorns() -> AsyncIterator[tuple[Uvicorn, Uvicorn]]:
    first, second = Uvicorn("first"), Uvicorn("second")
    await asyncio.gather(first.start(), second.start())
    yield first, second
    await asyncio.gather(first.kill(), second.kill())


class Load:
    """Fifty who ask all the time, and who has answered."""

    def __init__(self, group: WebsocketPools) -> None:
        self._group = group
        self.answers: Counter[str] = Counter()
        self.errors: list[BaseException] = []
        self._is_over = False
        self._tasks: list[asyncio.Task[None]] = []

    async def _ask(self, connection: WebsocketConnection, question: str) -> None:
        await connection.send(question)
        name, _, answer = str(await connection.recv()).partition(" ")
        assert answer == question
        self.answers[name] += 1

    async def _work(self, who: int) -> None:
        count = 0
        while not self._is_over:
            count += 1
            try:
                await self._group.run(self._ask, f"{who} {count}")
            except Exception as error:
                self.errors.append(error)
            await asyncio.sleep(0.01)

    async def _use_once(self) -> None:
        """Let all connections have been used: `run` repeats what was lost with those only."""
        lent = [await self._group.acquire() for _ in range(BORROWERS)]
        for connection in lent:
            await self._ask(connection, "hello")
            await self._group.release(connection)

    async def __aenter__(self) -> Load:
        await self._use_once()
        self._tasks = [asyncio.create_task(self._work(who)) for who in range(BORROWERS)]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._is_over = True
        await asyncio.gather(*self._tasks)

    async def more_of(self, name: str, count: int = 500, within: float = 20.0) -> None:
        """Wait until this server has answered so many more."""
        least = self.answers[name] + count
        await until(lambda: self.answers[name] >= least, f"{name} answers", within)


async def test_the_first_is_killed_and_begun_anew(
    uvicorns: tuple[Uvicorn, Uvicorn], make_group: MakeGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody sees an error, and all are back on it when its probe has lived."""
    monkeypatch.setattr(health, "PAUSE_SECONDS", 1.0)
    first, second = uvicorns
    options = {"first": first.options, "second": second.options}
    group = make_group(options, max_connections=60, choose="first", acquire_timeout=10.0)
    member = group._roster.members["first"]
    async with Load(group) as load:
        await load.more_of("first")
        await first.kill()
        await load.more_of("second")
        assert not member.health.is_in
        await first.start()
        await until(lambda: member.health.is_in, "its probe has lived", within=30)
        await load.more_of("first", 1, within=1.0)
        await until(lambda: group["second"].busy_connections == 0, "all are back")
    assert Counter(map(str, load.errors)) == {}


async def test_the_first_is_stopped_and_goes_on(
    uvicorns: tuple[Uvicorn, Uvicorn], make_group: MakeGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A heartbeat finds that nobody answers any more."""
    monkeypatch.setattr(health, "PAUSE_SECONDS", 1.0)
    first, second = uvicorns
    options = {"first": first.options, "second": second.options}
    group = make_group(
        options,
        max_connections=110,
        choose="first",
        acquire_timeout=10.0,
        heartbeat=1.0,
        connection_timeout=1.0,
    )
    async with Load(group) as load:
        await load.more_of("first")
        member = group._roster.members["first"]
        first.tell(signal.SIGSTOP)
        try:
            await until(lambda: not member.health.is_in, "it is out", within=20)
            await load.more_of("second")
        finally:
            first.tell(signal.SIGCONT)
        await until(lambda: member.health.is_in, "its probe has lived", within=30)
        await load.more_of("first", 1, within=1.0)
        await load.more_of("first")
    assert Counter(map(str, load.errors)) == {}


@pytest.mark.long
async def test_one_that_was_down_for_17_seconds_is_back_within_30(
    uvicorns: tuple[Uvicorn, Uvicorn], make_group: MakeGroup
) -> None:
    """In real time: a cooldown of minutes would be longer than what it is for."""
    first, second = uvicorns
    options = {"first": first.options, "second": second.options}
    group = make_group(options, max_connections=60, choose="first", acquire_timeout=10.0)
    async with Load(group) as load:
        await load.more_of("first")
        await first.kill()
        clock = asyncio.get_running_loop().time
        down_at = clock()
        await asyncio.sleep(17)
        await first.start()
        before = load.answers["first"]
        await until(lambda: load.answers["first"] > before, "it answers again", within=30)
        assert clock() - down_at < 30
    assert Counter(map(str, load.errors)) == {}
