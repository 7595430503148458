"""Scenario files: what is wrong with them and where, and what comes of those that are right."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import Problem, ScenarioError
from harness.scenario.expect import Expectation
from harness.scenario.load import load_file, load_paths
from harness.scenario.model import Catalogue, Scenario
from harness.strict_yaml import dump
from tests.unit.catalogue import Inflate, Run, catalogue

BAD = Path(__file__).parent / "bad_scenarios"
_EXPECT = re.compile(r"# EXPECT line=(?P<line>\d+) key=(?P<key>.*?) message~(?P<message>.*?)(?: hint~(?P<hint>.*))?")

GOOD = """\
scenario: a balloon gives pages back
feature: balloon
boot: {machine: pc}
drive:
  - balloon.inflate: {as: up, pages: 5}
assert:
  - up.pages == 5
"""

Load = Callable[[str], list[Scenario]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "scenarios").mkdir()
    return tmp_path


@pytest.fixture
def load(root: Path) -> Load:
    """Load a text as ``scenarios/x.yaml``."""

    def load_text(text: str) -> list[Scenario]:
        path = root / "scenarios" / "x.yaml"
        path.write_text(text, encoding="utf-8")
        return load_file(path, catalogue(), root=root)

    return load_text


def problems_of(path: Path, root: Path, known: Catalogue | None = None) -> list[Problem]:
    with pytest.raises(ScenarioError) as caught:
        load_file(path, known or catalogue(), root=root)
    return list(caught.value.problems)


# -- files that are wrong ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """One EXPECT comment of a wrong file. Message and hint are regular expressions for the whole of them."""

    line: int
    key: str
    message: str
    hint: str | None


def expected_problems(path: Path) -> list[Expected]:
    comments = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# EXPECT ")]
    found = [_EXPECT.fullmatch(comment) for comment in comments]
    assert all(found), f"an EXPECT comment of {path.name} cannot be read"
    return [Expected(int(m["line"]), m["key"], m["message"], m["hint"]) for m in found if m is not None]


@pytest.mark.parametrize("path", sorted(BAD.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_wrong_file_is_told_exactly(path: Path) -> None:
    expected = expected_problems(path)
    found = problems_of(path, BAD)
    assert expected
    assert [(problem.line, problem.key) for problem in found] == [(item.line, item.key) for item in expected]
    for problem, item in zip(found, expected, strict=True):
        assert problem.file == path.name
        assert problem.column > 0
        assert re.fullmatch(item.message, problem.message), problem.message
        assert (problem.hint is None) == (item.hint is None), problem.hint
        assert item.hint is None or re.fullmatch(item.hint, problem.hint or ""), problem.hint


def test_there_are_many_wrong_files() -> None:
    assert len(list(BAD.glob("*.yaml"))) >= 70


def test_a_problem_reads_like_a_compiler_error() -> None:
    (problem,) = problems_of(BAD / "step-param-range-block.yaml", BAD)
    assert str(problem) == "step-param-range-block.yaml:8:14 drive[0].balloon.inflate.pages: must be 0..1023, got 4096"


@pytest.mark.parametrize(
    "character", ["\\n", "\\t", "\\e", "\\x7f", "\\x85", "\\u2028", "\\u202e"], ids=lambda escape: str(escape[1:])
)
def test_a_title_is_one_line(load: Load, character: str) -> None:
    with pytest.raises(ScenarioError, match="must be one line without control characters"):
        load(GOOD.replace("a balloon gives", f'"a{character}b"\n#'))


def test_a_title_may_be_in_any_language(load: Load) -> None:
    (scenario,) = load(GOOD.replace("a balloon gives", "ein Ballon\u00a0gibt — 風船"))
    assert scenario.title.endswith("風船 pages back")


def test_all_problems_come_at_once_and_in_order(load: Load) -> None:
    text = GOOD.replace("pc", "pcc").replace("balloon.inflate", "ballon.inflate").replace("up.pages", "upp.pages =")
    with pytest.raises(ScenarioError) as caught:
        load(text + "timeout_s: 0\nzzz: 1\n")
    assert [problem.key for problem in caught.value.problems] == [
        "boot.machine",
        "drive[0].ballon.inflate",
        "assert[0]",
        "timeout_s",
        "zzz",
    ]


def test_control_characters_never_reach_the_terminal(load: Load) -> None:
    with pytest.raises(ScenarioError) as caught:
        load(GOOD.replace("machine: pc", 'machine: "\\e[2Jpc"') + '"\\e]0;x": 1\n')
    assert len(caught.value.problems) == 2
    assert str(caught.value).replace("\n", "").isprintable()


class TestFiles:
    @pytest.mark.parametrize("data", [b"\xff\xfe" + GOOD.encode("utf-16-le"), b"\x7fELF\x02\x01\x01" + bytes(100)])
    def test_binary(self, root: Path, data: bytes) -> None:
        path = root / "x.yaml"
        path.write_bytes(data)
        (problem,) = problems_of(path, root)
        assert "is not" in problem.message

    def test_oversize(self, root: Path) -> None:
        path = root / "x.yaml"
        path.write_text(GOOD + "#" * 256 * 1024, encoding="utf-8")
        assert [problem.message for problem in problems_of(path, root)] == ["is larger than 256 KiB"]

    @pytest.mark.parametrize("nested", ["[" * 3000, "[" * 3000 + "]" * 3000, '{"a": ' * 3000, "- " * 3000])
    def test_deep(self, root: Path, nested: str) -> None:
        path = root / "x.yaml"
        path.write_text(f"{GOOD}description:\n  {nested}\n", encoding="utf-8")
        assert [problem.message for problem in problems_of(path, root)] == ["is nested more than 32 deep"]

    def test_missing(self, root: Path) -> None:
        (problem,) = problems_of(root / "x.yaml", root)
        assert str(problem) == "x.yaml: does not exist"

    def test_directory(self, root: Path) -> None:
        (root / "x.yaml").mkdir()
        assert [problem.message for problem in problems_of(root / "x.yaml", root)] == ["is not a regular file"]

    def test_device(self, root: Path) -> None:
        (root / "x.yaml").symlink_to("/dev/zero")
        assert problems_of(root / "x.yaml", root)[0].message.startswith("lies outside of ")

    @pytest.mark.parametrize("name", ["x.yml", "x", "x.json"])
    def test_suffix(self, root: Path, name: str) -> None:
        (root / name).write_text(GOOD, encoding="utf-8")
        assert problems_of(root / name, root)[0].message == "the name of a scenario file must end in .yaml"

    @pytest.mark.parametrize("name", ["a b.yaml", "[a].yaml", "-x.yaml", ".x.yaml", "ä.yaml", "a\nb.yaml"])
    def test_name(self, root: Path, name: str) -> None:
        (root / name).write_text(GOOD, encoding="utf-8")
        assert "cannot be a part of a scenario's id" in problems_of(root / name, root)[0].message

    def test_outside_of_the_root(self, root: Path) -> None:
        inner = root / "inner"
        inner.mkdir()
        (root / "x.yaml").write_text(GOOD, encoding="utf-8")
        for path in (root / "x.yaml", inner / ".." / "x.yaml"):
            assert problems_of(path, inner)[0].message == f"lies outside of {inner.resolve()}"

    def test_links(self, root: Path) -> None:
        inner = root / "inner"
        inner.mkdir()
        (root / "x.yaml").write_text(GOOD, encoding="utf-8")
        (inner / "y.yaml").write_text(GOOD, encoding="utf-8")
        (inner / "out.yaml").symlink_to("../x.yaml")
        (inner / "in.yaml").symlink_to("y.yaml")
        (inner / "loop.yaml").symlink_to("loop.yaml")
        (inner / "above").symlink_to("..")
        assert [scenario.id for scenario in load_file(inner / "in.yaml", catalogue(), root=inner)] == ["in"]
        assert "lies outside of" in problems_of(inner / "out.yaml", inner)[0].message
        assert "lies outside of" in problems_of(inner / "above" / "x.yaml", inner)[0].message
        assert problems_of(inner / "loop.yaml", inner)

    def test_name_that_no_file_can_have(self, root: Path) -> None:
        assert problems_of(root / "a\0b.yaml", root)[0].line == 0

    def test_relative_paths(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (root / "scenarios" / "x.yaml").write_text(GOOD, encoding="utf-8")
        monkeypatch.chdir(root)
        assert [scenario.id for scenario in load_file(Path("scenarios/x.yaml"), catalogue(), root=Path())] == ["x"]


class TestIds:
    @pytest.mark.parametrize(
        ("place", "scenario_id"),
        [
            ("scenarios/x.yaml", "x"),
            ("scenarios/balloon/inflate.yaml", "balloon/inflate"),
            ("scenarios/a/b/c-1.2_x.yaml", "a/b/c-1.2_x"),
            ("x.yaml", "x"),
            ("other/x.yaml", "other/x"),
            ("other/scenarios/x.yaml", "other/scenarios/x"),
            ("scenarios.yaml", "scenarios"),
        ],
    )
    def test_path(self, root: Path, place: str, scenario_id: str) -> None:
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(GOOD, encoding="utf-8")
        (scenario,) = load_file(path, catalogue(), root=root)
        assert (scenario.id, scenario.path) == (scenario_id, path)

    def test_matrix(self, load: Load) -> None:
        text = GOOD.replace("pages back", "${a} ${b}").replace("pages: 5", "pages: 5, timeout_s: '${c}'")
        text += "matrix: {a: [pc, x.y], b: [4, true], c: [1.5]}\n"
        assert [scenario.id for scenario in load(text)] == [
            "x[pc-4-1.5]",
            "x[pc-true-1.5]",
            "x[x.y-4-1.5]",
            "x[x.y-true-1.5]",
        ]


def test_load_paths(root: Path) -> None:
    base = root / "scenarios"
    (base / "b").mkdir()
    (base / ".cache").mkdir()
    for name in ("a.yaml", "b/c.yaml", "b/bad.yaml", "b/old.yml", ".cache/bad.yaml", ".bad.yaml"):
        (base / name).write_text(GOOD if "bad" not in name else "scenario: x\n", encoding="utf-8")
    scenarios, problems = load_paths(
        [base, base / "a.yaml", root / "none.yaml"], lambda file: load_file(file, catalogue(), root=root)
    )
    assert [scenario.id for scenario in scenarios] == ["a", "b/c"]
    assert {Path(problem.file).name for problem in problems} == {"bad.yaml", "old.yml", "none.yaml"}
    assert not [problem for problem in problems if "/." in problem.file], "what is hidden is left alone"


# -- what comes of a file that is right ----------------------------------------------------------------------

FULL = """\
# yaml-language-server: $schema=../scenario.schema.json
scenario: everything that a scenario can say, on ${machine}
feature: balloon
description: |
  Two
  lines.
tags: [gate, nightly]
boot:
  machine: ${machine}
  kernel: debian-6-12
  memory_mib: 512
  vcpus: ${cpus}
  kernel_args: [quiet, "hugepages=${cpus}", "dyndbg=file:a.c,+p"]
  devices:
    balloon0: {deflate-on-oom: true, page-limit: 0x10, iommu: "on"}
  fresh: true
load:
  - guest: balloon-probe
  - guest: {name: xen-privcmd, parameters: {limit: 5, deep: false, mode: "a b"}}
drive:
  - balloon.inflate: {as: up, pages: 5}
  - memory.compact:
  - memory.compact: {as: compaction}
  - guest.run:
      as: ran
      argv: [echo, "$${HOME} ${cpus}"]
assert:
  - up.pages == 5 && up.ok
  - compaction.zones.all(zone, zone.free > ${cpus})
  - ran.status == 0
allow_crash:
  - {layer: qemu, title: "WARNING: .* at mm/"}
known_failure:
  - when: {cpus: 2}
    reason: https://bugs.example/1
    assertion: compaction.zones.all(zone, zone.free > ${cpus})
  - reason: always
matrix:
  machine: [pc]
  cpus: [1, 2]
timeout_s: 60
"""


class TestScenario:
    @pytest.fixture
    def both(self, load: Load) -> list[Scenario]:
        return load(FULL)

    def test_boot(self, both: list[Scenario]) -> None:
        one, two = both
        assert (one.boot.vcpus, two.boot.vcpus) == (1, 2)
        assert one.boot.kernel_args == ("quiet", "hugepages=1", "dyndbg=file:a.c,+p")
        assert one.boot.devices == {"balloon0": {"deflate-on-oom": True, "page-limit": 16, "iommu": "on"}}
        assert (one.boot.machine, one.boot.kernel, one.boot.memory_mib, one.boot.fresh) == (
            "pc",
            "debian-6-12",
            512,
            True,
        )

    def test_load(self, both: list[Scenario]) -> None:
        first, second = both[0].load
        assert (first.layer, first.module, first.parameters) == ("guest", "balloon-probe", {})
        assert (second.module, second.parameters) == ("xen-privcmd", {"limit": 5, "deep": False, "mode": "a b"})

    def test_drive(self, both: list[Scenario]) -> None:
        steps = both[1].drive
        assert [step.verb.name for step in steps] == [
            "balloon.inflate",
            "memory.compact",
            "memory.compact",
            "guest.run",
        ]
        assert [step.name for step in steps] == ["up", None, "compaction", "ran"]
        assert [step.line for step in steps] == [21, 22, 23, 24]
        assert steps[3].key == "drive[3].guest.run"
        assert steps[0].params == Inflate(pages=5)
        assert steps[3].params == Run(argv=["echo", "${HOME} 2"])

    def test_the_rest(self, both: list[Scenario]) -> None:
        one = both[0]
        assert (one.title, one.feature, one.tags) == (
            "everything that a scenario can say, on pc",
            "balloon",
            ("gate", "nightly"),
        )
        assert one.assertions[1] == Expectation("compaction.zones.all(zone, zone.free > 1)")
        assert [(crash.layer, crash.title) for crash in one.allow_crash] == [("qemu", "WARNING: .* at mm/")]
        assert (one.timeout_s, one.matrix) == (60, {"machine": "pc", "cpus": 1})

    def test_known_failures_are_those_of_the_combination(self, both: list[Scenario]) -> None:
        one, two = both
        assert [known.reason for known in one.known_failure] == ["always"]
        assert [known.reason for known in two.known_failure] == ["https://bugs.example/1", "always"]
        assert two.known_failure[0].assertion == "compaction.zones.all(zone, zone.free > 2)"

    def test_what_was_resolved_is_a_scenario_itself(self, both: list[Scenario], load: Load) -> None:
        for scenario in both:
            (again,) = load(dump(dict(scenario.resolved)))
            assert_same(scenario, again)

    def test_defaults(self, load: Load) -> None:
        (scenario,) = load(GOOD)
        assert (scenario.tags, scenario.load, scenario.allow_crash, scenario.known_failure) == ((), (), (), ())
        assert (scenario.timeout_s, scenario.matrix, scenario.id) == (600, {}, "x")
        assert scenario.boot.model_dump(exclude_defaults=True) == {"machine": "pc"}

    def test_nothing_can_be_changed(self, both: list[Scenario]) -> None:
        with pytest.raises(AttributeError):
            both[0].title = "x"  # type: ignore[misc]
        with pytest.raises(ValueError, match="frozen"):
            both[0].boot.vcpus = 5  # type: ignore[misc]

    def test_combinations_share_nothing(self, both: list[Scenario]) -> None:
        assert both[0].resolved["boot"] is not both[1].resolved["boot"]


def assert_same(scenario: Scenario, again: Scenario) -> None:
    """Two scenarios agree in everything but where they stand and the matrix that is no longer there."""
    for name in ("title", "feature", "tags", "boot", "load", "assertions", "allow_crash", "timeout_s"):
        assert getattr(scenario, name) == getattr(again, name)
    assert [(s.verb.name, s.name, s.params) for s in scenario.drive] == [
        (s.verb.name, s.name, s.params) for s in again.drive
    ]
    assert [k.reason for k in scenario.known_failure] == [k.reason for k in again.known_failure]


class TestMatrix:
    def test_a_value_alone_keeps_its_type(self, load: Load) -> None:
        text = GOOD.replace("pages: 5", "pages: 5, mode: fast, timeout_s: '${t}'")
        (scenario,) = load(text.replace("mode: fast", "mode: '${m}'") + "matrix: {t: [2.5], m: [slow]}\n")
        assert scenario.drive[0].params == Inflate(pages=5, mode="slow", timeout_s=2.5)

    def test_keys_are_left_alone(self, load: Load) -> None:
        text = GOOD + "load:\n  - guest: {name: balloon-probe, parameters: {'${a}': 1}}\nmatrix: {a: [b]}\n"
        with pytest.raises(ScenarioError) as caught:
            load(text)
        assert [problem.key for problem in caught.value.problems] == ['load[0].guest.parameters."${a}"', "matrix.a"]

    def test_escapes(self, load: Load) -> None:
        for text, value in (("$${a}", "${a}"), ("$$${a}", "$${a}"), ("$a {a} $", "$a {a} $"), ("x$${", "x${")):
            (scenario,) = load(GOOD.replace("a balloon gives pages back", f"'{text}'"))
            assert scenario.title == value
            (again,) = load(dump(dict(scenario.resolved)))
            assert again.title == value

    def test_marks_still_point_into_the_file(self, load: Load) -> None:
        with pytest.raises(ScenarioError) as caught:
            load(GOOD.replace("pages: 5", "pages: '${pages}'") + "matrix: {pages: [1, 2, 5000, 6000]}\n")
        first, second = caught.value.problems
        assert (first.line, first.column, second.line, second.column) == (5, 38, 5, 38)
        assert first.message == "must be 0..1023, got 5000 (in [5000])"

    def test_many_combinations_load_soon(self, load: Load) -> None:
        steps = "".join(f"  - balloon.inflate: {{as: u{n}, pages: '${{b}}'}}\n" for n in range(20))
        asserts = "".join(f"  - u{n}.pages == ${{b}} && u{n}.seconds < ${{a}}\n" for n in range(20))
        axis = list(range(1, 11))
        text = f"scenario: x\nfeature: balloon\nboot: {{machine: pc}}\nmatrix: {{a: {axis}, b: {axis}}}\n"
        started = time.monotonic()
        assert len(load(f"{text}drive:\n{steps}assert:\n{asserts}")) == 100
        assert time.monotonic() - started < 20


# -- any file at all -----------------------------------------------------------------------------------------

names = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,10}", fullmatch=True)
lines = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=40)
scalars = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text("abc ,=$/'\"#:{}[]-", max_size=12)


@st.composite
def scenario_files(draw: st.DrawFn) -> dict[str, Any]:
    """A scenario file that is right."""
    pages = draw(st.lists(st.integers(0, 1023), min_size=1, max_size=3, unique=True))
    parameters = st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True), scalars, max_size=3)
    file: dict[str, Any] = {
        "scenario": draw(lines).replace("${", "$ {"),
        "feature": draw(st.sampled_from(["balloon", "ioeventfd"])),
        "tags": draw(st.lists(names, max_size=3, unique=True)),
        "boot": {"machine": "pc", "memory_mib": draw(st.none() | st.integers(64, 65536)), "fresh": draw(st.booleans())},
        "load": [{"guest": {"name": "balloon-probe", "parameters": draw(parameters)}}],
        "drive": [
            {"balloon.inflate": {"as": "up", "pages": "${pages}", "timeout_s": draw(st.floats(0.001, 3600))}},
            {"guest.run": {"as": "ran", "argv": [draw(lines)], "env": draw(st.dictionaries(lines, lines, max_size=2))}},
        ],
        "assert": ["up.pages == ${pages}", f"ran.stdout != '{draw(names)}'"],
        "matrix": {"pages": pages},
        "timeout_s": draw(st.integers(1, 7200)),
    }
    escaped: dict[str, Any] = escape_placeholders(file)
    return escaped


def escape_placeholders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: escape_placeholders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [escape_placeholders(item) for item in value]
    return value.replace("${", "$${").replace("$${pages}", "${pages}") if isinstance(value, str) else value


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("generated") / "x.yaml"


@given(file=scenario_files())
@settings(deadline=None, max_examples=60)
def test_a_generated_file_loads_and_loads_again(place: Path, file: dict[str, Any]) -> None:
    place.write_text(dump(file), encoding="utf-8")
    scenarios = load_file(place, catalogue(), root=place.parent)
    assert len(scenarios) == len(file["matrix"]["pages"])
    for scenario, pages in zip(scenarios, file["matrix"]["pages"], strict=True):
        assert scenario.drive[0].params.model_dump()["pages"] == pages
        place.write_text(dump(dict(scenario.resolved)), encoding="utf-8")
        (again,) = load_file(place, catalogue(), root=place.parent)
        assert_same(scenario, again)


@given(data=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
@settings(deadline=2000, max_examples=200)
def test_an_arbitrary_file_gives_problems(place: Path, data: bytes) -> None:
    place.write_bytes(data)
    with pytest.raises(ScenarioError) as caught:
        load_file(place, catalogue(), root=place.parent)
    assert caught.value.problems


KEYS = [
    "scenario",
    "feature",
    "boot",
    "machine",
    "kernel",
    "devices",
    "load",
    "guest",
    "drive",
    "balloon.inflate",
    "as",
    "pages",
]
KEYS += [
    "assert",
    "matrix",
    "known_failure",
    "when",
    "reason",
    "assertion",
    "allow_crash",
    "layer",
    "title",
    "tags",
    "name",
]
WORDS = [
    "pc",
    "balloon",
    "up",
    "up.pages == 5",
    "${a}",
    "${",
    "$${",
    "up.x",
    "a",
    "balloon0",
    "guest",
    "debian-6-1",
    "",
    "(",
]
junk = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2000) | st.floats(-5, 5) | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@given(file=st.dictionaries(st.sampled_from(KEYS), junk, max_size=8))
@settings(deadline=2000, max_examples=300)
def test_a_file_of_the_right_words_in_wrong_places_gives_problems(place: Path, file: dict[str, Any]) -> None:
    shape = {
        "scenario": "x",
        "feature": "balloon",
        "boot": {"machine": "pc"},
        "drive": [{"balloon.inflate": {"as": "up", "pages": 5}}],
    }
    place.write_text(dump({**shape, "assert": ["up.ok"], **file}), encoding="utf-8")
    try:
        scenarios = load_file(place, catalogue(), root=place.parent)
    except ScenarioError as error:
        told = [(problem.line, problem.column, problem.key, problem.message) for problem in error.problems]
        assert told
        assert len(set(told)) == len(told), "nothing is told twice"
    else:
        assert scenarios
