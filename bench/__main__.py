"""Measure, print, write a JSON file and a plot, and fail when the harness adds more to a plain script than it may."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench import boots, programs, targets
from bench.figures import Measured, plot
from harness.progress import PlainProgress
from harness.result import host_facts
from harness.workspace import Workspace


class Findings:
    """What has been measured so far, in ``bench.json`` after each part: one that fails takes nothing with it."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._targets: list[targets.Target] = []
        self._parts: dict[str, Any] = {"host": host_facts()}

    def add(self, parts: dict[str, Any], judged: Iterable[targets.Target] = ()) -> None:
        """Keep parts of the report, and say which targets they meet."""
        self._parts.update(parts)
        for target in judged:
            print(f"  {target}", flush=True)
            self._targets.append(target)
        self._output.mkdir(parents=True, exist_ok=True)
        report = {**self._parts, "targets": [target.to_json() for target in self._targets]}
        (self._output / "bench.json").write_text(json.dumps(report, indent=2) + os.linesep)

    @property
    def too_slow(self) -> list[str]:
        """The binding targets that were missed, in words."""
        return [str(target) for target in self._targets if target.binding and not target.met]


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
    findings = Findings(options.output)
    booted: dict[str, Measured] = {}
    for name, measured in boots.bench(workspace, options.profiles or list(workspace.profiles), options.rounds):
        booted[name] = measured
        findings.add({"boots": booted}, targets.of_boots({name: measured}))
    whole: Measured = {}
    nth: dict[str, float] = {}
    if not options.boots_only:
        whole, missing = programs.bench(workspace, options.rounds)
        findings.add({"programs": whole, "missing": missing}, targets.of_programs(whole))
        nth = programs.nth_scenario()
        findings.add({"nth": nth})
    plot(options.output / "bench.svg", booted, whole, nth)
    if options.catalogue:
        catalogue = programs.catalogue(options.catalogue)
        findings.add({"catalogue": catalogue}, targets.of_catalogue(catalogue))
    print(f"\nmeasurements and plot: {options.output}")
    if findings.too_slow:
        sys.exit("the harness is slower than it may be: " + "; ".join(findings.too_slow))


if __name__ == "__main__":
    main()
