"""The summary's exit status, the line of counts, and what a person sees of a failure."""

from __future__ import annotations

import io
import shlex
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.report import summary
from harness.result import Crash, FailedAssertion, ScenarioResult, UnderTest, Verdict


def result(verdict: Verdict, **changes: Any) -> dict[str, Any]:
    outcome = ScenarioResult(
        id=f"balloon/{verdict}", title="t", feature="balloon", tags=("gate",), matrix={}, results=Path("/results/x")
    )
    outcome.verdict = verdict
    for name, value in changes.items():
        setattr(outcome, name, value)
    return outcome.to_json()


@pytest.mark.parametrize(
    ("verdicts", "status"),
    [
        ([Verdict.PASS, Verdict.PASS], 0),
        ([Verdict.PASS, Verdict.SKIP], 0),
        ([Verdict.PASS, Verdict.FAIL], 1),
        ([Verdict.ERROR, Verdict.FAIL], 1),
        ([Verdict.PASS, Verdict.ERROR], 2),
        ([Verdict.SKIP], 3),
        ([], 3),
    ],
)
def test_exit_status(verdicts: list[Verdict], status: int) -> None:
    assert summary.exit_status([result(verdict) for verdict in verdicts]) == status


def test_summary_has_the_keys_that_others_read() -> None:
    facts = summary.RunFacts()
    whole = summary.make_summary([result(Verdict.PASS, accel={"used": "tcg", "why": "no KVM"})], facts)
    assert whole["schema"] == 1
    assert whole["accel"] == {"used": "tcg", "why": "no KVM"}
    assert set(whole["scenarios"][0]) >= {
        "id",
        "feature",
        "tags",
        "verdict",
        "reason",
        "failed_assertions",
        "crashes",
        "under_test",
        "start",
        "seconds",
        "evidence",
        "results",
    }
    phases = {"build", "wait", "boot", "first_command", "load", "drive", "assert", "teardown", "total"}
    assert set(whole["scenarios"][0]["seconds"]) == phases


def test_kvm_outweighs_tcg_in_the_run_as_a_whole() -> None:
    scenarios = [result(Verdict.PASS, accel={"used": name, "why": name}) for name in ("tcg", "kvm")]
    assert summary.overall_accel(scenarios)["used"] == "kvm"


def test_a_failure_shows_every_value_and_the_crash() -> None:
    out = io.StringIO()
    failed = result(
        Verdict.FAIL,
        reason="1 of 2 assertions failed",
        versions={"kernel": "6.12"},
        failed_assertions=[FailedAssertion("up.pages == 5", {"up.pages": 4})],
        crashes=[Crash("guest", "WARNING in [f]", "warning")],
    )
    summary.print_failures(Console(file=out, width=160), [failed])
    text = out.getvalue()
    assert "does not hold: up.pages == 5" in text
    assert "up.pages = 4" in text
    assert "crash on guest: WARNING in [f]" in text
    assert "/results/x/repro.sh" in text


def test_how_to_see_a_failure_once_more() -> None:
    """One command repeats it, with the same code under test; both are for a shell, whatever the names hold."""
    tested = {"component": "kernel", "source": "a b.patch, c.patch", "sources": ["/src/a b.patch", "/src/c.patch"]}
    failed = result(
        Verdict.FAIL,
        file="scenarios/balloon/resize.yaml",
        id="balloon/resize[pc]",
        matrix={"machine": "pc"},
        versions={"kernel": "6.12"},
        results=Path("/results/balloon-resize[pc]"),
    )
    failed["under_test"] = [tested]
    ways = summary.ways_back(failed)
    assert shlex.split(ways["again"]) == [
        *("harness", "run", "scenarios/balloon/resize.yaml", "-k", "resize[pc]"),
        *("--under-test", "kernel=/src/a b.patch", "--under-test", "kernel=/src/c.patch"),
    ]
    assert shlex.split(ways["its machine"]) == ["harness", "shell", "--from", "/results/balloon-resize[pc]"]
    assert shlex.split(ways["its machine without the harness"]) == ["/results/balloon-resize[pc]/repro.sh"]
    failed["versions"] = {}
    assert list(summary.ways_back(failed)) == ["again"], "nothing was booted"


def test_what_no_command_repeats_is_not_said_to_be_repeated() -> None:
    """``harness mutate kernel`` has a small kernel without any patch for good code."""
    failed = result(Verdict.FAIL, versions={"kernel": "6.12"})
    failed["under_test"] = [{"component": "kernel", "source": "", "sources": []}]
    assert list(summary.ways_back(failed)) == ["its machine", "its machine without the harness"]


def test_what_was_tested_is_told_with_what_did_not_fit_exactly() -> None:
    line = "/src/[a].patch: mm/x.c, hunk 1 fits only with fuzz 2, at line 9"
    tested = UnderTest("kernel", "patches", "/src/[a].patch", "", "5" * 64, "", "6.12", "Debian's", inexact=(line,))
    out = io.StringIO()
    summary.print_under_test(Console(file=out, width=40), [result(Verdict.PASS, under_test=[tested])] * 2)
    assert out.getvalue().count(f"  does not fit exactly: {line}\n") == 1


def test_counts() -> None:
    line = summary.verdict_line([result(verdict) for verdict in (Verdict.PASS, Verdict.PASS, Verdict.ERROR)])
    assert line == "2 passed, 0 failed, 1 errors"
