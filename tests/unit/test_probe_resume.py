"""What a restored guest does about itself."""

from __future__ import annotations

import builtins
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.probes import PROBES, imported

resume = imported("resume")


class Reaped(io.StringIO):
    """/proc/PID/stat of a process that is reaped between open and read: fs/proc/array.c gives ESRCH."""

    def read(self, size: int | None = -1, /) -> str:
        raise ProcessLookupError(3, "No such process")


def test_all_that_steps_may_call_is_imported_before_a_machine_is_saved() -> None:
    """In a guest nothing but probes lies there."""
    script = "import sys; sys.path.insert(0, sys.argv[1]); import resume; print(resume.preload(), *sys.modules)"
    said = subprocess.run([sys.executable, "-c", script, PROBES], capture_output=True, text=True, check=True).stdout
    assert {path.stem for path in PROBES.glob("*.py")} - {"__init__"} < set(said.split())


def test_a_process_runs_until_it_has_ended() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        assert resume._runs(child.pid)
        child.kill()
        while resume._runs(child.pid):  # a zombie by then: nobody has waited for it
            pass
        assert Path(f"/proc/{child.pid}").exists()
    assert not resume._runs(child.pid)


def test_one_that_is_reaped_while_it_is_looked_at_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def reaped(path: str, *_: Any) -> Reaped:
        opened.append(path)
        return Reaped()

    monkeypatch.setattr(builtins, "open", reaped)
    assert not resume._runs(os.getpid())
    assert opened == [f"/proc/{os.getpid()}/stat"]
