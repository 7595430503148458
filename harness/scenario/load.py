"""Scenario files in, scenarios out. This is the only reader of scenario YAML."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.errors import Problem, ScenarioError
from harness.scenario.check import Checked, check
from harness.scenario.matrix import PLACEHOLDER, Substitution, combinations, escaped, label
from harness.scenario.model import Catalogue, KnownFailure, Matrix, Scalar, Scenario
from harness.strict_yaml import Document, KeyPath, Mark, quoted, read
from harness.validate import described, did_you_mean, one_of, shown, validate

# A scenario's id names directories and test cases.
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


def load_paths(paths: Iterable[Path], load: Callable[[Path], list[Scenario]]) -> tuple[list[Scenario], list[Problem]]:
    """The scenarios of files and of directories with all that is below them, and everything that is wrong with them.

    :param load: gives the scenarios of one file, as :func:`load_file` does.
    """
    scenarios: list[Scenario] = []
    problems: list[Problem] = []
    for file in dict.fromkeys(file for path in paths for file in _files(path)):
        try:
            scenarios += load(file)
        except ScenarioError as error:
            problems += error.problems
    return scenarios, problems


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    # A ``.yml`` is refused by load_file: better than a scenario that silently never runs.
    found = (file for suffix in ("yaml", "yml") for file in path.rglob(f"*.{suffix}"))
    return sorted(file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts))


def load_file(path: Path, catalogue: Catalogue, *, root: Path) -> list[Scenario]:
    """The scenarios of one file, one for each combination of its matrix.

    :param root: the directory that scenarios must lie in; their ids are relative to ``root/scenarios``.
    :raises ScenarioError: with all problems that were found; one that several combinations share comes once.
    """
    relative = _locate(path, root)
    document = read(path, str(relative))
    value = (
        {key: item for key, item in document.value.items() if key != "matrix"}
        if _is_mapping(document)
        else document.value
    )
    try:
        matrix = _matrix(document)
    except ScenarioError as error:
        raise ScenarioError(_ordered([*error.problems, *_problems_beside(document, value, catalogue)])) from error
    scenarios: list[Scenario] = []
    found: list[tuple[str, Sequence[Problem]]] = []
    used: set[str] = set()
    for values in combinations(matrix):
        substitution = Substitution(values)
        resolved = substitution.apply(value)
        used |= substitution.used
        checked = check(document, resolved, catalogue)
        problems = _problems(document, substitution, checked)
        found.append((label(values), problems))
        if checked.file is not None and not problems:
            scenarios.append(_scenario(path, _id(relative), checked, resolved, values))
    problems = _shared(found) + _matrix_problems(document, matrix, used)
    refused = {problem.key for problem in problems}
    problems += [problem for problem in _known_failure_problems(document, matrix) if problem.key not in refused]
    if problems:
        raise ScenarioError(_ordered(problems))
    return scenarios


def _locate(path: Path, root: Path) -> Path:
    """Where a scenario file lies below ``root``: its own place, and that of what it links to."""

    def refusal(message: str, hint: str | None = None) -> ScenarioError:
        return ScenarioError([Problem(str(path), 0, 0, "", message, hint)])

    try:
        top = root.resolve()
        place, target = path.parent.resolve() / path.name, path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise refusal(f"cannot be found: {error}") from error
    if not (place.is_relative_to(top) and target.is_relative_to(top)):
        raise refusal(f"lies outside of {top}", "a scenario, and what it links to, must lie below that directory")
    if path.suffix != ".yaml":
        raise refusal("the name of a scenario file must end in .yaml")
    relative = place.relative_to(top)
    for part in relative.with_suffix("").parts:
        if not _PART.fullmatch(part):
            raise refusal(f"{quoted(part)} cannot be a part of a scenario's id", "use letters, digits and . _ -")
    return relative


def _id(relative: Path) -> str:
    """A scenario file's id, without matrix values."""
    parts = relative.with_suffix("").parts
    return "/".join(parts[1:] if parts[0] == "scenarios" and len(parts) > 1 else parts)


def _is_mapping(document: Document) -> bool:
    return isinstance(document.value, dict)


def _matrix(document: Document) -> Matrix | None:
    if not _is_mapping(document) or document.value.get("matrix") is None:
        return None
    return validate(Matrix, document, ("matrix",))


def _problems_beside(document: Document, value: Any, catalogue: Catalogue) -> list[Problem]:
    """What is wrong with a file whose matrix is wrong: all that does not depend on a matrix value."""
    dependent = {document.mark(path) for path in document.values if _has_placeholder(document.at(path))}
    problems = check(document, value, catalogue).problems
    return [problem for problem in problems if Mark(problem.line, problem.column) not in dependent]


def _has_placeholder(value: Any) -> bool:
    return isinstance(value, str) and PLACEHOLDER.search(value) is not None


def _problems(document: Document, substitution: Substitution, checked: Checked) -> list[Problem]:
    """What is wrong with one combination. A text that could not be put together is not judged."""
    faults = [document.problem(*fault) for fault in substitution.faults]
    faulty = {problem.key for problem in faults}
    return faults + [problem for problem in checked.problems if problem.key not in faulty]


def _shared(found: Sequence[tuple[str, Sequence[Problem]]]) -> list[Problem]:
    """The problems of all combinations, each once; one that only some have names the first of those."""
    where: dict[Problem, list[str]] = {}
    for combination, problems in found:
        for problem in dict.fromkeys(problems):
            where.setdefault(problem, []).append(combination)
    return [
        problem if len(having) == len(found) else replace(problem, message=f"{problem.message} (in {having[0]})")
        for problem, having in where.items()
    ]


def _matrix_problems(document: Document, matrix: Matrix | None, used: Collection[str]) -> list[Problem]:
    if matrix is None:
        return []
    problems = [
        document.problem(
            ("matrix", axis), "no value of the file uses this axis", f"write ${{{axis}}} there", at_key=True
        )
        for axis in matrix.root
        if axis not in used
    ]
    labels = Counter(map(label, combinations(matrix)))
    twice = next((text for text, count in labels.items() if count > 1), None)
    if twice is not None:
        message = f"two combinations would both be called {twice}"
        problems.append(document.problem(("matrix",), message, 'use values without "-"'))
    return problems


def _known_failure_problems(document: Document, matrix: Matrix | None) -> list[Problem]:
    """Known failures that no combination can have, and that would excuse nothing."""
    value = document.value if _is_mapping(document) else {}
    entries, assertions = value.get("known_failure"), value.get("assert")
    problems: list[Problem] = []
    for index, entry in enumerate(entries if isinstance(entries, list) else ()):
        if not isinstance(entry, dict):
            continue
        when, assertion = entry.get("when"), entry.get("assertion")
        for axis, wanted in when.items() if isinstance(when, dict) else ():
            problems += _when_problems(document, ("known_failure", index, "when", axis), wanted, matrix)
        if isinstance(assertion, str) and isinstance(assertions, list) and assertion not in assertions:
            hint = did_you_mean(assertion, (text for text in assertions if isinstance(text, str)))
            message = f"no assertion reads {quoted(assertion)}"
            problems.append(document.problem(("known_failure", index, "assertion"), message, hint))
    return problems


def _when_problems(document: Document, path: KeyPath, wanted: Any, matrix: Matrix | None) -> list[Problem]:
    """What is wrong with one axis of a known failure."""
    axes = matrix.root if matrix is not None else {}
    axis = str(path[-1])
    if axis not in axes:
        message = f"unknown matrix axis {quoted(axis)}, expected {one_of(axes)}"
        return [document.problem(path, message, did_you_mean(axis, axes), at_key=True)]
    if any(_same(wanted, known) for known in axes[axis]):
        return []
    message = f"must be {one_of(map(shown, axes[axis]))}, got {described(wanted)}"
    return [document.problem(path, message, did_you_mean(shown(wanted), map(shown, axes[axis])))]


def _same(left: Any, right: Any) -> bool:
    """Whether two scalars are equal and of one type: ``true`` is not ``1``."""
    return type(left) is type(right) and left == right


def _applies(known: KnownFailure, values: Mapping[str, Scalar]) -> bool:
    return all(_same(values.get(axis), wanted) for axis, wanted in known.when.items())


def _scenario(
    path: Path, stem: str, checked: Checked, resolved: dict[str, Any], values: Mapping[str, Scalar]
) -> Scenario:
    file = checked.file
    assert file is not None, "a combination without problems has passed the models"
    known = tuple(failure for failure in file.known_failure if _applies(failure, values))
    plain = {key: item for key, item in escaped(resolved).items() if key != "known_failure"}
    if known:
        plain["known_failure"] = [failure.model_dump(exclude={"when"}, exclude_none=True) for failure in known]
    return Scenario(
        id=stem + label(values),
        path=path,
        title=file.scenario,
        feature=file.feature,
        tags=file.tags,
        boot=file.boot,
        load=checked.load,
        drive=checked.steps,
        assertions=checked.assertions,
        allow_crash=file.allow_crash,
        known_failure=known,
        timeout_s=file.timeout_s,
        matrix=values,
        resolved=plain,
    )


def _ordered(problems: Iterable[Problem]) -> list[Problem]:
    """The problems as they stand in the file, each once."""
    return sorted(dict.fromkeys(problems), key=lambda problem: (problem.line, problem.column, problem.key))
