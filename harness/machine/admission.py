"""How many machines run at once: as many as this host's cores and memory carry, whoever started them.

Two emulated machines on too few cores starve each other's timers until guests time out. So each machine takes a ticket
with what it needs, and waits until there is room for it. A ticket is a file that its owner holds a lock on: the kernel
lets go of it when the owner dies, however that happens.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from filelock import FileLock, Timeout
from tenacity import Retrying, retry_if_result, wait_fixed

from harness.machine.spec import AcceleratorName, Plan

_POLL_S = 0.1
#: Beside the guest's memory: QEMU itself, with its translated code.
_OVERHEAD_MIB = 512
#: How much of the host's memory machines may take together.
_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Need:
    """What a machine takes of the host."""

    cores: float
    memory_mib: int

    def __add__(self, other: Need) -> Need:
        return Need(self.cores + other.cores, self.memory_mib + other.memory_mib)

    def fits(self, whole: Need) -> bool:
        """Whether there is that much."""
        return self.cores <= whole.cores and self.memory_mib <= whole.memory_mib


def need_of(plan: Plan, accelerator: AcceleratorName) -> Need:
    """What a machine takes. A guest that is driven over SSH waits much of the time.

    Measured under emulation, from QEMU's start to its end: 0.3 to 0.9 of a core, with a thread for each of two CPUs as
    with one for all.
    """
    threads = 1 if plan.profile.tcg_thread == "single" else plan.vcpus
    cores = plan.vcpus / 2 if accelerator == "kvm" else max(1.0, threads / 2)
    return Need(cores, plan.memory_mib + _OVERHEAD_MIB)


def host_capacity() -> Need:
    """What this host has."""
    return Need(psutil.cpu_count() or 1, int((psutil.virtual_memory().total >> 20) * _SHARE))


@contextmanager
def admitted(directory: Path, need: Need, capacity: Need, on_wait: Callable[[], None]) -> Iterator[None]:
    """Run the block when there is room for what it needs; one machine always finds room when nothing else runs.

    Who waits first is served first: those behind it wait for the gate, so small machines cannot starve a large one.

    :param directory: where tickets lie, the same for all that share this host.
    :param on_wait: called once when there is no room yet.
    """
    directory.mkdir(parents=True, exist_ok=True)
    gate = FileLock(directory / "gate")
    waited = False

    def look() -> tuple[Path, FileLock] | None:
        nonlocal waited
        if not gate.is_locked:
            with suppress(Timeout):
                gate.acquire(timeout=0)
        if gate.is_locked:
            taken = _taken(directory)
            if taken is None or (taken + need).fits(capacity):
                return _ticket(directory, need)
        if not waited:
            on_wait()
            waited = True
        return None

    try:
        ticket = Retrying(retry=retry_if_result(lambda found: found is None), wait=wait_fixed(_POLL_S))(look)
    finally:
        gate.release()
    assert ticket is not None
    try:
        yield
    finally:
        ticket[0].unlink(missing_ok=True)
        ticket[1].release()


def _ticket(directory: Path, need: Need) -> tuple[Path, FileLock]:
    """A ticket of one's own, and the lock on it, held. Its name says what it is for: a lock file may be emptied."""
    path = directory / f"{need.cores:g}-{need.memory_mib}-{secrets.token_hex(4)}.ticket"
    lock = FileLock(path)
    lock.acquire(timeout=0)
    return path, lock


def _taken(directory: Path) -> Need | None:
    """What all living tickets take together; None when there is none. Called by who holds the gate."""
    total: Need | None = None
    for path in directory.glob("*.ticket"):
        lock = FileLock(path)
        try:
            with lock.acquire(timeout=0):
                path.unlink(missing_ok=True)  # its owner is dead
        except Timeout:
            cores, memory_mib, _ = path.stem.rsplit("-", 2)
            need = Need(float(cores), int(memory_mib))
            total = need if total is None else total + need
    return total
