"""What the server admits, learned from its refusals: no loop, no network, a clock of our own."""

from __future__ import annotations

import logging

import pytest

from wspool import ConnectionClosedError, ConnectionUnavailableError, WebsocketError
from wspool._pool.limit import (
    EVICTION_SECONDS,
    FIRST_PAUSE_SECONDS,
    FORGOTTEN_SECONDS,
    MAX_PAUSE_SECONDS,
    Limit,
)


class Settings:
    """Those that count."""

    def __init__(self) -> None:
        self.max_connections = 50
        self.learn_limit = True
        self.is_full: object = None


class Case:
    """A limit, its clock, and what it has told."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.settings = Settings()
        self.told: list[int | None] = []
        self.limit = Limit(self.settings, lambda limit, why: self.told.append(limit))  # type: ignore[arg-type]
        self.limit.clock = lambda: self.now

    def refuse(self, others: int, retry_after: float | None = None, link: object = "one") -> None:
        self.limit.refused("status 429", others, link, retry_after)

    def probe(self) -> None:
        assert self.limit.is_due
        self.limit.begin("probe", is_probe=True)

    def seconds_to_probe(self) -> float:
        """Return in how many seconds the next probe is due."""
        return max(0.0, self.limit._due - self.now)


@pytest.fixture
def case() -> Case:
    return Case()


# Which refusals say so.


def unavailable(kind: str, status: int | None = None) -> ConnectionUnavailableError:
    return ConnectionUnavailableError(kind=kind, status=status)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (unavailable("status 429", 429), True),
        (unavailable("status 503", 503), True),
        (unavailable("status 403", 403), False),
        (unavailable("proxy", 503), False),
        (unavailable("network"), False),
        (ConnectionClosedError(code=1013), True),
        (ConnectionClosedError(code=1008), False),
    ],
)
def test_429_503_and_1013_say_that_it_is_full(
    case: Case, error: WebsocketError, expected: bool
) -> None:
    """But not the status of a proxy, which says nothing of the server."""
    assert case.limit.says_full(error) is expected
    case.settings.learn_limit = False
    assert not case.limit.says_full(error)


def test_is_full_adds_what_a_provider_uses(case: Case) -> None:
    case.settings.is_full = lambda error: getattr(error, "code", None) == 4008
    assert case.limit.says_full(ConnectionClosedError(code=4008))
    assert case.limit.says_full(unavailable("status 429", 429))
    assert not case.limit.says_full(ConnectionClosedError(code=4009))


def test_is_full_that_raises_says_no_and_is_logged(
    case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    def is_full(error: WebsocketError) -> bool:
        raise KeyError("status")

    case.settings.is_full = is_full
    assert not case.limit.says_full(unavailable("status 403", 403))
    assert "is_full raised" in caplog.text


# The number.


def test_there_is_none_before_a_refusal(case: Case) -> None:
    assert case.limit.learned is None
    assert case.limit.most == 50
    assert not case.limit.is_short
    assert not case.limit.is_due


def test_it_is_the_number_of_the_others(case: Case) -> None:
    case.refuse(5)
    assert (case.limit.learned, case.limit.most) == (5, 5)
    assert case.limit.refusal == "status 429"
    assert case.told == [5]


def test_it_is_never_below_one(case: Case) -> None:
    case.refuse(0)
    assert case.limit.learned == 1


def test_it_is_never_above_max_connections(case: Case) -> None:
    case.refuse(5)
    case.settings.max_connections = 3
    case.limit.refresh()
    assert (case.limit.learned, case.limit.most) == (5, 3)
    assert not case.limit.is_short


def test_the_same_number_again_is_no_news(case: Case) -> None:
    case.refuse(5)
    case.refuse(5)
    case.refuse(4)
    assert case.told == [5, 4]


def test_one_on_trial_has_a_place_until_it_is_admitted_or_refused(case: Case) -> None:
    case.refuse(5)
    for link in ("a", "b", "c"):
        case.limit.begin(link)
    assert (case.limit.learned, case.limit.most) == (5, 8)
    case.limit.admitted("a", 0)
    assert (case.limit.learned, case.limit.most) == (6, 8)
    case.refuse(6, link="b")
    assert (case.limit.learned, case.limit.most) == (6, 7)
    case.limit.withdrawn("c")
    assert (case.limit.learned, case.limit.most) == (6, 6)


# Probes.


def test_a_probe_is_due_after_five_seconds_less_a_tenth_at_most(case: Case) -> None:
    pauses = []
    for _ in range(200):
        case.refuse(5)
        pauses.append(case.seconds_to_probe())
    assert 0.9 * FIRST_PAUSE_SECONDS <= min(pauses) < max(pauses) <= FIRST_PAUSE_SECONDS
    assert not case.limit.is_due
    case.now += FIRST_PAUSE_SECONDS
    assert case.limit.is_due


def test_there_is_one_at_a_time(case: Case) -> None:
    case.refuse(5)
    case.now += FIRST_PAUSE_SECONDS
    case.probe()
    case.now += FORGOTTEN_SECONDS
    assert not case.limit.is_due
    assert case.limit.most == 6


def test_each_refusal_of_a_probe_doubles_the_pause_up_to_five_minutes(case: Case) -> None:
    case.refuse(5)
    expected = FIRST_PAUSE_SECONDS
    for _ in range(8):
        assert 0.9 * expected <= case.seconds_to_probe() <= expected
        case.now += expected
        case.probe()
        case.refuse(5, link="probe")
        expected = min(2 * expected, MAX_PAUSE_SECONDS)
    assert expected == MAX_PAUSE_SECONDS
    assert case.told == [5]


def test_a_refusal_of_another_one_is_news_and_the_pause_short_again(case: Case) -> None:
    case.refuse(5)
    case.now += FIRST_PAUSE_SECONDS
    case.probe()
    case.refuse(5, link="probe")
    case.refuse(4, link="another")
    assert case.seconds_to_probe() <= FIRST_PAUSE_SECONDS


def test_a_success_raises_it_by_one_and_the_next_is_due_at_once(case: Case) -> None:
    case.refuse(5)
    case.now += FIRST_PAUSE_SECONDS
    for expected in (6, 7, 8):
        case.probe()
        case.limit.admitted("probe", 5)
        assert case.limit.learned == case.limit.most == expected
    case.probe()
    case.refuse(8, link="probe")
    assert 0.9 * FIRST_PAUSE_SECONDS <= case.seconds_to_probe() <= FIRST_PAUSE_SECONDS


def test_one_that_shows_nothing_is_made_again_after_the_same_pause(case: Case) -> None:
    case.refuse(5)
    case.now += FIRST_PAUSE_SECONDS
    case.probe()
    case.limit.withdrawn("probe")
    assert 0.9 * FIRST_PAUSE_SECONDS <= case.seconds_to_probe() <= FIRST_PAUSE_SECONDS
    assert case.limit.learned == 5


@pytest.mark.parametrize(("asked", "expected"), [(60.0, 60.0), (1.0, FIRST_PAUSE_SECONDS)])
def test_retry_after_counts_if_it_is_longer(case: Case, asked: float, expected: float) -> None:
    case.refuse(5, retry_after=asked)
    assert 0.9 * FIRST_PAUSE_SECONDS <= case.seconds_to_probe() <= expected
    assert (case.seconds_to_probe() == 60.0) is (asked == 60.0)


# Being forgotten.


def test_it_is_forgotten_after_ten_minutes_in_which_nobody_waits(
    case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "wspool")
    case.refuse(5)
    case.now += FORGOTTEN_SECONDS - 1
    assert case.limit.look(is_wanted=True)
    case.now += FORGOTTEN_SECONDS - 1
    assert not case.limit.look(is_wanted=False)
    assert case.limit.learned == 5
    case.now += 1
    case.limit.look(is_wanted=False)
    assert case.limit.learned is None
    assert case.limit.most == 50
    assert case.told == [5, None]
    assert "forgotten" in caplog.text


# A suspicion.


def test_one_that_began_after_a_refusal_with_nothing_open_ends_the_suspicion(case: Case) -> None:
    assert not case.limit.clears(case.now)
    case.limit.suspect("status 429")
    assert case.limit.is_suspected
    assert not case.limit.clears(case.now - 1)
    assert case.limit.is_suspected
    assert case.limit.clears(case.now + 1)
    assert not case.limit.is_suspected


def test_a_refusal_beside_new_ones_only_tells_when_they_turn_out_to_be_admitted(
    case: Case,
) -> None:
    case.limit.suspect("code 1013", ["a", "b", "c"])
    assert case.limit.learned is None
    assert case.limit.most == 50
    case.limit.withdrawn("a")
    assert case.limit.admitted("b", 2)
    assert (case.limit.learned, case.limit.most) == (3, 4)
    assert case.limit.refusal == "code 1013"
    assert not case.limit.admitted("c", 3)
    assert (case.limit.learned, case.limit.most) == (4, 4)
    assert not case.limit.is_due


def test_and_nothing_if_they_are_not(case: Case) -> None:
    case.limit.suspect("code 1013", ["a"])
    case.limit.withdrawn("a")
    case.limit.begin("b")
    assert not case.limit.admitted("b", 0)
    assert case.limit.learned is None


# A server that admits the newest, and closes the oldest.


def test_one_loss_is_no_habit(case: Case) -> None:
    opened_at = case.now
    case.now += 1
    case.limit.opened("new")
    assert not case.limit.closed(opened_at)


def admit_at_the_cost_of_another(case: Case, opened_at: float) -> bool:
    """Return whether that is known to be a habit."""
    case.now += 0.5
    case.limit.opened("new")
    case.now += 0.1
    return case.limit.closed(opened_at)


def test_two_losses_in_a_row_are(case: Case) -> None:
    opened_at = case.now
    assert not admit_at_the_cost_of_another(case, opened_at)
    assert admit_at_the_cost_of_another(case, opened_at)
    assert case.limit.evicts("code 1008", 5)
    assert case.limit.learned == 5
    assert case.limit.is_evicting
    assert "code 1008" in case.limit.refusal


def test_those_that_go_together_are_one_loss(case: Case) -> None:
    """As in a restart, just after some were admitted."""
    opened_at = case.now
    for _ in range(4):
        case.now += 0.1
        case.limit.opened("new")
    assert not any([case.limit.closed(opened_at) for _ in range(4)])


def test_once_it_is_known_those_that_go_with_it_lower_the_limit(case: Case) -> None:
    opened_at = case.now
    admit_at_the_cost_of_another(case, opened_at)
    admit_at_the_cost_of_another(case, opened_at)
    case.limit.evicts("code 1008", 7)
    case.now += 0.1
    assert case.limit.closed(opened_at)
    case.limit.evicts("code 1008", 6)
    assert case.limit.learned == 6
    case.now += EVICTION_SECONDS
    assert not case.limit.closed(opened_at)


def test_the_loss_of_the_newest_is_none(case: Case) -> None:
    for _ in range(3):
        case.limit.opened("new")
        assert not case.limit.closed(case.now)


def test_a_loss_after_more_than_a_second_is_none_and_ends_the_row(case: Case) -> None:
    opened_at = case.now
    assert not admit_at_the_cost_of_another(case, opened_at)
    case.limit.opened("new")
    case.now += EVICTION_SECONDS + 0.01
    assert not case.limit.closed(opened_at)
    assert not admit_at_the_cost_of_another(case, opened_at)


def test_a_server_that_closes_all_makes_room_for_nobody(case: Case) -> None:
    assert not case.limit.evicts("code 1006", 0)
    assert case.limit.learned is None
    assert case.limit.evicts("code 1006", 2)
    case.limit.closed_all()
    assert case.limit.learned is None
    case.refuse(5)
    case.limit.closed_all()
    assert case.limit.learned == 5


def test_a_probe_that_costs_another_its_place_has_failed(case: Case) -> None:
    opened_at = case.now
    admit_at_the_cost_of_another(case, opened_at)
    assert admit_at_the_cost_of_another(case, opened_at)
    case.limit.evicts("code 1008", 5)
    case.now += FIRST_PAUSE_SECONDS
    case.probe()
    case.limit.opened("probe")
    assert case.limit.closed(opened_at)
    case.limit.evicts("code 1008", 5)
    assert case.limit.learned == case.limit.most == 5
    assert 1.8 * FIRST_PAUSE_SECONDS <= case.seconds_to_probe() <= 2 * FIRST_PAUSE_SECONDS


def test_within_a_limit_that_is_known_a_loss_makes_room_for_nobody(case: Case) -> None:
    """One is dialled in the place of each that is lost, and the limit stays."""
    case.limit.evicts("code 1008", 5)
    opened_at = case.now
    case.now += EVICTION_SECONDS + 0.5
    for _ in range(5):
        case.limit.opened("ordinary")
        assert not case.limit.closed(opened_at)
