"""What watching an idle connection costs per borrow, on raw aiohttp WebSockets.

    python -m tests.benchmarks.watching [asyncio] [uvloop]

aiohttp answers pings and notices a close only while somebody is in `receive()`. Four ways to see to
that between two borrowers:

    parked     a task in receive() from each release on, awaited by the borrower's first receive
    cancelled  the same, but cancelled at the checkout
    stepped    one step of receive(), by hand, at the checkout
    looked at  a look at the reader's queue, at the checkout

"CPU alone" is the CPU time of the way itself, without a socket at work. "echo" is the time of a
borrow with that way and one message echoed, as a multiple of the same without any watching; each
borrow is followed by a tick of the event loop, in which a parked task begins to wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from time import process_time
from typing import Any, Final, NamedTuple

import aiohttp
from aiohttp import ClientWebSocketResponse, WSMessage, WSMsgType

from tests.benchmarks.side_by_side import Body, Comparison, chosen_loops, run, side_by_side
from wspool._connection import aiohttp_internals

MANY: Final = 100
"""Calls at a time of what takes less than a microsecond or so."""

MESSAGE: Final = "hello"


class Way(NamedTuple):
    """A way of watching: its echo, its work alone, what that is more than, how often it is done."""

    echo: Callable[[ClientWebSocketResponse], Body]
    alone: Callable[[ClientWebSocketResponse], Body]
    baseline: Callable[[ClientWebSocketResponse], Body]
    times: int = 1


def park(websocket: ClientWebSocketResponse) -> asyncio.Task[WSMessage]:
    return asyncio.create_task(websocket.receive())


async def cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def unwatched_echo(websocket: ClientWebSocketResponse) -> Body:
    async def borrow() -> None:
        await websocket.send_str(MESSAGE)
        await websocket.receive()
        await asyncio.sleep(0)

    return borrow


def parked_echo(websocket: ClientWebSocketResponse) -> Body:
    task = park(websocket)

    async def borrow() -> None:
        nonlocal task
        await websocket.send_str(MESSAGE)
        await task
        task = park(websocket)
        await asyncio.sleep(0)

    return borrow


def cancelled_echo(websocket: ClientWebSocketResponse) -> Body:
    task = park(websocket)

    async def borrow() -> None:
        nonlocal task
        await cancel(task)
        await websocket.send_str(MESSAGE)
        await websocket.receive()
        task = park(websocket)
        await asyncio.sleep(0)

    return borrow


def stepped_echo(websocket: ClientWebSocketResponse) -> Body:
    async def borrow() -> None:
        aiohttp_internals.step(websocket.receive())
        await websocket.send_str(MESSAGE)
        await websocket.receive()
        await asyncio.sleep(0)

    return borrow


def looked_at_echo(websocket: ClientWebSocketResponse) -> Body:
    arrivals = aiohttp_internals.arrivals_of(websocket)
    transport = aiohttp_internals.Transport(websocket)

    async def borrow() -> None:
        bool(arrivals or transport.has_ended())
        await websocket.send_str(MESSAGE)
        await websocket.receive()
        await asyncio.sleep(0)

    return borrow


def arrival(websocket: ClientWebSocketResponse) -> Callable[[], object]:
    """Return what lets a message arrive without a socket: the reader's queue is fed by hand."""
    reader: Any = websocket._reader
    message = WSMessage(WSMsgType.TEXT, MESSAGE, "")
    return lambda: reader.feed_data(message, len(MESSAGE))


def waited_for_alone(websocket: ClientWebSocketResponse) -> Body:
    loop, arrive = asyncio.get_running_loop(), arrival(websocket)

    async def receive() -> None:
        loop.call_soon(arrive)
        await websocket.receive()

    return receive


def parked_alone(websocket: ClientWebSocketResponse) -> Body:
    loop, arrive = asyncio.get_running_loop(), arrival(websocket)

    async def receive() -> None:
        task = park(websocket)
        loop.call_soon(arrive)
        await task

    return receive


def tick_alone(_: ClientWebSocketResponse) -> Body:
    return lambda: asyncio.sleep(0)


def cancelled_alone(websocket: ClientWebSocketResponse) -> Body:
    async def park_and_cancel() -> None:
        task = park(websocket)
        await asyncio.sleep(0)
        await cancel(task)

    return park_and_cancel


def stepped_alone(websocket: ClientWebSocketResponse) -> Body:
    async def step_often() -> None:
        for _ in range(MANY):
            aiohttp_internals.step(websocket.receive())

    return step_often


def looked_at_alone(websocket: ClientWebSocketResponse) -> Body:
    arrivals = aiohttp_internals.arrivals_of(websocket)
    transport = aiohttp_internals.Transport(websocket)

    async def look_often() -> None:
        for _ in range(MANY):
            bool(arrivals or transport.has_ended())

    return look_often


def nothing_alone(_: ClientWebSocketResponse) -> Body:
    async def do_nothing_often() -> None:
        for _ in range(MANY):
            pass

    return do_nothing_often


UNWATCHED: Final = "unwatched"

WAYS: Final = {
    "parked": Way(parked_echo, parked_alone, waited_for_alone),
    "cancelled": Way(cancelled_echo, cancelled_alone, tick_alone),
    "stepped": Way(stepped_echo, stepped_alone, nothing_alone, MANY),
    "looked at": Way(looked_at_echo, looked_at_alone, nothing_alone, MANY),
}


async def compare(uri: str) -> tuple[dict[str, float], Comparison]:
    """Return each way's CPU seconds alone, and the comparison of the echoes."""
    async with aiohttp.ClientSession() as session:

        async def dial() -> ClientWebSocketResponse:
            return await session.ws_connect(uri, autoping=False, autoclose=False)

        alone = {}
        for name, way in WAYS.items():
            bodies = {name: way.alone(await dial()), "baseline": way.baseline(await dial())}
            both = await side_by_side(bodies, rounds=50, clock=process_time)
            alone[name] = both.difference(name, to="baseline") / way.times
        echoes = {UNWATCHED: unwatched_echo(await dial())}
        for name, way in WAYS.items():
            echoes[name] = way.echo(await dial())
        return alone, await side_by_side(echoes, rounds=200)


def show(loop: str, alone: dict[str, float], echoes: Comparison) -> None:
    print(f"\n{loop:10} CPU alone   echo, {1e6 * echoes.seconds(UNWATCHED):.0f} µs unwatched")
    for name in WAYS:
        cpu, ratio = 1e6 * alone[name], echoes.ratio(name, to=UNWATCHED)
        print(f"{name:10} {cpu:6.2f} µs   × {ratio:.3f}")


if __name__ == "__main__":
    for loop in chosen_loops(__doc__):
        show(loop, *run(compare, loop))
