"""By what a saved machine is found: whatever differs by a byte is another machine."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.images.store import Store
from harness.machine import saved
from harness.machine.accel import Accelerator
from harness.machine.machine import BootFiles, Machine
from harness.machine.saved import SavedMachines, limit_bytes
from harness.machine.spec import Plan
from harness.progress import SilentProgress
from harness.workspace import Workspace

TCG = Accelerator("tcg", "a test")


class Setting:
    """What a machine is made from, each part of which a test can change."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.kernel = directory / "kernel"
        self.root = directory / "root"
        self.qemu = directory / "bin" / "qemu-system-x86_64"
        self.plan = Plan(Workspace(SilentProgress()).profiles["pc"], "trixie", 1024, 1)
        self.accelerator = TCG
        self.qemu.parent.mkdir()
        for path in (self.kernel, self.root, self.qemu):
            path.write_bytes(b"as it was")
        self.qemu.chmod(0o755)

    def key(self, **stage: object) -> saved.Key:
        files = BootFiles(self.kernel, (self.root,))
        machine = Machine(self.plan, files, self.accelerator, results=self.directory, scratch=self.directory)
        machines = SavedMachines(Store(self.directory / "store"), SilentProgress())
        return machines.key("pc", machine, stage)


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    made = Setting(tmp_path)
    monkeypatch.setenv("PATH", str(made.qemu.parent))
    return made


def test_the_same_is_found_again(setting: Setting) -> None:
    assert setting.key(load=[]) == setting.key(load=[])


CHANGES: dict[str, Callable[[Setting, pytest.MonkeyPatch], object]] = {
    "a byte of the kernel": lambda setting, _: setting.kernel.write_bytes(b"as it is."),
    "a byte of the root file system": lambda setting, _: setting.root.write_bytes(b"as it is."),
    "another QEMU": lambda setting, _: setting.qemu.write_bytes(b"as it is."),
    "a kernel argument": lambda setting, _: setattr(setting, "plan", replace(setting.plan, kernel_args=("nosmt",))),
    "memory": lambda setting, _: setattr(setting, "plan", replace(setting.plan, memory_mib=1025)),
    "a processor": lambda setting, _: setattr(setting, "plan", replace(setting.plan, vcpus=2)),
    "a device's property": lambda setting, _: setattr(
        setting, "plan", replace(setting.plan, devices={"balloon": {"deflate-on-oom": True}})
    ),
    "the accelerator": lambda setting, _: setattr(setting, "accelerator", Accelerator("kvm", "a test")),
    "the harness's own format": lambda _, patch: patch.setattr(saved, "_FORMAT", -1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_anything_else_is_another_machine(change: str, setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    before = setting.key()
    CHANGES[change](setting, monkeypatch)
    assert setting.key() != before


def test_another_stage_is_another_machine(setting: Setting) -> None:
    assert len({str(key) for key in (setting.key(), setting.key(load=[]), setting.key(load=["virtio_balloon"]))}) == 3


def test_the_host_matters_under_kvm_alone(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    before = setting.key()
    monkeypatch.setattr(saved, "_host_cpu", lambda: "another")
    assert setting.key() == before
    setting.accelerator = Accelerator("kvm", "a test")
    assert setting.key().inputs["host_cpu"] == "another"


def test_the_limit_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert limit_bytes(tmp_path) == min(32 << 30, shutil.disk_usage(tmp_path).total // 4)
    monkeypatch.setenv("HARNESS_SAVED_MIB", "5")
    assert limit_bytes(tmp_path) == 5 << 20
