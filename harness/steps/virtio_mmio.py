"""Verbs for the domain's side of virtio-mmio: raw accesses to its windows, and what its drivers got.

Raw accesses need a window that no driver has claimed.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from harness.scenario.model import DomainRef
from harness.steps.base import Context, Evidence, Params, verb
from harness.steps.ioeventfd import OfBackend, Window, ask
from harness.validate import fault

_WIDTHS = (1, 2, 4, 8)
_Vcpu = Annotated[int, Field(ge=0, lt=8)]
_Count = Annotated[int, Field(ge=1, le=100_000)]
_Traffic = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]


class InDomain(Params):
    """Which domain."""

    domain: DomainRef = "guest"


class Notify(InDomain):
    """A queue's number, or any other value of any width at any place in the window; how often, and by which vCPU."""

    window: Window = 0
    queue: Annotated[int, Field(ge=0, lt=1 << 64, description="the value")] = 0
    offset: Annotated[int, Field(ge=0, lt=0x200)] = 0x50
    size: int = 4
    count: _Count = 1
    vcpu: _Vcpu | None = None
    pause_s: Annotated[float, Field(ge=0, le=1, description="between accesses; it does not count")] = 0
    timeout_s: Annotated[float, Field(gt=0, le=600)] = 30

    @model_validator(mode="after")
    def _is_an_access(self) -> Notify:
        if self.size not in _WIDTHS or self.offset % self.size:
            raise fault(f"an access has a size of {_WIDTHS} and lies at a multiple of it")
        if self.queue >= 1 << 8 * self.size:
            raise fault(f"{self.queue} does not fit into {self.size} bytes")
        return self


class Accessed(Evidence):
    """How many accesses were made, what reads gave (of 16 at most), and how long all of them took in the guest."""

    count: int
    read: list[int]
    seconds: float
    microseconds_each: float


def _access(context: Context, params: Notify, value: int | None) -> Accessed:
    names = ("window", "offset", "size", "count", "vcpu", "pause_s")
    arguments = {name: getattr(params, name) for name in names}
    answer = context.call("mmio.access", layer=params.domain, timeout_s=params.timeout_s, value=value, **arguments)
    return Accessed(**answer, microseconds_each=round(answer["seconds"] * 1e6 / answer["count"], 1))


@verb("virtio_mmio.notify")
def notify(context: Context, params: Notify) -> Accessed:
    """Write to a window from inside the domain; each write ends when somebody has completed it."""
    return _access(context, params, params.queue)


@verb("virtio_mmio.read")
def read(context: Context, params: Notify) -> Accessed:
    """Read from a window from inside the domain."""
    return _access(context, params, None)


class Burst(InDomain):
    """For each vCPU the queue that it notifies, and how often each does."""

    queues: Annotated[dict[str, Annotated[int, Field(ge=0, lt=1 << 16)]], Field(min_length=1, max_length=8)]
    count: _Count = 1000
    window: Window = 0
    timeout_s: Annotated[float, Field(gt=0, le=600)] = 60


class Bursted(Evidence):
    """How often each vCPU has notified, and how long all of it took."""

    done: dict[str, int]
    seconds: float


@verb("virtio_mmio.burst")
def burst(context: Context, params: Burst) -> Bursted:
    """Notify from several vCPUs at once, as fast as they can."""
    arguments = params.model_dump(include={"queues", "count", "window"})
    return Bursted(**context.call("mmio.burst", layer=params.domain, timeout_s=params.timeout_s, **arguments))


class Traffic(InDomain):
    """A name for it; the queue that is notified, and by which vCPU."""

    traffic: _Traffic = "traffic"
    queue: Annotated[int, Field(ge=0, lt=1 << 16)] = 0
    vcpu: _Vcpu = 1
    window: Window = 0


@verb("virtio_mmio.start")
def start(context: Context, params: Traffic) -> None:
    """Notify without end, in the background."""
    arguments = params.model_dump(include={"queue", "vcpu", "window"})
    context.call("mmio.start", layer=params.domain, name=params.traffic, **arguments)


class Finish(InDomain):
    """What is to end."""

    traffic: _Traffic = "traffic"


class Finished(Evidence):
    """How often it has notified."""

    done: int


@verb("virtio_mmio.finish")
def finish(context: Context, params: Finish) -> Finished:
    """End what notifies in the background."""
    return Finished(**context.call("mmio.finish", layer=params.domain, name=params.traffic))


class Interrupts(Evidence):
    """Interrupts of the domain's virtio devices, each and together."""

    devices: dict[str, int]
    total: int


@verb("virtio_mmio.interrupts")
def interrupts(context: Context, params: InDomain) -> Interrupts:
    """How many interrupts the domain's virtio drivers have had (/proc/interrupts)."""
    return Interrupts(**context.call("mmio.interrupts", layer=params.domain))


class ReadRng(InDomain, OfBackend):
    """How much to read, and how often; and the window whose backend's bytes they must be."""

    size: Annotated[int, Field(ge=1, le=64)] = 16
    count: Annotated[int, Field(ge=1, le=1000)] = 10
    window: Window = 0


class Random(Evidence):
    """How many bytes were read, how many of the reads are the backend's bytes, and whether any came twice."""

    read: int
    genuine: int
    reads: int
    repeated: int


@verb("virtio_mmio.read_rng")
def read_rng(context: Context, params: ReadRng) -> Random:
    """Read from the domain's /dev/hwrng, and look for what was read in what the backend gave."""
    answer = context.call("mmio.read_hwrng", layer=params.domain, size=params.size, count=params.count)
    given = "".join(ask(context, params.backend, "served_rng", window=params.window, size=64)["requests"])
    reads: list[str] = answer["reads"]
    return Random(
        read=sum(map(len, reads)) // 2,
        reads=len(reads),
        genuine=sum(text in given for text in reads),
        repeated=len(reads) - len(set(reads)),
    )


class Disk(InDomain, OfBackend):
    """Sectors of a disk, the window that it is in, and a number to make what is written first from, if anything is."""

    window: Window = 0
    seed: Annotated[int, Field(ge=0)] | None = None
    device: Annotated[str, Field(pattern=r"^/dev/[a-z0-9]{1,16}$")] = "/dev/vda"
    sector: Annotated[int, Field(ge=0, lt=256)] = 0
    count: Annotated[int, Field(ge=1, le=64)] = 8


class DiskSeen(Evidence):
    """The SHA-256 of what was read, and of what the backend's disk holds there."""

    guest: str
    backend: str


@verb("virtio_mmio.disk")
def disk(context: Context, params: Disk) -> DiskSeen:
    """Read sectors in the domain, past its page cache, and compare them with the backend's disk."""
    where = params.model_dump(include={"sector", "count"})
    if params.seed is not None:
        context.call("mmio.disk", layer=params.domain, device=params.device, seed=params.seed, **where)
    guest = context.call("mmio.disk", layer=params.domain, device=params.device, **where)
    held = ask(context, params.backend, "disk", window=params.window, **where)
    return DiskSeen(guest=guest["sha256"], backend=held["sha256"])
