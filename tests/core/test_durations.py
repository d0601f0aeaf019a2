"""Percentiles of durations that were noted in buckets, against those of the durations."""

from __future__ import annotations

import random

import pytest

from wspool._debug.durations import LEAST_SECONDS, Durations, bucket_of


def noted(times: list[float]) -> Durations:
    durations = Durations()
    for seconds in times:
        durations.add(bucket_of(seconds))
    return durations


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95, 0.99, 1.0])
@pytest.mark.parametrize("scale", [2e-6, 1e-3, 1.0, 3600.0])
def test_a_percentile_is_within_two_percent(scale: float, share: float) -> None:
    chance = random.Random(7)
    times = sorted(LEAST_SECONDS + chance.expovariate(1 / scale) for _ in range(2000))
    expected = times[min(int(share * len(times)), len(times) - 1)]
    assert noted(times).percentile(share) == pytest.approx(expected, rel=0.0201)


def test_what_is_next_to_nothing_counts_as_nothing() -> None:
    durations = noted([0.0] * 90 + [0.9e-6] * 5 + [1.0] * 5)
    assert durations.percentile(0.94) == 0.0
    assert durations.percentile(0.95) == pytest.approx(1.0, rel=0.02)
    assert durations.count == 100


def test_there_is_no_percentile_of_nothing() -> None:
    assert Durations().percentile(0.5) is None


def test_what_is_taken_off_leaves_the_rest() -> None:
    """The window that moves on is what it would be if it had never heard of what it has left."""
    old, new = [0.001, 0.002, 1.0], [0.002, 0.5]
    window = noted(old + new)
    window.take_off(noted(old))
    assert window.count == 2
    for share in (0.0, 0.5, 0.99):
        assert window.percentile(share) == noted(new).percentile(share)
    window.take_off(noted(new))
    assert window.percentile(0.5) is None
