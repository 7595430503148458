"""A machine was restored: its time of day is set, and its timers, which QEMU may have lost, are set anew."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from harness.probes import privcmd
else:
    import privcmd

_TIMER_ABSTIME = 1  # include/uapi/linux/time.h
_HYPERCALL = 0x00305000  # IOCTL_PRIVCMD_HYPERCALL, include/uapi/xen/privcmd.h
_SCHED_OP = 29  # __HYPERVISOR_sched_op, xen/include/public/xen.h
_POLL, _PIN_OVERRIDE = 3, 7  # SCHEDOP_*, xen/include/public/sched.h
_ANYWHERE = -1


def start(now_s: float) -> dict[str, int]:
    """Start all of them, on every CPU.

    :param now_s: seconds since the epoch.
    :return: ``cpus`` that Linux has, and ``xen_cpus`` whose timers were set in the hypervisor.
    """
    xen_cpus = _start_xen() if os.uname().machine == "aarch64" and os.path.exists(privcmd.DEVICE) else 0
    cpus = _start_linux()
    time.clock_settime(time.CLOCK_REALTIME, now_s)
    return {"cpus": cpus, "xen_cpus": xen_cpus}


def _start_linux() -> int:
    """Have Linux set each CPU's timer.

    QEMU before 8.2 does not save what the decrementer of an emulated POWER CPU counts, so the interrupt that Linux
    waits for may never come, and Linux sets the timer only for what is due before that. A time in the past is.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    longs = ctypes.c_long * 2
    mine = os.sched_getaffinity(0)
    for cpu in mine:
        os.sched_setaffinity(0, {cpu})
        libc.clock_nanosleep(time.CLOCK_MONOTONIC, _TIMER_ABSTIME, longs(0, 1), None)
    os.sched_setaffinity(0, mine)
    return len(mine)


def _start_xen() -> int:
    """Have Xen set each CPU's timer, from dom0.

    QEMU 7.2 arms the physical and the virtual timer of a restored Arm CPU, but not that of EL2, which all of Xen waits
    for: what sleeps in a domain, or in dom0, may wake up many seconds late. Xen too sets it only for what is due first,
    as a poll for no events until a time in the past is.
    """
    xen = privcmd.Privcmd()
    cpu = 0
    try:
        while (failed := _sched_op(xen, _PIN_OVERRIDE, struct.pack("=i", cpu))) == 0:
            _sched_op(xen, _POLL, struct.pack("=QIIQ", 0, 0, 0, 1))
            _sched_op(xen, _PIN_OVERRIDE, struct.pack("=i", _ANYWHERE))
            cpu += 1
    finally:
        xen.close()
    if failed != errno.EINVAL or cpu == 0:  # there is no such CPU
        raise OSError(failed, f"Xen's timer of CPU {cpu} could not be set")
    return cpu


def _sched_op(xen: privcmd.Privcmd, operation: int, argument: bytes) -> int:
    """One hypercall of the scheduler; gives its errno."""
    buffer = bytearray(argument)
    words = (_SCHED_OP, operation, privcmd.address_of(buffer), 0, 0, 0)
    return xen.call(_HYPERCALL, bytearray(struct.pack("=6Q", *words)))
