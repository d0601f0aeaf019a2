"""What the package says of itself is so, and says the same in each place.

That it can be built, installed and tested from what was built is shown by `make build`.
"""

from __future__ import annotations

import pkgutil
import re
import tomllib
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

import wspool
from tests import ROOT
from tests.support.floors import floors
from tests.support.pages import rows

pytestmark = pytest.mark.once


def text(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


PYPROJECT: dict[str, Any] = tomllib.loads(text("pyproject.toml"))
PROJECT: dict[str, Any] = PYPROJECT["project"]
PYTHONS = sorted(re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"])))


def test_the_changelog_begins_with_this_version() -> None:
    [latest, *_] = re.findall(r"^## (\S+)", text("CHANGELOG.md"), re.MULTILINE)
    assert latest == wspool.__version__


def test_the_console_script_is_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    main = pkgutil.resolve_name(PROJECT["scripts"]["wspool"])
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"wspool {wspool.__version__}\n"


def test_each_supported_python_is_tested_and_no_other_is_named() -> None:
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"
    workflow = text(".github/workflows/ci.yml")
    assert sorted(re.findall(r"^ +(3\.\d+)$", workflow, re.MULTILINE)) == PYTHONS
    assert "run: bash .ci/run\n" in workflow
    environments = re.findall(r"\bpy3(\d+)\b|python3\.(\d+)", text("tox.ini"))
    assert {f"3.{one or other}" for one, other in environments} == set(PYTHONS)


def test_the_oldest_that_is_tested_are_the_floors() -> None:
    pinned = re.findall(r"^ +([a-z-]+)==([\d.]+)$", text("tox.ini"), re.MULTILINE)
    least = dict(one.split(">=") for one in PROJECT["dependencies"])
    assert dict(pinned) == least
    assert floors() == [f"{name}=={version}" for name, version in pinned]


def test_the_promise_has_the_lower_bounds_of_the_package() -> None:
    promised = {what: least for what, least, _ in rows("stability.md", "from")}
    assert f">={promised['Python']}" == PROJECT["requires-python"]
    assert f"aiohttp>={promised['aiohttp']}" in PROJECT["dependencies"]


def test_the_readme_names_each_extra_that_is_for_users() -> None:
    ours = {"test", "browser", "bench", "lint", "docs", "audit", "release"}
    for extra in PROJECT["optional-dependencies"].keys() - ours:
        assert f"wspool[{extra}]" in text("README.md"), extra


def test_all_that_is_not_python_is_in_the_package_too() -> None:
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["wspool"]
    package = Path(str(files("wspool")))
    others = [path.relative_to(package) for path in package.rglob("*") if path.is_file()]
    for path in others:
        if path.suffix not in (".py", ".pyc"):
            assert any(fnmatch(str(path), pattern) for pattern in patterns), path
