"""What is inside downloaded packages."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from harness.deadline import Deadline
from harness.images import tools

_HINT = "the package is damaged, or this dpkg is too old for its compression"


@contextmanager
def contents(deb: Path, scratch: Path, deadline: Deadline) -> Iterator[IO[bytes]]:
    """A package's files as an open, uncompressed tar archive.

    :param scratch: the directory for the archive, which is gone afterwards.
    """
    with tempfile.TemporaryFile(dir=scratch) as tar:
        tools.run(["dpkg-deb", "--fsys-tarfile", deb], hint=_HINT, deadline=deadline, stdout=tar)
        tar.seek(0)
        yield tar


def extract(debs: Iterable[Path], root: Path, deadline: Deadline) -> None:
    """Unpack packages into a directory of this host, to run what is in them."""
    for deb in debs:
        tools.run(["dpkg-deb", "--extract", deb, root], hint=_HINT, deadline=deadline)
