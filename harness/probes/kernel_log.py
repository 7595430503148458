"""What the kernel of this guest has said lately."""

from __future__ import annotations

import os

_CONTROL = "/sys/kernel/debug/dynamic_debug/control"
_followed: int | None = None


def follow() -> dict[str, int]:
    """From now on, remember what :func:`new_lines` has given."""
    global _followed
    if _followed is None:
        _followed = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    os.lseek(_followed, 0, os.SEEK_END)
    return {}


def new_lines() -> list[str]:
    """The lines since the last call, without their prefix; the oldest may be missing when there were too many."""
    if _followed is None:
        follow()
        return []
    lines = []
    while True:
        try:
            record = os.read(_followed, 8192).decode(errors="replace")
        except BlockingIOError:
            return lines
        except BrokenPipeError:  # the oldest were overwritten; the next read goes on with what is left
            continue
        lines.append(record.partition(";")[2].partition("\n")[0])


def speak(rule: str) -> dict[str, int]:
    """Let the kernel print debug messages: a rule for its dynamic debugging, ``file drivers/xen/grant-table.c +p``."""
    if not os.path.exists(_CONTROL):
        _mount_debugfs()
    with open(_CONTROL, "w") as file:
        file.write(rule)
    return {}


def _mount_debugfs() -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"debugfs", b"/sys/kernel/debug", b"debugfs", ctypes.c_ulong(0), None):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "/sys/kernel/debug")
