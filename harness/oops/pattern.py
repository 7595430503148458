"""What a crash signature is.

A :class:`Pattern` is matched against a *message*: what a layer said, without what its console puts in front of it
(timestamp, caller id, ``(XEN)``; see :mod:`harness.oops.dialect`). It is tried at the message's first byte only, so
that a program that talks about a crash does not make one. The order matters: the first pattern that matches names the
report, so the special stands before the general. The tables are in :mod:`harness.oops.patterns`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Kind(StrEnum):
    """Who speaks on a console. Xen's serial line carries dom0's words too: scan it twice, once as each kind."""

    LINUX = "linux"
    XEN = "xen"
    QEMU = "qemu"


class Severity(StrEnum):
    """How bad it is: the layer complains and goes on, something in it is broken, or it is over."""

    WARNING = "warning"
    BUG = "bug"
    FATAL = "fatal"


class Blame(StrEnum):
    """Whose fault it is: the code under test, or what the harness put around it (image, boot plan, host).

    It is the emulator's when the report shows what no processor can do: nothing else of the guest means anything then.
    """

    PRODUCT = "product"
    SETUP = "setup"
    EMULATOR = "emulator"


END_OF_TRACE: Final = re.compile(rb"-{2,}\[ end (?:trace|Kernel panic)|Rebooting in \d+ seconds")
END_OF_FENCE: Final = re.compile(rb"={20,}|-{2,}\[ end trace")
END_OF_XEN: Final = re.compile(rb"\(XEN\).*(?:Reboot in |Manual reset required|Resetting)")

FOLLOW_LINES: Final = 120

FUNCTION: Final = rb"(?P<function>[A-Za-z_][\w.]*)"
"""What patterns have in common: the name of a function in C."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """One crash signature.

    :param name: stable, for ``allow_crash`` and for statistics: ``linux-kasan``.
    :param kind: the kind of console on which it is looked for.
    :param regex: matched at the first byte of a message. Its groups go into the title.
    :param severity: see :class:`Severity`.
    :param blame: see :class:`Blame`.
    :param title: a format string over the groups of ``regex`` and ``detail``. The group ``detail`` is free text and
        loses its numbers; ``file`` and ``function`` say where, and are appended when the title does not name them.
    :param needles: a match contains at least one of these: what the fast search looks for.
    :param detail: searched in the text of the whole report for more groups, such as KASAN's ``Read of size``.
    :param located: the title ends with `` in FUNCTION``, when the report says which.
    :param family: what belongs to one crash. A pattern that ``joins`` continues an open report of its family.
    :param joins: see ``family``; where no such report is open, it begins one of its own.
    :param refinable: says only that there was a crash; the next of its family that joins gives the report its name.
    :param bare: believed on a Linux line that has no timestamp either; only for wordings that no program uses.
    :param once: normal the first time and a crash the second: the layer's first words.
    :param end: the last line of the report's text.
    :param follow: at most so many lines after the first belong to the text.
    """

    name: str
    kind: Kind
    regex: re.Pattern[bytes]
    severity: Severity
    blame: Blame
    title: str
    needles: tuple[bytes, ...]
    detail: re.Pattern[str] | None = None
    located: bool = False
    family: str = ""
    joins: bool = False
    refinable: bool = False
    bare: bool = True
    once: bool = False
    end: re.Pattern[bytes] = END_OF_TRACE
    follow: int = FOLLOW_LINES
