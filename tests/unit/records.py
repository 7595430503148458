"""Outcomes, results and summaries for tests, as plain as they come."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from harness.records.outcome import Outcome
from harness.records.read import ReadScenario
from harness.report.summary import RunFacts, make_summary
from harness.result import ScenarioResult, UnderTest, Verdict

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


def result(number: int = 0, verdict: Verdict = Verdict.PASS, **changes: Any) -> dict[str, Any]:
    """A result as ``to_json`` gives it, of the run ``run-NUMBER``, so many hours after :data:`NOW`."""
    made = ScenarioResult(
        id="balloon/resize[pc]",
        title="the balloon takes pages",
        feature="balloon",
        tags=("gate",),
        matrix={"machine": "pc"},
        results=Path("/results/balloon-resize[pc]"),
        verdict=verdict,
        accel={"used": "tcg", "why": "no KVM here"},
        versions={"kernel": "6.12", "kernel_sha256": "aa" * 32},
        evidence={"up": {"inflated": 51200, "settled": True}},
        run=f"run-{number}",
        started=(NOW + timedelta(hours=number)).isoformat(),
        scenario_sha256="5c" * 32,
    )
    made.seconds.total = made.seconds.drive = 4.0
    for name, value in changes.items():
        setattr(made, name, value)
    return made.to_json()


def swapped(component: str, sha256: str) -> UnderTest:
    """A component in place of the recipe's own."""
    return UnderTest(
        component=component,
        kind="file",
        source=f"{component}.ko",
        source_sha256=sha256,
        sha256=sha256,
        describe="",
        version="6.12",
        replaced="the kernel's own",
    )


def outcome(number: int = 0, verdict: Verdict = Verdict.PASS, **changes: Any) -> Outcome:
    """An outcome of the run ``run-NUMBER``."""
    return Outcome.of(ReadScenario.model_validate_json(json.dumps(result(number, verdict, **changes), default=str)))


def summary(*results: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A summary with these results."""
    first = results[0] if results else result()
    return {**make_summary(results, RunFacts(run=first["run"], started=first["started"])), **changes}


def write(path: Path, value: object) -> Path:
    """A JSON file."""
    path.write_text(json.dumps(value, default=str))
    return path
