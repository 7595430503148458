"""Verbs for VFIO on sPAPR TCE IOMMUs: drivers, holders, containers, groups, devices.

Whatever VFIO holds lives in *holders*, processes of the guest's own (``harness/probes/vfio.py``); ``holder: main`` is
there without asking. A container is known by a name, a device as in ``images/machines/pseries.yaml``, its group by its
device.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from harness.steps.base import Context, Evidence, Params, verb

FEATURE = "spapr-tce"

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
_Device = Literal["edu1", "edu2", "edu3", "sibling", "rng"]
U64 = Annotated[int, Field(ge=0, lt=1 << 63)]
U32 = Annotated[int, Field(ge=0, lt=1 << 32)]


class InHolder(Params):
    """Which process does it."""

    holder: Name = "main"


class OfContainer(InHolder):
    """Which container it is done to."""

    container: Name = "c"


class Seen(Evidence):
    """What an ioctl came to.

    ``result`` is what ioctl(2) returned, positive values included; ``error`` the name of its errno, empty when there is
    none. Locked memory is VmLck of the holder in KiB. ``kernel_log`` is what the kernel said meanwhile. A holder that
    ``died`` of the call has no result.
    """

    result: int
    errno: int
    error: str
    locked_before_kib: int
    locked_after_kib: int
    kernel_log: list[str]
    died: bool = False


def in_holder(context: Context, holder: str, operation: str, **arguments: Any) -> dict[str, Any]:
    """Let a holder do something, and give what it says."""
    answer: dict[str, Any] = context.call("vfio.call", timeout_s=30, holder=holder, operation=operation, **arguments)
    return answer


def _container(context: Context, params: OfContainer, operation: str, **arguments: Any) -> dict[str, Any]:
    return in_holder(context, params.holder, operation, container=params.container, **arguments)


# -- drivers ----------------------------------------------------------------------------------------------------


class Bind(Params):
    """A device, and the driver that is to have it; no name for none."""

    device: _Device
    driver: Annotated[str, Field(pattern=r"^[a-z0-9_-]{0,64}$")] = "vfio-pci"


class Bound(Evidence):
    """Who has the device now (empty: nobody), and its IOMMU group (-1: none)."""

    address: str
    driver: str
    group: int
    errno: int


@verb("pci.bind")
def bind(context: Context, params: Bind) -> Bound:
    """Give a PCI device to a driver, or take it from whichever has it."""
    return Bound(**context.call("pci.bind", device=params.device, driver=params.driver))


# -- holders ----------------------------------------------------------------------------------------------------


class Hold(Params):
    """A new process: its limit on locked memory, and whether it may exceed it (CAP_IPC_LOCK)."""

    holder: Name
    memlock_bytes: U64 | None = None
    ipc_lock: bool = True


@verb("vfio.hold")
def hold(context: Context, params: Hold) -> None:
    """Start a process for VFIO calls."""
    context.call("vfio.hold", **params.model_dump())


class Release(Params):
    """Which process ends, and whether it is killed with all it holds."""

    holder: Name = "main"
    kill: bool = False


class Released(Evidence):
    """What the kernel said while it cleaned up."""

    kernel_log: list[str]


@verb("vfio.release")
def release(context: Context, params: Release) -> Released:
    """End a process; the kernel takes back all that it held."""
    return Released(**context.call("vfio.release", holder=params.holder, kill=params.kill))


class Pins(Params):
    """Nothing to set."""


class PinsSeen(Evidence):
    """Pages pinned for DMA since boot, those let go again, and the difference: those held now."""

    acquired: int
    released: int
    held: int


@verb("vfio.pins")
def pins(context: Context, _: Pins) -> PinsSeen:
    """Count the pages that the kernel has pinned for DMA (nr_foll_pin_* of /proc/vmstat)."""
    return PinsSeen(**context.call("vfio.pins"))


# -- containers -------------------------------------------------------------------------------------------------


@verb("vfio.open_container")
def open_container(context: Context, params: OfContainer) -> Seen:
    """Open /dev/vfio/vfio."""
    return Seen(**_container(context, params, "open_container"))


@verb("vfio.close_container")
def close_container(context: Context, params: OfContainer) -> Seen:
    """Close a container's file."""
    return Seen(**_container(context, params, "close_container"))


class CheckExtension(OfContainer):
    """An extension's number (VFIO_SPAPR_TCE_IOMMU is 2, its second version 7)."""

    extension: U32


@verb("vfio.check_extension")
def check_extension(context: Context, params: CheckExtension) -> Seen:
    """VFIO_CHECK_EXTENSION."""
    return Seen(**_container(context, params, "check_extension", extension=params.extension))


class SetIommu(OfContainer):
    """An IOMMU type's number: 2 is sPAPR TCE, 7 its second version."""

    iommu: U32


@verb("vfio.set_iommu")
def set_iommu(context: Context, params: SetIommu) -> Seen:
    """VFIO_SET_IOMMU."""
    return Seen(**_container(context, params, "set_iommu", iommu=params.iommu))


class Setup(OfContainer):
    """A container of a type, with one group in it; whether it is enabled, and its device opened."""

    device: _Device = "edu1"
    iommu: Literal[2, 7]
    enable: bool = False
    open_device: bool = True


class SetUp(Seen):
    """What the last call came to, the first that failed; the device's identity, which is 0x010000ed."""

    failed_in: str = ""
    identity: int = 0


@verb("vfio.setup")
def setup(context: Context, params: Setup) -> SetUp:
    """Open a container and a group, put the one into the other, set the IOMMU type, and so on up to the device."""
    return SetUp(**in_holder(context, params.holder, "setup", **params.model_dump(exclude={"holder"})))


class Forkable(OfContainer):
    """Whether a child of the holder makes the call: another address space, the same file."""

    fork: bool = False


@verb("vfio.enable")
def enable(context: Context, params: Forkable) -> Seen:
    """VFIO_IOMMU_ENABLE (first version only)."""
    return Seen(**_container(context, params, "enable_forked" if params.fork else "enable"))


@verb("vfio.disable")
def disable(context: Context, params: OfContainer) -> Seen:
    """VFIO_IOMMU_DISABLE (first version only)."""
    return Seen(**_container(context, params, "disable"))


class Info(OfContainer):
    """How large a structure the caller claims to have."""

    argsz: U32 = 32


class InfoSeen(Seen):
    """struct vfio_iommu_spapr_tce_info: the default window, and what dynamic windows can be."""

    argsz: int
    flags: int
    start: int
    size: int
    page_sizes: int
    windows: int
    levels: int


@verb("vfio.info")
def info(context: Context, params: Info) -> InfoSeen:
    """VFIO_IOMMU_SPAPR_TCE_GET_INFO."""
    return InfoSeen(**_container(context, params, "info", argsz=params.argsz))


class Raw(OfContainer):
    """An ioctl's number counted from VFIO_BASE, called without an argument."""

    number: U32


@verb("vfio.raw")
def raw(context: Context, params: Raw) -> Seen:
    """Any container ioctl, with a null argument."""
    return Seen(**_container(context, params, "raw", number=params.number))


class Eeh(OfContainer):
    """An operation's number (VFIO_EEH_PE_*)."""

    op: U32 = 0


@verb("vfio.eeh")
def eeh(context: Context, params: Eeh) -> Seen:
    """VFIO_EEH_PE_OP."""
    return Seen(**_container(context, params, "eeh", op=params.op))


# -- groups and devices -----------------------------------------------------------------------------------------


class OfDevice(InHolder):
    """Which device, or the group that it is in."""

    device: _Device = "edu1"


class OpenGroup(InHolder):
    """A device whose group is meant, or a group's number."""

    device: _Device | Annotated[int, Field(ge=0)] = "edu1"


@verb("vfio.open_group")
def open_group(context: Context, params: OpenGroup) -> Seen:
    """Open /dev/vfio/GROUP."""
    return Seen(**in_holder(context, params.holder, "open_group", device=params.device))


@verb("vfio.close_group")
def close_group(context: Context, params: OfDevice) -> Seen:
    """Close a group's file."""
    return Seen(**in_holder(context, params.holder, "close_group", device=params.device))


class StatusSeen(Seen):
    """VFIO_GROUP_FLAGS_VIABLE is 1, _CONTAINER_SET is 2."""

    flags: int


@verb("vfio.group_status")
def group_status(context: Context, params: OfDevice) -> StatusSeen:
    """VFIO_GROUP_GET_STATUS."""
    return StatusSeen(**in_holder(context, params.holder, "group_status", device=params.device))


class InContainer(OfDevice):
    """Which container the group goes to; a name that is not open stands for a bad file descriptor."""

    container: Name = "c"


@verb("vfio.set_container")
def set_container(context: Context, params: InContainer) -> Seen:
    """VFIO_GROUP_SET_CONTAINER."""
    return Seen(**in_holder(context, params.holder, "set_container", device=params.device, container=params.container))


@verb("vfio.unset_container")
def unset_container(context: Context, params: OfDevice) -> Seen:
    """VFIO_GROUP_UNSET_CONTAINER."""
    return Seen(**in_holder(context, params.holder, "unset_container", device=params.device))


class OpenDevice(OfDevice):
    """Through which group (by its device), and under which name; both are the device's own by default."""

    group: _Device | None = None
    name: Annotated[str, Field(pattern=r"^[0-9a-f:.]{1,16}$")] | None = None


class DeviceSeen(Seen):
    """The identity that the device's register gives; QEMU's edu says 0x010000ed."""

    identity: int = 0


@verb("vfio.open_device")
def open_device(context: Context, params: OpenDevice) -> DeviceSeen:
    """VFIO_GROUP_GET_DEVICE_FD; the device may then master the bus."""
    return DeviceSeen(
        **in_holder(context, params.holder, "open_device", device=params.device, group=params.group, name=params.name)
    )


@verb("vfio.close_device")
def close_device(context: Context, params: OfDevice) -> Seen:
    """Close a device's file."""
    return Seen(**in_holder(context, params.holder, "close_device", device=params.device))
