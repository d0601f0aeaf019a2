"""What the commands share: errors in one line, words, source code, the picture of the states."""

from __future__ import annotations

import argparse
import math
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from wspool._connection.states import State

MEANINGS: Final = {
    State.CONNECTING: "a handshake is under way",
    State.IDLE: "open, and ready to be borrowed",
    State.BUSY: "lent to a borrower",
    State.DRAINING: "given back early; its late reply is read first",
    State.CLOSED: "saying goodbye, until the socket is gone",
}


WIDE: Final = 90
"""Columns of a terminal that is wide enough for bars and words."""


class Trouble(Exception):
    """The command cannot go on; the text says why in one line, without secrets."""


def program() -> str:
    """Return what this program was started as: `wspool`, or `python -m wspool`."""
    is_module = Path(sys.argv[0]).parts[-2:] == ("wspool", "__main__.py")
    return "python -m wspool" if is_module else "wspool"


def header(text: str) -> tuple[str, str]:
    """Return a header of the command line as name and value."""
    name, _, value = text.partition(":")
    name, value = name.strip(), value.strip()
    if not (re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) and value and value.isprintable()):
        raise argparse.ArgumentTypeError("not a header; use 'Name: value'")
    return name, value


def status_name(status: int) -> str:
    """Name an HTTP status in our words: the server's phrase may say anything."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def printable(text: object) -> str:
    """Return a text of somebody else's without what is no character to be seen."""
    return " ".join("".join(c for c in str(text) if c.isprintable() or c.isspace()).split())


@dataclass(frozen=True)
class Argument:
    """An argument of the pool, its value as source code, and the observation behind it."""

    name: str
    value: str
    why: str


def literal(text: str) -> str:
    """Return the text as a Python string, in double quotes where they need no escape."""
    shown = repr(text)
    return shown if '"' in shown else f'"{shown[1:-1]}"'


def span(seconds: float) -> str:
    """Return a time for people."""
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def percentile(times: Sequence[float], share: float) -> float:
    """Return the time that this share of them stays below."""
    return sorted(times)[int(share * len(times))] if times else math.nan


Figure = tuple[str, str, str]
"""A name, a number, and what there is to say of it."""


def columns() -> int:
    """Return the width of the terminal; 80 where there is none."""
    return shutil.get_terminal_size((80, 24)).columns


def wrapped(text: str, indent: int = 0) -> str:
    """Return the text in lines that fit, of which all but the first begin with so many spaces."""
    width = max(columns(), indent + 20)
    lines = textwrap.wrap(
        text, width, subsequent_indent=" " * indent, break_on_hyphens=False, break_long_words=False
    )
    return "\n".join(lines)


def line(title: str, counts: Mapping[str, int], figures: list[Figure]) -> str:
    """Return the count of each state and the figures, for where there is no terminal."""
    states = "  ".join(f"{state} {n}" for state, n in counts.items())
    return f"{title}  {states} | {'  '.join(f'{name} {number}' for name, number, _ in figures)}"


def table(
    counts: Mapping[str, int],
    figures: list[Figure],
    *,
    scale: int = 10,
    width: int = WIDE,
    **options: Any,
) -> Any:
    """Return the same as a table for rich, with bars that are full at a count of `scale`.

    In a terminal that is less than `WIDE` columns wide there are no bars, and the words wrap.
    """
    from rich.table import Table
    from rich.text import Text

    is_wide = width >= WIDE
    table = Table("state", **options)
    table.add_column("now", justify="right", min_width=6)
    if is_wide:
        table.add_column("", min_width=10, style="green")
    table.add_column("meaning", min_width=46 if is_wide else None, style="dim")
    for state, meaning in MEANINGS.items():
        bar = ["█" * math.ceil(10 * min(counts[state], scale) / scale)] if is_wide else []
        table.add_row(state, str(counts[state]), *bar, meaning)
    table.add_section()
    for name, number, meaning in figures:
        table.add_row(name, number, *([""] if is_wide else []), Text(meaning))
    return table
