#!/usr/bin/env python3
"""Speech to text: ten streams at a time over three connections, and one of them breaks off.

    python examples/speech_to_text.py [URI]

As at DashScope, a task is run-task, audio, finish-task, and ends with the server's task-finished.
Without a URI the server is `stand_in`, below, which hears audio as the text that it is.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid
from collections.abc import AsyncIterator
from typing import Any

from wspool import WebsocketConnection, WebsocketConnectionPool
from wspool.testing import Peer, Server

MODEL = {"model": "paraformer-realtime-v2", "parameters": {"format": "pcm", "sample_rate": 16000}}
TASK = {"task_group": "audio", "task": "asr", "function": "recognition", "input": {}} | MODEL


def is_last(message: str | bytes) -> bool:
    """Say what ends a task; after `task-failed` the server closes the connection instead."""
    return bool(json.loads(message)["header"]["event"] == "task-finished")


async def finish(connection: WebsocketConnection) -> None:
    """Say that there is no more audio, unless that was said."""
    task_id, connection.context = connection.context, None
    if task_id is not None:
        await order(connection, "finish-task", task_id, {"input": {}})


def make_pool(uri: str) -> WebsocketConnectionPool:
    return WebsocketConnectionPool(
        uri=uri,
        headers={"Authorization": f"Bearer {os.environ.get('API_KEY', '')}"},
        max_connections=3,  # as many as the provider allows; each does one task after the other
        acquire_timeout=60.0,  # a stream waits for its turn, instead of failing at once
        idle_timeout=50.0,  # the server closes what is idle for 60 seconds
        on_release=finish,  # or the task of a stream that broke off would go on
        drain_until=is_last,  # results that come too late never reach the next stream
        drain_timeout=30.0,  # a server that takes longer for that loses the connection
    )


async def transcribe(pool: WebsocketConnectionPool, audio: AsyncIterator[bytes]) -> list[str]:
    """Return the sentences. Errors come as an ExceptionGroup; a cancelled task costs nothing."""
    task_id = uuid.uuid4().hex
    async with pool.get_connection() as connection, asyncio.TaskGroup() as group:
        sentences = []
        connection.context = task_id  # until the server knows that there is no more audio
        await order(connection, "run-task", task_id, TASK)
        while True:
            message = await connection.recv_json()
            match message["header"]["event"]:
                case "task-started":
                    group.create_task(speak(connection, audio))  # results come meanwhile
                case "result-generated":
                    sentence = message["payload"]["output"]["sentence"]
                    if sentence["sentence_end"]:
                        sentences.append(sentence["text"])
                case "task-finished":
                    return sentences
                case "task-failed":
                    raise RuntimeError(message["header"]["error_message"])


async def speak(connection: WebsocketConnection, audio: AsyncIterator[bytes]) -> None:
    async for piece in audio:
        await connection.send(piece)
    await finish(connection)


async def order(connection: WebsocketConnection, action: str, task_id: str, payload: Any) -> None:
    header = {"action": action, "task_id": task_id, "streaming": "duplex"}
    await connection.send_json({"header": header, "payload": payload})


async def stand_in(peer: Peer) -> None:
    """Play the server."""
    async for message in peer.websocket:
        if isinstance(message.data, bytes):
            event, text = "result-generated", message.data.decode()
        else:
            is_first = json.loads(message.data)["header"]["action"] == "run-task"
            event, text = "task-started" if is_first else "task-finished", ""
        output = {"sentence": {"text": text, "sentence_end": True}}
        await peer.send(json.dumps({"header": {"event": event}, "payload": {"output": output}}))


async def main(uri: str | None = None) -> None:
    async def microphone(stream: int) -> AsyncIterator[bytes]:
        for piece in range(3):
            await asyncio.sleep(0.05)
            if stream == 2 and piece == 1:
                raise EOFError("the caller has hung up")
            yield f"{stream}.{piece}".encode()

    async def run(stream: int) -> None:
        try:
            print(f"stream {stream}: {await transcribe(pool, microphone(stream))}")
        except* EOFError:
            print(f"stream {stream} broke off")

    async with Server(stand_in) as server, make_pool(uri or server.uri) as pool:
        await asyncio.gather(*map(run, range(1, 11)))
        print(f"{pool.stats.borrows} streams over {pool.stats.dials} connections")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
