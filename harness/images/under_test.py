"""Code under test: a built file that takes the place of a recipe's own component."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HostError, UsageError
from harness.images.cpio import packed
from harness.images.tree import Tree

MODULES_DIRECTORY = "usr/lib/harness/modules"
_ELF_MACHINES = {"amd64": 62, "arm64": 183, "ppc64el": 21}  # elf.h: EM_X86_64, EM_AARCH64, EM_PPC64
_VERMAGIC = re.compile(rb"\0?vermagic=([^\0 ]+)")


@dataclass(frozen=True, slots=True)
class Override:
    """A kernel module of the user's, to be loaded in place of the recipe's.

    :param component: the module's name.
    :param source: the file as the user named it.
    :param sha256: of the file.
    """

    component: str
    source: Path
    sha256: str


def parse_overrides(values: Iterable[str], components: Iterable[str]) -> dict[str, Override]:
    """Read ``--under-test COMPONENT=FILE.ko`` options.

    :raises UsageError: for an unknown component, a file that is not there or is no module.
    """
    known = sorted(components)
    overrides: dict[str, Override] = {}
    for value in values:
        component, equals, source = value.partition("=")
        if not equals or not source:
            raise UsageError(f"--under-test takes COMPONENT=FILE, got {value!r}")
        if component not in known:
            raise UsageError(f"unknown component {component!r}", hint=f"known are: {', '.join(known)}")
        path = Path(source)
        if not path.is_file():
            raise UsageError(f"--under-test {component}: {source} is not a file")
        content = path.read_bytes()
        if content[:4] != b"\x7fELF":
            raise UsageError(
                f"--under-test {component}: {source} is not a kernel module", hint="build it first; an uncompressed .ko"
            )
        overrides[component] = Override(component, path, hashlib.sha256(content).hexdigest())
    return overrides


def override_segment(overrides: Mapping[str, Override], arch: str, release: str, target: Path) -> Path:
    """Write a cpio segment that puts the modules over the recipes' own.

    :raises HostError: when a module is built for another architecture or kernel than the machine's.
    """
    tree = Tree()
    for override in overrides.values():
        content = override.source.read_bytes()
        _check_fits(override, content, arch, release)
        tree.file(f"{MODULES_DIRECTORY}/{override.component}.ko", content)
    target.write_bytes(packed(tree))
    return target


def _check_fits(override: Override, content: bytes, arch: str, release: str) -> None:
    machine = int.from_bytes(content[18:20], "little")  # elf.h: e_machine
    if machine != _ELF_MACHINES[arch]:
        raise HostError(
            f"--under-test {override.component}: {override.source} is not built for {arch}",
            hint=f"its ELF machine is {machine}, {arch} has {_ELF_MACHINES[arch]}",
        )
    match = _VERMAGIC.search(content)
    found = match.group(1).decode("ascii", "replace") if match else "no version at all"
    if found != release:
        raise HostError(
            f"--under-test {override.component}: {override.source} is built for kernel {found}, not {release}",
            hint=f"build it against linux-headers-{release}",
        )
