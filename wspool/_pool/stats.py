"""What happened since a pool was made. It reports, and takes part in no decision.

But for one: how fast the loans grow in number says how many a run may repeat (`repeating.py`).
"""

from __future__ import annotations

from collections import Counter
from copy import copy
from typing import Any, Final, Self

from wspool._connection.errors import (
    ConnectionPoolExhaustedError,
    ConnectionPoolTimeoutError,
    ConnectionPoolUnavailableError,
    ConnectionUnavailableError,
)
from wspool._connection.exporting import exported


@exported
class Stats:
    """What has happened since the pool was made: loans, waits, timeouts, dials, drained messages.

    `wait_seconds` is how long all waits took together, `dial_seconds` how long all attempts that
    succeeded took, token callables and `on_connect` included. `failures` counts the dials that
    failed by the `kind` of their error, `closes` the closed connections by `CloseReason`,
    `refusals` the acquires that got nothing by `CheckOutFailure`, apart from those that were
    cancelled. `repeats` is how often `run` has done its work once more, `overflows` how many
    streams have lost messages, since they did not read.
    """

    # No dataclass: with its module, that would be a sixth of the import of this package.
    borrows: int
    waits: int
    wait_seconds: float
    timeouts: int
    dials: int
    dial_seconds: float
    drained_messages: int
    repeats: int
    overflows: int
    failures: Counter[str]
    closes: Counter[str]
    refusals: Counter[str]

    def __init__(self, **numbers: Any) -> None:
        self.borrows = self.waits = self.timeouts = self.dials = self.drained_messages = 0
        self.repeats = self.overflows = 0
        self.wait_seconds = self.dial_seconds = 0.0
        self.failures, self.closes, self.refusals = Counter(), Counter(), Counter()
        vars(self).update(numbers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stats) and vars(self) == vars(other)

    def __repr__(self) -> str:
        return f"Stats({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    @property
    def dial_failures(self) -> int:
        """Dials that failed, for whatever cause."""
        return self.failures.total()

    def copy(self) -> Self:
        """Return the numbers of this moment, which stay as they are."""
        twin = copy(self)
        twin.failures, twin.closes = self.failures.copy(), self.closes.copy()
        twin.refusals = self.refusals.copy()
        return twin

    def add(self, other: Stats) -> None:
        """Add the numbers of another pool to these."""
        for name, number in vars(other).items():
            vars(self)[name] = vars(self)[name] + number

    def to_dict(self) -> dict[str, Any]:
        """Return it as dicts and numbers, as `json.dumps` takes them."""
        return vars(self) | {
            "failures": dict(self.failures),
            "closes": dict(self.closes),
            "refusals": dict(self.refusals),
        }


CANCELLED: Final = "cancelled"
"""Why a check-out failed that its own task has called off; no refusal."""

_REFUSALS: Final[list[tuple[type[BaseException], str]]] = [
    (ConnectionPoolTimeoutError, "timeout"),
    (ConnectionPoolExhaustedError, "exhausted"),
    (ConnectionPoolUnavailableError, "poolClosed"),
    (ConnectionUnavailableError, "connectionError"),
]
"""By what `acquire` raises, the value of a `CheckOutFailure`, whose module is not loaded here."""


def check_out_failure(error: BaseException) -> str:
    """Return why a check-out failed, from what `acquire` raised."""
    reasons = (reason for kind, reason in _REFUSALS if isinstance(error, kind))
    return next(reasons, CANCELLED)


def count_refusal(stats: Stats, error: BaseException) -> None:
    if (reason := check_out_failure(error)) != CANCELLED:
        stats.refusals[reason] += 1
