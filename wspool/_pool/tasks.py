"""The pool's tasks: what must wait for the network, done for a router that is held weakly.

A task here does one thing, a dial, a drain, an errand or a goodbye, and then tells its router; if
that is gone, because the pool was dropped, it cuts the socket off.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

import aiohttp

from wspool._connection.errors import ConnectionUnavailableError
from wspool._connection.link import WebsocketConnection
from wspool._connection.states import CloseReason, State
from wspool._pool.dialing import Gate, dial
from wspool._pool.draining import Discard
from wspool._pool.options import Options

if TYPE_CHECKING:
    from wspool._pool.routing import Router

logger = logging.getLogger("wspool")


def bury_weakly(router: Router) -> Callable[[WebsocketConnection], None]:
    """Return `router.bury` for a connection to call, without keeping the router alive."""
    bury = weakref.WeakMethod(router.bury)

    def on_close(connection: WebsocketConnection) -> None:
        method = bury()
        if method is not None:
            method(connection)
            return
        connection.abort()
        connection.leave()

    return on_close


async def open_socket(
    ref: weakref.ref[Router],
    connection: WebsocketConnection,
    options: Options,
    session: aiohttp.ClientSession,
    gate: Gate,
) -> None:
    failure: ConnectionUnavailableError | None = None
    try:
        await dial(connection, options, session, gate)
    except ConnectionUnavailableError as error:
        failure = error
    except Exception:
        # A fault of this package's: it must not cost a place, and those who wait, as well.
        logger.exception("the dial of #%d broke down", connection.id)
        failure = ConnectionUnavailableError("The dial broke down; the log says where")
    router = ref()
    if router is not None:
        router.dialled(connection, failure)
    else:
        connection.abort()


async def own(
    ref: weakref.ref[Router], connection: WebsocketConnection, work: Callable[[], Awaitable[None]]
) -> None:
    """Do the work of a state that the pool owns, a drain or an errand."""
    discard: Discard | None = None
    try:
        await work()
    except Discard as error:
        discard = error
    except Exception:
        # A fault of this package's, or a borrower that still reads: no reason to lose a place.
        logger.exception("the errand or the drain of #%d broke down", connection.id)
        discard = Discard(CloseReason.ERROR)
    router = ref()
    if router is not None:
        router.regain(connection, discard)
    else:
        connection.abort()


async def say_goodbye(
    ref: weakref.ref[Router],
    connection: WebsocketConnection,
    task: asyncio.Task[None] | None,
    timeout: float,
) -> None:
    """Close the socket, once the task that owned it has ended, and give its place free."""
    try:
        if task is not None:
            await asyncio.wait({task}, timeout=timeout)
            if (router := ref()) is not None:
                router.show_rest(connection)  # what had woken the task that was cancelled
                del router
        await connection.hang_up(timeout)
    except Exception:
        # A fault of this package's: it must not cost a place as well.
        logger.exception("the goodbye of #%d broke down", connection.id)
        cut_off(ref, connection)
    else:
        _leave(ref, connection)


def _leave(ref: weakref.ref[Router], connection: WebsocketConnection) -> None:
    connection.leave()
    router = ref()
    if router is not None:
        router.route()


def give_up(connection: WebsocketConnection, state: State, why: CloseReason) -> None:
    """The dial or the drain was cancelled by somebody who has not closed the connection."""
    if connection.state is state:
        connection.finish(why)


def cut_off(ref: weakref.ref[Router], connection: WebsocketConnection) -> None:
    """The goodbye was cancelled: the place is kept all the same until the socket is gone."""
    connection.abort()
    connection.when_gone(partial(_leave, ref, connection))
