"""Verbs for VFIO on sPAPR TCE IOMMUs, continued: memory, mappings, windows, and the DMA that proves them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.steps.base import Context, Evidence, verb
from harness.steps.spapr_tce import U32, U64, Forkable, InHolder, Name, OfContainer, OfDevice, Seen, in_holder

#: include/uapi/linux/vfio.h: VFIO_DMA_MAP_FLAG_READ and _WRITE
_ACCESS = {"read": 1, "write": 2, "both": 3, "none": 0}


# -- memory -----------------------------------------------------------------------------------------------------


class OfMemory(InHolder):
    """Which of the holder's blocks of memory."""

    memory: Name = "m"


class AllocateMemory(OfMemory):
    """How large the block is, and whether it is of huge pages (2 MiB)."""

    size: U64
    huge: bool = False


@verb("vfio.allocate")
def allocate(context: Context, params: AllocateMemory) -> None:
    """Allocate and touch a block of memory in a holder."""
    in_holder(context, params.holder, "allocate", **params.model_dump(exclude={"holder"}))


@verb("vfio.protect")
def protect(context: Context, params: OfMemory) -> None:
    """Let the holder only read a block from now on."""
    in_holder(context, params.holder, "protect", memory=params.memory)


class PartOfMemory(OfMemory):
    """A part of a block."""

    offset: U64 = 0
    size: U64


@verb("vfio.punch")
def punch(context: Context, params: PartOfMemory) -> None:
    """Unmap a part of a block from the process: a hole."""
    in_holder(context, params.holder, "punch", **params.model_dump(exclude={"holder"}))


class Patterned(PartOfMemory):
    """Which pattern; its bytes are never 0."""

    seed: U32


@verb("vfio.fill")
def fill(context: Context, params: Patterned) -> None:
    """Write a pattern into memory."""
    in_holder(context, params.holder, "fill", **params.model_dump(exclude={"holder"}))


class Compared(Evidence):
    """How many bytes are the pattern's, and how many are 0."""

    same: int
    zero: int


@verb("vfio.compare")
def compare(context: Context, params: Patterned) -> Compared:
    """Compare memory with a pattern, byte by byte."""
    answer = in_holder(context, params.holder, "compare", **params.model_dump(exclude={"holder"}))
    return Compared(same=answer["same"], zero=answer["zero"])


class Register(OfContainer):
    """A part of a block of memory, and what the structure claims."""

    memory: Name = "m"
    offset: U64 = 0
    size: U64
    argsz: U32 = 24
    flags: U32 = 0


@verb("vfio.register")
def register(context: Context, params: Register) -> Seen:
    """VFIO_IOMMU_SPAPR_REGISTER_MEMORY (second version)."""
    return Seen(**in_holder(context, params.holder, "register", **params.model_dump(exclude={"holder"})))


@verb("vfio.unregister")
def unregister(context: Context, params: Register) -> Seen:
    """VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY (second version)."""
    return Seen(**in_holder(context, params.holder, "unregister", **params.model_dump(exclude={"holder"})))


# -- mappings and windows ---------------------------------------------------------------------------------------


class Map(Forkable):
    """Memory, where the device sees it, and who may do what; ``flags`` overrides ``access``."""

    memory: Name = "m"
    offset: U64 = 0
    iova: U64
    size: U64
    access: Literal["read", "write", "both", "none"] = "both"
    flags: U32 | None = None
    argsz: U32 = 32


@verb("vfio.map")
def map_dma(context: Context, params: Map) -> Seen:
    """VFIO_IOMMU_MAP_DMA."""
    flags = _ACCESS[params.access] if params.flags is None else params.flags
    arguments = params.model_dump(exclude={"holder", "access", "flags"})
    return Seen(**in_holder(context, params.holder, "map", flags=flags, **arguments))


class Unmap(OfContainer):
    """A range of IOVAs."""

    iova: U64
    size: U64
    flags: U32 = 0
    argsz: U32 = 24


@verb("vfio.unmap")
def unmap_dma(context: Context, params: Unmap) -> Seen:
    """VFIO_IOMMU_UNMAP_DMA."""
    return Seen(**in_holder(context, params.holder, "unmap", **params.model_dump(exclude={"holder"})))


class CreateWindow(OfContainer):
    """The size of its pages as a power of two, its own size in bytes, the levels of its table."""

    page_shift: U32
    window_size: U64
    levels: U32 = 1
    argsz: U32 = 40
    flags: U32 = 0


class WindowSeen(Seen):
    """Where the new window starts."""

    start: int


@verb("vfio.create_window")
def create_window(context: Context, params: CreateWindow) -> WindowSeen:
    """VFIO_IOMMU_SPAPR_TCE_CREATE: a dynamic window."""
    return WindowSeen(**in_holder(context, params.holder, "create_window", **params.model_dump(exclude={"holder"})))


class RemoveWindow(OfContainer):
    """The window's first IOVA."""

    start: U64
    argsz: U32 = 16
    flags: U32 = 0


@verb("vfio.remove_window")
def remove_window(context: Context, params: RemoveWindow) -> Seen:
    """VFIO_IOMMU_SPAPR_TCE_REMOVE."""
    return Seen(**in_holder(context, params.holder, "remove_window", **params.model_dump(exclude={"holder"})))


# -- DMA --------------------------------------------------------------------------------------------------------


class Dma(OfDevice):
    """What the device moves: to its buffer at ``offset``, or from it; told by pwrite, or through the mapped BAR."""

    iova: U64
    size: Annotated[int, Field(ge=1, le=4095)]
    direction: Literal["to-device", "from-device"]
    offset: Annotated[int, Field(ge=0, le=4094)] = 0
    through_bar: bool = False


class DmaSeen(Evidence):
    """Whether the device says that it is done. Whether bytes moved, only memory can tell."""

    completed: bool


@verb("edu.dma")
def dma(context: Context, params: Dma) -> DmaSeen:
    """Let the device copy between guest memory and its own buffer."""
    arguments = params.model_dump(exclude={"holder", "direction"})
    answer = in_holder(context, params.holder, "dma", to_device=params.direction == "to-device", **arguments)
    return DmaSeen(completed=answer["completed"])


class Spot(OfDevice):
    """A place of at least 2048 bytes in memory, and the IOVA at which the device is to find it."""

    memory: Name = "m"
    offset: U64 = 0
    iova: U64


class ControlSeen(Evidence):
    """The device's identity (QEMU's edu says 0x010000ed), and whether a pattern came back."""

    identity: int
    arrived: bool


@verb("edu.control")
def control(context: Context, params: Spot) -> ControlSeen:
    """Send a pattern to the device and back through a mapping; edu.reach then relies on that one."""
    answer = in_holder(context, params.holder, "control", **params.model_dump(exclude={"holder"}))
    return ControlSeen(identity=answer["identity"], arrived=answer["arrived"])


class Reached(Evidence):
    """What the device can do at an IOVA.

    It ``reads`` what memory holds, or only ``zeros``; it ``writes`` there, or leaves memory ``untouched``. All of them
    are false unless patterns came back through edu.control's mapping before and afterwards, which ``control`` says:
    "untouched" means nothing when the device moves no byte anywhere.
    """

    control: bool
    reads: bool
    zeros: bool
    writes: bool
    untouched: bool


@verb("edu.reach")
def reach(context: Context, params: Spot) -> Reached:
    """Let the device read and write at an IOVA, and see in memory what came of it."""
    answer = in_holder(context, params.holder, "reach", **params.model_dump(exclude={"holder"}))
    return Reached(**{name: answer[name] for name in Reached.model_fields})
