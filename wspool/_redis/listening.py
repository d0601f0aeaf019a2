"""Listening: hearing what the processes of a fleet publish for each other.

Whatever is heard is a hint. Whoever hears nothing, for whatever reason, asks in time anyway.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from redis.asyncio import Redis

logger = logging.getLogger("wspool")

PAUSE_SECONDS: Final = 1.0
"""Before the next attempt, after one that failed; on average."""


class Listener:
    """The subscription of one quota, which takes a connection of its own.

    `on_message` is called with a channel and what was said there, and with a channel and None when
    it is heard from now on. It ends when `is_of_use` says no after `silence` seconds without a
    message; otherwise it is made anew then, since nothing is heard on a connection that was cut.
    """

    def __init__(
        self,
        client: Redis,
        silence: float,
        on_message: Callable[[str, str | None], object],
        is_of_use: Callable[[], bool],
    ) -> None:
        self._client = client
        self._silence = silence
        self._on_message, self._is_of_use = on_message, is_of_use
        self.task: asyncio.Task[None] | None = None
        # Clients of a cluster were once without; one more connection has to be there for the
        # questions; and some have no right to listen.
        connections = getattr(client, "connection_pool", None)
        self.is_able = hasattr(client, "pubsub") and getattr(connections, "max_connections", 2) > 1

    def start(self, *channels: str) -> None:
        """Listen from now on, if it can and does not yet."""
        if self.is_able and (self.task is None or self.task.done()):
            self.task = asyncio.create_task(self._listen(channels))

    async def _listen(self, channels: tuple[str, ...]) -> None:
        from redis.exceptions import NoPermissionError

        task = asyncio.current_task()
        assert task is not None
        while not task.cancelling():  # the client may have swallowed that
            try:
                await self._hear(channels)
            except NoPermissionError as error:
                self.is_able = False
                logger.warning(
                    "Redis does not let this user listen to %s (%s): freed leases are noticed "
                    "later, and idle connections given up for others only when the leases are "
                    "renewed. Allow SUBSCRIBE, PUBLISH and these channels",
                    *(" and ".join(channels), error),
                )
                return
            except Exception as error:
                logger.debug("cannot listen, %s: %s", type(error).__name__, error)
                await asyncio.sleep(PAUSE_SECONDS * random.uniform(0.5, 1.5))
            if not self._is_of_use():
                return

    async def _hear(self, channels: tuple[str, ...]) -> None:
        async with self._client.pubsub() as pubsub:
            await pubsub.subscribe(*channels)
            while (message := await pubsub.get_message(timeout=self._silence)) is not None:
                channel, said = _text(message["channel"]), message["data"]
                self._on_message(channel, None if message["type"] == "subscribe" else _text(said))


def _text(said: bytes | str) -> str:
    return said.decode() if isinstance(said, bytes) else said
