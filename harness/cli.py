"""The command line: ``harness run | check | components | mutate | bisect | doctor | images | shell | schema``."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from rich.console import Console
from rich.filesize import decimal

from harness.command import (
    SCENARIOS,
    Accel,
    AccelOption,
    Keep,
    Paths,
    UnderTest,
    build_progress,
    command,
    fail,
    load_scenarios,
    make_console,
    print_error,
    shown,
)
from harness.commands import register
from harness.commands.recording import HistoryOption, expectation, history_of_run, part_of
from harness.commands.report import tell_page
from harness.doctor import State, diagnose, print_findings
from harness.errors import HarnessError, HostError, UsageError
from harness.images.under_test import Override
from harness.progress import SilentProgress
from harness.records.read import as_summary
from harness.report import summary
from harness.report.progress import Expected, Silent, for_console
from harness.report.repeats import print_repeats
from harness.report.store import print_store
from harness.reproduce import Wanted, read_earlier
from harness.scenario.model import Scenario
from harness.scenario.schema import json_schema
from harness.session import Front
from harness.shell import open_shell
from harness.unrun import Asked
from harness.workspace import Needed, Workspace

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
images_app = typer.Typer(no_args_is_help=True, help="The store of images.")
app.add_typer(images_app, name="images")
register(app)


@app.command()
@command
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
    repeat: Annotated[int, typer.Option(min=1, help="Run each so many times, and tell how often it failed.")] = 1,
    shard: Annotated[str | None, typer.Option(metavar="I/N", help="Only this part of N, by recorded duration.")] = None,
    report_to: Annotated[Path | None, typer.Option("--report", metavar="DIR", help="Write its page.")] = None,
    history: HistoryOption = None,
    no_history: Annotated[bool, typer.Option("--no-history", help="Record nothing.")] = False,
) -> None:
    """Run scenarios and print their verdicts.

    Exit status: 0 all passed, 1 a scenario failed, 2 the harness or host failed, 3 nothing ran, 4 usage.
    """
    console = make_console()
    workspace = Workspace(build_progress())
    load_scenarios(console, workspace, paths)
    overrides = workspace.overrides(under_test or [])  # a wrong one is told before anything else is done
    chosen = _selection(paths, keyword, tag, repeat)
    asked = _select(console, workspace, chosen)
    selected = list({item.scenario.id: item.scenario for item in asked}.values())
    workspace.check_used(overrides, selected)
    recorded = None if no_history else history_of_run(console, history)
    part = None if shard is None else part_of(selected, shard, recorded)
    if part is not None:
        asked = [item for item in asked if item.scenario.id in part.mine]
        selected = [item for item in selected if item.id in part.mine]
    refused = _prepare(console, workspace, selected, overrides)
    front = Front(workspace, Silent(), part, asked, refused)
    arguments = [*chosen, "-s", "-p", "no:tmpdir", "--accel", accel.value, "--keep", keep.value]
    files = {
        "--results": results,
        "--harness-json": json_file,
        "--junitxml": junit,
        "--harness-history": recorded,
    }
    for option, value in files.items():
        if value is not None:
            arguments += [option, str(value)]
    for source in under_test or []:
        arguments += ["--under-test", source]
    if cold:
        arguments.append("--cold")
    if exit_first:
        arguments.append("-x")
    if jobs > 1 and front.only:
        arguments += ["-p", "xdist.plugin", "-n", str(jobs), "--dist", "loadgroup"]
    status = _run_pytest(console, front, arguments, expectation(selected, repeat, recorded))
    if report_to is not None and (front.finished or front.unbegun):
        status = _write_page(console, front, report_to, recorded, status)
    raise typer.Exit(status)


def _prepare(
    console: Console, workspace: Workspace, scenarios: list[Scenario], overrides: Mapping[str, Override]
) -> dict[str, HarnessError] | None:
    """Have what the scenarios boot; gives why some cannot run, by id, and None when this was interrupted.

    Nothing is raised: there is to be a result of each scenario, whatever comes of this.
    """
    try:
        with shown(workspace.progress):
            refused = workspace.prepare(scenarios, overrides)
    except KeyboardInterrupt:
        return None
    except HarnessError as error:
        refused = {item.id: error for item in scenarios}
    except OSError as error:
        failed = HostError(f"the host failed while images were prepared: {error}")
        refused = {item.id: failed for item in scenarios}
    except Exception as error:  # a bug of the harness must be an ERROR like any other
        traceback.print_exc()
        broken = HarnessError(f"the harness itself failed while images were prepared: {type(error).__name__}: {error}")
        refused = {item.id: broken for item in scenarios}
    for refusal in {error.explain(): error for error in refused.values()}.values():
        print_error(console, refusal)
    return refused


def _write_page(console: Console, front: Front, target: Path, history: Path | None, status: int) -> int:
    """Write the page of this run, and give the exit status: a product's failure outweighs a page that cannot be."""
    whole = as_summary(summary.make_summary([*front.finished, *front.unbegun], front.facts))
    try:
        tell_page(console, whole.scenarios, [whole], target, history)
    except (OSError, HarnessError) as error:
        told = error if isinstance(error, HarnessError) else HostError(f"the page cannot be written: {error}")
        print_error(console, told)
        return status if status == summary.FAILED else summary.ERRORED
    return status


def _selection(paths: list[Path] | None, keyword: str | None, tag: list[str] | None, repeat: int) -> list[str]:
    """What pytest is told of which scenarios are meant."""
    # Each plugin that is installed beside the harness costs its start, and may change what tests do.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    arguments = [str(path) for path in paths or [SCENARIOS]]
    # The project around the scenarios may have pytest settings and a conftest of its own: they are not for these.
    arguments += ["-c", os.devnull, "--rootdir", str(Path.cwd()), "--noconftest", "--assert=plain"]
    arguments += ["-p", "no:cacheprovider", "-p", "harness.plugin"]
    if keyword is not None:
        arguments += ["-k", keyword]
    if tag:
        arguments += ["-m", " or ".join(tag)]
    if repeat > 1:
        arguments += ["--harness-repeat", str(repeat)]
    return arguments


def _select(console: Console, workspace: Workspace, chosen: list[str]) -> list[Asked]:
    """What is going to run: images are built for these and for no others."""
    front = Front(workspace, Silent())
    ended = pytest.main([*chosen, "--collect-only"], plugins=[front])
    if front.interrupted:
        raise KeyboardInterrupt
    if ended not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise typer.Exit(_status_of(console, front, ended))
    return front.asked


def _run_pytest(console: Console, front: Front, arguments: list[str], expected: Expected) -> int:
    """Let pytest run the scenarios, then say what became of them."""
    front.progress = for_console(console, expected)
    try:
        ended = pytest.main(arguments, plugins=[front])
    except OSError as error:  # a full disk, while JUnit XML was written
        ended = pytest.ExitCode.INTERNAL_ERROR
        print_error(console, HostError(f"the host failed: {error}"))
    finally:
        front.progress.close()
    finished = front.finished
    if finished:
        console.print()
        summary.print_table(console, finished)
        summary.print_failures(console, finished)
        print_repeats(console, finished)
        summary.print_under_test(console, finished)
        accel = summary.overall_accel(finished)
        console.print(f"\naccelerator: {accel['used']} ({accel['why']})", markup=False, highlight=False, soft_wrap=True)
    console.print(f"results: {front.results}", markup=False, highlight=False, soft_wrap=True)
    if front.interrupted:
        rest = f": {len(front.unbegun)} not begun" if front.unbegun else ""
        console.print(f"interrupted{rest}", style="bold red")
    for trouble in front.troubles:
        print_error(console, trouble)
    console.print(summary.verdict_line(finished), markup=False, highlight=False)
    return _status_of(console, front, ended)


def _status_of(console: Console, front: Front, ended: int | pytest.ExitCode) -> int:
    """What went wrong outside of any scenario must not look like success, nor like nothing."""
    enough = ended == pytest.ExitCode.INTERRUPTED and not front.interrupted
    if enough or ended in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        status = summary.ERRORED if front.interrupted else summary.exit_status(front.finished)
        return summary.ERRORED if front.troubles and status != summary.FAILED else status
    if not front.interrupted:
        console.print(f"pytest itself failed: {ended!r}", style="bold red", markup=False, highlight=False)
    return summary.USAGE if ended == pytest.ExitCode.USAGE_ERROR else summary.ERRORED


@app.command()
@command
def check(paths: Paths = None) -> None:
    """Validate scenario files; boot nothing."""
    console = make_console()
    scenarios = load_scenarios(console, Workspace(SilentProgress()), paths)
    console.print(f"{len(scenarios)} scenarios, no problem", highlight=False)


@app.command()
@command
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Say what this host can and cannot do, why, and the remedy."""
    console = make_console()
    findings = diagnose(Workspace(SilentProgress()))
    if as_json:
        console.print_json(json.dumps([asdict(finding) for finding in findings]))
    else:
        print_findings(console, findings)
    if any(finding.state is State.BROKEN for finding in findings):
        raise typer.Exit(summary.ERRORED)


@app.command()
@command
def shell(
    scenario: Annotated[Path | None, typer.Argument(help="A scenario file.")] = None,
    earlier: Annotated[
        Path | None,
        typer.Option("--from", metavar="RESULTS_DIR", help="The machine of an earlier run, in place of a scenario."),
    ] = None,
    keyword: Annotated[str | None, typer.Option("-k", help="Which of its matrix rows.")] = None,
    accel: AccelOption = Accel.AUTO,
    under_test: UnderTest = None,
    on_console: Annotated[bool, typer.Option("--console", help="Attach to the console, not to SSH.")] = False,
    cold: Annotated[bool, typer.Option("--cold", help="Boot the machine; use and make no saved one.")] = False,
) -> None:
    """Boot and load a scenario, or what an earlier run did, then give its machine to a person; leaving ends it."""
    console = Console(stderr=True)
    progress = build_progress()
    workspace = Workspace(progress)
    if (scenario is None) == (earlier is None):
        raise UsageError("either a scenario file or --from is needed")
    if earlier is not None and (keyword or under_test):
        raise UsageError("--from says which scenario and what is tested", hint="leave out -k and --under-test")
    with shown(progress):
        if earlier is not None:
            wanted = read_earlier(workspace, earlier)
        else:
            wanted = _one_scenario(console, workspace, scenario or Path(), keyword, under_test or [])
        for error in workspace.prepare([wanted.scenario], wanted.overrides).values():
            raise error
    open_shell(console, workspace, wanted, accel.value, on_console=on_console, cold=cold)


def _one_scenario(
    console: Console, workspace: Workspace, path: Path, keyword: str | None, under_test: list[str]
) -> Wanted:
    found = [item for item in load_scenarios(console, workspace, [path]) if keyword is None or keyword in item.id]
    if len(found) != 1:
        rows = ", ".join(item.id for item in found) or "none"
        raise UsageError(f"one scenario is needed, these match: {rows}", hint="choose with -k")
    overrides = workspace.overrides(under_test)
    workspace.check_used(overrides, found)
    return Wanted(found[0], overrides)


@app.command()
@command
def schema() -> None:
    """Print the JSON Schema of scenario files, for editors."""
    sys.stdout.write(json.dumps(json_schema(Workspace(SilentProgress()).catalogue), indent=2) + "\n")


@images_app.command("build")
@command
def images_build(
    names: Annotated[list[str] | None, typer.Argument(help="Machine profiles; all of them by default.")] = None,
    anew: Annotated[bool, typer.Option("--anew", help="Fetch the kernels again: the archive may have newer.")] = False,
) -> None:
    """Build what machine profiles boot, unless the store has it."""
    console = make_console()
    workspace = Workspace(build_progress())
    unknown = sorted(set(names or []) - set(workspace.profiles))
    if unknown:
        known = ", ".join(workspace.profiles)
        fail(console, UsageError(f"unknown machine profile {unknown[0]!r}", hint=f"known are: {known}"), summary.USAGE)
    with shown(workspace.progress):
        refused = workspace.build_profiles([Needed(name) for name in names or workspace.profiles], anew=anew)
    for error in refused.values():
        print_error(console, error)
    if refused:
        raise typer.Exit(summary.ERRORED)
    console.print(f"images are in {workspace.store.root}", markup=False, highlight=False, soft_wrap=True)


@images_app.command("list")
@command
def images_list() -> None:
    """List what the store holds."""
    print_store(make_console(), Workspace(SilentProgress()).store)


@images_app.command("prune")
@command
def images_prune(
    keep_days: Annotated[float, typer.Option(min=0, help="Keep what was used in the last so many days.")] = 30,
) -> None:
    """Remove images that were not used lately, and what killed builds left."""
    freed = Workspace(SilentProgress()).store.prune(keep_days=keep_days)
    make_console().print(f"freed {decimal(freed)}", highlight=False)


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
