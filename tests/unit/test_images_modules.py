"""Kernel modules: names, dependencies, compression, and the segment that a guest loads them from."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import struct
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from harness.deadline import Deadline
from harness.errors import HostError
from harness.images.modules import Modules, depends, module_name, segment
from tests.programs import needs


def soon() -> Deadline:
    return Deadline.after(60, "a test")


def a_module(*needs: str) -> bytes:
    """The least ELF file that has a .modinfo section with a depends line."""
    info = b"license=GPL\0depends=" + ",".join(needs).encode() + b"\0name=x\0"
    names = b"\0.modinfo\0.shstrtab\0"
    start = 64 + len(info) + len(names)
    header = struct.pack("<6s10xHHIQQQIHHHHHH", b"\x7fELF\x02\x01", 1, 62, 1, 0, 0, start, 0, 64, 0, 0, 64, 3, 2)
    sections = b"".join(
        struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, at, size, 0, 0, 1, 0)
        for name, kind, at, size in ((0, 0, 0, 0), (1, 1, 64, len(info)), (10, 3, 64 + len(info), len(names)))
    )
    return header + info + names + sections


def an_archive(path: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"usr/lib/modules/6.12/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def modules(tmp_path: Path) -> Modules:
    archive = an_archive(
        tmp_path / "modules.tar",
        {
            "kernel/net/virtio_net.ko.xz": lzma.compress(a_module("net-failover", "virtio")),
            "kernel/net/net_failover.ko.gz": gzip.compress(a_module("failover")),
            "kernel/net/failover.ko": a_module(),
            "kernel/pseries-rng.ko.xz": lzma.compress(a_module()),
            "kernel/drivers/virtio_balloon.ko": a_module("virtio"),
            "modules.builtin": b"kernel/drivers/virtio/virtio.ko\nkernel/drivers/virtio/virtio_pci.ko\n",
        },
    )
    return Modules(archive, tmp_path, soon())


def test_names() -> None:
    assert module_name("kernel/drivers/char/hw_random/pseries-rng.ko.xz") == "pseries_rng"
    assert module_name("xen-privcmd") == "xen_privcmd"


def test_dependencies_come_first_and_built_in_ones_not_at_all(modules: Modules) -> None:
    assert modules.closure(["virtio_pci", "virtio-net", "pseries-rng"]) == [
        "failover",
        "net_failover",
        "virtio_net",
        "pseries_rng",
    ]


def test_an_unknown_module_has_a_hint(modules: Modules) -> None:
    with pytest.raises(HostError, match="the kernel has no module virtio_ballon") as caught:
        modules.closure(["virtio_ballon"])
    assert "virtio_balloon" in str(caught.value.hint)


def test_a_missing_dependency_names_who_needs_it(tmp_path: Path) -> None:
    archive = an_archive(tmp_path / "m.tar", {"a.ko": a_module("b")})
    with pytest.raises(HostError, match="no module b, which a needs"):
        Modules(archive, tmp_path, soon()).closure(["a"])


def test_a_circle_is_an_error(tmp_path: Path) -> None:
    archive = an_archive(tmp_path / "m.tar", {"a.ko": a_module("b"), "b.ko": a_module("a")})
    with pytest.raises(HostError, match="circle: a -> b -> a"):
        Modules(archive, tmp_path, soon()).closure(["a"])


def test_the_segment(modules: Modules) -> None:
    tree = segment(modules, ["virtio_pci", "virtio_net"], ["virtio_balloon", "virtio-pci"])
    assert tree["usr/lib/harness/early"].data.decode().splitlines() == [
        "/usr/lib/harness/modules/failover.ko",
        "/usr/lib/harness/modules/net_failover.ko",
        "/usr/lib/harness/modules/virtio_net.ko",
    ]
    assert json.loads(tree["usr/lib/harness/modules.dep.json"].data) == {
        "failover": ["failover"],
        "net_failover": ["failover", "net_failover"],
        "virtio_balloon": ["virtio_balloon"],
        "virtio_net": ["failover", "net_failover", "virtio_net"],
        "virtio-pci": [],
    }
    assert tree["usr/lib/harness/modules/virtio_net.ko"].data == a_module("net-failover", "virtio")


def test_a_built_module_takes_the_place_of_the_kernels_own(tmp_path: Path) -> None:
    archive = an_archive(tmp_path / "m.tar", {"a.ko": a_module("b"), "b.ko": a_module(), "c.ko": a_module()})
    built = {"a": tmp_path / "mine.ko", "new": tmp_path / "new.ko"}
    for path in built.values():
        path.write_bytes(a_module("c"))
    modules = Modules(archive, tmp_path, soon(), built)
    assert modules.closure(["a", "new"]) == ["c", "a", "new"]
    assert segment(modules, ["a"], ["a"])["usr/lib/harness/modules/a.ko"].data == a_module("c")


def test_depends() -> None:
    assert depends(a_module("a-b", "c")) == ["a_b", "c"]
    assert depends(a_module()) == []
    for junk in (b"", b"text", a_module("a")[:100]):
        with pytest.raises(HostError, match="no ELF file"):
            depends(junk)


@needs("zstd", "setup")
def test_zstd(tmp_path: Path) -> None:
    packed = subprocess.run(["zstd", "-q"], input=a_module("x"), capture_output=True, check=True).stdout
    archive = an_archive(tmp_path / "m.tar", {"a.ko.zst": packed})
    assert Modules(archive, tmp_path, soon()).read("a") == a_module("x")


def test_a_damaged_module_is_no_traceback(tmp_path: Path) -> None:
    archive = an_archive(tmp_path / "m.tar", {"a.ko.xz": lzma.compress(a_module())[:-20] + bytes(20)})
    with pytest.raises(HostError, match=r"a\.ko\.xz is damaged"):
        Modules(archive, tmp_path, soon()).read("a")
