"""The graph of the states, the one machine that moves along it, and who may know of whom.

There is no I/O here and no event loop: a thing with a state and queues is all that is moved.
"""

from __future__ import annotations

import itertools
from collections import deque
from pathlib import Path
from typing import Any

import pytest

import wspool
from wspool._connection import states
from wspool._connection.errors import IllegalTransitionError
from wspool._connection.queues import Queues
from wspool._connection.states import CloseReason, Move, State

PACKAGE = Path(wspool.__file__).parent

OUTCOMES: dict[tuple[str, str], str | None] = {
    # (state, trigger): the state after it, or None where it is illegal
    ("connecting", "connected"): "idle",
    ("connecting", "checkout"): None,
    ("connecting", "checkin"): None,
    ("connecting", "drain"): None,
    ("connecting", "drained"): None,
    ("connecting", "close"): "closed",
    ("idle", "connected"): None,
    ("idle", "checkout"): "busy",
    ("idle", "checkin"): None,
    ("idle", "drain"): None,
    ("idle", "drained"): None,
    ("idle", "close"): "closed",
    ("busy", "connected"): None,
    ("busy", "checkout"): None,
    ("busy", "checkin"): "idle",
    ("busy", "drain"): "draining",
    ("busy", "drained"): None,
    ("busy", "close"): "closed",
    ("draining", "connected"): None,
    ("draining", "checkout"): None,
    ("draining", "checkin"): None,
    ("draining", "drain"): None,
    ("draining", "drained"): "idle",
    ("draining", "close"): "closed",
    ("closed", "connected"): None,
    ("closed", "checkout"): None,
    ("closed", "checkin"): None,
    ("closed", "drain"): None,
    ("closed", "drained"): None,
    ("closed", "close"): None,
}

LEGAL = [(state, trigger, dest) for (state, trigger), dest in OUTCOMES.items() if dest]
ILLEGAL = [(state, trigger) for (state, trigger), dest in OUTCOMES.items() if not dest]

DIAGRAM = """\
stateDiagram-v2
    connecting --> idle: connected
    idle --> busy: checkout
    busy --> idle: checkin
    busy --> draining: drain
    draining --> idle: drained
    connecting --> closed: close
    idle --> closed: close
    busy --> closed: close
    draining --> closed: close"""


class Thing:
    """The least that the machine can move."""

    def __init__(self, state: str = "connecting") -> None:
        self.state = State(state)
        self.queues: Queues[Thing] = Queues()
        self.queues[self.state][self] = None
        self.moves: deque[states.Moved] = deque()
        ticks = itertools.count(1)
        self.clock = lambda: float(next(ticks))

    def __repr__(self) -> str:
        return "<Thing 7>"

    def places(self) -> list[str]:
        """Every queue that the thing is in."""
        return [str(state) for state in State if self in self.queues[state]]


def fire(thing: Thing, trigger: str, why: str = "") -> bool:
    function: states.Trigger = getattr(states, trigger)
    return function(thing, why)


# The moves.


def test_the_table_of_this_file_has_every_state_with_every_trigger() -> None:
    triggers = ["connected", "checkout", "checkin", "drain", "drained", "close"]
    assert set(OUTCOMES) == set(itertools.product([state.value for state in State], triggers))
    assert set(states.machine.events) == set(triggers)


@pytest.mark.parametrize(("state", "trigger", "dest"), LEGAL)
def test_a_legal_trigger_moves_to_the_queue_of_the_next_state(
    state: str, trigger: str, dest: str
) -> None:
    thing = Thing(state)
    assert fire(thing, trigger) is True
    assert thing.state is State(dest)
    assert thing.places() == [dest]


@pytest.mark.parametrize(("state", "trigger"), ILLEGAL)
def test_an_illegal_trigger_is_an_error_that_names_both_and_nothing_has_moved(
    state: str, trigger: str
) -> None:
    thing = Thing(state)
    with pytest.raises(IllegalTransitionError) as caught:
        fire(thing, trigger, "no matter why")
    assert repr(trigger) in str(caught.value)
    assert repr(state) in str(caught.value)
    assert "<Thing 7>" in str(caught.value)
    assert thing.state is State(state)
    assert thing.places() == [state]
    assert not thing.moves


@pytest.mark.parametrize(("state", "trigger", "dest"), LEGAL)
def test_a_thing_that_is_not_in_the_queue_of_its_state_is_not_moved(
    state: str, trigger: str, dest: str
) -> None:
    thing = Thing(state)
    del thing.queues[State(state)][thing]
    with pytest.raises(KeyError):
        fire(thing, trigger)
    assert thing.state is State(state)
    assert thing.places() == []
    assert not thing.moves


def test_a_life_leaves_its_history_in_moves() -> None:
    """Each line says which move, when by the thing's own clock, and why."""
    thing = Thing()
    life = ["connected", "checkout", "drain", "drained", "checkout", "checkin", "close"]
    for trigger in life:
        fire(thing, trigger, f"why {trigger}")
    assert list(thing.moves) == [
        (Move("connected", State.CONNECTING, State.IDLE), 1.0, "why connected"),
        (Move("checkout", State.IDLE, State.BUSY), 2.0, "why checkout"),
        (Move("drain", State.BUSY, State.DRAINING), 3.0, "why drain"),
        (Move("drained", State.DRAINING, State.IDLE), 4.0, "why drained"),
        (Move("checkout", State.IDLE, State.BUSY), 5.0, "why checkout"),
        (Move("checkin", State.BUSY, State.IDLE), 6.0, "why checkin"),
        (Move("close", State.IDLE, State.CLOSED), 7.0, "why close"),
    ]


def test_the_reason_of_a_close_is_kept_as_it_is() -> None:
    thing = Thing("busy")
    states.close(thing, CloseReason.USER)
    assert thing.moves[-1][2] is CloseReason.USER


def test_a_thing_that_comes_back_is_the_newest_of_its_queue() -> None:
    first, second = Thing("idle"), Thing("idle")
    second.queues = first.queues
    second.queues.idle[second] = None
    states.checkout(first, "")
    assert list(first.queues.idle) == [second]
    states.checkin(first, "")
    assert list(first.queues.idle) == [second, first]


# The declaration.


def graph() -> Any:
    """A machine of the same class, to declare nonsense on."""
    return type(states.machine)(
        model=None,
        states=[state.value for state in State],
        initial="connecting",
        auto_transitions=False,
    )


@pytest.mark.parametrize("extra", ["conditions", "unless", "prepare", "before", "after"])
def test_a_transition_with_a_condition_or_a_callback_is_refused_when_declared(extra: str) -> None:
    """The machine would skip them."""
    with pytest.raises(ValueError) as caught:
        graph().add_transition("leap", "idle", "busy", **{extra: "anything"})
    assert "leap" in str(caught.value)
    assert "idle" in str(caught.value)


def test_a_transition_without_a_destination_is_refused_when_declared() -> None:
    with pytest.raises(ValueError) as caught:
        graph().add_transition("leap", "idle", None)
    assert "leap" in str(caught.value)
    assert "destination" in str(caught.value)


def test_a_transition_that_was_declared_is_possible_at_once() -> None:
    other = graph()
    other.add_transition("leap", "idle", "busy")
    thing = Thing("idle")
    other.events["leap"].trigger(thing, "")
    assert thing.places() == ["busy"]


def test_the_machine_has_no_model() -> None:
    assert states.machine.models == []


# The pictures of it.


def test_the_diagram_is_the_graph() -> None:
    assert states.diagram() == DIAGRAM


def test_the_diagram_shows_counts() -> None:
    counts = {state: number for number, state in enumerate(State)}
    first, *others = DIAGRAM.splitlines()
    shown = [
        "    connecting: connecting (0)",
        "    idle: idle (1)",
        "    busy: busy (2)",
        "    draining: draining (3)",
        "    closed: closed (4)",
    ]
    assert states.diagram(counts).splitlines() == [first, *shown, *others]


def test_the_docstring_has_the_diagram() -> None:
    assert states.__doc__ is not None
    before, _, rest = states.__doc__.partition("<!-- diagram -->\n")
    shown, _, after = rest.partition("\n<!-- /diagram -->")
    assert before
    assert after
    assert shown == states.diagram()
