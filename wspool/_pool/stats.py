"""What happened since a pool was made. It reports, and takes part in no decision."""

from __future__ import annotations

from collections import Counter
from copy import copy
from typing import Any, Self

from wspool._connection.exporting import exported


@exported
class Stats:
    """What has happened since the pool was made: loans, waits, timeouts, dials, drained messages.

    `wait_seconds` is how long all waits took together, `dial_seconds` how long all attempts that
    succeeded took, token callables and `on_connect` included. `failures` counts the dials that
    failed by the `kind` of their error, `closes` the closed connections by `CloseReason`.
    """

    # No dataclass: with its module, that would be a sixth of the import of this package.
    borrows: int
    waits: int
    wait_seconds: float
    timeouts: int
    dials: int
    dial_seconds: float
    drained_messages: int
    failures: Counter[str]
    closes: Counter[str]

    def __init__(self, **numbers: Any) -> None:
        self.borrows = self.waits = self.timeouts = self.dials = self.drained_messages = 0
        self.wait_seconds = self.dial_seconds = 0.0
        self.failures, self.closes = Counter(), Counter()
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
        return twin

    def to_dict(self) -> dict[str, Any]:
        """Return it as dicts and numbers, as `json.dumps` takes them."""
        return vars(self) | {"failures": dict(self.failures), "closes": dict(self.closes)}
