"""What pages show that is made when they are built: the state diagram, and what commands say.

The states have places here; which arrows there are, and what they are called, is read from the
state machine's own table. A state or a move that has no place here fails the build.
"""

from __future__ import annotations

import os
import subprocess
import sys
from html import escape
from pathlib import Path
from typing import Final

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from wspool._connection.states import TRANSITIONS, State

WIDTH: Final = 560
HEIGHT: Final = 310
BOX_WIDTH: Final = 110
BOX_HEIGHT: Final = 38

CENTRES: Final = {
    State.CONNECTING: (75, 40),
    State.IDLE: (280, 40),
    State.BUSY: (485, 40),
    State.DRAINING: (383, 150),
    State.CLOSED: (280, 270),
}

ARROWS: Final = {
    # from, to: the path, and where its name is written
    ("connecting", "idle"): ("M130,40 L225,40", (177, 32)),
    ("idle", "busy"): ("M335,32 L430,32", (382, 24)),
    ("busy", "idle"): ("M430,50 L335,50", (382, 66)),
    ("busy", "draining"): ("M480,59 C470,100 455,115 415,131", (488, 104)),
    ("draining", "idle"): ("M352,131 C325,115 315,100 308,59", (296, 104)),
    ("connecting", "closed"): ("M75,59 C75,190 140,262 225,268", (100, 200)),
    ("idle", "closed"): ("M262,59 L262,251", (238, 160)),
    ("busy", "closed"): ("M515,59 C540,180 460,262 335,272", (492, 222)),
    ("draining", "closed"): ("M375,169 C365,210 345,235 312,251", (385, 215)),
}

HEAD: Final = (
    '<defs><marker id="wspool-head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7"'
    ' markerHeight="7" orient="auto"><path d="M0,0 L10,5 L0,10 z" class="head"/></marker></defs>'
)


def svg() -> str:
    """Return the diagram. Its colours are the page's, in light and in dark."""
    moves = ", ".join(f"{source} to {dest} by {name}" for name, source, dest in TRANSITIONS)
    parts = [
        f'<svg class="state-diagram" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' aria-label="{escape(moves)}">',
        HEAD,
    ]
    for name, source, dest in TRANSITIONS:
        path, (x, y) = ARROWS[source, dest]
        parts.append(f'<path d="{path}" class="arrow" marker-end="url(#wspool-head)"/>')
        parts.append(f'<text x="{x}" y="{y}" class="move">{escape(name)}</text>')
    for state in State:
        x, y = CENTRES[state]
        parts.append(
            f'<rect x="{x - BOX_WIDTH / 2:g}" y="{y - BOX_HEIGHT / 2:g}" width="{BOX_WIDTH}"'
            f' height="{BOX_HEIGHT}" rx="9" class="state {state}"/>'
        )
        parts.append(f'<text x="{x}" y="{y + 5}" class="name">{state}</text>')
    return "".join([*parts, "</svg>"])


class StateDiagram(SphinxDirective):
    """`{state-diagram}`: the picture, at this place of a page."""

    def run(self) -> list[nodes.Node]:
        return [nodes.raw("", f"<figure>{svg()}</figure>", format="html")]


class CommandHelp(SphinxDirective):
    """`{command-help} demo`: what `python -m wspool demo --help` prints."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        [command] = self.arguments
        printed = subprocess.run(
            [sys.executable, "-m", "wspool", command, "--help"],
            cwd=Path(__file__).parent.parent,
            env=os.environ | {"COLUMNS": "72", "NO_COLOR": "1"},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        shown = nodes.literal_block(printed, printed)
        shown["language"] = "text"
        return [shown]
