"""What happened since a pool was made. It reports, and takes part in no decision."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Stats:
    """Cumulative numbers: loans, acquires that waited, timeouts, dials, and closes by reason."""

    borrows: int = 0
    waits: int = 0
    timeouts: int = 0
    dials: int = 0
    dial_failures: int = 0
    drained_messages: int = 0
    closes: Counter[str] = field(default_factory=Counter)
