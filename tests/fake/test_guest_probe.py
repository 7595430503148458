"""Probe calls: the real agent, as a process of this host, behind a real SSH connection."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from harness.deadline import Deadline
from harness.errors import CommandFailed, GuestCrash, GuestHang, LostConnection
from harness.guest.probe import AGENT, Probe, ProbeError
from tests.fake.conftest import soon
from tests.fake.guest import Session
from tests.fake.test_guest_ssh import Line

SAMPLE = """\
import os
import sys
import time

def echo(**arguments):
    return arguments

def pid():
    return os.getpid()

def large(size):
    return "x" * size

def fail(code):
    raise OSError(code, os.strerror(code))

def wrong():
    raise ValueError("\\x1b[31mred\\nand more")

def chatter():
    print("not an answer")
    os.write(1, b"nor this\\n")
    os.system("echo nor that")
    return 7

def slow(seconds, value):
    time.sleep(seconds)
    return value

def vanish(status):
    sys.stderr.write("last words\\n")
    sys.stderr.flush()
    os._exit(status)

def killed():
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def line(tmp_path: Path, nothing_leaks: None) -> Iterator[Line]:
    """A way to a guest."""
    with ExitStack() as stack:
        yield Line(tmp_path, stack)


@pytest.fixture
def probe(line: Line, tmp_path: Path) -> Iterator[Probe]:
    """An agent in a guest that has the sample's functions."""
    (tmp_path / "sample.py").write_text(SAMPLE)
    probe = Probe(line.ssh(probes=tmp_path), soon())
    yield probe
    probe.close()


def test_a_call_gives_the_functions_result(probe: Probe) -> None:
    values: dict[str, Any] = {"text": "é\n", "number": -3, "list": [1, [2]], "map": {"a": None}, "yes": True}
    assert probe.call("sample.echo", deadline=soon(), **values) == values


def test_one_process_answers_them_all(probe: Probe) -> None:
    pids = {probe.call("sample.pid", deadline=soon()) for _ in range(3)}
    assert len(pids) == 1
    assert pids != {os.getpid()}


def test_the_projects_own_probes_are_there(probe: Probe) -> None:
    assert "pgfault" in probe.call("memory.vmstat", deadline=soon())


def test_an_answer_larger_than_every_buffer(probe: Probe) -> None:
    assert len(probe.call("sample.large", deadline=soon(), size=3 << 20)) == 3 << 20


def test_a_function_that_fails_tells_why(probe: Probe) -> None:
    with pytest.raises(ProbeError, match="No space left") as caught:
        probe.call("sample.fail", deadline=soon(), code=errno.ENOSPC)
    assert (caught.value.kind, caught.value.errno, caught.value.layer) == ("OSError", errno.ENOSPC, "guest")
    assert isinstance(caught.value, CommandFailed)
    assert probe.call("sample.echo", deadline=soon(), still="here") == {"still": "here"}


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        ("sample.nothing", "AttributeError"),
        ("nothing.at_all", "ModuleNotFoundError"),
        ("nothing", "ValueError"),
        ("sample.fail", "TypeError"),
    ],
)
def test_a_function_that_is_not_there_or_is_called_wrongly(probe: Probe, function: str, kind: str) -> None:
    with pytest.raises(ProbeError) as caught:
        probe.call(function, deadline=soon())
    assert caught.value.kind == kind


def test_what_a_probe_says_is_safe_to_show(probe: Probe) -> None:
    with pytest.raises(ProbeError) as caught:
        probe.call("sample.wrong", deadline=soon())
    assert "\x1b" not in str(caught.value)
    assert "red" in str(caught.value)


def test_what_a_probe_prints_is_no_answer(probe: Probe) -> None:
    assert probe.call("sample.chatter", deadline=soon()) == 7
    assert probe.call("sample.chatter", deadline=soon()) == 7


def test_a_call_can_be_waited_for_later(probe: Probe) -> None:
    probe.send("sample.slow", seconds=0.1, value=1)
    probe.send("sample.slow", seconds=0, value=2)
    assert probe.receive("sample.slow", soon())["result"] == 1
    assert probe.receive("sample.slow", soon())["result"] == 2


def test_a_call_that_takes_too_long(probe: Probe) -> None:
    with pytest.raises(GuestHang, match=r"sample.slow did not answer in time \(the call\)") as caught:
        probe.call("sample.slow", deadline=Deadline.after(0.2, "the call"), seconds=600, value=1)
    assert caught.value.layer == "guest"


def test_a_late_answer_is_not_taken_for_the_next_ones(probe: Probe) -> None:
    with pytest.raises(GuestHang):
        probe.call("sample.slow", deadline=Deadline.after(0.1, "the call"), seconds=0.5, value="late")
    assert probe.call("sample.echo", deadline=soon(), value="mine") == {"value": "mine"}
    assert probe.call("sample.echo", deadline=soon(), value="again") == {"value": "again"}


def test_an_answer_that_is_waited_for_twice(probe: Probe) -> None:
    """``receive`` may be given a short patience and be called again: nothing is lost meanwhile."""
    probe.send("sample.slow", seconds=0.3, value="it")
    with pytest.raises(GuestHang):
        probe.receive("sample.slow", Deadline.after(0.05, "a look"))
    assert probe.receive("sample.slow", soon())["result"] == "it"


@pytest.mark.parametrize("status", [0, 3])
def test_an_agent_that_ends(probe: Probe, status: int) -> None:
    with pytest.raises(LostConnection, match=r"ended during sample\.vanish") as caught:
        probe.call("sample.vanish", deadline=soon(), status=status)
    assert caught.value.tail[-1] == "last words"
    assert caught.value.layer == "guest"
    with pytest.raises(LostConnection):
        probe.call("sample.echo", deadline=soon())


def test_an_agent_that_is_killed(probe: Probe) -> None:
    """By the OOM killer, say."""
    with pytest.raises(LostConnection, match=r"ended during sample\.killed"):
        probe.call("sample.killed", deadline=soon())


def test_an_agent_that_never_starts(line: Line) -> None:
    def not_found(session: Session) -> None:
        session.channel.sendall_stderr(b"sh: python3: not found\n")
        session.exit(127)

    probe = Probe(line.ssh(commands={AGENT[0]: not_found}), soon())
    with pytest.raises(LostConnection) as caught:
        probe.call("memory.vmstat", deadline=soon())
    assert caught.value.tail == ("sh: python3: not found",)
    probe.close()


def test_an_answer_and_the_end_at_once(line: Line) -> None:
    """The answer counts: it is there, and the end comes after it."""

    def last_answer(session: Session) -> None:
        session.channel.recv(1000)
        session.channel.sendall(b'{"id": 1, "result": 5}\n')
        session.exit(0)

    for _ in range(20):
        probe = Probe(line.ssh(commands={AGENT[0]: last_answer}), soon())
        assert probe.call("memory.vmstat", deadline=soon()) == 5
        probe.close()


def test_a_connection_that_breaks_during_a_call(line: Line) -> None:
    def drop(session: Session) -> None:
        session.channel.recv(1000)
        session.drop()

    probe = Probe(line.ssh(commands={AGENT[0]: drop}), soon())
    with pytest.raises(LostConnection):
        probe.call("memory.vmstat", deadline=soon())
    probe.close()


def test_a_crash_explains_a_call_that_hangs(line: Line, probe: Probe) -> None:
    def crashed() -> None:
        raise GuestCrash("kernel panic")

    line.check = crashed
    with pytest.raises(GuestCrash):
        probe.call("sample.slow", deadline=soon(), seconds=600, value=1)


def test_a_crash_explains_an_agent_that_ends(line: Line, probe: Probe) -> None:
    probe.call("sample.pid", deadline=soon())

    def crashed() -> None:
        if probe._channel.exit_status_ready():
            raise GuestCrash("kernel panic")

    line.check = crashed
    with pytest.raises(GuestCrash):
        probe.call("sample.vanish", deadline=soon(), status=1)


def test_the_journal_tells_each_call_in_short(line: Line, probe: Probe) -> None:
    probe.call("sample.large", deadline=soon(), size=1 << 20)
    with pytest.raises(ProbeError):
        probe.call("sample.fail", deadline=soon(), code=1)
    first, second = line.journal()
    assert (first["probe"], first["arguments"], first["layer"]) == ("sample.large", {"size": 1 << 20}, "guest")
    assert len(json.dumps(first)) < 3 * 4096
    assert "PermissionError" in second["answer"]
