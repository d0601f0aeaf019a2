"""The pool's one task: it reads for those who do not, retires what is old, and refills.

It holds the router weakly, so that a pool that was dropped is collected and the task ends.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from typing import Final

from wspool._connection.callsites import at_work_in, line_of, task_name
from wspool._connection.errors import ENDS_PROGRAM
from wspool._connection.link import Link
from wspool._connection.states import CloseReason
from wspool._pool.routing import Router
from wspool._pool.streaming import Streaming, lanes_of

logger = logging.getLogger("wspool")

SWEEP_SECONDS: Final = 0.25
"""Between two looks at a link that nobody reads."""

LOOKS_AT_ONCE: Final = 64
"""At links that have received nothing, between two looks at the clock: some 20 µs."""

MAX_ROUNDS: Final = 1000
"""Ticks in a row in which a link that keeps receiving is read, before the next sweep."""


def period(cleanup_interval: float, heartbeat: float | None) -> float:
    """Return the seconds between two sweeps.

    aiohttp waits for half the heartbeat for a pong, and before 3.14 sees it only when it is read.
    """
    return min(SWEEP_SECONDS, cleanup_interval, heartbeat / 4 if heartbeat else SWEEP_SECONDS)


def begin(router: Router) -> asyncio.Task[None]:
    """Begin the upkeep of a router, which the task holds weakly."""
    options = router.options
    interval = period(options.cleanup_interval, options.connect_options.get("heartbeat"))
    return router.tasks.spawn(upkeep(weakref.ref(router), interval))


async def upkeep(ref: weakref.ref[Router], interval: float) -> None:
    """Sweep every `interval` seconds and tidy up every `cleanup_interval`, until the pool ends.

    What breaks in one step is logged, and the next step comes all the same.
    """
    clock = asyncio.get_running_loop().time
    tidied = clock()
    while True:
        try:
            await asyncio.sleep(interval)
            await _attend_all(ref)
            router = ref()
            if router is None or (router.is_closing and not router.queues.busy):
                return
            if not router.is_closing:  # else borrowers' connections are attended until the last
                _look_after(router)
                if clock() - tidied >= router.options.cleanup_interval:
                    tidied = clock()
                    tidy(router)
        except (*ENDS_PROGRAM, asyncio.CancelledError):
            raise
        except BaseException:
            logger.exception("a step of the upkeep broke down; the next will come")
        router = None


async def _attend_all(ref: weakref.ref[Router]) -> None:
    """Read for all that do not, and again for those that go on receiving."""
    receiving = await _sweep(ref)
    for _ in range(MAX_ROUNDS):
        if not receiving:
            break
        # Two ticks: in the first, this task comes before the transport that reads again.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        receiving = await _attend(ref, receiving)


async def _sweep(ref: weakref.ref[Router]) -> list[Link]:
    """Look at every link once; return those that had received something unasked."""
    router = ref()
    if router is None:
        return []
    links = list(router.queues)
    del router
    return await _attend(ref, links)


async def _attend(ref: weakref.ref[Router], links: list[Link]) -> list[Link]:
    receiving = []
    for number, link in enumerate(links):
        has_news = link.is_flooding or link.has_news
        if has_news or number % LOOKS_AT_ONCE == 0:
            await link.budget.breathe()
        if not has_news:
            continue  # as nearly always
        router = ref()
        if router is None:
            return []
        try:
            if router.attending.attend(link):
                receiving.append(link)
        except ENDS_PROGRAM:
            raise
        except BaseException as error:
            logger.exception("the attending of #%d broke down; it is closed", link.id)
            link.close(CloseReason.ERROR, cause=error)
        del router
    return receiving


def _look_after(router: Router) -> None:
    """Do what is due at each sweep."""
    if router.permits.shares:
        router.closing.retire_unpermitted()
        router.permits.reclaim()
    router.repeating.read(router.clock())
    if router.streaming.has_route:
        router.streaming.sweep(router.clock())
    router.supply.look_for_life()
    router.supply.watch_minimum()
    router.replacing.look(router.clock())
    _look_for_room(router)
    _keep_alive(router)
    _warn_of_leaks(router)


def _look_for_room(router: Router) -> None:
    """Let those who wait have the probe that is due, of whether the server admits more."""
    if router.limit.look(is_wanted=bool(router.line.loans)):
        router.route()


def _keep_alive(router: Router) -> None:
    """Begin the keepalives that are due."""
    if router.options.keepalive_interval is None:
        return
    now = router.clock()
    for link in list(router.queues.idle):
        if router.retiring.is_keepalive_due(link, now):
            router.errands.begin(link, "keepalive")


def _warn_of_leaks(router: Router) -> None:
    """Warn once of each loan that is overdue."""
    threshold = router.options.leak_threshold
    if threshold is None:
        return
    if router.streaming.has_route:
        _warn_of_leaking_streams(router.streaming, threshold)
    for link in list(router.queues.busy):
        if link.is_overdue(threshold) and link.named_use != link.uses:
            link.named_use = link.uses
            callsite = link.loan._callsite
            logger.warning(
                "#%d has been lent for %.1f s (leak_threshold is %s s): borrowed by the task %r "
                "at %s, which is now at %s",
                *(link.id, link.seconds_lent, threshold, task_name(callsite)),
                *(line_of(callsite), at_work_in(callsite) or "its end"),
            )


def _warn_of_leaking_streams(streaming: Streaming, threshold: float) -> None:
    for link in streaming.shared():
        for lane in lanes_of(link):
            seconds = link.clock() - lane.since
            if lane.is_lent and seconds > threshold and not lane.is_named:
                assert lane.callsite is not None
                lane.is_named = True
                logger.warning(
                    "the stream in slot %d of #%d has been lent for %.1f s (leak_threshold is %s "
                    "s): borrowed by the task %r at %s, which is now at %s",
                    *(lane.slot, link.id, seconds, threshold, task_name(lane.callsite)),
                    *(line_of(lane.callsite), at_work_in(lane.callsite) or "its end"),
                )


def tidy(router: Router) -> None:
    """Close what is past its lifetime or has been idle for too long, and refill."""
    now = router.clock()
    for link in list(router.queues.idle):
        if (why := router.attending.why_idle(link, now)) is not None:
            link.close(why)
    router.supply.refill()
    router.replacing.refill()
