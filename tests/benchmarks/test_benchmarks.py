"""The benchmarks run; how fast anything is, they say themselves."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path
from time import perf_counter

import pytest

from tests import ROOT
from tests.benchmarks.goals import OURS, THEIRS, AtMost, Below, Faster, Share, figure, seconds
from tests.benchmarks.side_by_side import Comparison
from tests.benchmarks.table import BEGIN, END, Row, write
from wspool import WebsocketConnectionPool
from wspool.testing import Server

pytestmark = pytest.mark.once


async def run(*arguments: str) -> str:
    """Return what the benchmarks print."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.benchmarks", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return printed.decode()


async def test_a_quick_run_shows_and_writes_its_rows(tmp_path: Path) -> None:
    names = ["noise", "acquire", "echo", "stream", "crowd", "crowd_p99", "sweep", "close_all"]
    written, table = tmp_path / "rows.json", tmp_path / "rows.md"
    files = ("--json", str(written), "--markdown", str(table))
    printed = await run("--quick", *files, "--only", *names)
    measured = json.loads(written.read_text())
    assert {row["name"] for row in measured["rows"]} == set(names)
    assert {row["loop"] for row in measured["rows"] if row["name"] == "echo"} == {
        "asyncio",
        "uvloop",
    }
    for row in measured["rows"]:
        assert row["figure"]["value"] > 0
        assert row["figure"]["shown"] in printed
        assert row["ours"] in table.read_text()
    assert measured["machine"]["cpu"]
    assert str(tmp_path) not in written.read_text() + printed


def test_a_table_takes_the_place_of_the_one_between_the_marks(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"before\n{BEGIN}an old one\n{END}after\n")
    write(path, "a new one\n")
    assert path.read_text() == f"before\n{BEGIN}\na new one\n\n{END}after\n"


def test_the_documentation_has_a_place_for_the_table() -> None:
    page = (ROOT / "docs" / "explanation" / "costs.md").read_text(encoding="utf-8")
    assert page.count(BEGIN) == page.count(END) == 1
    assert page.index(BEGIN) < page.index("Measured on 20") < page.index(END)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "--markdown docs/explanation/costs.md" in makefile


async def test_the_documented_cost_of_a_loan_is_that_of_one_loan() -> None:
    """N7: and not that of the hundred which are measured at a time."""
    [documented, *_] = re.findall(
        r"^\| `async with pool.get_connection\(\): pass` \|.*\| asyncio \| ([\d.]+) µs",
        (ROOT / "docs" / "explanation" / "costs.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    times = []
    async with Server() as server, WebsocketConnectionPool(uri=server.uri) as pool:
        for _ in range(50):
            began = perf_counter()
            for _ in range(20):
                async with pool.get_connection():
                    pass
            times.append((perf_counter() - began) / 20)
    assert float(documented) < 30 * 1_000_000 * min(times), "a hundred loans would be above that"


def test_every_ratio_in_the_documentation_is_ours_to_theirs_without_a_goal() -> None:
    compared = Comparison({OURS: [100.0] * 3, THEIRS: [200.0] * 3}).per(100)
    for goal in (AtMost(1.1), Faster(2), Share(0.4)):
        row = Row("", "a", "b", "asyncio", str(goal), figure(compared, goal, seconds))
        assert row.documented_cells() == ("a", "b", "asyncio", "1 s", "2 s", "0.5", "0.5 – 0.5")


@pytest.mark.parametrize("name", ["checkout", "checkout_websockets"])
async def test_a_peer_that_is_not_installed_is_a_row_that_says_so(
    name: str, tmp_path: Path
) -> None:
    written = tmp_path / "rows.json"
    await run("--quick", "--json", str(written), "--only", name)
    rows = json.loads(written.read_text())["rows"]
    assert [row["loop"] for row in rows] == ["asyncio", "uvloop"]
    for row in rows:
        assert row["figure"] or row["note"].endswith("is not installed")


@pytest.mark.parametrize(
    ("goal", "ours", "shown", "is_met"),
    [
        (AtMost(1.1), 1.0, "0.500", True),
        (AtMost(1.1), 3.0, "1.500", False),
        (Faster(2), 1.0, "2.00×", True),
        (Faster(2), 2.0, "1.00×", False),
        (Share(0.4), 4.0, "0.500", True),
        (Share(0.6), 4.0, "0.500", False),
        (Below(2.0, seconds), 1.0, "1 s", True),
        (Below(2.0, seconds), 3.0, "3 s", False),
    ],
)
def test_a_goal_is_met_on_the_right_side_of_its_limit(
    goal: AtMost, ours: float, shown: str, is_met: bool
) -> None:
    measured = figure(Comparison({OURS: [ours] * 3, THEIRS: [2.0] * 3}), goal, seconds)
    assert (measured.shown, measured.is_met) == (shown, is_met)


def test_a_figure_is_the_median_of_the_rounds() -> None:
    compared = Comparison({OURS: [1.0, 2.0, 90.0, 3.0, 2.0], THEIRS: [1.0, 1.0, 3.0, 1.0, 2.0]})
    assert figure(compared, AtMost(), seconds).value == 2.0
