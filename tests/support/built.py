"""The package as its users get it: `python -m tests.support.built` builds, installs and tests it.

The sdist and the wheel are made in `dist`, the wheel is installed in an environment of its own,
and the tests of the unpacked sdist are run there, outside the checkout. Further arguments are
pytest's; `--no-tests` in their place leaves the tests out. It needs `pip install '.[release]'`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import venv
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
    return sdist, wheel


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
    run(*pip, "install", f"wspool[test] @ {wheel.as_uri()}")
    run(*pip, "check")
    return where / "bin"


def main(arguments: list[str]) -> int:
    sdist, wheel = build()
    with tempfile.TemporaryDirectory(prefix="wspool-built-") as name:
        directory = Path(name).resolve()
        source = unpack(sdist, directory / "sdist")
        binaries = install(wheel, directory / "venv")
        print(run(binaries / "wspool", "--version", cwd=directory), end="", flush=True)
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
