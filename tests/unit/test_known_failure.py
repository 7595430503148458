"""Verdicts that are changed afterwards: what known failures excuse, and what they do not; faults of the host."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.known_failure import explains
from harness.result import Crash, FailedAssertion, ScenarioResult, Verdict
from harness.scenario.model import AllowedCrash, KnownFailure

PANIC = AllowedCrash(layer="dom0", title="in it_interrupt")
THE = Crash("dom0", "BUG: fault in it_interrupt", "fatal")
OTHER = Crash("dom0", "BUG: fault in something", "fatal")
ELSEWHERE = Crash("xen", "BUG: fault in it_interrupt", "fatal")


def failed(*crashes: Crash, assertions: tuple[str, ...] = ()) -> ScenarioResult:
    result = ScenarioResult("a", "", "", (), {}, Path(), verdict=Verdict.FAIL, reason="")
    result.crashes = list(crashes)
    result.failed_assertions = [FailedAssertion(text, {}) for text in assertions]
    return result


@pytest.mark.parametrize(
    ("result", "by_assertion", "by_crash", "by_both"),
    [
        (failed(assertions=("a == 1",)), True, False, False),
        (failed(assertions=("a == 1", "b == 1")), False, False, False),
        (failed(THE), False, True, False),
        (failed(THE, THE), False, True, False),
        (failed(THE, OTHER), False, False, False),
        (failed(ELSEWHERE), False, False, False),
        (failed(THE, assertions=("a == 1",)), False, False, True),
        (failed(), False, False, False),
    ],
)
def test_what_is_excused(result: ScenarioResult, by_assertion: bool, by_crash: bool, by_both: bool) -> None:
    assert explains(KnownFailure(reason="a bug"), result)
    assert explains(KnownFailure(reason="a bug", assertion="a == 1"), result) is by_assertion
    assert explains(KnownFailure(reason="a bug", crash=PANIC), result) is by_crash
    assert explains(KnownFailure(reason="a bug", assertion="a == 1", crash=PANIC), result) is by_both


@pytest.mark.parametrize("before", [Verdict.PASS, Verdict.SKIP, Verdict.ERROR])
def test_what_is_left_on_the_host_is_an_error(before: Verdict) -> None:
    result = failed()
    result.verdict = before
    result.add_host_fault("left behind: process 7")
    assert (result.verdict, result.reason) == (Verdict.ERROR, "left behind: process 7")


def test_what_is_left_on_the_host_does_not_hide_a_failure_of_the_product() -> None:
    result = failed(assertions=("a == 1",))
    result.reason = "1 of 1 assertions failed"
    result.add_host_fault("left behind: process 7")
    assert (result.verdict, result.reason) == (Verdict.FAIL, "1 of 1 assertions failed; left behind: process 7")
