"""Locks between processes that share a cache. The kernel lets go of them when their holder dies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from harness.deadline import Deadline
from harness.errors import HostError
from harness.parallel import stopped


@contextmanager
def held(path: Path, deadline: Deadline, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a lock file.

    :param on_wait: called once when another process holds it, before waiting.
    :raises HostError: another process held it past the deadline.
    """
    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            on_wait()
            lock.acquire(timeout=deadline.remaining_s, cancel_check=stopped)
    except Timeout:
        if stopped():
            raise KeyboardInterrupt from None
        raise HostError(
            f"another process held {path} for too long: {deadline.what}",
            hint=f"see which one with: fuser -v {path}",
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def held_if_free(path: Path) -> Iterator[bool]:
    """Hold a lock file for the block unless another process does; tells which. The file is gone afterwards."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        # While it is held: whoever opened it meanwhile sees that the lock guards no name any more, and tries again.
        path.unlink(missing_ok=True)
        lock.release()
