"""``harness history``: what became of a scenario over time, and since when it is different."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.command import command, make_console
from harness.commands.recording import HistoryOption
from harness.errors import UsageError
from harness.records.history import History, default_history
from harness.records.outcome import Outcome
from harness.records.read import read_summary
from harness.records.trend import Change, Flake, by_accelerator, changes, flakes, repeats
from harness.report.repeats import print_flakes
from harness.report.summary import STYLES
from harness.validate import did_you_mean

_SHOWN_CHARS = 12


@command
def history(
    scenario: Annotated[str | None, typer.Argument(help="A scenario's id; all of them in brief by default.")] = None,
    file: HistoryOption = None,
    add: Annotated[
        list[Path] | None, typer.Option(metavar="SUMMARY", help="First record what this --json summary tells.")
    ] = None,
    last: Annotated[int, typer.Option(min=1, help="Look at no more outcomes than this.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print how a scenario went over time, and the first run after which it changed."""
    console = make_console()
    kept = History((file or default_history()).absolute())
    read = [read_summary(path) for path in add or []]
    for summary in read:
        new = kept.add([Outcome.of(item) for item in summary.scenarios], summary.host)
        Console(stderr=True).print(f"{new} new outcomes of run {summary.run[:8]}", highlight=False)
    if scenario is None:
        _all(console, kept, last, as_json=as_json)
        return
    outcomes = kept.outcomes(scenario, last=last)
    if not outcomes:
        known = {item.id for item in kept.outcomes()}
        hint = did_you_mean(scenario, known) or f"{kept.path} knows {len(known)} scenarios: harness history lists them"
        raise UsageError(f"nothing is recorded of the scenario {scenario!r}", hint=hint)
    groups = by_accelerator(outcomes)
    found = {accel: changes(group) for accel, group in groups.items()}
    if as_json:
        told = {
            "outcomes": [item.to_json() for item in outcomes],
            "changes": {accel: [_change_json(item) for item in items] for accel, items in found.items()},
            "repeats": [asdict(item) for item in repeats(outcomes)],
        }
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
        return
    _print_outcomes(console, outcomes)
    for accel, items in found.items():
        _print_changes(console, accel, items)
    console.print()
    print_flakes(console, repeats(outcomes))


def _change_json(change: Change) -> dict[str, Any]:
    first = {"run": change.first.run, "started": change.first.started.isoformat()}
    return {"what": change.what, "before": change.before, "after": change.after, "first": first}


def _print_outcomes(console: Console, outcomes: Sequence[Outcome]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("started", "run", "verdict", "accel", "start", "total", "drive", "components", "why"):
        numeric = column in ("total", "drive")
        table.add_column(column, justify="right" if numeric else "left", overflow="fold" if column == "why" else "crop")
    for item in outcomes:
        why = "; ".join(item.problems) or item.reason.partition("\n")[0]
        table.add_row(
            f"{item.started.astimezone():%Y-%m-%d %H:%M:%S}",
            item.run[:8] + (f"#{item.attempt}" if item.attempt > 1 else ""),
            f"[{STYLES[item.verdict]}]{item.verdict.upper()}[/]",
            item.accel,
            item.start,
            f"{item.seconds.get('total', 0.0):.1f}",
            f"{item.seconds.get('drive', 0.0):.1f}",
            item.components_sha256[:8],
            escape(why),
        )
    console.print(table)


def _print_changes(console: Console, accel: str, found: Sequence[Change]) -> None:
    console.print(f"\nunder {accel}:" if found else f"\nunder {accel}: nothing has changed", highlight=False)
    for item in found:
        when = f"{item.first.started.astimezone():%Y-%m-%d %H:%M:%S}"
        change = f"{item.before[:_SHOWN_CHARS]} -> {item.after[:_SHOWN_CHARS]}"
        line = f"  {item.what}: {change} since run {item.first.run[:8]} of {when}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _all(console: Console, kept: History, last: int, *, as_json: bool) -> None:
    """Each scenario in one row: how often it ran, how it went last, and how often it was a flake."""
    by_scenario: dict[str, list[Outcome]] = {}
    for item in kept.outcomes():
        by_scenario.setdefault(item.id, []).append(item)
    rows = [(name, group[-last:], flakes(group[-last:])) for name, group in sorted(by_scenario.items())]
    if as_json:
        told = [
            {
                "scenario": name,
                "outcomes": len(group),
                "last": {"verdict": str(group[-1].verdict), "run": group[-1].run},
                "flakes": [asdict(item) for item in found],
            }
            for name, group, found in rows
        ]
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("scenario", "outcomes", "last", "verdict", "flakes"):
        numeric = column in ("outcomes", "flakes")
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for name, group, found in rows:
        verdict = group[-1].verdict
        when = f"{group[-1].started.astimezone():%Y-%m-%d %H:%M:%S}"
        styled = f"[{STYLES[verdict]}]{verdict.upper()}[/]"
        table.add_row(escape(name), str(len(group)), when, styled, str(len(found)) if found else "")
    console.print(table)
    flaky: list[Flake] = [item for _, _, found in rows for item in found]
    if flaky:
        console.print("\nthe same components both passed and failed:", highlight=False)
        print_flakes(console, flaky)
