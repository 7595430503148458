"""From a machine profile to QEMU's command line. Pure: values in, values out, no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from harness.scenario.dmar import Dmar
from harness.validate import fault

Scalar = bool | int | str
AcceleratorName = Literal["kvm", "tcg"]

#: QEMU's names for the architectures, by Debian's.
QEMU_BINARIES = {
    "amd64": "qemu-system-x86_64",
    "arm64": "qemu-system-aarch64",
    "ppc64el": "qemu-system-ppc64",
}

#: QEMU has no reason to start processes, gain privileges or change its scheduling.
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

#: The guest's address on slirp's network (QEMU's documentation, "user networking").
GUEST_ADDRESS = "10.0.2.15"

SSH_PORT = 22
#: Where a guest takes connections on a profile's further networks.
EXCHANGE_PORT = 7

#: Where a dom0's kernel and initramfs lie for Xen on the arm64 board, whose memory begins at 1 GiB: clear of Xen.
_LOADER_KERNEL = "0x49000000"
_LOADER_INITRD = "0x4e000000"
#: Where GRUB puts the root of the ACPI tables that it has changed. Left to itself, a PV dom0 finds the firmware's own
#: tables, which tell of an IOMMU that Xen keeps for itself, and panics.
_REPLACED_TABLES = "acpi_rsdp=0x9f100"
#: The loader of a hypervisor that is a program of its own, and its recipe in ``images/bootloaders/``.
GRUB: Literal["grub"] = "grub"
#: QEMU's ids, drivers and properties. Nothing escapes a name, so it must not need that.
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
PciAddress = Annotated[str, Field(pattern=r"^[0-9a-f]{2}:[01][0-9a-f]\.[0-7]$")]
#: What Xen says last before it lets dom0 run.
_DOM0_BUILT = "*** Serial input to DOM0 (type 'CTRL-a' three times to switch input)"
_Event = Annotated[str, Field(pattern=r"^[a-z0-9_]+\*?$")]
_PROPERTY_TYPES: dict[str, type] = {"bool": bool, "int": int, "str": str}


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Device(_Strict):
    """One ``-device`` of a profile; its key in the profile is its QEMU id.

    ``settable`` names the properties that a scenario may set in ``boot.devices``, with their types. ``unsaved`` is the
    PCI id (``vendor:device``, in hexadecimal) of a device whose state QEMU does not save with the machine's. ``first``
    puts it before all others, as it must be with what they look for when they are made: an IOMMU.
    """

    driver: _Name
    unsaved: Annotated[str, Field(pattern=r"^[0-9a-f]{4}:[0-9a-f]{4}$")] | None = None
    properties: dict[_Name, Scalar] = {}
    first: bool = False
    settable: dict[_Name, Literal["bool", "int", "str"]] = {}

    def settable_types(self) -> dict[str, type]:
        """The settable properties with their Python types."""
        return {name: _PROPERTY_TYPES[kind] for name, kind in self.settable.items()}


class Cpu(_Strict):
    """The CPU model for each accelerator, as ``-cpu`` takes it, and what else a scenario may choose under TCG."""

    tcg: str
    kvm: str = "host"
    choices: list[str] = []


class Node(_Strict):
    """A NUMA node: its memory, and how many of the machine's CPUs it has at most; they go to the nodes in order."""

    memory_mib: Annotated[int, Field(ge=64, le=65536)]
    vcpus: Annotated[int, Field(ge=0, le=64)] = 0


class Drive(_Strict):
    """A disk's contents: a file of each run's own, full of bytes that tell where they are from."""

    size_mib: Annotated[int, Field(ge=1, le=1024)]


class Hypervisor(_Strict):
    """Xen under a machine's kernel, which is then dom0's.

    ``names`` are recipes in ``images/hypervisors/``, the default first; ``args`` are Xen's own, beside those that
    follow from other keys; ``tools`` is the root file system that is added to dom0's. ``domain_types`` are those that a
    scenario's domains can have, the default first, where there is a choice; ``virtio_mmio`` says whether domains can
    have virtio-mmio devices, and ``domain_args`` are the arguments of their kernels. ``assignable`` are the devices
    that a domain can have to itself, with their PCI addresses.
    """

    names: Annotated[list[str], Field(min_length=1)]
    loader: Literal["multiboot", "guest-loader", "grub"]
    args: list[str]
    dom0_memory_mib: Annotated[int, Field(ge=256)]
    tools: str
    domain_types: list[Literal["pv", "pvh"]] = []
    domain_args: list[str] = []
    virtio_mmio: bool = False
    assignable: dict[_Name, PciAddress] = {}

    @property
    def command_line(self) -> str:
        """Xen's command line."""
        return " ".join((f"dom0_mem={self.dom0_memory_mib}M,max:{self.dom0_memory_mib}M", *self.args))


class Profile(_Strict):
    """A kind of machine: one file in ``images/machines/``.

    Timeouts are meant for KVM; under TCG they are multiplied by ``tcg_factor``. ``tcg_thread`` says whether emulated
    CPUs get a host thread each. ``networks`` are further ones, for ``devices`` to name in ``netdev``, and so are
    ``drives``; on such a network the guest has :data:`EXCHANGE_PORT` in place of SSH's. ``boot_trace`` names QEMU's
    trace events that are on from its start. ``small_kernel`` names files in ``images/configs/``, applied over
    ``tinyconfig`` in order: what a kernel is compiled of that is under test as a patch or a tree.
    """

    summary: str
    arch: Literal["amd64", "arm64", "ppc64el"]
    machine: str
    cpu: Cpu
    kernels: Annotated[list[str], Field(min_length=1)]
    rootfs: str
    memory_mib: Annotated[int, Field(ge=64, le=65536)]
    vcpus: Annotated[int, Field(ge=1, le=64)]
    console: str
    kernel_args: list[str] = []
    early_modules: list[str]
    small_kernel: list[str] = []
    tcg_thread: Literal["multi", "single"] = "multi"
    nic: str = "virtio-net-pci,romfile="
    networks: list[_Name] = []
    drives: dict[_Name, Drive] = {}
    devices: dict[_Name, Device] = {}
    nodes: list[Node] = []
    boot_trace: list[_Event] = []
    hypervisor: Hypervisor | None = None
    boot_timeout_s: Annotated[int, Field(ge=1)] = 30
    tcg_factor: Annotated[float, Field(ge=1)] = 4.0

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        total = sum(node.memory_mib for node in self.nodes)
        if self.nodes and total != self.memory_mib:
            raise fault(f"nodes have {total} MiB together, but memory_mib is {self.memory_mib}")
        return self

    @property
    def qemu(self) -> str:
        """The QEMU binary that emulates this machine."""
        return QEMU_BINARIES[self.arch]

    @property
    def layer(self) -> str:
        """What its guest is called: the one that QEMU boots, and that SSH reaches."""
        return "guest" if self.hypervisor is None else "dom0"


def network_address(profile: Profile, network: str) -> str:
    """The guest's address on one of the profile's further networks; each is a subnet of its own, beside the first."""
    return f"10.0.{3 + profile.networks.index(network)}.15"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be booted: a profile with a scenario's wishes applied.

    :param devices: per device id, the properties that the scenario sets.
    :param kernel_args: the scenario's own kernel arguments, after the profile's.
    :param cpu: the CPU model under TCG, where it is not the profile's.
    :param hypervisor_args: the scenario's own arguments for the hypervisor, after the profile's.
    :param dmar: the ACPI table that takes the place of QEMU's.
    :param until: what the console shows when the boot is over; no guest takes commands then.
    :param trace: trace events that are on from QEMU's start, beside the profile's.
    """

    profile: Profile
    kernel: str
    memory_mib: int
    vcpus: int
    kernel_args: tuple[str, ...] = ()
    devices: Mapping[str, Mapping[str, Scalar]] | None = None
    cpu: str | None = None
    hypervisor_args: tuple[str, ...] = ()
    dmar: Dmar | None = None
    until: str | None = None
    trace: tuple[str, ...] = ()

    @classmethod
    def of(cls, profile: Profile) -> Self:
        """A profile's own machine, with its first kernel."""
        return cls(profile, profile.kernels[0], profile.memory_mib, profile.vcpus)

    @property
    def command_line(self) -> str:
        """The kernel's command line."""
        table = () if self.dmar is None else (_REPLACED_TABLES,)
        return " ".join((f"console={self.profile.console}", *self.profile.kernel_args, *table, *self.kernel_args))

    @property
    def ends_before_dom0(self) -> bool:
        """Whether the machine is stopped before dom0 runs: it is to be built, no more."""
        return self.until is not None and self.until in _DOM0_BUILT

    @property
    def hypervisor_line(self) -> str:
        """The hypervisor's command line."""
        assert self.profile.hypervisor is not None, "asked for by those that boot one"
        return " ".join((self.profile.hypervisor.command_line, *self.hypervisor_args))


@dataclass(frozen=True, slots=True)
class Wiring:
    """How the machine is connected to this host.

    :param kernel: path of the kernel image.
    :param initrd: path of the initramfs.
    :param hypervisor: path of the hypervisor, where QEMU loads it.
    :param disk: path of the disk that the machine boots from, where it has a boot loader.
    :param drives: the directory of the profile's drives.
    :param monitor_fd: a connected Unix socket that QEMU inherits and speaks QMP on; None for no monitor.
    :param console_socket: Unix socket on which QEMU serves the console; None for standard input and output.
    :param console_log: file to which QEMU appends all that the console prints.
    :param log: QEMU's log, where its trace events go.
    :param mac: the NIC's address.
    :param incoming: whether QEMU waits for a saved state instead of booting.
    """

    kernel: str
    initrd: str
    mac: str = "52:54:00:12:34:56"
    monitor_fd: int | None = None
    console_socket: str | None = None
    console_log: str | None = None
    log: str | None = None
    hypervisor: str | None = None
    disk: str | None = None
    drives: str = ""
    incoming: bool = False


def escape(value: str) -> str:
    """A value as QEMU's option syntax takes it: commas doubled."""
    return value.replace(",", ",,")


def _options(**options: Scalar) -> str:
    return "".join(f",{name}={_format(value)}" for name, value in options.items())


def _format(value: Scalar) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return escape(str(value))


def _device(name: str, device: Device, wishes: Mapping[str, Scalar]) -> str:
    return f"{device.driver},id={name}" + _options(**{**device.properties, **wishes})


def _connections(wiring: Wiring) -> list[str]:
    argv: list[str] = []
    if wiring.monitor_fd is not None:
        argv += ["-chardev", f"socket,id=monitor,fd={wiring.monitor_fd}", "-mon", "chardev=monitor,mode=control"]
    if wiring.console_socket is None:
        return [*argv, "-serial", "mon:stdio"]
    chardev = f"socket,id=console,path={escape(wiring.console_socket)},server=on,wait=off"
    if wiring.console_log is not None:
        chardev += f",logfile={escape(wiring.console_log)},logappend=on"
    return [*argv, "-chardev", chardev, "-serial", "chardev:console"]


def _nodes(nodes: Sequence[Node], vcpus: int) -> list[str]:
    """The machine's memory and CPUs, as its nodes have them."""
    argv: list[str] = []
    first = 0
    for number, node in enumerate(nodes):
        count = min(node.vcpus, vcpus - first)
        cpus = f",cpus={first}-{first + count - 1}" if count else ""
        argv += ["-object", f"memory-backend-ram,id=node{number},size={node.memory_mib}M"]
        argv += ["-numa", f"node,nodeid={number},memdev=node{number}{cpus}"]
        first += count
    return argv


def _network(name: str, address: str) -> str:
    subnet = f"{address.rpartition('.')[0]}.0/24"
    return f"user,id={name},net={subnet},restrict=on,hostfwd=tcp:127.0.0.1:0-{address}:{EXCHANGE_PORT}"


def _each(option: str, values: Iterable[str]) -> list[str]:
    return [word for value in values for word in (option, value)]


def _boots(plan: Plan, wiring: Wiring) -> list[str]:
    """What QEMU loads, and what it tells it."""
    if wiring.disk is not None:
        drive = f"if=none,id=boot,format=raw,file={escape(wiring.disk)}"
        return ["-drive", drive, "-device", "ide-hd,drive=boot,bus=ide.0,bootindex=0"]
    hypervisor = plan.profile.hypervisor
    if hypervisor is None or wiring.hypervisor is None:
        return ["-kernel", wiring.kernel, "-initrd", wiring.initrd, "-append", plan.command_line]
    argv = ["-kernel", wiring.hypervisor, "-append", plan.hypervisor_line]
    if hypervisor.loader == "multiboot":
        return [*argv, "-initrd", f"{escape(f'{wiring.kernel} {plan.command_line}')},{escape(wiring.initrd)}"]
    kernel = _options(addr=_LOADER_KERNEL, kernel=wiring.kernel, bootargs=plan.command_line)
    initrd = _options(addr=_LOADER_INITRD, initrd=wiring.initrd)
    return [*argv, "-device", f"guest-loader{kernel}", "-device", f"guest-loader{initrd}"]


def qemu_argv(plan: Plan, wiring: Wiring, accelerator: AcceleratorName) -> list[str]:
    """QEMU's whole command line for a machine.

    The guest reaches nothing (``restrict=on``); its SSH server, and its port on each further network, is reached on a
    loopback port that QEMU chooses itself and tells through the monitor (``info usernet``).
    """
    profile = plan.profile
    argv = [profile.qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    argv += ["-sandbox", SANDBOX]
    argv += ["-machine", profile.machine]
    if accelerator == "kvm":
        argv += ["-accel", "kvm", "-cpu", profile.cpu.kvm]
    else:
        argv += ["-accel", f"tcg,thread={profile.tcg_thread}", "-cpu", plan.cpu or profile.cpu.tcg]
    argv += ["-smp", str(plan.vcpus), "-m", str(plan.memory_mib)]
    argv += _nodes(profile.nodes, plan.vcpus)
    wishes = plan.devices or {}
    devices = {name: _device(name, device, wishes.get(name, {})) for name, device in profile.devices.items()}
    argv += _each("-device", (text for name, text in devices.items() if profile.devices[name].first))
    argv += _boots(plan, wiring)
    argv += _connections(wiring)
    argv += ["-netdev", f"user,id=net0,restrict=on,hostfwd=tcp:127.0.0.1:0-:{SSH_PORT}"]
    argv += ["-device", f"{profile.nic},netdev=net0,mac={wiring.mac}"]
    argv += _each("-netdev", (_network(name, network_address(profile, name)) for name in profile.networks))
    argv += _each(
        "-drive", (f"if=none,id={name},format=raw,file={escape(f'{wiring.drives}/{name}')}" for name in profile.drives)
    )
    argv += _each("-device", (text for name, text in devices.items() if not profile.devices[name].first))
    argv += _each("-trace", (*profile.boot_trace, *plan.trace))
    if wiring.log is not None:
        argv += ["-D", wiring.log]
    if wiring.incoming:
        argv += ["-incoming", "defer"]
    return argv
