"""KCIDB's reports, version 5: https://docs.kernelci.org/kcidb/, as the schema of ``kcidb-io`` says.

What was tested is told as a checkout without a repository (Debian's sources are none of git's) and one build for each
kernel with what was under test.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from harness.errors import UsageError
from harness.oops import sanitize
from harness.records.outcome import Outcome
from harness.records.read import ReadScenario
from harness.report.consoles import console_files, excerpt_of
from harness.result import Verdict

_VERSION = {"major": 5, "minor": 3}
#: An error is a fault of ours: nothing is known of the product. KCIDB's own ERROR would blame the test's code.
_STATUS = {Verdict.PASS: "PASS", Verdict.FAIL: "FAIL", Verdict.ERROR: "MISS", Verdict.SKIP: "SKIP"}
_EXCERPT_CHARS = 16_000
_ORIGIN = re.compile(r"[a-z0-9_]+")


def kcidb(scenarios: Sequence[ReadScenario], origin: str, log_url: str | None) -> dict[str, Any]:
    """The report.

    :param origin: what KCIDB calls the CI system that sends it.
    :param log_url: where the results directories can be read by everybody; logs are told of only with it.
    :raises UsageError: KCIDB has no such origins.
    """
    if not _ORIGIN.fullmatch(origin):
        raise UsageError(f"an origin is lower-case letters, digits and _, got {origin!r}")
    checkouts: dict[str, dict[str, Any]] = {}
    builds: dict[str, dict[str, Any]] = {}
    tests = []
    for item in scenarios:
        kernel = sanitize(item.versions.get("kernel", "unknown"))
        checkout = f"{origin}:{kernel}"
        checkouts[checkout] = {"id": checkout, "origin": origin, "comment": f"Linux {kernel}", "valid": True}
        under_test = {tested.component: tested.sha256 for tested in item.under_test}
        tested = "".join(f"+{name}-{sha256[:12]}" for name, sha256 in sorted(under_test.items()))
        build = sanitize(f"{origin}:{kernel}-{item.versions.get('kernel_sha256', 'unknown')[:12]}{tested}")
        builds[build] = {
            "id": build,
            "origin": origin,
            "checkout_id": checkout,
            "status": "PASS",
            "misc": {"under_test": under_test},
        }
        tests.append(_test(item, origin, build, log_url))
    return {
        "version": _VERSION,
        "checkouts": list(checkouts.values()),
        "builds": list(builds.values()),
        "tests": tests,
    }


def _test(item: ReadScenario, origin: str, build: str, log_url: str | None) -> dict[str, Any]:
    words = [word for word in re.split(r"[^A-Za-z0-9_-]+", item.id) if word]
    numbers = Outcome.of(item).numbers
    test: dict[str, Any] = {
        "id": sanitize(f"{origin}:{item.run}-{item.id}-{item.attempt}"),
        "origin": origin,
        "build_id": build,
        "path": ".".join(["harness", *words]),
        "comment": sanitize(item.title)[:300],
        "status": _STATUS[item.verdict],
        "start_time": item.started.isoformat(),
        "duration": item.seconds.get("total", 0.0),
        "environment": {"comment": f"{item.machine or 'a machine'} in QEMU under {item.accel.used}"},
        "misc": {
            "reason": sanitize(item.reason),
            "versions": dict(item.versions),
            "scenario_sha256": item.scenario_sha256,
            "numbers": dict(numbers),
        },
    }
    if item.verdict is not Verdict.PASS:
        excerpt = "\n".join([item.reason, *excerpt_of(item.crashes, item.results)])
        test["log_excerpt"] = sanitize(excerpt)[:_EXCERPT_CHARS]
    if log_url is not None:
        directory = PurePath(item.results).name
        test["output_files"] = [
            {"name": path.name, "url": f"{log_url.rstrip('/')}/{quote(directory)}/{quote(path.name)}"}
            for path in console_files(item.results).values()
        ]
    return test
