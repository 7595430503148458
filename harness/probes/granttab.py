"""Another domain's grants, as the hypervisor has them: its grant table's pages, and what its debug key ``g`` prints.

Interfaces: include/uapi/xen/privcmd.h; xen/include/public/grant_table.h (``grant_entry_v1``: flags and domain of 16
bits each, a frame of 32) and memory.h (``XENMEM_acquire_resource``) in Xen's source.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import re
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.probes.domain import identify
    from harness.probes.once import once
    from harness.probes.xenctrl import Console
else:  # beside this file, in the guest
    from domain import identify
    from once import once
    from xenctrl import Console

PAGE = 4096
_HYPERCALL, _MMAP_RESOURCE = 0x00305000, 0x00205007
_GRANT_TABLE_OP, _QUERY_SIZE = 20, 6
_RESOURCE_GRANT_TABLE, _SHARED = 1, 0
_TYPE_MASK, _READING, _WRITING = 3, 8, 16
_OWN = 0  # probes of dom0 alone read grant tables
_ACTIVE = re.compile(r"\[0x([0-9a-f]+)\] +(\d+) ")


def count_each(domains: list[str]) -> list[dict[str, int]]:
    """See :func:`count`, for several domains."""
    return [count(domain) for domain in domains]


def count(domain: str) -> dict[str, int]:
    """How many grants a domain has given, and how many of them Xen has marked as mapped.

    Xen lets nobody map a grant table of his own (``rcu_lock_remote_domain_by_id`` in ``acquire_resource``): of this
    domain's own grants only those count that are mapped.
    """
    number = identify(domain)
    if number == _OWN:
        mapped = len(active(domain)["refs"])
        return {"live": mapped, "mapped": mapped, "frames": mapped, "to_others": mapped}
    return counted(_table(number))


def counted(table: bytes) -> dict[str, int]:
    """The same of a table's bytes, with the number of distinct frames and the domains that may map them."""
    live = [entry for entry in struct.iter_unpack("<HHI", table) if entry[0] & _TYPE_MASK]
    return {
        "live": len(live),
        "mapped": sum(1 for flags, _, _ in live if flags & (_READING | _WRITING)),
        "frames": len({frame for _, _, frame in live}),
        "to_others": sum(1 for _, domain, _ in live if domain),
    }


def _table(domain: int) -> bytes:
    """The bytes of a domain's grant table, version 1."""
    privcmd = os.open("/dev/xen/privcmd", os.O_RDWR | os.O_CLOEXEC)
    try:
        frames = _size(privcmd, domain)
        with mmap.mmap(privcmd, PAGE * frames, mmap.MAP_SHARED) as window:
            anchor = ctypes.c_char.from_buffer(window)
            address = ctypes.addressof(anchor)
            request = struct.pack("<HxxIIIQQ", domain, _RESOURCE_GRANT_TABLE, _SHARED, 0, frames, address)
            try:
                fcntl.ioctl(privcmd, _MMAP_RESOURCE, bytearray(request))
            finally:
                del anchor  # or the window could not be closed
            return bytes(window)
    finally:
        os.close(privcmd)


def _size(privcmd: int, domain: int) -> int:
    """How many pages a domain's grant table has."""
    with mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as argument:
        argument[:16] = struct.pack("<HxxIIhxx", domain, 0, 0, 0)
        anchor = ctypes.c_char.from_buffer(argument)
        call = struct.pack("<6Q", _GRANT_TABLE_OP, _QUERY_SIZE, ctypes.addressof(anchor), 1, 0, 0)
        try:
            fcntl.ioctl(privcmd, _HYPERCALL, bytearray(call))
        finally:
            del anchor
        _, frames, _, status = struct.unpack("<HxxIIhxx", argument[:16])
    if status:
        raise OSError(f"GNTTABOP_query_size says {status}")
    return int(frames)


def active(domain: str, timeout_s: float = 10) -> dict[str, Any]:
    """The references that Xen holds a mapping of, as debug key ``g`` prints them, with who mapped them."""
    number = identify(domain)
    printed = once(Console).press("g", "gnttab_usage_print_all ]", timeout_s)
    return {"refs": active_refs(printed, number)}


def active_refs(printed: str, domain: int) -> list[int]:
    """The references of one domain in what the debug key printed.

    :raises ValueError: Xen's console ring was too small for it, so that the domain's are not there, or not all.
    """
    _, head, rest = printed.partition(f"grant-table for remote d{domain} ")
    if not head:
        raise ValueError(f"what debug key g says of domain {domain} is lost: boot Xen with a larger conring_size")
    mine = rest.partition("grant-table for remote d")[0]
    return [int(match[1], 16) for match in _ACTIVE.finditer(mine)]
