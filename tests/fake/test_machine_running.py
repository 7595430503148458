"""A machine that is up: what steps use, and what becomes of it when QEMU or the guest goes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from harness.deadline import Deadline, DeadlineExceeded
from harness.errors import GuestCrash, GuestHang, HarnessError, HostError, LostConnection
from harness.guest.probe import ProbeError
from harness.machine.machine import Machine
from harness.machine.process import is_running
from harness.machine.qmp import MonitorLost, MonitorRefused
from tests.fake.conftest import soon
from tests.fake.guest import Session
from tests.fake.rig import Rig
from tests.fake.test_machine_boot import NO_INIT, PANIC, PANIC_ENDS

OOPS = (
    "[    9.000000] BUG: kernel NULL pointer dereference, address: 0000000000000008\n"
    "[    9.000001] Oops: 0000 [#1] SMP\n"
    "[    9.000003] ---[ end trace 0000000000000000 ]---\n"
)


def until_raises(machine: Machine) -> HarnessError:
    """Look at a machine as steps do, until there is something to see."""
    deadline = soon()
    while not deadline.expired:
        try:
            machine.check()
        except HarnessError as error:
            return error
        time.sleep(0.01)
    raise AssertionError("the machine looked healthy all the time")


def becomes(machine: Machine, status: str) -> None:
    """Wait until the kernel says so of QEMU, without anybody having asked how it ended."""
    deadline = soon()
    while psutil.Process(machine.pid).status() != status and not deadline.expired:
        time.sleep(0.01)


# -- what steps use ----------------------------------------------------------------------------------------------------


def test_a_machine_that_is_not_up_says_so(rig: Rig) -> None:
    uses: list[Callable[[], object]] = [
        lambda: rig.machine.pid,
        lambda: rig.machine.monitor,
        lambda: rig.machine.tracer,
        rig.machine.resident_bytes,
        rig.machine.check,
        lambda: rig.machine.ssh(soon()),
        lambda: rig.machine.probe(soon()),
    ]
    for use in uses:
        with pytest.raises(HostError, match="not running"):
            use()
    rig.machine.kill()


def test_killing_twice(rig: Rig) -> None:
    machine = rig.boot()
    pid = machine.pid
    machine.kill()
    machine.kill()
    assert not is_running(pid)
    with pytest.raises(HostError, match="not running"):
        machine.check()


def test_a_probe_call(rig: Rig) -> None:
    machine = rig.boot()
    assert machine.call("memory.vmstat", deadline=soon())["pgfault"] > 0
    assert machine.probe(soon()) is machine.probe(soon())
    with pytest.raises(ProbeError):
        machine.call("memory.nothing", deadline=soon())


def test_the_memory_that_qemu_holds(rig: Rig) -> None:
    machine = rig.boot()
    assert machine.resident_bytes() > 1 << 20


def test_memory_of_a_qemu_that_is_gone(rig: Rig) -> None:
    """A zombie's memory reads as 0, which would pass for a measurement."""
    machine = rig.boot()
    os.kill(machine.pid, signal.SIGKILL)
    becomes(machine, psutil.STATUS_ZOMBIE)
    with pytest.raises(HostError):
        machine.resident_bytes()


def test_a_console_dialogue(rig: Rig) -> None:
    machine = rig.boot(replies={"uname": "Linux\r\n# "})
    with machine.console.dialogue() as dialogue:
        dialogue.send_line("uname")
        assert dialogue.expect(r"Li\w+", soon()) == "Linux"
    with machine.console.dialogue() as dialogue:
        dialogue.send_line("again")
        assert dialogue.expect("again", soon()) == "again"


def test_a_console_whose_qemu_goes(rig: Rig) -> None:
    machine = rig.boot()
    with machine.console.dialogue() as dialogue:
        dialogue.send_line("here")
        dialogue.expect("here", soon())
        os.kill(machine.pid, signal.SIGKILL)
        with pytest.raises(HostError) as caught:
            dialogue.expect("nothing", soon())
        assert machine.explain(caught.value).message == "QEMU ended with signal SIGKILL"


def test_traces_of_a_step(rig: Rig) -> None:
    lines = ["virtio_balloon_to_target balloon target: 0x40000000 num_pages: 512"]
    machine = rig.boot(trace={"virtio_balloon_to_target": lines})
    with machine.tracer.record("virtio_balloon_to_target") as recording:
        pass
    (event,) = recording.take()
    assert (event.number("target"), event.number("num_pages")) == (1 << 30, 512)


def test_a_trace_event_that_this_qemu_does_not_have(rig: Rig) -> None:
    machine = rig.boot()
    with pytest.raises(HostError, match="no trace event nosuch_event"), machine.tracer.record("nosuch_event"):
        pass


# -- a guest that dies -------------------------------------------------------------------------------------------------


def test_a_panic_is_seen_at_the_next_look(rig: Rig) -> None:
    machine = rig.boot(late={"prints": PANIC + PANIC_ENDS})
    machine.check()
    rig.happen_late()
    error = until_raises(machine)
    assert type(error) is GuestCrash
    assert "Fatal exception" in error.message
    assert error.layer == "guest"
    assert error.log == machine.console.log
    assert any("balloon_page_migrate" in line for line in error.tail)


def test_an_oops_is_left_to_the_end(rig: Rig) -> None:
    machine = rig.boot(late={"prints": OOPS})
    rig.happen_late()
    deadline = soon()
    while not machine.console.reports and not deadline.expired:
        machine.check()
    assert [report.title for report in machine.console.reports] == ["BUG: kernel NULL pointer dereference"]
    machine.check()


def test_a_panic_outweighs_the_reset_that_follows(rig: Rig) -> None:
    machine = rig.boot(late={"prints": PANIC, "ends": {"status": 0, "reason": "guest-reset"}})
    rig.happen_late()
    becomes(machine, psutil.STATUS_ZOMBIE)
    error = until_raises(machine)
    assert type(error) is GuestCrash
    assert "Fatal exception" in error.message


@pytest.mark.parametrize(
    ("reason", "says"), [("guest-reset", "reset itself"), ("guest-shutdown", "powered itself off")]
)
def test_a_machine_that_goes_without_a_word(rig: Rig, reason: str, says: str) -> None:
    machine = rig.boot(late={"ends": {"status": 0, "reason": reason}})
    rig.happen_late()
    error = until_raises(machine)
    assert type(error) is GuestCrash
    assert says in error.message
    assert error.layer == "guest"
    assert error.tail[-1] == "harness: ready"


def test_a_panic_of_the_images_making(rig: Rig) -> None:
    machine = rig.boot(late={"prints": NO_INIT, "ends": {"status": 0, "reason": "guest-reset"}})
    rig.happen_late()
    becomes(machine, psutil.STATUS_ZOMBIE)
    assert not isinstance(until_raises(machine), GuestCrash)


# -- a QEMU that dies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "passes"), [(signal.SIGKILL, True), (signal.SIGTERM, True), (signal.SIGSEGV, False)]
)
def test_qemu_that_a_signal_ends(rig: Rig, number: signal.Signals, passes: bool) -> None:
    machine = rig.boot()
    os.kill(machine.pid, number)
    error = until_raises(machine)
    assert type(error) is HostError
    assert number.name in error.message
    assert error.may_pass is passes
    assert error.log == machine.qemu_output.log


def test_qemu_that_somebody_told_to_end(rig: Rig) -> None:
    """QEMU catches SIGTERM and exits with 0, as it does when the guest resets; its last event tells them apart."""
    machine = rig.boot(late={"ends": {"status": 0, "reason": "host-signal"}})
    rig.happen_late()
    error = until_raises(machine)
    assert type(error) is HostError
    assert error.may_pass


def test_qemu_that_breaks(rig: Rig) -> None:
    says = "ERROR:../util/qemu-thread.c:1:qemu_mutex_lock_impl: assertion failed: (mutex->initialized)\n"
    machine = rig.boot(late={"ends": {"signal": int(signal.SIGABRT), "says": says}})
    rig.happen_late()
    error = until_raises(machine)
    assert type(error) is HostError
    assert not error.may_pass
    assert error.layer == "qemu"
    assert "qemu_mutex_lock_impl" in error.tail[-1]


def test_a_machine_that_stops_by_itself(rig: Rig) -> None:
    machine = rig.boot(late={"stops": "internal-error"})
    rig.happen_late()
    error = until_raises(machine)
    assert type(error) is HostError
    assert "internal-error" in error.message
    assert error.log == machine.qemu_output.log


def test_a_machine_that_a_step_stops_and_continues(rig: Rig) -> None:
    machine = rig.boot()
    machine.monitor.execute("stop")
    machine.monitor.execute("cont")
    assert machine.monitor.wait_event("RESUME", soon()) is not None
    machine.check()


# -- what a step meets then, and what is behind it ---------------------------------------------------------------------


def test_a_reset_while_the_monitor_is_asked(rig: Rig) -> None:
    machine = rig.boot(dies_at={"query-balloon": {"status": 0}})
    with pytest.raises(MonitorLost, match="query-balloon") as caught:
        machine.monitor.execute("query-balloon")
    assert isinstance(machine.explain(caught.value), GuestCrash)


def test_a_monitor_that_refuses_or_never_answers(rig: Rig) -> None:
    machine = rig.boot(silent_at=["query-balloon"])
    with pytest.raises(MonitorRefused, match="has not been found") as refused:
        machine.monitor.execute("no-such-command")
    assert refused.value.error_class == "CommandNotFound"
    with pytest.raises(MonitorLost, match="in time"):
        machine.monitor.execute("query-balloon", timeout_s=0.2)
    assert machine.monitor.qemu_version().startswith("7.2")


@pytest.mark.parametrize(
    ("late", "kind", "says"),
    [
        ({"ends": {"status": 0, "reason": "guest-reset"}, "after_s": 0.3}, GuestCrash, "reset"),
        ({"ends": {"signal": 9}, "after_s": 0.3}, HostError, "SIGKILL"),
        ({"prints": PANIC}, GuestCrash, "Fatal exception"),
    ],
    ids=["reset", "killed", "panic"],
)
def test_a_connection_breaks_before_the_reason_shows(
    rig: Rig, late: dict[str, Any], kind: type[HarnessError], says: str
) -> None:
    def breaks(session: Session) -> None:
        rig.happen_late()
        session.drop()

    rig.make_guest(commands={"break": breaks})
    machine = rig.boot(late=late)
    with pytest.raises(HarnessError) as caught:
        machine.ssh(soon()).run(["break"], deadline=soon())
    error = machine.explain(caught.value)
    assert type(error) is kind, error.explain()
    assert says in error.message


def test_a_connection_that_breaks_for_no_reason(rig: Rig) -> None:
    rig.make_guest(commands={"break": Session.drop})
    machine = rig.boot()
    with pytest.raises(LostConnection) as caught:
        machine.ssh(soon()).run(["break"], deadline=soon())
    error = machine.explain(caught.value)
    assert error is caught.value
    assert error.layer == "guest"
    assert error.tail[-1] == "harness: ready"
    assert error.log == machine.console.log
    assert error.hint is not None


def test_a_hang_says_where_the_console_is(rig: Rig) -> None:
    machine = rig.boot()
    with pytest.raises(GuestHang) as caught:
        machine.ssh(soon()).run(["sleep", "600"], deadline=Deadline.after(0.2, "it"))
    error = machine.explain(caught.value)
    assert error is caught.value
    assert error.tail[-1] == "harness: ready"
    assert error.hint is not None


def test_a_hang_because_somebody_stopped_qemu(rig: Rig) -> None:
    machine = rig.boot()
    os.kill(machine.pid, signal.SIGSTOP)
    becomes(machine, psutil.STATUS_STOPPED)
    error = machine.explain(DeadlineExceeded("timed out waiting for it"))
    assert type(error) is HostError
    assert "SIGSTOP" in error.message


def test_a_crash_that_was_provoked_on_purpose(rig: Rig) -> None:
    """It is neither a crash nor an error of the host, and yet the steps that follow have no machine."""
    rig.make_machine(tolerated=lambda report: "Fatal exception" in report.title)
    machine = rig.boot(late={"prints": PANIC + PANIC_ENDS})
    rig.happen_late()
    error = until_raises(machine)
    assert not isinstance(error, GuestCrash | HostError)


def test_a_step_that_keeps_a_recording_does_not_fail_when_qemu_is_gone(rig: Rig) -> None:
    machine = rig.boot(trace={"a_b": []})
    with machine.tracer.record("a_b"):
        os.kill(machine.pid, signal.SIGKILL)
        becomes(machine, psutil.STATUS_ZOMBIE)
