"""cpio archives in the ``newc`` format, which Linux unpacks as its initramfs.

Defined in the kernel's Documentation/driver-api/early-userspace/buffer-format.rst. Archives may follow one another in
one initrd, compressed ones too, so each is padded to whole blocks.
"""

from __future__ import annotations

import io
import stat
from typing import IO

from harness.images.tree import Node, Tree

_MAGIC = b"070701"
_BLOCK_BYTES = 512
_TRAILER = "TRAILER!!!"


def pack(tree: Tree, out: IO[bytes]) -> None:
    """Write a tree as one archive: sorted, owned by root, dated 1970, so that equal trees give equal bytes."""
    written = 0
    for number, (path, node) in enumerate(tree.items(), start=1):
        written += _write(out, number, path, node)
    written += _write(out, 0, _TRAILER, Node(0))
    out.write(bytes(-written % _BLOCK_BYTES))


def packed(tree: Tree) -> bytes:
    """The archive of a tree, as bytes."""
    out = io.BytesIO()
    pack(tree, out)
    return out.getvalue()


def file_header(number: int, path: str, size: int) -> bytes:
    """What stands before a plain file's contents in an archive; these are padded to a multiple of four bytes.

    :param number: of the entry, counted from 1.
    """
    return _header(number, path, Node(stat.S_IFREG | 0o644), size)


def end() -> bytes:
    """What stands at the end of an archive."""
    return _header(0, _TRAILER, Node(0), 0)


def _header(number: int, path: str, node: Node, size: int) -> bytes:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(node.mode) else 1
    fields = (number, node.mode, 0, 0, links, 0, size, 0, 0, *node.rdev, len(name), 0)
    header = _MAGIC + b"".join(b"%08x" % field for field in fields) + name
    return header.ljust(_aligned(len(header)), b"\0")


def _write(out: IO[bytes], number: int, path: str, node: Node) -> int:
    """Write one entry and give its length, which is a multiple of four."""
    entry = _header(number, path, node, len(node.data)) + node.data
    out.write(entry.ljust(_aligned(len(entry)), b"\0"))
    return _aligned(len(entry))


def _aligned(size: int) -> int:
    return size + -size % 4
