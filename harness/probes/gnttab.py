"""Grants from user space: mapping another domain's pages (gntdev), and granting pages of our own (gntalloc).

Numbers and layouts: include/uapi/xen/gntdev.h, include/uapi/xen/gntalloc.h.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself is slow to import
    from collections.abc import Sequence

PAGE = 4096
MAP_GRANT_REF, UNMAP_GRANT_REF = 0x00184700, 0x00104701
ALLOC_GREF, DEALLOC_GREF = 0x00184705, 0x00104706
_WRITABLE = 1
LIMIT = "/sys/module/xen_gntalloc/parameters/limit"


def map_request(domain: int, refs: Sequence[int]) -> bytearray:
    """``struct ioctl_gntdev_map_grant_ref``: count, padding, index (out), and a domain and reference for each page."""
    words = [domain] * (2 * len(refs))
    words[1::2] = refs
    return bytearray(struct.pack(f"<IIQ{len(words)}I", len(refs), 0, 0, *words))


def alloc_request(domain: int, count: int) -> bytearray:
    """``struct ioctl_gntalloc_alloc_gref``: domain, flags, count, index (out), and room for the references (out)."""
    request = bytearray(16 + 4 * max(count, 2))
    struct.pack_into("<HHIQ", request, 0, domain, _WRITABLE, count, 0)
    return request


class Pages:
    """Pages that are mapped here, in one piece.

    :param refs: the grant references behind them, in order.
    """

    def __init__(self, fd: int, undo: int, index: int, refs: Sequence[int]) -> None:
        self.refs = list(refs)
        self._fd = fd
        self._undo = undo
        self._index = index
        self._memory: mmap.mmap | None = None
        try:
            self._memory = mmap.mmap(fd, PAGE * len(self.refs), mmap.MAP_SHARED, offset=index)
        except OSError:
            self.close()
            raise

    @property
    def memory(self) -> mmap.mmap:
        """The pages' bytes."""
        assert self._memory is not None
        return self._memory

    def close(self) -> None:
        """Give them back: the mapping first, then the device's own record, which keeps the grant in use."""
        if self._memory is not None:
            self._memory.close()
        fcntl.ioctl(self._fd, self._undo, struct.pack("<QII", self._index, len(self.refs), 0))


class Gntdev:
    """/dev/xen/gntdev: maps pages that other domains grant to this one."""

    def __init__(self) -> None:
        self._fd = os.open("/dev/xen/gntdev", os.O_RDWR | os.O_CLOEXEC)

    def map(self, domain: int, refs: Sequence[int]) -> Pages:
        """Map the pages behind grant references, writable.

        :raises OSError: when one of them is not granted to this domain.
        """
        request = map_request(domain, refs)
        fcntl.ioctl(self._fd, MAP_GRANT_REF, request)
        return Pages(self._fd, UNMAP_GRANT_REF, struct.unpack_from("<Q", request, 8)[0], refs)


class Gntalloc:
    """/dev/xen/gntalloc: allocates pages and grants them to another domain."""

    def __init__(self) -> None:
        self._fd = os.open("/dev/xen/gntalloc", os.O_RDWR | os.O_CLOEXEC)

    def alloc(self, domain: int, count: int) -> Pages:
        """Allocate pages that ``domain`` may write.

        :raises OSError: ENOSPC beyond the module's limit.
        """
        request = alloc_request(domain, count)
        fcntl.ioctl(self._fd, ALLOC_GREF, request)
        index = struct.unpack_from("<Q", request, 8)[0]
        return Pages(self._fd, DEALLOC_GREF, index, struct.unpack_from(f"<{count}I", request, 16))


def set_limit(pages: int) -> int:
    """Set how many pages gntalloc hands out in all, and give what it was."""
    with open(LIMIT) as file:
        before = int(file.read())
    with open(LIMIT, "w") as file:
        file.write(str(pages))
    return before
