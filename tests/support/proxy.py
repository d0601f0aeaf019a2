"""A TCP proxy on loopback whose peers can vanish without a word."""

from __future__ import annotations

import asyncio
from typing import Any, Literal, Self, cast

Newcomers = Literal["hold", "refuse", "forward"]


class Proxy:
    """Forwards TCP connections to a port of this machine, until it is told to freeze.

    A frozen link is what a peer looks like that has lost its power or its network: the sockets
    stay open, what is sent is taken, and nothing comes back. On a thaw all that was sent arrives.
    """

    def __init__(self, to: int) -> None:
        self.to = to
        self.port = 0
        self.links: list[Link] = []
        # What happens to those who connect now.
        self._newcomers: Newcomers = "forward"
        self._listener: asyncio.Server | None = None

    async def freeze(self, newcomers: Newcomers = "hold") -> None:
        """Stop forwarding. Who connects from now on is accepted and held, refused, or served."""
        self._newcomers = newcomers
        for link in self.links:
            link.freeze()
        if newcomers == "refuse":
            self._stop_listening()

    async def thaw(self) -> None:
        self._newcomers = "forward"
        for link in self.links:
            link.thaw()
        await self._listen()

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._stop_listening()
        while self.links:
            await self.links[-1].cut()

    async def _listen(self) -> None:
        if self._listener is None:
            loop = asyncio.get_running_loop()
            self._listener = await loop.create_server(
                self._accept, "127.0.0.1", self.port, reuse_address=True
            )
            self.port = self._listener.sockets[0].getsockname()[1]

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _accept(self) -> _End:
        link = Link(self)
        self.links.append(link)
        if self._newcomers == "forward":
            link.thaw()
        return link.near


class Link:
    """A client's socket and the one to the server; born frozen."""

    def __init__(self, proxy: Proxy) -> None:
        self.near, self.far = _End(self), _End(self)
        self._proxy = proxy
        self._is_frozen = True
        self._connecting: asyncio.Task[None] | None = None

    def freeze(self) -> None:
        self._is_frozen = True
        self.forward_or_wait()

    def thaw(self) -> None:
        self._is_frozen = False
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect())
        self.forward_or_wait()

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: self.far, "127.0.0.1", self._proxy.to)
        except OSError:
            self.near.abort()
        else:
            if self.near.transport is None or self.near.transport.is_closing():
                self.far.abort()

    @property
    def is_forwarding(self) -> bool:
        return not self._is_frozen and None not in (self.near.transport, self.far.transport)

    def forward_or_wait(self) -> None:
        self.near.forward_or_wait()
        self.far.forward_or_wait()

    async def cut(self) -> None:
        """Reset both sockets."""
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        self.near.abort()
        self.far.abort()
        self._forget()

    def lose(self) -> None:
        """One socket is gone: let the other take what was sent, and go."""
        for end in (self.near, self.far):
            if end.transport is not None:
                end.transport.close()
        if self._connecting is None or self._connecting.done():
            self._forget()

    def _forget(self) -> None:
        if self in self._proxy.links:
            self._proxy.links.remove(self)


class _End(asyncio.Protocol):
    """One of a link's two sockets."""

    def __init__(self, link: Link) -> None:
        self.transport: asyncio.Transport | None = None
        self._link = link
        # Read while it could not be passed on: uvloop reads once before a pause takes effect.
        self._held = b""

    def forward_or_wait(self) -> None:
        """Read if what is read can be passed on."""
        if self.transport is None:
            return
        if self._link.is_forwarding:
            self.transport.resume_reading()
            held, self._held = self._held, b""
            self._pass_on(held)
        else:
            self.transport.pause_reading()

    def _pass_on(self, data: bytes) -> None:
        other = self._link.far if self is self._link.near else self._link.near
        assert other.transport is not None
        other.transport.write(data)

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def connection_made(self, transport: Any) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._link.forward_or_wait()

    def data_received(self, data: bytes) -> None:
        if self._link.is_forwarding:
            self._pass_on(data)
        else:
            self._held += data

    def connection_lost(self, error: Exception | None) -> None:
        self._link.lose()
