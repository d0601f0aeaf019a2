"""What `import wspool` costs beyond the packages that it needs, and what it does not load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from tests.benchmarks.goals import OURS, Below, seconds
from tests.benchmarks.side_by_side import Comparison
from tests.benchmarks.suite import Bench, benchmark

EXTRAS: Final = ("rich", "opentelemetry", "prometheus_client")
"""What only the optional modules need."""

PROGRAM: Final = """\
import json, os, sys, time
import aiohttp, backoff, transitions
sys.dont_write_bytecode, sys.pycache_prefix = False, sys.argv[2]
before = set(sys.modules)
for _ in range(int(sys.argv[1])):
    reading, writing = os.pipe()
    if os.fork() == 0:
        start = time.process_time()
        import wspool
        seconds = time.process_time() - start
        os.write(writing, json.dumps([seconds, sorted(set(sys.modules) - before)]).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        print(pipe.read())
    os.wait()
"""
"""Has imported what wspool needs, and lets children import wspool: CPU time, compiled."""


@benchmark(
    "`import wspool`, beyond what it needs", "aiohttp, transitions, backoff", Below(0.008, seconds)
)
async def importing(bench: Bench) -> Comparison:
    with TemporaryDirectory() as directory:
        ended = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(bench.scale.rounds + 1), directory],
            cwd=Path(__file__).parent.parent.parent,
            capture_output=True,
            text=True,
            check=True,
        )
    # The first has to compile.
    imports = [json.loads(line) for line in ended.stdout.splitlines()][1:]
    loaded = {name.partition(".")[0] for _, names in imports for name in names}
    assert loaded.isdisjoint(EXTRAS), loaded.intersection(EXTRAS)
    return Comparison({OURS: [took for took, _ in imports]})
