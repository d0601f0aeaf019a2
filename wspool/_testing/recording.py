"""Recording: a script that passes everything on to a real server and back, and writes it down.

What is sent is noted before it is sent, so that whatever is sent in answer to it comes later.
Nothing of a handshake gets into the file but the subprotocol that the server chose and, where it
refuses, the status with its Retry-After.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from ssl import SSLContext
from typing import Final

import aiohttp
from aiohttp import WSMsgType, hdrs, web
from multidict import CIMultiDict
from yarl import URL

from wspool._connection.scrubbing import scrub_error, scrub_uri, secrets_of
from wspool._testing import turns
from wspool._testing.matching import Message, Scrub
from wspool._testing.server import Admission, Peer, Script
from wspool._testing.turns import LOST, Action, Close, Refusal, Turn

CLOSE_SECONDS: Final = 2.0
"""For the server to answer a close."""

HOP_BY_HOP: Final = re.compile(
    r"connection|host|keep-alive|proxy-.*|te|trailer|transfer-encoding|upgrade|content-length"
    r"|sec-websocket-.*",
    re.IGNORECASE,
)
"""The headers that a client means for the server it has dialled, not for the one behind."""

IS_SECRET: Final = re.compile(
    r"auth|cookie|credential|key|passw|secret|session|sig|token", re.IGNORECASE
)
"""Headers and query parameters of which the values must not be in the file."""


def record(
    uri: str | Callable[[], str],
    path: str | os.PathLike[str],
    *,
    headers: Mapping[str, str] | Callable[[], Mapping[str, str]] | None = None,
    scrub: Callable[[str | bytes], str | bytes] | None = None,
    ssl: SSLContext | bool = True,
) -> Script:
    """Return what makes a `Server` stand in front of a real one and write down what is said.

    The file is written as a whole at the end of the server's block, if that has ended well; one
    that is there is replaced. `replay` plays it. Headers and the query of the handshake are not in
    it. If a message has a secret of these, a token that the server repeats, say, nothing is written
    and the test fails: `scrub` is there to take it out. A server that cannot be reached fails the
    test; one that refuses is recorded.

    uri: of the server, ws:// or wss://, or a callable that is called for each handshake. A path
        and a query that the client asks for are added to it.
    path: the file; directories that are missing are made.
    headers: of the handshake, or a callable that returns them; they are added to the client's own,
        and go before those.
    scrub: is called with each message, str or bytes, and the reason of each close, and returns
        what is written in its place.
    ssl: as aiohttp has it; False does not verify the certificate.
    """
    return Recording(uri, Path(path), headers, scrub, ssl)


class Recording(Script):
    """See `record`."""

    def __init__(
        self,
        uri: str | Callable[[], str],
        path: Path,
        headers: Mapping[str, str] | Callable[[], Mapping[str, str]] | None = None,
        scrub: Scrub | None = None,
        ssl: SSLContext | bool = True,
    ) -> None:
        self.turns: list[Turn] = []
        self._uri = uri
        self._path = path
        self._headers = headers
        self._scrub = scrub
        self._ssl = ssl
        self._handshakes = 0
        self._subprotocols: set[str | None] = set()
        self._secrets: set[str] = set()
        self._session: aiohttp.ClientSession | None = None

    async def admit(self, request: web.Request) -> web.Response | Admission:
        url, headers = self._target(request)
        secrets = secrets_of(str(url), headers)
        self._secrets.update(_named_secrets(url, headers))
        if self._session is None:
            self._session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        offered = request.headers.get(hdrs.SEC_WEBSOCKET_PROTOCOL, "")
        try:
            upstream = await self._session.ws_connect(
                url,
                headers=headers,
                protocols=[name.strip() for name in offered.split(",") if name.strip()],
                ssl=self._ssl,
                max_msg_size=0,
                timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_SECONDS),
            )
        except aiohttp.WSServerHandshakeError as refused:
            if refused.status == 101:
                raise scrub_error(refused, secrets) from None
            retry_after = refused.headers.get(hdrs.RETRY_AFTER) if refused.headers else None
            turn = Turn(self._next(), [], [], Refusal(refused.status, retry_after))
            self.turns.append(turn)
            kept = {} if retry_after is None else {hdrs.RETRY_AFTER: retry_after}
            return web.Response(status=refused.status, headers=kept)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            why = scrub_error(error, secrets)
            raise ConnectionError(f"{scrub_uri(url)} cannot be recorded: {why}") from why
        self._subprotocols.add(upstream.protocol)
        dialogue = _Dialogue(self.turns, self._next())
        protocols = (upstream.protocol,) if upstream.protocol is not None else ()
        return Admission(protocols, partial(_relay, upstream, dialogue))

    def _next(self) -> int:
        self._handshakes += 1
        return self._handshakes

    def _target(self, request: web.Request) -> tuple[URL, CIMultiDict[str]]:
        """Return where to dial, with which headers: the client's own, and those that are given."""
        url = URL(self._uri() if callable(self._uri) else self._uri)
        asked = request.rel_url
        if asked.raw_path != "/":
            query = url.query
            url = url.joinpath(asked.raw_path.lstrip("/"), encoded=True).with_query(query)
        if asked.query_string:
            url = url.extend_query(asked.query)
        headers = CIMultiDict(
            (name, value)
            for name, value in request.headers.items()
            if not HOP_BY_HOP.fullmatch(name)
        )
        if url.raw_user or url.raw_password:
            headers.popall(hdrs.AUTHORIZATION, None)  # the URI has another
        headers.update((self._headers() if callable(self._headers) else self._headers) or {})
        return url, headers

    async def finish(self, error: BaseException | None) -> None:
        if self._session is not None:
            await self._session.close()
        if error is not None:
            return
        if len(self._subprotocols) > 1:
            raise ValueError(
                f"{self._path} is not written: the server chose the subprotocols "
                f"{sorted(map(str, self._subprotocols))}, and a recording has one: make several"
            )
        written = [self._scrubbed(turn) for turn in self.turns]
        for turn in written:
            self._look_for_secrets(turn)
        turns.write(self._path, next(iter(self._subprotocols), None), written)

    def _scrubbed(self, turn: Turn) -> Turn:
        if self._scrub is None:
            return turn
        scrub = self._scrub
        client = [scrub(message) for message in turn.client]
        server: list[Action] = []
        for what, after in turn.server:
            if isinstance(what, Close):
                what = Close(what.code, str(scrub(what.reason)))
            else:
                what = scrub(what)
            server.append(Action(what, after))
        return Turn(turn.connection, client, server, turn.refusal)

    def _look_for_secrets(self, turn: Turn) -> None:
        said: list[tuple[str, Message]] = [("the client", message) for message in turn.client]
        for what, _ in turn.server:
            said.append(("the server", what.reason if isinstance(what, Close) else what))
        for who, message in said:
            text = message if isinstance(message, str) else message.decode("latin-1")
            if any(secret in text for secret in self._secrets):
                raise ValueError(
                    f"{self._path} is not written: on connection {turn.connection} {who} says a "
                    "secret of the handshake; take it out by the argument scrub of record()"
                )


def _named_secrets(url: URL, headers: Mapping[str, str]) -> tuple[str, ...]:
    """Return the secrets among the values; a model's name in the query, say, may be told."""
    query = [(name, value) for name, value in url.query.items() if IS_SECRET.search(name)]
    chosen = {name: value for name, value in headers.items() if IS_SECRET.search(name)}
    return secrets_of(str(url.with_query(query)), chosen)


class _Dialogue:
    """The turns of one connection, as they come about."""

    def __init__(self, turns: list[Turn], connection: int) -> None:
        self._turns = turns
        self._turn = Turn(connection, [], [])
        self._turns.append(self._turn)
        self._clock = asyncio.get_running_loop().time
        self._last = self._clock()
        self._is_over = False

    def client(self, message: Message) -> None:
        if self._is_over:  # the server has closed, and will not read it
            return
        if self._turn.server or not self._turn.client:
            self._turn = Turn(self._turn.connection, [], [])
            self._turns.append(self._turn)
        self._turn.client.append(message)
        self._last = self._clock()

    def server(self, what: Message | Close) -> None:
        now = self._clock()
        self._turn.server.append(Action(what, round(now - self._last, 4)))
        self._last = now
        self._is_over = isinstance(what, Close)


async def _relay(
    upstream: aiohttp.ClientWebSocketResponse, dialogue: _Dialogue, peer: Peer
) -> None:
    """Pass on what either says until one of them closes, or is gone."""
    back_task = asyncio.create_task(_relay_back(upstream, dialogue, peer))
    try:
        async for message in peer:
            dialogue.client(message)
            try:
                if isinstance(message, str):
                    await upstream.send_str(message)
                else:
                    await upstream.send_bytes(message)
            except ConnectionError:
                break  # the other task sees what became of it
        else:
            code = peer.websocket.close_code or 0
            may_be_sent = code in (1000, 1001) or 3000 <= code <= 4999
            await upstream.close(code=code if may_be_sent else 1000)
        await back_task
    finally:
        back_task.cancel()
        await asyncio.wait([back_task])
        await upstream.close()


async def _relay_back(
    upstream: aiohttp.ClientWebSocketResponse, dialogue: _Dialogue, peer: Peer
) -> None:
    with suppress(ConnectionError):  # the client is gone, as the other task sees
        while True:
            frame = await upstream.receive()
            if frame.type is WSMsgType.TEXT or frame.type is WSMsgType.BINARY:
                dialogue.server(frame.data)
                await peer.send(frame.data)
            elif frame.type is WSMsgType.CLOSE:
                code, reason = frame.data or 1005, frame.extra or ""
                dialogue.server(Close(code, reason))
                if code == 1005:
                    await peer.websocket.send_frame(b"", WSMsgType.CLOSE)
                else:
                    await peer.close(code, reason)
                return
            elif frame.type is WSMsgType.CLOSING:  # by us
                return
            elif frame.type in (WSMsgType.CLOSED, WSMsgType.ERROR):
                dialogue.server(Close(LOST, ""))
                peer.drop()
                return
