"""What assertions can compute: the operations of the Common Expression Language and their evaluation.

``cel-python`` walks the syntax tree; the operations are this module's own, because an assertion must not hold by
accident. In ``cel-python`` a comparison with ``null`` is an error, a division of doubles by zero is infinity, and an
error on both sides of ``||`` turns into another error. Here they follow the language definition
(https://github.com/google/cel-spec/blob/master/doc/langdef.md), but for three things that are stricter or plainer:

- dividing doubles by zero is an error, as it is for integers;
- signed and unsigned integers are one type, exact from -2^63 to 2^64 - 1, since a 64-bit counter may be either;
- values of different types are neither equal nor unequal: comparing them is an error, except with ``null``.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import re2  # type: ignore[import-untyped]  # cel-python brings it along, without types
from celpy import celtypes
from celpy.evaluation import Activation, CELEvalError, Evaluator

from harness.scenario.cel import Node

# cel-python logs exceptions that it is about to turn into values.
logging.getLogger("celpy").addHandler(logging.NullHandler())
logging.getLogger("celpy").propagate = False

Kinds = tuple[str, ...]

VALUE_KINDS = ("bool", "int", "double", "string", "list", "map", "null")
_ARITHMETIC: Mapping[Kinds, str] = {("int", "int"): "int", ("double", "double"): "double"}
_ORDER: Mapping[Kinds, str] = {
    **{(left, right): "bool" for left in ("int", "double") for right in ("int", "double")},
    ("string", "string"): "bool",
}
_EQUALITY: Mapping[Kinds, str] = {
    **_ORDER,
    **{(kind, kind): "bool" for kind in VALUE_KINDS},
    **{(kind, "null"): "bool" for kind in VALUE_KINDS},
    **{("null", kind): "bool" for kind in VALUE_KINDS},
}
_OF_TEXT: Mapping[Kinds, str] = {("string", "string"): "bool"}

OPERATIONS: Mapping[str, Mapping[Kinds, str]] = {
    "!_": {("bool",): "bool"},
    "-_": {("int",): "int", ("double",): "double"},
    "_&&_": {("bool", "bool"): "bool"},
    "_||_": {("bool", "bool"): "bool"},
    "_+_": {**_ARITHMETIC, ("string", "string"): "string", ("list", "list"): "list"},
    "_-_": _ARITHMETIC,
    "_*_": _ARITHMETIC,
    "_/_": _ARITHMETIC,
    "_%_": {("int", "int"): "int"},
    "_<_": _ORDER,
    "_<=_": _ORDER,
    "_>_": _ORDER,
    "_>=_": _ORDER,
    "_==_": _EQUALITY,
    "_!=_": _EQUALITY,
    "_in_": {**{(kind, "list"): "bool" for kind in VALUE_KINDS}, ("string", "map"): "bool"},
    "_[_]": {("list", "int"): "dyn", ("map", "string"): "dyn"},
    "size": {("string",): "int", ("list",): "int", ("map",): "int"},
    "contains": _OF_TEXT,
    "endsWith": _OF_TEXT,
    "matches": _OF_TEXT,
    "startsWith": _OF_TEXT,
    "double": {("int",): "double", ("double",): "double", ("string",): "double"},
    "int": {("int",): "int", ("double",): "int", ("string",): "int"},
    "string": {(kind,): "string" for kind in ("bool", "int", "double", "string")},
}
"""Every operation and function: the type of its result by the types of its arguments. The static check reads it too."""


class CelError(Exception):
    """An expression has no value: a missing key, a division by zero, an operation that does not exist."""


def evaluate(tree: Node, names: Mapping[str, Any]) -> Any:
    """The value of an expression, as a plain Python value.

    :param names: plain JSON-like values by the names under which the expression reads them.
    :raises CelError: when the expression has no value.
    """
    try:
        activation = Activation(functions=dict(_functions()))
        value = _Evaluator(tree, activation).evaluate({name: to_cel(value) for name, value in names.items()})
    except CELEvalError as error:
        raise CelError(str(error.args[0])) from error
    except RecursionError as error:
        raise CelError("the expression is nested too deeply to be evaluated here") from error
    return bool(value) if isinstance(value, celtypes.BoolType) else value


def to_cel(value: Any) -> Any:
    """A plain JSON-like value as the evaluator wants it.

    :raises CelError: for an integer of more than 64 bits, and for what is not JSON-like.
    """
    if value is None:
        return None
    if isinstance(value, bool):
        return celtypes.BoolType(value)
    if isinstance(value, int):
        return _integer(value)
    if isinstance(value, float):
        return celtypes.DoubleType(value)
    if isinstance(value, str):
        return celtypes.StringType(value)
    if isinstance(value, Mapping):
        return celtypes.MapType({celtypes.StringType(key): to_cel(item) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return celtypes.ListType([to_cel(item) for item in value])
    raise CelError(f"evidence cannot hold a {type(value).__name__}")


def kind_of(value: Any) -> str:
    """The type of an evaluator's value, as :data:`OPERATIONS` names it."""
    if value is None:
        return "null"
    # A BoolType is an int too, so it is looked for first.
    kinds = {
        celtypes.BoolType: "bool",
        int: "int",
        float: "double",
        str: "string",
        list: "list",
        dict: "map",
    }
    return next((kind for python, kind in kinds.items() if isinstance(value, python)), type(value).__name__)


class _Evaluator(Evaluator):
    """cel-python's evaluator with the macros that tell which error it was when several elements have one."""

    def sub_evaluator(self, ast: Node) -> _Evaluator:
        return _Evaluator(ast, activation=self.activation)

    def member_dot_arg(self, tree: Node) -> Any:
        macro = str(tree.children[1])
        if macro not in ("all", "exists"):
            return super().member_dot_arg(tree)
        items = self.visit(tree.children[0])
        if isinstance(items, CELEvalError):
            return items
        if not isinstance(items, list | dict):
            return CELEvalError(f"{macro}() is for lists and maps, not for {kind_of(items)}")
        judge = self.build_ss_macro_eval(tree)
        join = _all_of if macro == "all" else _any_of
        return join(judge(item) for item in items)


def _all_of(values: Iterable[Any]) -> Any:
    """CEL's ``&&``: false if any value is, else the first error, else true."""
    error: CELEvalError | None = None
    for value in values:
        if kind_of(value) != "bool":
            error = error or (value if isinstance(value, CELEvalError) else _no_overload("_&&_", (kind_of(value),)))
        elif not value:
            return value
    return error or celtypes.BoolType(True)


def _any_of(values: Iterable[Any]) -> Any:
    """CEL's ``||``: true if any value is, else the first error, else false."""
    inverted = _all_of(value if kind_of(value) != "bool" else celtypes.BoolType(not value) for value in values)
    return inverted if isinstance(inverted, CELEvalError) else celtypes.BoolType(not inverted)


def _choose(condition: Any, chosen: Any, other: Any) -> Any:
    if isinstance(condition, CELEvalError):
        return condition
    if kind_of(condition) != "bool":
        return _no_overload("_?_:_", (kind_of(condition),))
    return chosen if condition else other


def _no_overload(name: str, kinds: Kinds) -> CELEvalError:
    return CELEvalError(f"no operation {name.replace('_', ' ').strip()} for {' and '.join(kinds)}")


def _strict(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` for the types that :data:`OPERATIONS` lists, with errors as values, as the evaluator wants them."""

    def call(*arguments: Any) -> Any:
        for argument in arguments:
            if isinstance(argument, CELEvalError):
                return argument
        kinds = tuple(map(kind_of, arguments))
        if kinds not in OPERATIONS[name]:
            return _no_overload(name, kinds)
        try:
            return function(*arguments)
        except CelError as error:
            return CELEvalError(str(error))

    call.__name__ = name
    return call


@cache
def _functions() -> Mapping[str, Callable[..., Any]]:
    """The operations under the names by which the evaluator calls them."""
    plain: Mapping[str, Callable[..., Any]] = {
        "!_": operator.not_,
        "-_": operator.neg,
        "_+_": operator.add,
        "_-_": operator.sub,
        "_*_": operator.mul,
        "_/_": _divide,
        "_%_": _remainder,
        "_<_": operator.lt,
        "_<=_": operator.le,
        "_>_": operator.gt,
        "_>=_": operator.ge,
        "_==_": _equal,
        "_!=_": lambda left, right: not _equal(left, right),
        "_in_": _contained,
        "size": len,
        "contains": operator.contains,
        "endsWith": str.endswith,
        "matches": _matches,
        "startsWith": str.startswith,
        "double": _to_double,
        "int": _to_int,
        "string": _to_string,
    }
    functions: dict[str, Callable[..., Any]] = {
        name: _strict(name, lambda *arguments, function=function: to_cel(function(*map(_plain, arguments))))
        for name, function in plain.items()
    }
    functions["_[_]"] = _strict("_[_]", _item)
    functions["_&&_"] = lambda *arguments: _all_of(arguments)
    functions["_||_"] = lambda *arguments: _any_of(arguments)
    functions["_?_:_"] = _choose
    return functions
