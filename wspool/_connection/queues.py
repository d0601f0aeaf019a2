"""One queue for each state: a link that lives is in exactly one, that of its state.

Every count of the pool is the length of a queue. Nothing is incremented, so nothing drifts. This
file moves what the state machine tells it to move; it decides nothing and imports neither asyncio
nor aiohttp.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from itertools import chain
from typing import Final, Generic, TypeVar

from wspool._connection.states import State

L = TypeVar("L")

MAX_GONE: Final = 32
"""Links that are gone and still shown."""


class Queues(Generic[L]):
    """The queues of one pool, each in order of entry, and the last few links that are gone.

    They are `OrderedDict`s because both ends are used: reuse takes the newest idle link, making
    room the oldest, and a link leaves from the middle when it is lost. A plain dict walks over the
    holes that deletions left at its ends.
    """

    __slots__ = ("_of", "all", "busy", "closed", "connecting", "draining", "gone", "idle")

    def __init__(self) -> None:
        self._of: dict[State, OrderedDict[L, None]] = {state: OrderedDict() for state in State}
        self.connecting = self._of[State.CONNECTING]
        self.idle = self._of[State.IDLE]
        self.busy = self._of[State.BUSY]
        self.draining = self._of[State.DRAINING]
        self.closed = self._of[State.CLOSED]
        # All of them, so that the length is had at once.
        self.all: set[L] = set()
        self.gone: deque[L] = deque(maxlen=MAX_GONE)

    def add(self, link: L) -> None:
        """Take in a link at its birth."""
        self.connecting[link] = None
        self.all.add(link)

    def move(self, link: L, source: State, dest: State) -> None:
        """Move a link; for the state machine's event alone."""
        del self._of[source][link]
        self._of[dest][link] = None

    def remove(self, link: L) -> None:
        """Let go of a closed link whose socket is gone."""
        del self.closed[link]
        self.all.remove(link)
        self.gone.append(link)

    def __getitem__(self, state: State) -> OrderedDict[L, None]:
        return self._of[state]

    def __iter__(self) -> Iterator[L]:
        # All at once, in C: another thread that looks sees each link once.
        return iter(list(chain.from_iterable(self._of.values())))

    def __len__(self) -> int:
        """Return how many links hold a place, that is, may have a socket at the server."""
        return len(self.all)

    def counts(self) -> dict[State, int]:
        # In one go for another thread, which looks while a link moves.
        return dict(zip(self._of, map(len, self._of.values()), strict=True))
