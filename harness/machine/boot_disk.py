"""The disk that a machine with a boot loader boots from: GRUB, and one partition that is a cpio archive for it to read.

The large parts are files of the image store; only what is between them is made for each run. Pure, but for the sizes of
those files, and for the outline of a kernel that never runs.
"""

from __future__ import annotations

import re
import shutil
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import BootError, HostError
from harness.images.cpio import end, file_header
from harness.images.grub import AREA_BYTES, SECTOR_BYTES
from harness.machine.console import Console
from harness.machine.dmar import OEM_ID, dmar_table, oem_table_id
from harness.machine.outline import outline
from harness.machine.spec import Plan
from harness.scenario.dmar import Dmar

if TYPE_CHECKING:
    from harness.machine.machine import BootFiles

#: Xen's ``drivers/acpi/tables/tbutils.c``, acpi_tb_print_table_header: address, length, revision, OEM's ids.
_FOUND_TABLE = re.compile(rf"ACPI: DMAR \w+, \w+ \(r\d+ {OEM_ID.decode()} (?P<oem>.{{8}})")


@dataclass(frozen=True, slots=True)
class Gap:
    """Room for a file that is not there yet."""

    size: int


Piece = bytes | Path | Gap
"""A part of a disk: bytes, a file's contents, or room for it."""

#: What GRUB's boot sector has here is code for floppy disks, which would be taken for partitions.
_PARTITION_TABLE = slice(446, 510)
_SIGNATURE_AT = 510
#: The kinds of partition that are not looked into by anybody: 0x83 is Linux.
_LINUX = 0x83
_NO_CYLINDERS = b"\xfe\xff\xff"


def grub_commands(plan: Plan, *, initrd: bool) -> str:
    """What GRUB does, as its script language has it.

    :param initrd: whether dom0 gets an initramfs.
    """
    kernel = " ".join(map(_quoted, plan.command_line.split()))
    xen = " ".join(map(_quoted, plan.hypervisor_line.split()))
    lines = [
        f"multiboot2 (hd0,msdos1)/xen placeholder {xen}",
        f"module2 (hd0,msdos1)/vmlinuz placeholder {kernel}",
        *(["module2 (hd0,msdos1)/initrd"] if initrd else []),
        "boot",
    ]
    if plan.dmar is not None:
        # Without the table nothing is booted: an old one in its place would look like a fault of the hypervisor.
        lines = ["if acpi --exclude=DMAR (hd0,msdos1)/dmar.aml; then", *lines, "fi"]
    return "\n".join([*lines, "echo GRUB could not boot the machine", ""])


def _quoted(word: str) -> str:
    if "'" in word:
        raise HostError(f"{word} cannot be told to GRUB", hint="use arguments without quotation marks")
    return f"'{word}'"


def boot_disk(area: bytes, files: Mapping[str, Piece]) -> list[Piece]:
    """The disk from its beginning to its end.

    :param area: what stands before the first partition: see :func:`harness.images.grub.boot_area`.
    :param files: what the partition holds, by name.
    """
    partition: list[Piece] = []
    size = 0
    for number, (name, content) in enumerate(files.items(), start=1):
        length = _size(content)
        header = file_header(number, name, length)
        partition += [header, content, bytes(-length % 4)]
        size += len(header) + length + -length % 4
    trailer = end()
    size += len(trailer)
    partition += [trailer, bytes(-size % SECTOR_BYTES)]
    sectors = (size + SECTOR_BYTES - 1) // SECTOR_BYTES
    return _joined([_with_partition(area, sectors), *partition])


def _size(content: Piece) -> int:
    if isinstance(content, bytes):
        return len(content)
    return content.size if isinstance(content, Gap) else content.stat().st_size


def _with_partition(area: bytes, sectors: int) -> bytes:
    """GRUB, with one partition in its boot sector's table that begins where GRUB's room ends."""
    head = bytearray(area.ljust(AREA_BYTES, b"\0"))
    first = AREA_BYTES // SECTOR_BYTES
    head[_PARTITION_TABLE] = bytes(64)
    struct.pack_into("<B3sB3sII", head, _PARTITION_TABLE.start, 0, _NO_CYLINDERS, _LINUX, _NO_CYLINDERS, first, sectors)
    head[_SIGNATURE_AT : _SIGNATURE_AT + 2] = b"\x55\xaa"
    return bytes(head)


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """The same disk with bytes that follow one another made one piece."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if isinstance(piece, bytes) and isinstance(last, bytes):
            joined[-1] = last + piece
        else:
            joined.append(piece)
    return joined


def disk_of(plan: Plan, files: BootFiles, initrd: Path | Gap | None) -> list[Piece]:
    """The disk of a plan.

    :param initrd: dom0's initramfs; none when the machine's boot is over before dom0 would need it.
    """
    assert files.loader is not None and files.hypervisor is not None, "a machine without a loader has no such disk"
    commands = grub_commands(plan, initrd=initrd is not None)
    contents: dict[str, Piece] = {"grub.cfg": commands.encode()}
    if plan.dmar is not None:
        contents["dmar.aml"] = dmar_table(plan.dmar)
    kernel = outline(files.elf) if files.elf is not None and plan.ends_before_dom0 else None
    contents |= {"xen": files.hypervisor, "vmlinuz": kernel or files.kernel}
    if initrd is not None:
        contents["initrd"] = initrd
    return boot_disk(files.loader.read_bytes(), contents)


def loads(plan: Plan) -> list[str]:
    """All that a plan's disk says beside the files that it carries, as JSON."""
    return [grub_commands(plan, initrd=True), "" if plan.dmar is None else dmar_table(plan.dmar).hex()]


def write_disk(target: Path, pieces: Sequence[Piece]) -> None:
    """Write a disk.

    :raises HostError: there is no room for it.
    """
    try:
        with target.open("wb") as out:
            for piece in pieces:
                if isinstance(piece, bytes):
                    out.write(piece)
                elif isinstance(piece, Path):
                    with piece.open("rb") as file:
                        shutil.copyfileobj(file, out, 1 << 20)
    except OSError as error:
        raise HostError(f"cannot write the machine's disk: {error}", hint="free some space, or set TMPDIR") from error


def check_table(dmar: Dmar | None, console: Console) -> None:
    """Make sure that it is the scenario's table that the hypervisor has found: nothing that follows would mean a thing.

    :raises BootError: it is another.
    """
    if dmar is None:
        return
    said = console.said()
    found = _FOUND_TABLE.search(said)
    if found is None or found["oem"].strip() != oem_table_id(dmar):
        raise BootError(
            f"the hypervisor says nothing of the scenario's DMAR table {oem_table_id(dmar)}",
            layer="xen",
            tail=[line for line in said.splitlines() if "DMAR" in line][:5],
            log=console.log,
            hint="does it log all (loglvl=all)?",
        )
