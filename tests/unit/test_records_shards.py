"""Dividing scenarios among hosts, and noticing that one of the parts is missing, doubled or of another whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import ScenarioError, UsageError
from harness.records.read import read_summary
from harness.records.shards import divide, merge, parse_shard
from tests.unit.records import result, summary, write

IDS = ["a", "b", "c", "d"]
DURATIONS = {"a": 10.0, "b": 4.0, "c": 3.0, "d": 2.0}


def test_the_longest_go_first_each_where_least_is() -> None:
    assert divide(IDS, DURATIONS, 1, 2).mine == ("a",)
    assert divide(IDS, DURATIONS, 2, 2).mine == ("b", "c", "d")


@given(
    st.sets(st.text("abcdef", min_size=1, max_size=4), min_size=1, max_size=30).flatmap(
        lambda ids: st.tuples(
            st.permutations(sorted(ids)),
            st.dictionaries(st.sampled_from(sorted(ids)), st.floats(0, 100)),
            st.integers(1, len(ids)),
        )
    )
)
def test_each_scenario_is_in_one_shard_and_no_shard_is_empty(made: tuple[list[str], dict[str, float], int]) -> None:
    ids, durations, count = made
    parts = [divide(ids, durations, index, count) for index in range(1, count + 1)]
    assert sorted(name for part in parts for name in part.mine) == sorted(ids)
    assert all(part.mine for part in parts)
    assert len({part.plan for part in parts}) == 1
    assert parts == [divide(sorted(ids), durations, index, count) for index in range(1, count + 1)]


def test_other_durations_are_another_plan() -> None:
    assert divide(IDS, DURATIONS, 1, 2).plan != divide(IDS, {}, 1, 2).plan


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "1/0", "1/2/3", "a/b", "-1/2", "1/99999"])
def test_no_shard(text: str) -> None:
    with pytest.raises(UsageError, match="--shard must be INDEX/COUNT"):
        parse_shard(text)


def test_more_shards_than_scenarios() -> None:
    with pytest.raises(UsageError, match="5 shards are too many for 4 scenarios"):
        divide(IDS, {}, 1, 5)


def merged(tmp_path: Path, *values: dict[str, Any]) -> dict[str, Any]:
    paths = [write(tmp_path / f"{number}.json", value) for number, value in enumerate(values)]
    return merge({path: read_summary(path) for path in paths}, {path: json.loads(path.read_text()) for path in paths})


def part(index: int, count: int = 2, **changes: Any) -> dict[str, Any]:
    shard = divide(IDS, DURATIONS, index, count)
    results = [result(index, id=name) for name in shard.mine]
    return summary(*results, shard={**shard.to_json(), **changes})


def problem(tmp_path: Path, *values: dict[str, Any]) -> str:
    with pytest.raises(ScenarioError) as caught:
        merged(tmp_path, *values)
    return str(caught.value)


def test_merge(tmp_path: Path) -> None:
    whole = merged(tmp_path, part(2), part(1))
    assert sorted(item["id"] for item in whole["scenarios"]) == IDS
    assert whole["shard"] is None
    assert whole["run"] == merged(tmp_path, part(1), part(2))["run"]
    assert {item["run"] for item in whole["scenarios"]} == {"run-1", "run-2"}, "each keeps the run that it was in"
    assert len(read_summary(write(tmp_path / "whole.json", whole)).scenarios) == 4


def test_a_missing_shard(tmp_path: Path) -> None:
    assert "shard.count: of 4 shards, missing: 2, 4" in problem(tmp_path, part(1, 4), part(3, 4))


def test_a_doubled_shard(tmp_path: Path) -> None:
    assert "shard.index: shard 1 is there twice, first in" in problem(tmp_path, part(1), part(1), part(2))


def test_shards_of_another_whole(tmp_path: Path) -> None:
    assert "shard.count: must be 2 as in" in problem(tmp_path, part(1), part(2, 3))
    assert "shard.plan: is not the plan of" in problem(tmp_path, part(1), part(2, plan="other"))
    assert "shard: is no shard's" in problem(tmp_path, part(1), summary(result()))


def test_a_shard_that_was_interrupted(tmp_path: Path) -> None:
    cut = part(2)
    cut["scenarios"] = cut["scenarios"][:1]
    assert "shard.whole: no shard tells of c and 1 more" in problem(tmp_path, part(1), cut)
