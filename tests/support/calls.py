"""Which functions are called, as the interpreter sees it."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from types import CodeType, FrameType
from typing import Any


async def called_by(function: Callable[[], Awaitable[object]]) -> list[CodeType]:
    """Return the code of each Python function that is called until this one has ended, in order.

    That of the function itself is the first; that a coroutine goes on counts as a call, too.
    """
    calls: list[CodeType] = []

    def note(frame: FrameType, event: str, arg: Any) -> None:
        if event == "call":
            calls.append(frame.f_code)

    sys.setprofile(note)
    try:
        await function()
    finally:
        sys.setprofile(None)
    return calls
