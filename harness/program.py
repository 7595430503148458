"""The ``harness`` command's way in."""

from __future__ import annotations

import gc


def main() -> None:
    """Run the command line. What it imports stays to the end, so nobody need look for garbage in it, now or later."""
    gc.disable()
    from harness.cli import main as command_line  # noqa: PLC0415 (what this is for)

    gc.freeze()
    gc.enable()
    command_line()
