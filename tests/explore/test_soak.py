"""The soak test, for as long as a run of the suite may take; `make soak` is longer."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests import IS_WHOLE, ROOT

SECONDS = "15" if IS_WHOLE else "4"


@pytest.mark.parametrize("streams", [[], ["--streams"]], ids=["alone", "streams"])
@pytest.mark.parametrize("crowd", [["--borrowers", "2000"], ["--borrowers", "100", "--threads"]])
def test_a_crowd_on_few_connections_to_a_bad_server_gets_its_own_replies(
    crowd: list[str], streams: list[str]
) -> None:
    """Nothing is mixed up, lost or left over, whatever 2,000 borrowers and a server do wrong.

    Or 100 threads. In a process of its own, where whatever is left over has nothing else to be
    mistaken for.
    """
    soak("tests.explore.soak", *crowd, *streams, "--connections", "50")


def test_patient_borrowers_do_not_notice_a_server_s_limit_that_changes() -> None:
    soak("tests.explore.limits")


def soak(module: str, *options: str) -> None:
    soak = subprocess.run(
        [
            *(sys.executable, "-X", "dev", "-W", "error", "-m", module),
            *("--seconds", SECONDS, "--seed", "1", *options),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=float(SECONDS) + 300.0,
    )
    print(soak.stdout)
    # That a step took long says something of the machine.
    complaints = [line for line in soak.stderr.splitlines() if not line.startswith("Executing <")]
    assert complaints == []
    assert soak.returncode == 0
