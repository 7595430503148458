"""What the store knows about something it has built."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class StoredFile(_Record):
    """A file's identity: its hash, and its size in bytes."""

    sha256: Sha256
    size: int


class Package(_Record):
    """A Debian package that something was built from; the hash is of the ``.deb``."""

    name: str
    version: str
    architecture: str
    sha256: Sha256


class Manifest(_Record):
    """An entry of the store.

    ``created`` is ISO 8601 in UTC, ``seconds`` what building took, ``inputs`` what the key was computed from, and
    ``facts`` what the builder found out, such as a kernel's release. ``tree_bytes`` is the size of its directory, where
    it has one.
    """

    key: Sha256
    kind: str
    name: str
    arch: str
    created: str
    seconds: float
    inputs: dict[str, Any]
    files: dict[str, StoredFile]
    packages: tuple[Package, ...]
    facts: dict[str, str]
    tree_bytes: int | None = None


def key_of(kind: str, name: str, arch: str, inputs: dict[str, Any]) -> str:
    """The name of what these inputs make: the SHA-256 of their canonical JSON."""
    whole = {"kind": kind, "name": name, "arch": arch, "inputs": inputs}
    canonical = json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
