"""Attending: what arrives on a link that nobody reads, and which idle link is lent next.

aiohttp answers a ping, and notices a close, only while somebody reads. For an idle link that is
this file's business: whatever its server says is disposed of, but for a greeting, which is kept for
the first borrower. For one that is lent, or drained, while its owner is not in `recv`, messages
are kept.
"""

from __future__ import annotations

from typing import Any, Final

from wspool._connection.borrow import Borrow
from wspool._connection.errors import ENDS_PROGRAM
from wspool._connection.link import Link
from wspool._connection.queues import Queues
from wspool._connection.states import CloseReason, State
from wspool._pool.capacity import Capacity
from wspool._pool.draining import dispose
from wspool._pool.errands import Errand
from wspool._pool.options import Options
from wspool._pool.retiring import Retiring
from wspool._pool.stats import Stats
from wspool._pool.tasks import Discard


def is_same(context: Any, preferred: Any) -> bool:
    """Return whether a context is the preferred one; those that cannot be compared are not."""
    try:
        return context is preferred or bool(context == preferred)
    except ENDS_PROGRAM:
        raise
    except BaseException:
        return False


def forget_another(link: Link, loan: Borrow) -> None:
    """Let a used link that is lent have no other context than the loan's."""
    if link.uses > 1 and not loan._wants_new and not is_same(link.context, loan._prefer):
        link.context = None


MAX_GREETING_BYTES: Final = 65 * 1024
"""Kept of what a server says to a link that nobody has borrowed yet: 64 KiB of it, and what the
inbox counts beside each message."""


class Attending:
    """The look at the links of one pool."""

    def __init__(
        self,
        options: Options,
        stats: Stats,
        queues: Queues[Link],
        capacity: Capacity,
        retiring: Retiring,
    ) -> None:
        self._options, self._stats = options, stats
        self._idle, self._capacity, self._retiring = queues.idle, capacity, retiring
        self._busy = queues.busy
        # What must be checked first, when next_idle() has returned None and there are idle links.
        self.unchecked: Link
        # When next_idle() has looked at the link that it returned.
        self.looked_at = 0.0

    def next_idle(self, prefer: Any = None, for_stream: bool = False) -> Link | None:
        """Return the idle link to lend next: the last one in, so that a pool can shrink.

        With a context to prefer, or to spare, see `_preferred`. Not to somebody alone where the
        answer to a stream may still come, which would read it.

        Those that turn out to be lost, or too old, are closed on the way. None, too, when it must
        be checked first.
        """
        idle = self._idle
        while idle:
            # To look for a dict's last entry is to walk over the holes that deletions have left at
            # its end; to pop it drops them.
            link, _ = idle.popitem()
            idle[link] = None
            if prefer is not None or link.context is not None:
                link = self._preferred(prefer)
                if link.state is not State.IDLE:
                    continue
            wire = link.wire
            assert wire is not None
            has_news = wire.inbox or wire.arrivals or wire.is_exposed or wire.transport.has_ended()
            if has_news or link.is_flooding:
                was_flooding = link.is_flooding
                self.attend(link)
                if was_flooding or link.is_flooding:  # the rest would reach the borrower
                    link.close(CloseReason.DRAIN)
                if link.state is not State.IDLE:
                    continue
            if link.sharing is not None and link.sharing.is_unclean and not for_stream:
                link.close(CloseReason.DRAIN)
                continue
            now = self.looked_at = link.clock()
            if now < link.retire_at and now - link.idle_since < self._retiring.young_seconds:
                return link  # as nearly always
            if (why := self.why_idle(link, now)) is not None:
                link.close(why)
            elif not self._retiring.is_check_due(link, now):
                return link
            else:
                self.unchecked = link
                return None
        return None

    def _preferred(self, prefer: Any) -> Link:
        """Return the idle link with this context; else the last one in without any.

        Else, as one context has to go, that of the link that is idle for longest; but whoever
        prefers none leaves it, and gets the last one in.
        """
        without: Link | None = None
        links = list(reversed(self._idle))  # to compare contexts is to call what users wrote
        for link in links:
            if link.context is None:
                without = without or link
                if prefer is None:
                    break
            elif prefer is not None and is_same(link.context, prefer):
                return link
        return without or links[0 if prefer is None else -1]

    def has_fit(self, prefer: Any) -> bool:
        """Return whether an idle link has this context, or none that would be lost."""
        links = list(self._idle)
        return any(link.context is None or is_same(link.context, prefer) for link in links)

    def is_checked(self, prefer: Any) -> bool:
        """Return whether a link with this context is being checked, and about to come back."""
        checked = [link for link in self._busy if link.loan is None and link.context is not None]
        return any(
            isinstance(link.owner, Errand)
            and link.owner.why == "check"
            and is_same(link.context, prefer)
            for link in checked
        )

    def why_idle(self, link: Link, now: float) -> CloseReason | None:
        """Return why an idle link is to be closed, if it is."""
        options = self._options
        if now < link.retire_at and now - link.idle_since <= options.idle_timeout:
            return None  # as nearly always: to count the others takes longer
        is_spare = (
            self._capacity.open > options.min_connections and len(self._idle) > options.min_idle
        )
        return self._retiring.why_idle(link, now, is_spare=is_spare)

    def attend(self, link: Link) -> bool:
        """Deal with what has arrived on a link that nobody reads; False if nothing had."""
        if not link.has_news:
            link.is_flooding = False
            return False
        if link.state is State.IDLE:
            is_new = not (link.uses or link.drained_messages)
            if is_new and self._keep_greeting(link):
                return False
            self.dispose(link)
        elif link.state is not State.CLOSED and link.wire is not None:
            (link.sharing if link.is_shared else link.wire).attend()
        return link.state is State.IDLE

    def _keep_greeting(self, link: Link) -> bool:
        """Keep what a server says before the first loan, for the first borrower.

        False if that is more than a greeting: a stream, which is disposed of.
        """
        wire = link.wire
        assert wire is not None
        if wire.inbox_bytes <= MAX_GREETING_BYTES and not wire.is_flooded:
            wire.attend()
        return wire.inbox_bytes <= MAX_GREETING_BYTES and not wire.is_flooded

    def dispose(self, link: Link) -> None:
        """Deal with what no borrower will read; a link whose message is refused is closed."""
        wire = link.wire
        assert wire is not None
        was_flooded = wire.is_flooded
        try:
            for message in wire.unread():
                dispose(link, message, self._options, self._stats)
        except Discard as discard:
            link.close(discard.why, cause=discard.__cause__)
        # The rest is still coming, or was too much for this turn.
        link.is_flooding = was_flooded or wire.is_cut_short
