"""The budget: how long the pool reads in one turn of the event loop, whatever it reads for."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Final

TURN_SECONDS: Final = 0.002
"""Of reading, before the event loop goes on with what else it has to do."""

MIN_FRAMES: Final = 10
"""Taken off a wire whenever somebody looks, however much was read elsewhere in this turn."""


class Budget:
    """The reading time of one pool in the present turn of its loop."""

    __slots__ = ("_ends_at",)

    def __init__(self) -> None:
        # By perf_counter; None before something was read in this turn.
        self._ends_at: float | None = None

    @property
    def is_spent(self) -> bool:
        """Whether nothing more is to be read before the next turn. The first call begins it."""
        now = perf_counter()
        if self._ends_at is None:
            self._ends_at = now + TURN_SECONDS
            asyncio.get_running_loop().call_soon(self._begin_anew)
        return now > self._ends_at

    def _begin_anew(self) -> None:
        self._ends_at = None

    async def breathe(self) -> None:
        """Let the loop go on if this turn is used up."""
        if self.is_spent:
            await asyncio.sleep(0)
