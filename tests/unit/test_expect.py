"""Assertions: what is wrong with them at collection, and how they are judged after a run."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from pathlib import PurePath
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, RootModel, computed_field

from harness.scenario.cel import MAX_LENGTH
from harness.scenario.evidence_types import types_of
from harness.scenario.expect import MISSING, Expectation


class Mode(StrEnum):
    """An enumeration."""

    FAST = "fast"


class Zone(BaseModel):
    """An item of a list."""

    name: str
    free: int
    inner: Zone | None = None


class Words(RootModel[list[str]]):
    """A list with a name."""


class Seen(BaseModel):
    """Evidence with a field of every kind."""

    count: int
    seconds: float
    ok: bool
    text: str
    zone: Zone
    error: str | None = None
    opt: int | None = None
    zones: list[Zone] = []
    pages: tuple[int, ...] = ()
    counters: dict[str, int] = {}
    by_name: dict[str, Zone] = {}
    raw: Any = None
    mode: Mode = Mode.FAST
    kind: Literal["a", "b", 3] = "a"
    either: int | str = 0
    names: frozenset[str] = frozenset()
    words: Words = Words([])
    bound: Annotated[int, Field(ge=0)] = 0

    @computed_field  # type: ignore[prop-decorator]
    @property
    def total(self) -> int:
        """A field that is computed."""
        return self.count * 2


class Open(BaseModel):
    """Evidence that may hold anything."""

    model_config = ConfigDict(extra="allow")

    known: int = 0


MODELS: dict[str, type[BaseModel]] = {"c": Seen, "x": Open}
VALUES: dict[str, Any] = {
    "c": {
        "count": 5,
        "seconds": 1.5,
        "ok": True,
        "text": "abc",
        "zone": {"name": "DMA", "free": 7, "inner": None},
        "error": None,
        "opt": 3,
        "zones": [{"name": "DMA", "free": 7}, {"name": "Normal", "free": 0}],
        "pages": [1, 2, 3],
        "counters": {"pgfault": 10, "zero": 0},
        "by_name": {"DMA": {"name": "DMA", "free": 7}},
        "raw": {"deep": [1, {"k": "v"}]},
        "mode": "fast",
        "kind": "a",
        "either": "x",
        "names": ["n"],
        "words": ["w"],
        "bound": 0,
        "total": 10,
    },
    "x": {"known": 1, "extra": 2.5},
}


def holds(text: str, values: dict[str, Any] = VALUES) -> bool:
    verdict = Expectation(text).judge(values)
    assert verdict.error is None
    return verdict.holds


def error(text: str, values: dict[str, Any] = VALUES) -> str | None:
    verdict = Expectation(text).judge(values)
    assert not verdict.holds
    return verdict.error


TRUE = [
    "c.count == 5",
    "c.count != 6 && c.ok",
    "!(c.count > 5) || false",
    "c.count >= 5 && c.count <= 5 && c.count < 6",
    "c.count + 1 == 6 && c.count - 6 == -1 && c.count * 2 == c.total",
    "c.count-1==4",
    "-c.count == -5",
    "c.count / 2 == 2 && -c.count / 2 == -2",
    "c.count % 3 == 2 && -c.count % 3 == -2",
    "c.seconds < 2 && 2 > c.seconds && c.seconds == 1.5",
    "c.seconds * 2.0 == 3.0 && c.seconds / 0.5 == 3.0",
    "double(c.count) / 2.0 == 2.5",
    "int(c.seconds) == 1 && int('12') == 12 && string(c.count) == '5' && string(c.ok) == 'true'",
    "c.count == 0x5 && c.count == 5u",
    "1 == 1.0 && c.count == 5.0",
    "c.text == 'abc' && c.text < 'b' && c.text + 'd' == 'abcd'",
    "c.text.contains('b') && c.text.startsWith('a') && c.text.endsWith('c') && c.text.matches('^a.c$')",
    "size(c.text) == 3 && c.text.size() == 3 && c.zones.size() == 2 && size(c.counters) == 2",
    "c.error == null && c.opt != null && c.opt == 3 && null == c.error",
    "c.zones[0].free == 7 && c.zones[c.zones.size() - 1].free == 0",
    "c.counters.pgfault == 10 && c.counters['pgfault'] == 10",
    "'pgfault' in c.counters && !('x' in c.counters) && 2 in c.pages && !(9 in c.pages)",
    "has(c.counters.pgfault) && !has(c.counters.x) && has(c.zone.name)",
    "c.zones.all(z, z.free >= 0) && c.zones.exists(z, z.free == 0) && c.zones.exists_one(z, z.name == 'DMA')",
    "c.zones.filter(z, z.free > 0).map(z, z.name) == ['DMA']",
    "c.zones.all(z, c.pages.exists(p, p > z.free || z.free > p))",
    "c.counters.all(k, c.counters[k] >= 0)",
    "c.pages == [1, 2, 3] && c.pages + [4] != c.pages",
    "c.ok ? c.count == 5 : c.count == 6",
    "(c.count > 0 ? 'some' : 'none') == 'some'",
    "c.raw.deep[1].k == 'v' && c.raw['deep'][0] == 1",
    "x.extra > 2.0 && x.known == 1",
    "c.mode == 'fast' && c.kind == 'a' && c.either == 'x'",
    "{'a': 1, 'b': c.count}['b'] == 5",
    "[c.count, 6].all(c, c > 4)",
    "dyn(c.count) == 5",
    "'n' in c.names && 'w' in c.words",
    "c.count == 5 // a comment",
    "c.ok &&\n  c.count == 5",
    "c.text == \"abc\" && c.text == r'abc'",
    "c.text != '\\'' && c.text != \"\\\\\" && c.text != '''it's\n''' && c.text != ''",
    "c.text != '//' // isn't it",
    "c.count / 5 == 1",
]


@pytest.mark.parametrize("text", TRUE)
def test_holds(text: str) -> None:
    assert Expectation(text).check(MODELS) == []
    assert holds(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("c.count / c.counters.zero == 1", "division by zero"),
        ("c.count % c.counters.zero == 1", "division by zero"),
        ("c.seconds / 0.0 > 1.0", "division by zero"),
        ("c.zones[5].free == 1", "no item 5 in a list of 2"),
        ("c.zones[-1].free == 1", "no item -1 in a list of 2"),
        ("c.counters.nothing == 1", "no such member in mapping: 'nothing'"),
        ("c.counters['nothing'] == 1", 'no key "nothing"'),
        ("c.error.contains('x')", "contains() is not for null and string"),
        ("c.error > 'x'", "no operation > for null and string"),
        ("c.raw > 5", "no operation > for map and int"),
        ("c.raw == 5", "no operation == for map and int"),
        ("int(c.text) == 5", 'int() cannot read "abc"'),
        ("double(c.text) == 5.0", 'double() cannot read "abc"'),
        ("c.text.matches(c.text + '(')", "not a regular expression that RE2 takes: missing ): abc("),
        ("c.count * 9223372036854775807 == 1", "the integer does not fit into 64 bits"),
        ("c.zones.map(z, 1 / z.free) == [1]", "division by zero"),
        ("c.zones.all(z, 7 / z.free == 1)", "division by zero"),
        ("c.zones.all(z, z.nothing == 1)", "no such member in mapping: 'nothing'"),
        ("c.zones.exists(z, z.nothing == 1)", "no such member in mapping: 'nothing'"),
        ("c.count / c.counters.zero == 1 || c.count / c.counters.zero == 2", "division by zero"),
        ("c.count / c.counters.zero > 0 ? true : false", "division by zero"),
        ("c.raw ? true : false", "no operation ?: for map"),
        ("c.raw && c.ok", "no operation && for map"),
        ("c.raw.all(k, k.x > 0)", "<class 'str'> does not support"),
        ("y.count == 5", "no step left evidence under the name y"),
        ("c.count", "the expression is neither true nor false"),
        ("c.count ==", "syntax error: the expression ends too early"),
    ],
)
def test_an_expression_without_a_value_does_not_hold(text: str, message: str) -> None:
    found = error(text)
    assert found is not None
    if "<class" not in message:
        assert found == message


@pytest.mark.parametrize("text", ["c.count == 6", "c.ok && c.count > 5", "c.zones.all(z, z.free > 0)", "c.opt == null"])
def test_does_not_hold(text: str) -> None:
    assert error(text) is None


def test_an_error_does_not_outweigh_what_decides() -> None:
    assert holds("c.count / c.counters.zero == 1 || c.ok")
    assert holds("c.zones.exists(z, 7 / z.free == 1)")
    assert error("c.count / c.counters.zero == 1 && !c.ok") is None
    assert error("c.zones.all(z, 7 / z.free == 2)") is None


class TestIntegers:
    @pytest.mark.parametrize("value", [2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)])
    def test_are_exact(self, value: int) -> None:
        suffix = "u" if value >= 2**63 else ""
        evidence = {"c": {"count": value}}
        assert holds(f"c.count == {value}{suffix}", evidence)
        assert not holds(f"c.count != {value}{suffix}", evidence)
        if abs(value) < 2**63:
            assert not holds(f"c.count == {value - 1}", evidence)

    def test_compare_exactly_with_doubles(self) -> None:
        assert not holds("c.count == 9007199254740992.0", {"c": {"count": 2**53 + 1}})
        assert holds("c.count > 9007199254740992.0", {"c": {"count": 2**53 + 1}})

    def test_a_counter_may_be_signed_or_unsigned(self) -> None:
        assert holds("c.a - c.b == 1 && c.a > c.b && c.b + 1 == c.a", {"c": {"a": 2**63, "b": 2**63 - 1}})

    def test_larger_ones_are_an_error(self) -> None:
        assert error("c.count > 0", {"c": {"count": 2**64}}) == "the integer does not fit into 64 bits"

    def test_true_is_not_one(self) -> None:
        assert error("c.raw == 1", {"c": {"raw": True}}) == "no operation == for bool and int"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("kicks.completed == 256", {"kicks.completed"}),
        ("a.b == c.d", {"a.b", "c.d"}),
        ("a.b.c.d", {"a.b.c.d"}),
        ("a.list[0].x == a.map['k'].y", {"a.list[0].x", "a.map.k.y"}),
        ("a.list[b.index].x", {"a.list", "b.index"}),
        ("a.map['not tame']", {'a.map."not tame"'}),
        ("a.list.all(i, i.x > b.y)", {"a.list", "b.y"}),
        ("a.list.map(i, i.x).filter(j, j > 0) == []", {"a.list"}),
        ("a.list.all(a, a > 0)", {"a.list"}),
        ("a.list.exists(i, i.l.exists(j, j == i.x && j == k.l))", {"a.list", "k.l"}),
        ("has(a.b) && size(c.d) > 0", {"a.b", "c.d"}),
        ("a.text.contains(b.text)", {"a.text", "b.text"}),
        ("a.ok ? b.x : {'k': c.y}['k']", {"a.ok", "b.x", "c.y"}),
        ("a", {"a"}),
        ("1 == 1", set()),
        ("1 ==", set()),
    ],
)
def test_names(text: str, names: set[str]) -> None:
    assert Expectation(text).names == names


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("c.cuont == 5", 'c has no field "cuont", expected one of count, ', 'did you mean "count"?'),
        ("c.zone.fre == 5", 'c.zone has no field "fre", expected one of name, free, inner', 'did you mean "free"?'),
        ("c.zone['fre'] == 5", 'c.zone has no field "fre"', 'did you mean "free"?'),
        ("c.zone.inner.fre == 5", 'c.zone.inner has no field "fre"', 'did you mean "free"?'),
        ("c.zones[0].fre == 5", 'c.zones[0] has no field "fre"', 'did you mean "free"?'),
        ("c.by_name['a'].fre == 5", "c.by_name['a'] has no field \"fre\"", 'did you mean "free"?'),
        ("c.by_name.a.fre == 5", 'c.by_name.a has no field "fre"', 'did you mean "free"?'),
        ("c.zones.all(z, z.fre > 5)", 'z has no field "fre"', 'did you mean "free"?'),
        ("c.zones.filter(z, z.free > 5)[0].fre > 5", 'has no field "fre"', 'did you mean "free"?'),
        ("c.zones.map(z, z.free).all(f, f.x > 5)", 'f is int and has no field "x"', None),
        ("has(c.cuont)", 'c has no field "cuont"', 'did you mean "count"?'),
        ("c.ok || c.cuont == 5", 'c has no field "cuont"', 'did you mean "count"?'),
        ("c.ok ? true : c.cuont == 5", 'c has no field "cuont"', 'did you mean "count"?'),
        ("d.count == 5", 'unknown name "d", expected one of c, x', None),
        ("cc.count == 5", 'unknown name "cc", expected one of c, x', 'did you mean "c"?'),
        ("c.zones.all(zone, zon.free > 5)", 'unknown name "zon", expected one of c, x, zone', 'did you mean "zone"?'),
        ("c.ok == True", 'unknown name "True"', "write true"),
        ("c.error == None", 'unknown name "None"', "write null"),
        ("c.count.x == 5", 'c.count is int and has no field "x"', None),
        ("c.count == '5'", "no operation == for int and string: c.count == '5'", None),
        ("c.count == true", "no operation == for int and bool: c.count == true", None),
        ("c.zones == [1]", "no operation == for list and list: c.zones == [1]", "their items are map and int"),
        ("c.pages != ['x']", "no operation != for list and list: c.pages != ['x']", "their items are int and string"),
        ("c.counters == {'k': 'x'}", "no operation == for map and map", "their items are int and string"),
        ("c.ok > false", "no operation > for bool and bool: c.ok > false", None),
        ("c.opt == 'x'", "no operation == for int or null and string: c.opt == 'x'", None),
        ("c.either == true", "no operation == for int or string and bool", None),
        ("c.pages[0] == 'x'", "no operation == for int and string", None),
        ("c.counters.x == 'x'", "no operation == for int and string", None),
        ("c.total == 'x'", "no operation == for int and string", None),
        ("c.mode == 1", "no operation == for string and int", None),
        ("c.bound == 'x'", "no operation == for int and string", None),
        (
            "c.count + c.seconds > 1.0",
            "no operation + for int and double: c.count + c.seconds",
            "convert one side with int(...) or double(...)",
        ),
        ("c.count + c.text == 'x'", "no operation + for int and string: c.count + c.text", None),
        ("!c.count", "no operation ! for int: !c.count", None),
        ("-c.text == 'x'", "no operation - for string: -c.text", None),
        ("c.ok && c.count", "no operation && for bool and int: c.ok && c.count", None),
        ("c.ok || (c.count > 'x' && c.ok)", "no operation > for int and string: c.count > 'x'", None),
        ("'x' in c.pages", "no operation in for string and list: 'x' in c.pages", None),
        ("'x' in c.text", "no operation in for string and string: 'x' in c.text", None),
        ("c.pages['x'] == 1", "no operation [ ] for list and string: c.pages['x']", None),
        ("c.counters[1] == 1", "no operation [ ] for map and int: c.counters[1]", None),
        ("c.text.contains(1)", "contains() is not for string and int: c.text.contains(1)", None),
        ("size(c.count) == 1", "size() is not for int: size(c.count)", None),
        ("int(c.ok) == 1", "int() is not for bool: int(c.ok)", None),
        ("c.count.all(i, i > 0)", "all() is for lists and maps, got int: c.count.all(i, i > 0)", None),
        ("c.zones.all(z, z.free)", "z.free must be true or false, got int", "compare it with something"),
        (
            "c.zones.filter(z, z.name).size() > 0",
            "z.name must be true or false, got string",
            "compare it with something",
        ),
        ("c.count ? true : false", "c.count must be true or false, got int", "compare it with something"),
        ("c.zones.all(z)", "all() takes a variable and an expression, got c.zones.all(z)", "write list.all(x, ...)"),
        (
            "c.zones.all(1, c.ok)",
            "all() takes a variable and an expression, got c.zones.all(1, c.ok)",
            "write list.all(x, ...)",
        ),
        ("c.zones.al(z, z.free > 0)", 'unknown method "al", expected one of all, contains, ', 'did you mean "all"?'),
        ("len(c.zones) == 1", 'unknown function "len", expected one of double, ', None),
        ("matches(c.text, 'x')", 'unknown function "matches"', "write x.matches(...)"),
        ("timestamp(c.text) == c.text", 'unknown function "timestamp"', None),
        ("c.text.matches()", "matches() takes 1 argument here, got 0", None),
        ("c.text.size(1) == 1", "size() takes 0 arguments here, got 1", None),
        ("size() == c.count", "size() takes 1 argument, got 0", None),
        ("has(c)", "has() takes a field, got has(c)", "write has(a.b)"),
        ("has() && c.ok", "has() takes a field, got has()", "write has(a.b)"),
        ("c.text.matches('(')", '"(" is not a regular expression that RE2 takes: missing ): (', None),
        ("c.count", "must be true or false, got int", "compare it with something"),
        ("c.ok ? c.text : c.count", "must be true or false, got string or int", "compare it with something"),
        (
            "c.count == 9223372036854775808",
            'the number "9223372036854775808" does not fit into 64 bits',
            "an unsigned one ends in u: 5u",
        ),
        ("c.count == 18446744073709551616u", 'the number "18446744073709551616u" does not fit into 64 bits', None),
        ("c.text == b'x'", "evidence has no bytes to compare with \"b'x'\"", "remove the b before the quote"),
        ("c{}", "messages cannot be made here: c{}", None),
        (".c.ok || c.ok", "a name cannot start with a point: .c", "remove the point"),
        (
            "1 == 1",
            "the assertion reads no evidence, so it says nothing about the run",
            'read what a step left under the name in its "as"',
        ),
        ("", "the expression is empty", None),
        ("  \n ", "the expression is empty", None),
        ("c.ok &", 'syntax error at column 6 of the expression: unexpected "&"', "write && for and"),
        ("c.ok and c.ok", 'syntax error at column 6 of the expression: unexpected "and"', "write && for and"),
        ("c.count = 5", 'syntax error at column 9 of the expression: unexpected "="', "write == to compare"),
        (
            "c.ok &&\n c.count | 5",
            'syntax error at line 2, column 10 of the expression: unexpected "|"',
            "write || for or",
        ),
        ("c.ok)", 'syntax error at column 5 of the expression: unexpected ")"', None),
        ("(c.ok", "syntax error: the expression ends too early", "a bracket or an operand is missing"),
        ("c.text == 'abc", "syntax error: the quote at column 11 of the expression is never closed", "close it"),
        ("c.true == 1", 'syntax error: unexpected "true"', None),
        ("c.ok @ c.ok", 'syntax error at column 6 of the expression: unexpected "@"', None),
    ],
)
def test_check(text: str, message: str, hint: str | None) -> None:
    ((found, advice),) = Expectation(text).check(MODELS)
    assert found.startswith(message) or message in found
    assert advice == hint


def test_check_tells_all_faults_each_once() -> None:
    faults = Expectation("c.cuont == 5 && c.cuont > 'x' && d.x == 1").check(MODELS)
    assert [message.partition(",")[0] for message, _ in faults] == ['c has no field "cuont"', 'unknown name "d"']


def test_check_without_any_evidence() -> None:
    assert Expectation("c.ok").check({}) == [('unknown name "c"', 'name what a step leaves with "as"')]


@pytest.mark.parametrize(
    "text", ["x.anything.at[0].all > 5", "c.raw.x.y == 'z'", "c.counters.whatever == 1", "dyn(c.count) == 'x'"]
)
def test_what_cannot_be_known_is_let_pass(text: str) -> None:
    assert Expectation(text).check(MODELS) == []


@pytest.mark.parametrize(
    ("annotation", "kinds"),
    [
        (int | None, ["int", "null"]),
        (Annotated[float, Field(gt=0)], ["double"]),
        (list, ["list"]),
        (dict, ["map"]),
        (bytes, ["dyn"]),
        (object, ["dyn"]),
        ("forward", ["dyn"]),
        (datetime, ["dyn"]),
        (PurePath, ["dyn"]),
        (Literal[True, "x"], ["bool", "string"]),
    ],
)
def test_types_of(annotation: Any, kinds: list[str]) -> None:
    assert [found.kind for found in types_of(annotation)] == kinds


class TestVerdict:
    def test_has_the_value_of_every_name(self) -> None:
        verdict = Expectation("c.count == 6 && c.zones[1].free == x.known").judge(VALUES)
        assert not verdict.holds
        assert verdict.expression == "c.count == 6 && c.zones[1].free == x.known"
        assert verdict.values == {"c.count": 5, "c.zones[1].free": 0, "x.known": 1}

    def test_says_what_is_missing(self) -> None:
        verdict = Expectation("c.nothing.x == y.z").judge(VALUES)
        assert verdict.values == {"c.nothing.x": MISSING, "y.z": MISSING}
        assert verdict.error == "no step left evidence under the name y"

    def test_cuts_what_is_long(self) -> None:
        evidence = {"c": {"text": "x" * 10_000, "list": list(range(1000)), "map": {str(n): n for n in range(1000)}}}
        values = Expectation("c.text == '' && c.list == [] && c.map == {}").judge(evidence).values
        assert values["c.text"] == "x" * 200 + "... (10000 characters)"
        assert values["c.list"] == [*range(10), "... (1000 items)"]
        assert list(values["c.map"].items())[-1] == ("...", "(1000 keys)")
        assert len(str(values)) < 1000

    def test_cuts_what_is_deep(self) -> None:
        deep: Any = 1
        for _ in range(100):
            deep = {"list": [deep]}
        values = Expectation("c.deep == 1").judge({"c": {"deep": deep}}).values
        assert values == {"c.deep": {"list": [{"list": ["... (1 keys)"]}]}}

    def test_an_error_is_short(self) -> None:
        found = error("c.zones.x == 1", {"c": {"zones": ["y" * 10_000]}})
        assert found is not None
        assert len(found) <= 300

    def test_evidence_that_is_not_json(self) -> None:
        assert error("c.x == 1", {"c": {"x": object()}}) == "evidence cannot hold a object"

    def test_a_tuple_is_a_list(self) -> None:
        assert holds("c.x == [1, 2]", {"c": {"x": (1, 2)}})

    @pytest.mark.parametrize(
        "name", ["google", "size", "int", "has", "all", "map", "type", "nullable", "true_x", "inside", "e"]
    )
    def test_names_that_mean_something_to_the_evaluator(self, name: str) -> None:
        assert holds(f"{name}.x == 1 && size({name}.l) == 1 && {name}.l.all(i, i == 1)", {name: {"x": 1, "l": [1]}})

    def test_fields_that_mean_something_to_the_evaluator(self) -> None:
        evidence = {"c": {"get": 1, "keys": 2, "size": 3, "value": 4, "all": 5}}
        assert holds("c.get == 1 && c.keys == 2 && c.size == 3 && c.value == 4 && c.all == 5", evidence)


class TestHostileExpressions:
    @pytest.mark.parametrize(
        "text",
        [
            "(" * 900 + "c.ok" + ")" * 900,
            "!" * 1900 + "c.ok",
            "-" * 1900 + "c.count == 1",
            "[" * 900 + "c.ok" + "]" * 900 + " == []",
            "+".join(["c.count"] * 240) + " == 1",
            "c.ok" + "?c.ok:c.ok" * 150,
            "c" + ".x" * 900,
            "c" + "[0]" * 600,
            "c.ok &&" * 250,
            "c.pages.all(a," * 100 + "c.ok" + ")" * 100,
            "'" * 1999,
            "c.text == '" + "\\" * 1900,
            'c.text == "' + "\\" * 1901 + '"',
            "c.text == '''" + "\\" * 1900,
            "c.text == '''" + "\\" * 1900 + "''",
            "c.text == b'" + "\\" * 1900,
            "c.text == '" + "\\" * 1900 + "\n'",
            "c.text == '" + "\\" * 1900 + "'",
            "c.text == '" + "q\\" * 900 + "q'",
            "c.text == '''" + "\r\n" * 900,
            "1" * 1999,
            "1." * 900,
            "1e" * 900,
            "c.text.matches('" + "(a*)*" * 300 + "')",
        ],
        ids=lambda text: text[:12],
    )
    @pytest.mark.parametrize("use", ["check", "judge", "names"])
    def test_end_soon_and_without_a_traceback(self, text: str, use: str) -> None:
        started = time.monotonic()
        expectation = Expectation(text)
        _USES[use](expectation)
        assert time.monotonic() - started < 5

    def test_length(self) -> None:
        text = " " * (MAX_LENGTH - 4) + "c.ok"
        assert Expectation(text).check(MODELS) == []
        assert Expectation(text + " ").check(MODELS) == [("must be at most 2000 characters long, got 2001", "split it")]

    def test_the_deepest_that_is_taken_can_be_judged_deep_in_the_stack(self) -> None:
        text = " && ".join(["c.ok"] * 95)
        assert Expectation(text).check(MODELS) == []
        assert _below(300, lambda: holds(text))

    def test_running_out_of_stack_is_an_error(self) -> None:
        text = " && ".join(["c.ok"] * 95)
        found = _below(sys.getrecursionlimit() - 250, lambda: error(text))
        assert found is not None
        assert found.startswith("RecursionError")

    def test_in_a_thread(self) -> None:
        found: list[bool] = []
        thread = threading.Thread(target=lambda: found.append(holds(TRUE[0])))
        thread.start()
        thread.join()
        assert found == [True]


_USES: dict[str, Callable[[Expectation], object]] = {
    "check": lambda expectation: expectation.check(MODELS),
    "judge": lambda expectation: expectation.judge(VALUES),
    "names": lambda expectation: expectation.names,
}


def _below(frames: int, call: Callable[[], Any]) -> Any:
    """``call()``, that many frames further down the stack."""
    return call() if frames == 0 else _below(frames - 1, call)


def test_says_nothing_on_the_side(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    limit = sys.getrecursionlimit()
    for text in ["c.text.matches('(')", "c.zones.all(z, z.x > 0)", "c.count / 0 == 1", "1 +", "c.raw && c.raw"]:
        Expectation(text).check(MODELS)
        Expectation(text).judge(VALUES)
    assert capfd.readouterr() == ("", "")
    assert not [
        record for record in caplog.records if record.name.startswith("celpy") and record.levelno > logging.DEBUG
    ]
    assert sys.getrecursionlimit() == limit


def test_evidence_is_not_changed() -> None:
    before = repr(VALUES)
    for text in TRUE:
        Expectation(text).judge(VALUES)
    assert repr(VALUES) == before


@given(st.text(max_size=80) | st.text("c.count[]()!&|=<>+-*/%?:{}'\"0159ue xalnhs,\\", max_size=60))
@settings(deadline=2000, max_examples=500)
def test_arbitrary_text_is_judged_without_a_traceback(text: str) -> None:
    expectation = Expectation(text)
    for message, hint in expectation.check(MODELS):
        assert message
        assert hint is None or hint
    assert not expectation.judge(VALUES).holds or expectation.judge(VALUES).error is None


LEAVES = [
    "c.count",
    "c.seconds",
    "c.ok",
    "c.text",
    "c.error",
    "c.opt",
    "c.pages",
    "c.zones",
    "c.counters",
    "c.zone",
    "c.zone.free",
]
LEAVES += [
    "5",
    "1.5",
    "true",
    "'abc'",
    "null",
    "[1, 2]",
    "['x']",
    "{'k': 1}",
    "c.pages[0]",
    "c.counters.pgfault",
    "c.zones[1].name",
]


def _compound(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    operators = st.sampled_from(["==", "!=", "<", ">=", "+", "-", "*", "/", "%", "&&", "||", "in"])
    methods = st.sampled_from(["contains", "startsWith", "matches"])
    return st.one_of(
        st.tuples(inner, operators, inner).map(lambda parts: f"({' '.join(parts)})"),
        st.tuples(st.sampled_from(["!", "-", "size", "int", "double", "string"]), inner).map(
            lambda parts: f"{parts[0]}({parts[1]})"
        ),
        st.tuples(inner, methods, inner).map(lambda parts: f"{parts[0]}.{parts[1]}({parts[2]})"),
        st.tuples(inner, inner).map(lambda parts: f"({parts[0]} ? {parts[1]} : {parts[1]})"),
        st.tuples(inner, st.sampled_from(["all", "exists", "filter", "map"]), inner).map(
            lambda parts: f"{parts[0]}.{parts[1]}(v, {parts[2]})"
        ),
    )


@given(st.recursive(st.sampled_from(LEAVES), _compound, max_leaves=6))
@settings(deadline=2000, max_examples=500)
def test_what_the_check_lets_pass_has_no_type_error_in_a_run(text: str) -> None:
    if Expectation(text).check(MODELS):
        return
    found = Expectation(text).judge(VALUES).error or ""
    # An optional value may turn out to be null; whatever else is wrong with types had to be told before.
    assert "null" in found or not found.startswith("no operation")
    assert "is not for" not in found or "null" in found
