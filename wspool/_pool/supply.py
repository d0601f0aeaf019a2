"""Supply: the dials of one pool, when they begin and how they end."""

from __future__ import annotations

import asyncio
import itertools
import logging
import traceback
from collections.abc import Callable
from functools import partial
from typing import Final

import aiohttp

from wspool._connection import states
from wspool._connection.budget import Budget
from wspool._connection.errors import (
    ENDS_PROGRAM,
    ConnectionUnavailableError,
    WebsocketError,
)
from wspool._connection.link import NEVER, Link
from wspool._connection.queues import Queues
from wspool._connection.scrubbing import scrub_text
from wspool._connection.states import CloseReason, State
from wspool._pool.capacity import Capacity
from wspool._pool.dialing import Dial
from wspool._pool.gate import EARLY_SECONDS, Gate
from wspool._pool.limit import Limit
from wspool._pool.listeners import Events
from wspool._pool.options import Options
from wspool._pool.patience import Patience
from wspool._pool.retiring import Retiring
from wspool._pool.stats import Stats
from wspool._pool.tasks import Tasks, close_if_still, weakly
from wspool._pool.waiting import Line

logger = logging.getLogger("wspool")

RESTARTING: Final = frozenset({1012, 1013})
"""Close codes "service restart" and "try again later" (IANA's WebSocket registry)."""

LEAVING: Final = RESTARTING | {1001}
"""Those of a server that closes for its own sake, and for no other connection's."""


class Supply:
    """What one pool has dialled and will dial."""

    def __init__(
        self,
        options: Options,
        stats: Stats,
        events: Events,
        queues: Queues[Link],
        line: Line,
        capacity: Capacity,
        retiring: Retiring,
        tasks: Tasks,
        budget: Budget,
        gate: Gate,
        limit: Limit,
        patience: Patience,
        on_close: Callable[[Link], object],
        then: Callable[[Dial, ConnectionUnavailableError | None], bool],
    ) -> None:
        self._options, self._stats, self._events = options, stats, events
        self._queues, self._line = queues, line
        self._capacity, self._retiring, self._tasks = capacity, retiring, tasks
        self._budget = budget
        self._gate, self._limit, self._patience = gate, limit, patience
        # What each link calls when it closes, and each dial when it has ended, well or badly.
        self._on_close = on_close
        self._then = then
        self._ids = itertools.count(1)
        # Whether it was said that `min_connections` cannot be kept.
        self._is_short = False
        # From start() on.
        self._session: aiohttp.ClientSession

    def start(self, session: aiohttp.ClientSession) -> None:
        """Begin with what is wanted at the start."""
        self._session = session
        options = self._options
        wanted = max(options.warmup_connections, options.min_connections, options.min_idle)
        self.dial(min(wanted, self._capacity.room))  # less than that after a resize()

    # Beginning.

    def refill(self) -> None:
        """Begin the dials that `min_connections` and `min_idle` are short of."""
        self.dial(min(self._short(len(self._queues.connecting)), self._capacity.room))

    def _short(self, dials: int) -> int:
        """Return how many dials beyond so many `min_connections` and `min_idle` are short of.

        While somebody waits there is nothing to spare, and each dial is the line's.
        """
        options, capacity = self._options, self._capacity
        short = options.min_connections - capacity.open - dials
        if options.min_idle > 0 and not self._line.loans:
            spare = options.min_idle - len(self._queues.idle) - dials
            if spare > 0:  # those that are checked, or kept alive, come back
                short = max(short, spare - capacity.errands)
        return short

    def serve(self, promised: int) -> None:
        """Begin the dials that the line is short of, when so many are served otherwise."""
        line = self._line
        wanted = line.links_for(line.loans) - promised - len(self._queues.connecting)
        wanted = min(wanted, self._patience.entitled())
        if wanted > 0 and self._capacity.may_probe:
            self._limit.begin(self._dial(), is_probe=True)
        else:
            self.dial(min(wanted, self._capacity.room))

    def dial(self, count: int) -> None:
        """Begin so many dials."""
        for _ in range(count):
            self._dial()

    def _dial(self) -> Link:
        link = Link(
            next(self._ids),
            self._queues,
            self._tasks.loop,
            self._budget,
            self._on_close,
        )
        link.is_last = self._options.drain_until
        self._queues.add(link)
        self._stats.dials += 1
        self._events.created(link)
        dial = link.owner = Dial(link)
        link.task = self._tasks.spawn(
            self._work(dial), partial(close_if_still, link, State.CONNECTING, CloseReason.DIAL)
        )
        return link

    async def _work(self, dial: Dial) -> None:
        """Dial, and tell the routing how it ended before the next dial has its turn."""
        gate = self._gate
        async with gate.turn(dial):
            dial.link.number = self._line.arrive()
            failure: ConnectionUnavailableError | None = None
            try:
                await dial.run(self._options, self._session, gate, self._stats, self._learn_if_full)
            except ConnectionUnavailableError as error:
                failure = error
            except (*ENDS_PROGRAM, asyncio.CancelledError):
                raise
            except BaseException:
                # A fault of this package's: it must not cost a place, and those who wait, as well.
                # As a text, the traceback is without the frames, whose locals have the secrets.
                trace = scrub_text(traceback.format_exc(), dial.link.secrets())
                logger.error("the dial of #%d broke down: %s", dial.link.id, trace)
                failure = ConnectionUnavailableError("The dial broke down; the log says where")
                self._stats.failures[failure.kind] += 1
                gate.failed(gate.round, failure)
            if not self._then(dial, failure):
                dial.link.abort()

    # Ending.

    def succeeded(self, dial: Dial) -> None:
        """Let the link of a dial that went well be idle."""
        link = dial.link
        now = link.opened_at = link.idle_since = link.clock()
        self._retiring.begin(link, now)
        self._stats.dial_seconds += link.dial_seconds
        states.connected(link, "dialled")
        link.owner = None
        self._limit.opened(link)
        if self._limit.clears(_asked_at(link)):
            self._gate.admits()
        if self._gate.streak or link in self._limit.trials:
            self._tasks.loop.call_later(EARLY_SECONDS, weakly(self._look_for_life), link)
        self._events.ready(link)

    def look_for_life(self) -> None:
        """While dials fail, or links are on trial, look which have shown that they are admitted."""
        if self._gate.streak or self._limit.trials:
            for link in (*self._queues.busy, *self._queues.idle):
                self._look_for_life(link)

    def _look_for_life(self, link: Link) -> None:
        if link.state in (State.CONNECTING, State.CLOSED):
            return
        limit = self._limit
        if _has_lived(link):
            self._gate.lived(link, wakes_one=limit.is_suspected)
            # What another one's place is given to is known only later.
            if link in limit.trials and (_is_old(link) or not limit.is_evicting):
                self._admit(link)

    def failed(self, dial: Dial, failure: ConnectionUnavailableError) -> None:
        """Close the link of a dial that failed for good, and tell whom it concerns."""
        if dial.was_full:
            dial.link.close(CloseReason.DIAL, cause=failure)
            if self._line.crowd is not None:  # another pool of the group may have room
                self._line.crowd.reconsider()
            return
        if self._events.watch is not None:
            self._events.watch.dial_failed(failure)
        if not self._patience.speak(failure, dial.link):
            is_full = failure.kind == "quota"  # as a fleet's normally is
            logger.log(logging.INFO if is_full else logging.WARNING, "%s", failure)
        dial.link.close(CloseReason.DIAL, cause=failure)
        self._call_off()

    def closed(self, link: Link) -> None:
        """Learn from a link that has just been closed, whoever has closed it."""
        limit = self._limit
        why = link.moves[-1][2]
        if why is CloseReason.SERVER:
            self._lost(link)
            if not self._capacity.open:
                limit.closed_all()
        if link in limit.trials:
            is_over = why is CloseReason.POOL or link.opened_at is None
            if is_over or (why is CloseReason.SERVER and not _was_of_use(link)):
                limit.withdrawn(link)
            else:
                self._admit(link)

    def _lost(self, link: Link) -> None:
        """Count a link that the server has closed, if that says something about the next dial."""
        gate = self._gate
        if _has_lived(link):
            self._watch_evictions(link)
        if _is_old(link):
            if link.close_code in RESTARTING:
                gate.restarts()
            return
        if _was_of_use(link):
            return
        failure = ConnectionUnavailableError(
            f"The server closes connections right after the handshake: {link.how_closed()}",
            kind="closed",
            attempts=gate.streak + 1,
        )
        self._stats.failures[failure.kind] += 1
        if self._learn_if_full(link, failure, link.closed_error()):
            return
        gate.refused(failure)
        if gate.streak >= self._options.max_retries:
            if self._events.watch is not None:
                self._events.watch.dial_failed(failure)
            self._patience.speak(failure, link)

    # What the server admits.

    def _learn_if_full(
        self, link: Link, failure: ConnectionUnavailableError, said: WebsocketError
    ) -> bool:
        """Return whether the server has refused this link because it is full; then learn from it.

        That is so while others of this pool are open. Every other dial is called off, but for those
        that were at the server before this one, which may have admitted them.
        """
        limit = self._limit
        if not limit.says_full(said):
            return False
        others = [other for other in self._queues if other.is_open and other is not link]
        # Where a refusal comes after the handshake, that of others says nothing yet.
        is_handshake = said is failure
        new = [] if is_handshake else [other for other in others if not _has_lived(other)]
        on_trial = [other for other in new if other.state is not State.CLOSED]
        if len(others) == len(new):
            limit.suspect(str(failure), on_trial)
            self._gate.suspect()
            return False
        for other in on_trial:
            limit.begin(other)
        admitted = sum(other not in limit.trials and other not in new for other in others)
        limit.refused(str(failure), admitted, link, failure.retry_after)
        self._keep_to_limit(link, _asked_at(link))
        return True

    def _admit(self, link: Link) -> None:
        """Count a link on trial as admitted."""
        trials = self._limit.trials
        others = sum(other.is_open and other not in trials for other in self._queues)
        if self._limit.admitted(link, others):
            self._keep_to_limit(link, NEVER)

    def _keep_to_limit(self, link: Link, asked_at: float) -> None:
        """Call off the other dials, but for those that were at the server before this time."""
        self._gate.forgive()  # what it counted before was a full server, too
        for other in list(self._queues.connecting):
            dial = other.owner
            if other is link:
                continue
            if not isinstance(dial, Dial):  # but `on_connect`, after a handshake that went well
                self._limit.begin(other)
            elif dial.is_at_server and dial.asked_at < asked_at:
                dial.is_last_attempt = True
                self._limit.begin(other)
            else:
                other.close(CloseReason.DIAL)
        self._patience.turn_away_the_surplus()

    def _watch_evictions(self, lost: Link) -> None:
        """Learn from a lost link whether the server closes an older one for each new one."""
        if lost.opened_at is None or lost.close_code in LEAVING or _was_served(lost):
            return
        is_habit = self._limit.closed(lost.opened_at)
        if is_habit and self._limit.evicts(lost.how_closed(), self._capacity.open):
            for link in list(self._queues.connecting):
                link.close(CloseReason.DIAL)

    def _call_off(self) -> None:
        """After a failure, give up the dials that have not begun and that nobody waits for."""
        connecting = self._queues.connecting
        queued = [link for link in connecting if not link.number]
        begun = len(connecting) - len(queued)
        line = self._line
        for_line = min(self._patience.entitled(), line.links_for(line.loans) - begun)
        for link in queued[max(0, for_line, self._short(begun)) :]:
            link.close(CloseReason.DIAL)

    def watch_minimum(self) -> None:
        """Say once in an outage that `min_connections` cannot be kept, and when that is over."""
        least, have, failure = (
            self._options.min_connections,
            self._capacity.open,
            self._gate.failure or self._limit.refusal,
        )
        if have < least and failure and not self._is_short:
            self._is_short = True
            logger.warning(
                "min_connections=%d cannot be kept, %d are open: %s", least, have, failure
            )
        elif have >= least and self._is_short:
            self._is_short = False
            logger.info("min_connections=%d are open again", least)


def _asked_at(link: Link) -> float:
    """Return when the handshake of a link's last attempt began."""
    if isinstance(link.owner, Dial):
        return link.owner.asked_at
    return link.opened_at - link.dial_seconds if link.opened_at is not None else NEVER


def _has_lived(link: Link) -> bool:
    """Return whether a link has shown that the server has admitted it."""
    return _is_old(link) or _was_answered(link)


def _is_old(link: Link) -> bool:
    return link.opened_at is None or link.clock() - link.opened_at >= EARLY_SECONDS


def _was_answered(link: Link) -> bool:
    """Return whether a message has come in a loan."""
    return link.uses > 0 and link.wire is not None and link.wire.received_messages > 0


def _was_of_use(link: Link) -> bool:
    """Return whether a link that the server closed early had done what it was dialled for.

    Servers that take one command per connection close so, with a reply or without one. One that
    refuses says so by its code, though an error message may have come before.
    """
    if link.wire is None or not link.uses:
        return False
    if link.close_code in (1000, 1001) and link.wire.sent_messages:
        return True
    return link.close_code in (1000, 1001, 1005, 1006) and link.wire.received_messages > 0


def _was_served(link: Link) -> bool:
    """Return whether the server has closed a link at the end of the one session it is good for."""
    return link.close_code == 1000 and link.uses == 1 and _was_of_use(link)
