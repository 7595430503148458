"""What a policy file may say, and whether what it names exists."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from harness.errors import Problem, ScenarioError
from harness.result import Seconds
from harness.scenario.model import Line, Scalar, Scenario, spell
from harness.strict_yaml import Document, KeyPath, quoted, read
from harness.validate import did_you_mean, fault, one_of, shown, validate

_KINDS = ("tags", "features", "scenarios", "rows")
_Days = Annotated[float, Field(gt=0, le=3650)]
_Words = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=300)], ...], Field(min_length=1, max_length=100)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Selection(_Model):
    """Which scenarios a rule is about: those that fit every key that is there."""

    tags: _Words = ()
    """With one of these tags."""
    features: _Words = ()
    """Of one of these features."""
    scenarios: _Words = ()
    """Whose id is one of these; ``*`` stands for anything."""
    rows: dict[str, Annotated[tuple[Scalar, ...], Field(min_length=1)]] = {}
    """Whose matrix has one of these values on each of these axes."""

    @model_validator(mode="after")
    def _says_something(self) -> Selection:
        if not any(getattr(self, kind) for kind in _KINDS):
            raise fault(f"names no scenarios: needs {one_of(_KINDS)}")
        return self

    def fits(self, scenario: Scenario) -> bool:
        """Whether the rule is about this scenario."""
        return (
            (not self.tags or bool(set(self.tags) & set(scenario.tags)))
            and (not self.features or scenario.feature in self.features)
            and (not self.scenarios or any(matches(scenario.id, pattern) for pattern in self.scenarios))
            and all(
                axis in scenario.matrix and spell(scenario.matrix[axis]) in map(spell, values)
                for axis, values in self.rows.items()
            )
        )


class Rule(Selection):
    """A selection of outcomes that are looked at.

    Those count that are of the scenario as it is written now, and of the code that the rule is about.
    """

    accelerators: Annotated[tuple[Literal["kvm", "tcg"], ...], Field(min_length=1)] = ()
    """Under each of these; whichever it was, by default."""
    under_test: dict[str, Annotated[str, Field(pattern=r"^(any|[0-9a-f]{8,64})$")]] = {}
    """What was under test, and nothing else: ``any``, or how its SHA-256 begins. By default, the images' own code."""


class Requirement(Rule):
    """What must have passed."""

    passes_in_a_row: Annotated[int, Field(ge=1, le=1000)] = 1
    """The last so many outcomes; skips and errors are no passes."""
    max_age_days: _Days | None = None
    """Of the last one; the policy's own by default."""


class Timing(Rule):
    """How long a phase may take, against how long it took before."""

    phase: str
    at_most: Annotated[float, Field(gt=0, le=100)]
    """Times the median of earlier passes."""
    runs: Annotated[int, Field(ge=1, le=100)] = 3
    """The median of the last so many passes is what is judged."""
    earlier: Annotated[int, Field(ge=3, le=1000)] = 5
    """Fewer earlier passes are no measure."""

    @model_validator(mode="after")
    def _is_a_phase(self) -> Timing:
        known = Seconds().to_json()
        if self.phase not in known:
            raise fault(f"the phase must be {one_of(known)}, got {shown(self.phase)}", did_you_mean(self.phase, known))
        return self


class Mutation(_Model):
    """How many mutants of a component the scenarios must have noticed."""

    component: str
    least_score: Annotated[float, Field(ge=0, le=100)]
    """Killed, in a hundred of those that could be built."""
    least_mutants: Annotated[int, Field(ge=1)] = 1
    max_age_days: _Days | None = None


class Excuse(_Model):
    """A failure of the product that does not stand in the way for the time being."""

    scenario: str
    reason: Line
    link: Annotated[str, Field(pattern=r"^https?://[^\s]+$")]
    expires: date
    """The last day on which it excuses anything, in UTC."""
    assertion: str | None = None
    """The only assertion that fails; anything that does, by default."""


def _not_empty(policy: Policy) -> Policy:
    if not (policy.require or policy.mutation or policy.timings):
        raise fault("has no rule: a gate that asks for nothing lets everything pass", "add require")
    return policy


class Policy(_Model):
    """All that must hold."""

    policy: Line
    max_age_days: _Days = 7.0
    require: Annotated[tuple[Requirement, ...], Field(max_length=200)] = ()
    timings: Annotated[tuple[Timing, ...], Field(max_length=200)] = ()
    mutation: Annotated[tuple[Mutation, ...], Field(max_length=200)] = ()
    known_failures: Annotated[tuple[Excuse, ...], Field(max_length=500)] = ()

    _checked = model_validator(mode="after")(_not_empty)


def matches(scenario: str, pattern: str) -> bool:
    """Whether an id is what a pattern says; brackets in it are brackets."""
    return fnmatchcase(scenario, pattern.replace("[", "[[]"))


def read_policy(path: Path, scenarios: Sequence[Scenario], components: Collection[str]) -> tuple[Policy, Document]:
    """A policy, and where its rules stand.

    :param scenarios: all that there are.
    :param components: what can be under test.
    :raises ScenarioError: it is wrong, or names what does not exist.
    """
    document = read(path)
    policy = validate(Policy, document)
    problems: list[Problem] = []
    for kind, rules in (("require", policy.require), ("timings", policy.timings)):
        for index, rule in enumerate(rules):
            problems += _rule_problems(document, (kind, index), rule, scenarios, components)
    for index, mutation in enumerate(policy.mutation):
        problems += _unknown(document, ("mutation", index, "component"), mutation.component, components, "component")
    for index, excuse in enumerate(policy.known_failures):
        path_ = ("known_failures", index, "scenario")
        problems += _unmatched(document, path_, excuse.scenario, [item.id for item in scenarios])
    if problems:
        raise ScenarioError(sorted(problems, key=lambda item: (item.line, item.column)))
    return policy, document


def _rule_problems(
    document: Document, path: KeyPath, rule: Rule, scenarios: Sequence[Scenario], components: Collection[str]
) -> list[Problem]:
    problems: list[Problem] = []
    tags = {tag for item in scenarios for tag in item.tags}
    features = {item.feature for item in scenarios}
    for index, tag in enumerate(rule.tags):
        problems += _unknown(document, (*path, "tags", index), tag, tags, "tag")
    for index, feature in enumerate(rule.features):
        problems += _unknown(document, (*path, "features", index), feature, features, "feature")
    for index, pattern in enumerate(rule.scenarios):
        problems += _unmatched(document, (*path, "scenarios", index), pattern, [item.id for item in scenarios])
    for axis, values in rule.rows.items():
        known = {spell(item.matrix[axis]) for item in scenarios if axis in item.matrix}
        axes = {name for item in scenarios for name in item.matrix}
        if axis not in axes:
            problems += _unknown(document, (*path, "rows", axis), axis, axes, "matrix axis")
            continue
        for index, value in enumerate(values):
            problems += _unknown(document, (*path, "rows", axis, index), spell(value), known, f"value of {axis}")
    for component in rule.under_test:
        problems += _unknown(document, (*path, "under_test", component), component, components, "component")
    if not problems and not any(rule.fits(item) for item in scenarios):
        problems.append(document.problem(path, "no scenario fits all of this"))
    return problems


def _unknown(document: Document, path: KeyPath, name: str, known: Iterable[str], what: str) -> list[Problem]:
    names = sorted(known)
    if name in names:
        return []
    message = f"unknown {what} {quoted(name)}, expected {one_of(names)}"
    return [document.problem(path, message, did_you_mean(name, names), at_key=isinstance(path[-1], str))]


def _unmatched(document: Document, path: KeyPath, pattern: str, ids: Sequence[str]) -> list[Problem]:
    if any(matches(name, pattern) for name in ids):
        return []
    return [document.problem(path, f"no scenario is called {quoted(pattern)}", did_you_mean(pattern, ids))]
