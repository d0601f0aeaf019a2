"""The guides to servers of tasks: each runs as it is, and keeps its promises in the bad moments.

Here the test plays the server: `Script` hands it what the clients say, one message at a time, and
the test answers when it suits the story.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from tests.conftest import until
from tests.docs.test_examples import load, run
from wspool import ConnectionUnavailableError, StreamSnapshot, WebsocketConnectionPool
from wspool.testing import Peer, Server

pytestmark = pytest.mark.once

NET = 10.0
"""Seconds after which something that must happen has not happened."""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("speech_to_text.py", r"stream 2 broke off(.|\n)*10 streams over 3 connections"),
        ("json_rpc.py", r"block 0x12\nten requests:( 0x10){10}\nover 1 connection\."),
        ("llm_stream.py", r"them back\. \nA pool lends …\nA (.*) back\. \n3 answers over [12] "),
        ("short_lived_tokens.py", r"connection [2-4]\nNo connection(.*) 1 attempt(.*)answered 401"),
    ],
    ids=["speech_to_text", "json_rpc", "llm_stream", "short_lived_tokens"],
)
async def test_a_guide_runs_without_a_server_of_ones_own(name: str, said: str) -> None:
    printed, complaint, status = await run(name)
    assert status == 0, complaint
    assert "Traceback" not in complaint
    assert re.search(said, printed), printed


class Script:
    """A server whose part the test plays: what it hears waits until the test asks for it."""

    def __init__(self) -> None:
        self._heard: asyncio.Queue[tuple[Peer, Any]] = asyncio.Queue()

    async def serve(self, peer: Peer) -> None:
        async for message in peer.websocket:
            is_text = isinstance(message.data, str)
            heard = json.loads(message.data) if is_text else message.data
            self._heard.put_nowait((peer, heard))

    async def hears(self) -> tuple[Peer, Any]:
        """Return the next message that a client sends, and where it came from."""
        async with asyncio.timeout(NET):
            return await self._heard.get()

    @property
    def is_silent(self) -> bool:
        return self._heard.empty()


@pytest.fixture
def script(server: Server) -> Script:
    script = Script()
    server.handler = script.serve
    return script


async def tell(peer: Peer, message: Any) -> None:
    await peer.send(json.dumps(message))


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()


# Speech to text.


async def say(*words: str) -> AsyncIterator[bytes]:
    for word in words:
        yield word.encode()


def speech_event(event: str, text: str = "", *, is_sentence: bool = True) -> dict[str, Any]:
    output = {"sentence": {"text": text, "sentence_end": is_sentence}}
    return {"header": {"event": event, "error_message": text}, "payload": {"output": output}}


async def test_ten_streams_take_three_handshakes_and_each_hears_itself(server: Server) -> None:
    """The server says everything late, behind `finish-task`; some streams leave before that."""
    mistakes: list[Any] = []

    async def recognize(peer: Peer) -> None:
        task, audio = "", []
        async for message in peer.websocket:
            if isinstance(message.data, bytes):
                audio.append(message.data.decode())
                continue
            order = json.loads(message.data)["header"]
            if (order["action"] == "run-task") is bool(task):
                mistakes.append((task, order))
            if order["action"] == "run-task":
                task, audio = order["task_id"], []
                await tell(peer, speech_event("task-started"))
            else:
                if order["task_id"] != task:
                    mistakes.append((task, order))
                for word in audio:
                    await tell(peer, speech_event("result-generated", word, is_sentence=False))
                    await tell(peer, speech_event("result-generated", word))
                    await asyncio.sleep(0)
                await tell(peer, speech_event("task-finished"))
                task = ""

    server.handler = recognize
    guide = load("speech_to_text")
    may_leave = asyncio.Event()

    async def speech(stream: int) -> AsyncIterator[bytes]:
        yield f"{stream} first".encode()
        if stream in leaving:
            may_leave.set()
            await asyncio.Event().wait()
        yield f"{stream} then".encode()

    leaving = {2}
    async with guide.make_pool(server.uri) as pool:
        streams = {n: asyncio.create_task(guide.transcribe(pool, speech(n))) for n in range(10)}
        await may_leave.wait()
        for stream in leaving:
            await cancelled(streams.pop(stream))
        heard = dict(zip(streams, await asyncio.gather(*streams.values()), strict=True))
        await until(lambda: not pool.pending_connections, "the task that was left is over")
        assert pool.available_connections == 3
    assert heard == {stream: [f"{stream} first", f"{stream} then"] for stream in streams}
    assert mistakes == []
    assert len(server.requests) == server.most_open == 3


async def test_late_results_of_a_cancelled_stream_never_reach_the_next(
    server: Server, script: Script
) -> None:
    guide = load("speech_to_text")
    async with guide.make_pool(server.uri) as pool:
        pool.resize(1)
        left = asyncio.create_task(guide.transcribe(pool, endless()))
        peer, order = await script.hears()
        assert order["header"]["action"] == "run-task"
        await tell(peer, speech_event("task-started"))
        assert (await script.hears())[1] == b"..."
        await cancelled(left)
        _, finish = await script.hears()
        assert finish["header"] == order["header"] | {"action": "finish-task"}

        following = asyncio.create_task(guide.transcribe(pool, say("mine")))
        for _ in range(3):
            await tell(peer, speech_event("result-generated", "somebody else's"))
        await until(lambda: pool.stats.drained_messages == 3, "they are drained")
        assert script.is_silent, "the next stream waits for the last message"
        await tell(peer, speech_event("task-finished"))

        same, order = await script.hears()
        assert (same, order["header"]["action"]) == (peer, "run-task")
        await tell(peer, speech_event("task-started"))
        assert (await script.hears())[1] == b"mine"
        assert (await script.hears())[1]["header"]["action"] == "finish-task"
        await tell(peer, speech_event("result-generated", "mine"))
        await tell(peer, speech_event("task-finished"))
        assert await following == ["mine"]


async def endless() -> AsyncIterator[bytes]:
    yield b"..."
    await asyncio.Event().wait()


async def test_a_failed_speech_task_costs_its_connection_only(
    server: Server, script: Script
) -> None:
    guide = load("speech_to_text")
    async with guide.make_pool(server.uri) as pool:
        failing = asyncio.create_task(guide.transcribe(pool, endless()))
        peer, _ = await script.hears()
        await tell(peer, speech_event("task-failed", "no such model"))
        await peer.close(1007)
        with pytest.raises(ExceptionGroup) as raised:
            await failing
        assert raised.group_contains(RuntimeError, match="no such model")
        await until(lambda: not pool.connections, "its connection is gone")


# JSON-RPC.


def push(number: int, name: str = "0xcd") -> dict[str, Any]:
    return {"method": "eth_subscription", "params": {"subscription": name, "result": number}}


async def rpc_pool(guide: Any, server: Server, late: list[Any]) -> WebsocketConnectionPool:
    pool: WebsocketConnectionPool = guide.make_pool(server.uri, late)
    pool.resize(1)
    await pool.start()
    return pool


def streams_of(pool: WebsocketConnectionPool) -> list[StreamSnapshot]:
    return [stream for shown in pool.snapshot().connections for stream in shown.streams]


async def test_a_reply_is_known_by_its_id(server: Server, script: Script) -> None:
    """Two requests at a time on one connection, which are answered the other way round."""
    guide = load("json_rpc")
    async with await rpc_pool(guide, server, []) as pool:
        asked = [
            asyncio.create_task(guide.request(pool, "eth_blockNumber", which))
            for which in ("latest", "earliest")
        ]
        orders = [await script.hears() for _ in asked]
        for (_, order), which in zip(orders, ("latest", "earliest"), strict=True):
            assert (order["method"], order["params"]) == ("eth_blockNumber", [which])
        await tell(orders[0][0], push(1))
        for peer, order in reversed(orders):
            await tell(peer, {"id": order["id"], "result": order["params"][0]})
        assert [await task for task in asked] == ["latest", "earliest"]
        assert len(server.requests) == 1
        assert pool.available_connections == 1, "it is clean at once"


async def test_an_error_as_the_answer_costs_no_connection(server: Server, script: Script) -> None:
    guide = load("json_rpc")
    async with await rpc_pool(guide, server, []) as pool:
        asked = asyncio.create_task(guide.request(pool, "eth_coinage"))
        peer, order = await script.hears()
        await tell(peer, {"id": order["id"], "error": {"code": -32601, "message": "unknown"}})
        with pytest.raises(RuntimeError, match="eth_coinage: unknown"):
            await asked
        assert pool.available_connections == 1


async def test_the_late_reply_of_a_cancelled_request_is_drained(
    server: Server, script: Script
) -> None:
    guide = load("json_rpc")
    late: list[Any] = []
    async with await rpc_pool(guide, server, late) as pool:
        asked = asyncio.create_task(guide.request(pool, "eth_call"))
        peer, order = await script.hears()
        await cancelled(asked)
        assert [stream.state for stream in streams_of(pool)] == ["draining"]
        await tell(peer, {"id": order["id"], "result": "late"})
        await until(lambda: pool.available_connections, "the connection is clean")
        assert [json.loads(message)["result"] for message in late] == ["late"]


async def test_pushes_after_a_subscription_go_to_on_drained_and_to_no_borrower(
    server: Server, script: Script
) -> None:
    """Its slot is held until the server has confirmed that it is silent; others go on meanwhile."""
    guide = load("json_rpc")
    late: list[Any] = []
    async with await rpc_pool(guide, server, late) as pool:
        async with aclosing(guide.subscribe(pool, "newHeads")) as heads:
            first = asyncio.create_task(anext(heads))
            peer, order = await script.hears()
            await tell(peer, push(1))  # before the client knows the name
            await tell(peer, {"id": order["id"], "result": "0xcd"})
            assert await first == 1
        _, order = await script.hears()
        assert (order["method"], order["params"]) == ("eth_unsubscribe", ["0xcd"])
        following = asyncio.create_task(guide.request(pool, "eth_blockNumber"))
        for number in (2, 3):
            await tell(peer, push(number))
        await until(lambda: len(late) == 2, "they are drained")
        same, other = await script.hears()
        assert (same, other["method"]) == (peer, "eth_blockNumber")
        await tell(peer, {"id": other["id"], "result": "0x10"})
        assert await following == "0x10"
        assert [stream.state for stream in streams_of(pool)] == ["draining"]
        await tell(peer, {"id": order["id"], "result": True})
        await until(lambda: pool.available_connections, "it has drained")
    assert [json.loads(message) for message in late[:2]] == [push(2), push(3)]
    assert len(server.requests) == 1


async def test_whoever_leaves_before_the_subscription_has_a_name_ends_it_nevertheless(
    server: Server, script: Script
) -> None:
    guide = load("json_rpc")
    async with await rpc_pool(guide, server, []) as pool:
        first = asyncio.create_task(anext(guide.subscribe(pool, "newHeads")))
        peer, order = await script.hears()
        first.cancel()
        await asyncio.sleep(0)
        await tell(peer, {"id": order["id"], "result": "0xcd"})
        _, order = await script.hears()
        assert (order["method"], order["params"]) == ("eth_unsubscribe", ["0xcd"])
        await tell(peer, {"id": order["id"], "result": True})
        await asyncio.wait([first])
        assert first.cancelled()
        await until(lambda: pool.available_connections, "the connection is clean")
    assert len(server.requests) == 1


async def test_an_idle_connection_is_kept_alive_by_a_request(
    server: Server, script: Script
) -> None:
    guide = load("json_rpc")
    pool = guide.make_pool(server.uri, [])
    pool._router.options.keepalive_interval = 0.01
    async with pool:
        peer, order = await script.hears()
        assert order["method"] == "net_version"
        await tell(peer, {"id": order["id"], "result": "1"})
        await until(lambda: pool.available_connections, "it is idle again")


# A language model.


def delta(word: str) -> dict[str, Any]:
    return {"type": "response.output_text.delta", "delta": word}


def done(status: str) -> dict[str, Any]:
    return {"type": "response.done", "response": {"id": "resp_1", "status": status}}


async def write(peer: Peer, *words: str) -> None:
    await tell(peer, {"type": "response.created", "response": {"id": "resp_1"}})
    for word in words:
        await tell(peer, delta(word))


async def words_of(answer: AsyncIterator[str]) -> list[str]:
    return [word async for word in answer]


async def by_leaving(guide: Any, pool: WebsocketConnectionPool, script: Script) -> Peer:
    async with aclosing(guide.ask(pool, "why?")) as answer:
        first = asyncio.create_task(anext(answer))
        peer, _ = await script.hears()
        await write(peer, "because")
        assert await first == "because"
    return peer


async def by_cancellation(guide: Any, pool: WebsocketConnectionPool, script: Script) -> Peer:
    reading = asyncio.create_task(words_of(guide.ask(pool, "why?")))
    peer, _ = await script.hears()
    await write(peer, "because")
    [connection] = pool.connections
    await until(lambda: connection.context == "resp_1", "the response is known")
    await cancelled(reading)
    return peer


@pytest.fixture
async def model(server: Server) -> AsyncIterator[tuple[Any, WebsocketConnectionPool]]:
    """The guide, and its pool, with one connection at most."""
    guide = load("llm_stream")
    async with guide.make_pool(server.uri) as pool:
        pool.resize(1)
        yield guide, pool


Leave = Callable[[Any, WebsocketConnectionPool, Script], Awaitable[Peer]]


@pytest.mark.parametrize("leave", [by_leaving, by_cancellation])
async def test_an_answer_that_nobody_reads_to_its_end_is_cancelled(
    server: Server, script: Script, model: tuple[Any, WebsocketConnectionPool], leave: Leave
) -> None:
    """What the server wrote meanwhile never reaches the next question, on the same connection."""
    guide, pool = model
    peer = await leave(guide, pool, script)
    _, order = await script.hears()
    assert order == {"type": "response.cancel", "response_id": "resp_1"}
    following = asyncio.create_task(words_of(guide.ask(pool, "and then?")))
    await tell(peer, delta("it"))
    await tell(peer, delta("was"))
    await until(lambda: pool.stats.drained_messages == 2, "they are drained")
    assert script.is_silent, "the next question waits"
    await tell(peer, done("cancelled"))

    same, order = await script.hears()
    assert (same, order["type"]) == (peer, "response.create")
    await write(peer, "nothing")
    await tell(peer, done("completed"))
    assert await following == ["nothing"]
    assert len(server.requests) == 1


async def test_an_answer_that_was_read_is_not_cancelled(
    script: Script, model: tuple[Any, WebsocketConnectionPool]
) -> None:
    guide, pool = model
    for _ in range(2):
        asked = asyncio.create_task(words_of(guide.ask(pool, "why?")))
        peer, order = await script.hears()
        assert order["type"] == "response.create"
        await write(peer, "because")
        await tell(peer, done("completed"))
        assert await asked == ["because"]
        await until(lambda: pool.available_connections, "the connection is clean")


async def test_a_question_that_was_left_before_its_response_began_is_drained(
    script: Script, model: tuple[Any, WebsocketConnectionPool]
) -> None:
    guide, pool = model
    asked = asyncio.create_task(words_of(guide.ask(pool, "why?")))
    peer, _ = await script.hears()
    await cancelled(asked)
    await write(peer, "because")
    assert pool.pending_connections == 1
    await tell(peer, done("completed"))
    await until(lambda: pool.available_connections, "the connection is clean")
    assert script.is_silent, "there was no response to cancel yet"


async def test_the_error_of_a_cancel_that_came_too_late_does_not_harm_the_next_answer(
    script: Script, model: tuple[Any, WebsocketConnectionPool]
) -> None:
    """The response's end and its cancel cross: the server answers both."""
    guide, pool = model
    peer = await by_leaving(guide, pool, script)
    await tell(peer, done("completed"))
    assert (await script.hears())[1]["type"] == "response.cancel"
    following = asyncio.create_task(words_of(guide.ask(pool, "and then?")))
    assert (await script.hears())[1]["type"] == "response.create"
    await tell(peer, {"type": "error", "error": {"event_id": None, "message": "too late"}})
    await write(peer, "nothing")
    await tell(peer, done("completed"))
    assert await following == ["nothing"]


async def test_a_question_that_is_refused_costs_the_connection(
    script: Script, model: tuple[Any, WebsocketConnectionPool]
) -> None:
    guide, pool = model
    asked = asyncio.create_task(words_of(guide.ask(pool, "why?")))
    peer, order = await script.hears()
    await tell(
        peer, {"type": "error", "error": {"event_id": order["event_id"], "message": "too long"}}
    )
    with pytest.raises(RuntimeError, match="too long"):
        await asked
    await until(lambda: not pool.connections, "the connection is gone")


# Short-lived tokens.


class Watched:
    """The guide's service, which notes what each handshake came with."""

    def __init__(self, guide: Any) -> None:
        self.service = guide.StandIn()
        self.handshakes: list[tuple[str, str]] = []
        # Answered, one by one, instead of what was asked for at this path.
        self.refusals: dict[str, list[int]] = {}
        self.service.app.middlewares.append(self.watch)

    @web.middleware
    async def watch(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if request.path == "/stream":
            self.handshakes.append((request.query["signature"], request.headers["Authorization"]))
        if refusals := self.refusals.get(request.path):
            return web.Response(status=refusals.pop(0))
        return await handler(request)  # type: ignore[no-any-return]


Tokens = tuple[Watched, Any, WebsocketConnectionPool]


@pytest.fixture
async def tokens(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Tokens]:
    """The service, the guide's access to it and its pool, which tries again at once."""
    monkeypatch.setattr("backoff.full_jitter", lambda _: 0.0)
    guide = load("short_lived_tokens")
    watched = Watched(guide)
    async with TestServer(watched.service.app) as server, ClientSession() as session:
        access = guide.Access(session, str(server.make_url("/")))
        async with guide.make_pool(session, access) as pool:
            yield watched, access, pool


async def test_each_handshake_has_a_url_and_a_token_of_its_own(tokens: Tokens) -> None:
    watched, _, pool = tokens
    async with pool.get_connection(), pool.get_connection():
        pass
    async with pool.get_connection():
        pass
    for used in map(set, zip(*watched.handshakes, strict=True)):
        assert len(used) == 2, "and one more for each new connection, none for a reused one"


async def test_a_retry_has_a_url_and_a_token_of_its_own(tokens: Tokens) -> None:
    watched, _, pool = tokens
    watched.refusals = {"/stream": [503]}
    async with pool.get_connection() as connection:
        await connection.send("hello")
        assert await connection.recv() == "hello"
    for used in map(set, zip(*watched.handshakes, strict=True)):
        assert len(used) == 2


@pytest.mark.parametrize("path", ["/sign", "/token"])
async def test_what_fails_before_the_handshake_fails_the_dial_like_the_handshake(
    tokens: Tokens, path: str
) -> None:
    """503 is tried again, 401 is not."""
    watched, _, pool = tokens
    watched.refusals = {path: [401, 503]}
    with pytest.raises(ConnectionUnavailableError) as refused:
        await pool.acquire()
    assert (refused.value.status, refused.value.attempts) == (401, 1)
    async with pool.get_connection() as connection:
        assert connection.is_connected
    assert len(watched.handshakes) == 1


async def test_an_expired_token_is_refused_and_not_tried_again(tokens: Tokens) -> None:
    """The next borrower's dial has a fresh one."""
    watched, access, pool = tokens
    handed_out = access.headers

    async def expired() -> dict[str, str]:
        headers: dict[str, str] = await handed_out()
        watched.service.tokens[headers["Authorization"].removeprefix("Bearer ")] = 0.0
        return headers

    pool._router.options.headers = expired
    with pytest.raises(ConnectionUnavailableError, match="answered 401") as refused:
        await pool.acquire()
    assert (refused.value.status, refused.value.attempts) == (401, 1)
    signature, token = watched.handshakes[0]
    shown = f"{refused.value!r} {refused.value.__cause__!r} {refused.value.__cause__}"
    assert signature not in shown
    assert token.removeprefix("Bearer ") not in shown

    pool._router.options.headers = handed_out
    async with pool.get_connection() as connection:
        assert connection.is_connected
    assert len(watched.handshakes) == len(set(watched.handshakes)) == 2


async def test_a_signed_url_opens_one_connection(tokens: Tokens) -> None:
    """With the URL itself in the place of the callable, the second dial is refused."""
    _, access, _ = tokens
    url = await access.uri()
    pool = WebsocketConnectionPool(uri=url, headers=access.headers, session=access.session)
    async with pool, pool.get_connection():
        with pytest.raises(ConnectionUnavailableError) as refused:
            await pool.acquire()
    assert refused.value.status == 403
