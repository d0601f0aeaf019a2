"""Unclaimed: messages with keys that nobody has claimed, on a connection that streams share.

Of a key that nobody has claimed yet they are kept for a moment, since a push may come before its
reader knows the id that the server has chosen. Of one whose stream is over they are late, and for
nobody. This file knows neither links nor streams, and no loop.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Final

from wspool._connection.budget import MESSAGE_OVERHEAD_BYTES

UNKNOWN_SECONDS: Final = 1.0
"""For which a message with an unknown key is kept."""

MAX_UNKNOWN_BYTES: Final = 512 * 1024
"""Of messages with unknown keys on one connection; the oldest go first."""

MAX_FORMER_KEYS: Final = 1024
"""Keys of streams that are over, and whose last message nobody has seen. Messages of even older
ones are taken for unknown."""

Entry = tuple[str | bytes, Any]
"""A message and its JSON, or UNPARSED."""


class Unclaimed:
    """What has come on one connection for keys that nobody has claimed. Times are in seconds."""

    __slots__ = ("_dispose", "_former", "_kept", "_order", "bytes")

    def __init__(self, dispose: Callable[[str | bytes], object]) -> None:
        # Is given each message that nobody will read.
        self._dispose = dispose
        # Keys that may still have late messages, the oldest first.
        self._former: OrderedDict[Hashable, None] = OrderedDict()
        # What is kept of each key, with the time of its arrival; and all of these times with the
        # key, in order, those of messages that were claimed meanwhile included.
        self._kept: dict[Hashable, deque[tuple[float, Entry]]] = {}
        self._order: deque[tuple[float, Hashable]] = deque()
        self.bytes = 0

    def __contains__(self, key: Hashable) -> bool:
        """Whether a claim of this key changes anything here."""
        return key in self._kept or key in self._former

    def take(self, key: Hashable, entry: Entry, now: float) -> None:
        """Keep a message for whoever may claim its key in a moment, or dispose of a late one."""
        if key in self._former:
            self._dispose(entry[0])
            return
        self._kept.setdefault(key, deque()).append((now, entry))
        self._order.append((now, key))
        self.bytes += len(entry[0]) + MESSAGE_OVERHEAD_BYTES
        while self.bytes > MAX_UNKNOWN_BYTES:
            self._forget_oldest()

    def claim(self, key: Hashable) -> list[Entry]:
        """Return what was kept of a key that is somebody's from now on."""
        self._former.pop(key, None)
        kept = self._kept.pop(key, None)
        if kept is None:
            return []  # as nearly always
        claimed = [entry for _, entry in kept]
        self.bytes -= sum(len(message) + MESSAGE_OVERHEAD_BYTES for message, _ in claimed)
        return claimed

    def leave(self, keys: Iterable[Hashable]) -> None:
        """Note keys that are nobody's any more, and may still have messages."""
        for key in keys:
            self._former[key] = None
        while len(self._former) > MAX_FORMER_KEYS:
            self._former.popitem(last=False)

    def sweep(self, now: float) -> None:
        """Dispose of what nobody has claimed in time."""
        while self._order and now - self._order[0][0] >= UNKNOWN_SECONDS:
            self._forget_oldest()

    def forget(self) -> None:
        """Dispose of all that is kept: there is nobody any more to claim it."""
        while self._order:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        at, key = self._order.popleft()
        kept = self._kept.get(key)
        if not kept or kept[0][0] != at:
            return  # it was claimed
        _, (message, _) = kept.popleft()
        if not kept:
            del self._kept[key]
        self.bytes -= len(message) + MESSAGE_OVERHEAD_BYTES
        self._dispose(message)
