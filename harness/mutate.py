"""Would the scenarios notice? Runs them against mutants of a component: patches that each break it in one place."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from itertools import takewhile, zip_longest
from math import ceil
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.errors import BuildFailed, HarnessError, UsageError
from harness.images.under_test import KERNEL, Override, parse_overrides
from harness.machine.accel import Request
from harness.parallel import ahead
from harness.report import summary
from harness.report.progress import Silent, for_console
from harness.result import SCHEMA, ScenarioResult, Verdict, write_json
from harness.runner import Interrupted, Observer
from harness.scenario.model import Scenario
from harness.trials import Trials
from harness.workspace import Workspace

#: A mutant gets so many times what good code took, and no less than so many seconds under KVM: a step may well wait for
#: what a mutant never does, and tell so.
_PATIENCE = 4
_LEAST_S = 30
#: One that hangs its guest would do so in every scenario.
_MAX_ERRORS = 2
#: Above a patch: the scenario that it meets first, as ``For: balloon/resize``.
_MEANT = "For:"


class Fate(StrEnum):
    """What became of a mutant. An error is no kill: it may be the host's, or the harness's."""

    KILLED = "killed"
    SURVIVED = "survived"
    NOT_BUILT = "did not build"
    ERROR = "error"


_STYLES = {Fate.KILLED: "green", Fate.SURVIVED: "bold red", Fate.NOT_BUILT: "yellow", Fate.ERROR: "bold magenta"}


@dataclass(slots=True)
class Mutant:
    """One mutant, and what came of it.

    :param summary: the first line of its patch, which says what it breaks.
    :param by: the scenario that killed it, or where the error was.
    :param why: the assertion that does not hold, the crash, or the error.
    :param seconds: until its fate and the next one's build, without what was waited for other machines to end.
    """

    name: str
    summary: str
    fate: Fate
    by: str = ""
    why: str = ""
    seconds: float = 0.0
    results: list[dict[str, Any]] = field(default_factory=list)

    @property
    def inexact(self) -> list[str]:
        """The hunks of its patch that fit only with fuzz: it may break another place than it says."""
        return list(dict.fromkeys(line for item in self.results for it in item["under_test"] for line in it["inexact"]))

    def to_json(self) -> dict[str, Any]:
        """A plain object."""
        return {name: getattr(self, name) for name in ("name", "summary", "by", "why", "inexact", "results")} | {
            "fate": str(self.fate),
            "seconds": round(self.seconds, 1),
        }


def read_mutants(component: str, directory: Path, known: Sequence[str]) -> list[Override]:
    """The patches of a directory, each a mutant of its own.

    :raises UsageError: there are none, or one is no patch.
    """
    patches = sorted(path for path in directory.glob("*") if path.suffix in (".patch", ".diff"))
    if not patches:
        raise UsageError(f"there are no patches in {directory}", hint="--mutants names a directory of .patch files")
    mutants = [parse_overrides([f"{component}={path}"], known)[component] for path in patches]
    for mutant in mutants:
        if mutant.kind != "patches":
            raise UsageError(f"{mutant.source} is no patch")
    return mutants


def score(mutants: Sequence[Mutant]) -> float:
    """How many in a hundred of those that were built are killed; 100 where none was."""
    built = [item for item in mutants if item.fate is not Fate.NOT_BUILT]
    return 100.0 * sum(item.fate is Fate.KILLED for item in built) / len(built) if built else 100.0


class Gauntlet:
    """Runs scenarios against mutants, one after another.

    :param component: what is mutated.
    :param scenarios: all of them use it.
    :param results: directory for logs; each mutant has its own below.
    :param observer: is told of phases and steps; see :class:`harness.runner.Observer`.
    """

    def __init__(
        self,
        workspace: Workspace,
        component: str,
        scenarios: Sequence[Scenario],
        accel: Request,
        results: Path,
        observer: Observer,
    ) -> None:
        self._workspace = workspace
        self._component = component
        self._scenarios = list(scenarios)
        self._trials = Trials(workspace, accel, observer, keep="failed", fail_fast=True)
        self._results = results
        self._kills: dict[str, int] = {}
        self._took: dict[str, float] = {}

    def baseline(self) -> Iterator[ScenarioResult]:
        """Run all scenarios on good code. Those that pass are what mutants must get by; a skipped one says nothing."""
        # Mutants of the kernel are small ones, so good code is one, too: of the recipe's source with no patch at all.
        good = {KERNEL: Override(KERNEL, "patches", ())} if self._component == KERNEL else {}
        passed = []
        for scenario in self._scenarios:
            result = self._trials.run(scenario, good, self._results / "baseline")
            if result.verdict is Verdict.PASS:
                drive_s = result.seconds.drive / self._factor(scenario, result)
                passed.append(replace(scenario, timeout_s=max(_LEAST_S, ceil(_PATIENCE * drive_s))))
                self._took[scenario.id] = result.seconds.total - result.seconds.wait
            yield result
        self._scenarios = passed

    def run_all(self, mutants: Sequence[Override]) -> Iterator[Mutant]:
        """Run each in turn, and build the next meanwhile; what is waited for its build counts to the one before it."""
        for override, following in zip_longest(mutants, mutants[1:]):
            started = time.monotonic()
            with ahead(partial(self._build, following), HarnessError):
                mutant = self.run(override)
                waited = sum(item["seconds"]["wait"] for item in mutant.results)
            mutant.seconds = time.monotonic() - started - waited
            yield mutant

    def _build(self, override: Override | None) -> None:
        """Have a mutant for the scenario that it will most likely meet first."""
        if override is not None:
            for first in self._order(_told(override.contents[0])[1])[:1]:
                self._trials.prepare(first, {self._component: override})

    def run(self, override: Override) -> Mutant:
        """Run scenarios against one mutant until one fails, in the order of :meth:`_order`."""
        source = override.sources[0]
        summary, meant = _told(override.contents[0])
        mutant = Mutant(source.stem, summary, Fate.SURVIVED)
        for scenario in self._order(meant):
            try:
                result = self._trials.run(scenario, {self._component: override}, self._results / mutant.name)
            except HarnessError as error:
                mutant.fate = Fate.NOT_BUILT if isinstance(error, BuildFailed) else Fate.ERROR
                mutant.by, mutant.why = "", error.message
                break
            mutant.results.append(result.to_json())
            if result.verdict is Verdict.FAIL:
                mutant.fate, mutant.by, mutant.why = Fate.KILLED, scenario.id, _reason(result)
                self._kills[scenario.id] = self._kills.get(scenario.id, 0) + 1
                break
            if result.verdict is Verdict.ERROR:
                mutant.fate, mutant.by, mutant.why = Fate.ERROR, scenario.id, _reason(result)
                if sum(item["verdict"] == Verdict.ERROR for item in mutant.results) >= _MAX_ERRORS:
                    break
        return mutant

    def _order(self, meant: str = "") -> list[Scenario]:
        """What the mutant is meant for; then one row of each file's matrix before any other; among them those that have
        killed most, then the quickest.

        Another row seldom sees what the first has not, and many a mutant is seen by one file alone.
        """
        preferred = sorted(self._scenarios, key=lambda item: (-self._kills.get(item.id, 0), self._took[item.id]))
        rows: dict[str, int] = {}
        turn: dict[str, int] = {}
        for item in preferred:
            file = item.id.partition("[")[0]
            turn[item.id] = rows[file] = rows.get(file, 0) + 1
        return sorted(preferred, key=lambda item: (item.id.partition("[")[0] != meant, turn[item.id]))

    def _factor(self, scenario: Scenario, result: ScenarioResult) -> float:
        """By how much the accelerator stretches a scenario's time limit."""
        profile = self._workspace.profiles[scenario.boot.machine]
        return profile.tcg_factor if result.accel.get("used") == "tcg" else 1.0


def run_gauntlet(
    console: Console,
    workspace: Workspace,
    component: str,
    mutants: Sequence[Override],
    scenarios: Sequence[Scenario],
    *,
    accel: Request,
    results: Path,
    json_file: Path | None,
    fail_under: float,
) -> int:
    """The whole of ``harness mutate``: good code first, then each mutant.

    :return: an exit status, as ``harness run``'s.
    :raises HarnessError: the images of good code cannot be prepared.
    """
    workspace.sweep()
    for error in workspace.prepare(scenarios).values():
        raise error
    # Where nobody watches, a line for each that ended is enough.
    observer = for_console(console) if console.is_terminal else Silent()
    baseline: list[ScenarioResult] = []
    done: list[Mutant] = []
    try:
        gauntlet = Gauntlet(workspace, component, scenarios, accel, results, observer)
        for result in gauntlet.baseline():
            baseline.append(result)
            told = f"good code: {result.verdict.upper()} {escape(result.id)} ({result.seconds.total:.1f} s)"
            console.print(told, highlight=False)
        status = summary.exit_status([item.to_json() for item in baseline])
        if status == summary.PASSED:
            for mutant in gauntlet.run_all(mutants):
                done.append(mutant)
                print_mutant(console, mutant)
    except Interrupted as error:  # what has been found out is told all the same
        print_mutants(console, done)
        raise KeyboardInterrupt from error
    finally:
        observer.close()
        if json_file is not None:
            write_json(json_file.absolute(), summary_json(component, baseline, done))
        console.print(f"\nresults: {results}", markup=False, highlight=False, soft_wrap=True)
    if status != summary.PASSED:
        summary.print_failures(console, [item.to_json() for item in baseline])
        console.print("the scenarios do not pass on good code: no mutant was tried", style="bold red")
        return status
    print_mutants(console, done)
    return summary.PASSED if score(done) >= fail_under else summary.FAILED


def _told(patch: bytes) -> tuple[str, str]:
    """What stands above a patch: what it breaks, in its first line, and the scenario that it is meant for, if any."""
    lines = patch.decode("utf-8", "replace").splitlines()
    above = [line.strip() for line in takewhile(lambda line: not line.startswith("---"), lines)]
    meant = next((line.removeprefix(_MEANT).strip() for line in above if line.startswith(_MEANT)), "")
    return next(iter(above), ""), meant


def _reason(result: ScenarioResult) -> str:
    """Why a scenario did not pass, in one line."""
    if result.crashes and result.verdict is Verdict.FAIL and not result.failed_assertions:
        return f"crash on {result.crashes[0].layer}: {result.crashes[0].title}"
    if result.failed_assertions:
        return result.failed_assertions[0].expression
    return result.reason.partition("\n")[0]


def summary_json(component: str, baseline: Sequence[ScenarioResult], mutants: Sequence[Mutant]) -> dict[str, Any]:
    """What ``--json`` writes."""
    return {
        "schema": SCHEMA,
        "component": component,
        "score": round(score(mutants), 1),
        "baseline": [item.to_json() for item in baseline],
        "mutants": [item.to_json() for item in mutants],
    }


def print_mutant(console: Console, mutant: Mutant) -> None:
    """One line for a mutant that has met its fate."""
    by = f" by {escape(mutant.by)}" if mutant.by else ""
    why = f": {escape(mutant.why)}" if mutant.why else ""
    style = _STYLES[mutant.fate]
    console.print(
        f"[{style}]{mutant.fate.upper()}[/] {escape(mutant.name)} ({mutant.seconds:.1f} s){by}{why}",
        highlight=False,
        soft_wrap=True,
    )


def print_mutants(console: Console, mutants: Sequence[Mutant]) -> None:
    """The table of all, and the score."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("mutant", "fate", "by", "assertion, crash or error", "seconds"):
        table.add_column(column, justify="right" if column == "seconds" else "left", overflow="fold")
    for item in mutants:
        fate = f"[{_STYLES[item.fate]}]{item.fate}[/]"
        table.add_row(escape(item.name), fate, escape(item.by), escape(item.why), f"{item.seconds:.1f}")
    console.print(table)
    for item in mutants:
        if item.fate is Fate.SURVIVED:
            console.print(f"survived: {item.name}: {item.summary}", markup=False, highlight=False, soft_wrap=True)
        for line in item.inexact:
            console.print(f"[yellow]does not fit exactly:[/] {escape(line)}", highlight=False, soft_wrap=True)
    counts = [(fate, sum(item.fate is fate for item in mutants)) for fate in Fate]
    told = ", ".join(f"{count} {fate}" for fate, count in counts if count)
    times = sorted(item.seconds for item in mutants if item.results)
    median = f", median {times[len(times) // 2]:.1f} s a mutant" if times else ""
    console.print(f"{told or 'no mutants'}{median}", highlight=False)
    console.print(f"score: {score(mutants):.1f} of 100", highlight=False)
