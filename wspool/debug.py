"""A live page of one pool or several, mounted on the user's own web application.

It reads and never changes anything: GET and HEAD are all there is. What it serves is as frank as a
snapshot, with the places in the code of those who borrow, and it trusts whoever the application's
own authentication lets through; without one, all who reach the port. Of browsers it trusts only
its own pages: it answers for loopback names and addresses and for `allowed_hosts`, since a foreign
site can let its own name lead here (DNS rebinding), and refuses what a page of another site asks
for. Where a proxy sends a `Host` of its own, the check is the proxy's to make.

While no page is open there is no task and no subscription, unless a history is asked for. An open
one is a request that does not end. All that look at a pool are sent the same pictures, each of
which is made once; a client that is slow to take one misses those in between, with their events.

Behind the prefix:

    GET /                    the page, with what it is made of beside it
    GET /events              the page's stream (Server-Sent Events): two pictures a second
    GET /connection?id=7     one connection with its history; null when it is forgotten
    GET /snapshot            `pool.snapshot().to_dict()` as JSON, at most half a second old
    GET /diagram             `pool.state_diagram()`, Mermaid as plain text
    GET /dump                all that there is to be seen as a file of JSON
    GET /pools               the names of the pools as JSON

All but the first and the last take `pool=name`; without it they show the first pool given.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from typing import Final

from aiohttp import web

from wspool._debug import views
from wspool._debug.asgi import TAKE_SECONDS, Application
from wspool._debug.guarding import Origin
from wspool._debug.site import HEADERS, STREAM_HEADERS, Asked, Site
from wspool._debug.views import View
from wspool._group.pools import WebsocketPools
from wspool._pool.pool import WebsocketConnectionPool

__all__ = ["asgi", "setup"]

_PREFIX: Final = re.compile(r"(/[\w.~-]+)+")

Shown = (
    WebsocketConnectionPool
    | WebsocketPools
    | web.AppKey[WebsocketConnectionPool]
    | web.AppKey[WebsocketPools]
)


def setup(
    app: web.Application,
    *pools: Shown,
    prefix: str = "/debug/wspool",
    allowed_hosts: Iterable[str] = (),
    history: bool = False,
) -> web.Application:
    """Mount the page of these pools on an application, and return the sub-application.

    A pool that the application makes when it starts, in a `cleanup_ctx`, is given by its AppKey.
    `allowed_hosts` are the names and addresses, without ports, that the page is asked for by,
    beside the loopback ones; with "*" it answers for any, and relies on the application's
    authentication alone. Other requests get status 403, and the stream 503 while 100 are open.
    With `history` the pools are listened to from the start, for some 20 µs a loan, and a page that
    is opened shows the five minutes before. Raises TypeError for what is no pool, ValueError for
    two pools of one name, for a prefix that is not a path such as '/debug/wspool' or is taken, and
    for what is no host.
    """
    _check_pools(pools, "setup", web.AppKey)
    if not isinstance(prefix, str) or not _PREFIX.fullmatch(prefix):
        raise ValueError(f"prefix is {prefix!r}; it must be a path such as '/debug/wspool'")
    if any(resource.canonical == prefix for resource in app.router.resources()):
        raise ValueError(f"prefix is {prefix!r}, where the application serves something already")
    mounted = _Mounted(app, Site(allowed_hosts), pools, with_history=history)
    sub = web.Application()
    sub.router.add_route("*", "", mounted.serve)
    sub.router.add_route("*", "/{path:.*}", mounted.serve)
    sub.on_response_prepare.append(_harden)
    sub.on_startup.append(mounted.begin)
    sub.on_shutdown.append(mounted.end)
    app.add_subapp(prefix, sub)
    return sub


def asgi(
    *pools: WebsocketConnectionPool | WebsocketPools | str,
    allowed_hosts: Iterable[str] = (),
    history: bool = False,
) -> Application:
    """Return the page of these pools as an ASGI application, to be mounted on yours.

    It serves the event loop that the pools belong to. A pool that your application makes when it
    starts is given by its key in the state that the lifespan yields: for
    `yield {"pool": pool}`, mount `asgi("pool")`. `allowed_hosts` and `history` are those of
    `setup`; the history of a pool given by its key begins with the first request. Raises TypeError
    for what is neither a pool nor a key, ValueError for two pools of one name and for what is no
    host; a request raises LookupError where the state has no such pool.
    """
    _check_pools(pools, "asgi", str)
    return Application(Site(allowed_hosts), pools, with_history=history)


def _check_pools(pools: tuple[object, ...], function: str, key: type) -> None:
    if not pools:
        raise TypeError(f"{function}() was given no pool to show")
    for pool in pools:
        if not isinstance(pool, (WebsocketConnectionPool, WebsocketPools, key)):
            raise TypeError(
                f"{pool!r} is no WebsocketConnectionPool, no WebsocketPools and no "
                f"{'web.AppKey' if key is web.AppKey else 'key of the state, a string'}"
            )


async def _harden(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


class _Mounted:
    """A page on an aiohttp application: its requests, and the streams of those who look at it."""

    def __init__(
        self, app: web.Application, site: Site, shown: tuple[Shown, ...], *, with_history: bool
    ) -> None:
        self._app = app
        self._site = site
        self._shown = shown
        self._with_history = with_history
        pools = [pool for pool in shown if not isinstance(pool, web.AppKey)]
        site.show(pools, with_history=with_history)
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
        self._site.show(pools, with_history=self._with_history)

    async def end(self, _: web.Application) -> None:
        """End the streams; a server that stops waits for its requests."""
        self._is_ending = True
        self._site.end()
        for timer in self._timers:
            if not timer.expired():
                timer.reschedule(asyncio.get_running_loop().time())

    async def serve(self, request: web.Request) -> web.StreamResponse:
        answer = self._site.answer(_asked(request))
        if isinstance(answer, View):
            return await self._stream(answer, request)
        return web.Response(
            status=answer.status,
            body=answer.body,
            content_type=answer.content_type,
            charset="utf-8",
            headers=answer.headers,
        )

    async def _stream(self, view: View, request: web.Request) -> web.StreamResponse:
        stream = web.StreamResponse(headers=STREAM_HEADERS)
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

    async def _show(self, view: View, request: web.Request, stream: web.StreamResponse) -> None:
        """Send pictures until the page is gone, one cannot be made, or the application ends."""
        clock = asyncio.get_running_loop().time
        async with asyncio.timeout(TAKE_SECONDS) as timer:
            self._timers.add(timer)
            try:
                await stream.write(view.machine(self._site.views))
                while not self._is_ending:
                    picture = await view.picture()
                    if self._is_ending or not picture:
                        break
                    # What is not taken is not added to: it is one picture of each reader at most.
                    if request.transport is None or request.transport.get_write_buffer_size() == 0:
                        timer.reschedule(clock() + views.PICTURE_SECONDS + TAKE_SECONDS)
                        await stream.write(picture)
            finally:
                self._timers.discard(timer)


def _asked(request: web.Request) -> Asked:
    path, headers = request.match_info.get("path"), request.headers
    return Asked(
        method=request.method,
        path=f"/{path}" if path is not None else "",
        name=request.rel_url.raw_name,
        raw_query=request.rel_url.raw_query_string,
        query=request.query,
        origin=Origin(
            # The second is the request line's, if it has one.
            (headers.get("Host", ""), request.host),
            headers.get("Origin"),
            headers.get("Sec-Fetch-Site"),
            headers.get("Sec-Fetch-Mode"),
        ),
    )
