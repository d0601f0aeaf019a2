"""The soak test with streams: many borrowers on each connection, and a server that mixes them up.

The server answers all that is asked on a connection at the same time, message by message, with
those of one answer between those of others. It pushes what belongs to nobody, under keys that it
chooses itself before it has said so, and has the faults and the manners of the soak test besides.

Each message says which question it belongs to, and which of its answer's it is: a borrower that
gets one of another's has a wrong reply, and one that misses one has a lost message. Where a slot is
held until its stream has drained, the server never has more of them under way than there are slots.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any, Final

from aiohttp import WSMsgType

from tests.explore.soak import (
    ANYWHERE,
    EXPECTED,
    HASTY,
    NET,
    UNRULY,
    BorrowerError,
    Scene,
    Setup,
)
from wspool import (
    ConnectionPoolExhaustedError,
    ConnectionUnavailableError,
    StreamOverflowError,
    WebsocketStream,
)
from wspool.testing import Peer

SLOTS: Final = 8
"""Streams on a connection."""

MAX_UNREAD: Final = 20_000
"""Bytes: a flood at a borrower that sleeps is more."""

BETWEEN: Final = {"delay": 10.0, "flood": 8.0, "push": 5.0, "late": 5.0}
"""Faults that touch nobody else's answer: late is what comes after the end of a whole answer."""

MANNERS: Final = UNRULY | HASTY | {"leave without sending": 5.0, "force_remove": 0.5, "sleep": 2.0}


def is_last(message: str | bytes) -> bool:
    return bool(json.loads(message).get("kind") == "last")


async def call_off(stream: WebsocketStream) -> None:
    """An `on_release` hook: let the server forget what it is at."""
    if not stream.is_clean:
        await stream.send_json({"key": stream.number, "ask": "nothing more"})


OPTIONS: Final[dict[str, Any]] = {
    "max_streams": SLOTS,
    "max_unread": MAX_UNREAD,
    "route": "key",
    # There is a soak of its own for that: tests.explore.limits.
    "learn_limit": False,
    "drain_timeout": 5.0,
}

SETUPS: Final = (
    # The last message is named, and the slot is held until it has come.
    Setup(
        "drain_until",
        0.4,
        OPTIONS | {"drain_until": is_last},
        ANYWHERE | BETWEEN,
        MANNERS | {"alone": 5.0, "two questions": 10.0},
    ),
    # The answer is called off, and all that was sent before that was heard comes before the pong.
    Setup(
        "drain_fence",
        0.35,
        OPTIONS | {"drain_fence": True, "on_release": call_off},
        ANYWHERE | BETWEEN,
        MANNERS,
    ),
    # No drain: late messages are for nobody, and the server may be at work for those who have left.
    Setup("no drain", 0.25, OPTIONS, ANYWHERE | BETWEEN, MANNERS),
)


class StreamScene(Scene):
    """One pool with streams, its server, and its borrowers."""

    setups = SETUPS

    # The server.

    async def serve(self, peer: Peer) -> None:
        # What is under way, by the key of its stream.
        answers: dict[Any, set[asyncio.Task[None]]] = {}
        self.look_at_sockets()
        try:
            async for frame in peer.websocket:
                if frame.type is not WSMsgType.TEXT:
                    continue
                asked = json.loads(frame.data)
                stream = asked.get("stream", asked["key"])
                if asked["ask"] == "nothing more":
                    for answer in answers.pop(stream, ()):
                        answer.cancel()
                    continue
                under_way = answers.setdefault(stream, set())
                answer = asyncio.create_task(self.answer_among_others(peer, asked))
                under_way.add(answer)
                answer.add_done_callback(under_way.discard)
                count = sum(any(not task.done() for task in tasks) for tasks in answers.values())
                if count > SLOTS and self.setup.name != "no drain":
                    self.tally.wrong("streams above max_streams", f"{self.setup.name}: {count}")
        except ConnectionError:
            pass  # the client was faster
        finally:
            tasks = [task for tasks in answers.values() for task in tasks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def answer_among_others(self, peer: Peer, asked: dict[str, Any]) -> None:
        with suppress(ConnectionError):
            await self.answer_by_parts(peer, asked["key"], asked["ask"])

    async def answer_by_parts(self, peer: Peer, key: Any, question: str) -> None:
        chance = self.server_random
        fault = self.pick(chance, self.setup.faults) if self.is_faulty else ""
        if fault:
            self.tally.faults[fault] += 1
        if fault == "drop":
            return peer.drop()
        if fault.startswith("close"):
            await peer.close(int(fault.removeprefix("close ")))
            return
        if fault == "delay":
            await asyncio.sleep(chance.uniform(0.0, 0.05))
        of = {"of": question}
        number = 0
        # A key that the borrower does not know yet, or its own.
        parts = f"{question}, pushed" if "subscribe" in question else key
        if parts != key:
            await peer.send_json(of | {"key": parts, "kind": "part", "number": number})
            number += 1
            await peer.send_json(of | {"key": key, "kind": "id", "id": parts})
        for _ in range(chance.randint(20, 400) if fault == "flood" else chance.randint(0, 3)):
            await peer.send_json(
                of | {"key": parts, "kind": "part", "number": number, "x": "x" * 99}
            )
            number += 1
            if chance.random() < 0.2:
                await asyncio.sleep(0)
        if fault == "push":
            await peer.send_json(of | {"kind": "for nobody"})
            await peer.send("no JSON")
        await peer.send_json(of | {"key": key, "kind": "last", "number": number})
        if fault == "late":
            await peer.send_json(of | {"key": f"{question}, unknown", "kind": "late"})
        if fault == "drop after the reply":
            peer.drop()

    # The borrowers.

    async def borrow(self, manner: str) -> None:
        timeout = self.random.choice([None, None, None, 30.0, 1.0, 0.0])
        pool: Any = self.pool
        if manner == "alone":
            async with pool.get_connection(timeout=timeout) as connection:
                await self.exchange_alone(connection)
            return
        if manner == "force_remove":
            stream = await pool.acquire_stream(timeout=timeout)
            try:
                await self.exchange(stream, manner)
            finally:
                await pool.release_stream(stream, force_remove=True)
            return
        async with pool.get_stream(timeout=timeout) as stream:
            if manner == "time out":
                async with asyncio.timeout(self.random.choice([0.0, 0.0005, 0.002, 0.02])):
                    await self.exchange(stream, manner)
            else:
                await self.exchange(stream, manner)

    def may_overflow(self, manner: str) -> bool:
        """Whether a borrower with this manner may be too slow."""
        return manner == "sleep"

    async def exchange(self, stream: Any, manner: str) -> None:
        self.tally.borrows += 1
        try:
            await self.ask_and_read(stream, manner)
        except StreamOverflowError:
            if not self.may_overflow(manner):
                raise
            self.tally.outcomes["overflowed"] += 1

    async def ask_and_read(self, stream: Any, manner: str) -> None:
        if manner == "leave without sending":
            stream.claim(f"unused {next(self.requests)}")
            return
        questions = [await self.ask(stream)]
        if manner == "two questions":
            questions.append(await self.ask(stream))
            stream.outstanding = 2
        if manner == "leave without reading":
            return
        if manner == "sleep":
            await asyncio.sleep(self.random.uniform(0.0, 0.1))
        # Which message of each answer comes next.
        due = dict.fromkeys(questions, 0)
        while due:
            message = await stream.recv_json()
            question = message["of"]
            self.tally.replies += 1
            if question not in due or message["kind"] not in ("part", "id", "last"):
                self.tally.wrong("wrong replies", f"{message} came to {questions} on {stream!r}")
                return
            if message["kind"] == "id":
                stream.claim(message["id"])
                continue
            if message["number"] != due[question]:
                self.tally.wrong("lost messages", f"{message}, not {due[question]}, on {stream!r}")
                return
            due[question] += 1
            if message["kind"] == "last":
                del due[question]
            if manner == "raise":
                raise BorrowerError
            if manner == "leave half-way":
                return

    async def ask(self, stream: Any) -> str:
        subscribes = self.random.random() < 0.1
        question = f"{'subscribe' if subscribes else 'ask'} {self.setup.name} {next(self.requests)}"
        key = stream.claim()
        await stream.send_json({"key": key, "stream": stream.number, "ask": question})
        return question

    async def exchange_alone(self, connection: Any) -> None:
        self.tally.borrows += 1
        question = f"alone {self.setup.name} {next(self.requests)}"
        await connection.send_json({"key": question, "ask": question})
        message = None
        while message is None or message["kind"] != "last":
            text = await connection.recv()
            message = json.loads(text) if text != "no JSON" else {"kind": "for nobody"}
            self.tally.replies += 1
            if message["kind"] in ("part", "last") and message["of"] != question:
                self.tally.wrong("wrong replies", f"{message} came to {question} on {connection!r}")

    # The end.

    async def count_slots(self) -> None:
        """Borrow every slot of every connection, use all, and find that there is none beside."""
        pool: Any = self.pool
        got: list[Any] = []
        places = self.max_connections * SLOTS
        try:
            async with asyncio.timeout(NET):
                for _ in range(places):
                    got.append(await pool.acquire_stream(timeout=NET))
                await asyncio.gather(*(self.exchange(stream, "") for stream in got))
        except (TimeoutError, *EXPECTED) as error:
            self.tally.wrong("unexpected errors", f"{self.setup.name}, at the end: {error!r}")
        missing = places - len({(stream.connection.id, stream.slot) for stream in got})
        self.tally.wrong("lost slots", f"{missing} of {self.pool!r}", missing)
        try:
            await pool.acquire_stream(timeout=0)
        except ConnectionPoolExhaustedError:
            pass
        except ConnectionUnavailableError as error:
            self.tally.wrong("unexpected errors", f"{self.setup.name}, at the end: {error!r}")
        else:
            self.tally.wrong("streams above max_streams", f"one too many: {self.pool!r}")
        for stream in got:
            await pool.release_stream(stream)
