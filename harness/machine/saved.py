"""Saved machines: booted once, and taken up by every run that boots the same.

A saved machine is found by all that it depends on, and by nothing else: QEMU's program, its arguments, what it boots,
the accelerator, and the stage that it had come to. Another byte in any of these is another machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

from rich.filesize import decimal

from harness.deadline import Deadline
from harness.errors import HarnessError, HostError
from harness.guest.identity import Identity
from harness.images.store import Built, Entry, Store
from harness.machine.boot_disk import loads
from harness.machine.machine import Machine
from harness.machine.snapshot import fork, take_up
from harness.machine.spec import Wiring, qemu_argv
from harness.progress import Progress

KIND = "machine"
LIMIT_VARIABLE = "HARNESS_SAVED_MIB"
# Counted up when saved machines of older harnesses are no longer fit to be taken up.
_FORMAT = 2
#: The whole catalogue boots some fifty different machines, of 100 to 450 MiB each.
_LIMIT_BYTES = 32 << 30
#: Nor more than this part of the disk.
_DISK_PART = 4
_SAVE_S = 60.0
#: How much of the time that its boot may take. Taking one up takes 1 to 4 s under emulation; one that is not there by
#: then is booted sooner than waited for: QEMU 7.2 does not arm the timer of an Arm CPU's EL2, and until it is set anew
#: (probes/clocks.py) Xen may stand still.
_TAKE_UP_SHARE = 0.2
#: What must be left on the disk after a machine is saved.
_SPARE_BYTES = 2 << 30
_HOST_CPU = re.compile(r"^(?:model name|flags|Features|cpu)\s*:.*$", re.MULTILINE)


def limit_bytes(root: Path) -> int:
    """How much all saved machines may take together, in a store on that disk."""
    given = os.environ.get(LIMIT_VARIABLE, "")
    return int(given) << 20 if given.isdecimal() else min(_LIMIT_BYTES, shutil.disk_usage(root).total // _DISK_PART)


def depends_on(machine: Machine, sha256_of: Callable[[Path], str]) -> dict[str, Any]:
    """All that a machine's state at the end of its boot depends on, as JSON.

    :param sha256_of: gives a file's hash.
    """
    loaded = machine.files.loader is not None
    wiring = Wiring(
        kernel="kernel",
        initrd="initrd",
        hypervisor="hypervisor" if machine.files.hypervisor else None,
        disk="disk" if loaded else None,
    )
    argv = qemu_argv(machine.plan, wiring, machine.accelerator.name)
    program = Path(shutil.which(argv[0]) or argv[0])
    native = machine.accelerator.name == "kvm"
    return {
        "format": _FORMAT,
        "qemu": sha256_of(program) if program.is_file() else "",
        "argv": argv,
        **({"loader": loads(machine.plan)} if loaded else {}),
        "boots": [sha256_of(path) for path in machine.files.every],
        "host_cpu": _host_cpu() if native else "",
    }


def _host_cpu() -> str:
    """What a guest of KVM sees of this host's processor and its kernel."""
    described = sorted(set(_HOST_CPU.findall(Path("/proc/cpuinfo").read_text())))
    return hashlib.sha256("\n".join([platform.release(), *described]).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Key:
    """By what a machine is found: the name of its profile, and all that its state depends on."""

    profile: str
    arch: str
    inputs: dict[str, Any]


class SavedMachines:
    """The saved machines of a store.

    :param progress: hears when one could not be used or saved.
    """

    def __init__(self, store: Store, progress: Progress) -> None:
        self._store = store
        self._progress = progress
        self._useless: list[Key] = []

    def key(self, profile: str, machine: Machine, stage: Mapping[str, Any]) -> Key:
        """By what a machine is found that has come to a stage.

        :param stage: what was done to it after its boot, as JSON.
        """
        inputs = {**depends_on(machine, self._store.sha256_of), "stage": dict(stage)}
        return Key(profile, machine.plan.profile.arch, inputs)

    def take_up(self, machine: Machine, key: Key) -> dict[str, Any] | None:
        """Let a machine that does not run go on from a saved one.

        :return: the facts that were saved with it; None when there is none, or it is of no use: then nothing runs.
        """
        entry = self._store.find(KIND, key.profile, key.arch, key.inputs)
        if entry is None:
            return None
        timeout_s = _TAKE_UP_SHARE * machine.plan.profile.boot_timeout_s * machine.time_factor
        deadline = Deadline.after(timeout_s, "a saved machine to go on")
        try:
            self._take_up(machine, entry, deadline)
        except (HarnessError, OSError) as error:  # a damaged state may be removed before it is opened here
            machine.kill()
            self._useless.append(key)
            self._progress.message(f"a saved {entry.name} machine is of no use, booting instead: {error}")
            return None
        facts: dict[str, Any] = json.loads(entry.facts["facts"])
        return facts

    def _take_up(self, machine: Machine, entry: Entry, deadline: Deadline) -> None:
        """Compare the state with its hash while QEMU reads it; nothing is believed before that is done."""
        with ThreadPoolExecutor(1, "verify") as verifier:
            verified = verifier.submit(entry.path, "state")
            saved = Identity.from_secrets(json.loads(entry.path("identity").read_text()))
            take_up(machine, self._store.root / "objects" / entry.files["state"].sha256, saved, deadline)
            verified.result()

    def save(self, machine: Machine, key: Key, facts: Mapping[str, Any], stack: ExitStack) -> None:
        """Save a running machine, which then goes on. Hashing its state is done beside that.

        One that was of no use is replaced: it would cost each run the time in which it does not go on.

        :param facts: what whoever takes it up must know, as JSON.
        :param stack: waits for the end of it.
        :raises HarnessError: the machine cannot go on.
        """
        room = shutil.disk_usage(self._store.root).free - (machine.plan.memory_mib << 20)
        if room < _SPARE_BYTES:
            self._progress.message(f"no room to save the machine: {decimal(max(0, room))} would be left")
            return
        started = time.monotonic()
        directory = stack.enter_context(self._store.draft())
        state, identity = directory / "state", directory / "identity"
        fork(machine, state, Deadline.after(_SAVE_S * machine.time_factor, "the machine to be saved"))
        identity.write_text(json.dumps(machine.identity.secrets()))
        built = Built(
            {"state": state, "identity": identity}, facts={"facts": json.dumps(facts)}, private=True, durable=False
        )
        worker = Thread(
            target=self._add, args=(key, built, directory, time.monotonic() - started), name="saved-machine"
        )
        worker.start()
        stack.callback(worker.join)

    def _add(self, key: Key, built: Built, directory: Path, seconds: float) -> None:
        try:
            what = (KIND, key.profile, key.arch, key.inputs)
            self._store.add(what, built, directory, seconds=seconds, replace=key in self._useless)
            self._store.prune(kind=KIND, max_bytes=limit_bytes(self._store.root))
        except HostError as error:
            self._progress.message(f"the machine could not be saved: {error.message}")
