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
from tests.support.built import lost_by_an_index
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
    for extra in PROJECT["optional-dependencies"]:
        assert f"wspool[{extra}]" in text("README.md"), extra


def test_the_extra_all_has_all_others() -> None:
    extras = PROJECT["optional-dependencies"]
    assert extras["all"] == [f"wspool[{','.join(name for name in extras if name != 'all')}]"]


def test_each_tool_installs_a_dependency_group_that_there_is() -> None:
    groups = PYPROJECT["dependency-groups"].keys()
    used = set(re.findall(r"--group (\w+)", text("Makefile") + text(".ci/run")))
    used |= set(re.findall(r"^\.venv/(\w+)-installed", text("Makefile"), re.MULTILINE))
    used |= set(re.findall(r": \.venv/(\w+)-installed", text("Makefile")))
    for names in re.findall(r"^dependency_groups = (.+)$", text("tox.ini"), re.MULTILINE):
        used |= set(names.split(", "))
    assert used == groups, "and none is there that nothing uses"
    assert "pip>=25.1" in text("Makefile"), "the first pip that knows groups"


LINK = "[docs](https://host/)"


@pytest.mark.parametrize(
    ("readme", "lost"),
    [
        (f"# Title\n\n{LINK} ![picture](https://host/a.png) [below](#title)", []),
        ("[page](docs/page.md)", ["href docs/page.md"]),
        ("![picture](a.png)", ["src a.png"]),
        ("[below](#nowhere)", ["href #nowhere"]),
        ("[text][undefined]", ["[text][undefined]"]),
        ("[page](http:page)", ["href http:page"]),
    ],
)
def test_what_an_index_would_lose_of_a_readme_is_found(readme: str, lost: list[str]) -> None:
    assert lost_by_an_index(readme) == lost


def test_nothing_of_the_readme_is_lost_by_an_index() -> None:
    assert lost_by_an_index(text("README.md")) == []


def test_all_that_is_not_python_is_in_the_package_too() -> None:
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["wspool"]
    package = Path(str(files("wspool")))
    others = [path.relative_to(package) for path in package.rglob("*") if path.is_file()]
    for path in others:
        if path.suffix not in (".py", ".pyc"):
            assert any(fnmatch(str(path), pattern) for pattern in patterns), path
