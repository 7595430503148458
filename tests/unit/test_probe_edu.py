"""What the edu probe refuses before it touches the device (QEMU 7.2 aborts, or a transfer moves nothing), and what it
believes of a device that moves bytes, or only says so.
"""

from __future__ import annotations

import importlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import harness.probes
from tests.unit.probes import imported

_CONFIG_COMMAND = (7 << 40) + 4


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The probe as the guest has it, its neighbours beside it."""
    monkeypatch.syspath_prepend(str(Path(harness.probes.__file__).parent))
    return importlib.import_module("edu")


@pytest.fixture
def edu(probe: Any) -> Iterator[Any]:
    """A device whose registers are a sparse file: it answers, and moves nothing."""
    fd = os.memfd_create("edu")
    os.pwrite(fd, struct.pack("<I", probe.IDENTITY), 0)
    device = object.__new__(probe.Edu)
    device.fd, device.offset, device.size, device.order, device.bar = fd, 0, 1 << 20, "<", None
    yield device
    device.close()


def test_a_pattern_has_no_zero_and_differs_from_the_next(probe: Any) -> None:
    first, second = probe.pattern(1, 4096), probe.pattern(2, 4096)
    assert 0 not in first
    assert all(a != b for a, b in zip(first, second, strict=True))
    assert first[:1024] != first[1024:2048]


@pytest.mark.parametrize(("offset", "size"), [(0, 4096), (1, 4095), (4000, 96), (4095, 1)])
def test_a_transfer_to_the_end_of_the_buffer_is_refused(edu: Any, offset: int, size: int) -> None:
    with pytest.raises(ValueError, match="end of the device's buffer"):
        edu.dma(0x100000, size, to_device=True, offset=offset)
    assert os.pread(edu.fd, 8, 0x98) == bytes(8)


def test_a_device_that_does_not_answer_moves_nothing(edu: Any) -> None:
    os.pwrite(edu.fd, b"\xff" * 4, 0)
    with pytest.raises(ValueError, match="0xffffffff"):
        edu.dma(0x100000, 64, to_device=True)


def test_every_transfer_wakes_the_device_first(edu: Any) -> None:
    os.pwrite(edu.fd, b"\0" * 4, 0)
    with pytest.raises(ValueError, match="does not answer"):
        edu.dma(0x100000, 64, to_device=False)
    assert os.pread(edu.fd, 2, _CONFIG_COMMAND) == struct.pack("<H", 6)


_CONTROL, _TESTED, _SIZE = 0x100000, 0x200000, 1 << 16
_ALL = {"control", "reads", "zeros", "writes", "untouched"}


class _Device:
    """Moves bytes between its buffer and memory, unless ``rules`` says otherwise of an IOVA and a direction: that it
    meets ``nothing`` there, or only ``claims`` to have moved them.
    """

    identity = 0x010000ED

    def __init__(self, memory: dict[int, bytearray], rules: dict[tuple[int, bool], str]) -> None:
        self._memory, self._rules = memory, rules
        self._buffer = bytearray(4096)

    def dma(self, iova: int, size: int, to_device: bool, offset: int = 0) -> bool:
        rule = self._rules.get((iova, to_device), "moves")
        inside = slice(offset, offset + size)
        if rule == "moves" and to_device:
            self._buffer[inside] = self._memory[iova][:size]
        elif rule == "moves":
            self._memory[iova][:size] = self._buffer[inside]
        elif rule == "nothing" and to_device:
            self._buffer[inside] = bytes(size)
        return True


@pytest.mark.parametrize(
    ("rules", "true"),
    [
        ({}, {"control", "reads", "writes"}),
        ({(_TESTED, True): "nothing", (_TESTED, False): "nothing"}, {"control", "zeros", "untouched"}),
        ({(_TESTED, False): "nothing"}, {"control", "reads", "untouched"}),
        ({(_TESTED, True): "nothing"}, {"control", "zeros", "writes"}),
        # what is still in its buffer is neither memory's nor zeros
        ({(_TESTED, True): "claims"}, {"control", "writes"}),
        # without a control nothing is believed, least of all that memory is untouched
        ({(_CONTROL, True): "nothing"}, set()),
        ({(_CONTROL, True): "claims"}, set()),
        ({(_CONTROL, False): "claims"}, set()),
        ({(iova, way): "claims" for iova in (_CONTROL, _TESTED) for way in (True, False)}, set()),
    ],
)
def test_what_a_device_reaches_is_what_it_moved(rules: dict[tuple[int, bool], str], true: set[str]) -> None:
    session = imported("vfio_holder").Session()
    session.memory = {"known": bytearray(_SIZE), "tried": bytearray(_SIZE)}
    memory = {_CONTROL: session.memory["known"], _TESTED: session.memory["tried"]}
    session.devices = {"edu1": _Device(memory, rules)}
    known = session.control("edu1", "known", 0, _CONTROL)
    assert known["arrived"] == (not any(iova == _CONTROL for iova, _ in rules))
    seen = session.reach("edu1", "tried", 0, _TESTED)
    assert {name for name in _ALL if seen[name]} == true


def test_bytes_that_come_twice_prove_nothing() -> None:
    """A device that has moved nothing since the last time has what it had then: each time must bring other bytes."""
    session = imported("vfio_holder").Session()
    session.memory = {"known": bytearray(_SIZE), "tried": bytearray(_SIZE)}
    rules: dict[tuple[int, bool], str] = {}
    session.devices = {"edu1": _Device({_CONTROL: session.memory["known"], _TESTED: session.memory["tried"]}, rules)}
    session.control("edu1", "known", 0, _CONTROL)
    assert session.reach("edu1", "tried", 0, _TESTED)["control"]
    rules[_CONTROL, True] = "claims"
    assert not session.reach("edu1", "tried", 0, _TESTED)["control"]
