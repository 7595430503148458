"""What the page shows of each scenario: bounded, sanitized, and ready for a template that only places it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from harness.oops import sanitize
from harness.oops.text import sanitize_line
from harness.records.read import ReadCrash, ReadScenario
from harness.report.consoles import console_files, read_end
from harness.report.summary import ways_back
from harness.result import Verdict

#: Of a console, so much of its end is looked at.
_READ_BYTES = 2 << 20
#: Lines around a crash, and at a console's end, that are shown first.
_BEFORE, _AFTER = 40, 60
_PHASES = ("build", "wait", "first_command", "load", "drive", "assert", "teardown")
_PHASE_NAMES = {"first_command": "boot"}
#: A step shorter than this share of its phase has no width to see.
_LEAST_PERCENT = 0.3


@dataclass(frozen=True, slots=True)
class Budget:
    """How much of a scenario the page has room for, in characters.

    :param console: of all of its consoles.
    :param evidence: of what its steps saw.
    :param qemu: of QEMU's command line.
    """

    console: int
    evidence: int
    qemu: int = 4_000


@dataclass(frozen=True, slots=True)
class Bar:
    """A piece of a timeline, in percent of the whole."""

    name: str
    seconds: float
    left: float
    width: float


@dataclass(frozen=True, slots=True)
class Line:
    """A console's line.

    :param crash: the number of the crash that it belongs to.
    :param anchor: it is the first one of that crash.
    """

    text: str
    crash: int | None = None
    anchor: bool = False


@dataclass(frozen=True, slots=True)
class ConsoleView:
    """What is shown of one layer's console.

    :param left_out: how many lines of it are not.
    :param link: the whole of it, from the page's directory; None where it is not there any more.
    """

    layer: str
    lines: tuple[Line, ...]
    left_out: int
    link: str | None


@dataclass(frozen=True, slots=True)
class ScenarioView:
    """One scenario on the page."""

    number: int
    told: ReadScenario
    machine: str
    phases: tuple[Bar, ...]
    steps: tuple[tuple[Bar, str | None], ...]
    evidence: str
    consoles: tuple[ConsoleView, ...]
    crash_anchors: tuple[int, ...]
    qemu: str
    ways: Mapping[str, str]
    link: str | None

    @property
    def anchor(self) -> str:
        """What links to it name."""
        return f"s{self.number}"

    @property
    def verdict(self) -> str:
        """As a word."""
        return str(self.told.verdict)


def budgets(scenarios: Sequence[ReadScenario]) -> dict[Verdict, Budget]:
    """How the page's room is shared: what did not pass gets most, and a thousand scenarios still fit."""
    bad = sum(item.verdict in (Verdict.FAIL, Verdict.ERROR) for item in scenarios) or 1
    good = len(scenarios) - bad or 1
    large = Budget(min(64_000, 900_000 // bad), min(8_000, 400_000 // bad))
    small = Budget(min(6_000, 350_000 // good), min(4_000, 500_000 // good), min(4_000, 200_000 // good))
    return {verdict: large if verdict in (Verdict.FAIL, Verdict.ERROR) else small for verdict in Verdict}


def view(number: int, told: ReadScenario, budget: Budget, base: Path) -> ScenarioView:
    """What the page shows of a scenario.

    :param base: the page's directory, from which links go out.
    """
    results = Path(told.results)
    consoles = tuple(_consoles(told, results, budget.console, base))
    anchors = {line.crash for console in consoles for line in console.lines if line.anchor}
    return ScenarioView(
        number=number,
        told=told,
        machine=told.machine or str(told.matrix.get("machine", "")) or "unknown",
        phases=tuple(_bars([(name, told.seconds.get(name, 0.0)) for name in _PHASES])),
        steps=tuple(_steps(told)),
        evidence=_cut("\n".join(_lines_of(told.evidence)), budget.evidence),
        consoles=consoles,
        crash_anchors=tuple(sorted(number for number in anchors if number is not None)),
        qemu=_text(results / "qemu.argv", budget.qemu),
        ways=ways_back(told.model_dump(mode="json")),
        link=_link(results, base),
    )


def _lines_of(value: Any, name: str = "") -> Iterator[str]:
    """Evidence with one value a line, by its path: a third of what JSON takes once it is HTML."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _lines_of(item, f"{name}.{key}" if name else str(key))
    else:
        shown = value if isinstance(value, str) and "\n" not in value else json.dumps(value, ensure_ascii=False)
        yield f"{name} = {shown}"


def _bars(parts: Sequence[tuple[str, float]]) -> Iterator[Bar]:
    """Parts one after another, as shares of their sum."""
    whole = sum(seconds for _, seconds in parts) or 1.0
    left = 0.0
    for name, seconds in parts:
        width = 100 * seconds / whole
        if width >= _LEAST_PERCENT:
            yield Bar(_PHASE_NAMES.get(name, name), seconds, round(left, 2), round(width, 2))
        left += width


def _steps(told: ReadScenario) -> Iterator[tuple[Bar, str | None]]:
    whole = max(told.seconds.get("drive", 0.0), sum(step.seconds for step in told.steps)) or 1.0
    left = 0.0
    for step in told.steps:
        width = 100 * step.seconds / whole
        yield Bar(step.verb, step.seconds, round(min(left, 99.0), 1), round(max(width, 1.0), 1)), step.name
        left += width


def _consoles(told: ReadScenario, results: Path, room: int, base: Path) -> Iterator[ConsoleView]:
    files = console_files(results)
    crashed = {crash.layer for crash in told.crashes}
    for number, crash in enumerate(told.crashes):
        # Logs that are gone: what the result itself holds of the crash.
        if crash.layer not in files and crash.text and room > 0:
            lines = [sanitize(text) for text in crash.text]
            marked = [Line(text, number, anchor=index == 0) for index, text in enumerate(lines)]
            shown = _choose(marked, room)
            room -= sum(len(line.text) + 1 for line in shown)
            yield ConsoleView(crash.layer, shown, len(lines) - len(shown), None)
    for layer, path in sorted(files.items(), key=lambda item: (item[0] not in crashed, item[0])):
        data = read_end(path, _READ_BYTES)
        lines = [sanitize_line(line) for line in data.rstrip().split(b"\n")] if data.strip() else []
        marked = _mark(lines, [(n, crash) for n, crash in enumerate(told.crashes) if crash.layer == layer])
        shown = _choose(marked, room)
        room -= sum(len(line.text) + 1 for line in shown)
        if lines:
            yield ConsoleView(layer, shown, len(lines) - len(shown), _link(path, base))


def _mark(lines: Sequence[str], crashes: Sequence[tuple[int, ReadCrash]]) -> list[Line]:
    """The lines, with those of crashes marked."""
    marked = [Line(text) for text in lines]
    begin = 0
    for number, crash in crashes:
        first = next(
            (index for index in range(begin, len(lines)) if crash.text and lines[index] == crash.text[0]), None
        )
        if first is None:
            continue
        begin = min(first + len(crash.text), len(lines))
        for index in range(first, begin):
            marked[index] = Line(lines[index], number, anchor=index == first)
    return marked


def _choose(lines: Sequence[Line], room: int) -> tuple[Line, ...]:
    """As many lines as there is room for: around crashes first, then the end, then what is before it."""
    wanted: list[int] = []
    for index, line in enumerate(lines):
        if line.anchor:
            wanted += range(index, min(index + _AFTER, len(lines)))
            wanted += range(index - 1, max(index - _BEFORE, 0) - 1, -1)
    wanted += range(len(lines) - 1, -1, -1)
    chosen: set[int] = set()
    for index in dict.fromkeys(wanted):
        room -= len(lines[index].text) + 1
        if room < 0:
            break
        chosen.add(index)
    return tuple(lines[index] for index in sorted(chosen))


def _cut(text: str, size: int) -> str:
    text = sanitize(text)
    return text if len(text) <= size else f"{text[:size]}\n... ({len(text)} characters in all)"


def _text(path: Path, size: int) -> str:
    with suppress(OSError):
        return _cut(path.read_text(encoding="utf-8", errors="replace").strip(), size)
    return ""


def _link(path: Path, base: Path) -> str | None:
    """A relative link, so that page and results can move together; None where there is nothing to link to."""
    if not path.exists():
        return None
    return quote(os.path.relpath(path.absolute(), base.absolute()))


def shown_value(value: Any) -> str:
    """A value of an assertion's name."""
    return _cut(json.dumps(value, ensure_ascii=False, default=str), 600)


def versions_of(scenarios: Sequence[ReadScenario]) -> Mapping[str, list[str]]:
    """Each version that took part, by name."""
    found: dict[str, set[str]] = {}
    for item in scenarios:
        for name, value in item.versions.items():
            found.setdefault(name, set()).add(value)
    return {name: sorted(values) for name, values in sorted(found.items())}
