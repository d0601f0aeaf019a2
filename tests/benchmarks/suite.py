"""The benchmarks by name, what one of them is given, and how it becomes a row of the table.

A benchmark is an async function that returns a Comparison of OURS with THEIRS. It declares what is
compared, and the goal. One whose peer is not installed is a row that says so.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Self, TypeVar

import aiohttp

from tests.benchmarks.goals import OURS, THEIRS, Goal, figure, seconds
from tests.benchmarks.server import allow_files, echo_server
from tests.benchmarks.side_by_side import Body, Comparison, run_on, side_by_side
from tests.benchmarks.table import Row
from wspool import WebsocketConnectionPool

T = TypeVar("T")

LATENCY: Final = 0.05


@dataclass(frozen=True)
class Scale:
    """How many rounds, how long, and how many of what."""

    rounds: int = 40
    round_seconds: float = 0.01
    connections: int = 1_000
    idle: int = 5_000
    borrowers: int = 10_000
    messages: int = 10_000
    cancelled: int = 1_000
    kept: int = 200  # connections whose memory is measured


QUICK: Final = Scale(3, 0.001, 20, 50, 200, 100, 50, 5)


class Servers:
    """The servers, each a process of its own that is started when it is asked for."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @cached_property
    def plain(self) -> str:
        return self._stack.enter_context(echo_server())

    @cached_property
    def distant(self) -> str:
        """One that answers a handshake after LATENCY."""
        return self._stack.enter_context(echo_server(delay=LATENCY))

    @cached_property
    def tls(self) -> str:
        directory = Path(self._stack.enter_context(TemporaryDirectory()))
        certificate = directory / "certificate.pem"
        self.authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
            str(certificate)
        )
        return self._stack.enter_context(echo_server(certificate=certificate))

    @cached_property
    def authority(self) -> Any:
        import trustme

        return trustme.CA()


@dataclass
class Bench:
    """What a benchmark is given: servers, the scale, and short ways to compare."""

    servers: Servers
    scale: Scale
    loop: str
    _results: dict[Callable[..., Any], Any] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        return self.servers.plain

    async def compare(
        self, ours: Body, theirs: Body, *, rounds: int = 1, longer: float = 1.0
    ) -> Comparison:
        """Compare bodies side by side, in `rounds` times as many, and `longer`, rounds."""
        return await side_by_side(
            {OURS: ours, THEIRS: theirs},
            rounds=rounds * self.scale.rounds,
            round_seconds=longer * self.scale.round_seconds,
        )

    async def once(self, measure: Callable[[Bench], Awaitable[T]]) -> T:
        """Return what was measured, which several rows show a part of."""
        if measure not in self._results:
            self._results[measure] = await measure(self)
        return self._results[measure]  # type: ignore[no-any-return]

    @asynccontextmanager
    async def pool(self, **options: Any) -> AsyncIterator[WebsocketConnectionPool]:
        """Give a pool with one connection, if not told otherwise."""
        warm = options.get("warmup_connections", 1)
        defaults = {"uri": self.uri, "max_connections": warm, "warmup_connections": warm}
        async with WebsocketConnectionPool(**defaults | options) as pool:
            assert pool.available_connections == warm
            yield pool

    @asynccontextmanager
    async def many_idle(self) -> AsyncIterator[WebsocketConnectionPool]:
        """Give a pool with many idle connections, all with sockets."""
        count = self.scale.idle
        allow_files(count)
        async with self.pool(
            warmup_connections=count, max_connecting=200, idle_timeout=600.0
        ) as pool:
            yield pool

    @asynccontextmanager
    async def websocket(self, path: str = "") -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """Give a WebSocket of aiohttp's, without a pool."""
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(self.uri + path) as websocket:
                yield websocket


Measured = Callable[[Bench], Awaitable[Comparison]]


@dataclass(frozen=True)
class Benchmark:
    name: str
    ours: str
    against: str
    goals: dict[str, Goal]
    unit: Callable[[float], str]
    measure: Measured
    note: str

    def run(self, servers: Servers, scale: Scale, cache: dict[str, Bench]) -> Iterator[Row]:
        """Give a row for each loop on which there is a goal."""
        sizes = {name: f"{value:,}" for name, value in vars(scale).items()}
        ours, against = self.ours.format(**sizes), self.against.format(**sizes)
        for loop, goal in self.goals.items():
            bench = cache.setdefault(loop, Bench(servers, scale, loop))
            note = self.note
            try:
                with frozen_garbage():
                    compared = run_on(loop, lambda bench=bench: self.measure(bench))
                measured = figure(compared, goal, self.unit)
            except ImportError as error:
                measured, note = None, f"{error.name} is not installed"
            except OSError as error:
                measured, note = None, str(error)
            yield Row(self.name, ours, against, loop, str(goal), measured, note)


benchmarks: Final[dict[str, Benchmark]] = {}


def benchmark(
    ours: str,
    against: str,
    goal: Goal,
    *,
    uvloop: Goal | bool = False,
    unit: Callable[[float], str] = seconds,
    note: str = "",
) -> Callable[[Measured], Measured]:
    """Register a benchmark under its function's name, for uvloop too if told so.

    `uvloop`: True for the same goal there, or a goal of its own.
    """

    def register(measure: Measured) -> Measured:
        name = measure.__name__
        goals = {"asyncio": goal}
        if uvloop is not False:
            goals["uvloop"] = goal if uvloop is True else uvloop
        benchmarks[name] = Benchmark(name, ours, against, goals, unit, measure, note)
        return measure

    return register


class Traced:
    """How many bytes are allocated in the block, and still in use."""

    def __enter__(self) -> Self:
        gc.collect()
        tracemalloc.start()
        return self

    def __exit__(self, *exc: object) -> None:
        tracemalloc.stop()

    def bytes(self) -> float:
        gc.collect()
        return float(tracemalloc.get_traced_memory()[0])


@contextmanager
def frozen_garbage() -> Iterator[None]:
    """Keep what is there already out of the collections in the block."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
