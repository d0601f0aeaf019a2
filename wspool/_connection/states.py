"""The states of a connection, and the only moves between them.

Everything that affects a transition is in this file, and this file does not know what a link, a
pool or a socket is: it moves any object that has a `state`, the `queues` it is kept in, a list of
`moves` and a `clock`; an `id` and the time it was `born` are for the log. It imports neither
asyncio nor aiohttp.

<!-- diagram -->
stateDiagram-v2
    connecting --> idle: connected
    idle --> busy: checkout
    busy --> idle: checkin
    busy --> draining: drain
    draining --> idle: drained
    connecting --> closed: close
    idle --> closed: close
    busy --> closed: close
    draining --> closed: close
<!-- /diagram -->

Who owns the link, that is, who has the right to its wire and may send and receive:

- connecting: the dial, with its handshake, its retries and the `on_connect` hook;
- idle: nobody; the pool reads what arrives unasked;
- busy: a loan, which is a borrower's, or an errand, a check or a keepalive, for which the pool
  itself has borrowed the link;
- draining: the drain, with the `on_release` hook first;
- closed: the goodbye. Closed means that nobody else may use the link from now on, and not that its
  socket is gone: until then it keeps its place. Afterwards the link is in no queue at all.

The rules:

1. The table below is the graph. The legal moves, the diagram above, that of
   the documentation and `pool.state_diagram()` all come from it.
2. A link is born with a state. After that its `state` is assigned in one place in the package: in
   `_Move.trigger`, below.
3. A transition is synchronous. Leaving one queue and entering the next happens with no `await`
   between, so no task ever sees a link in two queues or in none: that is the lock.
4. An illegal trigger raises an error that names the trigger and the state, and nothing has moved.
5. The second half of the lock is not here. A link can be closed under its owner, so after every
   await whoever owned it must look whether it still does, and a loser ends silently. The form in
   which that can be checked is `link.owner is self`: a link has one owner at most, each transition
   into a state sets it, and whoever finds another there has lost the link.

The machine is one, shared by all links, with no model attached: `transitions` would give each
model bound methods, 5 KB and 8 µs apiece. Its stock `Event.trigger` costs 7 to 13 µs a transition
and logs two INFO records; the event here looks the move up in a dict: 0.2 to 0.5 µs, the queues
included.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple, Protocol

from transitions import Event, Machine, Transition

from wspool._connection.errors import IllegalTransitionError
from wspool._connection.exporting import exported

logger = logging.getLogger("wspool")
DEBUG: Final = logging.DEBUG


@exported
class State(StrEnum):
    """Where a connection is in its life."""

    CONNECTING = "connecting"
    IDLE = "idle"
    BUSY = "busy"
    DRAINING = "draining"
    CLOSED = "closed"


BUSY: Final = State.BUSY
CLOSED: Final = State.CLOSED
"""The two that a loan looks at: on Python 3.11 reading an enum's attribute takes 0.17 µs."""


@exported
class CloseReason(StrEnum):
    """Why a connection was closed; the `why` of its last transition."""

    IDLE = "idle"  #: longer than idle_timeout
    LIFETIME = "lifetime"  #: older than max_lifetime
    USES = "uses"  #: max_uses loans
    STALE = "stale"  #: did not answer a check
    ERROR = "error"  #: a borrower left by an exception, or a callable of the user's raised
    SERVER = "server"  #: closed by the server, or lost
    PROTOCOL = "protocol"  #: the server broke the protocol, or sent more than max_msg_size
    DRAIN = "drain"  #: what arrived after the release was refused, or did not end
    EXPIRED = "expired"  #: expire_connections()
    POOL = "pool"  #: close_all()
    USER = "user"  #: close() or force_remove
    RETIRED = "retired"  #: retire()
    ROOM = "room"  #: made room for acquire_new() or a smaller max_connections
    DIAL = "dial"  #: the dial failed, or was called off
    QUOTA = "quota"  #: its lease of the quota was lost


TRANSITIONS: list[list[str]] = [
    # trigger, from, to
    ["connected", "connecting", "idle"],
    ["checkout", "idle", "busy"],
    ["checkin", "busy", "idle"],
    ["drain", "busy", "draining"],
    ["drained", "draining", "idle"],
    ["close", "connecting", "closed"],
    ["close", "idle", "closed"],
    ["close", "busy", "closed"],
    ["close", "draining", "closed"],
]


MAX_HISTORY: Final = 16
"""Transitions that a link remembers."""


class Move(NamedTuple):
    """One line of the table."""

    trigger: str
    source: State
    dest: State


Moved = tuple[Move, float, str]
"""One entry of a link's history: which move, when (its clock's seconds), and why."""


class Stateful(Protocol):
    """What the machine needs to know of the thing that it moves."""

    id: int
    born: float  # by its clock
    state: State
    queues: Any  # with a mapping `of` from each state to its queue
    moves: deque[Moved]
    clock: Callable[[], float]


# What `isEnabledFor` remembers of each level, until something is set: to ask that itself would take
# a twentieth of a loan.
_known_level: Callable[[int], bool | None] = getattr(logger, "_cache", {}).get


class _Move(Event):
    """A trigger whose transitions have neither conditions nor callbacks: a look-up and a step."""

    def __init__(self, name: str, machine: Machine) -> None:
        super().__init__(name, machine)
        # A tuple beside the named one, since that takes a fifth of a transition to be unpacked.
        self._moves: dict[str, tuple[Move, State, State]] = {}

    def add_transition(self, transition: Transition) -> None:
        extras = (transition.conditions, transition.prepare, transition.before, transition.after)
        if any(extras) or transition.dest is None:
            raise ValueError(
                f"{self.name} from {transition.source}: a transition here has a destination and "
                "neither conditions nor callbacks; they would be skipped"
            )
        super().add_transition(transition)
        move = Move(self.name, State(transition.source), State(transition.dest))
        self._moves[move.source] = move, move.source, move.dest

    def trigger(self, model: Any, why: str = "", now: float | None = None) -> bool:
        found = self._moves.get(model.state)
        if found is None:
            raise IllegalTransitionError(
                f"{self.name!r} is not possible in state {str(model.state)!r}: {model!r}"
            )
        move, source, dest = found
        of = model.queues.of
        del of[source][model]
        of[dest][model] = None
        model.state = dest
        if now is None:
            now = model.clock()
        if _known_level(DEBUG) is not False and logger.isEnabledFor(DEBUG):
            _log(model, move, now, why)
        model.moves.append((move, now, why))
        return True


def _log(model: Stateful, move: Move, now: float, why: str) -> None:
    seconds = now - (model.moves[-1][1] if model.moves else model.born)
    cause = f" ({why})" if move.trigger == "close" else ""
    logger.debug(
        "#%d %s → %s  %s%s  %.1f s %s",
        *(model.id, move.source, move.dest, move.trigger, cause, seconds, move.source),
    )


class _Graph(Machine):
    event_cls = _Move


machine = _Graph(
    model=None,
    states=[state.value for state in State],
    transitions=TRANSITIONS,
    initial=State.CONNECTING.value,
    auto_transitions=False,
)


class Trigger(Protocol):
    """Moves a thing, and notes why, and when: `now` by its clock, if that was just read."""

    def __call__(self, thing: Stateful, why: str, now: float | None = None, /) -> bool: ...


def _typed(trigger: str) -> Trigger:
    event: Trigger = machine.events[trigger].trigger
    return event


connected = _typed("connected")
checkout = _typed("checkout")
checkin = _typed("checkin")
drain = _typed("drain")
drained = _typed("drained")
close = _typed("close")


def diagram(counts: Mapping[State, int] | None = None) -> str:
    """Return the graph as a Mermaid state diagram, with a count on each state if given."""
    lines = ["stateDiagram-v2"]
    if counts is not None:
        lines += [f"    {state}: {state} ({counts[state]})" for state in State]
    for event in machine.events.values():
        for source, moves in event.transitions.items():
            lines += [f"    {source} --> {move.dest}: {event.name}" for move in moves]
    return "\n".join(lines)
