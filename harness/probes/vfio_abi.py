"""VFIO's ioctls on powerpc: numbers, layouts, and a call that hides nothing.

Numbers and layouts: include/uapi/linux/vfio.h; powerpc's _IO() sets a direction bit
(arch/powerpc/include/uapi/asm/ioctl.h).
"""

from __future__ import annotations

import ctypes
import errno
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself is slow to import
    from typing import Any

    Answer = dict[str, Any]
    Argument = int | ctypes.Array[ctypes.c_char] | ctypes.c_int

BASE = 0x20003B64  # _IO(';', 100) on powerpc
LIBC = ctypes.CDLL(None, use_errno=True)

CHECK_EXTENSION, SET_IOMMU = BASE + 1, BASE + 2
GROUP_GET_STATUS, GROUP_SET_CONTAINER, GROUP_UNSET_CONTAINER, GROUP_GET_DEVICE_FD = (
    BASE + 3,
    BASE + 4,
    BASE + 5,
    BASE + 6,
)
DEVICE_GET_REGION_INFO = BASE + 8
TCE_GET_INFO, MAP_DMA, UNMAP_DMA, ENABLE, DISABLE = BASE + 12, BASE + 13, BASE + 14, BASE + 15, BASE + 16
REGISTER_MEMORY, UNREGISTER_MEMORY, TCE_CREATE, TCE_REMOVE, EEH_PE_OP = (
    BASE + 17,
    BASE + 18,
    BASE + 19,
    BASE + 20,
    BASE + 21,
)


def pack(layout: str, *values: int) -> ctypes.Array[ctypes.c_char]:
    """A structure as ioctl() takes it."""
    return ctypes.create_string_buffer(struct.pack(layout, *values))


def done(**also: object) -> Answer:
    """The answer of what is no ioctl, and went well."""
    return {"result": 0, "errno": 0, "error": "", "locked_before_kib": 0, "locked_after_kib": 0, **also}


def failed(code: int) -> dict[str, object]:
    """What an answer says of an errno."""
    return {"result": -1, "errno": code, "error": errno.errorcode.get(code, str(code))}


def locked_kib() -> int:
    """VmLck of this process."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmLck"))


def ioctl(fd: int, number: int, argument: Argument = 0) -> Answer:
    """Call ioctl(2) itself: Python's own hides positive results and retries EINTR."""
    before = locked_kib()
    pointer = argument if isinstance(argument, int) else ctypes.addressof(argument)
    ctypes.set_errno(0)
    result = LIBC.ioctl(ctypes.c_int(fd), ctypes.c_ulong(number), ctypes.c_ulong(pointer))
    verdict = failed(ctypes.get_errno()) if result == -1 else {"result": result}
    return done(**{**verdict, "locked_before_kib": before, "locked_after_kib": locked_kib()})
