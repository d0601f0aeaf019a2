"""`python -m wspool top`: a pool of another process, live in the terminal.

It reads the pool's snapshot as JSON over HTTP, as the debug page serves it, and believes nothing of
what it reads: the JSON must have the fields and types of a `PoolSnapshot`, and what cannot be
printed is taken out of every text. No header, user-info or query value is shown.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache
from http import HTTPStatus
from time import perf_counter
from types import UnionType
from typing import Any, Final, get_args, get_origin, get_type_hints

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from wspool._cli import shared
from wspool._cli.keys import pressed
from wspool._cli.shared import Trouble, printable, program, status_name
from wspool._connection.scrubbing import scrub_error, scrub_uri, secrets_of
from wspool._connection.states import State
from wspool._pool.introspection import BorrowerSnapshot, ConnectionSnapshot, PoolSnapshot

ANSWER_SECONDS: Final = 5.0
"""For the server to answer."""

MAX_ANSWER_BYTES: Final = 2**26
"""A picture of 5,000 connections has a sixth of that."""

HINT: Final = "q quit, n next"
"""The keys, in few words."""

FIXED_LINES: Final = 16
"""Of a picture: neither connections nor last closes, one for the cursor included."""


# Reading.


class Source:
    """An address that serves the snapshot of a pool."""

    def __init__(self, url: str, headers: list[tuple[str, str]]) -> None:
        self._url = _address(url)
        self._headers = CIMultiDict(headers)
        self._secrets = secrets_of(url, {str(n): value for n, (_, value) in enumerate(headers)})
        # The JSON of the last picture.
        self.json: Any = None

    async def read(self, session: aiohttp.ClientSession) -> PoolSnapshot:
        """Return the pool as it is now, or raise Trouble."""
        found = await self._json(session, self._url)
        try:
            snapshot: PoolSnapshot = as_made(PoolSnapshot, found)
            if missing := set(State) - snapshot.counts.keys():
                raise ValueError(f"counts has no {str(min(missing))!r}")
        except ValueError as error:
            raise self._trouble(f"the answer is not the snapshot of a pool: {error}") from None
        self.json = found
        return snapshot

    async def switch(self, session: aiohttp.ClientSession, shown: str, step: int) -> None:
        """Read another pool of the same page from now on: so many after the one shown."""
        path = self._url.raw_path.removesuffix("/snapshot") + "/pools"
        names = await self._json(session, self._url.with_path(path, encoded=True))
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names) and names):
            raise self._trouble("the answer has no names of pools")
        index = names.index(shown) + step if shown in names else 0
        self._url = self._url.update_query(pool=names[index % len(names)])

    async def _json(self, session: aiohttp.ClientSession, url: URL) -> Any:
        try:
            body = await self._fetch(session, url)
        except TimeoutError:
            raise self._trouble(f"no answer within {ANSWER_SECONDS:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            scrubbed = scrub_error(error, self._secrets)
            raise self._trouble(str(scrubbed) or type(error).__name__) from None
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise self._trouble("the answer is not JSON") from None

    async def _fetch(self, session: aiohttp.ClientSession, url: URL) -> bytes:
        # A redirect would take the headers to another server.
        get = session.get(url, headers=self._headers, allow_redirects=False)
        async with asyncio.timeout(ANSWER_SECONDS), get as response:
            if response.status != HTTPStatus.OK:
                raise self._trouble(f"the server answered {_status(response.status)}")
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    raise self._trouble(f"the answer has more than {MAX_ANSWER_BYTES:,} bytes")
            return bytes(body)

    def _trouble(self, what: str) -> Trouble:
        return Trouble(printable(f"{scrub_uri(self._url)}: {what}"))


def _address(url: str) -> URL:
    """Return the address of the snapshot; `url` may be that of the page, a prefix of it."""
    try:
        found = URL(url if "://" in url else f"http://{url}")
        is_http = found.scheme in ("http", "https") and found.host and found.port
        is_http = is_http and not re.search(r"\s", url)
    except ValueError:
        is_http = False
    if not is_http:  # and it may have a password anywhere
        raise Trouble("the address is not a URL like http://host/path or https://host/path")
    path = found.raw_path.rstrip("/")
    if not path.endswith("/snapshot"):
        path += "/snapshot"
    query = f"?{found.raw_query_string}" if found.raw_query_string else ""
    return URL(f"{found.with_path(path, encoded=True)}{query}", encoded=True)


def _status(status: int) -> str:
    name = status_name(status)
    if status == HTTPStatus.UNAUTHORIZED:
        return f"{name}; -H 'Name: value' sends what the application asks for"
    if status == HTTPStatus.NOT_FOUND:
        return f"{name}; is that the prefix of the debug page, and the ?pool= one of its pools?"
    return name


_hints = cache(get_type_hints)


@cache
def _optional(kind: Any) -> set[str]:
    """Return the fields that a snapshot of an older version may be without."""
    found = fields(kind) if is_dataclass(kind) else ()
    return {field.name for field in found if field.default is not MISSING}


def as_made(kind: Any, value: Any, where: str = "it") -> Any:
    """Return a value of a snapshot's JSON as the object that it was made from.

    Raise ValueError where it is none; fields of a newer version are left out, and those that an
    older one does not have are as their class says.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return None if value is None else as_made(arguments[0], value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(as_made(arguments[0], item, f"an item of {where}") for item in value)
    if origin in (dict, Counter) and isinstance(value, dict):
        number = arguments[1] if origin is dict else int
        return origin({k: as_made(number, n, f"an item of {where}") for k, n in value.items()})
    if kind is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    if kind in (str, bool, int) and type(value) is kind:
        return value
    if kind is State and value in list(State):
        return State(value)
    if isinstance(kind, type) and (hints := _hints(kind)) and isinstance(value, dict):
        given = hints.keys() & value.keys()
        if missing := hints.keys() - given - _optional(kind):
            raise ValueError(f"{where} has no {min(missing)!r}")
        return kind(**{name: as_made(hints[name], value[name], name) for name in given})
    raise ValueError(f"{where} is of another type")


# Showing.


@dataclass
class View:
    """What there is to show: the last picture, when it was read, and what went wrong since.

    `rates` are a second's borrows and dials between the last two pictures, `hint` says which keys
    there are.
    """

    snapshot: PoolSnapshot
    read_at: float = field(default_factory=perf_counter)
    rates: tuple[float, float] | None = None
    trouble: str = ""
    hint: str = ""

    @property
    def age(self) -> float:
        return perf_counter() - self.read_at

    def following(self, snapshot: PoolSnapshot) -> View:
        """Return the view of the next picture."""
        before, seconds = self.snapshot, snapshot.at - self.snapshot.at
        borrows = snapshot.stats.borrows - before.stats.borrows
        dials = snapshot.stats.dials - before.stats.dials
        is_same = snapshot.name == before.name and min(borrows, dials) >= 0  # else it is a new one
        rates = (borrows / seconds, dials / seconds) if is_same and seconds > 0 else None
        return View(snapshot, rates=rates, hint=self.hint)

    @property
    def status(self) -> str:
        if self.snapshot.is_closed:
            return "closed"
        return "open" if self.snapshot.is_started else "not started"

    def figures(self) -> list[shared.Figure]:
        snapshot, stats = self.snapshot, self.snapshot.stats
        oldest = ""
        if snapshot.waiting:
            first = snapshot.waiting[0]
            oldest = f"the oldest for {first.seconds:.1f} s: {_who(first.borrower)}"
        rates = [f"{rate:,.1f}" for rate in self.rates] if self.rates else ["–", "–"]
        failed = stats.failures.total()
        return [
            ("waiting", f"{snapshot.waiters:,}", oldest),
            ("borrows/s", rates[0], f"{stats.borrows:,} so far"),
            ("dials/s", rates[1], f"{stats.dials:,} so far, of which {failed:,} failed"),
        ]


def _who(borrower: BorrowerSnapshot) -> str:
    """Name the task and its place, of whose path the end is enough."""
    place = "/".join(re.split(r"[/\\]", borrower.borrowed_at)[-2:])
    return printable(f"{borrower.task or 'no task'} at {place}")


def line(view: View) -> str:
    """Return the view in one line."""
    name = printable(view.snapshot.name)
    if view.trouble:
        return f"{name} {view.age:.0f} s old; trying again: {view.trouble}"
    counts = {str(state): view.snapshot.counts[state] for state in State}
    return shared.line(f"{name} {view.status}", counts, view.figures())


def picture(view: View, height: int) -> Any:
    """Return the view for rich, in so many lines at most."""
    from rich.console import Group
    from rich.text import Text

    snapshot = view.snapshot
    room = max(0, height - FIXED_LINES)
    gone = min(len(snapshot.gone), max(room // 4, room - len(snapshot.connections)))
    states = shared.table(
        snapshot.counts, view.figures(), scale=max(10, snapshot.max_connections), box=None
    )
    _fit(states)
    connections = _connections(snapshot, room - gone)
    return Group(_header(view), Text(), states, Text(), *connections, Text(), _gone(snapshot, gone))


def _header(view: View) -> Any:
    from rich.text import Text

    snapshot = view.snapshot
    colour = "green" if view.status == "open" else "red"
    name, age = (printable(snapshot.name), "bold"), (f"{view.age:.0f} s old", "dim")
    if view.trouble:
        parts = [name, age, (f"trying again: {view.trouble}", "red")]
    else:
        parts = [name, (view.status, colour), age, (printable(snapshot.uri), "")]
        if snapshot.learned_limit is not None:
            parts.insert(3, (f"the server admits {snapshot.learned_limit}", "yellow"))
    if view.hint:
        parts.insert(0, (view.hint, "dim reverse"))
    header = Text("  ").join(Text(text, style) for text, style in parts)
    header.no_wrap, header.overflow = True, "ellipsis"
    return header


def _connections(snapshot: PoolSnapshot, room: int) -> Iterator[Any]:
    """Give the connections in so many rows, and how many more there are in the last of them."""
    order = {str(state): number for number, state in enumerate(State)}
    found = sorted(snapshot.connections, key=lambda c: (order.get(c.state, len(order)), c.id))
    shown = found if len(found) <= room else found[: max(0, room - 1)]
    columns = ["id", "state", "for", "age", "uses", "rtt", "sent", "received", "borrower"]
    rows = [[*_numbers(c), _lent(c, snapshot.max_streams)] for c in shown]
    yield _plain_table(columns, rows, left={"state", "borrower"})
    if more := len(found) - len(shown):
        from rich.text import Text

        yield Text(f"… and {more:,} more", "dim")


def _numbers(connection: ConnectionSnapshot) -> list[str]:
    rtt = connection.rtt
    return [
        f"#{connection.id}",
        connection.state,
        f"{connection.seconds_in_state:,.1f} s",
        f"{connection.age:,.0f} s",
        f"{connection.uses:,}",
        f"{1000 * rtt:.1f} ms" if rtt is not None else "",
        f"{connection.sent_messages:,}",
        f"{connection.received_messages:,}",
    ]


def _lent(connection: ConnectionSnapshot, max_streams: int) -> str:
    if connection.streams:
        return f"{len(connection.streams)}/{max_streams} streams"
    if connection.borrower is None:
        return ""
    return f"{'overdue: ' if connection.is_overdue else ''}{_who(connection.borrower)}"


def _gone(snapshot: PoolSnapshot, room: int) -> Any:
    rows = []
    for connection in list(reversed(snapshot.gone))[:room]:
        last = connection.history[-1] if connection.history else None
        was, why, ago = (last.source, last.why, snapshot.at - last.at) if last else ("", "", 0.0)
        code = str(connection.close_code) if connection.close_code is not None else ""
        how = f"{code} {connection.close_reason}".strip()
        rows.append(
            [f"#{connection.id}", was, f"{ago:,.0f} s ago", f"{connection.uses:,}", why, how]
        )
    columns = ["id", "was", "closed", "uses", "why", "code and reason"]
    return _plain_table(columns, rows, left={"was", "why", "code and reason"})


def _plain_table(columns: list[str], rows: list[list[str]], left: set[str]) -> Any:
    """Return a table without lines whose rows are one line each, whatever is in them."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None)
    for name in columns:
        table.add_column(name, justify="left" if name in left else "right")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    _fit(table)
    return table


def _fit(table: Any) -> None:
    """Let each row be one line, and the last column get what width is left."""
    for column in table.columns:
        column.no_wrap = True
    last = table.columns[-1]
    table.expand, last.ratio, last.min_width = True, 1, None


@contextmanager
def display(is_once: bool) -> Iterator[Callable[[View], None]]:
    """Give what shows a view: a live picture where there is a terminal, else lines."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a name may have what the encoding has not
    console = _console()
    if console is None:
        yield lambda view: print(line(view), flush=True)
    elif is_once:
        yield lambda view: console.print(picture(view, console.height))
    else:
        from rich.live import Live

        with Live(console=console, auto_refresh=False) as live:
            yield lambda view: live.update(picture(view, console.height), refresh=True)


def _console() -> Any:
    """Return the terminal as rich has it, or None if there is none."""
    if not sys.stdout.isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        raise Trouble(
            "rich is missing, which draws in a terminal: pip install 'wspool[rich]'"
        ) from None
    console = Console(highlight=False)
    return console if console.is_terminal and not console.is_dumb_terminal else None


# The command.


def run(args: argparse.Namespace) -> int:
    """Show the pool and return the exit status, as `--help` tells it."""
    try:
        if args.json and not args.once:
            raise Trouble("--json needs --once")
        return asyncio.run(_run(args, Source(args.url, args.header)))
    except Trouble as trouble:
        print(f"{program()} top: {trouble}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


async def _run(args: argparse.Namespace, source: Source) -> int:
    async with aiohttp.ClientSession() as session:
        view = View(await source.read(session))
        if args.json:
            print(json.dumps(source.json, indent=2))
            return 0
        with display(args.once) as show, pressed(is_wanted=not args.once) as keys:
            if keys.are_read:
                view.hint = HINT
            show(view)
            while not args.once:
                key = await keys.within(args.interval)
                if key == "quit":
                    break
                try:
                    if key:
                        step = 1 if key == "next" else -1
                        await source.switch(session, view.snapshot.name, step)
                    view = view.following(await source.read(session))
                except Trouble as trouble:
                    view.trouble = str(trouble)
                show(view)
    return 0
