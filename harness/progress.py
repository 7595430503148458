"""How long work tells a person, or a CI log, how far it is."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichBars

BYTES = "bytes"


class Progress(Protocol):
    """What a builder reports to. Calls come from the thread that does the work."""

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


class PlainProgress:
    """One line per event, for a log that nobody watches.

    :param stream: where the lines go.
    :param every_s: at most one line about an unfinished phase in so many seconds.
    """

    def __init__(self, stream: TextIO, *, every_s: float = 5.0) -> None:
        self._stream = stream
        self._every_s = every_s
        self._phase = ""
        self._began = self._last = time.monotonic()

    def phase(self, name: str) -> None:
        """See :class:`Progress`."""
        self._phase = name
        self._began = self._last = time.monotonic()
        self.message(name)

    def update(self, done: float, total: float | None, unit: str) -> None:
        """See :class:`Progress`."""
        now = time.monotonic()
        if now - self._last >= self._every_s:
            self._last = now
            self.message(f"{self._phase}: {_amount(done, total, unit)}, {now - self._began:.0f} s")

    def message(self, text: str) -> None:
        """See :class:`Progress`."""
        self._stream.write(f"{text}\n")
        self._stream.flush()


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
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def phase(self, name: str) -> None:
        """See :class:`Progress`."""
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(name, total=None, amount="")

    def update(self, done: float, total: float | None, unit: str) -> None:
        """See :class:`Progress`."""
        if self._task is not None:
            self._bars.update(self._task, completed=done, total=total, amount=_amount(done, total, unit))

    def message(self, text: str) -> None:
        """See :class:`Progress`."""
        self._bars.console.print(text, markup=False, highlight=False)
