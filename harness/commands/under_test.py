"""The commands about code under test: ``harness components | mutate | bisect``."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from harness import bisect as search
from harness.command import (
    SCENARIOS,
    Accel,
    AccelOption,
    Paths,
    build_progress,
    command,
    load_scenarios,
    make_console,
    shown,
)
from harness.components import list_components, print_components
from harness.errors import UsageError
from harness.mutate import read_mutants, run_gauntlet
from harness.progress import SilentProgress
from harness.report import summary
from harness.result import write_json
from harness.workspace import Workspace


def _results(under: Path | None, kind: str) -> Path:
    return (under or Path("results")).absolute() / f"{kind}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"


@command
def components(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List what can be put under test, what it is taken from, and the features whose scenarios use it."""
    console = make_console()
    workspace = Workspace(SilentProgress())
    scenarios = load_scenarios(console, workspace, [SCENARIOS]) if SCENARIOS.is_dir() else []
    rows = list_components(workspace, scenarios)
    if as_json:
        console.print_json(json.dumps([asdict(row) for row in rows]))
    else:
        print_components(console, rows)


@command
def mutate(
    component: Annotated[str, typer.Argument(help="What is mutated; see: harness components.")],
    paths: Paths = None,
    mutants: Annotated[
        Path | None, typer.Option(help="Directory of patches.", show_default="mutants/COMPONENT")
    ] = None,
    keyword: Annotated[str | None, typer.Option("-k", help="Only scenarios whose id contains this.")] = None,
    accel: AccelOption = Accel.AUTO,
    results: Annotated[Path | None, typer.Option(help="Where logs and evidence go.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write a summary.")] = None,
    fail_under: Annotated[float, typer.Option(min=0, max=100, help="The least score that is no failure.")] = 0,
) -> None:
    """Run scenarios against broken variants of a component, to see whether they would notice.

    Exit status: 0; 1 when the scenarios fail on good code, or the score is too low; 2 when the harness or host failed;
    3 when nothing ran; 4 usage.
    """
    console = make_console()
    workspace = Workspace(build_progress())
    everything = load_scenarios(console, workspace, paths)
    scenarios = [item for item in everything if keyword is None or keyword in item.id]
    found = read_mutants(component, mutants or Path("mutants") / component, sorted(workspace.components))
    workspace.check_used([component], scenarios)
    with shown(workspace.progress):
        status = run_gauntlet(
            console,
            workspace,
            component,
            found,
            [item for item in scenarios if workspace.can_build(component, item)],
            accel=accel.value,
            results=_results(results, "mutate"),
            json_file=json_file,
            fail_under=fail_under,
        )
    raise typer.Exit(status)


@command
def bisect(
    scenario: Annotated[Path, typer.Argument(help="A scenario file.")],
    tree: Annotated[Path, typer.Option(help="A git repository with the component's source.")],
    good: Annotated[str, typer.Option(help="A commit on which the scenario passes.")],
    bad: Annotated[str, typer.Option(help="A later commit on which it fails.")],
    component: Annotated[str | None, typer.Option(help="What is built from it; the scenario's one module.")] = None,
    keyword: Annotated[str | None, typer.Option("-k", help="Which of its matrix rows.")] = None,
    repeat: Annotated[int, typer.Option(min=1, help="How often a failure must be seen.")] = 2,
    accel: AccelOption = Accel.AUTO,
    results: Annotated[Path | None, typer.Option(help="Where logs and evidence go.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write a summary.")] = None,
) -> None:
    """Find the first commit on which a scenario fails. What does not build, or ends in an ERROR, is skipped.

    Exit status: 0 found; 1 only skipped commits are left; 2 the harness or host failed; 4 usage.
    """
    console = make_console()
    workspace = Workspace(build_progress())
    rows = [item for item in load_scenarios(console, workspace, [scenario]) if keyword is None or keyword in item.id]
    tried: list[search.Tried] = []
    first_bad = None
    built = component or ""
    try:
        if len(rows) != 1:
            names = ", ".join(item.id for item in rows) or "none"
            raise UsageError(f"one scenario is needed, these match: {names}", hint="choose with -k")
        built = component or search.sole_component(workspace, rows[0])
        workspace.check_used([built], rows)
        bisection = search.Bisection(
            workspace,
            rows[0],
            built,
            tree,
            accel=accel.value,
            repeat=repeat,
            results=_results(results, "bisect"),
            told=lambda item: search.print_tried(console, item),
        )
        tried = bisection.tried
        with shown(workspace.progress):
            first_bad = bisection.run(good, bad)
    finally:
        if json_file is not None:
            write_json(json_file.absolute(), search.summary_json(built, first_bad, tried))
    search.print_outcome(console, first_bad, tried)
    raise typer.Exit(summary.PASSED if first_bad else summary.FAILED)
