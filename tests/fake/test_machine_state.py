"""Saving a machine's state and going on from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.deadline import Deadline
from harness.errors import HarnessError, HostError
from harness.machine import snapshot
from harness.machine.process import is_running
from harness.machine.snapshot import restore, save
from harness.machine.trace import Tracer
from tests.fake.conftest import soon
from tests.fake.fake_qemu import STATE
from tests.fake.rig import Rig


@pytest.fixture
def state(rig: Rig) -> Path:
    """Where the state goes."""
    return rig.scratch / "state"


def test_a_machine_goes_on_from_its_saved_state(rig: Rig, state: Path) -> None:
    machine = rig.boot()
    old, first = machine.ssh(soon()), machine.pid
    save(machine, state, soon())
    assert state.read_bytes().startswith(STATE)
    assert not is_running(first)
    with pytest.raises(HostError, match="not running"):
        machine.check()
    restore(machine, state, soon())
    machine.check()
    assert machine.ssh(soon()) is not old
    assert machine.ssh(soon()).run(["true"], deadline=soon()).status == 0
    assert machine.call("memory.vmstat", deadline=soon())
    assert machine.pids == [first, machine.pid]
    assert machine.monitor.execute("query-status")["status"] == "running"


def test_each_qemu_has_a_trace_of_its_own(rig: Rig, state: Path) -> None:
    """QEMU empties its log when it starts."""
    machine = rig.boot(trace={"a_b": ["a_b x 1"]})
    tracers: list[Tracer] = [machine.tracer]
    with machine.tracer.record("a_b") as before:
        pass
    save(machine, state, soon())
    restore(machine, state, soon())
    tracers.append(machine.tracer)
    with machine.tracer.record("a_b") as after:
        pass
    assert tracers[0] is not tracers[1]
    assert [event.number("x") for event in (*before.take(), *after.take())] == [1, 1]
    assert (machine.results / "trace.log").read_text() == "a_b x 1\n"
    assert (machine.results / "trace-2.log").read_text() == "a_b x 1\n"


def test_a_recording_from_before_ends_quietly(rig: Rig, state: Path) -> None:
    machine = rig.boot(trace={"a_b": ["a_b x 1"]})
    with machine.tracer.record("a_b") as recording:
        save(machine, state, soon())
        restore(machine, state, soon())
    assert len(recording.take()) == 1
    machine.check()


def test_the_console_goes_on(rig: Rig, state: Path) -> None:
    machine = rig.boot(replies={"x": "answer\r\n"})
    before = machine.console.log.stat().st_size
    save(machine, state, soon())
    restore(machine, state, soon())
    with machine.console.dialogue() as dialogue:
        dialogue.send_line("x")
        dialogue.expect("answer", soon())
    machine.check()
    assert machine.console.log.stat().st_size > before
    assert not machine.console.finish()


def save_fails(rig: Rig, state: Path, deadline: Deadline) -> HarnessError:
    """Save, which must fail as a fault of the host, with QEMU gone afterwards."""
    machine = rig.machine
    with pytest.raises(HarnessError) as caught:
        save(machine, state, deadline)
    machine.kill()
    assert type(caught.value) is HostError, caught.value.explain()
    assert caught.value.layer == "qemu"
    assert not [pid for pid in machine.pids if is_running(pid)]
    return caught.value


def test_a_state_that_cannot_be_saved(rig: Rig, state: Path) -> None:
    rig.boot(migration="failed")
    error = save_fails(rig, state, soon())
    assert "could not move" in error.message
    assert error.hint is not None


def test_a_state_that_takes_too_long(rig: Rig, state: Path) -> None:
    rig.boot(migration="never")
    assert "in time" in save_fails(rig, state, Deadline.after(0.5, "the state")).message


def test_qemu_that_ends_while_it_saves(rig: Rig, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is seen, and not waited out."""
    monkeypatch.setattr(snapshot, "_LOOK_S", 0.1)
    rig.boot(migration="dies")
    error = save_fails(rig, state, soon())
    assert "exit status 1" in error.message
    assert "load of migration failed" in error.tail[-1]


def test_a_state_that_qemu_does_not_take(rig: Rig, state: Path) -> None:
    machine = rig.boot()
    save(machine, state, soon())
    state.write_bytes(b"something else")
    with pytest.raises(HostError, match="could not move"):
        restore(machine, state, soon())
    machine.kill()
    assert not [pid for pid in machine.pids if is_running(pid)]


def test_a_place_that_cannot_be_written(rig: Rig) -> None:
    machine = rig.boot()
    with pytest.raises((HostError, OSError)):
        save(machine, rig.scratch / "nowhere" / "state", soon())


def test_a_machine_that_is_not_up_cannot_be_saved(rig: Rig, state: Path) -> None:
    with pytest.raises(HostError, match="not running"):
        save(rig.machine, state, soon())
