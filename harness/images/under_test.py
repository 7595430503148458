"""Code under test: what a user puts in the place of a recipe's own component, and what is refused before it boots."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.errors import HostError, UsageError
from harness.images.arch import Arch
from harness.images.kernel import FORMATS
from harness.validate import did_you_mean

KERNEL = "kernel"
XEN = "xen"

_ELF = b"\x7fELF"
_IMAGES: dict[Arch, tuple[int, bytes]] = {"arm64": FORMATS["Image"], "amd64": FORMATS["bzImage"]}
_GZIP = b"\x1f\x8b"
_ELF_MACHINES: dict[int, Arch] = {3: "amd64", 62: "amd64", 183: "arm64", 21: "ppc64el"}
"""elf.h: EM_386 (Xen boots as 32-bit code), EM_X86_64, EM_AARCH64, EM_PPC64."""
_RELOCATABLE = 1
"""elf.h: ET_REL, what a module is and nothing that boots."""
_VERMAGIC = re.compile(rb"\0?vermagic=([^\0]+)\0")
_RELEASE = re.compile(rb"Linux version (\S+) ")
_PATCH = re.compile(rb"^--- \S.*\n\+\+\+ \S", re.MULTILINE)
_HOW = "a built file, a patch, or the directory of a source tree"


@dataclass(frozen=True, slots=True)
class Override:
    """A component as the user wants it.

    :param kind: what the sources are: one built file, patches in order, or one source tree.
    :param sources: as the user named them.
    :param contents: of a built file or of each patch; empty for a tree.
    """

    component: str
    kind: Literal["file", "patches", "tree"]
    sources: tuple[Path, ...]
    contents: tuple[bytes, ...] = ()

    @property
    def source(self) -> str:
        """The sources in one line."""
        return ", ".join(map(str, self.sources))

    @property
    def option(self) -> str:
        """How an error names it."""
        return f"--under-test {self.component}"

    @property
    def patches(self) -> list[tuple[Path, bytes]]:
        """Patches and their contents, in order; none where it is something else."""
        return list(zip(self.sources, self.contents, strict=True)) if self.kind == "patches" else []

    @property
    def sha256(self) -> str:
        """Of its contents, in order: of the file itself where there is one."""
        whole = hashlib.sha256()
        for content in self.contents:
            whole.update(content)
        return whole.hexdigest()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A component under test, built and found to fit.

    :param path: the file that is booted or loaded.
    :param sha256: of that file.
    :param describe: what git says of the tree; empty where it is none of git's.
    :param version: a module's vermagic, a kernel's release, or a hypervisor's version.
    :param replaced: what it takes the place of.
    :param inexact: the hunks of its patches that fit only with fuzz, a line for each.
    :param builtin: the modules that a small kernel has built in; None for everything else, which does not say.
    """

    override: Override
    path: Path
    sha256: str
    describe: str
    version: str
    replaced: str
    inexact: tuple[str, ...] = ()
    builtin: frozenset[str] | None = None


def parse_overrides(values: Iterable[str], components: Iterable[str]) -> dict[str, Override]:
    """Read ``--under-test COMPONENT=SOURCE`` options. Several patches for one component are applied in order.

    :raises UsageError: for an unknown component, and a source that is not there or nothing of the kind.
    """
    known = sorted(components)
    overrides: dict[str, Override] = {}
    for value in values:
        component, equals, source = value.partition("=")
        if not equals or not source:
            raise UsageError(f"--under-test takes COMPONENT=SOURCE, got {value!r}", hint=f"SOURCE is {_HOW}")
        if component not in known:
            hint = did_you_mean(component, known) or f"known are: {', '.join(known)}"
            raise UsageError(f"unknown component {component!r}", hint=hint)
        override = _read(component, Path(source))
        if (before := overrides.get(component)) is not None:
            if {before.kind, override.kind} != {"patches"}:
                raise UsageError(f"--under-test {component} is given twice", hint="only patches can be several")
            override = Override(
                component, "patches", (*before.sources, *override.sources), (*before.contents, *override.contents)
            )
        overrides[component] = override
    return overrides


def check_used(overrides: Collection[str], used: Collection[str]) -> None:
    """Refuse to test what no scenario would see.

    :param used: the components of the scenarios that are going to run.
    :raises UsageError: for a component that is not among them.
    """
    for component in overrides:
        if component not in used:
            raise UsageError(
                f"--under-test {component}: no scenario that runs uses it",
                hint=f"they use {', '.join(sorted(used))}; harness components says what uses what",
            )


def _read(component: str, source: Path) -> Override:
    """One option, its kind told from the source's content."""
    if source.is_dir():
        return Override(component, "tree", (source,))
    try:
        content = source.read_bytes()
    except OSError as error:
        raise UsageError(f"--under-test {component}: cannot read {source}: {error.strerror}") from error
    if _PATCH.search(content) and not content.startswith(_ELF):
        return Override(component, "patches", (source,), (content,))
    built = {KERNEL: "kernel image", XEN: "hypervisor"}.get(component, "kernel module")
    module = content.startswith(_ELF) and int.from_bytes(content[16:18], "little") == _RELOCATABLE
    if not (_is_image(content) and not module if component in (KERNEL, XEN) else module):
        plain = "; a module must not be compressed" if component not in (KERNEL, XEN) else ""
        raise UsageError(f"--under-test {component}: {source} is no {built}, patch or source tree{plain}")
    return Override(component, "file", (source,), (content,))


def _is_image(content: bytes) -> bool:
    magics = ((0, _ELF), *_IMAGES.values(), (0, _GZIP))
    return any(content[at : at + len(magic)] == magic for at, magic in magics)


def arch_of(content: bytes) -> Arch | None:
    """What an ELF file, a kernel image or a hypervisor is built for; None when it does not say."""
    if content.startswith(_ELF):
        return _ELF_MACHINES.get(int.from_bytes(content[18:20], "little"))  # e_machine
    return next((arch for arch, (at, magic) in _IMAGES.items() if content[at : at + len(magic)] == magic), None)


def check_arch(option: str, source: str, content: bytes, arch: Arch) -> None:
    """Refuse what is built for another architecture.

    :raises HostError: it is.
    """
    found = arch_of(content)
    if found != arch:
        raise HostError(
            f"{option}: {source} is not built for {arch}", hint=f"it is built for {found or 'something unknown'}"
        )


def check_module(option: str, source: str, content: bytes, arch: Arch, release: str) -> str:
    """Refuse a module that is built for another architecture or kernel.

    :return: its vermagic.
    :raises HostError: it does not fit.
    """
    check_arch(option, source, content, arch)
    vermagic = vermagic_of(content)
    found = vermagic.partition(" ")[0] or "no version at all"
    if found != release:
        raise HostError(
            f"{option}: {source} is built for kernel {found}, not {release}",
            hint=f"build it against linux-headers-{release}",
        )
    return vermagic


def kernel_release(content: bytes) -> str:
    """The release in an uncompressed kernel image; empty when it has none."""
    match = _RELEASE.search(content)
    return match.group(1).decode("ascii", "replace") if match else ""


def vermagic_of(content: bytes) -> str:
    """What a module says it is built for; empty when it says nothing."""
    match = _VERMAGIC.search(content)
    return match.group(1).decode("ascii", "replace").strip() if match else ""


def tree_files(tree: Path, paths: Sequence[str]) -> dict[str, Path]:
    """A module's files in a user's tree: at their places in the kernel's, or all in one directory.

    :raises HostError: some are at neither.
    """
    whole = {path: tree / path for path in paths}
    alone = {path: tree / Path(path).name for path in paths}
    for files in (whole, alone):
        if all(file.is_file() for file in files.values()):
            return files
    missing = next(path for path in paths if not whole[path].is_file())
    raise HostError(f"source tree {tree} has no {missing}", hint="name the top of a kernel's source tree")
