"""Raw accesses to a virtio-mmio window from inside a domain: of any width, from any vCPU, one at a time or in bursts.

The kernel lets /dev/mem reach the window only as long as no driver has claimed it (CONFIG_IO_STRICT_DEVMEM).
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

WINDOWS, WINDOW_BYTES = 0x02000000, 0x200
_TYPES = {1: ctypes.c_uint8, 2: ctypes.c_uint16, 4: ctypes.c_uint32, 8: ctypes.c_uint64}
_page: mmap.mmap | None = None
_traffic: dict[str, tuple[int, int, int]] = {}  # name: (pid, pipe to stop it, pipe with its result)


def _cell(window: int, offset: int, size: int) -> Any:
    """A place in a window; reading and setting its ``value`` is one access of that width."""
    global _page
    if _page is None:
        fd = os.open("/dev/mem", os.O_RDWR | os.O_SYNC | os.O_CLOEXEC)
        _page = mmap.mmap(fd, mmap.PAGESIZE, offset=WINDOWS)
        os.close(fd)
    return _TYPES[size].from_buffer(_page, window * WINDOW_BYTES + offset)


def access(
    window: int,
    offset: int,
    size: int,
    value: int | None,
    count: int = 1,
    vcpu: int | None = None,
    pause_s: float = 0,
) -> dict[str, Any]:
    """Write a value, or read when there is none, so many times. Each access waits until somebody has completed it.

    :param pause_s: between accesses; it does not count.
    """
    cell = _cell(window, offset, size)
    everywhere = os.sched_getaffinity(0)
    if vcpu is not None:
        os.sched_setaffinity(0, {vcpu})
    read, seconds = [], 0.0
    try:
        for _ in range(count):
            started = time.perf_counter()
            if value is None:
                read.append(cell.value)
            else:
                cell.value = value
            seconds += time.perf_counter() - started
            if pause_s:
                time.sleep(pause_s)
    finally:
        os.sched_setaffinity(0, everywhere)
    return {"count": count, "read": read[:16], "seconds": round(seconds, 6)}


def burst(queues: dict[str, int], count: int, window: int = 0) -> dict[str, Any]:
    """Notify from several vCPUs at once.

    :param queues: for each vCPU, the queue that it notifies.
    :param count: how often each does.
    """
    started = time.perf_counter()
    workers = {vcpu: _fork(int(vcpu), window, queue, count) for vcpu, queue in queues.items()}
    done = {vcpu: _result(*worker) for vcpu, worker in workers.items()}
    return {"done": done, "seconds": round(time.perf_counter() - started, 6)}


def start(name: str, queue: int, vcpu: int, window: int = 0) -> dict[str, Any]:
    """Notify without end, in the background."""
    reader, writer = os.pipe()
    pid, result = _fork(vcpu, window, queue, None, (reader, writer))
    os.close(reader)
    _traffic[name] = (pid, writer, result)
    return {}


def finish(name: str) -> dict[str, Any]:
    """End what goes on in the background, and tell how often it has notified."""
    pid, stop, result = _traffic.pop(name)
    os.close(stop)
    return {"done": _result(pid, result)}


def _fork(
    vcpu: int, window: int, queue: int, count: int | None, until: tuple[int, int] | None = None
) -> tuple[int, int]:
    """A process that notifies from one vCPU: so often, or until the writing end of a pipe is closed."""
    cell = _cell(window, 0x50, 4)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    try:
        for _, other, _ in _traffic.values():
            os.close(other)
        os.sched_setaffinity(0, {vcpu})
        done = 0
        if until is not None:
            os.set_blocking(until[0], False)
            os.close(until[1])
        while count is None or done < count:
            cell.value = queue
            done += 1
            if until is not None and done % 8 == 0 and _closed(until[0]):
                break
        os.write(writer, json.dumps(done).encode())
    finally:
        os._exit(0)


def _closed(pipe: int) -> bool:
    try:
        return os.read(pipe, 1) == b""
    except BlockingIOError:
        return False


def _result(pid: int, reader: int) -> int:
    text = os.read(reader, 64)
    os.close(reader)
    os.waitpid(pid, 0)
    return int(text)


def interrupts() -> dict[str, Any]:
    """How many interrupts each virtio device has had, by the name that /proc/interrupts gives it."""
    counts: dict[str, int] = {}
    with open("/proc/interrupts") as file:
        cpus = len(file.readline().split())
        for line in file:
            words = line.split()
            if "virtio" in line:
                counts[words[-1]] = sum(int(word) for word in words[1 : 1 + cpus])
    return {"devices": counts, "total": sum(counts.values())}


def read_hwrng(size: int, count: int) -> dict[str, Any]:
    """Read from /dev/hwrng, whose own thread is told to keep off."""
    with open("/sys/class/misc/hw_random/rng_quality", "w") as quality:
        quality.write("0\n")  # less than two characters are refused
    fd = os.open("/dev/hwrng", os.O_RDONLY)
    try:
        return {"reads": [os.read(fd, size).hex() for _ in range(count)]}
    finally:
        os.close(fd)


def disk(device: str, sector: int, count: int, seed: int | None = None) -> dict[str, Any]:
    """Read sectors past the page cache and give their SHA-256, or write bytes that are made of a number."""
    import hashlib  # slow, and for disks alone

    size = 512 * count
    fd = os.open(device, os.O_RDWR | os.O_DIRECT)
    buffer = mmap.mmap(-1, size)
    try:
        os.lseek(fd, 512 * sector, os.SEEK_SET)
        if seed is not None:
            buffer[:] = hashlib.shake_128(b"seed %d" % seed).digest(size)
            os.writev(fd, [buffer])
        else:
            os.readv(fd, [buffer])
        return {"sha256": hashlib.sha256(buffer[:]).hexdigest()}
    finally:
        os.close(fd)
