"""Files by their content: written whole or not at all, and compared with their name before they are used."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from harness.errors import HostError
from harness.images.manifest import StoredFile


class DamagedObject(HostError):
    """A stored file is not what its name says. It has been removed."""


class Objects:
    """A directory of read-only files that are named by their SHA-256.

    :param directory: must be on one file system with what is put into it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._verified: dict[str, tuple[int, int, int]] = {}

    def put(self, source: Path, *, private: bool = False, durable: bool = True) -> StoredFile:
        """Move a file in. Whoever dies on the way leaves it where it was.

        :param private: whether only this user may read it.
        :param durable: whether it must survive a loss of power; one that does not is found to be damaged.
        """
        with source.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            os.fchmod(stream.fileno(), 0o400 if private else 0o444)
            if durable:
                os.fsync(stream.fileno())
            size = os.fstat(stream.fileno()).st_size
        # Over one that is there, too: if that was damaged, it no longer is.
        source.replace(self._directory / sha256)
        return StoredFile(sha256=sha256, size=size)

    def path(self, file: StoredFile) -> Path:
        """Where a file is, once its size and hash have been compared.

        :raises DamagedObject: it is gone or not what was put in.
        """
        path = self._directory / file.sha256
        try:
            with path.open("rb") as stream:
                status = os.fstat(stream.fileno())
                seen = (status.st_ino, status.st_mtime_ns, status.st_size)
                if self._verified.get(file.sha256) == seen:
                    return path
                if status.st_size == file.size and hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256:
                    self._verified[file.sha256] = seen
                    return path
        except FileNotFoundError:
            raise DamagedObject(f"object {file.sha256} is gone from the image store", hint="run again") from None
        path.unlink(missing_ok=True)
        raise DamagedObject(f"object {file.sha256} of the image store was damaged", hint="run again; suspect the disk")

    def present(self, file: StoredFile) -> bool:
        """Whether a file of that name and size is there. Says nothing about its content: see :meth:`path`."""
        try:
            return (self._directory / file.sha256).stat().st_size == file.size
        except FileNotFoundError:
            return False
