"""A guest is saved at a moment when no interrupt waits that QEMU would lose."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.machine import snapshot
from harness.machine.machine import Machine

PENDING, ENABLED = 0x0800_0200, 0x0800_0100


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


def stopped(monitor: Registers, kind: str = "virt,gic-version=3") -> list[str]:
    profile = SimpleNamespace(machine=kind)
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


def test_another_machine_has_another_interrupt_controller() -> None:
    asked: Any = stopped(Registers(WAITING), "q35")
    assert asked == ["stop"]
