"""How a run goes, while it goes: a live line on a terminal, one line an event elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live as RichLive
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from harness.result import Verdict
from harness.scenario.model import Scenario, Step

_MARKS = {
    Verdict.PASS: "[green]PASS[/]",
    Verdict.FAIL: "[bold red]FAIL[/]",
    Verdict.ERROR: "[bold magenta]ERROR[/]",
    Verdict.SKIP: "[yellow]SKIP[/]",
}

#: The phase in which a scenario's machine waits for room on the host.
_WAITING = "wait"


class Progress(Protocol):
    """Who shows a run's progress."""

    def phase(self, scenario: Scenario, phase: str) -> None:
        """A scenario entered a phase."""

    def step(self, scenario: Scenario, number: int, step: Step) -> None:
        """A step begins."""

    def finished(self, result: Mapping[str, Any]) -> None:
        """A scenario ended; the result is as ``to_json`` gives it."""

    def began(self, name: str) -> None:
        """A scenario began in another process, of whose phases nothing is heard."""

    def message(self, text: str) -> None:
        """Something that must be seen whatever the display."""

    def close(self) -> None:
        """The run is over."""


class Silent:
    """Shows nothing."""

    def began(self, name: str) -> None:
        """See :class:`Progress`."""

    def message(self, text: str) -> None:
        """See :class:`Progress`."""

    def phase(self, scenario: Scenario, phase: str) -> None:
        """See :class:`Progress`."""

    def step(self, scenario: Scenario, number: int, step: Step) -> None:
        """See :class:`Progress`."""

    def finished(self, result: Mapping[str, Any]) -> None:
        """See :class:`Progress`."""

    def close(self) -> None:
        """See :class:`Progress`."""


def _ending(result: Mapping[str, Any]) -> str:
    seconds = result["seconds"]
    waited = seconds.get("wait", 0.0)
    # What it waited for room tells of the host's other work, not of the scenario.
    took = f"{seconds['total'] - waited:.1f} s" + (f", waited {waited:.0f} s" if waited >= 1 else "")
    line = f"{_MARKS[Verdict(result['verdict'])]} {escape(result['id'])} ({took})"
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

    def began(self, name: str) -> None:
        """See :class:`Progress`."""
        self._say(f"{escape(name)}: begins")

    def message(self, text: str) -> None:
        """See :class:`Progress`."""
        self._say(escape(text))

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


@dataclass(frozen=True, slots=True)
class Expected:
    """What a run is going to be.

    :param count: how many scenarios.
    :param durations: how long each took before, in seconds; those that never passed are absent.
    :param total_s: of all of them, one after another; None where too little is known.
    """

    count: int = 0
    durations: Mapping[str, float] = field(default_factory=dict)
    total_s: float | None = None


@dataclass(slots=True)
class _Running:
    doing: str
    since: float


class Live:
    """What runs now, for how long, and how long it took before; above it a line for each scenario that ended."""

    def __init__(self, console: Console, expected: Expected) -> None:
        self._console = console
        self._expected = expected
        self._running: dict[str, _Running] = {}
        self._verdicts: Counter[str] = Counter()
        self._started = time.monotonic()
        self._spinner = Spinner("dots")
        self._live = RichLive(console=console, get_renderable=self._render, transient=True, refresh_per_second=4)
        self._live.start()

    def _render(self) -> RenderableType:
        now = time.monotonic()
        table = Table.grid(padding=(0, 2))
        for name, item in list(self._running.items()):
            usual = self._expected.durations.get(name)
            of = f"of about {usual:.0f} s" if usual is not None else ""
            table.add_row(self._spinner, escape(name), escape(item.doing), f"{now - item.since:.0f} s {of}")
        done = sum(self._verdicts.values())
        counts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(self._verdicts.items()))
        whole = f" of about {self._expected.total_s:.0f} s" if self._expected.total_s is not None else ""
        of_all = f" of {self._expected.count}" if self._expected.count else ""
        foot = f"{done}{of_all} done{f': {counts}' if counts else ''}   {now - self._started:.0f} s{whole}"
        return Group(table, Text(foot))

    def _doing(self, name: str, what: str) -> None:
        known = self._running.get(name)
        # How long it took before is told without what it waited for room on the host.
        since = known.since if known and known.doing != _WAITING else time.monotonic()
        self._running[name] = _Running(what, since)

    def message(self, text: str) -> None:
        """See :class:`Progress`."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def began(self, name: str) -> None:
        """See :class:`Progress`."""
        self._doing(name, "")

    def phase(self, scenario: Scenario, phase: str) -> None:
        """See :class:`Progress`."""
        self._doing(scenario.id, phase)

    def step(self, scenario: Scenario, number: int, step: Step) -> None:
        """See :class:`Progress`."""
        self._doing(scenario.id, f"step {number}/{len(scenario.drive)} {step.verb.name}")

    def finished(self, result: Mapping[str, Any]) -> None:
        """See :class:`Progress`."""
        self._running.pop(result["id"], None)
        self._verdicts[result["verdict"]] += 1
        self._console.print(_ending(result), highlight=False, soft_wrap=True)

    def close(self) -> None:
        """See :class:`Progress`."""
        self._live.stop()


def for_console(console: Console, expected: Expected | None = None) -> Progress:
    """What suits this output."""
    return Live(console, expected or Expected()) if console.is_terminal else Lines(console)
