"""Locks between processes that share a cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from harness.deadline import Deadline
from harness.errors import HostError


@contextmanager
def held(path: Path, deadline: Deadline) -> Iterator[None]:
    """Hold a lock file; the kernel lets go of it when the holder dies.

    :raises HostError: another process held it past the deadline.
    """
    try:
        with FileLock(path, timeout=deadline.remaining_s):
            yield
    except Timeout:
        raise HostError(
            f"another process held {path} for too long: {deadline.what}",
            hint=f"see which one with: fuser -v {path}",
        ) from None
