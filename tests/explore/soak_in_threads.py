"""The soak test through blocking pools: each borrower is a thread, and some are interrupted.

A borrower is the soak test's own coroutine, in a loop of its thread's. What it awaits blocks.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from tests.explore.soak import BorrowerError, Scene
from tests.explore.soak_of_streams import StreamScene
from wspool import (
    BlockingWebsocketConnection,
    BlockingWebsocketConnectionPool,
    BlockingWebsocketStream,
)
from wspool._pool import calls

MOST = 1000
"""Threads."""


class Interrupted(BorrowerError):
    """What a signal handler would raise, were this the main thread."""


class Borrower(threading.local):
    """How the calling thread behaves; it is interrupted after `patience` seconds in a call."""

    manner = ""
    patience: float | None = None


borrower = Borrower()
wait_for_outcome = calls.Call.outcome


def outcome(call: Any, life: Any) -> Any:
    """Wait as `Call.outcome` does, and be interrupted meanwhile or right afterwards."""
    patience, borrower.patience = borrower.patience, None
    if patience is None:
        return wait_for_outcome(call, life)
    if call.wait(life, patience):
        call.give()
        if random.random() < 0.5:
            borrower.patience = patience
            return wait_for_outcome(call, life)
    raise Interrupted


class Connection:
    """A blocking connection as the soak test's borrowers know one."""

    def __init__(self, connection: BlockingWebsocketConnection) -> None:
        self.connection = connection
        self.timeout: float | None = None
        if borrower.manner == "time out":
            self.timeout = random.choice([0.0, 0.0005, 0.002, 0.02])

    @property
    def id(self) -> int:
        return self.connection.id

    async def send(self, message: str) -> None:
        self.connection.send(message)

    async def send_json(self, value: Any) -> None:
        self.connection.send_json(value)

    async def recv(self) -> str | bytes:
        return self.connection.recv(self.timeout)

    async def close(self) -> None:
        self.connection.close()


class Stream:
    """A blocking stream as the soak test's borrowers know one."""

    def __init__(self, stream: BlockingWebsocketStream) -> None:
        self.stream = stream
        self.timeout: float | None = None
        if borrower.manner == "time out":
            self.timeout = random.choice([0.0, 0.0005, 0.002, 0.02])

    def __getattr__(self, name: str) -> Any:
        """What does not wait is as it is."""
        return getattr(self.stream, name)

    def __setattr__(self, name: str, value: Any) -> None:
        target = self.stream if name == "outstanding" else self
        object.__setattr__(target, name, value)

    async def send_json(self, value: Any) -> None:
        self.stream.send_json(value)

    async def recv_json(self) -> Any:
        return self.stream.recv_json(self.timeout)


class Pool:
    """A blocking pool as the soak test's borrowers know one."""

    def __init__(self, **options: Any) -> None:
        self.blocking = BlockingWebsocketConnectionPool(**options)

    def __repr__(self) -> str:
        return repr(self.blocking)

    @property
    def _router(self) -> Any:
        return self.blocking.pool._router

    @property
    def connections(self) -> Any:
        return self.blocking.connections

    async def close_all(self) -> None:
        self.blocking.close_all()

    async def acquire(self, timeout: float | None) -> Connection:
        return Connection(self.blocking.acquire(timeout=timeout))

    async def acquire_new(self, timeout: float | None) -> Connection:
        return Connection(self.blocking.acquire_new(timeout=timeout))

    async def acquire_stream(self, timeout: float | None) -> Stream:
        return Stream(self.blocking.acquire_stream(timeout=timeout))

    async def release_stream(self, stream: Stream, *, force_remove: bool = False) -> None:
        self.blocking.release_stream(stream.stream, force_remove=force_remove)

    @asynccontextmanager
    async def get_stream(self, timeout: float | None) -> AsyncIterator[Stream]:
        with self.blocking.get_stream(timeout=timeout) as stream:
            yield Stream(stream)

    async def release(self, connection: Connection, *, force_remove: bool = False) -> None:
        self.blocking.release(connection.connection, force_remove=force_remove)

    @asynccontextmanager
    async def get_connection(self, timeout: float | None) -> AsyncIterator[Connection]:
        with self.blocking.get_connection(timeout=timeout) as connection:
            yield Connection(connection)

    @asynccontextmanager
    async def get_new_connection(self, timeout: float | None) -> AsyncIterator[Connection]:
        with self.blocking.get_new_connection(timeout=timeout) as connection:
            yield Connection(connection)


class ThreadScene(Scene):
    """One blocking pool, its server, and its borrowers."""

    threads = ThreadPoolExecutor(MOST)

    def make_pool(self, **options: Any) -> Any:
        calls.Call.outcome = outcome  # type: ignore[method-assign]
        return Pool(**options)

    async def start(self) -> None:
        await super().start()
        await asyncio.to_thread(self.pool.blocking.start)
        # Debug mode, which -X dev turns on, leaves about a fifth of the borrows.
        self.pool.blocking._portal._lives[0].loop.set_debug(False)

    def look_for_strays(self) -> None:
        self.pool.blocking._portal.soon(super().look_for_strays)

    async def borrow_until(self, is_over: Callable[[], bool]) -> None:
        def borrow_in_thread() -> None:
            asyncio.run(super(ThreadScene, self).borrow_until(is_over), debug=False)

        await asyncio.get_running_loop().run_in_executor(self.threads, borrow_in_thread)

    def call_off(self, borrowing: asyncio.Task[None]) -> None:
        """It is the business of the borrower's own thread: see `outcome`."""

    async def borrow(self, manner: str) -> None:
        borrower.manner = manner
        if manner == "cancel":
            borrower.patience = random.choice([0.0, 0.0001, 0.001, 0.01, 0.1])
        try:
            await super().borrow(manner)
        finally:
            borrower.patience = None

    async def count_slots(self) -> None:
        await asyncio.to_thread(lambda: asyncio.run(super(ThreadScene, self).count_slots()))

    async def close(self) -> None:
        self.threads.shutdown()
        await asyncio.to_thread(self.pool.blocking.close_all)
        await super().close()


class StreamThreadScene(ThreadScene, StreamScene):
    """One blocking pool with streams, its server, and its borrowers."""

    def may_overflow(self, manner: str) -> bool:
        """A thread is between two calls while the pool's own reads on."""
        return True
