"""The strict YAML reader: what it takes, what it refuses and where it says that things stand."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness.errors import Problem, ScenarioError
from harness.strict_yaml import MAX_BYTES, MAX_DEPTH, MAX_PROBLEMS, Document, Mark, dotted, dump, parse, quoted, read

SECONDS = 15  # the slowest text that fits into 256 KiB takes PyYAML three


def problems(text: bytes | str) -> tuple[Problem, ...]:
    with pytest.raises(ScenarioError) as caught:
        parse(text, "f.yaml")
    return caught.value.problems


def the_problem(text: bytes | str) -> Problem:
    (problem,) = problems(text)
    return problem


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# nothing but a comment\n", None),
        ("---\n", None),
        ("a:", {"a": None}),
        ("a: ~", {"a": None}),
        ("a: null", {"a": None}),
        ("a: true", {"a": True}),
        ("a: false", {"a": False}),
        ("a: 0", {"a": 0}),
        ("a: -17", {"a": -17}),
        ("a: 0xfF", {"a": 255}),
        ("a: 18446744073709551615", {"a": 2**64 - 1}),
        ("a: -9223372036854775808", {"a": -(2**63)}),
        ("a: 1.5", {"a": 1.5}),
        ("a: -0.25", {"a": -0.25}),
        ("a: 1e3", {"a": 1000.0}),
        ("a: 1.5E-3", {"a": 0.0015}),
        ("a: 'no'", {"a": "no"}),
        ('a: "010"', {"a": "010"}),
        ("a: |\n  no\n", {"a": "no\n"}),
        ("a: >-\n  1:30\n", {"a": "1:30"}),
        ("a: 2026-01-01", {"a": "2026-01-01"}),
        ("a: 2026-01-01T10:00:00Z", {"a": "2026-01-01T10:00:00Z"}),
        ("a: 10.0.2.15", {"a": "10.0.2.15"}),
        ("a: 6.12.3-rc1", {"a": "6.12.3-rc1"}),
        ("a: nothing", {"a": "nothing"}),
        ("a: onward", {"a": "onward"}),
        ("a: =", {"a": "="}),
        ("a: 1 2", {"a": "1 2"}),
        ("[a, [b, {c: d}]]", ["a", ["b", {"c": "d"}]]),
        ('"<<": 1', {"<<": 1}),
        ('"no": 1', {"no": 1}),
        ("\ufeffa: 1", {"a": 1}),
        ("a: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
        ("a: Größe", {"a": "Größe"}),
        ('a: "\\x07"', {"a": "\x07"}),
    ],
)
def test_reads(text: str, value: Any) -> None:
    found = parse(text, "f.yaml").value
    assert found == value
    assert repr(found) == repr(value), "1, 1.0 and True are different things"


@pytest.mark.parametrize(
    "word",
    [
        *("yes", "Yes", "YES", "y", "Y", "no", "No", "n", "N", "on", "On", "off", "OFF"),
        *("True", "TRUE", "False", "Null", "NULL"),
        *("010", "08", "-010", "00", "0o17", "0b11", "007.5"),
        *("1:30", "10:00:00", "52:54:00:12:34:56", "1:30.5"),
        *("1_000", "1__", "0x1_0", "1_0.5"),
        *("+5", "+5.5", "+0x10", "-0x10", "0X10"),
        *(".5", "-.5", "5.", "5.e3", ".5e3"),
        *(".inf", "-.Inf", ".NaN", "1e999", "-1e999"),
        *("18446744073709551616", "-9223372036854775809", "0xfffffffffffffffff", "1" * 5000),
    ],
)
def test_refuses_what_yaml_readers_disagree_about(word: str) -> None:
    problem = the_problem(f"key: {word}")
    assert (problem.line, problem.column, problem.key) == (1, 6, "key")
    assert problem.message.startswith(f"{quoted(word)} without quotes is ") or "has a leading zero" in problem.message
    assert problem.hint is not None
    assert "quote it" in problem.hint
    assert len(problem.message) < 160


@pytest.mark.parametrize(
    ("text", "message", "line", "column"),
    [
        ("a: &x 1", "anchors are not allowed", 1, 4),
        ("a: *x", "aliases are not allowed", 1, 4),
        ("a: !x 1", "tags are not allowed", 1, 4),
        ("a: !!str 1", "tags are not allowed", 1, 4),
        ("a: ! 1", "tags are not allowed", 1, 4),
        ("a: !<tag:yaml.org,2002:int> 1", "tags are not allowed", 1, 4),
        ("&x {a: 1}", "anchors are not allowed", 1, 1),
        ("a: !x [1]", "tags are not allowed", 1, 4),
        ("&x a: 1", "anchors are not allowed", 1, 1),
        ("<<: {a: 1}", "merge keys (<<) are not allowed", 1, 1),
        ("a: 1\nb: 2\na: 3", "duplicate key, first on line 1", 3, 1),
        ("1: a", "keys must be strings, got 1", 1, 1),
        ("true: a", "keys must be strings, got true", 1, 1),
        ("~: a", "keys must be strings, got ~", 1, 1),
        ("?\n: a", "keys must be strings, got nothing", 1, 2),
        ("? [a]\n: b", "keys must be strings, got a list, mapping or alias", 1, 3),
        ("{a: 1}: b", "keys must be strings, got a list, mapping or alias", 1, 1),
        ("a: 1\n---\nb: 2", "only one document is allowed in a file", 2, 1),
        ("%YAML 1.1\n---\na: 1", "% directives are not allowed", 1, 1),
        ("%TAG ! tag:x,2000:\n---\na: 1", "% directives are not allowed", 1, 1),
        ('a: "\\ud800"', "half of a surrogate pair is not a character", 1, 4),
        ("a: 1\nb: \x07", "is not valid YAML: the character U+0007 is not allowed", 2, 4),
        ("\x00", "is not valid YAML: the character U+0000 is not allowed", 1, 1),
    ],
)
def test_refuses(text: str, message: str, line: int, column: int) -> None:
    problem = the_problem(text)
    assert (problem.message, problem.line, problem.column) == (message, line, column)
    assert problem.hint is not None


@pytest.mark.parametrize(
    ("text", "hint", "line", "column"),
    [
        ("a:\n\tb: 1", "spaces, not with tabs", 2, 1),
        ("a: 'x\nb: 1", "never closed", 1, 4),
        ('a: "x\nb: 1', "never closed", 1, 4),
        ("a: [1\nb: 1", "without its ]", 1, 4),
        ("a: {b: 1\nc: 1", "without its }", 1, 4),
        ("a: {b: ${c}}", "within { } and [ ]", 1, 9),
        ("a: b: c", '": "', 1, 5),
        ("a\nb: 1", '": "', 2, 2),
        ("a: - b", "line of its own", 1, 4),
        ("a: @b", "quote a text that starts with this character", 1, 4),
        ("a: `b`", "quote a text that starts with this character", 1, 4),
        ("a: %b", "quote a text that starts with this character", 1, 4),
        ('a: "\\q"', "single quotes", 1, 6),
        ("a: *", "starts with *", 1, 5),
        ("a: !<x y", "starts with !", 1, 7),
        ("a: 1\n  b: 2\n", '": "', 2, 4),
        ("- a\nb: 1", "same column", 2, 1),
        ("a: [1, , 2]", "comma", 1, 8),
    ],
)
def test_syntax_errors_say_what_to_do(text: str, hint: str, line: int, column: int) -> None:
    problem = the_problem(text)
    assert problem.message.startswith("is not valid YAML: ")
    assert problem.hint is not None
    assert hint in problem.hint
    assert (problem.line, problem.column) == (line, column)


@pytest.mark.parametrize("text", ['a: "\\UFFFFFFFF"', f"%YAML 1.{'9' * 5000}\n---\na"])
def test_survives_what_pyyaml_does_not_check(text: str) -> None:
    assert the_problem(text).message.startswith("is not valid YAML: ")


def test_collects_problems_and_keeps_their_order() -> None:
    found = problems("a: no\nb: &x 1\na: 2\nc: [010, {d: 1, d: 2}]")
    assert [(problem.line, problem.key) for problem in found] == [
        (1, "a"),
        (2, "b"),
        (3, "a"),
        (4, "c[0]"),
        (4, "c[1].d"),
    ]


def test_problems_before_a_syntax_error_are_kept() -> None:
    first, second = problems("a: no\nb: 'x")
    assert first.key == "a"
    assert "never closed" in str(second)


def test_stops_at_so_many_problems() -> None:
    assert len(problems("- no\n" * 1000)) == MAX_PROBLEMS


class TestLimits:
    def test_size(self) -> None:
        padding = "#" * (MAX_BYTES - len("a: 1\n"))
        assert parse(f"a: 1\n{padding}", "f").value == {"a": 1}
        assert the_problem(f"a: 1\n{padding}#").message == "is larger than 256 KiB"
        assert the_problem(f"a: 1\n{padding[1:]}ä".encode()).message == "is larger than 256 KiB"

    @pytest.mark.parametrize(
        ("data", "line", "column"),
        [(b"\xff\xfea\x00", 1, 1), (b"a: 1\nb: caf\xe9\n", 2, 7), (b"a: \xc3", 1, 4), (b"a: \xed\xa0\x80", 1, 4)],
    )
    def test_encoding(self, data: bytes, line: int, column: int) -> None:
        problem = the_problem(data)
        assert problem.message.startswith("is not UTF-8: byte 0x")
        assert (problem.line, problem.column, problem.hint) == (line, column, "save the file as UTF-8")

    @pytest.mark.parametrize("pair", ["[]", '{"a":}'])
    def test_depth(self, pair: str) -> None:
        opening, closing = pair[:-1], pair[-1]
        parse(opening * MAX_DEPTH + closing * MAX_DEPTH, "f")
        problem = the_problem(opening * (MAX_DEPTH + 1) + closing * (MAX_DEPTH + 1))
        assert problem.message == f"is nested more than {MAX_DEPTH} deep"
        assert problem.column == len(opening) * MAX_DEPTH + 1

    @pytest.mark.parametrize(
        "text",
        [
            "[" * 3000,
            "[" * 3000 + "]" * 3000,
            "[" * MAX_BYTES,
            "[\n" * 3000,
            "{" * 3000,
            '{"a":' * 3000,
            "- " * 3000,
            "- " * (MAX_BYTES // 2),
            "? " * 3000,
            "".join(" " * depth + "a:\n" for depth in range(700)),
            "a: " + "[" * 31 + "a," * 130_000,
            "- " + "x: &a\n" * 40_000,
            "{" + "a:," * 80_000,
            "'" * (MAX_BYTES - 1),
            "%" * MAX_BYTES,
            "%a\n" * 80_000,
            "---\n" * 65_000,
            "| \n" * 80_000,
            "a" * MAX_BYTES + ":",
        ],
        ids=lambda text: f"{text[:8]!r}x{len(text)}",
    )
    def test_hostile_texts_end_soon_and_clearly(self, text: str) -> None:
        started = time.monotonic()
        assert problems(text)
        assert time.monotonic() - started < SECONDS

    def test_an_alias_bomb_stays_small(self) -> None:
        lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
        lines += [
            f"{name}: &{name} [{', '.join([f'*{below}'] * 9)}]"
            for below, name in zip("abcdefgh", "bcdefghi", strict=True)
        ]
        assert len(problems("\n".join(lines))) > 8 * 9


class TestFiles:
    def test_reads_a_file_under_its_name(self, tmp_path: Path) -> None:
        path = tmp_path / "x.yaml"
        path.write_bytes(b"a: 1\n")
        assert read(path).file == str(path)
        document = read(path, "scenarios/x.yaml")
        assert (document.value, document.file) == ({"a": 1}, "scenarios/x.yaml")

    def test_a_file_that_is_too_large_is_not_read_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "x.yaml"
        with path.open("wb") as file:
            file.truncate(10**12)
        with pytest.raises(ScenarioError, match="larger than 256 KiB"):
            read(path)

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ScenarioError, match=r"x\.yaml: does not exist"):
            read(tmp_path / "x.yaml")

    def test_directory(self, tmp_path: Path) -> None:
        with pytest.raises(ScenarioError, match="is not a regular file"):
            read(tmp_path)

    def test_fifo(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "x.yaml")
        with pytest.raises(ScenarioError, match="is not a regular file"):
            read(tmp_path / "x.yaml")

    def test_name_that_no_file_can_have(self) -> None:
        with pytest.raises(ScenarioError, match="f: "):
            read(Path("a\0b"), "f")


DOCUMENT = """\
# a comment
title: x
boot:
  machine: pc
  args: [quiet, "splash"]
drive:
  - balloon.inflate: {pages: 5}
  - wait:
"""


class TestMarks:
    @pytest.fixture
    def document(self) -> Document:
        return parse(DOCUMENT, "f.yaml")

    def test_every_value_and_key_has_its_mark(self, document: Document) -> None:
        assert document.values[()] == Mark(2, 1)
        assert document.values["boot", "machine"] == Mark(4, 12)
        assert document.keys["boot", "machine"] == Mark(4, 3)
        assert document.values["boot", "args", 1] == Mark(5, 17)
        assert document.values["drive", 0] == Mark(7, 5)
        assert document.keys["drive", 0, "balloon.inflate"] == Mark(7, 5)
        assert document.values["drive", 0, "balloon.inflate", "pages"] == Mark(7, 30)
        assert document.values["drive", 1, "wait"] == Mark(8, 10)

    @pytest.mark.parametrize(
        ("path", "line", "column"),
        [
            ((), 2, 1),
            (("title",), 2, 8),
            (("boot",), 3, 1),
            (("boot", "kernel"), 3, 1),
            (("boot", "args"), 5, 3),
            (("boot", "args", 0), 5, 10),
            (("boot", "args", 7), 5, 3),
            (("drive", 0, "balloon.inflate", "pages"), 7, 30),
            (("drive", 0, "balloon.inflate", "pages", "x", 3), 7, 23),
            (("drive", 0, "balloon.inflate", "mode"), 7, 5),
            (("drive", 5), 6, 1),
            (("nothing", "at", "all"), 2, 1),
        ],
    )
    def test_a_problem_points_at_the_nearest_mark(
        self, document: Document, path: tuple[str | int, ...], line: int, column: int
    ) -> None:
        problem = document.problem(path, "is wrong", "a hint")
        assert (problem.line, problem.column) == (line, column)
        assert (problem.file, problem.message, problem.hint) == ("f.yaml", "is wrong", "a hint")

    def test_an_unknown_key_is_marked_itself(self, document: Document) -> None:
        problem = document.problem(("boot", "machine"), "unknown key", at_key=True)
        assert (problem.line, problem.column, problem.key) == (4, 3, "boot.machine")

    def test_dotted(self) -> None:
        assert dotted(("drive", 1, "balloon.inflate", "pages")) == "drive[1].balloon.inflate.pages"
        assert dotted(()) == ""
        assert dotted((0, "a b", "\x1b[31m")) == '[0]."a b"."\\u001b[31m"'


def test_quoted_moves_no_cursor() -> None:
    assert quoted('a"b') == '"a\\"b"'
    assert quoted("\x1b[2J\u202e\u2028\x7f") == '"\\u001b[2J\\u202e\\u2028\\u007f"'
    assert len(quoted("x" * 10_000)) == 62


scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
tricky = st.sampled_from(
    ["no", "y", "010", "1e6", "08", "1:30", "<<", "~", "", "=", ".5", " x", "x: y", "- x", "!x", "x\ny", "${a}"]
)
values = st.recursive(
    scalars | texts | tricky,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts | tricky, inner, max_size=4),
    max_leaves=20,
)


@given(values)
@settings(deadline=None, max_examples=150)
def test_what_is_dumped_is_read_back(value: Any) -> None:
    found = parse(dump(value), "f").value
    assert found == value
    assert repr(found) == repr(value)


def test_dump_writes_no_aliases() -> None:
    shared = ["x"]
    assert parse(dump({"a": shared, "b": shared}), "f").value == {"a": ["x"], "b": ["x"]}


@given(st.text() | st.binary() | st.text("[]{}:,-?&*!|>'\"%@`#\n\t\\ ab0", max_size=60))
@example('"\\UFFFFFFFF"')
@example("%YAML 1.99")
@example("\ud800")
@settings(deadline=2000, max_examples=600)
def test_arbitrary_text_gives_plain_values_or_problems(text: bytes | str) -> None:
    try:
        document = parse(text, "f")
    except ScenarioError as error:
        assert error.problems
        assert all(problem.message for problem in error.problems)
    else:
        assert_plain(document.value)
        assert all(mark.line > 0 and mark.column > 0 for mark in document.values.values())


def assert_plain(value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            assert type(key) is str
            assert_plain(item)
    elif isinstance(value, list):
        for item in value:
            assert_plain(item)
    else:
        assert value is None or type(value) in (str, int, float, bool)
        assert not (isinstance(value, float) and not math.isfinite(value))
