"""Attacks one by one, and a fuzzed server; `make soak` fuzzes for longer."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from tests import IS_WHOLE, ROOT
from tests.explore import attacks
from tests.explore.hostile import ATTACKS

SECONDS = 6.0
SEEDS = [1, 2, 3] if IS_WHOLE else [1]

FIRST = ["pings", "bombs", "large", "mixed", "close-and-flood", "refuse"]
"""The attacks that between them find every fault that is known; the others take a minute."""


@pytest.mark.parametrize(
    "name",
    [
        *FIRST,
        *(pytest.param(name, marks=pytest.mark.long) for name in ATTACKS if name not in FIRST),
    ],
)
async def test_an_attack_costs_no_pause_no_memory_and_no_place(name: str) -> None:
    """It is in a process of its own, whose memory is nobody else's."""
    figures = await asyncio.to_thread(attacks.play_alone, name)
    assert not figures.judge()


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_a_server_sends_the_pool_works_on(seed: int) -> None:
    fuzzing = subprocess.run(
        [
            *(sys.executable, "-W", "error", "-m", "tests.explore.fuzz"),
            *("--seconds", str(SECONDS), "--seed", str(seed)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS + 120.0,
    )
    print(fuzzing.stdout)
    assert fuzzing.stderr == ""
    assert fuzzing.returncode == 0


def test_every_attack_has_its_words() -> None:
    assert set(attacks.WORDS) == set(ATTACKS)
