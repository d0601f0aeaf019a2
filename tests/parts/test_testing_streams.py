"""A scripted server whose connections are shared runs a handler for each stream."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.conftest import MakePool, until
from tests.parts.test_testing import Client, close_code, connected, fail_in
from wspool.testing import Peer, PeerStream, Server, Streams


async def ask(client: Client, **question: Any) -> None:
    await client.send_json(question)


async def hear(client: Client) -> Any:
    return json.loads(await client.receive_str())


async def repeat(stream: PeerStream) -> None:
    """Answer each message of a stream, up to the one that says that it is the last."""
    async for message in stream:
        said = json.loads(message)
        await stream.send_json({"id": stream.key, "n": said["n"]})
        if said.get("last"):
            return


async def test_answers_come_in_any_order() -> None:
    order = {2: asyncio.Event(), 1: asyncio.Event()}

    async def answer(stream: PeerStream) -> None:
        question = await stream.recv_json()
        await order[question["id"]].wait()
        await stream.send_json({"id": stream.key})

    async with Server(Streams(answer, "id")) as server, connected(server) as client:
        for number in (1, 2):
            await ask(client, id=number)
        for number, event in order.items():
            event.set()
            assert await hear(client) == {"id": number}


async def test_a_stream_has_the_messages_of_its_key_and_a_connection_its_own_streams() -> None:
    streams = Streams(repeat, ("params.name", "id"))
    async with Server(streams) as server, connected(server) as a, connected(server) as b:
        for n in range(3):
            for key in ("x", "y"):
                await ask(a, params={"name": key}, n=n)
        await ask(b, id="x", n=9)
        heard = [await hear(a) for _ in range(6)]
        assert [[m["n"] for m in heard if m["id"] == key] for key in "xy"] == [[0, 1, 2]] * 2
        assert await hear(b) == {"id": "x", "n": 9}
    assert sorted(map(str, streams.keys)) == ["x", "x", "y"]
    assert (streams.most_open, streams.refused) == (2, 0)


async def test_a_key_begins_a_new_stream_when_the_handler_has_returned() -> None:
    streams = Streams(repeat, "id", max_streams=1)
    async with Server(streams) as server, connected(server) as client:
        for n in range(3):
            await ask(client, id=7, n=n, last=True)
            assert await hear(client) == {"id": 7, "n": n}
    assert (streams.keys, streams.most_open, streams.refused) == ([7, 7, 7], 1, 0)


async def test_a_late_message_that_is_answered_at_once_takes_no_place() -> None:
    """It begins a stream again, which is over before the next message is read."""
    streams = Streams(repeat, "id", max_streams=1)
    async with Server(streams) as server, connected(server) as client:
        for key in (1, 1, 2, 1, 3):
            await ask(client, id=key, n=0, last=True)
        assert [(await hear(client))["id"] for _ in range(5)] == [1, 1, 2, 1, 3]
    assert (streams.keys, streams.refused) == ([1, 1, 2, 1, 3], 0)


async def test_one_stream_too_many_closes_its_connection() -> None:
    streams = Streams(repeat, "id", max_streams=2)
    async with Server(streams) as server, connected(server) as client, connected(server) as other:
        await ask(other, id=1, n=1)
        for key in (1, 2):
            await ask(client, id=key, n=1)
            assert await hear(client) == {"id": key, "n": 1}
        await ask(client, id=3, n=1)
        assert await close_code(client) == 1008
        assert await hear(other) == {"id": 1, "n": 1}
    assert (streams.most_open, streams.refused) == (2, 1)


async def test_a_handler_closes_the_connection_and_pushes_on_it() -> None:
    async def once(stream: PeerStream) -> None:
        await stream.recv()
        await stream.peer.send_json({"pushed": True})
        await stream.recv()
        await stream.peer.close(4409, f"Subscriber for {stream.key} already exists")

    async with Server(Streams(once, "id")) as server, connected(server) as client:
        await ask(client, id="a")
        assert await hear(client) == {"pushed": True}
        await ask(client, id="b")
        await hear(client)
        await ask(client, id="a")
        assert await close_code(client) == 4409


async def test_it_serves_after_a_greeting() -> None:
    streams = Streams(repeat, "id")

    async def greet(peer: Peer) -> None:
        await peer.expect("hello")
        await streams(peer)

    async with Server(greet) as server, connected(server) as client:
        await client.send_str("hello")
        await ask(client, id=1, n=1)
        assert await hear(client) == {"id": 1, "n": 1}


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ('{"id": 1}', "expected 'hello', received '{\"id\": 1}'"),
        ('{"n": 1}', "the route 'id' finds no key in '{\"n\": 1}'"),
    ],
    ids=["what a handler raises", "a message without a key"],
)
async def test_what_goes_wrong_fails_the_test(message: str, said: str) -> None:
    server = Server(Streams(lambda stream: stream.expect("hello"), "id"))
    with pytest.raises(AssertionError) as failed:
        await fail_in(server, message)
    assert str(failed.value) == said
    assert failed.value.__notes__ == ["This was in the server's handler of connection 1."]


async def test_handlers_end_with_their_client_and_that_is_no_failure() -> None:
    ends: list[str] = []

    async def sleep_or_flood(stream: PeerStream) -> None:
        try:
            await asyncio.sleep(3600) if stream.key == "sleep" else await stream.recv()
            while True:
                await stream.send("x" * 100_000)
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise
        except ConnectionError:
            ends.append("gone")
            raise

    async with Server(Streams(sleep_or_flood, "id")) as server:
        async with connected(server) as client:
            for key in ("sleep", "flood"):
                await ask(client, id=key)
            await client.receive()
        await until(lambda: len(ends) == 2, "both have ended")
    assert "cancelled" in ends


@pytest.mark.parametrize(("route", "kind"), [("", ValueError), (7, TypeError)])
def test_what_is_no_route_is_refused(route: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="route is"):
        Streams(repeat, route)


async def test_a_pool_with_as_many_streams_is_never_refused(make_pool: MakePool) -> None:
    async def answer_late(stream: PeerStream) -> None:
        await asyncio.sleep(0.001)
        await repeat(stream)

    streams = Streams(answer_late, "id", max_streams=4)
    async with Server(streams) as server:
        pool = make_pool(
            uri=server.uri, max_connections=2, max_streams=4, route="id", acquire_timeout=None
        )

        async def call(n: int) -> None:
            async with pool.get_stream() as stream:
                await stream.send_json({"id": stream.claim(), "n": n, "last": True})
                assert (await stream.recv_json())["n"] == n

        await asyncio.gather(*map(call, range(100)))
    assert (streams.most_open, streams.refused) == (4, 0)
