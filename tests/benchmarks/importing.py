"""What `import wspool` costs beyond the packages that it needs, and what it does not load."""

from __future__ import annotations

import json
import subprocess
import sys
from tempfile import TemporaryDirectory
from typing import Final

from tests import ROOT
from tests.benchmarks.goals import OURS, Below, seconds
from tests.benchmarks.side_by_side import Comparison
from tests.benchmarks.suite import Bench, benchmark

EXTRAS: Final = ("rich", "opentelemetry", "prometheus_client")
"""What only the optional modules need."""

PROGRAM: Final = """\
import json, sys, time
import aiohttp, backoff, transitions
sys.dont_write_bytecode, sys.pycache_prefix = False, sys.argv[1]
before = set(sys.modules)
start = time.process_time()
import wspool
seconds = time.process_time() - start
print(json.dumps([seconds, sorted(set(sys.modules) - before)]))
"""
"""Has imported what wspool needs, and then imports wspool: CPU time.

A process for each round: in a forked one, the pages that it has to copy are half as much again.
"""


@benchmark(
    "`import wspool`, beyond what it needs", "aiohttp, transitions, backoff", Below(0.007, seconds)
)
async def importing(bench: Bench) -> Comparison:
    imports = []
    with TemporaryDirectory() as directory:
        for _ in range(bench.scale.rounds + 1):
            ended = subprocess.run(
                [sys.executable, "-c", PROGRAM, directory],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=True,
            )
            imports.append(json.loads(ended.stdout))
    del imports[0]  # it had to compile
    loaded = {name.partition(".")[0] for _, names in imports for name in names}
    assert loaded.isdisjoint(EXTRAS), loaded.intersection(EXTRAS)
    return Comparison({OURS: [took for took, _ in imports]})
