"""Bisecting a real repository; only the scenario is not run, its verdict stands in the tree."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.bisect import Answer, Bisection, Tried, judged, print_outcome
from harness.errors import BuildFailed, HostError, UsageError
from harness.report.summary import verdict_line
from harness.result import Verdict


def git(tree: Path, *arguments: str) -> str:
    named = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main"]
    return subprocess.run(
        ["git", "-C", tree, *named, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def history(tree: Path, *states: str) -> list[str]:
    """A commit for each state; gives their hashes."""
    tree.mkdir()
    git(tree, "init", "-q")
    for number, state in enumerate(states):
        (tree / "state").write_text(f"{state} {number}")
        git(tree, "add", "-A")
        git(tree, "commit", "-qm", f"commit {number}")
    return git(tree, "log", "--reverse", "--format=%H").split()


class Dry(Bisection):
    """Takes the verdict out of the tree instead of running a scenario."""

    def _run(self, worktree: Path, directory: Path) -> dict[str, Any]:
        state = (worktree / "state").read_text().split()[0]
        if state == "broken":
            raise BuildFailed("module x does not build: x.c:1: no")
        failed = [{"expression": "up.pages == 4", "values": {"up.pages": 3}, "error": None}] if state == "fail" else []
        return {
            "verdict": Verdict(state),
            "reason": f"{state} it is",
            "failed_assertions": failed,
            "crashes": [],
            "evidence": {"up": {"pages": 4}},
            "results": str(directory),
        }


def dry(tree: Path, told: Callable[[Tried], None] = lambda item: None) -> Dry:
    scenario: Any = SimpleNamespace(id="balloon/resize")
    workspace: Any = None
    return Dry(workspace, scenario, "x", tree, accel="tcg", repeat=2, results=Path("results"), told=told)


def test_the_first_bad_commit_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commits = history(tmp_path / "t", *["pass"] * 4, "broken", "pass", "fail", *["fail"] * 4)
    bisection = dry(tmp_path / "t")
    assert bisection.run(commits[0], "main") == commits[6]
    assert [item.answer for item in bisection.tried[:2]] == [Answer.BAD, Answer.GOOD]
    assert git(tmp_path / "t", "worktree", "list").count("\n") == 0
    assert git(tmp_path / "t", "rev-parse", "--abbrev-ref", "HEAD") == "main"
    from rich.console import Console

    print_outcome(Console(width=200), commits[6], bisection.tried)
    said = capsys.readouterr().out
    assert f"first bad commit: {commits[6]} commit 6" in said
    assert "up.pages = 3; " in said and " had 4" in said


def test_commits_that_cannot_be_told_apart(tmp_path: Path) -> None:
    commits = history(tmp_path / "t", "pass", "broken", "error", "skip", "fail")
    bisection = dry(tmp_path / "t")
    assert bisection.run(commits[0], commits[-1]) is None
    skipped = [item for item in bisection.tried if item.answer is Answer.SKIP]
    assert {item.why for item in skipped} == {
        "module x does not build: x.c:1: no",
        "ERROR: error it is",
        "SKIP: skip it is",
    }


def test_ends_that_are_not_what_they_are_said_to_be(tmp_path: Path) -> None:
    commits = history(tmp_path / "t", "fail", "fail", "pass")
    with pytest.raises(UsageError, match="is said to be bad, but balloon/resize: passed"):
        dry(tmp_path / "t").run(commits[0], commits[-1])
    with pytest.raises(UsageError, match="is said to be good, but balloon/resize: fail it is"):
        dry(tmp_path / "t").run(commits[0], commits[1])
    with pytest.raises(HostError, match="git failed"):
        dry(tmp_path / "t").run("nowhere", commits[1])
    assert git(tmp_path / "t", "worktree", "list").count("\n") == 0


@pytest.mark.parametrize(
    ("verdicts", "answer", "why"),
    [
        (["pass"], Answer.GOOD, "passed"),
        (["fail", "fail", "fail"], Answer.BAD, "why"),
        (["fail", "pass"], Answer.SKIP, "a flake: it failed 1 times, then passed"),
        (["fail", "error"], Answer.SKIP, "ERROR: why"),
        (["skip"], Answer.SKIP, "SKIP: why"),
    ],
)
def test_what_fails_every_time_is_bad(verdicts: list[str], answer: Answer, why: str) -> None:
    left = iter(verdicts)
    found = judged(lambda: {"verdict": Verdict(next(left)), "reason": "why\nmore"}, 3)
    assert found[:2] == (answer, why)
    assert [item["verdict"] for item in found[2]] == verdicts
    assert verdict_line(found[2])
