"""The command line: ``harness run | check | doctor | images | shell | schema``."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, NoReturn, ParamSpec

import pytest
import typer
from rich.console import Console
from rich.filesize import decimal

from harness.doctor import State, diagnose, print_findings
from harness.errors import HarnessError, HostError, Problem, UsageError
from harness.interrupts import unwind_on_signals
from harness.plugin import Front
from harness.progress import PlainProgress, RichProgress, SilentProgress
from harness.progress import Progress as BuildProgress
from harness.report import summary
from harness.report.progress import for_console
from harness.report.store import print_store
from harness.result import ScenarioResult, write_json
from harness.scenario.model import Scenario
from harness.scenario.schema import json_schema
from harness.shell import open_shell
from harness.workspace import Workspace

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
images_app = typer.Typer(no_args_is_help=True, help="The store of images.")
app.add_typer(images_app, name="images")

SCENARIOS = Path("scenarios")


P = ParamSpec("P")


class Accel(StrEnum):
    """What ``--accel`` takes."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


class Keep(StrEnum):
    """What ``--keep`` takes."""

    NEVER = "never"
    FAILED = "failed"
    ALWAYS = "always"


Paths = Annotated[list[Path] | None, typer.Argument(help="Scenario files and directories.", show_default="scenarios/")]
AccelOption = Annotated[Accel, typer.Option(help="auto proves KVM and falls back to emulation.")]
UnderTest = Annotated[
    list[str] | None,
    typer.Option("--under-test", metavar="COMPONENT=FILE", help="Load this module instead of the recipe's own."),
]


def _console() -> Console:
    """Standard output; a log has no width of its own, and folded ids cannot be searched for."""
    return Console() if sys.stdout.isatty() else Console(width=160)


def _build_progress() -> BuildProgress:
    return RichProgress() if sys.stderr.isatty() else PlainProgress(sys.stderr)


def _shown(progress: BuildProgress) -> AbstractContextManager[object]:
    """Show a bar while the block runs, where there is one."""
    return progress if isinstance(progress, RichProgress) else nullcontext()


def _fail(console: Console, error: HarnessError, status: int) -> NoReturn:
    console.print(f"[bold red]error:[/] {error.__class__.__name__}: ", end="")
    console.print(error.explain(), markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(status)


def _interruptible(command: Callable[P, None]) -> Callable[P, None]:
    """A command that Ctrl-C or SIGTERM ends in order: what runs is undone, and the exit status blames no product."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        unwind_on_signals()
        console = Console(stderr=True)
        try:
            command(*args, **kwargs)
        except (OSError, EOFError) as error:  # typer would end with 1, which blames the product
            _fail(console, HostError(f"the host failed: {error or type(error).__name__}"), summary.ERRORED)
        except KeyboardInterrupt as error:
            by = f" by {error}" if str(error) else ""
            console.print(f"interrupted{by}", style="bold red", highlight=False)
            raise typer.Exit(summary.ERRORED) from None

    return wrapped


def _load(console: Console, workspace: Workspace, paths: list[Path] | None) -> list[Scenario]:
    """The scenarios, or the end: nothing runs while any file is wrong."""
    for path in paths or []:
        if not path.exists():
            _fail(console, UsageError(f"{path} does not exist"), summary.USAGE)
    scenarios, problems = workspace.load(paths or [SCENARIOS])
    if problems:
        _print_problems(console, problems)
        raise typer.Exit(summary.USAGE)
    return scenarios


def _print_problems(console: Console, problems: list[Problem]) -> None:
    for problem in problems:
        console.print(str(problem), markup=False, highlight=False, soft_wrap=True)
    console.print(f"{len(problems)} problem{'s' if len(problems) != 1 else ''}", style="bold red")


@app.command()
@_interruptible
def run(
    paths: Paths = None,
    keyword: Annotated[str | None, typer.Option("-k", help="Only scenarios whose id matches.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Only scenarios with one of these tags.")] = None,
    accel: AccelOption = Accel.AUTO,
    under_test: UnderTest = None,
    cold: Annotated[bool, typer.Option("--cold", help="Boot every machine; use and make no saved ones.")] = False,
    jobs: Annotated[int, typer.Option("-j", min=1, help="How many scenarios at once.")] = 1,
    keep: Annotated[Keep, typer.Option(help="Whose logs stay.")] = Keep.ALWAYS,
    results: Annotated[Path | None, typer.Option(help="Where logs and evidence go.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write a summary.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML.")] = None,
    exit_first: Annotated[bool, typer.Option("-x", help="Stop after the first that does not pass.")] = False,
) -> None:
    """Run scenarios and print their verdicts.

    Exit status: 0 all passed, 1 a scenario failed, 2 the harness or host failed, 3 nothing ran, 4 usage.
    """
    console = _console()
    workspace = Workspace(_build_progress())
    scenarios = _load(console, workspace, paths)
    try:
        workspace.overrides(under_test or [])
        with _shown(workspace.progress):
            workspace.prepare(scenarios)
    except UsageError as error:
        _fail(console, error, summary.USAGE)
    except HarnessError as error:
        if json_file is not None:
            _write_unprepared(json_file, scenarios, results or Path("results"), error)
        _fail(console, error, summary.ERRORED)
    arguments = [str(path) for path in paths or [SCENARIOS]]
    # The project around the scenarios may have pytest settings and a conftest of its own: they are not for these.
    arguments += ["-c", os.devnull, "--rootdir", str(Path.cwd()), "--noconftest", "--assert=plain"]
    arguments += ["-s", "-p", "no:cacheprovider", "-p", "no:tmpdir", "--accel", accel.value, "--keep", keep.value]
    for option, value in (
        ("-k", keyword),
        ("--results", results),
        ("--harness-json", json_file),
        ("--junitxml", junit),
    ):
        if value is not None:
            arguments += [option, str(value)]
    for source in under_test or []:
        arguments += ["--under-test", source]
    if tag:
        arguments += ["-m", " or ".join(tag)]
    if cold:
        arguments.append("--cold")
    if exit_first:
        arguments.append("-x")
    if jobs > 1:
        arguments += ["-n", str(jobs)]
    raise typer.Exit(_run_pytest(console, workspace, arguments))


def _write_unprepared(target: Path, scenarios: list[Scenario], results: Path, error: HarnessError) -> None:
    """The summary of a run that had no images to boot: an ERROR for each scenario."""
    reason = f"the images cannot be prepared: {error.explain()}"
    refused = [
        ScenarioResult(item.id, item.title, item.feature, item.tags, item.matrix, results, reason=reason)
        for item in scenarios
    ]
    with suppress(OSError):  # a full disk is what is being told
        write_json(target.absolute(), summary.make_summary([item.to_json() for item in refused]))


def _run_pytest(console: Console, workspace: Workspace, arguments: list[str]) -> int:
    """Let pytest run the scenarios, then say what became of them."""
    progress = for_console(console)
    front = Front(workspace, progress)
    try:
        ended = pytest.main(arguments, plugins=[front])
    finally:
        progress.close()
    finished = front.finished
    if finished:
        console.print()
        summary.print_table(console, finished)
        summary.print_failures(console, finished)
        accel = summary.overall_accel(finished)
        console.print(f"\naccelerator: {accel['used']} ({accel['why']})", markup=False, highlight=False, soft_wrap=True)
    console.print(f"results: {front.results}", markup=False, highlight=False, soft_wrap=True)
    if front.interrupted:
        rest = "" if front.selected is None else f": {front.selected - len(finished)} not begun"
        console.print(f"interrupted{rest}", style="bold red")
    console.print(summary.verdict_line(finished), markup=False, highlight=False)
    # What went wrong outside of any scenario must not look like success, nor like nothing.
    if ended in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        return summary.exit_status(finished)
    if not front.interrupted:
        console.print(f"pytest itself failed: {ended!r}", style="bold red", markup=False, highlight=False)
    return summary.USAGE if ended == pytest.ExitCode.USAGE_ERROR else summary.ERRORED


@app.command()
def check(paths: Paths = None) -> None:
    """Validate scenario files; boot nothing."""
    console = _console()
    scenarios = _load(console, Workspace(SilentProgress()), paths)
    console.print(f"{len(scenarios)} scenarios, no problem", highlight=False)


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Say what this host can and cannot do, why, and the remedy."""
    console = _console()
    findings = diagnose(Workspace(SilentProgress()))
    if as_json:
        console.print_json(json.dumps([asdict(finding) for finding in findings]))
    else:
        print_findings(console, findings)
    if any(finding.state is State.BROKEN for finding in findings):
        raise typer.Exit(summary.ERRORED)


@app.command()
@_interruptible
def shell(
    scenario: Annotated[Path, typer.Argument(help="A scenario file.")],
    keyword: Annotated[str | None, typer.Option("-k", help="Which of its matrix rows.")] = None,
    accel: AccelOption = Accel.AUTO,
    under_test: UnderTest = None,
    on_console: Annotated[bool, typer.Option("--console", help="Attach to the console, not to SSH.")] = False,
) -> None:
    """Boot and load a scenario, then give its machine to a person; leaving ends it."""
    console = Console(stderr=True)
    progress = _build_progress()
    workspace = Workspace(progress)
    scenarios = [item for item in _load(console, workspace, [scenario]) if keyword is None or keyword in item.id]
    if len(scenarios) != 1:
        rows = ", ".join(item.id for item in scenarios) or "none"
        _fail(console, UsageError(f"one scenario is needed, these match: {rows}", hint="choose with -k"), summary.USAGE)
    try:
        open_shell(console, workspace, scenarios[0], accel.value, under_test or [], on_console=on_console)
    except UsageError as error:
        _fail(console, error, summary.USAGE)
    except HarnessError as error:
        _fail(console, error, summary.ERRORED)


@app.command()
def schema() -> None:
    """Print the JSON Schema of scenario files, for editors."""
    sys.stdout.write(json.dumps(json_schema(Workspace(SilentProgress()).catalogue), indent=2) + "\n")


@images_app.command("build")
@_interruptible
def images_build(
    names: Annotated[list[str] | None, typer.Argument(help="Machine profiles; all of them by default.")] = None,
) -> None:
    """Build what machine profiles boot, unless the store has it."""
    console = _console()
    workspace = Workspace(_build_progress())
    unknown = sorted(set(names or []) - set(workspace.profiles))
    if unknown:
        known = ", ".join(workspace.profiles)
        _fail(console, UsageError(f"unknown machine profile {unknown[0]!r}", hint=f"known are: {known}"), summary.USAGE)
    try:
        with _shown(workspace.progress):
            for name in names or workspace.profiles:
                workspace.build_profile(workspace.profiles[name])
    except HarnessError as error:
        _fail(console, error, summary.ERRORED)
    console.print(f"images are in {workspace.store.root}", markup=False, highlight=False, soft_wrap=True)


@images_app.command("list")
def images_list() -> None:
    """List what the store holds."""
    print_store(_console(), Workspace(SilentProgress()).store)


@images_app.command("prune")
def images_prune(
    keep_days: Annotated[float, typer.Option(min=0, help="Keep what was used in the last so many days.")] = 30,
) -> None:
    """Remove images that were not used lately, and what killed builds left."""
    freed = Workspace(SilentProgress()).store.prune(keep_days=keep_days)
    _console().print(f"freed {decimal(freed)}", highlight=False)


def main() -> None:
    """The ``harness`` command."""
    # Of its own, typer ends a wrong command line with 2, which here blames the harness or the host.
    usage_error: Any = typer.BadParameter.__mro__[1]
    usage_error.exit_code = summary.USAGE
    try:
        app()
    except Exception:  # Python's own exit status for it, 1, would blame the product
        traceback.print_exc()
        sys.exit(summary.ERRORED)
