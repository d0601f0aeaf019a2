"""Schedules in which borrowers share connections, and the faults that sharing one could have."""

from __future__ import annotations

import logging
from collections import Counter

import pytest

from tests.explore.schedules import SCHEDULES, Outcome, Violation, explore_streams
from tests.explore.test_schedules import Fault, compiled
from wspool._connection import sharing, stream
from wspool._pool import streaming, waiting

FAULTS = [
    Fault(
        1,
        "whoever reads for all goes, and hands over to nobody",
        sharing.Sharing.hand_over,
        "waiter is not None",
        "False",
    ),
    Fault(
        2,
        "a message is for whoever has the first slot",
        sharing.Sharing.sort,
        "lane = self.keys.get(key)",
        "lane = next(iter(self.lanes.values()), None)",
    ),
    Fault(
        3,
        "who waits is not woken by what another has read for it",
        sharing.Lane.put,
        "waiter is not None",
        "False",
    ),
    Fault(
        4,
        "an answer that was given up reaches whoever has the connection alone",
        sharing.Sharing.end,
        "self.is_unclean or is_given_up",
        "False",
    ),
    Fault(
        5,
        "a share that was served to a stream that was cancelled in the same tick is lost",
        streaming.Streaming.pass_on,
        "self._end(lane, is_clean=True)",
        "pass",
    ),
    Fault(
        6,
        "a slot that was freed is offered to nobody",
        streaming.Streaming._end,
        "self._on_free()",
        "pass",
    ),
    Fault(
        7,
        "a link takes more streams than it has slots",
        streaming.Streaming.next_shared,
        "< full",
        "< full + 1",
    ),
    Fault(
        8,
        "a link whose last stream is over stays busy",
        streaming.Streaming._end,
        "self._on_emptied(link)",
        "pass",
    ),
    Fault(
        9,
        "the keys of a stream that is over stay claimed",
        sharing.Sharing.end,
        "del self.keys[key]",
        "pass",
    ),
    Fault(
        10,
        "a stream that was left behind still speaks",
        stream.WebsocketStream._wire,
        "lane.owner is not self",
        "False",
    ),
    Fault(
        11,
        "each stream that waits has a dial of its own",
        waiting.Places.total.fget,
        "-(-self._streams // self._max_streams)",
        "0",
    ),
]


@pytest.fixture(autouse=True)
def nobody_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong on purpose, thousands of times, is not formatted."""
    monkeypatch.setattr(logging.getLogger("wspool"), "disabled", True)


def explored(seed: int) -> Outcome:
    """Explore a seed; what goes wrong names it."""
    try:
        return explore_streams(seed)
    except Exception as error:
        where = "tests.explore.schedules.explore_streams"
        error.add_note(f"in schedule {seed}: {where}({seed}) repeats it")
        raise


def test_every_schedule_of_streams_keeps_the_promises(capsys: pytest.CaptureFixture[str]) -> None:
    """No stream reads another's message, no slot is lost, and nobody waits beside a free one."""
    traces, events = set[str](), Counter[str]()
    for seed in range(SCHEDULES):
        outcome = explored(seed)
        traces.add(outcome.trace)
        events += outcome.events
    with capsys.disabled():
        print(f"\n{SCHEDULES} schedules of streams, {len(traces)} distinct; in all {events}")
    assert len(traces) >= 0.9 * SCHEDULES
    rare = {"cancelled", "waits", "timeouts", "dial_failures", "server", "drain", "pool", "uses"}
    assert all(events[event] for event in rare), events


@pytest.mark.parametrize("seed", [0, 42, 1234])
def test_a_seed_replays_exactly(seed: int) -> None:
    assert explored(seed) == explored(seed)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.story)
def test_a_fault_of_sharing_is_found(
    fault: Fault, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Within 2,000 schedules."""
    monkeypatch.setattr(fault.function, "__code__", compiled(fault).__code__)
    for seed in range(2000):
        try:
            explore_streams(seed)
        except (Violation, RuntimeError) as found:
            with capsys.disabled():
                print(f"\n{fault.story}: found by schedule {seed}: {found}")
            return
    pytest.fail(f"nobody notices that {fault.story}")
