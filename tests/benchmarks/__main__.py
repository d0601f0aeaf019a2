"""As fast as having no pool, measured next to everything else.

    python -m tests.benchmarks [--json FILE] [--markdown FILE] [--only NAME ...] [--quick]
    python -m tests.benchmarks --plot FILE

Each row compares two ways of doing the same thing, in interleaved rounds of this one run; the
servers are processes of their own. The ratio is the median of the ratios of the rounds; next to it
is the range that half of the rounds are in. Two rows compare code with itself: that is the noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter

from tests.benchmarks import (  # noqa: F401 (they register)
    checkouts,
    echoes,
    groups,
    importing,
    streams,
    threads,
    upkeep,
)
from tests.benchmarks.suite import QUICK, Bench, Scale, Servers, benchmarks
from tests.benchmarks.table import HEADINGS, Row, describe, machine, markdown, text, to_json, write


def measure(names: Sequence[str], scale: Scale) -> Iterator[Row]:
    cache: dict[str, Bench] = {}
    with Servers() as servers:
        for name in names:
            yield from benchmarks[name].run(servers, scale, cache)


def main(arguments: Sequence[str] | None = None) -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write it as Markdown")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=benchmarks, help="these rows")
    parser.add_argument("--quick", action="store_true", help="few rounds, to see that it works")
    parser.add_argument("--rounds", type=int, help=f"at least (default {Scale().rounds})")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw how it scales, instead")
    options = parser.parse_args(arguments)
    scale = QUICK if options.quick else Scale()
    if options.plot is not None:
        from tests.benchmarks.scaling import plot

        plot(options.plot, is_quick=options.quick)
        return
    if options.rounds is not None:
        scale = Scale(rounds=options.rounds)

    about = machine()
    began = perf_counter()
    print(describe(about), end="\n\n")
    print(text(HEADINGS))
    rows = []
    for row in measure(options.only or list(benchmarks), scale):
        rows.append(row)
        print(text(row.cells()), flush=True)
    goals = [row for row in rows if row.is_met is not None]
    met = sum(bool(row.is_met) for row in goals)
    print(f"\n{met} of {len(goals)} goals met; {perf_counter() - began:.0f} s")
    if options.json is not None:
        options.json.write_text(to_json(rows, about), encoding="utf-8")
    if options.markdown is not None:
        write(options.markdown, markdown(rows, about))


if __name__ == "__main__":
    main()
