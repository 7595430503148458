"""``harness report``: the page to look at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from harness.command import command, make_console
from harness.commands.recording import HistoryOption
from harness.errors import UsageError
from harness.records.history import History, default_history
from harness.records.read import ReadScenario, ReadSummary, read_results, read_summary


@command
def report(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS...", help="--json summaries, or directories of results.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where the page goes.")] = Path(
        "report"
    ),
    history: HistoryOption = None,
) -> None:
    """Write one page, which needs nothing else, of what scenarios came to."""
    tell_page(make_console(), *gather(results), output, history)


def tell_page(
    console: Console,
    scenarios: Sequence[ReadScenario],
    summaries: Sequence[ReadSummary],
    output: Path,
    history: Path | None,
) -> None:
    """Write the page and say where it is; raises as :func:`harness.report.page.write.write_page`."""
    from harness.report.page.write import write_page  # noqa: PLC0415 (templates, which no other command needs)

    page = write_page(output, scenarios, summaries, History((history or default_history()).absolute()))
    size = page.stat().st_size / 1e6
    told = f"report: {page} ({len(scenarios)} scenarios, {size:.1f} MB)"
    console.print(told, markup=False, highlight=False, soft_wrap=True)


def gather(paths: Iterable[Path]) -> tuple[list[ReadScenario], list[ReadSummary]]:
    """The scenarios of summaries and of results directories, each once, and the summaries.

    :raises UsageError: there are none.
    :raises ScenarioError: a file cannot be read.
    """
    found: dict[tuple[str, str, int], ReadScenario] = {}
    summaries: list[ReadSummary] = []
    for path in paths:
        if path.is_dir():
            files = [path / "result.json"] if (path / "result.json").is_file() else sorted(path.glob("*/result.json"))
            if not files:
                raise UsageError(f"there are no results in {path}", hint="a directory that harness run --results wrote")
            read = [read_results(file).model_copy(update={"results": str(file.parent)}) for file in files]
        else:
            summaries.append(read_summary(path))
            read = summaries[-1].scenarios
        for item in read:
            found.setdefault((item.run, item.id, item.attempt), item)
    return list(found.values()), summaries
