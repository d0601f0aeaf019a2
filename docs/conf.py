"""How Sphinx builds the documentation: `make docs`."""

from __future__ import annotations

import inspect
import pkgutil
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.pycode import ModuleAnalyzer

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from directives import CommandHelp, StateDiagram

import wspool

HERE = Path(__file__).parent
ROOT = HERE.parent

project = "wspool"
copyright = "2026, the wspool authors"
version = release = wspool.__version__

extensions = ["sphinx.ext.autodoc", "myst_parser", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}

URLS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = f"wspool {release}"
html_static_path = ["_static"]
html_css_files = ["wspool.css"]
html_show_sourcelink = False
html_theme_options = {
    "source_repository": URLS["Source"],
    "source_branch": "main",
    "source_directory": "docs/",
}
copybutton_prompt_text = "$ "

myst_heading_anchors = 3
default_role = "code"
autoclass_content = "both"
autodoc_default_options = {"undoc-members": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
maximum_signature_line_length = 88

ARGUMENT = re.compile(r"(\w+): ")


def mend(app: Sphinx, what: str, name: str, named: object, options: Any, lines: list[str]) -> None:
    """Say in reStructuredText what our docstrings leave to the eye.

    A paragraph of lines such as `uri: what it is` is a list of arguments, as is what stands below
    `Args:` or `Raises:`; what is indented below another colon is shown as it is.
    """
    if {"Args:", "Raises:"} & {*lines}:
        lines[:] = GoogleDocstring(lines, Config(), app, what).lines()
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


def show_what_is_awaited() -> None:
    """Show the methods that are wrapped as the coroutine functions that they are to be used as."""
    pool = wspool.WebsocketConnectionPool
    for name in ("acquire", "acquire_new"):
        setattr(pool, name, inspect.unwrap(getattr(pool, name)))


def setup(app: Sphinx) -> None:
    read_all_files()
    show_what_is_awaited()
    app.add_directive("state-diagram", StateDiagram)
    app.add_directive("command-help", CommandHelp)
    app.connect("autodoc-process-docstring", mend)
