"""Kernels out of packages that are made here."""

from __future__ import annotations

import lzma
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from harness.deadline import Deadline
from harness.errors import HostError
from harness.images.kernel import bzimage_payload, unpack_kernel
from tests.programs import needs


def soon() -> Deadline:
    return Deadline.after(60, "a test")


pytestmark = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg-deb is not installed")

ELF = b"\x7fELF" + bytes(5000)
IMAGE = bytes(0x38) + b"ARM\x64" + bytes(5000)


def a_deb(directory: Path, files: Mapping[str, bytes]) -> Path:
    root = directory / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN/control").write_text("Package: k\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n")
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    subprocess.run(["dpkg-deb", "-Znone", "--build", root, directory / "k.deb"], check=True, capture_output=True)
    shutil.rmtree(root)
    return directory / "k.deb"


def a_bzimage(payload: bytes) -> bytes:
    image = bytearray(0x400)
    image[0x1F1] = 1
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 16, len(payload))
    return bytes(image) + bytes(16) + payload + b"rest"


def files_for(image: bytes, release: str = "6.12+x") -> dict[str, bytes]:
    return {
        f"boot/vmlinuz-{release}": image,
        f"boot/config-{release}": b"CONFIG_X=y\n",
        f"usr/lib/modules/{release}/kernel/a.ko.xz": b"module",
        f"usr/lib/modules/{release}/modules.builtin": b"",
        f"usr/lib/modules/{release}/build/Makefile": b"",
        "usr/share/doc/k/copyright": b"",
    }


def test_a_kernel_is_sorted(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    made, release = unpack_kernel([a_deb(tmp_path, files_for(IMAGE))], "Image", tmp_path / "w", soon())
    assert (made, release) == (["config", "modules.tar", "vmlinuz"], "6.12+x")
    assert (tmp_path / "w/vmlinuz").read_bytes() == IMAGE
    with tarfile.open(tmp_path / "w/modules.tar") as archive:
        assert sorted(archive.getnames()) == [
            "usr/lib/modules/6.12+x/kernel/a.ko.xz",
            "usr/lib/modules/6.12+x/modules.builtin",
        ]


def test_a_bzimage_brings_the_kernel_inside_it(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    image = a_bzimage(lzma.compress(ELF) + struct.pack("<I", len(ELF)))
    made, _ = unpack_kernel([a_deb(tmp_path, files_for(image))], "bzImage", tmp_path / "w", soon())
    assert "vmlinux" in made
    assert (tmp_path / "w/vmlinux").read_bytes() == ELF


@needs("zstd", "setup")
def test_zstd_does_not_get_the_size_that_linux_appends() -> None:
    frame = subprocess.run(["zstd", "-q"], input=ELF, capture_output=True, check=True).stdout
    assert bzimage_payload(a_bzimage(frame + struct.pack("<I", len(ELF)))) == frame


def test_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    with pytest.raises(HostError, match="no Image but vmlinux"):
        unpack_kernel([a_deb(tmp_path, files_for(ELF))], "Image", tmp_path / "w", soon())


def test_two_kernels_or_none_are_refused(tmp_path: Path) -> None:
    for number, files in enumerate([{"etc/x": b""}, files_for(ELF) | files_for(ELF, "6.13")]):
        directory = tmp_path / str(number)
        (directory / "w").mkdir(parents=True)
        with pytest.raises(HostError, match="kernel releases"):
            unpack_kernel([a_deb(directory, files)], "vmlinux", directory / "w", soon())


def test_a_damaged_package_is_no_traceback(tmp_path: Path) -> None:
    deb = a_deb(tmp_path, files_for(ELF))
    deb.write_bytes(deb.read_bytes()[:300])
    with pytest.raises(HostError, match="dpkg-deb failed"):
        unpack_kernel([deb], "vmlinux", tmp_path, soon())
