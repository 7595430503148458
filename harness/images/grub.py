"""GRUB as what stands before the first partition of a disk, put together without installing it anywhere.

What ``grub-bios-setup`` would write is two files one after another: ``boot.img``, the boot sector, finds GRUB's core in
the sectors behind it (GRUB's manual, "Images").
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import HostError
from harness.images import debs, tools
from harness.images.arch import Arch

AREA = "grub.img"
#: Where the first partition begins, and so how large GRUB can be.
AREA_BYTES = 1 << 20

SECTOR_BYTES = 512
_HINT = "see the boot loader's recipe"

#: What goes wrong shows on the serial console, and what comes next is on the disk.
_FIRST_COMMANDS = """\
serial --unit=0 --speed=115200
terminal_output serial
normal (hd0,msdos1)/grub.cfg
"""


def boot_area(
    platform: Path, native: Path, arch: Arch, modules: Sequence[str], workspace: Path, deadline: Deadline
) -> Path:
    """Make the boot sector and GRUB's core, with room for a partition table.

    :param platform: a directory with GRUB's modules for a PC's BIOS, unpacked.
    :param native: a directory with GRUB's tools for this host, likewise.
    :param arch: this host's architecture.
    :raises HostError: the packages are not all there, or too much is built in.
    """
    directory = platform / "usr/lib/grub/i386-pc"
    commands, core = workspace / "first.cfg", workspace / "core.img"
    commands.write_text(_FIRST_COMMANDS)
    tools.run(
        [
            *debs.launcher(native, arch),
            native / "usr/bin/grub-mkimage",
            *("--format", "i386-pc", "--directory", directory, "--prefix", "(hd0,msdos1)/"),
            *("--config", commands, "--output", core),
            *modules,
        ],
        hint=_HINT,
        deadline=deadline,
    )
    boot = (directory / "boot.img").read_bytes()
    area = boot + core.read_bytes()
    if len(boot) != SECTOR_BYTES or len(area) > AREA_BYTES:
        raise HostError(f"GRUB takes {len(area)} bytes, and there is room for {AREA_BYTES}", hint=_HINT)
    (workspace / AREA).write_bytes(area)
    return workspace / AREA
