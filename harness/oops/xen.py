"""Xen: panics, crashed domains, IOMMU faults (``xen/common/``, ``xen/arch/*/traps.c``, ``drivers/passthrough/vtd``)."""

from __future__ import annotations

import re
from functools import partial
from typing import Final

from harness.oops.pattern import END_OF_XEN, Blame, Kind, Pattern, Severity

# A domain that crashes does not end Xen; what ends Xen prints several of the xen-panic lines, in any order.
_xen = partial(
    Pattern,
    kind=Kind.XEN,
    severity=Severity.FATAL,
    blame=Blame.PRODUCT,
    located=True,
    end=END_OF_XEN,
)
_xen_panic = partial(_xen, family="xen-panic", joins=True)
_xen_domain = partial(_xen, severity=Severity.BUG, family="xen-domain")

XEN: Final = (
    _xen_panic(
        name="xen-no-dom0",
        regex=re.compile(
            rb"(?P<what>Could not construct d(?:omain )?0|Could not set up DOM0 guest OS|Error creating domain 0"
            rb"|Failed to load Dom0 kernel|Dom0 kernel not specified|Unable to find compatible GIC)"
        ),
        title="Xen: {what}",
        needles=(b"Could not ", b"Error creating", b"Failed to load", b"Dom0 kernel not", b"Unable to find"),
        blame=Blame.SETUP,
        located=False,
    ),
    _xen_panic(
        name="xen-fatal-trap",
        regex=re.compile(rb"FATAL TRAP: (?P<what>vec \d+(?:, #?\w+)?|vector = \d+(?: \([\w -]+\))?)"),
        title="Xen: Panic on CPU: FATAL TRAP: {what}",
        needles=(b"FATAL TRAP",),
    ),
    _xen_panic(
        name="xen-bug",
        regex=re.compile(rb"Xen BUG at (?P<file>[^\s:]+)"),
        title="Xen: BUG",
        needles=(b"Xen BUG at",),
    ),
    _xen_panic(
        name="xen-assertion",
        regex=re.compile(rb"Assertion '(?P<what>.{1,200}?)' failed at (?P<file>[^\s:,]+)"),
        title="Xen: Assertion '{what}' failed",
        needles=(b"Assertion '",),
    ),
    _xen_panic(
        name="xen-watchdog",
        regex=re.compile(rb"Watchdog timer detects that CPU ?\d+ is stuck"),
        title="Xen: Watchdog timer detects that a CPU is stuck",
        needles=(b"Watchdog timer",),
    ),
    _xen_panic(
        name="xen-panic",
        regex=re.compile(rb"Panic on CPU \d+:"),
        title="Xen: Panic on CPU: {detail}",
        needles=(b"Panic on CPU",),
        detail=re.compile(r"Panic on CPU \d+:\n[^\n]*?\(XEN\)(?: \[[^]\n]*\])? *(?:CPU\d+: )?(?P<detail>[^\n]*)"),
        refinable=True,
    ),
    # Xen's UBSAN ends its report with a WARN of its own.
    _xen(
        name="xen-ubsan",
        regex=re.compile(rb"UBSAN: (?P<what>.{1,80}?) in (?P<file>[\w./+-]+)"),
        title="Xen: UBSAN: {what} in {file}",
        severity=Severity.WARNING,
        needles=(b"UBSAN: ",),
        located=False,
        family="xen-ubsan",
    ),
    _xen(
        name="xen-ubsan-warn",
        regex=re.compile(rb"Xen WARN at common/ubsan/"),
        title="Xen: UBSAN",
        severity=Severity.WARNING,
        needles=(b"Xen WARN at",),
        family="xen-ubsan",
        joins=True,
    ),
    _xen(
        name="xen-warn",
        regex=re.compile(rb"Xen WARN at (?P<file>[^\s:]+)"),
        title="Xen: WARN",
        severity=Severity.WARNING,
        needles=(b"Xen WARN at",),
    ),
    _xen(
        name="xen-dom0-crashed",
        regex=re.compile(rb"Hardware Dom\d+ crashed"),
        title="Xen: Hardware Dom0 crashed",
        needles=(b"Hardware Dom",),
        located=False,
        follow=1,
    ),
    _xen_domain(
        name="xen-domain-crash-call",
        regex=re.compile(rb"domain_crash(?:_sync)? called from (?P<file>[^\s:]+)"),
        title="Xen: domain_crash called from {file}",
        needles=(b"_crash",),
        located=False,
    ),
    _xen_domain(
        name="xen-triple-fault",
        regex=re.compile(rb"d\d+v\d+ Triple fault"),
        title="Xen: a domain's triple fault",
        needles=(b"Triple fault",),
        located=False,
    ),
    # The number of a domU grows with each start; dom0 is always 0.
    _xen_domain(
        name="xen-domain-crashed",
        regex=re.compile(rb"Domain (?:(?P<zero>0)|\d+) (?:\(vcpu#\d+\) crashed on cpu#|reported crashed by )"),
        title="Xen: Domain {zero} crashed",
        needles=(b"(vcpu#", b"reported crashed by "),
        located=False,
        joins=True,
    ),
    _xen(
        name="xen-vtd-fault",
        regex=re.compile(
            rb"\[VT-D\] ?(?:DMAR:\[(?P<what>DMA Read|DMA Write)\]|(?P<remap>INTR-REMAP):) Request device"
            rb" \[(?P<device>[0-9a-f:.]+)\] fault "
        ),
        title="Xen: VT-d: {what}{remap} fault of device {device}",
        severity=Severity.WARNING,
        needles=(b"VT-D]",),
        located=False,
        follow=1,
    ),
    _xen(
        name="xen-banner",
        regex=re.compile(rb"Xen version \d"),
        title="Xen: rebooted by itself",
        needles=(b"Xen version",),
        located=False,
        once=True,
        follow=0,
    ),
)
