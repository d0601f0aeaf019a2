"""How a checkout and a round trip scale with borrowers and connections, as a picture."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import quantiles
from time import perf_counter
from typing import Any, Final

import aiohttp

from tests.benchmarks.peers import plain_pool, websockets_pool
from tests.benchmarks.server import allow_files, echo_server
from tests.benchmarks.side_by_side import run_on
from tests.benchmarks.table import describe, machine
from wspool import WebsocketConnectionPool, WebsocketStream

MESSAGE: Final = "hello"
SHARED: Final = 50
"""Connections that the borrowers share."""

STREAMS: Final = 20
"""Borrowers of a connection, where it is shared."""

BORROWERS: Final = (1, 10, 100, 1_000, 10_000)
CONNECTIONS: Final = (1, 10, 100, 1_000, 5_000)
REPEATED: Final = 5
"""Each point is the best of so many for a checkout, and all of them together for round trips."""

ALONE: Final = 1_000
"""Checkouts and round trips, one after the other, for a point that has one borrower."""

Opened = AbstractAsyncContextManager[Any]
Echo = Callable[[Any], Awaitable[None]]
Points = dict[int, Any]


class QueuePool:
    """A queue of WebSockets with the interface of a pool."""

    def __init__(self, websockets: Iterable[aiohttp.ClientWebSocketResponse]) -> None:
        self._queue: asyncio.Queue[aiohttp.ClientWebSocketResponse] = asyncio.Queue()
        for websocket in websockets:
            self._queue.put_nowait(websocket)

    @asynccontextmanager
    async def get_connection(self) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        websocket = await self._queue.get()
        try:
            yield websocket
        finally:
            self._queue.put_nowait(websocket)


class StreamPool:
    """The streams of a pool with the interface of a pool."""

    def __init__(self, pool: WebsocketConnectionPool) -> None:
        self.get_connection = pool.get_stream


def open_ours(uri: str, size: int, **settings: Any) -> WebsocketConnectionPool:
    return WebsocketConnectionPool(
        uri=uri,
        max_connections=size,
        warmup_connections=size,
        max_connecting=200,
        acquire_timeout=None,
        idle_timeout=600.0,
        **settings,
    )


@asynccontextmanager
async def open_streams(uri: str, size: int) -> AsyncIterator[StreamPool]:
    async with open_ours(uri, size, route="id", max_streams=STREAMS) as pool:
        yield StreamPool(pool)


@asynccontextmanager
async def websockets_of(uri: str, size: int) -> AsyncIterator[list[Any]]:
    async with AsyncExitStack() as stack:
        connector = aiohttp.TCPConnector(limit=0)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        websockets = []
        for _ in range(size):
            websockets.append(await stack.enter_async_context(session.ws_connect(uri)))
        yield websockets


@asynccontextmanager
async def open_queue(uri: str, size: int) -> AsyncIterator[QueuePool]:
    async with websockets_of(uri, size) as websockets:
        yield QueuePool(websockets)


@asynccontextmanager
async def open_plain(uri: str, size: int) -> AsyncIterator[Any]:
    async with websockets_of(uri, size) as websockets:

        async def make() -> Any:
            return websockets.pop()

        pool = plain_pool(make, size)
        async with AsyncExitStack() as stack:
            for _ in range(size):
                await stack.enter_async_context(pool.get_connection())
        yield pool


async def echo_by_pool(connection: Any) -> None:
    await connection.send(MESSAGE)
    await connection.recv()


async def echo_by_stream(stream: WebsocketStream) -> None:
    await stream.send_json({"id": stream.claim(), "params": MESSAGE})
    await stream.recv_json()


async def echo_by_aiohttp(websocket: aiohttp.ClientWebSocketResponse) -> None:
    await websocket.send_str(MESSAGE)
    await websocket.receive()


async def no_echo(_: Any) -> None:
    await asyncio.sleep(0)


@dataclass
class Contender:
    """A way of sharing connections; `most` are its connections, and its borrowers at a time."""

    name: str
    color: str
    open: Callable[[str, int], Opened]
    echo: Echo
    package: str | None = None
    most: int | None = None
    most_borrowers: int | None = None
    checkout_by_connections: Points = field(default_factory=dict)
    checkout_by_borrowers: Points = field(default_factory=dict)
    round_trip_by_connections: Points = field(default_factory=dict)
    round_trip_by_borrowers: Points = field(default_factory=dict)

    def is_open_to(self, size: int) -> bool:
        return self.most is None or size <= self.most

    async def measure_alone(self, pool: Any, size: int) -> None:
        start = perf_counter()
        for _ in range(ALONE):
            async with pool.get_connection():
                pass
        fastest(self.checkout_by_connections, size, (perf_counter() - start) / ALONE)
        took = self.round_trip_by_connections.setdefault(size, [])
        for _ in range(ALONE):
            await self._borrow(pool, self.echo, took)

    async def measure_crowd(self, pool: Any, count: int) -> None:
        start = perf_counter()
        await asyncio.gather(*(self._borrow(pool, no_echo, []) for _ in range(count)))
        fastest(self.checkout_by_borrowers, count, (perf_counter() - start) / count)
        took = self.round_trip_by_borrowers.setdefault(count, [])
        await asyncio.gather(*(self._borrow(pool, self.echo, took) for _ in range(count)))

    async def _borrow(self, pool: Any, use: Echo, took: list[float]) -> None:
        start = perf_counter()
        async with pool.get_connection() as connection:
            await use(connection)
        took.append(perf_counter() - start)


def fastest(points: Points, at: int, seconds: float) -> None:
    points[at] = min(seconds, points.get(at, seconds))


def percentile(values: list[float], percent: int) -> float:
    return quantiles(values, n=100)[percent - 1]


async def measure(
    all: list[Contender], uri: str, connections: Iterable[int], borrowers: Iterable[int]
) -> None:
    """Measure all contenders in turns, so that a machine's drift is the same for each."""
    for size in connections:
        entered = [contender for contender in all if contender.is_open_to(size)]
        async with AsyncExitStack() as stack:
            pools = [await stack.enter_async_context(c.open(uri, size)) for c in entered]
            gc.collect()
            for _ in range(REPEATED):
                for contender, pool in zip(entered, pools, strict=True):
                    await contender.measure_alone(pool, size)
    async with AsyncExitStack() as stack:
        pools = [await stack.enter_async_context(c.open(uri, SHARED)) for c in all]
        for count in borrowers:
            gc.collect()
            for _ in range(max(REPEATED, 100 // count)):
                for contender, pool in zip(all, pools, strict=True):
                    if contender.most_borrowers is None or count <= contender.most_borrowers:
                        await contender.measure_crowd(pool, count)


def contenders() -> list[Contender]:
    return [
        Contender("wspool", "#0072b2", open_ours, echo_by_pool),
        Contender(
            f"wspool, {STREAMS} streams on each connection",
            "#56b4e9",
            open_streams,
            echo_by_stream,
            most=1_000,
        ),
        Contender("asyncio.Queue of aiohttp WebSockets", "#555555", open_queue, echo_by_aiohttp),
        Contender(
            "asyncio-connection-pool of aiohttp WebSockets",
            "#e69f00",
            open_plain,
            echo_by_aiohttp,
            "asyncio_connection_pool",
        ),
        # It opens one connection at a time, and refuses a borrower where others wait.
        Contender(
            "aio-websocket-pool",
            "#cc3311",
            websockets_pool,
            echo_by_pool,
            "aio_websocket_pool",
            1_000,
            SHARED,
        ),
    ]


def plot(path: Path, *, is_quick: bool = False) -> None:
    """Measure, and write the picture in the format that the file's suffix names."""
    import matplotlib

    matplotlib.use("agg")
    connections, borrowers = (s[:2] if is_quick else s for s in (CONNECTIONS, BORROWERS))
    chosen = [contender for contender in contenders() if is_installed(contender)]
    allow_files(max(size * sum(c.is_open_to(size) for c in chosen) for size in connections))
    with echo_server() as uri:
        run_on("asyncio", lambda: measure(chosen, uri, connections, borrowers))
    draw(chosen, path)


def is_installed(contender: Contender) -> bool:
    if contender.package is not None and find_spec(contender.package) is None:
        print(f"{contender.name}: {contender.package} is not installed")
        return False
    return True


def draw(measured: list[Contender], path: Path) -> None:
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.fonttype": "none", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}
    figure, axes = plt.subplots(2, 2, figsize=(10, 7.5), sharex="col", facecolor="white")
    for contender in measured:
        style: dict[str, Any] = {"color": contender.color, "marker": "o", "markersize": 4}
        for row, by_connections, by_borrowers in (
            (0, contender.checkout_by_connections, contender.checkout_by_borrowers),
            (1, contender.round_trip_by_connections, contender.round_trip_by_borrowers),
        ):
            for ax, points in zip(axes[row], (by_connections, by_borrowers), strict=True):
                sizes = list(points)
                if row == 0:
                    ax.plot(sizes, [1e6 * v for v in points.values()], **style)
                else:
                    ax.plot(
                        sizes, [1e3 * percentile(took, 50) for took in points.values()], **style
                    )
                    slow = [1e3 * percentile(took, 99) for took in points.values()]
                    ax.plot(sizes, slow, linestyle="--", **style)
    for ax, title in zip(
        axes.flat,
        (
            "A checkout, one borrower",
            f"A checkout, {SHARED} connections",
            "A round trip, one borrower (— median, - - 99th percentile)",
            f"Wait and round trip, {SHARED} connections",
        ),
        strict=True,
    ):
        ax.set(xscale="log", yscale="log", title=title)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter("{x:,g}")
            axis.set_minor_formatter("")
    for ax, label in zip(axes[:, 0], ("µs", "ms"), strict=True):
        ax.set_ylabel(f"time ({label})")
    axes[1, 0].set_xlabel("connections")
    axes[1, 1].set_xlabel("borrowers at a time")
    names = [contender.name for contender in measured]
    handles = [plt.Line2D([], [], color=c.color, marker="o", markersize=4) for c in measured]
    figure.legend(handles, names, loc="lower center", ncols=2, frameon=False)
    figure.text(0.5, 0.965, describe(machine()), ha="center", fontsize=7, color="#555555")
    figure.tight_layout(rect=(0, 0.09, 1, 0.96))
    figure.savefig(path, dpi=100, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
