"""The pages of the documentation as tests read them: tables and blocks of code."""

from __future__ import annotations

import re
from typing import Final

from tests import ROOT

DOCS: Final = ROOT / "docs"


def rows(page: str, heading: str) -> list[list[str]]:
    """Return the cells of the rows of all tables of a page that have a column with this heading."""
    found: list[list[str]] = []
    is_inside = False
    for line in (DOCS / page).read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            is_inside = False
        elif heading in cells:
            is_inside = True
        elif is_inside and not cells[0].startswith("---"):
            found.append(cells)
    return found


def code(cell: str) -> str:
    """Return the first code in a cell."""
    found = re.search(r"`(.+?)`", cell)
    assert found, cell
    return found[1]


def python(page: str) -> str:
    """Return the blocks of Python of a page."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
