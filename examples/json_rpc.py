#!/usr/bin/env python3
"""JSON-RPC: requests that share a few connections, and subscriptions that leave nothing behind.

    python examples/json_rpc.py [URI]

The methods are those of Ethereum nodes: `eth_subscribe` is answered with a name, and from then on
the server pushes notifications on that connection, also after whoever subscribed has given it back.
Without a URI the server is `stand_in`, below.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from wspool import WebsocketConnection, WebsocketConnectionPool
from wspool.testing import Peer, Server

numbers = itertools.count(1)


async def send(connection: WebsocketConnection, method: str, *params: Any) -> int:
    """Send a request and return its id."""
    number = next(numbers)
    request = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
    await connection.send_json(request)
    return number


async def call(connection: WebsocketConnection, method: str, *params: Any) -> Any:
    number = await send(connection, method, *params)
    while (reply := await connection.recv_json()).get("id") != number:
        pass  # a notification
    if "error" in reply:
        raise RuntimeError(f"{method}: {reply['error']['message']}")
    return reply["result"]


def is_reply(message: str | bytes) -> bool:
    return "id" in json.loads(message)  # notifications have none


async def unsubscribe(connection: WebsocketConnection) -> None:
    name, connection.context = connection.context, None
    if name:
        await send(connection, "eth_unsubscribe", name)  # the drain waits for the reply
    elif name is not None:
        await connection.close()  # left so early that there is no name to unsubscribe from


def make_pool(uri: str, late: list[str | bytes]) -> WebsocketConnectionPool:
    return WebsocketConnectionPool(
        uri=uri,
        max_connections=3,
        acquire_timeout=10.0,  # a request waits for its turn, instead of failing at once
        on_release=unsubscribe,  # first,
        drain_until=is_reply,  # then read up to the reply: no push comes after that
        on_drained=lambda _, message: late.append(message),  # what came too late for its reader
        drain_timeout=5.0,  # a server that does not stop pushing loses the connection
        min_connections=1,  # stays open when nobody calls:
        keepalive=lambda connection: call(connection, "net_version"),  # many count no pings
        keepalive_interval=300.0,
    )


async def request(pool: WebsocketConnectionPool, method: str, *params: Any) -> Any:
    """Return the result; an answer that is an error costs no connection."""
    async with pool.get_connection() as connection, asyncio.timeout(10):
        return await call(connection, method, *params)


async def subscribe(pool: WebsocketConnectionPool, *params: Any) -> AsyncGenerator[Any, None]:
    """Give what the server pushes; close it, by `aclosing`, to give the connection back."""
    async with pool.get_connection() as connection:
        connection.context = ""  # the subscription's name, once the server has given it one
        connection.context = name = await call(connection, "eth_subscribe", *params)
        while True:
            push = (await connection.recv_json()).get("params", {})
            if push.get("subscription") == name:
                yield push["result"]


async def stand_in(peer: Peer) -> None:
    """Play the server: a subscriber is told of five blocks at once."""
    results = {"eth_blockNumber": "0x10", "eth_subscribe": "0xcd", "eth_unsubscribe": True}
    async for message in peer.websocket:
        order = json.loads(message.data)
        known = order["method"] in results
        answer = {"result": results[order["method"]]} if known else {"error": {"message": "what?"}}
        await peer.send(json.dumps({"jsonrpc": "2.0", "id": order["id"]} | answer))
        for block in range(17, 22) if order["method"] == "eth_subscribe" else ():
            params = {"subscription": results["eth_subscribe"], "result": {"number": hex(block)}}
            await peer.send(json.dumps({"method": "eth_subscription", "params": params}))


async def main(uri: str | None = None) -> None:
    late: list[str | bytes] = []
    async with Server(stand_in) as server, make_pool(uri or server.uri, late) as pool:
        async with aclosing(subscribe(pool, "newHeads")) as heads:
            async for head in heads:
                print(f"block {head['number']}")
                if head["number"] == "0x12":
                    break  # three more are on their way
        calls = (request(pool, "eth_blockNumber") for _ in range(10))
        print("ten requests:", *await asyncio.gather(*calls))
        print(f"over {pool.stats.dials} connections. After the release came:", *late, sep="\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
