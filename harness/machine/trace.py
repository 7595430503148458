"""QEMU's trace events as evidence: on around a step, off again, and read back from QEMU's log.

Debian's QEMU writes traces with the ``log`` back end: one line an event, its name first
(QEMU's ``docs/devel/tracing``). Each line is flushed before the monitor answers the next command, so
what lies between two commands in the file is what happened between them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from harness.errors import HostError
from harness.machine.qmp import Monitor, MonitorLost, MonitorRefused

#: A trace left on by mistake fills a disk: 330 MB were seen in one run.
LIMIT_BYTES = 256 << 20


@cache
def _value(field: str) -> re.Pattern[str]:
    return re.compile(rf"\b{re.escape(field)}[:=]?\s*(0x[0-9a-fA-F]+|-?\d+)\b")


class TraceEvent(NamedTuple):
    """One event: its name, and the rest of the line as QEMU formatted it. A step may well see half a million."""

    name: str
    text: str

    def number(self, field: str) -> int:
        """The value after ``field``, in decimal or with a ``0x`` prefix.

        :raises HostError: when the event has no such field: QEMU formats it otherwise than we read it.
        """
        match = _value(field).search(self.text)
        if match is None:
            raise HostError(f"trace event {self.name} has no field {field}: {self.text}", layer="qemu")
        return int(match.group(1), 0)


class Recording:
    """What QEMU logs of the named events, from now until :meth:`close`.

    :param log: QEMU's log file.
    :param names: event names, ``*`` for any part.
    :param start: where in the file it begins; its end by default.
    """

    def __init__(self, log: Path, names: Sequence[str], start: int | None = None) -> None:
        self._log = log
        self._names = "|".join(re.escape(name).replace(r"\*", r"\w*") for name in names)
        self._wanted = re.compile(rf"({self._names}) (.*)")
        self._position = self._size() if start is None else start
        self._end: int | None = None

    def _size(self) -> int:
        return self._log.stat().st_size if self._log.exists() else 0

    def close(self) -> None:
        """Mark the end: later events do not belong to this recording."""
        self._end = self._size()

    def take(self) -> list[TraceEvent]:
        """The events that came since the recording began, or since the last call.

        :raises HostError: when there are more of them than fit in memory.
        """
        matches = map(self._wanted.fullmatch, self._take_text().split("\n"))
        return [TraceEvent(*match.groups()) for match in matches if match]

    def take_field(self, field: str) -> list[str]:
        """What :meth:`take` would give, but only the value after ``field``, as it stands there.

        For events by the hundred thousand: it takes a third of the time. Raises as :meth:`take`.

        :raises HostError: when an event has no such field.
        """
        values = re.findall(rf"^(?:{self._names}) (?:.*?{_value(field).pattern})?", self._take_text(), re.MULTILINE)
        if "" in values:
            raise HostError(f"a trace event has no field {field}", layer="qemu", log=self._log)
        return values

    def _take_text(self) -> str:
        """The whole lines that came since the last look."""
        size = (self._size() if self._end is None else self._end) - self._position
        if size > LIMIT_BYTES:
            raise HostError(
                f"a trace of {size >> 20} MiB is too large to read",
                hint="record fewer events, or a shorter step",
                log=self._log,
            )
        if size <= 0:
            return ""
        with self._log.open("rb") as file:
            file.seek(self._position)
            text = file.read(size)
        whole = text[: text.rfind(b"\n") + 1]  # QEMU may be in the middle of a line
        self._position += len(whole)
        return whole.decode("utf-8", "replace")


class Tracer:
    """Switches trace events of one QEMU.

    :param monitor: its monitor.
    :param log: the file that its ``-D`` names.
    """

    def __init__(self, monitor: Monitor, log: Path) -> None:
        self._monitor = monitor
        self._log = log
        self._users: Counter[str] = Counter()

    @contextmanager
    def record(self, *names: str) -> Iterator[Recording]:
        """Record the named events (``*`` matches any part) while the block runs; blocks may nest.

        :raises HostError: when this QEMU has no such event.
        """
        recording = Recording(self._log, names)
        with ExitStack() as stack:
            for name in dict.fromkeys(event for pattern in names for event in self._events(pattern)):
                stack.enter_context(self._switched_on(name))
            yield recording
        recording.close()

    def of_boot(self, *names: str) -> Recording:
        """What was traced of the named events since QEMU's start: those that its command line has switched on."""
        return Recording(self._log, names, start=0)

    def switch_off(self, *names: str) -> None:
        """End what QEMU's command line has switched on.

        :raises HostError: when this QEMU has no such event.
        """
        for name in dict.fromkeys(event for pattern in names for event in self._events(pattern)):
            self._ask("trace-event-set-state", name, enable=False)

    def _events(self, pattern: str) -> list[str]:
        """The events that a pattern stands for. QEMU itself takes one that matches nothing, and so nothing comes."""
        found = self._ask("trace-event-get-state", pattern)
        names = [str(event["name"]) for event in found if event["state"] != "unavailable"]
        if not names:
            raise _unknown(pattern)
        return names

    @contextmanager
    def _switched_on(self, name: str) -> Iterator[None]:
        if not self._users[name]:
            self._ask("trace-event-set-state", name, enable=True)
        self._users[name] += 1
        try:
            yield
        finally:
            self._users[name] -= 1
            if not self._users[name]:
                with suppress(MonitorLost):  # with QEMU gone, nothing is traced any more
                    self._ask("trace-event-set-state", name, enable=False)

    def _ask(self, command: str, name: str, **arguments: bool) -> Any:
        try:
            return self._monitor.execute(command, {"name": name, **arguments})
        except MonitorRefused as error:
            raise _unknown(name) from error


def _unknown(name: str) -> HostError:
    return HostError(f"this QEMU has no trace event {name}", layer="qemu", hint="QEMU 7.2 or newer")
