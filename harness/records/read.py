"""Summaries in: the only reader of what ``--json`` writes.

A summary may come from another version, another host, or a disk that was full. What does not fit is told by file and
field, and nothing of such a file is used.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from harness.errors import Problem, ScenarioError
from harness.result import SCHEMA, Verdict
from harness.strict_yaml import Document, Mark
from harness.validate import validate

M = TypeVar("M", bound=BaseModel)

_MAX_PROBLEMS = 10
_NAME = Field(min_length=1, max_length=300)


class _Read(BaseModel):
    """Keys that are not known here are let pass: a later version of one schema may say more."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class ReadAccel(_Read):
    """What a machine ran under; ``none`` where nothing was booted."""

    used: str = "none"
    why: str = ""


class ReadAssertion(_Read):
    """An assertion that did not hold."""

    expression: str
    values: dict[str, Any] = {}
    error: str | None = None


class ReadCrash(_Read):
    """A crash on a layer's console."""

    layer: str
    title: str
    severity: str = ""
    text: list[str] = []


class ReadStep(_Read):
    """A step of ``drive``."""

    verb: str
    name: str | None = None
    seconds: float = 0.0
    evidence: Any = None


class ReadUnderTest(_Read):
    """A component in place of the recipe's own; see :class:`harness.result.UnderTest`."""

    component: str
    sha256: str
    source: str = ""
    sources: list[str] = []
    source_sha256: str = ""
    inexact: list[str] = []


class ReadScenario(_Read):
    """One scenario's outcome; see :class:`harness.result.ScenarioResult`."""

    id: Annotated[str, _NAME]
    run: Annotated[str, _NAME]
    attempt: Annotated[int, Field(ge=1)] = 1
    started: AwareDatetime
    verdict: Verdict
    title: str = ""
    feature: str
    tags: list[str]
    matrix: dict[str, Any] = {}
    reason: str
    start: str = "cold"
    accel: ReadAccel
    failed_assertions: list[ReadAssertion]
    crashes: list[ReadCrash]
    under_test: list[ReadUnderTest]
    versions: dict[str, str]
    seconds: dict[str, float]
    steps: list[ReadStep] = []
    evidence: dict[str, Any]
    assertions: int = 0
    retried: str | None = None
    results: str
    file: str = ""
    machine: str = ""
    scenario_sha256: str


class ReadShard(_Read):
    """Which part of a whole a summary is.

    :ivar plan: a hash of how the whole was divided.
    :ivar whole: the ids of all scenarios of all parts.
    """

    index: Annotated[int, Field(ge=1)]
    count: Annotated[int, Field(ge=1)]
    plan: str
    whole: list[str]


class ReadSummary(_Read):
    """A summary as ``harness run --json`` writes it."""

    schema_version: Annotated[Literal[1], Field(alias="schema")]
    run: Annotated[str, _NAME]
    harness: str = ""
    started: AwareDatetime
    finished: AwareDatetime
    shard: ReadShard | None = None
    host: dict[str, Any]
    accel: ReadAccel
    scenarios: list[ReadScenario]


class ReadMutant(_Read):
    """What became of a mutant: ``killed``, ``survived``, ``did not build`` or ``error``."""

    name: str
    fate: Literal["killed", "survived", "did not build", "error"]


class _Baseline(_Read):
    started: AwareDatetime
    verdict: Verdict


class ReadMutation(_Read):
    """A summary as ``harness mutate --json`` writes it.

    :ivar baseline: the scenarios on good code, before any mutant.
    """

    schema_version: Annotated[Literal[1], Field(alias="schema")]
    component: Annotated[str, _NAME]
    baseline: list[_Baseline]
    mutants: list[ReadMutant]

    @property
    def built(self) -> int:
        """How many mutants could be tried at all."""
        return sum(item.fate != "did not build" for item in self.mutants)

    @property
    def killed(self) -> int:
        """How many mutants a scenario failed on. An error is no kill."""
        return sum(item.fate == "killed" for item in self.mutants)


def read_summary(path: Path) -> ReadSummary:
    """One summary.

    :raises ScenarioError: it cannot be read, is cut short, of another version, or says what a summary cannot.
    """
    return _read(path, ReadSummary)


def as_summary(told: Mapping[str, Any]) -> ReadSummary:
    """A summary that was not written anywhere, as it would be read."""
    return ReadSummary.model_validate_json(json.dumps(told, default=str))


def read_results(path: Path) -> ReadScenario:
    """One scenario's ``result.json``.

    :raises ScenarioError: as :func:`read_summary`.
    """
    return _read(path, ReadScenario)


def read_any(paths: Iterable[Path]) -> tuple[dict[Path, ReadSummary], dict[Path, ReadMutation]]:
    """Summaries of runs and of mutations, told apart by what they hold.

    :raises ScenarioError: as :func:`read_summary`, for all files at once.
    """
    runs: dict[Path, ReadSummary] = {}
    mutations: dict[Path, ReadMutation] = {}
    problems: list[Problem] = []
    for path in paths:
        try:
            value = _parse(path)
            _check_version(path, value)
            if "mutants" in value:
                mutations[path] = _checked(path, ReadMutation, value)
            else:
                runs[path] = _checked(path, ReadSummary, value)
        except ScenarioError as error:
            problems += error.problems
    if problems:
        raise ScenarioError(problems)
    return runs, mutations


def _read(path: Path, model: type[M]) -> M:
    value = _parse(path)
    _check_version(path, value)
    return _checked(path, model, value)


def _refusal(path: Path, key: str, message: str, hint: str | None = None) -> ScenarioError:
    return ScenarioError([Problem(str(path), 0, 0, key, message, hint)])


def _parse(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():
            raise _refusal(path, "", "is not a regular file" if path.exists() else "does not exist")
        data = path.read_bytes()
    except OSError as error:
        raise _refusal(path, "", f"cannot be read: {error.strerror}") from error
    try:
        value = json.loads(data)
    except RecursionError as error:
        raise _refusal(path, "", "is nested too deep") from error
    except ValueError as error:
        hint = "the file is empty" if not data.strip() else "was it cut short, or is it another file?"
        raise _refusal(path, "", f"is not JSON: {error}", hint) from error
    if not isinstance(value, dict):
        raise _refusal(path, "", "must be a JSON object, as --json writes it")
    return value


def _check_version(path: Path, value: Mapping[str, Any]) -> None:
    found = value.get("schema")
    if type(found) is int and found != SCHEMA:
        hint = "it was written by another version of the harness: read it with that one"
        raise _refusal(path, "schema", f"must be {SCHEMA}, got {found}", hint)


def _checked(path: Path, model: type[M], value: Mapping[str, Any]) -> M:
    try:
        return model.model_validate_json(json.dumps(value), strict=True)
    except ValidationError:
        pass
    try:
        # The slow way, which tells what is wrong in words.
        return validate(model, Document(value, str(path), {}, {(): Mark(0, 0)}))
    except ScenarioError as error:
        # A summary of another version may be wrong in each of a thousand scenarios.
        left = len(error.problems) - _MAX_PROBLEMS
        more = [Problem(str(path), 0, 0, "", f"and {left} more problems")] if left > 0 else []
        raise ScenarioError([*error.problems[:_MAX_PROBLEMS], *more]) from None
