"""What the kernel of this guest has said lately."""

from __future__ import annotations

import os

_CONTROL = "/sys/kernel/debug/dynamic_debug/control"
_followers: dict[str, int] = {}


def follow(who: str) -> dict[str, int]:
    """From now on, remember what :func:`new_lines` has given to this follower."""
    if who not in _followers:
        _followers[who] = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    os.lseek(_followers[who], 0, os.SEEK_END)
    return {}


def new_lines(who: str) -> list[str]:
    """The lines since this follower's last call, without prefix; the oldest may be missing when they were too many."""
    if who not in _followers:
        follow(who)
        return []
    lines: list[str] = []
    while True:
        try:
            record = os.read(_followers[who], 8192).decode(errors="replace")
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
