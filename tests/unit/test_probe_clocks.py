"""A restored machine's timers: on each CPU of Linux, and in Xen on each CPU of the machine."""

from __future__ import annotations

import errno
import importlib
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

PROBES = Path(__file__).parents[2] / "harness" / "probes"
SCHED_OP, POLL, PIN_OVERRIDE = 29, 3, 7


class Xen:
    """A hypervisor with two CPUs. A vCPU that is pinned must be let go before it can be pinned again."""

    def __init__(self) -> None:
        self.pinned = -1
        self.polled: list[int] = []
        self.closed = False
        self.refuses = 0

    def call(self, number: int, argument: bytearray) -> int:
        assert number == 0x00305000
        hypercall, operation, pointer, *_ = struct.unpack("=6Q", argument)
        assert hypercall == SCHED_OP
        content = self.buffers[pointer]
        if operation == POLL:
            ports, nr_ports, _, timeout = struct.unpack("=QIIQ", content)
            assert (ports, nr_ports, timeout) == (0, 0, 1)  # for no event, until long ago
            self.polled.append(self.pinned)
            return 0
        assert operation == PIN_OVERRIDE
        (cpu,) = struct.unpack("=i", content)
        if self.refuses:
            return self.refuses
        if cpu >= 2:
            return errno.EINVAL
        if cpu >= 0 and self.pinned >= 0:
            return errno.EBUSY
        self.pinned = cpu
        return 0

    def close(self) -> None:
        self.closed = True

    def address_of(self, buffer: bytearray) -> int:
        self.buffers = {id(buffer): bytes(buffer)}
        return id(buffer)


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(PROBES))
    for name in ("clocks", "privcmd"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("clocks")
    for name in ("clocks", "privcmd"):
        sys.modules.pop(name, None)


@pytest.fixture
def xen(clocks: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Xen:
    xen = Xen()
    monkeypatch.setattr(clocks.privcmd, "Privcmd", lambda: xen)
    monkeypatch.setattr(clocks.privcmd, "address_of", xen.address_of)
    return xen


def test_xen_sets_its_timer_on_every_cpu(clocks: ModuleType, xen: Xen) -> None:
    assert clocks._start_xen() == 2
    assert xen.polled == [0, 1]
    assert xen.pinned == -1
    assert xen.closed


def test_who_may_not_set_xens_timers_is_told(clocks: ModuleType, xen: Xen) -> None:
    xen.refuses = errno.EPERM
    with pytest.raises(PermissionError, match="Xen's timer of CPU 0"):
        clocks._start_xen()
    assert xen.closed


def test_linux_sets_its_timer_on_every_cpu_and_goes_on_where_it_was(
    clocks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound: list[set[int]] = []
    monkeypatch.setattr(clocks.os, "sched_getaffinity", lambda _: {0, 3})
    monkeypatch.setattr(clocks.os, "sched_setaffinity", lambda _, cpus: bound.append(cpus))
    assert clocks._start_linux() == 2
    assert bound == [{0}, {3}, {0, 3}]
