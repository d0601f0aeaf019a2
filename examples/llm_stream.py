#!/usr/bin/env python3
"""Answers of a language model, word by word; one that nobody reads any more is cancelled.

    python examples/llm_stream.py [URI]

The events are those of OpenAI's Realtime API: `response.create` is answered by `response.created`,
deltas, and at the end `response.done`, also where the client has sent `response.cancel`. Without a
URI the server is `stand_in`, below.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from wspool import WebsocketConnection, WebsocketConnectionPool
from wspool.testing import Peer, Server


async def cancel(connection: WebsocketConnection) -> None:
    """Stop a response that has not ended: words that nobody reads cost money and time."""
    response_id, connection.context = connection.context, None
    if response_id is not None:
        await connection.send_json({"type": "response.cancel", "response_id": response_id})


def is_last(message: str | bytes) -> bool:
    return bool(json.loads(message)["type"] == "response.done")


def make_pool(uri: str) -> WebsocketConnectionPool:
    return WebsocketConnectionPool(
        uri=uri,
        headers={"Authorization": f"Bearer {os.environ.get('API_KEY', '')}"},
        max_connections=2,
        acquire_timeout=30.0,  # a question waits for its turn, instead of failing at once
        max_lifetime=55 * 60.0,  # the server ends a session after an hour, in the middle of a word
        check_after_idle=10.0,  # a question never goes to a server that has vanished
        on_release=cancel,  # also after an exception: the reader left, or was cancelled
        drain_until=is_last,  # words that were on their way never reach the next question
        drain_timeout=10.0,  # a server that takes longer for that loses the connection
    )


async def ask(pool: WebsocketConnectionPool, question: str) -> AsyncGenerator[str, None]:
    """Give the answer's words; close it, by `aclosing`, to give the connection back."""
    event_id = uuid.uuid4().hex
    item = {"type": "message", "role": "user"}
    content = [{"type": "input_text", "text": question}]
    # The server keeps a conversation with the connection. This question is no part of it, or the
    # next borrower's answer would know of it.
    response = {"conversation": "none", "input": [item | {"content": content}]}
    async with pool.get_connection() as connection:
        create = {"type": "response.create", "event_id": event_id, "response": response}
        await connection.send_json(create)
        while True:
            event = await connection.recv_json()
            match event["type"]:
                case "response.created":
                    connection.context = event["response"]["id"]  # is being written
                case "response.output_text.delta":
                    yield event["delta"]
                case "response.done":
                    connection.context = None
                    if (status := event["response"]["status"]) != "completed":
                        raise RuntimeError(f"the answer is {status}")
                    return
                # Another's error is that of a cancel which came when its response had just ended.
                case "error" if event["error"]["event_id"] == event_id:
                    await connection.close()  # no response.done will say that it is clean
                    raise RuntimeError(event["error"]["message"])


async def stand_in(peer: Peer) -> None:
    """Play the server: write a word every 20 ms until something comes."""

    async def tell(kind: str, **more: Any) -> None:
        await peer.send(json.dumps({"type": kind} | more))

    async for message in peer.websocket:
        if json.loads(message.data)["type"] == "response.cancel":
            await tell("error", error={"event_id": None, "message": "nothing to cancel"})
            continue
        status = "completed"
        await tell("response.created", response={"id": "resp_1"})
        for word in "A pool lends its connections one by one, and takes them back.".split():
            await tell("response.output_text.delta", delta=word)
            try:
                await peer.websocket.receive(timeout=0.02)
            except TimeoutError:
                continue
            status = "cancelled"
            break
        await tell("response.done", response={"id": "resp_1", "status": status})


async def main(uri: str | None = None) -> None:
    async with Server(stand_in) as server, make_pool(uri or server.uri) as pool:
        for most in (99, 3, 99):
            async with aclosing(ask(pool, "What is a pool?")) as words:
                async for word in words:
                    print(word, end=" ", flush=True)
                    if (most := most - 1) == 0:
                        break
            print("…" if most == 0 else "")
        print(f"{pool.stats.borrows} answers over {pool.stats.dials} connections")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
