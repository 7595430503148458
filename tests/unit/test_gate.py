"""The gate says yes to what was seen to pass, and no to everything else, for each kind of rule."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ScenarioError
from harness.gate.judge import Check, Decision, Judge, State
from harness.gate.policy import read_policy
from harness.progress import SilentProgress
from harness.records.outcome import Outcome
from harness.records.read import ReadMutation
from harness.result import Crash, FailedAssertion, Verdict
from harness.scenario.model import Scenario
from harness.workspace import Workspace
from tests.unit.records import NOW, outcome, result, summary, swapped, write

CHECKOUT = Path(__file__).parents[2]
HARNESS = Path(sys.executable).with_name("harness")
COMPONENTS = frozenset({"virtio_balloon", "xen_privcmd"})

SCENARIO = """
scenario: {title}
feature: balloon
tags: [{tag}]
matrix:
  machine: [pc, virt]
boot:
  machine: ${{machine}}
load:
  - guest: virtio_balloon
drive:
  - balloon.inflate: {{as: up, mib: 64}}
assert:
  - up.inflated == 16384
"""


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> list[Scenario]:
    root = tmp_path_factory.mktemp("catalogue") / "scenarios"
    (root / "balloon").mkdir(parents=True)
    for name, tag in (("resize", "gate"), ("slow", "nightly")):
        (root / "balloon" / f"{name}.yaml").write_text(SCENARIO.format(title=name, tag=tag))
    found, problems = Workspace(SilentProgress()).load([root])
    assert not problems
    return found


@pytest.fixture(scope="module")
def sha256(scenarios: list[Scenario]) -> dict[str, str]:
    return {item.id: item.sha256 for item in scenarios}


class Gate:
    """Judges policies by outcomes of the two scenarios with the tag ``gate``, one hour apart, up to :data:`NOW`."""

    def __init__(self, scenarios: list[Scenario], tmp_path: Path) -> None:
        self.scenarios = scenarios
        self.file = tmp_path / "policy.yaml"
        self.outcomes: list[Outcome] = []
        self.mutations: list[ReadMutation] = []

    def saw(self, hours_ago: float, verdict: Verdict = Verdict.PASS, row: str = "pc", **changes: Any) -> None:
        name = f"balloon/resize[{row}]"
        sha256 = next(item.sha256 for item in self.scenarios if item.id == name)
        started = (NOW - timedelta(hours=hours_ago)).isoformat()
        values = {"id": name, "scenario_sha256": sha256, "started": started, **changes}
        self.outcomes.append(outcome(round(hours_ago * 100), verdict, **values))

    def decide(self, text: str) -> Decision:
        self.file.write_text(f"policy: a release\n{text}")
        policy, _ = read_policy(self.file, self.scenarios, COMPONENTS)
        return Judge(policy, self.scenarios, self.outcomes, self.mutations, NOW).decide()

    def check(self, text: str) -> Check:
        """The first check that is not fine, else the first."""
        decision = self.decide(text)
        checks = [check for ruling in decision.rulings for check in ruling.checks]
        assert decision.yes is all(check.state.fine for check in checks)
        return next((check for check in checks if not check.state.fine), checks[0])


@pytest.fixture
def gate(scenarios: list[Scenario], tmp_path: Path) -> Gate:
    return Gate(scenarios, tmp_path)


GATE = "require:\n  - tags: [gate]\n"
PC = 'require:\n  - scenarios: ["balloon/resize[pc]"]\n'


def test_all_that_is_asked_for_was_seen(gate: Gate) -> None:
    gate.saw(1)
    gate.saw(1, row="virt")
    decision = gate.decide(GATE)
    assert decision.yes
    assert [check.subject for check in decision.rulings[0].checks] == ["balloon/resize[pc]", "balloon/resize[virt]"]


def test_never_run_is_not_passed(gate: Gate) -> None:
    gate.saw(1)
    check = gate.check(GATE)
    assert (check.subject, check.state, check.evidence) == ("balloon/resize[virt]", State.MISSING, "never run")


@pytest.mark.parametrize(
    ("verdict", "state"),
    [(Verdict.FAIL, State.BROKEN), (Verdict.ERROR, State.MISSING), (Verdict.SKIP, State.MISSING)],
)
def test_only_a_pass_is_a_pass(gate: Gate, verdict: Verdict, state: State) -> None:
    gate.saw(2)
    gate.saw(1, verdict, reason="as it is")
    check = gate.check(PC)
    assert check.state is state
    assert f"{verdict} 1.0 hours ago" in check.evidence and "as it is" in check.evidence


def test_a_later_pass_outweighs_an_earlier_failure_and_not_the_reverse(gate: Gate) -> None:
    gate.saw(1)
    gate.saw(2, Verdict.FAIL)
    assert gate.check(PC).state is State.MET


@pytest.mark.parametrize(
    ("hours", "bad", "state"),
    [([3, 2, 1], None, State.MET), ([2, 1], None, State.MISSING), ([4, 3, 1], 2, State.BROKEN)],
)
def test_several_times_in_a_row(gate: Gate, hours: Sequence[int], bad: int | None, state: State) -> None:
    for ago in hours:
        gate.saw(ago)
    if bad is not None:
        gate.saw(bad, Verdict.FAIL)
    assert gate.check(f"{PC}    passes_in_a_row: 3\n").state is state


def test_an_error_breaks_a_row(gate: Gate) -> None:
    gate.saw(3)
    gate.saw(2, Verdict.ERROR)
    gate.saw(1)
    assert gate.check(f"{PC}    passes_in_a_row: 2\n").state is State.MISSING


def test_too_old(gate: Gate) -> None:
    gate.saw(30)
    assert gate.check(PC).state is State.MET
    check = gate.check(f"{PC}    max_age_days: 1\n")
    assert (check.state, check.evidence[:7]) == (State.MISSING, "too old")
    assert gate.check(f"max_age_days: 1.2\n{PC}").state is State.MISSING


def test_a_result_of_tomorrow_is_none(gate: Gate) -> None:
    gate.saw(-20)
    assert gate.check(PC).evidence == "never run (not counted: 1 dated in the future)"


def test_accelerators(gate: Gate) -> None:
    gate.saw(1)
    check = gate.check(f"{PC}    accelerators: [tcg, kvm]\n")
    assert check.subject == "balloon/resize[pc] under kvm"
    assert check.evidence == "never run (not counted: 1 under tcg)"
    gate.saw(0.5, accel={"used": "kvm", "why": ""})
    assert gate.check(f"{PC}    accelerators: [tcg, kvm]\n").state is State.MET
    gate.saw(0.2, Verdict.ERROR, accel={})
    assert gate.check(f"{PC}    accelerators: [tcg, kvm]\n").state is State.MISSING


def test_matrix_rows(gate: Gate) -> None:
    gate.saw(1, row="virt")
    rows = "require:\n  - features: [balloon]\n    tags: [gate]\n    rows: {machine: [%s]}\n"
    assert gate.check(rows % "virt").state is State.MET
    assert gate.check(rows % "virt, pc").state is State.MISSING


def test_an_outcome_of_a_scenario_that_was_changed_since(gate: Gate) -> None:
    gate.saw(1, scenario_sha256="00" * 32)
    assert "1 of the scenario as it was before it was changed" in gate.check(PC).evidence


def test_what_was_under_test(gate: Gate) -> None:
    """Somebody's experiment says nothing of the images' own code, nor the reverse."""
    gate.saw(2)
    gate.saw(1, Verdict.FAIL, under_test=[swapped("virtio_balloon", "ab" * 32)])
    assert gate.check(PC).state is State.MET
    candidate = PC + "    under_test: {virtio_balloon: %s}\n"
    assert gate.check(candidate % "any").state is State.BROKEN
    gate.saw(0.5, under_test=[swapped("virtio_balloon", "cd" * 32)])
    assert gate.check(candidate % "any").state is State.MET
    assert gate.check(candidate % "cdcdcdcd").state is State.MET
    check = gate.check(candidate % "efefefef")
    assert check.state is State.MISSING
    assert "1 with nothing under test, 2 with virtio_balloon under test" in check.evidence


EXCUSE = """known_failures:
  - scenario: "balloon/resize*"
    reason: bug 7
    link: https://bugs.example.org/7
    expires: {expires}
"""


def test_a_known_failure(gate: Gate) -> None:
    failed = [FailedAssertion("up.inflated == 16384", {})]
    gate.saw(1, Verdict.FAIL, failed_assertions=failed)
    excuse = EXCUSE.format(expires="2026-11-25")
    check = gate.check(PC + excuse)
    assert check.state is State.EXCUSED
    assert "bug 7 (https://bugs.example.org/7) until 2026-11-25" in check.evidence
    assert gate.check(f"{PC}{excuse}    assertion: up.inflated == 16384\n").state is State.EXCUSED
    assert gate.check(f"{PC}{excuse}    assertion: up.deflated == 0\n").state is State.BROKEN


def test_a_known_failure_that_has_expired(gate: Gate) -> None:
    gate.saw(1, Verdict.FAIL)
    policy = PC + EXCUSE.format(expires="2026-11-24")
    check = gate.check(policy)
    assert check.state is State.BROKEN
    assert "it was a known failure until 2026-11-24" in check.evidence
    assert gate.decide(policy).notes == ("known_failures[0] (balloon/resize*) has expired on 2026-11-24",)


def test_a_known_failure_of_the_scenario_that_has_expired(gate: Gate) -> None:
    gate.saw(1, Verdict.SKIP, reason="known failure: bug 7")
    check = gate.check(PC + EXCUSE.format(expires="2026-11-24"))
    assert check.state is State.MISSING
    assert "it was a known failure until 2026-11-24" in check.evidence


@pytest.mark.parametrize(("verdict", "reason"), [(Verdict.ERROR, ""), (Verdict.SKIP, "no such machine")])
def test_a_known_failure_excuses_failures_only(gate: Gate, verdict: Verdict, reason: str) -> None:
    gate.saw(1, verdict, reason=reason)
    assert gate.check(PC + EXCUSE.format(expires="2027-01-01")).state is State.MISSING


def test_a_known_failure_does_not_excuse_a_crash_beside_its_assertion(gate: Gate) -> None:
    failed = [FailedAssertion("up.inflated == 16384", {})]
    gate.saw(1, Verdict.FAIL, failed_assertions=failed, crashes=[Crash("guest", "BUG: x", "bug")])
    excuse = EXCUSE.format(expires="2027-01-01")
    assert gate.check(f"{PC}{excuse}    assertion: up.inflated == 16384\n").state is State.BROKEN


def test_a_known_failure_of_the_scenario_needs_the_policys_word(gate: Gate) -> None:
    gate.saw(1, Verdict.SKIP, reason="known failure: bug 7")
    assert gate.check(PC).state is State.MISSING
    assert gate.check(PC + EXCUSE.format(expires="2027-01-01")).state is State.EXCUSED


def test_a_known_failure_that_passes_now_is_a_no(gate: Gate) -> None:
    """The scenario fails then, and what excused the failure must not excuse that."""
    gate.saw(1, Verdict.FAIL, reason="expected to fail, but passed: bug 7; take it out of known_failure")
    check = gate.check(PC + EXCUSE.format(expires="2027-01-01"))
    assert check.state is State.BROKEN
    assert check.evidence.endswith("expected to fail, but passed: bug 7; take it out of known_failure")


def test_an_excuse_that_nobody_needs_is_told(gate: Gate) -> None:
    gate.saw(1)
    decision = gate.decide(PC + EXCUSE.format(expires="2027-01-01"))
    assert decision.yes
    assert decision.notes == ("known_failures[0] (balloon/resize*) excuses nothing: does it pass now?",)


def test_an_excuse_for_what_never_ran_is_told_as_such(gate: Gate) -> None:
    decision = gate.decide(PC + EXCUSE.format(expires="2027-01-01"))
    assert decision.notes == ("known_failures[0] (balloon/resize*) excuses nothing: it was never run",)


TIMING = """timings:
  - scenarios: ["balloon/resize[pc]"]
    phase: drive
    at_most: 1.5
    runs: 1
"""


@pytest.mark.parametrize(("last", "state"), [(14.0, State.MET), (16.0, State.BROKEN)])
def test_timings(gate: Gate, last: float, state: State) -> None:
    for ago in range(9, 1, -1):
        gate.saw(ago)
    gate.saw(1)
    gate.outcomes = [
        Outcome.from_json({**item.to_json(), "seconds": {"drive": last if item.run == "run-100" else 10.0}})
        for item in gate.outcomes
    ]
    check = gate.check(TIMING)
    assert check.state is state
    assert f"{last:.2f} s against 10.00 s before" in check.evidence


def test_timings_without_a_measure(gate: Gate) -> None:
    assert gate.check(TIMING).evidence == "never passed"
    for ago in (5, 4, 3, 2):
        gate.saw(ago)
    gate.saw(1, start="warm")
    check = gate.check(TIMING)
    assert (check.state, check.evidence) == (State.MISSING, "0 earlier passes are no measure, 5 are needed")


MUTATION = (
    "mutation:\n  - component: virtio_balloon\n    least_score: 90\n    least_mutants: 10\n    max_age_days: 30\n"
)


def mutation(killed: int, others: Sequence[str] = (), **changes: Any) -> ReadMutation:
    fates = ["killed"] * killed + list(others)
    mutants = [{"name": f"m{number}", "fate": fate} for number, fate in enumerate(fates)]
    value = {"schema": 1, "component": "virtio_balloon", "baseline": [result()], "mutants": mutants, **changes}
    return ReadMutation.model_validate_json(json.dumps(value, default=str))


@pytest.mark.parametrize(
    ("run", "state", "told"),
    [
        (mutation(10), State.MET, "score 100.0: 10 of 10 killed"),
        (mutation(9, ["survived"]), State.MET, "score 90.0"),
        (mutation(8, ["survived", "survived"]), State.BROKEN, "score 80.0"),
        (mutation(8, ["error", "error"]), State.BROKEN, "score 80.0"),
        (mutation(10, ["did not build"] * 9), State.MET, "score 100.0"),
        (mutation(9, ["did not build"]), State.MISSING, "10 mutants are needed"),
        (mutation(0), State.MISSING, "0 of 0 killed"),
        (mutation(10, baseline=[result(verdict=Verdict.FAIL)]), State.MISSING, "did not pass on good code"),
        (mutation(10, baseline=[result(-24 * 40)]), State.MISSING, "too old"),
        (mutation(10, baseline=[]), State.MISSING, "never mutated"),
        (mutation(10, component="xen_privcmd"), State.MISSING, "never mutated"),
    ],
)
def test_mutations(gate: Gate, run: ReadMutation, state: State, told: str) -> None:
    gate.mutations = [run]
    check = gate.check(MUTATION)
    assert (check.state, told in check.evidence) == (state, True), check.evidence


def test_the_newest_mutation_counts(gate: Gate) -> None:
    gate.mutations = [mutation(2, ["survived"] * 8), mutation(10, baseline=[result(-48)])]
    assert gate.check(MUTATION).state is State.BROKEN


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has no rule"),
        ("require: []\n", "has no rule"),
        ("require:\n  - {}\n", "require[0]: names no scenarios: needs one of tags, features, scenarios, rows"),
        ("require:\n  - tags: [gat]\n", '3:12 require[0].tags[0]: unknown tag "gat", expected one of gate, nightly'),
        ("require:\n  - features: [ballon]\n", '(hint: did you mean "balloon"?)'),
        ('require:\n  - scenarios: ["balloon/x*"]\n', 'no scenario is called "balloon/x*"'),
        ("require:\n  - rows: {machin: [pc]}\n", 'rows.machin: unknown matrix axis "machin", expected machine'),
        ("require:\n  - rows: {machine: [mips]}\n", 'unknown value of machine "mips"'),
        ('require:\n  - {tags: [gate], scenarios: ["*slow*"]}\n', "require[0]: no scenario fits all of this"),
        ("require:\n  - {tags: [gate], under_test: {virtio_baloon: any}}\n", 'unknown component "virtio_baloon"'),
        ("require:\n  - {tags: [gate], accelerators: [hvf]}\n", 'must be one of "kvm", "tcg", got "hvf"'),
        ("require:\n  - {tags: [gate], passes_in_a_row: 0}\n", "passes_in_a_row: must be 1..1000, got 0"),
        ("require:\n  - {tag: [gate]}\n", "require[0].tag: unknown key"),
        ("mutation:\n  - {component: nosuch, least_score: 90}\n", 'mutation[0].component: unknown component "nosuch"'),
        ("mutation:\n  - {component: virtio_balloon, least_score: 101}\n", "must be 0..100"),
        ("timings:\n  - {tags: [gate], phase: driv, at_most: 2}\n", 'hint: did you mean "drive"?'),
        (GATE + EXCUSE.format(expires="soon"), "known_failures[0].expires"),
        (GATE + EXCUSE.format(expires="2027-01-01").replace("https://", ""), "known_failures[0].link"),
        (GATE + EXCUSE.format(expires="2027-01-01").replace("balloon/resize*", "x"), "known_failures[0].scenario"),
        (GATE * 2, "duplicate key"),
    ],
)
def test_a_policy_that_is_wrong(gate: Gate, text: str, told: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        gate.decide(text)
    assert told in str(caught.value)
    assert str(gate.file) in str(caught.value)


def run(arguments: Sequence[str | Path], state: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [HARNESS, "gate", *arguments],
        cwd=CHECKOUT,
        env={**os.environ, "NO_COLOR": "1", "HARNESS_STATE": str(state)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text('policy: a test\nmax_age_days: 3650\nrequire:\n  - scenarios: ["balloon/resize[pc]"]\n')
    return path


def passed(verdict: Verdict = Verdict.PASS) -> dict[str, Any]:
    found, _ = Workspace(SilentProgress()).load([CHECKOUT / "scenarios" / "balloon" / "resize.yaml"])
    sha256 = next(item.sha256 for item in found if item.id == "balloon/resize[pc]")
    return result(-24 * 400, verdict, scenario_sha256=sha256)


def test_the_command_says_yes_and_no(tmp_path: Path, policy: Path) -> None:
    good = write(tmp_path / "good.json", summary(passed()))
    yes = run(["--policy", policy, good, "--json", tmp_path / "decision.json"], tmp_path)
    assert yes.returncode == 0, yes.stdout + yes.stderr
    assert "met balloon/resize[pc]: 1 passed" in yes.stdout
    assert json.loads((tmp_path / "decision.json").read_text())["yes"] is True
    no = run(["--policy", policy, write(tmp_path / "bad.json", summary(passed(Verdict.FAIL)))], tmp_path)
    assert no.returncode == 1
    assert "broken balloon/resize[pc]" in no.stdout
    nothing = run(["--policy", policy], tmp_path)
    assert nothing.returncode == 1
    assert "missing balloon/resize[pc]: never run" in nothing.stdout


def test_one_summary_given_twice_is_one_outcome(tmp_path: Path, policy: Path) -> None:
    with policy.open("a") as file:
        file.write("    passes_in_a_row: 2\n")
    good = write(tmp_path / "good.json", summary(passed()))
    copy = write(tmp_path / "copy.json", summary(passed()))
    done = run(["--policy", policy, good, good, copy], tmp_path)
    assert done.returncode == 1
    assert "1 of 2 in a row" in done.stdout


def test_it_cannot_tell(tmp_path: Path, policy: Path) -> None:
    """A summary that cannot be read outweighs a good one beside it."""
    good = write(tmp_path / "good.json", summary(passed()))
    cut = tmp_path / "cut.json"
    cut.write_text(good.read_text()[:-40])
    newer = write(tmp_path / "newer.json", summary(passed(), schema=2))
    text = tmp_path / "history"
    text.write_text("no history" * 100)
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("policy: x\nrequire:\n  - tags: [nosuch]\n")
    for arguments, told in (
        ([good, cut], "cut.json: is not JSON"),
        ([good, newer], "newer.json schema: must be 1, got 2"),
        ([good, "--history", text], "is no history of the harness"),
        ([good, "--history", tmp_path / "absent"], "there is no history"),
        ([good, "--policy", wrong], 'wrong.yaml:3:12 require[0].tags[0]: unknown tag "nosuch"'),
        ([good, "--policy", tmp_path / "absent.yaml"], "absent.yaml: does not exist"),
        ([good, "--scenarios", tmp_path / "absent"], "is no directory"),
    ):
        done = run(["--policy", policy, *arguments], tmp_path)
        assert (done.returncode, told in done.stderr.replace("\n", "")) == (2, True), (arguments, done.stderr)
        assert "yes" not in done.stdout


@pytest.mark.parametrize("file", ["README.md", "policy.yaml"])
def test_the_policies_that_people_read_are_right(tmp_path: Path, file: str) -> None:
    text = (CHECKOUT / file).read_text()
    if file == "README.md":
        text = next(block for block in text.split("```yaml\n")[1:] if block.startswith("policy:")).partition("```")[0]
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    workspace = Workspace(SilentProgress())
    found, problems = workspace.load([CHECKOUT / "scenarios"])
    assert not problems
    policy, _ = read_policy(path, found, workspace.components)
    assert policy.require
