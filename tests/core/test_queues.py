"""The queues on their own: no event loop, no state machine, and strings for connections."""

from __future__ import annotations

import pytest

from tests.support.inside import move
from wspool._connection.queues import MAX_GONE, Queues
from wspool._connection.states import State


@pytest.fixture
def queues() -> Queues[str]:
    return Queues()


def close(queues: Queues[str], connection: str) -> None:
    queues.add(connection)
    move(queues, connection, State.CONNECTING, State.CLOSED)
    queues.remove(connection)


def test_new_queues_are_empty(queues: Queues[str]) -> None:
    assert len(queues) == 0
    assert list(queues) == []
    assert queues.counts() == {
        State.CONNECTING: 0,
        State.IDLE: 0,
        State.BUSY: 0,
        State.DRAINING: 0,
        State.CLOSED: 0,
    }
    assert not queues.gone


def test_a_connection_is_born_connecting(queues: Queues[str]) -> None:
    queues.add("a")
    assert list(queues.connecting) == ["a"]
    assert len(queues) == 1


def test_each_state_has_its_queue_under_its_name(queues: Queues[str]) -> None:
    assert queues[State.CONNECTING] is queues.connecting
    assert queues[State.IDLE] is queues.idle
    assert queues[State.BUSY] is queues.busy
    assert queues[State.DRAINING] is queues.draining
    assert queues[State.CLOSED] is queues.closed


def test_a_move_leaves_one_queue_and_enters_the_next(queues: Queues[str]) -> None:
    queues.add("a")
    move(queues, "a", State.CONNECTING, State.IDLE)
    assert list(queues.connecting) == []
    assert list(queues.idle) == ["a"]
    assert len(queues) == 1


def test_a_move_from_the_wrong_queue_is_an_error_and_nothing_has_moved(
    queues: Queues[str],
) -> None:
    queues.add("a")
    with pytest.raises(KeyError):
        move(queues, "a", State.BUSY, State.IDLE)
    assert list(queues.connecting) == ["a"]
    assert list(queues.idle) == []
    assert len(queues) == 1


def test_the_length_counts_all_five_queues(queues: Queues[str]) -> None:
    """What is being dialled and what is being closed hold a place too."""
    for state in State:
        queues.add(state)
        if state is not State.CONNECTING:
            move(queues, state, State.CONNECTING, state)
    assert len(queues) == 5
    assert set(queues.counts().values()) == {1}


def test_the_counts_are_the_lengths(queues: Queues[str]) -> None:
    for connection in "abcd":
        queues.add(connection)
    for connection in "abc":
        move(queues, connection, State.CONNECTING, State.IDLE)
    move(queues, "b", State.IDLE, State.BUSY)
    assert queues.counts() == {
        State.CONNECTING: 1,
        State.IDLE: 2,
        State.BUSY: 1,
        State.DRAINING: 0,
        State.CLOSED: 0,
    }


def test_a_queue_is_in_order_of_entry(queues: Queues[str]) -> None:
    for connection in "abc":
        queues.add(connection)
    for connection in "cab":
        move(queues, connection, State.CONNECTING, State.IDLE)
    assert list(queues.idle) == ["c", "a", "b"]
    assert next(iter(queues.idle)) == "c"
    assert next(reversed(queues.idle)) == "b"


def test_iteration_is_over_all_states_in_the_order_of_a_life(queues: Queues[str]) -> None:
    for state in reversed(State):
        queues.add(state)
        if state is not State.CONNECTING:
            move(queues, state, State.CONNECTING, state)
    assert list(queues) == ["connecting", "idle", "busy", "draining", "closed"]


def test_a_connection_may_move_while_its_queue_is_iterated(queues: Queues[str]) -> None:
    for connection in "abc":
        queues.add(connection)
    seen = []
    for connection in queues:
        if connection not in seen:
            seen.append(connection)
            move(queues, connection, State.CONNECTING, State.CLOSED)
    assert seen == ["a", "b", "c"]
    assert list(queues.closed) == ["a", "b", "c"]


def test_a_removed_connection_is_in_no_queue_but_remembered(queues: Queues[str]) -> None:
    close(queues, "a")
    assert len(queues) == 0
    assert list(queues) == []
    assert list(queues.gone) == ["a"]


def test_only_a_closed_connection_can_be_removed(queues: Queues[str]) -> None:
    queues.add("a")
    with pytest.raises(KeyError):
        queues.remove("a")
    assert list(queues.connecting) == ["a"]
    assert not queues.gone


def test_the_last_32_that_are_gone_are_remembered(queues: Queues[str]) -> None:
    for number in range(40):
        close(queues, str(number))
    assert MAX_GONE == 32
    assert list(queues.gone) == [str(number) for number in range(8, 40)]
