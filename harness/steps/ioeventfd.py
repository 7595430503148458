"""Verbs for privcmd's ioeventfd and irqfd: backends in dom0, what they assign, and what they count.

A *backend* is a process in dom0 (``harness/probes/backend.py``) with an ioreq server for one domain; ``backend: main``
serves the domain ``guest`` unless a step says otherwise. Eventfds are known by names. Most parameters of an assignment
are there to be set wrong on purpose.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from harness.errors import GuestError, Unsupported
from harness.guest.probe import ProbeError
from harness.scenario.model import DomainRef
from harness.steps.base import Context, Evidence, Params, verb

FEATURE = "ioeventfd"

#: ENOSYS, EOPNOTSUPP, ENOTTY: errno.h of Linux. Without ioreq servers Xen answers with one of the first two.
_NO_SERVERS = (38, 95)
_NO_EVENTFD = ("ENOTSUP", "EOPNOTSUPP", "ENOTTY")
_Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
U16 = Annotated[int, Field(ge=0, lt=1 << 16)]
U32 = Annotated[int, Field(ge=0, lt=1 << 32)]
U64 = Annotated[int, Field(ge=0, lt=1 << 64)]
Window = Annotated[int, Field(ge=0, lt=4, description="one of the domain's virtio-mmio devices")]
_Eventfd = Annotated[
    _Name | Annotated[int, Field(ge=-1, le=1 << 20)],
    Field(description="a name; a number is given to the kernel as it is, and `file` stands for a file that is none"),
]


class OfBackend(Params):
    """Which backend."""

    backend: _Name = "main"


def ask(context: Context, backend: str, operation: str, **arguments: Any) -> dict[str, Any]:
    """Let a backend do something, and give what it says."""
    answer: dict[str, Any] = context.call("backend.call", backend=backend, operation=operation, **arguments)
    return answer


# -- backends ---------------------------------------------------------------------------------------------------


class Serve(OfBackend):
    """Whom it serves, and what it has in each of the domain's windows."""

    domain: DomainRef = "guest"
    devices: Annotated[list[Literal["none", "rng", "block"]], Field(min_length=1, max_length=4)] = ["none"]
    interrupts: Annotated[
        Literal["dm_op", "irqfd"], Field(description="how devices raise theirs; irqfds are assigned at once")
    ] = "dm_op"
    page: Annotated[
        Literal["own", "shared"], Field(description="whether other backends map their requests at the same address")
    ] = "own"


class Served(Evidence):
    """The ioreq server's number, and how many vCPUs the domain has."""

    server: int
    vcpus: int


@verb("ioeventfd.serve")
def serve(context: Context, params: Serve) -> Served:
    """Start a backend in dom0: create an ioreq server for a domain and enable it."""
    try:
        answer = context.call(
            "backend.start",
            backend=params.backend,
            domain=params.domain,
            devices=list(params.devices),
            page=params.page,
        )
    except ProbeError as error:
        if error.errno not in _NO_SERVERS:
            raise
        hypervisor = context.testbed.versions["hypervisor"]
        raise Unsupported(
            f"the hypervisor ({hypervisor}) has no ioreq servers",
            hint="boot one that is built with IOREQ_SERVER: hypervisor: xen-ioreq",
        ) from error
    told = ask(context, params.backend, "ioeventfd", eventfd=-1, queue=0, flags=0xFFFF)["error"]
    if told in _NO_EVENTFD:
        raise Unsupported(
            f"dom0's xen_privcmd has no ioeventfd ({told}): it was built without CONFIG_XEN_PRIVCMD_EVENTFD",
            hint="load the one that is built with it: load: [dom0: xen_privcmd]",
        )
    if params.interrupts == "irqfd":
        for window in range(len(params.devices)):
            refused = ask(context, params.backend, "irqfd", eventfd=f"irq{window}", window=window)["error"]
            if refused:
                raise GuestError(f"the kernel refuses the irqfd for window {window}: {refused}", layer="dom0")
    return Served(server=answer["server"], vcpus=answer["vcpus"])


class End(OfBackend):
    """Whether it is killed with all that it has assigned."""

    kill: bool = False


class Ended(Evidence):
    """How many ports dom0's kernel has bound for ioeventfds afterwards."""

    interrupts: int


@verb("ioeventfd.end")
def end(context: Context, params: End) -> Ended:
    """End a backend: deassign all and destroy the server, or die."""
    return Ended(**context.call("backend.end", backend=params.backend, kill=params.kill))


class Restrict(OfBackend):
    """A name for the file, and the domain that it is restricted to."""

    file: _Name
    domain: DomainRef = "guest"


class Outcome(Evidence):
    """The name of the errno; empty when it was done."""

    error: str


@verb("privcmd.open_restricted")
def open_restricted(context: Context, params: Restrict) -> Outcome:
    """Open /dev/xen/privcmd once more, for one domain only (IOCTL_PRIVCMD_RESTRICT)."""
    return Outcome(**ask(context, params.backend, "open_restricted", file=params.file, domain=params.domain))


# -- ioeventfd --------------------------------------------------------------------------------------------------


class Ioeventfd(OfBackend):
    """struct privcmd_ioeventfd; the address is the window's plus ``offset``, unless ``address`` says it."""

    eventfd: _Eventfd = "q0"
    queue: U32 = 0
    window: Window = 0
    offset: Annotated[int, Field(ge=0, lt=0x1000)] = 0
    address: U64 | None = None
    addr_len: U32 = 4
    vcpus: Annotated[U32 | None, Field(description="as many as the domain has by default")] = None
    flags: U32 = 0
    domain: DomainRef | None = None
    ports: Literal["bound", "null"] = "bound"
    ioreq_page: Literal["mapped", "above", "elsewhere"] = "mapped"
    structure: Literal["good", "bad"] = "good"
    file: _Name = "main"
    like_read: Annotated[
        bool, Field(description="the queue is what the last read carried where a write has its value")
    ] = False


class Assigned(Outcome):
    """The name of the errno, and how many ports dom0's kernel has bound for ioeventfds afterwards."""

    interrupts: int


def _ioeventfd(context: Context, params: Ioeventfd, flags: int) -> Assigned:
    arguments = params.model_dump(exclude={"backend"})
    return Assigned(**ask(context, params.backend, "ioeventfd", **{**arguments, "flags": params.flags | flags}))


@verb("ioeventfd.assign")
def assign(context: Context, params: Ioeventfd) -> Assigned:
    """IOCTL_PRIVCMD_IOEVENTFD: an eventfd for the notifications of a queue."""
    return _ioeventfd(context, params, 0)


@verb("ioeventfd.deassign")
def deassign(context: Context, params: Ioeventfd) -> Assigned:
    """IOCTL_PRIVCMD_IOEVENTFD with PRIVCMD_IOEVENTFD_FLAG_DEASSIGN."""
    return _ioeventfd(context, params, 1)


# -- irqfd ------------------------------------------------------------------------------------------------------


class Irqfd(OfBackend):
    """struct privcmd_irqfd, with an operation that raises the window's interrupt unless ``irq`` names another."""

    eventfd: _Eventfd = "irq"
    window: Window = 0
    flags: U32 = 0
    domain: DomainRef | None = None
    irq: U32 | None = None
    size: Annotated[U32 | None, Field(description="of the operation; its own by default")] = None
    structure: Literal["good", "bad"] = "good"
    dm_op: Literal["good", "bad"] = "good"
    file: _Name = "main"


def _irqfd(context: Context, params: Irqfd, flags: int) -> Outcome:
    arguments = params.model_dump(exclude={"backend"})
    return Outcome(**ask(context, params.backend, "irqfd", **{**arguments, "flags": params.flags | flags}))


@verb("irqfd.assign")
def irqfd_assign(context: Context, params: Irqfd) -> Outcome:
    """IOCTL_PRIVCMD_IRQFD: an eventfd that raises an interrupt of the domain."""
    return _irqfd(context, params, 0)


@verb("irqfd.deassign")
def irqfd_deassign(context: Context, params: Irqfd) -> Outcome:
    """IOCTL_PRIVCMD_IRQFD with PRIVCMD_IRQFD_FLAG_DEASSIGN."""
    return _irqfd(context, params, 1)


class Signal(OfBackend):
    """An eventfd, and how often it is written to."""

    eventfd: _Name = "irq"
    count: Annotated[int, Field(ge=1, le=10000)] = 1


class Signalled(Evidence):
    """What the eventfd still held afterwards: 0 when the kernel has read it."""

    value: int


@verb("irqfd.signal")
def signal(context: Context, params: Signal) -> Signalled:
    """Write to an eventfd."""
    return Signalled(**ask(context, params.backend, "signal", eventfd=params.eventfd, count=params.count))


class Close(OfBackend):
    """Which eventfd."""

    eventfd: _Name = "irq"


@verb("irqfd.close")
def close(context: Context, params: Close) -> None:
    """Close an eventfd without deassigning it."""
    ask(context, params.backend, "close_eventfd", eventfd=params.eventfd)


# -- counts -----------------------------------------------------------------------------------------------------


class Counts(Evidence):
    """What a backend has seen since it was started.

    ``eventfds`` are notifications that the kernel delivered, by eventfd. ``returned`` requests were not the kernel's
    and came back to user space, by vCPU and by kind (``write 4 at 0x2000050 0x1``); ``notifications`` are those of them
    that went to a notification register. ``missed`` ones were the kernel's, were not delivered in time and were
    completed by force. ``served`` and ``interrupts`` are the devices' own: requests in their queues, and interrupts.
    """

    eventfds: dict[str, int]
    missed: int
    missed_by_vcpu: list[int]
    events: list[int]
    returned: int
    returned_by_vcpu: list[int]
    notifications: int
    kinds: dict[str, int]
    served: int
    interrupts: int


@verb("ioeventfd.counts")
def counts(context: Context, params: OfBackend) -> Counts:
    """What a backend has counted."""
    return Counts(**ask(context, params.backend, "counts"))
