"""The files of the package: who may know of whom, and where a connection's state is assigned."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import wspool
from tests import ROOT

PACKAGE = Path(wspool.__file__).parent

FILES = """
    _connection.exporting _connection.errors _connection.idioms
    events quota
    _connection.scrubbing _connection.callsites _connection.states _connection.queues
    _connection.aiohttp_internals _connection.budget _connection.wire _connection.link
    _connection.facts _connection.dialogue _connection.borrow _connection.loan
    _connection.routes _connection.unclaimed _connection.terms _connection.sharing
    _connection.stream
    _pool.checks _pool.connect_options _pool.options _pool.sessions
    _pool.stats _pool.listeners _pool.waiting _pool.limit _pool.capacity _pool.retiring
    _pool.tasks _pool.permits _pool.gate _pool.dialing _pool.draining _pool.errands
    _pool.attending _pool.closing _pool.telling _pool.patience _pool.supply _pool.replacing
    _pool.repeating _pool.streaming _pool.routing
    _pool.upkeep _pool.introspection _pool.configured _pool.pool _pool.calls _pool.portal
    _pool.blocking_borrow _pool.blocking_connection _pool.blocking_stream _pool.blocking_lender
    _pool.blocking
    _group.health _group.members _group.account _group.crowd _group.roster _group.doors
    _group.pictures _group.repeating _group.pools _group.blocking _group.looking
    _testing.server _testing.streams _testing.turns _testing.matching _testing.recording
    _testing.replaying
    _debug.guarding _debug.durations _debug.recent _debug.pictures _debug.views _debug.site
    _debug.asgi
    _redis.script _redis.offers _redis.listening
    prometheus opentelemetry redis debug testing pytest_plugin
    _cli.shared _cli.keys _cli.demo _cli.snapshots _cli.top _cli.answers _cli.observations
    _cli.advice _cli.tapping _cli.probe _cli.recording _cli.commands
"""
FOLDERS = [
    f"wspool.{name}"
    for name in ("_connection", "_pool", "_group", "_testing", "_debug", "_redis", "_cli")
]
ORDER = [*FOLDERS, *(f"wspool.{name}" for name in FILES.split())]
ORDER.insert(ORDER.index("wspool._cli.shared"), "wspool")
ORDER.append("wspool.__main__")
"""The order of the files: none imports one that stands below itself."""

EXTRAS = {
    "wspool.prometheus": {"prometheus_client"},
    "wspool.opentelemetry": {"opentelemetry"},
    "wspool.pytest_plugin": {"pytest", "pytest_asyncio"},
    "wspool.redis": {"redis"},
    "wspool._redis.listening": {"redis"},
}
"""The optional parts with what they need beyond the core's dependencies; no other imports them."""


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        yield name.removesuffix(".__init__"), ast.parse(path.read_text(encoding="utf-8"))


def assigns_a_state(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr == "state" and not isinstance(node.ctx, ast.Load)
    if isinstance(node, ast.Call):
        called = ast.unparse(node.func).rpartition(".")[2]
        named = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
        return called in ("setattr", "__setattr__", "delattr") and "state" in named
    return False


def places_that_assign_a_state(node: ast.AST, inside: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if assigns_a_state(child):
            yield inside
        is_named = isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        yield from places_that_assign_a_state(
            child, f"{inside}.{child.name}" if is_named else inside
        )


def test_after_a_birth_the_state_is_assigned_in_one_place_only() -> None:
    found = [place for name, tree in modules() for place in places_that_assign_a_state(tree, name)]
    assert found == [
        "wspool._connection.link.Link.__init__",
        "wspool._connection.states._Move.trigger",
    ]


def imports(node: ast.AST) -> Iterator[str]:
    """Give every module that is imported: at once, later, or for the type checker alone."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute here"
        assert node.module is not None
        inner = (f"{node.module}.{alias.name}" for alias in node.names)
        yield from {name if name in ORDER else node.module for name in inner}
    for child in ast.iter_child_nodes(node):
        yield from imports(child)


@pytest.mark.parametrize(
    "module",
    [
        *("_connection.states", "_connection.queues", "_connection.routes"),
        *("_pool.limit", "_pool.capacity", "_pool.retiring", "_group.health"),
    ],
)
def test_what_is_pure_imports_neither_asyncio_nor_aiohttp(module: str) -> None:
    """Nor does anything of the package that it imports."""
    trees = dict(modules())
    to_read, read = {f"wspool.{module}"}, set()
    while to_read:
        following = to_read.pop()
        read.add(following)
        names = set(imports(trees[following]))
        assert not {name.partition(".")[0] for name in names} & {"asyncio", "aiohttp"}, following
        to_read |= names & set(ORDER) - read


def test_no_file_imports_one_below_its_own_in_the_order() -> None:
    """So there is no circle, and each file can be read knowing only those above it."""
    trees = dict(modules())
    assert sorted(trees) == sorted(ORDER), "a new file gets its place in ORDER"
    for position, module in enumerate(ORDER):
        ours = set(imports(trees[module])) & set(ORDER)
        below = ours - set(ORDER[:position])
        assert not below, f"{module} imports what is not above it"


def test_each_folder_is_in_the_distribution() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["tool"]["setuptools"]["packages"] == ["wspool", *sorted(FOLDERS)]


def test_the_package_needs_nothing_beyond_aiohttp_transitions_and_backoff() -> None:
    """multidict and yarl are aiohttp's own, and part of its interface."""
    core = {"aiohttp", "backoff", "multidict", "transitions", "yarl"}
    for module, tree in modules():
        roots = {name.partition(".")[0] for name in imports(tree)}
        foreign = roots - sys.stdlib_module_names - {"wspool"}
        allowed = {"rich"} if module.startswith("wspool._cli") else EXTRAS.get(module, set())
        assert foreign <= core | allowed, module


def test_no_file_imports_an_optional_part() -> None:
    optional = {f"wspool.{part}" for part in "prometheus opentelemetry redis debug testing".split()}
    for module, tree in modules():
        if module != "wspool.pytest_plugin":  # a part of wspool.testing, kept apart for its imports
            assert not optional & set(imports(tree)), module
