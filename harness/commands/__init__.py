"""Commands of ``harness`` that have more to say than fits in one file."""

from __future__ import annotations

import typer

from harness.commands.gate import gate
from harness.commands.history import history


def register(app: typer.Typer) -> None:
    """Give the command line these commands."""
    for function in (gate, history):
        app.command()(function)
