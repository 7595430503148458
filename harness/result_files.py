"""Where results are written: a directory for each scenario, and words for a disk that does not take them."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from rich.filesize import decimal

from harness.errors import HostError


def new_directory(parent: Path, name: str) -> Path:
    """Make a directory whose name no other run has, an earlier one or one at the same time: nothing is overwritten.

    :raises OSError: it cannot be made.
    """
    parent.mkdir(parents=True, exist_ok=True)
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    for path in (parent / name for name in names):
        with suppress(FileExistsError):
            path.mkdir()
            return path
    raise AssertionError("names do not run out")


def unwritable(directory: Path, error: OSError) -> str:
    """Why results cannot be written, and what to do about it."""
    return HostError(f"cannot write results: {error}", hint=free_space(directory)).explain()


def free_space(results: Path) -> str:
    """How much the disks that a run writes to have left, as a hint."""
    places = (("results", results, "--results"), ("temporary files", Path(tempfile.gettempdir()), "TMPDIR"))
    shown = []
    for what, directory, chooser in places:
        existing = next(path for path in (directory, *directory.parents) if path.exists())
        free = decimal(shutil.disk_usage(existing).free)
        shown.append(f"{free} free for {what} in {directory} ({chooser} chooses another place)")
    return "; ".join(shown)
