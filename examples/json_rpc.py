#!/usr/bin/env python3
"""JSON-RPC: requests that share a connection, and subscriptions that leave nothing behind.

    python examples/json_rpc.py [URI]

The methods are those of Ethereum nodes: `eth_subscribe` is answered with a name, and from then on
the server pushes notifications with that name, also after whoever subscribed has gone. Without a
URI the server is `stand_in`, below.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from wspool import WebsocketConnection, WebsocketConnectionPool, WebsocketStream
from wspool.testing import Peer, Server


async def send(stream: WebsocketStream, method: str, *params: Any) -> int:
    """Send a request and return its id, whose reply this stream gets."""
    number: int = stream.claim()
    request = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
    await stream.send_json(request)
    return number


async def call(stream: WebsocketStream, method: str, *params: Any) -> Any:
    number = await send(stream, method, *params)
    while (reply := await stream.recv_json()).get("id") != number:
        pass  # a notification
    if "error" in reply:
        raise RuntimeError(f"{method}: {reply['error']['message']}")
    return reply["result"]


def is_reply(message: str | bytes) -> bool:
    return "id" in json.loads(message)  # notifications have none


async def keep_alive(connection: WebsocketConnection) -> None:
    """Ask for something on a connection that nobody else uses meanwhile."""
    await connection.send_json({"jsonrpc": "2.0", "id": 0, "method": "net_version", "params": []})
    while (await connection.recv_json()).get("id") != 0:
        pass


def make_pool(uri: str, late: list[str | bytes]) -> WebsocketConnectionPool:
    return WebsocketConnectionPool(
        uri=uri,
        max_connections=3,
        max_streams=50,  # requests and subscriptions on a connection at a time
        route=("params.subscription", "id"),  # whose a message is: the name, or the id
        acquire_timeout=10.0,  # a request waits for its turn, instead of failing at once
        drain_until=is_reply,  # whoever is cancelled leaves its slot when the reply has come
        on_drained=lambda _, message: late.append(message),  # what came too late for its reader
        drain_timeout=5.0,  # a server that does not reply loses the connection
        min_connections=1,  # stays open when nobody calls:
        keepalive=keep_alive,  # many servers count no pings
        keepalive_interval=300.0,
    )


async def request(pool: WebsocketConnectionPool, method: str, *params: Any) -> Any:
    """Return the result; an answer that is an error costs no connection."""
    async with pool.get_stream() as stream, asyncio.timeout(10):
        return await call(stream, method, *params)


async def subscribe(pool: WebsocketConnectionPool, *params: Any) -> AsyncGenerator[Any, None]:
    """Give what the server pushes; close it, by `aclosing`, to end the subscription."""
    async with pool.get_stream() as stream:
        naming = asyncio.create_task(call(stream, "eth_subscribe", *params))
        try:
            stream.claim(await asyncio.shield(naming))  # what was pushed by now comes too
            while True:
                yield (await stream.recv_json())["params"]["result"]
        finally:
            async with asyncio.timeout(5):  # whoever leaves early waits for the name, to end it
                await send(stream, "eth_unsubscribe", await naming)
            # The pool reads on up to the reply: no push comes after that.


async def stand_in(peer: Peer) -> None:
    """Play the server: a subscriber is told of five blocks at once."""
    results = {"eth_blockNumber": "0x10", "eth_subscribe": "0xcd", "eth_unsubscribe": True}
    async for message in peer:
        order = json.loads(message)
        known = order["method"] in results
        answer = {"result": results[order["method"]]} if known else {"error": {"message": "what?"}}
        await peer.send_json({"jsonrpc": "2.0", "id": order["id"]} | answer)
        for block in range(17, 22) if order["method"] == "eth_subscribe" else ():
            params = {"subscription": results["eth_subscribe"], "result": {"number": hex(block)}}
            await peer.send_json({"method": "eth_subscription", "params": params})


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
        print(f"over {pool.stats.dials} connection. After the end came:", *late, sep="\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
