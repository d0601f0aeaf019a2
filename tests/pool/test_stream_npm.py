"""Streams against real servers from npm: a node of Ethereum's, and graphql-transport-ws."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Callable, Container, Hashable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import tests.support.streams
from tests import IS_WHOLE
from tests.conftest import skip, until
from tests.support.dialogues import servers
from tests.support.inside import link_of, queues_of
from wspool import WebsocketConnection, WebsocketConnectionPool, WebsocketStream

pytestmark = pytest.mark.once

SERVERS = Path(tests.support.streams.__file__).parent


@asynccontextmanager
async def served(script: str, package: str) -> AsyncIterator[str]:
    """Give the URI of a server, which ends with the block."""
    where = os.environ.get("WSPOOL_NPM")
    if where is None or not (Path(where) / "node_modules" / package).exists():
        pytest.skip(f"WSPOOL_NPM names no directory with {package}")
    process = await asyncio.create_subprocess_exec(
        "node",
        SERVERS / script,
        env=os.environ | {"NODE_PATH": f"{where}/node_modules"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port = (await process.stdout.readline()).decode().strip()
        if not port:
            skip(f"{script} does not start here")
        yield f"ws://127.0.0.1:{port}"
    finally:
        process.stdin.close()
        await process.wait()


Node = Callable[[], AbstractAsyncContextManager[str]]

by_node = pytest.mark.parametrize(
    "node",
    [
        pytest.param(partial(served, "ganache.js", "ganache"), id="ganache"),
        pytest.param(servers.anvil, id="anvil"),
    ],
)


def unclaimed_of(stream: WebsocketStream) -> Container[Hashable]:
    """Return the keys of what has come for nobody yet on a stream's connection."""
    kept: Container[Hashable] = link_of(stream.connection).sharing.unclaimed._kept
    return kept


@by_node
async def test_a_node_answers_each_task_of_many_with_its_own(node: Node) -> None:
    """200 tasks with many calls each over 2 connections, some of which are cancelled."""
    calls = 100 if IS_WHOLE else 10
    async with (
        node() as uri,
        WebsocketConnectionPool(
            uri=uri,
            max_connections=2,
            max_streams=50,
            acquire_timeout=None,
            route=("params.subscription", "id"),
        ) as pool,
    ):
        answered = cancelled = 0

        async def task(number: int) -> None:
            nonlocal answered, cancelled
            dice = random.Random(number)
            for n in range(calls):
                patience = 60.0 if dice.random() < 0.7 else dice.uniform(0.0, 0.02)
                try:
                    async with pool.get_stream() as stream, asyncio.timeout(patience):
                        text = f"{number} {n}"
                        params = [f"0x{text.encode().hex()}"]
                        key = stream.claim()
                        question = {"jsonrpc": "2.0", "id": key, "method": "web3_sha3"}
                        await stream.send_json(question | {"params": params})
                        first = await stream.recv_json()
                        assert first["id"] == key
                        again = stream.claim()
                        await stream.send_json(question | {"id": again, "params": params})
                        assert await stream.recv_json() == first | {"id": again}
                        answered += 1
                except TimeoutError:
                    cancelled += 1

        await asyncio.gather(*map(task, range(200)))
        assert answered + cancelled == 200 * calls
        assert min(answered, cancelled) > 10
        print(f"{answered} answered, {cancelled} cancelled")
        assert len(queues_of(pool)) <= 2
        await until(lambda: not pool.busy_connections, "every slot is back")


@by_node
async def test_a_node_s_first_push_is_never_lost(node: Node) -> None:
    """The node mines without a pause, and pushes before its client has read the subscription's id.

    Right behind, its height is asked for: the first push is of the block after that, or older.
    """
    subscriptions = 1000 if IS_WHOLE else 100
    pushed_early = 0
    async with (
        node() as uri,
        WebsocketConnectionPool(
            uri=uri,
            max_connections=2,
            max_streams=50,
            acquire_timeout=None,
            route=("params.subscription", "id"),
        ) as pool,
    ):

        async def send(stream: WebsocketStream, method: str, *params: Any) -> Any:
            key = stream.claim()
            question = {"jsonrpc": "2.0", "id": key, "method": method, "params": params}
            await stream.send_json(question)
            return key

        async def answers(stream: WebsocketStream, *keys: Any) -> list[Any]:
            """Return the results of these questions; pushes that come before are passed over."""
            found = dict[Any, Any]()
            while len(found) < len(keys):
                message = await stream.recv_json()
                if "id" in message:
                    found[message["id"]] = message["result"]
            return [found[key] for key in keys]

        async def mine() -> None:
            while True:
                async with pool.get_stream() as stream:
                    await answers(stream, await send(stream, "evm_mine"))

        async def subscribe() -> None:
            nonlocal pushed_early
            async with pool.get_stream() as stream:
                name = await send(stream, "eth_subscribe", "newHeads")
                height = await send(stream, "eth_blockNumber")
                subscription, block = await answers(stream, name, height)
                await asyncio.sleep(0.01)  # longer than a block takes
                pushed_early += subscription in unclaimed_of(stream)
                stream.claim(subscription)
                push = await stream.recv_json()
                assert push["params"]["subscription"] == subscription
                assert int(push["params"]["result"]["number"], 16) <= int(block, 16) + 1
                ended = await send(stream, "eth_unsubscribe", subscription)
                assert await answers(stream, ended) == [True]

        mining = asyncio.create_task(mine())
        for _ in range(subscriptions // 10):
            await asyncio.gather(*(subscribe() for _ in range(10)))
        mining.cancel()
        await asyncio.wait([mining])
        assert pushed_early > subscriptions / 10
        await until(lambda: not pool.busy_connections, "every slot is back")


async def test_subscriptions_of_graphql_are_never_more_than_there_are_slots() -> None:
    """Endless ones, left by cancellation; the server closes with 4409 for an id that is in use."""
    rounds = 50 if IS_WHOLE else 20

    async def initialise(connection: WebsocketConnection) -> None:
        await connection.send_json({"type": "connection_init"})
        assert (await connection.recv_json())["type"] == "connection_ack"

    async def complete(stream: WebsocketStream) -> None:
        """Say that nothing more is wanted, and let what the server has sent come."""
        for key in stream.keys:
            await stream.send_json({"id": key, "type": "complete"})

    async with (
        served("graphql_ws.js", "graphql-ws") as uri,
        WebsocketConnectionPool(
            uri=uri,
            protocols=("graphql-transport-ws",),
            max_connections=1,
            max_streams=5,
            acquire_timeout=None,
            route="id",
            on_connect=initialise,
            on_release=complete,
            drain_fence=True,
        ) as pool,
    ):

        async def ask(query: str) -> Any:
            async with pool.get_stream() as stream:
                key = stream.claim(str(stream.number))
                await stream.send_json(
                    {"id": key, "type": "subscribe", "payload": {"query": query}}
                )
                return (await stream.recv_json())["payload"]["data"]

        async def subscribe(number: int) -> None:
            async with pool.get_stream() as stream:
                key = stream.claim(str(stream.number))
                query = {"query": "subscription { ticks }"}
                await stream.send_json({"id": key, "type": "subscribe", "payload": query})
                for n in range(random.Random(number).randrange(1, 5)):
                    message = json.loads(await stream.recv())
                    assert message["id"] == key
                    assert message["payload"]["data"] == {"ticks": n}

        await asyncio.gather(*map(subscribe, range(rounds)))
        assert (await ask("{ most }"))["most"] == 5
        await until(lambda: not pool.busy_connections, "every slot is back")
        assert pool.stats.dials == 1, "the server has closed nothing"
