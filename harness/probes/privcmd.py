"""/dev/xen/privcmd by raw ioctls: device-model operations, foreign mappings, ioeventfd, irqfd.

Numbers and structures: include/uapi/xen/privcmd.h of Linux 6.12, xen/include/public/hvm/dm_op.h. (The patch that was
first proposed for ioeventfd had another number, 0x00305009; a kernel that knows none answers ENOTTY.)
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

DEVICE = "/dev/xen/privcmd"
MMAPBATCH_V2, DM_OP, RESTRICT, MMAP_RESOURCE = 0x00205004, 0x00105005, 0x00025006, 0x00205007
IRQFD, IOEVENTFD = 0x40185008, 0x40305009
PAGE = 4096

# xen_dm_op: u32 op, u32 pad, then a union
_OP_BYTES = 72
CREATE_SERVER, MAP_RANGE, SET_STATE, DESTROY_SERVER, SET_IRQ_LEVEL, NR_VCPUS = 1, 3, 5, 6, 19, 20
_MEMORY = 1
_RESOURCE_IOREQ_SERVER, _FRAME_IOREQ = 0, 1

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_MAP_FAILED = ctypes.c_void_p(-1).value


def name_of(code: int) -> str:
    """``EINVAL`` for 22; empty for 0."""
    return errno.errorcode.get(code, str(code)) if code else ""


def address_of(buffer: bytearray | mmap.mmap) -> int:
    """Where a buffer is. It must live, and keep its size, for as long as that is used."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


class Mapping:
    """Pages of another domain, mapped: a buffer with an address."""

    def __init__(self, address: int, size: int) -> None:
        self.address = address
        self.size = size
        self.view = memoryview((ctypes.c_char * size).from_address(address)).cast("B")

    def close(self) -> None:
        """Unmap them."""
        self.view.release()
        _LIBC.munmap(self.address, self.size)


class Privcmd:
    """One open file."""

    def __init__(self) -> None:
        self.fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)

    def close(self) -> None:
        """Close it. What was mapped or assigned by it stays."""
        os.close(self.fd)

    def call(self, number: int, argument: int | bytearray) -> int:
        """ioctl(2), and its errno; 0 when it was done. The kernel may change the buffer."""
        pointer = argument if isinstance(argument, int) else address_of(argument)
        ctypes.set_errno(0)
        failed = _LIBC.ioctl(ctypes.c_int(self.fd), ctypes.c_ulong(number), ctypes.c_ulong(pointer)) == -1
        return ctypes.get_errno() if failed else 0

    def restrict(self, domain: int) -> int:
        """Let this file do nothing more to other domains; gives the errno."""
        return self.call(RESTRICT, bytearray(struct.pack("=H", domain)))

    # -- device-model operations

    def dm_op(self, domain: int, op: int, arguments: bytes) -> bytes:
        """Do one operation and give its arguments as Xen leaves them.

        :raises OSError: ENOSYS, where Xen knows none.
        """
        buffer = bytearray(dm_op_of(op, arguments))
        buffers = bytearray(struct.pack("=QQ", address_of(buffer), len(buffer)))
        code = self.call(DM_OP, bytearray(struct.pack("=HHxxxxQ", domain, 1, address_of(buffers))))
        if code:
            raise OSError(code, f"dm_op {op}: {os.strerror(code)}")
        return bytes(buffer[8 : 8 + len(arguments)])

    def nr_vcpus(self, domain: int) -> int:
        """How many virtual CPUs a domain has."""
        return int.from_bytes(self.dm_op(domain, NR_VCPUS, bytes(4)), "little")

    def create_server(self, domain: int) -> int:
        """Create an ioreq server, without buffered requests, and give its number."""
        return int.from_bytes(self.dm_op(domain, CREATE_SERVER, bytes(8))[4:6], "little")

    def destroy_server(self, domain: int, server: int) -> None:
        """Destroy an ioreq server."""
        self.dm_op(domain, DESTROY_SERVER, struct.pack("=HH", server, 0))

    def map_range(self, domain: int, server: int, start: int, end: int) -> None:
        """Give a server a range of memory addresses, its end included."""
        self.dm_op(domain, MAP_RANGE, struct.pack("=HHIQQ", server, 0, _MEMORY, start, end))

    def enable(self, domain: int, server: int, enabled: bool) -> None:
        """Let a server serve, or let it be."""
        self.dm_op(domain, SET_STATE, struct.pack("=HBx", server, enabled))

    def set_irq_level(self, domain: int, irq: int) -> None:
        """Raise an interrupt of a domain. Where it is an edge that counts, once is one interrupt."""
        self.dm_op(domain, SET_IRQ_LEVEL, irq_arguments(irq))

    # -- mappings

    def map_ioreq(self, domain: int, server: int, near: int = 0) -> Mapping:
        """The page with the requests of a server.

        :param near: the address that it is to have, if nothing else is there.
        """
        mapping = self._reserve(1, near)
        request = struct.pack("=HxxIIIQQ", domain, _RESOURCE_IOREQ_SERVER, server, _FRAME_IOREQ, 1, mapping.address)
        self._check(self.call(MMAP_RESOURCE, bytearray(request)), "the server's page")
        return mapping

    def map_foreign(self, domain: int, frames: Sequence[int]) -> Mapping:
        """Pages of a domain, by their guest frame numbers, side by side."""
        mapping = self._reserve(len(frames))
        numbers = (ctypes.c_uint64 * len(frames))(*frames)
        errors = (ctypes.c_int * len(frames))()
        where = (mapping.address, ctypes.addressof(numbers), ctypes.addressof(errors))
        code = self.call(MMAPBATCH_V2, bytearray(struct.pack("=IHxxQQQ", len(frames), domain, *where)))
        self._check(code, f"{len(frames)} foreign pages")
        return mapping

    def _reserve(self, pages: int, near: int = 0) -> Mapping:
        """Addresses for a mapping of their own: the kernel looks at the whole of the area that it is asked about."""
        size = pages * PAGE
        address = _LIBC.mmap(near or None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, self.fd, 0)
        if address in (None, _MAP_FAILED):
            raise OSError(ctypes.get_errno(), "mmap of privcmd")
        return Mapping(address, size)

    @staticmethod
    def _check(code: int, what: str) -> None:
        if code:
            raise OSError(code, f"mapping {what}: {os.strerror(code)}")


def dm_op_of(op: int, arguments: bytes) -> bytes:
    """struct xen_dm_op."""
    return struct.pack("=II", op, 0) + arguments.ljust(_OP_BYTES - 8, b"\0")


def irq_arguments(irq: int) -> bytes:
    """struct xen_dm_op_set_irq_level, level 1."""
    return struct.pack("=IBxxx", irq, 1)
