"""One queue for each state: a link that lives is in exactly one, that of its state.

Every count of the pool is the length of a queue. Nothing is incremented, so nothing drifts. The
state machine moves a link from one to the other; nothing is decided here, and neither asyncio nor
aiohttp imported.
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
    """The queues of one pool, each in order of entry, and the last few links that are gone."""

    __slots__ = ("all", "busy", "closed", "connecting", "draining", "gone", "idle", "of")

    def __init__(self, has_errands: bool = True) -> None:
        self.connecting: dict[L, None] = {}
        # A link that comes back from an errand goes to the front, which only an OrderedDict has.
        self.idle: dict[L, None] = OrderedDict() if has_errands else {}
        self.busy: dict[L, None] = {}
        self.draining: dict[L, None] = {}
        self.closed: dict[L, None] = {}
        # For the state machine, which alone moves a link, and for whoever looks.
        self.of: dict[State, dict[L, None]] = {
            State.CONNECTING: self.connecting,
            State.IDLE: self.idle,
            State.BUSY: self.busy,
            State.DRAINING: self.draining,
            State.CLOSED: self.closed,
        }
        # All of them, so that the length is had at once.
        self.all: set[L] = set()
        self.gone: deque[L] = deque(maxlen=MAX_GONE)

    def add(self, link: L) -> None:
        """Take in a link at its birth."""
        self.connecting[link] = None
        self.all.add(link)

    def lend_last(self, link: L) -> None:
        """Put an idle link before all others, to be lent after them."""
        assert isinstance(self.idle, OrderedDict)
        self.idle.move_to_end(link, last=False)

    def remove(self, link: L) -> None:
        """Let go of a closed link whose socket is gone."""
        del self.closed[link]
        self.all.remove(link)
        self.gone.append(link)

    def __getitem__(self, state: State) -> dict[L, None]:
        return self.of[state]

    def __iter__(self) -> Iterator[L]:
        # All at once, in C: another thread that looks sees each link once.
        return iter(list(chain.from_iterable(self.of.values())))

    def __len__(self) -> int:
        """Return how many links hold a place, that is, may have a socket at the server."""
        return len(self.all)

    def counts(self) -> dict[State, int]:
        # In one go for another thread, which looks while a link moves.
        return dict(zip(self.of, map(len, self.of.values()), strict=True))
