"""Known failures: a scenario that fails as it is known to is no news; one that passes, or fails in another way, is."""

from __future__ import annotations

from harness.regex import compiled
from harness.result import ScenarioResult, Verdict
from harness.scenario.model import KnownFailure, Scenario

#: How the reason of a failure begins that was known, and of one that is none any more.
KNOWN = "known failure:"
UNEXPECTED = "expected to fail, but passed:"


def apply_known_failures(scenario: Scenario, result: ScenarioResult) -> None:
    """Turn a failure that is known, and nothing beside it, into a SKIP, and a pass in spite of it into a FAIL."""
    for known in scenario.known_failure:
        if not all(result.matrix.get(axis) == value for axis, value in known.when.items()):
            continue
        if result.verdict is Verdict.FAIL and explains(known, result):
            result.verdict, result.reason = Verdict.SKIP, f"{KNOWN} {known.reason}"
        elif result.verdict is Verdict.PASS:
            result.verdict = Verdict.FAIL
            result.reason = f"{UNEXPECTED} {known.reason}; take it out of known_failure"


def explains(known: KnownFailure, result: ScenarioResult) -> bool:
    """Whether a failure is the known one, and nothing beside it."""
    if known.assertion is None and known.crash is None:
        return True
    failed = [item.expression for item in result.failed_assertions]
    if failed != ([] if known.assertion is None else [known.assertion]):
        return False
    crash = known.crash
    if crash is None:
        return not result.crashes
    title = compiled(crash.title)
    return bool(result.crashes) and all(
        item.layer == crash.layer and title.search(item.title) is not None for item in result.crashes
    )
