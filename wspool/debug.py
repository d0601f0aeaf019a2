"""A live page of one pool or several, mounted on the user's own aiohttp application.

It reads and never changes anything: GET and HEAD are all there is. What it serves is as frank as a
snapshot, with the places in the code of those who borrow, and it trusts whoever the application's
own authentication lets through; without one, all who reach the port. Of browsers it trusts only
its own pages: it answers for loopback names and addresses and for `allowed_hosts`, since a foreign
site can let its own name lead here (DNS rebinding), and refuses what a page of another site asks
for. Where a proxy sends a `Host` of its own, the check is the proxy's to make.

While no page is open there is no task and no subscription. An open one is a request that does not
end. All that look at a pool are sent the same pictures, each of which is made once; a client that
is slow to take one misses those in between, with their events.

Behind the prefix:

    GET /                    the page, with what it is made of beside it
    GET /events              the page's stream (Server-Sent Events): two pictures a second
    GET /connection?id=7     one connection with its history; null when it is forgotten
    GET /snapshot            `pool.snapshot().to_dict()` as JSON, at most half a second old
    GET /diagram             `pool.state_diagram()`, Mermaid as plain text

All but the first take `pool=name`; without it they show the first pool that `setup` was given.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.resources import files
from ipaddress import ip_address
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

MAX_READERS: Final = 100
"""Open streams of one mounted page, whatever their pools."""

MAX_ROWS: Final = 100
"""Connections of each state in a picture, those that have been in it for longest: 20 µs apiece."""

_PREFIX: Final = re.compile(r"(/[\w.~-]+)+")
_AUTHORITY: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([\w.-]+))(?::\d*)?", re.ASCII)
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


def setup(
    app: web.Application,
    *pools: Shown,
    prefix: str = "/debug/wspool",
    allowed_hosts: Iterable[str] = (),
) -> web.Application:
    """Mount the page of these pools on an application, and return the sub-application.

    A pool that the application makes when it starts, in a `cleanup_ctx`, is given by its AppKey.
    `allowed_hosts` are the names and addresses, without ports, that the page is asked for by,
    beside the loopback ones; with "*" it answers for any, and relies on the application's
    authentication alone. Other requests get status 403, and the stream 503 while 100 are open.
    Raises TypeError for what is no pool, ValueError for two pools of one name, for a prefix that is
    not a path such as '/debug/wspool' or is taken, and for what is no host.
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
    sub = web.Application(middlewares=[_guard(_checked(allowed_hosts))])
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


def _checked(allowed_hosts: Iterable[str]) -> frozenset[str]:
    """Return the hosts in their normal form."""
    if isinstance(allowed_hosts, str):
        raise TypeError(f"allowed_hosts is {allowed_hosts!r}; it must be several, as in a list")
    hosts = {given: _host(f"[{given}]" if ":" in given else given) for given in allowed_hosts}
    for given, host in hosts.items():
        if not host and given != "*":
            raise ValueError(
                f"allowed_hosts has {given!r}; use a name as browsers send it, such as "
                "'debug.example.org', an address, both without a port, or '*' for any"
            )
    return frozenset(host or "*" for host in hosts.values())


def _host(authority: str) -> str:
    """Return the host of 'host' or 'host:port' in its normal form; "" where there is none."""
    found = _AUTHORITY.fullmatch(authority)
    name = (found[1] or found[2]).lower().removesuffix(".") if found else authority
    try:
        return ip_address(name).compressed
    except ValueError:
        return name if found and found[2] else ""


def _is_loopback(host: str) -> bool:
    """Return whether it is this machine, without asking a name server."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return f".{host}".endswith(".localhost")


def _guard(allowed: frozenset[str]) -> Any:
    """Return the middleware that refuses foreign hosts, and what pages of other sites ask for."""

    def is_allowed(authority: str) -> bool:
        host = _host(authority)
        return "*" in allowed or host in allowed or _is_loopback(host)

    @web.middleware
    async def guard(request: web.Request, handler: Any) -> web.StreamResponse:
        host = request.headers.get("Host", "")
        for named in (host, request.host):  # the second is the request line's, if it has one
            if not is_allowed(named):
                raise web.HTTPForbidden(
                    text=f"The debug page does not answer for the host {named!r}, only for "
                    "loopback names and addresses and for those that wspool.debug.setup() was "
                    "given as allowed_hosts."
                )
        origin = request.headers.get("Origin")
        is_foreign = origin is not None and origin.partition("://")[2] != host
        fetched = request.headers.get("Sec-Fetch-Site"), request.headers.get("Sec-Fetch-Mode")
        # A link may lead here from anywhere.
        if is_foreign or (fetched[0] == "cross-site" and fetched[1] != "navigate"):
            raise web.HTTPForbidden(text="The debug page answers no page of another site.")
        return await handler(request)  # type: ignore[no-any-return]

    return guard


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
        self._views = _by_name([pool for pool in shown if not isinstance(pool, web.AppKey)])
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
                        f"the application has no pool under {shown!r} when it starts; make it in a "
                        "cleanup_ctx: those run before the debug page begins"
                    )
                shown = self._app[shown]
            pools.append(shown)
        self._views = _by_name(pools)

    async def end(self, _: web.Application) -> None:
        """End the streams; a server that stops waits for its requests."""
        self._is_ending = True
        for timer in self._timers:
            if not timer.expired():
                timer.reschedule(asyncio.get_running_loop().time())

    def _chosen(self, request: web.Request) -> _View:
        name = request.query.get("pool", next(iter(self._views)))
        if name not in self._views:
            raise web.HTTPNotFound(text=f"no pool {name!r}; there are {list(self._views)}")
        return self._views[name]

    async def snapshot(self, request: web.Request) -> web.Response:
        return _answer(self._chosen(request).snapshot())

    async def diagram(self, request: web.Request) -> web.Response:
        return web.Response(text=self._chosen(request).pool.state_diagram())

    async def connection(self, request: web.Request) -> web.Response:
        shown = introspection.found(self._chosen(request).pool, request.query.get("id", ""))
        if shown is None:
            return _answer(_dumps(None))
        return _answer(_dumps(_row(shown) | {"history": [m._asdict() for m in shown.history]}))

    async def events(self, request: web.Request) -> web.StreamResponse:
        view = self._chosen(request)
        if sum(len(view.readers) for view in self._views.values()) >= MAX_READERS:
            raise web.HTTPServiceUnavailable(
                text=f"{MAX_READERS} debug pages are open, and more are not served at a time: "
                "close one, then reload this."
            )
        stream = web.StreamResponse()
        stream.content_type = "text/event-stream"
        stream.headers["X-Accel-Buffering"] = "no"  # else nginx collects before it passes on
        with view.reading():
            await stream.prepare(request)
            try:
                if request.method == "GET":
                    await self._show(view, request, stream)
            except ConnectionResetError:
                pass  # the page was closed
            except TimeoutError:
                if request.transport is not None and request.transport.get_write_buffer_size():
                    request.transport.abort()  # nobody takes what is under way
        return stream

    async def _show(self, view: _View, request: web.Request, stream: web.StreamResponse) -> None:
        """Send pictures until the page is gone, one cannot be made, or the application ends."""
        machine = {"states": list(State), "transitions": TRANSITIONS, "pools": list(self._views)}
        clock = asyncio.get_running_loop().time
        async with asyncio.timeout(TAKE_SECONDS) as timer:
            self._timers.add(timer)
            try:
                await stream.write(b"event: machine\ndata: %b\n\n" % _dumps(machine))
                while not self._is_ending:
                    picture = await view.picture()
                    if self._is_ending or not picture:
                        break
                    # What is not taken is not added to: it is one picture of each reader at most.
                    if request.transport is None or request.transport.get_write_buffer_size() == 0:
                        timer.reschedule(clock() + PICTURE_SECONDS + TAKE_SECONDS)
                        await stream.write(picture)
            finally:
                self._timers.discard(timer)


class _View:
    """A pool as all see it that look at it: each picture is made once, and while somebody waits."""

    def __init__(self, pool: WebsocketConnectionPool) -> None:
        self.pool = pool
        # One for each open stream. The pool is listened to while there is any.
        self.readers: set[object] = set()
        self._unsubscribe: Callable[[], object] = bool
        self._unshown = _Unshown()
        # Those of the streams that have taken the last picture, and when they get the next.
        self._picture_waiters: set[asyncio.Future[bytes]] = set()
        self._tick: asyncio.Handle | None = None
        # The JSON of the last snapshot, for as long as a picture lasts.
        self._snapshot = b""

    @contextmanager
    def reading(self) -> Iterator[None]:
        reader = object()
        if not self.readers:
            self._unsubscribe = self.pool.subscribe(self._unshown.add)
        self.readers.add(reader)
        try:
            yield
        finally:
            self.readers.discard(reader)
            if not self.readers:
                self._unsubscribe()
                self._unshown.take()

    async def picture(self) -> bytes:
        """Return the next picture as an event of the stream; empty if it cannot be made."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bytes] = loop.create_future()
        self._picture_waiters.add(waiter)
        if self._tick is None:
            self._tick = loop.call_soon(self._show)
        try:
            return await waiter
        finally:
            self._picture_waiters.discard(waiter)

    def _show(self) -> None:
        """Make a picture, if anybody waits for one, and see to the next."""
        self._tick = None
        if not self._picture_waiters:
            return
        self._tick = asyncio.get_running_loop().call_later(PICTURE_SECONDS, self._show)
        try:
            picture = _dumps(_picture(self.pool) | self._unshown.take())
            frame = b"data: %b\n\n" % picture
        except Exception:
            logger.exception("a debug page of %r broke down; the pool goes on", self.pool)
            frame = b""
        for waiter in self._picture_waiters:
            if not waiter.done():
                waiter.set_result(frame)

    def snapshot(self) -> bytes:
        """Return the pool's snapshot as JSON, the same to all for as long as a picture lasts."""
        if not self._snapshot:
            self._snapshot = _dumps(self.pool.snapshot().to_dict())
            asyncio.get_running_loop().call_later(PICTURE_SECONDS, self._forget)
        return self._snapshot

    def _forget(self) -> None:
        self._snapshot = b""


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


def _by_name(pools: list[WebsocketConnectionPool]) -> dict[str, _View]:
    views = {pool.name: _View(pool) for pool in pools}
    if len(views) < len(pools):
        names = [pool.name for pool in pools]
        raise ValueError(f"the pools are called {names}; give each a name of its own")
    return views


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
        "failure": introspection.failure(pool),
    }


def _row(shown: ConnectionSnapshot) -> dict[str, Any]:
    """Return a connection's picture, with why it moved last in the place of its history."""
    row = vars(shown).copy()
    borrower, history = row["borrower"], row.pop("history")
    return row | {
        "borrower": vars(borrower) if borrower is not None else None,
        "why": history[-1].why if history else "",
    }


def _dumps(value: Any) -> bytes:
    """Return JSON that is also safe where somebody takes it for HTML."""
    return json.dumps(value).replace("<", "\\u003c").encode()


def _answer(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json", charset="utf-8")
