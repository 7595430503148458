"""Linux: its own checks that fail, hangs, warnings, and a boot that comes unasked.

The wordings are those of ``lib/bug.c``, ``kernel/locking/lockdep.c``, ``kernel/hung_task.c``, ``kernel/watchdog.c``,
``kernel/rcu/tree_stall.h`` and ``mm/``.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Final

from harness.oops.pattern import END_OF_FENCE, FUNCTION, Blame, Kind, Pattern, Severity

_linux = partial(Pattern, kind=Kind.LINUX, severity=Severity.BUG, blame=Blame.PRODUCT, needles=(b"BUG",))
_warning = partial(_linux, severity=Severity.WARNING, needles=(b"WARNING: ",))

_LOCKDEP: Final = (
    _warning(
        name="linux-suspicious-rcu",
        regex=re.compile(rb"(?:\[ )?(?:WARNING|INFO): suspicious RCU usage"),
        title="suspicious RCU usage in {file}",
        needles=(b"WARNING: ", b"INFO: "),
        detail=re.compile(r"(?P<file>[\w./-]+\.[chS]):\d+ (?:suspicious|Illegal) "),
    ),
    _warning(
        name="linux-lockdep",
        regex=re.compile(
            rb"(?:\[ )?(?:WARNING|INFO|BUG): (?P<what>possible [a-z ]+?(?= detected)|inconsistent lock state"
            rb"|bad unlock balance|bad contention|[A-Z-]+-safe -> [A-Z-]+-unsafe lock order|held lock freed"
            rb"|lock held (?:when returning to user space|at task exit time)|Nested lock was not taken"
            rb"|Invalid wait context|trying to register non-static key)"
        ),
        title="{what}",
        needles=(b"WARNING: ", b"INFO: ", b"BUG"),
        detail=re.compile(r"\bat: (?:\[<\w+>\] )?(?P<function>[A-Za-z_][\w.]*)"),
        located=True,
    ),
    _warning(
        name="linux-locks-held",
        regex=re.compile(rb"(?:\[ )?(?:WARNING|BUG): \S+ still has locks held"),
        title="locks held by an exiting task",
        needles=(b"WARNING: ", b"BUG"),
        located=True,
    ),
)

_HANGS: Final = (
    _linux(
        name="linux-soft-lockup",
        regex=re.compile(rb"(?:(?:NMI )?watchdog: )?BUG: soft lockup - CPU#\d+ stuck"),
        title="BUG: soft lockup",
        located=True,
    ),
    _linux(
        name="linux-hard-lockup",
        regex=re.compile(rb"(?:NMI )?watchdog: .{0,40}\b[Hh]ard LOCKUP\b"),
        title="hard lockup",
        needles=(b"LOCKUP",),
        located=True,
        family="hard-lockup",
        joins=True,
    ),
    _linux(
        name="linux-workqueue-lockup",
        regex=re.compile(rb"BUG: workqueue lockup"),
        title="BUG: workqueue lockup",
    ),
    _linux(
        name="linux-hung-task",
        regex=re.compile(rb"INFO: task .{1,64}?:\d+ (?:blocked|can't die)\b.{0,40} for more than"),
        title="hung task",
        needles=(b"INFO: ",),
        located=True,
    ),
    _linux(
        name="linux-rcu-stall",
        regex=re.compile(rb"(?:rcu: )?INFO: rcu\w* (?:self-)?detected (?:expedited )?stall"),
        title="INFO: rcu detected stall",
        needles=(b"INFO: ",),
        located=True,
    ),
    _linux(
        name="linux-unregister-netdevice",
        regex=re.compile(rb"unregister_netdevice: waiting for \S+ to become free"),
        title="unregister_netdevice: waiting for a device to become free",
        needles=(b"Usage count = ", b"Usage count:"),
        follow=0,
    ),
)

_REST: Final = (
    _linux(
        name="linux-atomic-scheduling",
        regex=re.compile(rb"BUG: scheduling while atomic"),
        title="BUG: scheduling while atomic",
        located=True,
    ),
    _linux(
        name="linux-atomic-sleep",
        regex=re.compile(rb"BUG: sleeping function called from invalid context"),
        title="BUG: sleeping function called from invalid context",
        located=True,
    ),
    _linux(
        name="linux-preemptible",
        regex=re.compile(rb"BUG: using (?P<what>\w+)\(\) in preemptible"),
        title="BUG: using {what}() in preemptible code",
        detail=re.compile(r"caller is (?P<function>[A-Za-z_][\w.]*)"),
        located=True,
    ),
    _linux(
        name="linux-spinlock",
        regex=re.compile(rb"BUG: (?P<what>(?:spin|rw|rt_)\w*lock [a-z ]+?) on CPU#"),
        title="BUG: {what}",
        located=True,
    ),
    _linux(
        name="linux-bad-page",
        regex=re.compile(rb"BUG: (?P<what>Bad (?:page state|page map|page cache|rss-counter state))\b"),
        title="BUG: {what}",
    ),
    _linux(
        name="linux-slab",
        regex=re.compile(rb"BUG (?P<cache>\S+) \((?:Not t|T)ainted[^)]{0,80}\): (?P<detail>.+)"),
        title="BUG: slab {cache}: {detail}",
        end=END_OF_FENCE,
    ),
    _warning(
        name="linux-warning",
        regex=re.compile(
            rb"WARNING: (?:(?:CPU: \d+ PID: \d+ )?at (?P<file>[^\s:]+):\d+(?: " + FUNCTION + rb")?"
            # Since Linux 6.18; the place is 0x0 where the trap knows no better, and the registers name it.
            rb"|(?P<new_file>[\w./+-]+\.[chS]):\d+ at (?:(?P<new_function>[A-Za-z_][\w.]*)|0x))"
        ),
        title="WARNING",
        located=True,
    ),
    _linux(
        name="linux-busy-inodes",
        regex=re.compile(rb"VFS: Busy inodes after unmount"),
        title="VFS: Busy inodes after unmount",
        needles=(b"VFS: Busy inodes",),
        follow=0,
    ),
    # Programs say these too, so they count only on a line that carries the kernel's timestamp.
    _linux(
        name="linux-other-bug",
        regex=re.compile(rb"BUG: (?P<detail>.+)"),
        title="BUG: {detail}",
        bare=False,
    ),
    _warning(
        name="linux-other-warning",
        regex=re.compile(rb"WARNING: (?P<detail>.+)"),
        title="WARNING: {detail}",
        bare=False,
        follow=30,
    ),
    _linux(
        name="linux-booting",
        regex=re.compile(rb"Booting Linux on (?:physical|hart) "),
        title="rebooted by itself",
        severity=Severity.FATAL,
        needles=(b"Booting Linux",),
        once=True,
        follow=0,
    ),
    # Not bare: `cat /proc/version` says the same.
    _linux(
        name="linux-banner",
        regex=re.compile(rb"Linux version \d"),
        title="rebooted by itself",
        severity=Severity.FATAL,
        needles=(b"Linux version",),
        bare=False,
        once=True,
        follow=0,
    ),
)

LINUX_CHECKS: Final = (*_LOCKDEP, *_HANGS, *_REST)
