"""What long work tells a log and a terminal."""

from __future__ import annotations

import io

from rich.console import Console

from harness.progress import BYTES, PlainProgress, RichProgress


def test_a_log_gets_one_line_an_event() -> None:
    out = io.StringIO()
    progress = PlainProgress(out, every_s=3600)
    progress.phase("fetching")
    for done in range(100):
        progress.update(done, 100, BYTES)
    progress.message("a [bold] word")
    assert out.getvalue() == "fetching\na [bold] word\n"


def test_a_log_hears_of_slow_phases() -> None:
    out = io.StringIO()
    progress = PlainProgress(out, every_s=0)
    progress.phase("fetching")
    progress.update(1_500_000, 3_000_000, BYTES)
    progress.update(3, 20, "packages")
    assert out.getvalue().splitlines()[1:] == [
        "fetching: 1.5 MB of 3.0 MB, 0 s",
        "fetching: 3 of 20 packages, 0 s",
    ]


def test_a_terminal_keeps_messages_as_they_are() -> None:
    out = io.StringIO()
    with RichProgress(Console(file=out, force_terminal=True, width=80)) as progress:
        progress.phase("one")
        progress.phase("fetching")
        progress.update(3, 4, BYTES)
        progress.message("object [abc] was damaged")
    assert "object [abc] was damaged" in out.getvalue()
    assert "3 bytes of 4 bytes" in out.getvalue()
