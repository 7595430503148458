"""The DMAR table that a scenario declares: which IOMMUs firmware tells of, and which of it is wrong on purpose.

Structures and fields are those of Intel's "Virtualization Technology for Directed I/O" (chapter 8, BIOS
considerations), and of Linux's ``include/acpi/actbl1.h``.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from harness.validate import fault

#: Where QEMU's intel-iommu has its registers (``include/hw/i386/intel_iommu.h``, Q35_HOST_BRIDGE_IOMMU_ADDR).
IOMMU_ADDRESS = 0xFED90000

Address = Annotated[int, Field(ge=0, lt=1 << 63)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class Drhd(_Part):
    """A remapping unit that all devices are behind, the I/O APIC included."""

    address: Address = IOMMU_ADDRESS
    """Where its registers are; QEMU's only unit by default."""


class Rhsa(_Part):
    """Which node a remapping unit belongs to."""

    proximity_domain: Annotated[int, Field(ge=0, lt=1 << 32)]
    """The node's number in the SRAT."""
    address: Address = IOMMU_ADDRESS
    """The registers of the unit that is meant."""


class Atsr(_Part):
    """All root ports let address translation services (ATS) through."""


class Structure(_Part):
    """One structure of the table: a mapping of one key."""

    drhd: Drhd | None = None
    """A remapping unit."""
    rhsa: Rhsa | None = None
    """A remapping unit's node."""
    atsr: Atsr | None = None
    """Root ports that support ATS."""

    @model_validator(mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) != 1:
            raise fault(
                f"must be one of drhd, rhsa, atsr, got {len(value)} keys", "write each structure as its own item"
            )
        return value

    @property
    def part(self) -> Drhd | Rhsa | Atsr:
        """The structure itself."""
        found = self.drhd or self.rhsa or self.atsr
        assert found is not None, "a mapping of one key has been checked"
        return found


class Dmar(_Part):
    """A table of the scenario's own, in place of QEMU's."""

    structures: Annotated[tuple[Structure, ...], Field(min_length=1, max_length=32)]
    """In the order in which they stand in the table."""
    bad_checksum: bool = False
    """Give the table a checksum that is not right."""

    @model_validator(mode="after")
    def _has_a_unit(self) -> Self:
        if not any(isinstance(structure.part, Drhd) for structure in self.structures):
            raise fault("must have a drhd: without a remapping unit there is nothing to tell of", "add - drhd: {}")
        return self
