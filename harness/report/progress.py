"""How a run goes, while it goes: a live line on a terminal, one line an event elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from harness.result import Verdict
from harness.scenario.model import Scenario, Step

_MARKS = {
    Verdict.PASS: "[green]PASS[/]",
    Verdict.FAIL: "[bold red]FAIL[/]",
    Verdict.ERROR: "[bold magenta]ERROR[/]",
    Verdict.SKIP: "[yellow]SKIP[/]",
}


class Progress(Protocol):
    """Who shows a run's progress."""

    def phase(self, scenario: Scenario, phase: str) -> None:
        """A scenario entered a phase."""

    def step(self, scenario: Scenario, number: int, step: Step) -> None:
        """A step begins."""

    def finished(self, result: Mapping[str, Any]) -> None:
        """A scenario ended; the result is as ``to_json`` gives it."""

    def close(self) -> None:
        """The run is over."""


class Silent:
    """Shows nothing."""

    def phase(self, scenario: Scenario, phase: str) -> None:
        """See :class:`Progress`."""

    def step(self, scenario: Scenario, number: int, step: Step) -> None:
        """See :class:`Progress`."""

    def finished(self, result: Mapping[str, Any]) -> None:
        """See :class:`Progress`."""

    def close(self) -> None:
        """See :class:`Progress`."""


def _ending(result: Mapping[str, Any]) -> str:
    line = f"{_MARKS[Verdict(result['verdict'])]} {escape(result['id'])} ({result['seconds']['total']:.1f} s)"
    reason = result["reason"].partition("\n")[0]
    return f"{line}: {escape(reason)}" if reason else line


class Lines:
    """One line an event, with the seconds since the start: for CI logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()

    def _say(self, text: str) -> None:
        self._console.print(f"[{time.monotonic() - self._started:7.1f}s] ", end="", markup=False, highlight=False)
        self._console.print(text, highlight=False, soft_wrap=True)

    def phase(self, scenario: Scenario, phase: str) -> None:
        """See :class:`Progress`."""
        self._say(f"{escape(scenario.id)}: {phase}")

    def step(self, scenario: Scenario, number: int, step: Step) -> None:
        """See :class:`Progress`."""
        self._say(f"{escape(scenario.id)}: step {number}/{len(scenario.drive)} {escape(step.verb.name)}")

    def finished(self, result: Mapping[str, Any]) -> None:
        """See :class:`Progress`."""
        self._say(_ending(result))

    def close(self) -> None:
        """See :class:`Progress`."""


class Live:
    """A spinner with what runs now, above it a line for each scenario that ended: for terminals."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = Status("starting", console=console)
        self._status.start()

    def phase(self, scenario: Scenario, phase: str) -> None:
        """See :class:`Progress`."""
        self._status.update(f"{escape(scenario.id)}: {phase}")

    def step(self, scenario: Scenario, number: int, step: Step) -> None:
        """See :class:`Progress`."""
        self._status.update(f"{escape(scenario.id)}: {number}/{len(scenario.drive)} {escape(step.verb.name)}")

    def finished(self, result: Mapping[str, Any]) -> None:
        """See :class:`Progress`."""
        self._console.print(_ending(result), highlight=False, soft_wrap=True)

    def close(self) -> None:
        """See :class:`Progress`."""
        self._status.stop()


def for_console(console: Console) -> Progress:
    """What suits this output."""
    return Live(console) if console.is_terminal else Lines(console)
