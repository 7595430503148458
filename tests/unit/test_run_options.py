"""What ``harness run`` does beside running: recording, dividing, refusing histories; no guest is booted here."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from rich.console import Console

from harness.records.history import History
from harness.report.consoles import console_excerpt
from harness.report.progress import Expected, Live, for_console
from harness.report.repeats import print_repeats
from harness.result import Crash, ScenarioResult, Verdict
from harness.scenario.model import Scenario
from tests.unit.records import result

CHECKOUT = Path(__file__).parents[2]
HARNESS = Path(sys.executable).with_name("harness")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """No image is there and none can be built: each scenario ends in an ERROR before anything boots."""
    return {
        "HARNESS_CACHE": str(tmp_path / "cache"),
        "HARNESS_DEBIAN_MIRROR": "file:/nonexistent",
        "HARNESS_STATE": str(tmp_path / "state"),
    }


def run(arguments: Sequence[str | Path], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [HARNESS, *arguments],
        cwd=CHECKOUT,
        env={**os.environ, "NO_COLOR": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def resize(tmp_path: Path, *more: str | Path) -> list[str | Path]:
    return ["run", "scenarios/balloon/resize.yaml", "--results", tmp_path / "r", *more]


def test_an_error_is_recorded_and_told_by_the_history(tmp_path: Path, environment: dict[str, str]) -> None:
    summary = tmp_path / "s.json"
    done = run(resize(tmp_path, "--json", summary), environment)
    assert done.returncode == 2, done.stderr
    kept = History(tmp_path / "state" / "history.sqlite").outcomes()
    assert sorted(item.id for item in kept) == ["balloon/resize[pc]", "balloon/resize[virt]"]
    assert {item.verdict for item in kept} == {Verdict.ERROR}
    told = json.loads(summary.read_text())
    assert {item["run"] for item in told["scenarios"]} == {told["run"]} == {item.run for item in kept}
    assert told["scenarios"][0]["file"] == "scenarios/balloon/resize.yaml"
    listed = run(["history"], environment)
    assert listed.returncode == 0
    assert "balloon/resize[virt]" in listed.stdout
    one = run(["history", "balloon/resize[pc]"], environment)
    assert "ERROR" in one.stdout and "apt-get: " in one.stdout
    added = run(["history", "--add", str(summary)], environment)
    assert f"0 new outcomes of run {told['run'][:8]}" in added.stderr


def test_no_history(tmp_path: Path, environment: dict[str, str]) -> None:
    assert run(resize(tmp_path, "--no-history"), environment).returncode == 2
    assert not (tmp_path / "state").exists()


def test_a_history_of_a_newer_version(tmp_path: Path, environment: dict[str, str]) -> None:
    """One that was asked for must be right; the user's own must not keep anybody from running."""
    path = tmp_path / "state" / "history.sqlite"
    History(path).check()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 9")
    database.close()
    asked = run(resize(tmp_path, "--history", path), environment)
    assert asked.returncode == 4
    assert "user_version must be 1, got 9" in asked.stderr.replace("\n", " ")
    default = run(resize(tmp_path, "-k", "nosuch"), environment)
    assert default.returncode == 3
    assert "nothing is recorded" in default.stdout
    assert run(["history"], environment).returncode == 4


def test_a_shard_is_a_part_of_the_selection(tmp_path: Path, environment: dict[str, str]) -> None:
    parts = []
    for index in (1, 2):
        summary = tmp_path / f"{index}.json"
        assert run(resize(tmp_path, "--shard", f"{index}/2", "--json", summary), environment).returncode == 2
        parts.append(json.loads(summary.read_text()))
    assert [[item["id"] for item in part["scenarios"]] for part in parts] == [
        ["balloon/resize[pc]"],
        ["balloon/resize[virt]"],
    ]
    assert parts[0]["shard"] == {
        "index": 1,
        "count": 2,
        "plan": parts[1]["shard"]["plan"],
        "whole": ["balloon/resize[pc]", "balloon/resize[virt]"],
    }
    joined = run(["merge", tmp_path / "1.json", tmp_path / "2.json", "-o", tmp_path / "whole.json"], environment)
    assert joined.stdout == "2 shards: 0 passed, 0 failed, 2 errors\n", joined.stderr


@pytest.mark.parametrize(("shard", "told"), [("3/2", "INDEX/COUNT"), ("1/3", "3 shards are too many for 2 scenarios")])
def test_no_such_shard(tmp_path: Path, environment: dict[str, str], shard: str, told: str) -> None:
    done = run(resize(tmp_path, "--shard", shard), environment)
    assert done.returncode == 4
    assert told in done.stderr


def test_nothing_is_known_of_a_scenario(tmp_path: Path, environment: dict[str, str]) -> None:
    run(resize(tmp_path), environment)
    done = run(["history", "balloon/resize[pcc]"], environment)
    assert done.returncode == 4
    assert 'did you mean "balloon/resize[pc]"?' in done.stderr


def test_the_live_view_tells_what_runs_for_how_long_and_how_long_it_took_before() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    live = for_console(console, Expected(3, {"balloon/resize[pc]": 12.0}, 40.0))
    assert isinstance(live, Live)
    live.began("balloon/resize[pc]")
    live.began("balloon/[new]")
    live.finished(result(id="balloon/[new]"))
    console.print(live._render())
    live.close()
    text = out.getvalue()
    assert "PASS" in text and "balloon/[new] (4.0 s)" in text
    assert "0 s of about 12 s" in text
    assert "1 of 3 done: 1 pass   0 s of about 40 s" in text


def test_what_a_scenario_waited_for_room_is_no_part_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("harness.report.progress.time.monotonic", lambda: clock[0])
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    live = Live(console, Expected(1, {"balloon/resize[pc]": 12.0}))
    scenario = cast("Scenario", SimpleNamespace(id="balloon/resize[pc]"))
    for phase, seconds in (("build", 1), ("wait", 30), ("boot", 5)):
        live.phase(scenario, phase)
        clock[0] += seconds
    console.print(live._render())
    live.close()
    assert "5 s of about 12 s" in out.getvalue()


def test_repeats_are_counted_and_shown() -> None:
    out = io.StringIO()
    console = Console(file=out, width=120)
    print_repeats(console, [result(0), result(0)])
    assert out.getvalue() == "", "nothing was repeated"
    runs = [result(0, verdict, attempt=number) for number, verdict in enumerate([Verdict.PASS] * 9 + [Verdict.FAIL], 1)]
    print_repeats(console, runs)
    assert "balloon/resize[pc] (flaky)" in out.getvalue()
    assert "10.0%  1.8% to 40.4%" in out.getvalue()


def test_junit_tells_an_error_in_its_own_words(tmp_path: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", str(CHECKOUT), "--noconftest"]
    command += ["--junitxml", str(tmp_path / "j.xml"), "--results", str(tmp_path / "r"), "--harness-repeat", "2"]
    done = subprocess.run(
        [*command, "--accel", "tcg", "-k", "pc", "scenarios/balloon/resize.yaml"],
        cwd=CHECKOUT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    suite = ElementTree.parse(tmp_path / "j.xml").getroot()[0]
    assert [case.get("name") for case in suite] == ["resize[pc#1]", "resize[pc#2]"]
    properties = {item.get("name"): item.get("value") for item in suite[0].iter("property")}
    assert properties["accelerator"] == "tcg"
    assert properties["results"] == str(tmp_path / "r" / "balloon-resize[pc]")
    error = suite[0].find("error")
    assert error is not None and error.text is not None
    assert "hint: " in error.text and "logs: " in error.text
    assert "CallInfo" not in error.text, "no traceback of pytest's"


def test_a_failures_text_holds_what_the_console_said(tmp_path: Path) -> None:
    (tmp_path / "console-guest.log").write_text("".join(f"line {number}\r\n" for number in range(100)))
    plain = ScenarioResult("a", "a", "f", (), {}, tmp_path)
    assert console_excerpt(plain).splitlines()[1:3] == ["  guest: last console lines:", "    line 80"]
    plain.crashes.append(Crash("guest", "BUG: x", "bug", ("BUG: x", "at y")))
    assert console_excerpt(plain) == "\n  crash on guest: BUG: x\n    BUG: x\n    at y"
    plain.reason, plain.crashes = "guest: hangs\n  last console lines:\n    x", []
    assert console_excerpt(plain) == "", "it is told already"
