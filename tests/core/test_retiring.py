"""Why a link goes, and what is due on one: rules over times and counts, without a loop."""

from __future__ import annotations

import pytest

from wspool._connection.states import CloseReason
from wspool._pool.retiring import JITTER, NEVER, Retiring

EVER = float("-inf")


class Limits:
    """The settings that count."""

    idle_timeout: float = 60.0
    max_lifetime: float | None = None
    max_uses: int | None = None
    check_after_idle: float | None = None
    keepalive_interval: float | None = None

    def __init__(self, **limits: float | None) -> None:
        for name, value in limits.items():
            assert hasattr(self, name)
            setattr(self, name, value)


class Thing:
    """What grows old, with a clock that is set by hand."""

    def __init__(self, jitter: float = 0.0) -> None:
        self.now = 0.0
        self.jitter = jitter
        self.uses = 0
        self.idle_since = 0.0
        self.retire_at = NEVER
        self.retire_why = CloseReason.LIFETIME
        self.checked_at = EVER
        self.kept_alive_at = EVER
        self.clock = lambda: self.now


def retiring(**limits: float | None) -> Retiring:
    return Retiring(Limits(**limits))


# How long a life is.


def test_without_a_max_lifetime_it_ends_never() -> None:
    rules, thing = retiring(), Thing()
    rules.begin(thing, 100.0)
    assert thing.retire_at == NEVER
    thing.now = 1e12
    assert rules.why_returned(thing) is None
    assert rules.why_idle(thing, thing.now, is_spare=False) is None


@pytest.mark.parametrize(
    ("jitter", "retire_at"), [(0.0, 1100.0), (0.25, 1075.0), (0.5, 1050.0), (1.0, 1000.0)]
)
def test_a_life_is_as_long_as_max_lifetime_less_a_tenth_at_most(
    jitter: float, retire_at: float
) -> None:
    rules, thing = retiring(max_lifetime=1000.0), Thing(jitter)
    rules.begin(thing, 100.0)
    assert pytest.approx(0.1) == JITTER
    assert thing.retire_at == pytest.approx(retire_at)


def test_a_life_begins_when_it_is_told_to_and_not_at_birth() -> None:
    rules, thing = retiring(max_lifetime=10.0), Thing()
    assert thing.retire_at == NEVER
    thing.now = 3.0
    rules.begin(thing, 5.0)
    assert thing.retire_at == 15.0


# Given back.


def test_what_is_young_and_little_used_is_kept() -> None:
    rules, thing = retiring(max_lifetime=10.0, max_uses=5), Thing()
    rules.begin(thing, 0.0)
    thing.uses = 4
    assert rules.why_returned(thing) is None


@pytest.mark.parametrize(
    ("now", "why"), [(9.999, None), (10.0, CloseReason.LIFETIME), (11.0, CloseReason.LIFETIME)]
)
def test_given_back_at_the_end_of_its_life_it_goes(now: float, why: CloseReason | None) -> None:
    rules, thing = retiring(max_lifetime=10.0), Thing()
    rules.begin(thing, 0.0)
    thing.now = now
    assert rules.why_returned(thing) is why


@pytest.mark.parametrize(("uses", "why"), [(2, None), (3, CloseReason.USES), (4, CloseReason.USES)])
def test_given_back_for_the_last_time_it_goes(uses: int, why: CloseReason | None) -> None:
    rules, thing = retiring(max_uses=3), Thing()
    thing.uses = uses
    assert rules.why_returned(thing) is why


def test_without_a_max_uses_it_may_be_used_as_often_as_you_like() -> None:
    thing = Thing()
    thing.uses = 1_000_000
    assert retiring().why_returned(thing) is None


def test_what_has_expired_goes_when_it_is_given_back_once_its_time_is_over() -> None:
    rules, thing = retiring(), Thing()
    rules.expire(thing, 5.0)
    assert rules.why_returned(thing) is None
    assert rules.why_idle(thing, 4.9, is_spare=False) is None
    thing.now = 5.0
    assert rules.why_returned(thing) is CloseReason.EXPIRED
    assert rules.why_idle(thing, 5.0, is_spare=False) is CloseReason.EXPIRED


def test_the_earlier_end_counts() -> None:
    """Be it that it has expired, or that it is old: in whichever order that was said."""
    rules, first, second, third = retiring(max_lifetime=10.0), Thing(), Thing(), Thing()
    rules.begin(first, 0.0)
    rules.expire(first, 20.0)
    assert (first.retire_at, first.retire_why) == (10.0, CloseReason.LIFETIME)
    rules.expire(second, 5.0)
    rules.begin(second, 0.0)
    assert (second.retire_at, second.retire_why) == (5.0, CloseReason.EXPIRED)
    rules.expire(third, 30.0)
    rules.begin(third, 0.0)
    assert (third.retire_at, third.retire_why) == (10.0, CloseReason.LIFETIME)
    rules.expire(third, 5.0)
    rules.expire(third, 30.0)
    assert (third.retire_at, third.retire_why) == (5.0, CloseReason.EXPIRED)


def test_of_several_reasons_the_set_time_comes_first_then_the_uses() -> None:
    rules, thing = retiring(max_lifetime=10.0, max_uses=1), Thing()
    rules.begin(thing, 0.0)
    thing.uses = 1
    assert rules.why_returned(thing) is CloseReason.USES
    thing.now = 10.0
    assert rules.why_returned(thing) is CloseReason.LIFETIME
    rules.expire(thing, 10.0)
    assert rules.why_returned(thing) is CloseReason.EXPIRED


def test_who_says_that_it_goes_at_once_says_why() -> None:
    """So a lost lease of the quota is named, and not the lifetime."""
    rules, thing = retiring(), Thing()
    thing.retire_at, thing.retire_why = EVER, CloseReason.QUOTA
    assert rules.why_returned(thing) is CloseReason.QUOTA
    assert rules.why_idle(thing, 0.0, is_spare=False) is CloseReason.QUOTA


def test_how_long_it_was_idle_does_not_count_when_it_is_given_back() -> None:
    rules, thing = retiring(idle_timeout=1.0), Thing()
    thing.now = 100.0
    assert rules.why_returned(thing) is None


# Idle.


@pytest.mark.parametrize(
    ("now", "why"), [(109.0, None), (110.0, None), (110.001, CloseReason.IDLE)]
)
def test_idle_for_longer_than_idle_timeout_it_goes(now: float, why: CloseReason | None) -> None:
    rules, thing = retiring(idle_timeout=10.0), Thing()
    thing.idle_since = 100.0
    assert rules.why_idle(thing, now, is_spare=True) is why


def test_one_that_has_to_be_kept_ready_may_be_idle_for_ever() -> None:
    rules, thing = retiring(idle_timeout=10.0), Thing()
    assert rules.why_idle(thing, 1e12, is_spare=False) is None
    assert rules.why_idle(thing, 1e12, is_spare=True) is CloseReason.IDLE


@pytest.mark.parametrize("is_spare", [False, True])
@pytest.mark.parametrize(
    ("now", "why"), [(9.999, None), (10.0, CloseReason.LIFETIME), (11.0, CloseReason.LIFETIME)]
)
def test_one_that_has_to_be_kept_ready_is_not_kept_beyond_its_life(
    now: float, why: CloseReason | None, is_spare: bool
) -> None:
    """Another takes its place."""
    rules, thing = retiring(max_lifetime=10.0), Thing()
    rules.begin(thing, 0.0)
    assert rules.why_idle(thing, now, is_spare=is_spare) is why


def test_of_an_idle_one_the_lifetime_is_named_before_the_idleness() -> None:
    rules, thing = retiring(idle_timeout=1.0, max_lifetime=10.0), Thing()
    rules.begin(thing, 0.0)
    assert rules.why_idle(thing, 5.0, is_spare=True) is CloseReason.IDLE
    assert rules.why_idle(thing, 10.0, is_spare=True) is CloseReason.LIFETIME


def test_neither_a_check_nor_a_keepalive_begins_the_idleness_anew() -> None:
    rules, thing = retiring(idle_timeout=10.0), Thing()
    thing.checked_at = thing.kept_alive_at = 10.5
    assert rules.why_idle(thing, 11.0, is_spare=True) is CloseReason.IDLE


# Young.


@pytest.mark.parametrize(
    ("check_after_idle", "young_seconds"),
    [(None, 60.0), (0.0, 0.0), (5.0, 5.0), (60.0, 60.0), (90.0, 60.0)],
)
def test_young_is_what_is_idle_for_less_than_a_check_and_its_timeout_allow(
    check_after_idle: float | None, young_seconds: float
) -> None:
    rules = retiring(idle_timeout=60.0, check_after_idle=check_after_idle)
    assert rules.young_seconds == young_seconds


@pytest.mark.parametrize("check_after_idle", [None, 0.001, 5.0, 60.0, 90.0])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_on_what_is_young_nothing_is_due(check_after_idle: float | None, share: float) -> None:
    """This is what lets the routing lend it without a further look."""
    rules, thing = retiring(idle_timeout=60.0, check_after_idle=check_after_idle), Thing()
    now = share * rules.young_seconds
    assert not rules.is_check_due(thing, now)
    assert rules.why_idle(thing, now, is_spare=True) is None


# A check.


def test_without_check_after_idle_no_check_is_due() -> None:
    assert not retiring().is_check_due(Thing(), 1e12)


@pytest.mark.parametrize(("now", "is_due"), [(104.999, False), (105.0, True), (200.0, True)])
def test_a_check_is_due_when_it_is_idle_for_as_long_as_check_after_idle(
    now: float, is_due: bool
) -> None:
    rules, thing = retiring(check_after_idle=5.0), Thing()
    thing.idle_since = 100.0
    assert rules.is_check_due(thing, now) is is_due


@pytest.mark.parametrize(("now", "is_due"), [(107.999, False), (108.0, True)])
def test_after_a_check_the_next_is_due_as_much_later(now: float, is_due: bool) -> None:
    rules, thing = retiring(check_after_idle=5.0), Thing()
    thing.idle_since, thing.checked_at = 100.0, 103.0
    assert rules.is_check_due(thing, now) is is_due


def test_after_a_loan_a_check_of_the_time_before_does_not_count() -> None:
    rules, thing = retiring(check_after_idle=5.0), Thing()
    thing.checked_at, thing.idle_since = 50.0, 100.0
    assert not rules.is_check_due(thing, 104.0)
    assert rules.is_check_due(thing, 105.0)


def test_with_a_check_after_0_seconds_one_is_due_though_the_clock_has_not_moved() -> None:
    """The clock of uvloop has milliseconds only."""
    rules, thing = retiring(check_after_idle=0.0), Thing()
    thing.idle_since = 100.0
    assert rules.is_check_due(thing, 100.0)


def test_a_keepalive_does_not_stand_for_a_check() -> None:
    """It says what the hook makes of it; a check says that the server has answered a ping."""
    rules, thing = retiring(check_after_idle=5.0), Thing()
    thing.kept_alive_at = 5.0
    assert rules.is_check_due(thing, 5.0)


# A keepalive.


def test_without_keepalive_interval_no_keepalive_is_due() -> None:
    assert not retiring().is_keepalive_due(Thing(), 1e12)


@pytest.mark.parametrize(
    ("jitter", "now", "is_due"),
    [
        (0.0, 109.999, False),
        (0.0, 110.0, True),
        (0.5, 109.499, False),
        (0.5, 109.501, True),
        (1.0, 108.999, False),
        (1.0, 109.001, True),
    ],
)
def test_a_keepalive_is_due_after_its_interval_less_a_tenth_at_most(
    jitter: float, now: float, is_due: bool
) -> None:
    rules, thing = retiring(keepalive_interval=10.0), Thing(jitter)
    thing.idle_since = 100.0
    assert rules.is_keepalive_due(thing, now) is is_due


@pytest.mark.parametrize(("now", "is_due"), [(119.999, False), (120.0, True)])
def test_after_a_keepalive_the_next_is_due_an_interval_later(now: float, is_due: bool) -> None:
    rules, thing = retiring(keepalive_interval=10.0), Thing()
    thing.idle_since, thing.kept_alive_at = 100.0, 110.0
    assert rules.is_keepalive_due(thing, now) is is_due


def test_after_a_loan_a_keepalive_of_the_time_before_does_not_count() -> None:
    rules, thing = retiring(keepalive_interval=10.0), Thing()
    thing.kept_alive_at, thing.idle_since = 50.0, 100.0
    assert not rules.is_keepalive_due(thing, 109.0)
    assert rules.is_keepalive_due(thing, 110.0)


def test_a_check_does_not_stand_for_a_keepalive() -> None:
    """What a server counts as activity is more than a pong."""
    rules, thing = retiring(keepalive_interval=10.0), Thing()
    thing.checked_at = 9.0
    assert rules.is_keepalive_due(thing, 10.0)
