"""What did not pass, as GitHub and GitLab show it beside the code.

GitHub reads workflow commands from a job's output; GitLab a Code Quality report.
https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands,
https://docs.gitlab.com/ci/testing/code_quality/#code-quality-report-format
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.oops import sanitize
from harness.records.read import ReadScenario
from harness.result import Verdict

_SHOWN = (Verdict.FAIL, Verdict.ERROR, Verdict.SKIP)
_LEVELS = {Verdict.FAIL: "error", Verdict.ERROR: "error", Verdict.SKIP: "notice"}
_SEVERITIES = {Verdict.FAIL: "critical", Verdict.ERROR: "major", Verdict.SKIP: "info"}
_TITLES = {Verdict.FAIL: "failed", Verdict.ERROR: "host or harness error", Verdict.SKIP: "skipped"}


def github(scenarios: Sequence[ReadScenario]) -> str:
    """A workflow command for each scenario that did not pass."""
    return "".join(f"{line}\n" for line in _commands(scenarios))


def _commands(scenarios: Sequence[ReadScenario]) -> Iterator[str]:
    for item in scenarios:
        if item.verdict in _SHOWN:
            title = f"{item.id} {_TITLES[item.verdict]}"
            place = {"file": item.file, "line": str(_line(item)), "title": title} if item.file else {"title": title}
            properties = ",".join(f"{name}={_property(value)}" for name, value in place.items())
            yield f"::{_LEVELS[item.verdict]} {properties}::{_data(_story(item))}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def gitlab(scenarios: Sequence[ReadScenario]) -> list[dict[str, Any]]:
    """An issue for each scenario that did not pass."""
    return [
        {
            "description": f"{item.id} {_TITLES[item.verdict]}: {_story(item)}",
            "check_name": f"harness/{item.verdict}",
            "fingerprint": hashlib.sha256(f"{item.id} {item.verdict} {item.attempt}".encode()).hexdigest(),
            "severity": _SEVERITIES[item.verdict],
            "location": {"path": item.file or item.id, "lines": {"begin": _line(item)}},
        }
        for item in scenarios
        if item.verdict in _SHOWN
    ]


def _story(item: ReadScenario) -> str:
    lines = [sanitize(item.reason).partition("\n")[0]]
    lines += [f"does not hold: {failed.expression}" for failed in item.failed_assertions]
    lines += [f"crash on {crash.layer}: {crash.title}" for crash in item.crashes]
    return "\n".join(sanitize(line) for line in lines)


def _line(item: ReadScenario) -> int:
    """Where the first assertion that does not hold is written, if the file is here; else the file's first line."""
    expression = item.failed_assertions[0].expression if item.failed_assertions else None
    if expression is not None:
        with suppress(OSError, UnicodeDecodeError):
            for number, line in enumerate(Path(item.file).read_text(encoding="utf-8").splitlines(), 1):
                if expression in line:
                    return number
    return 1
