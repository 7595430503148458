"""Processes of this host: they die with the harness, and not before."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from harness.deadline import Deadline
from harness.errors import HostError
from harness.machine.process import Process, describe_exit, is_running, run_to_end

# Starts processes as a harness would, says how they are called, and then waits to be killed.
HELPER = """\
import os, signal, sys, threading, time
from pathlib import Path
from harness.machine.process import Process

directory = Path(sys.argv[1])
seconds = sys.argv[2]

def start():
    process = Process(["sleep", seconds], output=directory / "log", cwd=directory)
    os.write(1, b"%d\\n" % process.pid)  # print would let another thread's line into this one

def in_thread():
    thread = threading.Thread(target=start)
    thread.start()
    thread.join()

def in_a_fork():
    start()
    if os.fork() == 0:
        start()
        signal.pause()

{do}
print("done", flush=True)
signal.pause()
"""

LOOK = """\
import os, sys

def is_open(number):
    try:
        return bool(os.fstat(number))
    except OSError:
        return False

os.write(int(sys.argv[1]), b"hello")
print(*filter(is_open, range(100)))
"""


def soon() -> Deadline:
    """A deadline that only a hang reaches."""
    return Deadline.after(30, "the test")


def start(directory: Path, *argv: str, pass_fds: Sequence[int] = ()) -> Process:
    """A process whose output goes to ``log``."""
    return Process(argv, output=directory / "log", cwd=directory, pass_fds=pass_fds)


def output(directory: Path, *argv: str, pass_fds: Sequence[int] = ()) -> str:
    """What a process printed, to its end."""
    process = start(directory, *argv, pass_fds=pass_fds)
    assert process.wait(soon()) is not None
    return process.output.read_text()


@contextmanager
def helper(do: str, directory: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A harness that starts processes, and their ids."""
    # A number of seconds that nobody else sleeps, so that what is left can be found whatever happened to its id.
    argv = [sys.executable, "-c", HELPER.format(do=do), str(directory), f"6{os.getpid()}"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        pids: list[int] = []
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line == "done\n":
                    break
                pids.append(int(line))
            yield process, pids
        finally:
            process.kill()
            for pid in pids:
                if is_running(pid):
                    os.kill(pid, signal.SIGKILL)


def gone(pid: int) -> bool:
    """Whether a process ends before anybody's patience does."""
    deadline = soon()
    while is_running(pid):
        if deadline.expired:
            return False
        time.sleep(0.01)
    return True


# -- the death of the parent -------------------------------------------------------------------------------------------


def test_a_process_dies_with_the_harness(tmp_path: Path) -> None:
    with helper("start()", tmp_path) as (harness, (pid,)):
        assert is_running(pid)
        harness.kill()
        assert gone(pid)


def test_a_harness_that_dies_while_a_process_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel watches the parent from the moment on at which it is asked to, and that may be too late."""
    setpriv = shutil.which("setpriv")
    late = tmp_path / "bin" / "setpriv"
    late.parent.mkdir()
    late.write_text(f'#!/bin/sh\nsleep 0.5\nexec {setpriv} "$@"\n')
    late.chmod(0o755)
    monkeypatch.setenv("PATH", f"{late.parent}:{os.environ['PATH']}")
    with helper("start()", tmp_path) as (harness, (pid,)):
        harness.kill()
        harness.wait()
        assert gone(pid)


def test_a_process_outlives_the_thread_that_asked_for_it(tmp_path: Path) -> None:
    """The kernel sends the signal when the *thread* ends that forked: it must not be the worker."""
    with helper("in_thread()", tmp_path) as (harness, (pid,)):
        time.sleep(0.3)
        assert is_running(pid)
        harness.kill()
        assert gone(pid)


def test_processes_of_several_threads_die_with_the_harness(tmp_path: Path) -> None:
    do = "threads = [threading.Thread(target=start) for _ in range(8)]\n"
    do += "[thread.start() for thread in threads]\n[thread.join() for thread in threads]"
    with helper(do, tmp_path) as (harness, pids):
        assert len(set(pids)) == 8
        assert all(map(is_running, pids))
        harness.kill()
        assert all(map(gone, pids))


def test_a_harness_that_forked_can_still_start_processes(tmp_path: Path) -> None:
    """Threads do not survive a fork, the spawner's neither."""
    with helper("in_a_fork()", tmp_path) as (_, pids):
        assert len(pids) in (1, 2)
        deadline = soon()
        wanted = ["sleep", f"6{os.getpid()}"]

        def found() -> list[psutil.Process]:
            return [item for item in psutil.process_iter(["cmdline"]) if item.info["cmdline"] == wanted]

        while len(found()) < 2 and not deadline.expired:
            time.sleep(0.02)
        assert len(found()) == 2
        for item in found():
            fork = item.parent()
            item.kill()
            if fork is not None and fork.cmdline()[:1] == [sys.executable] and fork.pid != os.getpid():
                fork.kill()


def test_ctrl_c_reaches_the_harness_alone(tmp_path: Path) -> None:
    process = start(tmp_path, "sleep", "600")
    try:
        assert os.getsid(process.pid) == process.pid
        assert os.getpgid(process.pid) != os.getpgid(0)
    finally:
        process.kill()


# -- the end -----------------------------------------------------------------------------------------------------------


def test_a_process_that_ends_by_itself(tmp_path: Path) -> None:
    process = start(tmp_path, "sh", "-c", "exit 3")
    assert process.wait(soon()) == 3
    assert process.poll() == 3
    assert process.kill() == 3


def test_killing_twice(tmp_path: Path) -> None:
    process = start(tmp_path, "sleep", "600")
    assert process.poll() is None
    assert process.kill() == -signal.SIGKILL
    assert process.kill() == -signal.SIGKILL
    assert process.wait(soon()) == -signal.SIGKILL
    assert not is_running(process.pid)


def test_what_a_process_started_goes_with_it(tmp_path: Path) -> None:
    """Somebody's script around QEMU, for example."""
    process = Process(["sh", "-c", "sleep 600 & echo $!; wait"], output=tmp_path / "log", cwd=tmp_path)
    deadline = time.monotonic() + 30
    while not (said := (tmp_path / "log").read_text()).endswith("\n"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child = int(said)
    assert is_running(child)
    assert process.kill() == -signal.SIGKILL
    while is_running(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_wait_ends_with_its_deadline(tmp_path: Path) -> None:
    with closing_process(tmp_path) as process:
        assert process.wait(Deadline.after(0.05, "nothing")) is None
        assert process.wait(Deadline.after(-1, "nothing")) is None
        assert process.poll() is None


@contextmanager
def closing_process(directory: Path) -> Iterator[Process]:
    """A process that does nothing, gone after the block."""
    process = start(directory, "sleep", "600")
    try:
        yield process
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "exit status 0"),
        (1, "exit status 1"),
        (255, "exit status 255"),
        (-6, "signal SIGABRT"),
        (-9, "signal SIGKILL"),
        (-200, "signal 200"),
    ],
)
def test_an_end_in_words(status: int, words: str) -> None:
    assert describe_exit(status) == words


def test_a_zombie_does_not_run() -> None:
    """A process that nobody has reaped still has an id, to which signal 0 can be sent."""
    process = subprocess.Popen(["true"])
    try:
        assert gone(process.pid)
        os.kill(process.pid, 0)
    finally:
        process.wait()
    assert not is_running(process.pid)
    assert is_running(os.getpid())


def test_a_process_that_somebody_stopped(tmp_path: Path) -> None:
    with closing_process(tmp_path) as process:
        assert not process.is_stopped()
        os.kill(process.pid, signal.SIGSTOP)
        deadline = soon()
        while not process.is_stopped() and not deadline.expired:
            time.sleep(0.01)
        assert process.is_stopped()
        assert is_running(process.pid)
    assert not process.is_stopped()


# -- the start ---------------------------------------------------------------------------------------------------------


def test_a_program_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="qemu-system-pdp11 is not installed") as caught:
        start(tmp_path, "qemu-system-pdp11")
    assert caught.value.hint is not None
    assert not (tmp_path / "log").exists()


def test_setpriv_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = shutil.which("sleep")
    assert program is not None
    (tmp_path / "sleep").symlink_to(program)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="setpriv"):
        start(tmp_path, "sleep", "600")


def test_a_directory_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="sleep cannot be started"):
        Process(["sleep", "600"], output=tmp_path / "log", cwd=tmp_path / "nowhere")
    with pytest.raises(HostError, match="sleep cannot be started"):
        Process(["sleep", "600"], output=tmp_path / "nowhere" / "log", cwd=tmp_path)


def test_a_failed_start_does_not_stop_the_next(tmp_path: Path) -> None:
    with pytest.raises(HostError):
        Process(["sleep", "600"], output=tmp_path / "log", cwd=tmp_path / "nowhere")
    assert output(tmp_path, "echo", "here") == "here\n"


def test_no_shell_reads_the_arguments(tmp_path: Path) -> None:
    assert output(tmp_path, "printf", "%s|", "$HOME", "a b", ";id", "--", "-x") == "$HOME|a b|;id|--|-x|"


def test_both_streams_are_appended_to_one_file(tmp_path: Path) -> None:
    output(tmp_path, "sh", "-c", "echo one; echo two >&2")
    assert output(tmp_path, "echo", "three") == "one\ntwo\nthree\n"


def test_there_is_no_input(tmp_path: Path) -> None:
    assert output(tmp_path, "cat") == ""


def test_the_environment_holds_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI_TOKEN", "secret")
    monkeypatch.setenv("LD_PRELOAD_FAKE", "x")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    names = {line.partition("=")[0] for line in output(tmp_path, "env").splitlines()}
    assert {"PATH", "TMPDIR", "LC_ALL"} <= names <= {"PATH", "HOME", "TMPDIR", "XDG_RUNTIME_DIR", "LC_ALL", "PWD"}


def test_a_descriptor_is_passed_and_no_other(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    other, _other = os.pipe()
    try:
        for descriptor in (writer, other):
            os.set_inheritable(descriptor, True)
        os.set_blocking(reader, False)
        said = output(tmp_path, sys.executable, "-I", "-S", "-c", LOOK, str(writer), pass_fds=[writer])
        assert os.read(reader, 100) == b"hello"
        assert {"0", "1", "2", str(writer)} == set(said.split())
    finally:
        for descriptor in (reader, writer, other, _other):
            os.close(descriptor)


def test_nothing_stays_open_in_the_harness(tmp_path: Path) -> None:
    output(tmp_path, "true")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        output(tmp_path, "true")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# -- memory, and short commands ----------------------------------------------------------------------------------------


def test_how_much_memory_a_process_holds(tmp_path: Path) -> None:
    program = "import time; x = b'x' * (64 << 20); print('here', flush=True); time.sleep(600)"
    process = start(tmp_path, sys.executable, "-I", "-S", "-c", program)
    try:
        deadline = soon()
        while "here" not in process.output.read_text() and not deadline.expired:
            time.sleep(0.01)
        assert 64 << 20 < process.resident_bytes() < 512 << 20
    finally:
        process.kill()
    with pytest.raises(HostError):
        process.resident_bytes()


def test_a_zombie_holds_no_memory_and_that_is_no_measurement(tmp_path: Path) -> None:
    process = start(tmp_path, "true")
    assert gone(process.pid)
    with pytest.raises(HostError):
        process.resident_bytes()
    process.kill()


def test_a_short_command() -> None:
    assert run_to_end(["sh", "-c", "echo one; echo two >&2; exit 3"]) == "one\ntwo\n"
    assert run_to_end(["cat"]) == ""
    assert run_to_end(["printf", r"\377"]) == "\N{REPLACEMENT CHARACTER}"


def test_a_short_command_that_is_not_short() -> None:
    """It is ended, and so is what it started."""
    said = run_to_end(["sh", "-c", "echo first; sleep 600 & echo $!; wait"], timeout_s=1)
    first, child = said.split()
    assert first == "first"
    deadline = time.monotonic() + 30
    while is_running(int(child)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_short_command_that_cannot_be_run(tmp_path: Path) -> None:
    assert "Permission denied" in run_to_end([str(tmp_path)])
