"""A live page of one pool or several, mounted on the user's own aiohttp application.

It reads and never changes anything: GET and HEAD are all there is. What it serves is as frank as a
snapshot, with the places in the code of those who borrow: put it behind the application's own
authentication. While no page is open there is no task and no subscription; an open one is a
request that does not end, and whatever breaks in it ends that request alone.

Behind the prefix:

    GET /                    the page, with what it is made of beside it
    GET /events              the page's stream (Server-Sent Events): two pictures a second
    GET /connection?id=7     one connection with its history; null when it is forgotten
    GET /snapshot            `pool.snapshot().to_dict()` as JSON
    GET /diagram             `pool.state_diagram()`, Mermaid as plain text

All but the first take `pool=name`; without it they show the first pool that `setup` was given.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections import deque
from dataclasses import asdict
from importlib.resources import files
from time import time
from typing import Any, Final

from aiohttp import web

from wspool._connection.scrubbing import shown_uri
from wspool._connection.states import TRANSITIONS, State
from wspool._pool import introspection
from wspool._pool.introspection import ConnectionSnapshot, as_dict
from wspool._pool.pool import WebsocketConnectionPool
from wspool.events import (
    ConnectionCheckedIn,
    ConnectionCheckedOut,
    ConnectionCheckOutStarted,
    Event,
)

__all__ = ["setup"]

logger = logging.getLogger("wspool")

PICTURE_SECONDS: Final = 0.5
"""Between two pictures."""

TAKE_SECONDS: Final = 10.0
"""For a client to take a picture. One that does not is gone, or as good as gone."""

MAX_ROWS: Final = 100
"""Connections of each state in a picture, those that have been in it for longest: 20 µs apiece."""

_PREFIX: Final = re.compile(r"(/[\w.~-]+)+")
_LOANS: Final = (ConnectionCheckedOut, ConnectionCheckedIn)
_FILES: Final = {
    "index.html": "text/html",
    "page.js": "text/javascript",
    "diagram.js": "text/javascript",
    "page.css": "text/css",
    "icon.svg": "image/svg+xml",
}
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

Shown = WebsocketConnectionPool | web.AppKey[WebsocketConnectionPool]


def setup(app: web.Application, *pools: Shown, prefix: str = "/debug/wspool") -> web.Application:
    """Mount the page of these pools on an application, and return the sub-application.

    A pool that the application makes when it starts, in a `cleanup_ctx`, is given by its AppKey.
    Raises TypeError for what is no pool, ValueError for two pools of one name, and for a prefix
    that is not a path such as '/debug/wspool' or is taken.
    """
    if not pools:
        raise TypeError("setup() was given no pool to show")
    for pool in pools:
        if not isinstance(pool, (WebsocketConnectionPool, web.AppKey)):
            raise TypeError(f"{pool!r} is neither a WebsocketConnectionPool nor a web.AppKey")
    if not isinstance(prefix, str) or not _PREFIX.fullmatch(prefix):
        raise ValueError(f"prefix is {prefix!r}; it must be a path such as '/debug/wspool'")
    if any(resource.canonical == prefix for resource in app.router.resources()):
        raise ValueError(f"prefix is {prefix!r}, where the application serves something already")
    debug = _Debug(app, pools)
    sub = web.Application()
    for name, content_type in _FILES.items():
        body = (files("wspool") / "page" / name).read_bytes()
        sub.router.add_get("/" if name == "index.html" else f"/{name}", _serve(body, content_type))
    sub.router.add_get("", _to_the_page)
    sub.router.add_get("/events", debug.events)
    sub.router.add_get("/connection", debug.connection)
    sub.router.add_get("/snapshot", debug.snapshot)
    sub.router.add_get("/diagram", debug.diagram)
    sub.on_response_prepare.append(_harden)
    sub.on_startup.append(debug.begin)
    sub.on_shutdown.append(debug.end)
    app.add_subapp(prefix, sub)
    return sub


async def _harden(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)


def _serve(body: bytes, content_type: str) -> Any:
    async def serve(request: web.Request) -> web.Response:
        return web.Response(body=body, content_type=content_type, charset="utf-8")

    return serve


async def _to_the_page(request: web.Request) -> web.Response:
    """Redirect to the path with a slash; relative, since a proxy may have rewritten the path."""
    url = request.rel_url
    query = f"?{url.raw_query_string}" if url.raw_query_string else ""
    raise web.HTTPFound(f"{url.raw_name}/{query}")


class _Debug:
    """The handlers of one mounted page, and the streams of those who look at it."""

    def __init__(self, app: web.Application, shown: tuple[Shown, ...]) -> None:
        self._app = app
        self._shown = shown
        self._pools = _by_name([pool for pool in shown if not isinstance(pool, web.AppKey)])
        # Each stream's time limit; by it a stream is also ended from outside.
        self._timers: set[asyncio.Timeout] = set()
        self._is_ending = False

    async def begin(self, _: web.Application) -> None:
        """Look up the pools that the application has made by now."""
        pools = []
        for shown in self._shown:
            if isinstance(shown, web.AppKey):
                if shown not in self._app:
                    raise LookupError(
                        f"the application has no pool under {shown!r} when it starts; make it in "
                        "a cleanup_ctx: those run before the debug page begins"
                    )
                shown = self._app[shown]
            pools.append(shown)
        self._pools = _by_name(pools)

    async def end(self, _: web.Application) -> None:
        """End the streams; a server that stops waits for its requests."""
        self._is_ending = True
        for timer in self._timers:
            if not timer.expired():
                timer.reschedule(asyncio.get_running_loop().time())

    def _chosen(self, request: web.Request) -> WebsocketConnectionPool:
        name = request.query.get("pool", next(iter(self._pools)))
        if name not in self._pools:
            raise web.HTTPNotFound(text=f"no pool {name!r}; there are {list(self._pools)}")
        return self._pools[name]

    async def snapshot(self, request: web.Request) -> web.Response:
        return _answer(self._chosen(request).snapshot().to_dict())

    async def diagram(self, request: web.Request) -> web.Response:
        return web.Response(text=self._chosen(request).state_diagram())

    async def connection(self, request: web.Request) -> web.Response:
        shown = introspection.found(self._chosen(request), request.query.get("id", ""))
        if shown is None:
            return _answer(None)
        return _answer(_row(shown) | {"history": [move._asdict() for move in shown.history]})

    async def events(self, request: web.Request) -> web.StreamResponse:
        pool = self._chosen(request)
        stream = web.StreamResponse()
        stream.content_type = "text/event-stream"
        stream.headers["X-Accel-Buffering"] = "no"  # else nginx collects before it passes on
        await stream.prepare(request)
        if request.method == "GET":
            unshown = _Unshown()
            unsubscribe = pool.subscribe(unshown.add)
            try:
                await self._show(pool, unshown, stream)
            except ConnectionResetError:
                pass  # the page was closed
            except TimeoutError:
                if request.transport is not None and request.transport.get_write_buffer_size():
                    request.transport.abort()  # nobody takes what is under way
            except Exception:
                logger.exception("a debug page of %r broke down; the pool goes on", pool)
            finally:
                unsubscribe()
        return stream

    async def _show(
        self, pool: WebsocketConnectionPool, unshown: _Unshown, stream: web.StreamResponse
    ) -> None:
        """Send pictures until the page is gone or the application ends."""
        machine = {"states": list(State), "transitions": TRANSITIONS, "pools": list(self._pools)}
        clock = asyncio.get_running_loop().time
        async with asyncio.timeout(TAKE_SECONDS) as timer:
            self._timers.add(timer)
            try:
                await stream.write(f"event: machine\ndata: {_dumps(machine)}\n\n".encode())
                while not self._is_ending:
                    timer.reschedule(clock() + PICTURE_SECONDS + TAKE_SECONDS)
                    picture = _dumps(_picture(pool) | unshown.take())
                    await stream.write(f"data: {picture}\n\n".encode())
                    await asyncio.sleep(PICTURE_SECONDS)
            finally:
                self._timers.discard(timer)


class _Unshown:
    """The events that a page has not been shown yet, so many at most: loans crowd out no others."""

    def __init__(self) -> None:
        self._count = 0
        self._loans: deque[tuple[int, Event]] = deque(maxlen=20)
        self._others: deque[tuple[int, Event]] = deque(maxlen=80)

    def add(self, event: Event) -> None:
        if isinstance(event, ConnectionCheckOutStarted):
            return  # seen among the waiters, or by its end
        self._count += 1
        (self._loans if isinstance(event, _LOANS) else self._others).append((self._count, event))

    def take(self) -> dict[str, Any]:
        kept = sorted([*self._loans, *self._others], key=lambda numbered: numbered[0])
        events = [asdict(event) | {"kind": type(event).__name__} for _, event in kept]
        skipped = self._count - len(kept)
        self._count = 0
        self._loans.clear()
        self._others.clear()
        return {"events": events, "skipped": skipped}


def _by_name(pools: list[WebsocketConnectionPool]) -> dict[str, WebsocketConnectionPool]:
    named = {pool.name: pool for pool in pools}
    if len(named) < len(pools):
        names = [pool.name for pool in pools]
        raise ValueError(f"the pools are called {names}; give each a name of its own")
    return named


def _picture(pool: WebsocketConnectionPool) -> dict[str, Any]:
    """Return what a snapshot says, but for the histories, and with `MAX_ROWS` as its limit.

    A whole snapshot with its JSON takes 15 µs a connection, twice a second: too much for 5,000.
    """
    return {
        "name": pool.name,
        "at": time(),
        "uri": shown_uri(pool.uri),
        "is_started": pool.is_started,
        "is_closed": pool.is_closed,
        "counts": introspection.counts(pool),
        "waiters": pool.waiters,
        "max_connections": pool.max_connections,
        "connections": [_row(shown) for shown in introspection.connections(pool, MAX_ROWS)],
        "gone": [_row(shown) for shown in introspection.gone(pool)],
        "waiting": [as_dict(waiter) for waiter in introspection.waiting(pool)],
        "stats": pool.stats.to_dict(),
    }


def _row(shown: ConnectionSnapshot) -> dict[str, Any]:
    """Return a connection's picture, with why it moved last in the place of its history."""
    row = vars(shown).copy()
    borrower, history = row["borrower"], row.pop("history")
    return row | {
        "borrower": vars(borrower) if borrower is not None else None,
        "why": history[-1].why if history else "",
    }


def _dumps(value: Any) -> str:
    """Return JSON that is also safe where somebody takes it for HTML."""
    return json.dumps(value).replace("<", "\\u003c")


def _answer(value: Any) -> web.Response:
    return web.Response(text=_dumps(value), content_type="application/json")
