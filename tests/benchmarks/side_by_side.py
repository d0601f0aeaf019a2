"""Fair comparisons: several ways of doing the same thing, in interleaved rounds of one run.

A machine's speed drifts by more than what is measured here. So the ways take turns within each
round, each for some milliseconds, first in one order and then in the other, and ways are compared
by the median of the ratios of their rounds. What answers is a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from statistics import median
from time import perf_counter
from typing import Any, Final, TypeVar

from tests.benchmarks.server import echo_server

T = TypeVar("T")
Body = Callable[[], Awaitable[object]]
Measure = Callable[[], Awaitable[float]]

LOOPS: Final = ("asyncio", "uvloop")


class Comparison:
    """What the ways cost: for each, the seconds per call of each round."""

    def __init__(self, rounds: Mapping[str, list[float]]) -> None:
        self.rounds = rounds

    def per(self, count: int) -> Comparison:
        """Return the comparison for one of the `count` things that each call has done."""
        return Comparison({way: [one / count for one in each] for way, each in self.rounds.items()})

    def seconds(self, way: str) -> float:
        """Return the median of the seconds per call."""
        return median(self.rounds[way])

    def ratios(self, way: str, to: str) -> list[float]:
        """Return how many times as long as the other one a way took, in each round."""
        return [a / b for a, b in zip(self.rounds[way], self.rounds[to], strict=True)]

    def ratio(self, way: str, to: str) -> float:
        """Return how many times as long as the other one a way takes, round by round."""
        return median(self.ratios(way, to))

    def difference(self, way: str, to: str) -> float:
        """Return how many seconds more than the other one a way takes, round by round."""
        return median(a - b for a, b in zip(self.rounds[way], self.rounds[to], strict=True))


async def side_by_side(
    ways: Mapping[str, Body],
    *,
    rounds: int = 100,
    round_seconds: float = 0.01,
    clock: Callable[[], float] = perf_counter,
) -> Comparison:
    """Compare the ways in this many rounds, in each of which each has about `round_seconds`.

    With `clock=time.process_time` it is CPU time that is compared.
    """

    def measure(body: Body, calls: int) -> Measure:
        async def seconds_per_call() -> float:
            return await _seconds(body, calls, clock) / calls

        return seconds_per_call

    calls = {way: await _calls_within(round_seconds, body) for way, body in ways.items()}
    return await in_turns({way: measure(ways[way], calls[way]) for way in ways}, rounds)


async def in_turns(ways: Mapping[str, Measure], rounds: int) -> Comparison:
    """Compare ways that measure themselves."""
    measured: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds):
        for way in reversed(ways) if number % 2 else ways:
            measured[way].append(await ways[way]())
    return Comparison(measured)


async def _calls_within(round_seconds: float, body: Body) -> int:
    """Return how many calls last for a round; this is the warm-up, too."""
    calls = 1
    while True:
        # The fastest of three: a hiccup must not pass for a body that takes that long.
        seconds = min([await _seconds(body, calls, perf_counter) for _ in range(3)])
        if seconds >= round_seconds:
            return calls
        calls = max(calls + 1, int(calls * min(10.0, 1.2 * round_seconds / seconds)))


async def _seconds(body: Body, calls: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(calls):
        await body()
    return clock() - start


def run(main: Callable[[str], Coroutine[Any, Any, T]], loop: str = "asyncio") -> T:
    """Run `main` with the URI of an echo server, on asyncio's or uvloop's event loop."""
    with echo_server() as uri:
        return run_on(loop, lambda: main(uri))


def run_on(loop: str, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run `main` on asyncio's or uvloop's event loop."""
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main())


def chosen_loops(description: str | None) -> list[str]:
    """Return the event loops that the command line names: both, if it names none."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("loops", nargs="*", choices=[*LOOPS, []], help=" or ".join(LOOPS))
    return parser.parse_args().loops or list(LOOPS)
