"""Speech tasks over few connections: with a named last message all of them are used again.

The dialogue is that of DashScope's speech services. `run-task` is answered by `task-started`,
partial results and `task-finished`; a task that streams both ways ends only after the client's
`finish-task`. After `task-failed` the server closes. Every message carries the id of its task.

There are a thousand tasks; ten thousand with `make test-all`.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterable

import pytest
from aiohttp import WSMsgType

from tests import IS_WHOLE
from tests.conftest import MakePool, until
from tests.support.inside import ids_of
from wspool import CloseReason, State, WebsocketConnection, WebsocketConnectionPool
from wspool.testing import Peer, Server

TASKS = 10_000 if IS_WHOLE else 1000
CONNECTIONS = 4
BORROWERS = 12

RESULTS = 2
"""Partial results before `finish-task`, and as many after it."""

LEAVE_EVERY = 9
"""One borrower in so many leaves half-way: a tenth, and some more that may be too late for it."""

NET = 30.0 + TASKS / 100
"""Seconds after which something that must end by itself has not ended."""

Message = str | bytes


class Left(Exception):
    """What a borrower leaves by that does not read to the end."""


def by_exception() -> None:
    raise Left


def by_cancellation() -> None:
    """Go on, and be cancelled in the next tick, whatever arrives in it."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().call_soon(task.cancel)


def event(message: Message) -> str:
    return str(json.loads(message)["event"])


def task_of(message: Message) -> str:
    return str(json.loads(message)["task_id"])


def is_finished(message: Message) -> bool:
    return event(message) == "task-finished"


def is_no_failure(message: Message) -> bool:
    return event(message) != "task-failed"


class SpeechServer:
    """Does one task at a time on each connection, and notes the mistakes of its clients.

    The tasks in `failing` fail; then it closes the connection, or goes on as if nothing was.
    """

    def __init__(
        self, *, is_duplex: bool, failing: Iterable[str] = (), closes_after_failure: bool = True
    ) -> None:
        self.is_duplex = is_duplex
        self.failing = frozenset(failing)
        self.closes_after_failure = closes_after_failure
        self.sent = 0
        self.mistakes: list[str] = []

    async def serve(self, peer: Peer) -> None:
        while (order := await self._next_order(peer)) is not None:
            action, task_id = order["action"], order["task_id"]
            if action != "run-task" or peer.received:
                self.mistakes.append(f"{action} for task {task_id} after {peer.received}")
            await self._run(peer, task_id)

    async def _run(self, peer: Peer, task_id: str) -> None:
        await self._send(peer, "task-started", task_id)
        for _ in range(RESULTS):
            await self._send(peer, "result-generated", task_id)
        if task_id in self.failing:
            peer.received.append(f"the failure of {task_id}")
            await self._send(peer, "task-failed", task_id)
            if self.closes_after_failure:
                await peer.close(1007, "the task has failed")
                return
        elif self.is_duplex:
            order = await self._next_order(peer)
            if order != {"action": "finish-task", "task_id": task_id}:
                self.mistakes.append(f"{order} in task {task_id}")
        for _ in range(RESULTS):
            await self._send(peer, "result-generated", task_id)
        await self._send(peer, "task-finished", task_id)

    async def _next_order(self, peer: Peer) -> dict[str, str] | None:
        frame = await peer.websocket.receive()
        return json.loads(frame.data) if frame.type is WSMsgType.TEXT else None

    async def _send(self, peer: Peer, event: str, task_id: str) -> None:
        """Send a message and let the client have a tick of its own with it."""
        self.sent += 1
        await peer.send(json.dumps({"event": event, "task_id": task_id}))
        await asyncio.sleep(0)


class Clients:
    """Borrowers that run tasks.

    `foreign` are the messages that a borrower has read of another's task: his own and the message.
    """

    def __init__(self, *, is_duplex: bool) -> None:
        self.is_duplex = is_duplex
        self.read = 0
        self.foreign: list[tuple[str, dict[str, str]]] = []
        self.finished: set[str] = set()
        # Who had each task; what each connection, by its id, is to be told to finish.
        self.connections: dict[str, WebsocketConnection] = {}
        self._unfinished: dict[int, str] = {}

    async def run(
        self,
        pool: WebsocketConnectionPool,
        task_id: str,
        leave: Callable[[], None] | None = None,
        after: int = 0,
    ) -> None:
        """Run a task to its end, or leave after so many messages."""
        try:
            async with pool.get_connection() as connection:
                await self._talk(connection, task_id, leave, after)
        except (Left, asyncio.CancelledError):
            if leave is None:
                raise

    async def _talk(
        self,
        connection: WebsocketConnection,
        task_id: str,
        leave: Callable[[], None] | None,
        after: int,
    ) -> None:
        self.connections[task_id] = connection
        await connection.send_json({"action": "run-task", "task_id": task_id})
        if self.is_duplex:
            self._unfinished[connection.id] = task_id
        for count in range(2 * RESULTS + 2):
            if count == 1 + RESULTS:
                await self.finish(connection)
            if count == after and leave is not None:
                leave()
            message = await connection.recv_json()
            self.read += 1
            if message["task_id"] != task_id:
                self.foreign.append((task_id, message))
            if message["event"] == "task-failed":
                raise Left
        self.finished.add(task_id)

    async def finish(self, connection: WebsocketConnection) -> None:
        """Tell the server that its client has no more to say, unless it knows; also a hook."""
        task_id = self._unfinished.pop(connection.id, None)
        if task_id is not None:
            await connection.send_json({"action": "finish-task", "task_id": task_id})

    async def run_all(self, pool: WebsocketConnectionPool) -> None:
        """Run all the tasks; one borrower in `LEAVE_EVERY` leaves half-way, in one way or other."""
        rng = random.Random(1)
        numbers = iter(range(TASKS))

        async def run_next_ones() -> None:
            for number in numbers:
                if number % LEAVE_EVERY:
                    await self.run(pool, f"task {number}")
                else:
                    leave = rng.choice([by_exception, by_cancellation])
                    after = rng.randrange(2 * RESULTS)
                    run = self.run(pool, f"task {number}", leave, after)
                    await asyncio.wait({asyncio.create_task(run)})

        async with asyncio.timeout(NET), asyncio.TaskGroup() as group:
            for _ in range(BORROWERS):
                group.create_task(run_next_ones())


@pytest.mark.parametrize("is_duplex", [False, True], ids=["one way", "both ways"])
async def test_no_task_costs_a_handshake_and_no_borrower_reads_of_anothers_task(
    server: Server, make_pool: MakePool, is_duplex: bool
) -> None:
    """A tenth of the borrowers leave half-way; what trails is drained, up to its last message.

    The server comes to the last message by itself, or `on_release` has told it to.
    """
    speech, clients = SpeechServer(is_duplex=is_duplex), Clients(is_duplex=is_duplex)
    server.handler = speech.serve
    drained: list[str] = []
    pool = make_pool(
        max_connections=CONNECTIONS,
        warmup_connections=CONNECTIONS,
        acquire_timeout=None,
        drain_until=is_finished,
        drain_condition=is_no_failure,
        on_release=clients.finish if is_duplex else None,
        on_drained=lambda _, message: drained.append(task_of(message)),
        drain_timeout=NET,
    )
    asyncio.get_running_loop().set_debug(False)  # with it, this takes ten times as long
    await pool.start()
    await clients.run_all(pool)
    await until(lambda: pool.available_connections == CONNECTIONS, "all is drained")
    assert clients.foreign == []
    assert speech.mistakes == []
    assert len(server.requests) == CONNECTIONS
    assert pool.stats.borrows == TASKS
    assert TASKS - len(clients.finished) >= TASKS // 10
    assert not clients.finished & set(drained)
    assert clients.read + len(drained) == speech.sent == TASKS * (2 * RESULTS + 2)


@pytest.mark.parametrize("is_draining", [False, True], ids=["a borrower reads it", "it is drained"])
async def test_a_failed_task_costs_its_connection_and_no_other(
    server: Server, make_pool: MakePool, is_draining: bool
) -> None:
    """Whoever reads of the failure; while it is drained, even where the server does not close."""
    tasks = [f"task {number}" for number in range(60)]
    failing = tasks[::5]
    clients = Clients(is_duplex=False)
    speech = SpeechServer(is_duplex=False, failing=failing, closes_after_failure=not is_draining)
    server.handler = speech.serve
    pool = make_pool(
        max_connections=CONNECTIONS,
        acquire_timeout=None,
        drain_until=is_finished,
        drain_condition=is_no_failure,
        drain_timeout=NET,
    )
    leave = by_exception if is_draining else None

    async def run_next_ones(ids: Iterable[str]) -> None:
        for task_id in ids:
            try:
                await clients.run(pool, task_id, leave if task_id in failing else None, after=1)
            except Left:
                assert task_id in failing

    ids = iter(tasks)
    async with asyncio.timeout(NET), asyncio.TaskGroup() as group:
        for _ in range(BORROWERS):
            group.create_task(run_next_ones(ids))
    unlucky = [clients.connections[task_id] for task_id in failing]
    await until(lambda: all(c.state is State.CLOSED for c in unlucky), "they are closed")
    lost = ids_of(unlucky)
    # A dial that nobody waits for any more, after a failure, is given up.
    given_up = pool.stats.closes[CloseReason.DIAL]
    assert len(lost) == len(failing) == pool.stats.closes.total() - given_up
    assert clients.finished == set(tasks) - set(failing)
    assert clients.foreign == []
    assert speech.mistakes == []
    await until(lambda: len(server.open) == pool.total_connections, "their sockets are gone")
    assert 0 <= len(server.requests) - len(lost) - pool.total_connections <= given_up
