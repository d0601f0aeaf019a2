"""How long the turns of an event loop take, in the processor's time of its thread.

What the machine does for others does not count, and neither does what the transports do, which is
asyncio's reading and writing and aiohttp's parsing of what has arrived, or the garbage collector:
what is left is the pool and its users, and the parsing that they set off by reading on.
"""

from __future__ import annotations

import asyncio
import gc
from asyncio import selector_events
from time import thread_time
from typing import Any

from aiohttp.client_proto import ResponseHandler

run_handle = asyncio.Handle._run
drain_tail = ResponseHandler._drain_tail


class TimedLoop(asyncio.SelectorEventLoop):
    """An event loop that knows its longest turn, and what in it took longest."""

    def __init__(self) -> None:
        super().__init__()
        self.longest = 0.0
        self.culprit = ""
        self._spent = self._longest_step = 0.0
        self._step = ""
        # Of the present step: what is none of the pool's.
        self._others = 0.0

        self._collection_began = 0.0
        gc.callbacks.append(self._collects)

    def close(self) -> None:
        super().close()
        gc.callbacks.remove(self._collects)

    def _collects(self, phase: str, _: object) -> None:
        if phase == "start":
            self._collection_began = thread_time()
        else:
            self._others += thread_time() - self._collection_began

    def begin_anew(self) -> None:
        """Forget the turns so far, the present one included."""
        self.longest = self._spent = self._longest_step = 0.0
        self.culprit = ""

    def _run_once(self) -> None:
        self._spent = self._longest_step = 0.0
        super()._run_once()  # type: ignore[misc]
        if self._spent > self.longest:
            self.longest, self.culprit = self._spent, self._step

    def _run(self, handle: Any) -> None:
        owner = getattr(handle._callback, "__self__", None)
        if isinstance(owner, selector_events._SelectorTransport):  # type: ignore[attr-defined]
            return run_handle(handle)
        self._others = 0.0
        began = thread_time()
        try:
            run_handle(handle)
        finally:
            took = thread_time() - began - self._others
            self._spent += took
            if took > self._longest_step:
                self._longest_step = took
                self._step = f"{owner or handle!r} took {took * 1000:.0f} ms"


def _run(handle: Any) -> None:
    loop = handle._loop
    if isinstance(loop, TimedLoop):
        loop._run(handle)
    else:
        run_handle(handle)


def _drain_tail(protocol: Any) -> None:
    """Parse what came together with a handshake's answer, which aiohttp does in the dial's task."""
    began = thread_time()
    drain_tail(protocol)
    if isinstance(protocol._loop, TimedLoop):
        protocol._loop._others += thread_time() - began


ResponseHandler._drain_tail = _drain_tail  # type: ignore[method-assign]
asyncio.Handle._run = _run  # type: ignore[method-assign]
