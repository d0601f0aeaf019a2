"""Thousands of schedules of borrowers, cancellations and a wild network: nothing goes wrong in any.

`WSPOOL_SCHEDULES=100000` makes it a soak. A failure names its seed; `explore(seed)` repeats it.
"""

from __future__ import annotations
import __future__

import asyncio
import inspect
import logging
import statistics
import textwrap
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from tests.explore.schedules import SCHEDULES, Outcome, Violation, explore
from wspool import quota
from wspool._connection import aiohttp_internals, link, loan
from wspool._pool import (
    attending,
    capacity,
    errands,
    limit,
    patience,
    repeating,
    replacing,
    retiring,
    routing,
    supply,
    upkeep,
    waiting,
)

FACTORY = getattr(asyncio, "eager_task_factory", None)


class Fault(NamedTuple):
    """A bug to be put back: the number of the pathology, its story, and the code that makes it."""

    number: int
    story: str
    function: Any
    right: str
    wrong: str


FAULTS = [
    Fault(
        1,
        "a link that was served to a loan that was cancelled in the same tick is lost",
        routing.Router._leave_line,
        "self._pass_on(loan, loan._link)",
        "pass",
    ),
    Fault(
        2,
        "a cancellation at the hand-over is swallowed",
        routing.Router.wait,
        "self._leave_line(loan)",
        "if loan._link is not None:\n                return\n            self._leave_line(loan)",
    ),
    Fault(
        4,
        "a cancelled loan is still served",
        waiting.Line.oldest,
        "if not loan._waiter.done():",
        "if True:",
    ),
    Fault(
        7,
        "the place of a failed dial is not freed",
        supply.Supply.failed,
        "dial.link.close(CloseReason.DIAL, cause=failure)",
        "pass",
    ),
    Fault(
        7,
        "a failed dial speaks to those who came after it had begun",
        patience.Patience.speak,
        "if loan._arrival < failed.number:",
        "if True:",
    ),
    Fault(
        7,
        "a failed dial ends the wait of those whom another will serve",
        patience.Patience.speak,
        "bisect_right(begun, loan._horizon)",
        "0",
    ),
    Fault(
        20,
        "dials that began later prolong a wait",
        patience.Patience.speak,
        "bisect_right(begun, loan._horizon)",
        "len(begun)",
    ),
    Fault(
        20,
        "a server that refuses everybody is dialled for those whose hope is at work",
        patience.Patience.entitled,
        "loan._horizon is None or loan._horizon < first",
        "True",
    ),
    Fault(
        19,
        "a checkout leaves nothing ready for the next one",
        routing.Router.lend_idle,
        "if self.options.min_idle or self.replacing.outdated:",
        "if self.replacing.outdated:",
    ),
    Fault(
        19,
        "a checkout that was waited for leaves nothing ready for the next one",
        routing.Router._serve,
        "if self.options.min_idle or self.replacing.outdated:",
        "if self.replacing.outdated:",
    ),
    Fault(
        10,
        "what is to be ready is dialled beyond the limit",
        supply.Supply.refill,
        ", self._capacity.room",
        ", 9",
    ),
    Fault(
        10,
        "a lowered limit does not count at the start",
        supply.Supply.start,
        "min(wanted, self._capacity.room)",
        "wanted",
    ),
    Fault(
        10,
        "several probes are under way at a time",
        vars(limit.Limit)["is_due"].fget,
        "not self.trials and",
        "",
    ),
    Fault(
        10,
        "what is to be ready is dialled beyond what the server admits",
        supply.Supply.refill,
        ", self._capacity.room",
        ", self._capacity.room + self._capacity.may_probe",
    ),
    Fault(
        10,
        "the first refusal of a full server calls off nothing",
        supply.Supply._keep_to_limit,
        "other.close(CloseReason.DIAL)",
        "pass",
    ),
    Fault(
        7,
        "a probe that shows nothing is for ever on trial",
        limit.Limit.withdrawn,
        "self._leave(link)",
        "pass",
    ),
    Fault(
        5,
        "a probe that is admitted raises nothing",
        limit.Limit.admitted,
        "self.learned + 1",
        "self.learned",
    ),
    Fault(
        5,
        "nobody asks a full server again",
        upkeep._look_for_room,
        "router.route()",
        "pass",
    ),
    Fault(
        11,
        "at a full server one that may not wait waits for a borrower",
        vars(capacity.Capacity)["coming"].fget,
        "self._limit.most",
        "self._limit._limits.max_connections",
    ),
    Fault(
        14,
        "a link that was lost in the tick in which it was served is lent",
        routing.Router.wait,
        "not loan._owns(link)",
        "False",
    ),
    Fault(
        10,
        "a place is free before its socket is gone",
        aiohttp_internals.Transport.close,
        "await self.wait_gone()",
        "pass",
    ),
    Fault(
        14,
        "nobody looks at what arrived before a checkout",
        attending.Attending.next_idle,
        "has_news or link.is_flooding",
        "False",
    ),
    Fault(
        15,
        "the late reply to a cancelled borrower is read by the next",
        routing.Router.give_back,
        "is_failed = loan._has_sent and (is_failed or loan._has_given_up)",
        "is_failed = False",
    ),
    Fault(
        15,
        "a loan that is over still speaks and reads",
        loan.WebsocketConnection._wire,
        "link.owner is not self",
        "link.owner is None",
    ),
    Fault(
        1,
        "a checked link whose waiter was cancelled is lost",
        routing.Router._returned,
        "self.errands.end(owner)",
        "self.errands.end(owner) if self.line else None",
    ),
    Fault(
        14,
        "a link that did not answer its check is lent",
        errands.Errand._check,
        "raise Discard(CloseReason.STALE) from None",
        "pass",
    ),
    Fault(
        8,
        "a check counts as promising though its server is mute",
        errands.Errands.promised,
        "self.is_suspicious or",
        "",
    ),
    Fault(
        11,
        "an errand counts as a loan",
        vars(capacity.Capacity)["errands"].fget,
        "link.loan is None",
        "False",
    ),
    Fault(
        26,
        "the time limit of a keepalive is not kept",
        errands.Errand._run,
        "asyncio.timeout(options.connection_timeout)",
        "asyncio.timeout(None)",
    ),
    Fault(
        1,
        "a lease of the quota given to a dial that was cancelled in the same tick is lost",
        quota.LeaseQueue._acquire,
        "self.release(lease)",
        "pass",
    ),
    Fault(
        10,
        "a lease is given back before its socket is gone",
        link.Link.drop_wire,
        "await self.close_wire(timeout)",
        "self._return_permit(); await self.close_wire(timeout)",
    ),
    Fault(
        19,
        "an old one that is borrowed in its grace is not replaced",
        replacing.Replacing.note_lent,
        "self.wanted[link] = None",
        "pass",
    ),
    Fault(
        19,
        "those that are lent when all expire are not replaced",
        replacing.Replacing.expire,
        "if link.loan is not None or",
        "if",
    ),
    Fault(
        18,
        "at the limit more than one go before a replacement is open",
        replacing.Replacing.refill,
        "not (self._queues.connecting or self._queues.closed)",
        "True",
    ),
    Fault(
        18,
        "the grace is not kept",
        replacing.Replacing.expire,
        "now + grace)",
        "now)",
    ),
    Fault(
        16,
        "the grace does not end",
        retiring.Retiring.expire,
        "if at <= link.retire_at:",
        "if False:",
    ),
    Fault(
        10,
        "replacements are dialled beyond the limit",
        replacing.Replacing.refill,
        "min(short, room)",
        "short",
    ),
    Fault(
        15,
        "what the server has answered is done once more",
        repeating.Attempt.was_in_vain,
        "wire.received_messages == self._received",
        "True",
    ),
    Fault(
        20,
        "what a fresh connection has lost is done once more",
        repeating.Attempt.was_in_vain,
        "is_lost and self.loan.reused",
        "is_lost",
    ),
    Fault(
        14,
        "a loss of a reused connection is not made up for",
        repeating.Repeating.may_repeat,
        "not attempt.was_in_vain()",
        "True",
    ),
    Fault(
        14,
        "work is repeated on another of the idle ones",
        repeating.Repeating.again,
        "timeout, True)",
        "timeout)",
    ),
]


@pytest.fixture(autouse=True)
def nobody_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong on purpose, thousands of times, is not formatted."""
    monkeypatch.setattr(logging.getLogger("wspool"), "disabled", True)


def explored(seed: int, **options: Any) -> Outcome:
    """Explore a seed; what goes wrong names it."""
    try:
        return explore(seed, **options)
    except Exception as error:
        error.add_note(f"in schedule {seed}: tests.explore.schedules.explore({seed}) repeats it")
        raise


def test_every_schedule_keeps_the_promises(capsys: pytest.CaptureFixture[str]) -> None:
    """No invariant breaks in any step; 90 % of the schedules differ, each by 15 choices or more."""
    traces, decisions, steps = set[str](), list[int](), list[int]()
    events = Counter[str]()
    for seed in range(SCHEDULES):
        outcome = explored(seed)
        traces.add(outcome.trace)
        decisions.append(outcome.decisions)
        steps.append(outcome.steps)
        events += outcome.events
    distinct = len(traces) / SCHEDULES
    with capsys.disabled():
        print(
            f"\n{SCHEDULES} schedules, {distinct:.1%} distinct; decision points: at least "
            f"{min(decisions)}, median {statistics.median(decisions):.0f}; steps: median "
            f"{statistics.median(steps):.0f}; in all "
            + ", ".join(f"{count} {event}" for event, count in events.most_common())
        )
    assert distinct >= 0.9
    assert min(decisions) >= 15
    # The schedules are as wild as they are meant to be.
    rare = {"cancelled", "waits", "timeouts", "dial_failures", "server", "drain", "pool", "room"}
    rare |= {"quota", "check", "stale", "keepalive", "error", "expired", "repeats"}
    rare |= {"full", "limited"}
    assert all(events[event] for event in rare), events


@pytest.mark.parametrize("seed", [0, 1, 42, 1234, 99999])
def test_a_seed_replays_exactly(seed: int) -> None:
    """The same seed gives the same trace, step by step."""
    assert explored(seed) == explored(seed)


@pytest.mark.skipif(FACTORY is None, reason="Python 3.12 or newer")
def test_schedules_of_eager_tasks() -> None:
    """The promises hold when tasks of the program's begin to run where they are made."""
    for seed in range(SCHEDULES // 10):
        explored(seed, task_factory=FACTORY)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.number}: {fault.story}")
def test_a_fault_put_back_is_found(
    fault: Fault, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fault that other pools had is found within 2,000 schedules."""
    monkeypatch.setattr(fault.function, "__code__", compiled(fault).__code__)
    for seed in range(2000):
        try:
            explore(seed)
        except Violation as violation:
            with capsys.disabled():
                print(f"\n#{fault.number}, {fault.story}: found by schedule {seed}: {violation}")
            return
    pytest.fail(f"nobody notices that {fault.story}")


def compiled(fault: Fault) -> Callable[..., Any]:
    source = textwrap.dedent(inspect.getsource(fault.function))
    assert fault.right in source
    flags = __future__.annotations.compiler_flag
    code = compile(source.replace(fault.right, fault.wrong), "<fault>", "exec", flags=flags)
    namespace: dict[str, Any] = {}
    exec(code, fault.function.__globals__, namespace)
    compiled = namespace[fault.function.__name__]
    function: Callable[..., Any] = getattr(compiled, "fget", compiled)  # of a property
    return function
