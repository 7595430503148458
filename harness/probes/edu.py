"""QEMU's ``edu`` device (docs/specs/edu.txt of QEMU) by way of its VFIO file: the one device that copies on request.

Its traps are dealt with here and nowhere else:

- QEMU 7.2 aborts when a transfer ends exactly at the end of the device's buffer;
- it has no vmstate: from a saved machine it comes back without its BAR, and a transfer "completes" and moves nothing.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # only a running guest has the probes on its path
    from harness.probes.vfio_abi import DEVICE_GET_REGION_INFO, ioctl, pack
else:
    from vfio_abi import DEVICE_GET_REGION_INFO, ioctl, pack

_CONFIG_OFFSET = 7 << 40  # vfio-pci: region 7 is the configuration space
_PCI_COMMAND = 4
_MEMORY_AND_MASTER = 6

_ID, _SOURCE, _TARGET, _COUNT, _COMMAND = 0x00, 0x80, 0x88, 0x90, 0x98
_BUFFER, _BUFFER_BYTES = 0x40000, 4096
_START, _FROM_DEVICE = 1, 2
_DMA_S = 0.1  # what each transfer takes: hw/misc/edu.c of QEMU sets a timer
IDENTITY = 0x010000ED


def pattern(seed: int, size: int) -> bytes:
    """Bytes that differ from page to page and from seed to seed, and are never 0."""
    return bytes(1 + (seed * 89 + position * 7 + (position >> 8) * 13) % 255 for position in range(size))


class Edu:
    """One device, from its VFIO file."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        region = pack("=IIIIQQ", 32, 0, 0, 0, 0, 0)
        if ioctl(fd, DEVICE_GET_REGION_INFO, region)["result"] != 0:
            raise OSError("VFIO_DEVICE_GET_REGION_INFO failed")
        self.size, self.offset = struct.unpack_from("=QQ", region.raw, 16)
        self._wake()
        self.order = "<" if struct.unpack("<I", os.pread(fd, 4, self.offset))[0] == IDENTITY else ">"
        self.bar: mmap.mmap | None = None

    def _wake(self) -> None:
        """Let the device answer and master the bus. vfio-pci writes its BARs anew where they have been lost."""
        os.pwrite(self.fd, struct.pack("<H", _MEMORY_AND_MASTER), _CONFIG_OFFSET + _PCI_COMMAND)

    @property
    def identity(self) -> int:
        """What the device says it is."""
        return int(struct.unpack(f"{self.order}I", os.pread(self.fd, 4, self.offset + _ID))[0])

    def close(self) -> None:
        """Close the VFIO file."""
        if self.bar is not None:
            self.bar.close()
        os.close(self.fd)

    def dma(self, iova: int, size: int, to_device: bool, offset: int = 0, through_bar: bool = False) -> bool:
        """Move bytes between guest memory and the device's buffer; whether the device says that it is done.

        :raises ValueError: the device does not answer, or a transfer would reach the end of its buffer.
        """
        self._wake()
        if self.identity != IDENTITY:
            raise ValueError(f"the device does not answer: its identity reads {self.identity:#x}")
        if offset + size >= _BUFFER_BYTES:
            raise ValueError(f"a transfer of {size} bytes at {offset} reaches the end of the device's buffer")
        inside = _BUFFER + offset
        source, target = (iova, inside) if to_device else (inside, iova)
        store = self._store_mapped if through_bar else self._store
        for register, value in ((_SOURCE, source), (_TARGET, target), (_COUNT, size)):
            store(register, value)
        store(_COMMAND, _START | (0 if to_device else _FROM_DEVICE))
        time.sleep(_DMA_S)
        for _ in range(5000):
            command = struct.unpack(f"{self.order}Q", os.pread(self.fd, 8, self.offset + _COMMAND))[0]
            if not command & _START:
                return True
            time.sleep(0.001)
        return False

    def _store(self, register: int, value: int) -> None:
        os.pwrite(self.fd, struct.pack(f"{self.order}Q", value), self.offset + register)

    def _store_mapped(self, register: int, value: int) -> None:
        """One 64-bit store through the mapped BAR."""
        if self.bar is None:
            self.bar = mmap.mmap(self.fd, self.size, offset=self.offset)
        word = int.from_bytes(struct.pack(f"{self.order}Q", value), "little")
        ctypes.c_uint64.from_buffer(self.bar, register).value = word
