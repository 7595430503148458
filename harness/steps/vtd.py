"""Verbs that look at an Intel VT-d unit from outside: its registers, its tables, and the memory that those are in.

Nothing in the machine takes part: QEMU's monitor reads the unit's registers and the tables that they point to. So they
work on a machine that boots Xen only, and see what Xen has really written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from harness.machine.nodes import Nodes
from harness.machine.physical import PhysicalMemory
from harness.machine.vtd import PAGE, REGISTERS_BYTES, Registers, Unit, address_of
from harness.machine.vtd import Context as DeviceContext
from harness.scenario.dmar import IOMMU_ADDRESS
from harness.steps.base import Context, Evidence, Params, verb

FEATURE = "vtd"

PciAddress = Annotated[str, Field(pattern=r"^[0-9a-f]{2}:[01][0-9a-f]\.[0-7]$")]


class Nothing(Params):
    """Nothing to set."""


class Table(Evidence):
    """A table of the unit: whether it is there, where (0: nowhere), on which node (-1: none), and its entries."""

    present: bool
    address: int
    node: int
    entries: int


class Tables(Evidence):
    """What the unit does, and where what it reads is.

    ``contexts`` counts context tables, ``page_tables`` those of all devices together, and ``devices`` the context
    entries that are present; ``nodes`` of both are those that have any, ``on_node`` how many each has. ``device_iotlb``
    and ``passthrough`` are the devices whose entries let them use translated addresses, or skip translation.
    ``interrupts`` counts remapping entries by device. ``faults`` is the unit's fault status; 0 is none.
    """

    translating: bool
    queued: bool
    remapping: bool
    root: Table
    queue: Table
    remap: Table
    contexts: int
    context_nodes: list[int]
    page_tables: int
    page_table_nodes: list[int]
    page_tables_on_node: dict[str, int]
    devices: list[str]
    domains: list[int]
    device_iotlb: list[str]
    passthrough: list[str]
    interrupts: dict[str, int]
    faults: int


def look(context: Context) -> tuple[Unit, Nodes]:
    """The unit as it is at this moment, and the nodes that its memory may be on."""
    memory = PhysicalMemory(context.machine.monitor, context.testbed.scratch)
    registers = Registers.parse(memory.registers(IOMMU_ADDRESS, REGISTERS_BYTES))
    return Unit(registers, memory), Nodes(context.testbed.profile.nodes)


@verb("vtd.tables", needs_guest=False)
def tables(context: Context, _: Nothing) -> Tables:
    """Look at the unit's registers and walk all of its tables."""
    unit, nodes = look(context)
    registers = unit.registers
    contexts = unit.contexts.values()
    pages = {page for each in contexts for page in unit.page_tables(each).tables}
    on_node = Counter(nodes.of(page) for page in pages)
    interrupts = Counter("any" if entry.source is None else address_of(entry.source) for entry in unit.remap_entries)

    def table(address: int | None, entries: int) -> Table:
        if address is None:
            return Table(present=False, address=0, node=-1, entries=0)
        return Table(present=True, address=address, node=nodes.of(address), entries=entries)

    return Tables(
        translating=registers.translating,
        queued=registers.queued,
        remapping=registers.remapping,
        root=table(registers.root_table, PAGE // 16),
        queue=table(registers.queue_table, registers.queue_pages * PAGE // 16),
        remap=table(registers.remap_table, registers.remap_entries),
        contexts=len(unit.context_tables),
        context_nodes=_nodes_of(nodes, unit.context_tables.values()),
        page_tables=len(pages),
        page_table_nodes=_nodes_of(nodes, pages),
        page_tables_on_node={str(node): count for node, count in sorted(on_node.items())},
        devices=[address_of(each.source) for each in contexts],
        domains=sorted({each.domain for each in contexts}),
        device_iotlb=_with_translation(contexts, "device-iotlb"),
        passthrough=_with_translation(contexts, "passthrough"),
        interrupts=dict(sorted(interrupts.items())),
        faults=registers.faults,
    )


def _nodes_of(nodes: Nodes, pages: Iterable[int]) -> list[int]:
    return sorted({nodes.of(page) for page in pages})


def _with_translation(contexts: Iterable[DeviceContext], translation: str) -> list[str]:
    return [address_of(each.source) for each in contexts if each.translation == translation]


class Device(Params):
    """A device, by its PCI address."""

    device: PciAddress


class DeviceTables(Evidence):
    """A device's context entry, and the tables below it.

    ``domain`` is the domain id that the unit knows (-1: no entry). ``table_nodes`` are the nodes that have any of its
    page tables, ``tables_on_node`` how many each. ``mapped_kib`` is what it can reach, ``writable_kib`` what it can
    change of it; ``identity`` says whether each address leads to itself. ``reaches_tables`` counts tables of the unit,
    of any device, that it could write to.
    """

    present: bool
    domain: int
    translation: str
    levels: int
    top_node: int
    tables: int
    table_nodes: list[int]
    tables_on_node: dict[str, int]
    mapped_kib: int
    writable_kib: int
    mapped_nodes: list[int]
    identity: bool
    reaches_tables: int


@verb("vtd.device", needs_guest=False)
def device(context: Context, params: Device) -> DeviceTables:
    """Walk the tables of one device."""
    unit, nodes = look(context)
    found = unit.contexts.get(_source(params.device))
    if found is None:
        nothing = {"present": False, "domain": -1, "translation": "", "levels": 0, "top_node": -1, "tables": 0}
        reach = {"mapped_kib": 0, "writable_kib": 0, "mapped_nodes": [], "identity": False, "reaches_tables": 0}
        return DeviceTables.model_validate({**nothing, "table_nodes": [], "tables_on_node": {}, **reach})
    below = unit.page_tables(found)
    writable = [mapping for mapping in below.mappings if mapping.writable]
    on_node = Counter(nodes.of(page) for page in below.tables)
    reachable = (any(m.address <= page < m.address + m.size for m in writable) for page in unit.all_tables())
    return DeviceTables(
        present=True,
        domain=found.domain,
        translation=found.translation,
        levels=found.levels,
        top_node=nodes.of(found.table),
        tables=len(below.tables),
        table_nodes=sorted(on_node),
        tables_on_node={str(node): count for node, count in sorted(on_node.items())},
        mapped_kib=sum(mapping.size for mapping in below.mappings) >> 10,
        writable_kib=sum(mapping.size for mapping in writable) >> 10,
        mapped_nodes=_nodes_of(nodes, (mapping.address for mapping in below.mappings)),
        identity=all(mapping.bus_address == mapping.address for mapping in below.mappings),
        reaches_tables=sum(reachable),
    )


def _source(device_address: str) -> int:
    bus, slot, function = device_address.replace(".", ":").split(":")
    return int(bus, 16) << 8 | int(slot, 16) << 3 | int(function)
