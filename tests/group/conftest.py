"""What the tests of groups share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from wspool import WebsocketPools
from wspool.testing import Server

MakeGroup = Callable[..., WebsocketPools]


@pytest.fixture
async def servers() -> AsyncIterator[dict[str, Server]]:
    """Three servers, by the keys of their pools."""
    made = {key: Server() for key in ("a", "b", "c")}
    for server in made.values():
        await server.start()
    yield made
    for server in made.values():
        await server.stop()


@pytest.fixture
async def make_group() -> AsyncIterator[MakeGroup]:
    """Make groups that are closed when the test ends."""
    groups: list[WebsocketPools] = []

    def make(options_of: Any, **arguments: Any) -> WebsocketPools:
        defaults = {"max_connections": 10, "close_timeout": 1.0}
        groups.append(WebsocketPools(options_of, **defaults | arguments))
        return groups[-1]

    yield make
    for group in groups:
        await group.close_all()


def uris(servers: dict[str, Server], keys: str) -> dict[str, dict[str, Any]]:
    """Return the options of pools to these servers."""
    return {key: {"uri": servers[key].uri} for key in keys}


def key_of(group: WebsocketPools, connection: Any) -> Any:
    """Return of which member's pool a connection is."""
    member = group._roster.member_of(connection._link)
    assert member is not None
    return member.key


async def hang(connection: Any) -> None:
    """As `on_connect`, never let a dial end."""
    await asyncio.Event().wait()
