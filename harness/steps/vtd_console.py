"""A verb for Xen's own words about its IOMMU: ``drivers/passthrough/vtd/{dmar,iommu}.c`` and ``iommu.c`` above them."""

from __future__ import annotations

import re

from harness.steps.base import Context, Evidence, Params, verb

_TABLE = re.compile(r"ACPI: DMAR \w+, (?P<length>\w+) \(r\d+ (?P<oem>.{6}) (?P<table>.{8})")
_RHSA = re.compile(r"rhsau->address: (?P<address>\w+) rhsau->proximity_domain: (?P<node>\d+)")
_DRHD = re.compile(r"dmaru->address = (?P<address>\w+)")
_FEATURE = r"Intel VT-d {} (?P<enabled>not )?enabled"


class Say(Params):
    """Nothing to set."""


class Rhsa(Evidence):
    """A static affinity that Xen found in its table."""

    address: int
    proximity_domain: int


class Said(Evidence):
    """What Xen says of its IOMMU at boot.

    ``oem`` is who made the DMAR table that it found: this harness, or QEMU. ``units`` are the addresses of the units
    that it found, ``ats`` whether it found root ports with ATS. ``virtualisation`` says that it uses what it found.
    ``bad_checksum`` says that it complains of a table's checksum.
    """

    oem: str
    units: list[int]
    rhsa: list[Rhsa]
    ats: bool
    virtualisation: bool
    queued_invalidation: bool
    interrupt_remapping: bool
    bad_checksum: bool
    faults: int


@verb("vtd.said", needs_guest=False)
def said(context: Context, _: Say) -> Said:
    """Read what Xen has said of its IOMMU."""
    text = "\n".join(line for line in context.machine.console.said().splitlines() if "(XEN)" in line)
    table = _TABLE.search(text)
    return Said(
        oem="" if table is None else table["oem"].strip(),
        units=[int(match["address"], 16) for match in _DRHD.finditer(text)],
        rhsa=[
            Rhsa(address=int(match["address"], 16), proximity_domain=int(match["node"]))
            for match in _RHSA.finditer(text)
        ],
        ats="found ACPI_DMAR_ATSR" in text,
        virtualisation="I/O virtualisation enabled" in text,
        queued_invalidation=_is_enabled(text, "Queued Invalidation"),
        interrupt_remapping=_is_enabled(text, "Interrupt Remapping"),
        bad_checksum=re.search(r"[Ii]ncorrect checksum", text) is not None,
        faults=len(re.findall(r"\[VT-D\]DMAR:\[DMA|INTR-REMAP: Request device", text)),
    )


def _is_enabled(text: str, feature: str) -> bool:
    match = re.search(_FEATURE.format(feature), text)
    return match is not None and match["enabled"] is None
