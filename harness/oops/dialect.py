"""How each kind of layer marks its own words on a console, and where in a line a message begins.

Which lines of a Linux console are the kernel's
-----------------------------------------------

Programs write to the same console, and one that prints ``WARNING: no such file`` is no crash. What tells the kernel
apart is its timestamp, ``[    1.234567] ``, behind which a message begins; ``<4>`` may stand before it and a caller id,
``[    T1] ``, after it. The timestamp may stand anywhere in the line, because the kernel does not wait for a program
to finish its line: ``dom0 login: [   12.345678] BUG: ...``.

A kernel that was told ``printk.time=0`` has no timestamps. So on a console that *has not shown a timestamp so far*, a
message may also begin at the first byte of a line (behind ``<4>`` and a caller id), and then only the patterns that
are ``bare`` are believed: those whose wording no program uses by accident. With the first timestamp this ends for
good. What is given up: a kernel without timestamps whose console shows somebody's ``dmesg`` before the crash, and,
without timestamps, a crash behind a program's unfinished line. What cannot be told: a program that prints a kernel log
with its timestamps.

``(XEN) [    1.234567] `` is Xen's timestamp, not Linux's, and what follows is Xen's.

Xen and QEMU
------------

Xen's message begins behind ``(XEN) `` and an optional timestamp, anywhere in the line for the same reason. QEMU's
begins at the start of the line, behind the time that ``-msg timestamp=on`` adds and the program's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from harness.oops.pattern import Kind, Pattern
from harness.oops.patterns import IGNORED, PATTERNS

# The literal comes first in each, so that the regex engine can skip to it; hence the lookbehind inside.
TIMESTAMP: Final = re.compile(rb"\[(?<!\(XEN\) \[) {0,11}\d{1,11}\.\d{6}\](?:\[ {0,7}[TC]\d{1,9}\])? ")
_UNTIMED: Final = re.compile(rb"(?:<\d{1,3}>)?(?:\[ {0,7}[TC]\d{1,9}\] )?")
_XEN: Final = re.compile(rb"\(XEN\) (?:\[[ 0-9a-f][0-9a-f.: -]{0,40}\] )?")
_QEMU: Final = re.compile(rb"(?:\d{4}-\d\d-\d\dT[\d:.]+Z )?(?:\S{0,200}qemu[\w.-]{0,40}: (?!hardware error|fatal))?")
_RELAYED: Final = re.compile(rb"(?:\(d\d+\)|DOM\d+:) $")

_NOISE: Final = re.compile(rb"\x1b\[[0-?]*+[ -/]*+[@-~]|[\x00-\x08\x0b-\x1f\x7f]")

# Patterns use the same names, which one regex cannot.
_GROUP_NAME: Final = re.compile(rb"\(\?P<\w+>")

# A line of kernel text holds one timestamp, or two where a log is echoed. A line of thousands is somebody's attempt to
# make this slow.
_MESSAGES_A_LINE: Final = 16
_MESSAGE_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class Trigger:
    """A pattern that matched.

    :param pattern: which.
    :param groups: what its regex captured, as text.
    :param begin: where in the cleaned line the layer's words begin, its timestamp included.
    """

    pattern: Pattern
    groups: dict[str, str]
    begin: int


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a scanner knows about one kind of console.

    :param kind: the kind.
    :param patterns: those of that kind, in order.
    :param prefilter: finds everything in raw bytes that could be a message of interest, and a little more.
    :param any_of_them: all patterns in one, for a quick no.
    :param prelude: the line that stands before the trigger and belongs to its report, such as ``cut here``.
    :param own: a line without a match is somebody else's and not part of a report's text.
    """

    kind: Kind
    patterns: tuple[Pattern, ...]
    prefilter: re.Pattern[bytes]
    any_of_them: re.Pattern[bytes]
    prelude: re.Pattern[bytes] | None
    own: re.Pattern[bytes] | None

    def recognise(self, line: bytes, *, fresh: bool, timed: bool) -> Trigger | None:
        """The first crash that a cleaned line shows.

        :param line: without control characters; see :func:`clean`.
        :param fresh: the line's first byte is here, and not cut off.
        :param timed: the console has shown a kernel timestamp before.
        """
        for begin, start, bare in self._messages(line, fresh=fresh, timed=timed):
            message = line[start : start + _MESSAGE_BYTES]
            if self.any_of_them.match(message) is None or any(ignored.match(message) for ignored in IGNORED):
                continue
            for pattern in self.patterns:
                if bare and not pattern.bare:
                    continue
                match = pattern.regex.match(message)
                if match is not None and not (pattern.once and _RELAYED.search(line, 0, begin)):
                    groups = match.groupdict(b"")
                    return Trigger(
                        pattern, {name: text.decode("utf-8", "replace") for name, text in groups.items()}, begin
                    )
        return None

    def _messages(self, line: bytes, *, fresh: bool, timed: bool) -> Iterator[tuple[int, int, bool]]:
        """Where messages may begin: the marker's first byte, the message's, and whether no timestamp vouches for it."""
        if self.kind is Kind.QEMU:
            match = _QEMU.match(line) if fresh else None
            if match is not None:
                yield 0, match.end(), False
            return
        marker = TIMESTAMP if self.kind is Kind.LINUX else _XEN
        for match in islice(marker.finditer(line), _MESSAGES_A_LINE):
            yield match.start(), match.end(), False
        if self.kind is Kind.LINUX and fresh and not timed:
            match = _UNTIMED.match(line)
            if match is not None:
                yield 0, match.end(), True


def clean(raw: bytes) -> bytes:
    """A line as the patterns want it: no line end, no control characters, no ANSI colours."""
    return _NOISE.sub(b"", raw).rstrip()


def _dialect(kind: Kind, prelude: bytes | None, marks: tuple[bytes, ...], own: bytes | None) -> Dialect:
    patterns = tuple(pattern for pattern in PATTERNS if pattern.kind is kind)
    needles = sorted({needle for pattern in patterns for needle in pattern.needles} | set(marks))
    return Dialect(
        kind=kind,
        patterns=patterns,
        prefilter=re.compile(b"|".join(re.escape(needle) for needle in needles)),
        any_of_them=re.compile(b"|".join(_GROUP_NAME.sub(b"(?:", pattern.regex.pattern) for pattern in patterns)),
        prelude=None if prelude is None else re.compile(prelude),
        own=None if own is None else re.compile(own),
    )


DIALECTS: Final = {
    Kind.LINUX: _dialect(
        Kind.LINUX,
        rb"-{8,}\[ cut here \]-{8,}|8<--- cut here ---",
        (b"[ cut here ]", b"8<--- cut"),
        None,
    ),
    Kind.XEN: _dialect(Kind.XEN, rb"\(XEN\).*-{3,}\[ Xen-", (b"Xen-",), rb"\(XEN\)"),
    Kind.QEMU: _dialect(Kind.QEMU, None, (), None),
}
