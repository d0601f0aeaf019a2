"""Telling: what a borrower reads when there is no connection for it, or a danger in its use."""

from __future__ import annotations

import logging

from wspool._connection.callsites import line_of, task_name
from wspool._connection.errors import (
    ConnectionPoolExhaustedError,
    ConnectionPoolTimeoutError,
    ConnectionUnavailableError,
)
from wspool._connection.link import Link
from wspool._connection.loan import WebsocketConnection
from wspool._connection.queues import Queues

logger = logging.getLogger("wspool")


def exhausted(pool: object, queues: Queues[Link], refusal: str) -> ConnectionPoolExhaustedError:
    """Return the error of somebody that may not wait for a borrower.

    `refusal`: what the server has said to one more, if it is the server that admits no more.
    """
    quoted = f"; one more was refused: {refusal}" if refusal else ""
    return ConnectionPoolExhaustedError(
        "All connections are in use, and this call may not wait; pass timeout=… to let it, or "
        f"make the pool with acquire_timeout=…: {pool!r}{_oldest_loan(queues)}{quoted}"
    )


def too_many_wait(pool: object, most: int) -> ConnectionPoolExhaustedError:
    return ConnectionPoolExhaustedError(
        f"max_waiting={most} already wait; make the pool with a higher one, or with more "
        f"max_connections=…: {pool!r}"
    )


def timed_out(
    pool: object,
    queues: Queues[Link],
    seconds: float,
    failure: ConnectionUnavailableError | None,
) -> ConnectionPoolTimeoutError:
    """Return the error of somebody whose time is up; `failure` is the last one of an attempt."""
    why = f"; the last attempt: {failure}" if failure is not None else _oldest_loan(queues)
    return ConnectionPoolTimeoutError(
        f"No connection within {seconds} s; pass a longer timeout=…, or make the pool with a "
        f"longer acquire_timeout=…: {pool!r}{why}"
    )


def _oldest_loan(queues: Queues[Link]) -> str:
    """Say who has had a connection for longest."""
    link = next((link for link in queues.busy if link.loan is not None), None)
    if link is None:
        return ""
    loan = link.loan if not link.is_shared else next(iter(link.sharing.lanes.values()))
    callsite = loan._callsite if not link.is_shared else loan.callsite
    return (
        f"; #{link.id} is lent for longest, for {link.seconds_lent:.1f} s to the task "
        f"{task_name(callsite)!r} at {line_of(callsite)}"
    )


def warn_of_no_end(loan: WebsocketConnection) -> None:
    """Say that the answer to the last message of a loan may come late."""
    logger.warning(
        "the loan of connection #%d, lent at %s, has ended with a message that it sent and nothing "
        "read after it. An answer that comes late is disposed of while the connection is idle, but "
        "may reach the next borrower. Tell the pool how to know that an answer is complete "
        "(drain_until, drain_fence or check_server_data_on_release), or read it before the end of "
        "the block. This is said once for each pool",
        *(loan.id, loan.borrowed_at),
    )
