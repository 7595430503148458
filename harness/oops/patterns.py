"""What a crash looks like, as data: all signatures in the order in which they are tried, and what is no crash."""

from __future__ import annotations

import re
from typing import Final

from harness.oops.linux import LINUX_CRASHES
from harness.oops.linux_checks import LINUX_CHECKS
from harness.oops.pattern import Blame, Kind, Pattern, Severity
from harness.oops.qemu import QEMU
from harness.oops.xen import XEN

__all__ = ["IGNORED", "PATTERNS", "Blame", "Kind", "Pattern", "Severity"]

PATTERNS: Final = (*LINUX_CRASHES, *LINUX_CHECKS, *XEN, *QEMU)

IGNORED: Final = (
    # lockdep stops looking, and says so; what made it stop has been reported before.
    re.compile(rb"INFO: lockdep is turned off"),
    # lockdep's own tables are too small for the test: nothing about the code.
    re.compile(rb"BUG: MAX_(?:LOCKDEP|STACK_TRACE|LOCK)\w* too low"),
    # A slow host, above all under TCG, makes an interrupt handler look slow.
    re.compile(rb"INFO: NMI handler .* took too long"),
    # The virtual machine's CPU topology is not one that hardware has; the scheduler copes.
    re.compile(rb"BUG: arch topology borken"),
    # More CPUs are possible than QEMU was told to show.
    re.compile(rb"WARNING: workqueue cpumask"),
    # The unwinder's own doubts about a stack, in the middle of somebody else's trace.
    re.compile(
        rb"WARNING: (?:kernel stack (?:regs|frame pointer) at|stack (?:recursion on|going in the wrong)|can't "
        rb"(?:access|dereference) registers)"
    ),
)
"""Linux messages that read like a crash and are none."""
