"""Others that boot a kernel and run a command in it: labgrid and virtme-ng, in an environment of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from harness.machine.initrd import write_initrd
from harness.under_test import stock
from harness.workspace import Workspace

ENVIRONMENT = Path(".bench")
_PACKAGES = ("labgrid", "virtme-ng")
_PATIENCE_S = 300
#: Where virtme-ng looks for the kernel's modules.
_MODULES = Path("/usr/lib/modules")

LABGRID = """\
import sys
from labgrid import Environment

target = Environment(sys.argv[1]).get_target()
machine, shell = target.get_driver("QEMUDriver"), target.get_driver("ShellDriver", activate=False)
target.activate(machine)
machine.on()
target.activate(shell)
shell.run_check("true")
machine.off()
"""

LABGRID_CONFIGURATION = """\
targets:
  main:
    drivers:
      - QEMUDriver:
          qemu_bin: qemu
          machine: q35
          cpu: max
          memory: 1024M
          kernel: kernel
          boot_args: "console=ttyS0 {kernel_args}"
          extra_args: "-initrd {initrd} -accel tcg,thread=single -no-reboot"
          display: none
      - ShellDriver: {{prompt: "[^ ]* # ", login_prompt: "login: ", username: root}}
tools: {{qemu: "{qemu}"}}
images: {{kernel: "{kernel}"}}
"""


class Unavailable(Exception):
    """A peer that cannot be had on this host, and why."""


class Peer(ABC):
    """A program that boots, runs ``true`` and exits."""

    name: str

    @abstractmethod
    def prepare(self) -> None:
        """Have what it needs.

        :raises Unavailable: this host lacks something.
        """

    @abstractmethod
    def run(self) -> None:
        """Boot, run ``true``, exit.

        :raises Unavailable: it did not work.
        """

    def _run(self, argv: Sequence[str | Path], cwd: Path) -> None:
        try:
            done = subprocess.run(
                argv, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise Unavailable(f"it did not end in {_PATIENCE_S} s") from None
        if done.returncode != 0:
            said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
            raise Unavailable(said[-1] if said else f"exit status {done.returncode}")


class Labgrid(Peer):
    """labgrid's QEMUDriver and ShellDriver, with this project's kernel and root file system."""

    name = "labgrid"

    def __init__(self, workspace: Workspace, directory: Path) -> None:
        self._workspace = workspace
        self._directory = directory

    def prepare(self) -> None:
        """See :class:`Peer`."""
        profile = self._workspace.profiles["pc"]
        files = stock(self._workspace.images, profile).boot_files(profile)
        initrd = self._directory / "labgrid.initrd"
        write_initrd(initrd, files.segments, None)
        values = {"initrd": initrd, "kernel": files.kernel, "qemu": shutil.which(profile.qemu)}
        text = LABGRID_CONFIGURATION.format(kernel_args=" ".join(profile.kernel_args), **values)
        (self._directory / "labgrid.yaml").write_text(text)
        (self._directory / "labgrid.py").write_text(LABGRID)

    def run(self) -> None:
        """See :class:`Peer`."""
        python = ENVIRONMENT.absolute() / "bin" / "python"
        self._run([python, "-P", "labgrid.py", "labgrid.yaml"], self._directory)


class VirtmeNg(Peer):
    """virtme-ng with this project's kernel and this host's root file system."""

    name = "virtme-ng"

    def __init__(self, workspace: Workspace, directory: Path) -> None:
        self._workspace = workspace
        self._directory = directory

    def prepare(self) -> None:
        """See :class:`Peer`. The kernel's modules are mounted for it, in a mount namespace of its own."""
        missing = [name for name in ("depmod", "busybox", "unshare") if shutil.which(name) is None]
        if missing:
            raise Unavailable(f"not installed: {', '.join(missing)}")
        if os.getuid() != 0:
            raise Unavailable("the kernel's modules can only be mounted for it by root")
        kernel = self._workspace.images.kernel("trixie", "amd64")
        modules = self._directory / "modules"
        with tarfile.open(kernel.entry.path("modules.tar")) as archive:
            archive.extractall(modules, filter="data")
        subprocess.run(["depmod", "-b", modules / "usr", kernel.release], check=True, capture_output=True)
        search = f"{ENVIRONMENT.absolute() / 'bin'}:$PATH"
        mount = f"mount --bind {modules / 'usr/lib/modules'} {_MODULES}"
        start = f"PATH={search} vng --disable-kvm --run {kernel.vmlinuz} --exec true"
        (self._directory / "vng.sh").write_text(f"{mount} && {start}\n")

    def run(self) -> None:
        """See :class:`Peer`."""
        made = not _MODULES.exists()
        _MODULES.mkdir(exist_ok=True)
        try:
            self._run(["unshare", "--mount", "sh", "vng.sh"], self._directory)
        finally:
            if made:
                _MODULES.rmdir()


def find_peers(workspace: Workspace, directory: Path) -> list[Peer]:
    """The peers, once their environment is there; none when it cannot be made."""
    if not (ENVIRONMENT / ".ready").exists():
        print("  preparing an environment for the peers", flush=True)
        subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)
        pip = [str(ENVIRONMENT / "bin" / "pip"), "install", "--quiet", *_PACKAGES]
        if subprocess.run(pip, check=False, capture_output=True).returncode != 0:
            print("  the peers cannot be installed")
            return []
        (ENVIRONMENT / ".ready").touch()
    return [Labgrid(workspace, directory), VirtmeNg(workspace, directory)]
