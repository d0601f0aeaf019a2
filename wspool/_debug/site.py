"""What the page answers, whatever server it is mounted on: GET and HEAD are all there is.

    GET /                    the page, with what it is made of beside it
    GET /events              the page's stream (Server-Sent Events): two pictures a second
    GET /connection?id=7     one connection with its history; null when it is forgotten
    GET /snapshot            `pool.snapshot().to_dict()` as JSON, at most half a second old
    GET /diagram             `pool.state_diagram()`, Mermaid as plain text
    GET /pools               the names of the pools as JSON
    GET /dump                all that there is to be seen, as a file of JSON

Those from `/events` to `/dump` but `/pools` take `pool=name`; without it they show the first pool.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from importlib.resources import files
from typing import Final, NamedTuple
from urllib.parse import quote
from weakref import WeakValueDictionary

from wspool._connection import states
from wspool._debug import guarding, pictures
from wspool._debug.guarding import Origin
from wspool._debug.pictures import dumps
from wspool._debug.views import View
from wspool._group import looking
from wspool._group.looking import Shown
from wspool._pool.pool import WebsocketConnectionPool

MAX_READERS: Final = 100
"""Open streams of one mounted page, whatever their pools."""

_FILES: Final = {
    "index.html": "text/html",
    "page.js": "text/javascript",
    "charts.js": "text/javascript",
    "diagram.js": "text/javascript",
    "page.css": "text/css",
    "icon.svg": "image/svg+xml",
}
HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Of every answer."""

STREAM_HEADERS: Final = {
    "Content-Type": "text/event-stream",
    "X-Accel-Buffering": "no",  # else nginx collects before it passes on
}


class Asked(NamedTuple):
    """A request: `path` is what is behind the prefix, `name` the last segment of that."""

    method: str
    path: str
    name: str
    raw_query: str
    query: Mapping[str, str]
    origin: Origin


class Answer(NamedTuple):
    """An answer that is whole; the body of one to HEAD is not sent."""

    status: HTTPStatus
    content_type: str
    body: bytes
    headers: Mapping[str, str] = {}


class Site:
    """One mounted page: the views of its pools and groups, and whom it answers."""

    def __init__(self, allowed_hosts: Iterable[str]) -> None:
        self._allowed = guarding.checked(allowed_hosts)
        self.views: dict[str, View] = {}
        # Those of groups' members, by the pools, for as long as somebody looks.
        self._of_members: WeakValueDictionary[WebsocketConnectionPool, View] = WeakValueDictionary()
        folder = files("wspool") / "page"
        self._files = {
            "/" if name == "index.html" else f"/{name}": Answer(
                HTTPStatus.OK, kind, (folder / name).read_bytes()
            )
            for name, kind in _FILES.items()
        }

    def show(self, wanted: Iterable[Shown], *, with_history: bool) -> None:
        """Show these; those that were shown before keep their views."""
        wanted = list(wanted)
        names = [shown.name for shown in wanted]
        if len(set(names)) < len(names):
            raise ValueError(f"the pools are called {names}; give each a name of its own")
        known = {view.shown: view for view in self.views.values()}
        for shown in known.keys() - set(wanted):
            known[shown].end()
        self.views = {
            shown.name: known.get(shown) or View(shown, with_history=with_history)
            for shown in wanted
        }

    def names(self) -> list[str]:
        """Return what there is to choose from, each group before its members."""
        names = {
            name: None
            for view in self.views.values()
            for name in (view.shown.name, *(pool.name for pool in looking.pools_of(view.shown)))
        }
        return list(names)

    def _view(self, name: str) -> View | None:
        """Return the view of a pool or a group, or of a member of one."""
        if (view := self.views.get(name)) is not None:
            return view
        pool = looking.by_name(view.shown for view in self.views.values()).get(name)
        if pool is None:
            return None
        return self._of_members.get(pool) or self._of_members.setdefault(pool, View(pool))

    def end(self) -> None:
        """Listen to nothing any more but for those who look."""
        for view in self.views.values():
            view.end()

    def answer(self, asked: Asked) -> Answer | View:
        """Return the answer, or the view whose stream is asked for."""
        if refusal := guarding.refusal(asked.origin, self._allowed):
            return _plain(HTTPStatus.FORBIDDEN, refusal)
        paths = {"", *self._files, "/events", "/pools", *_OF_A_POOL}
        if asked.path not in paths:
            return _plain(HTTPStatus.NOT_FOUND, "404: Not Found")
        if asked.method not in ("GET", "HEAD"):
            not_allowed = _plain(HTTPStatus.METHOD_NOT_ALLOWED, "405: Method Not Allowed")
            return not_allowed._replace(headers={"Allow": "GET,HEAD"})
        if asked.path == "":
            query = f"?{asked.raw_query}" if asked.raw_query else ""
            found = _plain(HTTPStatus.FOUND, "302: Found")
            # To the path with a slash; relative, since a proxy may have rewritten the path.
            return found._replace(headers={"Location": f"{asked.name}/{query}"})
        if (file := self._files.get(asked.path)) is not None:
            return file
        if asked.path == "/pools":
            return _json(dumps(self.names()))
        name = asked.query.get("pool", next(iter(self.views)))
        if (view := self._view(name)) is None:
            return _plain(HTTPStatus.NOT_FOUND, f"no pool {name!r}; there are {list(self.views)}")
        if asked.path == "/events":
            return self._admitted(view)
        return _OF_A_POOL[asked.path](view, asked)

    def _admitted(self, view: View) -> Answer | View:
        views = [*self.views.values(), *self._of_members.values()]
        if sum(len(view.readers) for view in views) < MAX_READERS:
            return view
        return _plain(
            HTTPStatus.SERVICE_UNAVAILABLE,
            f"{MAX_READERS} debug pages are open, and more are not served at a time: close one, "
            "then reload this.",
        )


def _snapshot(view: View, _: Asked) -> Answer:
    return _json(view.snapshot())


def _diagram(view: View, _: Asked) -> Answer:
    return _plain(HTTPStatus.OK, states.diagram(looking.counts(view.shown)))


def _connection(view: View, asked: Asked) -> Answer:
    pools, id = looking.pools_of(view.shown), asked.query.get("id", "")
    found = (pictures.connection(pool, id) for pool in pools)
    return _json(dumps(next((one for one in found if one is not None), None)))


def _dump(view: View, _: Asked) -> Answer:
    name = re.sub(r"[^\w.-]", "_", view.shown.name)
    disposition = f"attachment; filename*=UTF-8''{quote(f'wspool-{name}.json')}"
    return _json(view.dump())._replace(headers={"Content-Disposition": disposition})


_OF_A_POOL: Final = {
    "/snapshot": _snapshot,
    "/diagram": _diagram,
    "/connection": _connection,
    "/dump": _dump,
}


def _plain(status: HTTPStatus, text: str) -> Answer:
    return Answer(status, "text/plain", text.encode())


def _json(body: bytes) -> Answer:
    return Answer(HTTPStatus.OK, "application/json", body)
