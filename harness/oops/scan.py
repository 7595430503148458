"""The crash scanner: a console's bytes in, as they come; reports out.

A report is *found* with the line that says so, and *finished* when its text is whole: at its end mark (``end trace``),
at the next crash, or after a bounded number of lines. :meth:`Scanner.feed` returns finished reports, each once. What
has been found and not finished is :attr:`Scanner.pending`, so that who waits for the machine can stop waiting at once;
its title may still get better, because the function that crashed is named some lines later. :meth:`Scanner.finish`
closes what is open.

A long flood costs no memory and little time: whole blocks are searched for a handful of literals, and only the lines
around those are looked at. What is kept is bounded: an unfinished line (64 KiB), the open report (32 KiB), and the
finished ones, of which there are at most 100 with 96 KiB of text together. Past that a report keeps its first line, and
past 100 it is counted only; the whole of it is in the console's log, at ``offset``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from sys import getsizeof
from typing import Final

from harness.oops.dialect import DIALECTS, TIMESTAMP, Dialect, Trigger, clean
from harness.oops.pattern import Blame, Kind, Pattern, Severity
from harness.oops.text import LINE_CHARS, sanitize_line
from harness.oops.title import compose

LINE_BYTES: Final = 64 * 1024
REPORTS: Final = 100
REPORT_TEXT_BYTES: Final = 16 * 1024
ALL_TEXT_BYTES: Final = 96 * 1024
PRELUDE_LINES: Final = 120
#: The flags of an x86 processor as Linux and Xen print them. Bits 22 and up are reserved and always 0 (Intel SDM,
#: volume 1, 3.4.3; AMD APM, volume 2, 3.1.6). Emulating SVM, QEMU 7.2 has left a domain with half a pointer in them.
_FLAGS: Final = re.compile(r"\b(?:EFLAGS|rflags): (?:0{8})?([0-9a-f]{8})\b")
_RESERVED_FLAGS: Final = 0xFFC0_0000


@dataclass(frozen=True, slots=True)
class Report:
    """A crash that a console shows.

    :param layer: whose console: ``qemu``, ``xen``, or a guest's name.
    :param title: one line that is the same each time the same thing happens.
    :param severity: how bad it is.
    :param blame: whose fault it is; see :class:`~harness.oops.pattern.Blame`.
    :param pattern: the name of the :class:`~harness.oops.patterns.Pattern`.
    :param line: the 1-based number of the line that gave it away.
    :param offset: that line's first byte in the console's log.
    :param text: the report's lines, free of control characters, each of at most 400 characters.
    """

    layer: str
    title: str
    severity: Severity
    blame: Blame
    pattern: str
    line: int
    offset: int
    text: tuple[str, ...]


@dataclass(slots=True)
class _Text:
    """Lines that are shown, what they weigh in memory, and how many more of the console's may follow."""

    left: int
    lines: list[str] = field(default_factory=list)
    weight: int = 0

    def add(self, line: str) -> None:
        self.lines.append(line)
        self.weight += getsizeof(line)


@dataclass(slots=True)
class _Open:
    """A report whose lines are still coming in.

    ``told`` is the index in ``text`` of the line that gave it away, ``limit`` the weight at which the text is enough.
    """

    trigger: Trigger
    line: int
    offset: int
    text: _Text
    told: int
    limit: int

    @property
    def complete(self) -> bool:
        return self.text.left <= 0 or self.text.weight >= self.limit


class Scanner:
    """Looks for crashes in one layer's console. Not for use by several threads at once.

    :param layer: whose console it is; goes into the reports.
    :param kind: who speaks on it: ``linux``, ``xen`` or ``qemu``. Raises :class:`ValueError` for anything else.
    :param booted: the layer was up before the log began, as after a restored snapshot: its first words are then
        already the second time.
    """

    def __init__(self, layer: str, kind: str, *, booted: bool = False) -> None:
        self.layer = layer
        self.kind = Kind(kind)
        self.dropped = 0
        self._dialect: Dialect = DIALECTS[self.kind]
        self._reports: list[Report] = []
        self._kept_weight = 0
        self._held = bytearray()
        self._offset = 0  # of the next block's first byte in the log
        self._newlines = 0  # before that byte
        self._fresh = True  # that byte begins a line
        self._timed = False
        self._open: _Open | None = None
        self._prelude: _Text | None = None
        self._said = {pattern.name for pattern in self._dialect.patterns if pattern.once and booted}

    @property
    def reports(self) -> tuple[Report, ...]:
        """The finished reports, oldest first: the first 100. ``dropped`` says how many more there were."""
        return tuple(self._reports)

    @property
    def pending(self) -> Report | None:
        """The report that has been found and is not finished, as far as it is known; none past the first 100."""
        if self._open is None or self._full:
            return None
        return self._report(self._open)

    @property
    def held_bytes(self) -> int:
        """How much of the log is kept in memory now; at most about 200 KiB, however long the log is."""
        weight = len(self._held) + self._kept_weight
        for lines in (self._prelude, None if self._open is None else self._open.text):
            weight += 0 if lines is None else lines.weight
        return weight

    def feed(self, data: bytes) -> list[Report]:
        """Take the console's next bytes, split anywhere, and return the reports that they finish."""
        finished: list[Report] = []
        for begin in range(0, len(data), LINE_BYTES):
            searched = len(self._held)
            self._held += data[begin : begin + LINE_BYTES]
            while len(self._held) >= LINE_BYTES:
                # A line that is too long is cut every 64 KiB from its own beginning, wherever the data was split, so
                # that what is found does not depend on that. A signature that lies across a cut is missed.
                self._scan(self._take(self._held.rfind(b"\n", 0, LINE_BYTES) + 1 or LINE_BYTES), finished)
                searched = 0
            end = self._held.rfind(b"\n", searched) + 1
            if end:
                self._scan(self._take(end), finished)
        return finished

    def finish(self) -> list[Report]:
        """The console has ended: read its unfinished last line and return what is still open."""
        finished: list[Report] = []
        if self._held:
            self._scan(self._take(len(self._held)), finished)
        self._close(finished)
        self._prelude = None
        return finished

    @property
    def _full(self) -> bool:
        """Whether further reports are counted only."""
        return len(self._reports) >= REPORTS

    def _take(self, count: int) -> bytes:
        block = bytes(self._held[:count])
        del self._held[:count]
        return block

    def _scan(self, block: bytes, finished: list[Report]) -> None:
        """Read a block of whole lines, or the piece of a line that is too long."""
        position = counted = learned = 0
        newlines = self._newlines
        while position < len(block):
            if self._open is None and self._prelude is None:
                hit = self._dialect.prefilter.search(block, position)
                if hit is None:
                    break
                position = max(position, block.rfind(b"\n", position, hit.start()) + 1)
            end = block.find(b"\n", position) + 1 or len(block)
            newlines += block.count(b"\n", counted, position)
            counted = position
            self._learn(block, learned, position)
            learned = position
            fresh = position > 0 or self._fresh
            self._read(block[position:end], newlines + 1, self._offset + position, fresh, finished)
            position = end
        self._learn(block, learned, len(block))
        self._newlines = newlines + block.count(b"\n", counted)
        self._offset += len(block)
        self._fresh = block.endswith(b"\n")

    def _learn(self, block: bytes, begin: int, end: int) -> None:
        """Notice whether this kernel prints timestamps; see :mod:`harness.oops.dialect`."""
        if not self._timed and self.kind is Kind.LINUX:
            self._timed = TIMESTAMP.search(block, begin, end) is not None

    def _read(self, raw: bytes, line: int, offset: int, fresh: bool, finished: list[Report]) -> None:
        """Read one line."""
        trigger = None
        cleaned = clean(raw)
        if self._dialect.prefilter.search(raw) is not None:
            trigger = self._dialect.recognise(cleaned, fresh=fresh, timed=self._timed)
        if trigger is not None and trigger.pattern.once and not self._again(trigger.pattern):
            trigger = None
        if trigger is None:
            self._continue(raw, cleaned, finished)
        elif not self._join(raw, trigger):
            self._close(finished)
            self._begin(raw, trigger, line, offset)
        if self._open is not None and self._open.complete:
            self._close(finished)

    def _again(self, pattern: Pattern) -> bool:
        """Whether a layer's first words are not its first. A boot has several of them, and is reported once."""
        again = pattern.name in self._said
        if again:
            self._said.clear()
        self._said.add(pattern.name)
        return again

    def _join(self, raw: bytes, trigger: Trigger) -> bool:
        """Whether the line belongs to the report that is open, as the ``Oops:`` behind a ``BUG:`` does."""
        report = self._open
        if report is None or not trigger.pattern.joins or trigger.pattern.family != report.trigger.pattern.family:
            return False
        if report.trigger.pattern.refinable and not trigger.pattern.refinable:
            report.trigger = trigger
        self._add(report, raw)
        return True

    def _begin(self, raw: bytes, trigger: Trigger, line: int, offset: int) -> None:
        """Open a report, with the prelude before it if there was one."""
        text = _Text(0)
        if self._prelude is not None and trigger.pattern.follow > 1:
            text, self._prelude = self._prelude, None
        text.left = trigger.pattern.follow
        told = len(text.lines)
        limit = text.weight + REPORT_TEXT_BYTES
        if not self._full:
            # Behind a program's long unfinished line, show the crash and not the program's words.
            text.add(sanitize_line(raw if trigger.begin < LINE_CHARS // 2 else clean(raw)[trigger.begin :]))
        self._open = _Open(trigger, line, offset, text, told, limit)

    def _continue(self, raw: bytes, cleaned: bytes, finished: list[Report]) -> None:
        """Read a line that gives nothing away: a report's next line, its last, or a prelude's."""
        prelude = self._dialect.prelude
        begins = prelude is not None and prelude.search(cleaned) is not None
        # Linux draws its line before the words that give the crash away; Xen's registers come before or after them.
        if begins and (self._open is None or self.kind is Kind.LINUX):
            self._close(finished)
            self._prelude = _Text(PRELUDE_LINES)
        if self._open is not None:
            self._add(self._open, raw)
            if self._open.trigger.pattern.end.search(cleaned) is not None:
                self._close(finished)
        elif self._prelude is not None:
            self._prelude.left -= 1
            if self._prelude.left < 0:
                self._prelude = None
            elif self._is_own(cleaned) and self._prelude.weight < REPORT_TEXT_BYTES:
                self._prelude.add(sanitize_line(raw))

    def _add(self, report: _Open, raw: bytes) -> None:
        report.text.left -= 1
        if not self._full and self._is_own(raw):
            report.text.add(sanitize_line(raw))

    def _is_own(self, line: bytes) -> bool:
        own = self._dialect.own
        return own is None or own.search(line) is not None

    def _close(self, finished: list[Report]) -> None:
        """Finish the open report, if there is one: keep it and hand it out, or count it."""
        report, self._open = self._open, None
        if report is None:
            return
        if self._full:
            self.dropped += 1
            return
        done = self._report(report)
        self._reports.append(done)
        self._kept_weight += sum(map(getsizeof, done.text))
        finished.append(done)

    def _report(self, found: _Open) -> Report:
        pattern = found.trigger.pattern
        lines = found.text.lines
        if self._kept_weight + found.text.weight > ALL_TEXT_BYTES:
            lines = lines[found.told : found.told + 1]
        return Report(
            layer=self.layer,
            title=compose(pattern, found.trigger.groups, found.text.lines),
            severity=pattern.severity,
            blame=Blame.EMULATOR if any(map(_is_impossible, found.text.lines)) else pattern.blame,
            pattern=pattern.name,
            line=found.line,
            offset=found.offset,
            text=tuple(lines),
        )


def _is_impossible(line: str) -> bool:
    """Whether a line shows a processor's state that there cannot be."""
    flags = _FLAGS.search(line)
    return flags is not None and int(flags.group(1), 16) & _RESERVED_FLAGS != 0
