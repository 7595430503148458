"""A machine's private directory: sockets, its initramfs, saved state. It never outlives the run.

Each directory holds a lock for as long as its owner lives. Whoever comes next removes those whose lock is
free: their owner was killed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from harness.errors import HostError

_LOCK = "lock"


def _prefix() -> str:
    return f"harness-{os.getuid()}-"


def leftovers() -> list[Path]:
    """This user's directories of this kind, in use or not."""
    paths = Path(tempfile.gettempdir()).glob(f"{_prefix()}*")
    return [path for path in paths if not path.is_symlink() and path.is_dir() and path.stat().st_uid == os.getuid()]


def sweep() -> list[Path]:
    """Remove what killed runs left behind, and give what was removed."""
    removed = []
    for path in leftovers():
        lock = FileLock(path / _LOCK)
        try:
            with lock.acquire(timeout=0):
                shutil.rmtree(path, ignore_errors=True)
                removed.append(path)
        except (Timeout, OSError):
            continue
    return removed


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """A directory that only this user can enter, gone after the block. Unix sockets in it have short paths.

    :raises HostError: when the disk has no room for it.
    """
    try:
        path = Path(tempfile.mkdtemp(prefix=_prefix()))
    except OSError as error:
        raise HostError(f"cannot make a temporary directory: {error}", hint="free some space, or set TMPDIR") from error
    try:
        with FileLock(path / _LOCK):
            yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
