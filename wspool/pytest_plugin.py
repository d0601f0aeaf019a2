"""Fixtures for pytest: servers of `wspool.testing` that run during a test.

    pytest_plugins = ["wspool.pytest_plugin"]  # in your topmost conftest.py

`websocket_server` plays what the test tells it to, and takes part in the event loop of the test, be
it pytest-asyncio's, in its strict and its auto mode, or that of anyio's plugin.

`websocket_recording` plays what a real server has said; `pytest --wspool-record` writes it down:

    async def test_it_asks(websocket_recording):
        async with websocket_recording("wss://example.com/", headers=log_in) as server:
            ...  # what is tested, with server.uri
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from ssl import SSLContext

import pytest

from wspool.testing import Server, record, replay


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--wspool-record",
        action="store_true",
        help="let websocket_recording talk to the real servers, and write down what they say",
    )


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


class WebsocketRecording:
    """Makes a test's server: one that records a real one with `--wspool-record`, else its replay.

    `path` is the next server's file, `recordings/<module>/<test>.jsonl` beside the test's module;
    further servers of the same test have `-2`, `-3` and so on at the end of the name.
    `is_recording` tells which of the two it does.
    """

    def __init__(self, directory: Path, name: str, is_recording: bool) -> None:
        self.is_recording = is_recording
        self._directory = directory
        self._name = re.sub(r"[^\w\-.\[\]]+", "_", name)
        self._number = 1

    @property
    def path(self) -> Path:
        """The file of the next server."""
        number = f"-{self._number}" if self._number > 1 else ""
        return self._directory / f"{self._name}{number}.jsonl"

    def __call__(
        self,
        uri: str | Callable[[], str],
        *,
        headers: Mapping[str, str] | Callable[[], Mapping[str, str]] | None = None,
        ssl: SSLContext | bool = True,
        scrub: Callable[[str | bytes], str | bytes] | None = None,
        ignore: Iterable[str] = (),
        pace: float = 0.0,
        strict: bool = True,
    ) -> Server:
        """Return the server, for an `async with`; the arguments are those of `record` and `replay`.

        Where secrets are needed to record, give callables: a replay does not call them.
        """
        path = self.path
        self._number += 1
        if self.is_recording:
            return Server(record(uri, path, headers=headers, scrub=scrub, ssl=ssl))
        return Server(replay(path, ignore=ignore, pace=pace, strict=strict, scrub=scrub))


@pytest.fixture
def websocket_recording(request: pytest.FixtureRequest) -> WebsocketRecording:
    """Returns what makes a server that plays what a real one has said.

    Without `--wspool-record` nothing is asked of the real one: `websocket_recording(uri)` needs the
    file that a run with that option has written.
    """
    directory = request.path.parent / "recordings" / request.path.stem
    is_recording = bool(request.config.getoption("--wspool-record", default=False))
    return WebsocketRecording(directory, request.node.name, is_recording)
