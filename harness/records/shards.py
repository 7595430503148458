"""Dividing scenarios among several hosts by how long they took before, and joining what came of it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from harness.errors import Problem, ScenarioError, UsageError
from harness.records.read import ReadShard, ReadSummary

_SHARD = re.compile(r"([0-9]{1,4})/([0-9]{1,4})")


@dataclass(frozen=True, slots=True)
class Shard:
    """One part of a whole.

    :param mine: ids of the scenarios of this part.
    :param plan: a hash of how all are divided; parts of one whole have the same.
    :param whole: ids of the scenarios of all parts.
    """

    index: int
    count: int
    plan: str
    mine: tuple[str, ...]
    whole: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """What the summary says of it."""
        return {name: value for name, value in asdict(self).items() if name != "mine"}


def parse_shard(text: str) -> tuple[int, int]:
    """``2/5`` as numbers.

    :raises UsageError: it is no such thing.
    """
    found = _SHARD.fullmatch(text)
    index, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= index <= count:
        raise UsageError(f"--shard must be INDEX/COUNT with 1 <= INDEX <= COUNT, got {text!r}", hint="--shard 1/3")
    return index, count


def divide(ids: Sequence[str], durations: Mapping[str, float], index: int, count: int) -> Shard:
    """The part of ``ids`` that is for shard ``index`` of ``count``: the longest go first, each where least is.

    The same ids and durations give the same parts, in whatever order they come. A scenario that has never passed is
    taken to last as long as most do.

    :raises UsageError: there are more shards than scenarios.
    """
    if count > len(ids):
        raise UsageError(f"{count} shards are too many for {len(ids)} scenarios", hint=f"at most {len(ids)}")
    usual = median(durations.values()) if durations else 1.0
    loads = [0.0] * count
    parts: list[list[str]] = [[] for _ in range(count)]
    for name in sorted(ids, key=lambda name: (-durations.get(name, usual), name)):
        # An empty part comes first even where durations are nothing.
        least = min(range(count), key=lambda part: (loads[part], len(parts[part]), part))
        parts[least].append(name)
        loads[least] += durations.get(name, usual)
    plan = hashlib.sha256(json.dumps([sorted(part) for part in parts]).encode()).hexdigest()
    return Shard(index, count, plan, tuple(parts[index - 1]), tuple(sorted(ids)))


def merge(summaries: Mapping[Path, ReadSummary], raw: Mapping[Path, Mapping[str, Any]]) -> dict[str, Any]:
    """One summary of all shards'.

    :param raw: the same summaries, as JSON has them.
    :raises ScenarioError: a shard is missing or there twice, they are not of one whole, or a scenario has no outcome.
    """
    problems = _problems(summaries)
    if problems:
        raise ScenarioError(problems)
    first = next(iter(summaries))
    used = [raw[path]["accel"] for path, item in summaries.items() if item.scenarios]
    return {
        **raw[first],
        "run": hashlib.sha256("".join(sorted(item.run for item in summaries.values())).encode()).hexdigest()[:32],
        "started": min(item.started for item in summaries.values()).isoformat(),
        "finished": max(item.finished for item in summaries.values()).isoformat(),
        "accel": next((item for item in used if item["used"] == "kvm"), used[0] if used else raw[first]["accel"]),
        "shard": None,
        "scenarios": [scenario for path in summaries for scenario in raw[path]["scenarios"]],
    }


def _problems(summaries: Mapping[Path, ReadSummary]) -> list[Problem]:
    problems: list[Problem] = []
    seen: dict[int, Path] = {}
    first: tuple[Path, ReadShard] | None = None
    for path, summary in summaries.items():
        shard = summary.shard
        if shard is None:
            problems.append(Problem(str(path), 0, 0, "shard", "is no shard's", "made with: harness run --shard 1/2"))
            continue
        first = first or (path, shard)
        if shard.index in seen:
            message = f"shard {shard.index} is there twice, first in {seen[shard.index]}"
            problems.append(Problem(str(path), 0, 0, "shard.index", message))
        elif shard.count != first[1].count:
            message = f"must be {first[1].count} as in {first[0]}, got {shard.count}"
            problems.append(Problem(str(path), 0, 0, "shard.count", message))
        elif shard.plan != first[1].plan:
            message = f"is not the plan of {first[0]}: the scenarios were not divided alike"
            hint = "give every shard the same scenarios and the same --history"
            problems.append(Problem(str(path), 0, 0, "shard.plan", message, hint))
        seen.setdefault(shard.index, path)
    if problems or first is None:
        return problems
    missing = [str(index) for index in range(1, first[1].count + 1) if index not in seen]
    if missing:
        return [
            Problem(str(first[0]), 0, 0, "shard.count", f"of {first[1].count} shards, missing: {', '.join(missing)}")
        ]
    told = {scenario.id for summary in summaries.values() for scenario in summary.scenarios}
    lost = sorted(set(first[1].whole) - told)
    if lost:
        message = f"no shard tells of {lost[0]}" + (f" and {len(lost) - 1} more" if len(lost) > 1 else "")
        problems.append(Problem(str(first[0]), 0, 0, "shard.whole", message, "was a shard interrupted?"))
    return problems
