"""Judges a policy by outcomes: what was never run has not passed, and what cannot be told is no yes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from statistics import median
from typing import Any

from harness.gate.policy import Excuse, Mutation, Policy, Requirement, Rule, Timing, matches
from harness.known_failure import KNOWN, UNEXPECTED
from harness.records.outcome import Outcome
from harness.records.read import ReadMutation
from harness.result import Verdict
from harness.scenario.model import Scenario

#: Clocks of two hosts may differ by so much; a result that is dated later is no evidence.
_CLOCK_SKEW = timedelta(hours=1)
#: Why an excuse was not needed, by whether its scenario ran.
_UNUSED = {True: "does it pass now?", False: "it was never run"}


class State(StrEnum):
    """What became of one thing that a rule asks for."""

    MET = "met"
    EXCUSED = "excused"
    BROKEN = "broken"
    MISSING = "missing"

    @property
    def fine(self) -> bool:
        """Whether it lets the release pass."""
        return self in (State.MET, State.EXCUSED)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a rule asks for.

    :param subject: a scenario with its accelerator, or a component.
    :param evidence: what was seen, or why nothing that counts was.
    """

    subject: str
    state: State
    evidence: str


@dataclass(frozen=True, slots=True)
class Ruling:
    """A rule, and what became of all that it asks for."""

    rule: str
    asks: str
    checks: tuple[Check, ...]

    @property
    def holds(self) -> bool:
        """Whether all of it is there. A rule about nothing does not hold."""
        return bool(self.checks) and all(check.state.fine for check in self.checks)


@dataclass(frozen=True, slots=True)
class Decision:
    """The gate's answer.

    :param notes: what the reader should know and what decides nothing.
    """

    policy: str
    rulings: tuple[Ruling, ...]
    notes: tuple[str, ...] = ()

    @property
    def yes(self) -> bool:
        """Whether every rule holds."""
        return bool(self.rulings) and all(ruling.holds for ruling in self.rulings)

    def to_json(self) -> dict[str, Any]:
        """A plain object."""
        rulings = [{**asdict(ruling), "holds": ruling.holds} for ruling in self.rulings]
        return {"schema": 1, "policy": self.policy, "yes": self.yes, "rules": rulings, "notes": list(self.notes)}


@dataclass(slots=True)
class Judge:
    """Judges one policy.

    :param scenarios: the catalogue as it is now.
    :param outcomes: everything that was seen, each once.
    """

    policy: Policy
    scenarios: Sequence[Scenario]
    outcomes: Sequence[Outcome]
    mutations: Sequence[ReadMutation]
    now: datetime
    _by_id: dict[str, list[Outcome]] = field(init=False)
    _excused: set[int] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self._by_id = {}
        for item in sorted(self.outcomes, key=lambda item: (item.started, item.attempt)):
            self._by_id.setdefault(item.id, []).append(item)

    def decide(self) -> Decision:
        """The whole answer."""
        rulings = [
            *(self._require(f"require[{number}]", rule) for number, rule in enumerate(self.policy.require)),
            *(self._timing(f"timings[{number}]", rule) for number, rule in enumerate(self.policy.timings)),
            *(self._mutation(f"mutation[{number}]", rule) for number, rule in enumerate(self.policy.mutation)),
        ]
        return Decision(self.policy.policy, tuple(rulings), tuple(self._notes()))

    def _require(self, name: str, rule: Requirement) -> Ruling:
        age = rule.max_age_days or self.policy.max_age_days
        times = f"{rule.passes_in_a_row} times in a row" if rule.passes_in_a_row > 1 else "once"
        checks = [
            self._passed(subject, counted, others, rule.passes_in_a_row, age)
            for subject, counted, others in self._subjects(rule)
        ]
        return Ruling(name, f"{_about(rule)} passed {times}, the last not more than {age:g} days ago", tuple(checks))

    def _subjects(self, rule: Rule) -> Iterator[tuple[str, list[Outcome], list[str]]]:
        """Each scenario and accelerator that a rule is about, with what counts, and why the rest does not."""
        for scenario in self.scenarios:
            if not rule.fits(scenario):
                continue
            for accelerator in rule.accelerators or (None,):
                counted: list[Outcome] = []
                others: list[str] = []
                for item in self._by_id.get(scenario.id, ()):
                    why = self._does_not_count(item, scenario, rule, accelerator)
                    if why is None:
                        counted.append(item)
                    else:
                        others.append(why)
                subject = scenario.id if accelerator is None else f"{scenario.id} under {accelerator}"
                yield subject, counted, others

    def _does_not_count(self, item: Outcome, scenario: Scenario, rule: Rule, accelerator: str | None) -> str | None:
        if item.started > self.now + _CLOCK_SKEW:
            return "dated in the future"
        if item.scenario_sha256 != scenario.sha256:
            return "of the scenario as it was before it was changed"
        # What failed before it booted ran under nothing: it counts against each accelerator.
        if accelerator is not None and item.accel not in (accelerator, "none"):
            return f"under {item.accel}"
        wanted = rule.under_test
        fits = set(item.under_test) == set(wanted) and all(
            prefix == "any" or item.under_test[name].startswith(prefix) for name, prefix in wanted.items()
        )
        # An error may have come before anything was put under test.
        if not fits and not (item.verdict is Verdict.ERROR and not item.under_test):
            return f"with {', '.join(sorted(item.under_test)) or 'nothing'} under test"
        return None

    def _passed(
        self, subject: str, counted: Sequence[Outcome], others: Sequence[str], times: int, age_days: float
    ) -> Check:
        aside = _aside(others)
        if not counted:
            return Check(subject, State.MISSING, f"never run{aside}")
        newest = counted[-1]
        last = counted[-times:]
        seen = f"last {newest.verdict} {_ago(self.now - newest.started)} (run {newest.run[:8]})"
        excuses = {item.key: self._excuse(item) for item in last if item.verdict is not Verdict.PASS}
        bad = [item for item in last if item.verdict is not Verdict.PASS and excuses[item.key] is None]
        if bad:
            worst = bad[-1]
            expired = self._expired(worst)
            story = f"{worst.verdict} {_ago(self.now - worst.started)} (run {worst.run[:8]}): {_why(worst)}{expired}"
            # A skip or an error says nothing of the product: what is asked for is missing, not broken.
            return Check(subject, State.BROKEN if worst.verdict is Verdict.FAIL else State.MISSING, story)
        if len(last) < times:
            return Check(subject, State.MISSING, f"{len(last)} of {times} in a row; {seen}{aside}")
        if self.now - newest.started > timedelta(days=age_days):
            return Check(subject, State.MISSING, f"too old: {seen}{aside}")
        used = [excuse for excuse in excuses.values() if excuse is not None]
        if used:
            return Check(
                subject, State.EXCUSED, f"{seen}: {used[-1].reason} ({used[-1].link}) until {used[-1].expires}"
            )
        return Check(subject, State.MET, f"{len(last)} passed; {seen}")

    def _excuse(self, item: Outcome) -> Excuse | None:
        """What excuses an outcome: a failure of the product, or one that the scenario itself knows of.

        A known failure that passes now is news, which nothing excuses.
        """
        if not _could_be_known(item):
            return None
        for index, excuse in enumerate(self.policy.known_failures):
            if _excuses(excuse, item) and self.now.date() <= excuse.expires:
                self._excused.add(index)
                return excuse
        return None

    def _expired(self, item: Outcome) -> str:
        late = [it for it in self.policy.known_failures if _excuses(it, item) and self.now.date() > it.expires]
        return f"; it was a known failure until {late[-1].expires}" if late and _could_be_known(item) else ""

    def _timing(self, name: str, rule: Timing) -> Ruling:
        checks = [self._in_time(subject, counted, others, rule) for subject, counted, others in self._subjects(rule)]
        return Ruling(
            name,
            f"{_about(rule)}: {rule.phase} takes at most {rule.at_most:g} times what it did before",
            tuple(checks),
        )

    def _in_time(self, subject: str, counted: Sequence[Outcome], others: Sequence[str], rule: Timing) -> Check:
        passed = [item for item in counted if item.verdict is Verdict.PASS and rule.phase in item.seconds]
        if not passed:
            return Check(subject, State.MISSING, f"never passed{_aside(others)}")
        newest = passed[-1]
        # Timings of another accelerator, or of a boot against a restored machine, are another thing.
        alike = [item for item in passed if (item.accel, item.start) == (newest.accel, newest.start)]
        recent, before = alike[-rule.runs :], alike[: -rule.runs]
        if len(before) < rule.earlier:
            return Check(
                subject, State.MISSING, f"{len(before)} earlier passes are no measure, {rule.earlier} are needed"
            )
        took, usual = (median(item.seconds[rule.phase] for item in items) for items in (recent, before))
        limit = rule.at_most * usual
        story = f"{took:.2f} s against {usual:.2f} s before ({took / usual if usual else 0:.2f} times), {newest.start}"
        return Check(subject, State.MET if took <= limit else State.BROKEN, story)

    def _mutation(self, name: str, rule: Mutation) -> Ruling:
        age = rule.max_age_days or self.policy.max_age_days
        asks = (
            f"of {rule.component}'s mutants, at least {rule.least_mutants}, {rule.least_score:g} % were killed, "
            f"not more than {age:g} days ago"
        )
        return Ruling(name, asks, (self._killed(rule, age),))

    def _killed(self, rule: Mutation, age_days: float) -> Check:
        dated = [(max(item.started for item in run.baseline), run) for run in self.mutations if run.baseline]
        mine = [(when, run) for when, run in dated if run.component == rule.component]
        mine = [(when, run) for when, run in mine if when <= self.now + _CLOCK_SKEW]
        if not mine:
            return Check(rule.component, State.MISSING, "never mutated: no summary of harness mutate tells of it")
        when, run = max(mine, key=lambda pair: pair[0])
        seen = f"{run.killed} of {run.built} killed {_ago(self.now - when)}"
        if any(item.verdict is not Verdict.PASS for item in run.baseline if item.verdict is not Verdict.SKIP):
            return Check(rule.component, State.MISSING, "the scenarios did not pass on good code")
        if run.built < rule.least_mutants:
            return Check(rule.component, State.MISSING, f"{seen}: {rule.least_mutants} mutants are needed")
        if self.now - when > timedelta(days=age_days):
            return Check(rule.component, State.MISSING, f"too old: {seen}")
        score = 100.0 * run.killed / run.built
        return Check(
            rule.component, State.MET if score >= rule.least_score else State.BROKEN, f"score {score:.1f}: {seen}"
        )

    def _notes(self) -> Iterator[str]:
        known = {item.id for item in self.scenarios}
        strange = sorted({item.id for item in self.outcomes} - known)
        if strange:
            yield f"{len(strange)} scenarios were run that are not there (any more): {', '.join(strange[:5])}"
        for index, excuse in enumerate(self.policy.known_failures):
            if self.now.date() > excuse.expires:
                yield f"known_failures[{index}] ({excuse.scenario}) has expired on {excuse.expires}"
            elif index not in self._excused:
                ran = any(matches(name, excuse.scenario) for name in self._by_id)
                yield f"known_failures[{index}] ({excuse.scenario}) excuses nothing: {_UNUSED[ran]}"


def _excuses(excuse: Excuse, item: Outcome) -> bool:
    return matches(item.id, excuse.scenario) and (excuse.assertion is None or item.problems == (excuse.assertion,))


def _could_be_known(item: Outcome) -> bool:
    failed = item.verdict is Verdict.FAIL and not item.reason.startswith(UNEXPECTED)
    return failed or item.reason.startswith(KNOWN)


def _about(rule: Rule) -> str:
    """A rule's selection in words."""
    parts = [f"{kind} {', '.join(getattr(rule, kind))}" for kind in ("tags", "features", "scenarios")]
    parts = [part for part in parts if not part.endswith(" ")]
    parts += [f"{axis} {', '.join(map(str, values))}" for axis, values in rule.rows.items()]
    under = f" under {' and '.join(rule.accelerators)}" if rule.accelerators else ""
    tested = f" with {', '.join(sorted(rule.under_test))} under test" if rule.under_test else ""
    return f"{'; '.join(parts)}{under}{tested}"


def _aside(others: Sequence[str]) -> str:
    """Outcomes that were looked at and do not count, by reason."""
    reasons: Mapping[str, int] = {why: others.count(why) for why in dict.fromkeys(others)}
    told = ", ".join(f"{count} {why}" for why, count in reasons.items())
    return f" (not counted: {told})" if told else ""


def _why(item: Outcome) -> str:
    return (item.problems[0] if item.problems else item.reason.partition("\n")[0]) or "no reason"


def _ago(age: timedelta) -> str:
    hours = age.total_seconds() / 3600
    return f"{hours:.1f} hours ago" if hours < 48 else f"{hours / 24:.1f} days ago"
