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
from collections.abc import Callable, Mapping
from typing import Any, cast

from celpy import celtypes
from celpy.evaluation import Activation, CELEvalError, Evaluator

from harness.regex import PatternError, compiled
from harness.scenario.cel import Node
from harness.strict_yaml import quoted
from harness.validate import shown

MAX_ERROR = 300

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
    """The value of an expression; a bool when it is one.

    :param names: plain JSON-like values by the names under which the expression reads them.
    :raises CelError: when the expression has no value.
    """
    try:
        values = {name: to_cel(value) for name, value in names.items()}
        value = _Evaluator(tree, Activation(functions=_FUNCTIONS)).evaluate(values)
    except CelError:
        raise
    except CELEvalError as error:
        raise CelError(str(error.args[0])[:MAX_ERROR]) from error
    except Exception as error:
        # What the static check would have refused may fail anywhere in cel-python, and in any way.
        raise CelError(f"{type(error).__name__}: {error}"[:MAX_ERROR]) from error
    return _plain(value)


def to_cel(value: Any) -> Any:
    """A plain JSON-like value as the evaluator wants it; one of the evaluator's own stays what it is.

    :raises CelError: for an integer of more than 64 bits, and for what is not JSON-like.
    """
    if value is None or isinstance(value, celtypes.ListType | celtypes.MapType):
        return value
    if isinstance(value, list | tuple):
        return celtypes.ListType([to_cel(item) for item in value])
    if isinstance(value, Mapping):
        return celtypes.MapType({celtypes.StringType(key): to_cel(item) for key, item in value.items()})
    kind = kind_of(value)
    if kind not in _WRAPPERS:
        raise CelError(f"evidence cannot hold a {kind}")
    return _WRAPPERS[kind](value)


def kind_of(value: Any) -> str:
    """The type of a value, plain or the evaluator's, as :data:`OPERATIONS` names it."""
    if value is None:
        return "null"
    return next((kind for kind, python in _PYTHON_TYPES.items() if isinstance(value, python)), type(value).__name__)


def regular_expression(pattern: str) -> Any:
    """A pattern as ``matches()`` takes it: RE2, whose running time is linear in the text.

    :raises CelError: when it is not one.
    """
    try:
        return compiled(pattern)
    except PatternError as error:
        raise CelError(f"not a regular expression that RE2 takes: {error}") from error


def no_overload(name: str, kinds: Kinds) -> str:
    """What to say of an operation that does not exist for some types."""
    if "_" not in name:
        return f"{name}() is not for {' and '.join(kinds)}"
    return f"no operation {name.replace('_', ' ').strip()} for {' and '.join(kinds)}"


class _Evaluator(Evaluator):
    """cel-python's evaluator, but with ``all`` and ``exists`` that keep the first error they meet."""

    def sub_evaluator(self, ast: Node) -> _Evaluator:
        return _Evaluator(ast, activation=self.activation)

    def member_dot_arg(self, tree: Node) -> Any:
        macro = str(tree.children[1])
        if macro not in ("all", "exists"):
            return super().member_dot_arg(tree)
        items = self.visit(cast("Node", tree.children[0]))
        if isinstance(items, CELEvalError):
            return items
        if kind_of(items) not in ("list", "map"):
            return CELEvalError(no_overload(macro, (kind_of(items),)))
        judged = map(self.build_ss_macro_eval(tree), items)
        return _all_of(*judged) if macro == "all" else _any_of(*judged)


def _all_of(*values: Any) -> Any:
    """CEL's ``&&``: false if any value is, else the first error, else true."""
    error: CELEvalError | None = None
    for value in values:
        if isinstance(value, CELEvalError):
            error = error or value
        elif kind_of(value) != "bool":
            error = error or CELEvalError(no_overload("_&&_", (kind_of(value),)))
        elif not value:
            return value
    return error or celtypes.BoolType(True)


def _any_of(*values: Any) -> Any:
    """CEL's ``||``: true if any value is, else the first error, else false."""
    inverted = _all_of(*(celtypes.BoolType(not value) if kind_of(value) == "bool" else value for value in values))
    return inverted if isinstance(inverted, CELEvalError) else celtypes.BoolType(not inverted)


def _choose(condition: Any, chosen: Any, other: Any) -> Any:
    if isinstance(condition, CELEvalError):
        return condition
    if kind_of(condition) != "bool":
        return CELEvalError(no_overload("_?:_", (kind_of(condition),)))
    return chosen if condition else other


def _strict(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` for the types that :data:`OPERATIONS` lists, with errors as values, as the evaluator wants them."""

    def call(*arguments: Any) -> Any:
        for argument in arguments:
            if isinstance(argument, CELEvalError):
                return argument
        kinds = tuple(map(kind_of, arguments))
        if kinds not in OPERATIONS[name]:
            return CELEvalError(no_overload(name, kinds))
        try:
            return to_cel(function(*map(_plain, arguments)))
        except CelError as error:
            return CELEvalError(str(error))

    return call


def _plain(value: Any) -> Any:
    """The plain Python value of one of the evaluator's scalars; lists and maps stay as they are."""
    kind = kind_of(value)
    return {"bool": bool, "int": int, "double": float, "string": str}[kind](value) if kind in _WRAPPERS else value


def _integer(value: int) -> Any:
    if not -(2**63) <= value < 2**64:
        raise CelError("the integer does not fit into 64 bits")
    return celtypes.IntType(value) if value < 2**63 else celtypes.UintType(value)


def _divide(left: Any, right: Any) -> Any:
    if right == 0:
        raise CelError("division by zero")
    if isinstance(left, float):
        return left / right
    quotient = abs(left) // abs(right)
    return quotient if (left < 0) == (right < 0) else -quotient


def _remainder(left: int, right: int) -> int:
    return left - right * int(_divide(left, right))


def _equal(left: Any, right: Any) -> bool:
    kinds = (kind_of(left), kind_of(right))
    if kinds not in _EQUALITY:
        raise CelError(no_overload("_==_", kinds))
    if "null" in kinds:
        return kinds[0] == kinds[1]
    if kinds[0] == "list":
        return len(left) == len(right) and all(map(_equal, left, right))
    if kinds[0] == "map":
        return set(left) == set(right) and all(_equal(item, right[key]) for key, item in left.items())
    return bool(_plain(left) == _plain(right))


def _unequal(left: Any, right: Any) -> bool:
    return not _equal(left, right)


def _contained(item: Any, container: Any) -> bool:
    if isinstance(container, dict):
        return item in container
    error: CelError | None = None
    for other in container:
        try:
            if _equal(item, other):
                return True
        except CelError as found:
            error = found
    if error is not None:
        raise error
    return False


def _item(container: Any, key: Any) -> Any:
    if isinstance(container, list) and not 0 <= key < len(container):
        raise CelError(f"no item {key} in a list of {len(container)}")
    if isinstance(container, dict) and key not in container:
        raise CelError(f"no key {quoted(key)}")
    return container[key]


def _matches(text: str, pattern: str) -> bool:
    return regular_expression(pattern).search(text) is not None


def _to_double(value: Any) -> float:
    try:
        return float(value)
    except (ValueError, OverflowError) as error:
        raise CelError(f"double() cannot read {shown(value)}") from error


def _to_int(value: Any) -> int:
    try:
        return int(value)
    except (ValueError, OverflowError) as error:
        raise CelError(f"int() cannot read {shown(value)}") from error


def _to_string(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


_PYTHON_TYPES: Mapping[str, Any] = {
    "bool": bool | celtypes.BoolType,  # before int, of which both are subclasses
    "int": int,
    "double": float,
    "string": str,
    "list": list,
    "map": dict,
}
_WRAPPERS: Mapping[str, Callable[[Any], Any]] = {
    "bool": celtypes.BoolType,
    "int": _integer,
    "double": celtypes.DoubleType,
    "string": celtypes.StringType,
}
_OPERATORS: Mapping[str, Callable[..., Any]] = {
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
    "_!=_": _unequal,
    "_in_": _contained,
    "_[_]": _item,
    "size": len,
    "contains": operator.contains,
    "endsWith": str.endswith,
    "matches": _matches,
    "startsWith": str.startswith,
    "double": _to_double,
    "int": _to_int,
    "string": _to_string,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: _strict(name, function) for name, function in _OPERATORS.items()},
    "_&&_": _all_of,
    "_||_": _any_of,
    "_?_:_": _choose,
}
