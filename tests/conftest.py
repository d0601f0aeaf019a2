"""What every test is held to: no warning, no loop exception, no task and no socket left over."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NoReturn

import pytest

from tests import IS_WHOLE
from tests.support.inside import router_of
from wspool import State, WebsocketConnection, WebsocketConnectionPool
from wspool.testing import Server

MakePool = Callable[..., WebsocketConnectionPool]


LOOP = os.environ.get("WSPOOL_LOOP", "asyncio")
"""What the tests run on: asyncio, uvloop, or eager (asyncio with its eager task factory)."""


if LOOP == "uvloop":

    def pytest_asyncio_loop_factories(
        config: pytest.Config, item: pytest.Item
    ) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
        import uvloop

        return {LOOP: uvloop.new_event_loop}


# Development mode is meant for the tests; the programs that they start are a user's.
os.environ.pop("PYTHONDEVMODE", None)

# A shell ignores Ctrl+C for what it runs in the background, and so would the tests' programs.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# In debug mode asyncio warns of slow callbacks, which are the machine's matter.
logging.getLogger("asyncio").setLevel(logging.ERROR)


def pytest_collection_modifyitems(items: list[pytest.Item], config: pytest.Config) -> None:
    """Leave the long ones to `make test-all`."""
    if not IS_WHOLE:
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in set(long)]


def pytest_collection_finish() -> None:
    """Keep what the imports have made out of the collections after each test: 20 ms apiece."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> None:
    """Hold each test that has an event loop to leaving nothing in it."""
    if inspect.iscoroutinefunction(request.function):
        request.getfixturevalue("nothing_is_left_in_the_loop")


@pytest.fixture
async def nothing_is_left_in_the_loop() -> AsyncIterator[None]:
    """Fail the test on an exception that reached the loop, and on tasks that outlive it."""
    loop = asyncio.get_running_loop()
    if LOOP == "eager":
        loop.set_task_factory(asyncio.eager_task_factory)
    troubles: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: troubles.append(context))
    before = asyncio.all_tasks()
    yield
    gc.collect()
    await until(lambda: not _pool_tasks(before), "the tasks have ended")
    gc.collect()
    assert not troubles, troubles


def _pool_tasks(before: set[asyncio.Task[Any]]) -> list[asyncio.Task[Any]]:
    current = asyncio.current_task()
    return [t for t in asyncio.all_tasks() - before if t is not current and not t.done()]


@pytest.fixture
async def fair_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the event loop's clock stand still while the machine has no time for this process.

    Time limits of a test, and of servers in it, then are of the time that they were given, and are
    as strict as ever: what the process computes, and what it waits for timers, counts.
    """
    loop: Any = asyncio.get_running_loop()
    if not hasattr(loop, "_selector"):
        pytest.skip("uvloop has a clock of its own")
    select = loop._selector.select
    waited = loop.time() - time.process_time()

    def select_and_count(timeout: float | None = None) -> Any:
        nonlocal waited
        began = time.monotonic()
        ready = select(timeout)
        elapsed = time.monotonic() - began
        waited += elapsed if timeout is None else min(elapsed, max(timeout, 0.0))
        return ready

    monkeypatch.setattr(loop._selector, "select", select_and_count)
    # Of the class, where the pool looks: `clock_of`.
    monkeypatch.setattr(type(loop), "time", lambda _: waited + time.process_time())


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with Server() as server:
        yield server


@pytest.fixture
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let dials be tried again at once."""
    monkeypatch.setattr("backoff.full_jitter", lambda longest: 0.0)


@pytest.fixture
def waits() -> Sequence[float] | None:
    """What the gates of the test's pools wait after failures, in seconds; None: what users have."""
    return None


@pytest.fixture
async def make_pool(server: Server, waits: Sequence[float] | None) -> AsyncIterator[MakePool]:
    """Make pools to the test's server that are closed when the test ends."""
    pools: list[WebsocketConnectionPool] = []

    def make(**options: Any) -> WebsocketConnectionPool:
        pool = WebsocketConnectionPool(**{"uri": server.uri, "close_timeout": 1.0} | options)
        if waits is not None:
            router_of(pool).gate.waits = waits
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        if pool.is_started and not pool.is_closed:
            await pool.close_all()


def needs_chromium(missing: str | None = None) -> str:
    """Return the path of Chromium; skip the test where that, or what is named, is missing."""
    chromium = next(filter(None, map(shutil.which, ["chromium", "chromium-browser"])), None)
    if missing is None and chromium is not None:
        return chromium
    skip(missing or "there is no chromium on the PATH")


def skip(missing: str) -> NoReturn:
    """Skip a test for what is missing here; with WSPOOL_REQUIRE_ALL=1 it fails instead."""
    if os.environ.get("WSPOOL_REQUIRE_ALL") == "1":
        pytest.fail(f"{missing}, and WSPOOL_REQUIRE_ALL is 1", pytrace=False)
    pytest.skip(missing)


async def until(condition: Callable[[], object], what: str, within: float = 10.0) -> None:
    """Wait for a condition; the time limit is only a net."""
    try:
        async with asyncio.timeout(within):
            while not condition():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"it never came true that {what}") from None


async def echoes(connection: WebsocketConnection, message: str = "hello") -> bool:
    """Return whether the next message on the connection is the reply to this one."""
    await connection.send(message)
    return await connection.recv() == message


def why_closed(connection: WebsocketConnection) -> str:
    assert connection.state is State.CLOSED
    return connection.history[-1].why
