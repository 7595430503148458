"""What a machine boots and loads when some of it is under test. Nothing is built: images are names here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.deadline import Deadline
from harness.errors import HostError, Unsupported
from harness.images import Recipes
from harness.images.under_test import Candidate, Override
from harness.machine.profiles import load_profiles
from harness.scenario.model import Domain as DomainWishes
from harness.testbed import Testbed
from harness.under_test import Candidates, recorded

RELEASE = "6.12.107+deb13-amd64"


class Shelf:
    """Stands for the images."""

    def __init__(
        self, release: str = RELEASE, *, can_come_late: bool = True, builtin: frozenset[str] | None = None
    ) -> None:
        self.release = release
        self.builtin = builtin
        self.late = can_come_late
        self.configs: tuple[str, ...] = ()
        self.segments: list[tuple[str, Mapping[str, Candidate]]] = []

    def tested_module(self, override: Override, kernel: object) -> Candidate:
        return Candidate(override, override.sources[0], "5" * 64, "", f"{RELEASE} SMP", "module x of Debian's kernel")

    def tested_kernel(self, override: Override, kernel: object, small: Sequence[str]) -> Candidate:
        self.configs = tuple(small)
        said = ("fix.patch: mm/x.c, hunk 1 fits only with fuzz 1, at line 9",)
        return Candidate(
            override, override.sources[0], "6" * 64, "", self.release, "Debian's kernel", said, self.builtin
        )

    def tested_hypervisor(self, override: Override, name: str, arch: str) -> Candidate:
        return Candidate(override, override.sources[0], "7" * 64, "v1-dirty", "", f"hypervisor {name} of its recipe")

    def hypervisor(self, name: str, arch: str) -> Any:
        return SimpleNamespace(image=Path(name), version="4.20")

    def can_come_late(self, kernel: object, early: object, wanted: object, tested: Candidate) -> bool:
        return self.late

    def segment(self, kernel: object, early: object, wanted: object, own: Mapping[str, Candidate]) -> Path:
        self.segments.append(("modules", own))
        return Path("segment")

    def probes(self, rootfs: str) -> Path:
        return Path(f"probes-{rootfs}")

    def builtin_segment(self, kernel: object, early: object, wanted: object, release: str) -> Path:
        return Path(f"builtin-{release}")


def candidates(shelf: Shelf, under_test: Sequence[str], tmp_path: Path, **more: Any) -> Candidates:
    (tmp_path / "x.ko").write_bytes(b"module")
    overrides = {name: Override(name, "file", (tmp_path / "x.ko",), (b"module",)) for name in under_test}
    kernel: Any = SimpleNamespace(release=RELEASE, image=Path("vmlinux"), arch="amd64")
    images: Any = shelf
    return Candidates(images, overrides, kernel, ("virtio_net",), ("x",), **more)


def test_a_module_that_can_come_late_leaves_the_machine_as_it_is(tmp_path: Path) -> None:
    shelf = Shelf()
    found = candidates(shelf, ["x"], tmp_path)
    assert found.segment == Path("segment")
    assert shelf.segments == [("modules", {})]
    assert found.fingerprint() == {"x": "5" * 64}
    ran: list[tuple[list[str], bytes]] = []
    machine: Any = SimpleNamespace(
        ssh=lambda deadline: SimpleNamespace(run=lambda argv, *, stdin, deadline: ran.append((argv, stdin)))
    )
    for module in ("x", "virtio_net"):
        found.bring(machine, module, Deadline.after(1, "it"))
    assert ran == [(["dd", "of=/usr/lib/harness/modules/x.ko"], b"module")]


@pytest.mark.parametrize(("can", "late"), [(False, True), (True, False)])
def test_a_module_that_cannot_is_there_from_the_start(tmp_path: Path, can: bool, late: bool) -> None:
    shelf = Shelf(can_come_late=can)
    found = candidates(shelf, ["x"], tmp_path, late=late)
    assert found.segment == Path("segment")
    assert list(shelf.segments[0][1]) == ["x"]
    assert found.fingerprint() == {}


def test_a_kernel_of_another_release_has_its_modules_built_in(tmp_path: Path) -> None:
    shelf = Shelf("6.12.1-mine")
    found = candidates(shelf, ["kernel"], tmp_path, small_kernel=["small.config"])
    assert found.segment == Path("builtin-6.12.1-mine")
    assert found.release == "6.12.1-mine"
    assert shelf.configs == ("small.config",)
    assert found.built_in and not candidates(Shelf(), ["kernel"], tmp_path).built_in
    assert found.kernel_image == tmp_path / "x.ko"
    assert found.kernel_sha256 == {"kernel_sha256": "6" * 64}
    assert [len(recorded(item).inexact) for item in found.all] == [1]
    assert candidates(Shelf(), ["kernel"], tmp_path).segment == Path("segment")
    assert candidates(Shelf(), [], tmp_path).kernel_image == Path("vmlinux")


def test_a_hypervisor(tmp_path: Path) -> None:
    assert candidates(Shelf(), [], tmp_path, hypervisor_name="xen").hypervisor == (Path("xen"), "4.20")
    found = candidates(Shelf(), ["xen"], tmp_path, hypervisor_name="xen")
    assert found.hypervisor == (tmp_path / "x.ko", "under test")
    assert [recorded(item).describe for item in found.all] == ["v1-dirty"]
    assert candidates(Shelf(), ["xen"], tmp_path).all == []


def test_what_a_guest_has_loaded_must_be_what_is_under_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.under_test.build_id", lambda module: "aa" if module == b"module" else "")
    found = candidates(Shelf(), ["x"], tmp_path)
    found.check_loaded("x", "aa")
    found.check_loaded("x", "")
    found.check_loaded("virtio_net", "bb")
    with pytest.raises(HostError, match="another module x than the one under test"):
        found.check_loaded("x", "bb")


def test_what_is_built_in_cannot_be_unloaded(tmp_path: Path) -> None:
    """A kernel under test that has the driver built in is not what such a scenario is about: nobody's failure."""
    bed = object.__new__(Testbed)
    bed.domains = {}
    asked: list[str] = []
    bed.call = lambda function, **_: asked.append(function) or {"loaded": False}  # type: ignore[func-returns-value, method-assign]
    deadline = Deadline.after(1, "it")
    bed._candidates = [candidates(Shelf(), ["kernel"], tmp_path)]
    assert bed.unload_module("guest", "x", deadline) == {"loaded": False}
    bed._candidates = [candidates(Shelf("6.12.1-small"), ["kernel"], tmp_path)]
    with pytest.raises(Unsupported, match="cannot be unloaded: it is built into kernel"):
        bed.unload_module("guest", "x", deadline)
    assert asked == ["modules.unload"]


def test_a_small_kernel_that_lacks_a_module_is_not_booted(tmp_path: Path) -> None:
    """The scenario would fail for want of its driver, and the code under test be blamed."""
    whole = Shelf("6.12.1-small", builtin=frozenset({"virtio_net", "x"}))
    assert candidates(whole, ["kernel"], tmp_path).segment == Path("builtin-6.12.1-small")
    for there in ({"virtio_net"}, {"x"}):
        found = candidates(Shelf("6.12.1-small", builtin=frozenset(there)), ["kernel"], tmp_path)
        (lacking,) = {"virtio_net", "x"} - there
        with pytest.raises(Unsupported, match=f"kernel 6.12.1-small.* does not have {lacking} built in"):
            _ = found.segment
    # an image of the user's does not say what it has
    assert candidates(Shelf("6.12.1-mine"), ["kernel"], tmp_path).segment == Path("builtin-6.12.1-mine")


def test_what_is_built_in_cannot_be_loaded_later(tmp_path: Path) -> None:
    bed = object.__new__(Testbed)
    bed.domains = {"guest": None}  # type: ignore[dict-item]
    load = [SimpleNamespace(layer=layer, module=layer, later=layer == "guest") for layer in ("dom0", "guest")]
    bed.scenario = SimpleNamespace(load=load)  # type: ignore[assignment]
    small = candidates(Shelf("6.12.1-small"), ["kernel"], tmp_path)
    bed._candidates = [small, candidates(Shelf(), ["kernel"], tmp_path)]
    bed._check_later()
    bed._candidates = [small, small]
    with pytest.raises(Unsupported, match="module guest cannot be loaded later: it is built in"):
        bed._check_later()


@pytest.mark.parametrize(
    ("release", "devices", "kept_away"),
    [("6.12.1-small", 1, True), ("6.12.1-small", 0, False), (RELEASE, 1, False)],
)
def test_a_built_in_driver_is_kept_from_devices_without_a_backend(
    tmp_path: Path, release: str, devices: int, *, kept_away: bool
) -> None:
    bed = object.__new__(Testbed)
    bed.domains, bed.results = {}, tmp_path
    bed.profile = load_profiles(Recipes().root / "machines")["xen-arm64"]
    bed._candidates = [candidates(Shelf(release), ["kernel"], tmp_path)]
    machine: Any = SimpleNamespace(watch=lambda console: None)
    bed._add_domain(machine, "guest", DomainWishes(virtio_mmio=devices, kernel_args=("a=b",)))
    line = bed.domains["guest"].plan.command_line
    assert line.startswith("console=hvc0 harness.role=domu ") and "a=b" in line
    assert line.endswith(" initcall_blacklist=virtio_mmio_init") is kept_away
