"""The limit: how many connections the server admits, as far as its refusals have told.

A server that refuses one more while others of this pool are open is *full*: it admits as many as
those. One that refuses with none open says nothing of a number, and is the gate's business. From
then on one dial at a time, the probe, asks whether it admits more. A link whose dial was at the
server when another was refused, and the probe, are on trial: until they have lived, or were
refused, each has a place of its own beyond the limit.

A server may also be full without a refusal: it admits the newest, and closes the oldest. Whoever
dials on then loses a connection for each one.

Rules over numbers and times. This file knows neither loop nor network, and dials nothing.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Hashable, Iterable
from time import monotonic
from typing import Final, Protocol

from wspool._connection.errors import (
    ENDS_PROGRAM,
    ConnectionClosedError,
    ConnectionUnavailableError,
    WebsocketError,
)

logger = logging.getLogger("wspool")

FIRST_PAUSE_SECONDS: Final = 5.0
"""From the refusal that the limit was learned from to the first probe; doubled by each refusal of
a probe."""

MAX_PAUSE_SECONDS: Final = 300.0

JITTER: Final = 0.1
"""Share of a pause by which it may be shorter, so that not all processes ask at once."""

FORGOTTEN_SECONDS: Final = 600.0
"""With nobody waiting for so long, the limit is forgotten: it may be another one by then."""

EVICTION_SECONDS: Final = 1.0
"""An older connection that the server closes within this time after it has admitted a new one may
have made room for that."""

FULL_STATUSES: Final = (429, 503)
TRY_AGAIN_LATER: Final = 1013
"""What a full server says: the statuses of its refusals, and the code of an early close."""

_FULL_KINDS: Final = frozenset(f"status {status}" for status in FULL_STATUSES)


class Limits(Protocol):
    """The settings that count here."""

    max_connections: int
    learn_limit: bool
    is_full: Callable[[WebsocketError], object] | None


class Limit:
    """What the server of one pool admits. `tell` is called with each new limit, and why."""

    def __init__(self, limits: Limits, tell: Callable[[int | None, str], object]) -> None:
        self._limits = limits
        self._tell = tell
        # How many links there may be: max_connections, or fewer. The one number that everybody
        # compares with; it is read at each release, and so is no property.
        self.most = limits.max_connections
        # How many it admits, those on trial apart; None while that is not known.
        self.learned: int | None = None
        # What the server has said when that was learned.
        self.refusal = ""
        # Those that are not known to be admitted yet; the probe is one of them.
        self.trials: set[Hashable] = set()
        self.probe: Hashable | None = None
        # Whether it admits the newest and closes the oldest.
        self.is_evicting = False
        # Tests shorten it.
        self.first_pause = FIRST_PAUSE_SECONDS
        self._pause = self._next_pause = 0.0
        self._due = self._wanted_at = 0.0
        # When it has last admitted one, and the last that it has closed another for; how many in a
        # row those were, and since when that is known.
        self._admitted_at = self._blamed_at = float("-inf")
        self._evictions = 0
        self._evicting_since = float("-inf")
        # When it has last refused with nothing open, until it has admitted one that began later.
        self._suspected_at: float | None = None
        # A refusal that tells a number only if those that are on trial are admitted.
        self._pending = ""
        # The event loop's, from the pool's start on.
        self.clock: Callable[[], float] = monotonic

    # What it allows.

    def refresh(self) -> None:
        """Work out how many links there may be; also after a `resize()`."""
        self.most = self._limits.max_connections
        if self.learned is not None:
            self.most = min(self.most, self.learned + len(self.trials))

    @property
    def is_short(self) -> bool:
        """Whether the server admits fewer than there might be."""
        return self.most < self._limits.max_connections

    @property
    def is_due(self) -> bool:
        """Whether the next probe may begin, if somebody waits for it."""
        return self.learned is not None and not self.trials and self.clock() >= self._due

    @property
    def is_suspected(self) -> bool:
        """Whether a refusal with nothing open may turn out to have been one of a full server."""
        return self._suspected_at is not None

    def look(self, *, is_wanted: bool) -> bool:
        """Note whether somebody waits, and forget what nobody has needed for long.

        Return whether a probe is to begin.
        """
        if self.learned is None:
            return False
        if is_wanted:
            self._wanted_at = self.clock()
            return self.is_due
        if self.clock() - self._wanted_at >= FORGOTTEN_SECONDS:
            self._forget("nobody has waited for ten minutes")
        return False

    # What the server says.

    def says_full(self, error: WebsocketError) -> bool:
        """Return whether this is how the server refuses when it is full."""
        if not self._limits.learn_limit:
            return False
        match error:
            case ConnectionUnavailableError() if error.kind in _FULL_KINDS:
                return True
            case ConnectionClosedError() if error.code == TRY_AGAIN_LATER:
                return True
        if self._limits.is_full is None:
            return False
        try:
            return bool(self._limits.is_full(error))
        except ENDS_PROGRAM:
            raise
        except BaseException:
            logger.exception("is_full raised, of %r", error)
            return False

    def suspect(self, refusal: str, new: Iterable[Hashable] = ()) -> None:
        """Note that it has refused with nothing open, but for these new ones.

        If they turn out to be admitted, they are as many as it admits.
        """
        self._suspected_at = self.clock()
        for link in new:
            self._pending = refusal
            self.begin(link)

    def clears(self, began_at: float) -> bool:
        """Note that it has admitted a dial; return whether that ends a suspicion."""
        if self._suspected_at is None or began_at <= self._suspected_at:
            return False
        self._suspected_at = None
        return True

    def refused(
        self, refusal: str, others: int, link: Hashable, retry_after: float | None = None
    ) -> None:
        """Learn from its having refused this link beside so many others that it has admitted."""
        if link is not self.probe:  # news: those before it may be out of date
            self._next_pause = self.first_pause
        self._leave(link)
        self.is_evicting = False
        self._learn(others, refusal, retry_after)

    def _learn(self, admitted: int, refusal: str, retry_after: float | None = None) -> None:
        now = self.clock()
        if self.learned is None:
            self._wanted_at = now
        self._suspected_at = None
        self._pending = ""
        self._pause = min(self._next_pause, MAX_PAUSE_SECONDS)
        self._next_pause = 2 * self._pause
        self._wait(retry_after or 0.0)
        self.refusal = refusal
        self._set(max(1, admitted), refusal)

    def _wait(self, at_least: float = 0.0) -> None:
        pause = self._pause * (1 - JITTER * random.random())
        self._due = self.clock() + max(pause, at_least)

    # What becomes of those on trial.

    def begin(self, link: Hashable, *, is_probe: bool = False) -> None:
        """Put a link on trial."""
        self.trials.add(link)
        if is_probe:
            self.probe = link
        self.refresh()

    def admitted(self, link: Hashable, others: int) -> bool:
        """Raise the limit: a link on trial has lived. After a probe the next is due at once.

        Return whether it is only now known; then it counts the others that are not on trial too.
        """
        was_probe = link is self.probe
        refusal = self._pending
        self._leave(link)
        if self.learned is None:
            if refusal:
                self._next_pause = self.first_pause
                self._learn(1 + others, refusal)
            return bool(refusal)
        if was_probe:
            self.is_evicting, self._evictions = False, 0
            self._next_pause = self.first_pause
            self._due = self.clock()
        self._set(self.learned + 1, "one more was admitted")
        return False

    def withdrawn(self, link: Hashable) -> None:
        """End a trial that has shown nothing."""
        if link is self.probe:
            self._wait()
        self._leave(link)

    def _leave(self, link: Hashable) -> None:
        self.trials.discard(link)
        if link is self.probe:
            self.probe = None
        if not self.trials:
            self._pending = ""
        self.refresh()

    # A server that admits the newest and closes the oldest.

    def opened(self, link: Hashable) -> None:
        """Note that the server has admitted a link, perhaps instead of another.

        Within a limit that is known, it has had room for it.
        """
        if self._limits.learn_limit and (self.learned is None or link in self.trials):
            now = self.clock()
            if self._blamed_at != self._admitted_at < now - EVICTION_SECONDS:
                self._evictions = 0  # the last one has cost nobody its place
            self._admitted_at = now

    def closed(self, opened_at: float) -> bool:
        """Note that the server has closed a link that was open since then.

        Return whether it closes an older one for each new one: it has done so twice in a row. Of
        those that go together one is blamed on the newest; once it is known, all.
        """
        since = self.clock() - EVICTION_SECONDS
        if self.is_evicting and self._evicting_since >= since:
            return True
        newest = self._admitted_at
        if newest < since or newest <= opened_at or newest == self._blamed_at:
            return False
        self._blamed_at = newest
        self._evictions += 1
        return self._evictions >= 2

    def evicts(self, how: str, open: int) -> bool:
        """Learn from its closing older ones for newer ones, which leaves so many open.

        False if it leaves none: then it has closed the newest as well, and makes room for nobody.
        """
        if not open:
            return False
        if self.probe is None:
            self._next_pause = self.first_pause
        self.trials.clear()
        self.probe = None
        if not self.is_evicting or self._evicting_since < self.clock() - EVICTION_SECONDS:
            self._evicting_since = self.clock()
        self.is_evicting = True
        self._learn(open, f"The server closes an older connection for each new one: {how}")
        return True

    def closed_all(self) -> None:
        """Note that nothing is open: a server that has closed the newest too makes no room."""
        if self.is_evicting:
            self._forget("the server has closed all connections")
            self._evictions = 0

    # The limit itself.

    def _forget(self, why: str) -> None:
        self._pending = ""
        self.trials.clear()
        self.probe = None
        self.is_evicting = False
        self.refusal = ""
        self._set(None, why)

    def _set(self, learned: int | None, why: str) -> None:
        is_news, self.learned = learned != self.learned, learned
        self.refresh()
        if not is_news:
            return
        known = f"the server admits {learned}" if learned else "what the server admits is forgotten"
        logger.info("%s: %s", known, why)
        self._tell(learned, why)
