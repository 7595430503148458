"""Mutants: which are read, in which order scenarios meet them, and what the score counts."""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from harness.errors import BuildFailed, HarnessError, UsageError
from harness.images.under_test import Override, parse_overrides
from harness.mutate import Fate, Gauntlet, Mutant, print_mutants, read_mutants, score
from harness.report.progress import Silent
from harness.result import FailedAssertion, ScenarioResult, Verdict
from harness.runner import Settings
from harness.scenario.model import Scenario

PATCH = "Breaks it.\n\n--- a/x.c\n+++ b/x.c\n@@ -1 +1 @@\n-a\n+b\n"


def fates(*of: Fate) -> list[Mutant]:
    return [Mutant(f"m{number}", "", fate) for number, fate in enumerate(of)]


def test_the_score_counts_what_was_built() -> None:
    assert score(fates(Fate.KILLED, Fate.KILLED, Fate.SURVIVED, Fate.NOT_BUILT)) == pytest.approx(200 / 3)
    assert score(fates(Fate.KILLED, Fate.ERROR)) == 50
    assert score(fates(Fate.NOT_BUILT)) == 100
    assert score([]) == 100


def test_mutants_are_the_patches_of_a_directory(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there are no patches in"):
        read_mutants("x", tmp_path, ["x"])
    for name in ("b.patch", "a.diff", "notes.txt"):
        (tmp_path / name).write_text(PATCH)
    assert [item.sources[0].name for item in read_mutants("x", tmp_path, ["x"])] == ["a.diff", "b.patch"]
    with pytest.raises(UsageError, match="unknown component 'y'"):
        read_mutants("y", tmp_path, ["x"])
    (tmp_path / "c.patch").write_text("nothing of the kind")
    with pytest.raises(UsageError, match="is no kernel module, patch or source tree"):
        read_mutants("x", tmp_path, ["x"])


@dataclass
class Course:
    """What a runner would say, by mutant and scenario, instead of running anything; and what it was asked to run."""

    verdicts: Mapping[tuple[str, str], Verdict]
    asked: list[tuple[str, str, int]] = field(default_factory=list)

    def runner(self, settings: Settings, observer: object) -> Course.Lane:
        return Course.Lane(self, settings.results.name)

    @dataclass
    class Lane:
        course: Course
        mutant: str

        def run(self, scenario: Scenario) -> ScenarioResult:
            self.course.asked.append((self.mutant, scenario.id, scenario.timeout_s))
            verdict = self.course.verdicts.get((self.mutant, scenario.id), Verdict.PASS)
            result = ScenarioResult(scenario.id, "", "", (), {}, Path(), verdict=verdict, reason="said\nmore")
            result.accel = {"used": "tcg"}
            result.seconds.drive = {"quick": 4.0, "slow": 80.0}[scenario.id]
            result.seconds.wait = {"quick": 200.0, "slow": 0.0}[scenario.id]  # for whatever else this host runs
            result.seconds.total = result.seconds.drive + result.seconds.wait
            if verdict is Verdict.FAIL:
                result.failed_assertions = [FailedAssertion("a == 1", {})]
            return result


class Place:
    """The parts of a workspace that a gauntlet uses."""

    def __init__(self) -> None:
        self.images = self.verbs = self.saved = None
        self.profiles = {"pc": SimpleNamespace(tcg_factor=4.0)}

    def prepare(self, scenarios: object, overrides: Mapping[str, Override]) -> dict[str, HarnessError]:
        error = BuildFailed("module x does not build: x.c:1: no")
        return {"quick": error} if overrides and overrides["x"].sources[0].stem == "broken" else {}


def gauntlet(course: Course, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gauntlet:
    monkeypatch.setattr("harness.trials.Runner", course.runner)
    scenarios = [SimpleScenario("slow"), SimpleScenario("quick")]
    made = Gauntlet(Place(), "x", scenarios, "tcg", tmp_path, Silent())  # type: ignore[arg-type]
    assert [result.id for result in made.baseline()] == ["slow", "quick"]
    return made


@dataclass(frozen=True)
class SimpleScenario:
    """The parts of a scenario that a gauntlet looks at."""

    id: str
    timeout_s: int = 600
    boot: object = field(default_factory=lambda: SimpleNamespace(machine="pc"))


def mutant_of(tmp_path: Path, name: str) -> Override:
    (tmp_path / f"{name}.patch").write_text(PATCH)
    return parse_overrides([f"x={tmp_path / name}.patch"], ["x"])["x"]


def test_a_mutant_ends_at_its_first_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    course = Course({("one", "slow"): Verdict.FAIL, ("two", "slow"): Verdict.FAIL})
    made = gauntlet(course, tmp_path, monkeypatch)
    course.asked.clear()
    one, two, three = made.run_all([mutant_of(tmp_path, name) for name in ("one", "two", "three")])
    assert (one.fate, one.by, one.why, one.summary) == (Fate.KILLED, "slow", "a == 1", "Breaks it.")
    assert -200 <= one.seconds < -190, "what the host did meanwhile is not the mutant's: here no time passes"
    assert two.fate is Fate.KILLED
    assert three.fate is Fate.SURVIVED
    # the quickest first, until another has killed; four times what good code took, and no less than 30 s
    assert course.asked[:3] == [("one", "quick", 30), ("one", "slow", 80), ("two", "slow", 80)]


def test_the_next_mutant_is_built_while_one_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the scenario that it meets first; one that does not build is told of in its turn."""
    course = Course({})
    made = gauntlet(course, tmp_path, monkeypatch)
    built, ran = threading.Event(), list[str]()
    plain = Place.prepare

    def prepare(self: Place, scenarios: Any, overrides: Mapping[str, Override]) -> dict[str, HarnessError]:
        if threading.current_thread() is not threading.main_thread():
            assert [item.id for item in scenarios] == ["quick"]
            built.set()
        return plain(self, scenarios, overrides)

    def run(self: Course.Lane, scenario: Scenario) -> ScenarioResult:
        ran.append(self.mutant)
        assert built.wait(10)
        return lane(self, scenario)

    lane = Course.Lane.run
    monkeypatch.setattr(Place, "prepare", prepare)
    monkeypatch.setattr(Course.Lane, "run", run)
    came = [item.fate for item in made.run_all([mutant_of(tmp_path, name) for name in ("one", "broken")])]
    assert ran == ["one", "one"]
    assert came == [Fate.SURVIVED, Fate.NOT_BUILT]


def test_each_file_has_its_turn_before_another_row_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = gauntlet(Course({}), tmp_path, monkeypatch)
    took = {"a[pc]": 1.0, "a[virt]": 2.0, "b[pc]": 9.0, "b[virt]": 8.0, "c": 5.0}
    made._scenarios = [SimpleScenario(name) for name in took]  # type: ignore[misc]
    made._took, made._kills = took, {"b[pc]": 1, "a[virt]": 1}
    assert [item.id for item in made._order()] == ["a[virt]", "b[pc]", "c", "a[pc]", "b[virt]"]


def test_a_mutant_meets_first_what_it_is_meant_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    course = Course({})
    run = gauntlet(course, tmp_path, monkeypatch).run
    course.asked.clear()
    (tmp_path / "one.patch").write_text(PATCH.replace("\n", "\nFor: slow\n", 1))
    one = run(parse_overrides([f"x={tmp_path / 'one.patch'}"], ["x"])["x"])
    run(mutant_of(tmp_path, "two"))
    assert one.summary == "Breaks it."
    assert [scenario for _, scenario, _ in course.asked] == ["slow", "quick", "quick", "slow"]


def test_an_error_is_no_kill_and_two_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    course = Course(
        {
            ("hang", "slow"): Verdict.ERROR,
            ("hang", "quick"): Verdict.ERROR,
            ("late", "quick"): Verdict.ERROR,
            ("late", "slow"): Verdict.FAIL,
            ("odd", "quick"): Verdict.ERROR,
        }
    )
    run = gauntlet(course, tmp_path, monkeypatch).run
    hang = run(mutant_of(tmp_path, "hang"))
    assert (hang.fate, hang.by, hang.why) == (Fate.ERROR, "slow", "said")
    assert run(mutant_of(tmp_path, "late")).fate is Fate.KILLED
    assert run(mutant_of(tmp_path, "odd")).fate is Fate.ERROR


def test_a_mutant_that_does_not_build_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = gauntlet(Course({}), tmp_path, monkeypatch).run(mutant_of(tmp_path, "broken"))
    assert (broken.fate, broken.why, broken.results) == (Fate.NOT_BUILT, "module x does not build: x.c:1: no", [])


def test_what_does_not_pass_on_good_code_meets_no_mutant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    course = Course({("baseline", "slow"): Verdict.SKIP})
    run = gauntlet(course, tmp_path, monkeypatch).run
    course.asked.clear()
    run(mutant_of(tmp_path, "one"))
    assert [scenario for _, scenario, _ in course.asked] == ["quick"]


def test_a_mutant_as_json() -> None:
    mutant = Mutant("off-by-one", "Counts wrong.", Fate.KILLED, "balloon/resize[pc]", "up.actual == 1", 12.345)
    assert mutant.to_json() == {
        "name": "off-by-one",
        "summary": "Counts wrong.",
        "fate": "killed",
        "by": "balloon/resize[pc]",
        "why": "up.actual == 1",
        "seconds": 12.3,
        "inexact": [],
        "results": [],
    }


def test_a_mutant_that_does_not_fit_exactly_is_told_of_once() -> None:
    line = "m/off.patch: mm/x.c, hunk 1 fits only with fuzz 2, at line 9"
    results: list[dict[str, Any]] = [{"under_test": [{"component": "x", "inexact": [line]}]}] * 2
    out = io.StringIO()
    mutant = Mutant("off", "Counts wrong.", Fate.KILLED, "x", "a == 1", 1.0, results)
    print_mutants(Console(file=out, width=40), [mutant])
    assert out.getvalue().count(f"does not fit exactly: {line}\n") == 1
    assert mutant.to_json()["inexact"] == [line]


def test_good_code_of_a_kernel_is_a_small_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's own would tell nothing of what small ones, which mutants are, can do without any patch."""
    course = Course({})
    seen: list[Mapping[str, Override]] = []

    def runner(settings: Settings, observer: object) -> Course.Lane:
        seen.append(settings.overrides)
        return course.runner(settings, observer)

    monkeypatch.setattr("harness.trials.Runner", runner)
    monkeypatch.setattr(Place, "prepare", lambda *_: {})
    for component in ("kernel", "x"):
        made = Gauntlet(Place(), component, [SimpleScenario("quick")], "tcg", tmp_path, Silent())  # type: ignore[arg-type, list-item]
        assert len(list(made.baseline())) == 1
    assert (seen[0]["kernel"].kind, seen[0]["kernel"].sources) == ("patches", ())
    assert seen[1] == {}
