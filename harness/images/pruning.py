"""Removing from the store what nobody uses."""

from __future__ import annotations

import fcntl
import json
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.deadline import Deadline
from harness.images.locks import held, held_if_free

_DAY_S = 86400.0


@dataclass(frozen=True, slots=True)
class _Candidate:
    """Something that could go: a manifest, a package, one apt root, one build directory.

    :param lock: must be free.
    :param used: when it was used last, in seconds since the epoch.
    :param size: in bytes; for a manifest, that of its objects and directory.
    """

    path: Path
    lock: Path
    used: float
    size: int


def prune(root: Path, *, keep_days: float | None, max_bytes: int | None, kind: str | None = None) -> int:
    """Remove what is older than ``keep_days`` days, then the longest unused until ``max_bytes`` are left.

    :param kind: look at entries of that kind alone.
    :return: how many bytes are freed.
    """
    candidates = list(_candidates(root) if kind is None else _entries(root, kind))
    # Not the whole store for one kind: a compiler's root alone has ten thousand files, and machines are saved often.
    before = left = size_of(root) if kind is None else sum(candidate.size for candidate in candidates)
    for candidate in sorted(candidates, key=lambda item: item.used):
        old = keep_days is not None and time.time() - candidate.used > keep_days * _DAY_S
        if old or (max_bytes is not None and left > max_bytes):
            with held_if_free(candidate.lock) as free:
                if free and _remove(candidate.path):
                    left -= candidate.size
    if kind is not None:
        if left != before:
            _sweep(root)
        return before - left
    _sweep(root)
    return max(0, before - size_of(root))


def _sweep(root: Path) -> None:
    """Remove what no manifest names any more."""
    with held(root / "commit.lock", Deadline.after(60, "the store's lock")):
        named = {sha256 for path in (root / "entries").glob("*.json") for sha256 in _objects_of(_manifest(path))}
        for path in (root / "objects").iterdir():
            if path.name not in named:
                path.unlink(missing_ok=True)
        for path in (root / "trees").iterdir():
            if not (root / "entries" / f"{path.name}.json").exists():
                shutil.rmtree(path, ignore_errors=True)


def _candidates(root: Path) -> Iterator[_Candidate]:
    yield from _entries(root)
    for path in (root / "debs").glob("[!.]*"):
        yield _Candidate(path, root / "debs" / ".lock", path.stat().st_mtime, path.stat().st_size)
    for path in (*(root / "apt").glob("*.lock"), *(root / "work").glob("*.lock")):
        directory = path.with_suffix("")
        if directory.is_dir():
            yield _Candidate(directory, path, directory.stat().st_mtime, size_of(directory))


def _entries(root: Path, kind: str | None = None) -> Iterator[_Candidate]:
    for path in (root / "entries").glob("*.json"):
        with suppress(FileNotFoundError):  # another process prunes too
            manifest = _manifest(path)
            if kind is None or manifest.get("kind") == kind:
                size = sum(size_of(root / "objects" / sha256) for sha256 in _objects_of(manifest))
                size += size_of(root / "trees" / path.stem)
                yield _Candidate(path, root / "locks" / f"{path.stem}.lock", path.stat().st_mtime, size)


def _remove(path: Path) -> bool:
    """Remove a candidate unless a process uses it; tells whether it is gone."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
        return True
    with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as stream:
        # Whoever uses an entry holds a shared lock on its manifest: see Store.
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        return True
    return False


def _manifest(path: Path) -> dict[str, Any]:
    """A manifest's content; one that is damaged has none, and is worth nothing."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _objects_of(manifest: Mapping[str, Any]) -> list[str]:
    """The objects that a manifest names."""
    try:
        return [str(file["sha256"]) for file in manifest["files"].values()]
    except (KeyError, TypeError, AttributeError):
        return []


def size_of(path: Path) -> int:
    """The bytes of a file, or of all files below a directory; what goes away meanwhile counts nothing."""
    total = 0
    for file in path.rglob("*") if path.is_dir() else [path]:
        with suppress(FileNotFoundError):
            status = file.lstat()
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total
