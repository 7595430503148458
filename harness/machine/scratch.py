"""A machine's private directory: sockets, its initramfs, saved state. It never outlives the run.

Each directory holds a lock for as long as its owner lives. Whoever comes next removes those whose lock is
free: their owner was killed.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from harness.errors import HostError

_LOCK = "lock"
_TRIES = 10
#: A disk with less is full: QEMU drops what it cannot write to logs and traces, and evidence would lie.
_FULL_DISK_BYTES = 1 << 20


def check_room(directory: Path) -> None:
    """Raise :class:`HostError` when the disk under a directory is full."""
    free = shutil.disk_usage(directory).free
    if free < _FULL_DISK_BYTES:
        raise HostError(
            f"the disk of {directory} is full: {free >> 10} KiB are free",
            hint="free some space, or choose another place with --results",
        )


def _prefix() -> str:
    return f"harness-{os.getuid()}-"


def leftovers() -> list[Path]:
    """This user's directories of this kind, in use or not."""
    return [path for path in Path(tempfile.gettempdir()).glob(f"{_prefix()}*") if _is_ours(path)]


def _is_ours(path: Path) -> bool:
    try:
        seen = path.lstat()
    except FileNotFoundError:  # its run ends just now
        return False
    return stat.S_ISDIR(seen.st_mode) and seen.st_uid == os.getuid()


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
        path, lock = _make()
    except OSError as error:
        raise HostError(f"cannot make a temporary directory: {error}", hint="free some space, or set TMPDIR") from error
    try:
        yield path
    finally:
        lock.release()
        shutil.rmtree(path, ignore_errors=True)


def _make() -> tuple[Path, FileLock]:
    """A directory, and the lock on it, held. Who sweeps between the one and the other takes it: then make another."""
    for _ in range(_TRIES):
        path = Path(tempfile.mkdtemp(prefix=_prefix()))
        lock = FileLock(path / _LOCK)
        with suppress(Timeout, FileNotFoundError):
            lock.acquire(timeout=0)
            path.chmod(0o700)  # for the lock, a directory that was swept is made again, but not a private one
            return path, lock
    raise OSError("others remove it as soon as it is there")
