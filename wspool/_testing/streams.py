"""What a server does with a connection that many streams share: one handler for each key.

It finds the key of a message as a pool does, by a route. It knows no pool.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Final

from wspool._connection.routes import Route, check_route, sorting
from wspool._testing.server import Peer, Speaking

StreamHandler = Callable[["PeerStream"], Awaitable[None]]
"""The script for a stream: what the server does with it, from its first message to its end."""

TOO_MANY: Final = 1008
"""The code with which a connection is closed that has one stream too many, as ElevenLabs does."""


class PeerStream(Speaking):
    """One stream as the server sees it: the messages that carry its key.

    `key` is what the route has found in them, `peer` the connection, for what is not of one stream:
    `peer.send_json` pushes something else, `peer.close` and `peer.drop` end all streams.
    """

    def __init__(self, key: Hashable, peer: Peer) -> None:
        self.key = key
        self.peer = peer
        self._unread: asyncio.Queue[str | bytes] = asyncio.Queue()

    async def recv(self) -> str | bytes:
        """Return the next message with this key, the one that has begun the stream first."""
        return await self._unread.get()

    async def send(self, message: str | bytes) -> None:
        """Send a message, as it is; raises ConnectionError when the connection is over."""
        await self.peer.send(message)


class Streams:
    """A handler for a `Server` whose connections are shared: it runs a handler for each key.

    A stream begins with the first message that carries its key, and ends when its `handler`
    returns; meanwhile others are at work on the same connection, so that answers come in any order.
    What comes for the key after that, such as a cancellation that is late, begins another stream.
    When the connection is over, handlers that are at work are cancelled. `route` is as a pool's: a
    path into the message's JSON, several of which the first present counts, or a callable. A
    message without a key fails the test. With `max_streams`, one more at a time on a connection
    closes that with 1008, as providers do. Raises TypeError or ValueError for what is no route.

    To look at: `most_open`, the most streams at a time on one connection; `refused`, how many were
    one too many; `keys`, those of all streams, in the order of their beginnings.
    """

    def __init__(
        self, handler: StreamHandler, route: Route, *, max_streams: int | None = None
    ) -> None:
        check_route(route)
        self.handler = handler
        self.max_streams = max_streams
        self.most_open: int = 0
        self.refused: int = 0
        self.keys: list[Hashable] = []
        self._route, self._sort = route, sorting(route)

    async def __call__(self, peer: Peer) -> None:
        """Serve a connection; a handler that has greeted its client may go on with this."""
        at_work: dict[Hashable, PeerStream] = {}

        async def serve(stream: PeerStream) -> None:
            try:
                await self.handler(stream)
            finally:
                del at_work[stream.key]

        try:
            async with asyncio.TaskGroup() as group:
                tasks: set[asyncio.Task[None]] = set()
                async for message in peer:
                    key = self._key_of(message)
                    is_new = key not in at_work
                    if is_new:
                        if len(at_work) == self.max_streams:
                            self.refused += 1
                            await peer.close(TOO_MANY, f"more than {self.max_streams} streams")
                            break
                        at_work[key] = PeerStream(key, peer)
                        self.keys.append(key)
                        self.most_open = max(self.most_open, len(at_work))
                        task = group.create_task(serve(at_work[key]))
                        tasks.add(task)
                        task.add_done_callback(tasks.discard)
                    at_work[key]._unread.put_nowait(message)
                    if is_new:
                        await asyncio.sleep(0)  # one that ends at once is over before the next
                for task in tasks:
                    task.cancel()
        except BaseExceptionGroup as failed:
            # That the client has gone says the least of what has failed.
            first, *_ = sorted(failed.exceptions, key=lambda e: isinstance(e, ConnectionError))
            raise first from None

    def _key_of(self, message: str | bytes) -> Hashable:
        key: Hashable = self._sort(message)[0]
        if key is None:
            raise AssertionError(f"the route {self._route!r} finds no key in {message!r}")
        return key
