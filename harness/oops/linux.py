"""Linux: panics, oopses and what the sanitizers report.

The wordings are those of ``kernel/panic.c``, ``mm/kasan/report.c``, ``lib/ubsan.c``, ``arch/*/kernel/traps.c`` and
``arch/*/mm/fault.c``.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Final

from harness.oops.pattern import END_OF_FENCE, FUNCTION, Blame, Kind, Pattern, Severity

_PANIC: Final = rb"Kernel panic - not syncing: "

_linux = partial(Pattern, kind=Kind.LINUX, severity=Severity.BUG, blame=Blame.PRODUCT, needles=(b"BUG",))
_panic = partial(_linux, severity=Severity.FATAL, needles=(b"Kernel panic",))
_oops = partial(_linux, located=True, family="oops")

_SETUP: Final = (
    _panic(
        name="linux-no-root",
        regex=re.compile(_PANIC + rb"VFS: Unable to mount root fs"),
        title="kernel panic: VFS: Unable to mount root fs",
        blame=Blame.SETUP,
    ),
    _panic(
        name="linux-no-init",
        regex=re.compile(_PANIC + rb"(?:No working init found|No init found|Requested init \S+ failed)"),
        title="kernel panic: No working init found",
        blame=Blame.SETUP,
    ),
    _panic(
        name="linux-no-memory",
        regex=re.compile(_PANIC + rb"(?P<what>System is deadlocked on memory|Out of memory and no killable processes)"),
        title="kernel panic: {what}",
        blame=Blame.SETUP,
    ),
    # The low byte is the signal that killed init. None: init exited, 126 and 127 because its program or interpreter is
    # missing, and others because a script of the image gave up. The kernel under test did not kill it.
    _panic(
        name="linux-init-exited",
        regex=re.compile(_PANIC + rb"Attempted to kill init! ?exitcode=0x[0-9a-f]{6}00(?![0-9a-f])"),
        title="kernel panic: Attempted to kill init!",
        blame=Blame.SETUP,
    ),
    # A warning, because the kernel goes on with what it has unpacked, and padding behind an archive is harmless.
    _linux(
        name="linux-initramfs",
        regex=re.compile(rb"Initramfs unpacking failed: (?P<detail>.+)"),
        title="Initramfs unpacking failed: {detail}",
        severity=Severity.WARNING,
        blame=Blame.SETUP,
        needles=(b"Initramfs unpacking",),
        follow=0,
    ),
    # The decompressor's last words (arch/x86/boot/compressed/misc.c): the kernel image is damaged or has no memory.
    _linux(
        name="linux-decompressor",
        regex=re.compile(rb" *-- System halted"),
        title="kernel decompression failed",
        severity=Severity.FATAL,
        blame=Blame.SETUP,
        needles=(b"System halted",),
        follow=0,
    ),
)

_SANITIZERS: Final = (
    _linux(
        name="linux-kasan",
        regex=re.compile(rb"BUG: KASAN: (?P<what>[a-z][\w -]*?)(?: on address \S+)?(?: in " + FUNCTION + rb"|$)"),
        title="KASAN: {what} {access}",
        detail=re.compile(r"(?P<access>Read|Write) of size \d"),
        located=True,
        end=END_OF_FENCE,
    ),
    _linux(
        name="linux-kmsan",
        regex=re.compile(rb"BUG: KMSAN: (?P<what>[a-z][\w -]*?) in " + FUNCTION),
        title="KMSAN: {what}",
        located=True,
        end=END_OF_FENCE,
    ),
    _linux(
        name="linux-kcsan",
        regex=re.compile(rb"BUG: KCSAN: (?P<what>[a-z][\w: -]*?) in (?P<detail>.+)"),
        title="KCSAN: {what} in {detail}",
        end=END_OF_FENCE,
    ),
    _linux(
        name="linux-kfence",
        regex=re.compile(rb"BUG: KFENCE: (?P<what>[a-z][\w -]*?) in " + FUNCTION),
        title="KFENCE: {what}",
        located=True,
        end=END_OF_FENCE,
    ),
    _linux(
        name="linux-ubsan",
        regex=re.compile(rb"UBSAN: (?P<what>.{1,80}?) in (?P<file>[\w./+-]+)"),
        title="UBSAN: {what} in {file}",
        severity=Severity.WARNING,
        needles=(b"UBSAN: ",),
        end=END_OF_FENCE,
    ),
)

_OOPS: Final = (
    _oops(
        name="linux-null-dereference",
        regex=re.compile(rb"BUG: [Kk]ernel NULL pointer dereference"),
        title="BUG: kernel NULL pointer dereference",
    ),
    _oops(
        name="linux-unable-to-handle",
        regex=re.compile(
            rb"BUG: [Uu]nable to handle (?P<what>kernel [A-Za-z ]+?|page fault)(?=$| at | for | on |[:,(]| \()"
        ),
        title="BUG: unable to handle {what}",
    ),
    _oops(
        name="linux-stack-guard",
        regex=re.compile(rb"BUG: (?:\w+ )?stack guard page was hit"),
        title="BUG: stack guard page was hit",
    ),
    _oops(
        name="linux-bug-at",
        regex=re.compile(rb"kernel BUG at (?P<file>[^\s:]+)"),
        title="kernel BUG",
    ),
    _oops(
        name="linux-double-fault",
        regex=re.compile(rb"(?:traps: )?PANIC: double fault"),
        title="PANIC: double fault",
        severity=Severity.FATAL,
        needles=(b"PANIC: ",),
    ),
    _oops(
        name="linux-general-protection",
        regex=re.compile(rb"(?:Oops: )?general protection fault\b.*\[#?\d"),
        title="general protection fault",
        needles=(b"[#", b": 0000 ["),
    ),
    # arm, arm64, riscv, and ppc64 before Linux 5.1.
    _oops(
        name="linux-unable-to-handle-kernel",
        regex=re.compile(rb"Unable to handle kernel (?P<what>[A-Za-z -]+?)(?=$| at | for )"),
        title="Unable to handle kernel {what}",
        needles=(b"Unable to handle kernel",),
    ),
    _oops(
        name="linux-unhandled-fault",
        regex=re.compile(rb"Unhandled fault: (?P<what>[\w -]+)"),
        title="Unhandled fault: {what}",
        needles=(b"Unhandled fault: ",),
    ),
    _oops(
        name="linux-serror",
        regex=re.compile(rb"SError Interrupt on CPU"),
        title="SError Interrupt",
        needles=(b"SError Interrupt",),
    ),
    # What die() prints: on its own, or as the second line of the reports above.
    _oops(
        name="linux-internal-error",
        regex=re.compile(rb"Internal error: (?P<what>.{1,80}?)(?:: [0-9a-f]+)? \[#\d"),
        title="Internal error: {what}",
        needles=(b"Internal error: ",),
        joins=True,
    ),
    _oops(
        name="linux-oops-signal",
        regex=re.compile(rb"Oops: (?P<what>[A-Za-z][\w /-]*?), sig: \d+ \[#\d"),
        title="Oops: {what}",
        needles=(b"Oops",),
        joins=True,
    ),
    _oops(
        name="linux-trap",
        regex=re.compile(rb"(?:Oops: )?(?P<what>[A-Za-z][\w ()-]{1,60}?): [0-9a-f]{4} \[#?\d"),
        title="{what}",
        needles=(b"[#", b": 0000 ["),
        joins=True,
    ),
    _oops(
        name="linux-oops",
        regex=re.compile(rb"(?P<what>Oops|Kernel BUG)\b.*\[#\d"),
        title="{what}",
        needles=(b"[#",),
        joins=True,
    ),
)

_PANICS: Final = (
    _panic(
        name="linux-panic",
        regex=re.compile(rb"Kernel panic - not syncing:? *(?P<detail>.*?)(?: *exitcode=0x[0-9a-f]+)?$"),
        title="kernel panic: {detail}",
    ),
)

LINUX_CRASHES: Final = (*_SETUP, *_PANICS, *_SANITIZERS, *_OOPS)
