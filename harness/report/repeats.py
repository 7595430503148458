"""How often a scenario failed that ran several times on the same code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.records.outcome import Outcome
from harness.records.read import ReadScenario
from harness.records.trend import Flake, repeats


def print_repeats(console: Console, finished: Sequence[Mapping[str, Any]]) -> None:
    """A row for each scenario that ran more than once; nothing where none did.

    :param finished: as ``ScenarioResult.to_json`` gives them.
    """
    if all(item["attempt"] == 1 for item in finished):
        return
    outcomes = [Outcome.of(ReadScenario.model_validate(item, strict=False)) for item in finished]
    console.print()
    print_flakes(console, repeats(outcomes))


def print_flakes(console: Console, groups: Sequence[Flake]) -> None:
    """A row for each, with the interval that holds the rate of failures."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("scenario", overflow="fold")
    for column in ("components", "accel", "passed", "failed", "errors", "fails", "95 % sure"):
        table.add_column(column, justify="right")
    for item in groups:
        judged = item.passed + item.failed
        rate = f"{item.rate:.1%}" if judged else "unknown"
        style = "bold red" if item.flaky else ""
        interval = f"{item.low:.1%} to {item.high:.1%}" if judged else ""
        counts = (str(item.passed), str(item.failed), str(item.errors))
        name = f"{escape(item.scenario)}{' (flaky)' if item.flaky else ''}"
        table.add_row(name, item.components_sha256[:8], item.accel, *counts, rate, interval, style=style)
    console.print(table)
