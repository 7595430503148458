"""The grammar of the Common Expression Language: an assertion's text, its syntax tree, and the paths that it reads.

``cel-python`` gives the parser. The tree is then stripped of the levels that only the grammar needs, a dozen for each
pair of parentheses: what is left is as deep as the expression looks, and can be walked without exhausting the stack.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache, lru_cache
from importlib import resources
from typing import Any

import celpy
from celpy.celparser import CELParser
from celpy.evaluation import celstr
from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedInput, UnexpectedToken

from harness.places import cache_root
from harness.strict_yaml import KeyPath, quoted

MAX_LENGTH = 2_000
MAX_DEPTH = 100

Node = Tree[Token]

MACROS = frozenset({"all", "exists", "exists_one", "filter", "map"})

# A level with one child says nothing of its own.
_LEVELS = frozenset(
    {"addition", "conditionaland", "conditionalor", "expr", "member", "multiplication", "relation", "unary"}
)

# A comment, a string as cel.lark has it, or a stretch without either.
_LEXEME = re.compile(
    r"""
      //[^\n]*
    | (?P<long>'{3}|"{3}) (?:\\.|[^\\])*? (?P=long)
    | (?P<short>['"]) (?!(?P=short){2}) (?:\\[^\n]|(?!(?P=short))[^\\\n])* (?P=short)
    | [^'"/]+ | /
    """,
    re.VERBOSE | re.DOTALL,
)

_HINTS: Mapping[str, str] = {
    "=": "write == to compare",
    "&": "write && for and",
    "|": "write || for or",
    "and": "write && for and",
    "or": "write || for or",
    "not": "write ! for not",
    "is": "write == to compare",
}


class CelSyntaxError(Exception):
    """An expression is not CEL.

    :param hint: how to write what was likely meant.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


@cache
def _parser() -> Lark:
    """The parser that celpy makes (``CELParser.__init__``), but with its tables kept from one process to the next.

    Making them takes 0.4 s, a fifth of a whole run that takes up a saved machine.
    """
    grammar = resources.files(celpy).joinpath("cel.lark").read_text()
    kept = cache_root()
    with suppress(OSError):  # then they are made each time
        kept.mkdir(parents=True, exist_ok=True)
    return Lark(
        grammar,
        parser="lalr",
        start="expr",
        g_regex_flags=re.MULTILINE,
        lexer_callbacks={"IDENT": CELParser.ambiguous_literals},
        propagate_positions=True,
        maybe_placeholders=False,
        priority="invert",
        cache=str(kept / f"cel-{hashlib.sha256(grammar.encode()).hexdigest()[:16]}.tables"),
    )


@lru_cache(maxsize=1000)
def parse(text: str) -> Node:
    """The syntax tree of an expression.

    :raises CelSyntaxError: when there is none, or when it is too large to be evaluated safely.
    """
    if not text.strip():
        raise CelSyntaxError("the expression is empty")
    if len(text) > MAX_LENGTH:
        raise CelSyntaxError(f"must be at most {MAX_LENGTH} characters long, got {len(text)}", "split it")
    _check_quotes(text)
    try:
        whole = _parser().parse(text)
    except UnexpectedInput as error:
        raise _syntax_error(text, error) from error
    for node in whole.iter_subtrees():  # leaves first
        node.children = [_stripped(child) for child in node.children]
    tree: Node = _stripped(whole)
    if _depth(tree) > MAX_DEPTH:
        raise CelSyntaxError("the expression is nested too deeply", "split it into several assertions")
    return tree


def _stripped(node: Any) -> Any:
    """The first node at or below ``node`` that is more than a level of the grammar."""
    while isinstance(node, Tree) and len(node.children) == 1:
        below = node.children[0]
        if node.data == "primary" and isinstance(below, Tree) and below.data in ("literal", "paren_expr"):
            node = below if below.data == "literal" else below.children[0]
        elif node.data in _LEVELS:
            node = below
        else:
            break
    return node


def _depth(tree: Node) -> int:
    deepest, pending = 0, [(tree, 1)]
    while pending:
        node, depth = pending.pop()
        deepest = max(deepest, depth)
        pending += [(child, depth + 1) for child in node.children if isinstance(child, Tree)]
    return deepest


def _syntax_error(text: str, error: UnexpectedInput) -> CelSyntaxError:
    token = error.token if isinstance(error, UnexpectedToken) else None
    if token is not None and token.type == "$END":
        return CelSyntaxError("syntax error: the expression ends too early", "a bracket or an operand is missing")
    position = error.pos_in_stream
    if position is None:
        # cel-python makes its tokens for true and false without a position.
        return CelSyntaxError(f"syntax error: unexpected {quoted(str(token))}", _HINTS.get(str(token)))
    found = text[position] if token is None else str(token)
    where = _where(text, position)
    return CelSyntaxError(f"syntax error at {where} of the expression: unexpected {quoted(found)}", _HINTS.get(found))


def _check_quotes(text: str) -> None:
    """Refuse a string without an end: over its backslashes, cel-python's lexer takes exponential time."""
    position = 0
    while position < len(text):
        found = _LEXEME.match(text, position)
        if found is None:
            where = _where(text, position)
            raise CelSyntaxError(f"syntax error: the quote at {where} of the expression is never closed", "close it")
        position = found.end()


def _where(text: str, position: int) -> str:
    column = position - text.rfind("\n", 0, position)
    return f"line {text.count(chr(10), 0, position) + 1}, column {column}" if "\n" in text else f"column {column}"


def literal_key(node: Any) -> str | int | None:
    """The string or integer that a literal node stands for; None for any other node."""
    if isinstance(node, Tree) and node.data == "literal":
        token = node.children[0]
        if isinstance(token, Token) and token.type in ("STRING_LIT", "MLSTRING_LIT"):
            return str(celstr(token))
        if isinstance(token, Token) and token.type == "INT_LIT":
            return int(token, 0 if "x" in token else 10)
    return None


def path_of(node: Any) -> KeyPath | None:
    """The path that a node selects from a name, ``a.b[0].c`` or ``a["b"]``; None when it does something else."""
    if not isinstance(node, Tree):
        return None
    if node.data == "primary" and isinstance(node.children[0], Tree) and node.children[0].data == "ident":
        return (str(node.children[0].children[0]),)
    if node.data not in ("member_dot", "member_index"):
        return None
    base = path_of(node.children[0])
    step = str(node.children[1]) if node.data == "member_dot" else literal_key(node.children[1])
    return None if base is None or step is None else (*base, step)


def macro_of(node: Node) -> tuple[str, str, Node] | None:
    """For ``list.all(x, ...)`` and its like: the macro, its variable and its body; None for any other node."""
    if node.data != "member_dot_arg" or str(node.children[1]) not in MACROS or len(node.children) < 3:
        return None
    arguments = node.children[2]
    assert isinstance(arguments, Tree), "what stands in parentheses is an exprlist"
    variable = path_of(arguments.children[0])
    if len(arguments.children) != 2 or variable is None or len(variable) != 1:
        return None
    return str(node.children[1]), str(variable[0]), arguments.children[1]  # type: ignore[return-value]


def paths(node: Node, bound: frozenset[str] = frozenset()) -> Iterator[KeyPath]:
    """Every path that an expression reads, but for those that start at a macro's variable.

    :param bound: the variables of the macros around ``node``.
    """
    path = path_of(node)
    if path is not None:
        if path[0] not in bound:
            yield path
        return
    macro = macro_of(node)
    inner: list[tuple[Any, frozenset[str]]] = [(child, bound) for child in node.children]
    if macro is not None:
        _, variable, body = macro
        inner = [(node.children[0], bound), (body, bound | {variable})]
    for child, names in inner:
        if isinstance(child, Tree):
            yield from paths(child, names)
