"""The pages of the documentation as tests read them: tables, blocks of code, headings and links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tests import ROOT

DOCS: Final = ROOT / "docs"
README: Final = ROOT / "README.md"
PAGES: Final = (README, *sorted(DOCS.rglob("*.md")))

_BLOCK: Final = re.compile(r"^```(\w+)\n(.*?)^```$(?:\n+^```text\n(.*?)^```$)?", re.S | re.M)
_LINK: Final = re.compile(r"\]\(([^)\s]+)\)")
_FENCED: Final = re.compile(r"^(```+).*?^\1$", re.S | re.M)


class Block(NamedTuple):
    """A block of Python on a page, and what the page says that it prints, if it says so."""

    page: Path
    line: int
    code: str
    prints: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def text_of(page: str | Path) -> str:
    """Return the text of a page, whose name is from `docs` on."""
    return (DOCS / page).read_text(encoding="utf-8")


def rows(page: str, heading: str) -> list[list[str]]:
    """Return the cells of the rows of all tables of a page that have a column with this heading."""
    found: list[list[str]] = []
    is_inside = False
    for line in text_of(page).splitlines():
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


def blocks(page: Path) -> Iterator[Block]:
    """Give the blocks of Python of a page."""
    text = text_of(page)
    for match in _BLOCK.finditer(text):
        if match[1] == "python":
            yield Block(page, text[: match.start(2)].count("\n") + 1, match[2], match[3])


def python(page: str) -> str:
    """Return the blocks of Python of a page."""
    return "\n".join(block.code for block in blocks(DOCS / page))


def links(page: Path) -> list[str]:
    """Return where the links and pictures of a page lead, those in blocks of code left out."""
    return _LINK.findall(_FENCED.sub("", text_of(page)))


def anchors(page: Path) -> set[str]:
    """Return what can stand behind the `#` of a link to this page."""
    prose = _FENCED.sub("", text_of(page))
    headings = re.findall(r"^#{1,3} (.+)$", prose, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", one.lower()).strip().replace(" ", "-") for one in headings}
    return slugs | set(re.findall(r"^\(([\w-]+)\)=$", prose, re.MULTILINE))
