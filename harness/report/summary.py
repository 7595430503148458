"""The ``--json`` summary, the table of verdicts, and the exit status that follows from them."""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness import __version__
from harness.result import SCHEMA, Verdict, host_facts, timestamp

#: Exit statuses of ``harness run``.
PASSED, FAILED, ERRORED, NOTHING_RAN, USAGE = range(5)

STYLES = {Verdict.PASS: "green", Verdict.FAIL: "bold red", Verdict.ERROR: "bold magenta", Verdict.SKIP: "yellow"}


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What one run of the harness is known by.

    :param run: a name that no other run has.
    :param shard: which part of a whole it is, as :class:`harness.records.shards.Shard` tells; None for the whole.
    """

    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: str = field(default_factory=timestamp)
    shard: Mapping[str, Any] | None = None


def make_summary(scenarios: Sequence[Mapping[str, Any]], facts: RunFacts) -> dict[str, Any]:
    """The object that ``--json`` writes.

    ``accel`` says what the run as a whole used: KVM if any of its machines did. Each scenario has its own.

    :param scenarios: each as ``ScenarioResult.to_json()`` gives it.
    """
    return {
        "schema": SCHEMA,
        "harness": __version__,
        "run": facts.run,
        "started": facts.started,
        "finished": timestamp(),
        "shard": facts.shard,
        "host": host_facts(),
        "accel": overall_accel(scenarios),
        "scenarios": list(scenarios),
    }


def overall_accel(scenarios: Sequence[Mapping[str, Any]]) -> Mapping[str, str]:
    """What a run as a whole used, and why."""
    used = [scenario["accel"] for scenario in scenarios if scenario["accel"]]
    fallback = used[0] if used else {"used": "none", "why": "nothing was booted"}
    return next((accel for accel in used if accel["used"] == "kvm"), fallback)


def exit_status(scenarios: Sequence[Mapping[str, Any]]) -> int:
    """A failure of the product outweighs an error; skips alone are nothing that ran."""
    verdicts = {Verdict(scenario["verdict"]) for scenario in scenarios}
    if Verdict.FAIL in verdicts:
        return FAILED
    if Verdict.ERROR in verdicts:
        return ERRORED
    return PASSED if Verdict.PASS in verdicts else NOTHING_RAN


def print_table(console: Console, scenarios: Sequence[Mapping[str, Any]]) -> None:
    """One row a scenario: the verdict, and where the seconds went."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("scenario", overflow="fold")
    table.add_column("verdict")
    phases = ("build", "wait", "first_command", "load", "drive", "assert", "teardown", "total")
    for phase in phases:
        table.add_column(phase.replace("first_command", "boot"), justify="right")
    for scenario in scenarios:
        verdict = Verdict(scenario["verdict"])
        seconds = [f"{scenario['seconds'][phase]:.1f}" for phase in phases]
        table.add_row(escape(scenario["id"]), f"[{STYLES[verdict]}]{verdict.upper()}[/]", *seconds)
    console.print(table)


def print_failures(console: Console, scenarios: Sequence[Mapping[str, Any]]) -> None:
    """Everything that did not pass, with what a person needs to go on."""
    # What keeps many scenarios from running, as an archive that does not answer, is told once.
    alike: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for scenario in scenarios:
        alike.setdefault((scenario["reason"], "" if _never_ran(scenario) else scenario["results"]), []).append(scenario)
    for scenario, *others in alike.values():
        verdict = Verdict(scenario["verdict"])
        if verdict is Verdict.PASS:
            continue
        more = f" and {len(others)} more" if others else ""
        console.print(f"\n[{STYLES[verdict]}]{verdict.upper()}[/] [bold]{escape(scenario['id'])}[/]{more}: ", end="")
        console.print(escape(scenario["reason"]), highlight=False)
        for failed in scenario["failed_assertions"]:
            console.print(f"  [red]does not hold:[/] {escape(failed['expression'])}", highlight=False)
            for name, value in failed["values"].items():
                console.print(f"      {escape(name)} = {escape(str(value))}", highlight=False)
            if failed["error"]:
                console.print(f"      {escape(failed['error'])}", highlight=False)
        for crash in scenario["crashes"]:
            console.print(f"  [red]crash on {escape(crash['layer'])}:[/] {escape(crash['title'])}", highlight=False)
        if verdict is not Verdict.SKIP:
            console.print(f"  logs: {scenario['results']}", markup=False, highlight=False, soft_wrap=True)
            for what, how in ways_back(scenario).items():
                console.print(f"  {what}: {how}", markup=False, highlight=False, soft_wrap=True)


def _never_ran(scenario: Mapping[str, Any]) -> bool:
    return scenario["verdict"] == Verdict.ERROR and not scenario["versions"] and not scenario["steps"]


def ways_back(scenario: Mapping[str, Any]) -> dict[str, str]:
    """How to see it once more, as commands for a shell: all of it, its machine, and that without the harness."""
    tested = [f"--under-test {shlex.quote(option)}" for option in _options(scenario["under_test"])]
    results = Path(scenario["results"])
    # pytest knows a row by its file's name and label. Brackets are letters to its -k.
    chosen = f"-k {shlex.quote(Path(scenario['id']).name)}" if scenario["matrix"] else ""
    file = shlex.quote(scenario["file"] or scenario["id"])
    ways = {
        "again": " ".join(filter(None, ("harness run", file, chosen, *tested))),
        "its machine": f"harness shell --from {shlex.quote(str(results))}",
        "its machine without the harness": shlex.quote(str(results / "repro.sh")),
    }
    if any(not item["source"] for item in scenario["under_test"]):
        del ways["again"]  # a mutation run's good kernel: no option of "harness run" means it
    if not scenario["versions"]:  # nothing was booted
        return {what: how for what, how in ways.items() if what == "again"}
    return ways


def _options(tested: Sequence[Mapping[str, Any]]) -> list[str]:
    return [f"{item['component']}={source}" for item in tested for source in item.get("sources") or [item["source"]]]


def print_under_test(console: Console, scenarios: Sequence[Mapping[str, Any]]) -> None:
    """What was tested in the place of a recipe's own, one line for each build of it."""
    told = {(item["component"], item["sha256"]): item for scenario in scenarios for item in scenario["under_test"]}
    for item in told.values():
        described = f" ({item['describe']})" if item["describe"] else ""
        console.print(
            f"under test: {item['component']} from {item['source']}{described}, sha256 {item['sha256'][:16]},"
            f" {item['version'] or 'no version'}; in place of {item['replaced']}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        for line in item.get("inexact", ()):
            console.print(f"  [bold yellow]does not fit exactly:[/] {escape(line)}", highlight=False, soft_wrap=True)


def verdict_line(scenarios: Sequence[Mapping[str, Any]]) -> str:
    """``11 passed, 1 failed``: counts by verdict, plain text."""
    words = {Verdict.PASS: "passed", Verdict.FAIL: "failed", Verdict.ERROR: "errors", Verdict.SKIP: "skipped"}
    counts = [(words[verdict], sum(item["verdict"] == verdict for item in scenarios)) for verdict in Verdict]
    return ", ".join(f"{count} {word}" for word, count in counts if count or word in ("passed", "failed"))
