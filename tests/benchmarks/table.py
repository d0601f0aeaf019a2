"""The table: its rows, the machine that they were measured on, as text, Markdown and JSON."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from tests.benchmarks.goals import Figure

PACKAGES: Final = ("aiohttp", "uvloop", "asyncio-connection-pool", "aio-websocket-pool")

HEADINGS: Final = ("ours", "against", "loop", "ours", "theirs", "ratio", "half of rounds", "goal")
DOCUMENTED: Final = (
    "this pool",
    "against",
    "loop",
    "this pool",
    "the other",
    "ratio",
    "half of rounds",
)
BEGIN: Final = "<!-- The table of `make bench` begins here -->\n"
END: Final = "<!-- and ends here -->\n"

WIDTHS: Final = (47, 40, 7, 8, 8, 8, 15, 9)


@dataclass(frozen=True)
class Row:
    """One line; without a figure the note says why."""

    name: str
    ours: str
    against: str
    loop: str
    goal: str
    figure: Figure | None
    note: str = ""

    @property
    def is_met(self) -> bool | None:
        return self.figure.is_met if self.figure is not None and self.goal else None

    @property
    def verdict(self) -> str:
        return {None: "", True: " ✓", False: " ✗"}[self.is_met]

    def cells(self) -> tuple[str, ...]:
        f = self.figure
        measured = (f.ours, f.theirs, f.shown, f.half_of_rounds) if f else ("", "", "", self.note)
        return (self.ours, self.against, self.loop, *measured, self.goal + self.verdict)

    def documented_cells(self) -> tuple[str, ...]:
        """Return the cells for the documentation: no goals, and every ratio is ours to theirs."""
        f = self.figure
        measured = (f.ours, f.theirs, f.ratio, f.half_of_ratios) if f else ("", "", "", self.note)
        return (self.ours, self.against, self.loop, *measured)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"is_met": self.is_met}


def machine() -> dict[str, Any]:
    """Return what the figures depend on: no host name, no path."""
    versions = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            pass
    return {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.system(), **versions}


def _cpu() -> str:
    """Return the name of the processor's model."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        try:
            return subprocess.run(command, capture_output=True, text=True).stdout.strip()
        except OSError:
            pass
    return platform.processor() or platform.machine()


def describe(about: dict[str, Any]) -> str:
    versions = (f"{name} {about[name]}" for name in ("Python", *PACKAGES) if name in about)
    return f"{about['cpu']}, {about['cores']} cores, {about['system']}; {', '.join(versions)}"


def text(cells: Sequence[str]) -> str:
    """Return one line of the table for a terminal."""
    left = [cell.ljust(width) for cell, width in zip(cells[:3], WIDTHS[:3], strict=True)]
    right = [cell.rjust(width) for cell, width in zip(cells[3:], WIDTHS[3:], strict=True)]
    return " ".join(left + right).rstrip()


def markdown(rows: Sequence[Row], about: dict[str, Any]) -> str:
    lines = [DOCUMENTED, ("---",) * 3 + ("---:",) * 4, *(row.documented_cells() for row in rows)]
    body = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    return f"Measured on {datetime.now(UTC):%Y-%m-%d}: {describe(about)}.\n\n{body}\n"


def write(path: Path, table: str) -> None:
    """Write the table into a file: between its marks, where it has them."""
    before, begin, rest = path.read_text("utf-8").partition(BEGIN) if path.exists() else ("",) * 3
    _, end, after = rest.partition(END)
    is_marked = bool(begin and end)
    whole = f"{before}{begin}\n{table}\n{end}{after}" if is_marked else table
    path.write_text(whole, encoding="utf-8")


def to_json(rows: Sequence[Row], about: dict[str, Any]) -> str:
    measured = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": about}
    everything = measured | {"rows": [row.to_dict() for row in rows]}
    return json.dumps(everything, indent=2, ensure_ascii=False) + "\n"
