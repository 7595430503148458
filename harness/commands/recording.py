"""What ``harness run`` has to do with the history: recording, dividing, and knowing how long things take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from harness.command import print_error
from harness.errors import HarnessError
from harness.records.history import History, default_history
from harness.records.shards import Shard, divide, parse_shard
from harness.report.progress import Expected
from harness.scenario.model import Scenario

HistoryOption = Annotated[
    Path | None,
    typer.Option("--history", metavar="FILE", help="The history of outcomes.", show_default="in $XDG_STATE_HOME"),
]


def history_of_run(console: Console, asked: Path | None) -> Path | None:
    """Where this run's outcomes go: the file that was asked for, else the user's own.

    :return: None where the user's own cannot be used, which is told; it must not keep anybody from running.
    :raises UsageError, HostError: the file that was asked for cannot be used.
    """
    path = (asked or default_history()).absolute()
    try:
        History(path).check()
    except HarnessError as error:
        if asked is not None:
            raise
        print_error(console, error)
        console.print("nothing is recorded", style="yellow")
        return None
    return path


def part_of(scenarios: Sequence[Scenario], shard: str, history: Path | None) -> Shard:
    """The part of the scenarios that ``--shard`` asks for.

    :raises UsageError: there is no such part.
    """
    index, count = parse_shard(shard)
    return divide([item.id for item in scenarios], _durations(history), index, count)


def expectation(scenarios: Sequence[Scenario], repeat: int, history: Path | None) -> Expected:
    """What a run of these scenarios is going to be."""
    durations = _durations(history)
    known = [durations.get(item.id) for item in scenarios]
    total = sum(item for item in known if item is not None) * repeat
    return Expected(len(known) * repeat, durations, None if None in known else total)


def _durations(history: Path | None) -> Mapping[str, float]:
    return {} if history is None else History(history).durations()
