"""VFIO on sPAPR TCE IOMMUs, by raw ioctls, in processes of their own.

A *holder* is a forked child that holds containers, groups, devices and memory (``vfio_holder.py``): its limits can be
lowered, and it can be killed with all that it holds. To what the holder says of an ioctl, this adds what the kernel
logged meanwhile.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself is slow to import, and only a running guest has the probes on its path
    from typing import TextIO

    from harness.probes.vfio_abi import LIBC, Answer, done
    from harness.probes.vfio_holder import Session
else:
    from vfio_abi import LIBC, done
    from vfio_holder import Session

_CAP_IPC_LOCK = 14

_holders: dict[str, tuple[int, TextIO]] = {}  # name: (pid, stream to it)
_kernel_log: int | None = None


def _new_kernel_lines() -> list[str]:
    """What the kernel logged since the last call, without its prefix."""
    global _kernel_log
    if _kernel_log is None:
        _kernel_log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(_kernel_log, 0, os.SEEK_END)
        return []
    lines: list[str] = []
    while True:
        try:
            record = os.read(_kernel_log, 8192)
        except BlockingIOError:
            return lines
        lines.append(record.decode(errors="replace").partition(";")[2].splitlines()[0])


def hold(holder: str, memlock_bytes: int | None = None, ipc_lock: bool = True) -> Answer:
    """Fork a holder, with a limit on locked memory and without CAP_IPC_LOCK if so asked."""
    _new_kernel_lines()
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            for _, stream in _holders.values():
                stream.close()
            if memlock_bytes is not None:
                resource.setrlimit(resource.RLIMIT_MEMLOCK, (memlock_bytes, memlock_bytes))
            if not ipc_lock:
                _drop_ipc_lock()
            _serve(theirs.makefile("rw"))
        finally:
            os._exit(0)
    theirs.close()
    _holders[holder] = (pid, ours.makefile("rw"))
    ours.close()
    return {"pid": pid}


def _drop_ipc_lock() -> None:
    """capset(2) with version 3 of its header (include/uapi/linux/capability.h)."""
    header = struct.pack("=Ii", 0x20080522, 0)
    data = ctypes.create_string_buffer(24)
    if LIBC.capget(header, data):
        raise OSError(ctypes.get_errno(), "capget")
    low = list(struct.unpack_from("=III", data.raw, 0))
    struct.pack_into("=III", data, 0, *(word & ~(1 << _CAP_IPC_LOCK) for word in low))
    if LIBC.capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")


def release(holder: str, kill: bool = False) -> Answer:
    """End a holder: by closing all it holds and exiting, or by SIGKILL with everything alive."""
    pid, stream = _holders.pop(holder)
    if kill:
        os.kill(pid, signal.SIGKILL)
    stream.close()
    os.waitpid(pid, 0)
    return {"kernel_log": _new_kernel_lines()}


def call(holder: str, operation: str, **arguments: object) -> Answer:
    """Let a holder do something; one that is not there yet is forked, one that dies of it says nothing more."""
    if holder not in _holders:
        hold(holder)
    _new_kernel_lines()
    stream = _holders[holder][1]
    stream.write(json.dumps([operation, arguments]) + "\n")
    stream.flush()
    said = stream.readline()
    if not said:
        return {**done(result=-1, died=True), **release(holder)}
    answer: Answer = json.loads(said)
    if "failure" in answer:
        raise RuntimeError(f"{operation}: {answer['failure']}")
    answer["kernel_log"] = _new_kernel_lines()
    return answer


def _serve(stream: TextIO) -> None:
    session = Session()
    for line in stream:
        operation, arguments = json.loads(line)
        try:
            answer = getattr(session, operation)(**arguments)
        except Exception as error:
            answer = {"failure": f"{type(error).__name__}: {error}"}
        stream.write(json.dumps(answer) + "\n")
        stream.flush()


def pins() -> dict[str, int]:
    """How many pages the kernel has pinned for DMA, and how many it has let go, since boot.

    Both are counted per CPU and added up now and then; ``stat_refresh`` does it at once.
    """
    with open("/proc/sys/vm/stat_refresh", "w") as file:
        file.write("1")
    with open("/proc/vmstat") as file:
        counters = dict(line.split() for line in file)
    acquired, released = (int(counters[f"nr_foll_pin_{what}"]) for what in ("acquired", "released"))
    return {"acquired": acquired, "released": released, "held": acquired - released}
