"""The pool's one task: it reads for those who do not, retires what is old, and refills.

It holds the router weakly, so that a pool that was dropped is collected and the task ends.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from time import perf_counter
from typing import Final

from wspool._connection.callsites import at_work_in, borrowed_at, task_name
from wspool._connection.link import WebsocketConnection
from wspool._pool.routing import Router

logger = logging.getLogger("wspool")

PERIOD: Final = 0.25
"""Seconds between two looks at a connection that nobody reads."""

TURN: Final = 0.002
"""Seconds for which connections are looked at and read before the event loop gets its turn."""

BATCH: Final = 100
"""Messages of one connection that are disposed of at a time: under a millisecond.

A server that packs tiny messages fills a single read of 256 KiB with tens of thousands.
"""

ROUNDS: Final = 1000
"""Ticks in a row in which a connection that keeps receiving is read, before the next sweep."""


def period(cleanup_interval: float, heartbeat: float | None) -> float:
    """Return the seconds between two sweeps.

    aiohttp waits for half the heartbeat for a pong, and before 3.14 sees it only when it is read.
    """
    return min(PERIOD, cleanup_interval, heartbeat / 4 if heartbeat else PERIOD)


def begin(router: Router) -> asyncio.Task[None]:
    """Begin the upkeep of a router, which the task holds weakly."""
    options = router.options
    interval = period(options.cleanup_interval, options.connect_options.get("heartbeat"))
    return router.spawn(upkeep(weakref.ref(router), interval))


async def upkeep(ref: weakref.ref[Router], interval: float) -> None:
    """Sweep every `interval` seconds and tidy up every `cleanup_interval`, until the pool ends."""
    clock = asyncio.get_running_loop().time
    tidied = clock()
    while True:
        await asyncio.sleep(interval)
        receiving = await _sweep(ref)
        for _ in range(ROUNDS):
            if not receiving:
                break
            # Two ticks: in the first, this task comes before the transport that reads again.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            receiving = await _attend(ref, receiving)
        router = ref()
        if router is None or router.is_closing:
            return
        if router.options.quota is not None:
            router.retire_unpermitted()
        _keep_alive(router)
        _warn_of_leaks(router)
        if clock() - tidied >= router.options.cleanup_interval:
            tidied = clock()
            tidy(router)
        del router


async def _sweep(ref: weakref.ref[Router]) -> list[WebsocketConnection]:
    """Look at every connection once; return those that had received something unasked."""
    router = ref()
    if router is None:
        return []
    connections = list(router.queues)
    del router
    return await _attend(ref, connections)


async def _attend(
    ref: weakref.ref[Router], connections: list[WebsocketConnection]
) -> list[WebsocketConnection]:
    receiving = []
    began = perf_counter()
    for connection in connections:
        if perf_counter() - began > TURN:
            await asyncio.sleep(0)
            began = perf_counter()
        if not (connection.is_flooding or connection.has_news()):
            continue  # as nearly always: the rest would be a third of a sweep
        router = ref()
        if router is None:
            return []
        if router.attend(connection, BATCH):
            receiving.append(connection)
        del router
    return receiving


def _keep_alive(router: Router) -> None:
    """Begin the keepalives that are due."""
    if router.options.keepalive_interval is None:
        return
    now = router.clock()
    for connection in list(router.queues.idle):
        if router.errands.is_keepalive_due(connection, now):
            router.keep_alive(connection)


def _warn_of_leaks(router: Router) -> None:
    """Warn once of each loan that is overdue."""
    threshold = router.options.leak_threshold
    if threshold is None:
        return
    for connection in list(router.queues.busy):
        if connection.is_overdue(threshold) and connection.overdue_lease != connection.lease:
            connection.overdue_lease = connection.lease
            borrower = connection.borrower
            assert borrower is not None
            logger.warning(
                "#%d has been lent for %.1f s (leak_threshold is %s s): borrowed by the task %r "
                "at %s, which is now at %s",
                *(connection.id, connection.seconds_lent, threshold, task_name(borrower)),
                *(borrowed_at(borrower), at_work_in(borrower) or "its end"),
            )


def tidy(router: Router) -> None:
    """Close what is past its lifetime or has been idle for too long, and refill."""
    now = router.clock()
    for connection in list(router.queues.idle):
        if (why := router.too_old(connection, now)) is not None:
            connection.finish(why)
    router.refill()
