"""What a user puts under test: what is refused before anything boots, and what is told of the rest."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.errors import HostError, UsageError
from harness.images.under_test import (
    Override,
    arch_of,
    check_module,
    check_used,
    kernel_release,
    parse_overrides,
    tree_files,
    vermagic_of,
)
from harness.progress import SilentProgress
from harness.workspace import Workspace

RELEASE = "6.12.107+deb13-amd64"
COMPONENTS = ["kernel", "virtio_balloon", "xen"]
PATCH = b"""Breaks it.

--- a/drivers/virtio/virtio_balloon.c
+++ b/drivers/virtio/virtio_balloon.c
@@ -1 +1 @@
-a
+b
"""


def module(*, machine: int = 62, release: str = RELEASE) -> bytes:
    """The parts of a module that are looked at: an ELF header, and the vermagic string."""
    header = b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HH", 1, machine)
    return header + bytes(44) + f"\0vermagic={release} SMP preempt mod_unload \0".encode()


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_the_kinds_of_source_are_told_apart(tmp_path: Path) -> None:
    built = written(tmp_path / "mine.ko", module())
    patch = written(tmp_path / "fix", PATCH)
    image = written(tmp_path / "Image", bytes(0x38) + b"ARM\x64" + bytes(100))
    overrides = parse_overrides([f"virtio_balloon={built}", f"xen={tmp_path}", f"kernel={image}"], COMPONENTS)
    assert {name: item.kind for name, item in overrides.items()} == {
        "virtio_balloon": "file",
        "xen": "tree",
        "kernel": "file",
    }
    assert overrides["virtio_balloon"].contents == (module(),)
    assert parse_overrides([f"xen={patch}"], COMPONENTS)["xen"].kind == "patches"


@pytest.mark.parametrize(("component", "kind"), [("kernel", 1), ("xen", 1), ("virtio_balloon", 2)])
def test_a_module_is_no_kernel_nor_the_other_way_round(tmp_path: Path, component: str, kind: int) -> None:
    """By ``e_type``: QEMU would say no more than that it cannot load it, once the machine's turn has come."""
    content = module()
    written(tmp_path / "x", content[:16] + struct.pack("<H", kind) + content[18:])
    with pytest.raises(UsageError, match=f"--under-test {component}: .* is no "):
        parse_overrides([f"{component}={tmp_path / 'x'}"], COMPONENTS)


def test_patches_are_kept_in_order(tmp_path: Path) -> None:
    first = written(tmp_path / "b.patch", PATCH)
    second = written(tmp_path / "a.patch", PATCH.replace(b"+b\n", b"+c\n"))
    override = parse_overrides([f"xen={first}", f"xen={second}"], COMPONENTS)["xen"]
    assert [path for path, _ in override.patches] == [first, second]
    other = parse_overrides([f"xen={second}", f"xen={first}"], COMPONENTS)["xen"]
    assert other.sha256 != override.sha256


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["virtio_balloon"], "takes COMPONENT=SOURCE"),
        (["virtio_balloon="], "takes COMPONENT=SOURCE"),
        (["virtio_baloon=x.ko"], "unknown component 'virtio_baloon'"),
        (["virtio_balloon=nowhere.ko"], "cannot read nowhere.ko: No such file"),
        (["virtio_balloon={text}"], "is no kernel module, patch or source tree; a module must not be compressed"),
        (["xen={text}"], "is no hypervisor, patch or source tree"),
        (["virtio_balloon={ko}", "virtio_balloon={ko}"], "is given twice"),
        (["virtio_balloon={ko}", "virtio_balloon={patch}"], "is given twice"),
    ],
)
def test_a_wrong_option_is_refused(tmp_path: Path, options: list[str], message: str) -> None:
    files = {
        "text": written(tmp_path / "text", b"no ELF"),
        "ko": written(tmp_path / "x.ko", module()),
        "patch": written(tmp_path / "x.patch", PATCH),
    }
    with pytest.raises(UsageError, match=message):
        parse_overrides([option.format(**files) for option in options], COMPONENTS)


def test_what_no_scenario_uses_is_refused() -> None:
    check_used(["xen"], ["kernel", "xen"])
    with pytest.raises(UsageError, match="no scenario that runs uses it"):
        check_used(["xen"], ["kernel"])


def test_a_module_that_fits() -> None:
    assert check_module("--under-test x", "x.ko", module(), "amd64", RELEASE).startswith(f"{RELEASE} SMP")
    assert vermagic_of(b"") == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (module(machine=183), "x.ko is not built for amd64"),
        (module(release="6.1.0-50-amd64"), "built for kernel 6.1.0-50-amd64, not 6.12.107"),
        (b"\x7fELF" + bytes(14) + struct.pack("<H", 62), "built for kernel no version at all"),
    ],
)
def test_a_module_for_another_machine_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(HostError, match=message):
        check_module("--under-test x", "x.ko", content, "amd64", RELEASE)


def test_what_an_image_is_built_for() -> None:
    assert arch_of(bytes(0x38) + b"ARM\x64") == "arm64"
    assert arch_of(bytes(0x202) + b"HdrS") == "amd64"
    assert arch_of(module(machine=21)) == "ppc64el"
    assert arch_of(module(machine=1)) is None
    assert arch_of(b"") is None
    assert kernel_release(b"\0Linux version 6.12.1-mine (me@here) #1") == "6.12.1-mine"
    assert kernel_release(b"") == ""


def test_the_files_of_a_tree(tmp_path: Path) -> None:
    paths = ["drivers/xen/privcmd.c", "drivers/xen/privcmd.h"]
    with pytest.raises(HostError, match=r"has no drivers/xen/privcmd\.c"):
        tree_files(tmp_path, paths)
    for name in ("privcmd.c", "privcmd.h"):
        written(tmp_path / name, b"")
    assert tree_files(tmp_path, paths)["drivers/xen/privcmd.c"] == tmp_path / "privcmd.c"
    (tmp_path / "drivers/xen").mkdir(parents=True)
    for path in paths:
        written(tmp_path / path, b"")
    assert tree_files(tmp_path, paths)["drivers/xen/privcmd.c"] == tmp_path / "drivers/xen/privcmd.c"


def test_a_small_kernel_only_for_machines_that_describe_one(tmp_path: Path) -> None:
    """Told before anything is built, for the rows that it concerns, with the machines that have one."""
    workspace = Workspace(SilentProgress())
    built: list[tuple[str, tuple[str, ...]]] = []

    def build(override: Override, kernel: SimpleNamespace, small: Sequence[str]) -> SimpleNamespace:
        built.append((kernel.arch, tuple(small)))
        return SimpleNamespace(override=override)

    workspace.__dict__["images"] = SimpleNamespace(
        kernel=lambda name, arch, anew=False: SimpleNamespace(name=name, arch=arch),
        rootfs=lambda name, arch: tmp_path,
        probes=lambda name: tmp_path,
        hypervisor=lambda name, arch: tmp_path,
        tested_kernel=build,
    )
    files = [Path(__file__).parents[2] / "scenarios" / name for name in ("balloon/resize.yaml", "xen/domains.yaml")]
    scenarios = [item for file in files for item in workspace.load_file(file)]
    patch = parse_overrides([f"kernel={written(tmp_path / 'fix', PATCH)}"], COMPONENTS)
    refused = workspace.prepare(scenarios, patch)
    without = {item.id for item in scenarios if not workspace.profiles[item.boot.machine].small_kernel}
    assert set(refused) == without == {"xen/domains[xen-x86]"}
    assert set(built) == {
        ("amd64", ("small.config", "small-amd64.config")),
        ("arm64", ("small.config", "small-arm64.config")),
    }
    said = {error.message for error in refused.values()}
    there = "only for pc, pseries, virt, xen-arm64"
    assert f"--under-test kernel: from a patch or a tree no kernel can be built for xen-x86, {there}" in said
    assert {item.id for item in scenarios if not workspace.can_build("kernel", item)} == without
