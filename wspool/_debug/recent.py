"""The last minutes of a pool or a group, as events tell them: how used each state was, how long.

A count that is looked at twice a second misses loans of a millisecond, however many there are.
So use is measured: the mean number of connections in a state is the seconds that they have spent
in it, for each second. For each state, and for the line of those who wait, there is a total of such
seconds, which grows by the count: an event changes the count, and costs two additions.

This file has no clock and no loop of its own: time passes with the events, and with whoever looks.
Times are Unix seconds, as the events have them.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any, Final

from wspool._connection.states import CloseReason, State
from wspool._debug.durations import Durations, bucket_of
from wspool.events import (
    CheckOutFailure,
    ConnectionChecked,
    ConnectionCheckedIn,
    ConnectionCheckedOut,
    ConnectionCheckOutFailed,
    ConnectionCheckOutStarted,
    ConnectionClosed,
    ConnectionCreated,
    ConnectionDrained,
    ConnectionDrainStarted,
    ConnectionReady,
    Event,
    StreamCheckedIn,
    StreamCheckedOut,
)

SLOT_SECONDS: Final = 1
"""The time that one mean is of."""

MAX_SLOTS: Final = 300
"""Five minutes of means."""

WINDOW_SLOTS: Final = 60
"""A minute of durations."""

WAITING: Final = "waiting"
"""Beside the states: the line of those who wait."""

SHARES: Final = {"p50": 0.50, "p95": 0.95, "p99": 0.99}

LOSSES: Final = frozenset(
    {
        *(CloseReason.SERVER, CloseReason.PROTOCOL, CloseReason.STALE, CloseReason.ERROR),
        *(CloseReason.DRAIN, CloseReason.QUOTA, CloseReason.DIAL),
    }
)
"""Why a connection goes that nobody wanted to go; a dial that fails is one."""

DURATIONS: Final = ("wait", "use", "dial")
"""What there are percentiles of.

The wait is that of an acquire, whatever came of it: in an outage, who waits in vain waits as well.
The use is a loan, the dial an attempt that succeeded.
"""


Connection = tuple[str, int]
"""The pool's name, and the connection's id there."""


def _connection(event: Any) -> Connection:
    return event.pool, event.connection_id


class _Slot:
    """One second: what happened in it, and, once it is over, the means."""

    __slots__ = ("at", "durations", "loans", "longest_wait", "lost", "means", "refused")

    def __init__(self, at: float) -> None:
        self.at = at
        self.means: dict[str, float] = {}
        self.loans = 0
        self.longest_wait = 0.0
        self.refused: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.durations = {name: Durations() for name in DURATIONS}

    def shown(self, means: Mapping[str, float]) -> dict[str, Any]:
        return {
            "at": self.at,
            "means": {name: round(mean, 3) for name, mean in means.items()},
            "loans": self.loans,
            "longest_wait": self.longest_wait,
            "refused": self.refused.total(),
            "lost": self.lost.total(),
        }


class Recent:
    """What was measured since `began`: of five minutes the means, of one the durations."""

    def __init__(self, began: float) -> None:
        self._began = self._now = began
        # Each connection's state, as far as the events tell it.
        self._state_of: dict[Connection, State] = {}
        # How many streams each connection has that are lent.
        self._streams: Counter[Connection] = Counter()
        self._counts: Counter[str] = Counter()
        # The seconds of each count since the beginning are its `shift` and its count times now.
        self._shifts: dict[str, float] = dict.fromkeys([*State, WAITING], 0.0)
        # The seconds when the present slot began, or the measuring, if that was later.
        self._totals = dict(self._shifts)
        self._totals_at = began
        self._slot = _Slot(math.floor(began))
        self._slot_end = self._slot.at + SLOT_SECONDS
        self._slots: deque[_Slot] = deque(maxlen=MAX_SLOTS)
        self._window = {name: Durations() for name in DURATIONS}
        self._listeners: dict[type[Event], Callable[[Any], None]] = {
            ConnectionCheckOutStarted: self._started,
            ConnectionCheckOutFailed: self._failed,
            ConnectionCheckedOut: self._checked_out,
            ConnectionCheckedIn: self._checked_in,
            StreamCheckedOut: self._stream_checked_out,
            StreamCheckedIn: self._stream_checked_in,
            ConnectionCreated: self._created,
            ConnectionReady: self._ready,
            ConnectionDrainStarted: self._drain_started,
            ConnectionDrained: self._is_back,
            ConnectionChecked: self._is_back,
            ConnectionClosed: self._closed,
        }

    # Being told.

    def hear(self, event: Event) -> None:
        if self._now <= event.at < self._slot_end:
            self._now = event.at
        else:
            self.advance(event.at)
        if (tell := self._listeners.get(type(event))) is not None:
            tell(event)

    def _started(self, event: ConnectionCheckOutStarted) -> None:
        self._change(WAITING, 1)

    def _failed(self, event: ConnectionCheckOutFailed) -> None:
        self._leave_line(event.duration)
        self._note("wait", event.duration)
        if event.reason != CheckOutFailure.CANCELLED:  # its own wish
            self._slot.refused[event.reason] += 1

    def _checked_out(self, event: ConnectionCheckedOut | StreamCheckedOut) -> None:
        self._leave_line(event.duration)
        self._slot.loans += 1
        self._note("wait", event.duration)
        self._move(_connection(event), State.BUSY)

    def _checked_in(self, event: ConnectionCheckedIn) -> None:
        self._note("use", event.duration)
        self._move(_connection(event), State.IDLE)

    def _stream_checked_out(self, event: StreamCheckedOut) -> None:
        self._checked_out(event)
        self._streams[_connection(event)] += 1

    def _stream_checked_in(self, event: StreamCheckedIn) -> None:
        """The last stream leaves a connection idle, or draining: that is seen by the next look."""
        self._note("use", event.duration)
        connection = _connection(event)
        self._streams[connection] -= 1
        if self._streams[connection] <= 0:
            del self._streams[connection]
            if self._state_of.get(connection) is State.BUSY:
                self._move(connection, State.IDLE)

    def _created(self, event: ConnectionCreated) -> None:
        self._move(_connection(event), State.CONNECTING)

    def _ready(self, event: ConnectionReady) -> None:
        self._note("dial", event.duration)
        self._move(_connection(event), State.IDLE)

    def _drain_started(self, event: ConnectionDrainStarted) -> None:
        self._move(_connection(event), State.DRAINING)

    def _is_back(self, event: ConnectionDrained | ConnectionChecked) -> None:
        self._move(_connection(event), State.IDLE)

    def _closed(self, event: ConnectionClosed) -> None:
        self._move(_connection(event), State.CLOSED)
        if event.reason in LOSSES:
            self._slot.lost[event.reason] += 1

    def see(self, state_of: Mapping[Connection, State], waits: list[float], now: float) -> None:
        """Be told how it really is: there are things without an event, such as the end of a socket.

        `waits` are the seconds for which each has waited by now.
        """
        self.advance(now)
        self._state_of = dict(state_of)
        counts = Counter(self._state_of.values())
        for state in State:
            self._change(state, counts[state] - self._counts[state])
        self._change(WAITING, len(waits) - self._counts[WAITING])
        self._slot.longest_wait = max([self._slot.longest_wait, *waits])

    def advance(self, now: float) -> None:
        """Let time pass until now; a clock that was set back stands still for so long."""
        self._now = max(now, self._now)
        too_long_ago = self._now - (MAX_SLOTS + 1) * SLOT_SECONDS
        if self._slot.at < too_long_ago:  # so long without an event: no slot of then is kept
            self._end_slot(math.floor(too_long_ago))
        while self._now >= self._slot_end:
            self._end_slot(self._slot_end)

    def _move(self, id: Connection, state: State) -> None:
        before = self._state_of.get(id)
        if before is not state:
            self._state_of[id] = state
            if before is not None:
                self._change(before, -1)
            self._change(state, 1)

    def _note(self, name: str, seconds: float) -> None:
        bucket = bucket_of(seconds)
        self._slot.durations[name].add(bucket)
        self._window[name].add(bucket)

    def _leave_line(self, waited: float) -> None:
        if self._counts[WAITING]:  # else it came before the beginning, and has been counted out
            self._change(WAITING, -1)
        if waited > self._slot.longest_wait:
            self._slot.longest_wait = waited

    def _change(self, name: str, by: int) -> None:
        self._counts[name] += by
        self._shifts[name] -= by * (self._now - self._began)

    def _seconds(self, at: float) -> dict[str, float]:
        """Return the seconds of each count since the beginning."""
        since = at - self._began
        return {name: shift + self._counts[name] * since for name, shift in self._shifts.items()}

    def _means(self, at: float) -> dict[str, float]:
        """Return the means since the present slot began."""
        span = at - self._totals_at
        if span <= 0:
            return {name: float(self._counts[name]) for name in self._shifts}
        totals = self._seconds(at)
        return {name: max(0.0, (totals[name] - self._totals[name]) / span) for name in totals}

    def _end_slot(self, at: float) -> None:
        self._slot.means = self._means(at)
        self._slots.append(self._slot)
        if len(self._slots) >= WINDOW_SLOTS:
            past = self._slots[-WINDOW_SLOTS]
            for name, durations in past.durations.items():
                self._window[name].take_off(durations)
            past.durations = {}
        self._slot, self._slot_end = _Slot(at), at + SLOT_SECONDS
        self._totals, self._totals_at = self._seconds(at), at

    # Being asked.

    def slots(self, most: int = MAX_SLOTS) -> list[dict[str, Any]]:
        """Return the last seconds, the present one last, whose means are those of its beginning."""
        past = [self._slots[n] for n in range(max(0, len(self._slots) - most), len(self._slots))]
        shown = [slot.shown(slot.means) for slot in past]
        return [*shown, self._slot.shown(self._means(self._now))]

    def summary(self) -> dict[str, Any]:
        """Return the last minute: percentiles, and what was refused and lost, by reason.

        `seconds` is how much of it was measured.
        """
        last = [*[*self._slots][1 - WINDOW_SLOTS :], self._slot]
        return {
            "seconds": min(float(WINDOW_SLOTS), self._now - self._began),
            "refused": dict(sum((slot.refused for slot in last), Counter())),
            "lost": dict(sum((slot.lost for slot in last), Counter())),
            **{
                name: {"count": durations.count}
                | {share: durations.percentile(SHARES[share]) for share in SHARES}
                for name, durations in self._window.items()
            },
        }
