"""What each attack of a hostile server costs, one after the other, and what is left afterwards.

    python -m tests.explore.attacks [attack ...] [--json] [--markdown docs/withstands.md]

Each is carried out on two pools of 20 connections each. The first one's are idle, borrowed, asked
for a pong, given back, drained, replaced; then the server behaves again, and every place must be
had. The second pool is closed in the middle of it. The exit status is 1 if any limit is exceeded.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from tests import ROOT
from tests.explore.hostile import ATTACKS, hostile_server
from tests.support.inside import router_of
from tests.support.turns import TimedLoop
from wspool import WebsocketConnection, WebsocketConnectionPool, WebsocketError
from wspool._pool import gate

CONNECTIONS: Final = 20

MAX_TURN_SECONDS: Final = 0.1
"""Of the pool's and its users' work, between two looks at the network."""

MAX_MEMORY_MIB: Final = 2 * 16.0 * CONNECTIONS
"""That the process grows by: a message of 4 MiB, in pieces, whole, read and kept, a connection."""

CLOSE_TIMEOUT: Final = 0.5
MAX_CLOSE_SECONDS: Final = 3 * CLOSE_TIMEOUT
"""The pool's `close_timeout`, and the rest for what else the machine may do."""

NET: Final = 30.0
"""Seconds after which something that must end by itself has not ended."""

WORDS: Final[dict[str, str]] = {
    "empty": "floods with empty messages",
    "tiny": "floods with messages of 1 byte",
    "small": "floods with messages of 100 bytes",
    "large": "floods with messages of 1 MiB",
    "pings": "pings without end, and reads nothing",
    "pongs": "sends pongs without end, and reads nothing",
    "fat-pings": "pings without end with 125 bytes, and reads nothing",
    "mixed": "floods with messages, pings and pongs",
    "fragments": "floods with messages in fragments, pings between these",
    "endless-message": "sends fragments of a message that never ends",
    "bombs": "floods with compressed messages of 4 KiB that are 4 MiB each",
    "huge-frame": "sends a frame of 4 MiB, a byte at a time",
    "mute": "reads nothing and says nothing",
    "half-close": "ends its side of the TCP connection, and no more",
    "close-and-flood": "sends a CLOSE frame, and floods after it",
    "no-close": "never answers, nor a CLOSE frame",
    "broken": "sends what RFC 6455 forbids, in 17 ways",
    "reset": "resets the connection at some moment",
    "refuse": "answers handshakes in 12 ways that are none: odd Retry-After, redirects, garbage",
}


@dataclass
class Figures:
    """What an attack has cost: seconds, MiB, places that can be had; and what went wrong."""

    attack: str
    turn_seconds: float = 0.0
    culprit: str = ""
    memory_mib: float = 0.0
    places: int = 0
    close_seconds: float = 0.0
    borrows: int = 0
    wrongs: list[str] = field(default_factory=list)

    def judge(self) -> list[str]:
        """Return in words what is not as it must be."""
        wrongs = list(self.wrongs)
        if self.turn_seconds > MAX_TURN_SECONDS:
            wrongs.append(f"a turn took {self.turn_seconds:.2f} s: {self.culprit}")
        if self.memory_mib > MAX_MEMORY_MIB:
            wrongs.append(f"the process grew by {self.memory_mib:.0f} MiB")
        if self.places != CONNECTIONS:
            wrongs.append(f"{self.places} of {CONNECTIONS} places are left")
        if self.close_seconds > MAX_CLOSE_SECONDS:
            wrongs.append(f"close_all took {self.close_seconds:.1f} s")
        return wrongs


class Log(logging.Handler):
    """Keeps what the pool says about faults of its own, and what nobody has caught."""

    def __init__(self, wrongs: list[str]) -> None:
        super().__init__(logging.ERROR)
        self.wrongs = wrongs

    def emit(self, record: logging.LogRecord) -> None:
        if "broke down" in record.getMessage() or record.name == "asyncio":
            self.wrongs.append(f"logged: {self.format(record)}")


def listen(loop: asyncio.AbstractEventLoop, wrongs: list[str]) -> None:
    """Let what reaches the loop's exception handler, and what is logged of faults, be wrong."""
    loop.set_exception_handler(lambda _, context: wrongs.append(f"in the loop: {context}"))
    for name in ("wspool", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [Log(wrongs)]
        logger.setLevel(logging.ERROR)
        logger.propagate = False


def memory_mib() -> float:
    """Return the most that the process has had so far."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def make_pool(uri: str, **options: Any) -> WebsocketConnectionPool:
    """Make a pool that waits for nothing for long, since a server will not make it worth while."""
    gate.MAX_RETRY_AFTER_SECONDS = 0.1  # type: ignore[misc]
    pool = WebsocketConnectionPool(
        **{
            "uri": uri,
            "max_connections": CONNECTIONS,
            "max_retries": 3,
            "connection_timeout": 0.5,
            "close_timeout": CLOSE_TIMEOUT,
            "drain_timeout": 0.5,
            "drain_fence": True,
            "acquire_timeout": 1.0,
            "compress": 15,
            # One that has refused would be asked for more only after a while.
            "learn_limit": False,
        }
        | options
    )
    router_of(pool).gate.waits = (0.02,)
    return pool


async def count_places(pool: WebsocketConnectionPool, most: int) -> int:
    """Return how many connections can be had at a time from a server that behaves."""
    got: list[WebsocketConnection] = []
    end = asyncio.get_running_loop().time() + NET
    while len(got) < most and asyncio.get_running_loop().time() < end:
        try:
            connection = await pool.acquire(timeout=5.0)
        except WebsocketError:
            continue
        try:
            async with asyncio.timeout(5.0):
                await connection.send("are you there?")
                while await connection.recv() != "are you there?":
                    pass
        except (WebsocketError, TimeoutError):  # one from before the server behaved
            await pool.release(connection, force_remove=True)
        else:
            got.append(connection)
    for connection in got:
        await pool.release(connection)
    return len(got)


class Attack:
    """One attack, carried out."""

    def __init__(self, name: str, uri: str) -> None:
        self.figures = Figures(name)
        self.uri = f"{uri}/{name}"

    def expect(self, error: BaseException) -> None:
        if not isinstance(error, (WebsocketError, TimeoutError)):
            self.figures.wrongs.append(f"raised: {error!r}")

    async def all_of(self, *awaitables: Any) -> list[Any]:
        """Wait for all of these, and return what came of those that went well."""
        outcomes = await asyncio.gather(*awaitables, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                self.expect(outcome)
        return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]

    async def warm(self, pool: WebsocketConnectionPool) -> None:
        try:
            async with asyncio.timeout(NET):
                await pool.start()
        except WebsocketError as error:
            self.expect(error)

    async def use(self, pool: WebsocketConnectionPool) -> None:
        """Let as many borrowers as there are connections do what borrowers do."""
        await self.all_of(*(self.borrow(pool, number) for number in range(CONNECTIONS)))
        lent = await self.all_of(*(pool.acquire() for _ in range(CONNECTIONS)))
        await asyncio.sleep(0.4)  # asleep, while the upkeep reads for them
        await self.all_of(*(asyncio.wait_for(connection.ping(), 0.5) for connection in lent))
        for connection in lent:
            await pool.release(connection)

    async def borrow(self, pool: WebsocketConnectionPool, number: int) -> None:
        async with pool.get_connection() as connection:
            self.figures.borrows += 1
            await connection.send(f"question {number}")
            async with asyncio.timeout(0.1):
                for _ in range(100):
                    await connection.recv()

    async def endure(self, pool: WebsocketConnectionPool) -> None:
        """Go through all that the pool does with connections, from the first dial on."""
        await self.warm(pool)
        await asyncio.sleep(0.7)  # idle, for some sweeps
        await self.use(pool)
        await asyncio.sleep(0.3)  # the drains
        pool.expire_connections()
        await asyncio.sleep(0.3)
        await self.use(pool)

    async def close(self, pool: WebsocketConnectionPool) -> None:
        await self.warm(pool)
        await asyncio.sleep(0.3)
        began = asyncio.get_running_loop().time()
        async with asyncio.timeout(NET):
            await pool.close_all(timeout=0)
        self.figures.close_seconds = asyncio.get_running_loop().time() - began


async def play(name: str) -> Figures:
    """Carry out one attack in this process, in a `TimedLoop`."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, TimedLoop)
    async with hostile_server(1) as (uri, tell):
        attack = Attack(name, uri)
        figures = attack.figures
        listen(loop, figures.wrongs)
        quiet = make_pool(f"{uri}/echo")
        await count_places(quiet, CONNECTIONS)
        await quiet.close_all()
        before = memory_mib()
        loop.begin_anew()
        pools = [make_pool(attack.uri, warmup_connections=CONNECTIONS) for _ in range(2)]
        await attack.endure(pools[0])
        await attack.close(pools[1])
        figures.turn_seconds, figures.culprit = loop.longest, loop.culprit
        figures.memory_mib = memory_mib() - before
        await tell("calm")
        figures.places = await count_places(pools[0], CONNECTIONS)
        async with asyncio.timeout(NET):
            await pools[0].close_all()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        figures.wrongs += [f"left over: {task!r}" for task in left]
    return figures


def play_alone(name: str) -> Figures:
    """Carry out one attack in a process of its own, whose memory is nobody else's."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.explore.attacks", name, "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120.0,
    )
    if done.returncode not in (0, 1) or not done.stdout:
        raise RuntimeError(f"{name} could not be carried out:\n{done.stdout}\n{done.stderr}")
    figures = Figures(**json.loads(done.stdout))
    if done.stderr:
        figures.wrongs.append(f"on stderr: {done.stderr}")
    return figures


HEAD: Final = (
    "| the server … | longest pause | memory | places left | `close_all` |",
    "|---|---|---|---|---|",
)


def row(figures: Figures) -> str:
    return (
        f"| {WORDS[figures.attack]} | {figures.turn_seconds * 1000:.0f} ms "
        f"| {max(0.0, figures.memory_mib):.0f} MiB | {figures.places} of {CONNECTIONS} "
        f"| {figures.close_seconds:.1f} s |"
    )


def write_table(path: Path, lines: Sequence[str]) -> None:
    """Put the table between the marks of a page."""
    page = path.read_text()
    table = "\n".join(lines)
    page, count = re.subn(
        r"(<!-- attacks -->\n).*?(<!-- end -->)", rf"\1\n{table}\n\n\2", page, flags=re.DOTALL
    )
    if count != 1:
        raise ValueError(f"{path} has {count} places for the table; it must have one")
    path.write_text(page)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tests.explore.attacks", description="The attacks.")
    parser.add_argument("attacks", nargs="*", metavar="attack", help=", ".join(ATTACKS))
    parser.add_argument("--json", action="store_true", help="one attack, in this process")
    parser.add_argument("--markdown", type=Path, help="the page to write the table to")
    args = parser.parse_args(argv)
    if args.json:
        (name,) = args.attacks
        with asyncio.Runner(loop_factory=TimedLoop) as runner:
            figures = runner.run(play(name))
        print(json.dumps(asdict(figures)))
        return int(bool(figures.judge()))
    rows, is_bad = list(HEAD), False
    print(*rows, sep="\n")
    for name in args.attacks or ATTACKS:
        figures = play_alone(name)
        rows.append(row(figures))
        print(rows[-1], flush=True)
        for wrong in figures.judge():
            is_bad = True
            print(f"  WRONG: {wrong}", flush=True)
    if args.markdown is not None:
        write_table(args.markdown, rows)
    return int(is_bad)


if __name__ == "__main__":
    sys.exit(main())
