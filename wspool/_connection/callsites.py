"""Where in the code of the pool's users somebody has borrowed, and where that task is now."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

import aiohttp

Callsite = tuple[CodeType, int, "asyncio.Task[Any] | None"]
"""Who borrowed, and where, as cheap to note as can be: code object, instruction and task."""

_LIBRARIES: Final = (
    str(Path(__file__).parent.parent) + os.sep,
    *(str(Path(file).parent) + os.sep for file in (asyncio.__file__, aiohttp.__file__)),
    contextlib.__file__,
)


def line_of(callsite: Callsite) -> str:
    """Return where a borrower called `acquire`, as `file:line`."""
    code, instruction, _ = callsite
    line = next(islice(code.co_positions(), instruction // 2, None))[0]
    return f"{code.co_filename}:{line}"


def in_own_code(frame: FrameType) -> FrameType:
    """Return the innermost frame, from this one outwards, that is in no library's code."""
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        frame = frame.f_back
    return frame


def task_name(callsite: Callsite) -> str | None:
    task = callsite[2]
    return task.get_name() if task is not None else None


def at_work_in(callsite: Callsite) -> str | None:
    """Return where a borrower's task waits now, in code of its own, as `file:line in function`."""
    task = callsite[2]
    if task is None or task.done():
        return None
    own = [f for f in _frames(task) if not f.f_code.co_filename.startswith(_LIBRARIES)]
    if not own:
        return None
    innermost = own[-1]
    return f"{innermost.f_code.co_filename}:{innermost.f_lineno} in {innermost.f_code.co_name}"


def _frames(task: asyncio.Task[Any]) -> Iterator[FrameType]:
    """Give the frames of a task, from the outermost coroutine to what it waits for."""
    awaited: Any = task.get_coro()
    while awaited is not None:
        if type(awaited).__name__.startswith("async_generator_a"):  # asend, athrow
            awaited = next(filter(inspect.isasyncgen, gc.get_referents(awaited)), None)
        for kind in ("cr", "gi", "ag"):  # coroutine, generator, asynchronous generator
            frame = getattr(awaited, f"{kind}_frame", None)
            if frame is not None:
                yield frame
                awaited = getattr(awaited, f"{kind}_yieldfrom" if kind == "gi" else f"{kind}_await")
                break
        else:
            return
