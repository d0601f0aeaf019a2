"""Retiring: why a link goes, when it is given back and while it is idle, and what is due.

Rules over times and counts of one link. This file knows neither loop nor network; whoever asks
closes the link.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from wspool._connection.states import CloseReason

NEVER: Final = float("inf")

JITTER: Final = 0.1
"""Share of max_lifetime and keepalive_interval by which a link's turn may come earlier, so that not
all have theirs at once."""


class Aging(Protocol):
    """What the rules look at."""

    clock: Callable[[], float]
    jitter: float
    uses: int
    idle_since: float
    retire_at: float
    retire_why: CloseReason
    checked_at: float
    kept_alive_at: float


class Limits(Protocol):
    """The settings that count here."""

    idle_timeout: float
    max_lifetime: float | None
    max_uses: int | None
    check_after_idle: float | None
    keepalive_interval: float | None


class Retiring:
    """The rules of one pool. All times are of one clock, in seconds."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        # Seconds for which an idle link is too young for anything to be due.
        after = limits.check_after_idle
        self.young_seconds = (
            limits.idle_timeout if after is None else min(after, limits.idle_timeout)
        )

    def begin(self, link: Aging, now: float) -> None:
        """Say at the beginning of its life when that ends."""
        if self._limits.max_lifetime is not None:
            end = now + self._limits.max_lifetime * (1 - JITTER * link.jitter)
            if end < link.retire_at:
                link.retire_at, link.retire_why = end, CloseReason.LIFETIME

    def expire(self, link: Aging, at: float) -> None:
        """Let a link go at this time, if it would not go before."""
        if at <= link.retire_at:
            link.retire_at, link.retire_why = at, CloseReason.EXPIRED

    def why_returned(self, link: Aging) -> CloseReason | None:
        """Return why a link goes that was given back, if it does."""
        if link.retire_at < NEVER and link.clock() >= link.retire_at:
            return link.retire_why
        max_uses = self._limits.max_uses
        if max_uses is not None and link.uses >= max_uses:
            return CloseReason.USES
        return None

    def why_idle(self, link: Aging, now: float, *, is_spare: bool) -> CloseReason | None:
        """Return why an idle link goes, if it does; `is_spare`: none has to be kept ready."""
        if now >= link.retire_at:
            return link.retire_why
        if is_spare and now - link.idle_since > self._limits.idle_timeout:
            return CloseReason.IDLE
        return None

    def is_check_due(self, link: Aging, now: float) -> bool:
        """Return whether an idle link must answer a ping before anybody gets it."""
        after = self._limits.check_after_idle
        return after is not None and now - max(link.idle_since, link.checked_at) >= after

    def is_keepalive_due(self, link: Aging, now: float) -> bool:
        """Return whether an idle link must show a sign of life."""
        interval = self._limits.keepalive_interval
        if interval is None:
            return False
        since = max(link.idle_since, link.kept_alive_at)
        return now - since >= interval * (1 - JITTER * link.jitter)
