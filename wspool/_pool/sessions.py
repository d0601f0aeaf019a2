"""The aiohttp session of one pool: whose it is, when it is made and closed, what it admits."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import aiohttp


class Session:
    """The session that a pool dials with: its users', or one of its own."""

    def __init__(
        self, given: aiohttp.ClientSession | Callable[[], aiohttp.ClientSession] | None
    ) -> None:
        # None: there is none before the pool starts.
        self.opened = given if isinstance(given, aiohttp.ClientSession) else None
        self._is_own = self.opened is None
        self._make = given if callable(given) else _make

    def open(self, max_connections: int) -> aiohttp.ClientSession:
        """Return the session, which is made now if it is the pool's own; in the pool's loop."""
        if self.opened is None:
            session = self._make()
            if not isinstance(session, aiohttp.ClientSession):
                raise TypeError(f"session() returned {session!r}, and no aiohttp.ClientSession")
            self.opened = session
        self.check(max_connections)
        return self.opened

    async def close(self) -> None:
        if self._is_own and self.opened is not None:
            await self.opened.close()

    def check(self, max_connections: int) -> None:
        """Refuse a connector that would let dials wait for ever."""
        if self.opened is None or self.opened.connector is None:
            return
        for name in ("limit", "limit_per_host"):
            limit = getattr(self.opened.connector, name)
            wanted = f"max_connections={max_connections}"
            advice = f"set TCPConnector({name}=…) above {wanted}, or to 0 for none"
            if 0 < limit < max_connections:
                raise ValueError(
                    f"The shared session's connector has {name}={limit}, and each WebSocket "
                    f"holds a place in it for life: {advice}, or lower max_connections"
                )
            if limit == max_connections:
                warnings.warn(
                    f"The shared session's connector has {name}={limit}: once the pool is full, "
                    f"the application's own requests on it will hang; {advice}",
                    UserWarning,
                    stacklevel=5,
                )


def _make() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        # The session's default total timeout, of 5 minutes, would cap connection_timeout.
        timeout=aiohttp.ClientTimeout(),
        # A balancer's cookie would lead every further dial to the same backend.
        cookie_jar=aiohttp.DummyCookieJar(),
    )
