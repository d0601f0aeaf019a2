"""A scripted WebSocket server, for the tests of a program that talks to one.

    async def greet(peer):
        await peer.expect("hello")
        await peer.send("good day")

    async with Server(greet) as server:
        ...  # what is tested, with server.uri

It is a real server, aiohttp's, on loopback. It knows nothing of pools, and of no test framework:
`wspool.pytest_plugin` has fixtures.

Where many streams share a connection, a handler is of one stream:

    async def answer(stream):
        question = await stream.recv_json()
        await stream.send_json({"id": stream.key, "result": question["params"]})

    async with Server(Streams(answer, route="id", max_streams=5)) as server:
        ...  # what is tested, with server.uri

What a real server says can be written down once, and played from then on:

    async with Server(record("wss://example.com/", "turns.jsonl")) as server:
        ...  # what is tested, with server.uri, and with a network

    async with Server(replay("turns.jsonl")) as server:
        ...  # the same without
"""

from __future__ import annotations

from wspool._testing.recording import record
from wspool._testing.replaying import replay
from wspool._testing.server import Handler, Peer, Server, echo
from wspool._testing.streams import PeerStream, StreamHandler, Streams

__all__ = [
    "Handler",
    "Peer",
    "PeerStream",
    "Server",
    "StreamHandler",
    "Streams",
    "echo",
    "record",
    "replay",
]

for _public in (Peer, PeerStream, Server, Streams, echo, record, replay):
    _public.__module__ = __name__
