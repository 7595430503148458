"""What commands have in common: how they end, and what they say when they end badly."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import NoReturn, ParamSpec

import typer
from rich.console import Console

from harness.errors import HarnessError, HostError, Problem, ScenarioError, UsageError
from harness.interrupts import unwind_on_signals
from harness.report import summary

P = ParamSpec("P")


def make_console() -> Console:
    """Standard output; a log has no width of its own, and folded ids cannot be searched for."""
    return Console() if sys.stdout.isatty() else Console(width=160)


def print_error(console: Console, error: HarnessError) -> None:
    console.print(f"[bold red]error:[/] {error.__class__.__name__}: ", end="")
    console.print(error.explain(), markup=False, highlight=False, soft_wrap=True)


def fail(console: Console, error: HarnessError, status: int) -> NoReturn:
    print_error(console, error)
    raise typer.Exit(status)


def command(function: Callable[P, None]) -> Callable[P, None]:
    """A command whose every end has the exit status that tells who is to blame, and words for a person.

    Ctrl-C, SIGTERM and SIGHUP end it in order: what runs is undone.
    """

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        unwind_on_signals()
        console = Console(stderr=True)
        try:
            function(*args, **kwargs)
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


def print_problems(console: Console, problems: list[Problem]) -> None:
    for problem in problems:
        console.print(str(problem), markup=False, highlight=False, soft_wrap=True)
    console.print(f"{len(problems)} problem{'s' if len(problems) != 1 else ''}", style="bold red")
