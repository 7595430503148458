"""VFIO on sPAPR TCE IOMMUs, by raw ioctls, in processes of their own.

A *holder* is a process that holds containers, groups, devices and memory (``vfio_holder.py``): its limits can be
lowered, and it can be killed with all that it holds. To what the holder says of an ioctl, this adds what the kernel
logged meanwhile.

A holder is nobody's child and listens on a socket, so that it outlives the agent: a machine that is restored has the
processes that it had, but an agent of its own.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
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
_END = "end"

_holders: dict[str, tuple[int, TextIO]] = {}  # name: (pidfd, connection), of those that this agent has met
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


def _path(holder: str) -> str:
    return f"/run/holder-{holder}"


def hold(holder: str, memlock_bytes: int | None = None, ipc_lock: bool = True) -> Answer:
    """Start a holder, with a limit on locked memory and without CAP_IPC_LOCK if so asked."""
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.fork() == 0:
                if memlock_bytes is not None:
                    resource.setrlimit(resource.RLIMIT_MEMLOCK, (memlock_bytes, memlock_bytes))
                if not ipc_lock:
                    _drop_ipc_lock()
                listener = socket.socket(socket.AF_UNIX)
                listener.bind(_path(holder))
                listener.listen()
                os.write(tell, b"1")
                _serve(_detached(listener))
        finally:
            os._exit(0)
    os.close(tell)
    os.waitpid(child, 0)
    listening = os.read(ready, 1)
    os.close(ready)
    if not listening:
        raise RuntimeError(f"the holder {holder} did not start")
    return done()


def _detached(listener: socket.socket) -> socket.socket:
    """Keep nothing of the agent's: its connection must end when it does."""
    os.setsid()
    nothing = os.open("/dev/null", os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)
    for _, stream in _holders.values():
        stream.close()
    os.dup2(listener.detach(), 3)
    os.closerange(4, 1024)
    return socket.socket(fileno=3)


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


def _serve(listener: socket.socket) -> None:
    """Answer the agent that came last: one of before the machine was saved never says that it has gone."""
    session = Session()
    connection, _ = listener.accept()
    while True:
        readable, _, _ = select.select([listener, connection], [], [])
        request = b"" if listener in readable else _line(connection)
        if not request:
            connection.close()
            connection, _ = listener.accept()
            continue
        operation, arguments = json.loads(request)
        if operation == _END:
            return
        try:
            answer = getattr(session, operation)(**arguments)
        except Exception as error:
            answer = {"failure": f"{type(error).__name__}: {error}"}
        connection.sendall(json.dumps(answer).encode() + b"\n")


def _line(connection: socket.socket) -> bytes:
    """The next request: there is never more than one. Empty when the other side has closed."""
    request = b""
    while not request.endswith(b"\n"):
        part = connection.recv(1 << 16)
        if not part:
            return b""
        request += part
    return request


def _meet(holder: str) -> tuple[int, TextIO]:
    """The connection to a holder; one that is not there yet is started."""
    if holder not in _holders:
        if not os.path.exists(_path(holder)):
            hold(holder)
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(_path(holder))
        # unix(7): the credentials are those of the process that called listen()
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pidfd = os.pidfd_open(struct.unpack("=iII", credentials)[0])
        _holders[holder] = pidfd, connection.makefile("rw")
        connection.close()
    return _holders[holder]


def _await_end(holder: str) -> Answer:
    """Wait until a holder has exited: its files are closed by then."""
    pidfd, stream = _holders.pop(holder)
    select.select([pidfd], [], [])
    os.close(pidfd)
    stream.close()
    os.unlink(_path(holder))
    return {"kernel_log": _new_kernel_lines()}


def release(holder: str, kill: bool = False) -> Answer:
    """End a holder: by closing all it holds and exiting, or by SIGKILL with everything alive."""
    pidfd, stream = _meet(holder)
    _new_kernel_lines()
    if kill:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    else:
        stream.write(json.dumps([_END, {}]) + "\n")
        stream.flush()
    return _await_end(holder)


def call(holder: str, operation: str, **arguments: object) -> Answer:
    """Let a holder do something. One that dies of it says nothing more."""
    _, stream = _meet(holder)
    _new_kernel_lines()
    stream.write(json.dumps([operation, arguments]) + "\n")
    stream.flush()
    said = stream.readline()
    if not said:
        return {**done(result=-1, died=True), **_await_end(holder)}
    answer: Answer = json.loads(said)
    if "failure" in answer:
        raise RuntimeError(f"{operation}: {answer['failure']}")
    answer["kernel_log"] = _new_kernel_lines()
    return answer


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
