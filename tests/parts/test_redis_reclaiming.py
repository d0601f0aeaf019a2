"""Whoever waits for a lease in one process has what is idle in another: by a signal, once each.

The script on a clock of the test's, then pools under quotas of their own, then processes.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis

from tests import ROOT
from tests.conftest import MakePool, echoes, until, why_closed
from tests.explore.fleet import CountingServer
from tests.support.inside import link_of
from tests.support.members import join
from tests.support.redis_quotas import Clockwork, Quotas, counted
from tests.support.redis_server import RedisServer
from wspool import (
    CloseReason,
    ConnectionUnavailableError,
    State,
    WebsocketConnection,
    WebsocketConnectionPool,
    redis,
)
from wspool._redis.offers import HOLD_SECONDS, SOONER_SECONDS, UNIT_SECONDS, due_at
from wspool.redis import PATIENCE, RedisQuota

FOREVER = 1e6
"""A lease, in seconds, after whose renewal nobody can wait: what happens is due to a signal."""


# The script, on a clock of the test's.


async def test_no_more_is_taken_than_is_missing(client: Redis) -> None:
    """Of several that offer, those who are first have theirs taken."""
    clock = Clockwork(client, limit=6)
    await clock.step("a", ["a1", "a2", "a3"])
    await clock.step("b", ["b1", "b2"])
    await clock.step("c", ["c1", "c2", "c3"], needed=3)
    assert clock.is_missing == 1
    await clock.step("a", offered=["x1"])
    assert (clock.taken, clock.is_missing) == (1, 1)
    await clock.step("b", offered=["y1", "y2"])
    assert (clock.taken, clock.is_missing) == (1, 0)
    await clock.step("a", offered=["x2", "x3"])
    assert (clock.taken, clock.is_missing) == (0, 0)


async def test_a_dial_that_nobody_waits_for_misses_nothing(client: Redis) -> None:
    clock = Clockwork(client, limit=2)
    await clock.step("a", ["a1", "a2"])
    await clock.step("b", ["b1", "b2"], needed=0)
    assert clock.is_missing == 0
    await clock.step("b", ["b1", "b2"], needed=1)
    await clock.step("a", offered=["x1", "x2"])
    assert clock.taken == 1


async def test_a_free_lease_is_not_missing(client: Redis) -> None:
    """Not even while the next dial is not due, or it is another's turn."""
    clock = Clockwork(client, limit=4, interval=10.0)
    await clock.step("a", ["a1"])
    await clock.step("b", ["b1", "b2"], needed=2)
    assert clock.is_missing == 0


async def test_a_promise_that_was_kept_is_followed_by_the_lease(client: Redis) -> None:
    clock = Clockwork(client, limit=1)
    await clock.step("a", ["a1"])
    await clock.step("b", ["b1"], needed=1)
    await clock.step("a", offered=["x1"])
    await clock.step("a", released=["a1"], withdrawn=["x1"])
    assert clock.is_missing == 0
    assert (await clock.step("b", ["b1"], needed=1))[1] == {"b1": 0.0}
    await clock.step("c", ["c1"], needed=1)
    assert clock.is_missing == 1, "no promise is left over"


async def test_a_promise_that_was_withdrawn_or_not_kept_in_time_is_none(client: Redis) -> None:
    clock = Clockwork(client, limit=1)
    await clock.step("a", ["a1"])
    await clock.step("b", ["b1"], needed=1)
    await clock.step("a", offered=["x1"])
    assert clock.is_missing == 0
    await clock.step("a", withdrawn=["x1"])
    assert clock.is_missing == 1
    await clock.step("a", offered=["x2"])
    clock.now += PATIENCE / 2
    await clock.step("b", ["b1"], needed=1)
    assert clock.is_missing == 0
    clock.now += PATIENCE / 2
    await clock.step("b", ["b1"], needed=1)
    assert clock.is_missing == 1


async def test_nothing_is_missing_for_those_who_have_died_or_wait_no_more(client: Redis) -> None:
    clock = Clockwork(client, limit=1)
    await clock.step("a", ["a1"])
    for worker in ("dead", "tired"):
        await clock.step(worker, ["w1", "w2"], needed=2)
    await clock.step("tired")
    assert clock.is_missing == 1, "the others' are"
    clock.now += PATIENCE
    await clock.step("a", offered=["x1"])
    assert (clock.taken, clock.is_missing) == (0, 0)
    assert await client.hget("{k}:state", "needed") == "0"


async def test_nothing_is_missing_while_those_who_hold_leases_enter_them_again(
    client: Redis,
) -> None:
    clock = Clockwork(client, limit=1)
    await clock.step("a", ["a1"])
    await clock.step("b", ["b1"], needed=1)
    await client.flushall()
    await clock.step("b", ["b1"], needed=1)
    assert clock.is_missing == 0
    await clock.step("a", renewed=["a1"])
    clock.now += 10.0
    await clock.step("a", renewed=["a1"])
    await clock.step("b", ["b1"], needed=1)
    assert clock.is_missing == 1


async def test_all_are_told_once_when_leases_are_missing_and_when_none_is(client: Redis) -> None:
    clock = Clockwork(client, limit=1)

    async def said() -> list[str]:
        heard = []
        while message := await pubsub.get_message(ignore_subscribe_messages=True, timeout=0.05):
            heard.append(message["data"])
        return heard

    async with client.pubsub() as pubsub:
        await pubsub.subscribe("{k}:queue:needed")
        await clock.step("a", ["a1"])
        assert await said() == []
        for needed in (0, 1, 1, 2):
            await clock.step("b", ["b1", "b2"], needed=needed)
        await clock.step("c", ["c1"], needed=1)
        assert await said() == ["1"]
        await clock.step("a", offered=["x1"])
        assert await said() == []
        await clock.step("b")
        assert await said() == ["0"]


# When what is idle is offered.


def test_the_longer_one_is_idle_the_sooner_it_is_offered() -> None:
    """By a little for each time that it is idle for twice as long; all of them soon."""
    called_at = 1e6
    idle_for = [0.0, *(UNIT_SECONDS * 2.0**times for times in range(30))]
    due = [due_at(called_at - seconds, called_at) for seconds in idle_for]
    assert due == sorted(due, reverse=True)
    assert due[0] == called_at + HOLD_SECONDS
    assert due[-1] == called_at
    steps = [sooner - later for later, sooner in itertools.pairwise(due[8:16])]
    assert steps == pytest.approx([-SOONER_SECONDS] * 7, rel=0.01)


def test_what_becomes_idle_after_a_call_is_offered_once_it_has_been_for_a_while() -> None:
    assert due_at(idle_since=20.0, called_at=10.0) == 20.0 + HOLD_SECONDS


# Pools under quotas of their own, as processes have them.


@pytest.fixture
def make_pool(make_pool: MakePool) -> MakePool:
    """Make pools that close no connection of their own accord."""
    return lambda **options: make_pool(idle_timeout=1e6, **options)


async def made_idle(
    pool: WebsocketConnectionPool, count: int = 1, seconds: float = 0.0
) -> list[WebsocketConnection]:
    """Let so many be idle, as if they had been for so long."""
    lent = [await pool.acquire_new() for _ in range(count)]
    for connection in lent:
        await pool.release(connection)
        link_of(connection).idle_since -= seconds
    return lent


async def is_heard(quota: RedisQuota) -> None:
    """Wait until a quota hears what others say, and has asked what they said before."""
    await until(lambda: quota._renew_at > 0 and quota._listener.task is not None, "it listens")
    async with asyncio.timeout(10):
        while len(await quota._client.pubsub_channels(f"*{quota._worker}")) == 0:
            await asyncio.sleep(0.005)


def closes(*pools: WebsocketConnectionPool) -> Counter[str]:
    return sum((Counter(pool.stats.closes) for pool in pools), Counter[str]())


async def test_who_waits_has_what_is_idle_in_another_process(
    make_pool: MakePool, make_quota: Quotas
) -> None:
    quota, other = make_quota(3, FOREVER), make_quota(3, FOREVER)
    rich, poor = make_pool(quota=quota), make_pool(quota=other)
    used = await rich.acquire_new()
    first, second = await made_idle(rich, 2)
    link_of(first).idle_since -= 60.0
    await is_heard(quota)
    async with asyncio.timeout(10), poor.get_connection() as connection:  # only a net
        assert await echoes(connection)
    assert why_closed(first) == CloseReason.ROOM
    assert second.is_connected
    assert await echoes(used)


@pytest.mark.parametrize("waiting", [1, 4])
async def test_of_many_processes_no_more_give_theirs_than_there_are_waiters(
    make_pool: MakePool, make_quota: Quotas, waiting: int
) -> None:
    """Be they all idle for as long: one that answers first leaves the others theirs."""
    quotas = [make_quota(10, FOREVER) for _ in range(10)]
    pools = [make_pool(quota=quota) for quota in quotas]
    for pool, quota in zip(pools, quotas, strict=True):
        await made_idle(pool, seconds=60.0)
        await is_heard(quota)
    poor = make_pool(quota=make_quota(10, FOREVER))
    async with asyncio.timeout(10):  # only a net
        lent = await asyncio.gather(*(poor.acquire() for _ in range(waiting)))
    await asyncio.sleep(0.3)  # whoever has not heard that none is missing any more gives theirs
    assert closes(*pools) == {CloseReason.ROOM: waiting}
    for connection in lent:
        await poor.release(connection)


async def test_one_process_gives_as_many_as_are_missing_at_once(
    make_pool: MakePool, make_quota: Quotas
) -> None:
    quota = make_quota(20, FOREVER)
    rich, poor = make_pool(quota=quota), make_pool(quota=make_quota(20, FOREVER))
    await made_idle(rich, 20, seconds=60.0)
    await is_heard(quota)
    steps = counted(quota)
    async with asyncio.timeout(10):  # only a net
        await asyncio.gather(*(poor.acquire() for _ in range(12)))
    await asyncio.sleep(0.3)
    assert closes(rich) == {CloseReason.ROOM: 12}
    assert len(steps) <= 2 * 12, "a question for each lease that comes back, and a few"


async def test_the_one_that_is_idle_for_longer_goes_first(
    make_pool: MakePool, make_quota: Quotas
) -> None:
    """Whichever process has it, and whichever was there first."""
    quotas = [make_quota(3, FOREVER) for _ in range(3)]
    pools = [make_pool(quota=quota) for quota in quotas]
    idle = []
    for pool, quota, seconds in zip(pools, quotas, (1.0, 3600.0, 30.0), strict=True):
        idle += await made_idle(pool, seconds=seconds)
        await is_heard(quota)
    poor = make_pool(quota=make_quota(3, FOREVER))
    for oldest in (idle[1], idle[2]):
        async with asyncio.timeout(10):  # only a net
            await poor.acquire()
        await until(lambda oldest=oldest: oldest.state is State.CLOSED, "it goes")
    assert idle[0].is_connected


async def test_what_is_busy_is_given_once_it_is_idle(
    make_pool: MakePool, make_quota: Quotas
) -> None:
    """Though the call came before."""
    quota, other = make_quota(1, FOREVER), make_quota(1, FOREVER)
    rich, poor = make_pool(quota=quota), make_pool(quota=other)
    lent = await rich.acquire()
    await is_heard(quota)
    waiting = asyncio.create_task(poor.acquire(timeout=30))
    await until(lambda: quota._offers._called_at is not None, "it has been called")
    steps = counted(quota)
    await asyncio.sleep(0.5)
    assert await echoes(lent)
    assert steps == [], "there is nothing to offer"
    await rich.release(lent)
    await poor.release(await waiting)
    assert closes(rich) == {CloseReason.ROOM: 1}


async def test_nobody_is_closed_for_a_dial_that_nobody_waits_for(
    make_pool: MakePool, make_quota: Quotas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once somebody does, that is said at once, not when the dial's lease is asked for again."""
    monkeypatch.setattr(redis, "PAUSES", (3600.0, 3600.0))
    monkeypatch.setattr(redis, "PATIENCE", 36000.0)
    quota, other = make_quota(2, FOREVER), make_quota(2, FOREVER)
    first = make_pool(quota=quota, min_idle=2)
    await first.start()
    await until(lambda: first.available_connections == 2, "they are ready")
    await is_heard(quota)
    second = make_pool(quota=other, min_idle=2)
    starting = asyncio.create_task(second.start())
    await until(lambda: other._epoch, "it stands in line")
    await asyncio.sleep(0.5)
    assert first.stats.closes == {}
    async with asyncio.timeout(10), second.get_connection():  # only a net
        assert first.stats.closes == {CloseReason.ROOM: 1}
    await first.close_all()
    await starting


async def test_while_nobody_waits_nobody_asks(make_pool: MakePool, make_quota: Quotas) -> None:
    """Neither while many are idle, nor afterwards."""
    quota, other = make_quota(4, FOREVER), make_quota(4, FOREVER)
    rich, poor = make_pool(quota=quota), make_pool(quota=other)
    await made_idle(rich, 4)
    await is_heard(quota)
    async with asyncio.timeout(10):  # only a net
        lent = await poor.acquire()
    await is_heard(other)
    await until(lambda: quota._offers._called_at is None, "it knows that nobody waits")
    await asyncio.sleep(0.2)
    before = await make_quota.server.calls()
    await asyncio.sleep(1.0)
    assert await make_quota.server.calls() == before
    assert await echoes(lent)


async def test_pools_of_one_process_take_turns_as_well(
    make_pool: MakePool, make_quota: Quotas
) -> None:
    quota = make_quota(2, FOREVER)
    rich, poor = make_pool(quota=quota), make_pool(quota=quota)
    await made_idle(rich, 2)
    async with asyncio.timeout(10), poor.get_connection() as connection:  # only a net
        assert await echoes(connection)
    assert closes(rich) == {CloseReason.ROOM: 1}


async def test_what_was_lent_in_the_meantime_is_not_closed_and_another_gives_its_own(
    make_pool: MakePool, make_quota: Quotas
) -> None:
    """Redis has taken what was offered, but that is in use when its answer comes."""
    quota, second, other = (make_quota(2, FOREVER) for _ in range(3))
    rich, late, poor = (make_pool(quota=one) for one in (quota, second, other))
    await made_idle(rich, seconds=3600.0)
    await is_heard(quota)
    await made_idle(late)
    await is_heard(second)
    script, lent = quota._script, list[WebsocketConnection]()

    async def step(*, keys: list[str], args: list[Any]) -> Any:
        answer = await script(keys=keys, args=args)
        if answer[5]:
            lent.append(await rich.acquire())
        return answer

    quota._script = step  # type: ignore[assignment]
    async with asyncio.timeout(10), poor.get_connection():  # only a net
        assert len(lent) == 1
        assert await echoes(lent[0])
    assert closes(rich, late) == {CloseReason.ROOM: 1}
    assert quota._promises == []


@pytest.mark.parametrize("options", [{"protocol": 3}, {"decode_responses": True}])
async def test_any_client_hears(
    make_pool: MakePool, make_quota: Quotas, options: dict[str, Any]
) -> None:
    async with (
        Redis.from_url(make_quota.server.url, **options) as client,
        RedisQuota(client, "key", 1, lease=FOREVER) as quota,
    ):
        rich, poor = make_pool(quota=quota), make_pool(quota=make_quota(1, FOREVER))
        await made_idle(rich)
        await is_heard(quota)
        async with asyncio.timeout(10):  # only a net
            assert await echoes(await poor.acquire())
        await rich.close_all()


@asynccontextmanager
async def without(server: RedisServer, *rules: str) -> AsyncIterator[None]:
    """Let nobody have some rights, until the end of the block."""
    async with server.client() as client:
        await client.execute_command("ACL", "SETUSER", "default", *rules)
        yield
        await client.execute_command("ACL", "SETUSER", "default", "allchannels", "+@all")


@pytest.mark.parametrize("rules", [["resetchannels"], ["-@pubsub"]])
async def test_where_nothing_may_be_heard_it_is_said_once_and_noticed_at_the_renewal(
    make_pool: MakePool,
    make_quota: Quotas,
    caplog: pytest.LogCaptureFixture,
    rules: Sequence[str],
) -> None:
    quota = make_quota(2, lease=3.0)
    async with without(make_quota.server, *rules):
        rich, poor = make_pool(quota=quota), make_pool(quota=make_quota(2, lease=3.0))
        await made_idle(rich, 2)
        async with asyncio.timeout(10):  # only a net
            lent = await poor.acquire(timeout=10)
        await poor.release(lent)
        said = "does not let this user listen"
        await until(lambda: caplog.text.count(said) >= 2, "each of the two has tried to")
        steps = counted(quota)
        await until(lambda: len(steps) > 2, "leases have been renewed")
    assert closes(rich) == {CloseReason.ROOM: 1}
    assert caplog.text.count(said) == 2, "each of the two, once"
    assert quota._failure is None


RIGHTS = """
    ~{key}:* &{key}:queue:* +@scripting +@sortedset +@hash +@pubsub +time +del +expire +persist
""".split()


async def test_the_rights_that_the_guide_names_are_enough_and_no_password_is_logged(
    make_pool: MakePool, server_of_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    guide = (ROOT / "docs/howto/fleet.md").read_text()
    assert " ".join(RIGHTS).replace("key", "speech") in guide
    async with server_of_redis.client() as client:
        await client.execute_command("ACL", "SETUSER", "fleet", "on", ">open-sesame", *RIGHTS)
    url = server_of_redis.url.replace("://", "://fleet:open-sesame@")
    async with RedisQuota(url, "key", 1) as quota, RedisQuota(url, "key", 1) as other:
        rich, poor = make_pool(quota=quota), make_pool(quota=other)
        await made_idle(rich)
        await until(lambda: quota._listener.task, "it listens")
        async with asyncio.timeout(10):  # only a net
            await poor.acquire()
        assert quota._listener.is_able
        assert closes(rich) == {CloseReason.ROOM: 1}
        async with server_of_redis.client() as client:
            await client.execute_command("ACL", "SETUSER", "fleet", "resetpass", ">changed")
            await client.execute_command("CLIENT", "KILL", "USER", "fleet")
        with pytest.raises(ConnectionUnavailableError, match="no answer from Redis: Auth"):
            await rich.acquire(timeout=1.0)
        await rich.close_all()
        await poor.close_all()
    assert "sesame" not in caplog.text
    assert "sesame" not in repr(quota)


async def test_a_call_that_was_not_heard_is_noticed_at_the_renewal(
    make_pool: MakePool, make_quota: Quotas
) -> None:
    quota, other = make_quota(1, lease=3.0), make_quota(1, lease=3.0)
    rich, poor = make_pool(quota=quota), make_pool(quota=other)
    await made_idle(rich)
    await is_heard(quota)
    quota._hear = quota._listener._on_message = lambda channel, said: None  # type: ignore
    async with asyncio.timeout(10):  # only a net
        assert await echoes(await poor.acquire(timeout=10))
    assert closes(rich) == {CloseReason.ROOM: 1}


async def test_redis_that_hangs_meanwhile_costs_time_and_one_connection(
    make_pool: MakePool, make_quota: Quotas
) -> None:
    quota, other = make_quota(2, lease=1.8), make_quota(2, lease=1.8)
    rich, poor = make_pool(quota=quota), make_pool(quota=other)
    await made_idle(rich, 2)
    await is_heard(quota)
    make_quota.server.pause()
    try:
        waiting = asyncio.create_task(poor.acquire(timeout=30))
        await until(lambda: quota._failure and other._failure, "it has been noticed")
        assert not waiting.done()
    finally:
        make_quota.server.go_on()
    async with asyncio.timeout(30):  # only a net
        assert await echoes(await waiting)
    assert closes(rich) == {CloseReason.ROOM: 1}


async def test_redis_that_loses_its_data_meanwhile_costs_time_and_one_connection(
    make_pool: MakePool, make_quota: Quotas
) -> None:
    """What somebody waited for before the restart becomes idle during it."""
    quota, other = make_quota(2, lease=1.8), make_quota(2, lease=1.8)
    rich, poor = make_pool(quota=quota), make_pool(quota=other)
    lent = [await rich.acquire() for _ in range(2)]
    waiting = asyncio.create_task(poor.acquire(timeout=30))
    await until(lambda: other._epoch, "it stands in line")
    await make_quota.server.stop()
    await until(lambda: quota._failure and other._failure, "it has been noticed")
    for connection in lent:
        await rich.release(connection)
    await asyncio.sleep(0.5)
    assert closes(rich) == {}, "nobody has taken what it offers"
    await make_quota.server.start()
    async with asyncio.timeout(30):  # only a net
        assert await echoes(await waiting)
    assert closes(rich) == {CloseReason.ROOM: 1}


async def test_a_subscription_that_was_cut_is_made_anew_and_what_was_said_meanwhile_is_asked_for(
    make_pool: MakePool, make_quota: Quotas
) -> None:
    quota, other = make_quota(1, FOREVER), make_quota(1, FOREVER)
    rich, poor = make_pool(quota=quota), make_pool(quota=other)
    await made_idle(rich)
    await is_heard(quota)
    hear, missed = quota._listener._on_message, list[str | None]()
    quota._listener._on_message = lambda channel, said: missed.append(said)
    waiting = asyncio.create_task(poor.acquire(timeout=30))
    await until(lambda: "1" in missed, "it was called, as far as the others know")
    quota._listener._on_message = hear
    async with make_quota.server.client() as client:
        await client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    async with asyncio.timeout(10):  # only a net
        assert await echoes(await waiting)


async def test_a_call_that_is_newer_than_an_answer_counts(
    make_pool: MakePool, make_quota: Quotas
) -> None:
    """The answer to a question that was asked before says that nothing is missing."""
    quota, other = make_quota(1, FOREVER), make_quota(1, FOREVER)
    rich, poor = make_pool(quota=quota), make_pool(quota=other)
    await made_idle(rich)
    await is_heard(quota)
    script, waiting = quota._script, list[asyncio.Task[WebsocketConnection]]()

    async def step(*, keys: list[str], args: list[Any]) -> Any:
        answer, calls = await script(keys=keys, args=args), quota._calls
        if not waiting:
            waiting.append(asyncio.create_task(poor.acquire(timeout=30)))
            await until(lambda: quota._calls > calls, "it is called")
        return answer

    quota._script = step  # type: ignore[assignment]
    quota._renew_at = 0.0
    quota._wake()
    await until(lambda: waiting, "it has asked")
    async with asyncio.timeout(10):  # only a net
        assert await echoes(await waiting[0])


async def test_a_process_that_holds_nothing_heeds_no_call(make_quota: Quotas) -> None:
    """Which it may hear for as long as its subscription lasts."""
    quota, holds = make_quota(1, FOREVER), make_quota(1, FOREVER)
    poor = make_quota(1, FOREVER)
    lease = await quota.acquire()
    await is_heard(quota)
    await quota.release(lease)
    await until(lambda: quota._keeper is None or quota._keeper.done(), "nothing is left to do")
    await holds.acquire()
    poor._need = lambda: len(poor._waiting)  # type: ignore[method-assign]
    waiting = asyncio.create_task(poor.acquire())
    await until(lambda: quota._calls, "it has heard the call")
    assert quota._offers._called_at is None
    waiting.cancel()
    await asyncio.wait({waiting})


async def test_the_wait_ends_in_time_when_all_are_busy(
    make_pool: MakePool, make_quota: Quotas
) -> None:
    quota, other = make_quota(1, FOREVER), make_quota(1, FOREVER)
    rich, poor = make_pool(quota=quota), make_pool(quota=other)
    async with rich.get_connection() as connection:
        await is_heard(quota)
        with pytest.raises(ConnectionUnavailableError, match="RedisQuota 'key'"):
            await poor.acquire(timeout=0.3)
        await until(lambda: quota._offers._called_at is None, "it knows that nobody waits")
    await asyncio.sleep(0.5)
    assert connection.is_connected
    assert closes(rich) == {}


# Processes.


async def test_another_process_has_what_one_has_idle_at_the_limit_and_no_more(
    server_of_redis: RedisServer,
) -> None:
    """Then it is the other way round."""
    limit = 6
    async with (
        CountingServer() as server,
        join(server.uri, server_of_redis.url, limit=limit, lease=FOREVER) as one,
        join(server.uri, server_of_redis.url, limit=limit, lease=FOREVER) as other,
    ):
        await one.borrow(limit)
        await one.give_back()
        assert await one.idle() == limit
        async with asyncio.timeout(20):  # only a net
            await other.borrow(2)
        assert await one.closes() == {CloseReason.ROOM: 2}
        assert await one.idle() == limit - 2
        await other.give_back()
        async with asyncio.timeout(20):  # only a net
            await one.borrow(limit)
        assert await other.closes() == {CloseReason.ROOM: 2}
        assert await one.closes() == {CloseReason.ROOM: 2}
        assert server.most_sockets <= limit
