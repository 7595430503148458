"""Verbs for Xen's shared buffers with page directories: backends in dom0, and the display's client in a domU.

A backend (``harness/probes/shbuf_backend.py``) is a process of its own in dom0, known by its device: ``vdispl`` is a
display, ``vsnd`` a sound card. It serves its frontend while steps drive a client in the domU, and does wrong what
``shbuf.behave`` tells it to. A buffer is known by a name on both sides.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from pydantic import Field

from harness.steps.base import Context, Evidence, Params, verb

FEATURE = "pgdir-shbuf"

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
Device = Literal["vdispl", "vsnd"]
Seed = Annotated[int, Field(ge=0, lt=1 << 32)]
Pages = Annotated[int, Field(ge=1, le=65536)]
Timeout = Annotated[float, Field(gt=0, le=600, description="seconds under KVM; emulation gets more")]
_Operation = Annotated[str, Field(pattern=r"^[a-z_]{1,32}$")]
DISPLAY: Literal["vdispl"] = "vdispl"
SOUND: Literal["vsnd"] = "vsnd"


class _Domains:
    """Which domU each backend serves."""

    def __init__(self) -> None:
        self.of: dict[str, str] = {}


def domain_of(context: Context, device: str) -> str:
    """The domU that a backend serves: the clients run there."""
    return context.keep(_Domains, _Domains).of.get(device, "guest")


def in_backend(context: Context, device: str, operation: str, **arguments: object) -> dict[str, Any]:
    """Let a backend do something, and give what it says."""
    answer: dict[str, Any] = context.call(
        "shbuf_backend.call", layer="dom0", kind=device, operation=operation, arguments=arguments
    )
    return answer


# -- backends ---------------------------------------------------------------------------------------------------


class StartBackend(Params):
    """Which device for which domU, and what it offers; ``gntalloc_limit`` is how many pages dom0 may grant."""

    device: Device = DISPLAY
    domain: Name = "guest"
    be_alloc: bool = False
    resolution: Annotated[str, Field(pattern=r"^\d{1,4}x\d{1,4}$")] = "1024x768"
    buffer_bytes: Annotated[int, Field(ge=4096, le=1 << 26)] = 1 << 22
    gntalloc_limit: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    timeout_s: Timeout = 20


class Status(Evidence):
    """Where both ends are (xenbus states: 4 is connected), what was asked by operation, and what is held now."""

    backend_state: int
    frontend_state: int
    connected: bool
    connections: int
    requests: dict[str, int]
    events_sent: int
    events_pending: int
    buffers: int
    pages_mapped: int


class Started(Status):
    """The same, with the module that drives the frontend and those that use the helper module."""

    module: str
    helper_users: list[str]
    seconds: float


@verb("shbuf.start")
def start(context: Context, params: StartBackend) -> Started:
    """Start a backend in dom0 and wait until its frontend is connected."""
    context.keep(_Domains, _Domains).of[params.device] = params.domain
    options: dict[str, object] = {"buffer_size": params.buffer_bytes}
    if params.device == DISPLAY:
        options = {"be_alloc": params.be_alloc, "resolution": params.resolution}
    began = time.monotonic()
    answer = context.call(
        "shbuf_backend.start",
        layer="dom0",
        timeout_s=params.timeout_s + 10,
        kind=params.device,
        domain=params.domain,
        patience_s=params.timeout_s * context.machine.time_factor,
        gntalloc_limit=params.gntalloc_limit,
        **options,
    )
    front = context.call("frontend.describe", layer=params.domain, kind=params.device)
    return Started(**answer, **front, seconds=round(time.monotonic() - began, 3))


class OfDevice(Params):
    """Whose backend."""

    device: Device = DISPLAY


class Behave(OfDevice):
    """What the backend does wrong from now on; what is not said, it does right.

    ``refuse`` answers operations with a status such as -12; ``silent`` leaves them unanswered; ``keep`` lets pages stay
    mapped that the frontend wants back; ``bogus_from`` gives the frontend references that no grant has for the
    backend's own pages from that one on; without ``events``, no page flip is told to be complete.
    """

    refuse: dict[_Operation, Annotated[int, Field(ge=-4095, le=-1)]] = {}
    silent: list[_Operation] = []
    keep: bool = False
    bogus_from: Annotated[int, Field(ge=0)] | None = None
    events: bool = True


@verb("shbuf.behave")
def behave(context: Context, params: Behave) -> None:
    """Tell a backend what to do wrong."""
    in_backend(context, params.device, "behave", **params.model_dump(exclude={"device"}))


class AskStatus(OfDevice):
    """Whether to wait until both ends are connected (or are not)."""

    connected: bool | None = None
    timeout_s: Timeout = 10


@verb("shbuf.status")
def status(context: Context, params: AskStatus) -> Status:
    """Ask a backend what it has seen and what it holds."""
    if params.connected is None:
        return Status(**in_backend(context, params.device, "status"))
    return Status(
        **context.call(
            "shbuf_backend.wait_status",
            layer="dom0",
            timeout_s=params.timeout_s + 10,
            kind=params.device,
            field="connected",
            value=params.connected,
            patience_s=params.timeout_s * context.machine.time_factor,
        )
    )


class Requests(Evidence):
    """What the frontend asked since the last look, oldest first: operation, channel, status, and what it said."""

    log: list[dict[str, Any]]
    operations: list[str]


@verb("shbuf.requests")
def requests(context: Context, params: OfDevice) -> Requests:
    """Look at the requests that a backend has seen."""
    log = in_backend(context, params.device, "take_log")["log"]
    return Requests(log=log, operations=[entry["operation"] for entry in log])


class Dropped(Evidence):
    """How many pages those were."""

    pages: int


@verb("shbuf.drop_kept")
def drop_kept(context: Context, params: OfDevice) -> Dropped:
    """Let a backend unmap the pages that it kept on purpose."""
    return Dropped(**in_backend(context, params.device, "drop_kept"))


class CloseBackend(OfDevice):
    """How long the frontend has for it."""

    timeout_s: Timeout = 10


class Closed(Evidence):
    """Whether the frontend let go, and its state then."""

    gone: bool
    frontend_state: int


@verb("shbuf.close")
def close(context: Context, params: CloseBackend) -> Closed:
    """Close a device in an orderly way; the backend's process stays."""
    patience_s = params.timeout_s * context.machine.time_factor
    return Closed(**in_backend(context, params.device, "close", patience_s=patience_s))


class StopBackend(OfDevice):
    """Whether it is killed."""

    kill: bool = True


class Ended(Evidence):
    """The signal that ended the process; 0 for none."""

    signal: int


@verb("shbuf.stop")
def stop(context: Context, params: StopBackend) -> Ended:
    """End a backend's process without a word to its frontend; the kernel takes back what it held."""
    return Ended(**context.call("shbuf_backend.stop", layer="dom0", kind=params.device, kill=params.kill))


class Watched(Params):
    """Whose kernel: a domU's, or dom0's own."""

    domain: Name = "guest"


class Log(Evidence):
    """The kernel's lines since the last look, without their prefix."""

    lines: list[str]


@verb("shbuf.kernel_log")
def kernel_log(context: Context, params: Watched) -> Log:
    """Look at what a kernel has said since the last look."""
    return Log(lines=context.call("kernel_log.new_lines", layer=params.domain, who="scenario"))


# -- buffers ----------------------------------------------------------------------------------------------------


class Directory(Evidence):
    """A buffer's page directory, walked by the backend.

    ``links`` are the references to the next directory page, 0 for none; ``unique_grefs`` counts distinct references to
    pages of the buffer (with those to directory pages, where one domain granted both); ``spare_used`` counts words
    beyond what the directory needs that are not 0; ``fault`` says why the walk or the mapping ended early.
    """

    allocated_by: str
    size: int
    pages: int
    directory_pages: int
    directory_refs: list[int]
    links: list[int]
    grefs: int
    unique_grefs: int
    zero_grefs: int
    spare_used: int
    fault: str


class Compared(Evidence):
    """A buffer compared with a pattern byte by byte; ``first_wrong_page`` is -1 when none is wrong.

    ``died`` is the signal that the client died of meanwhile, as ``SIGBUS``; then no byte was compared.
    """

    bytes: int
    wrong: int
    wrong_pages: int
    first_wrong_page: int
    died: str = ""


NOTHING = Compared(bytes=0, wrong=0, wrong_pages=0, first_wrong_page=-1)
"""The outcome of a comparison that could not be made."""


def adopt(context: Context, device: str, buffer: str) -> Directory | None:
    """The directory of the buffer that the backend was told of last; it has that name from now on."""
    found = in_backend(context, device, "adopt", buffer=buffer)["directory"]
    return None if found is None else Directory(**found)
