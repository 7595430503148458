"""Booting: what goes right, and what each kind of bad luck is called."""

from __future__ import annotations

import json
import os
import shlex
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from harness.deadline import DeadlineExceeded
from harness.errors import BootError, GuestCrash, HarnessError, HostError
from harness.guest.identity import Identity
from harness.machine import console as console_module
from harness.machine import health as health_module
from harness.machine import machine as machine_module
from harness.machine.console import ConsoleFlood
from harness.machine.process import is_running
from tests.fake.conftest import soon
from tests.fake.guest import FakeGuest
from tests.fake.rig import BOOT, Rig

PANIC = (
    "[    1.000000] BUG: kernel NULL pointer dereference, address: 0000000000000008\n"
    "[    1.000001] Oops: 0000 [#1] SMP\n"
    "[    1.000002] RIP: 0010:balloon_page_migrate+0x10/0x80\n"
    "[    1.000003] ---[ end trace 0000000000000000 ]---\n"
    "[    1.000004] Kernel panic - not syncing: Fatal exception in interrupt\n"
)
PANIC_ENDS = "[    1.000005] ---[ end Kernel panic - not syncing: Fatal exception in interrupt ]---\n"
NO_INIT = (
    "[    1.000000] Kernel panic - not syncing: No working init found.  Try passing init= option to kernel.\n"
    "[    1.000001] ---[ end Kernel panic - not syncing: No working init found. ]---\n"
)


def refused(rig: Rig, kind: type[HarnessError], layer: str) -> HarnessError:
    """Boot, which must fail with exactly that error about that layer, its log on disk and QEMU gone for good."""
    with pytest.raises(HarnessError) as caught:
        rig.machine.boot()
    error = caught.value
    rig.machine.kill()
    assert type(error) is kind, error.explain()
    assert error.layer == layer
    assert error.log is not None
    assert error.log.exists()
    assert rig.machine.pids
    assert not [pid for pid in rig.machine.pids if is_running(pid)]
    return error


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """For machines that give the whole of the moment to what does not come in it: a short moment."""
    for module in (machine_module, health_module):
        monkeypatch.setattr(module, "END_S", 0.1)


def may_pass(error: HarnessError) -> bool:
    """Whether another try makes sense."""
    return isinstance(error, HostError) and error.may_pass


# -- what goes right ---------------------------------------------------------------------------------------------------


def test_a_machine_boots_runs_a_command_and_leaves_nothing(rig: Rig) -> None:
    machine = rig.boot()
    assert machine.ssh(soon()).run(["echo", "hello"], deadline=soon()).text == "hello"
    assert machine.monitor.qemu_version() == "7.2.22 Debian 1:7.2+dfsg-7+deb12u18+b3"
    assert is_running(machine.pid)
    assert 0 < machine.timings.monitor <= machine.timings.ready <= machine.timings.first_command
    pid = machine.pid
    with machine:
        pass
    assert not is_running(pid)
    assert machine.pids == [pid]


def test_the_results_tell_what_was_run(rig: Rig) -> None:
    machine = rig.boot()
    argv = shlex.split((machine.results / "qemu.argv").read_text())
    assert argv[0] == "qemu-system-x86_64"
    assert argv[argv.index("-D") + 1] == str(machine.results / "trace.log")
    said = [json.loads(line) for line in (machine.results / "qmp.jsonl").read_text().splitlines()]
    assert {"command-line": "info usernet"} in [entry.get("arguments") for entry in said]
    assert machine.console.log.read_bytes().endswith(b"harness: ready\r\n")


def test_the_connection_is_made_once_and_the_port_is_what_qemu_says(rig: Rig) -> None:
    guest = rig.make_guest()
    machine = rig.boot()
    assert machine.monitor.forwarded_port() == guest.port
    assert machine.ssh(soon()) is machine.ssh(soon())


def test_the_guest_may_listen_late(rig: Rig) -> None:
    """slirp accepts a connection and drops it when nobody listens in the guest."""
    rig.make_guest(deaf_to=3)
    assert rig.boot().ssh(soon()).run(["true"], deadline=soon()).status == 0


def test_every_machine_has_keys_and_an_address_of_its_own(rig: Rig) -> None:
    first, second = rig.machine, rig.make_machine()
    assert first.identity.host_key_blob != second.identity.host_key_blob
    assert first.identity.token != second.identity.token
    assert first._wiring.mac != second._wiring.mac


def test_a_crash_that_the_kernel_survives_does_not_stop_the_boot(rig: Rig) -> None:
    warning = (
        "[    0.100000] ------------[ cut here ]------------\n"
        "[    0.100001] WARNING: CPU: 0 PID: 1 at mm/page_alloc.c:1 get_page+0x1/0x2\n"
        "[    0.100002] ---[ end trace 0000000000000000 ]---\n"
    )
    machine = rig.boot(boot=[BOOT[0], warning, *BOOT[1:]])
    assert [report.title for report in machine.console.finish()] == ["WARNING in get_page"]


def test_a_crash_that_was_provoked_on_purpose_is_no_error(rig: Rig) -> None:
    rig.make_machine(tolerated=lambda report: "Fatal exception" in report.title)
    rig.boot(boot=[BOOT[0], PANIC, PANIC_ENDS, *BOOT[1:]])


# -- QEMU is at fault --------------------------------------------------------------------------------------------------


def test_without_qemu_the_host_is_at_fault(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(rig.directory / "nothing"))
    with pytest.raises(HostError, match="qemu-system-x86_64 is not installed") as caught:
        rig.machine.boot()
    assert caught.value.hint is not None
    assert not rig.machine.pids


def test_qemu_that_refuses_its_options(rig: Rig) -> None:
    rig.write_script(exits_at_once=1, says="qemu-system-x86_64: -device foo: 'foo' is not a valid device model name\n")
    error = refused(rig, HostError, "qemu")
    assert "exit status 1" in error.message
    assert "valid device model" in error.tail[-1]
    assert error.log == rig.machine.results / "qemu.log"
    assert not may_pass(error)


def test_qemu_that_ends_well_before_there_is_a_guest_is_no_reset(rig: Rig) -> None:
    """``-machine help`` in a profile: the guest has not run, so nothing under test can be to blame."""
    rig.write_script(exits_at_once=0, says="Supported machines are:\n")
    error = refused(rig, HostError, "qemu")
    assert "exit status 0" in error.message
    assert error.tail == ("Supported machines are:",)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("greets", ["no", "garbage"])
def test_qemu_that_does_not_open_its_monitor(rig: Rig, greets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is we who kill it then: nothing from outside did, and another try would end the same way."""
    monkeypatch.setattr(machine_module, "_MONITOR_TIMEOUT_S", 1)
    rig.write_script(greets=greets, says="qemu-system-x86_64: warning: something is odd\n")
    error = refused(rig, HostError, "qemu")
    assert "monitor" in error.message
    assert "SIGKILL" not in error.message
    assert error.tail == ("qemu-system-x86_64: warning: something is odd",)
    assert not may_pass(error)


@pytest.mark.parametrize(
    ("number", "passes"),
    [(signal.SIGKILL, True), (signal.SIGTERM, True), (signal.SIGABRT, False), (signal.SIGSEGV, False)],
)
def test_qemu_that_a_signal_ends(rig: Rig, number: signal.Signals, passes: bool) -> None:
    rig.write_script(boot=BOOT[:2], ends={"signal": int(number)})
    error = refused(rig, HostError, "qemu")
    assert number.name in error.message
    assert may_pass(error) is passes


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("ends", [{"status": 1}, {"signal": int(signal.SIGABRT)}], ids=["exits", "aborts"])
def test_qemu_that_breaks_is_the_hosts_fault_and_not_the_guests(rig: Rig, ends: dict[str, int]) -> None:
    says = "qemu-system-x86_64: ../hw/virtio/virtio.c:11: virtqueue_pop: Assertion `sz >= 0' failed.\n"
    rig.write_script(boot=BOOT[:2], ends={**ends, "says": says})
    error = refused(rig, HostError, "qemu")
    assert any("virtqueue_pop" in line for line in error.tail)
    assert error.log == rig.machine.results / "qemu.log"


@pytest.mark.usefixtures("hasty")
def test_qemu_that_complains_and_goes_on(rig: Rig) -> None:
    """A report of QEMU's own that says FATAL is an error of the host, too, while QEMU still runs."""
    rig.write_script(boot=BOOT[:2], says="KVM internal error. Suberror: 1\n")
    error = refused(rig, HostError, "qemu")
    assert "KVM internal error" in error.message


def test_a_machine_that_stops_by_itself(rig: Rig) -> None:
    rig.write_script(boot=BOOT[:2], stops="internal-error", says="error: kvm gave up\n")
    error = refused(rig, HostError, "qemu")
    assert "internal-error" in error.message
    assert error.tail == ("error: kvm gave up",)


def test_a_forward_that_qemu_does_not_tell(rig: Rig) -> None:
    rig.write_script(port=0)
    with pytest.raises(HostError, match="port"):
        rig.machine.boot()


def test_a_full_disk(rig: Rig) -> None:
    Path(rig.machine._wiring.initrd).symlink_to("/dev/full")
    with pytest.raises(HostError, match="initramfs") as caught:
        rig.machine.boot()
    assert caught.value.hint is not None
    Path(rig.machine._wiring.initrd).unlink()


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """A shell's background job ignores SIGINT, and so does what it starts: here it is heard all the same."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("hears_ctrl_c")
def test_ctrl_c_while_qemu_starts(rig: Rig) -> None:
    def interrupt() -> None:
        deadline = soon()
        while not (rig.machine.pids or deadline.expired):
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    rig.write_script(greets="no")
    person = Thread(target=interrupt)
    person.start()
    with pytest.raises(KeyboardInterrupt):
        rig.machine.boot()
    person.join()
    assert not is_running(rig.machine.pids[0])


# -- the guest is at fault ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("rest", [PANIC_ENDS, ""], ids=["told to its end", "cut off"])
def test_a_panic_at_boot(rig: Rig, rest: str) -> None:
    """The machine just stays there, so what is raised must not wait for it to end."""
    rig.write_script(boot=[BOOT[0], PANIC + rest])
    error = refused(rig, GuestCrash, "guest")
    assert "Fatal exception in interrupt" in error.message
    assert any("balloon_page_migrate" in line for line in error.tail)
    assert error.log == rig.machine.results / "console-guest.log"


@pytest.mark.parametrize("ends", [{}, {"status": 0}], ids=["stays", "resets"])
def test_a_panic_of_the_images_making_is_not_the_products(rig: Rig, ends: dict[str, int]) -> None:
    rig.write_script(boot=[BOOT[0], NO_INIT], ends=ends)
    error = refused(rig, BootError, "guest")
    assert "No working init" in error.message


def test_a_panic_explains_the_reset_that_follows(rig: Rig) -> None:
    rig.write_script(boot=[BOOT[0], PANIC, PANIC_ENDS], ends={"status": 0})
    error = refused(rig, GuestCrash, "guest")
    assert "Fatal exception" in error.message


def test_a_reset_that_nothing_explains(rig: Rig) -> None:
    """``-no-reboot`` makes QEMU exit with 0 where a machine would start anew."""
    rig.write_script(boot=BOOT[:2], ends={"status": 0})
    error = refused(rig, GuestCrash, "guest")
    assert "reset" in error.message
    assert error.tail == tuple(line.strip() for line in BOOT[:2])


def test_a_provoked_panic_does_not_hide_that_the_machine_is_gone(rig: Rig) -> None:
    rig.make_machine(tolerated=lambda _: True)
    rig.write_script(boot=[BOOT[0], PANIC, PANIC_ENDS], ends={"status": 0, "reason": "guest-reset"})
    assert "reset" in refused(rig, GuestCrash, "guest").message


def test_a_guest_that_never_gets_there(rig: Rig) -> None:
    rig.make_machine(boot_timeout_s=1)
    rig.write_script(boot=BOOT[:2])
    error = refused(rig, BootError, "guest")
    assert "1 s" in error.message
    assert error.tail == tuple(line.strip() for line in BOOT[:2])
    assert error.hint is not None


def test_a_guest_that_is_ready_but_lets_nobody_in(rig: Rig) -> None:
    """The machine never came up as far as a scenario is concerned."""
    rig.make_machine(boot_timeout_s=1)
    rig.make_guest(deaf_to=10**6)
    rig.write_script()
    error = refused(rig, BootError, "guest")
    assert "SSH" in error.message
    assert error.tail[-1] == "harness: ready"


def test_a_flood(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_module, "FLOOD_BYTES", 1 << 20)
    rig.write_script(boot=BOOT[:2], flood_bytes=3 << 20)
    error = refused(rig, ConsoleFlood, "guest")
    assert "1 MiB" in error.message
    assert "flood" in error.tail[-2]


def test_another_machine_on_the_port(rig: Rig) -> None:
    with FakeGuest(Identity.generate()) as stranger:
        rig.write_script(port=stranger.port)
        with pytest.raises(HostError, match="another machine") as caught:
            rig.machine.boot()
    assert caught.value.hint is not None
    assert not stranger.asked


# -- how long it waits -------------------------------------------------------------------------------------------------


def test_emulation_gets_more_time(rig: Rig) -> None:
    assert rig.make_machine(tcg_factor=4.0).time_factor == 4.0


def test_a_boot_does_not_end_with_an_error_that_names_nobody(rig: Rig) -> None:
    rig.make_machine(boot_timeout_s=1)
    rig.write_script(boot=())
    with pytest.raises(HarnessError) as caught:
        rig.machine.boot()
    assert not isinstance(caught.value, DeadlineExceeded)
    assert caught.value.explain().startswith("guest: ")
