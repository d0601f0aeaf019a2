"""What a thread has in hand, be it a connection or a stream: its waits, and what ends it.

The borrow itself lives in the loop, and is the `_mirrored` of what the thread has.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from functools import partial
from threading import get_ident
from types import TracebackType
from typing import Any, ClassVar, Final, Generic, Protocol, Self, TypeVar

from wspool._connection.errors import ConnectionBusyError
from wspool._connection.loan import WebsocketConnection
from wspool._connection.states import State
from wspool._connection.stream import WebsocketStream
from wspool._pool.calls import Posted
from wspool._pool.checks import check_timeout
from wspool._pool.portal import Portal

T = TypeVar("T")
L = TypeVar("L", bound=WebsocketConnection | WebsocketStream)
B = TypeVar("B", bound="BlockingBorrow[Any]")


class Lender(Protocol):
    """What a borrow needs of its lender, which is not dropped while it has a borrower."""

    _portal: Portal


class Same:
    """An attribute that is that of the loop's own object; read from any thread.

    What a thread has given back, nobody finds lent any more.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        instance._caught_up()
        return getattr(instance._mirrored, self._name)

    def __set__(self, instance: Any, value: Any) -> None:
        instance._caught_up()
        setattr(instance._mirrored, self._name, value)


same: Final[Callable[[], Any]] = Same
"""What an attribute is declared with, whatever its type."""


class BlockingBorrow(Generic[L]):
    """What connections and streams for threads do alike."""

    __slots__ = (
        "__weakref__",
        "_is_ended",
        "_is_in_block",
        "_lender",
        "_mirrored",
        "_posted",
        "_poster",
    )

    # What is dropped, and how to have it given back.
    _what: ClassVar[str]
    _block: ClassVar[str]

    def __init__(self, lender: Lender, borrow: L) -> None:
        self._lender = lender
        self._mirrored = borrow
        # Whether a `with` gives it back. Of a generator that is dropped with one inside, the
        # collector may finalise the borrow first: that is nobody's mistake.
        self._is_in_block = False
        # Whether the loop has been told to give it back.
        self._is_ended = False
        # The thread that is in this `with`, and hears of what it has not waited for: by its next
        # call, or by the end of the block. To another one a send could not say that all is over.
        self._poster = 0
        # The last send that was not waited for, until its error, if it has one, is told.
        self._posted: Posted | None = None

    def __repr__(self) -> str:
        return f"<Blocking{repr(self._mirrored)[1:]}"

    def __iter__(self) -> Self:
        return self

    def _caught_up(self) -> None:
        self._lender._portal.catch_up()

    def _named(self) -> str:
        """Return what has run out of time, as the beginning of a sentence."""
        raise NotImplementedError

    def _wait(
        self,
        work: Callable[[], Coroutine[Any, Any, T]],
        timeout: float | None = None,
        late: str = "",
        undo: Callable[[T], object] | None = None,
    ) -> T:
        if timeout is not None:
            check_timeout(timeout)
        posted = self._posted
        if posted is not None and self._poster != get_ident():
            posted = None  # it is the other thread's to hear of
        try:
            return self._lender._portal.wait(work, timeout, undo, posted)
        except TimeoutError:
            raise TimeoutError(f"{self._named()} {late} within {timeout} s") from None
        finally:
            if posted is not None and posted.is_done and posted.error is None:
                self._posted = None

    def _confirm(self) -> None:
        """Return when what was sent has left; raise what has gone wrong."""
        posted, self._posted = self._posted, None
        if posted is not None:
            self._lender._portal.confirm(posted)

    def __del__(self) -> None:
        borrow, portal = self._mirrored, self._lender._portal
        if self._is_ended or portal.is_foreign or borrow._is_over:
            return
        is_forgotten = borrow.state is State.BUSY and not self._is_in_block
        portal.soon(partial(end, borrow, is_failed=True))
        if is_forgotten:
            warnings.warn(
                f"{self._what} #{borrow._served().id}, borrowed at {borrow.borrowed_at}, was "
                f"dropped without being given back: release it, or use `with pool.{self._block}()`",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )


class Lent(AbstractContextManager[B]):
    """A `with` that borrows, and gives back.

    Whoever is interrupted on the way into it or out of it drops it, as a generator does with a
    block inside that is dropped itself.
    """

    # From its beginning to its end.
    _lent: B | None = None

    def __init__(self, portal: Portal, borrow: Callable[[], B]) -> None:
        self._portal = portal
        self._borrow = borrow

    def __enter__(self) -> B:
        if self._lent is not None:
            raise ConnectionBusyError(
                f"This block has {self._lent!r} already; call get_connection(), or get_stream(), "
                "for each `with`"
            )
        lent = self._lent = self._borrow()
        lent._is_in_block = True
        lent._poster = get_ident()
        return lent

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        lent = self._lent
        assert lent is not None
        lent._poster = 0
        if kind is None:
            try:
                if lent._posted is not None:
                    lent._confirm()
            except BaseException:
                self._portal.later(partial(end, lent._mirrored, is_failed=True))
                raise
            self._portal.later(partial(end, lent._mirrored))
            lent._is_ended = True
        else:
            # A generator may be closed by the garbage collector, in whichever thread.
            tell = self._portal.soon if issubclass(kind, GeneratorExit) else self._portal.later
            tell(partial(end, lent._mirrored, is_failed=True))
        self._lent = None

    def __del__(self) -> None:
        if self._lent is not None:
            self._portal.soon(partial(end, self._lent._mirrored, is_failed=True))


def end(borrow: WebsocketConnection | WebsocketStream, **how: bool) -> bool:
    """In the loop: end a loan or a stream; False if it was over."""
    lender = borrow._lender
    if borrow._is_over or lender is None:
        return False
    router = lender._router
    give_back: Callable[..., None] = (
        router.streaming.give_back if borrow._is_stream else router.give_back
    )
    give_back(borrow, **how)
    return True
