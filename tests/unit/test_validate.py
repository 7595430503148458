"""Pydantic's errors, told as problems of a YAML file."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from harness.errors import Problem, ScenarioError
from harness.strict_yaml import parse
from harness.validate import did_you_mean, fault, one_of, validate


class Strict(BaseModel):
    """As models of files are."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Colour(StrEnum):
    """An enumeration."""

    RED = "red"
    GREEN = "green"


class Disk(Strict):
    """One branch of a discriminated union."""

    kind: Literal["disk"]
    size_mib: Annotated[int, Field(ge=1)]


class Nic(Strict):
    """The other."""

    kind: Literal["nic"]
    mac: str


def _even(value: int) -> int:
    if value % 2:
        raise fault(f"must be even, got {value}", "add 1 {here}")
    return value


def _no_tabs(value: str) -> str:
    if "\t" in value:
        raise ValueError("has a tab")
    return value


class Recipe(Strict):
    """One field for each way to be wrong."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")] = "x"
    queue: Annotated[int, Field(ge=0, le=1023)] = 0
    above: Annotated[int, Field(gt=0, lt=10)] = 1
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    ratio: float = 1.0
    text: str = ""
    short: Annotated[str, Field(max_length=3)] = ""
    flag: bool = False
    colour: Colour = Colour.RED
    mode: Literal["fast", "slow", 3] = "fast"
    maybe: int | None = None
    argv: tuple[str, ...] = ()
    pair: tuple[int, str] = (1, "a")
    few: Annotated[list[int], Field(min_length=1, max_length=2)] = [1]
    words: frozenset[str] = frozenset()
    table: dict[Annotated[str, Field(pattern="^[a-z]+$")], int] = {}
    one: Annotated[dict[str, int], Field(min_length=1, max_length=1)] = {"a": 1}
    either: str | int = 1
    source: str | Disk | None = None
    count: Annotated[int, Field(ge=1)] | Literal["all"] = 1
    device: Annotated[Disk | Nic, Field(discriminator="kind")] | None = None
    plain: Disk | Nic | None = None
    path: PurePosixPath = PurePosixPath("/")
    even: Annotated[int, AfterValidator(_even)] = 0
    tabless: Annotated[str, AfterValidator(_no_tabs)] = ""
    nothing: None = None
    aliased: int = Field(default=1, alias="as")
    self: Recipe | None = None

    @model_validator(mode="after")
    def _agree(self) -> Recipe:
        if self.queue == 1000 and self.flag:
            raise fault("queue 1000 has no flag")
        return self


def problems(text: str) -> tuple[Problem, ...]:
    with pytest.raises(ScenarioError) as caught:
        validate(Recipe, parse(text, "f"))
    return caught.value.problems


@pytest.mark.parametrize(
    ("text", "key", "message", "hint"),
    [
        ("queue: 4096", "queue", "must be 0..1023, got 4096", None),
        ("queue: -1", "queue", "must be 0..1023, got -1", None),
        ('queue: "5"', "queue", 'must be an integer, got the string "5"', "remove the quotes"),
        ("queue: five", "queue", 'must be an integer, got the string "five"', None),
        ("queue: 1.0", "queue", "must be an integer, got the number 1.0", None),
        ("queue: true", "queue", "must be an integer, got the boolean true", None),
        ("queue:", "queue", "must be an integer, got nothing", None),
        ("queue: [1]", "queue", "must be an integer, got a list", None),
        ("queue: {a: 1}", "queue", "must be an integer, got a mapping", None),
        ("above: 0", "above", "must be 1..9, got 0", None),
        ("above: 10", "above", "must be 1..9, got 10", None),
        ("share: 0", "share", "must be at most 1 and more than 0, got 0", None),
        ("share: 1.5", "share", "must be at most 1 and more than 0, got 1.5", None),
        ('ratio: "1.5"', "ratio", 'must be a number, got the string "1.5"', "remove the quotes"),
        ("text: 5", "text", "must be a string, got the integer 5", 'quote it: "5"'),
        ("text: 6.10", "text", "must be a string, got the number 6.1", "quote it"),
        ("text: true", "text", "must be a string, got the boolean true", 'quote it: "true"'),
        ("text: {a: b}", "text", "must be a string, got a mapping", 'quote a text that contains ": "'),
        ("short: long", "short", 'must be at most 3 characters long, got "long"', None),
        (f"short: {'x' * 99}", "short", "must be at most 3 characters long, got 99 characters", None),
        ('flag: "true"', "flag", 'must be true or false, got the string "true"', "remove the quotes"),
        ("flag: 1", "flag", "must be true or false, got the integer 1", None),
        (
            "name: My_Disk",
            "name",
            'must be text that matches ^[a-z][a-z0-9-]*$, got "My_Disk"',
            'did you mean "my-disk"?',
        ),
        ("name: 5x", "name", 'must be text that matches ^[a-z][a-z0-9-]*$, got "5x"', None),
        ("colour: gren", "colour", 'must be one of "red", "green", got "gren"', 'did you mean "green"?'),
        ("colour: 5", "colour", 'must be one of "red", "green", got the integer 5', None),
        ("mode: FAST", "mode", 'must be one of "fast", "slow", 3, got "FAST"', 'did you mean "fast"?'),
        ("maybe: x", "maybe", 'must be an integer, got the string "x"', None),
        ("argv: ls", "argv", 'must be a list, got the string "ls"', 'start each item with "- ", or write [a, b]'),
        ("argv: [ls, 5]", "argv[1]", "must be a string, got the integer 5", 'quote it: "5"'),
        ("pair: [1]", "pair[1]", "missing item", None),
        ("pair: [1, a, b]", "pair", "must be a list of 2 items, got 3", None),
        ("pair: [a, b]", "pair[0]", 'must be an integer, got the string "a"', None),
        ("few: []", "few", "must be a list of 1..2 items, got 0", None),
        ("few: [1, 2, 3]", "few", "must be a list of 1..2 items, got 3", None),
        ("few: [x]", "few[0]", 'must be an integer, got the string "x"', None),
        ("words: x", "words", 'must be a list, got the string "x"', 'start each item with "- ", or write [a, b]'),
        ("table: {A: 1}", "table.A", 'the key must match ^[a-z]+$, got "A"', None),
        ("table: {a: x}", "table.a", 'must be an integer, got the string "x"', None),
        ("one: {}", "one", "must be a mapping with 1 key, got 0", None),
        ("one: {a: 1, b: 2}", "one", "must be a mapping with 1 key, got 2", None),
        ("either: [1]", "either", "must be a string or an integer, got a list", None),
        ("source: 5", "source", "must be a string or a mapping, got the integer 5", 'quote it: "5"'),
        ("source: {kind: disk, size_mib: 0}", "source.size_mib", "must be at least 1, got 0", None),
        ("count: 0", "count", 'must be "all" or at least 1, got 0', None),
        ("count: al", "count", 'must be "all" or an integer, got "al"', 'did you mean "all"?'),
        ("device: {kind: disc}", "device.kind", 'must be one of "disk", "nic", got "disc"', 'did you mean "disk"?'),
        ("device: {mac: a}", "device.kind", "missing key", None),
        ("device: {kind: nic}", "device.mac", "missing key", None),
        ("device: {kind: nic, mac: a, size_mib: 1}", "device.size_mib", "unknown key, expected one of kind, mac", None),
        ("plain: {kind: disk, size_mib: x}", "plain.size_mib", 'must be an integer, got the string "x"', None),
        ("path: 5", "path", "must be a string, got the integer 5", 'quote it: "5"'),
        ("even: 3", "even", "must be even, got 3", "add 1 {here}"),
        ('tabless: "a\\tb"', "tabless", "has a tab", None),
        ("nothing: 5", "nothing", "must be nothing, got the integer 5", None),
        ("as: x", "as", 'must be an integer, got the string "x"', None),
        ("self: {self: {queue: 5000}}", "self.self.queue", "must be 0..1023, got 5000", None),
        ("{queue: 1000, flag: true}", "", "queue 1000 has no flag", None),
        ("[]", "", "must be a mapping, got a list", None),
        ("", "", "must be a mapping, got nothing", None),
    ],
)
def test_tells_what_was_expected_and_what_was_found(text: str, key: str, message: str, hint: str | None) -> None:
    (problem,) = problems(text)
    assert (problem.key, problem.message, problem.hint) == (key, message, hint)


def test_unknown_key() -> None:
    (problem,) = problems("name: x\nquue: 1")
    assert problem.message.startswith("unknown key, expected one of name, queue, above, ")
    assert problem.message.endswith(", ... (28 in all)")
    assert (problem.key, problem.hint, problem.line, problem.column) == ("quue", 'did you mean "queue"?', 2, 1)


def test_keys_that_the_caller_takes_are_named() -> None:
    with pytest.raises(ScenarioError) as caught:
        validate(Nic, parse("kind: nic\nmac: a\nsa: b", "f"), also=("sat",))
    (problem,) = caught.value.problems
    assert (problem.message, problem.hint) == ("unknown key, expected one of sat, kind, mac", 'did you mean "sat"?')


def test_reports_everything_in_the_order_of_the_file() -> None:
    found = problems("flag: 1\nname: X\nqueue: 2000\nzzz: 1\nargv: [1, 2]")
    assert [(problem.line, problem.key) for problem in found] == [
        (1, "flag"),
        (2, "name"),
        (3, "queue"),
        (4, "zzz"),
        (5, "argv[0]"),
        (5, "argv[1]"),
    ]


def test_a_part_of_a_document() -> None:
    document = parse("boot:\n  disk: {kind: disk, size_mib: 5}\n  nic: {kind: nic}", "f")
    assert validate(Disk, document, ("boot", "disk")) == Disk(kind="disk", size_mib=5)
    with pytest.raises(ScenarioError, match=re.escape("f:3:3 boot.nic.mac: missing key")):
        validate(Nic, document, ("boot", "nic"))


def test_a_value_instead_of_the_documents_own_keeps_its_places() -> None:
    document = parse("disk:\n  kind: disk\n  size_mib: ${size}", "f")
    with pytest.raises(ScenarioError, match=re.escape("f:3:13 disk.size_mib: must be at least 1, got 0")):
        validate(Disk, document, ("disk",), {"kind": "disk", "size_mib": 0})


def test_what_yaml_has_becomes_what_the_model_wants() -> None:
    recipe = validate(Recipe, parse("argv: [a]\nwords: [b, b]\ncolour: green\nratio: 2\nas: 7\npath: /tmp", "f"))
    assert recipe.argv == ("a",)
    assert recipe.words == frozenset({"b"})
    assert recipe.colour is Colour.GREEN
    assert type(recipe.ratio) is float
    assert recipe.aliased == 7
    assert recipe.path == PurePosixPath("/tmp")


def test_large_integers_stay_exact() -> None:
    class Counter(Strict):
        value: int

    assert validate(Counter, parse(f"value: {2**64 - 1}", "f")).value == 2**64 - 1


def test_a_model_without_a_json_schema_still_gives_problems() -> None:
    class Odd(Strict):
        model_config = ConfigDict(arbitrary_types_allowed=True)

        thing: object = None
        queue: Annotated[int, Field(ge=0)]
        kind: type = int

    with pytest.raises(ScenarioError, match="f:1:8 queue: input should be greater than or equal to 0, got -1"):
        validate(Odd, parse("queue: -1", "f"))


def test_did_you_mean() -> None:
    assert did_you_mean("Machin", ["kernel", "machine"]) == 'did you mean "machine"?'
    assert did_you_mean("x", ["kernel", "machine"]) is None
    assert did_you_mean("x", []) is None


def test_one_of() -> None:
    assert one_of(["a"]) == "a"
    assert one_of(["a", "b", "a"]) == "one of a, b"
    assert one_of([]) == "none at all"
    assert one_of(map(str, range(20))) == "one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ... (20 in all)"


keys = st.sampled_from([*Recipe.model_fields, "as", "kind", "size_mib", "mac", "zzz"])
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-5, 2000)
    | st.floats(-5, 5)
    | st.sampled_from(["x", "disk", "nic", "5", "red", "A\t"])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)


@given(st.dictionaries(keys, values, max_size=6))
@settings(deadline=None, max_examples=200)
def test_any_value_is_taken_or_told_apart(value: dict[str, Any]) -> None:
    try:
        validate(Recipe, parse("{}", "f"), value=value)
    except ScenarioError as error:
        assert error.problems
        told = [(problem.key, problem.message) for problem in error.problems]
        assert len(set(told)) == len(told), "nothing is told twice"
