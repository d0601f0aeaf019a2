"""The demo, `python -m wspool demo`: many borrowers, few connections, and a server that drops some.

It uses the pool as any program would, and keeps books at both ends: each request has an id, so
that one that vanished, or a reply that reached somebody else, would show.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import logging
import random
import sys
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any, Final

import aiohttp
from aiohttp import web

from wspool._cli.shared import Figure, columns, line, percentile, program, table, wrapped
from wspool._connection.errors import WebsocketError
from wspool._connection.loan import WebsocketConnection
from wspool._connection.scrubbing import shown_uri
from wspool._connection.states import TRANSITIONS
from wspool._pool.checks import check_uri
from wspool._pool.pool import WebsocketConnectionPool
from wspool.events import (
    ConnectionCheckedOut,
    ConnectionClosed,
    ConnectionDrained,
    ConnectionDrainStarted,
    ConnectionReady,
    Event,
)

WORK_SECONDS: Final = 0.001  # of the embedded server on a request
THINK_SECONDS: Final = 0.025  # between two requests of a borrower, on average
EARLY_SHARE: Final = 0.01  # of the requests, whose borrower does not stay for the reply
GRACE_SECONDS: Final = 5.0  # after the end, in which a reply may still come

TAKEN: Final[dict[type[Event], tuple[str, str]]] = {
    ConnectionReady: ("connected", "connecting"),
    ConnectionCheckedOut: ("checkout", "idle"),
    ConnectionDrainStarted: ("drain", "busy"),
    ConnectionDrained: ("drained", "draining"),
}
"""What a connection has done, trigger and source, when the pool publishes an event."""


@dataclass
class Results:
    """What happened, as the borrowers and the embedded server noted it; times are in seconds."""

    borrows: int = 0
    handshakes: int = 0
    messages: int = 0
    replies: int = 0
    left: int = 0
    wrong: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    # Ids: asked, and no outcome yet (in the end: lost); answered by the server.
    asked: set[str] = field(default_factory=set)
    answered: set[str] = field(default_factory=set)
    drops: Counter[str] = field(default_factory=Counter)
    round_trips: array[float] = field(default_factory=lambda: array("d"))
    with_acquire: array[float] = field(default_factory=lambda: array("d"))
    without_pool: array[float] = field(default_factory=lambda: array("d"))
    transitions: Counter[tuple[str, str]] = field(default_factory=Counter)  # trigger, source


# The server.


@asynccontextmanager
async def serve(results: Results, drop_rate: float) -> AsyncIterator[str]:
    """Serve echoes on a free port of loopback, and give the URI."""
    app = web.Application()
    app.router.add_get("/", partial(_echo, results, _drops(drop_rate)))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"ws://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


def _drops(rate: float) -> Iterator[str]:
    """Say of each request how its connection is dropped: evenly spread, by turns; mostly not."""
    kinds = itertools.cycle(["cut", "closed"])
    for number in itertools.count(1):
        yield next(kinds) if int(number * rate) > int((number - 1) * rate) else ""


async def _echo(results: Results, drops: Iterator[str], request: web.Request) -> web.StreamResponse:
    websocket = web.WebSocketResponse()
    await websocket.prepare(request)
    with suppress(ConnectionError):
        async for message in websocket:
            if message.data != "hello":
                await asyncio.sleep(WORK_SECONDS)
            drop = next(drops) if message.data.isdecimal() else ""  # else no borrower's request
            results.drops[drop] += 1
            if drop == "cut" and request.transport is not None:
                request.transport.abort()
                break
            results.answered.add(message.data)
            await websocket.send_str(message.data)
            if drop == "closed":
                await websocket.close(code=aiohttp.WSCloseCode.GOING_AWAY)
    return websocket


# The load.


class Load:
    """The borrowers and their pool, and one task that does without it."""

    def __init__(
        self, uri: str, session: aiohttp.ClientSession, results: Results, args: argparse.Namespace
    ) -> None:
        self.uri, self.session, self.results = uri, session, results
        self.is_embedded = args.uri is None
        self.is_ending = False
        self._ids = itertools.count(1)
        self.pool = WebsocketConnectionPool(
            uri=uri,
            session=session,
            max_connections=args.connections,
            acquire_timeout=None,
            max_retries=2,
            connection_timeout=2.5,
            close_timeout=1.0,
            on_connect=self._say_hello,
            drain_until=lambda message: True,  # one request, one reply,
            drain_quiet_period=60.0,  # so silence proves nothing
        )
        self.pool.subscribe(self._note)

    async def _say_hello(self, connection: WebsocketConnection) -> None:
        """See that the server echoes, and read away a greeting of its own."""
        await connection.send("hello")
        while await connection.recv() != "hello":
            pass
        self.results.handshakes += 1

    async def borrow(self) -> None:
        """Borrow a connection for one request."""
        results, began = self.results, perf_counter()
        async with self.pool.get_connection() as connection:
            lent, id = perf_counter(), str(next(self._ids))
            results.asked.add(id)
            try:
                await connection.send(id)
                results.messages += 1
                if random.random() < EARLY_SHARE:
                    results.left += 1
                else:
                    reply = await connection.recv()
                    now = perf_counter()
                    results.messages += 1
                    is_right = reply == id and (id in results.answered or not self.is_embedded)
                    results.replies += is_right
                    results.wrong += not is_right
                    results.round_trips.append(now - lent)
                    results.with_acquire.append(now - began)
            except WebsocketError:
                results.asked.discard(id)
                raise
            results.asked.discard(id)
            results.answered.discard(id)

    async def _borrow_often(self) -> None:
        while not self.is_ending:
            await asyncio.sleep(random.expovariate(1 / THINK_SECONDS))
            try:
                await self.borrow()
            except WebsocketError as error:
                self.results.errors[type(error).__name__] += 1

    async def _connect_often(self) -> None:
        """Connect for each request, one at a time, for comparison."""
        while not self.is_ending:
            await asyncio.sleep(random.expovariate(1 / THINK_SECONDS))
            began = perf_counter()
            with suppress(OSError, aiohttp.ClientError):
                async with asyncio.timeout(10), self.session.ws_connect(self.uri) as websocket:
                    await websocket.send_str("no pool")
                    async for message in websocket:
                        if message.data == "no pool":
                            self.results.without_pool.append(perf_counter() - began)
                            break

    async def run(self, borrowers: int, watch: Coroutine[Any, Any, None]) -> bool:
        """Run the load for as long as it is watched; return False if that was cut short."""
        is_whole = True
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._borrow_often()) for _ in range(borrowers)]
            tasks.append(group.create_task(self._connect_often()))
            try:
                await watch
            except asyncio.CancelledError:  # so asyncio.run passes on the first Ctrl-C
                is_whole = False
            self.is_ending = True  # what is under way may come to its end
            _, stuck = await asyncio.wait(tasks, timeout=GRACE_SECONDS)
            for task in stuck:
                task.cancel()
        return is_whole

    def _note(self, event: Event) -> None:
        taken = self.results.transitions
        if isinstance(event, ConnectionClosed):
            taken["close", event.state] += 1
        elif (move := TAKEN.get(type(event))) is not None:
            taken[move] += 1

    def finish(self) -> None:
        """Fill in what is known once every connection is closed, and so has left the state busy."""
        self.results.borrows = self.pool.stats.borrows
        taken = self.results.transitions
        left_otherwise = taken["drain", "busy"] + taken["close", "busy"]
        taken["checkin", "busy"] = taken["checkout", "idle"] - left_otherwise


# The display.

Show = Callable[[Load, str, float], None]
"""Shows a load under a title, with so many messages a second."""


@contextmanager
def display() -> Iterator[tuple[Show, float]]:
    """Give a Show and its period: a live table where there are a terminal and rich, else lines."""
    try:
        from rich.live import Live
    except ImportError:
        yield _print_line, 1.0
        return
    live = Live(auto_refresh=False)
    if not live.console.is_terminal or live.console.is_dumb_terminal:
        yield _print_line, 1.0
        return
    with live:
        yield lambda *what: live.update(_table(*what), refresh=True), 0.25


def _figures(load: Load, rate: float) -> list[Figure]:
    results = load.results
    drops = results.drops["cut"] + results.drops["closed"]
    return [
        (
            "waiting",
            f"{load.pool.waiters:,}",
            f"borrowers; {load.pool.stats.waits:,} had to so far",
        ),
        ("handshakes", f"{results.handshakes:,}", "so far; without a pool, one for each request"),
        ("messages/s", f"{round(rate):,}", "sent and received by borrowers"),
        ("drops", f"{drops:,}", "by the server, on purpose"),
        ("errors", f"{results.errors.total():,}", "seen by borrowers"),
    ]


def _print_line(load: Load, title: str, rate: float) -> None:
    counts = load.pool.snapshot().counts
    print(line(f"{title:>5}", counts, _figures(load, rate)), flush=True)


def _table(load: Load, title: str, rate: float) -> Any:
    counts = load.pool.snapshot().counts
    figures = _figures(load, rate)
    return table(counts, figures, width=columns(), title=title, title_justify="left")


async def watch(load: Load, seconds: float) -> None:
    """Show the load until its time is over."""
    began = shown = perf_counter()
    messages = 0
    with display() as (show, period):
        while (left := began + seconds - perf_counter()) > 0:
            await asyncio.sleep(min(period, left))
            now, so_far = perf_counter(), load.results.messages
            show(load, f"{now - began:.0f} s", (so_far - messages) / (now - shown))
            shown, messages = now, so_far


# The summary.


def summary(r: Results, args: argparse.Namespace) -> str:
    """Return all that a run has shown."""
    drops = f"{r.drops['cut']} cut before the reply, {r.drops['closed']} closed (1001) after it"
    drained = r.transitions["drained", "draining"]
    rows = [
        ("borrows", r.borrows, f"by {args.borrowers} borrowers, for one request each time"),
        ("handshakes made", r.handshakes, f"with at most {args.connections} connections open"),
        ("handshakes saved", r.borrows - r.handshakes, "without a pool each borrow needs one"),
        ("drops injected", r.drops["cut"] + r.drops["closed"], "" if args.uri else drops),
        ("replies", r.replies, "each to the borrower who had asked"),
        ("left early", r.left, f"on purpose; the pool read {drained} late replies away"),
        ("errors", r.errors.total(), ", ".join(f"{kind} {n}" for kind, n in r.errors.items())),
        ("lost", len(r.asked), "requests with neither a reply nor an error"),
        ("wrong replies", r.wrong, "replies to somebody else's request"),
    ]
    lines = [_line_of(name, count, remark) for name, count, remark in rows]
    lines += ["", f"{'milliseconds for one request':<30}{'p50':>9}{'p99':>9}"]
    for name, times in (
        ("send, recv", r.round_trips),
        ("acquire, send, recv", r.with_acquire),
        ("connect, send, recv: no pool", r.without_pool),
    ):
        p50, p99 = (1000 * percentile(times, share) for share in (0.5, 0.99))
        lines.append(f"  {name:<28}{p50:>9.2f}{p99:>9.2f}  of {len(times):,}")
    title = "transitions, in all (pool.state_diagram() draws the graph in Mermaid)"
    lines += ["", wrapped(title)]
    for trigger, source, dest in TRANSITIONS:
        count = r.transitions[trigger, source]
        lines.append(f"  {source:>10} --{trigger:-<9}--> {dest:<8}{count:>9,}")
    return "\n".join(lines)


def _line_of(name: str, count: int, remark: str) -> str:
    """Return a line of the summary, whose remark goes on below itself where there is no room."""
    begin = f"{name:<17}{count:>9,}"
    return wrapped(f"{begin}   {remark}", len(begin) + 3)


# The command.


def run(args: argparse.Namespace) -> int:
    """Run the demo and return its exit status, as `--help` tells it."""
    # What the pool warns of would break into the table; the summary counts it.
    logging.getLogger("wspool").addHandler(logging.NullHandler())
    try:
        if args.uri is not None:
            check_uri(args.uri)
        return asyncio.run(_run(args))
    except (ValueError, WebsocketError) as error:
        print(f"{program()} demo: {error} (--uri must be an echo server)", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before there was anything to sum up, or pressed twice
        return 130


async def _run(args: argparse.Namespace) -> int:
    results = Results()
    async with AsyncExitStack() as stack:
        uri = args.uri or await stack.enter_async_context(serve(results, args.drop_rate))
        connector = aiohttp.TCPConnector(limit=0)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        load = Load(uri, session, results, args)
        async with load.pool:
            if args.uri is not None:
                await load.borrow()  # a server that cannot be reached ends the demo here
            begin = (
                f"{args.borrowers} borrowers share {args.connections} connections to "
                f"{shown_uri(uri)} for {args.seconds:g} s; Ctrl-C ends it."
            )
            print(f"{wrapped(begin)}\n", flush=True)
            is_whole = await load.run(args.borrowers, watch(load, args.seconds))
        load.finish()
    print(f"\n{summary(results, args)}")
    if not is_whole:
        return 130
    return 1 if results.asked or results.wrong else 0
