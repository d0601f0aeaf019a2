"""An error at any await of the pool's own tasks, and at any step of the upkeep, costs little.

What is injected stands for a fault of the package, or of what it stands on: nothing is expected
there. It may cost the connection at hand; every place can be had afterwards, the log has it once
with its traceback, and closing works.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
from collections.abc import Coroutine
from contextlib import suppress
from types import FrameType
from typing import Any

import pytest

from tests import IS_WHOLE
from tests.explore.schedules import CORE, Loop, World
from tests.pool.test_cancellation import CASES, Case
from wspool import WebsocketError
from wspool._connection import budget
from wspool._pool import upkeep
from wspool._pool.tasks import Tasks


class Panic(BaseException):
    """Of a Rust extension, or gevent's Timeout: no Exception, and no end of the program."""


ERRORS = [ValueError, MemoryError, Panic] if IS_WHOLE else [ValueError, Panic]

OPERATIONS = ["acquire", "drain", "keepalive", "close_all", "release"]
"""Those of the cancellation tests in which the pool's own tasks do the work."""

spawn = Tasks.spawn


class Injected(Coroutine[Any, Any, Any]):
    """A task's coroutine into which, as it would go on, an error may be thrown instead."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], injection: Injection) -> None:
        self._coroutine, self._injection = coroutine, injection
        self._has_begun = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coroutine, name)

    def send(self, value: Any) -> Any:
        if self._has_begun and (error := self._injection.due(self._coroutine)) is not None:
            return self._coroutine.throw(error)
        self._has_begun = True
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        return self._coroutine.throw(*error)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Any:
        return self._coroutine.__await__()


class Injection:
    """An error for the k-th of the occasions that there are."""

    def __init__(self, k: int, kind: type[BaseException]) -> None:
        self.k, self.kind = k, kind
        self.occasions = 0
        self.is_armed = False
        self.where = ""
        self.error: BaseException | None = None

    def due(self, where: object) -> BaseException | None:
        """Return the error if this is the occasion."""
        if not self.is_armed:
            return None
        self.occasions += 1
        if self.occasions != self.k:
            return None
        self.where = str(where)
        self.error = self.kind("injected")
        return self.error


class Log(logging.Handler):
    """Keeps the errors that were logged with a traceback."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.errors: list[BaseException | None] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            assert record.exc_info[2] is not None
            self.errors.append(record.exc_info[1])


@pytest.fixture(autouse=True)
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """The upkeep takes a breath after each connection, and what is logged is kept."""
    monkeypatch.setattr(budget, "TURN_SECONDS", -1.0)
    handler = Log()
    monkeypatch.setattr(logging.getLogger("wspool"), "handlers", [handler])
    monkeypatch.setattr(logging.getLogger("wspool"), "propagate", False)
    return handler


def run(case: Case, injection: Injection) -> int:
    """Play the case with the injection, see that the pool is whole; return how many dials failed.

    That is: every place can be had, closing leaves nothing, nothing has reached the loop.
    """
    world = World(Loop(0, is_shuffling=False), case.temper, **case.options)

    async def act() -> None:
        with suppress(WebsocketError):
            await case.act(world)

    async def main() -> None:
        await case.before(world)
        injection.is_armed = True
        await world.loop.create_task(act())
        await asyncio.sleep(0.6)  # for drains, goodbyes and the upkeep to go on
        injection.is_armed = False
        upkeep_task = world.pool._upkeep_task
        if upkeep_task is not None and not world.pool.is_closed:
            assert not upkeep_task.done()
        await world.finish()

    world.run(main())
    return world.pool.stats.failures.total()


def is_dial(injection: Injection) -> bool:
    """Return whether the error was one of a dial's, which whoever waits for it is told."""
    return "Supply._work" in injection.where


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_error_at_any_await_of_the_pools_tasks_costs_a_connection_at_most(
    operation: str, kind: type[BaseException], log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    occasions = 0
    for case in (case for case in CASES if case.operation == operation):
        for k in itertools.count(1):
            injection = Injection(k, kind)

            def injected(
                tasks: Tasks, coroutine: Any, *more: Any, injection: Injection = injection
            ) -> Any:
                return spawn(tasks, Injected(coroutine, injection), *more)

            monkeypatch.setattr(Tasks, "spawn", injected)
            log.errors.clear()
            try:
                failed_dials = run(case, injection)
                if injection.error is None:
                    break
                logged = log.errors.count(injection.error)
                assert logged <= 1
                if is_dial(injection):  # then whoever waits for it is told
                    assert logged or failed_dials
                elif not issubclass(kind, Exception):  # those are losses, where aiohttp reads
                    assert logged
            except BaseException as error:
                error.add_note(f"in {case!r}, {kind.__name__} at {k}: {injection.where}")
                raise
            occasions += 1
    assert occasions > 5


def calls_from(module: Any, frame: FrameType) -> bool:
    """Return whether a function of the package is called by one of this module's."""
    caller = frame.f_back
    return (
        caller is not None
        and caller.f_code.co_filename == module.__file__
        and caller.f_code is not module.begin.__code__  # which is the pool's start
        and frame.f_code.co_filename.startswith(str(CORE))
        and frame.f_code.co_filename != module.__file__
    )


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_in_any_step_of_the_upkeep_is_logged_once_and_the_next_step_comes(
    kind: type[BaseException], log: Log
) -> None:
    """Whatever the upkeep calls breaks down once: the sweep, the keepalive, the refill, …"""
    cases = [case for case in CASES if case.operation in ("keepalive", "drain")]
    where = set()
    for case in cases:
        for k in itertools.count(1):
            injection = Injection(k, kind)

            def trace(
                frame: FrameType, event: str, _: Any, injection: Injection = injection
            ) -> None:
                if event == "call" and calls_from(upkeep, frame):
                    error = injection.due(frame.f_code.co_name)
                    if error is not None:
                        raise error

            log.errors.clear()
            sys.settrace(trace)
            try:
                run(case, injection)
                if injection.error is None:
                    break
                assert log.errors.count(injection.error) == 1
            except BaseException as error:
                error.add_note(f"in {case!r}, {kind.__name__} at {k}: {injection.where}")
                raise
            finally:
                sys.settrace(None)
            where.add(injection.where)
    assert where >= {"attend", "look_for_life", "watch_minimum", "is_keepalive_due", "begin"}
