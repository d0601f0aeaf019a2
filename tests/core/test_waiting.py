"""The line of those who wait, without a pool: who is the oldest, who leaves, who is served."""

from __future__ import annotations

import asyncio

import pytest

from wspool import ConnectionPoolTimeoutError, WebsocketConnection
from wspool._pool.waiting import Line


def join(line: Line, *, wants_new: bool = False) -> WebsocketConnection:
    """Let a loan of nobody's join the line."""
    loan = WebsocketConnection(None, None, wants_new)
    line.join(loan, 0.0)
    return loan


async def test_a_new_line_is_empty() -> None:
    line = Line()
    assert len(line) == 0
    assert not line
    assert list(line) == []
    assert line.oldest() is None
    assert line.leading_new() == 0


async def test_a_loan_that_joins_gets_what_wakes_it_up_and_the_time_of_its_arrival() -> None:
    line, loop = Line(), asyncio.get_running_loop()
    loan = WebsocketConnection(None, 0, True)
    waiter = line.join(loan, 3.5)
    assert waiter is loan._waiter
    assert not waiter.done()
    assert waiter.get_loop() is loop
    assert loan._since == 3.5
    assert loan._failure is None


async def test_joining_changes_nothing_of_what_a_loan_is_for() -> None:
    """Its patience and its wish are its own, and it has no link before it is served."""
    line = Line()
    loan = WebsocketConnection(None, 0, True)
    loan._callsite = callsite = ((lambda: None).__code__, 0, None)
    line.join(loan, 0.0)
    assert (loan._timeout, loan._wants_new) == (0, True)
    assert loan._callsite is callsite
    assert loan._link is None


def test_nobody_joins_without_a_running_loop() -> None:
    line = Line()
    with pytest.raises(RuntimeError):
        join(line)
    assert not line


async def test_loans_and_dials_are_numbered_in_one_order_of_arrival() -> None:
    line = Line()
    first = join(line)
    dial = line.arrive()
    second = join(line)
    assert first._arrival < dial < second._arrival


async def test_the_line_is_in_order_of_arrival() -> None:
    line = Line()
    loans = [join(line) for _ in range(4)]
    assert list(line) == loans
    assert len(line) == 4
    assert line.oldest() is loans[0]


async def test_who_leaves_is_out_and_the_order_of_the_rest_is_kept() -> None:
    line = Line()
    first, second, third = join(line), join(line, wants_new=True), join(line)
    line.leave(second)
    assert second not in line
    assert list(line) == [first, third]


async def test_leaving_twice_is_leaving_once() -> None:
    line = Line()
    first, second = join(line), join(line)
    line.leave(first)
    line.leave(first)
    assert list(line) == [second]


async def test_who_leaves_is_neither_served_nor_failed() -> None:
    """Its wait has ended already, or the caller ends it."""
    line = Line()
    loan = join(line)
    line.leave(loan)
    assert not loan._waiter.done()


async def test_who_joins_again_is_the_youngest_and_waits_anew() -> None:
    line = Line()
    first, second = join(line), join(line)
    line.leave(first)
    first._failure = OSError()
    ended, arrived = first._waiter, first._arrival
    line.join(first, 0.0)
    assert list(line) == [second, first]
    assert first._waiter is not ended
    assert first._arrival > second._arrival > arrived
    assert first._failure is None


async def test_the_line_may_change_while_it_is_iterated() -> None:
    line = Line()
    loans = [join(line) for _ in range(3)]
    seen = []
    for loan in line:
        seen.append(loan)
        line.leave(loan)
    assert seen == loans
    assert not line


async def test_those_lead_who_want_a_new_one_before_all_who_take_a_used_one() -> None:
    line = Line()
    join(line, wants_new=True)._waiter.cancel()
    new, used = join(line, wants_new=True), join(line)
    join(line, wants_new=True)
    assert line.leading_new() == 1
    line.leave(used)
    assert line.leading_new() == 2
    line.leave(new)
    assert line.leading_new() == 1


async def test_a_loan_that_was_cancelled_in_this_tick_is_passed_over() -> None:
    line = Line()
    first, second = join(line), join(line)
    first._waiter.cancel()
    assert line.oldest() is second
    assert first not in line


async def test_a_cancelled_loan_for_a_new_connection_leaves_the_line() -> None:
    line = Line()
    new = join(line, wants_new=True)
    new._waiter.cancel()
    assert line.oldest() is None
    assert not line


async def test_who_is_served_wakes_up_and_is_out() -> None:
    line = Line()
    loan = join(line, wants_new=True)
    line.serve(loan)
    assert loan not in line
    await loan._waiter


async def test_who_is_failed_gets_the_error_and_is_out() -> None:
    line = Line()
    loan = join(line, wants_new=True)
    line.fail(loan, ConnectionPoolTimeoutError("too late"))
    assert loan not in line
    with pytest.raises(ConnectionPoolTimeoutError, match="too late"):
        await loan._waiter


async def test_failing_one_that_was_cancelled_only_takes_it_out() -> None:
    line = Line()
    loan = join(line)
    loan._waiter.cancel()
    line.fail(loan, ConnectionPoolTimeoutError())
    assert not line
    assert loan._waiter.cancelled()


async def test_failing_one_that_was_served_does_not_undo_that() -> None:
    line = Line()
    loan = join(line)
    line.serve(loan)
    line.fail(loan, ConnectionPoolTimeoutError())
    await loan._waiter
