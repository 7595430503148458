"""Verbs that count what Xen asks a VT-d unit to invalidate, and what the unit refuses.

The events are those of QEMU's ``hw/i386/trace-events``.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack

from harness.errors import CommandFailed
from harness.machine.trace import Recording, TraceEvent
from harness.machine.vtd import Descriptor, address_of
from harness.steps.base import Context, Evidence, Params, verb

_DESCRIPTOR = "vtd_inv_desc"
_FAULT = "vtd_dmar_fault"
_EVENTS = (_DESCRIPTOR, _FAULT)


class _Watching:
    """The recording that vtd.watch began."""

    def __init__(self) -> None:
        self.stack = ExitStack()
        self.recording: Recording | None = None


class Watch(Params):
    """Nothing to set."""


class Invalidations(Evidence):
    """What was queued.

    ``contexts``, ``iotlb``, ``device_iotlb``, ``interrupts`` and ``waits`` count descriptors by type, ``total`` all.
    ``context_devices`` has those for one device by its address, and ``device_iotlb_devices`` likewise.
    ``iotlb_domains`` has those that name a domain, by its id. ``faults`` counts DMA that the unit has refused.
    """

    total: int
    contexts: int
    iotlb: int
    device_iotlb: int
    interrupts: int
    waits: int
    context_devices: dict[str, int]
    device_iotlb_devices: dict[str, int]
    iotlb_domains: dict[str, int]
    iotlb_pages: int
    iotlb_global: int
    faults: int


@verb("vtd.watch", needs_guest=False)
def watch(context: Context, _: Watch) -> None:
    """Begin to record invalidations; vtd.invalidations ends it. Left on, it would fill the disk."""
    watching = context.keep(_Watching, _Watching)
    watching.recording = watching.stack.enter_context(context.machine.tracer.record(*_EVENTS))
    context.stack.push(watching.stack)


@verb("vtd.invalidations", needs_guest=False)
def invalidations(context: Context, _: Watch) -> Invalidations:
    """End the recording and say what was queued since vtd.watch."""
    watching = context.keep(_Watching, _Watching)
    if watching.recording is None:
        raise CommandFailed("vtd.invalidations without vtd.watch")
    watching.stack.close()
    events = watching.recording.take()
    watching.recording = None
    return count(events)


@verb("vtd.boot_invalidations", needs_guest=False)
def boot_invalidations(context: Context, _: Watch) -> Invalidations:
    """Say what was queued during the boot: needs trace [vtd_inv_desc] and fresh, or until, in boot."""
    if _DESCRIPTOR not in context.machine.plan.trace:
        raise CommandFailed(f"vtd.boot_invalidations without boot.trace: [{_DESCRIPTOR}]")
    return count(context.machine.tracer.of_boot(*_EVENTS).take())


def count(events: list[TraceEvent]) -> Invalidations:
    """Count descriptors, as QEMU traces each in full, and faults."""
    found = [
        Descriptor.parse(event.number("low"), event.number("high")) for event in events if event.name == _DESCRIPTOR
    ]
    kinds = Counter(each.kind for each in found)

    def by_source(kind: str) -> dict[str, int]:
        sources = Counter(each.source for each in found if each.kind == kind and each.source is not None)
        return {address_of(source): number for source, number in sorted(sources.items())}

    domains = Counter(each.domain for each in found if each.kind == "iotlb" and each.domain is not None)
    return Invalidations(
        total=len(found),
        contexts=kinds["context"],
        iotlb=kinds["iotlb"],
        device_iotlb=kinds["device-iotlb"],
        interrupts=kinds["interrupt"],
        waits=kinds["wait"],
        context_devices=by_source("context"),
        device_iotlb_devices=by_source("device-iotlb"),
        iotlb_domains={str(domain): number for domain, number in sorted(domains.items())},
        iotlb_pages=sum(each.kind == "iotlb" and each.granularity == "page" for each in found),
        iotlb_global=sum(each.kind == "iotlb" and each.granularity == "global" for each in found),
        faults=sum(event.name == _FAULT for event in events),
    )
