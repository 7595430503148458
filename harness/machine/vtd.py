"""What an Intel VT-d unit sees: its registers, and the tables that they point to. Pure: memory comes from a reader.

Formats are those of Intel's "Virtualization Technology for Directed I/O" (chapter 9, legacy mode; chapter 10,
registers) and of Xen's ``drivers/passthrough/vtd/iommu.h``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

PAGE = 4096
REGISTERS_BYTES = 0xC0
_ENTRIES = 512
_ADDRESS = ((1 << 52) - 1) & ~(PAGE - 1)
_FAULT_RECORDED = 0x3F  # FSTS: overflow, pending fault and the invalidation queue's errors
TRANSLATIONS = {0: "paging", 1: "device-iotlb", 2: "passthrough"}
"""What a context entry lets its device do, by its translation type."""


class Memory(Protocol):
    """Where pages are read from."""

    def page(self, address: int) -> bytes:
        """The 4096 bytes at an address."""


def address_of(source: int) -> str:
    """A source id as PCI addresses are written: ``01:00.0``."""
    return f"{source >> 8:02x}:{source >> 3 & 31:02x}.{source & 7}"


@dataclass(frozen=True, slots=True)
class Registers:
    """What the unit is told to do.

    :param status: GSTS, the global status.
    :param faults: FSTS, the fault status.
    """

    status: int
    root: int
    queue: int
    remap: int
    faults: int

    @classmethod
    def parse(cls, data: bytes) -> Registers:
        """Read the unit's first :data:`REGISTERS_BYTES`."""
        status, faults = (int.from_bytes(data[at : at + 4], "little") for at in (0x1C, 0x34))
        root, queue, remap = (int.from_bytes(data[at : at + 8], "little") for at in (0x20, 0x90, 0xB8))
        return cls(status, root, queue, remap, faults & _FAULT_RECORDED)

    @property
    def translating(self) -> bool:
        """Whether DMA is translated."""
        return bool(self.status >> 31 & 1)

    @property
    def queued(self) -> bool:
        """Whether invalidations are queued."""
        return bool(self.status >> 26 & 1)

    @property
    def remapping(self) -> bool:
        """Whether interrupts are remapped."""
        return bool(self.status >> 25 & 1)

    @property
    def root_table(self) -> int | None:
        """Where the root table is, once one was set."""
        return self.root & _ADDRESS if self.status >> 30 & 1 else None

    @property
    def queue_table(self) -> int | None:
        """Where the invalidation queue is."""
        return self.queue & _ADDRESS if self.queued else None

    @property
    def queue_pages(self) -> int:
        """How large the invalidation queue is."""
        return 1 << (self.queue & 7)

    @property
    def remap_table(self) -> int | None:
        """Where the interrupt remapping table is, once one was set."""
        return self.remap & _ADDRESS if self.status >> 24 & 1 else None

    @property
    def remap_entries(self) -> int:
        """How many entries the interrupt remapping table has."""
        return 2 << (self.remap & 15)


@dataclass(frozen=True, slots=True)
class Context:
    """A device's context entry.

    :param source: the device's bus, device and function as one number.
    :param table: where its top page table is.
    :param levels: how many levels of page tables it has.
    """

    source: int
    domain: int
    translation: str
    table: int
    levels: int


@dataclass(frozen=True, slots=True)
class Mapping:
    """A stretch of addresses that a device may use, and the memory behind it."""

    bus_address: int
    address: int
    size: int
    writable: bool


@dataclass(frozen=True, slots=True)
class PageTables:
    """All tables below a context entry, top one first, and what they map."""

    tables: tuple[int, ...]
    mappings: tuple[Mapping, ...]


@dataclass(frozen=True, slots=True)
class RemapEntry:
    """An entry of the interrupt remapping table that is present.

    :param source: the device that may use it; None when any may.
    """

    index: int
    vector: int
    source: int | None


class Unit:
    """A unit's tables, walked at one moment.

    :param memory: where they are read from.
    """

    def __init__(self, registers: Registers, memory: Memory) -> None:
        self.registers = registers
        self._memory = memory
        self._walked: dict[tuple[int, int], PageTables] = {}

    @cached_property
    def context_tables(self) -> dict[int, int]:
        """The context tables by bus."""
        root = self.registers.root_table
        if root is None:
            return {}
        entries = self._entries(root)
        return {bus: low & _ADDRESS for bus, (low, _) in enumerate(entries) if low & 1}

    @cached_property
    def contexts(self) -> dict[int, Context]:
        """The context entries that are present, by source."""
        found = (
            _context(bus << 8 | function, low, high)
            for bus, table in self.context_tables.items()
            for function, (low, high) in enumerate(self._entries(table))
            if low & 1
        )
        return {context.source: context for context in found}

    def page_tables(self, context: Context) -> PageTables:
        """What a context entry leads to; nothing when its device is not translated."""
        if context.translation == TRANSLATIONS[2]:
            return PageTables((), ())
        key = (context.table, context.levels)
        if key not in self._walked:
            tables: list[int] = []
            mappings = list(self._walk(context.table, context.levels, 0, tables))
            self._walked[key] = PageTables(tuple(tables), tuple(mappings))
        return self._walked[key]

    @cached_property
    def remap_entries(self) -> list[RemapEntry]:
        """The interrupt remapping entries that are present."""
        table = self.registers.remap_table
        if table is None:
            return []
        found: list[RemapEntry] = []
        for number in range(self.registers.remap_entries * 16 // PAGE):
            entries = self._entries(table + number * PAGE)
            found += [
                RemapEntry(number * len(entries) + index, low >> 16 & 0xFF, high & 0xFFFF if high >> 18 & 3 else None)
                for index, (low, high) in enumerate(entries)
                if low & 1
            ]
        return found

    def all_tables(self) -> set[int]:
        """Every page that is a table of the unit: nothing that a device maps may be one of them."""
        registers = self.registers
        pages = set(self.context_tables.values())
        if registers.root_table is not None:
            pages.add(registers.root_table)
        if registers.queue_table is not None:
            pages |= {registers.queue_table + number * PAGE for number in range(registers.queue_pages)}
        if registers.remap_table is not None:
            pages |= set(range(registers.remap_table, registers.remap_table + registers.remap_entries * 16, PAGE))
        for context in self.contexts.values():
            pages |= set(self.page_tables(context).tables)
        return pages

    def _entries(self, table: int) -> list[tuple[int, int]]:
        """A page's 256 entries of 16 bytes, each as its low and its high half."""
        return list(struct.iter_unpack("<QQ", self._memory.page(table)))

    def _walk(self, table: int, level: int, base: int, tables: list[int]) -> Iterator[Mapping]:
        tables.append(table)
        size = PAGE << 9 * (level - 1)
        for index, entry in enumerate(struct.unpack(f"<{_ENTRIES}Q", self._memory.page(table))):
            if not entry & 3:
                continue
            start, target = base + index * size, entry & _ADDRESS
            if level == 1 or entry >> 7 & 1:
                yield Mapping(start, target, size, bool(entry & 2))
            else:
                yield from self._walk(target, level - 1, start, tables)


def _context(source: int, low: int, high: int) -> Context:
    translation = TRANSLATIONS.get(low >> 2 & 3, "reserved")
    return Context(source, high >> 8 & 0xFFFF, translation, low & _ADDRESS, (high & 7) + 2)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """An invalidation that was queued.

    :param kind: ``context``, ``iotlb``, ``device-iotlb``, ``interrupt``, ``wait``, or ``other``.
    :param granularity: ``global``, ``domain``, ``device`` or ``page``; empty where it has none.
    :param domain: the domain id; None where it names none.
    :param source: the device; None where it names none.
    """

    kind: str
    granularity: str
    domain: int | None
    source: int | None

    @classmethod
    def parse(cls, low: int, high: int) -> Descriptor:
        """Read one of 128 bits (chapter 6.5.2, "Queued Invalidation Interface")."""
        kind, granularity = low & 0xF, low >> 4 & 3
        domain, source = low >> 16 & 0xFFFF, low >> 32 & 0xFFFF
        if kind == 1:
            named = {1: "global", 2: "domain", 3: "device"}.get(granularity, "other")
            return cls("context", named, None if named == "global" else domain, source if named == "device" else None)
        if kind == 2:
            named = {1: "global", 2: "domain", 3: "page"}.get(granularity, "other")
            return cls("iotlb", named, None if named == "global" else domain, None)
        if kind == 3:
            return cls("device-iotlb", "device" if high & 1 else "page", None, source)
        if kind == 4:
            return cls("interrupt", "page" if low >> 4 & 1 else "global", None, None)
        return cls({5: "wait"}.get(kind, "other"), "", None, None)
