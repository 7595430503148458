"""Where builders work: directories that go away with them, even when they are killed."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from harness.images.locks import held_if_free


@contextmanager
def workspace(parent: Path) -> Iterator[Path]:
    """An empty directory below ``parent`` for as long as the block runs."""
    with ExitStack() as stack:
        directory = _claimed(parent, stack)
        directory.mkdir()
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def _claimed(parent: Path, stack: ExitStack) -> Path:
    """A name whose lock is held from now on. Another process's sweep may be quicker to hold it, for a moment."""
    while True:
        directory = parent / secrets.token_hex(8)
        if stack.enter_context(held_if_free(_lock_of(directory))):
            return directory


def sweep(parent: Path) -> None:
    """Remove the directories whose builders were killed: those whose lock nobody holds."""
    for directory in {path.with_suffix("") for path in parent.iterdir()}:
        with held_if_free(_lock_of(directory)) as free:
            if free:
                shutil.rmtree(directory, ignore_errors=True)


def _lock_of(directory: Path) -> Path:
    return directory.with_suffix(".lock")
