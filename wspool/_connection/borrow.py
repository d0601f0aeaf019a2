"""One borrow, of whatever kind: what stands in the line of a pool, and what its lender is to it."""

from __future__ import annotations

import asyncio
from types import FrameType
from typing import Any, ClassVar, Protocol

from wspool._connection.callsites import Callsite
from wspool._connection.dialogue import Dialogue
from wspool._connection.errors import ConnectionUnavailableError
from wspool._connection.link import Link


class LoanRouter(Protocol):
    """What a borrow needs of the routing."""

    async def wait(self, loan: Any) -> None:
        """Return when the loan was served."""

    def give_back(self, loan: Any, *, is_failed: bool) -> None:
        """End the loan."""

    @property
    def streaming(self) -> Any:
        """Where streams end, by a `give_back` of the same kind."""


class Lender(Protocol):
    """The pool, as a borrow knows it; it is not dropped while it has borrowers."""

    @property
    def _router(self) -> LoanRouter: ...

    def _lend_at_once(self, loan: Any, frame: FrameType) -> bool:
        """Check who borrows, and serve the loan if that needs no wait."""


class Borrow(Dialogue):
    """What a pool must know of whoever waits for a link, or for a share of one."""

    __slots__ = (
        "_arrival",
        "_callsite",
        "_failure",
        "_gate_closed",
        "_horizon",
        "_lender",
        "_since",
        "_timeout",
        "_uses",
        "_waiter",
        "_wants_new",
    )

    # Whether a share of a link will do, beside other borrowers.
    _is_stream: ClassVar[bool] = False

    # None: of the pool's own, or a view.
    _lender: Lender | None
    # Seconds for which it may wait; whether only a connection that nobody has used will do.
    _timeout: float | None
    _wants_new: bool
    # Who borrows, and where in the code.
    _callsite: Callsite | None
    # While it stands in the line: what wakes it up, its number and the loop's time when it
    # arrived, and for how long the gate had been closed by then; the last failure of a dial
    # that spoke to it, and the number of the last dial that had begun at the first of these.
    _waiter: asyncio.Future[None]
    _arrival: int
    _since: float
    _gate_closed: float
    _failure: ConnectionUnavailableError | None
    _horizon: int | None
    # Once it is served: which use of the link it is.
    _uses: int

    def _owns(self, link: Link) -> bool:
        """Whether this link, which it was served, is its own to use."""
        raise NotImplementedError
