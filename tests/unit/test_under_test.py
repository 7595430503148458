"""Modules of the user's: what is refused before anything boots."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from harness.errors import HostError, UsageError
from harness.images.under_test import override_segment, parse_overrides

RELEASE = "6.12.107+deb13-amd64"


def module(path: Path, *, machine: int = 62, release: str = RELEASE) -> Path:
    """The parts of a module that are looked at: an ELF header, and the vermagic string."""
    header = b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HH", 1, machine)
    path.write_bytes(header + bytes(44) + f"\0vermagic={release} SMP preempt mod_unload \0".encode())
    return path


def test_a_module_takes_the_place_of_the_recipes(tmp_path: Path) -> None:
    built = module(tmp_path / "mine.ko")
    overrides = parse_overrides([f"virtio_balloon={built}"], ["virtio_balloon"])
    segment = override_segment(overrides, "amd64", RELEASE, tmp_path / "segment.cpio").read_bytes()
    assert b"usr/lib/harness/modules/virtio_balloon.ko" in segment
    assert built.read_bytes() in segment


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("virtio_balloon", "takes COMPONENT=FILE"),
        ("virtio_balloon=", "takes COMPONENT=FILE"),
        ("virtio_baloon=x.ko", "unknown component 'virtio_baloon'"),
        ("virtio_balloon=nowhere.ko", "is not a file"),
    ],
)
def test_a_wrong_option_is_refused(option: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_overrides([option], ["virtio_balloon"])


def test_what_is_no_module_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.ko").write_text("no ELF")
    with pytest.raises(UsageError, match="not a kernel module"):
        parse_overrides([f"virtio_balloon={tmp_path / 'x.ko'}"], ["virtio_balloon"])


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"machine": 183}, "not built for amd64"),
        ({"release": "6.1.0-50-amd64"}, "built for kernel 6.1.0-50-amd64, not 6.12.107"),
    ],
)
def test_a_module_for_another_machine_is_refused(tmp_path: Path, made: dict[str, str], message: str) -> None:
    built = module(tmp_path / "x.ko", **made)  # type: ignore[arg-type]
    overrides = parse_overrides([f"virtio_balloon={built}"], ["virtio_balloon"])
    with pytest.raises(HostError, match=message):
        override_segment(overrides, "amd64", RELEASE, tmp_path / "segment.cpio")
