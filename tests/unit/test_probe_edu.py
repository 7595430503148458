"""What the edu probe refuses before it touches the device: QEMU 7.2 aborts, or a transfer moves nothing."""

from __future__ import annotations

import importlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import harness.probes

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
