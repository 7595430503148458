"""A machine whose QEMU and whose guest are fakes: what the tests in this directory have in common."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.machine.accel import Accelerator
from harness.machine.machine import BootFiles, Machine
from harness.machine.spec import Cpu, Device, Plan, Profile
from harness.oops import Report
from tests.fake.guest import FakeGuest

BOOT = (
    "[    0.000000] Linux version 6.12.41+deb13-amd64\n",
    "[    0.000000] Command line: console=ttyS0\n",
    "[    0.512345] Run /init as init process\n",
    "harness: ready\n",
)
FAKE_QEMU = Path(__file__).with_name("fake_qemu.py")

_WRAPPER = '#!/bin/sh\nexec "{python}" -I -S "{fake}" "{script}" "$@"\n'


@dataclass(slots=True)
class Script:
    """What a fake QEMU does.

    :param says: on standard error, before anything else.
    :param exits_at_once: with this status, before it greets.
    :param greets: ``yes``, ``no``, or ``garbage``.
    :param boot: what the guest prints on the console.
    :param flood_bytes: how much it prints after that.
    :param stops: after the boot, the machine stops with this status.
    :param ends: after the boot, ``{"status": 0}`` or ``{"signal": 9}``, with ``says`` for standard error.
    :param late: ``prints``, ``stops``, ``ends`` and ``after_s``: what happens on SIGUSR1.
    :param dies_at: QMP commands at which it ends instead of answering.
    :param silent_at: QMP commands that it never answers.
    :param replies: what a line typed on the console is answered with.
    :param trace: the events that it has, and the lines that each logs when it is switched on.
    :param migration: ``completed``, ``failed``, ``never`` or ``dies``.
    :param port: the forwarded port, as ``info usernet`` tells it; 0 for none.
    """

    says: str = ""
    exits_at_once: int | None = None
    greets: str = "yes"
    boot: Sequence[str] = BOOT
    flood_bytes: int = 0
    stops: str = ""
    ends: dict[str, Any] = field(default_factory=dict)
    late: dict[str, Any] = field(default_factory=dict)
    dies_at: dict[str, dict[str, Any]] = field(default_factory=dict)
    silent_at: Sequence[str] = ()
    replies: Mapping[str, str] = field(default_factory=dict)
    trace: Mapping[str, Sequence[str]] = field(default_factory=dict)
    migration: str = "completed"
    port: int = 0


def profile(**changes: Any) -> Profile:
    """A PC; its boot may take a minute, so that a test that waits for the timeout shows as one that hangs."""
    values: dict[str, Any] = {
        "summary": "a fake PC",
        "arch": "amd64",
        "machine": "q35",
        "cpu": Cpu(tcg="max"),
        "kernels": ["none"],
        "rootfs": "none",
        "memory_mib": 256,
        "vcpus": 1,
        "console": "ttyS0",
        "early_modules": [],
        "devices": {"rng": Device(driver="virtio-rng-pci")},
        "boot_timeout_s": 60,
        "tcg_factor": 1.0,
    }
    return Profile(**values | changes)


class Rig:
    """Makes machines and guests, and takes them down again.

    :param directory: for images and results.
    :param scratch: for sockets.
    """

    def __init__(self, directory: Path, scratch: Path, stack: ExitStack) -> None:
        self.directory = directory
        self.scratch = scratch
        self.script = Script()
        self._stack = stack
        self._script_file = directory / "script.json"
        self.programs = directory / "bin"
        self.programs.mkdir()
        wrapper = self.programs / "qemu-system-x86_64"
        wrapper.write_text(_WRAPPER.format(python=sys.executable, fake=FAKE_QEMU, script=self._script_file))
        wrapper.chmod(0o755)
        self.machine = self.make_machine()

    def make_machine(self, tolerated: Callable[[Report], bool] = lambda _: False, **changes: Any) -> Machine:
        """A machine that is not started yet; it becomes :attr:`machine`."""
        results = self.directory / "results"
        results.mkdir(exist_ok=True)
        kernel, segment = self.directory / "kernel", self.directory / "segment"
        kernel.write_bytes(b"kernel")
        segment.write_bytes(b"segment")
        kind = profile(**changes)
        self.machine = self._stack.enter_context(
            Machine(
                Plan(kind, "none", kind.memory_mib, kind.vcpus),
                BootFiles(kernel, (segment,)),
                Accelerator("tcg", "asked for"),
                results=results,
                scratch=self.scratch,
                tolerated=tolerated,
            )
        )
        return self.machine

    def make_guest(self, **options: Any) -> FakeGuest:
        """A guest behind the machine's forwarded port."""
        guest = self._stack.enter_context(FakeGuest(self.machine.identity, **options))
        self.script.port = guest.port
        return guest

    def write_script(self, **changes: Any) -> None:
        """Have the next QEMU do this."""
        for name, value in changes.items():
            setattr(self.script, name, value)
        self._script_file.write_text(json.dumps(asdict(self.script)))

    def boot(self, **changes: Any) -> Machine:
        """Boot a machine that works, with a guest behind it unless there is one already."""
        if not self.script.port and "port" not in changes:
            self.make_guest()
        self.write_script(**changes)
        self.machine.boot()
        return self.machine

    def happen_late(self) -> None:
        """Let the fake do what its script keeps for later."""
        os.kill(self.machine.pid, signal.SIGUSR1)
