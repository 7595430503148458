"""One scenario's outcome, reduced to what histories and gates compare."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import islice
from typing import Any

from harness.records.read import ReadScenario
from harness.result import Verdict

#: A runaway list in the evidence must not fill the history.
_MAX_NUMBERS = 400
#: Of a reason, which may carry a console's tail.
_REASON_CHARS = 500


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a scenario came to in one run.

    :param accel: ``kvm``, ``tcg``, or ``none`` where nothing was booted.
    :param under_test: the hash of each component that took the place of the recipe's own.
    :param seconds: by phase; ``total`` is the whole. What was spent waiting for room on the host is not in it: that
        tells of the host's other work only.
    :param numbers: each number in the evidence, by its dotted path.
    :param problems: expressions that did not hold, and titles of crashes.
    """

    id: str
    run: str
    attempt: int
    started: datetime
    verdict: Verdict
    reason: str
    feature: str
    tags: tuple[str, ...]
    accel: str
    start: str
    versions: Mapping[str, str]
    under_test: Mapping[str, str]
    scenario_sha256: str
    seconds: Mapping[str, float]
    numbers: Mapping[str, float]
    problems: tuple[str, ...]

    @property
    def key(self) -> tuple[str, str, int]:
        """What no two outcomes share."""
        return self.run, self.id, self.attempt

    @property
    def components(self) -> Mapping[str, str]:
        """Everything that took part, by name: a hash or a version."""
        tested = {f"under test: {name}": value for name, value in self.under_test.items()}
        return {**self.versions, **tested, "scenario": self.scenario_sha256}

    @property
    def components_sha256(self) -> str:
        """A hash of :attr:`components`: two outcomes with the same one ought to have the same verdict."""
        return hashlib.sha256(json.dumps(dict(self.components), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """A plain object that :meth:`from_json` takes back."""
        return {**asdict(self), "started": self.started.isoformat(), "verdict": str(self.verdict)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Outcome:
        """The reverse of :meth:`to_json`.

        :raises ValueError, TypeError, KeyError: it is not what that gives.
        """
        lists = {name: tuple(value[name]) for name in ("tags", "problems")}
        started, verdict = datetime.fromisoformat(value["started"]), Verdict(value["verdict"])
        return cls(**{**value, **lists, "started": started, "verdict": verdict})

    @classmethod
    def of(cls, scenario: ReadScenario) -> Outcome:
        """The outcome that a summary tells of."""
        failed = [item.expression for item in scenario.failed_assertions]
        crashed = [f"{item.layer}: {item.title}" for item in scenario.crashes]
        return cls(
            id=scenario.id,
            run=scenario.run,
            attempt=scenario.attempt,
            started=scenario.started,
            verdict=scenario.verdict,
            reason=scenario.reason[:_REASON_CHARS],
            feature=scenario.feature,
            tags=tuple(scenario.tags),
            accel=scenario.accel.used,
            start=scenario.start,
            versions=scenario.versions,
            under_test={item.component: item.sha256 for item in scenario.under_test},
            scenario_sha256=scenario.scenario_sha256,
            seconds=_worked(scenario.seconds),
            numbers=dict(islice(numbers_of(scenario.evidence), _MAX_NUMBERS)),
            problems=(*failed, *crashed),
        )


def _worked(seconds: Mapping[str, float]) -> dict[str, float]:
    worked = {phase: value for phase, value in seconds.items() if phase != "wait"}
    if "total" in worked:
        worked["total"] = round(max(0.0, worked["total"] - seconds.get("wait", 0.0)), 3)
    return worked


def numbers_of(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Each number of JSON-like evidence with its dotted path; lists give their length."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from numbers_of(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        yield f"{name}.size", float(len(value))
    elif isinstance(value, bool | int | float):
        yield name, float(value)
