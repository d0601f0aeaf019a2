"""The package as its users get it: `python -m tests.support.built` builds, installs and tests it.

The sdist and the wheel are made in `dist`, the wheel is installed in an environment of its own,
and the tests of the unpacked sdist are run there, outside the checkout. Further arguments are
pytest's; `--no-tests` in their place leaves the tests out. It needs `pip install --group release`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from email import message_from_bytes
from html.parser import HTMLParser
from pathlib import Path
from typing import Final

from tests import ROOT

DIST: Final = ROOT / "dist"


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a command whose output is of interest only if it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def build() -> tuple[Path, Path]:
    """Return the sdist and the wheel that is made of it, both checked."""
    for old in DIST.glob("wspool-*"):
        old.unlink()
    # A list that an earlier build has left would take the place of MANIFEST.in.
    (ROOT / "wspool.egg-info" / "SOURCES.txt").unlink(missing_ok=True)
    run(sys.executable, "-m", "build", "--outdir", DIST)
    [sdist], [wheel] = DIST.glob("*.tar.gz"), DIST.glob("*.whl")
    run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel)
    if lost := lost_by_an_index(description(wheel)):
        sys.exit(f"a package index would lose of the README: {', '.join(lost)}")
    return sdist, wheel


def description(wheel: Path) -> str:
    """Return the README as the wheel brings it to a package index."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [one for one in archive.namelist() if one.endswith(".dist-info/METADATA")]
        metadata = message_from_bytes(archive.read(name))
    assert metadata["Description-Content-Type"] == "text/markdown"
    return str(metadata.get_payload())


def lost_by_an_index(readme: str) -> list[str]:
    """Render Markdown as a package index does; return what of it leads nowhere there."""
    from readme_renderer import markdown

    html = markdown.render(readme)
    if html is None:
        return ["all of it: it cannot be rendered"]
    page = _Page()
    page.feed(html)
    nowhere = [
        f"{kind} {target}"
        for kind, target in page.targets
        if not re.match(r"https?://[^/]", target) and target not in page.anchors
    ]
    return nowhere + re.findall(r"\[[^]\n]+\]\[[^]\n]*\]", page.text)


class _Page(HTMLParser):
    """The targets, the anchors and the text, without code, of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[tuple[str, str]] = []
        self.anchors: set[str] = set()
        self.text = ""
        self._code = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._code += tag in ("pre", "code")
        for name, value in attrs:
            if name in ("href", "src"):
                self.targets.append((name, (value or "").replace("#user-content-", "#")))
            elif name == "id" and value:
                self.anchors.add(f"#{value.removeprefix('user-content-')}")

    def handle_endtag(self, tag: str) -> None:
        self._code -= tag in ("pre", "code")

    def handle_data(self, data: str) -> None:
        if not self._code:
            self.text += data


def unpack(sdist: Path, where: Path) -> Path:
    """Return the sdist's directory; every file of the repository must be in it."""
    with tarfile.open(sdist) as archive:
        archive.extractall(where, filter="data")
    [source] = where.iterdir()
    if (ROOT / ".git").exists():
        known = run("git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
        files = [file for file in known if (ROOT / file).exists()]
        if missing := [file for file in files if not (source / file).exists()]:
            sys.exit(f"MANIFEST.in leaves out of the sdist: {', '.join(missing)}")
    return source


def install(wheel: Path, where: Path) -> Path:
    """Return the `bin` of a new environment with the wheel in it, and what its tests need."""
    venv.create(where)
    pip = (sys.executable, "-m", "pip", "--python", where, "--disable-pip-version-check")
    group = f"{ROOT / 'pyproject.toml'}:test"
    run(*pip, "install", f"wspool[all] @ {wheel.as_uri()}", "--group", group)
    run(*pip, "check")
    return where / "bin"


def main(arguments: list[str]) -> int:
    sdist, wheel = build()
    with tempfile.TemporaryDirectory(prefix="wspool-built-") as name:
        directory = Path(name).resolve()
        source = unpack(sdist, directory / "sdist")
        binaries = install(wheel, directory / "venv")
        print(run(binaries / "wspool", "--version", cwd=directory), end="", flush=True)
        if "//OWNER.github.io" in description(wheel):
            print("OWNER is still a placeholder in its addresses: see CONTRIBUTING.md", flush=True)
        if arguments == ["--no-tests"]:
            return 0
        # The tests find the package beside themselves: let that be the installed one.
        places = "import sysconfig; print(sysconfig.get_path('purelib'))"
        installed = Path(run(binaries / "python", "-c", places).strip()) / "wspool"
        (source / "wspool").rename(directory / "not installed")
        (source / "wspool").symlink_to(installed)
        env = os.environ | {"PYTHONPATH": "", "PYTHONDEVMODE": "1"}
        command = [binaries / "python", "-m", "pytest", *arguments]
        return subprocess.run(command, cwd=source, env=env).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
