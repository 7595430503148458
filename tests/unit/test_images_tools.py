"""The image builder's door to other programs."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.deadline import Deadline
from harness.errors import HostError
from harness.images import tools


def soon() -> Deadline:
    return Deadline.after(20, "a test")


def test_output_and_lines(tmp_path: Path) -> None:
    lines: list[str] = []
    out = tools.run(
        ["sh", "-c", "echo one; echo two; pwd"], hint="", deadline=soon(), cwd=tmp_path, on_line=lines.append
    )
    assert out == f"one\ntwo\n{tmp_path}\n"
    assert lines == ["one", "two", str(tmp_path)]


def test_output_into_a_file(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w+b") as stream:
        assert tools.run(["echo", "x"], hint="", deadline=soon(), stdout=stream) == ""
    assert (tmp_path / "out").read_text() == "x\n"


def test_both_pipes_are_drained() -> None:
    out = tools.run(["sh", "-c", "yes x | head -c 300000; yes y | head -c 300000 >&2"], hint="", deadline=soon())
    assert len(out) == 300000


def test_the_environment_is_minimal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    monkeypatch.setenv("LC_ALL", "tr_TR.UTF-8")
    monkeypatch.setenv("https_proxy", "http://proxy.example:1")
    seen = tools.run(["env"], hint="", deadline=soon(), env={"OWN": "2"}).splitlines()
    assert {"LC_ALL=C", "OWN=2", "https_proxy=http://proxy.example:1"} <= set(seen)
    assert not any(line.startswith("SECRET") for line in seen)


def test_a_failure_says_why() -> None:
    with pytest.raises(HostError) as caught:
        tools.run(["sh", "-c", r"printf 'first\nthe \033reason\n' >&2; exit 3"], hint="do this", deadline=soon())
    assert caught.value.message == "sh failed with status 3: the  reason"
    assert caught.value.tail == ("first", "the  reason")
    assert caught.value.hint == "do this"


def test_a_killed_program_is_told_from_a_failed_one() -> None:
    with pytest.raises(HostError, match="sh was killed by signal 9"):
        tools.run(["sh", "-c", "kill -9 $$"], hint="", deadline=soon())


def test_a_full_disk_is_an_oserror() -> None:
    with pytest.raises(OSError) as caught:
        tools.run(["cp", "/etc/passwd", "/dev/full"], hint="", deadline=soon())
    assert caught.value.errno == errno.ENOSPC


def test_a_missing_program_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda program, path: None)
    with pytest.raises(HostError) as caught:
        tools.find("dpkg-deb")
    assert caught.value.explain() == "dpkg-deb is not installed\n  hint: apt install dpkg"


def test_too_slow_a_program_is_killed_with_its_children(tmp_path: Path) -> None:
    began = time.monotonic()
    script = f"sleep 60 & echo $! >{tmp_path}/pid; wait"
    with pytest.raises(HostError, match="sh did not end in time: the thing to happen"):
        tools.run(["sh", "-c", script], hint="", deadline=Deadline.after(0.5, "the thing to happen"))
    assert time.monotonic() - began < 30
    # Nobody waits for a grandchild, and one that was killed is there for some moments more.
    while alive(int((tmp_path / "pid").read_text())):
        assert time.monotonic() - began < 30
        time.sleep(0.01)


def test_a_program_dies_with_this_process(tmp_path: Path) -> None:
    code = f"""
from harness.deadline import Deadline
from harness.images import tools
tools.run(["sh", "-c", "echo $$ >{tmp_path}/draft; mv {tmp_path}/draft {tmp_path}/pid; exec sleep 60"],
          hint="", deadline=Deadline.after(60, "x"))
"""
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        until((tmp_path / "pid").exists)
        parent.send_signal(signal.SIGKILL)
    until(lambda: not alive(int((tmp_path / "pid").read_text())))


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not, though nobody may reap it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(condition: Callable[[], bool]) -> None:
    deadline = Deadline.after(20, "a condition")
    while not condition():
        deadline.check()
        time.sleep(0.02)
