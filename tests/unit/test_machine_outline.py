"""A kernel that a hypervisor lays out as if it were whole."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from harness.machine.outline import outline

HEADER, SEGMENT = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQQQ")
LOAD, NOTE = 1, 4
TEXT, DATA = 0xFFFFFFFF81000000, 0xFFFFFFFF82C00000
ENTRY = DATA + 0x67D0


def note(name: bytes, kind: int, value: bytes) -> bytes:
    """A note as it is in a file."""
    padded = (part + bytes(-len(part) % 4) for part in (name, value))
    return struct.pack("<III", len(name), len(value), kind) + b"".join(padded)


def notes(entry: int) -> bytes:
    """Those that a kernel has, with some of other owners and lengths before the one that counts."""
    version = note(b"Linux\0", 1, b"6.12\0") + note(b"Xen\0", 6, b"linux\0")
    return version + note(b"Xen\0", 1, entry.to_bytes(8, "little")) + note(b"GNU\0", 3, b"id" * 10)


def elf(told: bytes) -> bytes:
    """A kernel of two segments that is larger in memory than in its file, with sections."""
    at = 0x1000
    segments = [
        (LOAD, 5, at, TEXT, 0x1000000, 0x2000, 0x2000, 0x200000),
        (LOAD, 7, at + 0x2000, DATA, 0x2C00000, 0x8000, 0x9000, 0x200000),
        (NOTE, 0, at + 0x100, TEXT + 0x100, 0x1000100, len(told), len(told), 4),
    ]
    header = HEADER.pack(b"\x7fELF\x02\x01\x01", 2, 62, 1, 0x1000000, 64, 0x20000, 0, 64, 56, len(segments), 64, 9, 8)
    head = header + b"".join(SEGMENT.pack(*segment) for segment in segments)
    return head.ljust(at + 0x100, b"\0") + told.ljust(0x1F00, b"t") + b"d" * 0x8000 + b"sections"


def segments_of(kernel: bytes) -> list[tuple[int, ...]]:
    fields = HEADER.unpack_from(kernel)
    assert fields[5:7] == (64, 0)
    assert fields[11:] == (0, 0, 0), "there are no sections"
    return [SEGMENT.unpack_from(kernel, 64 + 56 * number) for number in range(fields[10])]


def test_the_segments_are_where_they_were_and_empty(tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(elf(notes(ENTRY)))
    made = outline(tmp_path / "vmlinux")
    assert made is not None
    assert HEADER.unpack_from(made)[:5] == HEADER.unpack_from(elf(notes(ENTRY)))[:5]
    text, data, told, _ = segments_of(made)
    assert text[3:] == (TEXT, 0x1000000, 0, 0x2000, 0x200000)
    assert data[3:] == (DATA, 0x2C00000, 0, 0x9000, 0x200000)
    assert made[told[2] : told[2] + told[5]] == notes(ENTRY)
    assert len(made) < 1024


def test_what_begins_waits(tmp_path: Path) -> None:
    """It is loaded after the segment that it lies in, at the place in memory that its address stands for."""
    (tmp_path / "vmlinux").write_bytes(elf(notes(ENTRY)))
    made = outline(tmp_path / "vmlinux")
    assert made is not None
    kind, flags, offset, virtual, physical, length, size, _ = segments_of(made)[-1]
    assert (kind, flags, virtual, physical) == (LOAD, 7, ENTRY, 0x2C067D0)
    assert made[offset : offset + length] == b"\xeb\xfe"
    assert size == length


@pytest.mark.parametrize(
    "kernel",
    [
        b"MZ" + bytes(1000),
        b"\x7fELF\x01\x01" + bytes(1000),
        elf(note(b"Linux\0", 1, b"6.12\0")),
        elf(notes(DATA + 0x9000)),
        elf(notes(0)),
    ],
    ids=["no ELF", "32 bits", "not for Xen", "begins behind its end", "begins nowhere"],
)
def test_what_xen_could_not_start_has_no_outline(tmp_path: Path, kernel: bytes) -> None:
    (tmp_path / "kernel").write_bytes(kernel)
    assert outline(tmp_path / "kernel") is None
