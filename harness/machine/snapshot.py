"""A machine's whole state, written to a file by QEMU and read back by another one (QMP ``migrate``)."""

from __future__ import annotations

import shutil
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import HostError
from harness.machine.machine import Machine

_LOOK_S = 1.0
_EVENTS = {"capabilities": [{"capability": "events", "state": True}]}


def save(machine: Machine, state: Path, deadline: Deadline) -> None:
    """Stop the guest and write its state to a file. QEMU is ended.

    :raises HostError: when QEMU cannot save it, a full disk included.
    """
    monitor = machine.monitor
    with machine.pausing(), state.open("wb") as file:
        monitor.execute("stop")
        monitor.send_fd("state", file.fileno())
        monitor.execute("migrate-set-parameters", {"max-bandwidth": 1 << 40})
        monitor.execute("migrate-set-capabilities", _EVENTS)
        monitor.execute("migrate", {"uri": "fd:state"})
        _await_migration(machine, state, deadline)
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
