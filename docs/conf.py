"""How Sphinx builds the documentation: `make docs`.

The pages are those of this directory and the repository's own README, CHANGELOG and CONTRIBUTING,
so Sphinx's source directory is the repository, and its links are the same ones as elsewhere.
"""

from __future__ import annotations

import pkgutil
import re
import sys
from pathlib import Path
from typing import Any

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

sys.path.insert(0, str(Path(__file__).parent.parent))

import wspool

project = "wspool"
copyright = "2026, the wspool authors"
version = release = wspool.__version__

extensions = ["sphinx.ext.autodoc", "myst_parser"]
root_doc = "docs/index"
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/**"]
exclude_patterns = [".*", "build", "tests", "wspool"]
source_suffix = {".md": "markdown"}

html_theme = "alabaster"
html_theme_options = {
    "description": "A pool of WebSocket client connections for asyncio",
    "page_width": "1240px",
    "body_max_width": "none",
}
html_show_sourcelink = False

myst_heading_anchors = 3
default_role = "code"
autodoc_default_options = {"undoc-members": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
maximum_signature_line_length = 88

ARGUMENT = re.compile(r"(\w+): ")


def mend(app: Sphinx, what: str, name: str, named: object, options: Any, lines: list[str]) -> None:
    """Say in reStructuredText what our docstrings leave to the eye.

    A paragraph of lines such as `uri: what it is` is a list of arguments; what is indented below a
    colon is shown as it is.
    """
    is_argument = False
    for at, line in enumerate(lines):
        starts_paragraph = not at or not lines[at - 1]
        if ARGUMENT.match(line) and (starts_paragraph or is_argument):
            lines[at] = f":param {line}"
            is_argument = True
        elif not line.startswith(" "):
            is_argument = False
        if line.endswith(":") and [one[:4] for one in lines[at + 1 : at + 3]] == ["", "    "]:
            lines[at] += ":"


def read_all_files() -> None:
    """Let autodoc find what is said of attributes, and their order, in the files that define them.

    It looks for them in the module that a public class names as its own: `wspool`, or
    `wspool.testing` for what is in `wspool._testing`.
    """
    whole, testing = map(ModuleAnalyzer.for_module, ("wspool", "wspool.testing"))
    whole.analyze()
    testing.analyze()
    for module in pkgutil.walk_packages(wspool.__path__, "wspool."):
        part = ModuleAnalyzer.for_module(module.name)
        part.analyze()
        owner = testing if module.name.startswith("wspool._testing.") else whole
        for found in ("annotations", "attr_docs", "tagorder"):
            getattr(owner, found).update(getattr(part, found))


def setup(app: Sphinx) -> None:
    read_all_files()
    app.add_lexer("mermaid", TextLexer)  # shown as text; GitHub draws it
    app.connect("autodoc-process-docstring", mend)
