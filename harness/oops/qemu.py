"""QEMU: what it writes to its standard error when it breaks (``system/``, ``accel/kvm/``, glib, libc)."""

from __future__ import annotations

import re
from functools import partial
from typing import Final

from harness.oops.pattern import FUNCTION, Blame, Kind, Pattern, Severity

# QEMU is the bench, not what lies on it: when it breaks, a verdict on the code under test cannot be had.
_qemu = partial(Pattern, kind=Kind.QEMU, severity=Severity.FATAL, blame=Blame.SETUP)
_qemu_assertion = partial(_qemu, title="QEMU: assertion failed", located=True)

QEMU: Final = (
    _qemu_assertion(
        name="qemu-assertion",
        regex=re.compile(rb"(?P<file>[^\s:]+):\d+: (?:[\w* ]+ )?\*?" + FUNCTION + rb"(?:\([^)]*\))?: Assertion [`']"),
        needles=(b"Assertion ",),
    ),
    _qemu_assertion(
        name="qemu-glib-error",
        regex=re.compile(rb"(?:Bail out! )?ERROR:(?P<file>[^\s:]+):\d+:" + FUNCTION + rb": "),
        needles=(b"ERROR:",),
        family="qemu-glib",
        joins=True,
    ),
    _qemu(
        name="qemu-hardware-error",
        regex=re.compile(rb"(?:qemu: )?hardware error: (?P<detail>.+)"),
        title="QEMU: hardware error: {detail}",
        needles=(b"qemu: hardware error", b": hardware error"),
    ),
    _qemu(
        name="qemu-fatal",
        regex=re.compile(rb"(?:qemu: )?fatal: (?P<detail>.+)"),
        title="QEMU: fatal: {detail}",
        needles=(b"fatal: ",),
    ),
    _qemu(
        name="qemu-kvm-internal",
        regex=re.compile(rb"KVM internal error\. Suberror: (?P<suberror>\d+)"),
        title="QEMU: KVM internal error (suberror {suberror})",
        needles=(b"KVM internal error",),
    ),
    _qemu(
        name="qemu-kvm-run",
        regex=re.compile(rb"(?P<what>error: kvm run failed [\w ]+|KVM: entry failed)"),
        title="QEMU: {what}",
        needles=(b"kvm run failed", b"KVM: entry failed"),
    ),
    _qemu(
        name="qemu-no-memory",
        regex=re.compile(
            rb"(?:.*: )?(?:[Cc]ould not allocate |[Cc]annot set up guest memory|[Ff]ailed to allocate |unable to (?:map"
            rb" backing store|alloc))"
        ),
        title="QEMU: out of memory",
        needles=(b"ould not allocate ", b"annot set up guest memory", b"ailed to allocate ", b"unable to "),
    ),
    _qemu(
        name="qemu-sanitizer",
        regex=re.compile(rb"==\d+==\s?ERROR: (?P<what>\w+Sanitizer: [\w-]+)"),
        title="QEMU: {what}",
        needles=(b"Sanitizer: ",),
    ),
    _qemu(
        name="qemu-heap",
        regex=re.compile(
            rb"(?P<what>\*\*\* stack smashing detected|double free or corruption|corrupted size vs\. prev_size"
            rb"|(?:free|malloc|realloc|munmap_chunk)\(\): [\w ()]+)"
        ),
        title="QEMU: {what}",
        needles=(b"stack smashing", b"double free", b"corrupted size", b"(): "),
        follow=1,
    ),
)
