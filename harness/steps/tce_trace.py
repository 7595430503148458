"""Verbs that count what QEMU's sPAPR IOMMU was asked to do (``hw/ppc/trace-events`` of QEMU)."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

from pydantic import Field

from harness.errors import CommandFailed
from harness.machine.trace import Recording, TraceEvent
from harness.steps.base import Context, Evidence, Params, verb

_EVENTS = (
    "spapr_iommu_pci_put",
    "spapr_iommu_pci_get",
    "spapr_iommu_pci_stuff",
    "spapr_iommu_xlate",
    "spapr_iommu_ddw_*",
)


class _Counting:
    """The recording that tce.watch began, and what it held when tce.counts ended it."""

    def __init__(self) -> None:
        self.stack = ExitStack()
        self.recording: Recording | None = None
        self.events: list[TraceEvent] | None = None


class Watch(Params):
    """Nothing to set."""


@verb("tce.watch")
def watch(context: Context, _: Watch) -> None:
    """Begin to count TCE traffic; tce.counts ends it. Left on, it would fill the disk."""
    counting = context.keep(_Counting, _Counting)
    counting.events = None
    counting.recording = counting.stack.enter_context(context.machine.tracer.record(*_EVENTS))
    context.stack.push(counting.stack)


class Counts(Params):
    """Which window of which bridge: its LIOBN is 0x80000000 | bridge << 8 | window (QEMU's SPAPR_PCI_LIOBN)."""

    bridge: Annotated[int, Field(ge=0, le=255)] = 1
    window: Annotated[int, Field(ge=0, le=1)] = 0


class Counted(Evidence):
    """TCE traffic of one LIOBN since tce.watch.

    ``puts`` are TCEs written with an address, ``clears`` TCEs written with 0, ``stuffed`` TCEs that H_STUFF_TCE wrote
    in ``stuffs`` calls. ``translations`` are DMA accesses, ``denied`` those that found no permission. ``created`` and
    ``removed`` count dynamic windows of all bridges.
    """

    puts: int
    clears: int
    gets: int
    stuffs: int
    stuffed: int
    translations: int
    denied: int
    created: int
    removed: int


@verb("tce.counts")
def counts(context: Context, params: Counts) -> Counted:
    """End the counting and say what was counted; once more for another window."""
    counting = context.keep(_Counting, _Counting)
    if counting.recording is not None:
        counting.stack.close()
        counting.events = counting.recording.take()
        counting.recording = None
    if counting.events is None:
        raise CommandFailed("tce.counts without tce.watch")
    liobn = 0x80000000 | params.bridge << 8 | params.window
    return _count([event for event in counting.events if "ddw" in event.name or event.number("liobn") == liobn])


def _count(events: list[TraceEvent]) -> Counted:
    def of(name: str) -> list[TraceEvent]:
        return [event for event in events if event.name == f"spapr_iommu_{name}"]

    puts = [event.number("tce") for event in of("pci_put")]
    stuffs = of("pci_stuff")
    permissions = [event.number("perm") for event in of("xlate")]
    return Counted(
        puts=sum(tce != 0 for tce in puts),
        clears=sum(tce == 0 for tce in puts),
        gets=len(of("pci_get")),
        stuffs=len(stuffs),
        stuffed=sum(event.number("npages") for event in stuffs),
        translations=len(permissions),
        denied=permissions.count(0),
        created=len(of("ddw_create")),
        removed=len(of("ddw_remove")),
    )
