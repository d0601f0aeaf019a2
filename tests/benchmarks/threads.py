"""What the pool for threads costs: beside the async one, and beside WebSockets without asyncio."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from queue import LifoQueue
from typing import Any, Final

from tests.benchmarks.checkouts import CHECKOUT, MANY, checkouts
from tests.benchmarks.echoes import ECHO, MESSAGE, borrowed_echo
from tests.benchmarks.goals import AtMost
from tests.benchmarks.side_by_side import Body, Comparison
from tests.benchmarks.suite import Bench, benchmark
from wspool import BlockingWebsocketConnectionPool

THREADS: Final = 16
CONNECTIONS: Final = 4
ECHOES: Final = 20
"""By each of the threads at a time."""

Echo = Callable[[], None]


@contextmanager
def blocking_echo(uri: str, connections: int) -> Iterator[Echo]:
    with BlockingWebsocketConnectionPool(
        uri=uri,
        max_connections=connections,
        warmup_connections=connections,
        acquire_timeout=None,
    ) as pool:

        def echo() -> None:
            with pool.get_connection() as connection:
                connection.send(MESSAGE)
                connection.recv()

        yield echo


@contextmanager
def websockets_echo(uri: str, connections: int) -> Iterator[Echo]:
    """What people write without a pool; compression is off, as it is in ours."""
    from websockets.sync.client import ClientConnection, connect

    queue: LifoQueue[ClientConnection] = LifoQueue()
    with ExitStack() as stack:
        for _ in range(connections):
            queue.put(stack.enter_context(connect(uri, compression=None)))

        def echo() -> None:
            connection = queue.get()
            try:
                connection.send(MESSAGE)
                connection.recv()
            finally:
                queue.put(connection)

        yield echo


def alone(echo: Echo) -> Body:
    async def body() -> None:
        echo()

    return body


def in_threads(echo: Echo, threads: ThreadPoolExecutor) -> Body:
    def echo_often(_: Any) -> None:
        for _ in range(ECHOES):
            echo()

    async def body() -> None:
        list(threads.map(echo_often, range(THREADS)))

    return body


@benchmark("blocking `with pool.get_connection(): pass`", CHECKOUT, AtMost())
async def blocking_checkout(bench: Bench) -> Comparison:
    with BlockingWebsocketConnectionPool(uri=bench.uri, max_connections=1) as blocking:

        async def check_out_often() -> None:
            for _ in range(MANY):
                with blocking.get_connection():
                    pass

        async with bench.pool() as pool:
            return (await bench.compare(check_out_often, checkouts(pool))).per(MANY)


@benchmark(f"{ECHO}, blocking", "the async pool", AtMost())
async def blocking_echo_async(bench: Bench) -> Comparison:
    with blocking_echo(bench.uri, 1) as echo:
        async with bench.pool() as pool:
            return await bench.compare(alone(echo), borrowed_echo(pool))


@benchmark(f"{ECHO}, blocking", "websockets.sync in a queue.LifoQueue", AtMost(2.0))
async def blocking_echo_websockets(bench: Bench) -> Comparison:
    with blocking_echo(bench.uri, 1) as ours, websockets_echo(bench.uri, 1) as theirs:
        return await bench.compare(alone(ours), alone(theirs))


@benchmark(
    f"{ECHO}, blocking: {THREADS} threads on {CONNECTIONS} connections",
    "websockets.sync in a queue.LifoQueue",
    AtMost(1.5),
)
async def blocking_threads(bench: Bench) -> Comparison:
    with (
        ThreadPoolExecutor(THREADS) as threads,
        blocking_echo(bench.uri, CONNECTIONS) as ours,
        websockets_echo(bench.uri, CONNECTIONS) as theirs,
    ):
        compared = await bench.compare(in_threads(ours, threads), in_threads(theirs, threads))
        return compared.per(THREADS * ECHOES)
