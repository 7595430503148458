"""An ACPI DMAR table as bytes, from what a scenario declares. Pure.

The layout is that of ``include/acpi/actbl1.h`` in Linux (struct acpi_table_dmar and what follows it).
"""

from __future__ import annotations

import hashlib
import struct

from harness.scenario.dmar import Atsr, Dmar, Drhd, Rhsa

#: Who made the table, as it shows in logs: QEMU's own say ``BOCHS``.
OEM_ID = b"HARNSS"

_HEADER = struct.Struct("<4sIBB6s8sI4sI")
_CHECKSUM_AT = 9
#: Width 39, as QEMU's unit has it; the flag says that it can remap interrupts.
_WIDTH_AND_FLAGS = bytes([39 - 1, 1])
_RESERVED = bytes(10)
_INCLUDE_ALL, _ALL_PORTS = 1, 1
#: Device scope of QEMU's I/O APIC: type 3, its id 0, on the pseudo bus 255 (``hw/i386/acpi-build.c``, build_dmar_q35).
_IOAPIC_SCOPE = struct.pack("<BBHBBBB", 3, 8, 0, 0, 0xFF, 0, 0)


def dmar_table(dmar: Dmar) -> bytes:
    """The whole table, checksum included: right, or wrong when the scenario says so."""
    body = _WIDTH_AND_FLAGS + _RESERVED + b"".join(_structure(item.part) for item in dmar.structures)
    length = _HEADER.size + len(body)
    table = bytearray(_HEADER.pack(b"DMAR", length, 1, 0, OEM_ID, oem_table_id(dmar).encode(), 1, b"HRNS", 1) + body)
    table[_CHECKSUM_AT] = -sum(table) & 0xFF
    if dmar.bad_checksum:
        table[_CHECKSUM_AT] ^= 0x55
    return bytes(table)


def oem_table_id(dmar: Dmar) -> str:
    """Eight characters that no other declaration has: what the hypervisor says of its table proves which it uses."""
    return hashlib.sha256(dmar.model_dump_json().encode()).hexdigest()[:8].upper()


def _structure(part: Drhd | Rhsa | Atsr) -> bytes:
    if isinstance(part, Drhd):
        fixed = struct.pack("<BBHQ", _INCLUDE_ALL, 0, 0, part.address)
        return _framed(0, fixed + _IOAPIC_SCOPE)
    if isinstance(part, Rhsa):
        return _framed(3, struct.pack("<IQI", 0, part.address, part.proximity_domain))
    return _framed(2, struct.pack("<BBH", _ALL_PORTS, 0, 0))


def _framed(kind: int, content: bytes) -> bytes:
    return struct.pack("<HH", kind, 4 + len(content)) + content
