"""What is written for other pools is an error that says what to write here, and costs nothing."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import sys
from collections.abc import Awaitable, Callable
from typing import Any
from unittest.mock import create_autospec

import pytest

from tests.conftest import MakePool
from wspool import (
    BlockingWebsocketConnection,
    BlockingWebsocketConnectionPool,
    ConnectionBusyError,
    State,
    WebsocketConnection,
    WebsocketConnectionPool,
)
from wspool._connection.idioms import ELSEWHERE
from wspool.testing import Server

# In asyncio. What is wrong is wrong for a type checker too, so that it is `Any` here.

Wrong = Callable[[Any], Awaitable[object]]


async def enter_acquire(pool: Any) -> None:
    async with pool.acquire():
        pytest.fail("nothing was to be lent")


async def enter_acquire_new(pool: Any) -> None:
    async with pool.acquire_new():
        pytest.fail("nothing was to be lent")


async def await_get_connection(pool: Any) -> None:
    await pool.get_connection()


async def await_get_new_connection(pool: Any) -> None:
    await pool.get_new_connection()


async def enter_plainly(pool: Any) -> None:
    with pool.get_connection():
        pytest.fail("nothing was to be lent")


async def enter_acquire_plainly(pool: Any) -> None:
    with pool.acquire():
        pytest.fail("nothing was to be lent")


async def enter_pool_plainly(pool: Any) -> None:
    with pool:
        pytest.fail("it was not to start")


async def iterate_plainly(pool: Any) -> None:
    for _ in pool.get_connection():
        pytest.fail("there was nothing to be read")


async def acquire_5(pool: Any) -> None:
    await pool.acquire(5)


async def acquire_new_5(pool: Any) -> None:
    await pool.acquire_new(5.5)


async def get_connection_5(pool: Any) -> None:
    async with pool.get_connection(5):
        pytest.fail("nothing was to be lent")


async def get_new_connection_something(pool: Any) -> None:
    pool.get_new_connection("hunter2")


WRONG: dict[Wrong, str] = {
    enter_acquire: "`async with pool.get_connection() as connection:`",
    enter_acquire_new: "`async with pool.get_new_connection() as connection:`",
    await_get_connection: "`async with pool.get_connection() as connection:`",
    await_get_new_connection: "`connection = await pool.acquire()`",
    enter_plainly: "`async with pool.get_connection() as connection:`",
    enter_acquire_plainly: "`async with pool.get_connection() as connection:`",
    enter_pool_plainly: "`async with`",
    iterate_plainly: "`async for message in connection:`",
    acquire_5: "write acquire(timeout=5)",
    acquire_new_5: "write acquire_new(timeout=5.5)",
    get_connection_5: "write get_connection(timeout=5)",
    get_new_connection_something: "write get_new_connection(timeout=…)",
}


@pytest.mark.parametrize(
    ("wrong", "advice"), WRONG.items(), ids=lambda it: getattr(it, "__name__", "")
)
async def test_a_wrong_idiom_is_a_type_error_that_says_what_to_write_and_changes_nothing(
    make_pool: MakePool, wrong: Wrong, advice: str
) -> None:
    """Nor is a coroutine left that was never awaited: the suite runs under -W error."""
    pool = make_pool(max_connections=1)
    with pytest.raises(TypeError) as caught:
        await wrong(pool)
    assert advice in str(caught.value)
    assert "hunter2" not in str(caught.value)
    gc.collect()
    assert (pool.is_started, pool.stats.borrows, pool.waiters) == (False, 0, 0)
    async with pool.get_connection():
        pass


async def test_a_loan_that_is_entered_is_told_to_be_had_by_get_connection(
    make_pool: MakePool,
) -> None:
    pool = make_pool()
    connection = await pool.acquire()
    with pytest.raises(ConnectionBusyError, match=r"call get_connection\(\), or"):
        async with connection:
            pytest.fail("it is lent already")
    assert connection.is_busy
    await pool.release(connection)


async def test_a_use_of_get_connection_without_entering_it_is_told_so(make_pool: MakePool) -> None:
    pool = make_pool()
    with pytest.raises(ConnectionBusyError, match="use `async with`"):
        await pool.get_connection().send("hello")


async def test_a_release_without_await_is_noticed(make_pool: MakePool) -> None:
    """By Python itself, which names the method."""
    pool = make_pool()
    connection = await pool.acquire()
    with pytest.warns(RuntimeWarning, match=r"WebsocketConnectionPool\.release' was never awaited"):
        pool.release(connection)  # type: ignore[unused-coroutine]
    assert connection.is_busy
    await pool.release(connection)


async def test_an_acquire_without_await_is_noticed_and_has_lent_nothing(
    make_pool: MakePool,
) -> None:
    pool = make_pool()
    with pytest.warns(RuntimeWarning, match=r"WebsocketConnectionPool\.acquire' was never awaited"):
        pool.acquire()  # type: ignore[unused-coroutine]
    assert not pool.is_started


# What acquire returns is a coroutine for all the world.


@pytest.mark.parametrize("name", ["acquire", "acquire_new"])
async def test_acquire_may_be_awaited_in_each_way(make_pool: MakePool, name: str) -> None:
    pool = make_pool(max_connections=1, acquire_timeout=None)
    acquire: Any = getattr(pool, name)
    acquired = acquire()
    assert asyncio.iscoroutine(acquired)
    await pool.release(await acquired)
    await pool.release(await asyncio.create_task(acquire(), name="one"))
    await pool.release(await asyncio.wait_for(acquire(timeout=60), 60))
    [connection] = await asyncio.gather(acquire())
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(acquire())
        await asyncio.sleep(0)
        assert "acquire" in repr(waiting)
        await pool.release(connection)
    await pool.release(waiting.result())
    cancelled = asyncio.create_task(acquire(timeout=None))
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert pool.busy_connections == 0


async def test_where_a_loan_was_acquired_is_the_callers_line(make_pool: MakePool) -> None:
    pool = make_pool()
    line = inspect.currentframe().f_lineno + 1  # type: ignore[union-attr]
    connection = await pool.acquire()
    assert connection.borrowed_at == f"{__file__}:{line}"
    await pool.release(connection)


@pytest.mark.filterwarnings("ignore:.*iscoroutinefunction.*:DeprecationWarning")
def test_acquire_is_a_coroutine_function_for_mocks_and_frameworks() -> None:
    assert asyncio.iscoroutinefunction(WebsocketConnectionPool.acquire)
    if sys.version_info >= (3, 12):
        assert inspect.iscoroutinefunction(WebsocketConnectionPool.acquire)
    mock = create_autospec(WebsocketConnectionPool, instance=True)
    acquired = mock.acquire()
    assert asyncio.iscoroutine(acquired)
    acquired.close()


# Names.


@pytest.mark.parametrize("kind", [WebsocketConnectionPool, BlockingWebsocketConnectionPool])
def test_a_name_of_another_pools_is_told_what_is_here_for_it(kind: Any) -> None:
    pool = kind("ws://localhost/")
    advised = [name for name in ELSEWHERE if not hasattr(kind, name)]
    assert {*ELSEWHERE} - {*advised} <= {"close"}
    for name in advised:
        with pytest.raises(AttributeError, match=rf"no attribute '{name}': use {ELSEWHERE[name]}$"):
            getattr(pool, name)
        assert hasattr(pool, ELSEWHERE[name])
    assert not {*dir(pool)} & {*advised}
    with pytest.raises(AttributeError, match=r"no attribute 'nothing_like_it'$"):
        _ = pool.nothing_like_it


async def test_a_pool_can_be_closed_as_all_that_has_aclose(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool()
    async with contextlib.aclosing(pool):
        async with pool.get_connection():
            assert len(server.open) == 1
    assert pool.is_closed
    assert not server.open


# For threads.


def blocking_enter_acquire(pool: Any) -> None:
    with pool.acquire():
        pytest.fail("it was not to be entered")


def blocking_await_acquire(pool: Any) -> None:
    async def wrong() -> None:
        connection = pool.acquire()
        try:
            await connection
        finally:
            pool.release(connection)

    asyncio.run(wrong())


def blocking_async_with(pool: Any) -> None:
    async def wrong() -> None:
        async with pool.get_connection():
            pytest.fail("nothing was to be lent")

    asyncio.run(wrong())


def blocking_await_get_connection(pool: Any) -> None:
    async def wrong() -> None:
        await pool.get_connection()

    asyncio.run(wrong())


def blocking_async_with_pool(pool: Any) -> None:
    async def wrong() -> None:
        async with pool:
            pytest.fail("it was not to start")

    asyncio.run(wrong())


def blocking_async_for(pool: Any) -> None:
    async def wrong() -> None:
        with pool.get_connection() as connection:
            async for _ in connection:
                pytest.fail("there was nothing to be read")

    asyncio.run(wrong())


WRONG_IN_THREADS: dict[Callable[[Any], None], str] = {
    blocking_enter_acquire: "`with pool.get_connection() as connection:`",
    blocking_await_acquire: "without async and await",
    blocking_async_with: "without async and await",
    blocking_await_get_connection: "without async and await",
    blocking_async_with_pool: "is entered with `with`",
    blocking_async_for: "`for message in connection:`",
    lambda pool: pool.acquire(5): r"write acquire(timeout=5)",
    lambda pool: pool.acquire_new(5): r"write acquire_new(timeout=5)",
    lambda pool: pool.get_connection(5): r"write get_connection(timeout=5)",
    lambda pool: pool.get_new_connection(5): r"write get_new_connection(timeout=5)",
}


@pytest.mark.parametrize(("wrong", "advice"), WRONG_IN_THREADS.items())
async def test_a_wrong_idiom_for_a_blocking_pool_says_what_to_write_and_keeps_no_connection(
    server: Server, wrong: Callable[[Any], None], advice: str
) -> None:
    def story() -> None:
        with BlockingWebsocketConnectionPool(server.uri, max_connections=1) as pool:
            with pytest.raises(TypeError) as caught:
                wrong(pool)
            assert advice in str(caught.value)
            with pool.get_connection() as connection:
                assert connection.state is State.BUSY

    await asyncio.to_thread(story)


async def test_a_block_is_entered_once_at_a_time_and_keeps_its_connection(server: Server) -> None:
    def enter_twice() -> None:
        with BlockingWebsocketConnectionPool(server.uri) as pool:
            block = pool.get_connection()
            with block:
                with pytest.raises(ConnectionBusyError, match="for each `with`"):
                    block.__enter__()
                assert (pool.busy_connections, pool.waiters) == (1, 0)
            assert (pool.busy_connections, pool.available_connections) == (0, 1)

    await asyncio.to_thread(enter_twice)


async def test_a_blocking_pool_can_be_closed_as_all_that_has_close(server: Server) -> None:
    def story() -> None:
        with contextlib.closing(BlockingWebsocketConnectionPool(server.uri)) as pool:
            with pool.get_connection() as connection:
                assert isinstance(connection, BlockingWebsocketConnection)
        assert pool.is_closed

    await asyncio.to_thread(story)


# Hooks.


async def test_a_lambda_that_is_no_hook_is_named_by_the_first_dial(make_pool: MakePool) -> None:
    no_hook: Any = lambda connection: None  # noqa: E731
    pool = make_pool(on_connect=no_hook, max_retries=1)
    with pytest.raises(Exception, match=r"`on_connect` raised TypeError: .* `async def`"):
        await pool.acquire()


async def test_a_lambda_that_returns_a_coroutine_is_a_hook(
    server: Server, make_pool: MakePool
) -> None:
    pool = make_pool(on_connect=lambda connection: connection.send("hello"))
    connection: WebsocketConnection = await pool.acquire()
    assert await connection.recv() == "hello"
    await pool.release(connection)
