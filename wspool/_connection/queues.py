"""One queue for each state: a connection that lives is in exactly one, that of its state.

Every count of the pool is the length of a queue. Nothing is incremented, so nothing drifts. This
file moves what the state machine tells it to move; it decides nothing and imports neither asyncio
nor aiohttp.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from itertools import chain
from typing import Generic, TypeVar

from wspool._connection.states import State

C = TypeVar("C")

REMEMBERED = 32


class Queues(Generic[C]):
    """The queues of one pool, each in order of entry, and the last few connections that are gone.

    They are `OrderedDict`s because both ends are used: reuse takes the newest idle connection,
    making room the oldest, and a connection leaves from the middle when it is lost. A plain dict
    walks over the holes that deletions left at its ends.
    """

    __slots__ = ("_of", "all", "busy", "closed", "connecting", "draining", "gone", "idle")

    def __init__(self) -> None:
        self._of: dict[State, OrderedDict[C, None]] = {state: OrderedDict() for state in State}
        self.connecting = self._of[State.CONNECTING]
        self.idle = self._of[State.IDLE]
        self.busy = self._of[State.BUSY]
        self.draining = self._of[State.DRAINING]
        self.closed = self._of[State.CLOSED]
        # All of them, so that the length is had at once.
        self.all: set[C] = set()
        self.gone: deque[C] = deque(maxlen=REMEMBERED)

    def add(self, connection: C) -> None:
        """Take in a connection at its birth."""
        self.connecting[connection] = None
        self.all.add(connection)

    def move(self, connection: C, source: State, dest: State) -> None:
        """Move a connection; for the state machine's event alone."""
        del self._of[source][connection]
        self._of[dest][connection] = None

    def remove(self, connection: C) -> None:
        """Let go of a closed connection whose socket is gone."""
        del self.closed[connection]
        self.all.remove(connection)
        self.gone.append(connection)

    def __getitem__(self, state: State) -> OrderedDict[C, None]:
        return self._of[state]

    def __iter__(self) -> Iterator[C]:
        # All at once, in C: another thread that looks sees each connection once.
        return iter(list(chain.from_iterable(self._of.values())))

    def __len__(self) -> int:
        """Return how many connections hold a place, that is, may have a socket at the server."""
        return len(self.all)

    def counts(self) -> dict[State, int]:
        # In one go for another thread, which looks while a connection moves.
        return dict(zip(self._of, map(len, self._of.values()), strict=True))
