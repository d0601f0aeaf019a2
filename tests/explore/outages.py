"""Outages under load: a server goes away in each way that servers do, and comes back.

    python -m tests.explore.outages --seconds 3 --seed 1

All at once, each with a server, a pool and borrowers of its own: see `SETUPS`. A server runs in a
thread, so that it can freeze as a stopped process does: the kernel still takes connections for it,
and nothing is read or answered.

When the server goes, a few borrowers are in the middle of an exchange, and the other connections
lie idle. As soon as the event loop has read what there is to read of the loss, the rest of the
crowd comes: each of them is offered what is stale, and may not be given it. Printed at the end:
when there was full service again, what was dialled until then, and what borrowers saw. The exit
status is 1 if anything went wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import logging
import os
import random
import socket
import struct
import sys
import threading
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, TypeVar

import aiohttp
from aiohttp import WSMsgType

from tests.conftest import until
from tests.support.inside import link_of, queues_of
from wspool import (
    ConnectionClosedError,
    ConnectionPoolExhaustedError,
    ConnectionPoolTimeoutError,
    State,
    WebsocketConnection,
    WebsocketConnectionPool,
    WebsocketError,
)
from wspool._connection.link import Link
from wspool._pool.gate import EARLY_SECONDS
from wspool.testing import Peer, Server

T = TypeVar("T")

NET = 30.0
"""Seconds after which something that must end by itself has not ended."""

CONNECTIONS = 10
STEADY = 6
"""Borrowers before the outage; they leave connections idle."""
CROWD = 30
KEPT = 5
"""The `min_connections` of a pool that nobody borrows from."""

RETRIES, CONNECTING = 8, 5
HANDSHAKE = 2.0
"""Seconds for a dial attempt."""
WAIT = 10.0
"""Seconds between two attempts of a dial at most."""
DEADLINE = 2.0
"""Seconds that a borrower gives each request."""
PATIENCE = 8.0
"""Seconds that a borrower waits for a connection."""
AFTER = 0.5
"""Seconds of load after the recovery: what is stale would be given out then."""


@dataclass(frozen=True)
class Setup:
    """A kind of outage, and what a user would set against it.

    Mute connections look well for `detection` seconds: all of them, or, if `is_checked`, those
    that were in use. A check before each loan spares borrowers the rest.
    """

    name: str
    kind: str
    borrowers: int = CROWD
    options: dict[str, Any] = field(default_factory=dict)
    detection: float = 0.0
    is_checked: bool = False


REFUSALS = ("429", "503", "1013")
"""What a server says that listens on and admits nobody."""

IDLE = 0.2
SETUPS = (
    Setup("close 1001", "1001"),
    Setup("close 1012", "1012"),
    Setup("reset", "reset"),
    Setup("reset, then 503", "503"),
    Setup("reset, then 429", "429"),
    Setup("reset, then admitted and 1013", "1013"),
    Setup("mute, check_after_idle", "mute", CROWD, {"check_after_idle": IDLE}, 1.0, True),
    Setup("mute, heartbeat", "mute", CROWD, {"heartbeat": 1.0}, 2.0),
    Setup("reset, no load", "reset", 0, {"min_connections": KEPT}),
    Setup("mute, no load", "mute", 0, {"min_connections": KEPT, "keepalive_interval": 0.5}, 1.5),
)


class Service:
    """A server in a thread of its own, which can go away and come back."""

    def __init__(self) -> None:
        self.server = Server(self.serve)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.is_frozen = self.is_refusing = False
        self.thawed = threading.Event()
        self.closing: list[asyncio.Task[None]] = []

    async def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self.loop))

    async def serve(self, peer: Peer) -> None:
        if self.is_refusing:
            await peer.close(1013, "try again later")
            return
        try:
            async for frame in peer.websocket:
                if frame.type is WSMsgType.TEXT:
                    await asyncio.sleep(0.05)  # what it has to think for
                    await peer.send(f"reply to {frame.data}")
        except ConnectionError:
            pass  # the connection went first

    async def go_away(self, kind: str) -> None:
        """Take no more connections, and lose those that there are."""
        if kind == "mute":
            self.loop.call_soon_threadsafe(self.freeze)
            await until(lambda: self.is_frozen, "the server is frozen")
        else:
            await self.call(self.lose(kind))

    async def lose(self, kind: str) -> None:
        if kind in ("429", "503"):
            self.server.refuse(int(kind), times=10_000)
        elif kind == "1013":
            self.is_refusing = True
        else:
            assert self.server._runner is not None
            for site in list(self.server._runner.sites):
                await site.stop()
        for peer in list(self.server.open):
            if kind in ("reset", *REFUSALS):
                assert peer.request.transport is not None
                sock = peer.request.transport.get_extra_info("socket")
                # With this a close sends no FIN but a RST.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                peer.drop()
            else:
                self.closing.append(asyncio.create_task(peer.close(int(kind), "an outage")))

    def freeze(self) -> None:
        self.is_frozen = True
        self.thawed.wait()
        self.is_frozen = False

    async def finish_closing(self, kind: str) -> None:
        await asyncio.gather(*self.closing, return_exceptions=True)
        if kind not in REFUSALS:
            await self.stop()

    async def come_back(self, kind: str) -> None:
        if kind == "mute":
            self.thawed.set()
        elif kind in REFUSALS:
            self.is_refusing = False
            self.server.refusals.clear()
        else:
            await self.call(self.server.start())

    async def stop(self) -> None:
        await until(lambda: not self.server.open, "the server has no connection left")
        await self.server.stop()

    async def end(self) -> None:
        self.thawed.set()
        try:
            await self.call(self.stop())
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            await asyncio.to_thread(self.thread.join)
            self.loop.close()


class Dials:
    """What a session dials: begun, failed, and the most at a time."""

    def __init__(self) -> None:
        self.begun = self.failed = self.under_way = self.most = 0

    def trace(self) -> aiohttp.TraceConfig:
        config = aiohttp.TraceConfig()
        config.on_request_start.append(self._begin)
        config.on_request_end.append(self._end)
        config.on_request_exception.append(self._fail)
        return config

    async def _begin(self, *_: object) -> None:
        self.begun += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)

    async def _end(self, *_: object) -> None:
        self.under_way -= 1

    async def _fail(self, *_: object) -> None:
        self.under_way -= 1
        self.failed += 1


class Scene:
    """One pool, its server, its borrowers, and what became of them."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.clock = asyncio.get_running_loop().time
        self.service = Service()
        self.dials = Dials()
        self.requests = itertools.count(1)
        self.replies = 0
        self.errors: Counter[str] = Counter()
        self.wrongs: list[str] = []
        self.is_over = False
        # When the outage began; when all that the event loop could hear of it had been heard.
        self.began = self.settled = float("inf")
        # When the server was back, and when all of the pool's places were of use again.
        self.back = self.served = float("inf")
        # The connections of before the outage, and those whose loss cannot be known yet.
        self.old: set[Link] = set()
        self.secretly_lost: set[Link] = set()
        self.useful: set[int] = set()
        self.seen = SimpleNamespace(begun=0, failed=0, most=0)
        self.pool: WebsocketConnectionPool

    async def run(self, seconds: float) -> None:
        try:
            await self.service.call(self.service.server.start())
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(
                connector=connector, trace_configs=[self.dials.trace()]
            ) as session:
                self.pool = WebsocketConnectionPool(
                    uri=self.service.server.uri,
                    name=self.setup.name,
                    session=session,
                    max_connections=CONNECTIONS,
                    max_retries=RETRIES,
                    max_connecting=CONNECTING,
                    connection_timeout=HANDSHAKE,
                    acquire_timeout=PATIENCE,
                    warmup_connections=CONNECTIONS if self.setup.borrowers else 0,
                    cleanup_interval=0.5,
                    close_timeout=1.0,
                    **self.setup.options,
                )
                async with self.pool:
                    await self.suffer(seconds)
                if self.pool.connections or self.dials.under_way:
                    self.wrong(f"something is left: {self.pool!r}, {vars(self.dials)}")
        except Exception as error:
            self.wrong(f"{error!r}, {self.pool!r}")
        try:
            await self.service.end()
        except Exception as error:
            self.wrong(f"{error!r} at the server's end")

    def wrong(self, what: str) -> None:
        self.wrongs.append(f"{self.setup.name}: {what}")

    async def suffer(self, seconds: float) -> None:
        setup, pool = self.setup, self.pool
        queues = queues_of(pool)

        def unused() -> set[Link]:
            return {link for link in queues.idle if self.clock() - link.idle_since > IDLE}

        crowd = [asyncio.create_task(self.borrow_on()) for _ in range(min(STEADY, setup.borrowers))]
        await until(
            lambda: (
                self.replies >= 5 * len(crowd)
                and len(queues.busy) >= min(STEADY - 1, len(crowd))
                and len(unused()) >= (CONNECTIONS - STEADY if crowd else KEPT)
            ),
            "some connections have lain idle, and the others are busy",
        )
        await asyncio.sleep(EARLY_SECONDS)  # a loss before that is taken for a refusal
        self.old = set(queues)
        self.secretly_lost = self.old - (unused() if setup.is_checked else set())
        vars(self.dials).update(begun=0, failed=0, most=0)
        self.began = self.clock()
        await self.service.go_away(setup.kind)
        if setup.kind != "mute":
            await until(
                lambda: all(link.state is State.CLOSED or link.has_news for link in self.old),
                "the event loop has read of the loss",
            )
        self.settled = self.clock()
        if setup.kind != "mute":
            self.secretly_lost.clear()
        crowd += [asyncio.create_task(self.borrow_on()) for _ in range(setup.borrowers - STEADY)]
        if setup.kind != "mute":
            await self.service.call(self.service.finish_closing(setup.kind))
        await asyncio.sleep(self.began + seconds - self.clock())

        # Of the dials that wait for a turn none begins before one at work has given up.
        most = RETRIES * (CONNECTING + pool.stats.dial_failures)
        if self.dials.begun > most:
            self.wrong(f"{self.dials.begun} attempts were made meanwhile, and not at most {most}")
        await self.service.come_back(setup.kind)
        self.back = self.clock()
        try:
            await until(self.is_served, "there is full service", NET)
        finally:
            self.served = self.clock()
            self.seen = SimpleNamespace(**vars(self.dials))
            if setup.borrowers:
                await asyncio.sleep(AFTER)
            self.is_over = True
            for outcome in await asyncio.gather(*crowd, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    self.wrong(f"a borrower ended with {outcome!r}")
        self.judge_recovery()
        await self.count_places()

    def is_served(self) -> bool:
        """Whether every place, or what is kept of them, is of use again."""
        if self.setup.borrowers:
            return len(self.useful) >= CONNECTIONS
        idle = queues_of(self.pool).idle
        return len(idle) >= KEPT and self.old.isdisjoint(idle)

    # The borrowers.

    async def borrow_on(self) -> None:
        while not self.is_over:
            await self.borrow()
            await asyncio.sleep(random.uniform(0.0, 0.01))

    async def borrow(self) -> None:
        connection: WebsocketConnection | None = None
        lent_at = 0.0
        try:
            async with self.pool.get_connection() as connection:
                lent_at = self.clock()
                async with asyncio.timeout(DEADLINE):
                    await self.exchange(connection)
        except (TimeoutError, WebsocketError) as error:
            code = f" {error.code}" if isinstance(error, ConnectionClosedError) else ""
            self.errors[f"{type(error).__name__}{code}"] += 1
            if not self.is_excused(error, connection, lent_at):
                when = f", lent {lent_at - self.settled:.3f} s after the loss" if connection else ""
                self.wrong(f"{error!r} on {connection!r}{when}")

    async def exchange(self, connection: WebsocketConnection) -> None:
        request = f"{next(self.requests)}"
        await connection.send(request)
        if (reply := await connection.recv()) != f"reply to {request}":
            self.wrong(f"{reply!r} came to {request!r} on {connection!r}")
        self.replies += 1
        if self.clock() >= self.back:
            self.useful.add(connection.id)

    def is_excused(
        self, error: Exception, connection: WebsocketConnection | None, lent_at: float
    ) -> bool:
        """Whether the borrower's own deadline passed, or nobody could know of the loss yet."""
        if self.clock() < self.began:
            return False
        if connection is None:
            return isinstance(error, ConnectionPoolTimeoutError)
        link = link_of(connection)
        if isinstance(error, ConnectionClosedError) and str(error.code) in REFUSALS:
            return self.setup.kind == str(error.code)  # nobody can know before it is said
        if link not in self.old:
            return isinstance(error, TimeoutError)
        if link in self.secretly_lost:
            return lent_at <= self.settled + self.setup.detection
        return lent_at <= self.settled

    # The end.

    def judge_recovery(self) -> None:
        longest = WAIT + HANDSHAKE + self.setup.detection
        if self.served - self.back > longest:
            self.wrong(f"full service took {self.served - self.back:.1f} s, and not {longest} s")
        if self.seen.most > CONNECTING:
            self.wrong(f"{self.seen.most} attempts were made at a time, and not {CONNECTING}")
        if self.setup.kind != "mute" and self.seen.begun <= CONNECTING:
            self.wrong("nobody has tried while the server was away")

    async def count_places(self) -> None:
        """Borrow every place, use it, and find that there is none beside."""
        got = [await self.pool.acquire(timeout=NET) for _ in range(CONNECTIONS)]
        for connection in got:
            await self.exchange(connection)
        if len({connection.id for connection in got}) != CONNECTIONS:
            self.wrong(f"places were lost: {self.pool!r}")
        try:
            await self.pool.acquire(timeout=0)
        except ConnectionPoolExhaustedError:
            pass
        else:
            self.wrong(f"there is a place too many: {self.pool!r}")
        for connection in got:
            await self.pool.release(connection)


def _open_files() -> int:
    return len(os.listdir("/dev/fd")) if os.path.isdir("/dev/fd") else 0


async def outages(seconds: float) -> tuple[list[Scene], list[str]]:
    """Let every kind of outage happen at once; return the scenes, and what went wrong."""
    wrongs: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: wrongs.append(f"in the loop: {context}"))
    open_files = _open_files()
    scenes = [Scene(setup) for setup in SETUPS]
    await asyncio.gather(*(scene.run(seconds) for scene in scenes))
    current = asyncio.current_task()
    try:
        await until(lambda: asyncio.all_tasks() == {current}, "the tasks have ended")
    except AssertionError as error:
        wrongs.append(f"{error}: {asyncio.all_tasks() - {current}}")
    gc.collect()  # what is found unclosed only now warns, and that is an error under -W error
    if (files := _open_files()) > open_files:
        wrongs.append(f"{files - open_files} more files are open than before")
    return scenes, [*wrongs, *itertools.chain(*(scene.wrongs for scene in scenes))]


def report(scenes: Sequence[Scene]) -> str:
    lines = [
        ("outage", "service after", "attempts", "failed", "at a time", "replies", "borrowers saw")
    ]
    for scene in scenes:
        saw = ", ".join(f"{kind} {count}x" for kind, count in sorted(scene.errors.items()))
        lines.append(
            (
                *(scene.setup.name, f"{scene.served - scene.back:.2f} s"),
                *(str(scene.seen.begun), str(scene.seen.failed), str(scene.seen.most)),
                *(f"{scene.replies:,}", saw or "no error"),
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            text.ljust(width) if place in (0, 6) else text.rjust(width)
            for place, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.explore.outages", description="Outages.")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    args = parser.parse_args(argv)
    random.seed(args.seed)  # of the back-off, and of how the borrowers come
    # Failed dials are meant here, and so is a server that finds its clients gone.
    for name in ("wspool", "asyncio", "aiohttp.server"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    print(f"an outage of {args.seconds:g} s, --seed {args.seed}", flush=True)
    scenes, wrongs = asyncio.run(outages(args.seconds), debug=False)
    print(report(scenes), *wrongs, sep="\n")
    return 1 if wrongs else 0


if __name__ == "__main__":
    sys.exit(main())
