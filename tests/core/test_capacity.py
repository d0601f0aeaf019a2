"""How many links there may be, and what somebody who waits may hope for: no loop, no network."""

from __future__ import annotations

import itertools

import pytest

from tests.support.inside import move
from wspool._connection.queues import Queues
from wspool._connection.states import State
from wspool._pool.capacity import Capacity
from wspool._pool.limit import Limit


class Settings:
    """Those that count."""

    learn_limit = True
    is_full = None

    def __init__(self, max_connections: int) -> None:
        self.max_connections = max_connections


class Thing:
    """What takes up a place, and may be lent to somebody."""

    def __init__(self, *, is_lent: bool = False) -> None:
        self.loan = object() if is_lent else None


class Places:
    """A capacity with so many things in each state."""

    def __init__(
        self,
        limit: int,
        *,
        dials: int = 0,
        idle: int = 0,
        lent: int = 0,
        errands: int = 0,
        drains: int = 0,
        goodbyes: int = 0,
    ) -> None:
        self.queues: Queues[Thing] = Queues()
        self.settings = Settings(limit)
        self.limit = Limit(self.settings, lambda *_: None)
        self.capacity = Capacity(self.queues, self.limit)
        self.add(State.CONNECTING, dials)
        self.add(State.IDLE, idle)
        self.add(State.BUSY, lent, is_lent=True)
        self.add(State.BUSY, errands)
        self.add(State.DRAINING, drains)
        self.add(State.CLOSED, goodbyes)

    def resize(self, limit: int) -> None:
        self.settings.max_connections = limit
        self.limit.refresh()

    def add(self, state: State, count: int, *, is_lent: bool = False) -> None:
        for _ in range(count):
            thing = Thing(is_lent=is_lent)
            self.queues.add(thing)
            move(self.queues, thing, State.CONNECTING, state)


def capacity(limit: int, **counts: int) -> Capacity:
    return Places(limit, **counts).capacity


ONE_OF_EACH = {"dials": 1, "idle": 1, "lent": 1, "errands": 1, "drains": 1, "goodbyes": 1}


# Places.


@pytest.mark.parametrize("state", ONE_OF_EACH)
def test_whatever_state_it_is_in_each_link_takes_a_place(state: str) -> None:
    """What is being dialled may have a socket at any moment, and what is being closed has one."""
    assert capacity(3).room == 3
    assert capacity(3, **{state: 2}).room == 1


def test_open_are_those_that_are_idle_busy_and_draining() -> None:
    assert capacity(9, idle=1, lent=2, errands=1, drains=3).open == 7
    assert capacity(9, dials=3, goodbyes=2).open == 0


def test_a_full_pool_has_no_room_and_no_surplus() -> None:
    full = capacity(6, **ONE_OF_EACH)
    assert full.room == 0
    assert full.surplus == -1  # the one that is being closed gives its place to another


def test_without_goodbyes_surplus_is_what_is_not_room() -> None:
    for limit in range(8):
        here = capacity(limit, dials=1, idle=1, lent=1, errands=1)
        assert here.surplus == -here.room == 4 - limit


def test_after_a_resize_room_is_below_0_and_the_rest_is_surplus() -> None:
    places = Places(6, idle=2, lent=3, goodbyes=1)
    assert places.capacity.room == 0
    places.resize(4)
    assert places.capacity.room == -2
    assert places.capacity.surplus == 1  # of the two too many, one is on its way out


def test_a_resize_upwards_is_room_at_once() -> None:
    places = Places(2, lent=2)
    places.resize(5)
    assert places.capacity.room == 3
    assert places.capacity.surplus == -3


# Who has them.


def test_an_errand_is_busy_and_nobodys_loan() -> None:
    here = capacity(9, lent=2, errands=3)
    assert here.errands == 3
    assert here.held == 2


def test_only_what_is_busy_can_be_an_errand() -> None:
    assert capacity(9, dials=1, idle=1, drains=1, goodbyes=1).errands == 0


def test_held_is_what_a_borrower_has_or_a_drain() -> None:
    """When a drain is over is the server's matter, as it is the borrower's when a loan is."""
    assert capacity(9, lent=2, drains=3).held == 5
    assert capacity(9, dials=2, idle=2, errands=2, goodbyes=2).held == 0


def test_a_loan_whose_link_was_closed_holds_nothing() -> None:
    """Its borrower may still read what came before the close, but its place is being freed."""
    places = Places(1)
    places.add(State.CLOSED, 1, is_lent=True)
    assert places.capacity.held == 0
    assert places.capacity.errands == 0
    assert places.capacity.coming == 1


def test_the_numbers_follow_a_link_through_its_life() -> None:
    places = Places(1)
    thing = Thing()
    places.queues.add(thing)
    life = [State.CONNECTING, State.IDLE, State.BUSY, State.DRAINING, State.IDLE, State.CLOSED]
    seen = []
    for source, dest in itertools.pairwise(life):
        move(places.queues, thing, source, dest)
        thing.loan = object() if dest is State.BUSY else None
        here = places.capacity
        seen.append((here.open, here.room, here.held, here.coming))
    assert seen == [(1, 0, 0, 1), (1, 0, 1, 0), (1, 0, 1, 0), (1, 0, 0, 1), (0, 0, 0, 1)]
    places.queues.remove(thing)
    assert (places.capacity.open, places.capacity.room) == (0, 1)


# What is to come.


@pytest.mark.parametrize("state", ["dials", "idle", "errands", "goodbyes"])
def test_what_comes_without_a_borrowers_doing_is_to_come(state: str) -> None:
    """So does room for a dial, which each of these takes up."""
    for count in range(4):
        assert capacity(3, **{state: count}).coming == 3


@pytest.mark.parametrize("state", ["lent", "drains"])
def test_what_is_held_is_not_to_come(state: str) -> None:
    for count in range(4):
        assert capacity(3, **{state: count}).coming == 3 - count


def test_after_a_resize_the_surplus_of_the_errands_is_not_to_come() -> None:
    """It is closed when it is back."""
    places = Places(4, lent=2, errands=2)
    assert places.capacity.coming == 2
    for limit, coming in ((3, 1), (2, 0), (1, 0)):
        places.resize(limit)
        assert places.capacity.coming == coming


def test_after_a_resize_what_is_dialled_and_what_is_idle_is_still_to_come() -> None:
    """A dial ends for whoever waits, and an idle one can be lent, before either must go."""
    places = Places(4, lent=2, dials=1, idle=1)
    places.resize(1)
    assert places.capacity.coming == 2


def test_after_a_resize_below_what_is_held_less_than_nothing_is_not_to_come() -> None:
    places = Places(4, lent=3, drains=1)
    places.resize(1)
    assert places.capacity.coming == 0


# What a failure leaves.


@pytest.mark.parametrize("state", ["idle", "errands"])
def test_what_is_open_and_nobody_holds_is_left_without_any_dial(state: str) -> None:
    for count in range(4):
        assert capacity(3, **{state: count}).left(0) == count


@pytest.mark.parametrize("state", ["lent", "drains", "goodbyes"])
def test_what_is_held_or_on_its_way_out_is_not_left(state: str) -> None:
    assert capacity(3, **{state: 2}).left(0) == 0


def test_only_the_dials_that_may_still_help_are_left() -> None:
    here = capacity(9, dials=5)
    assert [here.left(dials) for dials in range(4)] == [0, 1, 2, 3]


def test_no_more_is_left_than_there_are_places_that_nobody_holds() -> None:
    """After a `resize()`, what is too many goes as it comes back."""
    places = Places(6, lent=1, drains=1, errands=2, dials=2)
    assert places.capacity.left(2) == 4
    for limit, left in ((5, 3), (3, 1), (2, 0), (1, 0)):
        places.resize(limit)
        assert places.capacity.left(2) == left


# Who may wait.


def test_each_that_is_to_come_lets_one_impatient_wait() -> None:
    here = capacity(4, lent=1, drains=1, idle=1)
    assert [here.may_wait(place, 2, is_patient=False) for place in range(4)] == [
        *(True, True),
        *(False, False),
    ]


@pytest.mark.parametrize("held", ["lent", "drains"])
def test_with_everything_held_only_the_patient_wait(held: str) -> None:
    here = capacity(2, **{held: 2})
    assert not here.may_wait(0, 0, is_patient=False)
    assert here.may_wait(0, 0, is_patient=True)
    assert here.may_wait(100, 0, is_patient=True)


def test_the_patient_wait_behind_others_for_what_is_to_come() -> None:
    """Who is served before them gives it back."""
    here = capacity(1, dials=1)
    assert not here.may_wait(1, 1, is_patient=False)
    assert here.may_wait(1, 1, is_patient=True)


def test_where_nothing_is_to_come_and_nothing_held_not_even_the_patient_wait() -> None:
    assert not capacity(2).may_wait(0, 0, is_patient=True)


# Nothing is remembered.


def test_the_numbers_are_those_of_the_queues_in_whatever_order_it_came_to_that() -> None:
    """Each is the sum of what the states give to it."""
    for counts in itertools.product(range(3), repeat=6):
        dials, idle, lent, errands, drains, goodbyes = counts
        for limit in (1, 6):
            here = capacity(limit, **dict(zip(ONE_OF_EACH, counts, strict=True)))
            assert here.open == idle + lent + errands + drains
            assert here.room == limit - sum(counts)
            assert here.surplus == sum(counts) - goodbyes - limit
            assert here.errands == errands
            assert here.held == lent + drains
            assert here.coming == max(limit - lent - drains, dials + idle)
            assert here.coming >= 0
