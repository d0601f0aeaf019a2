"""`prefer`: a connection with this context if one is idle, and never a wait for it."""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from typing import Any

from tests.conftest import MakePool, echoes, until
from tests.support.inside import queues_of
from wspool import WebsocketConnectionPool
from wspool.testing import Server


async def made(pool: WebsocketConnectionPool, *contexts: Any) -> dict[str, int]:
    """Open a connection with each context, the first idle for longest; return ids by its text."""
    lent = [await pool.acquire_new() for _ in contexts]
    for connection, context in zip(lent, contexts, strict=True):
        assert await echoes(connection)
        connection.context = context
        await pool.release(connection)
    return {str(context): one.id for context, one in zip(contexts, lent, strict=True)}


async def test_the_one_with_the_context_is_lent_however_long_it_has_been_idle(
    make_pool: MakePool,
) -> None:
    pool = make_pool(max_connections=3)
    ids = await made(pool, "a", None, "b")
    async with pool.get_connection(prefer="a") as connection:
        assert (connection.id, connection.context) == (ids["a"], "a")
    connection = await pool.acquire(prefer="b")
    assert (connection.id, connection.context) == (ids["b"], "b")
    await pool.release(connection)


async def test_contexts_are_compared_by_value(make_pool: MakePool) -> None:
    pool = make_pool(max_connections=3)
    await made(pool, ["a", 1], None)
    async with pool.get_connection(prefer=["a", 1]) as connection:
        assert connection.context == ["a", 1]


async def test_a_context_that_cannot_be_compared_is_another(make_pool: MakePool) -> None:
    class Strange:
        def __eq__(self, other: object) -> bool:
            raise ZeroDivisionError

        __hash__ = object.__hash__

    pool = make_pool(max_connections=2)
    ids = await made(pool, Strange(), None)
    async with pool.get_connection(prefer="a") as connection:
        assert connection.id == ids["None"]


async def test_without_it_one_without_any_is_lent_the_last_one_in(make_pool: MakePool) -> None:
    pool = make_pool(max_connections=4)
    lent = [await pool.acquire() for _ in range(3)]
    lent[2].context = "b"
    for connection in lent:
        await pool.release(connection)
    async with pool.get_connection(prefer="a") as connection:
        assert connection.id == lent[1].id
        assert connection.context is None
    assert pool.total_connections == 3


async def test_without_one_without_any_a_new_one_is_dialled_where_there_is_room(
    make_pool: MakePool,
) -> None:
    pool = make_pool(max_connections=3)
    await made(pool, "b", "c")
    async with pool.get_connection(prefer="a") as connection:
        assert not connection.reused
    assert sorted(str(link.context) for link in queues_of(pool).idle) == ["None", "b", "c"]


async def test_without_room_the_context_goes_that_was_idle_for_longest(
    make_pool: MakePool,
) -> None:
    pool = make_pool(max_connections=2)
    ids = await made(pool, "b", "c")
    async with pool.get_connection(prefer="a") as connection:
        assert connection.id == ids["b"]
        assert connection.context is None
        connection.context = "a"
    assert [link.context for link in queues_of(pool).idle] == ["c", "a"]


async def test_who_prefers_none_spares_contexts_while_others_are_idle(make_pool: MakePool) -> None:
    pool = make_pool(max_connections=2)
    ids = await made(pool, None, "a")
    async with pool.get_connection() as connection:
        assert connection.id == ids["None"]
        async with pool.get_connection() as other:
            assert (other.id, other.context) == (ids["a"], "a")


async def test_a_fork_gets_another_connection_at_once(make_pool: MakePool) -> None:
    """Two turns of one conversation at a time: the second does not wait for the first."""
    pool = make_pool(max_connections=2)
    ids = await made(pool, "a", None)
    async with (
        asyncio.timeout(5),
        pool.get_connection(prefer="a") as connection,
        pool.get_connection(prefer="a") as fork,
    ):
        assert (connection.id, fork.id) == (ids["a"], ids["None"])


async def test_what_on_connect_has_set_is_not_taken_for_anothers(make_pool: MakePool) -> None:
    async def begin_session(connection: Any) -> None:
        connection.context = "the session"

    pool = make_pool(max_connections=1, on_connect=begin_session)
    async with pool.get_connection(prefer="a") as connection:
        assert connection.context == "the session"
    async with pool.get_connection() as connection:
        assert connection.context == "the session"


async def test_who_waits_at_the_limit_gets_whatever_comes_back(make_pool: MakePool) -> None:
    pool = make_pool(max_connections=1)
    await made(pool, "b")
    holding = await pool.acquire(prefer="b")
    waiting = asyncio.create_task(pool.acquire(prefer="a", timeout=5))
    await until(lambda: pool.waiters == 1, "it waits")
    await pool.release(holding)
    connection = await waiting
    assert connection.context is None
    await pool.release(connection)


async def test_one_that_must_be_checked_first_is_lent_with_its_context(
    make_pool: MakePool,
) -> None:
    """Not one with no context, which needs no check."""
    pool = make_pool(max_connections=3, check_after_idle=0.0)
    ids = await made(pool, "b", "a", "c")
    async with pool.get_connection(prefer="a", timeout=5) as connection:
        assert (connection.id, connection.context) == (ids["a"], "a")
        assert ("checkout", "check") in [(m.trigger, m.why) for m in connection.history]


async def test_when_dials_fail_the_longest_idle_one_is_lent(
    server: Server, make_pool: MakePool
) -> None:
    """It held out for a new one, and takes what there is at the first failed attempt."""
    pool = make_pool(max_connections=3, max_retries=3)
    ids = await made(pool, "b", "c")
    for _ in range(3):
        server.refuse(503)
    async with pool.get_connection(prefer="a", timeout=5) as connection:
        assert connection.id == ids["b"]


async def test_one_that_holds_out_does_not_keep_others_from_what_is_idle(
    make_pool: MakePool,
) -> None:
    never = asyncio.Event()
    opened = 0

    async def on_connect(connection: Any) -> None:
        nonlocal opened
        opened += 1
        if opened > 1:
            await never.wait()

    pool = make_pool(max_connections=2, on_connect=on_connect)
    ids = await made(pool, "b")
    holding_out = asyncio.create_task(pool.acquire(prefer="a", timeout=None))
    await until(lambda: opened == 2, "its dial is at work")
    async with asyncio.timeout(5), pool.get_connection(timeout=None) as connection:
        assert connection.id == ids["b"]
    never.set()
    connection = await holding_out
    assert not connection.reused
    await pool.release(connection)


async def test_two_hundred_conversations_on_fifty_connections(make_pool: MakePool) -> None:
    """While at most 50 are active, at least 95 % of the turns are on the conversation's own."""
    pool = make_pool(max_connections=50, acquire_timeout=10.0)
    rng = random.Random(19)
    active: OrderedDict[int, None] = OrderedDict.fromkeys(range(45))
    own = turns = 0

    async def take_turn(conversation: int) -> None:
        nonlocal own, turns
        async with pool.get_connection(prefer=conversation) as connection:
            assert connection.context in (None, conversation)
            if started[conversation]:
                turns += 1
                own += connection.context == conversation
            started[conversation] = True
            connection.context = conversation
            assert await echoes(connection, f"{conversation}")

    started = dict.fromkeys(range(200), False)
    waiting = list(range(45, 200))
    for _ in range(60):
        talking = rng.sample(list(active), 30)
        await asyncio.gather(*map(take_turn, talking))
        if waiting and rng.random() < 0.9:  # one conversation ends for good, another begins
            del active[rng.choice(list(active))]
            active[waiting.pop()] = None
    assert turns > 1000
    assert own / turns >= 0.95, f"{own} of {turns}"
    assert pool.total_connections <= 50
