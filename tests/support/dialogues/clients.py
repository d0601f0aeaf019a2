"""The clients: what each asks of its server, over a pool."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import random
import struct
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from examples import devtools
from tests import ROOT
from tests.support.dialogues import servers
from wspool import WebsocketConnection, WebsocketConnectionPool

Task = Callable[[WebsocketConnectionPool], Coroutine[Any, Any, Any]]
"""What is asked of the server; returns what came out, which is JSON."""


@dataclass(frozen=True)
class Dialogue:
    """Tasks for a server, the options of the pool that they share, and those of the replay."""

    name: str
    server: Callable[[], AbstractAsyncContextManager[str]]
    tasks: dict[str, Task]
    options: dict[str, Any] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()

    @property
    def file(self) -> Path:
        return ROOT / "tests" / "parts" / "recordings" / f"{self.name}.jsonl"

    @property
    def results(self) -> Any:
        """What came out when it was recorded."""
        return json.loads(self.file.with_suffix(".results.json").read_text(encoding="utf-8"))

    async def run(self, uri: str, connections: int, seed: int) -> dict[str, Any]:
        """Run the tasks at once, in an order by chance, and return what came out of each."""
        names = list(self.tasks)
        random.Random(seed).shuffle(names)
        pool = WebsocketConnectionPool(
            uri=uri, max_connections=connections, acquire_timeout=60.0, **self.options
        )
        async with pool, asyncio.timeout(60), asyncio.TaskGroup() as group:
            running = {name: group.create_task(self.tasks[name](pool)) for name in names}
        return {name: running[name].result() for name in self.tasks}


# Ethereum's JSON-RPC.

numbers = itertools.count(1)


def request(number: int, method: str, *params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": params}


async def call(connection: WebsocketConnection, method: str, *params: Any) -> Any:
    number = next(numbers)
    await connection.send_json(request(number, method, *params))
    reply = await connection.recv_json()
    assert reply["id"] == number, "the reply is to this request"
    return reply["result"]


async def transfer(account: int, pool: WebsocketConnectionPool) -> Any:
    """Send from one of the accounts to a new one, and look at what has arrived there."""
    async with pool.get_connection() as connection:
        accounts = await call(connection, "eth_accounts")
        payment = {"from": accounts[account], "to": f"0x{account:040x}", "value": hex(account)}
        transaction = await call(connection, "eth_sendTransaction", payment)
        while not (receipt := await call(connection, "eth_getTransactionReceipt", transaction)):
            await asyncio.sleep(0.01)  # the node makes a block
    async with pool.get_connection() as connection:
        balance = await call(connection, "eth_getBalance", payment["to"], "latest")
    return [transaction, receipt["status"], receipt["to"], balance]


async def watch_blocks(pool: WebsocketConnectionPool) -> Any:
    """Subscribe to the heads of blocks, see one, and leave nothing behind."""
    async with pool.get_connection() as connection:
        subscription = await call(connection, "eth_subscribe", "newHeads")
        await connection.send_json(request(0, "evm_mine"))
        heads, is_mined = [], False
        while not (heads and is_mined):
            seen = await connection.recv_json()
            if "params" in seen:
                heads.append(seen["params"])
            is_mined = is_mined or seen.get("id") == 0
        assert {head["subscription"] for head in heads} == {subscription}
        # What other tasks have done meanwhile is told here, too.
        await connection.send_json(request(-1, "eth_unsubscribe", subscription))
        while (reply := await connection.recv_json()).get("id") != -1:
            pass
    return [reply["result"], sorted(heads[0]["result"])]


# GraphQL over WebSocket, the protocol graphql-transport-ws.


async def initialize(connection: WebsocketConnection) -> None:
    await connection.send_json({"type": "connection_init"})
    assert (await connection.recv_json())["type"] == "connection_ack"


async def operate(query: str, pool: WebsocketConnectionPool) -> Any:
    """Return all data of an operation, whose id is a new one."""
    operation = str(uuid.uuid4())
    data: list[Any] = []
    async with pool.get_connection() as connection:
        request = {"id": operation, "type": "subscribe", "payload": {"query": query}}
        await connection.send_json(request)
        while (reply := await connection.recv_json())["type"] == "next":
            assert reply["id"] == operation
            data.append(reply["payload"]["data"])
        assert reply == {"id": operation, "type": "complete"}
    return data


# MQTT 3.1.1, a binary protocol.

CONNECT, CONNACK, PUBLISH, PUBACK = 1, 2, 3, 4
SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK = 8, 9, 10, 11


def packet(kind: int, flags: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    assert len(body) < 128
    return bytes([kind << 4 | flags, len(body)]) + body


def text(value: str) -> bytes:
    return struct.pack("!H", len(value)) + value.encode()


async def packets(connection: WebsocketConnection) -> AsyncIterator[tuple[int, bytes]]:
    """Give kind and body of what comes; the broker divides its messages as it likes."""
    unread = b""
    while True:
        while len(unread) < 2 or len(unread) < 2 + unread[1]:
            message = await connection.recv()
            assert isinstance(message, bytes)
            unread += message
        size = 2 + unread[1]
        yield unread[0] >> 4, unread[2:size]
        unread = unread[size:]


async def log_in(connection: WebsocketConnection) -> None:
    # A clean session without keep-alive, and a name that the broker chooses.
    await connection.send(packet(CONNECT, 0, text("MQTT"), b"\x04\x02\x00\x00", text("")))
    async for kind, body in packets(connection):
        assert (kind, body) == (CONNACK, b"\x00\x00")
        return


async def publish(number: int, pool: WebsocketConnectionPool) -> Any:
    """Subscribe to a topic, publish there, get it back, and unsubscribe."""
    name, topic = struct.pack("!H", number), text(f"topic/{number}")
    async with pool.get_connection() as connection:
        received = packets(connection)
        await connection.send(packet(SUBSCRIBE, 2, name, topic, b"\x00"))
        assert await anext(received) == (SUBACK, name + b"\x00")
        payload = bytes(range(number, number + 20))
        await connection.send(packet(PUBLISH, 2, topic, name, payload))
        both = dict([await anext(received), await anext(received)])
        assert both[PUBACK] == name
        assert both[PUBLISH] == topic + payload
        await connection.send(packet(UNSUBSCRIBE, 2, name, topic))
        assert await anext(received) == (UNSUBACK, name)
    return both[PUBLISH].hex()


# Chromium's DevTools protocol.


async def look(number: int, pool: WebsocketConnectionPool) -> Any:
    page = f"<title>Page {number}</title><body style='background:rgb({number * 20},0,0)'>"
    title, picture = await devtools.look(pool, f"data:text/html,{page}")
    return [title, hashlib.sha256(picture).hexdigest()]


DIALOGUES: Final = [
    Dialogue(
        "anvil",
        servers.anvil,
        {f"transfer {n}": partial(transfer, n) for n in range(1, 9)} | {"watch": watch_blocks},
        ignore=("id",),
    ),
    Dialogue(
        "graphql-ws",
        servers.graphql,
        {
            query: partial(operate, query)
            for n in range(6)
            for query in (
                f'{{ greet(name: "{n}") }}',
                f"subscription {{ count(from: {n}, to: {2 * n}) }}",
            )
        },
        {"protocols": ("graphql-transport-ws",), "on_connect": initialize},
        ignore=("id",),
    ),
    Dialogue(
        "mqtt",
        servers.mqtt,
        {f"topic {n}": partial(publish, n) for n in range(1, 11)},
        {"protocols": ("mqtt",), "on_connect": log_in},
    ),
    Dialogue(
        "devtools",
        servers.chromium,
        {f"page {n}": partial(look, n) for n in range(1, 7)},
        devtools.OPTIONS | {"max_streams": 1},
        ignore=("id", "sessionId", "browserContextId", "targetId"),
    ),
]
