"""How long work tells a person, or a CI log, how far it is."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichBars

BYTES = "bytes"


class Progress(Protocol):
    """What a builder reports to. Calls come from the thread that does the work: each thread has a phase of its own."""

    def phase(self, name: str) -> None:
        """A new piece of work begins, and the one before it is over."""

    def update(self, done: float, total: float | None, unit: str) -> None:
        """The phase is at ``done`` of ``total`` units, such as ``bytes`` or ``packages``; None where nobody knows."""

    def message(self, text: str) -> None:
        """Something that must be seen whatever the display: a corrupted object was dropped, say."""


class SilentProgress:
    """Reports nothing: for callers that only want the result."""

    def phase(self, name: str) -> None:
        """See :class:`Progress`."""

    def update(self, done: float, total: float | None, unit: str) -> None:
        """See :class:`Progress`."""

    def message(self, text: str) -> None:
        """See :class:`Progress`."""


def _amount(done: float, total: float | None, unit: str) -> str:
    """``1.5 of 12.1 MB``, ``3 of 20 packages`` or ``200 files``."""
    if total is None:
        return f"{done:g} {unit}"
    if unit == BYTES:
        return f"{decimal(int(done))} of {decimal(int(total))}"
    return f"{done:g} of {total:g} {unit}"


class Messages(SilentProgress):
    """Tells messages alone, a line each: for a worker whose phases the one that gave it work tells.

    :param stream: where the lines go.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def message(self, text: str) -> None:
        """See :class:`Progress`."""
        self._stream.write(f"{text}\n")  # one write: threads do not cut each other's lines
        self._stream.flush()


class _Phase(threading.local):
    """What a thread is at, and since when."""

    def __init__(self) -> None:
        self.name = ""
        self.began = self.told = time.monotonic()


class PlainProgress(Messages):
    """One line per event, for a log that nobody watches.

    :param stream: where the lines go.
    :param every_s: at most one line about an unfinished phase in so many seconds.
    """

    def __init__(self, stream: TextIO, *, every_s: float = 5.0) -> None:
        super().__init__(stream)
        self._every_s = every_s
        self._phase = _Phase()

    def phase(self, name: str) -> None:
        """See :class:`Progress`."""
        self._phase.name = name
        self._phase.began = self._phase.told = time.monotonic()
        self.message(name)

    def update(self, done: float, total: float | None, unit: str) -> None:
        """See :class:`Progress`."""
        now, phase = time.monotonic(), self._phase
        if now - phase.told >= self._every_s:
            phase.told = now
            self.message(f"{phase.name}: {_amount(done, total, unit)}, {now - phase.began:.0f} s")


class RichProgress:
    """A bar that moves, for a terminal. A context manager: the bar is gone when it ends, messages stay.

    :param console: the terminal; standard error when omitted, so that standard output stays clean.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._bars = RichBars(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[amount]}"),
            TimeElapsedColumn(),
            console=console or Console(stderr=True),
            transient=True,
        )
        self._tasks: dict[threading.Thread, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def phase(self, name: str) -> None:
        """See :class:`Progress`."""
        mine = threading.current_thread()
        for thread in [item for item in self._tasks if item is mine or not item.is_alive()]:
            self._bars.remove_task(self._tasks.pop(thread))
        self._tasks[mine] = self._bars.add_task(name, total=None, amount="")

    def update(self, done: float, total: float | None, unit: str) -> None:
        """See :class:`Progress`."""
        task = self._tasks.get(threading.current_thread())
        if task is not None:
            self._bars.update(task, completed=done, total=total, amount=_amount(done, total, unit))

    def message(self, text: str) -> None:
        """See :class:`Progress`."""
        self._bars.console.print(text, markup=False, highlight=False)
