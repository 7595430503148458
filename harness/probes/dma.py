"""What a disk carries, without the page cache: each byte comes and goes by the controller's own DMA."""

from __future__ import annotations

import hashlib
import mmap
import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself is slow to import
    from typing import Any

SECTOR = 512
DEVICES = "/dev"
BLOCK_DEVICES = "/sys/block"


def _read(path: str, offset: int, size: int) -> bytes:
    buffer = mmap.mmap(-1, size)  # its pages are aligned, as O_DIRECT wants them
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        count = os.preadv(fd, [buffer], offset)
        if count != size:
            raise OSError(f"{path}: {count} of {size} bytes read")
        return buffer[:]
    finally:
        os.close(fd)


def _find(drive: str) -> str:
    """The disk that begins with its own name.

    :raises OSError: there is none.
    """
    seen = []
    for name in sorted(os.listdir(BLOCK_DEVICES)):
        try:
            label = _read(f"{DEVICES}/{name}", 0, SECTOR).rstrip(b"\0")
        except OSError as error:
            label = str(error).encode()
        if label == drive.encode():
            return f"{DEVICES}/{name}"
        seen.append(f"{name}: {label[:40]!r}")
    raise FileNotFoundError(f"no disk begins with the name {drive}, found {', '.join(seen) or 'no disk at all'}")


def attempt(operation: str, **arguments: Any) -> dict[str, object]:
    """Read or write; a disk that is not there or fails is what a caller wants to know, and no error of the call."""
    try:
        return {**(write if operation == "write" else read)(**arguments), "error": ""}
    except OSError as error:
        return {"path": "", "sha256": "", "error": str(error)}


def read(drive: str, offset: int, size: int) -> dict[str, object]:
    """Read a part of a disk and give its SHA-256."""
    path = _find(drive)
    step = 1 << 20
    digest = hashlib.sha256()
    for at in range(offset, offset + size, step):
        digest.update(_read(path, at, min(step, offset + size - at)))
    return {"path": path, "sha256": digest.hexdigest()}


def write(drive: str, offset: int, size: int, seed: str) -> dict[str, object]:
    """Write bytes that follow from a seed, and give their SHA-256."""
    path = _find(drive)
    data = hashlib.shake_128(seed.encode()).digest(size)
    buffer = mmap.mmap(-1, size)
    buffer[:] = data
    fd = os.open(path, os.O_WRONLY | os.O_DIRECT)
    try:
        count = os.pwritev(fd, [buffer], offset)
        os.fsync(fd)
    finally:
        os.close(fd)
    if count != size:
        raise OSError(f"{path}: {count} of {size} bytes written")
    return {"path": path, "sha256": hashlib.sha256(data).hexdigest()}
