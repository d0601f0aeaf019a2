"""Streaming: which stream has a share of which link, and what comes after it.

One link is filled before the next, so that the others become idle and a pool can shrink. A link
that has streams, lent or draining, is busy; what is new on it belongs to `sharing.py`, what it
costs when the last of them is over to the routing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from wspool._connection import states
from wspool._connection.borrow import Borrow
from wspool._connection.errors import ConnectionDrainTimeoutError
from wspool._connection.link import Link
from wspool._connection.loan import called
from wspool._connection.queues import Queues
from wspool._connection.routes import sorting
from wspool._connection.sharing import Lane, Sharing
from wspool._connection.states import CloseReason, State
from wspool._connection.stream import WebsocketStream, stream_of_hook
from wspool._connection.terms import Terms
from wspool._pool.attending import Attending
from wspool._pool.capacity import Capacity
from wspool._pool.draining import discarding, dispose, is_last, show_safely
from wspool._pool.listeners import Events
from wspool._pool.options import Options
from wspool._pool.replacing import Replacing
from wspool._pool.retiring import Retiring
from wspool._pool.stats import Stats
from wspool._pool.tasks import Discard, Tasks, close_if_still, weakly, work
from wspool._pool.waiting import Line

logger = logging.getLogger("wspool")

MAX_SHOWN_AT_ONCE: Final = 100
"""Unread messages of a stream that are disposed of within its release, or one go of its drain."""


class StreamDrain:
    """The owner of a lane between its stream's release and the end of its last answer."""

    __slots__ = ("is_clean",)

    def __init__(self) -> None:
        # Whether it has been seen that nothing more is to come.
        self.is_clean = False


class Streaming:
    """The streams of one pool."""

    def __init__(
        self,
        options: Options,
        stats: Stats,
        events: Events,
        queues: Queues[Link],
        line: Line,
        capacity: Capacity,
        retiring: Retiring,
        attending: Attending,
        replacing: Replacing,
        tasks: Tasks,
        refill: Callable[[], object],
        on_free: Callable[[], object],
        on_emptied: Callable[[Link], object],
    ) -> None:
        self._options, self._stats, self._events = options, stats, events
        self._queues, self._line = queues, line
        self._capacity, self._retiring = capacity, retiring
        self._attending, self._replacing, self._tasks = attending, replacing, tasks
        # Is called when fewer are idle.
        self._refill = refill
        # Called when a slot is free, and with a link that has no streams any more.
        self._on_free = on_free
        self._on_emptied = on_emptied
        # From the closing of the pool on nothing drains any more.
        self.is_closing = False
        self.has_route = options.route is not None
        if options.route is not None:
            self._terms = Terms(
                options.max_streams,
                options.max_unread,
                sorting(options.route),
                partial(show_safely, options=options, stats=stats),
                partial(_note_overflow, stats, events),
            )
            line.max_streams = options.max_streams

    def check_route(self) -> None:
        """Raise ValueError in a pool that cannot lend streams."""
        if not self.has_route:
            raise ValueError(
                "get_stream needs a pool that can tell from a message whose it is: give it a "
                "route, and max_streams"
            )

    # Which link.

    def next_shared(self, kept: int) -> Link | None:
        """Return the fullest shared link with a free slot.

        The emptiest ones are not filled any more, so that they become idle: as many as are to be
        `kept` for those who want one alone, and as are too many after a `resize()`.
        """
        kept += max(0, self._capacity.surplus)
        links = self._fullest(kept) if kept else self._queues.busy
        best: Link | None = None
        most, full = 0, self._terms.max_streams
        for link in links:
            sharing: Sharing | None = link.sharing
            if (
                sharing is not None
                and link.loan is sharing
                and most < (count := len(sharing.lanes)) < full
                and link.is_connected
                and self._retiring.why_returned(link) is None
            ):
                best, most = link, count
        return best

    def _fullest(self, spared: int) -> list[Link]:
        """Return the shared links but for so many of the emptiest."""
        shared = sorted(self.shared(), key=lambda link: len(link.sharing.lanes), reverse=True)
        return shared[: max(0, len(shared) - spared)]

    def serve_one(self) -> bool:
        """Serve the oldest stream that waits with a share of a shared link, if there is one."""
        alone = 0
        for loan in self._line.takers():
            if loan._waiter.done():
                continue
            if isinstance(loan, WebsocketStream):
                link = self.next_shared(alone)
                if link is None:
                    return False
                self.lend(link, loan)
                self._line.serve(loan)
                return True
            alone += 1
        return False

    def lend(self, link: Link, stream: Borrow) -> None:
        """Let a stream have a share of a link, which is idle or shared."""
        assert isinstance(stream, WebsocketStream)
        if link.state is State.IDLE:
            states.checkout(link, "stream")
            if link.sharing is None:
                link.sharing = Sharing(link, self._terms)
            link.owner = link.loan = link.sharing
            link.sharing.begin()
        if self._replacing.outdated:
            self._replacing.note_lent(link)
        link.uses += 1
        lane = link.sharing.open(stream)
        lane.callsite = stream._callsite
        stream._link, stream._lane, stream._uses = link, lane, link.uses

    def lend_at_once(self, stream: Borrow) -> bool:
        """Serve a stream at once, if there is a free slot, or an idle link."""
        link = self.next_shared(self._line.alone) or self._attending.next_idle(for_stream=True)
        if link is None:
            return False
        self.lend(link, stream)
        self._stats.borrows += 1
        self.tell_of(stream, 0.0)
        if self._options.min_idle or self._replacing.outdated:
            self._refill()
        return True

    def tell_of(self, stream: Borrow, waited: float) -> None:
        """Tell that somebody has taken a stream."""
        if self._events.listeners:
            assert isinstance(stream, WebsocketStream)
            assert stream._lane is not None
            self._events.stream_checked_out(stream._lane, waited)

    # Giving back.

    def pass_on(self, stream: Borrow) -> None:
        """Take back a share that a stream was served and could not take: it has not been used."""
        assert isinstance(stream, WebsocketStream)
        lane = stream._lane
        if lane is not None and lane.owner is stream:
            lane.sharing.link.uses -= 1
            self._end(lane, is_clean=True)

    def give_back(
        self, stream: WebsocketStream, is_failed: bool = False, force_remove: bool = False
    ) -> None:
        """End a stream: its slot is free at once, or when it has drained."""
        lane = stream._lane
        link = stream._link
        if (
            lane is None
            or lane.owner is not stream
            or link is None
            or link.queues is not self._queues
        ):
            logger.warning("%r is not lent by this pool; releasing it does nothing", stream)
            return
        if self._events.listeners:
            self._events.stream_checked_in(lane)
        # Without a send nothing can be under way, however the borrower left.
        is_failed = stream._has_sent and (is_failed or stream._has_given_up)
        stream._is_cut_off = link.state is State.CLOSED
        if force_remove:
            _retire(link, CloseReason.USER)
        is_clean = stream.is_clean
        if (
            not (
                self._options.on_stream_release is not None
                or len(lane.entries) > MAX_SHOWN_AT_ONCE
                or (stream._has_sent and not is_clean and self._options.tells_ends)
            )
            or stream._is_cut_off
            or self.is_closing
            or (len(lane.sharing.lanes) == 1 and self._retiring.why_returned(link) is not None)
        ):
            self._end(lane, is_clean=is_clean, is_given_up=is_failed and not is_clean)
        else:
            self._begin_drain(lane, stream, is_failed=is_failed)

    def _end(self, lane: Lane, *, is_clean: bool, is_given_up: bool = False) -> None:
        """Free a lane's slot, and let its link go on."""
        sharing = lane.sharing
        link = sharing.link
        for message, _ in sharing.end(lane, is_clean=is_clean, is_given_up=is_given_up):
            self._terms.on_nobody(link, message)
        if not sharing.lanes:
            sharing.unclaimed.forget()
            if link.state is State.CLOSED:
                link.loan = None
            elif link.owner is sharing:
                self._on_emptied(link)
        elif self.is_closing and not sharing.is_lent:
            link.close(CloseReason.POOL)
        elif self._line.loans or self._line.beyond:
            self._on_free()

    # Draining.

    def _begin_drain(self, lane: Lane, stream: WebsocketStream, *, is_failed: bool) -> None:
        link = lane.sharing.link
        drain = StreamDrain()
        lane.owner = drain
        lane.is_lent, lane.is_draining = False, True
        lane.since = link.clock()
        lane.wake()  # a task of the stream's that is in recv
        draining = partial(
            drain_lane, drain, lane, stream, self._options, self._stats, is_failed=is_failed
        )
        then = partial(weakly(self._drained), lane, drain, is_failed)
        lane.task = self._tasks.spawn(
            work(link, draining, then),
            partial(close_if_still, link, State.BUSY, CloseReason.ERROR),
        )

    def _drained(
        self, lane: Lane, drain: StreamDrain, is_failed: bool, link: Link, discard: Discard | None
    ) -> None:
        """Take back a lane from a drain that has ended, well or badly."""
        if lane.owner is not drain:
            return  # the link was closed meanwhile
        lane.task = None
        if discard is not None:
            # Its neighbours are not cut off; nobody else comes to them.
            _retire(link, discard.why)
            logger.info(
                "the stream in slot %d of #%d has not drained (%s); the connection closes when its "
                "other streams are over",
                *(lane.slot, link.id, discard.__cause__ or discard.why),
            )
        elif self._events.listeners:
            self._events.stream_drained(lane)
        is_given_up = is_failed and not drain.is_clean
        self._end(lane, is_clean=drain.is_clean, is_given_up=is_given_up)

    # The end.

    def closed(self, link: Link) -> None:
        """Let nothing drain any more on a link that is closed; borrowers may still read."""
        for lane in list(link.sharing.lanes.values()):
            if lane.is_draining:
                task, lane.task = lane.task, None
                self._end(lane, is_clean=False)
                if task is not None and task is not asyncio.current_task():
                    task.cancel()

    def close(self) -> None:
        """Drain nothing from now on, and close the links that nobody has."""
        self.is_closing = True
        for link in self.shared():
            if link.is_shared and not link.sharing.is_lent:
                link.close(CloseReason.POOL)

    def shared(self) -> list[Link]:
        """Return the links that have streams."""
        return [link for link in self._queues.busy if link.is_shared]

    def sweep(self, now: float) -> None:
        """Dispose of what came with keys that nobody has claimed in time."""
        for link in self.shared():
            link.sharing.unclaimed.sweep(now)


def lanes_of(link: Link) -> Iterator[Lane]:
    """Give the shares of a link, in the order of their slots."""
    sharing: Sharing | None = link.sharing
    if sharing is not None:
        for slot in sorted(list(sharing.lanes)):
            lane = sharing.lanes.get(slot)
            if lane is not None:
                yield lane


def _note_overflow(stats: Stats, events: Events, lane: Lane) -> None:
    stats.overflows += 1
    events.stream_overflowed(lane)


def _retire(link: Link, why: CloseReason) -> None:
    """Let nobody else come, and close it when its streams are over."""
    link.retire_at, link.retire_why = float("-inf"), why


async def drain_lane(
    drain: StreamDrain,
    lane: Lane,
    stream: WebsocketStream,
    options: Options,
    stats: Stats,
    *,
    is_failed: bool,
) -> None:
    """Return once nothing more is to come for a lane; raise Discard if that will not be."""
    sharing = lane.sharing
    link = sharing.link
    try:
        async with asyncio.timeout(options.drain_timeout):
            if options.on_stream_release is not None:
                stream = await _run_hook(drain, lane, stream, options)
                is_failed = stream._has_given_up or (is_failed and not stream.is_clean)
            await _read(drain, lane, stream, options, stats, is_failed=is_failed)
    except TimeoutError:
        raise Discard(CloseReason.DRAIN) from ConnectionDrainTimeoutError(
            f"The stream in slot {lane.slot} of connection #{link.id} was not clean "
            f"{options.drain_timeout} s after its release (drain_timeout)"
        )


async def _run_hook(
    drain: StreamDrain, lane: Lane, after: WebsocketStream, options: Options
) -> WebsocketStream:
    """Let `on_release` have the share while it runs; an error retires the link."""
    hook, link = options.on_stream_release, lane.sharing.link
    assert hook is not None
    stream = stream_of_hook(lane, after)
    lane.owner = stream
    try:
        which = f"the stream in slot {lane.slot} of #{link.id}"
        with discarding(link, f"on_release raised, of {which}"):
            await called(hook, stream)
    finally:
        if lane.owner is stream:
            lane.owner = drain
            lane.wake()
    return stream


async def _read(
    drain: StreamDrain,
    lane: Lane,
    stream: WebsocketStream,
    options: Options,
    stats: Stats,
    *,
    is_failed: bool,
) -> None:
    """Read until so many last messages have come, or the fence's pong."""
    sharing = lane.sharing
    link = sharing.link
    assert link.wire is not None
    was_clean = stream.is_clean
    awaits = options.tells_ends and stream._has_sent and not was_clean
    ends = 0 if was_clean else stream.outstanding or 1
    lane.is_overflowed = False  # of what is missing, the last messages are counted
    fence = None
    if awaits and options.drain_fence and not (is_failed and options.drain_until is not None):
        fence = await link.wire.send_ping()
    taken = 0
    while lane.entries or (awaits and ends > lane.missed_ends):
        if taken and (not lane.entries or taken % MAX_SHOWN_AT_ONCE == 0):
            await link.budget.breathe()
        taken += 1
        entry = await sharing.next_entry(lane, drain, until=fence)
        if entry is None:
            drain.is_clean = fence is not None and fence.answered is not None and not is_failed
            return  # or the link is lost
        dispose(link, entry[0], options, stats)
        ends -= ends > 0 and is_last(link, entry[0], options)
    drain.is_clean = was_clean or (awaits and ends <= lane.missed_ends)
