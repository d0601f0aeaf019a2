"""The portal alone: what other threads ask of an event loop, and what becomes of the thread.

Its resident is a class of this module's own. The tests are plain functions, in the main thread, so
that they can be interrupted as by Ctrl+C. What needs a process of its own is a program.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from asyncio import selector_events
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

import pytest

from tests import ROOT
from tests.parts.test_blocking import GivenUp, at_once, pool_threads, spin_until, too_late
from wspool._pool import calls
from wspool._pool import portal as module
from wspool._pool.portal import Portal

needs_signals = pytest.mark.skipif(
    not hasattr(signal, "SIGUSR1"), reason="there are no such signals"
)


class Resident:
    """What lives in the loop of a portal, with whoever works in it."""

    name = "the resident"

    def __init__(self) -> None:
        # The arguments of its closings.
        self.closings: list[float | None] = []
        # While it is clear, a closing goes on.
        self.may_close = threading.Event()
        self.may_close.set()
        # What came of those who worked in it: results that were undone, and cancellations.
        self.undone: list[object] = []
        self.cancelled: list[str] = []
        self.is_at_work = threading.Event()

    def __repr__(self) -> str:
        return "<Resident>"

    async def close_all(self, timeout: float | None) -> None:
        self.closings.append(timeout)
        while not self.may_close.is_set():
            await asyncio.sleep(0.001)

    async def work(self) -> str:
        """Go on for as long as the resident is open."""
        self.is_at_work.set()
        try:
            while not self.closings:
                await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            self.cancelled.append("work")
            raise
        return "the resident has closed"


@pytest.fixture
def resident() -> Resident:
    return Resident()


@pytest.fixture
def portal(resident: Resident) -> Iterator[Portal]:
    """A portal that nobody has called; it is closed when the test ends, and its thread is gone."""
    portal = Portal(resident, exit_timeout=5.0, made_at=f"{__file__}:1")
    yield portal
    resident.may_close.set()
    portal.close(0.0)
    assert not portal.is_running
    assert not portal.tasks
    spin_until(lambda: not pool_threads())


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as threads:
        yield threads


async def nothing() -> None:
    pass


# Results, errors and time limits.


def test_a_call_runs_in_the_loops_thread_and_returns_what_the_function_does(
    portal: Portal,
) -> None:
    assert portal.call(lambda: 42) == 42
    assert portal.call(lambda: threading.current_thread().name) == "wspool the resident"
    assert portal.call(asyncio.get_running_loop) is portal._lives[0].loop
    assert len(pool_threads()) == 1
    assert portal.is_running


def test_a_wait_returns_what_the_coroutine_does_and_its_task_has_the_threads_name(
    portal: Portal, threads: ThreadPoolExecutor
) -> None:
    async def name_of_task() -> str:
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task in portal.tasks
        return task.get_name()

    assert portal.wait(name_of_task) == threading.current_thread().name
    name = threads.submit(lambda: (threading.current_thread().name, portal.wait(name_of_task)))
    assert len(set(name.result())) == 1
    spin_until(lambda: not portal.tasks)


@pytest.mark.parametrize("kind", [KeyError, SystemExit, asyncio.CancelledError])
def test_an_error_is_the_callers_and_the_loop_goes_on(
    portal: Portal, kind: type[BaseException]
) -> None:
    raised: list[BaseException] = []

    def fail() -> None:
        raised.append(kind("what it says"))
        raise raised[-1]

    async def fail_later() -> None:
        await asyncio.sleep(0)
        fail()

    for ask in (lambda: portal.call(fail), lambda: portal.wait(fail_later)):
        with pytest.raises(kind, match="what it says") as caught:
            ask()
        assert caught.value is raised[-1]
        assert caught.traceback[-1].name == "fail", "it says where"
    assert portal.call(lambda: "still here") == "still here"


def test_an_error_keeps_nothing_alive(portal: Portal) -> None:
    """Neither the portal nor the traceback makes a cycle of it."""

    class Failure(Exception):
        pass

    def fail() -> None:
        raise Failure

    async def fail_later() -> None:
        fail()

    gc.collect()
    gc.disable()
    try:
        for ask in (lambda: portal.call(fail), lambda: portal.wait(fail_later)):
            with pytest.raises(Failure):
                ask()
            # Not at once: the loop's thread has to let go of it, too.
            spin_until(lambda: not any(isinstance(o, calls.Call) for o in gc.get_objects()))
    finally:
        gc.enable()


def test_a_time_limit_cancels_the_work_and_is_a_timeout_error(
    portal: Portal, resident: Resident
) -> None:
    with pytest.raises(TimeoutError):
        portal.wait(resident.work, timeout=0.01)
    assert resident.cancelled == ["work"]
    assert portal.wait(nothing, timeout=10.0) is None
    spin_until(lambda: not portal.tasks)


def test_threads_work_beside_each_other(portal: Portal, threads: ThreadPoolExecutor) -> None:
    """Each of them waits for all the others, in the loop."""
    here: set[int] = set()

    async def meet(number: int) -> int:
        here.add(number)
        while len(here) < 8:
            await asyncio.sleep(0.001)
        return number

    asked = [threads.submit(portal.wait, lambda n=number: meet(n)) for number in range(8)]
    assert [one.result(timeout=10.0) for one in asked] == [*range(8)]
    assert len(pool_threads()) == 1


def test_soon_waits_for_nothing_and_may_be_called_by_anybody(portal: Portal) -> None:
    called: list[int] = []
    portal.call(lambda: portal.soon(called.append, 1))
    portal.soon(called.append, 2)
    portal.call(int)
    assert called == [1, 2]


def test_whoever_looks_sees_what_was_left_to_the_loop_beside_others(portal: Portal) -> None:
    """Also where another thread leaves something to it at the same time, and is done before."""
    done: list[str] = []
    portal.call(int)
    life = portal._lives[0]
    enter = life.enter

    def enter_after_another(function: Callable[[], object]) -> bool:
        life.enter = enter  # type: ignore[method-assign]
        portal.later(lambda: done.append("the other's"))
        spin_until(lambda: done)
        return enter(function)

    life.enter = enter_after_another  # type: ignore[method-assign]
    portal.later(lambda: (time.sleep(0.1), done.append("its own")))
    portal.catch_up()
    assert done == ["the other's", "its own"]


def test_whoever_looks_does_not_wait_for_a_loop_that_waits_for_it(
    portal: Portal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may hold a lock that a listener wants."""
    monkeypatch.setattr(module, "CATCH_UP_SECONDS", 0.01)
    lock = threading.Lock()
    portal.call(int)
    with lock:
        portal.later(lambda: lock.acquire(timeout=30.0))
        portal.catch_up()
        assert portal._late
    portal.call(int)
    assert not portal._late


def test_whoever_enters_again_and_again_lets_the_loop_go_on(portal: Portal) -> None:
    is_over = threading.Event()
    entries: list[int] = []

    def enter_again() -> None:
        entries.append(1)
        if not is_over.is_set() and len(entries) < 100_000:
            portal.soon(enter_again)

    def begin() -> None:
        asyncio.get_running_loop().call_soon(is_over.set)
        enter_again()

    portal.call(begin)
    spin_until(is_over.is_set)
    assert len(entries) < 100


def test_whoever_enters_while_the_loop_is_awake_need_not_wake_it(
    portal: Portal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To wake it up is half of what a call costs."""
    is_busy, may_go_on = threading.Event(), threading.Event()
    called: list[int] = []
    wakings: list[Any] = []
    portal.call(int)
    loop: Any = portal._lives[0].loop
    wake = loop.call_soon_threadsafe
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *a: (wakings.append(a), wake(*a)))
    portal.soon(lambda: (is_busy.set(), may_go_on.wait(30.0)))
    assert is_busy.wait(30.0)
    for number in range(100):
        portal.soon(called.append, number)
    may_go_on.set()
    spin_until(lambda: len(called) == 100)
    assert called == [*range(100)]
    assert len(wakings) <= 1


# Whoever is interrupted.


@contextmanager
def interrupted_when(condition: Callable[[], object]) -> Iterator[None]:
    """Raise GivenUp in the main thread, as Ctrl+C would, as soon as a condition is true."""

    def give_up(*_: object) -> None:
        raise GivenUp

    def interrupt() -> None:
        spin_until(condition)
        assert main.ident is not None
        signal.pthread_kill(main.ident, signal.SIGUSR1)

    main = threading.main_thread()
    before = signal.signal(signal.SIGUSR1, give_up)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        yield
        thread.join()
    except GivenUp:
        return
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    raise AssertionError("nothing was interrupted")


@needs_signals
def test_a_wait_that_is_interrupted_is_cancelled(portal: Portal, resident: Resident) -> None:
    with interrupted_when(resident.is_at_work.is_set):
        portal.wait(resident.work, undo=resident.undone.append)
    spin_until(lambda: not portal.tasks)
    assert (resident.cancelled, resident.undone) == (["work"], [])
    assert portal.call(lambda: "still here") == "still here"


def test_a_result_that_comes_when_nobody_takes_it_any_more_is_undone_once(
    portal: Portal, resident: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def get() -> str:
        return "a connection"

    with monkeypatch.context() as patch:
        patch.setattr(calls.Call, "outcome", too_late(calls.Call.outcome))
        with pytest.raises(GivenUp):
            portal.wait(get, undo=resident.undone.append)
        with pytest.raises(GivenUp):
            portal.wait(get)  # there is nothing to undo
    portal.call(int)
    assert resident.undone == ["a connection"]
    assert portal.wait(get, undo=resident.undone.append) == "a connection"
    assert resident.undone == ["a connection"], "it was taken"


def test_an_error_that_comes_too_late_is_nobodys(
    portal: Portal, resident: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        raise KeyError

    def outcome(call: Any, life: object) -> None:
        spin_until(lambda: call.error)
        raise GivenUp

    with monkeypatch.context() as patch:
        patch.setattr(calls.Call, "outcome", outcome)
        with pytest.raises(GivenUp):
            portal.wait(fail, undo=resident.undone.append)
    portal.call(int)
    assert resident.undone == []


def test_what_is_given_up_before_the_loop_has_come_to_it_never_begins(
    portal: Portal, resident: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on = threading.Event()
    portal.soon(may_go_on.wait)  # nothing yet: there is no loop
    portal.call(int)
    portal.soon(may_go_on.wait)
    with monkeypatch.context() as patch:
        patch.setattr(calls.Call, "outcome", at_once(calls.Call.outcome))
        with pytest.raises(GivenUp):
            portal.wait(resident.work, undo=resident.undone.append)
    may_go_on.set()
    portal.call(int)
    spin_until(lambda: not portal.tasks)
    assert not resident.is_at_work.is_set()
    assert resident.undone == []


def test_what_is_given_up_before_its_first_step_is_not_waited_for(
    portal: Portal, resident: Resident
) -> None:
    """In one turn of the loop, where the task has not begun unless it begins eagerly."""
    errand = calls.Work(resident.work, None, None, portal.tasks)
    portal.call(lambda: (errand.begin(), errand.give_up()))
    spin_until(lambda: not portal.tasks)
    portal.close(0.0)


def test_a_wait_that_is_interrupted_before_its_entry_has_done_nothing(
    portal: Portal, resident: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(portal, "_enter", at_once(print))
        with pytest.raises(GivenUp):
            portal.wait(resident.work, undo=resident.undone.append)
    assert not pool_threads()
    assert portal.wait(nothing) is None
    assert not resident.is_at_work.is_set()
    assert resident.undone == []


@needs_signals
def test_a_call_that_is_interrupted_is_done(portal: Portal) -> None:
    may_go_on, done = threading.Event(), threading.Event()
    is_at_work = threading.Event()

    def work() -> None:
        is_at_work.set()
        may_go_on.wait()
        done.set()

    with interrupted_when(is_at_work.is_set):
        portal.call(work)
    may_go_on.set()
    portal.call(int)
    assert done.is_set()


@needs_signals
def test_a_closing_that_is_interrupted_goes_on(portal: Portal, resident: Resident) -> None:
    portal.call(int)
    resident.may_close.clear()
    with interrupted_when(lambda: resident.closings):
        portal.close(None)
    assert portal.is_running
    resident.may_close.set()
    portal.close(0.0)
    assert resident.closings == [None]
    assert not pool_threads()


# Whoever calls in the middle of another call: a signal handler, or a finaliser.


class Intruder:
    """Calls a function once, as a signal handler would, in the midst of what its thread does.

    That is after so many steps. In the portal's files a step is an instruction of the interpreter,
    in the files below a line, and nothing elsewhere.
    """

    FILES: Final = {module.__file__, calls.__file__}
    BELOW: Final = {threading.__file__, asyncio.base_events.__file__, selector_events.__file__}

    def __init__(self, after: int, function: Callable[[], object]) -> None:
        self.left = after
        self._function = function

    def __enter__(self) -> Intruder:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, arg: object) -> Any:
        file = frame.f_code.co_filename
        frame.f_trace_opcodes = file in self.FILES
        frame.f_trace_lines = file in self.BELOW
        if event in ("opcode", "line"):
            self.left -= 1
            if self.left == 0:
                self._function()
        return self._trace


def end_of(story: Callable[[], object]) -> None:
    """Run a story in a thread of its own; fail if it has no end."""
    raised: list[BaseException] = []

    def tell() -> None:
        try:
            story()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    thread.join(20.0)
    assert not thread.is_alive(), "it hangs"
    for error in raised:
        raise error


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of beginnings that were too late
@pytest.mark.parametrize("name", ["close", "call", "soon"])
def test_between_any_two_instructions_of_a_thread_the_portal_may_be_called_by_it(name: str) -> None:
    """A signal handler closes it, or waits for the loop; a finaliser tells the loop something.

    Closing is for any time; for the others there is a thread already.
    """
    called: list[int] = []
    intrusions: dict[str, Callable[[Portal], object]] = {
        "close": lambda portal: portal.close(0.0),
        "call": lambda portal: portal.call(lambda: called.append(1)),
        "soon": lambda portal: portal.soon(called.append, 1),
    }
    for after in itertools.count(1):
        resident = Resident()
        portal = Portal(resident, exit_timeout=5.0, made_at=f"{__file__}:1")
        called.clear()
        intruder = Intruder(after, lambda portal=portal: intrusions[name](portal))

        def story(portal: Portal = portal, intruder: Intruder = intruder) -> None:
            if name != "close":
                portal.call(int)
            with intruder:
                portal.call(int)
                portal.wait(nothing)
                portal.soon(int)
                portal.close(0.0)

        end_of(story)
        assert resident.closings[:1] == [0.0]
        assert not portal.is_running
        assert len(called) <= 1
        if intruder.left > 0:
            break
    assert after > 300
    spin_until(lambda: not pool_threads())


def test_every_wait_looks_up_now_and_then(
    portal: Portal, resident: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a wait for a lock cannot be interrupted, Ctrl+C has its turn between two of them."""
    limits: list[float] = []

    class Lock:
        def __init__(self) -> None:
            self._lock = threading.Lock()
            self.release = self._lock.release

        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            if self._lock.locked() and blocking:
                limits.append(timeout)
            return self._lock.acquire(blocking, timeout)

    monkeypatch.setattr(calls, "allocate_lock", Lock)
    monkeypatch.setattr(calls, "POLL_SECONDS", 0.01)
    with pytest.raises(TimeoutError):
        portal.wait(resident.work, timeout=0.1)
    resident.may_close.clear()
    portal.soon(resident.may_close.set)
    portal.close(None)
    assert len(limits) > 3
    assert all(0.0 <= limit <= 0.01 for limit in limits)


# A thread that has ended before its time.


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_calls_fail_when_the_loops_thread_has_ended_and_nobody_waits_for_ever(
    resident: Resident,
    threads: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(calls, "POLL_SECONDS", 0.01)
    portal = Portal(resident, exit_timeout=5.0, made_at=f"{__file__}:1")
    waiting = [threads.submit(portal.wait, resident.work) for _ in range(3)]
    spin_until(lambda: len(portal.tasks) == 3)
    life_task = next(t for t in asyncio.all_tasks(portal._lives[0].loop) if t not in portal.tasks)
    portal.soon(life_task.cancel)  # as a hook can that cancels whatever there is
    for one in waiting:
        with pytest.raises(RuntimeError, match="has ended before its time"):
            one.result(timeout=10.0)
    for ask in (lambda: portal.call(int), lambda: portal.wait(nothing)):
        with pytest.raises(RuntimeError, match="Make a new pool"):
            ask()
    portal.soon(int)
    portal.close(0.0)
    assert not portal.is_running
    assert "the event loop of <Resident> has ended before its time" in caplog.text
    for task in portal.tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    spin_until(lambda: not pool_threads())


def test_a_loop_that_is_stopped_closes_the_resident(
    portal: Portal, resident: Resident, caplog: pytest.LogCaptureFixture
) -> None:
    portal.call(int)
    loop = portal._lives[0].loop
    assert loop is not None
    portal.soon(loop.stop)
    spin_until(lambda: not portal.is_running)
    assert resident.closings == [0.0]
    assert "has ended <Resident>" in caplog.text


# Closing, and afterwards.


def test_close_returns_when_the_resident_is_closed_and_the_thread_has_ended(
    portal: Portal,
    resident: Resident,
    threads: ThreadPoolExecutor,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """However many close it; the first one says how long borrowers have."""
    portal.call(int)
    resident.may_close.clear()
    first = threads.submit(portal.close, 3.0)
    spin_until(lambda: resident.closings)
    others = [threads.submit(portal.close, 0.0) for _ in range(3)]
    assert portal.call(lambda: "may still be called") == "may still be called"
    assert not any(closing.done() for closing in (first, *others))
    resident.may_close.set()
    for closing in (first, *others):
        closing.result(timeout=10.0)
        assert not portal.is_running
    assert resident.closings == [3.0]
    assert not caplog.records
    spin_until(lambda: not pool_threads())


def test_who_waits_when_it_closes_gets_what_comes_of_that(
    portal: Portal, resident: Resident, threads: ThreadPoolExecutor
) -> None:
    waiting = [threads.submit(portal.wait, resident.work) for _ in range(3)]
    spin_until(lambda: len(portal.tasks) == 3)
    portal.close(0.0)
    assert {one.result(timeout=10.0) for one in waiting} == {"the resident has closed"}


def test_who_enters_in_the_last_moment_is_not_forgotten(
    portal: Portal,
    resident: Resident,
    threads: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When the closing of the resident is over, and the loop has not looked up yet."""
    waiting: list[Future[str]] = []
    has_entered = threading.Event()

    def enter_and_tell(begin: Callable[[], object]) -> bool:
        is_open = enter(begin)
        has_entered.set()
        return is_open

    async def close_all(timeout: float | None) -> None:
        resident.closings.append(timeout)
        waiting.append(threads.submit(portal.wait, resident.work))
        has_entered.wait()

    portal.call(int)
    enter = portal._enter
    monkeypatch.setattr(portal, "_enter", enter_and_tell)
    monkeypatch.setattr(resident, "close_all", close_all)
    portal.close(0.0)
    assert waiting[0].result(timeout=10.0) == "the resident has closed"


def test_afterwards_a_call_does_nothing_and_what_need_not_wait_is_done(
    portal: Portal, resident: Resident
) -> None:
    async def refuse() -> None:
        raise ConnectionError("the resident is closed")

    called: list[int] = []
    portal.call(int)
    for _ in range(2):
        portal.close(0.0)
    assert portal.call(lambda: called.append(1)) is None
    portal.soon(called.append, 2)
    portal.stop()
    assert called == []
    with pytest.raises(ConnectionError, match="is closed"):
        portal.wait(refuse)
    assert portal.wait(nothing, timeout=1.0, undo=called.append) is None
    assert resident.closings == [0.0]
    assert not pool_threads()


def test_a_resident_that_breaks_in_its_closing_leaves_nobody_waiting(
    portal: Portal,
    resident: Resident,
    threads: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def break_down(timeout: float | None) -> None:
        resident.closings.append(timeout)
        raise OSError

    monkeypatch.setattr(resident, "close_all", break_down)
    waiting = threads.submit(portal.wait, resident.work)
    spin_until(resident.is_at_work.is_set)
    portal.close(0.0)
    assert "OSError" in caplog.text
    assert waiting.result(timeout=10.0) == "the resident has closed"
    assert portal.call(int) is None


def test_what_exits_in_the_loop_ends_the_portal_and_not_the_program(
    portal: Portal,
    resident: Resident,
    threads: ThreadPoolExecutor,
    caplog: pytest.LogCaptureFixture,
) -> None:
    waiting = threads.submit(portal.wait, resident.work)
    spin_until(resident.is_at_work.is_set)
    portal.soon(sys.exit, "the disk is full")
    assert waiting.result(timeout=10.0) == "the resident has closed"
    spin_until(lambda: not portal.is_running)
    assert resident.closings == [0.0]
    assert "has ended <Resident>" in caplog.text
    assert portal.call(int) is None


def test_stop_begins_the_closing_and_waits_for_nothing(portal: Portal, resident: Resident) -> None:
    portal.call(int)
    resident.may_close.clear()
    portal.stop(2.0)
    spin_until(lambda: resident.closings)
    assert portal.is_running
    resident.may_close.set()
    spin_until(lambda: not portal.is_running)
    assert resident.closings == [2.0]


# Before the start, and in the wrong place.


def test_one_that_was_never_called_has_no_thread_and_closes(
    portal: Portal, resident: Resident
) -> None:
    portal.soon(print, "nobody hears this")
    portal.stop()
    assert not portal.is_running
    assert not portal.is_foreign
    portal.close(0.5)
    assert resident.closings == [0.5]
    assert portal.call(int) is None
    assert portal.wait(nothing) is None
    assert not pool_threads()


def test_first_calls_of_several_threads_begin_one_thread(
    portal: Portal, threads: ThreadPoolExecutor
) -> None:
    together = threading.Barrier(8)

    def call() -> object:
        together.wait()
        return portal.call(asyncio.get_running_loop)

    calls = [threads.submit(call) for _ in range(8)]
    assert {one.result(timeout=10.0) for one in calls} == {portal._lives[0].loop}
    for thread in pool_threads():
        if thread.ident != portal._lives[0].ident:
            thread.join(10.0)  # it has begun at the same time, and ends at once
    assert len(pool_threads()) == 1


def test_without_a_thread_to_be_had_the_call_fails_and_the_next_one_tries_again(
    portal: Portal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        for ask in (lambda: portal.call(int), lambda: portal.wait(nothing)):
            with pytest.raises(RuntimeError, match="can't start"):
                ask()
    assert not portal.is_running
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)  # as after a fork
        assert not portal.is_foreign, "it may begin there"
    assert portal.call(lambda: "it began") == "it began"


def test_in_its_own_thread_whatever_waits_is_refused(portal: Portal, resident: Resident) -> None:
    refused = {
        "call": lambda: portal.call(int),
        "wait": lambda: portal.wait(nothing),
        "close": lambda: portal.close(0.0),
    }
    for ask in refused.values():
        with pytest.raises(RuntimeError, match=r"<Resident> was called .* wait for itself"):
            portal.call(ask)
    assert portal.call(lambda: "still here") == "still here"
    assert resident.closings == []


def test_a_later_thread_with_the_number_of_the_loops_is_not_taken_for_it(portal: Portal) -> None:
    """The system gives the number of one that has ended to the next."""
    number = portal.call(threading.get_ident)
    portal.close(0.0)
    for _ in range(1000):
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(portal.call, int).result() is None
            if thread.submit(threading.get_ident).result() == number:
                return


# Programs.

RESIDENT = """\
import asyncio, os, sys, warnings
from wspool._pool.portal import Portal

class Resident:
    name = "the resident"
    lingers = False

    def __repr__(self):
        return "<Resident>"

    async def close_all(self, timeout):
        print("closed:", timeout, flush=True)
        if self.lingers:
            await asyncio.Event().wait()

resident = Resident()
portal = Portal(resident, exit_timeout=float(sys.argv[1]), made_at="here.py:1")
"""


def run(program: str, exit_timeout: float = 5.0) -> tuple[list[str], str]:
    """Run a program to its good end; return the lines that it printed, and its complaints."""
    ended = subprocess.run(
        [sys.executable, "-W", "default", "-c", RESIDENT + program, str(exit_timeout)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60.0,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines(), ended.stderr


FORKED = """\
def in_child(function):
    sys.stdout.flush()
    child = os.fork()
    if not child:
        function()
        sys.stdout.flush()
        sys.exit()
    assert os.waitpid(child, 0)[1] == 0

async def process():
    return os.getpid()

def use():
    print("in the child:", portal.call(os.getpid) == os.getpid() == portal.wait(process))
    portal.close(1.0)

def use_in_vain():
    print("foreign:", portal.is_foreign, portal.is_running)
    for use in (lambda: portal.call(os.getpid), lambda: portal.wait(process)):
        try:
            use()
        except RuntimeError as error:
            processes = f"process {os.getppid()}", f"process {os.getpid()}, forked"
            print("refused:", [text in str(error) for text in processes])
    portal.soon(print, "nobody hears this")
    portal.stop()
    portal.close(2.0)

# Python 3.12 warns of each fork beside threads.
warnings.filterwarnings("ignore", "This process", DeprecationWarning)
in_child(use)
print("in the parent:", portal.call(os.getpid) == os.getpid())
in_child(use_in_vain)
print("in the parent:", portal.call(os.getpid) == os.getpid())
portal.close(3.0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork_begins_a_thread_of_its_own_or_is_refused() -> None:
    printed, complaints = run(FORKED)
    assert complaints == ""
    assert printed == [
        *("in the child: True", "closed: 1.0"),
        "in the parent: True",
        "foreign: True False",
        *["refused: [True, True]"] * 2,
        *("in the parent: True", "closed: 3.0"),
    ]


@pytest.mark.parametrize("lingers", [False, True])
def test_the_end_of_a_program_closes_what_is_open_and_does_not_wait_for_ever(
    lingers: bool,
) -> None:
    program = f"Resident.lingers = {lingers}\nportal.call(int)"
    printed, complaints = run(program, exit_timeout=0.1 if lingers else 30.0)
    assert printed == ["closed: 0.0"]
    assert "ResourceWarning: <Resident>, made at here.py:1, was still open" in complaints
    assert "Traceback" not in complaints


def test_the_end_of_a_program_says_nothing_of_what_is_closed_or_was_never_called() -> None:
    assert run("portal.call(int); portal.close(1.0)") == (["closed: 1.0"], "")
    assert run("") == ([], "")
