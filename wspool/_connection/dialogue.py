"""What of a loan's is under way: whether an answer may still come, as far as the pool can know."""

from __future__ import annotations

import logging
from typing import Any, Final, Self

from wspool._connection.errors import ENDS_PROGRAM, ConnectionBusyError
from wspool._connection.link import Link

logger = logging.getLogger("wspool")

GIVEN_UP: Final[Any] = object()
"""In the place of the last message: a recv that was cancelled or timed out came after it."""

NEW: Final[Any] = object()
"""What a loan prefers that wants a connection which nobody has used."""


class Dialogue:
    """What was sent and read in one loan, as far as it tells whether the connection is clean."""

    __slots__ = ("__weakref__", "_has_sent", "_last_message", "_link", "_outstanding")

    # None until it is served.
    _link: Link | None
    # Whether something was sent in this loan, so that a reply may be under way.
    _has_sent: bool
    # What recv returned last, unless something was sent after it; whether it is an answer that
    # was given up: GIVEN_UP.
    _last_message: str | bytes | None
    # How many last messages are still to come, if the borrower has said so.
    _outstanding: int | None

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if not name.startswith("_") or name[:2] == "__"]

    def _served(self) -> Link:
        if self._link is None:
            raise ConnectionBusyError("This loan has no connection yet: use `async with`")
        return self._link

    def _link_of_mine(self, doing: str) -> Link:
        """Return the link, if it is this loan's to use, or was when it was lost."""
        raise NotImplementedError

    def _note_send(self) -> None:
        """From now on a reply may be under way; one that was given up still is."""
        self._has_sent = True
        if self._last_message is not GIVEN_UP:
            self._last_message = None

    @property
    def outstanding(self) -> int | None:
        """How many last messages are still to come: set it, if you have asked several questions.

        Each message that `drain_until` calls the last counts down, be it read by you or by the
        drain, and at 0 the connection is clean. None: not more than one. Raises TypeError or
        ValueError for what is no count, and for one above 0 in a pool without `drain_until`.
        """
        return self._outstanding

    @outstanding.setter
    def outstanding(self, outstanding: int | None) -> None:
        link = self._link_of_mine("set outstanding")
        if outstanding is not None:
            if isinstance(outstanding, bool) or not isinstance(outstanding, int):
                raise TypeError(
                    f"outstanding is {outstanding!r}; it must be a whole number or None"
                )
            if outstanding < 0:
                raise ValueError(f"outstanding is {outstanding!r}; it must be at least 0")
            if outstanding and link.is_last is None:
                raise ValueError(
                    f"outstanding is {outstanding!r}, but the pool has no drain_until to tell "
                    "which messages are last"
                )
        self._outstanding = outstanding

    @property
    def is_clean(self) -> bool:
        """Whether nothing of this loan's is under way, as far as that is known.

        Nothing was sent, or the last message read is the end of its answer, as `drain_until` says,
        or as many ends were read as `outstanding` said. In `on_release` it tells of the loan that
        was given back.
        """
        if self._outstanding is not None:
            return self._outstanding == 0
        if not self._has_sent:
            return True
        link = self._link
        if link is None or link.is_last is None:
            return False
        last = self._last_read()
        return last is not None and self._is_last(last)

    def _count_down(self, message: str | bytes) -> None:
        if self._outstanding and self._is_last(message):
            self._outstanding -= 1

    def _is_last(self, message: str | bytes) -> bool:
        """Return whether `drain_until` says that a message is the last of an answer."""
        is_last = self._served().is_last
        try:
            return is_last is not None and bool(is_last(message))
        except ENDS_PROGRAM:
            raise
        except BaseException:
            logger.exception("drain_until raised; the message does not count as the last")
            return False

    def _last_read(self) -> str | bytes | None:
        """Return what recv returned last, if nothing was sent and nothing has arrived since."""
        wire, last = self._served().wire, self._last_message
        return None if wire is None or wire.inbox or last is GIVEN_UP else last

    @property
    def _has_given_up(self) -> bool:
        """Whether the last recv after a send ended without a message: the answer may still come."""
        return self._has_sent and self._last_message is GIVEN_UP and self._outstanding != 0

    def _take_over(self, loan: Self) -> None:
        """As the loan of a hook's, begin with what another loan has left under way."""
        if not loan.is_clean:
            self._has_sent, self._last_message = loan._has_sent, loan._last_message
            self._outstanding = loan._outstanding
