"""A VT-d unit's tables, walked in a made-up memory, and its invalidation descriptors."""

from __future__ import annotations

import struct

import pytest

from harness.machine.nodes import NOWHERE, Nodes, node_ranges
from harness.machine.spec import Node
from harness.machine.vtd import (
    PAGE,
    REGISTERS_BYTES,
    Descriptor,
    Mapping,
    Registers,
    RemapEntry,
    Unit,
    address_of,
)

ROOT, CONTEXT, TOP, MIDDLE, LAST, QUEUE, REMAP = (number * PAGE for number in range(1, 8))
MIB = 1 << 20


class FakeMemory:
    """Pages that are zero until something is put into them."""

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        self.reads: list[int] = []

    def page(self, address: int) -> bytes:
        """A page."""
        assert address % PAGE == 0
        self.reads.append(address)
        return bytes(self.pages.get(address, bytearray(PAGE)))

    def put(self, table: int, index: int, *words: int) -> None:
        """Write an entry of a table."""
        page = self.pages.setdefault(table, bytearray(PAGE))
        struct.pack_into(f"<{len(words)}Q", page, index * 8 * len(words), *words)


def registers(status: int = 0, root: int = 0, queue: int = 0, remap: int = 0, faults: int = 0) -> Registers:
    """Registers as they are read."""
    data = bytearray(REGISTERS_BYTES)
    struct.pack_into("<I", data, 0x1C, status)
    struct.pack_into("<Q", data, 0x20, root)
    struct.pack_into("<I", data, 0x34, faults)
    struct.pack_into("<Q", data, 0x90, queue)
    struct.pack_into("<Q", data, 0xB8, remap)
    return Registers.parse(bytes(data))


#: Translation, root table, queue, remapping and its table, all on.
ALL_ON = 1 << 31 | 1 << 30 | 1 << 26 | 1 << 25 | 1 << 24


@pytest.fixture
def memory() -> FakeMemory:
    """One device, 01:00.0, in domain 7, with three levels, a 2 MiB page and two of 4 KiB."""
    memory = FakeMemory()
    memory.put(ROOT, 1, CONTEXT | 1, 0)
    memory.put(CONTEXT, 0, TOP | 1 << 2 | 1, 7 << 8 | 1)
    memory.put(TOP, 2, MIDDLE | 3)
    memory.put(MIDDLE, 1, 0x40000000 | 1 << 7 | 3)
    memory.put(MIDDLE, 5, LAST | 3)
    memory.put(LAST, 0, 0x5000 | 3)
    memory.put(LAST, 511, 0x6000 | 1)
    memory.put(REMAP, 3, 0x30 << 16 | 1, 1 << 18 | 0x0100)
    memory.put(REMAP, 4, 0x31 << 16 | 1, 0)
    memory.put(REMAP, 5, 0x32 << 16, 0)
    return memory


def unit(memory: FakeMemory) -> Unit:
    """A unit that does all it can."""
    return Unit(registers(ALL_ON, ROOT, QUEUE | 1, REMAP | 7), memory)


def test_registers_say_what_is_on_and_where() -> None:
    on = registers(ALL_ON, ROOT, QUEUE | 1, REMAP | 7, faults=1 << 1)
    assert (on.translating, on.queued, on.remapping) == (True, True, True)
    assert (on.root_table, on.queue_table, on.remap_table) == (ROOT, QUEUE, REMAP)
    assert (on.queue_pages, on.remap_entries, on.faults) == (2, 256, 2)
    off = registers(0, ROOT, QUEUE, REMAP)
    assert (off.translating, off.queued, off.remapping) == (False, False, False)
    assert (off.root_table, off.queue_table, off.remap_table) == (None, None, None)


def test_a_device_and_what_it_reaches(memory: FakeMemory) -> None:
    walked = unit(memory)
    assert walked.context_tables == {1: CONTEXT}
    (context,) = walked.contexts.values()
    assert (address_of(context.source), context.domain, context.translation) == ("01:00.0", 7, "device-iotlb")
    assert (context.table, context.levels) == (TOP, 3)
    below = walked.page_tables(context)
    assert below.tables == (TOP, MIDDLE, LAST)
    gib = 1 << 30
    assert below.mappings == (
        Mapping(2 * gib + 2 * MIB, 0x40000000, 2 * MIB, True),
        Mapping(2 * gib + 10 * MIB, 0x5000, PAGE, True),
        Mapping(2 * gib + 10 * MIB + 511 * PAGE, 0x6000, PAGE, False),
    )


def test_tables_that_devices_share_are_walked_once(memory: FakeMemory) -> None:
    memory.put(CONTEXT, 8, TOP | 1, 7 << 8 | 1)
    walked = unit(memory)
    assert [each.translation for each in walked.contexts.values()] == ["device-iotlb", "paging"]
    for context in walked.contexts.values():
        walked.page_tables(context)
    assert memory.reads.count(TOP) == 1


def test_a_device_that_is_not_translated_has_no_tables(memory: FakeMemory) -> None:
    memory.put(CONTEXT, 0, TOP | 2 << 2 | 1, 7 << 8 | 1)
    walked = unit(memory)
    (context,) = walked.contexts.values()
    assert context.translation == "passthrough"
    assert walked.page_tables(context).tables == ()


def test_remapping_entries_name_their_device(memory: FakeMemory) -> None:
    assert unit(memory).remap_entries == [RemapEntry(3, 0x30, 0x0100), RemapEntry(4, 0x31, None)]


def test_every_table_counts(memory: FakeMemory) -> None:
    wanted = {ROOT, CONTEXT, TOP, MIDDLE, LAST, QUEUE, QUEUE + PAGE, REMAP}
    assert unit(memory).all_tables() == wanted


def test_a_unit_that_is_off_has_nothing(memory: FakeMemory) -> None:
    off = Unit(registers(), memory)
    assert (off.contexts, off.remap_entries, off.all_tables()) == ({}, [], set())
    assert memory.reads == []


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0x11, 0, Descriptor("context", "global", None, None)),
        (0x7_0021, 0, Descriptor("context", "domain", 7, None)),
        (0x100_0007_0031, 0, Descriptor("context", "device", 7, 0x100)),
        (0xD2, 0, Descriptor("iotlb", "global", None, None)),
        (0x7_00E2, 0, Descriptor("iotlb", "domain", 7, None)),
        (0x7_00F2, 0x1000, Descriptor("iotlb", "page", 7, None)),
        (0x200_0000_0003, 0x7FFFFFFFFFFFF001, Descriptor("device-iotlb", "device", None, 0x200)),
        (0x200_0000_0003, 0x5000, Descriptor("device-iotlb", "page", None, 0x200)),
        (0x4, 0, Descriptor("interrupt", "global", None, None)),
        (0x6_0000_0014, 0, Descriptor("interrupt", "page", None, None)),
        (0x1_0000_0065, 0x7FD824A0, Descriptor("wait", "", None, None)),
        (0xF, 0, Descriptor("other", "", None, None)),
    ],
)
def test_descriptors(low: int, high: int, wanted: Descriptor) -> None:
    assert Descriptor.parse(low, high) == wanted


GIB = 1 << 30


def test_nodes_of_a_board_with_more_than_fits_below_4_gib() -> None:
    nodes = [Node(memory_mib=2048), Node(memory_mib=1024), Node(memory_mib=1024)]
    assert node_ranges(nodes) == [(0, 2 * GIB, 0), (4 * GIB, 5 * GIB, 1), (5 * GIB, 6 * GIB, 2)]
    seen = Nodes(nodes)
    places = (0, 2 * GIB - 1, 2 * GIB, 0xFED90000, 4 * GIB, 5 * GIB, 6 * GIB - 1, 6 * GIB)
    assert [seen.of(at) for at in places] == [0, 0, NOWHERE, NOWHERE, 1, 2, 2, NOWHERE]


def test_a_node_that_the_hole_splits() -> None:
    nodes = [Node(memory_mib=1024), Node(memory_mib=2048)]
    assert node_ranges(nodes) == [(0, GIB, 0), (GIB, 2 * GIB, 1), (4 * GIB, 5 * GIB, 1)]


def test_nodes_that_all_fit_below_4_gib() -> None:
    nodes = [Node(memory_mib=1024), Node(memory_mib=512)]
    assert node_ranges(nodes) == [(0, GIB, 0), (GIB, GIB + GIB // 2, 1)]


def test_a_machine_without_nodes_is_one() -> None:
    assert Nodes([]).of(123) == 0
