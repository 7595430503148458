"""The probes as guests have them: byte code that a Python of the same release takes for modules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.deadline import Deadline
from harness.errors import HostError
from harness.images import python
from harness.images.probes import DIRECTORY, probe_sources, probes_tree

PROBES = Path(__file__).parents[2] / "harness" / "probes"


def soon() -> Deadline:
    return Deadline.after(60, "a test")


@pytest.fixture(autouse=True)
def _own_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """This test's own Python in the place of a guest's."""
    monkeypatch.setattr(python, "_interpreter", lambda root, arch: [sys.executable])


def test_every_probe_is_there_compiled_and_the_agent_as_it_is(tmp_path: Path) -> None:
    files = dict(probes_tree(probe_sources(), tmp_path, "amd64", tmp_path, soon()).under(DIRECTORY))
    probes = {path.stem for path in PROBES.glob("*.py")} - {"__init__", "agent"}
    assert set(files) == {f"{DIRECTORY}/{name}.pyc" for name in probes} | {f"{DIRECTORY}/agent.py"}
    assert files[f"{DIRECTORY}/agent.py"].data == (PROBES / "agent.py").read_bytes()


def test_what_is_compiled_does_what_its_source_says(tmp_path: Path) -> None:
    """Assertions stay: a probe may rely on them."""
    source = b"def double(number):\n    assert number > 0\n    return 2 * number\n"
    tree = probes_tree({"agent.py": b"", "sums.py": source}, tmp_path, "amd64", tmp_path, soon())
    (tmp_path / "sums.pyc").write_bytes(tree.under(DIRECTORY)[f"{DIRECTORY}/sums.pyc"].data)
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import sums; print(sums.double(21)); sums.double(0)"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "42\n"
    assert f'"/{DIRECTORY}/sums.py", line 2, in double' in done.stderr
    assert done.stderr.rstrip().endswith("AssertionError")


def test_a_probe_that_is_no_python_is_refused_before_anything_boots(tmp_path: Path) -> None:
    with pytest.raises(HostError) as caught:
        probes_tree({"agent.py": b"", "odd.py": b"def (:\n"}, tmp_path, "amd64", tmp_path, soon())
    assert any("odd.py" in line for line in caught.value.tail)
