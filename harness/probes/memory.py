"""A guest's memory: counters, page flags, memory blocks, compaction, and a hog that shapes what is free."""

from __future__ import annotations

import array
import errno
import mmap
import os
import re
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself is slow to import
    from collections.abc import Callable

PAGE = mmap.PAGESIZE
_BLOCKS = "/sys/devices/system/memory"
_KPF_OFFLINE = 23  # include/uapi/linux/kernel-page-flags.h: a balloon's pages are PG_offline
_IS_OFFLINE = bytes(1 if value & (1 << (_KPF_OFFLINE % 8)) else 0 for value in range(256))
#: Documentation/admin-guide/mm/pagemap.rst: the last of an entry's eight bytes has bit 63, "present".
_IS_PRESENT = bytes(value >> 7 for value in range(256))
_MADV_POPULATE_WRITE = 23  # include/uapi/asm-generic/mman-common.h

_hog: mmap.mmap | None = None  # the mapping that hog_allocate made
_frames = array.array("I")  # the frame of each of its pages
_held: list[int] | None = None  # those of its pages that are not freed yet, by ascending frame; None: never looked at


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def vmstat() -> dict[str, int]:
    """/proc/vmstat as a map of integers."""
    return {name: int(value) for name, value in (line.split() for line in _read("/proc/vmstat").splitlines())}


def meminfo() -> dict[str, int]:
    """/proc/meminfo as a map: sizes in KiB, the huge page counts as they are."""
    return {line.split(":")[0]: int(line.split()[1]) for line in _read("/proc/meminfo").splitlines()}


def page_size() -> int:
    """The kernel's page size in bytes."""
    return PAGE


def sample() -> dict[str, object]:
    """Counters and sizes, read one after the other."""
    return {"vmstat": vmstat(), "meminfo": meminfo(), "page_size": PAGE}


def _runs(flags: bytes) -> list[list[int]]:
    """Where a string of 0 and 1 bytes is 1, as [start, count] pairs."""
    return [[match.start(), match.end() - match.start()] for match in re.finditer(b"\1+", flags)]


def _offline_flags(first: int = 0, count: int = -1) -> bytes:
    """One byte for each page frame: whether KPF_OFFLINE is set."""
    with open("/proc/kpageflags", "rb", buffering=0) as file:
        file.seek(first * 8)
        chunks = []
        left = count * 8
        while left:
            chunk = file.read(min(left, 1 << 20) if left > 0 else 1 << 20)
            if not chunk:
                break
            chunks.append(chunk)
            left -= len(chunk)
    return b"".join(chunks)[_KPF_OFFLINE // 8 :: 8].translate(_IS_OFFLINE)


def offline_pages() -> list[list[int]]:
    """The page frames with KPF_OFFLINE, as [start, count] pairs in ascending order."""
    return _runs(_offline_flags())


def blocks() -> list[dict[str, object]]:
    """The memory blocks: number, state, zones, first page frame, and how many of its pages are KPF_OFFLINE."""
    pages = int(_read(f"{_BLOCKS}/block_size_bytes"), 16) // PAGE
    flags = _offline_flags()
    found: dict[int, dict[str, object]] = {}
    for name in os.listdir(_BLOCKS):
        if not re.fullmatch(r"memory\d+", name):
            continue
        number = int(name[len("memory") :])
        found[number] = {
            "block": number,
            "state": _read(f"{_BLOCKS}/{name}/state").strip(),
            "zones": _read(f"{_BLOCKS}/{name}/valid_zones").split(),
            "first_page": number * pages,
            "pages": pages,
            "flagged": flags.count(1, number * pages, (number + 1) * pages),
        }
    return [found[number] for number in sorted(found)]


def set_block_state(block: int, state: str, patience_s: float) -> dict[str, object]:
    """Bring a memory block ``online``, ``online_movable`` or ``offline``.

    Gives the errno (0 when the kernel did it, ETIMEDOUT when it was still trying after ``patience_s``), how many
    KPF_OFFLINE pages the block had just before, and the counters' changes.
    """
    path = f"{_BLOCKS}/memory{block}/state"
    pages = int(_read(f"{_BLOCKS}/block_size_bytes"), 16) // PAGE
    flagged = sum(_offline_flags(block * pages, pages))
    before = vmstat()
    started = time.monotonic()
    code = _in_child(lambda: _write(path, state), patience_s)
    seconds = time.monotonic() - started
    after = vmstat()
    return {
        "errno": code,
        "state": _read(path).strip(),
        "flagged_before": flagged,
        "seconds": seconds,
        "changes": {name: after[name] - before[name] for name in after if after[name] != before.get(name)},
    }


def _in_child(work: Callable[[], None], timeout_s: float) -> int:
    """Do something in a child and give its errno, 0 for success.

    The kernel tries to empty a block for as long as it takes; only a signal to whoever asked for it ends that.
    """
    child = os.fork()
    if child == 0:
        try:
            work()
        except OSError as error:
            os._exit(error.errno or errno.EIO)
        os._exit(0)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return errno.ETIMEDOUT


def compact() -> dict[str, object]:
    """Compact all zones now; gives the counters' changes and the seconds it took."""
    before = vmstat()
    started = time.monotonic()
    _write("/proc/sys/vm/compact_memory", "1")
    seconds = time.monotonic() - started
    after = vmstat()
    return {
        "seconds": seconds,
        "changes": {name: after[name] - before[name] for name in after if after[name] != before.get(name)},
    }


def _touch(mapping: mmap.mmap) -> None:
    """Let the kernel give a mapping all of its pages in one call: under emulation, each page fault is dear."""
    mapping.madvise(_MADV_POPULATE_WRITE)


def _release(numbers: list[int]) -> None:
    """Give pages of the hog back to the kernel, neighbours in one call."""
    assert _hog is not None
    numbers = sorted(numbers)
    start = 0
    while start < len(numbers):
        end = start + 1
        while end < len(numbers) and numbers[end] == numbers[end - 1] + 1:
            end += 1
        _hog.madvise(mmap.MADV_DONTNEED, numbers[start] * PAGE, (end - start) * PAGE)
        start = end


def _by_frame() -> list[int]:
    """The hog's pages, by ascending frame."""
    return sorted(range(len(_frames)), key=_frames.__getitem__) if _held is None else _held


def hog_allocate(leave_mib: int) -> dict[str, int]:
    """Take all free memory but ``leave_mib``, in single pages, and learn which frames those pages are.

    Compaction then finds what the hog frees again exactly where the hog wants it.
    """
    global _hog, _frames
    hog_free()
    size = meminfo()["MemAvailable"] * 1024 - (leave_mib << 20)
    size -= size % PAGE
    if size <= 0:
        raise ValueError(f"less than {leave_mib} MiB are available")
    _hog = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        _hog.madvise(mmap.MADV_NOHUGEPAGE)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a kernel that was built without huge pages
            raise
    # A child that only compacts has no use for it, and a kernel that must promise it twice refuses the fork.
    _hog.madvise(mmap.MADV_DONTFORK)
    _touch(_hog)
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        file.seek(_address_of(_hog) // PAGE * 8)
        entries = file.read(size // PAGE * 8)
    # A frame's number is in the lower half of its entry: it is below 2^32 where there are less than 16 TiB.
    _frames = array.array("I", entries)[::2]
    return {"pages": entries[7::8].translate(_IS_PRESENT).count(1)}


def _address_of(mapping: mmap.mmap) -> int:
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))


def hog_free_lowest(pages: int) -> dict[str, int]:
    """Give back the hog's pages at the lowest frames: what is allocated next lands there."""
    global _held
    if not pages:
        return {"pages": 0}
    held = _by_frame()
    freed, _held = held[:pages], held[pages:]
    _release(freed)
    return {"pages": len(freed)}


def hog_punch() -> dict[str, int]:
    """Give back every even frame of the rest.

    The free scanner strides over up to 32 pages in steps of powers of two: holes at odd frames it never sees.
    """
    global _held
    held = _by_frame()
    freed = [number for number in held if _frames[number] % 2 == 0]
    _held = [number for number in held if _frames[number] % 2]
    _release(freed)
    return {"pages": len(freed)}


def hog_free() -> dict[str, int]:
    """Give everything back."""
    global _hog, _frames, _held
    if _hog is not None:
        _hog.close()
    _hog, _frames, _held = None, array.array("I"), None
    return {}


def allocate(mib: int) -> dict[str, int]:
    """Touch memory in a child process, which the OOM killer takes first.

    Gives how many MiB the child touched and which signal ended it (0: none).
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _write("/proc/self/oom_score_adj", "1000")
        held = []  # one by one: a single large mapping is refused when it exceeds all memory
        for _ in range(mib):
            held.append(mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
            _touch(held[-1])
            os.write(writer, b".")
        os._exit(0)
    os.close(writer)
    touched = 0
    while chunk := os.read(reader, 4096):
        touched += len(chunk)
    os.close(reader)
    _, status = os.waitpid(child, 0)
    return {"touched_mib": touched, "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0}


_churn: tuple[int, int] | None = None  # (child, the pipe that it writes a byte to for each compaction)


def churn_start() -> dict[str, int]:
    """Compact again and again in a child process, until :func:`churn_stop`."""
    global _churn
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        while True:
            _write("/proc/sys/vm/compact_memory", "1")
            os.write(writer, b".")
    os.close(writer)
    _churn = (child, reader)
    return {}


def churn_stop() -> dict[str, int]:
    """End the compacting child; gives how many times it compacted."""
    global _churn
    if _churn is None:
        raise ValueError("nothing is compacting")
    child, reader = _churn
    _churn = None
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    compactions = 0
    while chunk := os.read(reader, 65536):
        compactions += len(chunk)
    os.close(reader)
    return {"compactions": compactions}
