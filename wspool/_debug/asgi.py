"""The page as an ASGI application, for FastAPI, Starlette and whatever else mounts one.

A server that is told to stop first waits for its open requests, and tells none of them: a stream
without an end would hold it up. So a stream here ends by itself every few seconds, and the page
asks for the next one at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qsl

from wspool._debug import views
from wspool._debug.guarding import Origin
from wspool._debug.site import HEADERS, STREAM_HEADERS, Answer, Asked, Site
from wspool._debug.views import Reader, View
from wspool._group.looking import Shown

STREAM_SECONDS: Final = 5.0
"""After which a stream ends, and so the longest that it holds up a shutdown."""

RETURN_SECONDS: Final = 2.0
"""For its client to come back, for which the pool is listened to."""

TAKE_SECONDS: Final = 10.0
"""For a client to take a picture. One that does not is gone, or as good as gone."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

Given = Shown | str


class Application:
    """What a server calls for each request."""

    def __init__(self, site: Site, shown: tuple[Given, ...], *, with_history: bool) -> None:
        self._site = site
        self._shown = shown
        self._with_history = with_history
        if not any(isinstance(one, str) for one in shown):
            self._look_up({})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"the debug page serves HTTP, and no {scope['type']}")
        self._look_up(scope.get("state", {}))
        answer = self._site.answer(_asked(scope))
        if isinstance(answer, Answer):
            headers = {"Content-Type": f"{answer.content_type}; charset=utf-8", **answer.headers}
            await send(_start(answer.status, headers | {"Content-Length": str(len(answer.body))}))
            await send(_part(answer.body if scope["method"] != "HEAD" else b"", is_last=True))
            return
        with answer.reading() as reader:
            await send(_start(HTTPStatus.OK, STREAM_HEADERS))
            if scope["method"] == "HEAD" or await self._show(answer, reader, receive, send):
                await send(_part(b"", is_last=True))

    def _look_up(self, state: MutableMapping[str, Any]) -> None:
        """Show the pools that the application has by now; it may have been started anew."""
        pools = []
        for shown in self._shown:
            pool = state.get(shown) if isinstance(shown, str) else shown
            if not isinstance(pool, Shown):
                raise LookupError(
                    f"the state of the application's lifespan has no pool under {shown!r}, but "
                    f"{pool!r}; yield {{{shown!r}: pool}} in the lifespan"
                )
            pools.append(pool)
        if [view.shown for view in self._site.views.values()] != pools:
            self._site.show(pools, with_history=self._with_history)

    async def _show(self, view: View, reader: Reader, receive: Receive, send: Send) -> bool:
        """Send pictures for a while; return whether the client is there to be told of the end."""
        clock = asyncio.get_running_loop().time
        end = clock() + STREAM_SECONDS
        gone_task = asyncio.create_task(_gone(receive))
        try:
            async with asyncio.timeout(TAKE_SECONDS) as timer:
                # The time after which the page asks anew, in milliseconds.
                await send(_part(b"retry: 100\n" + view.machine(self._site.views)))
                while frame := await view.picture():
                    if gone_task.done():
                        return False
                    timer.reschedule(clock() + views.PICTURE_SECONDS + TAKE_SECONDS)
                    await send(_part(frame))
                    if clock() >= end:
                        reader.returns_within = RETURN_SECONDS
                        break
            return True
        except (TimeoutError, OSError):
            return False  # nobody takes it
        finally:
            gone_task.cancel()


async def _gone(receive: Receive) -> None:
    """Return when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _asked(scope: Scope) -> Asked:
    path, prefix = scope["path"], scope.get("root_path", "").rstrip("/")
    if prefix and path.startswith(prefix):  # as the specification has it; some take it off
        path = path.removeprefix(prefix)
    raw_query = scope.get("query_string", b"").decode("latin-1")
    headers: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))

    def header(name: str) -> str | None:
        return headers[name][0] if name in headers else None

    return Asked(
        method=scope["method"],
        path=path,
        name=prefix.rpartition("/")[2],
        raw_query=raw_query,
        query=dict(reversed(parse_qsl(raw_query, keep_blank_values=True))),
        origin=Origin(
            tuple(headers.get("host", [""])),
            header("origin"),
            header("sec-fetch-site"),
            header("sec-fetch-mode"),
        ),
    )


def _start(status: HTTPStatus, headers: dict[str, str]) -> Message:
    given = {**HEADERS, **headers}
    return {
        "type": "http.response.start",
        "status": int(status),
        "headers": [(name.lower().encode(), value.encode()) for name, value in given.items()],
    }


def _part(body: bytes, *, is_last: bool = False) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": not is_last}
