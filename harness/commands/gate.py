"""``harness gate``: a yes or a no for a release, with the evidence for it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from harness.command import command, fail, make_console, print_problems
from harness.errors import HarnessError, ScenarioError, UsageError
from harness.gate.judge import Decision, Judge, Ruling, State
from harness.gate.policy import read_policy
from harness.progress import SilentProgress
from harness.records.history import History, default_history
from harness.records.outcome import Outcome
from harness.records.read import ReadMutation, read_any
from harness.report import summary
from harness.result import write_json
from harness.workspace import Workspace

#: "When it cannot tell", whatever the reason: a wrong policy must not look like a no that was thought about.
CANNOT_TELL = summary.ERRORED
_STYLES = {State.MET: "green", State.EXCUSED: "yellow", State.BROKEN: "bold red", State.MISSING: "bold magenta"}


@command
def gate(
    summaries: Annotated[
        list[Path] | None, typer.Argument(metavar="[SUMMARY]...", help="--json files of harness run and mutate.")
    ] = None,
    policy: Annotated[Path, typer.Option(metavar="FILE", help="What must hold.")] = Path("policy.yaml"),
    history: Annotated[
        Path | None,
        typer.Option(
            "--history", metavar="FILE", help="Outcomes to look at besides.", show_default="the user's, without SUMMARY"
        ),
    ] = None,
    scenarios: Annotated[Path, typer.Option(metavar="DIR", help="All scenarios that there are.")] = Path("scenarios"),
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the decision.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Leave out what is met.")] = False,
) -> None:
    """Say whether a release may be made.

    Exit status: 0 yes, 1 no, 2 when it cannot tell: a policy, a summary or a history that cannot be read.
    """
    console = make_console()
    errors = Console(stderr=True)
    try:
        decision = _decide(policy, summaries or [], history, scenarios)
        if json_file is not None:
            write_json(json_file.absolute(), decision.to_json())
    except ScenarioError as error:
        print_problems(errors, list(error.problems))
        errors.print("the gate cannot tell", style="bold red")
        raise typer.Exit(CANNOT_TELL) from None
    except HarnessError as error:
        fail(errors, error, CANNOT_TELL)
    print_decision(console, decision, quiet=quiet)
    raise typer.Exit(summary.PASSED if decision.yes else summary.FAILED)


def _decide(policy_file: Path, summaries: Iterable[Path], history: Path | None, directory: Path) -> Decision:
    workspace = Workspace(SilentProgress())
    if not directory.is_dir():
        raise UsageError(f"{directory} is no directory", hint="--scenarios names the one with all scenarios")
    catalogue, problems = workspace.load([directory])
    if problems:
        raise ScenarioError(problems)
    policy, _ = read_policy(policy_file, catalogue, workspace.components)
    outcomes, mutations = _evidence(list(summaries), history)
    return Judge(policy, catalogue, outcomes, mutations, datetime.now(UTC)).decide()


def _evidence(summaries: list[Path], history: Path | None) -> tuple[list[Outcome], list[ReadMutation]]:
    """What was seen, each outcome once, however often it is told of."""
    runs, mutations = read_any(summaries)
    seen = {item.key: item for run in runs.values() for item in map(Outcome.of, run.scenarios)}
    if history is not None and not history.is_file():
        raise UsageError(f"there is no history {history}")
    if history is not None or not runs:
        kept = History((history or default_history()).absolute())
        seen = {**{item.key: item for item in kept.outcomes()}, **seen}
    return list(seen.values()), list(mutations.values())


def print_decision(console: Console, decision: Decision, *, quiet: bool) -> None:
    """The answer, each rule with its evidence, and what is missing."""
    for ruling in decision.rulings:
        _print_ruling(console, ruling, quiet=quiet)
    for note in decision.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    counts = {state: sum(check.state is state for item in decision.rulings for check in item.checks) for state in State}
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    style, word = ("bold green", "yes") if decision.yes else ("bold red", "no")
    console.print(f"\n[{style}]{word}[/]: {escape(decision.policy)}: {told}", highlight=False, soft_wrap=True)


def _print_ruling(console: Console, ruling: Ruling, *, quiet: bool) -> None:
    mark = "[green]holds[/]" if ruling.holds else "[bold red]does not hold[/]"
    console.print(f"{escape(ruling.rule)} {mark}: {escape(ruling.asks)}", highlight=False, soft_wrap=True)
    for check in ruling.checks:
        if quiet and check.state is State.MET:
            continue
        state = f"[{_STYLES[check.state]}]{check.state}[/]"
        console.print(f"  {state} {escape(check.subject)}: {escape(check.evidence)}", highlight=False, soft_wrap=True)
