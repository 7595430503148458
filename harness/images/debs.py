"""What is inside downloaded packages."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from harness.deadline import Deadline
from harness.errors import HostError
from harness.images import tools
from harness.images.arch import ABIS, Arch

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


def launcher(root: Path, arch: Arch) -> list[str | Path]:
    """How to start a program of an unpacked root with its own C library instead of the host's: what goes before it.

    :raises HostError: there is no C library.
    """
    libraries = [root / prefix / ABIS[arch].multiarch for prefix in ("lib", "usr/lib")]
    linkers = [path / ABIS[arch].linker for path in libraries if (path / ABIS[arch].linker).exists()]
    if not linkers:
        raise HostError("the packages bring no C library to run their programs with", hint="they need libc6")
    return [linkers[0], "--library-path", ":".join(map(str, libraries))]
