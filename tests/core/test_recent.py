"""What was measured of a pool, from events with times that the test makes up."""

from __future__ import annotations

from typing import Any

import pytest

from wspool import CloseReason, State
from wspool._debug.recent import MAX_SLOTS, WINDOW_SLOTS, Recent
from wspool.events import (
    CheckOutFailure,
    ConnectionCheckedIn,
    ConnectionCheckedOut,
    ConnectionCheckOutFailed,
    ConnectionCheckOutStarted,
    ConnectionClosed,
    ConnectionCreated,
    ConnectionDrained,
    ConnectionDrainStarted,
    ConnectionReady,
    StreamCheckedIn,
    StreamCheckedOut,
)

T0 = 1000.0


def lend(recent: Recent, at: float, seconds: float, id: int = 1) -> None:
    recent.hear(ConnectionCheckOutStarted("p", at))
    recent.hear(ConnectionCheckedOut("p", at, id, 0.0))
    recent.hear(ConnectionCheckedIn("p", at + seconds, id, seconds))


def means(recent: Recent, second: int) -> dict[str, float]:
    shown: dict[str, float] = recent.slots()[second]["means"]
    return {name: mean for name, mean in shown.items() if mean}


def test_use_is_measured_however_short_the_loans_are() -> None:
    """400 loans of a millisecond in a second are a use of 0.4, whenever one looks."""
    recent = Recent(T0)
    recent.see({("p", 1): State.IDLE}, [], T0)
    for n in range(400):
        lend(recent, T0 + n / 400, 0.001)
    recent.advance(T0 + 1)
    assert means(recent, 0) == pytest.approx({"busy": 0.4, "idle": 0.6})
    assert recent.slots()[0]["loans"] == 400


def test_a_loan_that_goes_on_counts_in_each_second() -> None:
    recent = Recent(T0)
    recent.see({("p", 1): State.IDLE}, [], T0)
    lend(recent, T0 + 0.75, 1.5)
    recent.advance(T0 + 3)
    assert [means(recent, n).get("busy", 0.0) for n in range(3)] == [0.25, 1.0, 0.25]


def test_a_connection_is_in_use_from_its_first_stream_to_its_last() -> None:
    recent = Recent(T0)
    recent.see({("p", 1): State.IDLE}, [], T0)
    for number, begin in enumerate((0.0, 0.25), 1):
        recent.hear(ConnectionCheckOutStarted("p", T0 + begin))
        recent.hear(StreamCheckedOut("p", T0 + begin, 1, number, number, 0.0))
    for number, end in enumerate((0.5, 0.75), 1):
        recent.hear(StreamCheckedIn("p", T0 + end, 1, number, number, 0.5))
    recent.advance(T0 + 1)
    assert means(recent, 0) == {"busy": 0.75, "idle": 0.25}, "and nobody waits any more"
    assert recent.slots()[0]["loans"] == 2
    assert recent.summary()["use"]["count"] == recent.summary()["wait"]["count"] == 2


def test_each_state_has_its_share_of_a_life() -> None:
    recent = Recent(T0)
    recent.hear(ConnectionCreated("p", T0, 7))
    recent.hear(ConnectionReady("p", T0 + 0.1, 7, 0.1))
    recent.hear(ConnectionCheckedOut("p", T0 + 0.3, 7, 0.3))
    recent.hear(ConnectionCheckedIn("p", T0 + 0.6, 7, 0.3))
    recent.hear(ConnectionDrainStarted("p", T0 + 0.6, 7))
    recent.hear(ConnectionDrained("p", T0 + 0.8, 7, 0.2))
    recent.hear(ConnectionClosed("p", T0 + 0.9, 7, "idle", CloseReason.SERVER, 1006, "", 0.9))
    recent.advance(T0 + 1)
    assert means(recent, 0) == pytest.approx(
        {"connecting": 0.1, "idle": 0.3, "busy": 0.3, "draining": 0.2, "closed": 0.1}
    )


def test_what_is_told_late_is_not_counted_twice() -> None:
    """A look may come between an event and its telling."""
    recent = Recent(T0)
    recent.see({("p", 1): State.BUSY}, [], T0)
    recent.hear(ConnectionCheckedOut("p", T0, 1, 0.0))
    recent.advance(T0 + 1)
    assert means(recent, 0) == {"busy": 1.0}


def test_a_look_puts_right_what_no_event_tells() -> None:
    recent = Recent(T0)
    recent.see({("p", 1): State.CLOSED, 2: State.IDLE}, [], T0)
    recent.see({("p", 2): State.BUSY}, [], T0 + 0.5)
    recent.advance(T0 + 1)
    assert means(recent, 0) == {"closed": 0.5, "idle": 0.5, "busy": 0.5}


def test_waiters_and_the_longest_wait_are_measured() -> None:
    recent = Recent(T0)
    recent.see({}, [0.5], T0)  # who waits when the measuring begins
    recent.hear(ConnectionCheckOutStarted("p", T0 + 0.5))
    recent.hear(ConnectionCheckedOut("p", T0 + 1.5, 1, 2.0))
    recent.hear(
        ConnectionCheckOutFailed("p", T0 + 2, CheckOutFailure.TIMEOUT, 1.5),
    )
    recent.advance(T0 + 3)
    waiting = [means(recent, n).get("waiting", 0.0) for n in range(3)]
    assert waiting == [1.5, 1.5, 0.0]
    assert [slot["longest_wait"] for slot in recent.slots()] == [0.5, 2.0, 1.5, 0.0]
    summary = recent.summary()["wait"]
    assert (summary["count"], summary["p50"]) == (2, pytest.approx(2.0, rel=0.02))


def test_refusals_and_losses_are_told_by_reason_but_nobodys_own_wish() -> None:
    recent = Recent(T0)
    for reason in (CheckOutFailure.TIMEOUT, CheckOutFailure.TIMEOUT, CheckOutFailure.CANCELLED):
        recent.hear(ConnectionCheckOutFailed("p", T0, reason, 1.0))
    for reason in (CloseReason.SERVER, CloseReason.IDLE, CloseReason.POOL, CloseReason.DIAL):
        recent.hear(ConnectionClosed("p", T0, 1, "idle", reason, None, "", 1.0))
    summary = recent.summary()
    assert summary["refused"] == {"timeout": 2}
    assert summary["lost"] == {"server": 1, "dial": 1}
    assert (recent.slots()[0]["refused"], recent.slots()[0]["lost"]) == (2, 2)


def counted(recent: Recent) -> Any:
    return recent.summary()["use"]["count"]


def test_a_minute_of_durations_is_kept_and_five_of_means() -> None:
    recent = Recent(T0)
    for n in range(400):
        lend(recent, T0 + n, 0.5 if n < 390 else 0.1)
    assert counted(recent) == WINDOW_SLOTS
    assert recent.summary()["use"]["p50"] == pytest.approx(0.5, rel=0.02)
    assert len(recent.slots()) == MAX_SLOTS + 1
    recent.advance(T0 + 399 + WINDOW_SLOTS - 1)
    assert counted(recent) == 1
    recent.advance(T0 + 399 + WINDOW_SLOTS)
    assert counted(recent) == 0
    assert recent.summary()["use"]["p95"] is None


def test_a_pool_that_was_quiet_for_days_is_measured_on_at_once() -> None:
    recent = Recent(T0)
    recent.see({("p", 1): State.IDLE}, [], T0)
    lend(recent, T0, 0.5)
    later = T0 + 10 * 86_400
    lend(recent, later, 0.5)
    recent.advance(later + 1)
    assert len(recent.slots()) == MAX_SLOTS + 1
    assert means(recent, 0) == {"idle": 1.0}
    assert means(recent, -2) == {"idle": 0.5, "busy": 0.5}
    assert counted(recent) == 1


def test_a_clock_that_is_set_back_stands_still() -> None:
    recent = Recent(T0)
    recent.see({("p", 1): State.IDLE}, [], T0)
    recent.advance(T0 + 2)
    lend(recent, T0 - 3600, 1.0)
    recent.advance(T0 + 3)
    assert means(recent, -2) == {"idle": 1.0}
    assert [slot["at"] for slot in recent.slots()] == [T0, T0 + 1, T0 + 2, T0 + 3]
