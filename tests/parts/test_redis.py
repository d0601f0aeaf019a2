"""A quota in Redis: the script on a clock of the test's, then pools, then processes.

All of it against a real Redis server, which is stopped, emptied, restarted and cut off.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot

from tests.conftest import MakePool, echoes, until
from tests.explore.fleet import CountingServer, Worker, hire, leases_since, time_of
from tests.support.redis_quotas import KEYS, LEASE, Clockwork, Quotas, counted
from tests.support.redis_server import RedisServer
from wspool import CloseReason, ConnectionUnavailableError, State, redis
from wspool.redis import AHEAD, LASTS, PATIENCE, RedisQuota

# The script, on a clock of the test's.


async def test_in_any_order_of_steps_there_are_no_more_leases_than_the_limit(
    client: Redis,
) -> None:
    """And what is renewed in time is kept while Redis keeps its data, even if its clock is set."""
    rng = random.Random(0)
    clock = Clockwork(client, limit=5)
    held: dict[str, list[str]] = {worker: [] for worker in "abcd"}
    ends = dict.fromkeys(held, clock.now + LEASE)
    seen: Counter[str] = Counter()
    for number in range(600):
        clock.now += rng.choice((0.0, 0.01, 1.0, 3.0))
        if rng.random() < 0.01:
            await client.delete(*rng.choice([KEYS, *([key] for key in KEYS)]))
            seen["flush"] += 1
            ends = dict.fromkeys(held, float("-inf"))
        if rng.random() < 0.03:
            before, clock.skew = clock.skew, rng.choice((-3600.0, 0.0, 86400.0))
            seen["back" if clock.skew < before else "forward"] += clock.skew != before
            if clock.skew > before:
                ends = {one: min(end, clock.now + LEASE / 3) for one, end in ends.items()}
        worker = rng.choice("abcd")
        mine = held[worker]
        released = rng.sample(mine, rng.randint(0, len(mine))) if rng.random() < 0.5 else []
        kept = [id for id in mine if id not in released]
        wanted = [f"{worker}{number}{place}" for place in range(rng.randint(0, 3))]
        was_late = clock.now >= ends[worker]
        lost, given, _ = await clock.step(worker, wanted, released, kept)
        ends[worker] = clock.now + LEASE
        assert was_late or not lost
        seen.update(lost=len(lost), given=len(given))
        held[worker] = [*(id for id in kept if id not in lost), *given]
    assert all(seen[what] > 2 for what in ("flush", "back", "forward", "lost", "given")), seen


async def test_who_has_died_gives_its_share_back_when_its_leases_end(client: Redis) -> None:
    clock = Clockwork(client, limit=3)
    await clock.step("dead", wanted=["a", "b"])
    await clock.step("alive", wanted=["c"])
    for _ in range(9):
        clock.now += 1.0
        assert (await clock.step("alive", ["d", "e"], renewed=["c"]))[:2] == ([], {})
    clock.now += 1.0
    _, given, pause = await clock.step("alive", wanted=["d", "e"], renewed=["c"])
    assert (given, pause) == ({"d": 0.0, "e": 0.0}, 0.0)


async def test_after_an_outage_nothing_expires_before_all_could_renew(client: Redis) -> None:
    clock = Clockwork(client, limit=2)
    await clock.step("a", wanted=["a1"])
    await clock.step("b", wanted=["b1"])
    clock.now += 10 * LEASE
    for _ in range(3):
        assert (await clock.step("c", wanted=["c1"]))[1] == {}
        clock.now += 1.0
    assert (await clock.step("a", renewed=["a1"]))[0] == []
    clock.now += LEASE / 3
    assert "c1" in (await clock.step("c", wanted=["c1"]))[1], "b did not come back"
    assert (await clock.step("b", renewed=["b1"]))[0] == ["b1"]
    assert (await clock.step("a", renewed=["a1"]))[0] == []


async def test_a_lease_whose_answer_was_lost_is_given_once(client: Redis) -> None:
    clock = Clockwork(client, limit=1)
    for _ in range(3):
        assert (await clock.step("a", wanted=["a1"]))[1] == {"a1": 0.0}
    assert await clock.leases() == 1
    for _ in range(2):
        await clock.step("a", released=["a1"])
    assert await clock.leases() == 0


async def test_each_process_has_one_lease_in_its_turn(client: Redis) -> None:
    """One with many dials does not starve one with few, nor those who ask less often."""
    clock = Clockwork(client, limit=3)
    rng = random.Random(1)
    hungry = {f"w{number}": 40 if number == 0 else 1 for number in range(8)}
    asks_at = {worker: clock.now + rng.random() for worker in hungry}
    ends: list[tuple[float, str, str]] = []
    held: dict[str, list[str]] = {worker: [] for worker in hungry}
    served: Counter[str] = Counter()
    while served.total() < 60:
        worker = min(asks_at, key=lambda worker: asks_at[worker])
        clock.now = asks_at[worker]
        over = [id for at, one, id in ends if one == worker and at <= clock.now]
        ends = [one for one in ends if one[2] not in over]
        wanted = [f"{worker}:{served[worker] + place}" for place in range(hungry[worker])]
        held[worker] = [id for id in held[worker] if id not in over]
        _, given, pause = await clock.step(worker, wanted, over, held[worker])
        served[worker] += len(given)
        held[worker] += given
        ends += [(clock.now + rng.uniform(0.2, 0.8), worker, id) for id in given]
        asks_at[worker] += min(1.0, max(0.05, pause))
    assert min(served[worker] for worker in hungry) >= 0.5 * served.total() / len(hungry), served


async def test_who_waits_and_does_not_ask_loses_its_turn(client: Redis) -> None:
    clock = Clockwork(client, limit=1)
    await clock.step("a", wanted=["a1"])
    await clock.step("gone", wanted=["gone1"])
    await clock.step("b", wanted=["b1"])
    await clock.step("a", released=["a1"])
    assert (await clock.step("b", wanted=["b1"]))[1] == {}, "it is somebody else's turn"
    clock.now += PATIENCE
    assert (await clock.step("b", wanted=["b1"]))[1] == {"b1": 0.0}


async def test_dials_of_all_processes_are_spaced_evenly(client: Redis) -> None:
    """And none is put off because the server's clock goes back."""
    clock = Clockwork(client, limit=1000, interval=0.1)
    began_at = clock.now
    begun: list[float] = []
    while len(begun) < 200:
        if len(begun) > 100:
            clock.skew = -3600.0
        for worker in "abc":
            wanted = [f"{worker}{len(begun)}{place}" for place in range(7)]
            _, given, pause = await clock.step(worker, wanted)
            assert all(delay <= AHEAD for delay in given.values())
            begun += [clock.now + delay for delay in given.values()]
            assert pause > 0
        clock.now += random.Random(len(begun)).uniform(0.05, 1.0)
    begun.sort()
    assert min(b - a for a, b in itertools.pairwise(begun)) >= 0.0999
    assert clock.now - began_at < 2 * 0.1 * len(begun)


@pytest.mark.parametrize("skew", [-3600.0, -1.0, 1.0, 86400.0])
async def test_whatever_becomes_of_the_servers_clock_leases_last_as_long_as_before(
    client: Redis, skew: float
) -> None:
    """Those who are alive keep theirs; those of the dead end in time; turns stay what they were."""
    clock = Clockwork(client, limit=3)
    await clock.step("dead", wanted=["dead1"])
    await clock.step("alive", wanted=["alive1", "alive2"])
    clock.now += LEASE / 2
    assert (await clock.step("alive", renewed=["alive1", "alive2"]))[0] == []
    await clock.step("next", wanted=["next1"])
    clock.skew = skew
    ends_at = clock.now + LEASE / 2
    while not (given := (await clock.step("next", wanted=["next1"]))[1]):
        clock.now += LEASE / 100
        assert clock.now < ends_at + LEASE, "the lease of the dead does not end"
        assert (await clock.step("other", wanted=["other1"]))[1] == {}
        assert (await clock.step("alive", renewed=["alive1", "alive2"]))[0] == []
    assert given == {"next1": 0.0}
    assert (await clock.step("alive", renewed=["alive1", "alive2"]))[0] == []
    assert clock.gone == 0
    earlier = min(max(skew, 0.0), LEASE / 2)  # the clock set forward may end it
    assert ends_at - earlier - 0.11 <= clock.now <= ends_at + 0.11


@pytest.mark.parametrize("parts", [KEYS, *([key] for key in KEYS)], ids="all".split() + KEYS)
async def test_after_a_loss_of_data_those_who_had_leases_come_first(
    client: Redis, parts: list[str]
) -> None:
    """Be it all of the data or one key; it costs the next in line a third of a lease."""
    clock = Clockwork(client, limit=3)
    await clock.step("a", wanted=["a1", "a2"])
    await clock.step("b", wanted=["b1"])
    await clock.step("waits", wanted=["w1"])
    await clock.step("waits too", wanted=["x1"])
    assert await client.delete(*parts) == len(parts)
    clock.skew = -60.0  # as in a failover to a replica on another machine
    assert (await clock.step("waits", wanted=["w1"]))[1] == {}
    assert (await clock.step("waits too", wanted=["x1"]))[1] == {}
    assert (await clock.step("a", renewed=["a1", "a2"]))[0] == []
    assert clock.gone == 2
    clock.now += LEASE / 3 - 0.1
    assert (await clock.step("waits", wanted=["w1"]))[1] == {}, "b may still come"
    clock.now += 0.1
    assert (await clock.step("waits too", wanted=["x1"]))[1] == {}, "it is not its turn"
    assert (await clock.step("waits", wanted=["w1"]))[1] == {"w1": 0.0}
    assert (await clock.step("b", renewed=["b1"]))[0] == ["b1"]
    assert clock.gone == 1
    assert (await clock.step("a", renewed=["a1", "a2"]))[0] == []
    assert clock.gone == 0


async def test_who_comes_back_from_lost_data_again_and_again_does_not_stop_the_others(
    client: Redis,
) -> None:
    """Only the first that knows older data lets the others wait."""
    clock = Clockwork(client, limit=3)
    for worker in "abc":
        await clock.step(worker, wanted=[f"{worker}1"])
    await client.flushall()
    await clock.step("a", renewed=["a1"])
    clock.now += LEASE / 3
    assert (await clock.step("new", wanted=["n1"]))[1] == {"n1": 0.0}
    assert (await clock.step("b", renewed=["b1"]))[0] == []
    assert (await clock.step("c", renewed=["c1"]))[0] == ["c1"]
    await clock.step("b", released=["b1"])
    assert (await clock.step("new too", wanted=["m1"]))[1] == {"m1": 0.0}


async def test_nothing_that_matters_has_a_time_to_live(client: Redis) -> None:
    """A server short of memory evicts what has one. What matters to nobody any more has one."""

    async def ends() -> set[str]:
        return {key for key in await client.keys() if await client.ttl(key) >= 0}

    clock = Clockwork(client, limit=1)
    for _ in range(2):
        await clock.step("a", wanted=["a1"])
        assert await ends() == set()
        await clock.step("b", wanted=["b1"])
        assert await ends() == set()
        await clock.step("a", released=["a1"])
        assert await ends() == set(), "somebody waits"
        await clock.step("b")
        assert await client.keys() == ["{k}:state"]
        assert await ends() == {"{k}:state"}


async def test_whoever_leaves_room_tells_those_whom_it_is_for(client: Redis) -> None:
    """Each of them once, in order of their turns, and nobody else."""
    clock = Clockwork(client, limit=3)
    heard: list[str] = []

    async def said() -> list[str]:
        while message := await pubsub.get_message(ignore_subscribe_messages=True, timeout=0.05):
            heard.append(message["channel"].removeprefix("{k}:queue:"))
        new = heard.copy()
        heard.clear()
        return new

    async with client.pubsub() as pubsub:
        await pubsub.psubscribe("{k}:queue:*")
        await clock.step("a", wanted=["a1", "a2"])
        await clock.step("b", wanted=["b1"])
        for worker in ("first", "second", "third"):
            await clock.step(worker, wanted=[f"{worker}1"])
        assert await said() == []
        await clock.step("a", released=["a1"])
        assert await said() == ["first"]
        await clock.step("b", renewed=["b1"])
        assert await said() == [], "that was said before"
        await clock.step("a", released=["a2"])
        assert await said() == ["second"]
        await clock.step("first")
        assert await said() == ["third"], "whoever goes leaves its place to the next"
        assert (await clock.step("third", wanted=["third1"]))[1] == {"third1": 0.0}
        assert await said() == []


# Pools in this process.


def held(quota: RedisQuota) -> int:
    return len(quota._held)


async def test_borrows_ask_nothing_of_redis(make_pool: MakePool, make_quota: Quotas) -> None:
    """Dials and released leases do, those of one moment together, and renewals, all together."""
    pool = make_pool(quota=make_quota(10, lease=600.0))
    connections = await asyncio.gather(*(pool.acquire() for _ in range(10)))
    for connection in connections:
        await pool.release(connection)
    before = await make_quota.server.calls()
    assert before <= 10
    for _ in range(1000):
        async with pool.get_connection() as connection:
            await connection.send("hello")
            await connection.recv()
    assert await make_quota.server.calls() == before
    await pool.close_all()
    await until(lambda: not make_quota.made[0]._releases, "all leases are back")
    assert before < await make_quota.server.calls() <= before + 10


async def test_leases_are_renewed_together_until_they_are_given_back(make_quota: Quotas) -> None:
    quota, other = make_quota(4, lease=0.6), make_quota(4, lease=0.6)
    leases = [await quota.acquire() for _ in range(4)]
    waiting = asyncio.create_task(other.acquire())
    before = await make_quota.server.calls()
    steps = counted(quota)
    await until(lambda: len(steps) >= 8, "the leases have been renewed, beyond their end")
    assert not waiting.done()
    assert all(set(args[-4:]) == {lease.id for lease in leases} for args in steps)
    assert await make_quota.server.calls() > before
    for lease in leases:
        await quota.release(lease)
    await other.release(await waiting)
    await until(lambda: quota._keeper is None or quota._keeper.done(), "its task ends then")


async def test_a_waiter_that_is_cancelled_leaves_no_lease(make_quota: Quotas) -> None:
    """At whatever moment: before the question, during it, and while its dial is due."""
    quota = make_quota(3, dials_per_second=1000.0)

    async def churn() -> None:
        for _ in range(40):
            try:
                async with asyncio.timeout(random.uniform(0, 0.01)):
                    lease = await quota.acquire()
            except TimeoutError:
                continue
            assert held(quota) <= 3
            quota.release(lease)

    await asyncio.gather(*(churn() for _ in range(6)))
    await until(lambda: quota._keeper is None or quota._keeper.done(), "nothing is left to do")
    async with make_quota.server.client() as client:
        assert await client.zcard("{key}:leases") == 0
    assert await asyncio.gather(*(quota.acquire() for _ in range(3)))


async def test_redis_that_hangs_stops_dials_and_nothing_else(
    make_pool: MakePool, make_quota: Quotas
) -> None:
    """For longer than a lease lasts; afterwards everybody has what he had, and no more."""
    quota, other = make_quota(2, lease=2.4), make_quota(2, lease=2.4)
    pool = make_pool(quota=quota, connection_timeout=1.0)
    connection = await pool.acquire(timeout=10)
    await pool.release(connection)
    theirs = await other.acquire()
    make_quota.server.pause()
    try:
        wanted = asyncio.create_task(other.acquire())
        async with pool.get_connection() as connection:
            assert await echoes(connection)
            with pytest.raises(ConnectionUnavailableError) as caught:
                await pool.acquire(timeout=0.1)
            assert caught.value.kind == "quota"
            assert "RedisQuota 'key'" in str(caught.value)
            await until(lambda: quota._failure and other._failure, "it has been noticed")
            with pytest.raises(ConnectionUnavailableError, match="no answer from Redis: Timeout"):
                await pool.acquire(timeout=0)
            await asyncio.sleep(2.4)
            assert await echoes(connection)
    finally:
        make_quota.server.go_on()
    await until(lambda: not (quota._failure or other._failure), "Redis answers again")
    await asyncio.sleep(1.0)
    assert not wanted.done()
    assert not theirs.is_lost
    assert connection.state is State.IDLE
    await pool.close_all()
    await other.release(await wanted)


async def test_a_restart_that_loses_the_data_costs_nobody_a_connection(
    make_pool: MakePool, make_quota: Quotas
) -> None:
    quota = make_quota(2, lease=1.0)
    pool = make_pool(quota=quota)
    used, idle = await pool.acquire(), await pool.acquire()
    await pool.release(idle)
    await make_quota.server.stop()
    await until(lambda: quota._failure, "the leases could not be renewed")
    assert await echoes(used)
    await make_quota.server.start()
    async with make_quota.server.client() as client:
        await until(lambda: not quota._failure, "Redis answers again")
        async with asyncio.timeout(10):
            while await client.zcard("{key}:leases") != 2:
                await asyncio.sleep(0.01)
    assert [c.state for c in (used, idle)] == [State.BUSY, State.IDLE]
    with pytest.raises(ConnectionUnavailableError):
        await pool.acquire_new(timeout=0.2)


async def test_what_others_have_taken_after_a_flush_is_lost_and_closed_when_idle(
    make_pool: MakePool, make_quota: Quotas, caplog: pytest.LogCaptureFixture
) -> None:
    quota, other = make_quota(2, lease=1.2), make_quota(2, lease=30.0)
    pool = make_pool(quota=quota)
    used, idle = await pool.acquire(), await pool.acquire()
    await pool.release(idle)
    for _ in range(2):  # a step that is under way sets it once more
        quota._renew_at = 1e9  # the others are to be first
        await asyncio.sleep(0.1)
    async with make_quota.server.client() as client:
        await client.flushall()
    async with asyncio.timeout(20.0):
        theirs = [await other.acquire() for _ in range(2)]
    quota._renew_at = 0.0
    quota._wake()
    await until(lambda: idle.state is State.CLOSED, "what is idle is closed")
    assert await echoes(used)
    await pool.release(used)
    await until(lambda: not pool.connections, "what was used is closed when it comes back")
    assert [c.history[-1].why for c in (used, idle)] == [CloseReason.QUOTA] * 2
    assert "did not know 2 leases any more" in caplog.text
    assert "for 2 there was no room" in caplog.text
    for lease in theirs:
        assert not lease.is_lost
        await other.release(lease)
    assert await echoes(await pool.acquire(timeout=10))


async def hand_over(quotas: Sequence[RedisQuota], times: int) -> None:
    """Let each have a lease this many times, while the others want one."""
    async with asyncio.timeout(30):  # only a net

        async def borrow(quota: RedisQuota) -> None:
            for _ in range(times):
                quota.release(await quota.acquire())

        await asyncio.gather(*map(borrow, quotas))


async def test_a_released_lease_goes_to_the_next_in_line_at_once(
    make_quota: Quotas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when that asks again, which is after an hour here."""
    monkeypatch.setattr(redis, "PAUSES", (3600.0, 3600.0))
    monkeypatch.setattr(redis, "PATIENCE", 36000.0)
    await hand_over([make_quota(2, lease=1e6) for _ in range(6)], 10)


async def test_where_nothing_can_be_heard_who_waits_asks(make_quota: Quotas) -> None:
    """Be it that the user has no right to channels, or the client but one connection."""
    async with make_quota.server.client() as client:
        await client.acl_setuser("default", enabled=True, reset_channels=True, reset=False)
        await hand_over([make_quota(1) for _ in range(3)], 3)
        await client.execute_command("ACL", "SETUSER", "default", "allchannels")
    async with (
        Redis.from_url(make_quota.server.url, max_connections=1) as one,
        Redis.from_url(make_quota.server.url, max_connections=1) as another,
        RedisQuota(one, "key", 1) as quota,
        RedisQuota(another, "key", 1) as other,
    ):
        await hand_over([quota, other], 3)
        assert quota._failure is None
        assert other._failure is None


async def test_a_server_that_has_forgotten_the_script_is_told_it_again(make_quota: Quotas) -> None:
    quota = make_quota(1)
    async with make_quota.server.client() as client:
        for _ in range(2):
            await quota.release(await quota.acquire())
            await client.script_flush()
    assert quota._failure is None


@pytest.mark.parametrize("is_empty", [True, False])
async def test_who_waits_while_data_is_lost_does_not_get_what_others_hold(
    make_quota: Quotas, caplog: pytest.LogCaptureFixture, *, is_empty: bool
) -> None:
    """Those who held them are told, in one line for each loss, and keep them."""
    holds, waits = make_quota(2, lease=1.2), make_quota(2, lease=1.2)
    leases = [await holds.acquire() for _ in range(2)]
    waiting = asyncio.create_task(waits.acquire())
    steps = counted(holds)
    async with make_quota.server.client() as client:
        await until(lambda: waits._epoch, "it stands in line")
        if is_empty:
            await client.flushall()
        else:
            await client.delete("{key}:leases")
        seen = len(steps)
        await until(lambda: len(steps) >= seen + 12, "its leases would have ended")
        assert await client.zcard("{key}:leases") == 2
    assert not waiting.done()
    assert not any(lease.is_lost for lease in leases)
    assert caplog.text.count("did not know 2 leases any more") == 1
    assert "2 have been entered again; for 0 there was no room" in caplog.text
    for lease in leases:
        holds.release(lease)
    await waits.release(await waiting)


async def test_whoever_learns_that_data_was_lost_enters_its_leases_at_once(
    make_quota: Quotas,
) -> None:
    """Not when they are due, which is after 10 minutes here."""
    quota = make_quota(3, lease=3600.0)
    leases = [await quota.acquire() for _ in range(2)]
    async with make_quota.server.client() as client:
        await client.flushall()
        waiting = asyncio.create_task(quota.acquire())
        async with asyncio.timeout(10):  # only a net
            while await client.zcard("{key}:leases") < 2:
                await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.wait({waiting})
    assert not any(lease.is_lost for lease in leases)


async def fill(client: Redis, ex: int | None = None) -> None:
    """Let a server evict some hundred keys, among which there are few but those of the quota."""
    await client.config_set("maxmemory", (await client.info("memory"))["used_memory"] + 2**20)
    before = (await client.info("stats"))["evicted_keys"]
    async with asyncio.timeout(30):  # only a net
        while (await client.info("stats"))["evicted_keys"] < before + 500:
            async with client.pipeline(transaction=False) as pipeline:
                for _ in range(20):
                    pipeline.set(f"other:{random.random()}", "x" * 2**14, ex=ex)
                await pipeline.execute()
    await client.config_set("maxmemory", 0)


@pytest.mark.parametrize(
    "policy", ["volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl"]
)
async def test_a_server_short_of_memory_that_evicts_what_can_expire_spares_the_quota(
    make_quota: Quotas, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    quota, other = make_quota(2, lease=3600.0), make_quota(2)
    leases = [await quota.acquire(), await quota.acquire()]
    waiting = asyncio.create_task(other.acquire())
    await until(lambda: other._epoch, "it stands in line")
    async with make_quota.server.client() as client:
        await client.config_set("maxmemory-policy", policy)
        # Others' keys end later than any of the quota's could.
        await fill(client, ex=10**8)
        assert await client.zcard("{key}:leases") == 2
        assert await client.hget("{key}:state", "epoch") == other._epoch.decode()
    assert not waiting.done()
    for lease in leases:
        await quota.release(lease)
    await other.release(await waiting)
    assert "did not know" not in caplog.text


async def test_a_server_that_evicts_any_key_costs_warnings_and_nobody_is_above_the_limit(
    make_quota: Quotas, caplog: pytest.LogCaptureFixture
) -> None:
    quota, other = make_quota(2, lease=1.2), make_quota(2, lease=1.2)
    leases = [await quota.acquire(), await quota.acquire()]
    waiting = asyncio.create_task(other.acquire())
    await until(lambda: other._epoch, "it stands in line")
    async with make_quota.server.client() as client:
        await client.config_set("maxmemory-policy", "allkeys-random")
        async with asyncio.timeout(30):  # only a net
            while "did not know" not in caplog.text:
                await fill(client)
        steps = counted(quota)
        await until(lambda: len(steps) >= 12, "its leases would have ended")
        assert await client.zcard("{key}:leases") == 2
    assert not waiting.done()
    assert not any(lease.is_lost for lease in leases)
    for lease in leases:
        await quota.release(lease)
    await other.release(await waiting)


async def test_closing_does_not_wait_for_redis(make_pool: MakePool, make_quota: Quotas) -> None:
    """Neither a pool nor the quota; the leases end by themselves."""
    quota = make_quota(2, lease=0.9)
    pool = make_pool(quota=quota, close_timeout=0.2)
    await pool.release(await pool.acquire())
    make_quota.server.pause()
    try:
        async with asyncio.timeout(10):  # only a net
            await pool.close_all()
            await quota.close()
    finally:
        make_quota.server.go_on()
    other = make_quota(2, lease=0.9)
    for _ in range(2):
        await other.acquire()


async def test_what_redis_was_not_told_for_a_whole_lease_is_forgotten(
    make_pool: MakePool, make_quota: Quotas
) -> None:
    """It has expired: no task goes on for ever."""
    quota = make_quota(1, lease=0.5)
    lease = await quota.acquire()
    await make_quota.server.stop()
    quota.release(lease)
    await until(lambda: quota._keeper is None or quota._keeper.done(), "its task has given up")


async def test_without_redis_a_dial_fails_and_names_the_quota(
    make_pool: MakePool, make_quota: Quotas, caplog: pytest.LogCaptureFixture
) -> None:
    await make_quota.server.stop()
    quota = make_quota(2)
    tries = counted(quota)
    pool = make_pool(quota=quota)
    with pytest.raises(ConnectionUnavailableError, match="no answer from Redis: Conn") as caught:
        await pool.acquire(timeout=0.3)
    assert caught.value.kind == "quota"
    await until(lambda: len(tries) >= 3, "it has been tried again")
    assert caplog.text.count("no answer from Redis") == 1, "an outage is one warning"
    await pool.close_all()


@pytest.mark.parametrize("is_answered", [True, False])
async def test_closing_gets_over_a_client_that_swallows_the_cancellation(
    make_quota: Quotas, *, is_answered: bool
) -> None:
    """As redis-py does now and then, be it with an answer or with an error of its own."""
    quota = make_quota(1)
    await quota.acquire()
    is_asked = asyncio.Event()

    async def step(*, keys: list[str], args: list[Any]) -> Any:
        is_asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if not is_answered:
                raise ConnectionError("the connection is closed") from None
        return [[], [-1], 1_000_000]

    quota._script = step  # type: ignore[assignment]
    waiter = asyncio.create_task(quota.acquire())
    await is_asked.wait()
    async with asyncio.timeout(5):  # only a net
        await quota.close()
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter


async def test_a_client_of_the_users_is_used_and_not_closed(make_quota: Quotas) -> None:
    for options in ({}, {"decode_responses": True}):
        async with Redis.from_url(make_quota.server.url, **options) as client:
            async with RedisQuota(client, "other key", 1) as quota:
                await quota.release(await quota.acquire())
            assert await client.ping()


@pytest.mark.parametrize(
    "arguments",
    [
        {"limit": 0},
        {"limit": 1, "lease": 0},
        {"limit": 1, "lease": float("inf")},
        {"limit": 1, "dials_per_second": -1},
    ],
)
def test_a_wrong_argument_is_a_value_error_that_names_it(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=list(arguments)[-1]):
        RedisQuota("redis://localhost", "key", **arguments)


@pytest.mark.parametrize("key", ["", "}", "}speech", None, b"speech", "\ud800"])
def test_a_key_that_redis_would_not_keep_in_one_place_is_a_value_error(key: Any) -> None:
    with pytest.raises(ValueError, match=r"key is .*; it must be a string|surrogates not allowed"):
        RedisQuota("redis://localhost", key, 1)


@pytest.mark.parametrize("key", ["speech", "{", "{}", "a{}b", "a{b}c", "{{}}", "ü }", " ", "\0"])
def test_all_parts_of_any_other_key_are_in_one_slot(key: str) -> None:
    quota = RedisQuota("redis://localhost", key, 1)
    assert len({key_slot(part.encode()) for part in quota._keys}) == 1


# Processes.


async def test_processes_keep_one_limit_whatever_becomes_of_some(
    server_of_redis: RedisServer,
) -> None:
    """Some are killed, one is stopped for longer than its leases last; one's clock is wrong.

    The others take what the killed had; sockets are above the limit only because of the one that
    was stopped, and no more when it goes on.
    """
    limit, lease = 8, 2.0
    task = {"limit": limit, "dials_per_second": 40.0, "lease": lease}
    task |= {"borrowers": limit, "hold": 0.05, "dropped": 0.2}

    async with CountingServer() as server:

        async def all_leases_since(moment: float, what: str) -> None:
            async with asyncio.timeout(20):  # only a net
                while await leases_since(server_of_redis, lease * LASTS, moment) < limit:
                    await asyncio.sleep(0.02)

        async def dials_of(worker: Worker) -> None:
            await until(lambda: server.sockets[worker.path] > 0, f"{worker.path} has a socket", 20)

        async with (
            hire(server, server_of_redis, "right", **task) as right,
            hire(server, server_of_redis, "skewed", **task, skew=-86400.0) as skewed,
            hire(server, server_of_redis, "killed", **task) as killed,
            hire(server, server_of_redis, "stopped", **task) as stopped,
        ):
            for worker in (right, skewed, killed, stopped):
                await dials_of(worker)
            assert server.most_sockets <= limit
            # Killed.
            moment = await time_of(server_of_redis)
            killed.process.kill()
            await until(lambda: server.sockets[killed.path] == 0, "its sockets are gone")
            await all_leases_since(moment, "all leases are those of the others")
            assert server.most_sockets <= limit
            # Stopped, until the others have all there is.
            moment = await time_of(server_of_redis)
            stopped.process.send_signal(signal.SIGSTOP)
            await all_leases_since(moment, "all leases are those of the others")
            stopped.process.send_signal(signal.SIGCONT)
            await asyncio.sleep(lease)  # it gives back what it has lost
            server.most_sockets = 0
            for worker in (right, skewed, stopped):
                assert (await worker.report())["errors"] == {}
                await dials_of(worker)
            assert server.most_sockets <= limit
