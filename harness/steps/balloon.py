"""Verbs for the virtio balloon: what the host asks, what the guest counts, and what QEMU was told page by page.

Sizes are the balloon's own: ``mib: 200`` means that the guest gives up 200 MiB. Pages are the device's pages of
4 KiB (virtio specification, "Traditional Memory Balloon Device").
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Annotated, NoReturn

from pydantic import Field
from tenacity import RetryCallState, Retrying, retry_if_result, wait_fixed

from harness.deadline import Deadline
from harness.errors import CommandFailed, GuestHang
from harness.machine.trace import Tracer
from harness.steps.base import Context, Evidence, Params, verb

FEATURE = "balloon"
PAGE_BYTES = 4096
_TRACE = "virtio_balloon_handle_output"
_TRACE_SIZE = "virtio_balloon_set_config"
_POLL_S = 0.05
_STALL_S = 10.0
_DEVICE = "/machine/peripheral/balloon"
_STATS_QUEUE = 2  # virtio specification, "Traditional Memory Balloon Device": statsq
_Mib = Annotated[int, Field(ge=0, le=65536)]


class HostView:
    """Which pages the balloon holds, as QEMU was told.

    Each trace event names one page on its way in or out, so a page is in the balloon when it was named an odd
    number of times. Migration names the new page and then the old one.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._pages: set[int] = set()
        self._events = 0
        self._attach()

    def _attach(self) -> None:
        self._tracer: Tracer = self._context.machine.tracer
        self._recording = self._context.stack.enter_context(self._tracer.record(_TRACE))

    def refresh(self) -> None:
        """Take in what QEMU logged since the last look. After a restore, QEMU and its tracer are new ones."""
        named = Counter(self._recording.take_field("gpa"))
        self._events += named.total()
        self._pages ^= {int(address, 0) // PAGE_BYTES for address, times in named.items() if times % 2}
        if self._tracer is not self._context.machine.tracer:
            self._attach()

    def pages(self) -> frozenset[int]:
        """The balloon's page frames."""
        self.refresh()
        return frozenset(self._pages)

    def events(self) -> int:
        """How many pages were named so far."""
        self.refresh()
        return self._events


def _view(context: Context) -> HostView:
    return context.keep(HostView, lambda: HostView(context))


class Watch(Params):
    """Nothing to set."""


@verb("balloon.watch")
def watch(context: Context, _: Watch) -> None:
    """Begin to follow what the guest tells QEMU; balloon.pages compares it with the guest."""
    _view(context).refresh()


class Resize(Params):
    """The balloon's new size, and how long it may make no progress before it counts as stalled."""

    mib: _Mib
    stall_s: Annotated[float, Field(gt=0, le=600)] = _STALL_S


class Resized(Evidence):
    """What a change of size did.

    ``inflated`` and ``deflated`` are pages by the guest's counters, ``requested`` and ``actual`` the balloon's size
    in pages as the host asked for it and as the guest reports it, ``mem_total_change_kib`` what became of MemTotal.
    ``settled`` is false when the balloon stalled before it had the size asked for.
    """

    requested: int
    actual: int
    settled: bool
    inflated: int
    deflated: int
    mem_total_change_kib: int
    seconds: float


def _resize(context: Context, params: Resize) -> Resized:
    machine = context.machine
    memory = machine.plan.memory_mib << 20
    if params.mib << 20 > memory:
        raise CommandFailed(f"a balloon of {params.mib} MiB does not fit a machine of {memory >> 20} MiB")
    before = context.call("memory.sample")
    target = memory - (params.mib << 20)
    started = time.monotonic()
    machine.monitor.execute("balloon", {"value": target})
    actual = _wait_for_size(context, target, params.stall_s * machine.time_factor)
    seconds = time.monotonic() - started
    after = context.call("memory.sample", timeout_s=60)
    return Resized(
        requested=(memory - target) // PAGE_BYTES,
        actual=(memory - actual) // PAGE_BYTES,
        settled=actual == target,
        inflated=after["vmstat"]["balloon_inflate"] - before["vmstat"]["balloon_inflate"],
        deflated=after["vmstat"]["balloon_deflate"] - before["vmstat"]["balloon_deflate"],
        mem_total_change_kib=after["meminfo"]["MemTotal"] - before["meminfo"]["MemTotal"],
        seconds=round(seconds, 3),
    )


def _wait_for_size(context: Context, target: int, stall_s: float) -> int:
    """Follow the balloon until it has its size or makes no progress; gives the guest's memory in bytes."""
    progress: list[float] = []  # [bytes, when they last changed]

    def look() -> int:
        context.machine.check()
        context.deadline.check()
        actual = _size(context)
        if not progress or actual != progress[0]:
            progress[:] = [actual, time.monotonic()]
        return actual

    def going_on(actual: int) -> bool:
        return actual != target and time.monotonic() - progress[1] < stall_s

    return Retrying(retry=retry_if_result(going_on), wait=wait_fixed(_POLL_S))(look)


def _size(context: Context) -> int:
    """The guest's memory in bytes, as it told QEMU last."""
    return int(context.machine.monitor.execute("query-balloon")["actual"])


@verb("balloon.inflate")
def inflate(context: Context, params: Resize) -> Resized:
    """Ask for a larger balloon and wait until the guest has given the memory, or gives no more."""
    return _resize(context, params)


@verb("balloon.deflate")
def deflate(context: Context, params: Resize) -> Resized:
    """Ask for a smaller balloon and wait until the guest has taken the memory back."""
    return _resize(context, params)


class Exhaust(Params):
    """How often in a row the driver must have found no page at all before the guest counts as drained."""

    tries: Annotated[int, Field(ge=1, le=100)] = 4


class Exhausted(Evidence):
    """How far the balloon came and back, in pages, as QEMU knows it.

    ``reached`` is the size that the guest reported, ``named`` the pages that it named one by one; ``left`` is the
    size after the memory was given back.
    """

    requested: int
    reached: int
    named: int
    settled: bool
    left: int
    seconds: float


@verb("balloon.exhaust")
def exhaust(context: Context, params: Exhaust) -> Exhausted:
    """Ask for all memory until the guest gives no more, then give all of it back.

    One step, because nothing else can be asked of a guest without a free page: a probe would wake the OOM killer.
    """
    machine = context.machine
    memory = machine.plan.memory_mib << 20
    view = _view(context)
    started = time.monotonic()
    _drain(context, params.tries)
    smallest = _size(context)
    named = len(view.pages())
    machine.monitor.execute("balloon", {"value": memory})
    recovered = _wait_for_size(context, memory, _STALL_S * machine.time_factor)
    return Exhausted(
        requested=(memory - PAGE_BYTES) // PAGE_BYTES,
        reached=(memory - smallest) // PAGE_BYTES,
        named=named,
        settled=smallest == PAGE_BYTES,
        left=(memory - recovered) // PAGE_BYTES,
        seconds=round(time.monotonic() - started, 3),
    )


def _drain(context: Context, tries: int) -> None:
    """Ask for all memory until the driver has tried so often in vain: it tells its size after each try."""
    in_vain = 0

    def drained() -> bool:
        nonlocal in_vain
        for event in sizes.take():
            in_vain = in_vain + 1 if event.number("actual") == event.number("oldactual") else 0
        return in_vain >= tries or _size(context) == PAGE_BYTES

    with context.machine.tracer.record(_TRACE_SIZE) as sizes:
        context.machine.monitor.execute("balloon", {"value": PAGE_BYTES})
        _until(context, drained, context.within(60, "the balloon to drain the guest"))


class ComparePages(Params):
    """Nothing to set."""


class ComparedPages(Evidence):
    """The balloon's pages as the guest flags them (KPF_OFFLINE) and as QEMU was told, compared as sets.

    ``events`` is the number of pages that the guest has named to QEMU since balloon.watch.
    """

    guest: int
    host: int
    only_guest: int
    only_host: int
    events: int
    migrations: int
    inflated: int
    deflated: int


@verb("balloon.pages")
def compare_pages(context: Context, _: ComparePages) -> ComparedPages:
    """Compare the guest's flagged pages with QEMU's trace, page by page."""
    view = _view(context)
    ranges: list[list[int]] = context.call("memory.offline_pages", timeout_s=60)
    in_guest = {frame for start, count in ranges for frame in range(start, start + count)}
    on_host = view.pages()
    vmstat = context.call("memory.vmstat")
    return ComparedPages(
        guest=len(in_guest),
        host=len(on_host),
        only_guest=len(in_guest - on_host),
        only_host=len(on_host - in_guest),
        events=view.events(),
        migrations=vmstat["balloon_migrate"],
        inflated=vmstat["balloon_inflate"],
        deflated=vmstat["balloon_deflate"],
    )


class Stats(Params):
    """Nothing to set."""


class StatsSeen(Evidence):
    """What the guest reports of itself through the balloon's statistics queue, beside its own /proc/meminfo."""

    total_bytes: int
    free_bytes: int
    available_bytes: int
    mem_total_bytes: int
    mem_free_bytes: int
    stats: dict[str, int]


@verb("balloon.stats")
def stats(context: Context, _: Stats) -> StatsSeen:
    """Poll the guest's statistics through QMP (QEMU's docs/interop/virtio-balloon-stats)."""
    monitor = context.machine.monitor
    previous = _stats_sent(context)
    monitor.execute("qom-set", {"path": _DEVICE, "property": "guest-stats-polling-interval", "value": 1})
    deadline = context.within(30, "the balloon's statistics")
    _until(context, lambda: _stats_sent(context) > previous, deadline)
    answer = monitor.execute("qom-get", {"path": _DEVICE, "property": "guest-stats"})
    monitor.execute("qom-set", {"path": _DEVICE, "property": "guest-stats-polling-interval", "value": 0})
    meminfo = context.call("memory.meminfo")
    # QEMU reports a statistic that the guest did not send as 2^64 - 1.
    sent = {name: value for name, value in answer["stats"].items() if 0 <= value < (1 << 63)}
    return StatsSeen(
        total_bytes=sent.get("stat-total-memory", -1),
        free_bytes=sent.get("stat-free-memory", -1),
        available_bytes=sent.get("stat-available-memory", -1),
        mem_total_bytes=meminfo["MemTotal"] * 1024,
        mem_free_bytes=meminfo["MemFree"] * 1024,
        stats=sent,
    )


def _stats_sent(context: Context) -> int:
    """How often the guest has sent its statistics. What QEMU says of when it did is in whole seconds."""
    queue = {"path": f"{_DEVICE}/virtio-backend", "queue": _STATS_QUEUE}
    return int(context.machine.monitor.execute("x-query-virtio-queue-status", queue)["last-avail-idx"])


def _until(context: Context, done: Callable[[], bool], deadline: Deadline) -> None:
    """Look again and again until something holds.

    :raises GuestHang: when it does not by the deadline.
    """

    def look() -> bool:
        context.machine.check()
        return done()

    def give_up(_: RetryCallState) -> NoReturn:
        raise GuestHang(f"timed out waiting for {deadline.what}", layer=context.machine.layer)

    Retrying(
        retry=retry_if_result(lambda held: not held),
        wait=wait_fixed(_POLL_S),
        stop=lambda _: deadline.expired,
        retry_error_callback=give_up,
    )(look)


class HostMemory(Params):
    """How many MiB less than at its last reading must be held before the step reads, and how long it waits for that.

    The host's own seconds: no emulation slows them.
    """

    freed_mib: Annotated[int, Field(ge=0, le=65536)] = 0
    patience_s: Annotated[float, Field(ge=0, le=600)] = 0


class HostMemorySeen(Evidence):
    """How much of the guest's memory this host really holds."""

    resident_mib: int
    seconds: float


class _Held:
    """What host_memory read last, in MiB."""

    resident_mib = 0


@verb("balloon.host_memory")
def host_memory(context: Context, params: HostMemory) -> HostMemorySeen:
    """Read QEMU's resident memory on this host, once it has shrunk or the patience is at its end."""
    started = time.monotonic()
    last = context.keep(_Held, _Held)
    patience = context.deadline.within(params.patience_s, "QEMU's memory to shrink")

    def look() -> int:
        context.machine.check()
        return context.machine.resident_bytes() >> 20

    last.resident_mib = Retrying(
        retry=retry_if_result(lambda held: held > last.resident_mib - params.freed_mib),
        wait=wait_fixed(_POLL_S),
        stop=lambda _: patience.expired,
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else look(),
    )(look)
    return HostMemorySeen(resident_mib=last.resident_mib, seconds=round(time.monotonic() - started, 3))
