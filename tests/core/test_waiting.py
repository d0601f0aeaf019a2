"""The line of those who wait, without a pool: who is the oldest, who leaves, who gets what."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from wspool import ConnectionPoolTimeoutError, WebsocketConnection
from wspool._pool.waiting import Line, Waiter

BORROWER = ((lambda: None).__code__, 0, None)


def a_connection() -> WebsocketConnection:
    return cast(WebsocketConnection, object())


def join(line: Line, *, wants_new: bool = False, is_patient: bool = True) -> Waiter:
    return line.join(BORROWER, wants_new=wants_new, is_patient=is_patient)


async def test_a_new_line_is_empty() -> None:
    line = Line()
    assert len(line) == 0
    assert not line
    assert list(line) == []
    assert line.oldest() is None
    assert line.oldest_for_used() is None


async def test_who_joins_is_told_apart_by_borrower_patience_and_wish() -> None:
    line = Line()
    waiter = line.join(BORROWER, wants_new=True, is_patient=False)
    assert waiter.borrower is BORROWER
    assert waiter.wants_new
    assert not waiter.is_patient
    assert waiter.failure is None
    assert not waiter.future.done()
    assert waiter.future.get_loop() is asyncio.get_running_loop()


def test_nobody_joins_without_a_running_loop() -> None:
    line = Line()
    with pytest.raises(RuntimeError):
        join(line)
    assert not line


async def test_waiters_and_dials_are_numbered_in_one_order_of_arrival() -> None:
    line = Line()
    first = join(line)
    dial = line.arrive()
    second = join(line)
    assert first.arrival < dial < second.arrival


async def test_the_line_is_in_order_of_arrival() -> None:
    line = Line()
    waiters = [join(line) for _ in range(4)]
    assert list(line) == waiters
    assert len(line) == 4
    assert line.oldest() is waiters[0]


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


async def test_the_line_may_change_while_it_is_iterated() -> None:
    line = Line()
    waiters = [join(line) for _ in range(3)]
    seen = []
    for waiter in line:
        seen.append(waiter)
        line.leave(waiter)
    assert seen == waiters
    assert not line


async def test_those_lead_who_want_a_new_one_before_all_who_take_a_used_one() -> None:
    line = Line()
    join(line, wants_new=True).future.cancel()
    new, used = join(line, wants_new=True), join(line)
    join(line, wants_new=True)
    assert line.leading_new() == 1
    line.leave(used)
    assert line.leading_new() == 2
    line.leave(new)
    assert line.leading_new() == 1


async def test_the_oldest_for_a_used_connection_is_the_first_who_takes_one() -> None:
    line = Line()
    new = join(line, wants_new=True)
    assert line.oldest_for_used() is None
    used = join(line)
    join(line)
    assert line.oldest() is new
    assert line.oldest_for_used() is used


async def test_a_waiter_that_was_cancelled_in_this_tick_is_passed_over() -> None:
    line = Line()
    first, second = join(line), join(line)
    first.future.cancel()
    assert line.oldest() is second
    assert first not in line


async def test_a_cancelled_waiter_behind_one_for_a_new_connection_is_passed_over() -> None:
    line = Line()
    join(line, wants_new=True)
    cancelled, third = join(line), join(line)
    cancelled.future.cancel()
    assert line.oldest_for_used() is third


async def test_a_cancelled_waiter_for_a_new_connection_leaves_both_lines() -> None:
    line = Line()
    new = join(line, wants_new=True)
    new.future.cancel()
    assert line.oldest() is None
    assert not line


async def test_who_is_given_a_connection_has_it_and_is_out() -> None:
    line = Line()
    waiter = join(line, wants_new=True)
    connection = a_connection()
    line.give(waiter, connection)
    assert waiter not in line
    assert await waiter.future is connection


async def test_who_is_failed_gets_the_error_and_is_out() -> None:
    line = Line()
    waiter = join(line, wants_new=True)
    line.fail(waiter, ConnectionPoolTimeoutError("too late"))
    assert waiter not in line
    with pytest.raises(ConnectionPoolTimeoutError, match="too late"):
        await waiter.future


async def test_failing_one_that_was_cancelled_only_takes_it_out() -> None:
    line = Line()
    waiter = join(line)
    waiter.future.cancel()
    line.fail(waiter, ConnectionPoolTimeoutError())
    assert not line
    assert waiter.future.cancelled()


async def test_failing_one_that_was_served_leaves_it_what_it_got() -> None:
    line = Line()
    waiter = join(line)
    connection = a_connection()
    line.give(waiter, connection)
    line.fail(waiter, ConnectionPoolTimeoutError())
    assert await waiter.future is connection
