"""A guest is saved at a moment from which QEMU lets another go on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from harness.machine import snapshot
from harness.machine.machine import Machine
from harness.progress import SilentProgress
from harness.workspace import Workspace

PENDING, ENABLED = 0x0800_0200, 0x0800_0100
HALTED = -1  # not a register: a bit for each of two CPUs


class Registers:
    """A monitor whose guest's interrupt controller changes with each ``stop``."""

    def __init__(self, *stops: dict[int, int]) -> None:
        self.stops = list(stops)
        self.asked: list[str] = []

    def execute(self, command: str) -> None:
        if command == "stop" and "cont" in self.asked and len(self.stops) > 1:
            self.stops.pop(0)
        self.asked.append(command)

    def read_word(self, address: int) -> int:
        return self.stops[0].get(address, 0)

    def human(self, command: str) -> str:
        assert command == "info registers -a"
        halted = self.stops[0].get(HALTED, 3)
        return "".join(f"CPU#{cpu}\r\nCPL=0 SMM=0 HLT={halted >> cpu & 1}\r\n" for cpu in range(2))


def stopped(monitor: Registers, machine: str = "xen-arm64") -> list[str]:
    profile = Workspace(SilentProgress()).profiles[machine]
    snapshot._stop(cast(Machine, SimpleNamespace(monitor=monitor, plan=SimpleNamespace(profile=profile))))
    return monitor.asked


WAITING = {PENDING + 8: 1 << 15, ENABLED + 8: 0xC000}


@pytest.mark.parametrize(
    "quiet",
    [
        {},
        {PENDING: 0xFFFF, ENABLED: 0xFFFF},  # each CPU's own
        {PENDING + 8: 1 << 15, ENABLED + 8: 1 << 14},  # nobody listens
    ],
)
def test_a_quiet_guest_is_stopped_once(quiet: dict[int, int]) -> None:
    assert stopped(Registers(quiet)) == ["stop"]


def test_a_guest_goes_on_until_it_has_taken_its_interrupts() -> None:
    last = {PENDING + 32: 1, ENABLED + 32: 1}
    assert stopped(Registers(WAITING, last, {})) == ["stop", "cont", "stop", "cont", "stop"]


def test_one_that_is_never_quiet_is_saved_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "_LITTLE_S", 0)
    asked = stopped(Registers(WAITING))
    assert asked[-1] == "stop"
    assert 10 < len(asked) < 1000


@pytest.mark.parametrize("machine", ["xen-x86", "xen-x86-vtd"])
def test_no_cpu_runs_a_domain(machine: str) -> None:
    """QEMU does not load what it saved of one that does."""
    assert stopped(Registers({HALTED: 0}, {HALTED: 2}, {HALTED: 3}), machine) == [
        "stop",
        "cont",
        "stop",
        "cont",
        "stop",
    ]


@pytest.mark.parametrize("machine", ["pc", "pseries"])
def test_another_machine_can_be_saved_at_any_moment(machine: str) -> None:
    assert stopped(Registers({**WAITING, HALTED: 0}), machine) == ["stop"]
