"""The outline of a kernel, for a hypervisor that is to build dom0 and never to run it.

Xen reads a kernel's headers and notes, and lays its segments out in memory; what is in them it only copies. Having that
read from a disk, decompressed and copied takes an emulated machine longer than all the rest of Xen's boot.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path

#: Elf64_Ehdr, Elf64_Phdr and Elf64_Nhdr of include/uapi/linux/elf.h.
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_NOTE = struct.Struct("<III")
_MAGIC = b"\x7fELF\x02\x01"
_LOAD, _NOTES = 1, 4
#: XEN_ELFNOTE_ENTRY of xen/include/public/elfnote.h: the address where the kernel begins.
_XEN, _ENTRY = b"Xen\0", 1
#: x86 for "go on here": what dom0 does in the moment between its beginning and the machine's end.
_WAITS = b"\xeb\xfe"


def outline(kernel: Path) -> bytes | None:
    """A kernel with the same segments in the same places, nothing in them, and the same notes.

    :param kernel: an ELF file of 64 bits, little-endian.
    :return: None where it is no such file, or none that Xen could start as a PV guest.
    """
    with kernel.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as elf:
        if elf[: len(_MAGIC)] != _MAGIC:
            return None
        header = list(_HEADER.unpack_from(elf))
        first, count = header[5], header[10]
        segments = [list(_SEGMENT.unpack_from(elf, first + number * _SEGMENT.size)) for number in range(count)]
        content_at = _HEADER.size + (count + 1) * _SEGMENT.size
        content = b""
        for segment in segments:
            kept = elf[segment[2] : segment[2] + segment[5]] if segment[0] == _NOTES else b""
            segment[2], segment[5] = content_at + len(content), len(kept)
            content += kept
    for entry in _entries(content):
        for kind, flags, _, virtual, physical, _, size, _ in segments:
            if kind == _LOAD and virtual <= entry < virtual + size:
                at, where = content_at + len(content), physical + entry - virtual
                segments.append([_LOAD, flags, at, entry, where, len(_WAITS), len(_WAITS), 1])
                header[5:7] = _HEADER.size, 0  # no sections
                header[10:] = len(segments), 0, 0, 0
                parts = [_HEADER.pack(*header), *(_SEGMENT.pack(*each) for each in segments), content, _WAITS]
                return b"".join(parts)
    return None


def _entries(notes: bytes) -> Iterator[int]:
    """Where the kernel begins under Xen, as its notes say."""
    at = 0
    while at + _NOTE.size <= len(notes):
        name_size, size, kind = _NOTE.unpack_from(notes, at)
        name_at = at + _NOTE.size
        value_at = name_at + name_size + -name_size % 4
        if notes[name_at : name_at + name_size] == _XEN and kind == _ENTRY:
            yield int.from_bytes(notes[value_at : value_at + size], "little")
        at = value_at + size + -size % 4
