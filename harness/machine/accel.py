"""Which accelerator a machine runs under, and why: KVM only where it was seen to run a real guest.

A ``/dev/kvm`` that opens proves nothing: under some hypervisors it opens, creates a VM, runs the firmware,
and then no ordinary kernel. So the harness boots its own guest under it once per boot of this host.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from filelock import FileLock

from harness.errors import HarnessError, HostError
from harness.machine.qmp import Monitor
from harness.machine.spec import QEMU_BINARIES, AcceleratorName

Request = Literal["auto", "kvm", "tcg"]

KVM_DEVICE = Path("/dev/kvm")
#: A guest under a KVM that works is up in 2 s; 20 s where that KVM runs on an emulated processor of a loaded host. What
#: cannot work mostly ends earlier: see :class:`EmulationWatch`.
PROOF_TIMEOUT_S = 60
#: How many instructions KVM may fail to emulate before it is given up: where a processor's virtualisation works there
#: are none, and where it does not there were 500 in the first second.
_HOPELESS = 100
_LOOK_S = 0.25
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_DEBIAN_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64el"}


@dataclass(frozen=True, slots=True)
class Accelerator:
    """What a machine runs under.

    :param why: the reason for the choice, in words for a person.
    """

    name: AcceleratorName
    why: str


@dataclass(frozen=True, slots=True)
class KvmProof:
    """Whether KVM runs a real guest on this host, and what was seen."""

    works: bool
    why: str


def host_architecture() -> str:
    """This host's architecture in Debian's words; the kernel's word where Debian has none."""
    return _DEBIAN_ARCHITECTURES.get(platform.machine(), platform.machine())


def kvm_obstacle() -> str | None:
    """Why KVM is out of the question without trying it, or None."""
    if host_architecture() not in QEMU_BINARIES:
        return f"no KVM guest is known for a host of architecture {platform.machine()}"
    if not KVM_DEVICE.exists():
        return f"{KVM_DEVICE} does not exist"
    try:
        os.close(os.open(KVM_DEVICE, os.O_RDWR))
    except OSError as error:
        return f"{KVM_DEVICE} does not open: {error.strerror}"
    return None


@dataclass(slots=True)
class EmulationWatch:
    """Ends a proof early: a KVM that emulates the guest's instructions, and fails at them, never gets to its end.

    Such a KVM is that of a host which is itself a guest and whose processor has no virtualisation that is worth the
    name: its guests do not stop, they crawl. QEMU tells KVM's counters since 7.1 (``query-stats``, qapi/stats.json),
    where the host's kernel has them; elsewhere nothing is ended early.
    """

    _next: float = field(default=0.0, init=False)

    def __call__(self, monitor: Monitor) -> None:
        """Look, now and then; called while the proof waits.

        :raises HostError: too many instructions could not be emulated.
        """
        if time.monotonic() < self._next:
            return
        failed = _failed_emulations(monitor)
        self._next = time.monotonic() + _LOOK_S
        if failed > _HOPELESS:
            raise HostError(f"KVM emulates the guest's instructions instead of running them, and failed at {failed}")


def _failed_emulations(monitor: Monitor) -> int:
    """How many instructions KVM could not emulate until now; 0 where nobody says."""
    name = "insn_emulation_fail"
    wanted = {"target": "vcpu", "providers": [{"provider": "kvm", "names": [name]}]}
    try:
        told = monitor.execute("query-stats", wanted)
    except HarnessError:  # what became of QEMU is for others to say
        return 0
    return sum(int(item["value"]) for cpu in told for item in cpu["stats"] if item["name"] == name)


class KvmJudge:
    """Proves KVM, once per boot of this host and version of QEMU and of the guest used for it.

    Each QEMU that is used here has an answer of its own, which a later one of the same QEMU takes the place of.

    :param cache: directory for the remembered answers.
    :param prove: boots the harness's own guest under KVM and raises :class:`HarnessError` when that fails.
    :param fingerprint: names the guest that ``prove`` boots; another guest is another proof.
    """

    def __init__(self, cache: Path, prove: Callable[[], None], fingerprint: str) -> None:
        self._prove = prove
        qemu = shutil.which(QEMU_BINARIES.get(host_architecture(), "qemu")) or "none"
        version = Path(qemu).stat().st_mtime_ns if qemu != "none" else 0
        boot_id = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else "unknown"
        self._about = f"{boot_id} {qemu} {version} {fingerprint}"
        self._file = cache / f"kvm-{hashlib.sha256(qemu.encode()).hexdigest()[:16]}.json"

    def remembered(self) -> KvmProof | None:
        """The answer of an earlier proof on this boot of the host, if there was one."""
        if (obstacle := kvm_obstacle()) is not None:
            return KvmProof(False, obstacle)
        try:
            told = json.loads(self._file.read_text())
            return KvmProof(bool(told["works"]), str(told["why"])) if told["about"] == self._about else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def judge(self) -> KvmProof:
        """The remembered answer, or that of a proof made now."""
        if (known := self.remembered()) is not None:
            return known
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._file.with_suffix(".lock")):
            if (known := self.remembered()) is not None:
                return known
            try:
                self._prove()
                proof = KvmProof(True, "a guest booted under KVM on this host")
            except HarnessError as error:
                proof = KvmProof(False, f"{KVM_DEVICE} opens, but a guest does not boot under KVM: {_cause(error)}")
            temporary = self._file.with_suffix(".tmp")
            temporary.write_text(json.dumps({"about": self._about, "works": proof.works, "why": proof.why}))
            temporary.rename(self._file)
            return proof


def _cause(error: HarnessError) -> str:
    """The line of QEMU's own output that says most, behind the error's message."""
    said = [line for line in error.tail if any(word in line.lower() for word in ("kvm", "msr", "error", "assert"))]
    return f"{error.message}: {said[0]}" if said else error.message


def choose(request: Request, guest_architecture: str, judge: KvmJudge) -> Accelerator:
    """The accelerator for a guest.

    :raises HostError: when KVM was asked for and cannot run that guest here.
    """
    if request == "tcg":
        return Accelerator("tcg", "asked for with --accel tcg")
    if guest_architecture != host_architecture():
        reason = f"a guest of {guest_architecture} on a host of {host_architecture()} needs emulation"
    else:
        proof = judge.judge()
        if proof.works:
            return Accelerator("kvm", proof.why)
        reason = proof.why
    if request == "kvm":
        raise HostError(f"KVM was asked for and cannot be used: {reason}", hint="use --accel auto or --accel tcg")
    return Accelerator("tcg", reason)
