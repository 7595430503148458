"""A file tree in memory: what a root file system holds before it is packed.

Nothing from a package touches this host's file system by its own name, so no path in an archive can lead out of a
directory, and ownership and device nodes need no privilege.
"""

from __future__ import annotations

import fnmatch
import re
import stat
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO

from harness.errors import HostError


@dataclass(frozen=True, slots=True)
class Node:
    """One entry of a tree.

    :param mode: type and permissions, as in ``st_mode``.
    :param data: a file's bytes, or a symlink's target.
    :param rdev: a device's major and minor number.
    """

    mode: int
    data: bytes = b""
    rdev: tuple[int, int] = (0, 0)


class Tree:
    """Paths, relative and normal, and their nodes.

    :param merged: whether ``bin``, ``sbin``, ``lib`` and ``lib64`` are symlinks into ``usr``, as in every Debian since
        12; packages that still ship files there are then put right.
    """

    _MERGED = ("bin", "sbin", "lib", "lib64")

    def __init__(self, *, merged: bool = False) -> None:
        self._nodes: dict[str, Node] = {}
        self._merged = merged
        if merged:
            for name in self._MERGED:
                self.symlink(name, f"usr/{name}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    def __contains__(self, path: str) -> bool:
        return self._normal(path) in self._nodes

    def __getitem__(self, path: str) -> Node:
        return self._nodes[self._normal(path)]

    def items(self) -> list[tuple[str, Node]]:
        """Every path and node, parents before children, always in the same order."""
        return sorted(self._nodes.items(), key=lambda item: item[0].split("/"))

    def add(self, path: str, node: Node) -> None:
        """Put a node at a path, over one that was there, and make the directories above it.

        :raises ValueError: the path leads out of the tree.
        """
        path = self._normal(path)
        for parent in PurePosixPath(path).parents:
            if str(parent) != ".":
                self._nodes.setdefault(str(parent), Node(stat.S_IFDIR | 0o755))
        self._nodes[path] = node

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Put a regular file."""
        self.add(path, Node(stat.S_IFREG | mode, data))

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Put a directory."""
        self.add(path, Node(stat.S_IFDIR | mode))

    def symlink(self, path: str, target: str) -> None:
        """Put a symlink."""
        self.add(path, Node(stat.S_IFLNK | 0o777, target.encode()))

    def character_device(self, path: str, major: int, minor: int, mode: int) -> None:
        """Put a character device."""
        self.add(path, Node(stat.S_IFCHR | mode, rdev=(major, minor)))

    def remove(self, path: str) -> None:
        """Take a node away; a directory's children stay."""
        del self._nodes[path]

    def unpack(self, archive: IO[bytes], drop: re.Pattern[str] | None = None) -> None:
        """Put everything that a tar archive holds.

        :param drop: paths that are left out, as :func:`globs` gives them.
        :raises HostError: it is no whole tar archive, or holds what no package should.
        """
        try:
            with tarfile.open(fileobj=archive, mode="r:") as tar:
                for member in tar:
                    path = self._normal(member.name)
                    if path != "." and not (drop and not member.isdir() and drop.match(path)):
                        self._unpack_member(tar, member, path)
        except (tarfile.TarError, ValueError) as error:
            raise HostError(f"a package's contents cannot be read: {error}") from error

    def trim(self, drop: re.Pattern[str]) -> None:
        """Take away every path that matches, and every directory that then has nothing in it."""
        kept = {path: node for path, node in self._nodes.items() if not drop.match(path)}
        used = {
            str(parent)
            for path, node in kept.items()
            if not stat.S_ISDIR(node.mode)
            for parent in PurePosixPath(path).parents
        }
        self._nodes = {path: node for path, node in kept.items() if not stat.S_ISDIR(node.mode) or path in used}

    def under(self, prefix: str) -> dict[str, Node]:
        """The regular files below a directory, by their whole path."""
        return {
            path: node
            for path, node in self._nodes.items()
            if path.startswith(f"{prefix}/") and stat.S_ISREG(node.mode)
        }

    def _unpack_member(self, tar: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
        if member.isdir():
            if path not in self._nodes:
                self.directory(path, member.mode)
        elif member.issym():
            self.symlink(path, member.linkname)
        elif member.islnk():
            self.add(path, self._nodes[self._normal(member.linkname)])
        elif member.isfile():
            stream = tar.extractfile(member)
            assert stream is not None
            self.file(path, stream.read(), member.mode)
        else:
            raise ValueError(f"{path} is neither a file, a directory nor a link")

    def _normal(self, path: str) -> str:
        pure = PurePosixPath(path.lstrip("/"))
        if ".." in pure.parts:
            raise ValueError(f"{path} leads out of the tree")
        if self._merged and len(pure.parts) > 1 and pure.parts[0] in self._MERGED:
            pure = "usr" / pure
        return str(pure)


def globs(patterns: Iterable[str]) -> re.Pattern[str]:
    """One expression for shell patterns of whole paths; ``*`` also matches ``/``."""
    return re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns) or r"(?!)")
