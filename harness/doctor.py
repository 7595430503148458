"""``harness doctor``: what this host can and cannot do, each with its reason and its remedy."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.errors import HarnessError
from harness.machine.accel import host_architecture, kvm_obstacle
from harness.machine.process import run_to_end
from harness.machine.spec import QEMU_BINARIES
from harness.workspace import Workspace

OLDEST_QEMU = (7, 2)
_TOOLS = {
    "setpriv": "util-linux",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "zstd": "zstd",
    "bwrap": "bubblewrap",
}
_NEEDED_MIB = 4096


class State(StrEnum):
    """How a finding bears on running scenarios."""

    OK = "ok"
    LIMITED = "limited"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the harness needs or could use.

    :param what: the thing.
    :param why: what was seen.
    :param remedy: what a person can do; empty when there is nothing to do.
    """

    what: str
    state: State
    why: str
    remedy: str = ""


def diagnose(workspace: Workspace) -> list[Finding]:
    """Look at this host. Boots nothing, installs nothing."""
    return [
        *_qemu(workspace),
        *_tools(),
        _sandbox(),
        _archive(workspace),
        _kvm(workspace),
        _space("image store", workspace.store.root),
        _space("temporary files", Path(tempfile.gettempdir())),
        _memory(),
        _user(),
    ]


def _qemu(workspace: Workspace) -> Iterator[Finding]:
    for arch in sorted({profile.arch for profile in workspace.profiles.values()}):
        binary = QEMU_BINARIES[arch]
        users = ", ".join(name for name, profile in workspace.profiles.items() if profile.arch == arch)
        if shutil.which(binary) is None:
            yield Finding(binary, State.BROKEN, f"not installed; needed by {users}", "make setup")
            continue
        said = run_to_end([binary, "--version"])
        match = re.search(r"version (\d+)\.(\d+)\S*", said)
        if match is None:
            yield Finding(binary, State.BROKEN, f"does not tell its version: {said[:80]!r}", "reinstall it")
        elif (int(match[1]), int(match[2])) < OLDEST_QEMU:
            oldest = ".".join(map(str, OLDEST_QEMU))
            yield Finding(binary, State.BROKEN, f"{match[0]} is too old", f"install QEMU {oldest} or newer")
        else:
            yield Finding(binary, State.OK, f"{match[0]}; for {users}")


def _tools() -> Iterator[Finding]:
    for tool, package in _TOOLS.items():
        if shutil.which(tool):
            yield Finding(tool, State.OK, "installed")
        else:
            yield Finding(tool, State.BROKEN, "not installed", f"install the package {package}")


def _sandbox() -> Finding:
    """Whether compilers can be run away from the host."""
    said = run_to_end(["bwrap", "--unshare-all", "--ro-bind", "/", "/", "echo", "works"])
    if said.strip() == "works":
        return Finding("build sandbox", State.OK, "bubblewrap can make namespaces")
    remedy = "let users make namespaces (sysctl kernel.unprivileged_userns_clone); else nothing is built from source"
    return Finding("build sandbox", State.LIMITED, said.strip()[:200] or "bubblewrap does not work", remedy)


def _archive(workspace: Workspace) -> Finding:
    try:
        return Finding("package archive", State.OK, workspace.images.archive())
    except HarnessError as error:
        return Finding("package archive", State.BROKEN, error.message, error.hint or "")


def _kvm(workspace: Workspace) -> Finding:
    remedy = "emulation (TCG) is used instead; every scenario runs, slower"
    if (obstacle := kvm_obstacle()) is not None:
        return Finding("KVM", State.LIMITED, obstacle, remedy)
    proof = workspace.kvm.remembered()
    if proof is None:
        return Finding("KVM", State.LIMITED, "the device opens; not proved yet", "the next `harness run` proves it")
    if not proof.works:
        return Finding("KVM", State.LIMITED, proof.why, remedy)
    return Finding("KVM", State.OK, f"{proof.why}, for {host_architecture()} guests")


def _space(what: str, directory: Path) -> Finding:
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    free_mib = shutil.disk_usage(existing).free >> 20
    if free_mib < _NEEDED_MIB:
        return Finding(
            what, State.LIMITED, f"{free_mib} MiB free in {directory}", "harness images prune, or another disk"
        )
    return Finding(what, State.OK, f"{free_mib} MiB free in {directory}")


def _memory() -> Finding:
    available_mib = psutil.virtual_memory().available >> 20
    cores = os.cpu_count() or 1
    if available_mib < _NEEDED_MIB:
        return Finding(
            "memory", State.LIMITED, f"{available_mib} MiB available, {cores} cores", "close something large"
        )
    return Finding("memory", State.OK, f"{available_mib} MiB available, {cores} cores")


def _user() -> Finding:
    if os.getuid() == 0:
        return Finding(
            "user", State.LIMITED, "running as root", "an ordinary user suffices; QEMU should not run as root"
        )
    return Finding("user", State.OK, "an ordinary user")


_STYLES = {State.OK: "green", State.LIMITED: "yellow", State.BROKEN: "bold red"}


def print_findings(console: Console, findings: list[Finding]) -> None:
    """One line a finding."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in findings:
        style = _STYLES[finding.state]
        remedy = f"\n[dim]-> {escape(finding.remedy)}[/]" if finding.remedy else ""
        table.add_row(f"[{style}]{finding.state}[/]", escape(finding.what), escape(finding.why) + remedy)
    console.print(table)
