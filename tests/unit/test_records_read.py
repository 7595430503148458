"""Summaries that are what they should be, and all that can be wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ScenarioError
from harness.records.read import read_any, read_summary
from harness.result import Verdict
from tests.unit.records import result, summary, write


def refusal(path: Path) -> str:
    with pytest.raises(ScenarioError) as caught:
        read_summary(path)
    return str(caught.value)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    read = read_summary(write(tmp_path / "s.json", summary(result(), result(1, Verdict.FAIL))))
    assert [item.verdict for item in read.scenarios] == [Verdict.PASS, Verdict.FAIL]
    assert read.scenarios[0].evidence["up"]["inflated"] == 51200
    assert read.run == "run-0"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.update(schema=2), "schema: must be 1, got 2 (hint: it was written by another version"),
        (lambda s: s.pop("schema"), "schema: missing key"),
        (lambda s: s.update(schema="1"), "schema: must be 1, got "),
        (lambda s: s.pop("run"), "run: missing key"),
        (lambda s: s.update(started="yesterday"), "started: "),
        (lambda s: s.update(started="2026-11-25T12:00:00"), "started: "),
        (lambda s: s["scenarios"][1].update(verdict="passed"), 'scenarios[1].verdict: must be one of "pass", "fail"'),
        (lambda s: s["scenarios"][0].pop("tags"), "scenarios[0].tags: missing key"),
        (lambda s: s["scenarios"][0]["seconds"].update(total="4"), "scenarios[0].seconds.total: must be a number"),
        (lambda s: s.update(scenarios={}), "scenarios: must be a list, got a mapping"),
        (lambda s: s.update(shard={"index": 0, "count": 2, "plan": "", "whole": []}), "shard.index: must be at least"),
    ],
)
def test_a_summary_that_is_wrong(tmp_path: Path, change: Callable[[dict[str, Any]], object], told: str) -> None:
    value = json.loads(json.dumps(summary(result(), result(1))))
    change(value)
    path = write(tmp_path / "s.json", value)
    assert f"{path} {told}" in refusal(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "the file is empty"),
        ('{"schema": 1, "scena', "is not JSON"),
        ("[]", "must be a JSON object"),
        ("[" * 100_000, "is nested too deep"),
        ("\x00\xff", "is not JSON"),
    ],
)
def test_a_file_that_is_no_summary(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "s.json"
    path.write_bytes(text.encode("latin-1"))
    assert told in refusal(path)
    assert str(path) in refusal(path)


def test_a_file_that_is_not_there_and_one_that_is_none(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "s.json")
    assert "is not a regular file" in refusal(tmp_path)


def test_all_wrong_files_are_told_at_once(tmp_path: Path) -> None:
    good = write(tmp_path / "good.json", summary(result()))
    with pytest.raises(ScenarioError) as caught:
        read_any([tmp_path / "a.json", good, write(tmp_path / "b.json", summary(result(), schema=7))])
    assert [Path(problem.file).name for problem in caught.value.problems] == ["a.json", "b.json"]


def test_mutations_are_told_apart(tmp_path: Path) -> None:
    mutants = [{"name": "a", "fate": "killed"}, {"name": "b", "fate": "error"}, {"name": "c", "fate": "did not build"}]
    value = {"schema": 1, "component": "virtio_balloon", "score": 50.0, "baseline": [result()], "mutants": mutants}
    runs, mutations = read_any([write(tmp_path / "m.json", value), write(tmp_path / "s.json", summary(result()))])
    assert list(runs) == [tmp_path / "s.json"]
    read = mutations[tmp_path / "m.json"]
    assert (read.component, read.built, read.killed) == ("virtio_balloon", 2, 1)
