"""What is wrong with an assertion, told from the types of its evidence before anything runs.

Every part of an expression is looked at, also one that ``||`` or ``?:`` would skip in a run: a misspelt field must
not wait for the night on which it is read. What cannot be known, such as the keys of a dictionary, is let pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

from lark import Token, Tree
from pydantic import BaseModel

from harness.scenario.cel import MACROS, Node, literal_key, macro_of, paths
from harness.scenario.evidence_types import DYN, Type, Types, fields_of, kinds, types_of, union
from harness.scenario.operations import OPERATIONS, CelError, no_overload, regular_expression
from harness.strict_yaml import MAX_QUOTED, quoted
from harness.validate import did_you_mean, one_of

FUNCTIONS = frozenset({"double", "dyn", "has", "int", "size", "string"})
METHODS = frozenset({"contains", "endsWith", "matches", "size", "startsWith"}) | MACROS

_EQUALITY = ("_==_", "_!=_")
_OPERATORS: Mapping[str, str] = {
    "addition_add": "_+_",
    "addition_sub": "_-_",
    "conditionaland": "_&&_",
    "conditionalor": "_||_",
    "multiplication_div": "_/_",
    "multiplication_mod": "_%_",
    "multiplication_mul": "_*_",
    "relation_eq": "_==_",
    "relation_ge": "_>=_",
    "relation_gt": "_>_",
    "relation_in": "_in_",
    "relation_le": "_<=_",
    "relation_lt": "_<_",
    "relation_ne": "_!=_",
    "unary_neg": "-_",
    "unary_not": "!_",
}
_CONSTANTS: Mapping[str, str] = {"True": "true", "False": "false", "None": "null"}


Fault = tuple[str, str | None]

BOOL: Types = (Type("bool"),)
STRING: Types = (Type("string"),)


def find_faults(text: str, tree: Node, evidence: Mapping[str, type[BaseModel]]) -> list[Fault]:
    """What is wrong with an expression: messages with their hints.

    :param text: the expression, of which ``tree`` is the tree.
    :param evidence: the model of what each name stands for; a model with ``extra="allow"`` may have any field.
    """
    checker = _Checker(text, {name: types_of(model) for name, model in evidence.items()})
    result = checker.types(tree, {})
    if not any(found.kind in ("bool", "dyn") for found in result):
        checker.fault(f"must be true or false, got {kinds(result)}", "compare it with something")
    if not any(paths(tree)):
        hint = 'read what a step left under the name in its "as"'
        checker.fault("the assertion reads no evidence, so it says nothing about the run", hint)
    return list(dict.fromkeys(checker.faults))


class _Checker:
    """Walks an expression, gives each part its types and collects what cannot be."""

    def __init__(self, text: str, evidence: Mapping[str, Types]) -> None:
        self.faults: list[Fault] = []
        self._text = text
        self._evidence = evidence

    def fault(self, message: str, hint: str | None = None) -> Types:
        """Note a fault. What comes of it may be anything, so that it is not reported again further out."""
        self.faults.append((message, hint))
        return DYN

    def types(self, node: Any, scope: Mapping[str, Types]) -> Types:
        """The types of a part of the expression.

        :param scope: the types of the variables of the macros around it.
        """
        handlers: Mapping[str, Callable[[Any, Mapping[str, Types]], Types]] = {
            "expr": self._choice,
            "literal": self._literal,
            "member_dot": self._selection,
            "member_dot_arg": self._method,
            "member_index": self._index,
            "primary": self._primary,
        }
        return handlers.get(node.data, self._operation)(node, scope)

    def _source(self, node: Any) -> str:
        """The text of a part of the expression, on one line and not too long."""
        start, end = getattr(node.meta, "start_pos", None), getattr(node.meta, "end_pos", None)
        text = " ".join((self._text if start is None else self._text[start:end]).split())
        short = text if len(text) <= MAX_QUOTED else f"{text[: MAX_QUOTED - 3]}..."
        return "".join(character if character.isprintable() else "?" for character in short)

    def _operation(self, node: Any, scope: Mapping[str, Types]) -> Types:
        if node.data == "member_object":
            return self.fault(f"messages cannot be made here: {self._source(node)}")
        if node.data in _OPERATORS:
            name, operands = _OPERATORS[node.data], node.children
        else:
            sign = node.children[0]
            name, operands = _OPERATORS[sign.data], [*sign.children, node.children[1]]
        return self._apply(name, node, [self.types(operand, scope) for operand in operands])

    def _apply(self, name: str, node: Any, arguments: Sequence[Types]) -> Types:
        """The types that an operation or function gives for its arguments' types."""
        # What an optional value is compared with has to fit the value; null alone fits nothing but null.
        present = [tuple(found for found in argument if found.kind != "null") or argument for argument in arguments]
        results = union(_results(name, combination) for combination in product(*present))
        if results:
            return results
        numbers = [{found.kind for found in argument} for argument in arguments] in (
            [{"int"}, {"double"}],
            [{"double"}, {"int"}],
        )
        hint = "convert one side with int(...) or double(...)" if numbers else None
        if name in _EQUALITY and all(len(argument) == 1 and argument[0].items for argument in arguments):
            hint = "their items are {} and {}".format(*(kinds(argument[0].items) for argument in arguments))
        return self.fault(f"{no_overload(name, tuple(map(kinds, arguments)))}: {self._source(node)}", hint)

    def _choice(self, node: Any, scope: Mapping[str, Types]) -> Types:
        condition, *branches = (self.types(child, scope) for child in node.children)
        self._must_be_bool(condition, node.children[0])
        return union(branches)

    def _must_be_bool(self, found: Types, node: Any) -> None:
        if not any(alternative.kind in ("bool", "dyn") for alternative in found):
            self.fault(f"{self._source(node)} must be true or false, got {kinds(found)}", "compare it with something")

    def _literal(self, node: Any, scope: Mapping[str, Types]) -> Types:  # noqa: ARG002  (as every handler)
        token: Token = node.children[0]
        if token.type == "INT_LIT" and not -(2**63) <= int(token, 0 if "x" in token else 10) < 2**63:
            return self.fault(f"the number {quoted(token)} does not fit into 64 bits", "an unsigned one ends in u: 5u")
        if token.type == "UINT_LIT" and int(token[:-1], 0 if "x" in token else 10) >= 2**64:
            return self.fault(f"the number {quoted(token)} does not fit into 64 bits")
        literals = {"BOOL_LIT": "bool", "FLOAT_LIT": "double", "INT_LIT": "int", "NULL_LIT": "null", "UINT_LIT": "int"}
        if token.type == "BYTES_LIT":
            return self.fault(f"evidence has no bytes to compare with {quoted(token)}", "remove the b before the quote")
        return (Type(literals.get(token.type, "string")),)

    def _primary(self, node: Any, scope: Mapping[str, Types]) -> Types:
        child = node.children[0]
        if child.data == "ident":
            return self._name(str(child.children[0]), scope)
        if child.data == "ident_arg":
            return self._function(child, scope)
        if child.data in ("dot_ident", "dot_ident_arg"):
            return self.fault(f"a name cannot start with a point: {self._source(child)}", "remove the point")
        parts = [self.types(part, scope) for inner in child.children for part in inner.children]
        if child.data == "list_lit":
            return (Type("list", union(parts) or DYN),)
        return (Type("map", union(parts[1::2]) or DYN),)

    def _name(self, name: str, scope: Mapping[str, Types]) -> Types:
        if name in scope:
            return scope[name]
        if name in self._evidence:
            return self._evidence[name]
        if name in _CONSTANTS:
            return self.fault(f"unknown name {quoted(name)}", f"write {_CONSTANTS[name]}")
        known = sorted({*self._evidence, *scope})
        if not known:
            return self.fault(f"unknown name {quoted(name)}", 'name what a step leaves with "as"')
        return self.fault(f"unknown name {quoted(name)}, expected {one_of(known)}", did_you_mean(name, known))

    def _selection(self, node: Any, scope: Mapping[str, Types]) -> Types:
        return self._field(node, self.types(node.children[0], scope), str(node.children[1]))

    def _index(self, node: Any, scope: Mapping[str, Types]) -> Types:
        base, key = (self.types(child, scope) for child in node.children)
        name = literal_key(node.children[1])
        if isinstance(name, str) and any(found.kind == "map" for found in base):
            return self._field(node, base, name)
        return self._apply("_[_]", node, [base, key])

    def _field(self, node: Any, base: Types, name: str) -> Types:
        """The types of ``base.name``, which is a field of a model or a key of a map."""
        results: list[Types] = []
        known: list[str] = []
        for found in base:
            fields = fields_of(found.model) if found.model is not None else {}
            known += fields
            if name in fields:
                results.append(fields[name])
            elif found.kind == "dyn" or (found.model is not None and found.model.model_config.get("extra") == "allow"):
                results.append(DYN)
            elif found.kind == "map" and found.model is None:
                results.append(found.items)
        if results:
            return union(results)
        owner = self._source(node.children[0])
        if not known:
            return self.fault(f"{owner} is {kinds(base)} and has no field {quoted(name)}")
        return self.fault(f"{owner} has no field {quoted(name)}, expected {one_of(known)}", did_you_mean(name, known))

    def _function(self, node: Any, scope: Mapping[str, Types]) -> Types:
        name, operands = str(node.children[0]), _operands(node, 1)
        if name not in FUNCTIONS:
            hint = f"write x.{name}(...)" if name in METHODS else did_you_mean(name, FUNCTIONS)
            return self.fault(f"unknown function {quoted(name)}, expected {one_of(sorted(FUNCTIONS))}", hint)
        if name == "has" and not (len(operands) == 1 and _selects(operands[0])):
            return self.fault(f"has() takes a field, got {self._source(node)}", "write has(a.b)")
        if len(operands) != 1:
            return self.fault(f"{name}() takes 1 argument, got {len(operands)}")
        argument = self.types(operands[0], scope)
        if name in ("has", "dyn"):
            return BOOL if name == "has" else DYN
        return self._apply(name, node, [argument])

    def _method(self, node: Any, scope: Mapping[str, Types]) -> Types:
        name, operands = str(node.children[1]), _operands(node, 2)
        base = self.types(node.children[0], scope)
        if name not in METHODS:
            return self.fault(
                f"unknown method {quoted(name)}, expected {one_of(sorted(METHODS))}", did_you_mean(name, METHODS)
            )
        if name in MACROS:
            return self._macro(node, base, scope)
        takes = len(next(iter(OPERATIONS[name]))) - 1
        if len(operands) != takes:
            return self.fault(f"{name}() takes {takes} argument{'s' if takes != 1 else ''} here, got {len(operands)}")
        pattern = literal_key(operands[0]) if name == "matches" else None
        if isinstance(pattern, str):
            try:
                regular_expression(pattern)
            except CelError as error:
                return self.fault(f"{quoted(pattern)} is {error}")
        return self._apply(name, node, [base, *(self.types(operand, scope) for operand in operands)])

    def _macro(self, node: Any, base: Types, scope: Mapping[str, Types]) -> Types:
        macro = macro_of(node)
        name = str(node.children[1])
        if macro is None:
            message = f"{name}() takes a variable and an expression, got {self._source(node)}"
            return self.fault(message, f"write list.{name}(x, ...)")
        elements = union(_elements(found) for found in base)
        if not elements:
            return self.fault(f"{name}() is for lists and maps, got {kinds(base)}: {self._source(node)}")
        _, variable, body = macro
        found = self.types(body, {**scope, variable: elements})
        if name == "map":
            return (Type("list", found),)
        self._must_be_bool(found, body)
        return (Type("list", elements),) if name == "filter" else BOOL


def _selects(node: Any) -> bool:
    return isinstance(node, Tree) and node.data == "member_dot"


def _operands(node: Any, before: int) -> list[Any]:
    """The arguments of a call, which the grammar leaves out when there are none."""
    return list(node.children[before].children) if len(node.children) > before else []


def _elements(found: Type) -> Types:
    """What a macro's variable goes through: a list's items, a map's keys."""
    return {"list": found.items, "map": STRING, "dyn": DYN}.get(found.kind, ())


def _comparable(left: Type, right: Type) -> bool:
    """Whether the items of two lists, or of two maps, may be equal: they are compared one by one. What else, may."""
    if left.kind != right.kind or not (left.items and right.items):
        return True
    return any(_results("_==_", pair) for pair in product(left.items, right.items))


def _results(name: str, arguments: Sequence[Type]) -> Types:
    """The types that an operation may give; none when it does not exist for these types."""
    given = [argument.kind for argument in arguments]
    found = [
        result
        for wanted, result in OPERATIONS[name].items()
        if len(wanted) == len(given) and all(kind in (want, "dyn") for kind, want in zip(given, wanted, strict=True))
    ]
    if name == "_[_]" and found:
        return arguments[0].items or DYN
    if name in _EQUALITY and not _comparable(*arguments):
        return ()
    if (
        name == "_in_"
        and given[1] == "list"
        and not any(_results("_==_", [arguments[0], item]) for item in arguments[1].items)
    ):
        return ()
    items = union(argument.items for argument in arguments) or DYN
    return tuple(dict.fromkeys(Type(kind, items if kind == "list" else ()) for kind in found))
