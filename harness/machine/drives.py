"""What is on a machine's own disks: bytes that say which disk they are from, so that a copy proves what was read."""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path

from harness.errors import HostError


@lru_cache(maxsize=4)  # each machine of a run has the same
def contents(name: str, size: int) -> bytes:
    """The bytes of a drive, the same in each run: random, but for its name at the beginning.

    :param size: in bytes.
    """
    return name.encode().ljust(512, b"\0") + random.Random(name).randbytes(size - 512)  # noqa: S311 (a test pattern)


def write_drive(path: Path, size: int) -> None:
    """Make the file of a drive that is called as the file is.

    :raises HostError: there is no room for it.
    """
    try:
        path.write_bytes(contents(path.name, size))
    except OSError as error:
        raise HostError(f"cannot write drive {path.name}: {error}", hint="free some space, or set TMPDIR") from error
