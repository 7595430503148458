"""Verbs for a guest's memory: counters, compaction, memory blocks, and pressure."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from harness.errors import CommandFailed
from harness.steps.base import Context, Evidence, Params, verb


def vmstat_change(changes: dict[str, int], name: str) -> int:
    """By how much a counter of /proc/vmstat rose; one that did not move is not in the map."""
    return changes.get(name, 0)


class Sample(Params):
    """Nothing to set."""


class Sampled(Evidence):
    """/proc/vmstat and /proc/meminfo as they stood."""

    vmstat: dict[str, int]
    meminfo: dict[str, int]
    page_size: int


@verb("memory.sample")
def sample(context: Context, _: Sample) -> Sampled:
    """Read /proc/vmstat and /proc/meminfo."""
    return Sampled(**context.call("memory.sample"))


class Compact(Params):
    """How many times all zones are compacted."""

    times: Annotated[int, Field(ge=1, le=16)] = 1


class Compacted(Evidence):
    """What compaction did, summed over all of its runs, by the kernel's own counters."""

    balloon_migrated: int
    pgmigrate_success: int
    isolated: int
    migrate_scanned: int
    seconds: float
    vmstat: dict[str, int]


@verb("memory.compact")
def compact(context: Context, params: Compact) -> Compacted:
    """Compact all zones (/proc/sys/vm/compact_memory)."""
    total: dict[str, int] = {}
    seconds = 0.0
    for _ in range(params.times):
        answer = context.call("memory.compact", timeout_s=60)
        seconds += answer["seconds"]
        for name, change in answer["changes"].items():
            total[name] = total.get(name, 0) + change
    return Compacted(
        balloon_migrated=vmstat_change(total, "balloon_migrate"),
        pgmigrate_success=vmstat_change(total, "pgmigrate_success"),
        isolated=vmstat_change(total, "compact_isolated"),
        migrate_scanned=vmstat_change(total, "compact_migrate_scanned"),
        seconds=round(seconds, 3),
        vmstat=total,
    )


class Churn(Params):
    """Nothing to set."""


class ChurnStopped(Evidence):
    """What happened while compaction ran without a pause."""

    balloon_migrated: int
    pgmigrate_success: int
    compactions: int


class _Churning:
    """The counters as they stood when compaction began."""

    def __init__(self, before: dict[str, int]) -> None:
        self.before = before


@verb("memory.churn_start")
def churn_start(context: Context, _: Churn) -> None:
    """Compact all zones again and again in the background."""
    before = context.call("memory.vmstat")
    context.keep(_Churning, lambda: _Churning(before)).before = before
    context.call("memory.churn_start")


@verb("memory.churn_stop")
def churn_stop(context: Context, _: Churn) -> ChurnStopped:
    """End the compaction in the background."""
    answer = context.call("memory.churn_stop", timeout_s=60)
    before = context.keep(_Churning, lambda: _Churning({})).before
    if not before:
        raise CommandFailed("memory.churn_stop without memory.churn_start")
    after = context.call("memory.vmstat")
    return ChurnStopped(
        balloon_migrated=after["balloon_migrate"] - before["balloon_migrate"],
        pgmigrate_success=after["pgmigrate_success"] - before["pgmigrate_success"],
        compactions=answer["compactions"],
    )


class Fill(Params):
    """How much is left free, and how much of what was taken is given back at the lowest frames."""

    leave_mib: Annotated[int, Field(ge=16, le=4096)] = 48
    free_lowest_mib: Annotated[int, Field(ge=0, le=65536)]


class Filled(Evidence):
    """How many pages a process holds now, and which frames it gave back."""

    held_pages: int
    freed_pages: int


@verb("memory.fill")
def fill(context: Context, params: Fill) -> Filled:
    """Take nearly all memory, then free the lowest frames: the next allocation lands there."""
    took = context.call("memory.hog_allocate", timeout_s=60, leave_mib=params.leave_mib)
    page_size = context.call("memory.page_size")
    freed = context.call("memory.hog_free_lowest", pages=(params.free_lowest_mib << 20) // page_size)
    return Filled(held_pages=took["pages"] - freed["pages"], freed_pages=freed["pages"])


class Punch(Params):
    """Nothing to set."""


class Punched(Evidence):
    """How many single pages became holes."""

    holes: int


@verb("memory.fragment")
def fragment(context: Context, _: Punch) -> Punched:
    """Free every even frame of what memory.fill still holds: holes where compaction finds them."""
    return Punched(holes=context.call("memory.hog_punch", timeout_s=60)["pages"])


class Release(Params):
    """Nothing to set."""


@verb("memory.release")
def release(context: Context, _: Release) -> None:
    """Free all that memory.fill still holds."""
    context.call("memory.hog_free", timeout_s=60)


class Allocate(Params):
    """How much a process touches; the OOM killer takes that process first."""

    mib: Annotated[int, Field(ge=1, le=65536)]


class Allocated(Evidence):
    """How much it could touch, the signal that ended it (0: none), and what the kernel counted meanwhile."""

    touched_mib: int
    signal: int
    oom_kills: int
    balloon_deflated: int


@verb("memory.allocate")
def allocate(context: Context, params: Allocate) -> Allocated:
    """Touch memory in a process that then ends."""
    before = context.call("memory.vmstat")
    answer = context.call("memory.allocate", timeout_s=60, mib=params.mib)
    after = context.call("memory.vmstat")
    return Allocated(
        **answer,
        oom_kills=after["oom_kill"] - before["oom_kill"],
        balloon_deflated=after["balloon_deflate"] - before["balloon_deflate"],
    )


class _LastOffline:
    """Which block memory.offline took last."""

    block: int | None = None


class Offline(Params):
    """Which block: a number, or the one that holds most of the balloon; and for how long the kernel may try."""

    block: Annotated[int, Field(ge=0)] | Literal["most-ballooned"]
    timeout_s: Annotated[float, Field(gt=0, le=600)] = 10


class Offlined(Evidence):
    """What offlining a block did: its KPF_OFFLINE pages just before, and the balloon pages that moved.

    ``errno`` is 110 (ETIMEDOUT) when the kernel was still trying in the end.
    """

    block: int
    flagged: int
    migrated: int
    errno: int
    state: str
    seconds: float


@verb("memory.offline")
def offline(context: Context, params: Offline) -> Offlined:
    """Take a memory block offline: every movable page in it has to move."""
    block = params.block if isinstance(params.block, int) else _most_ballooned(context)
    answer = _set_block_state(context, block, "offline", params.timeout_s)
    context.keep(_LastOffline, _LastOffline).block = block
    return Offlined(
        block=block,
        flagged=answer["flagged_before"],
        migrated=vmstat_change(answer["changes"], "balloon_migrate"),
        errno=answer["errno"],
        state=answer["state"],
        seconds=round(answer["seconds"], 3),
    )


def _set_block_state(context: Context, block: int, state: str, timeout_s: float) -> dict[str, Any]:
    """Ask the guest, which gives up by itself: a kernel that never gets there is evidence, not a hang."""
    patience_s = timeout_s * context.machine.time_factor
    answer: dict[str, Any] = context.call(
        "memory.set_block_state", timeout_s=timeout_s + 10, block=block, state=state, patience_s=patience_s
    )
    return answer


def _most_ballooned(context: Context) -> int:
    """The block with most KPF_OFFLINE pages among those that are wholly movable.

    The last block is never taken: the kernel refuses to offline it on some machines.
    """
    blocks: list[dict[str, Any]] = context.call("memory.blocks")
    movable = [block for block in blocks[:-1] if "Movable" in block["zones"] and block["state"] == "online"]
    if not movable:
        raise CommandFailed("the guest has no movable memory block; boot it with movablecore=", layer="guest")
    return int(max(movable, key=lambda block: block["flagged"])["block"])


class Online(Params):
    """A block that is offline; by default the one that memory.offline took last."""

    block: Annotated[int, Field(ge=0)] | None = None
    timeout_s: Annotated[float, Field(gt=0, le=600)] = 10


class Onlined(Evidence):
    """The errno (0: done) and the block's state."""

    errno: int
    state: str


@verb("memory.online")
def online(context: Context, params: Online) -> Onlined:
    """Bring a memory block back as movable memory."""
    block = context.keep(_LastOffline, _LastOffline).block if params.block is None else params.block
    if block is None:
        raise CommandFailed("memory.online without a block, and none was taken offline before", layer="guest")
    answer = _set_block_state(context, block, "online_movable", params.timeout_s)
    return Onlined(errno=answer["errno"], state=answer["state"])
