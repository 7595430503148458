"""Images for this host's architecture, really built in an empty cache, and really booted."""

from __future__ import annotations

import os
import selectors
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.deadline import Deadline
from harness.images import Images, Kernel, Recipes, Store
from harness.images.arch import Arch, host_arch
from harness.progress import SilentProgress

pytestmark = pytest.mark.vm

ROOTFS = "minimal"
KERNEL = "trixie"


@dataclass(frozen=True)
class Board:
    """The least QEMU machine of an architecture."""

    qemu: str
    arguments: tuple[str, ...]
    console: str
    early: tuple[str, ...]


PCI_RNG = ("-device", "virtio-rng-pci")
BOARDS: dict[Arch, Board] = {
    "amd64": Board(
        "qemu-system-x86_64",
        ("-M", "q35", "-cpu", "max", *PCI_RNG),
        "ttyS0",
        ("virtio_pci", "virtio_net", "virtio_rng"),
    ),
    "arm64": Board(
        "qemu-system-aarch64",
        ("-M", "virt,gic-version=3", "-cpu", "cortex-a57", *PCI_RNG),
        "ttyAMA0",
        ("virtio_pci", "virtio_net", "virtio_rng"),
    ),
    "ppc64el": Board(
        "qemu-system-ppc64",
        ("-M", "pseries,cap-htm=off,cap-ccf-assist=off,x-vof=on", "-cpu", "power9"),
        "hvc0",
        ("virtio_pci", "virtio_net", "pseries_rng"),
    ),
}
ARCH = host_arch()
BOARD = BOARDS[ARCH]


class Console:
    """A guest's console: what it writes, and a way to type."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin and process.stdout
        self._process, self._stdin, self._stdout = process, process.stdin, process.stdout
        self._unread = ""

    def type(self, line: str) -> None:
        self._stdin.write(f"{line}\n".encode())
        self._stdin.flush()

    def read_to(self, what: str, timeout_s: float) -> str:
        """All that came since the last call, up to and with ``what``."""
        deadline = Deadline.after(timeout_s, what)
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            while what not in self._unread:
                chunk = os.read(self._stdout.fileno(), 65536) if selector.select(deadline.remaining_s) else b""
                if not chunk:
                    pytest.fail(f"no {what!r} in {timeout_s} s, or QEMU ended:\n{self._unread[-2000:]}")
                self._unread += chunk.decode(errors="replace").replace("\r", "")
        before, found, self._unread = self._unread.partition(what)
        return before + found

    def end(self, timeout_s: float) -> int:
        """QEMU's exit status, once it ends by itself."""
        return self._process.wait(timeout_s)


@contextmanager
def booted(image: Path, segments: list[Path], scratch: Path, *arguments: str) -> Iterator[Console]:
    """A guest under emulation that is gone afterwards."""
    initrd = scratch / "initrd"
    initrd.write_bytes(b"".join(segment.read_bytes() for segment in segments))
    # With a thread for each CPU one boot in thirty dies of int3: see images/machines/pc.yaml.
    argv = [BOARD.qemu, *BOARD.arguments, "-accel", "tcg,thread=single", "-smp", "2", "-m", "1G", "-nodefaults"]
    argv += ["-display", "none", "-no-reboot", "-serial", "stdio", "-kernel", str(image), "-initrd", str(initrd)]
    argv += ["-netdev", "user,id=n0,restrict=on", "-device", "virtio-net-pci,netdev=n0"]
    argv += ["-append", " ".join([f"console={BOARD.console} quiet cryptomgr.notests", *arguments])]
    with subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "--", *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            yield Console(process)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if not shutil.which(BOARD.qemu):
        pytest.skip(f"{BOARD.qemu} is not installed")
    directory = tmp_path_factory.mktemp("cache")
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def images(cache: Path) -> Images:
    return Images(Recipes(), Store(cache), SilentProgress())


@pytest.fixture(scope="module")
def kernel(images: Images) -> Kernel:
    return images.kernel(KERNEL, ARCH)


@pytest.mark.timeout(600)
def test_images_are_built_once(images: Images, kernel: Kernel, cache: Path) -> None:
    rootfs = images.rootfs(ROOTFS, ARCH)
    assert rootfs.stat().st_size < 67_000_000
    assert kernel.release in "".join(package.name for package in kernel.entry.packages)

    began = time.monotonic()
    again = Images(Recipes(), Store(cache), SilentProgress())
    assert again.kernel(KERNEL, ARCH).image == kernel.image
    assert again.rootfs(ROOTFS, ARCH) == rootfs
    assert time.monotonic() - began < 5
    assert set(again.hashes(kernel, ROOTFS, ARCH)) == {"kernel_sha256", "rootfs_sha256"}


@pytest.mark.timeout(600)
def test_a_guest_comes_up(images: Images, kernel: Kernel, tmp_path: Path) -> None:
    segments = [images.rootfs(ROOTFS, ARCH), images.segment(kernel, BOARD.early, ["virtio_balloon"])]
    with booted(kernel.image, segments, tmp_path, "harness.name=here") as console:
        console.read_to("harness: ready\n", 120)
        console.read_to("/ # ", 30)
        console.type("export PS1=; stty -echo cols 500")
        console.type(
            "python3 -c 'import ctypes, json, mmap, fcntl, struct, socket, select, array, hashlib; print(6 * 7000)'"
        )
        assert "harness: ready" not in console.read_to("42000\n", 60)
        console.type("hostname; uname -r; cat /proc/modules /proc/mounts /lib/harness/modules.dep.json")
        # What says so is in the foreground: between two commands a Ctrl-C would be the shell's.
        console.type("""ifconfig eth0; sh -c "echo wait''ing; exec sleep 60\"""")
        text = console.read_to("waiting\n", 60)
        assert text.startswith(f"here\n{kernel.release}\n")
        for mount in ("proc", "sysfs", "devtmpfs", "devpts", "tmpfs", "debugfs"):
            assert f"\n{mount} /" in text
        for word in ("virtio_net ", '"virtio_balloon"', "10.0.2.15"):
            assert word in text
        # Ctrl-C reaches the foreground command, so the shell reads on.
        console.type("\x03echo inter''rupted")
        console.read_to("interrupted\n", 30)
        # The console's shell comes back when it ends.
        console.type("exit")
        console.read_to("/ # ", 30)
        console.type("echo parent $PPID")
        console.read_to("\nparent 1\n", 30)
        console.type("poweroff")
        assert console.end(30) == 0


@pytest.mark.timeout(600)
def test_a_module_that_does_not_load_is_told(images: Images, kernel: Kernel, tmp_path: Path) -> None:
    from harness.images.cpio import packed
    from harness.images.tree import Tree

    tree = Tree()
    tree.file("usr/lib/harness/early", b"/nowhere.ko\n")
    broken = tmp_path / "broken.cpio"
    broken.write_bytes(packed(tree))
    with booted(kernel.image, [images.rootfs(ROOTFS, ARCH), broken], tmp_path) as console:
        assert "harness: cannot load /nowhere.ko\n" in console.read_to("harness: ready\n", 120)
