"""The registry of verbs, and what a verb tells the loader of itself."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from harness.steps import balloon, generic
from harness.steps.base import find_features, find_verbs


def test_every_verb_describes_itself() -> None:
    verbs = find_verbs()
    assert {"guest.run", "balloon.inflate", "memory.offline", "machine.save_restore"} <= set(verbs)
    for name, verb in verbs.items():
        assert verb.spec.name == name
        assert verb.spec.summary, f"{name} has no docstring"
        assert verb.spec.params.model_config["extra"] == "forbid"
        if verb.spec.evidence is not None:
            assert verb.spec.evidence.model_fields, f"{name} leaves empty evidence"


def test_features_come_from_step_modules() -> None:
    assert "balloon" in find_features()


@pytest.mark.parametrize("pattern", ["(", "(?=a)", r"(a)\1", ""])
def test_what_a_console_must_show_is_checked(pattern: str) -> None:
    assert generic.ConsoleRun.model_validate({"send": "", "expect": "[0-9]+ ok$"})
    with pytest.raises(ValidationError):
        generic.ConsoleRun.model_validate({"send": "", "expect": pattern})


@pytest.mark.parametrize("mib", [-1, 65537, "200", 1.5])
def test_a_balloons_size_is_checked(mib: object) -> None:
    with pytest.raises(ValidationError):
        balloon.Resize.model_validate({"mib": mib})
