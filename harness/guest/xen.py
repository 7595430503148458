"""Xen's domains, by way of dom0: ``xl`` over SSH creates and destroys them, xenstore carries calls to their agents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from harness.deadline import Deadline
from harness.errors import GuestHang
from harness.guest.probe import ProbeError, told
from harness.guest.ssh import Ssh

#: How much sooner than the harness dom0 stops waiting for a domain, so that it can say so.
_MARGIN_S = 2.0
#: As the host's kernel and Xen name the ways of virtualization that there is a choice of (xl.cfg(5), ``type``).
PVH = "pvh"
_DIRECTORY = "/run/harness"


class Dom0(Protocol):
    """What a domain needs of the machine that it is in."""

    def ssh(self, deadline: Deadline) -> Ssh:
        """The connection to dom0."""

    def call(self, function: str, *, deadline: Deadline, **arguments: Any) -> Any:
        """Call a probe function in dom0."""


@dataclass(frozen=True, slots=True)
class DomainPlan:
    """A domain that is to be.

    :param kernel: path in dom0, as is ``ramdisk``.
    :param type: ``pv`` or ``pvh``; None where there is no choice.
    :param pci: addresses of devices that it has to itself.
    :param virtio_mmio: how many virtio-mmio devices it has. Their backends are somebody's in dom0.
    """

    name: str
    kernel: str
    ramdisk: str
    command_line: str
    vcpus: int
    memory_mib: int
    type: str | None = None
    virtio_mmio: int = 0
    pci: tuple[str, ...] = ()


def xl_config(plan: DomainPlan) -> str:
    """A domain's configuration as ``xl create`` takes it (xl.cfg(5))."""
    settings: dict[str, str | int | Sequence[str]] = {
        "name": plan.name,
        "kernel": plan.kernel,
        "ramdisk": plan.ramdisk,
        "extra": plan.command_line,
        "memory": plan.memory_mib,
        "vcpus": plan.vcpus,
        "on_poweroff": "destroy",
        "on_reboot": "destroy",
        "on_crash": "preserve",
    }
    if plan.type is not None:
        settings["type"] = plan.type
    if plan.type == PVH:
        settings["tsc_mode"] = "native"  # the emulated one does not work under QEMU's SVM
    if plan.virtio_mmio:
        # The number says nothing here: what kind of device it is, the backend's registers tell.
        settings["virtio"] = ["type=virtio,device4,transport=mmio,grant_usage=0"] * plan.virtio_mmio
    if plan.pci:
        settings["pci"] = list(plan.pci)
    return "".join(f"{name} = {_quoted(value)}\n" for name, value in settings.items())


def _quoted(value: str | int | Sequence[str]) -> str:
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return f'"{value}"'
    return f"[ {', '.join(map(_quoted, value))} ]"


class Domain:
    """One domain. What it is called is all that is remembered of it here: a machine may go on from a saved one."""

    def __init__(self, plan: DomainPlan, dom0: Dom0) -> None:
        self.plan = plan
        self._dom0 = dom0

    @property
    def name(self) -> str:
        """Its name, and its layer's."""
        return self.plan.name

    @property
    def console_log(self) -> str:
        """Where dom0 keeps what it prints (xenconsoled's ``--log-dir``)."""
        return f"/var/log/xen/console/guest-{self.name}.log"

    def create(self, deadline: Deadline) -> None:
        """Create it; it boots on by itself.

        :raises CommandFailed: xl refuses it.
        """
        path = f"{_DIRECTORY}/{self.name}.cfg"
        for address in self.plan.pci:
            # Not again for one that an earlier domain has left: see scenarios/vtd/quarantine-twice.yaml.
            script = 'xl pci-assignable-list | grep -qF "$1" || exec xl pci-assignable-add "$1"'
            self._dom0.ssh(deadline).run(["sh", "-c", script, "sh", address], deadline=deadline)
        # "-e": nobody waits for its end, so it stays to be looked at.
        script = f'mkdir -p {_DIRECTORY} && cat >"$1" && exec xl create -q -e "$1"'
        self._dom0.ssh(deadline).run(
            ["sh", "-c", script, "sh", path], stdin=xl_config(self.plan).encode(), deadline=deadline
        )

    def wait(self, deadline: Deadline) -> int:
        """Wait until it answers, and give its number.

        :raises GuestHang: it does not in time.
        """
        timeout_s = _within(deadline)
        try:
            answer = self._dom0.call("domain.wait", deadline=deadline, domain=self.name, timeout_s=timeout_s)
            return int(answer["id"])
        except ProbeError as error:
            if error.kind != "TimeoutError":
                raise
            raise GuestHang(f"the domain did not come up in {timeout_s:.0f} s", layer=self.name) from error

    def destroy(self, deadline: Deadline) -> None:
        """Destroy it.

        :raises CommandFailed: xl cannot.
        """
        if self.plan.virtio_mmio:
            self._dom0.call("domain.let_go", deadline=deadline, domain=self.name)
        self._dom0.ssh(deadline).run(["xl", "destroy", self.name], deadline=deadline)

    def call(self, function: str, *, deadline: Deadline, **arguments: Any) -> Any:
        """Call a probe function in the domain; raises as :meth:`harness.guest.probe.Probe.call`."""
        try:
            answer: dict[str, Any] = self._dom0.call(
                "domain.call",
                deadline=deadline,
                domain=self.name,
                probe=function,
                arguments=arguments,
                timeout_s=_within(deadline),
            )
        except ProbeError as error:
            if error.kind != "TimeoutError":
                raise
            raise GuestHang(
                f"the probe call {function} did not answer in time ({deadline.what})", layer=self.name
            ) from error
        return told(function, answer, self.name)


def _within(deadline: Deadline) -> float:
    """How long dom0 may wait for a domain."""
    return max(deadline.remaining_s / 2, deadline.remaining_s - _MARGIN_S)
