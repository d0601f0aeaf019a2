"""Look up known advisories of the dependencies' lowest releases: `python -m tests.support.floors`.

The exit status is 1 if there is one. That the index cannot be asked is said, and is no failure.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

from tests import ROOT

FOUND: Final = "known vulnerabilit"
"""What pip-audit says on stderr if it has found one, and not if it could not ask."""

UNKNOWN: Final = "could not be audited"
"""What it says of a package that its index has no advisories for, as mirrors do not."""

SECONDS: Final = 120


def floors() -> list[str]:
    """Return each dependency of the package with its lowest release, as `name==version`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = []
    for text in project["dependencies"]:
        requirement = Requirement(text)
        [lowest] = [one.version for one in requirement.specifier if one.operator == ">="]
        found.append(f"{requirement.name}=={lowest}")
    return found


def main() -> int:
    pinned = floors()
    print("the floors:", ", ".join(pinned))
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "floors.txt"
        file.write_text("\n".join(pinned), encoding="utf-8")
        options = ["--progress-spinner", "off", "--no-deps", "--disable-pip"]
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pip_audit", *options, "-r", file],
                capture_output=True,
                text=True,
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            print(f"no index of advisories has answered within {SECONDS} s")
            return 0
    print(done.stdout, end="")
    if done.returncode == 0:
        print("not known here" if UNKNOWN in done.stdout else "no advisory is known for any")
    elif FOUND in done.stderr:
        print(done.stderr, end="")
        return 1
    else:
        print("no index of advisories can be asked:", (done.stderr.strip() or "?").splitlines()[-1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
