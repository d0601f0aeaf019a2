"""Offers: which idle links a process has for others of the fleet that wait. It knows no Redis.

A process hears that somebody waits, or that nobody does any more. While somebody does, each idle
link is offered once its time has come. No process knows how long others' links are idle, so this
time says it: the longer one has been idle, the sooner it is offered. Redis takes of what is offered
as much as is missing, and the rest hears that nothing is.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable
from typing import Final

from wspool.quota import Holder, longest_idle

HOLD_SECONDS: Final = 0.2
"""After which a link is offered that has just become idle: most are lent again before."""

SOONER_SECONDS: Final = 0.01
"""By how much sooner one is offered that is idle for twice as long, beyond `UNIT_SECONDS`.

It is more than a question takes in one data centre.
"""

UNIT_SECONDS: Final = 0.1


def due_at(idle_since: float, called_at: float) -> float:
    """Return when a link is offered, at the latest when it was idle for 28 hours at the call."""
    sooner = SOONER_SECONDS * math.log2(1 + max(0.0, called_at - idle_since) / UNIT_SECONDS)
    return max(idle_since, called_at) + max(0.0, HOLD_SECONDS - sooner)


class Offers:
    """What the pools of one loop can do without. `on_due` is called when there is something."""

    def __init__(
        self, holders: Callable[[], Iterable[Holder]], on_due: Callable[[], object]
    ) -> None:
        self._holders, self._on_due = holders, on_due
        # The loop's time since when somebody is known to wait.
        self._called_at: float | None = None
        self._alarm: asyncio.Handle | None = None

    def hear(self, *, is_wanted: bool) -> None:
        """Note whether somebody waits, here or in another process."""
        if is_wanted == (self._called_at is not None):
            return
        self.stop()
        if is_wanted:
            loop = asyncio.get_running_loop()
            self._called_at = loop.time()
            self._alarm = loop.call_soon(self._look)

    def stop(self) -> None:
        """Offer nothing."""
        self._called_at = None
        if self._alarm is not None:
            self._alarm.cancel()

    def _due(self) -> list[float]:
        """Return when each idle link is offered."""
        if self._called_at is None:
            return []
        idle = (since for holder in self._holders() for since in holder.idle_times)
        return [due_at(since, self._called_at) for since in idle]

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now, due = loop.time(), self._due()
        # What becomes idle meanwhile is not due before the next look.
        following = min((at for at in due if at > now), default=now + HOLD_SECONDS)
        self._alarm = loop.call_at(max(following, now + SOONER_SECONDS), self._look)
        if any(at <= now for at in due):
            self._on_due()

    def count(self) -> int:
        """Return how many links may be taken now."""
        due = self._due()
        return sum(at <= asyncio.get_running_loop().time() for at in due) if due else 0

    def give_up(self, count: int) -> None:
        """Close so many of the longest-idle links, or those that are still there."""
        for _ in range(count):
            holder = longest_idle(self._holders())
            if holder is None:
                return
            holder.give_up()
