"""A soak test: a crowd of borrowers, few connections, and a server that does everything wrong.

    python -m tests.explore.soak --seconds 60 --borrowers 2000 --connections 50 --seed 1

The connections are shared out over several pools, each with another way to tell a clean connection
from one on which something is still coming. A pool's server has the faults which that way promises
to survive, and its borrowers the manners which it allows: see `SETUPS`. Every message says which
request it belongs to, and a borrower who gets one that belongs to another's has a wrong reply.

Printed at the end: what was borrowed, what was injected, and what went wrong. The exit status is 1
if anything did.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import logging
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import backoff
from aiohttp import WSMsgType

from wspool import (
    ConnectionClosedError,
    ConnectionPoolExhaustedError,
    ConnectionUnavailableError,
    State,
    WebsocketConnection,
    WebsocketConnectionPool,
)
from wspool.testing import Peer, Server

NET = 60.0
"""Seconds after which something that must end by itself has not ended."""


@dataclass(frozen=True)
class Setup:
    """A pool, how it tells that a connection is clean, and what that way survives.

    `faults` and `manners` are weights; the rest of 100 are plain replies and plain exchanges.
    """

    name: str
    share: float  # of the borrowers and the connections
    options: dict[str, Any]
    faults: dict[str, float]
    manners: dict[str, float]


ANYWHERE = {"drop": 1.0, "drop after the reply": 1.0, "close 1001": 1.0, "close 1012": 0.2}
"""Faults that lose the connection: nothing can come after them."""

BEFORE = {"delay": 10.0, "flood": 8.0}
"""Faults that a borrower who waits for the last message of its reply has seen the end of."""

ORDERLY = {"leave without sending": 5.0, "force_remove": 1.0, "close": 1.0}
UNRULY = {"raise": 2.0, "cancel": 6.0, "time out": 3.0}
"""Manners after which the pool has to close the connection, if it cannot name a last message."""

HASTY = {"leave without reading": 6.0, "leave half-way": 6.0}
"""Manners that only a drain which knows of the reply that is still coming can clean up after."""


def is_last(message: str | bytes) -> bool:
    return str(message).startswith("last")


async def greet(connection: WebsocketConnection) -> None:
    """An `on_connect` hook: the first exchange belongs to the dial."""
    await connection.send("hello")
    if await connection.recv() != "last hello":
        raise ValueError("the greeting was answered with something else")


SETUPS = (
    # The last message is named: whatever the borrower does, the drain reads up to it.
    Setup(
        "drain_until",
        0.4,
        {"drain_until": is_last, "drain_timeout": 5.0},
        ANYWHERE | BEFORE,
        ORDERLY | UNRULY | HASTY,
    ),
    # This server answers one thing after the other, the fence's ping too: all it sent is in.
    Setup(
        "drain_fence",
        0.24,
        {"drain_fence": True, "drain_timeout": 5.0},
        ANYWHERE | BEFORE | {"trail": 15.0},
        ORDERLY | UNRULY | HASTY,
    ),
    # Silence: what comes after the reply was sent together with it.
    Setup(
        "drain_quiet_period",
        0.16,
        {"check_server_data_on_release": True, "drain_quiet_period": 0.1, "drain_timeout": 5.0},
        ANYWHERE | BEFORE | {"trail": 15.0},
        ORDERLY | UNRULY,
    ),
    # No drain: nothing may come after the reply, and who leaves before it costs the connection.
    Setup(
        "no drain",
        0.2,
        {"on_connect": greet},
        ANYWHERE | BEFORE,
        ORDERLY | UNRULY,
    ),
)


@dataclass
class Tally:
    """What happened."""

    borrows: int = 0
    replies: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    manners: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    # What must not happen, by kind; and the first few of those in words.
    wrongs: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def wrong(self, kind: str, example: str, count: int = 1) -> None:
        self.wrongs[kind] += count
        if count and len(self.examples) < 20:
            self.examples.append(f"{kind}: {example}")


WRONGS = (
    "wrong replies",
    "lost messages",
    "lost slots",
    "leaked tasks",
    "leaked sockets",
    "sockets above max_connections",
    "streams above max_streams",
    "connections not in the queue of their state",
    "cancellations swallowed",
    "unexpected errors",
)

EXPECTED = (ConnectionClosedError, ConnectionPoolExhaustedError, ConnectionUnavailableError)
"""Errors that a borrower of a pool to such a server has to live with."""


class BorrowerError(Exception):
    """What a borrower raises in the middle of an exchange."""


class Scene:
    """One pool, its server, and its borrowers."""

    setups: Sequence[Setup] = SETUPS

    def __init__(self, setup: Setup, connections: int, seed: int, tally: Tally) -> None:
        self.setup = setup
        self.tally = tally
        # One for each side, so that the server's faults depend as little as can be on the rest.
        self.server_random = random.Random(f"{seed} server {setup.name}")
        self.random = random.Random(f"{seed} borrowers {setup.name}")
        self.is_faulty = True
        self.max_connections = connections
        self.server = Server(self.serve)
        self.requests = itertools.count(1)
        # Under way now; and those of them that were cancelled before they had ended.
        self.borrowings: set[asyncio.Task[None]] = set()
        self.called_off: set[asyncio.Task[None]] = set()
        self.pool: WebsocketConnectionPool

    async def start(self) -> None:
        await self.server.start()
        self.pool = self.make_pool(
            uri=self.server.uri,
            name=self.setup.name,
            max_connections=self.max_connections,
            max_retries=5,
            close_timeout=2.0,
            cleanup_interval=0.5,
            **self.setup.options,
        )

    def make_pool(self, **options: Any) -> WebsocketConnectionPool:
        return WebsocketConnectionPool(**options)

    # The server.

    def open_sockets(self) -> int:
        """Return how many sockets the server has, as far as it has heard."""
        runner = self.server._runner
        assert runner is not None
        assert runner.server is not None
        return sum(
            1
            for protocol in runner.server.connections
            if protocol.transport is not None and not protocol.transport.is_closing()
        )

    def look_at_sockets(self) -> None:
        if (count := self.open_sockets()) > self.max_connections:
            self.tally.wrong("sockets above max_connections", f"{self.setup.name}: {count}")

    async def serve(self, peer: Peer) -> None:
        self.look_at_sockets()
        try:
            async for frame in peer.websocket:
                if frame.type is WSMsgType.TEXT and frame.data == "hello":
                    await peer.send("last hello")
                elif frame.type is WSMsgType.TEXT:
                    await self.answer(peer, frame.data)
        except ConnectionError:
            pass  # the client was faster

    async def answer(self, peer: Peer, request: str) -> None:
        fault = self.pick(self.server_random, self.setup.faults) if self.is_faulty else ""
        if fault:
            self.tally.faults[fault] += 1
        if fault == "drop":
            return peer.drop()
        if fault.startswith("close"):
            return await peer.close(int(fault.removeprefix("close ")))
        if fault == "delay":
            await asyncio.sleep(self.server_random.uniform(0.0, 0.05))
        if fault == "flood":
            await peer.flood([f"part {request}"] * self.server_random.randint(20, 400))
        await peer.send(f"part {request}")
        await peer.send(f"last {request}")
        if fault == "trail":
            await peer.flood([f"trail {request}"] * self.server_random.randint(1, 20))
        if fault == "drop after the reply":
            peer.drop()

    async def disturb(self) -> None:
        """Refuse handshakes and answer them late, now and then."""
        while True:
            await asyncio.sleep(self.server_random.uniform(0.05, 0.2))
            if self.server_random.random() < 0.3 and not self.server.refusals:
                self.server.refuse(503)
                self.tally.faults["refused handshake"] += 1
            self.server.delay = 0.0
            if self.server_random.random() < 0.2:
                self.server.delay = self.server_random.uniform(0.0, 0.1)
                self.tally.faults["late handshakes"] += 1
            self.look_for_strays()

    def look_for_strays(self) -> None:
        queues = self.pool._router.queues
        for state in State:
            for stray in [link for link in queues[state] if link.state is not state]:
                self.tally.wrong("connections not in the queue of their state", f"{stray}")

    def behave(self) -> None:
        """Let the server be a good one from now on."""
        self.is_faulty = False
        self.server.delay = 0.0
        self.server.refusals.clear()

    @staticmethod
    def pick(chance: random.Random, weights: dict[str, float]) -> str:
        names = ["", *weights]
        return chance.choices(names, [100.0 - sum(weights.values()), *weights.values()])[0]

    # The borrowers.

    async def borrow_until(self, is_over: Callable[[], bool]) -> None:
        while not is_over():
            manner = self.pick(self.random, self.setup.manners)
            self.tally.manners[manner or "plain exchange"] += 1
            borrowing = asyncio.create_task(self.borrow(manner))
            self.borrowings.add(borrowing)
            if manner == "cancel":
                # Some in the line, some in the middle of an exchange.
                await asyncio.sleep(self.random.choice([0.0, 0.001, 0.01, 0.1, 1.0, 3.0]))
                self.call_off(borrowing)
            await asyncio.wait([borrowing])
            self.borrowings.discard(borrowing)
            is_called_off = borrowing in self.called_off
            self.called_off.discard(borrowing)
            if borrowing.cancelled():
                self.tally.outcomes["cancelled"] += 1
            elif is_called_off:
                self.tally.wrong("cancellations swallowed", f"{self.setup.name}: {borrowing}")
            elif (error := borrowing.exception()) is None:
                self.tally.outcomes["went well"] += 1
            elif isinstance(error, (*EXPECTED, BorrowerError)):
                self.tally.outcomes[type(error).__name__] += 1
            elif manner == "time out" and isinstance(error, TimeoutError):
                self.tally.outcomes["timed out"] += 1
            else:
                self.tally.wrong("unexpected errors", f"{self.setup.name}, {manner}: {error!r}")
            await asyncio.sleep(self.random.uniform(0.0, 0.02))

    def call_off(self, borrowing: asyncio.Task[None]) -> None:
        if borrowing.cancel():
            self.called_off.add(borrowing)

    async def borrow(self, manner: str) -> None:
        timeout = self.random.choice([None, None, None, 30.0, 1.0, 0.0])
        is_new = self.random.random() < 0.01
        pool = self.pool
        if manner in ("force_remove", "close"):
            connection = await (pool.acquire_new if is_new else pool.acquire)(timeout=timeout)
            try:
                await self.exchange(connection, manner)
                if manner == "close":
                    await connection.close()
            finally:
                await pool.release(connection, force_remove=manner == "force_remove")
            return
        loan = pool.get_new_connection if is_new else pool.get_connection
        async with loan(timeout=timeout) as connection:
            if manner == "time out":
                async with asyncio.timeout(self.random.choice([0.0, 0.0005, 0.002, 0.02])):
                    await self.exchange(connection, manner)
            else:
                await self.exchange(connection, manner)

    async def exchange(self, connection: WebsocketConnection, manner: str) -> None:
        self.tally.borrows += 1
        if manner == "leave without sending":
            return
        request = f"{self.setup.name} {next(self.requests)}"
        await connection.send(request)
        if manner == "leave without reading":
            return
        while True:
            kind, _, belongs_to = str(await connection.recv()).partition(" ")
            if belongs_to != request:
                self.tally.wrong(
                    "wrong replies",
                    f"{kind} of {belongs_to!r} came to {request!r} on {connection!r}",
                )
            self.tally.replies += 1
            if manner == "raise":
                raise BorrowerError
            if kind == "last" or manner == "leave half-way":
                return

    # The end.

    async def count_slots(self) -> None:
        """Borrow every slot, use it, and find that there is none beside."""
        got: list[WebsocketConnection] = []
        try:
            async with asyncio.timeout(NET):
                for _ in range(self.max_connections):
                    connection = await self.pool.acquire(timeout=NET)
                    got.append(connection)
                    await self.exchange(connection, "")
        except (TimeoutError, *EXPECTED) as error:
            self.tally.wrong("unexpected errors", f"{self.setup.name}, at the end: {error!r}")
        missing = self.max_connections - len({connection.id for connection in got})
        self.tally.wrong("lost slots", f"{missing} of {self.pool!r}", missing)
        try:
            await self.pool.acquire(timeout=0)
        except ConnectionPoolExhaustedError:
            pass
        except ConnectionUnavailableError as error:
            self.tally.wrong("unexpected errors", f"{self.setup.name}, at the end: {error!r}")
        else:
            self.tally.wrong("sockets above max_connections", f"one too many: {self.pool!r}")
        for connection in got:
            await self.pool.release(connection)

    async def close(self) -> None:
        await self.pool.close_all()
        await _until(lambda: not self.open_sockets())
        left = self.open_sockets() + len(self.pool.connections)
        self.tally.wrong("leaked sockets", f"{left} of {self.pool!r}", left)
        await self.server.stop()


async def _until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, but not for ever; the caller looks what has become of it."""
    try:
        async with asyncio.timeout(10.0):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        pass


def _open_files() -> int:
    return len(os.listdir("/dev/fd")) if os.path.isdir("/dev/fd") else 0


async def soak(
    seconds: float, borrowers: int, connections: int, seed: int, kind: type[Scene] = Scene
) -> Tally:
    """Let the crowd loose for some seconds, and return what happened."""
    tally = Tally()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(
        lambda _, context: tally.wrong("unexpected errors", f"in the loop: {context}")
    )
    open_files = _open_files()
    setups = kind.setups
    sizes = [max(1, round(connections * setup.share)) for setup in setups]
    sizes[0] += connections - sum(sizes)
    scenes = [kind(setup, size, seed, tally) for setup, size in zip(setups, sizes, strict=True)]
    for scene in scenes:
        await scene.start()

    end = loop.time() + seconds
    disturbing = [asyncio.create_task(scene.disturb()) for scene in scenes]
    shares = [setup.share for setup in setups]
    crowd = [
        asyncio.create_task(scene.borrow_until(lambda: loop.time() >= end))
        for scene in random.Random(seed).choices(scenes, shares, k=borrowers)
    ]
    await asyncio.sleep(seconds)
    # Most of the crowd is still in the line: all of it leaves in one tick.
    for scene in scenes:
        for borrowing in tuple(scene.borrowings):
            scene.call_off(borrowing)
    _, late = await asyncio.wait(crowd, timeout=NET)
    tally.wrong("unexpected errors", f"{len(late)} borrowers still wait: {late}", len(late))
    for task in (*disturbing, *late):
        task.cancel()
    for outcome in await asyncio.gather(*crowd, *disturbing, return_exceptions=True):
        if isinstance(outcome, Exception):
            tally.wrong("unexpected errors", f"in the test: {outcome!r}")

    for scene in scenes:
        scene.behave()
        await scene.count_slots()
        await scene.close()
    current = asyncio.current_task()
    await _until(lambda: asyncio.all_tasks() == {current})
    leaked = asyncio.all_tasks() - {current}
    tally.wrong("leaked tasks", f"{leaked}", len(leaked))
    gc.collect()  # what is found unclosed only now warns, and that is an error under -W error
    files = max(0, _open_files() - open_files)
    tally.wrong("leaked sockets", f"{files} more open files than before", files)
    return tally


def report(tally: Tally) -> str:
    lines = [("borrows", tally.borrows), ("messages checked", tally.replies)]
    for title, counter in (
        ("fault", tally.faults),
        ("borrower", tally.manners),
        ("outcome", tally.outcomes),
    ):
        lines += [(f"{title}: {kind}", counter[kind]) for kind in sorted(counter)]
    lines += [(kind, tally.wrongs[kind]) for kind in WRONGS]
    width = max(len(title) for title, _ in lines)
    return "\n".join([*(f"{title:<{width}} {n:>10,}" for title, n in lines), *tally.examples])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tests.explore.soak", description="The soak test.")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--borrowers", type=int, default=2000)
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--threads", action="store_true", help="borrowers are threads")
    parser.add_argument("--streams", action="store_true", help="connections are shared")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    args = parser.parse_args(argv)
    kind: type[Scene] = Scene
    if args.threads and args.streams:
        from tests.explore.soak_in_threads import StreamThreadScene as kind
    elif args.threads:
        from tests.explore.soak_in_threads import ThreadScene as kind
    elif args.streams:
        from tests.explore.soak_of_streams import StreamScene as kind
    # The wait after a failure is cut down: this is about borrowing, and not about waiting.
    backoff.full_jitter = lambda longest: random.uniform(0.0, longest / 50.0)
    # Failed dials are meant here, and so is a loop with its hands full.
    logging.getLogger("wspool").setLevel(logging.ERROR)
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    print(
        f"{args.borrowers} borrowers on {args.connections} connections for {args.seconds:g} s, "
        f"--seed {args.seed}",
        flush=True,
    )
    # asyncio's debug mode, which -X dev turns on, leaves about a sixth of the borrows.
    tally = asyncio.run(
        soak(args.seconds, args.borrowers, args.connections, args.seed, kind), debug=False
    )
    print(report(tally))
    return 1 if any(tally.wrongs.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
