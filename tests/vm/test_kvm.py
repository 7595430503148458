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
from harness.machine.admission import admitted, host_capacity, need_of
from harness.machine.machine import BootFiles, Machine
from harness.machine.profiles import load_profiles
from harness.machine.scratch import scratch_directory
from harness.machine.spec import Plan
from harness.places import cache_root
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
#: A machine that no other scenario has, so that nothing is saved of it yet.
SAVED = """
scenario: a machine that is saved
feature: balloon
boot: {machine: pc, memory_mib: 768}
drive:
  - guest.run: {as: said, argv: [echo, hello]}
assert:
  - said.stdout == "hello"
"""


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
    used = {kernel.image.name, images.rootfs(profile.rootfs, "amd64").name, images.probes(profile.rootfs).name}
    used |= {images.segment(kernel, early, available).name for available in ([], list(MODULES))}
    for entry in store.list():
        hashes = {file.sha256 for file in entry.files.values()}
        # An entry is one only while all its files are there.
        if entry.arch in ("amd64", "all") and hashes & used:
            for sha256 in hashes:
                tree.file(f"cache/objects/{sha256}", (store.root / "objects" / sha256).read_bytes(), 0o444)
            manifest = f"entries/{entry.key}.json"
            tree.file(f"cache/{manifest}", (store.root / manifest).read_bytes())


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
        script = "import sys; sys.path.insert(0, '/opt/site'); from harness.program import main; main()"
        arguments = ["run", f"scenarios/{scenario}.yaml", "-k", "pc", "--json", "/tmp/s.json", "--results", "/tmp/r"]
        words = " ".join(["python3", "-c", f'"{script}"', *arguments, *more])
        self.run("sh", "-c", f"cd /opt/harness && HARNESS_CACHE=/room/cache HARNESS_STATE=/tmp/state {words}")
        _, text = self.run("cat", "/tmp/s.json")
        (result,) = json.loads(text)["scenarios"]
        print(result["seconds"])
        return dict(result)


def came_to(result: dict[str, Any]) -> tuple[str, str, str]:
    return result["verdict"], result["accel"]["used"], result["start"]


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
    tree.file("opt/harness/scenarios/saved-pc.yaml", SAVED.encode())
    # Everything takes longer inside an emulation, and most of all another emulation.
    (pc,) = (path for path in tree if path.endswith("images/machines/pc.yaml"))
    tree.file(pc, tree[pc].data.replace(b"boot_timeout_s: 30", b"boot_timeout_s: 150"))
    store_of(images, store, tree)
    own = work / "own.cpio"
    with own.open("wb") as out:
        pack(tree, out)
    modules, probes = images.segment(kernel, profile.early_modules, []), images.probes(profile.rootfs)
    segments = (images.rootfs(profile.rootfs, profile.arch), modules, probes, own)
    plan = Plan.of(profile)
    with scratch_directory() as scratch:
        files = BootFiles(kernel.image, segments)
        accelerator = Accelerator("tcg", "KVM is what is emulated here")
        (work / "results").mkdir()
        room = admitted(cache_root() / "admission", need_of(plan, accelerator.name), host_capacity(), lambda: None)
        with room, Machine(plan, files, accelerator, results=work / "results", scratch=scratch) as machine:
            machine.boot()
            host = Host(machine)
            # The root file system takes half of the memory at most, which leaves no room for saved machines.
            host.run("sh", "-c", "mkdir /room && mount -t tmpfs -o size=100% room /room && mv /cache /room/")
            yield host


def test_a_scenario_passes_under_kvm(host: Host) -> None:
    status, _ = host.run("test", "-c", "/dev/kvm", timeout_s=120)
    assert status == 0, "L1's processor has no SVM"
    first = host.harness("balloon/stats")
    assert came_to(first) == ("pass", "kvm", "cold"), first["accel"]
    assert first["accel"]["why"] == "a guest booted under KVM on this host"
    assert came_to(host.harness("balloon/stats", "--accel", "kvm")) == ("pass", "kvm", "warm")


def test_a_machine_saved_under_one_accelerator_is_never_taken_up_under_another(host: Host) -> None:
    assert came_to(host.harness("saved-pc", "--accel", "tcg")) == ("pass", "tcg", "cold")
    assert came_to(host.harness("saved-pc", "--accel", "kvm")) == ("pass", "kvm", "cold")
    assert came_to(host.harness("saved-pc", "--accel", "tcg")) == ("pass", "tcg", "warm")
    assert came_to(host.harness("saved-pc", "--accel", "kvm")) == ("pass", "kvm", "warm")
