"""What the commands of the command line share: options, output, and how errors end them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import Annotated, NoReturn, ParamSpec

import typer
from rich.console import Console

from harness.errors import HarnessError, HostError, Problem, ScenarioError, UsageError
from harness.interrupts import unwind_on_signals
from harness.progress import PlainProgress, RichProgress
from harness.progress import Progress as BuildProgress
from harness.report import summary
from harness.scenario.model import Scenario
from harness.workspace import Workspace

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
    typer.Option(
        "--under-test",
        metavar="COMPONENT=SOURCE",
        help="Test this in place of the recipe's own: a built file, a patch (several are applied in order), a tree.",
    ),
]


def make_console() -> Console:
    """Standard output; a log has no width of its own, and folded ids cannot be searched for."""
    return Console() if sys.stdout.isatty() else Console(width=160)


def build_progress() -> BuildProgress:
    """A bar on a terminal, lines elsewhere."""
    return RichProgress() if sys.stderr.isatty() else PlainProgress(sys.stderr)


def shown(progress: BuildProgress) -> AbstractContextManager[object]:
    """Show a bar while the block runs, where there is one."""
    return progress if isinstance(progress, RichProgress) else nullcontext()


def print_error(console: Console, error: HarnessError) -> None:
    """The whole story of an error."""
    console.print(f"[bold red]error:[/] {error.__class__.__name__}: ", end="")
    console.print(error.explain(), markup=False, highlight=False, soft_wrap=True)


def fail(console: Console, error: HarnessError, status: int) -> NoReturn:
    """Say what is wrong, and end with an exit status."""
    print_error(console, error)
    raise typer.Exit(status)


def command(body: Callable[P, None]) -> Callable[P, None]:
    """A command whose every end has the exit status that tells who is to blame, and words for a person.

    Ctrl-C, SIGTERM and SIGHUP end it in order: what runs is undone.
    """

    @wraps(body)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        unwind_on_signals()
        console = Console(stderr=True)
        try:
            body(*args, **kwargs)
            sys.stdout.flush()
        except BrokenPipeError:  # whoever read this has seen enough, as with `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(summary.ERRORED) from None
        except HarnessError as error:
            # A recipe that is wrong is a fault of the files at hand, as a scenario is.
            usage = isinstance(error, UsageError | ScenarioError)
            fail(console, error, summary.USAGE if usage else summary.ERRORED)
        except (OSError, EOFError) as error:  # typer would end with 1, which blames the product
            fail(console, HostError(f"the host failed: {error or type(error).__name__}"), summary.ERRORED)
        except KeyboardInterrupt as error:
            by = f" by {error}" if str(error) else ""
            console.print(f"interrupted{by}", style="bold red", highlight=False)
            raise typer.Exit(summary.ERRORED) from None

    return wrapped


def load_scenarios(console: Console, workspace: Workspace, paths: list[Path] | None) -> list[Scenario]:
    """The scenarios, or the end: nothing runs while any file is wrong."""
    for path in paths or []:
        if not path.exists():
            fail(console, UsageError(f"{path} does not exist"), summary.USAGE)
    scenarios, problems = workspace.load(paths or [SCENARIOS])
    if problems:
        print_problems(console, problems)
        raise typer.Exit(summary.USAGE)
    return scenarios


def print_problems(console: Console, problems: list[Problem]) -> None:
    """One line a problem."""
    for problem in problems:
        console.print(str(problem), markup=False, highlight=False, soft_wrap=True)
    console.print(f"{len(problems)} problem{'s' if len(problems) != 1 else ''}", style="bold red")
