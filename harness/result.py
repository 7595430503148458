"""What a scenario came to: the verdict with all that led to it, as data that outlives the run."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import psutil

#: Version of the ``--json`` summary and of ``result.json``.
SCHEMA = 1


def timestamp() -> str:
    """This moment, in UTC, to the millisecond: ``2026-11-25T16:41:05.120+00:00``."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def host_facts() -> dict[str, Any]:
    """What is worth knowing of this host beside a result."""
    return {
        "machine": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpus": psutil.cpu_count() or 0,
        "memory_mib": psutil.virtual_memory().total >> 20,
        "load_1m": round(psutil.getloadavg()[0], 2),
    }


class Verdict(StrEnum):
    """``fail`` blames the product, ``error`` the host or the harness; the two are never mixed."""

    PASS = "pass"  # noqa: S105 (a verdict)
    FAIL = "fail"
    ERROR = "error"
    SKIP = "skip"


@dataclass(slots=True)
class Seconds:
    """Where the time went. ``boot`` ends when the guest is up, ``first_command`` when it takes commands;
    both count from QEMU's start. ``wait`` is for room on the host."""

    build: float = 0.0
    wait: float = 0.0
    boot: float = 0.0
    first_command: float = 0.0
    load: float = 0.0
    drive: float = 0.0
    # "assert" in the summary; a keyword here
    judge: float = 0.0
    teardown: float = 0.0
    total: float = 0.0

    def to_json(self) -> dict[str, float]:
        """The seconds by phase, as the summary names them."""
        values = {("assert" if name == "judge" else name): value for name, value in asdict(self).items()}
        return {name: round(value, 3) for name, value in values.items()}


@dataclass(frozen=True, slots=True)
class FailedAssertion:
    """An assertion that does not hold, with the value of every name in it."""

    expression: str
    values: Mapping[str, Any]
    error: str | None = None

    def __str__(self) -> str:
        shown = ", ".join(f"{name} = {json.dumps(value, default=str)}" for name, value in self.values.items())
        text = f"{self.expression}   [{shown}]"
        return f"{text}: {self.error}" if self.error else text


@dataclass(frozen=True, slots=True)
class Crash:
    """A crash that a layer's console shows."""

    layer: str
    title: str
    severity: str
    text: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step as it went."""

    verb: str
    name: str | None
    seconds: float
    evidence: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class UnderTest:
    """A component that was put in place of the recipe's own.

    :param kind: ``file``, ``patches`` or ``tree``.
    :param source: files or directory, as the user named them.
    :param sources: the same, one by one, from the root of the file system.
    :param source_sha256: of the file, or of the patches; empty for a tree.
    :param sha256: of what was booted or loaded: what was built of the source.
    :param describe: what ``git describe`` says of the tree; empty where it is none of git's.
    :param version: a module's vermagic, a kernel's release, or a hypervisor's version.
    :param replaced: what it took the place of.
    :param inexact: the hunks of its patches that fitted only with fuzz, a line for each.
    """

    component: str
    kind: str
    source: str
    source_sha256: str
    sha256: str
    describe: str
    version: str
    replaced: str
    sources: tuple[str, ...] = ()
    inexact: tuple[str, ...] = ()


@dataclass(slots=True)
class ScenarioResult:
    """One scenario's outcome; ``to_json`` is what the summary, reports, histories and gates read.

    :param run: names the run of the harness that this was a part of.
    :param attempt: counts from 1; above that only with ``--repeat``.
    :param started: when, in UTC, as ISO 8601 writes it.
    :param file: the scenario's file, as seen from the directory that the harness ran in.
    :param machine: the profile of the machine that it boots.
    :param scenario_sha256: of the scenario with its matrix values put in: another hash is another scenario.
    """

    id: str
    title: str
    feature: str
    tags: tuple[str, ...]
    matrix: Mapping[str, Any]
    results: Path
    verdict: Verdict = Verdict.ERROR
    reason: str = ""
    start: str = "cold"
    accel: Mapping[str, str] = field(default_factory=dict)
    failed_assertions: list[FailedAssertion] = field(default_factory=list)
    crashes: list[Crash] = field(default_factory=list)
    under_test: list[UnderTest] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    seconds: Seconds = field(default_factory=Seconds)
    steps: list[StepRecord] = field(default_factory=list)
    evidence: dict[str, Any] = field(default_factory=dict)
    assertions: int = 0
    retried: str | None = None
    run: str = ""
    attempt: int = 1
    started: str = field(default_factory=timestamp)
    file: str = ""
    machine: str = ""
    scenario_sha256: str = ""

    def add_host_fault(self, told: str) -> None:
        """A fault of the host came to light: an ERROR, unless the product had failed, which is not undone by it."""
        if self.verdict is Verdict.FAIL:
            self.reason = f"{self.reason}; {told}"
        else:
            self.verdict, self.reason = Verdict.ERROR, told

    def distrust(self, told: str) -> None:
        """The host made the guest do what it never would: an ERROR, whatever came of it. Another try may succeed."""
        self.verdict, self.reason, self.retried = Verdict.ERROR, f"{told}\n  {self.reason}".rstrip(), told

    def to_json(self) -> dict[str, Any]:
        """A plain object, ready for ``json.dump``."""
        plain = {item.name: getattr(self, item.name) for item in fields(self)}
        lists = ("failed_assertions", "crashes", "under_test", "steps")
        return {
            **plain,
            "tags": list(self.tags),
            "matrix": dict(self.matrix),
            "verdict": str(self.verdict),
            "results": str(self.results),
            "seconds": self.seconds.to_json(),
            **{name: [asdict(item) for item in plain[name]] for name in lists},
        }

    def to_file(self) -> dict[str, Any]:
        """The same, as it stands alone in ``result.json``."""
        return {"schema": SCHEMA, **self.to_json()}


def write_json(path: Path, value: object) -> None:
    """Write a JSON file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")
    temporary.replace(path)
