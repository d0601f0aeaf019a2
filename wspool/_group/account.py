"""The account of a group: who listens to all its pools, and what is counted beyond them.

That is what becomes of those whom no pool has served, and what pools have done that are gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from wspool._group.members import Member
from wspool._pool.listeners import Events, Listener
from wspool._pool.stats import Stats, count_refusal


class Account:
    """The account of one group, whose members come and go by others' doing."""

    def __init__(self, name: str, members: Mapping[int, Member]) -> None:
        self._members = members
        # Of those whom no pool has served; its listeners are those of all pools.
        self.events = Events(name)
        self.stats = Stats()
        self._gone = Stats()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Let a listener hear of all pools, those that are made later included."""
        if not callable(listener):
            raise TypeError(f"listener is {listener!r}; it must be a plain callable")
        token = object()
        # The group's own first: a pool that is made meanwhile looks there.
        self.events.add(token, listener)
        for member in list(self._members.values()):
            member.router.events.add(token, listener)

        def unsubscribe() -> None:
            self.events.remove(token)
            for member in list(self._members.values()):
                member.router.events.remove(token)

        return unsubscribe

    def open(self, member: Member) -> None:
        """Let those hear of a new pool who listen."""
        for token, listener in self.events.listeners.items():
            member.router.events.add(token, listener)

    def close(self, member: Member) -> None:
        """Keep what a pool has done that is gone."""
        self._gone.add(member.router.stats)

    def count_refusal(self, error: BaseException, waited: float) -> None:
        """Count a wait, so many seconds long, of one whom no pool has served, and tell of it."""
        self.stats.waits += 1
        self.stats.wait_seconds += waited
        count_refusal(self.stats, error)
        self.events.check_out_failed(error, waited)

    @property
    def total(self) -> Stats:
        """What all pools have done, those that are gone included, and what is beyond them."""
        total = self.stats.copy()
        total.add(self._gone)
        for member in list(self._members.values()):
            total.add(member.router.stats)
        return total

    def settle(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Let the listeners hear what has been published, as they do soon by themselves."""
        if loop is not None and loop is asyncio._get_running_loop():
            self.events.tell()
