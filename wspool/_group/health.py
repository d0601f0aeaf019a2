"""Health: whether a member of a group is in, until when it is out, and why.

Rules over times and counts. This file knows neither loop nor network: whoever asks says what the
time is, and makes the probes.
"""

from __future__ import annotations

from typing import Final

PAUSE_SECONDS: Final = 10.0
"""For which a member is out, and again as many times as probes have failed since."""

MAX_PAUSE_SECONDS: Final = 300.0

MAX_LOSSES: Final = 5
"""Connections lost in loans, in a row, that put a member out."""


class Health:
    """The health of one member. All times are of one clock, in seconds."""

    __slots__ = ("failed_probes", "losses", "out_until", "why")

    def __init__(self) -> None:
        # When the next probe is due; None: it is in.
        self.out_until: float | None = None
        self.why = ""
        # Since it was in last, and in a row.
        self.failed_probes = 0
        self.losses = 0

    @property
    def is_in(self) -> bool:
        return self.out_until is None

    def lost(self) -> bool:
        """Count a connection that was lost in a loan; return whether that is one too many."""
        self.losses += 1
        return self.losses >= MAX_LOSSES

    def go_out(self, now: float, why: str) -> None:
        """Be out, for the first time or because a probe has failed."""
        if not self.is_in:
            self.failed_probes += 1
        pause = PAUSE_SECONDS * max(1, self.failed_probes)
        self.out_until, self.why = now + min(pause, MAX_PAUSE_SECONDS), why

    def eject(self, now: float, seconds: float, why: str) -> None:
        """Be out for so long."""
        self.out_until, self.why = now + seconds, why

    def come_back(self) -> None:
        """Be in: a probe has lived."""
        self.out_until, self.why = None, ""
        self.failed_probes = self.losses = 0


def may_go_out(out: int, members: int) -> bool:
    """Return whether one more of so many members may be out: half of them at most."""
    return 2 * (out + 1) <= members
