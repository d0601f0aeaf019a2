"""Sharing: the owner of a link that several borrowers use at once, and what each has of it.

A lane is one share: a slot, a number, the keys that were claimed, and the messages that carry one
of these and have not been read. Like a link it has one owner at most, a stream or the drain after
one, and `lane.owner is self` is the right to it; `link.owner is sharing` says that the wire works.

No task reads: whoever waits for a message reads for all, sorts what comes by its key, and leaves
with the first of its own, handing the reading over to another that waits. Which is woken is
written in one place, `hand_over`, and whoever was woken and goes, for whatever reason, calls it.

A sharing lives as long as its link, because numbers do not repeat on a connection, and late
messages of a key may come when the stream that had claimed it is over.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Hashable
from functools import partial
from heapq import heappop, heappush
from typing import Any, Final

from wspool._connection.budget import MESSAGE_OVERHEAD_BYTES, MIN_FRAMES
from wspool._connection.callsites import Callsite
from wspool._connection.errors import ENDS_PROGRAM
from wspool._connection.link import Link
from wspool._connection.routes import UNPARSED
from wspool._connection.states import CloseReason, State
from wspool._connection.terms import Terms
from wspool._connection.unclaimed import Entry, Unclaimed
from wspool._connection.wire import BINARY, LARGE_BYTES, MAX_INBOX_BYTES, TEXT, Ping, Wire

logger = logging.getLogger("wspool")

MAX_PARSED_BYTES: Final = 64 * 1024
"""Of what waits for a stream, or for a claim, the JSON is kept too; more may be many times that."""


class Lane:
    """One share of a link: that of a stream, from its checkout until it has drained."""

    __slots__ = (
        "callsite",
        "entries",
        "is_awaited",
        "is_draining",
        "is_lent",
        "is_named",
        "is_overflowed",
        "keys",
        "missed_ends",
        "number",
        "owner",
        "sharing",
        "since",
        "slot",
        "task",
        "unread_bytes",
        "waiter",
    )

    def __init__(self, sharing: Sharing, slot: int, number: int, now: float) -> None:
        self.sharing = sharing
        self.slot, self.number = slot, number
        # Who may send and receive: a stream, a drain, or nobody any more.
        self.owner: object | None = None
        # Whether a borrower has it, or it is being drained; since when, by the link's clock.
        self.is_lent = self.is_draining = False
        self.since = now
        # Who has it, and where it was borrowed; whether a warning has named that as overdue.
        self.callsite: Callsite | None = None
        self.is_named = False
        # The pool's task at work on it.
        self.task: asyncio.Task[None] | None = None
        # What was claimed, in order.
        self.keys: dict[Hashable, None] = {}
        # What has come and was not read.
        self.entries: deque[Entry] = deque()
        self.unread_bytes = 0
        # Whether something that came is missing, to its borrower; and how many last messages are.
        self.is_overflowed = False
        self.missed_ends = 0
        # Whether its owner is in recv; of whoever waits there while another reads.
        self.is_awaited = False
        self.waiter: asyncio.Future[None] | None = None

    @property
    def state(self) -> State:
        if self.sharing.lanes.get(self.slot) is not self or self.sharing.link.state is State.CLOSED:
            return State.CLOSED
        return State.DRAINING if self.is_draining else State.BUSY

    def put(self, entry: Entry) -> None:
        """Let an entry be read after all others."""
        self.entries.append(entry)
        self.unread_bytes += len(entry[0]) + MESSAGE_OVERHEAD_BYTES
        waiter = self.waiter
        if waiter is not None and not waiter.done():  # as `wake`, inlined
            waiter.set_result(None)

    def put_back(self, entry: Entry) -> None:
        """Let an entry be read next, before what is there."""
        self.put(entry)
        self.entries.rotate(1)

    def take(self) -> Entry:
        entry = self.entries.popleft()
        self.unread_bytes -= len(entry[0]) + MESSAGE_OVERHEAD_BYTES
        return entry

    def wake(self) -> None:
        """Let whoever waits for its next message look again."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class Sharing:
    """The shares of one link, and what has come for none of them."""

    __slots__ = (
        "_free",
        "_is_pausing",
        "_number",
        "_terms",
        "_waiting",
        "is_unclean",
        "keys",
        "lanes",
        "link",
        "unclaimed",
    )

    def __init__(self, link: Link, terms: Terms) -> None:
        self.link = link
        self._terms = terms
        # By their slots; whose each key is.
        self.lanes: dict[int, Lane] = {}
        # A heap of the slots that were in use and are free again.
        self._free: list[int] = []
        self.keys: dict[Hashable, Lane] = {}
        self._number = 0
        # Whether an answer that was given up may still come, to the next who has it alone.
        self.is_unclean = False
        # Whether the one that reads for all lets the event loop go on, before it reads more.
        self._is_pausing = False
        # Who waits while another reads, in order, and whether that is for a pong.
        self._waiting: dict[asyncio.Future[None], bool] = {}
        self.unclaimed = Unclaimed(partial(terms.on_nobody, link))

    # The lanes.

    @property
    def is_lent(self) -> bool:
        """Whether a borrower has a share."""
        return any(lane.is_lent for lane in self.lanes.values())

    def begin(self) -> None:
        """Sort what had come before the first stream."""
        assert self.link.wire is not None
        for message in self.link.wire.set_aside():
            self.sort(message)

    def open(self, owner: object) -> Lane:
        """Let a borrower have a share, at the first slot that is free."""
        slot = heappop(self._free) if self._free else len(self.lanes) + 1
        lane = self.lanes[slot] = Lane(self, slot, self.draw(), self.link.clock())
        lane.owner = owner
        lane.is_lent = True
        return lane

    def draw(self) -> int:
        """Return a number that was not drawn before on this connection, and that nobody uses."""
        number = self._number + 1
        while number in self.keys:
            number += 1
        self._number = number
        return number

    def claim(self, lane: Lane, key: Hashable) -> None:
        """Let messages with this key be the lane's, those that came a moment ago included.

        Raises TypeError for what is no key, and ValueError for one that is in use.
        """
        try:
            holder = self.keys.get(key)
        except TypeError:
            raise TypeError(
                f"key is {key!r}; it must be hashable, as the keys that route finds are"
            ) from None
        if holder is not None:
            whose = "this stream" if holder is lane else f"the stream in slot {holder.slot}"
            how = ", which is still draining" if holder.is_draining else ""
            raise ValueError(
                f"The key {key!r} is claimed by {whose} of connection #{self.link.id}{how}; claim "
                "another one, or none for a new number"
            )
        self.keys[key] = lane
        lane.keys[key] = None
        if key in self.unclaimed:
            for entry in reversed(self.unclaimed.claim(key)):
                lane.put_back(entry)

    def end(self, lane: Lane, *, is_clean: bool, is_given_up: bool = False) -> list[Entry]:
        """Free a lane's slot and its keys; return what nobody has read.

        `is_clean`: nothing more is to come for its keys. `is_given_up`: an answer surely is.
        """
        del self.lanes[lane.slot]
        heappush(self._free, lane.slot)
        self.is_unclean = self.is_unclean or is_given_up
        for key in lane.keys:
            del self.keys[key]
        if not is_clean:
            self.unclaimed.leave(lane.keys)
        lane.owner = None
        lane.is_lent = lane.is_draining = False
        if lane.waiter is not None:
            lane.wake()
        if not lane.entries:
            return []  # as nearly always
        entries, lane.unread_bytes = list(lane.entries), 0
        lane.entries.clear()
        return entries

    # Sorting.

    def sort(self, message: str | bytes) -> Lane | None:
        """Let a message be read by whoever has claimed its key; return that one's lane.

        One that is in recv is not too slow, however much comes in the tick before its turn.
        """
        terms = self._terms
        key: Any = None
        lane: Lane | None = None
        value: Any = UNPARSED
        try:
            key, value = terms.sort(message)
            if key is not None:
                lane = self.keys.get(key)
        except ENDS_PROGRAM:
            raise
        except BaseException as error:
            key = None
            terms.complain(error)
        if lane is None:
            if key is None:
                terms.on_nobody(self.link, message)
            else:
                kept = value if self.unclaimed.bytes < MAX_PARSED_BYTES else UNPARSED
                self.unclaimed.take(key, (message, kept), self.link.clock())
        elif lane.is_overflowed or (
            lane.entries
            and not lane.is_awaited
            and lane.unread_bytes + len(message) + MESSAGE_OVERHEAD_BYTES > terms.max_unread
        ):
            self._drop(lane, message)
        else:
            lane.put((message, value if lane.unread_bytes < MAX_PARSED_BYTES else UNPARSED))
        return lane

    def _drop(self, lane: Lane, message: str | bytes) -> None:
        """Lose a message of a stream that reads too slowly, so that the others get theirs."""
        if lane.is_lent and not lane.is_overflowed:  # a drain would not read it for anybody
            lane.is_overflowed = True
            self._terms.on_overflow(lane)
            lane.wake()
        is_last = self.link.is_last
        try:
            lane.missed_ends += is_last is not None and bool(is_last(message))
        except ENDS_PROGRAM:
            raise
        except BaseException:
            logger.exception("drain_until raised; the message does not count as the last")
        self._terms.on_nobody(self.link, message)

    # Reading.

    async def next_entry(
        self, lane: Lane, owner: object, until: Ping | None = None
    ) -> Entry | None:
        """Return the next message of a lane, for this owner.

        None when no more can come: the link is lost, the owner is another, something is missing, or
        the ping `until` is answered, so that all that was sent before its pong has been returned.
        """
        link, wire = self.link, self._wire
        lane.is_awaited = True
        try:
            while lane.owner is owner:
                if lane.entries:
                    return lane.take()
                if until is not None and until.answered is not None:
                    return None
                if lane.is_overflowed or link.owner is not self:
                    return None
                if not (wire.is_reading or self._is_pausing):
                    await self._read(lane, until)
                    continue
                waiter = lane.waiter = asyncio.get_running_loop().create_future()
                self._waiting[waiter] = until is not None
                try:
                    await waiter
                finally:
                    del self._waiting[waiter]
                    if lane.waiter is waiter:
                        lane.waiter = None
            return None
        finally:
            lane.is_awaited = False
            if self._waiting:
                self.hand_over()

    async def ping(self, lane: Lane, owner: object) -> float | None:
        """Return the seconds until a pong, or None if the owner cannot get one any more."""
        wire = self._wire
        ping = await wire.send_ping()
        try:
            while ping.answered is None:
                if lane.owner is not owner or self.link.owner is not self:
                    return None
                if not self._is_read:
                    await self._read(None, ping)
                    continue
                waiter = asyncio.get_running_loop().create_future()
                self._waiting[waiter] = True
                try:
                    await waiter
                finally:
                    del self._waiting[waiter]
            return ping.answered - ping.sent
        finally:
            self.hand_over()

    async def _read(self, lane: Lane | None, until: Ping | None) -> None:
        """Read for all, until there is something for this lane, or one frame was waited for.

        Then whatever else has come is sorted in the same tick, so that all whose it is are woken
        at once: to let each of them read its own would take a tick of the loop apiece.
        """
        wire, link = self._wire, self.link
        budget = link.budget
        taken = 0
        is_served = False
        while link.owner is self and not wire.is_reading:
            message: str | bytes | None = None
            if wire.inbox or wire.arrivals:
                if taken >= MIN_FRAMES or wire.is_flooded:
                    if is_served and budget.is_spent:
                        return
                    if not is_served:
                        self._is_pausing = True
                        try:
                            await budget.breathe()
                        finally:
                            self._is_pausing = False
                        if wire.is_reading or link.owner is not self or (lane and lane.entries):
                            return  # meanwhile the pool has read
                        if until is not None and until.answered is not None:
                            return
                if (frames := wire.frames) and not wire.inbox:
                    # As `at_hand`, without its calls.
                    frame, size = frames[0]
                    if size < LARGE_BYTES and ((kind := frame.type) is TEXT or kind is BINARY):
                        await wire.next_frame()  # does not wait
                        wire.received_messages += 1
                        wire.received_bytes += size
                        message = frame.data
                if message is None:
                    message = wire.at_hand()
            if message is None:
                if taken:
                    return
                is_served = True
                if (message := await wire.read()) is None:
                    self._wake_pingers()
                    return
            taken += 1
            own = self.sort(message)
            if lane is not None and own is lane:
                if is_served and len(lane.entries) > 1:
                    return  # to read ahead for itself alone would only delay what stops the server
                is_served = True

    def attend(self) -> None:
        """Read while nobody does, as long as no lane has much that is unread."""
        wire = self._wire
        most = min(self._terms.max_unread, MAX_INBOX_BYTES)
        if any(lane.unread_bytes >= most for lane in self.lanes.values()):
            if wire.websocket.closed and not wire.is_reading:
                # A heartbeat has failed: aiohttp gives out nothing more, read or not.
                wire.lose(CloseReason.SERVER, 1006, "", wire.websocket.exception())
            return
        for message in wire.unread():
            lane = self.sort(message)
            if lane is not None and lane.unread_bytes >= most:
                break
        self._wake_pingers()

    def close(self) -> None:
        """Sort what had arrived when the link was closed, and let all who wait see that."""
        wire = self._wire
        taken_bytes = 0
        while taken_bytes < MAX_INBOX_BYTES and not (wire.is_flooded and wire.budget.is_spent):
            if (message := wire.at_hand()) is None:
                break
            taken_bytes += len(message) + MESSAGE_OVERHEAD_BYTES
            self.sort(message)
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    def hand_over(self) -> None:
        """Let another read, if anybody waits and nobody does.

        One that is woken already, for whatever reason, reads on or calls this when it goes.
        """
        waiter = next(iter(self._waiting), None)
        if waiter is not None and not (waiter.done() or self._is_read) and self.link.owner is self:
            waiter.set_result(None)

    @property
    def _is_read(self) -> bool:
        return self._is_pausing or self._wire.is_reading

    @property
    def _wire(self) -> Wire:
        assert self.link.wire is not None
        return self.link.wire

    def _wake_pingers(self) -> None:
        for waiter, is_for_pong in self._waiting.items():
            if is_for_pong and not waiter.done():
                waiter.set_result(None)
