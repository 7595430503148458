"""A scenario's matrix: the combinations of its axes, and their values put into the rest of the file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import product
from typing import Any

from harness.scenario.model import Matrix, Scalar, spell
from harness.strict_yaml import KeyPath, quoted
from harness.validate import did_you_mean, one_of, shown

PLACEHOLDER = re.compile(r"\$\$\{|\$\{(?P<axis>[^{}]*)(?P<closed>\}?)")
_LITERAL_HINT = "write $${ where the characters ${ are meant"


def combinations(matrix: Matrix | None) -> list[dict[str, Scalar]]:
    """The value of each axis, for each combination; without a matrix there is one, without axes."""
    axes = matrix.root if matrix is not None else {}
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def label(values: Mapping[str, Scalar]) -> str:
    """What a combination adds to a scenario's id: ``[pc-4k]``, or nothing without axes."""
    return f"[{'-'.join(map(spell, values.values()))}]" if values else ""


class Substitution:
    """Puts the values of one combination into the plain values of a file.

    ``${axis}`` alone is the value with its type; within a longer text it is spelt out. Keys are left alone.

    :param values: the value of each axis.

    After use, ``used`` has the axes that were asked for, and ``faults`` what was wrong: path, message and hint.
    """

    def __init__(self, values: Mapping[str, Scalar]) -> None:
        self.used: set[str] = set()
        self.faults: list[tuple[KeyPath, str, str | None]] = []
        self._values = values

    def apply(self, value: Any, path: KeyPath = ()) -> Any:
        """A copy of ``value``, which stands at ``path``, with the values put in."""
        if isinstance(value, dict):
            return {key: self.apply(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [self.apply(item, (*path, index)) for index, item in enumerate(value)]
        if not isinstance(value, str):
            return value
        whole = PLACEHOLDER.fullmatch(value)
        if whole is not None and whole["closed"]:
            return self._value(whole["axis"], path)
        return PLACEHOLDER.sub(lambda found: self._text(found, path), value)

    def _value(self, axis: str, path: KeyPath) -> Scalar:
        self.used.add(axis)
        if axis in self._values:
            return self._values[axis]
        expected = f"expected {one_of(sorted(self._values))}" if self._values else "because there is no matrix"
        hint = did_you_mean(axis, self._values) or _LITERAL_HINT
        self.faults.append((path, f"unknown matrix axis {quoted(axis)}, {expected}", hint))
        return ""

    def _text(self, found: re.Match[str], path: KeyPath) -> str:
        if found["axis"] is None:
            return "${"
        if not found["closed"]:
            self.faults.append((path, "a ${ has no }", _LITERAL_HINT))
            return ""
        value = self._value(found["axis"], path)
        if isinstance(value, float):
            message = f"the number {shown(value)} cannot stand within a text, where 6.10 would read 6.1"
            self.faults.append((path, message, "quote it in the matrix"))
        return spell(value)


def escaped(value: Any) -> Any:
    """A copy of ``value`` in which :class:`Substitution` changes nothing."""
    if isinstance(value, dict):
        return {key: escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [escaped(item) for item in value]
    return value.replace("${", "$${") if isinstance(value, str) else value
