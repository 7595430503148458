"""From a machine profile to QEMU's command line. Pure: values in, values out, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

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

#: Where a dom0's kernel and initramfs lie for Xen on the arm64 board, whose memory begins at 1 GiB: clear of Xen.
_LOADER_KERNEL = "0x49000000"
_LOADER_INITRD = "0x4e000000"
#: QEMU's ids, drivers and properties. Nothing escapes a name, so it must not need that.
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
_PROPERTY_TYPES: dict[str, type] = {"bool": bool, "int": int, "str": str}


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Device(_Strict):
    """One ``-device`` of a profile; its key in the profile is its QEMU id.

    ``settable`` names the properties that a scenario may set in ``boot.devices``, with their types. ``unsaved`` is the
    PCI id (``vendor:device``, in hexadecimal) of a device whose state QEMU does not save with the machine's.
    """

    driver: _Name
    unsaved: Annotated[str, Field(pattern=r"^[0-9a-f]{4}:[0-9a-f]{4}$")] | None = None
    properties: dict[_Name, Scalar] = {}
    settable: dict[_Name, Literal["bool", "int", "str"]] = {}

    def settable_types(self) -> dict[str, type]:
        """The settable properties with their Python types."""
        return {name: _PROPERTY_TYPES[kind] for name, kind in self.settable.items()}


class Cpu(_Strict):
    """The CPU model for each accelerator, as ``-cpu`` takes it, and what else a scenario may choose under TCG."""

    tcg: str
    kvm: str = "host"
    choices: list[str] = []


class Hypervisor(_Strict):
    """Xen under a machine's kernel, which is then dom0's.

    ``names`` are recipes in ``images/hypervisors/``, the default first; ``args`` are Xen's own, beside those that
    follow from other keys; ``tools`` is the root file system that is added to dom0's. ``domain_types`` are those that a
    scenario's domains can have, the default first, where there is a choice; ``virtio_mmio`` says whether domains can
    have virtio-mmio devices, and ``domain_args`` are the arguments of their kernels.
    """

    names: Annotated[list[str], Field(min_length=1)]
    loader: Literal["multiboot", "guest-loader"]
    args: list[str]
    dom0_memory_mib: Annotated[int, Field(ge=256)]
    tools: str
    domain_types: list[Literal["pv", "pvh"]] = []
    domain_args: list[str] = []
    virtio_mmio: bool = False

    @property
    def command_line(self) -> str:
        """Xen's command line."""
        return " ".join((f"dom0_mem={self.dom0_memory_mib}M,max:{self.dom0_memory_mib}M", *self.args))


class Profile(_Strict):
    """A kind of machine: one file in ``images/machines/``.

    Timeouts are meant for KVM; under TCG they are multiplied by ``tcg_factor``. ``tcg_thread`` says whether emulated
    CPUs get a host thread each.
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
    tcg_thread: Literal["multi", "single"] = "multi"
    nic: str = "virtio-net-pci,romfile="
    devices: dict[_Name, Device] = {}
    hypervisor: Hypervisor | None = None
    boot_timeout_s: Annotated[int, Field(ge=1)] = 30
    tcg_factor: Annotated[float, Field(ge=1)] = 4.0

    @property
    def qemu(self) -> str:
        """The QEMU binary that emulates this machine."""
        return QEMU_BINARIES[self.arch]

    @property
    def layer(self) -> str:
        """What its guest is called: the one that QEMU boots, and that SSH reaches."""
        return "guest" if self.hypervisor is None else "dom0"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be booted: a profile with a scenario's wishes applied.

    :param devices: per device id, the properties that the scenario sets.
    :param kernel_args: the scenario's own kernel arguments, after the profile's.
    :param cpu: the CPU model under TCG, where it is not the profile's.
    """

    profile: Profile
    kernel: str
    memory_mib: int
    vcpus: int
    kernel_args: tuple[str, ...] = ()
    devices: Mapping[str, Mapping[str, Scalar]] | None = None
    cpu: str | None = None

    @property
    def command_line(self) -> str:
        """The kernel's command line."""
        return " ".join((f"console={self.profile.console}", *self.profile.kernel_args, *self.kernel_args))


@dataclass(frozen=True, slots=True)
class Wiring:
    """How the machine is connected to this host.

    :param kernel: path of the kernel image.
    :param initrd: path of the initramfs.
    :param hypervisor: path of the hypervisor, where the machine has one.
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


def _boots(plan: Plan, wiring: Wiring) -> list[str]:
    """What QEMU loads, and what it tells it."""
    hypervisor = plan.profile.hypervisor
    if hypervisor is None or wiring.hypervisor is None:
        return ["-kernel", wiring.kernel, "-initrd", wiring.initrd, "-append", plan.command_line]
    argv = ["-kernel", wiring.hypervisor, "-append", hypervisor.command_line]
    if hypervisor.loader == "multiboot":
        return [*argv, "-initrd", f"{escape(f'{wiring.kernel} {plan.command_line}')},{escape(wiring.initrd)}"]
    kernel = _options(addr=_LOADER_KERNEL, kernel=wiring.kernel, bootargs=plan.command_line)
    initrd = _options(addr=_LOADER_INITRD, initrd=wiring.initrd)
    return [*argv, "-device", f"guest-loader{kernel}", "-device", f"guest-loader{initrd}"]


def qemu_argv(plan: Plan, wiring: Wiring, accelerator: AcceleratorName) -> list[str]:
    """QEMU's whole command line for a machine.

    The guest reaches nothing (``restrict=on``); its SSH server is reached on a loopback port that QEMU
    chooses itself and tells through the monitor (``info usernet``).
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
    argv += _boots(plan, wiring)
    argv += _connections(wiring)
    argv += ["-netdev", f"user,id=net0,restrict=on,hostfwd=tcp:127.0.0.1:0-:{SSH_PORT}"]
    argv += ["-device", f"{profile.nic},netdev=net0,mac={wiring.mac}"]
    wishes = plan.devices or {}
    for name, device in profile.devices.items():
        argv += ["-device", _device(name, device, wishes.get(name, {}))]
    if wiring.log is not None:
        argv += ["-D", wiring.log]
    if wiring.incoming:
        argv += ["-incoming", "defer"]
    return argv
