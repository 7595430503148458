"""The path through KVM, for real, on a host that has none: the harness runs inside a guest whose SVM QEMU emulates.

That guest (L1) is built and booted by the harness's own image builder and machine layer. In it runs this checkout's
``harness run``, which must find by its own proof that KVM works, and boots guests of its own (L2) under it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest

from harness.deadline import Deadline
from harness.images import Images, Recipes, Store
from harness.images.cpio import pack
from harness.images.tree import Tree
from harness.machine.accel import Accelerator
from harness.machine.machine import BootFiles, Machine
from harness.machine.profiles import load_profiles
from harness.machine.scratch import scratch_directory
from harness.machine.spec import Plan
from harness.progress import PlainProgress
from tests.vm.conftest import only_all

pytestmark = [pytest.mark.vm, only_all, pytest.mark.timeout(7200)]

CHECKOUT = Path(__file__).parents[2]
#: Debian 13's Python, which L1 has.
PYTHON = "3.13"
GLIBC = ("2014", "_2_17", "_2_24", "_2_26", "_2_28", "_2_31", "_2_34", "_2_39")
#: What harness run imports without being asked for reports.
UNNEEDED = ("jinja2", "matplotlib", "pytest-xdist")
MODULES = ("virtio_balloon",)
RUN_S = 1500


def tree_of(directory: Path, target: str, tree: Tree) -> None:
    for path in sorted(directory.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            tree.file(f"{target}/{path.relative_to(directory)}", path.read_bytes(), path.stat().st_mode & 0o777 | 0o444)


def python_packages(target: Path) -> None:
    """What the harness imports, for L1's Python."""
    wanted = [item for item in requires("harness") or [] if "extra ==" not in item]
    wanted = [item for item in wanted if not item.lower().startswith(UNNEEDED)]
    platforms = [word for version in GLIBC for word in ("--platform", f"manylinux{version}_x86_64")]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target), "--only-binary=:all:"]
    subprocess.run([*command, "--python-version", PYTHON, *platforms, *wanted], check=True)
    # The harness itself, with the entry points by which it finds its steps.
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target), "--no-deps", str(CHECKOUT)]
    subprocess.run(command, check=True)


def store_of(images: Images, store: Store, tree: Tree) -> None:
    """The part of the store that the profile ``pc`` boots from, so that L1 builds and fetches nothing."""
    profile = load_profiles(CHECKOUT / "images" / "machines")["pc"]
    kernel = images.kernel(profile.kernels[0], "amd64")
    early = profile.early_modules
    objects = [kernel.image, images.rootfs(profile.rootfs, "amd64")]
    objects += [images.segment(kernel, early, available) for available in ([], list(MODULES))]
    for path in objects:
        tree.file(f"cache/objects/{path.name}", path.read_bytes(), 0o444)
    for path in (store.root / "entries").glob("*.json"):
        entry = json.loads(path.read_text())
        if entry["arch"] == "amd64" and entry["kind"] in ("kernel", "rootfs", "segment"):
            tree.file(f"cache/entries/{path.name}", path.read_bytes())


@dataclass
class Host:
    """L1, running."""

    machine: Machine

    def run(self, *argv: str, timeout_s: float = RUN_S) -> tuple[int, str]:
        deadline = Deadline.after(timeout_s, " ".join(argv[:3]))
        done = self.machine.ssh(deadline).run(argv, deadline=deadline, check_status=False)
        print(done.text, done.error_text, sep="\n", flush=True)
        return done.status, done.text

    def harness(self, scenario: str, *more: str) -> dict[str, Any]:
        """Run one scenario in L1 and give what the summary says of it."""
        script = "import sys; sys.path.insert(0, '/opt/site'); from harness.cli import main; main()"
        arguments = ["run", f"scenarios/{scenario}.yaml", "-k", "pc", "--json", "/tmp/s.json", "--results", "/tmp/r"]
        words = " ".join(["python3", "-c", f'"{script}"', *arguments, *more])
        self.run("sh", "-c", f"cd /opt/harness && HARNESS_CACHE=/cache HARNESS_STATE=/tmp/state {words}")
        _, text = self.run("cat", "/tmp/s.json")
        (result,) = json.loads(text)["scenarios"]
        return dict(result)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    work = tmp_path_factory.mktemp("kvm")
    recipes = work / "images"
    shutil.copytree(CHECKOUT / "images", recipes)
    shutil.copytree(CHECKOUT / "tests" / "vm" / "kvm_host", recipes, dirs_exist_ok=True)
    store = Store()
    images = Images(Recipes(recipes), store, PlainProgress(sys.stderr))
    profile = load_profiles(recipes / "machines")["kvm-host"]
    kernel = images.kernel(profile.kernels[0], profile.arch)
    tree = Tree()
    python_packages(work / "site")
    tree_of(work / "site", "opt/site", tree)
    tree_of(CHECKOUT / "scenarios" / "balloon", "opt/harness/scenarios/balloon", tree)
    store_of(images, store, tree)
    own = work / "own.cpio"
    with own.open("wb") as out:
        pack(tree, out)
    segments = (images.rootfs(profile.rootfs, profile.arch), images.segment(kernel, profile.early_modules, []), own)
    plan = Plan(profile, profile.kernels[0], profile.memory_mib, profile.vcpus)
    with scratch_directory() as scratch:
        files = BootFiles(kernel.image, segments)
        accelerator = Accelerator("tcg", "KVM is what is emulated here")
        (work / "results").mkdir()
        with Machine(plan, files, accelerator, results=work / "results", scratch=scratch) as machine:
            machine.boot()
            yield Host(machine)


def test_kvm(host: Host) -> None:
    status, _ = host.run("test", "-c", "/dev/kvm", timeout_s=120)
    assert status == 0, "L1's processor has no SVM"
    emulated = host.harness("balloon/stats", "--accel", "tcg")
    assert (emulated["verdict"], emulated["accel"]["used"], emulated["start"]) == ("pass", "tcg", "cold")
    first = host.harness("balloon/stats")
    assert (first["verdict"], first["accel"]["used"]) == ("pass", "kvm"), first["accel"]
    assert first["accel"]["why"] == "a guest booted under KVM on this host"
    assert first["start"] == "cold", "what was saved under TCG is never taken up under KVM"
    again = host.harness("balloon/stats", "--accel", "kvm")
    assert (again["verdict"], again["accel"]["used"], again["start"]) == ("pass", "kvm", "warm")
    emulated_again = host.harness("balloon/stats", "--accel", "tcg")
    assert (emulated_again["verdict"], emulated_again["start"]) == ("pass", "warm"), "nor the reverse"
    resized = host.harness("balloon/resize", "--accel", "kvm")
    assert (resized["verdict"], resized["accel"]["used"]) == ("pass", "kvm")
    print({key: item["seconds"] for key, item in {"tcg": emulated, "kvm": first, "again": again}.items()})
