"""KTAP, which the kernel's own tools read: https://docs.kernel.org/dev-tools/ktap.html."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.oops import sanitize
from harness.records.read import ReadScenario
from harness.result import Verdict

_DIRECTIVES = {Verdict.SKIP: "SKIP", Verdict.ERROR: "ERROR"}


def ktap(scenarios: Sequence[ReadScenario]) -> str:
    """One result line a scenario, with what a person wants to know as diagnostics before it."""
    return "".join(f"{line}\n" for line in _lines(scenarios))


def _lines(scenarios: Sequence[ReadScenario]) -> Iterator[str]:
    yield "KTAP version 1"
    yield f"1..{len(scenarios)}"
    for number, item in enumerate(scenarios, 1):
        yield from _diagnostics(item)
        # A skip is "ok" in KTAP; a fault of the host or the harness is not, and says that it is no product's.
        good = item.verdict in (Verdict.PASS, Verdict.SKIP)
        line = f"{'ok' if good else 'not ok'} {number} {item.id.replace('#', '_')}"
        if item.verdict in _DIRECTIVES:
            line += f" # {_DIRECTIVES[item.verdict]} {_one_line(item.reason)}"
        yield line.rstrip()


def _diagnostics(item: ReadScenario) -> Iterator[str]:
    if item.verdict is not Verdict.FAIL:
        return
    yield f"# {_one_line(item.reason)}"
    for failed in item.failed_assertions:
        values = ", ".join(f"{name} = {value}" for name, value in failed.values.items())
        yield f"# does not hold: {_one_line(failed.expression)} [{_one_line(values)}]"
    for crash in item.crashes:
        yield f"# crash on {crash.layer}: {_one_line(crash.title)}"
    yield f"# logs: {item.results}"


def _one_line(text: str) -> str:
    return sanitize(text).partition("\n")[0][:300]
