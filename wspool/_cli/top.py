"""`python -m wspool top`: a pool or a group of another process, live in the terminal.

What cannot be printed is taken out of every text. `snapshots.py` reads them.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Final

import aiohttp

from wspool._cli import shared
from wspool._cli.keys import pressed
from wspool._cli.shared import Trouble, printable, program
from wspool._cli.snapshots import Snapshot, Source
from wspool._connection.states import State
from wspool._group.pictures import GroupSnapshot, MemberSnapshot
from wspool._pool.introspection import BorrowerSnapshot, ConnectionSnapshot, PoolSnapshot

HINT: Final = "q quit, n next"
"""The keys, in few words."""

FIXED_LINES: Final = 16
"""Of a picture: neither connections nor last closes, one for the cursor included."""


# Showing.


@dataclass
class View:
    """What there is to show: the last picture, when it was read, and what went wrong since.

    `rates` are a second's borrows and dials between the last two pictures, `hint` says which keys
    there are.
    """

    snapshot: Snapshot
    read_at: float = field(default_factory=perf_counter)
    rates: tuple[float, float] | None = None
    trouble: str = ""
    hint: str = ""

    @property
    def age(self) -> float:
        return perf_counter() - self.read_at

    def following(self, snapshot: Snapshot) -> View:
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
    states = shared.table(
        snapshot.counts, view.figures(), scale=max(10, snapshot.max_connections), box=None
    )
    _fit(states)
    above = (_header(view), Text(), states, Text())
    if isinstance(snapshot, GroupSnapshot):
        return Group(*above, *_members(snapshot, room))
    gone = min(len(snapshot.gone), max(room // 4, room - len(snapshot.connections)))
    connections = _connections(snapshot, room - gone)
    return Group(*above, *connections, Text(), _gone(snapshot, gone))


def _header(view: View) -> Any:
    from rich.text import Text

    snapshot = view.snapshot
    colour = "green" if view.status == "open" else "red"
    name, age = (printable(snapshot.name), "bold"), (f"{view.age:.0f} s old", "dim")
    if view.trouble:
        parts = [name, age, (f"trying again: {view.trouble}", "red")]
    else:
        parts = [name, (view.status, colour), age]
        if isinstance(snapshot, GroupSnapshot):
            parts.append((f"{snapshot.total_connections} of {snapshot.max_connections} open", ""))
            if out := sum(not member.is_in for member in snapshot.members):
                parts.append((f"{out} of {len(snapshot.members)} out", "yellow"))
        else:
            if snapshot.learned_limit is not None:
                parts.append((f"the server admits {snapshot.learned_limit}", "yellow"))
            parts.append((printable(snapshot.uri), ""))
    if view.hint:
        parts.insert(0, (view.hint, "dim reverse"))
    header = Text("  ").join(Text(text, style) for text, style in parts)
    header.no_wrap, header.overflow = True, "ellipsis"
    return header


def _members(snapshot: GroupSnapshot, room: int) -> Iterator[Any]:
    """Give the members in so many rows: those that are out first, then those with most to do."""
    found = sorted(
        snapshot.members,
        key=lambda one: (one.is_in, one.is_removed, -one.pool.waiters, -sum(_open(one))),
    )
    shown = found if len(found) <= room else found[: max(0, room - 1)]
    rows = [_member(member, snapshot.at) for member in shown]
    columns = ["pool", "health", "open", "busy", "waiting", "loans", "losses", "key", "why"]
    yield _plain_table(columns, rows, left={"pool", "health", "key", "why"})
    if more := len(found) - len(shown):
        from rich.text import Text

        yield Text(f"… and {more:,} more", "dim")


def _member(member: MemberSnapshot, now: float) -> list[str]:
    pool = member.pool
    health = "in"
    if member.is_removed:
        health = "removed"
    elif not member.is_in:
        left = max(0.0, (member.out_until or now) - now)
        health = f"out, probed in {left:.0f} s"
    numbers = (sum(_open(member)), pool.counts.get(State.BUSY, 0), pool.waiters)
    return [
        *(pool.name, health),
        *(f"{number:,}" for number in (*numbers, pool.stats.borrows, member.losses)),
        *(str(member.key), member.why or pool.failure or ""),
    ]


def _open(member: MemberSnapshot) -> list[int]:
    return [member.pool.counts.get(state, 0) for state in (State.IDLE, State.BUSY, State.DRAINING)]


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
    """Show it and return the exit status, as `--help` tells it."""
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
