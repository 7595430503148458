"""The image store: what was built once is found again by what it was built from.

::

    objects/<sha256>        files, read-only, named by their content
    trees/<key>/            directories, such as a compiler's root, by the entry that they belong to
    entries/<key>.json      manifests, named by the hash of everything that went in
    locks/<key>.lock        held by whoever builds an entry
    tmp/<random>/           a builder's workspace, with tmp/<random>.lock held while it lives
    debs/, apt/             downloaded packages and apt's lists: see harness.images.apt
    work/                   build directories that stay: see harness.images.incremental

A manifest is written after its objects are on the disk, and every file appears by rename, so a builder that is killed
at any moment leaves nothing that looks whole.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr, ValidationError
from rich.filesize import decimal

from harness.deadline import Deadline
from harness.errors import HostError
from harness.images.locks import held
from harness.images.manifest import Manifest, Package, key_of
from harness.images.objects import DamagedObject, Objects
from harness.images.pruning import prune, size_of
from harness.images.workspace import sweep, workspace
from harness.places import CACHE_VARIABLE, cache_root
from harness.progress import Progress

_BUILD_TIMEOUT_S = 1800.0


@dataclass(frozen=True, slots=True)
class Built:
    """What a builder made.

    :param files: names and where they lie in the workspace; they are moved into the store.
    :param packages: what they were made from.
    :param facts: what the builder found out.
    :param private: whether only this user may read the files.
    :param durable: whether they must survive a loss of power; what is made again in seconds need not.
    :param tree: a directory in the workspace; it is moved into the store as it is.
    """

    files: Mapping[str, Path]
    packages: Sequence[Package] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    private: bool = False
    durable: bool = True
    tree: Path | None = None


class Entry(Manifest):
    """Something in the store. While the store object lives, no other process prunes it."""

    _objects: Objects = PrivateAttr()
    _tree: Path = PrivateAttr()

    @property
    def tree(self) -> Path:
        """Its directory. Whoever uses it must not write to it."""
        return self._tree

    def path(self, name: str) -> Path:
        """One of its files, compared with its hash first.

        :raises DamagedObject: it is not what was built; it is gone now, and the next run builds it again.
        """
        return self._objects.path(self.files[name])

    def __str__(self) -> str:
        return f"{self.kind} {self.name} for {self.arch}"


class Store:
    """A store in a directory, which any number of processes may share.

    :param root: the directory; by default what :data:`CACHE_VARIABLE` names, else the user's cache.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or cache_root()
        self._entries = self.root / "entries"
        self._locks = self.root / "locks"
        self._trees = self.root / "trees"
        self._temporary = self.root / "tmp"
        self._objects = Objects(self.root / "objects")
        self._in_use: dict[str, int] = {}
        self._taking = threading.Lock()
        weakref.finalize(self, _close_all, self._in_use)

    def get_or_build(
        self,
        kind: str,
        name: str,
        arch: str,
        inputs: dict[str, Any],
        build: Callable[[Path, Deadline], Built],
        progress: Progress,
        *,
        need: Collection[str] = (),
        anew: bool = False,
    ) -> Entry:
        """The entry that these inputs make; built if it is not there, once, however many processes ask.

        :param build: gets an empty directory to work in, and by when it must be done.
        :param need: files that are compared with their hashes now, so that a damaged one is built again.
        :param anew: build it even if it is there.
        :raises HostError: it cannot be built; nothing of the attempt is left.
        """
        what = f"{kind} {name} for {arch}"
        key = key_of(kind, name, arch, inputs)
        deadline = Deadline.after(_BUILD_TIMEOUT_S, f"{what} to be built")
        with self._explained(what):
            self._prepare()
            with suppress(DamagedObject):
                if not anew and (entry := self._usable(key, need)) is not None:
                    return entry
            lock = self._locks / f"{key}.lock"
            with held(lock, deadline, lambda: progress.message(f"waiting until {what} is built elsewhere")):
                try:
                    if not anew and (entry := self._usable(key, need)) is not None:
                        return entry
                except DamagedObject as error:
                    progress.message(f"{what}: {error.message}; building it again")
                with workspace(self._temporary) as directory, self._explained(what):
                    began = time.monotonic()
                    built = build(directory, deadline)
                    self._commit(directory, key, built, (kind, name, arch, inputs), time.monotonic() - began)
                entry = self._usable(key, need)
                assert entry is not None, "no pruner takes an entry while its lock is held"
                return entry

    def find(self, kind: str, name: str, arch: str, inputs: dict[str, Any]) -> Entry | None:
        """The entry that these inputs made, if there is one; :meth:`Entry.path` compares a file with its hash."""
        with self._explained(f"{kind} {name} for {arch}"), suppress(DamagedObject):
            self._prepare()
            return self._usable(key_of(kind, name, arch, inputs), ())
        return None

    @contextmanager
    def draft(self) -> Iterator[Path]:
        """A directory for what :meth:`add` is to take; it goes with the block, and with this process."""
        self._prepare()
        with workspace(self._temporary) as directory:
            yield directory

    def add(
        self,
        what: tuple[str, str, str, dict[str, Any]],
        built: Built,
        directory: Path,
        *,
        seconds: float,
        replace: bool = False,
    ) -> None:
        """Take in what was made from some inputs, unless it is there.

        :param what: kind, name, architecture, inputs.
        :param directory: the draft that the files lie in.
        :param seconds: what making it took.
        :param replace: also if it is there.
        """
        key = key_of(*what)
        with (
            self._explained(f"{what[0]} {what[1]} for {what[2]}"),
            held(self._locks / f"{key}.lock", Deadline.after(60, "the store's lock")),
        ):
            with suppress(DamagedObject):
                if not replace and self._usable(key, ()) is not None:
                    return
            self._commit(directory, key, built, what, seconds)

    def stored(self, sha256: str) -> Path | None:
        """The file with this content, compared with its hash; None where no entry has it, or no more."""
        for path in self._entries.glob("*.json"):
            entry = self._read(path)
            name = next((name for name, file in entry.files.items() if file.sha256 == sha256), None) if entry else None
            with suppress(DamagedObject):
                if name is not None and (held_entry := self._usable(path.stem, ())) is not None:
                    return held_entry.path(name)
        return None

    def sha256_of(self, path: Path) -> str:
        """A file's hash; for one of the store's, without reading it."""
        if path.parent == self.root / "objects":
            return path.name
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def list(self) -> list[Entry]:
        """Every entry, by kind, name and architecture."""
        entries = (self._read(path) for path in self._entries.glob("*.json"))
        return sorted((entry for entry in entries if entry), key=lambda entry: (entry.kind, entry.name, entry.arch))

    def prune(self, *, keep_days: float | None = None, max_bytes: int | None = None, kind: str | None = None) -> int:
        """Remove entries and downloads that nobody uses now, those first that were not used for longest.

        :param keep_days: remove what was last used longer ago.
        :param max_bytes: remove until the store, or its entries of that kind, are no larger.
        :param kind: remove only entries of that kind.
        :return: how many bytes are freed.
        """
        with self._explained("the image store, pruned"):
            self._prepare()
            return prune(self.root, keep_days=keep_days, max_bytes=max_bytes, kind=kind)

    def disk_usage(self) -> int:
        """How many bytes the store takes, downloads included."""
        return size_of(self.root)

    def _prepare(self) -> None:
        """Make the directories, and clear away what killed builders left."""
        for directory in (self._entries, self._locks, self._temporary, self._trees, self.root / "objects"):
            directory.mkdir(parents=True, exist_ok=True)
        sweep(self._temporary)

    def _commit(
        self, directory: Path, key: str, built: Built, what: tuple[str, str, str, dict[str, Any]], seconds: float
    ) -> None:
        """Move a builder's files in, then say so in a manifest."""
        tree_bytes = 0 if built.tree is None else size_of(built.tree)
        # Against a pruner that would take the objects for garbage, because no manifest names them yet.
        with held(self.root / "commit.lock", Deadline.after(60, "the store's lock")):
            how = {"private": built.private, "durable": built.durable}
            files = {name: self._objects.put(path, **how) for name, path in built.files.items()}
            if built.durable:
                _sync(self.root / "objects")
            if built.tree is not None:
                # Of a builder that died before it could say so in a manifest.
                shutil.rmtree(self._trees / key, ignore_errors=True)
                built.tree.replace(self._trees / key)
                _sync(self._trees)
            kind, name, arch, inputs = what
            manifest = Manifest(
                key=key,
                kind=kind,
                name=name,
                arch=arch,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                seconds=round(seconds, 2),
                inputs=inputs,
                files=files,
                packages=tuple(built.packages),
                facts=dict(built.facts),
                tree_bytes=None if built.tree is None else tree_bytes,
            )
            draft = directory / "manifest.json"
            with draft.open("w", encoding="utf-8") as stream:
                stream.write(manifest.model_dump_json(indent=1))
                stream.flush()
                if built.durable:
                    os.fsync(stream.fileno())
            draft.replace(self._entries / f"{key}.json")
            if built.durable:
                _sync(self._entries)

    def _usable(self, key: str, need: Collection[str]) -> Entry | None:
        """The entry, marked as in use, if there is one.

        :raises DamagedObject: there is, and it is not whole.
        """
        path = self._entries / f"{key}.json"
        if not self._take(path):
            return None
        entry = self._read(path)
        if entry is None:
            raise DamagedObject("its manifest was damaged")
        for name, file in entry.files.items():
            if not self._objects.present(file):
                raise DamagedObject(f"{name} is gone or cut short")
        if entry.tree_bytes is not None and not entry.tree.is_dir():
            raise DamagedObject("its directory is gone")
        for name in need:
            entry.path(name)
        os.utime(path)
        return entry

    def _take(self, path: Path) -> bool:
        """Hold a shared lock on a manifest, which keeps pruners off, for as long as this store object lives."""
        while True:
            try:
                handle = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                return False
            fcntl.flock(handle, fcntl.LOCK_SH)
            with suppress(FileNotFoundError):
                if os.fstat(handle).st_ino == path.stat().st_ino:
                    break
            # It was pruned or replaced between the two calls.
            os.close(handle)
        with self._taking:
            previous = self._in_use.pop(path.name, None)
            self._in_use[path.name] = handle
        if previous is not None:
            os.close(previous)
        return True

    def _read(self, path: Path) -> Entry | None:
        """An entry from its manifest; a manifest that is no whole one is none."""
        try:
            entry = Entry.model_validate_json(path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        entry._objects = self._objects
        entry._tree = self._trees / entry.key
        return entry

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn the operating system's refusals into errors that say what to do."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise HostError(
                    f"{what}: {error}", hint=f"is {self.root} writable? {CACHE_VARIABLE} chooses another place"
                ) from error
            existing = next(path for path in (self.root, *self.root.parents) if path.exists())
            free = decimal(shutil.disk_usage(existing).free)
            quota = " and the user's quota is used up" if error.errno == errno.EDQUOT else ""
            raise HostError(
                f"no space left for {what}: {free} were free in {self.root}{quota}",
                hint=f"harness images prune, or set {CACHE_VARIABLE} to a directory on a larger disk",
            ) from error


def _close_all(handles: dict[str, int]) -> None:
    for handle in handles.values():
        os.close(handle)


def _sync(directory: Path) -> None:
    """Make the names in a directory durable."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
