"""Commands of ``harness`` that have more to say than fits in one file."""

from __future__ import annotations

import typer

from harness.commands.export import export, merge
from harness.commands.gate import gate
from harness.commands.history import history
from harness.commands.report import report
from harness.commands.under_test import bisect, components, mutate


def register(app: typer.Typer) -> None:
    """Give the command line these commands."""
    for function in (components, mutate, bisect, gate, history, report, export, merge):
        app.command()(function)
