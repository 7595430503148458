"""Assertions: CEL expressions over evidence, checked at collection and judged after a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import BaseModel

from harness.scenario.cel import CelSyntaxError, parse, paths
from harness.scenario.operations import CelError, evaluate
from harness.scenario.static import find_faults
from harness.strict_yaml import KeyPath, dotted

MISSING = "<missing>"
MAX_TEXT = 200
MAX_ITEMS = 10
MAX_LEVELS = 4


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one assertion.

    :param values: the value of every path that the expression reads, long ones cut; ``<missing>`` where there is none.
    :param error: why the expression has no value, in which case it does not hold.
    """

    holds: bool
    expression: str
    values: Mapping[str, Any]
    error: str | None = None


@dataclass(frozen=True)
class Expectation:
    """One assertion of a scenario.

    :param text: the CEL expression. Making an expectation never fails: :meth:`check` tells what is wrong with it.
    """

    text: str

    @cached_property
    def _reads(self) -> Sequence[KeyPath]:
        try:
            return list(dict.fromkeys(paths(parse(self.text))))
        except CelSyntaxError:
            return ()

    @cached_property
    def names(self) -> frozenset[str]:
        """The dotted paths of evidence that the expression reads: ``kicks.completed``, ``stats.counters.pgfault``."""
        return frozenset(map(dotted, self._reads))

    @property
    def roots(self) -> frozenset[str]:
        """The names of evidence that the expression reads: ``kicks``, ``stats``."""
        return frozenset(str(path[0]) for path in self._reads)

    def check(self, evidence_models: Mapping[str, type[BaseModel]]) -> list[tuple[str, str | None]]:
        """Everything that is wrong with the expression, as messages with their hints.

        :param evidence_models: the model of what each name stands for. Of a model with ``extra="allow"``, unknown
            fields are let pass.
        """
        try:
            return find_faults(self.text, parse(self.text), evidence_models)
        except CelSyntaxError as error:
            return [(str(error), error.hint)]

    def judge(self, evidence: Mapping[str, Any]) -> Verdict:
        """Whether the expression holds. Never raises: what has no value does not hold.

        :param evidence: what steps left, by their names: JSON-like values.
        """
        values = {dotted(path): _abbreviated(_look_up(evidence, path)) for path in self._reads}
        error: str | None = None
        value: Any = None
        try:
            for name in sorted(self.roots - set(evidence)):
                raise CelError(f"no step left evidence under the name {name}")
            value = evaluate(parse(self.text), {name: evidence[name] for name in self.roots})
            if not isinstance(value, bool):
                error = "the expression is neither true nor false"
        except (CelError, CelSyntaxError) as reason:
            error = str(reason)
        return Verdict(value is True, self.text, values, error)


def _look_up(evidence: Mapping[str, Any], path: KeyPath) -> Any:
    value: Any = evidence
    for step in path:
        try:
            value = value[step]
        except (LookupError, TypeError):
            return MISSING
    return value


def _abbreviated(value: Any, levels: int = MAX_LEVELS) -> Any:
    """A value short enough for a report, with a note of what was left out."""
    if isinstance(value, str) and len(value) > MAX_TEXT:
        return f"{value[:MAX_TEXT]}... ({len(value)} characters)"
    if isinstance(value, list | tuple):
        if levels == 0:
            return f"... ({len(value)} items)"
        kept = [_abbreviated(item, levels - 1) for item in value[:MAX_ITEMS]]
        return kept if len(value) <= MAX_ITEMS else [*kept, f"... ({len(value)} items)"]
    if isinstance(value, Mapping):
        if levels == 0:
            return f"... ({len(value)} keys)"
        short = {key: _abbreviated(item, levels - 1) for key, item in list(value.items())[:MAX_ITEMS]}
        return short if len(value) <= MAX_ITEMS else {**short, "...": f"({len(value)} keys)"}
    return value
