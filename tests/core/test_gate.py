"""The gate alone, with a clock of its own: turns, waits, and what counts as which."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import cast

import pytest

from tests.conftest import until
from wspool import ConnectionUnavailableError
from wspool._connection.link import Link
from wspool._pool.gate import Dialling, Gate

WAITS = (1.0, 2.0, 4.0)
"""What the gate waits at most after one, two, and three or more failures, in seconds."""


class Clock:
    """The time, which the tests make pass."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(Gate, "_clock", staticmethod(clock))
    return clock


class Jitter:
    """The waits that the gate drew a random share of, and the share that is drawn."""

    def __init__(self) -> None:
        self.longest: list[float] = []
        self.share = 0.0

    def __call__(self, value: float) -> float:
        self.longest.append(value)
        return self.share * value


@pytest.fixture
def jitter(monkeypatch: pytest.MonkeyPatch) -> Jitter:
    jitter = Jitter()
    monkeypatch.setattr("wspool._pool.gate.backoff.full_jitter", jitter)
    return jitter


@pytest.fixture
def gate(clock: Clock) -> Gate:
    return new_gate(10)


def new_gate(limit: int) -> Gate:
    gate = Gate(limit)
    gate.waits = WAITS
    return gate


class Ours:
    """A dial whose link is its own."""

    def __init__(self) -> None:
        self.link = cast(Link, SimpleNamespace(owner=self))


def new_dial() -> Dialling:
    return Ours()


def opened_at(time: float | None) -> Link:
    return cast(Link, SimpleNamespace(opened_at=time))


def fail(gate: Gate, retry_after: float | None = None) -> ConnectionUnavailableError:
    """Count a failure of an attempt that began now."""
    failure = ConnectionUnavailableError("it is down", retry_after=retry_after)
    gate.failed(gate.round, failure)
    return failure


# Turns.


class Turn:
    """A dial at the gate: it waits for its turn, and works until it is let go."""

    def __init__(self, gate: Gate, dial: Dialling) -> None:
        self.dial = dial
        self.is_at_work = False
        self.end = asyncio.Event()
        self.task = asyncio.create_task(self._work(gate))

    async def _work(self, gate: Gate) -> None:
        async with gate.turn(self.dial):
            self.is_at_work = True
            try:
                await self.end.wait()
            finally:
                self.is_at_work = False


async def until_at_work(turns: list[Turn], expected: list[int]) -> None:
    def at_work() -> list[int]:
        return [number for number, turn in enumerate(turns) if turn.is_at_work]

    await until(lambda: at_work() == expected, f"{expected} are at work")


async def test_turns_are_given_in_order_of_arrival_up_to_the_limit() -> None:
    gate = new_gate(2)
    turns = [Turn(gate, new_dial()) for _ in range(5)]
    for expected in ([0, 1], [1, 2], [2, 3], [3, 4], [4]):
        await until_at_work(turns, expected)
        turns[expected[0]].end.set()
    await asyncio.gather(*(turn.task for turn in turns))


async def test_a_turn_whose_dial_was_cancelled_is_given_to_the_next() -> None:
    """Whether it was waiting for it, had just got it, or was at work."""
    gate = new_gate(1)
    turns = [Turn(gate, new_dial()) for _ in range(5)]
    await until_at_work(turns, [0])
    turns[1].task.cancel()
    turns[0].end.set()
    await until(lambda: turns[2].dial in gate._at_work, "the third has got its turn")
    turns[2].task.cancel()
    await until_at_work(turns, [3])
    turns[3].task.cancel()
    await until_at_work(turns, [4])
    turns[4].end.set()
    await asyncio.wait({turn.task for turn in turns})
    assert [turn.task.cancelled() for turn in turns] == [False, True, True, True, False]
    assert not gate._at_work


async def test_a_dial_that_was_called_off_gets_no_turn() -> None:
    """Its link was closed while it waited; its task hears of that in a moment."""
    gate = new_gate(1)
    turns = [Turn(gate, new_dial()) for _ in range(3)]
    await until_at_work(turns, [0])
    turns[1].dial.link.owner = None
    turns[0].end.set()
    await until_at_work(turns, [2])
    turns[2].end.set()
    turns[1].task.cancel()
    await asyncio.wait({turn.task for turn in turns})


async def test_a_newcomer_does_not_overtake_one_that_was_just_given_its_turn() -> None:
    gate = new_gate(1)
    order: list[int] = []

    async def work(number: int) -> None:
        async with gate.turn(new_dial()):
            order.append(number)
        if number == 0:
            late.append(asyncio.create_task(work(2)))

    late: list[asyncio.Task[None]] = []
    async with gate.turn(new_dial()):  # so that both are in the line
        working = asyncio.gather(work(0), work(1))
        await asyncio.sleep(0)
    await working
    await asyncio.gather(*late)
    assert order == [0, 1, 2]


# Waits.


async def test_without_failures_nothing_is_waited(gate: Gate, jitter: Jitter) -> None:
    await gate.wait(new_dial())
    assert jitter.longest == []


async def test_each_round_of_failures_waits_longer_up_to_the_last_wait(
    gate: Gate, jitter: Jitter
) -> None:
    for _ in range(5):
        fail(gate)
        await gate.wait(new_dial())
    assert jitter.longest == [1.0, 2.0, 4.0, 4.0, 4.0]


async def test_attempts_that_failed_together_are_one_round(gate: Gate, jitter: Jitter) -> None:
    began_in = gate.round
    for _ in range(10):
        gate.failed(began_in, ConnectionUnavailableError("it is down"))
    assert (gate.round, gate.streak) == (began_in + 1, 1)
    await gate.wait(new_dial())
    assert jitter.longest == [1.0]


async def test_who_is_asked_to_wait_waits_alone_and_the_others_for_their_share(
    gate: Gate, jitter: Jitter, clock: Clock
) -> None:
    """A `Retry-After` holds for its dial whatever others see."""
    fail(gate)
    asked = asyncio.create_task(gate.wait(new_dial(), at_least=20.0))
    await gate.wait(new_dial())
    assert not asked.done()
    gate.lived(opened_at(clock.now))
    await asyncio.sleep(0)
    assert not asked.done()
    asked.cancel()
    await asyncio.wait({asked})


async def test_a_life_ends_the_streak_and_every_wait(
    gate: Gate, jitter: Jitter, clock: Clock
) -> None:
    fail(gate, retry_after=20.0)
    waiting = [asyncio.create_task(gate.wait(new_dial())) for _ in range(3)]
    await until(lambda: len(jitter.longest) == 3, "all three wait")
    assert not any(task.done() for task in waiting)
    gate.lived(opened_at(clock.now))
    await asyncio.gather(*waiting)
    assert (gate.streak, gate.failure) == (0, None)
    await gate.wait(new_dial())
    assert len(jitter.longest) == 3


@pytest.mark.parametrize("when", [None, 99.0])
def test_a_link_from_before_the_failure_says_nothing_about_the_server_now(
    gate: Gate, clock: Clock, when: float | None
) -> None:
    failure = fail(gate)
    gate.lived(opened_at(when))
    assert (gate.streak, gate.failure) == (1, failure)


async def test_a_wait_that_is_cancelled_leaves_nothing(gate: Gate, jitter: Jitter) -> None:
    fail(gate, retry_after=20.0)
    waiting = asyncio.create_task(gate.wait(new_dial()))
    await until(lambda: jitter.longest, "it waits")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not gate._due
    assert not gate._success_waiters


# What counts as what.


def test_links_that_are_closed_right_after_their_handshake_make_the_streak_grow(
    gate: Gate,
) -> None:
    """Each handshake is a success for aiohttp, and none for those who wait."""
    failure = ConnectionUnavailableError("it closes them")
    for expected in (1, 2, 3):
        gate.refused(failure)
        assert gate.streak == expected
    assert gate.failure is failure


def test_a_server_that_says_that_it_restarts_is_one_failure(gate: Gate, clock: Clock) -> None:
    """However many connections it says it on."""
    for expected in (1, 2):
        clock.now += 60.0
        for _ in range(10):
            gate.restarts()
        assert gate.streak == expected


# Whether it is closed.


@pytest.fixture
def seconds(gate: Gate, jitter: Jitter) -> Iterator[Callable[[], float]]:
    """How long the gate has been closed; every wait is as long as it may be."""
    jitter.share = 1.0
    yield lambda: gate.closed_seconds
    assert gate.next_attempt is None
    assert not gate._at_work


async def test_it_is_closed_while_all_that_are_at_work_wait(
    gate: Gate, clock: Clock, seconds: Callable[[], float]
) -> None:
    one, other = new_dial(), new_dial()
    heard: list[float | None] = []
    gate.on_wait = lambda: heard.append(gate.next_attempt)
    fail(gate)
    async with gate.turn(one):
        assert gate.next_attempt is None
        waiting = asyncio.create_task(gate.wait(one))
        await until(lambda: heard, "it waits")
        assert heard == [gate.next_attempt] == [101.0]
        clock.now += 0.5
        async with gate.turn(other):  # somebody makes an attempt
            assert gate.next_attempt is None
            clock.now += 0.3
        assert gate.next_attempt == 101.0
        assert seconds() == 0.5
        clock.now += 0.1
        assert seconds() == pytest.approx(0.6)
        gate.lived(opened_at(clock.now))
        await waiting
        assert gate.next_attempt is None
        clock.now += 5.0
    assert seconds() == pytest.approx(0.6)


async def test_that_a_timer_was_late_does_not_count(
    gate: Gate, clock: Clock, seconds: Callable[[], float]
) -> None:
    """The loop was busy; nobody is turned away for that."""
    dial = new_dial()
    fail(gate)
    async with gate.turn(dial):
        waiting = asyncio.create_task(gate.wait(dial))
        await until(lambda: gate.next_attempt, "it waits")
        clock.now += 7.0
        assert seconds() == 1.0
        gate.lived(opened_at(clock.now))
        await waiting
    assert seconds() == 1.0


@pytest.mark.parametrize(("attempts", "expected"), [(1, 0.0), (2, 1.0), (3, 3.0), (5, 11.0)])
def test_patience_is_what_so_many_attempts_wait_at_most(
    gate: Gate, attempts: int, expected: float
) -> None:
    assert gate.patience(attempts) == expected
