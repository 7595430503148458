"""Which commit broke it: a scenario run on the commits of a tree, as ``git bisect run`` would choose them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from harness.deadline import Deadline
from harness.errors import BuildFailed, HostError, UsageError
from harness.images import tools
from harness.images.under_test import parse_overrides
from harness.machine.accel import Request
from harness.report.progress import Silent
from harness.result import SCHEMA, Verdict
from harness.scenario.model import Scenario
from harness.trials import Trials
from harness.workspace import Workspace

_FIRST_BAD = re.compile(r"^([0-9a-f]{40}) is the first bad commit", re.MULTILINE)
_ONLY_SKIPPED = "There are only 'skip'ped commits left to test"
_GIT_S = 300.0


class Answer(IntEnum):
    """What is told of a commit, with the exit statuses that ``git bisect run`` gives them."""

    GOOD = 0
    BAD = 1
    SKIP = 125


_WORDS = {Answer.GOOD: "good", Answer.BAD: "bad", Answer.SKIP: "skip"}


@dataclass(slots=True)
class Tried:
    """A commit that was tried.

    :param why: in one line: the assertion that does not hold, or why nothing can be said.
    :param results: of each run.
    """

    commit: str
    subject: str
    answer: Answer
    why: str
    results: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """A plain object."""
        return {
            "commit": self.commit,
            "subject": self.subject,
            "answer": _WORDS[self.answer],
            "why": self.why,
            "results": self.results,
        }


def judged(run: Callable[[], Mapping[str, Any]], repeat: int) -> tuple[Answer, str, list[dict[str, Any]]]:
    """Run a scenario, again when it fails: only what fails every time is bad, and what passes at once is good.

    :param run: runs it, and gives its result as JSON.
    :return: the answer, why, and all results.
    """
    results: list[dict[str, Any]] = []
    for _ in range(repeat):
        results.append(dict(run()))
        verdict = results[-1]["verdict"]
        if verdict in (Verdict.ERROR, Verdict.SKIP):
            return Answer.SKIP, f"{verdict.upper()}: {results[-1]['reason'].partition(chr(10))[0]}", results
        if verdict == Verdict.PASS:
            if len(results) == 1:
                return Answer.GOOD, "passed", results
            return Answer.SKIP, f"a flake: it failed {len(results) - 1} times, then passed", results
    return Answer.BAD, results[-1]["reason"].partition("\n")[0], results


class Bisection:
    """Bisects in a worktree of its own, so that the user's checkout stays as it is.

    :param tree: the repository.
    :param component: is built from it.
    :param repeat: how often a failure must be seen.
    """

    def __init__(
        self,
        workspace: Workspace,
        scenario: Scenario,
        component: str,
        tree: Path,
        *,
        accel: Request,
        repeat: int,
        results: Path,
        told: Callable[[Tried], None],
    ) -> None:
        self._workspace = workspace
        self._scenario = scenario
        self._component = component
        self._tree = tree
        self._trials = Trials(workspace, accel, Silent())
        self._repeat = repeat
        self._results = results
        self._told = told
        self.tried: list[Tried] = []

    def run(self, good: str, bad: str) -> str | None:
        """Find the first bad commit.

        :return: its hash; None when only commits are left of which nothing can be said.
        :raises UsageError: the two ends are not what they are said to be.
        :raises HarnessError: git fails.
        """
        ends = {rev: self._git(self._tree, "rev-parse", "--verify", f"{rev}^{{commit}}").strip() for rev in (good, bad)}
        with TemporaryDirectory(prefix="harness-bisect-") as scratch:
            worktree = Path(scratch) / "tree"
            self._git(self._tree, "worktree", "add", "--detach", str(worktree), ends[bad])
            try:
                self._expect(worktree, ends[bad], bad, Answer.BAD)
                self._expect(worktree, ends[good], good, Answer.GOOD)
                said = self._git(worktree, "bisect", "start", ends[bad], ends[good])
                while not (_FIRST_BAD.search(said) or _ONLY_SKIPPED in said):
                    tried = self._try(worktree)
                    said = self._git(worktree, "bisect", _WORDS[tried.answer], may_fail=tried.answer is Answer.SKIP)
            finally:
                self._git(self._tree, "worktree", "remove", "--force", str(worktree))
        match = _FIRST_BAD.search(said)
        return match[1] if match else None

    def _expect(self, worktree: Path, commit: str, rev: str, answer: Answer) -> None:
        """See that an end is what the user says: else the search would blame an innocent commit."""
        self._git(worktree, "checkout", "--quiet", "--detach", commit)
        tried = self._try(worktree)
        if tried.answer is not answer:
            raise UsageError(
                f"{rev} is said to be {_WORDS[answer]}, but {self._scenario.id}: {tried.why}",
                hint=f"see {self._results}",
            )

    def _try(self, worktree: Path) -> Tried:
        commit, _, subject = self._git(worktree, "log", "-1", "--format=%H %s").strip().partition(" ")
        directory = self._results / f"{len(self.tried) + 1:02}-{commit[:12]}"
        try:
            answer, why, results = judged(lambda: self._run(worktree, directory), self._repeat)
        except BuildFailed as error:
            answer, why, results = Answer.SKIP, error.message, []
        tried = Tried(commit, subject, answer, why, results)
        self.tried.append(tried)
        self._told(tried)
        return tried

    def _run(self, worktree: Path, directory: Path) -> dict[str, Any]:
        overrides = parse_overrides([f"{self._component}={worktree}"], self._workspace.components)
        return self._trials.run(self._scenario, overrides, directory).to_json()

    def _git(self, directory: Path, *arguments: str, may_fail: bool = False) -> str:
        try:
            return tools.run(
                ["git", "-C", str(directory), *arguments],
                hint=f"see what git says by hand: git -C {self._tree} {arguments[0]}",
                deadline=Deadline.after(_GIT_S, f"git {arguments[0]} to end"),
                merge=True,
            )
        except HostError as error:
            if may_fail:  # git ends with a status of its own when all that is left was skipped
                return "\n".join(error.tail)
            raise


def print_tried(console: Console, tried: Tried) -> None:
    """One line for a commit."""
    line = f"{_WORDS[tried.answer]:4} {tried.commit[:12]} {tried.subject}: {tried.why}"
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_outcome(console: Console, first_bad: str | None, tried: Sequence[Tried]) -> None:
    """The first bad commit, and what was seen on both sides of it."""
    if first_bad is None:
        skipped = ", ".join(item.commit[:12] for item in tried if item.answer is Answer.SKIP)
        console.print(
            f"the first bad commit cannot be told apart from those that were skipped: {skipped}", style="bold"
        )
        return
    bad = next(item for item in tried if item.commit == first_bad)
    good = [item for item in tried if item.answer is Answer.GOOD][-1]
    console.print(f"\nfirst bad commit: {bad.commit} {bad.subject}", markup=False, highlight=False, soft_wrap=True)
    for failed in bad.results[-1]["failed_assertions"]:
        console.print(f"  does not hold: {failed['expression']}", markup=False, highlight=False, soft_wrap=True)
        evidence = good.results[-1]["evidence"]
        for name, value in failed["values"].items():
            before = _look_up(evidence, name)
            console.print(f"      {name} = {value}; {good.commit[:12]} had {before}", markup=False, highlight=False)
    for crash in bad.results[-1]["crashes"]:
        console.print(f"  crash on {crash['layer']}: {crash['title']}", markup=False, highlight=False, soft_wrap=True)
    for item in (good, bad):
        console.print(
            f"  {_WORDS[item.answer]}: {item.results[-1]['results']}", markup=False, highlight=False, soft_wrap=True
        )


def summary_json(component: str, first_bad: str | None, tried: Sequence[Tried]) -> dict[str, Any]:
    """What ``--json`` writes."""
    return {
        "schema": SCHEMA,
        "component": component,
        "first_bad": first_bad,
        "tried": [item.to_json() for item in tried],
    }


def sole_component(workspace: Workspace, scenario: Scenario) -> str:
    """The module that a scenario is about, where it loads just one that can be built.

    :raises UsageError: it does not.
    """
    found = [item.module for item in scenario.load if workspace.can_build(item.module, scenario)]
    if len(set(found)) != 1:
        raise UsageError(
            f"which component is built from the tree? {scenario.id} loads {', '.join(found) or 'none that can be'}",
            hint="say it with --component",
        )
    return found[0]


def _look_up(evidence: Any, dotted: str) -> Any:
    """A value by its dotted name, as far as it is there."""
    for part in re.findall(r"[^.\[\]\"']+", dotted):
        evidence = evidence.get(part, "nothing") if isinstance(evidence, dict) else "nothing"
    return evidence
