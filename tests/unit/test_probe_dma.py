"""The probe that moves a disk's bytes past the page cache, on files in the place of disks."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from harness.machine.drives import contents
from harness.probes import dma

MIB = 1 << 20


@pytest.fixture
def disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two disks, one with a name on it."""
    (tmp_path / "sda").write_bytes(bytes(MIB))
    (tmp_path / "sdb").write_bytes(contents("disk1", 2 * MIB))
    monkeypatch.setattr(dma, "DEVICES", str(tmp_path))
    monkeypatch.setattr(dma, "BLOCK_DEVICES", str(tmp_path))
    monkeypatch.setattr(os, "O_DIRECT", 0)  # the file system of a test may not have it
    return tmp_path


def test_a_disk_is_found_by_the_name_on_it(disks: Path) -> None:
    wanted = contents("disk1", 2 * MIB)[4096:MIB]
    answer = dma.attempt("read", drive="disk1", offset=4096, size=MIB - 4096)
    assert answer == {"path": str(disks / "sdb"), "sha256": hashlib.sha256(wanted).hexdigest(), "error": ""}


def test_what_is_written_is_on_the_disk(disks: Path) -> None:
    answer = dma.attempt("write", drive="disk1", offset=MIB, size=8192, seed="7")
    assert answer["error"] == ""
    assert answer["sha256"] == hashlib.sha256((disks / "sdb").read_bytes()[MIB : MIB + 8192]).hexdigest()
    other = dma.attempt("write", drive="disk1", offset=MIB, size=8192, seed="8")
    assert other["sha256"] != answer["sha256"]


def test_a_disk_that_is_not_there_is_an_answer(disks: Path) -> None:
    answer = dma.attempt("read", drive="disk2", offset=0, size=512)
    assert (answer["path"], answer["sha256"]) == ("", "")
    assert "no disk begins with the name disk2" in str(answer["error"])
    assert "sda" in str(answer["error"])


def test_a_disk_that_ends_early_is_an_answer(disks: Path) -> None:
    assert "bytes read" in str(dma.attempt("read", drive="disk1", offset=0, size=4 * MIB)["error"])
