"""Devices behind the virtio-mmio transport, as a backend sees them: registers, queues in the guest's memory, and what
the devices do.

Registers, queues and devices: Virtual I/O Device (VIRTIO) Version 1.2, sections 4.2.2, 2.7, 5.2 and 5.4.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.probes.privcmd import Mapping, Privcmd

MAGIC, VERSION, VENDOR = 0x74726976, 2, 0x6E726168
(R_MAGIC, R_VERSION, R_DEVICE, R_VENDOR, R_FEATURES, R_FEATURES_SEL) = (0x00, 0x04, 0x08, 0x0C, 0x10, 0x14)
(R_DRIVER, R_DRIVER_SEL, R_QUEUE, R_QUEUE_MAX, R_QUEUE_SIZE, R_QUEUE_READY) = (0x20, 0x24, 0x30, 0x34, 0x38, 0x44)
R_NOTIFY, R_INTERRUPT, R_ACK, R_STATUS, R_CONFIG = 0x50, 0x60, 0x64, 0x70, 0x100
_ADDRESSES = {0x80: "desc", 0x90: "driver", 0xA0: "device"}  # the low half; the high one is 4 further
_VERSION_1 = 1 << 32
_QUEUE_SIZE = 64
_PAGE = 4096
_NEXT, _WRITE = 1, 2  # VIRTQ_DESC_F_


class GuestMemory:
    """A domain's memory; pages are mapped at first use, and stay so."""

    def __init__(self, privcmd: Privcmd, domain: int) -> None:
        self._privcmd = privcmd
        self._domain = domain
        self._pages: dict[int, Mapping] = {}

    def _page(self, frame: int) -> memoryview:
        if frame not in self._pages:
            self._pages[frame] = self._privcmd.map_foreign(self._domain, [frame])
        return self._pages[frame].view

    def read(self, address: int, size: int) -> bytes:
        """Bytes from an address."""
        data = b""
        while size > len(data):
            at = address + len(data)
            start = at % _PAGE
            data += bytes(self._page(at // _PAGE)[start : start + size - len(data)])
        return data

    def write(self, address: int, data: bytes) -> None:
        """Bytes to an address."""
        while data:
            start = address % _PAGE
            piece = data[: _PAGE - start]
            self._page(address // _PAGE)[start : start + len(piece)] = piece
            address, data = address + len(piece), data[len(piece) :]

    def u16(self, address: int) -> int:
        """A 16-bit number."""
        return int.from_bytes(self.read(address, 2), "little")

    def close(self) -> None:
        """Unmap all."""
        for page in self._pages.values():
            page.close()
        self._pages.clear()


class Queue:
    """A split virtqueue."""

    def __init__(self) -> None:
        self.size = 0
        self.ready = False
        self.addresses = {"desc": 0, "driver": 0, "device": 0}
        self.seen = 0  # of the available ring's free-running index

    def take(self, memory: GuestMemory) -> list[tuple[int, list[tuple[int, int, bool]]]]:
        """The chains that the driver has made available: each its head and its buffers (address, size, writable)."""
        chains = []
        available = memory.u16(self.addresses["driver"] + 2)
        while self.seen != available:
            head = memory.u16(self.addresses["driver"] + 4 + 2 * (self.seen % self.size))
            chains.append((head, self._chain(memory, head)))
            self.seen = (self.seen + 1) & 0xFFFF
        return chains

    def _chain(self, memory: GuestMemory, index: int) -> list[tuple[int, int, bool]]:
        buffers = []
        for _ in range(self.size):
            entry = memory.read(self.addresses["desc"] + 16 * index, 16)
            address, size, flags, index = struct.unpack("<QIHH", entry)
            buffers.append((address, size, bool(flags & _WRITE)))
            if not flags & _NEXT:
                break
        return buffers

    def give(self, memory: GuestMemory, head: int, written: int) -> None:
        """Hand a chain back, with so many bytes written to it."""
        ring = self.addresses["device"]
        index = memory.u16(ring + 2)
        memory.write(ring + 4 + 8 * (index % self.size), struct.pack("<II", head, written))
        memory.write(ring + 2, struct.pack("<H", (index + 1) & 0xFFFF))


class Device:
    """One device in its window.

    :param memory: the guest's.
    :param interrupt: raises the device's interrupt.
    """

    number = 0
    features = _VERSION_1
    queue_count = 1
    config = b""

    def __init__(self, memory: GuestMemory, interrupt: Callable[[], None]) -> None:
        self.memory = memory
        self.interrupt = interrupt
        self.served = 0
        self.interrupts = 0
        self.reset()

    def reset(self) -> None:
        """Be as after power-on."""
        self.queues = [Queue() for _ in range(self.queue_count)]
        self.registers = {R_QUEUE: 0, R_FEATURES_SEL: 0, R_DRIVER_SEL: 0, R_INTERRUPT: 0, R_STATUS: 0}

    def read(self, offset: int, size: int) -> int:
        """What a register, or a piece of the configuration, holds."""
        if offset >= R_CONFIG:
            return int.from_bytes(self.config[offset - R_CONFIG :][:size], "little")
        queue = self._queue
        constants = {R_MAGIC: MAGIC, R_VERSION: VERSION, R_DEVICE: self.number, R_VENDOR: VENDOR}
        if offset in constants:
            return constants[offset]
        if offset == R_FEATURES:
            return self.features >> (32 * self.registers[R_FEATURES_SEL]) & 0xFFFFFFFF
        if offset == R_QUEUE_MAX:
            return _QUEUE_SIZE if queue is not None else 0
        if offset == R_QUEUE_READY:
            return int(queue is not None and queue.ready)
        return self.registers.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        """Set a register. A notification is no register: see :meth:`notified`."""
        queue = self._queue
        if offset == R_STATUS and value == 0:
            self.reset()
        elif offset == R_ACK:
            self.registers[R_INTERRUPT] &= ~value
        elif offset in (R_STATUS, R_QUEUE, R_FEATURES_SEL, R_DRIVER_SEL):
            self.registers[offset] = value
        elif queue is not None and offset == R_QUEUE_SIZE:
            queue.size = value
        elif queue is not None and offset == R_QUEUE_READY:
            queue.ready = bool(value)
        elif queue is not None and offset & ~4 in _ADDRESSES:
            name = _ADDRESSES[offset & ~4]
            low, high = queue.addresses[name] & 0xFFFFFFFF, queue.addresses[name] >> 32
            low, high = (low, value) if offset & 4 else (value, high)
            queue.addresses[name] = high << 32 | low

    def notified(self, number: int) -> None:
        """Serve what a queue has; one interrupt for all of it."""
        if number >= len(self.queues) or not self.queues[number].ready:
            return
        queue = self.queues[number]
        chains = queue.take(self.memory)
        for head, buffers in chains:
            queue.give(self.memory, head, self.serve(buffers))
            self.served += 1
        if chains:
            self.registers[R_INTERRUPT] |= 1
            self.interrupts += 1
            self.interrupt()

    def serve(self, buffers: list[tuple[int, int, bool]]) -> int:
        """Serve one request; gives how many bytes were written to its buffers."""
        raise NotImplementedError

    @property
    def _queue(self) -> Queue | None:
        number = self.registers[R_QUEUE]
        return self.queues[number] if number < len(self.queues) else None


class Rng(Device):
    """An entropy source whose bytes can be told: those of request N are a hash's, made of N."""

    number = 4

    def serve(self, buffers: list[tuple[int, int, bool]]) -> int:
        address, size, _ = buffers[0]
        self.memory.write(address, rng_bytes(self.served, size))
        return size


def rng_bytes(request: int, size: int) -> bytes:
    """What the entropy source gives for a request."""
    return _digest(b"request %d" % request, size)


class Block(Device):
    """A small disk in memory. Sector N begins as a hash's bytes, made of N."""

    number = 2
    sectors = 256
    config = struct.pack("<Q", sectors).ljust(64, b"\0")
    _READ, _STORE, _FLUSH, _ID = 0, 1, 4, 8
    _OK, _UNSUPPORTED = b"\0", b"\2"

    def __init__(self, memory: GuestMemory, interrupt: Callable[[], None]) -> None:
        self.disk = bytearray(b"".join(map(sector_bytes, range(self.sectors))))
        super().__init__(memory, interrupt)

    def serve(self, buffers: list[tuple[int, int, bool]]) -> int:
        kind, _, sector = struct.unpack("<IIQ", self.memory.read(buffers[0][0], 16))
        position, written, status = sector * 512, 1, self._OK
        for address, size, _ in buffers[1:-1]:
            if kind == self._READ:
                self.memory.write(address, bytes(self.disk[position : position + size]))
                written += size
            elif kind == self._STORE:
                self.disk[position : position + size] = self.memory.read(address, size)
            elif kind == self._ID:
                self.memory.write(address, b"harness".ljust(size, b"\0"))
                written += size
            position += size
        if kind not in (self._READ, self._STORE, self._FLUSH, self._ID):
            status = self._UNSUPPORTED
        self.memory.write(buffers[-1][0], status)
        return written


def sector_bytes(sector: int) -> bytes:
    """What a sector of the disk holds at first."""
    return _digest(b"sector %d" % sector, 512)


def _digest(of: bytes, size: int) -> bytes:
    import hashlib  # slow, and not for every device

    return hashlib.shake_128(of).digest(size)


DEVICES: dict[str, type[Device]] = {"rng": Rng, "block": Block}
