"""A quota limits several pools, and whatever becomes of it costs no more than dials."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
from collections.abc import Awaitable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.conftest import MakePool, echoes, until
from tests.explore.schedules import Loop
from tests.support.inside import ids_of, queues_of, router_of
from wspool import (
    CloseReason,
    ConnectionPoolUnavailableError,
    ConnectionUnavailableError,
    LocalQuota,
    State,
    WebsocketConnectionPool,
)
from wspool.testing import Server


class Lease:
    is_lost = False


class Recorder:
    """A quota without a limit that writes down what it is asked and told."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.leases: list[Lease] = []

    async def acquire(self) -> Lease:
        self.calls.append("acquire")
        self.leases.append(Lease())
        return self.leases[-1]

    def release(self, lease: Lease) -> Awaitable[object] | None:
        assert lease in self.leases
        self.calls.append("release")
        return None


def held(quota: LocalQuota) -> int:
    return len(quota._held)


# LocalQuota by itself.


async def test_no_more_leases_than_the_limit_in_order_of_arrival() -> None:
    quota = LocalQuota(2)
    served: list[int] = []

    async def take(number: int) -> None:
        lease = await quota.acquire()
        served.append(number)
        assert held(quota) <= 2
        await asyncio.sleep(0)
        await quota.release(lease)

    await asyncio.gather(*(take(number) for number in range(10)))
    assert served == list(range(10))
    assert held(quota) == 0


@pytest.mark.parametrize("is_cancelled_first", [True, False])
async def test_a_lease_given_to_who_is_cancelled_in_that_tick_goes_to_the_next(
    is_cancelled_first: bool,
) -> None:
    quota = LocalQuota(1)
    lease = await quota.acquire()
    first, second = (asyncio.create_task(quota.acquire()) for _ in range(2))
    await asyncio.sleep(0)
    if is_cancelled_first:
        first.cancel()
    quota.release(lease)
    first.cancel()
    await asyncio.wait([first])
    assert first.cancelled()
    lease = await second
    assert held(quota) == 1
    quota.release(lease)
    assert held(quota) == 0


async def test_a_lease_that_is_given_back_twice_is_one_lease() -> None:
    quota = LocalQuota(1)
    lease = await quota.acquire()
    for _ in range(2):
        await quota.release(lease)
    others = [asyncio.create_task(quota.acquire()) for _ in range(2)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [other.done() for other in others] == [True, False]
    others[1].cancel()


def test_dials_are_spaced_evenly_whatever_is_cancelled() -> None:
    """In no second are there more than allowed, and who gave up has used none of them."""
    loop = Loop(0, is_shuffling=False)
    begun: list[float] = []

    async def take(quota: LocalQuota) -> None:
        lease = await quota.acquire()
        begun.append(loop.time())
        await quota.release(lease)

    async def main() -> None:
        quota = LocalQuota(50, dials_per_second=5)
        tasks = [loop.create_task(take(quota)) for _ in range(40)]
        await asyncio.sleep(2.0)
        for task in tasks[20:30]:
            task.cancel()
        await asyncio.wait(tasks)

    loop.run_until_complete(main())
    loop.close()
    assert len(begun) == 30
    for time in begun:
        assert sum(time <= other < time + 1.0 for other in begun) <= 5
    assert begun[-1] < 30 / 5 * 1.2  # seconds of the loop's own clock


@pytest.mark.parametrize("arguments", [{"limit": 0}, {"limit": 1, "dials_per_second": 0}])
def test_a_limit_that_lets_nobody_pass_is_a_value_error(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=list(arguments)[-1]):
        LocalQuota(**arguments)


def test_a_quota_goes_from_a_loop_that_has_ended_to_the_next_and_not_to_two_at_once() -> None:
    quota = LocalQuota(1)

    async def take() -> None:
        async with asyncio.timeout(1):
            leases.append(await quota.acquire())

    leases: list[Any] = []
    asyncio.run(take())
    asyncio.run(take())  # the lease has ended with its loop

    async def take_in_a_thread() -> None:
        await take()
        await asyncio.to_thread(asyncio.run, quota.acquire())

    with pytest.raises(RuntimeError, match="LocalQuota is for the pools of one loop"):
        asyncio.run(take_in_a_thread())


# Asked before each attempt, told when its socket is gone.


async def test_each_attempt_asks_and_each_end_tells(make_pool: MakePool, server: Server) -> None:
    server.refusals = [web.Response(status=503) for _ in range(2)]
    quota = Recorder()
    pool = make_pool(quota=quota)
    connection = await pool.acquire()
    assert quota.calls == ["acquire", "release", "acquire", "release", "acquire"]
    assert len(server.requests) == 3
    await pool.release(connection)
    for _ in range(100):
        async with pool.get_connection():
            pass
    assert quota.calls.count("acquire") == 3, "a borrow of an idle connection asks nothing"
    await pool.close_all()
    assert quota.calls[-1] == "release"
    assert quota.calls.count("release") == 3


async def test_several_pools_keep_one_limit(make_pool: MakePool, server: Server) -> None:
    """The server never sees more sockets than that, while borrowers drop what they have used."""
    quota = LocalQuota(4)
    pools = [make_pool(quota=quota, acquire_timeout=None, close_timeout=0.2) for _ in range(3)]

    async def borrow(pool: WebsocketConnectionPool) -> None:
        for _ in range(5):
            connection = await pool.acquire()
            assert await echoes(connection)
            await pool.release(connection, force_remove=random.random() < 0.5)

    async def retire(pool: WebsocketConnectionPool) -> None:
        for link in list(queues_of(pool).idle):
            link.close(CloseReason.IDLE)

    borrowers = [asyncio.create_task(borrow(pool)) for pool in pools for _ in range(4)]
    while not all(task.done() for task in borrowers):
        for pool in pools:  # what idle_timeout does, sooner
            await retire(pool)
        await asyncio.sleep(0.005)
    await asyncio.gather(*borrowers)
    assert server.most_open <= 4
    for pool in pools:
        await pool.close_all()
    assert held(quota) == 0


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # these are in test_pathologies.py
async def test_the_leases_of_a_pool_that_was_dropped_go_with_it(server: Server) -> None:
    quota = LocalQuota(2)

    async def borrow_and_drop(session: aiohttp.ClientSession) -> None:
        pool = WebsocketConnectionPool(uri=server.uri, quota=quota, session=session)
        for connection in [await pool.acquire(), await pool.acquire()]:
            await pool.release(connection)
        assert held(quota) == 2

    def is_free() -> bool:
        gc.collect()
        return not held(quota)

    async def main() -> None:
        async with aiohttp.ClientSession() as session:
            await borrow_and_drop(session)
            await until(is_free, "the leases are back")

    await asyncio.to_thread(asyncio.run, main())  # aiohttp complains to the loop


# A quota that is full.


async def fill(quota: LocalQuota) -> list[Any]:
    return [await quota.acquire() for _ in range(quota.limit)]


@pytest.mark.parametrize("timeout", [0, 0.05])
async def test_a_full_quota_ends_the_wait_with_an_error_that_names_it(
    make_pool: MakePool, server: Server, timeout: float
) -> None:
    """With a timeout, in its time; without, in that of an attempt."""
    quota = LocalQuota(3)
    others = await fill(quota)
    pool = make_pool(quota=quota, connection_timeout=0.2, max_retries=5)
    with pytest.raises(ConnectionUnavailableError) as caught:
        await pool.acquire(timeout=timeout)
    assert caught.value.kind == "quota"
    assert caught.value.attempts == 0
    assert "LocalQuota limit=3 leases=3" in str(caught.value)
    await until(lambda: not pool.connections, "the dial does not stay for ever")
    assert pool.stats.failures == {"quota": 1}
    assert pool._router.gate.streak == 0, "the server is not to blame"
    assert not server.requests
    assert (len(others), len(quota._waiting)) == (3, 0)


async def test_who_has_the_time_waits_longer_than_an_attempt_takes(make_pool: MakePool) -> None:
    quota = LocalQuota(1)
    [lease] = await fill(quota)
    pool = make_pool(quota=quota, connection_timeout=0.5)
    patient = asyncio.create_task(pool.acquire(timeout=60))
    await until(lambda: pool.stats.failures["quota"] >= 2, "dials have given up")
    assert not patient.done()
    await quota.release(lease)
    assert await echoes(await patient)


async def test_who_waits_beside_borrowers_gets_what_they_give_back(make_pool: MakePool) -> None:
    quota = LocalQuota(1)
    pool = make_pool(quota=quota, connection_timeout=0.5)
    connection = await pool.acquire()
    other = asyncio.create_task(pool.acquire(timeout=60))
    await until(lambda: pool.stats.failures["quota"] >= 1, "a dial has given up")
    await pool.release(connection)
    assert (await other).id == connection.id


async def test_closing_ends_a_dial_that_waits_for_a_lease(make_pool: MakePool) -> None:
    quota = LocalQuota(1)
    [lease] = await fill(quota)
    pool = make_pool(quota=quota)
    waiting = asyncio.create_task(pool.acquire(timeout=None))
    await until(lambda: quota._waiting, "the dial waits")
    await pool.close_all()
    with pytest.raises(ConnectionPoolUnavailableError):
        await waiting
    assert not quota._waiting
    assert held(quota) == 1
    await quota.release(lease)


async def test_the_start_of_a_pool_waits_no_longer_than_an_attempt_takes(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    quota = LocalQuota(2)
    pool = make_pool(quota=quota, connection_timeout=0.5, warmup_connections=3)
    await pool.start()
    assert (pool.available_connections, held(quota)) == (2, 2)
    assert "LocalQuota" in caplog.text


# A lease that is lost.


async def test_what_has_lost_its_lease_is_closed_when_nobody_uses_it(make_pool: MakePool) -> None:
    quota = Recorder()
    pool = make_pool(quota=quota, max_lifetime=3600, check_server_data_on_release=True)
    pool._router.options.drain_quiet_period = 0.01
    used, idle, kept = [await pool.acquire() for _ in range(3)]
    for connection in (idle, kept):
        await pool.release(connection)
    await until(lambda: pool.available_connections == 2, "they are drained")
    for lost in (0, 1):
        quota.leases[lost].is_lost = True
    await until(lambda: idle.state is State.CLOSED, "the idle one is closed")
    assert await echoes(used), "who has one keeps it"
    await pool.release(used)
    await until(lambda: used.state is State.CLOSED, "it is closed when it is given back")
    assert [c.history[-1].why for c in (idle, used)] == [CloseReason.QUOTA] * 2
    assert pool.stats.closes == {"quota": 2}
    await until(lambda: quota.calls.count("release") == 2, "the quota is told all the same")
    assert ids_of(pool.connections) == {kept.id}


async def test_a_lease_needs_no_attributes(make_pool: MakePool) -> None:
    class Nothing(Recorder):
        async def acquire(self) -> Any:
            return None

        def release(self, lease: object) -> None:
            assert lease is None
            self.calls.append("release")

    quota = Nothing()
    pool = make_pool(quota=quota)
    async with pool.get_connection() as connection:
        assert await echoes(connection)
    router_of(pool).closing.retire_unpermitted()
    assert pool.available_connections == 1
    await pool.close_all()
    assert quota.calls == ["release"]


# A quota that is broken.


class Broken(Recorder):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def __repr__(self) -> str:
        return "<the broken quota>"

    async def acquire(self) -> Lease:
        self.calls.append("acquire")
        raise self.error


@pytest.mark.parametrize(
    "error",
    [KeyError("what"), ConnectionResetError("what"), TimeoutError("what"),
     asyncio.CancelledError("what")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
@pytest.mark.parametrize("timeout", [0, None])
async def test_a_quota_that_raises_is_a_failed_dial_that_names_it(
    make_pool: MakePool, server: Server, error: BaseException, timeout: float | None
) -> None:
    quota = Broken(error)
    pool = make_pool(quota=quota)
    with pytest.raises(ConnectionUnavailableError) as caught:
        await pool.acquire(timeout=timeout)
    assert "<the broken quota> raised" in str(caught.value)
    assert "what" in str(caught.value)
    assert type(error).__name__ in str(caught.value)
    assert caught.value.kind == "error"
    assert quota.calls == ["acquire"]
    assert not server.requests
    assert pool._router.gate.streak == 1, "it is not asked again and again"


async def raise_later() -> None:
    await asyncio.sleep(0)
    raise KeyError("on purpose")


class Careless(Recorder):
    """Raises in release: at once, or when it is awaited."""

    def __init__(self, *, is_async: bool) -> None:
        super().__init__()
        self.is_async = is_async

    def release(self, lease: Lease) -> Awaitable[object] | None:
        super().release(lease)
        if self.is_async:
            return raise_later()
        raise KeyError("on purpose")


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_quota_that_raises_in_release_is_in_the_log_and_harms_nothing(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture, is_async: bool
) -> None:
    quota = Careless(is_async=is_async)
    pool = make_pool(quota=quota, max_connections=1)
    for _ in range(3):
        connection = await pool.acquire(timeout=5)
        await pool.release(connection, force_remove=True)
    await pool.close_all()
    assert quota.calls == ["acquire", "release"] * 3
    assert caplog.text.count("raised in release") == 3
    assert caplog.text.count("KeyError: 'on purpose'") == 3


class Slow(Recorder):
    """Takes leases back when it is let, or never."""

    def __init__(self) -> None:
        super().__init__()
        self.is_let = asyncio.Event()

    async def release(self, lease: Lease) -> None:  # type: ignore[override]
        await self.is_let.wait()
        super().release(lease)


async def test_closing_waits_for_an_async_release_and_a_place_does_not(
    make_pool: MakePool,
) -> None:
    quota = Slow()
    pool = make_pool(quota=quota, max_connections=1, close_timeout=60)
    for _ in range(3):
        await pool.release(await pool.acquire(timeout=5), force_remove=True)
    closing = asyncio.create_task(pool.close_all())
    await until(lambda: not pool.connections, "all sockets are gone")
    assert not closing.done()
    quota.is_let.set()
    await closing
    assert quota.calls.count("release") == 3


async def test_a_release_that_hangs_does_not_hang_the_closing(make_pool: MakePool) -> None:
    pool = make_pool(quota=Slow(), close_timeout=0.1)
    await pool.release(await pool.acquire())
    async with asyncio.timeout(10):  # only a net
        await pool.close_all()


async def test_nothing_of_a_quota_is_logged_in_normal_life(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(quota=LocalQuota(1, dials_per_second=100))
    async with pool.get_connection() as connection:
        assert await echoes(connection)
    await pool.close_all()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
