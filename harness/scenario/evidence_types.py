"""The types that evidence can have in an expression, read from the models that describe it."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, RootModel


@dataclass(frozen=True, slots=True)
class Type:
    """One type that a part of an expression may have.

    :param kind: as :data:`harness.scenario.operations.OPERATIONS` names it; ``dyn`` when only a run can tell.
    :param items: what a list holds, or a map under its keys.
    :param model: the model that says which keys a map has.
    """

    kind: str
    items: Types = ()
    model: type[BaseModel] | None = None


Types = tuple[Type, ...]
"""The types that a part of an expression may have: several for an optional field or a union."""

DYN: Types = (Type("dyn"),)

_SCALARS: Sequence[tuple[type, str]] = (
    (bool, "bool"),  # before int, of which it is a subclass
    (int, "int"),
    (float, "double"),
    (str, "string"),
    (types.NoneType, "null"),
)


def types_of(annotation: Any) -> Types:
    """The types that a value of an annotated field can have once it is JSON."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return types_of(arguments[0])
    if origin in (Union, types.UnionType):
        return union(map(types_of, arguments))
    if origin is Literal:
        return union(types_of(type(value)) for value in arguments)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return union(types_of(type(member.value)) for member in annotation)
    kind = origin or annotation
    return _types_of_class(kind, arguments) if isinstance(kind, type) else DYN


def _types_of_class(kind: type, arguments: Sequence[Any]) -> Types:
    if issubclass(kind, RootModel):
        return types_of(kind.model_fields["root"].annotation)
    if issubclass(kind, BaseModel):
        return (Type("map", DYN, kind),)
    scalar = next((name for python, name in _SCALARS if issubclass(kind, python)), None)
    if scalar is not None:
        return (Type(scalar),)
    if issubclass(kind, Mapping):
        return (Type("map", types_of(arguments[1]) if len(arguments) == 2 else DYN),)
    if issubclass(kind, Sequence | set | frozenset) and not issubclass(kind, bytes):
        return (Type("list", union(types_of(item) for item in arguments if item is not Ellipsis) or DYN),)
    return DYN


def fields_of(model: type[BaseModel]) -> dict[str, Types]:
    """What each field of a model can be, as the model is dumped."""
    annotations = {name: field.annotation for name, field in model.model_fields.items()}
    annotations |= {name: field.return_type for name, field in model.model_computed_fields.items()}
    return {name: types_of(annotation) for name, annotation in annotations.items()}


def union(alternatives: Iterable[Types]) -> Types:
    """Everything that one of several parts may be."""
    return tuple(dict.fromkeys(found for alternative in alternatives for found in alternative))


def kinds(alternatives: Types) -> str:
    """The types for a message: ``int or null``."""
    return " or ".join(dict.fromkeys(found.kind for found in alternatives))
