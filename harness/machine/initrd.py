"""The initramfs of one run: the segments that the store has, and the run's identity.

The kernel unpacks concatenated archives one after another (kernel's ``Documentation/driver-api/early-userspace/
buffer-format.rst``), so nothing has to be packed anew.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HostError
from harness.guest.identity import Identity
from harness.images.cpio import packed
from harness.images.tree import Tree

#: Where dom0 has what its domains boot.
DOMAIN_KERNEL = "usr/lib/harness/domain/kernel"
DOMAIN_INITRD = "usr/lib/harness/domain/initrd"


@dataclass(frozen=True, slots=True)
class DomainFiles:
    """What Xen's domains boot: a kernel, and the segments of its initramfs."""

    kernel: Path
    segments: tuple[Path, ...]

    @property
    def every(self) -> tuple[Path, ...]:
        """All of them."""
        return (self.kernel, *self.segments)


def write_initrd(
    target: Path, segments: Sequence[Path], identity: Identity | None, domain: DomainFiles | None = None
) -> None:
    """Write the whole initramfs.

    :param identity: the run's keys; without one nobody can log in, and the console is the only way in.
    :param domain: what is carried for domains, as plain files.
    :raises HostError: when the disk is full.
    """
    try:
        with target.open("wb") as out:
            for segment in segments:
                with segment.open("rb") as file:
                    shutil.copyfileobj(file, out, 1 << 20)
                out.write(b"\0" * (-out.tell() % 4))
            if identity is not None:
                tree = Tree()
                tree.directory("root/.ssh", 0o700)
                for path, (content, mode) in identity.files().items():
                    tree.file(path, content, mode)
                out.write(packed(tree))
            if domain is not None:
                out.write(packed(_domain_tree(domain)))
    except OSError as error:
        free = shutil.disk_usage(target.parent).free >> 20
        raise HostError(
            f"cannot write the guest's initramfs: {error}", hint=f"{free} MiB are free in {target.parent}; set TMPDIR"
        ) from error


def _domain_tree(domain: DomainFiles) -> Tree:
    tree = Tree()
    tree.file(DOMAIN_KERNEL, domain.kernel.read_bytes())
    initrd = b"".join(data + b"\0" * (-len(data) % 4) for data in map(Path.read_bytes, domain.segments))
    tree.file(DOMAIN_INITRD, initrd)
    return tree
