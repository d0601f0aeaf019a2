"""What a comparison is to show: a ratio or an amount, within which limit, and how it is written.

The ways of a comparison are OURS and THEIRS. A figure is the median over the rounds; "half of the
rounds" are those between its quartiles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Final, Protocol

from tests.benchmarks.side_by_side import Comparison

OURS: Final = "ours"
THEIRS: Final = "theirs"


class Goal(Protocol):
    """What is looked at in a comparison, and whether that is good enough."""

    def values(self, comparison: Comparison) -> list[float]: ...
    def is_met(self, value: float) -> bool: ...
    def show(self, value: float) -> str: ...
    def __str__(self) -> str: ...


@dataclass(frozen=True)
class AtMost:
    """Ours takes at most so many times what theirs takes; no limit: for the record."""

    limit: float | None = None

    def values(self, comparison: Comparison) -> list[float]:
        return comparison.ratios(OURS, to=THEIRS)

    def is_met(self, value: float) -> bool:
        return self.limit is None or value <= self.limit

    def show(self, value: float) -> str:
        return f"{value:.3f}" if value < 2 else f"{value:.2f}"

    def __str__(self) -> str:
        return "" if self.limit is None else f"≤ {self.limit:g}"


@dataclass(frozen=True)
class Faster:
    """Theirs takes at least so many times what ours takes."""

    limit: float

    def values(self, comparison: Comparison) -> list[float]:
        return comparison.ratios(THEIRS, to=OURS)

    def is_met(self, value: float) -> bool:
        return value >= self.limit

    def show(self, value: float) -> str:
        return f"{value:.2f}×" if value < 10 else f"{value:.0f}×"

    def __str__(self) -> str:
        return f"≥ {self.limit:g}×"


@dataclass(frozen=True)
class Share(Faster):
    """Ours does at least this share of what theirs does in the same time."""

    def show(self, value: float) -> str:
        return f"{value:.3f}"

    def __str__(self) -> str:
        return f"≥ {self.limit:g}"


@dataclass(frozen=True)
class Below:
    """Ours stays below an amount, in whatever the rounds are measured in."""

    limit: float
    unit: Callable[[float], str]

    def values(self, comparison: Comparison) -> list[float]:
        return comparison.rounds[OURS]

    def is_met(self, value: float) -> bool:
        return value <= self.limit

    def show(self, value: float) -> str:
        return self.unit(value)

    def __str__(self) -> str:
        return f"≤ {self.unit(self.limit)}"


@dataclass(frozen=True)
class Figure:
    """What came of a comparison, in numbers and as it is shown.

    `shown` is what the goal looks at, whichever way round; `ratio` is always ours to theirs.
    """

    value: float
    low: float
    high: float
    shown: str
    half_of_rounds: str
    ratio: str
    half_of_ratios: str
    is_met: bool
    ours: str
    theirs: str
    rounds: int


def figure(comparison: Comparison, goal: Goal, unit: Callable[[float], str]) -> Figure:
    values = goal.values(comparison)
    low, _, high = quantiles(values, n=4) if len(values) > 1 else values * 3
    value = median(values)
    ratio, half_of_ratios = "", ""
    if THEIRS in comparison.rounds:
        ratios = comparison.ratios(OURS, to=THEIRS)
        first, _, third = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        ratio, half_of_ratios = f"{median(ratios):.3g}", f"{first:.3g} – {third:.3g}"
    return Figure(
        value,
        low,
        high,
        goal.show(value),
        f"{goal.show(low)} – {goal.show(high)}",
        ratio,
        half_of_ratios,
        goal.is_met(value),
        unit(comparison.seconds(OURS)),
        unit(comparison.seconds(THEIRS)) if THEIRS in comparison.rounds else "",
        len(values),
    )


def seconds(value: float) -> str:
    if value >= 1:
        return f"{value:.3g} s"
    return f"{1e3 * value:.3g} ms" if value >= 1e-3 else f"{1e6 * value:.3g} µs"


def size(value: float) -> str:
    return f"{value / 1024:.3g} KiB"
