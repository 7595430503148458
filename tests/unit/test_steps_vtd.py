"""What the VT-d verbs make of QEMU's traces and of Xen's console."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.errors import CommandFailed, HostError
from harness.machine.console import Console
from harness.machine.trace import TraceEvent
from harness.steps.base import Context
from harness.steps.vtd_console import Say, said
from harness.steps.vtd_queue import Watch, boot_invalidations, count, invalidations

XEN = """\
(XEN) [000000007d4b2ce8] ACPI: DMAR 7FF47A4F, 0064 (r1 HARNSS 8F0A1B2C        1 HRNS        1)
(XEN) [00000000a5b6f9fe] [VT-D]  dmaru->address = fed90000
(XEN) [00000000a5d93172] [VT-D]found ACPI_DMAR_ATSR:
(XEN) [00000000a651181c] [VT-D]  rhsau->address: fed90000 rhsau->proximity_domain: 1
(XEN) [00000000a651181d] [VT-D]  rhsau->address: fed91000 rhsau->proximity_domain: 2
(XEN) [    0.473500] Intel VT-d Queued Invalidation enabled.
(XEN) [    0.473548] Intel VT-d Interrupt Remapping not enabled.
(XEN) [    0.476496] I/O virtualisation enabled
[    1.0] dom0 says: found ACPI_DMAR_RHSA, I/O virtualisation disabled
"""


def context_of(text: str, tmp_path: Path) -> Context:
    """A context whose machine's console has shown a text."""
    (tmp_path / "log").write_text(text)
    plan = SimpleNamespace(trace=())
    machine = SimpleNamespace(console=Console("dom0", "linux", tmp_path / "log"), plan=plan)
    kept: dict[type, Any] = {}
    keep = lambda kind, make: kept.setdefault(kind, make())  # noqa: E731
    return cast("Context", SimpleNamespace(machine=machine, keep=keep))


def test_xens_words(tmp_path: Path) -> None:
    seen = said.run(context_of(XEN, tmp_path), Say())
    assert seen is not None
    assert seen.model_dump() == {
        "oem": "HARNSS",
        "units": [0xFED90000],
        "rhsa": [
            {"address": 0xFED90000, "proximity_domain": 1},
            {"address": 0xFED91000, "proximity_domain": 2},
        ],
        "ats": True,
        "virtualisation": True,
        "queued_invalidation": True,
        "interrupt_remapping": False,
        "bad_checksum": False,
        "faults": 0,
    }


def test_a_console_without_xen_says_nothing(tmp_path: Path) -> None:
    seen = said.run(context_of("[    0.1] Linux: I/O virtualisation enabled\n", tmp_path), Say())
    assert seen is not None
    assert not any(seen.model_dump().values())


def descriptor(kind: str, high: str, low: str) -> TraceEvent:
    """An event as QEMU writes it."""
    return TraceEvent("vtd_inv_desc", f"invalidate desc type {kind} high {high} low {low}")


def test_descriptors_are_counted() -> None:
    events = [
        descriptor("context-cache", "0x0", "0x11"),
        descriptor("context-cache", "0x0", "0x20000010031"),
        descriptor("iotlb", "0x0", "0xd2"),
        descriptor("iotlb", "0x0", "0x100e2"),
        descriptor("iotlb", "0x1000", "0x100f2"),
        descriptor("device", "0x7ffffffffffff001", "0x20000000003"),
        descriptor("iec", "0x0", "0x600000014"),
        descriptor("wait", "0x7fd824a0", "0x100000065"),
        TraceEvent("vtd_dmar_fault", "sid 0x200 fault 6 addr 0x1000 write 1"),
    ]
    seen = count(events)
    assert seen.model_dump() == {
        "total": 8,
        "contexts": 2,
        "iotlb": 3,
        "device_iotlb": 1,
        "interrupts": 1,
        "waits": 1,
        "context_devices": {"02:00.0": 1},
        "device_iotlb_devices": {"02:00.0": 1},
        "iotlb_domains": {"1": 2},
        "iotlb_pages": 1,
        "iotlb_global": 1,
        "faults": 1,
    }


def test_a_descriptor_in_another_form_is_no_zero() -> None:
    with pytest.raises(HostError, match="no field low"):
        count([TraceEvent("vtd_inv_desc", "something else")])


def test_what_was_not_recorded_is_not_counted(tmp_path: Path) -> None:
    context = context_of("", tmp_path)
    with pytest.raises(CommandFailed, match="invalidations without"):
        invalidations.run(context, Watch())
    with pytest.raises(CommandFailed, match=r"without boot.trace: \[vtd_inv_desc\]"):
        boot_invalidations.run(context, Watch())
