"""Every operation is cancelled at every step: nothing is lost, and no cancellation is swallowed.

A step is a yield, of the caller or of one of the pool's own tasks. Each is cancelled in both ways
that there are: as soon as it waits, and in the very tick in which it would have gone on.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import cache
from typing import Any, NamedTuple

import pytest
from aiohttp import WSMsgType

from tests.explore.network import CALM, Temper, handshake_error
from tests.explore.schedules import CORE, Loop, World, is_last
from tests.support.inside import link_of, wire_of
from wspool import (
    CloseReason,
    ConnectionClosedError,
    LocalQuota,
    WebsocketConnection,
    WebsocketError,
    WebsocketStream,
)
from wspool._connection import budget
from wspool._connection.wire import LARGE_BYTES

Act = Callable[[World], Awaitable[object]]

CONGESTED = CALM._replace(congest=1.0)
MUTE = CALM._replace(mute=1.0)

# What comes before.


async def nothing(world: World) -> None:
    pass


async def one_idle(world: World) -> None:
    world.pool._router.give_back(await world.pool.acquire())


async def all_idle(world: World) -> None:
    for connection in [await world.pool.acquire() for _ in range(2)]:
        world.pool._router.give_back(connection)


async def one_used(world: World) -> None:
    await world.ask(await world.pool.acquire(), "before")


def key_of(message: str | bytes) -> str:
    """Return whose a message is: what the server is asked, it repeats."""
    return str(message).split(" ")[-1]


async def all_streams_lent(world: World) -> None:
    """All slots of all connections are taken, and one stream will come back."""
    streams = [await world.pool.acquire_stream() for _ in range(2)]
    world.loop.call_later(0.05, world.pool._router.streaming.give_back, streams[0])
    world.loop.call_later(2.0, world.pool._router.streaming.give_back, streams[1])


async def all_lent(world: World) -> None:
    """All connections are lent, and will come back one after the other."""
    for when in (0.05, 0.15):
        connection = await world.pool.acquire()
        world.loop.call_later(when, world.pool._router.give_back, connection)


async def everything(world: World) -> None:
    """One is being drained, one dialled for a waiter, and others wait."""
    await one_used(world)
    await release(world)
    for _ in range(3):
        world.loop.create_task(world.loan("waiter"))
    await asyncio.sleep(0.001)


async def long_idle(world: World) -> None:
    await all_idle(world)
    await asyncio.sleep(0.1)


async def idle_and_mute(world: World) -> None:
    await long_idle(world)
    for socket in world.network.open:
        socket.go_mute()


async def being_checked(world: World) -> None:
    """All are being checked, for callers that have left."""
    await long_idle(world)
    callers = [world.loop.create_task(world.pool.acquire()) for _ in range(2)]
    await asyncio.sleep(0.001)
    for caller in callers:
        caller.cancel()
    await asyncio.wait(callers)


async def being_kept_alive(world: World) -> None:
    await all_idle(world)
    for link in list(world.pool._router.queues.idle):
        world.pool._router.errands.begin(link, "keepalive")
    await asyncio.sleep(0.001)


async def all_talking(world: World) -> None:
    """All are idle, and their servers talk to nobody."""
    await all_idle(world)
    for socket in world.network.open:
        for step in range(60):
            world.loop.call_later(0.01 * step, socket.stray)


async def one_is_lost_as_it_comes_back(world: World) -> None:
    """Of two that are lent, the first is lost in the tick in which it serves whoever waits."""
    first, second = [await world.pool.acquire() for _ in range(2)]

    def give_back_and_lose() -> None:
        world.pool._router.give_back(first)
        link_of(first).close(CloseReason.SERVER)

    world.loop.call_later(0.05, give_back_and_lose)
    world.loop.call_later(0.15, world.pool._router.give_back, second)


async def others_have_the_quota(world: World) -> None:
    """Another pool has all leases, and gives them back one after the other."""
    assert world.quota is not None
    for when in (0.05, 0.15):
        world.loop.call_later(when, world.quota.release, await world.quota.acquire())


async def another_dials(world: World) -> None:
    world.loop.create_task(world.loan("another"))
    await asyncio.sleep(0.001)


def refused(*failures: Exception) -> Act:
    """The next handshakes fail in these ways."""

    async def before(world: World) -> None:
        world.network.failures = list(failures)

    return before


# What is cancelled.


async def acquire(world: World) -> None:
    world.pool._router.give_back(await world.pool.acquire())


async def acquire_new(world: World) -> None:
    world.pool._router.give_back(await world.pool.acquire_new())


async def release(world: World, *, force_remove: bool = False) -> None:
    (link,) = world.pool._router.queues.busy
    await world.pool.release(link.loan, force_remove=force_remove)


async def remove(world: World) -> None:
    await release(world, force_remove=True)


async def run_work(world: World) -> None:
    """The work is lost under a reused connection, and done once more on a fresh one."""

    async def work(connection: WebsocketConnection) -> None:
        if connection.reused:
            world.loop.call_later(0.005, world.network.open[-1].lose)
        await world.ask(connection, "question")

    await world.pool.run(work)


async def start(world: World) -> None:
    await world.pool.start()


async def enter_and_leave(world: World) -> None:
    async with world.pool:
        pass


async def close_all(world: World) -> None:
    await world.pool.close_all()


async def aclose(world: World) -> None:
    await world.pool.aclose()


async def close_patiently(world: World) -> None:
    await world.pool.close_all(timeout=None)


async def resize(world: World) -> None:
    """Grow beside a waiter for one and a waiter for a new one, after having shrunk."""
    world.pool.resize(1)
    acquiring = [
        world.loop.create_task(quietly(call(world))) for call in (acquire, acquire_new, acquire)
    ]
    await asyncio.sleep(0.005)
    world.pool.resize(3)
    await asyncio.wait(acquiring)


async def keep_alive(world: World) -> None:
    """Let the upkeep do it."""
    await asyncio.sleep(0.6)


async def converse(world: World) -> None:
    """Do all that a borrower alone can do."""
    async with world.pool.get_new_connection() as connection:
        await world.ask(connection, "question")
        await connection.ping()
        world.network.open[-1].say(WSMsgType.PING, b"are you there?")
        world.network.open[-1].say(WSMsgType.TEXT, "3")
        await connection.recv_json()
        await connection.send_json({})
        async for message in connection:
            if is_last(message):
                break
        await connection.close()


async def ping_beside_recv(world: World) -> None:
    async with world.pool.get_connection() as connection:
        world.loop.create_task(quietly(connection.recv()))
        await asyncio.sleep(0)
        await connection.ping()


async def recv_beside_ping(world: World) -> None:
    async with world.pool.get_connection() as connection:
        world.loop.create_task(quietly(connection.ping()))
        while not wire_of(connection).is_reading:
            await asyncio.sleep(0)
        world.network.open[-1].say(WSMsgType.TEXT, "message")
        await connection.recv()


async def recv_what_is_controlled(world: World) -> None:
    async with world.pool.get_connection() as connection:
        world.network.open[-1].say(WSMsgType.TEXT, "are you there?")
        world.network.open[-1].say(WSMsgType.TEXT, "message")
        await connection.recv()


async def recv_in_a_flood(world: World) -> None:
    async with world.pool.get_connection() as connection:
        world.network.open[-1].say(WSMsgType.TEXT, "m" * LARGE_BYTES)
        world.network.open[-1].pause_reading()
        while not wire_of(connection).arrivals:
            await asyncio.sleep(0.001)
        await connection.recv()


async def quietly(coroutine: Coroutine[Any, Any, object]) -> None:
    try:
        await coroutine
    except WebsocketError:
        pass


SHARED: dict[str, Any] = {"max_streams": 2, "route": key_of, "max_connections": 1}
MARKED: dict[str, Any] = {"drain_until": is_last, **SHARED}


async def share(world: World) -> None:
    """Ask on two streams of one connection at once, one of which reads for both."""
    async with world.pool.get_stream(timeout=3.0) as a, world.pool.get_stream(timeout=3.0) as b:
        other = asyncio.ensure_future(world.ask_on(a, "a"))
        try:
            await asyncio.sleep(0)
            await world.ask_on(b, "b")
        finally:
            await asyncio.wait([other])


async def acquire_stream(world: World) -> None:
    world.pool._router.streaming.give_back(await world.pool.acquire_stream(timeout=3.0))


async def iterate_over_stream(world: World) -> None:
    async with world.pool.get_stream(timeout=3.0) as stream:
        stream.claim('"x"')
        await stream.send_json("x")
        async for message in stream:
            if is_last(message):
                return


async def read_a_stream_as_json(world: World) -> None:
    async with world.pool.get_stream(timeout=3.0) as stream:
        stream.claim("x")
        world.network.open[-1].say(WSMsgType.TEXT, "1 x")
        with contextlib.suppress(ValueError):
            await stream.recv_json()


async def ping_beside_streams(world: World) -> None:
    async with world.pool.get_stream(timeout=3.0) as a, world.pool.get_stream(timeout=3.0) as b:
        reading = asyncio.ensure_future(a.recv())
        try:
            await asyncio.sleep(0.01)
            await b.ping()
            reading.cancel()
            await asyncio.wait([reading])
            await b.ping()
        finally:
            reading.cancel()


async def stream_in_a_flood(world: World) -> None:
    async with world.pool.get_stream(timeout=3.0) as stream:
        stream.claim("x")
        world.network.open[-1].say(WSMsgType.TEXT, "part x")
        world.network.open[-1].pause_reading()
        while not wire_of(stream.connection).arrivals:
            await asyncio.sleep(0.001)
        await stream.recv()


async def release_stream(world: World) -> None:
    stream = await world.pool.acquire_stream(timeout=3.0)
    try:
        await stream.send(stream.claim("x"))
    finally:
        await world.pool.release_stream(stream)
    await asyncio.sleep(0.3)


async def leave_by_exception(world: World) -> None:
    async with world.pool.get_connection() as connection:
        await connection.send("question")
        raise ConnectionClosedError("not really")


async def strays(world: World) -> None:
    """Unasked messages arrive at idle connections, and the upkeep reads them."""
    for socket in world.network.open:
        socket.stray()
    await asyncio.sleep(0.6)


# Callables of the user's.


def control(message: str | bytes) -> str | None:
    return "yes" if message == "are you there?" else None


async def log_in(connection: WebsocketConnection) -> None:
    """Fail the first time."""
    is_first, connection.context = connection.context is None, "was here"
    await connection.ping()
    if is_first:
        raise ConnectionClosedError("on purpose")


async def say_bye(connection: WebsocketConnection) -> None:
    await connection.send("bye")
    while not is_last(await connection.recv()):
        pass


async def say_bye_on(stream: WebsocketStream) -> None:
    await stream.send(f"{stream.keys[0]}")
    while not is_last(await stream.recv()):
        pass


async def fail(connection: WebsocketConnection) -> None:
    await connection.ping()
    raise ConnectionClosedError("on purpose")


async def uri() -> str:
    await asyncio.sleep(0.01)
    return "ws://server/"


async def headers() -> dict[str, str]:
    await asyncio.sleep(0.01)
    return {}


class Case:
    """An operation in a certain situation: what comes before it, the network, the pool."""

    def __init__(
        self, what: str, act: Act, before: Act = nothing, temper: Temper = CALM, **options: Any
    ) -> None:
        self.operation, self.situation = what.split(": ")
        self.act, self.before, self.temper, self.options = act, before, temper, options

    def __repr__(self) -> str:
        return f"{self.operation}: {self.situation}"


CHECK: dict[str, Any] = {"check_server_data_on_release": True}
FENCE: dict[str, Any] = {"drain_fence": True, **CHECK}
CHECKED: dict[str, Any] = {"check_after_idle": 0.0}
ALIVE: dict[str, Any] = {"keepalive_interval": 0.1}
GREETED: dict[str, Any] = {"keepalive": say_bye, **ALIVE}

CASES = [
    Case("acquire: an idle one is there", acquire, one_idle),
    Case("acquire: a dial is needed", acquire),
    Case("acquire: one comes back", acquire, all_lent),
    Case("acquire: one is lost as it comes back", acquire, one_is_lost_as_it_comes_back),
    Case("acquire: the first dial is refused", acquire, refused(ConnectionRefusedError())),
    Case(
        "acquire: the server asks to wait", acquire, refused(handshake_error(503, Retry_After="1"))
    ),
    Case("acquire: a login fails once", acquire, on_connect=log_in),
    Case("acquire: a login fails once, congested", acquire, temper=CONGESTED, on_connect=log_in),
    Case("acquire: tokens are fetched", acquire, uri=uri, headers=headers),
    Case("acquire: dials take turns", acquire, another_dials, max_connecting=1),
    Case("acquire: a lease is needed", acquire, quota=LocalQuota(2, dials_per_second=20.0)),
    Case("acquire: all leases are taken", acquire, others_have_the_quota, quota=LocalQuota(2)),
    Case("acquire: a check comes first", acquire, long_idle, **CHECKED),
    Case("acquire: a check comes first, congested", acquire, long_idle, CONGESTED, **CHECKED),
    Case("acquire: all are mute", acquire, idle_and_mute, **CHECKED),
    Case("acquire: all are being checked", acquire, being_checked, **CHECKED),
    Case("acquire: all are being kept alive", acquire, being_kept_alive, **GREETED),
    Case("acquire_new: a dial is needed", acquire_new, one_idle),
    Case("acquire_new: all are being checked", acquire_new, being_checked, **CHECKED),
    Case("acquire_new: all are being kept alive", acquire_new, being_kept_alive, **ALIVE),
    Case("acquire_new: an idle one makes room", acquire_new, all_idle),
    Case("acquire_new: a returned one makes room", acquire_new, all_lent),
    Case("release: clean", release, one_used),
    Case("release: force_remove", remove, one_used),
    Case("release: force_remove, congested", remove, one_used, CONGESTED),
    Case("get_connection: a conversation", converse),
    Case("get_connection: a conversation, congested", converse, temper=CONGESTED),
    Case("get_connection: ping beside recv", ping_beside_recv),
    Case("get_connection: recv beside ping", recv_beside_ping),
    Case(
        "get_connection: control answers, congested",
        recv_what_is_controlled,
        temper=CONGESTED,
        control=control,
    ),
    Case("get_connection: recv in a flood", recv_in_a_flood),
    Case("get_connection: left by an exception", leave_by_exception),
    Case("run: a dial is needed", run_work),
    Case("run: a lost one is made up for", run_work, one_idle),
    Case("get_stream: two at once", share, **SHARED),
    Case("get_stream: two at once, congested", share, temper=CONGESTED, **SHARED),
    Case("get_stream: one comes back", acquire_stream, all_streams_lent, **SHARED),
    Case("get_stream: iterated over", iterate_over_stream, **SHARED),
    Case("get_stream: as JSON", read_a_stream_as_json, **SHARED),
    Case("get_stream: as JSON, congested", iterate_over_stream, temper=CONGESTED, **SHARED),
    Case("get_stream: in a flood", stream_in_a_flood, **SHARED),
    Case("get_stream: ping beside recv", ping_beside_streams, **SHARED),
    Case(
        "get_stream: ping beside recv, congested", ping_beside_streams, temper=CONGESTED, **SHARED
    ),
    Case("release_stream: last message", release_stream, **MARKED),
    Case("release_stream: fence", release_stream, drain_fence=True, **SHARED),
    Case(
        "release_stream: fence, congested",
        release_stream,
        temper=CONGESTED,
        drain_fence=True,
        **SHARED,
    ),
    Case("release_stream: hook", release_stream, on_release=say_bye_on, **MARKED),
    Case("release_stream: mute peer", release_stream, temper=MUTE, drain_timeout=0.2, **MARKED),
    Case("start: warm-up", start, warmup_connections=2),
    Case("start: async with", enter_and_leave, warmup_connections=2),
    Case("drain: quiet", release, one_used, **CHECK),
    Case("drain: fence", release, one_used, **FENCE),
    Case("drain: fence, congested", release, one_used, CONGESTED, **FENCE),
    Case("drain: hook", release, one_used, on_release=say_bye, **FENCE),
    Case("drain: last message", leave_by_exception, drain_until=is_last),
    Case("drain: strays of idle ones", strays, all_idle),
    Case("close_all: idle ones", close_all, all_idle),
    Case("aclose: idle ones", aclose, all_idle),
    Case("close_all: a last word", close_all, all_idle, on_close=say_bye),
    Case("close_all: mute peer", close_all, all_idle, MUTE),
    Case("close_all: everything at work", close_all, everything, **CHECK),
    Case("close_all: patient", close_patiently, all_lent),
    Case("close_all: during checks", close_all, being_checked, **CHECKED),
    Case("close_all: during keepalives", close_patiently, being_kept_alive, **GREETED),
    Case("keepalive: a ping", keep_alive, all_idle, **ALIVE),
    Case("keepalive: a ping, beside strays", keep_alive, all_talking, **ALIVE),
    Case("keepalive: a ping, mute peer", keep_alive, idle_and_mute, **ALIVE),
    Case("keepalive: a ping, congested", keep_alive, all_idle, CONGESTED, **ALIVE),
    Case("keepalive: a hook", keep_alive, all_idle, **GREETED),
    Case("keepalive: a hook that fails", keep_alive, all_idle, keepalive=fail, **ALIVE),
    Case("resize: idle ones", resize, all_idle),
    Case("resize: during checks", resize, being_checked, **CHECKED),
    Case("resize: during keepalives", resize, being_kept_alive, **GREETED),
]

OPERATIONS = list(dict.fromkeys(case.operation for case in CASES))

Points = set[tuple[str, int]]
"""Places in the core at which a task was cancelled: file and line."""

THREADS = {"blocking_lender.py", "calls.py", "portal.py"}
"""Files of the core whose awaits belong to no task of the pool's."""

NO_POINTS = {
    "async with asyncio.timeout": "entering and leaving it waits for nothing",
    "await pending.mark_completed()": "it sets a flag, and waits for nothing",
    "await wire.next_frame()": "it takes what is there, and waits for nothing",
    "# it was refused at the start": "a session without a connection closes at once",
    "await self._acquire(None)": "it is for whoever asks a quota without a pool",
    "await handshake(": "the simulated network has a handshake of its own",
}
"""What looks like a place to be cancelled at, and why it is none."""


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The upkeep takes a breath after each connection."""
    monkeypatch.setattr(budget, "TURN_SECONDS", -1.0)


def run(case: Case, k: int, *, is_caller: bool, is_late: bool, points: Points) -> bool:
    """Cancel at the k-th yield, if there is one, and see that all is well; whether there was."""
    world = World(Loop(0, is_shuffling=False), case.temper, **case.options)
    yields = 0

    async def main() -> None:
        await case.before(world)
        caller = world.loop.create_task(act())

        def count(task: asyncio.Task[Any]) -> None:
            nonlocal yields
            if task is caller if is_caller else is_of_the_pool(task):
                yields += 1
                if yields == k:
                    world.cancel(task, is_late=is_late)

        world.on_yield = count
        await asyncio.wait([caller])
        if not is_caller:
            await asyncio.sleep(0.6)  # for drains, goodbyes and the upkeep to go on
        world.on_yield = lambda task: None
        await world.finish()
        # Who waits for a closing that is cancelled shares its fate.
        if any(name_of(task) == "WebsocketConnectionPool._finish" for task in world.cancelled):
            world.cancelled.setdefault(caller, [])
        for task in {caller, *world.cancelled}:
            world.judge(task)

    async def act() -> None:
        try:
            await case.act(world)
        except WebsocketError:
            pass  # told what went wrong, as promised

    world.run(main())
    for lines in world.cancelled.values():
        points.update(lines)
    return yields >= k


def is_of_the_pool(task: asyncio.Task[Any]) -> bool:
    coroutine: Any = task.get_coro()
    return str(coroutine.cr_code.co_filename).startswith(str(CORE))


def name_of(task: asyncio.Task[Any]) -> str:
    return str(getattr(task.get_coro(), "__qualname__", ""))


class Steps(NamedTuple):
    """How many steps there are, and where in the core they were cancelled."""

    number: int
    points: Points


@cache
def cancel_at_every_step(case: Case, *, is_caller: bool) -> Steps:
    """Cancel at step k for k = 1, 2, … until the operation is through before that."""
    points: Points = set()
    for is_late in (False, True):
        for k in itertools.count(1):
            try:
                if not run(case, k, is_caller=is_caller, is_late=is_late, points=points):
                    break
            except BaseException as error:
                how = "as it would have gone on" if is_late else "at once"
                error.add_note(f"in {case!r}, cancelled at step {k}, {how}")
                raise
    return Steps(k - 1, points)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("who", ["caller", "pool"])
def test_cancelled_at_every_step(
    who: str, operation: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is cancelled ends cancelled; all capacity can be had, and nothing is left over."""
    lines = []
    for case in (case for case in CASES if case.operation == operation):
        steps = cancel_at_every_step(case, is_caller=who == "caller").number
        lines.append(f"{case!r}: {steps} steps of the {who}")
        if case.act in (release, remove) and who == "caller":
            assert steps == 0, "a release does everything before its first await"
        elif who == "pool":
            assert steps > 1
    with capsys.disabled():
        print("", *lines, sep="\n")


def test_every_await_was_a_cancellation_point(capsys: pytest.CaptureFixture[str]) -> None:
    """At every line of the core that can wait a task was cancelled, but for a few that cannot."""
    points: Points = set()
    for case, is_caller in itertools.product(CASES, (True, False)):
        points |= cancel_at_every_step(case, is_caller=is_caller).points
    reached, excused, missed = 0, [], []
    for name, line, source in awaits():
        reason = next((why for text, why in NO_POINTS.items() if text in source), None)
        if reason is not None:
            assert (name, line) not in points, f"{name}:{line} is a cancellation point after all"
            excused.append(f"{name}:{line} {source}: {reason}")
        elif (name, line) in points:
            reached += 1
        else:
            missed.append(f"{name}:{line} {source}")
    with capsys.disabled():
        print(f"\ncancelled at {reached} awaits of the core; no cancellation points are:")
        print(*excused, sep="\n")
    assert not missed


def awaits() -> Iterator[tuple[str, int, str]]:
    """Give each line of the core that awaits: file, line, and what is in it."""
    folders = (CORE / "_connection", CORE / "_pool")
    for path in (CORE / "quota.py", *(path for folder in folders for path in folder.glob("*.py"))):
        if path.name in THREADS:
            continue
        lines = path.read_text().splitlines()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Await | ast.AsyncWith | ast.AsyncFor):
                yield path.name, node.lineno, lines[node.lineno - 1].strip()
            elif isinstance(node, ast.comprehension) and node.is_async:
                raise NotImplementedError("an asynchronous comprehension")
