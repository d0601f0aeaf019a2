"""A change of the public names is a decision, and each says what it is and is documented."""

from __future__ import annotations

import difflib
import inspect
import re
from dataclasses import is_dataclass
from typing import Any

import pytest

import wspool
from tests import ROOT
from tests.support import public_names
from tests.support.pages import PAGES
from wspool._connection.idioms import ELSEWHERE

pytestmark = pytest.mark.once


# Modules that need an extra which is not installed cannot be looked at.
pytest.importorskip("prometheus_client")
pytest.importorskip("opentelemetry")

NAMED = [
    pytest.param(getattr(module, name), id=f"{module.__name__}.{name}")
    for module in public_names.modules()
    for name in module.__all__
]


def test_the_public_names_are_those_of_the_stored_list() -> None:
    stored = public_names.STORED.read_text(encoding="utf-8").splitlines()
    changes = [*difflib.unified_diff(stored, public_names.text().splitlines(), lineterm="", n=3)]
    assert not changes, "\n".join(
        [
            "the public names are not those of the stored list. If that is meant, read",
            "docs/stability.md, run `python -m tests.support.public_names --write`, look at",
            "`git diff`,",
            "and say it in CHANGELOG.md.",
            *changes,
        ]
    )


def test_dir_of_the_package_has_the_public_names_and_no_others() -> None:
    shown = [name for name in dir(wspool) if not name.startswith("__")]
    assert shown == sorted(wspool.__all__)
    assert all(hasattr(wspool, name) for name in dir(wspool))


@pytest.mark.parametrize("named", NAMED)
def test_each_public_name_and_its_members_are_described(named: Any) -> None:
    if not (inspect.isclass(named) or inspect.isroutine(named)):
        return  # a type alias: the text below it is for its readers
    assert named.__doc__, "it has no docstring"
    if not inspect.isclass(named):
        return
    for name in public_names.members(named):
        member = inspect.getattr_static(named, name, None)
        if name != "__init__" and (isinstance(member, property) or inspect.isfunction(member)):
            assert member.__doc__, f"{name} has no docstring"


@pytest.mark.parametrize("kind", public_names.MEMBERS)
def test_each_attribute_that_is_public_is_set(kind: type) -> None:
    for name in public_names.MEMBERS[kind]:
        member = inspect.getattr_static(kind, name, None)
        is_set_by_itself = isinstance(member, (str, property)) or is_dataclass(kind)
        if not is_set_by_itself and not inspect.isfunction(member):
            made = inspect.getsource(inspect.unwrap(vars(kind)["__init__"]))
            assert re.search(rf"\bself\.{name}\b.* = ", made), name


def test_what_readme_and_documentation_import_is_public() -> None:
    everything = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    public = {module.__name__: set(module.__all__) for module in public_names.modules()}
    for module, names in re.findall(r"^from (wspool[.\w]*) import (.+)$", everything, re.MULTILINE):
        assert module in public, f"{module} has no __all__"
        submodules = {name.rpartition(".")[2] for name in public}
        assert set(names.split(", ")) <= public[module] | submodules


def test_the_reference_has_every_public_name() -> None:
    reference = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\.\. auto\w+:: ([\w.]+)", reference, re.MULTILINE))
    wanted = {f"wspool.{name}" for name in wspool.__all__}
    wanted |= {module.__name__ for module in public_names.modules()} - {"wspool"}
    assert documented == wanted


BORROWED: list[type] = [
    wspool.WebsocketConnectionPool,
    wspool.WebsocketConnection,
    wspool.WebsocketStream,
]


@pytest.mark.parametrize("kind", BORROWED)
def test_no_member_is_forgotten(kind: type) -> None:
    there = {name for name in dir(kind) if not name.startswith("_")}
    if kind is wspool.WebsocketConnectionPool:
        there -= {*public_names.SETTINGS, *ELSEWHERE}
    assert set(public_names.MEMBERS[kind]) == there


@pytest.mark.parametrize("kind", BORROWED[:2])
def test_the_reference_has_the_members_that_are_public_and_no_others(kind: type) -> None:
    reference = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    found = re.search(rf":: wspool\.{kind.__name__}\b.*\n +:members: ([\w,\s]+?)\n\n", reference)
    assert found
    documented = found[1].replace(",", "").split()
    assert documented == [name for name in public_names.MEMBERS[kind] if name != "__init__"]
