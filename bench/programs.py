"""Whole programs, from start to exit: ``harness run``, and peers that boot the same kernel and run ``true``."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench.figures import Measured, in_turns, show
from bench.peers import Unavailable, find_peers
from bench.targets import HARNESS
from harness.workspace import Workspace

TRUE = """\
scenario: it runs true
feature: balloon
boot: {machine: pc}
drive:
  - guest.run: {as: done, argv: ["true"]}
assert: [done.status == 0]
"""

#: A hundred scenarios that boot one and the same machine.
HUNDRED = """\
scenario: it runs true for the ${tens} ${ones}th time
feature: balloon
matrix: {tens: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], ones: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]}
boot: {machine: pc}
drive:
  - guest.run: {as: done, argv: ["true"]}
assert: [done.status == 0]
"""


def _harness(directory: Path, *arguments: str, judge: bool = True) -> list[dict[str, Any]]:
    """Run the command to its end; gives what each scenario came to.

    :param judge: whether a scenario that does not pass makes the whole worthless.
    """
    summary = directory / "summary.json"
    program = Path(sys.executable).with_name("harness")
    command = [str(program), "run", "--accel", "auto", "--results", "results", "--json", str(summary), *arguments]
    subprocess.run(command, cwd=directory, check=judge, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    scenarios: list[dict[str, Any]] = json.loads(summary.read_text())["scenarios"]
    return scenarios


def _timed(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def bench(workspace: Workspace, rounds: int) -> tuple[Measured, dict[str, str]]:
    """Start, run ``true``, exit: the harness warm and cold, an empty pytest, and the peers that can be had.

    :return: every measurement in seconds, and why each other peer could not be had.
    """
    print("\nwhole process: start, run true, exit")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "true.yaml").write_text(TRUE)
        (directory / "test_empty.py").write_text("def test_nothing(): pass\n")
        _harness(directory, "true.yaml")  # there is a saved machine from now on
        pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_empty.py"]
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        sides: dict[str, Callable[[], float]] = {
            "empty pytest": partial(
                _timed,
                partial(subprocess.run, pytest, cwd=directory, env=environment, check=True, stdout=subprocess.DEVNULL),
            ),
            HARNESS: partial(_timed, partial(_harness, directory, "true.yaml")),
            "harness run, cold": partial(_timed, partial(_harness, directory, "--cold", "true.yaml")),
        }
        missing: dict[str, str] = {}
        for peer in find_peers(workspace, directory):
            try:
                peer.prepare()
                peer.run()
                sides[peer.name] = partial(_timed, peer.run)
            except Unavailable as error:
                missing[peer.name] = str(error)
                print(f"  {peer.name}: not to be had: {error}")
        measured = in_turns(sides, rounds)
    for program, values in measured.items():
        show(program, {"median": values})
    return measured, missing


def nth_scenario() -> dict[str, float]:
    """What the N-th scenario of a run costs that all go on from one saved machine: medians of five around N."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "hundred.yaml").write_text(HUNDRED)
        scenarios = _harness(directory, "hundred.yaml")
    totals = [float(scenario["seconds"]["total"]) for scenario in scenarios if scenario["start"] == "warm"]
    around = {"N = 1": totals[:5], "N = 10": totals[7:12], "N = 100": totals[-5:]}
    medians = {label: round(statistics.median(values), 3) for label, values in around.items()}
    print("\nthe N-th scenario on one saved machine")
    for label, seconds in medians.items():
        print(f"  {label}: {seconds:.2f} s")
    return medians


def catalogue(scenarios: Path) -> dict[str, dict[str, Any]]:
    """The whole catalogue on all cores: cold with nothing saved, once more to save, and warm.

    :return: for each run its wall time, the seconds of its machines in sum (without waits), and its verdicts.
    """
    print("\nthe whole catalogue", flush=True)
    runs: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        shutil.copytree(scenarios, directory / "scenarios")
        common = ["-j", str(os.cpu_count() or 1), "-k", "not unproven", "scenarios"]
        for label, arguments in (("cold", ["--cold"]), ("saving", []), ("warm", [])):
            started = time.monotonic()
            done = _harness(directory, *arguments, *common, judge=False)
            wall = time.monotonic() - started
            machines = sum(item["seconds"]["total"] - item["seconds"]["wait"] for item in done)
            verdicts = Counter(item["verdict"] for item in done)
            runs[label] = {"wall_s": round(wall, 1), "machine_s": round(machines, 1), "verdicts": dict(verdicts)}
            print(f"  {label}: {wall:.0f} s, {machines:.0f} s of machines, {dict(verdicts)}", flush=True)
    return runs
