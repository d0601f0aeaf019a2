"""What happened since a pool was made. It reports, and takes part in no decision."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self


@dataclass
class Stats:
    """Cumulative numbers: loans, acquires that waited, timeouts, dials, drained messages.

    `wait_seconds` is what all waiting took together, `dial_seconds` the attempts that succeeded,
    token callables and `on_connect` included. `failures` counts the dials that failed by the
    `kind` of their error, `closes` the closed connections by `CloseReason`.
    """

    borrows: int = 0
    waits: int = 0
    wait_seconds: float = 0.0
    timeouts: int = 0
    dials: int = 0
    dial_seconds: float = 0.0
    drained_messages: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    closes: Counter[str] = field(default_factory=Counter)

    @property
    def dial_failures(self) -> int:
        """Dials that failed, for whatever cause."""
        return self.failures.total()

    def copy(self) -> Self:
        """Return the numbers of this moment, which stay as they are."""
        return replace(self, failures=self.failures.copy(), closes=self.closes.copy())

    def to_dict(self) -> dict[str, Any]:
        """Return it as dicts and numbers, as `json.dumps` takes them."""
        numbers = asdict(replace(self, failures=Counter(), closes=Counter()))
        return numbers | {"failures": dict(self.failures), "closes": dict(self.closes)}
