"""Kernels out of Debian packages."""

from __future__ import annotations

import re
import shutil
import struct
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from harness.deadline import Deadline
from harness.errors import HostError
from harness.images.arch import Arch
from harness.images.compressed import ZSTD, decompressed
from harness.images.debs import contents
from harness.images.store import Entry

IMAGE = "vmlinuz"
CONFIG = "config"
SYMBOLS = "System.map"
MODULES = "modules.tar"
VMLINUX = "vmlinux"
XEN = "xen"

_BOOT = re.compile(r"boot/(?P<kind>vmlinu[xz]|config|System\.map)-(?P<release>[^/]+)")
_MODULES = re.compile(r"(?:usr/)?lib/modules/(?P<release>[^/]+)/(?:modules\.builtin|.+\.ko(?:\.\w+)?)")
_NAMES = {"vmlinux": IMAGE, "vmlinuz": IMAGE, "config": CONFIG, "System.map": SYMBOLS}

FORMATS = {"bzImage": (0x202, b"HdrS"), "Image": (0x38, b"ARM\x64"), "vmlinux": (0, b"\x7fELF")}
"""By what a kernel image is known: offset and bytes. See Documentation/arch/{x86/boot,arm64/booting}.rst."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel in the store.

    :param name: its recipe's.
    :param arch: its architecture.
    :param release: as ``uname -r`` prints it.
    :param entry: what the store knows of it; its files are ``vmlinuz``, ``config``, ``System.map``, ``modules.tar`` and
        on amd64 ``vmlinux``.
    """

    name: str
    arch: Arch
    release: str
    entry: Entry

    @property
    def image(self) -> Path:
        """What QEMU's ``-kernel`` boots fastest: without its compression where there is one."""
        return self.entry.path(boot_image(self.arch))

    @property
    def version(self) -> str:
        """Its package's version."""
        return next(item.version for item in self.entry.packages if self.release in item.name)

    @property
    def vmlinuz(self) -> Path:
        """The image as the package has it, for boot loaders."""
        return self.entry.path(IMAGE)


def boot_image(arch: Arch) -> str:
    """The name of the file that QEMU boots fastest."""
    return VMLINUX if arch == "amd64" else IMAGE


@dataclass(frozen=True, slots=True)
class Hypervisor:
    """A hypervisor in the store.

    :param name: its recipe's.
    :param version: of the Debian package or source that it is from.
    :param entry: what the store knows of it.
    """

    name: str
    arch: Arch
    version: str
    entry: Entry

    @property
    def image(self) -> Path:
        """What a machine boots, without compression."""
        return self.entry.path(XEN)


def unpack_kernel(debs: Sequence[Path], format_: str, workspace: Path, deadline: Deadline) -> tuple[list[str], str]:
    """Sort the files of kernel packages into a workspace.

    :param format_: what the image must be, one of :data:`FORMATS`.
    :return: the names of the files made, and the kernel's release as ``uname -r`` prints it.
    :raises HostError: the packages hold no whole kernel, or one of another format.
    """
    releases: set[str] = set()
    made = {MODULES}
    with tarfile.open(workspace / MODULES, mode="w", format=tarfile.GNU_FORMAT) as modules:
        for deb in debs:
            with contents(deb, workspace, deadline) as stream, tarfile.open(fileobj=stream, mode="r:") as package:
                for member in package:
                    path = str(PurePosixPath(member.name))
                    if not member.isfile():
                        continue
                    if match := _BOOT.fullmatch(path):
                        _copy(package, member, workspace / _NAMES[match["kind"]])
                        made.add(_NAMES[match["kind"]])
                    elif match := _MODULES.fullmatch(path):
                        member.name = path
                        modules.addfile(member, package.extractfile(member))
                    if match:
                        releases.add(match["release"])
    if len(releases) != 1 or IMAGE not in made:
        raise HostError(
            f"the packages hold {len(releases)} kernel releases {sorted(releases)}, and the image is "
            + ("there" if IMAGE in made else "missing"),
            hint="the recipe's packages must make exactly one kernel",
        )
    _check_format(workspace / IMAGE, format_)
    if format_ == "bzImage":
        payload = bzimage_payload((workspace / IMAGE).read_bytes())
        (workspace / VMLINUX).write_bytes(decompressed(payload, "the kernel's payload", workspace, deadline))
        _check_format(workspace / VMLINUX, "vmlinux")
        made.add(VMLINUX)
    return sorted(made), releases.pop()


def bzimage_payload(image: bytes) -> bytes:
    """The compressed ELF kernel inside a bzImage.

    QEMU boots an ELF kernel through its PVH entry, and so saves the guest from decompressing it: 0.8 s of 3 s under
    emulation. See ``setup_sects`` and ``payload_offset`` in Documentation/arch/x86/boot.rst.
    """
    sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (sectors + 1) * 512 + offset
    payload = image[start : start + length]
    # zstd, unlike the others, does not tolerate the uncompressed size that Linux appends.
    return payload[:-4] if payload.startswith(ZSTD) else payload


def _copy(package: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    stream = package.extractfile(member)
    assert stream is not None
    with target.open("wb") as out:
        shutil.copyfileobj(stream, out, 1 << 20)


def _check_format(image: Path, format_: str) -> None:
    """Refuse an image that the recipe does not promise, because QEMU would say nothing and hang."""
    with image.open("rb") as stream:
        head = stream.read(4096)
    found = [name for name, (at, magic) in FORMATS.items() if head[at : at + len(magic)] == magic]
    if format_ not in found:
        raise HostError(
            f"the kernel image is no {format_} but {' or '.join(found) or 'of an unknown format'}",
            hint="see format in the kernel's recipe",
        )
