"""A machine's whole state, written to a file by QEMU and read back by another one (QMP ``migrate``)."""

from __future__ import annotations

import base64
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from tenacity import Retrying, retry_if_exception_type, wait_fixed

from harness.deadline import Deadline
from harness.errors import HostError
from harness.guest.identity import Identity
from harness.guest.probe import PORT
from harness.machine.machine import Machine, new_mac
from harness.machine.qmp import Monitor, MonitorRefused
from harness.machine.spec import Profile

_LOOK_S = 1.0
#: How often a guest is stopped for the right moment, and how long it runs in between.
_STOPS = 50
_LITTLE_S = 0.01
#: The distributor of the machine `virt` (hw/arm/virt.c): GICD_ISENABLER and GICD_ISPENDR (Arm IHI 0069, 12.9), a bit
#: for each of 288 interrupts.
_GICD = 0x0800_0000
_ISENABLER, _ISPENDR = 0x100, 0x200
_SHARED_BYTES = 288 // 8
_EVENTS = {"capabilities": [{"capability": "events", "state": True}]}


def save(machine: Machine, state: Path, deadline: Deadline) -> None:
    """Stop the guest and write its state to a file. QEMU is ended.

    :raises HostError: when QEMU cannot save it, a full disk included.
    """
    _write(machine, state, deadline)
    machine.kill()


def restore(machine: Machine, state: Path, deadline: Deadline) -> None:
    """Start QEMU from a saved state and let the guest go on; its SSH connection is new.

    :raises HostError: when QEMU refuses the state.
    """
    machine.start(incoming=True)
    monitor = machine.monitor
    with machine.pausing(), state.open("rb") as file:
        monitor.send_fd("state", file.fileno())
        monitor.execute("migrate-set-capabilities", _EVENTS)
        monitor.execute("migrate-incoming", {"uri": "fd:state"})
        _await_migration(machine, state, deadline)
        monitor.execute("cont")
    machine.ssh(deadline)


def fork(machine: Machine, state: Path, deadline: Deadline) -> None:
    """Write the state that others are to go on from (:func:`take_up`), and let this machine go on as well.

    Connections are closed meanwhile: there is nobody at their other end for those who take the state up.

    :raises HostError: when QEMU cannot save it.
    """
    unsaved = [device.unsaved for device in machine.plan.profile.devices.values() if device.unsaved]
    # In a machine that was itself taken up an agent stays already.
    port = None if machine.agent_stays else PORT
    machine.call("resume.prepare", deadline=deadline, unsaved=sorted(set(unsaved)), port=port)
    machine.disconnect()
    machine.agent_stays = True
    _write(machine, state, deadline)
    # QEMU tells of the end a moment before it is ready to go on.
    Retrying(retry=retry_if_exception_type(MonitorRefused), wait=wait_fixed(0.01), stop=lambda _: deadline.expired)(
        machine.monitor.execute, "cont"
    )
    machine.ssh(deadline)


def take_up(machine: Machine, state: Path, saved: Identity, deadline: Deadline) -> None:
    """Start QEMU from a state that :func:`fork` wrote, and make the guest a machine of its own.

    :param saved: who the guest was when it was saved.
    :raises HarnessError: whatever goes wrong; the machine is of no use then.
    """
    fresh = machine.identity
    machine.identity = saved
    restore(machine, state, deadline)
    machine.timings.ready = machine.elapsed()
    machine.agent_stays = True
    machine.probe(deadline).call(
        "resume.resume",
        deadline=deadline,
        secret=True,
        token=saved.token,
        files={path: (base64.b64encode(content).decode(), mode) for path, (content, mode) in fresh.files().items()},
        mac=new_mac(),
        now_s=time.time(),
        randomness=base64.b64encode(secrets.token_bytes(64)).decode(),
    )
    machine.identity = fresh
    machine.is_up()


def _write(machine: Machine, state: Path, deadline: Deadline) -> None:
    """Stop the guest and write its state to a file; the guest is left stopped."""
    monitor = machine.monitor
    monitor.forget("MIGRATION")
    with machine.pausing(), state.open("wb") as file:
        _stop(machine)
        monitor.send_fd("state", file.fileno())
        monitor.execute("migrate-set-parameters", {"max-bandwidth": 1 << 40})
        monitor.execute("migrate-set-capabilities", _EVENTS)
        monitor.execute("migrate", {"uri": "fd:state"})
        _await_migration(machine, state, deadline)


def _stop(machine: Machine) -> None:
    """Stop the guest, at a moment from which QEMU lets another go on."""
    monitor = machine.monitor
    monitor.execute("stop")
    bad = _bad_moment(machine.plan.profile)
    for _ in range(_STOPS):
        if bad is None or not bad(monitor):
            return
        monitor.execute("cont")
        time.sleep(_LITTLE_S)
        monitor.execute("stop")


def _bad_moment(profile: Profile) -> Callable[[Monitor], bool] | None:
    """What tells that a machine would not go on if it were saved now; None where there is no such moment."""
    if profile.machine.startswith("virt"):
        return _interrupts_wait
    return _in_a_guest if profile.arch == "amd64" and profile.hypervisor is not None else None


def _in_a_guest(monitor: Monitor) -> bool:
    """Whether a CPU may be running a PVH domain; one that is halted does not.

    QEMU 7.2 saves such a CPU, and refuses to load it where there is no KVM ("vCPU set in guest-mode inconsistent with
    migrated kernel nested state").
    """
    return "HLT=0" in monitor.human("info registers -a")


def _interrupts_wait(monitor: Monitor) -> bool:
    """Whether the interrupt controller has one for a CPU, of those that all CPUs share and that are enabled.

    QEMU's GICv3 loses one that is meant for any CPU but the first: when it has been restored, it finds out what waits
    for each CPU before it knows for which CPU each interrupt is (``arm_gicv3_post_load``, seen in 7.2). The device,
    whose line stays up, is not heard again: a network card, say, that had a packet when the machine was saved.
    """
    for word in range(4, _SHARED_BYTES, 4):  # the first is each CPU's own
        pending = monitor.read_word(_GICD + _ISPENDR + word)
        if pending and pending & monitor.read_word(_GICD + _ISENABLER + word):
            return True
    return False


def _await_migration(machine: Machine, state: Path, deadline: Deadline) -> None:
    done = None
    while done is None and not deadline.expired:
        machine.check()  # a QEMU that has ended tells nothing any more
        done = machine.monitor.wait_event(
            "MIGRATION",
            deadline.within(_LOOK_S, deadline.what),
            lambda event: event["data"]["status"] in ("completed", "failed"),
        )
    if done is None or done["data"]["status"] == "failed":
        raise HostError(
            "QEMU could not move the machine's state" if done else "QEMU did not move the machine's state in time",
            layer="qemu",
            tail=machine.qemu_output.tail(),
            hint=f"free space there: {shutil.disk_usage(state.parent).free >> 20} MiB",
        )
