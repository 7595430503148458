"""Pydantic models checked against a YAML document: what does not fit becomes problems with a place and a hint.

Scenarios and image recipes share this. It knows pydantic and YAML documents, and nothing of what they describe. What
a place in a document should hold is read from the model's JSON Schema, which states types, limits and choices alike
for fields, list items, mappings and unions.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic_core import ErrorDetails, PydanticCustomError

from harness.errors import ScenarioError
from harness.strict_yaml import MAX_QUOTED, Document, KeyPath, quoted

M = TypeVar("M", bound=BaseModel)
Schema = Mapping[str, Any]

MAX_LISTED = 12

_TYPE_NAMES: Mapping[str, str] = {
    "array": "a list",
    "boolean": "true or false",
    "integer": "an integer",
    "null": "nothing",
    "number": "a number",
    "object": "a mapping",
    "string": "a string",
}

_PYTHON_TYPES: Mapping[str, tuple[type, ...]] = {
    "array": (list,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "object": (dict,),
    "string": (str,),
}


def fault(message: str, hint: str | None = None) -> PydanticCustomError:
    """What a model's validator raises: ``message`` and ``hint`` reach the reader as they are.

    :param message: what was expected and what was found: ``values must differ, got 4 twice``.
    """
    return PydanticCustomError("fault", "{message}", {"message": message, "hint": hint})


def validate(
    model: type[M],
    document: Document,
    path: KeyPath = (),
    value: Any = ...,
    *,
    also: Sequence[str] = (),
) -> M:
    """Check what a document says at ``path`` against a model, strictly: nothing is converted.

    :param value: what to check instead of the document's own value, such as that value after substitutions; it must
        have the same keys, so that the document's marks fit.
    :param also: keys that the caller takes from the mapping itself, named when an unknown key is reported.
    :raises ScenarioError: with every problem found, in the order in which they stand in the file.
    """
    checked = document.at(path) if value is ... else value
    try:
        # As JSON, because strict Python input would want tuples, sets and enumeration members, which YAML has not.
        return model.model_validate_json(json.dumps(checked), strict=True)
    except ValidationError as error:
        findings = [
            _finding(details, model, checked, also)
            for details in error.errors(include_url=False)
            if not _consequence(details)
        ]
    problems = [
        document.problem((*path, *finding.path), finding.message, finding.hint, at_key=finding.at_key)
        for finding in _without_lesser_branches(findings)
    ]
    raise ScenarioError(sorted(problems, key=lambda problem: (problem.line, problem.column)))


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """The hint that offers the nearest known name, if one is near."""
    names = {option.lower(): option for option in sorted(known, reverse=True)}
    near = difflib.get_close_matches(name.lower(), names, n=1)
    return f"did you mean {quoted(names[near[0]])}?" if near else None


def one_of(names: Iterable[str]) -> str:
    """``one of a, b, c``; a long list is cut."""
    options = list(dict.fromkeys(names))
    if len(options) < 2:
        return options[0] if options else "none at all"
    more = f", ... ({len(options)} in all)" if len(options) > MAX_LISTED else ""
    return f"one of {', '.join(options[:MAX_LISTED])}{more}"


def shown(value: Any) -> str:
    """A value as the file spells it; a collection by its kind."""
    if isinstance(value, str):
        return quoted(value)
    return json.dumps(value) if isinstance(value, bool | int | float) else described(value)


def described(value: Any) -> str:
    """A value with its kind: ``the string "5"``."""
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return "a list" if isinstance(value, list) else "a mapping"
    names = {bool: "the boolean", int: "the integer", float: "the number", str: "the string"}
    return f"{names[type(value)]} {shown(value)}"


@dataclass(frozen=True, slots=True)
class _Finding:
    """One of pydantic's errors in a reader's words.

    :param path: where, from the value that was checked.
    :param at_key: the key at the path's end is at fault rather than its value.
    :param union: the path of the union of types that the error is a part of.
    :param branch: the type in that union which the error speaks for.
    :param rule: a validator of the model's own found it.
    """

    path: KeyPath
    message: str
    hint: str | None = None
    at_key: bool = False
    union: KeyPath | None = None
    branch: str = ""
    rule: bool = False


def _consequence(error: ErrorDetails) -> bool:
    """Whether a list is only called too short because items of it are wrong: those pydantic does not count."""
    return error["type"] == "too_short" and len(error["input"]) >= error["ctx"]["min_length"]


def _finding(error: ErrorDetails, model: type[BaseModel], whole: Any, also: Sequence[str]) -> _Finding:
    """The finding for one of pydantic's errors about ``whole``."""
    kind, context = error["type"], error.get("ctx", {})
    place = error["loc"]
    if kind.startswith("union_tag_"):
        place = (*place, context["discriminator"].strip("'"))
    absent = kind in ("missing", "union_tag_not_found")
    path, at_key, union, branch = _locate(place, whole, absent)

    rule = kind in ("fault", "value_error", "assertion_error")

    def found(message: str, hint: str | None = None, *, at_key: bool = at_key) -> _Finding:
        return _Finding(path, message, hint, at_key, union, branch, rule)

    if absent:
        return found("missing key" if isinstance(path[-1], str) else "missing item")
    if kind == "extra_forbidden":
        owners = _meant(_schemas_at(model, path[:-1]), _look_up(whole, path[:-1]))
        known = [*also, *(name for schema in owners for name in schema.get("properties", ()))]
        return found(f"unknown key, expected {one_of(known)}", did_you_mean(str(path[-1]), known), at_key=True)
    if rule:
        return found(str(context.get("message", context.get("error"))), context.get("hint"))
    if at_key and kind == "string_pattern_mismatch":
        return found(f"the key must match {context['pattern']}, got {shown(path[-1])}")
    value = context["tag"] if kind == "union_tag_invalid" else error["input"]
    schemas = [] if at_key else _schemas_at(model, path)
    # Of an optional value, what matters is what it would have been.
    schemas = [schema for schema in schemas if schema.get("type") != "null"] or schemas
    expected = _expected(schemas, value)
    if expected is None:
        return found(f"{error['msg'][:1].lower()}{error['msg'][1:]}, got {shown(value)}")
    return found(f"must be {expected}, got {_got(schemas, value)}", _hint(schemas, value))


def _locate(place: Sequence[str | int], whole: Any, absent: bool) -> tuple[KeyPath, bool, KeyPath | None, str]:
    """A pydantic location as a path in ``whole``, whether it means the key, and the outermost union on the way.

    Pydantic mixes the names of a union's branches into its locations; they are what the value does not have.
    """
    path: list[str | int] = []
    union: KeyPath | None = None
    branch, at_key, node = "", False, whole
    for position, step in enumerate(place):
        inside = step in node if isinstance(node, dict) else isinstance(node, list) and step in range(len(node))
        if inside or (absent and position == len(place) - 1):
            path.append(step)
            node = node[step] if inside else None
        elif step == "[key]":
            at_key = True
        elif union is None:
            union, branch = tuple(path), str(step)
    return tuple(path), at_key, union, branch


def _without_lesser_branches(findings: Sequence[_Finding]) -> list[_Finding]:
    """The findings, each once, with those of a union reduced to the branch that comes nearest to fitting.

    A branch that says nothing but that the whole value has the wrong type says what every such branch says; one that
    finds a fault further in, or states a rule of its own, is what the writer meant.
    """
    kept: list[_Finding] = []
    branches: dict[KeyPath, dict[str, list[_Finding]]] = {}
    for finding in findings:
        if finding.union is None:
            kept.append(finding)
        else:
            branches.setdefault(finding.union, {}).setdefault(finding.branch, []).append(finding)
    for union, by_branch in branches.items():
        told = list(by_branch.values())
        meant = [found for found in told if any(finding.rule or len(finding.path) > len(union) for finding in found)]
        nearest: list[_Finding] = min(meant or told, key=len)
        kept += nearest
    return list({(finding.path, finding.message): finding for finding in kept}.values())


@cache
def _whole_schema(model: type[BaseModel]) -> Schema:
    try:
        return model.model_json_schema()
    except PydanticInvalidForJsonSchema:
        return {}


def _schemas_at(model: type[BaseModel], path: KeyPath) -> list[Schema]:
    """The schemas of everything that ``model`` admits at ``path``, with references and unions resolved."""
    whole = _whole_schema(model)
    schemas = list(_alternatives(whole, whole))
    for step in path:
        schemas = [
            found for schema in schemas for child in _children(schema, step) for found in _alternatives(child, whole)
        ]
    return schemas


def _alternatives(schema: Schema, whole: Schema) -> Iterator[Schema]:
    if "$ref" in schema:
        yield from _alternatives(whole["$defs"][schema["$ref"].rpartition("/")[2]], whole)
    elif "anyOf" in schema or "oneOf" in schema:
        for alternative in schema.get("anyOf", schema.get("oneOf", ())):
            yield from _alternatives(alternative, whole)
    else:
        yield schema


def _children(schema: Schema, step: str | int) -> Iterator[Schema]:
    """The schemas for what stands in a mapping under a key, or in a list at an index."""
    candidates: list[Any]
    if isinstance(step, int):
        prefix = schema.get("prefixItems", ())
        candidates = [prefix[step] if step < len(prefix) else schema.get("items")]
    elif step in schema.get("properties", {}):
        candidates = [schema["properties"][step]]
    else:
        candidates = [schema.get("additionalProperties"), *schema.get("patternProperties", {}).values()]
    return (candidate for candidate in candidates if isinstance(candidate, dict))


def _meant(schemas: Sequence[Schema], value: Mapping[str, Any]) -> Sequence[Schema]:
    """Those schemas of a mapping whose constants, such as ``kind: disk``, are the ones that ``value`` has."""
    agreeing = [
        schema
        for schema in schemas
        if all(
            value.get(name) in _options([part])
            for name, part in schema.get("properties", {}).items()
            if "const" in part
        )
    ]
    return agreeing or schemas


def _look_up(value: Any, path: KeyPath) -> Any:
    for step in path:
        value = value[step]
    return value


def _options(schemas: Iterable[Schema]) -> list[Any]:
    return [
        option for schema in schemas for option in schema.get("enum", [schema["const"]] if "const" in schema else [])
    ]


def _expected(schemas: Sequence[Schema], value: Any) -> str | None:
    """What the schemas ask for, to stand after ``must be``; None when they cannot say what is wrong with ``value``."""
    texts = [one_of(map(shown, _options(schemas)))] if _options(schemas) else []
    for schema in schemas:
        if "enum" not in schema and "const" not in schema:
            text = _limits(schema, value) if _fits(schema, value) else _TYPE_NAMES.get(schema.get("type", ""))
            texts += [text] if text is not None else []
    return " or ".join(dict.fromkeys(texts)) or None


def _fits(schema: Schema, value: Any) -> bool:
    """Whether ``value`` has the type that the schema asks for."""
    wanted = schema.get("type", "")
    return isinstance(value, _PYTHON_TYPES.get(wanted, ())) and (wanted == "boolean" or not isinstance(value, bool))


def _limits(schema: Schema, value: Any) -> str | None:
    """The limit that a value of the right type breaks."""
    if isinstance(value, int | float):
        return _range(schema)
    if isinstance(value, list):
        length = _count(schema.get("minItems"), schema.get("maxItems"), "item")
        return f"a list of {length}" if length else None
    if isinstance(value, dict):
        length = _count(schema.get("minProperties"), schema.get("maxProperties"), "key")
        return f"a mapping with {length}" if length else None
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        return f"{_count(schema.get('minLength'), schema.get('maxLength'), 'character')} long"
    return f"text that matches {schema['pattern']}" if "pattern" in schema else None


def _range(schema: Schema) -> str | None:
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if schema["type"] == "integer":
        return _span(low if above is None else above + 1, high if below is None else below - 1)
    texts = [_span(low, high)] if low is not None or high is not None else []
    texts += [f"more than {above}"] if above is not None else []
    texts += [f"less than {below}"] if below is not None else []
    return " and ".join(texts) or None


def _span(low: Any, high: Any) -> str:
    if low is None or high is None:
        return f"at most {high}" if low is None else f"at least {low}"
    return f"{low}..{high}" if low != high else f"{low}"


def _count(low: int | None, high: int | None, unit: str) -> str | None:
    if low is None and high is None:
        return None
    return f"{_span(low, high)} {unit}{'' if (low if high is None else high) == 1 else 's'}"


def _got(schemas: Sequence[Schema], value: Any) -> str:
    """What was found, to stand after ``got``: its kind where the kind is wrong, else what the limit is about."""
    if not any(_fits(schema, value) for schema in schemas) and type(value) not in map(type, _options(schemas)):
        return described(value)
    if isinstance(value, dict | list):
        return str(len(value))
    return f"{len(value)} characters" if isinstance(value, str) and len(value) > MAX_QUOTED else shown(value)


def _hint(schemas: Sequence[Schema], value: Any) -> str | None:
    """How to write what was meant, where that can be guessed."""
    wanted = {schema.get("type", "") for schema in schemas}
    if isinstance(value, str):
        return _hint_for_text(schemas, wanted, value)
    if any(schema.get("type") == "string" and not _options([schema]) for schema in schemas) and isinstance(
        value, bool | int | float
    ):
        # A number's text is gone: 6.10 has become 6.1.
        return "quote it" if isinstance(value, float) else f'quote it: "{shown(value)}"'
    if wanted == {"string"} and isinstance(value, dict):
        return 'quote a text that contains ": "'
    if wanted == {"array"} and not isinstance(value, list):
        return 'start each item with "- ", or write [a, b]'
    return None


def _hint_for_text(schemas: Sequence[Schema], wanted: set[str], value: str) -> str | None:
    near = did_you_mean(value, (option for option in _options(schemas) if isinstance(option, str)))
    if near is not None:
        return near
    if wanted & {"boolean", "integer", "number"} and re.fullmatch(r"true|false|-?[0-9]+(\.[0-9]+)?", value):
        return "remove the quotes"
    for schema in schemas:
        tame = re.sub(r"[ _]+", "-", value.lower())
        if "pattern" in schema and re.search(schema["pattern"], tame) and not re.search(schema["pattern"], value):
            return f"did you mean {quoted(tame)}?"
    return 'start each item with "- ", or write [a, b]' if wanted == {"array"} else None
