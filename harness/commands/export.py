"""``harness export`` and ``harness merge``: summaries for other programs, and several as one."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from harness.command import command, make_console, print_problems
from harness.commands.report import gather
from harness.errors import ScenarioError
from harness.records.read import ReadScenario, read_any
from harness.records.shards import merge as merge_summaries
from harness.report import summary
from harness.report.annotations import github, gitlab
from harness.report.kcidb import kcidb
from harness.report.ktap import ktap
from harness.result import write_json


class Format(StrEnum):
    """What ``harness export`` writes."""

    KTAP = "ktap"
    KCIDB = "kcidb"
    GITHUB = "github"
    GITLAB = "gitlab"


@command
def export(
    form: Annotated[Format, typer.Argument(metavar="ktap|kcidb|github|gitlab", help="What is written.")],
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS...", help="--json summaries, or directories of results.")
    ],
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Instead of printing.")] = None,
    origin: Annotated[str, typer.Option(help="KCIDB: what it calls your CI system.")] = "harness",
    log_url: Annotated[
        str | None, typer.Option(metavar="URL", help="KCIDB: where everybody can read the results directories.")
    ] = None,
) -> None:
    """Write results in a format that others read: KTAP, KCIDB, GitHub's annotations, GitLab's code quality."""
    scenarios, _ = gather(results)
    text = _text(form, scenarios, origin, log_url)
    if output is None:
        sys.stdout.write(text)
    else:
        output.write_text(text, encoding="utf-8")


def _text(form: Format, scenarios: list[ReadScenario], origin: str, log_url: str | None) -> str:
    if form is Format.KTAP:
        return ktap(scenarios)
    if form is Format.GITHUB:
        return github(scenarios)
    value = gitlab(scenarios) if form is Format.GITLAB else kcidb(scenarios, origin, log_url)
    return json.dumps(value, indent=2) + "\n"


@command
def merge(
    summaries: Annotated[list[Path], typer.Argument(metavar="SUMMARY...", help="The --json files of all shards.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The summary of the whole.")],
) -> None:
    """Join the summaries of all shards of one run.

    Exit status: 0 when they are joined; 2, with nothing written, when a shard is missing, doubled, or of another run.
    """
    try:
        runs, mutations = read_any(summaries)
        for path in mutations:
            raise typer.BadParameter(f"{path} is of harness mutate, which has no shards")
        joined = merge_summaries(runs, {path: json.loads(path.read_bytes()) for path in runs})
    except ScenarioError as error:
        print_problems(Console(stderr=True), list(error.problems))
        raise typer.Exit(summary.ERRORED) from None
    write_json(output.absolute(), joined)
    make_console().print(f"{len(runs)} shards: {summary.verdict_line(joined['scenarios'])}", highlight=False)
