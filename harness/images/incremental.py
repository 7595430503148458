"""Build directories that stay: only what has changed since the last build is compiled again.

What counts is content. A file is written anew when its bytes differ from those that were built last, whatever its
date, so that make sees a newer file exactly where there is another one; nothing stale is ever taken for built.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import BuildFailed, HostError
from harness.images import tools
from harness.images.locks import held

_STATE = "state.json"
_PRODUCTS = ("*.o", "*.a", "*.ko", ".*.cmd", ".*.d", "*.mod", "*.mod.c", ".config", "*.orig", "*.rej")


@contextmanager
def build_directory(parent: Path, key: str, deadline: Deadline, on_wait: Callable[[], None]) -> Iterator[Path]:
    """A directory that one build at a time works in, as the last one left it.

    One whose build was cut short may hold half-written files: it is emptied first.
    """
    parent.mkdir(parents=True, exist_ok=True)
    with held(parent / f"{key}.lock", deadline, on_wait):
        directory = parent / key
        if (directory / "building").exists():
            shutil.rmtree(directory)
        (directory / "build").mkdir(parents=True, exist_ok=True)
        (directory / "building").touch()
        try:
            yield directory / "build"
        except BuildFailed:  # make ended in order: what it has built is whole
            (directory / "building").unlink()
            raise
        (directory / "building").unlink()
        os.utime(directory)


def digests(files: Mapping[str, Path]) -> dict[str, str]:
    """What each file is: the hash of its content and its permission to run, or where a link leads."""
    return {path: _digest(file) for path, file in sorted(files.items())}


def whole_hash(of: Mapping[str, str]) -> str:
    """One hash for :func:`digests`."""
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()


def synchronise(files: Mapping[str, Path], target: Path) -> int:
    """Make a build directory's sources be these files, and leave what was built from those that stay.

    :param files: by their paths in the directory.
    :return: how many were written or removed.
    """
    state = target.parent / _STATE
    before: dict[str, str] = json.loads(state.read_text()) if state.exists() else {}
    now = digests(files)
    gone = [path for path in before if path not in now]
    changed = [path for path, digest in now.items() if before.get(path) != digest or not _there(target / path)]
    for path in gone:
        (target / path).unlink(missing_ok=True)
    for path in changed:
        place = target / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        if files[path].is_symlink():
            place.symlink_to(files[path].readlink())
        else:
            shutil.copyfile(files[path], place)
            shutil.copymode(files[path], place)
    state.write_text(json.dumps(now))
    return len(gone) + len(changed)


def needs_configuring(config: Path, wanted: str) -> bool:
    """Whether a build's configuration is not yet made of these settings: making it again builds everything again."""
    mark = config.with_name(f"{config.name}.wanted")
    if config.exists() and mark.exists() and mark.read_text() == wanted:
        return False
    mark.write_text(wanted)
    config.unlink(missing_ok=True)
    return True


def every_file(tree: Path, deadline: Deadline) -> dict[str, Path]:
    """The source files of a tree: what git would keep where it is git's, else all but what builds leave."""
    if (tree / ".git").exists():
        try:
            listed = tools.run(
                ["git", "-C", str(tree), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                hint="see what git says by hand",
                deadline=deadline,
            )
        except HostError as error:
            raise HostError(f"source tree {tree}: {error.message}", hint=error.hint) from error
        return _existing(tree, filter(None, listed.split("\0")))
    names = (str(path.relative_to(tree)) for path in tree.rglob("*"))
    return _existing(tree, (name for name in names if not _is_product(name)))


def described(tree: Path, deadline: Deadline) -> str:
    """What ``git describe`` says of a tree; empty where it is none of git's."""
    if not (tree / ".git").exists():
        return ""
    argv = ["git", "-C", str(tree), "describe", "--always", "--tags", "--dirty"]
    return tools.run(argv, hint="", deadline=deadline).strip()


def _existing(tree: Path, names: Iterable[str]) -> dict[str, Path]:
    return {name: tree / name for name in names if _there(tree / name)}


def _is_product(name: str) -> bool:
    return any(fnmatchcase(name.rpartition("/")[2], pattern) for pattern in _PRODUCTS)


def _there(path: Path) -> bool:
    """Whether there is a file or a link, wherever that leads."""
    return path.is_symlink() or path.is_file()


def _digest(path: Path) -> str:
    if path.is_symlink():
        return f"-> {path.readlink()}"
    with path.open("rb") as stream:
        runs = "x" if os.fstat(stream.fileno()).st_mode & stat.S_IXUSR else "-"
        return f"{runs}{hashlib.file_digest(stream, 'sha256').hexdigest()}"
