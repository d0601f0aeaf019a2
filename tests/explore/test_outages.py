"""Outages of three seconds, of every kind at once: `python -m tests.explore.outages` in brief."""

from __future__ import annotations

import subprocess
import sys

from tests import ROOT
from tests.explore.outages import SETUPS


def test_a_pool_is_of_full_service_again_soon_after_its_server() -> None:
    """Nobody is given a stale connection, dials are bounded, and nothing is lost or left over.

    In a process of its own, where whatever is left over has nothing else to be mistaken for.
    """
    outages = subprocess.run(
        [
            *(sys.executable, "-X", "dev", "-W", "error", "-m", "tests.explore.outages"),
            *("--seconds", "3", "--seed", "1"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300.0,
    )
    print(outages.stdout)
    assert outages.stderr == ""
    assert outages.returncode == 0
    assert all(setup.name in outages.stdout for setup in SETUPS)
