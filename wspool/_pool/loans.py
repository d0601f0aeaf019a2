"""One loan as a context manager."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

from wspool._connection.link import WebsocketConnection

if TYPE_CHECKING:
    from wspool._pool.pool import WebsocketConnectionPool


class Loan:
    """The context manager of `get_connection`: one loan, given back however the block is left."""

    __slots__ = ("_connection", "_lease", "_pool", "_timeout", "_wants_new")

    def __init__(
        self, pool: WebsocketConnectionPool, timeout: float | None, wants_new: bool
    ) -> None:
        self._pool = pool
        self._timeout = timeout
        self._wants_new = wants_new

    async def __aenter__(self) -> WebsocketConnection:
        pool = self._pool
        borrower = pool.borrower(sys._getframe(1), self._timeout)
        connection = None if self._wants_new else pool.router.lend_idle(borrower)
        if connection is None:
            connection = await pool.wait(borrower, self._timeout, wants_new=self._wants_new)
        self._connection = connection
        self._lease = connection.lease
        return connection

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # A loan that was ended inside the block may be followed by somebody else's by now.
        if self._connection.lease == self._lease:
            self._pool.router.give_back(self._connection, exc_type is not None)
