"""Where a machine's NUMA nodes have their memory. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from harness.machine.spec import Node

#: What the board leaves to memory below 4 GiB, when there is more than fits (QEMU's ``hw/i386/pc_q35.c``, pc_q35_init).
_LOW_BYTES = 2 << 30
_FITS_BELOW = 0xB0000000
_HIGH = 4 << 30
NOWHERE = -1
"""The node of what is no memory."""


class Nodes:
    """The nodes of a q35 board by physical address.

    :param nodes: as the profile has them; none stands for one node with everything.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.ranges = node_ranges(nodes) if nodes else [(0, 1 << 64, 0)]
        self._starts = [start for start, _, _ in self.ranges]

    def of(self, address: int) -> int:
        """The node that an address lies on; :data:`NOWHERE` for what is no node's memory."""
        at = bisect_right(self._starts, address) - 1
        if at < 0 or address >= self.ranges[at][1]:
            return NOWHERE
        return self.ranges[at][2]


def node_ranges(nodes: Sequence[Node]) -> list[tuple[int, int, int]]:
    """Where each node's memory is: start, end and node, in the order of addresses."""
    total = sum(node.memory_mib << 20 for node in nodes)
    low = total if total < _FITS_BELOW else _LOW_BYTES
    ranges: list[tuple[int, int, int]] = []
    at = 0
    for number, node in enumerate(nodes):
        end = at + (node.memory_mib << 20)
        if at < low:
            ranges.append((at, min(end, low), number))
        if end > low:
            ranges.append((max(at, low) - low + _HIGH, end - low + _HIGH, number))
        at = end
    return ranges
