"""The devices of a virtio-mmio backend, driven as a driver drives them, with the guest's memory in a dictionary."""

from __future__ import annotations

import hashlib
import struct

import pytest

from harness.probes.virtio_device import Block, Device, GuestMemory, Queue, Rng, rng_bytes, sector_bytes

DESC, DRIVER, DEVICE = 0x1000, 0x2000, 0x3000
NEXT, WRITABLE = 1, 2


class Page:
    def __init__(self) -> None:
        self.view = memoryview(bytearray(4096))
        self.closed = False

    def close(self) -> None:
        self.closed = True


class Privcmd:
    """Any frame of the guest is there, and can be mapped once."""

    def __init__(self) -> None:
        self.pages: dict[int, Page] = {}

    def map_foreign(self, domain: int, frames: list[int]) -> Page:
        (frame,) = frames
        assert domain == 7
        assert frame not in self.pages, "mapped twice"
        self.pages[frame] = Page()
        return self.pages[frame]


class Driver:
    """A driver of one queue."""

    def __init__(self, kind: type[Device]) -> None:
        self.interrupts = 0
        self.privcmd = Privcmd()
        self.memory = GuestMemory(self.privcmd, 7)  # type: ignore[arg-type]
        self.device = kind(self.memory, self.interrupt)
        self.index = 0

    def interrupt(self) -> None:
        self.interrupts += 1

    def start(self, size: int = 8) -> None:
        for offset, value in (
            *((0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11), (0x30, 0), (0x38, size)),
            *((0x80, DESC), (0x84, 0), (0x90, DRIVER), (0x94, 0), (0xA0, DEVICE), (0xA4, 0), (0x44, 1), (0x70, 15)),
        ):
            self.device.write(offset, value)

    def offer(self, *buffers: tuple[int, int, bool], first: int = 0) -> None:
        """Make a chain of buffers available: address, size, writable."""
        for number, (address, size, writable) in enumerate(buffers):
            last = number == len(buffers) - 1
            flags = (0 if last else NEXT) | (WRITABLE if writable else 0)
            entry = struct.pack("<QIHH", address, size, flags, first + number + 1)
            self.memory.write(DESC + 16 * (first + number), entry)
        self.memory.write(DRIVER + 4 + 2 * (self.index % 8), struct.pack("<H", first))
        self.index += 1
        self.memory.write(DRIVER + 2, struct.pack("<H", self.index & 0xFFFF))

    def used(self) -> list[tuple[int, int]]:
        """What the device has handed back, of the last eight: heads and lengths."""
        index = self.memory.u16(DEVICE + 2)
        return [
            struct.unpack("<II", self.memory.read(DEVICE + 4 + 8 * (n % 8), 8)) for n in range(max(0, index - 8), index)
        ]


def test_a_driver_finds_a_device() -> None:
    device = Driver(Rng).device
    assert device.read(0x0, 4).to_bytes(4, "little") == b"virt"
    assert (device.read(0x4, 4), device.read(0x8, 4)) == (2, 4)
    # of its features, 64 bits in two halves, it has VIRTIO_F_VERSION_1
    device.write(0x14, 0)
    assert device.read(0x10, 4) == 0
    device.write(0x14, 1)
    assert device.read(0x10, 4) == 1
    device.write(0x30, 0)
    assert device.read(0x34, 4) == 64
    device.write(0x30, 1)
    assert (device.read(0x34, 4), device.read(0x44, 4)) == (0, 0)


def test_a_disks_configuration() -> None:
    device = Driver(Block).device
    assert device.read(0x100, 4) | device.read(0x104, 4) << 32 == 256
    assert device.read(0x100, 2) == 256
    assert device.read(0x1F0, 4) == 0


def test_memory_across_pages() -> None:
    privcmd = Privcmd()
    memory = GuestMemory(privcmd, 7)  # type: ignore[arg-type]
    data = bytes(range(256)) * 40
    memory.write(0x5F00, data)
    assert memory.read(0x5F00, len(data)) == data
    assert sorted(privcmd.pages) == [5, 6, 7, 8]
    memory.close()
    assert all(page.closed for page in privcmd.pages.values())


def test_an_entropy_sources_requests() -> None:
    driver = Driver(Rng)
    driver.start()
    driver.device.notified(0)  # nothing is there
    assert driver.interrupts == 0
    for number in range(20):
        driver.offer((0x9000 + number, 60, True))
        driver.device.notified(0)
        assert driver.memory.read(0x9000 + number, 60) == rng_bytes(number, 60)
        assert driver.used()[-1] == (0, 60)
    assert (driver.device.served, driver.device.interrupts, driver.interrupts) == (20, 20, 20)


def test_several_requests_are_one_interrupt() -> None:
    driver = Driver(Rng)
    driver.start()
    driver.offer((0x9000, 16, True))
    driver.offer((0xA000, 16, True), first=1)
    driver.device.notified(1)  # no such queue
    assert driver.interrupts == 0
    driver.device.notified(0)
    assert driver.used() == [(0, 16), (1, 16)]
    assert (driver.device.served, driver.interrupts) == (2, 1)
    # the interrupt's reason stays until it is acknowledged
    assert driver.device.read(0x60, 4) == 1
    driver.device.write(0x64, 1)
    assert driver.device.read(0x60, 4) == 0


def request(driver: Driver, kind: int, sector: int, data: tuple[int, int, bool]) -> int:
    """One request to a disk; gives its status."""
    driver.memory.write(0x8000, struct.pack("<IIQ", kind, 0, sector))
    driver.memory.write(0x8100, b"\xff")
    driver.offer((0x8000, 16, False), data, (0x8100, 1, True))
    driver.device.notified(0)
    return driver.memory.read(0x8100, 1)[0]


def test_a_disk_is_read_and_written() -> None:
    driver = Driver(Block)
    driver.start()
    assert request(driver, 0, 3, (0x9E00, 1024, True)) == 0
    assert driver.memory.read(0x9E00, 1024) == sector_bytes(3) + sector_bytes(4)
    assert driver.used()[-1] == (0, 1025)
    fresh = hashlib.shake_128(b"fresh").digest(512)
    driver.memory.write(0xB000, fresh)
    assert request(driver, 1, 4, (0xB000, 512, False)) == 0
    assert driver.used()[-1] == (0, 1)
    assert request(driver, 0, 3, (0x9E00, 1536, True)) == 0
    assert driver.memory.read(0x9E00, 1536) == sector_bytes(3) + fresh + sector_bytes(5)
    assert request(driver, 8, 0, (0xC000, 20, True)) == 0
    assert driver.memory.read(0xC000, 20) == b"harness".ljust(20, b"\0")
    assert request(driver, 99, 0, (0xC000, 20, True)) == 2


def test_a_reset_forgets_the_queues() -> None:
    driver = Driver(Rng)
    driver.start()
    assert driver.device.read(0x44, 4) == 1
    driver.device.write(0x70, 0)
    assert (driver.device.read(0x44, 4), driver.device.read(0x70, 4)) == (0, 0)
    driver.offer((0x9000, 16, True))
    driver.device.notified(0)
    assert driver.interrupts == 0


def test_addresses_have_two_halves() -> None:
    device = Driver(Rng).device
    device.write(0x84, 0x1)
    device.write(0x80, 0x89ABCDEF)
    device.write(0x94, 0x2)
    device.write(0x90, 0x5)
    queue = device.queues[0]
    assert queue.addresses == {"desc": 0x189ABCDEF, "driver": 0x200000005, "device": 0}


def test_a_chain_that_never_ends() -> None:
    driver = Driver(Rng)
    driver.start()
    driver.memory.write(DESC, struct.pack("<QIHH", 0x9000, 1, NEXT | WRITABLE, 0))
    queue = Queue()
    queue.size, queue.addresses = 8, {"desc": DESC, "driver": DRIVER, "device": DEVICE}
    driver.memory.write(DRIVER + 2, struct.pack("<H", 1))
    ((head, buffers),) = queue.take(driver.memory)
    assert (head, len(buffers)) == (0, 8)


@pytest.mark.parametrize("kind", [Rng, Block])
def test_every_request_is_its_own(kind: type[Device]) -> None:
    one, other = (rng_bytes(n, 64) for n in (1, 2)) if kind is Rng else map(sector_bytes, (1, 2))
    assert one != other
