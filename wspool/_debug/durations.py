"""Durations in few numbers, of which percentiles can be read: a histogram with growing buckets.

Each bucket's bound is 4 % above the one before, so that what is read is within 2 % of what was
noted, whatever its size: the layout of DDSketch, in an ordinary dict. A minute of loans has
some fifty buckets. Histograms of one kind are added and taken off, bucket by bucket: so a window
that moves is the sum of its parts.
"""

from __future__ import annotations

import math
from typing import Final

LEAST_SECONDS: Final = 1e-6
"""What is shorter counts as nothing: the wait for a connection that was idle."""

_GROWTH: Final = 1.04
_SCALE: Final = 1 / math.log(_GROWTH)


def bucket_of(seconds: float) -> int:
    """Return the number of the bucket of a duration; that of one below LEAST_SECONDS is 0."""
    if seconds < LEAST_SECONDS:
        return 0
    return 1 + int(math.log(seconds / LEAST_SECONDS) * _SCALE)


class Durations:
    """How often durations of each size were seen."""

    __slots__ = ("_buckets", "count")

    def __init__(self) -> None:
        # By the number of the bucket.
        self._buckets: dict[int, int] = {}
        self.count = 0

    def add(self, bucket: int) -> None:
        """Note a duration, by its bucket."""
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self.count += 1

    def take_off(self, other: Durations) -> None:
        """Forget what is in the other one, all of which was added to this."""
        for bucket, count in other._buckets.items():
            self._buckets[bucket] -= count
            if not self._buckets[bucket]:
                del self._buckets[bucket]
        self.count -= other.count

    def percentile(self, share: float) -> float | None:
        """Return the seconds that this share stays below, within 2 %; None if there are none."""
        left = min(int(share * self.count), self.count - 1)
        for bucket, count in sorted(self._buckets.items()):
            left -= count
            if left < 0:
                return LEAST_SECONDS * _GROWTH ** (bucket - 0.5) if bucket else 0.0
        return None
