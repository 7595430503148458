"""Measure, print, write a JSON file and a plot, and fail when the harness is slower than it may be."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path

from bench import boots, programs
from bench.figures import Measured, plot
from harness.progress import PlainProgress
from harness.result import host_facts
from harness.workspace import Workspace

#: What the harness may add to the plain script: a share of a cold start, seconds of a warm one.
COLD_SHARE = 0.05
WARM_S = 0.4


def too_slow(measured: Mapping[str, Measured]) -> list[str]:
    """The machines on which the harness adds more than it may, in words."""
    found = []
    for name, sides in measured.items():
        median = {side: statistics.median(values) for side, values in sides.items()}
        share = median["harness cold"] / median["script cold"] - 1
        added = median["harness warm"] - median["script warm"]
        print(f"  {name}: the harness adds {100 * share:+.1f} % cold, {added:+.2f} s warm")
        if share > COLD_SHARE:
            found.append(f"{name} cold: {100 * share:.1f} % more than the script")
        if added > WARM_S:
            found.append(f"{name} warm: {added:.2f} s more than the script")
    return found


def main() -> None:
    """The bench."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("profiles", nargs="*", metavar="PROFILE", help="default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--boots-only", action="store_true", help="no whole programs, no peers")
    parser.add_argument("--catalogue", type=Path, metavar="DIR", help="also run these scenarios cold and warm")
    parser.add_argument("--output", type=Path, default=Path("results/bench"), help="for bench.json and bench.svg")
    options = parser.parse_args()
    if shutil.which("ssh") is None:
        sys.exit("the plain script needs ssh: install openssh-client")
    workspace = Workspace(PlainProgress(sys.stderr))
    booted = boots.bench(workspace, options.profiles or list(workspace.profiles), options.rounds)
    slow = too_slow(booted)
    whole, missing = ({}, {}) if options.boots_only else programs.bench(workspace, options.rounds)
    nth = {} if options.boots_only else programs.nth_scenario()
    report = {"host": host_facts(), "boots": booted, "programs": whole, "missing": missing, "nth": nth}
    if options.catalogue:
        report["catalogue"] = programs.catalogue(options.catalogue)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "bench.json").write_text(json.dumps(report, indent=2) + os.linesep)
    plot(options.output / "bench.svg", booted, whole, nth)
    print(f"\nmeasurements and plot: {options.output}")
    if slow:
        sys.exit("the harness is slower than it may be: " + "; ".join(slow))


if __name__ == "__main__":
    main()
