"""A pool under load, and a server that does anything (`hostile.py`): what must hold all the same.

    python -m tests.explore.fuzz --seconds 120 --seed 1

Round after round a pool with other options is used by borrowers with all manners, while each of
its connections is broken, flooded, slowed or cut off in its own way and handshakes are answered
with anything. In every second round the server then behaves, and every place must be had; in the
others the pool is closed in the middle of it.

Printed at the end: what was done, and what went wrong, which is a turn of the event loop that
takes too long, an error that is no WebsocketError, one that reaches the loop or that the pool
has logged as a fault of its own, lost places, a close that overruns its timeouts, memory that is
not bounded. The exit status is 1 if anything did.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter
from typing import Any, Final

from tests.explore.attacks import (
    CLOSE_TIMEOUT,
    CONNECTIONS,
    MAX_TURN_SECONDS,
    NET,
    count_places,
    listen,
    make_pool,
    memory_mib,
)
from tests.explore.hostile import hostile_server
from tests.support.inside import queues_of
from tests.support.turns import TimedLoop
from wspool import WebsocketConnection, WebsocketError
from wspool._connection.wire import MAX_INBOX_BYTES

BORROWERS: Final = 30
ROUND_SECONDS: Final = 2.0
LOOK_SECONDS: Final = 0.05

MAX_CLOSE_SECONDS: Final = 6 * CLOSE_TIMEOUT
"""Once for hooks, once for the goodbye, and the rest for what else the machine may do."""

MAX_MEMORY_MIB: Final = 2 * 16.0 * CONNECTIONS
"""As in one attack, with what the last round's connections had."""


MAX_KEPT_BYTES: Final = 2 * (MAX_INBOX_BYTES + 4 * 1024 * 1024)
"""For a borrower that does not read: the inbox's size and one message more; and the same again,
where a greeting was kept and a check came after it."""


class Panic(BaseException):
    """What a callable raises that is written in another language."""


class BorrowerError(Exception):
    """What a borrower raises in the middle of an exchange."""


class Round:
    """One pool and its borrowers."""

    def __init__(self, uri: str, seed: str, wrongs: list[str], counts: Counter[str]) -> None:
        self.random = random.Random(seed)
        self.wrongs, self.counts = wrongs, counts
        self.is_over = False
        self.pool = make_pool(uri, **self.options())

    # The pool's options.

    def options(self) -> dict[str, Any]:
        choose, chance = self.random.choice, lambda: self.random.random() < 0.3
        options: dict[str, Any] = {
            "drain_fence": chance(),
            "check_server_data_on_release": chance(),
            "drain_until": choose((None, lambda message: self.judge(len(message) == 1))),
            "drain_quiet_period": 0.05,
            "check_after_idle": choose((None, 0.0)),
            "keepalive_interval": choose((None, 0.1)),
            "heartbeat": choose((None, None, 0.5)),
            "min_connections": choose((0, 5)),
            "warmup_connections": choose((0, CONNECTIONS)),
            "max_uses": choose((None, None, 3)),
            "max_lifetime": choose((None, 1.0)),
            "max_connecting": choose((1, 4, CONNECTIONS)),
            "compress": choose((0, 15)),
            "max_retries": choose((1, 3)),
        }
        for name in ("drain_condition", "on_drained", "control"):
            if chance():
                options[name] = getattr(self, name)
        for name in ("on_connect", "on_release", "on_close", "keepalive"):
            if chance() and (name != "keepalive" or options["keepalive_interval"]):
                options[name] = self.hook
        return options

    def judge(self, answer: bool) -> bool:
        """Return an answer of a user's callable, or raise now and then."""
        if self.is_over or self.random.random() > 0.01:
            return answer
        raise self.random.choice((Panic, ValueError, MemoryError))("on purpose")

    def drain_condition(self, message: str | bytes) -> bool:
        return self.judge(len(message) < 100_000)

    def on_drained(self, connection: WebsocketConnection, message: str | bytes) -> None:
        self.counts["disposed of"] += self.judge(True)

    def control(self, message: str | bytes) -> bool | str | None:
        if self.is_over or not self.judge(True):
            return None
        return self.random.choice((None, None, None, True, "yes"))

    async def hook(self, connection: WebsocketConnection) -> None:
        self.judge(True)
        if self.is_over:
            return
        match self.random.choice(("send", "ping", "recv", "nothing")):
            case "send":
                await connection.send("from a hook")
            case "ping":
                await connection.ping()
            case "recv":
                async with asyncio.timeout(0.05):
                    await connection.recv()
        self.judge(True)

    # The borrowers.

    async def borrow_on(self) -> None:
        while not self.is_over:
            manner = self.random.choice(MANNERS)
            self.counts["borrows"] += 1
            borrowing = asyncio.create_task(self.borrow(manner))
            if self.random.random() < 0.1:
                await asyncio.sleep(self.random.choice((0.0, 0.001, 0.1)))
                borrowing.cancel()
            await asyncio.wait({borrowing})
            if borrowing.cancelled():
                self.counts["cancelled"] += 1
            elif (error := borrowing.exception()) is None:
                self.counts["went well"] += 1
            elif isinstance(error, (WebsocketError, BorrowerError, TimeoutError)):
                self.counts[type(error).__name__] += 1
            else:
                self.wrongs.append(f"{manner} raised {error!r}")
            await asyncio.sleep(self.random.choice((0.0, 0.01)))

    async def borrow(self, manner: str) -> None:
        pool = self.pool
        lend = pool.get_new_connection if self.random.random() < 0.05 else pool.get_connection
        async with lend(timeout=self.random.choice((0, 0.1, 1.0))) as connection:
            async with asyncio.timeout(self.random.choice((0.02, 0.2, 1.0))):
                await getattr(self, manner)(connection)

    async def converse(self, connection: WebsocketConnection) -> None:
        for number in range(self.random.randrange(1, 20)):
            await connection.send(f"question {number}")
            await connection.recv()

    async def listen(self, connection: WebsocketConnection) -> None:
        async for _ in connection:
            await asyncio.sleep(0)

    async def push(self, connection: WebsocketConnection) -> None:
        for _ in range(5):
            await connection.send(bytes(self.random.choice((0, 100, 300_000))))

    async def ping(self, connection: WebsocketConnection) -> None:
        await asyncio.gather(connection.ping(), connection.ping(), return_exceptions=True)
        await connection.ping()

    async def ping_beside_recv(self, connection: WebsocketConnection) -> None:
        await connection.send("x")
        receiving = asyncio.create_task(connection.recv())
        try:
            await connection.ping()
        finally:
            receiving.cancel()
            await asyncio.wait({receiving})
            if not receiving.cancelled():
                receiving.exception()

    async def sleep(self, connection: WebsocketConnection) -> None:
        await asyncio.sleep(self.random.choice((0.0, 0.05, 0.5)))

    async def leave(self, connection: WebsocketConnection) -> None:
        await connection.send("an answer nobody waits for")

    async def fail(self, connection: WebsocketConnection) -> None:
        await connection.send("x")
        raise BorrowerError

    async def close_it(self, connection: WebsocketConnection) -> None:
        await connection.close(4000, "enough")

    async def meddle(self, connection: WebsocketConnection) -> None:
        match self.random.choice(("expire", "resize", "retire", "look")):
            case "expire":
                self.pool.expire_connections()
            case "resize":
                self.pool.resize(self.random.randrange(1, CONNECTIONS + 1))
                await asyncio.sleep(0.05)
                self.pool.resize(CONNECTIONS)
            case "retire":
                connection.retire()
            case "look":
                self.pool.snapshot()

    # The round.

    async def run(self) -> None:
        try:
            await self.pool.start()
        except WebsocketError:
            pass
        crowd = [asyncio.create_task(self.borrow_on()) for _ in range(BORROWERS)]
        for _ in range(int(ROUND_SECONDS / LOOK_SECONDS)):
            await asyncio.sleep(LOOK_SECONDS)
            self.look()
        self.is_over = True
        _, late = await asyncio.wait(crowd, timeout=NET)
        self.wrongs += [f"waits for ever: {task!r}" for task in late]
        for task in late:
            task.cancel()
        for task in crowd:
            if task.done() and (error := task.exception()) is not None:
                self.wrongs.append(f"in the test: {error!r}")

    def look(self) -> None:
        """See that what is kept of each connection's messages is bounded."""
        for link in queues_of(self.pool):
            if link.wire is not None and link.wire.inbox_bytes > MAX_KEPT_BYTES:
                self.wrongs.append(f"{link!r} keeps {link.wire.inbox_bytes >> 20} MiB")

    async def end(self, tell: Callable[[str], Awaitable[None]], *, is_calm: bool) -> None:
        if is_calm:
            self.pool.resize(CONNECTIONS)
            await tell("calm")
            if (places := await count_places(self.pool, CONNECTIONS)) != CONNECTIONS:
                self.wrongs.append(f"{places} of {CONNECTIONS} places are left: {self.pool!r}")
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(NET):
                await self.pool.close_all(timeout=0)
        except TimeoutError:
            self.wrongs.append(f"close_all does not end: {self.pool!r}")
        if (took := asyncio.get_running_loop().time() - began) > MAX_CLOSE_SECONDS:
            self.wrongs.append(f"close_all took {took:.1f} s")
        if is_calm:
            await tell("rage")


MANNERS: Final = (
    *("converse", "converse", "converse", "listen", "push", "ping", "ping_beside_recv", "sleep"),
    *("leave", "fail", "close_it", "meddle"),
)
"""Names of the methods of `Round` that use a connection."""


async def fuzz(seconds: float, seed: int) -> tuple[list[str], Counter[str]]:
    """Go on for some seconds; return what went wrong, and counts of what happened."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, TimedLoop)
    wrongs: list[str] = []
    counts: Counter[str] = Counter()
    listen(loop, wrongs)
    end = perf_counter() + seconds
    async with hostile_server(seed) as (uri, tell):
        number, before = 0, memory_mib()
        while perf_counter() < end:
            loop.begin_anew()
            one = Round(f"{uri}/", f"{seed} {number}", wrongs, counts)
            known = len(wrongs)
            await one.run()
            await one.end(tell, is_calm=number % 2 == 0)
            await asyncio.sleep(0.05)
            left = asyncio.all_tasks() - {asyncio.current_task()}
            wrongs += [f"left over: {task!r}" for task in left]
            if loop.longest > MAX_TURN_SECONDS:
                wrongs.append(f"a turn took {loop.longest:.2f} s: {loop.culprit}")
            counts["longest turn, ms"] = max(counts["longest turn, ms"], round(loop.longest * 1000))
            counts["dials"] += one.pool.stats.dials
            counts["failed dials"] += one.pool.stats.dial_failures
            counts["rounds"] += 1
            wrongs[known:] = [f"round {number}: {wrong}" for wrong in wrongs[known:]]
            number += 1
        grown = memory_mib() - before
        counts["memory, MiB"] = round(grown)
        if grown > MAX_MEMORY_MIB:
            wrongs.append(f"the process grew by {grown:.0f} MiB")
    return wrongs, counts


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tests.explore.fuzz", description="The fuzzing.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    args = parser.parse_args(argv)
    print(f"{args.seconds:g} s, --seed {args.seed}", flush=True)
    with asyncio.Runner(loop_factory=TimedLoop, debug=False) as runner:
        wrongs, counts = runner.run(fuzz(args.seconds, args.seed))
    width = max(map(len, counts))
    for name in sorted(counts):
        print(f"{name:<{width}} {counts[name]:>10,}")
    print(*wrongs[:20], sep="\n")
    print(f"{len(wrongs)} wrong")
    return int(bool(wrongs))


if __name__ == "__main__":
    sys.exit(main())
