"""Mutants: which are read, in which order scenarios meet them, and what the score counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.mutate import Fate, Mutant, read_mutants, score

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


def test_a_mutant_as_json() -> None:
    mutant = Mutant("off-by-one", "Counts wrong.", Fate.KILLED, "balloon/resize[pc]", "up.actual == 1", 12.345)
    assert mutant.to_json() == {
        "name": "off-by-one",
        "summary": "Counts wrong.",
        "fate": "killed",
        "by": "balloon/resize[pc]",
        "why": "up.actual == 1",
        "seconds": 12.3,
        "results": [],
    }
