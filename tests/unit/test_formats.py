"""Formats that others read: KTAP, KCIDB, GitHub's and GitLab's annotations, and shards joined by the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kcidb_io import schema

from harness.errors import UsageError
from harness.records.shards import divide
from harness.report.annotations import github, gitlab
from harness.report.kcidb import kcidb
from harness.report.ktap import ktap
from harness.result import Crash, FailedAssertion, Verdict
from tests.unit.records import result, summary, swapped, write
from tests.unit.test_page import read

HARNESS = Path(sys.executable).with_name("harness")
FAILED = FailedAssertion("up.inflated == 5", {"up.inflated": 4})


def four() -> list[Any]:
    values = [
        result(0),
        result(
            1,
            Verdict.FAIL,
            reason="1 of 2 failed",
            failed_assertions=[FAILED],
            file="x.yaml",
            crashes=[Crash("guest", "BUG: x", "bug", ("BUG: x",))],
        ),
        result(2, Verdict.ERROR, reason="host: no space,\n  hint: a:b 100%", file="x.yaml"),
        result(3, Verdict.SKIP, reason="no such machine"),
    ]
    return [read(value) for value in values]


def test_ktap() -> None:
    assert ktap(four()).splitlines() == [
        "KTAP version 1",
        "1..4",
        "ok 1 balloon/resize[pc]",
        "# 1 of 2 failed",
        "# does not hold: up.inflated == 5 [up.inflated = 4]",
        "# crash on guest: BUG: x",
        "# logs: /results/balloon-resize[pc]",
        "not ok 2 balloon/resize[pc]",
        "not ok 3 balloon/resize[pc] # ERROR host: no space,",
        "ok 4 balloon/resize[pc] # SKIP no such machine",
    ]


def test_ktap_of_a_guest_that_speaks_ktap() -> None:
    evil = read(result(0, Verdict.FAIL, id="a#b", reason="\x1b[1mx\nok 1 all is well"))
    assert ktap([evil]).splitlines()[2:] == ["# x", "# logs: /results/balloon-resize[pc]", "not ok 1 a_b"]


def test_github(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text("assert:\n  - up.settled\n  - up.inflated == 5\n")
    failed, error, skipped = github(four()).splitlines()
    assert failed == (
        "::error file=x.yaml,line=3,title=balloon/resize[pc] failed::"
        "1 of 2 failed%0Adoes not hold: up.inflated == 5%0Acrash on guest: BUG: x"
    )
    assert error == "::error file=x.yaml,line=1,title=balloon/resize[pc] host or harness error::host: no space,"
    assert skipped.startswith("::notice title=balloon/resize[pc] skipped::")


def test_github_cannot_be_commanded_by_a_guest() -> None:
    evil = read(result(0, Verdict.FAIL, id="a,title=b::x", reason="100%\r\n::stop-commands::x"))
    (line,) = github([evil]).splitlines()
    assert line == "::error title=a%2Ctitle=b%3A%3Ax failed::100%25"


def test_gitlab() -> None:
    failed, error, skipped = gitlab(four())
    assert [item["severity"] for item in (failed, error, skipped)] == ["critical", "major", "info"]
    assert failed["location"] == {"path": "x.yaml", "lines": {"begin": 1}}
    assert len({item["fingerprint"] for item in (failed, error, skipped)}) == 3
    assert failed["fingerprint"] == gitlab(four())[0]["fingerprint"], "the same finding tomorrow"


def test_kcidb_is_valid_and_blames_the_right_one(tmp_path: Path) -> None:
    (tmp_path / "console-guest.log").write_text("x" * 50_000)
    tested = read(result(4, Verdict.FAIL, results=tmp_path, under_test=[swapped("virtio_balloon", "ab" * 32)]))
    report = kcidb([*four(), tested], "my_ci", "https://ci.example.org/logs/")
    schema.LATEST.validate(report)
    assert [test["status"] for test in report["tests"]] == ["PASS", "FAIL", "MISS", "SKIP", "FAIL"]
    assert report["tests"][0]["path"] == "harness.balloon.resize.pc"
    assert len(report["builds"]) == 2
    assert {test["build_id"] for test in report["tests"]} == {build["id"] for build in report["builds"]}
    (log,) = report["tests"][4]["output_files"]
    assert log["url"] == f"https://ci.example.org/logs/{tmp_path.name}/console-guest.log"


@given(st.text(max_size=60), st.text(max_size=60), st.text(max_size=60))
def test_kcidb_is_valid_whatever_is_said(name: str, title: str, reason: str) -> None:
    value = result(0, Verdict.FAIL, id=f"a/{name}", title=title, reason=reason, versions={"kernel": title})
    schema.LATEST.validate(kcidb([read(value)], "harness", None))


def test_kcidb_has_no_such_origin() -> None:
    with pytest.raises(UsageError, match="an origin is lower-case letters"):
        kcidb(four(), "My CI", None)


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [HARNESS, *arguments],
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_commands(tmp_path: Path) -> None:
    shards = [divide(["a", "b"], {}, index, 2) for index in (1, 2)]
    files = [
        write(tmp_path / f"{part.index}.json", summary(result(id=part.mine[0]), shard=part.to_json()))
        for part in shards
    ]
    whole = tmp_path / "whole.json"
    alone = run("merge", files[0], "-o", whole)
    assert (alone.returncode, whole.exists()) == (2, False)
    assert "1.json shard.count: of 2 shards, missing: 2" in alone.stderr
    joined = run("merge", *files, "-o", whole)
    assert (joined.returncode, joined.stdout) == (0, "2 shards: 2 passed, 0 failed\n")
    assert run("export", "ktap", whole).stdout.splitlines()[1:] == ["1..2", "ok 1 a", "ok 2 b"]
    assert run("export", "kcidb", whole, "-o", tmp_path / "k.json").returncode == 0
    schema.LATEST.validate(json.loads((tmp_path / "k.json").read_text()))
    assert run("export", "nosuch", whole).returncode == 4
    assert run("export", "ktap", tmp_path / "absent.json").returncode == 4
