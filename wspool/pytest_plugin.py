"""A fixture for pytest, `websocket_server`: a `wspool.testing.Server` that runs during a test.

    pytest_plugins = ["wspool.pytest_plugin"]  # in your conftest.py

It takes part in the event loop of the test, be it pytest-asyncio's, in its strict and its auto
mode, or that of anyio's plugin.
"""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator

import pytest

from wspool.testing import Server


async def _serve() -> AsyncIterator[Server]:
    async with Server() as server:
        yield server


_anyio_websocket_server = pytest.fixture(_serve)

if importlib.util.find_spec("pytest_asyncio"):
    import pytest_asyncio

    _asyncio_websocket_server = pytest_asyncio.fixture(_serve)


@pytest.fixture
def websocket_server(request: pytest.FixtureRequest) -> Server:
    """A server that echoes until the test gives it another `handler`.

    Its address is `websocket_server.uri`. A handler that fails is an error of the test.
    """
    # pytest-asyncio's strict mode runs none but its own fixtures, and those not in anyio's loop.
    runner = "anyio" if "anyio_backend" in request.fixturenames else "asyncio"
    server = request.getfixturevalue(f"_{runner}_websocket_server")
    assert isinstance(server, Server)
    return server
