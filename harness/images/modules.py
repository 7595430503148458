"""Kernel modules: what a kernel package holds, and the initramfs segment that carries the ones a scenario wants."""

from __future__ import annotations

import json
import re
import struct
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from harness.deadline import Deadline
from harness.errors import HostError
from harness.images.compressed import decompressed
from harness.images.tree import Tree
from harness.validate import did_you_mean

DIRECTORY = "usr/lib/harness/modules"
EARLY = "usr/lib/harness/early"
DEPENDENCIES = f"{DIRECTORY}.dep.json"
BUILTIN = "modules.builtin"
_FILE = re.compile(r"(?P<name>.+)\.ko(?:\.(?P<compression>xz|gz|zst))?")


def module_name(text: str) -> str:
    """The name that the kernel gives a module: from a path, a file name, or a name with dashes."""
    base = PurePosixPath(text).name
    match = _FILE.fullmatch(base)
    return (match["name"] if match else base).replace("-", "_")


class Modules:
    """The modules of one kernel, as :mod:`harness.images.kernel` stores them.

    :param archive: the uncompressed tar archive with every module file and the list of built-in ones.
    :param scratch: where files may lie for a moment.
    :param built: modules that take the place of the kernel's own, by name, uncompressed.
    """

    def __init__(
        self, archive: Path, scratch: Path, deadline: Deadline, built: Mapping[str, Path] | None = None
    ) -> None:
        self._archive = archive
        self._scratch = scratch
        self._deadline = deadline
        self._members: dict[str, tarfile.TarInfo] = {}
        self._builtin: frozenset[str] = frozenset()
        self._loaded = {module_name(name): path.read_bytes() for name, path in (built or {}).items()}
        with tarfile.open(archive, mode="r:") as tar:
            for member in tar:
                if _FILE.fullmatch(PurePosixPath(member.name).name):
                    self._members[module_name(member.name)] = member
                elif PurePosixPath(member.name).name == BUILTIN:
                    lines = self._bytes(member).decode().split()
                    self._builtin = frozenset(module_name(line) for line in lines)

    def closure(self, wanted: Iterable[str]) -> list[str]:
        """The modules and all they depend on, each after those it needs; what is built into the kernel is left out.

        :raises HostError: the kernel has no such module.
        """
        order: dict[str, None] = {}
        for name in wanted:
            self._visit(module_name(name), order, ())
        return list(order)

    def read(self, name: str) -> bytes:
        """A module's object file, uncompressed."""
        if name not in self._loaded:
            member = self._members[name]
            self._loaded[name] = decompressed(self._bytes(member), member.name, self._scratch, self._deadline)
        return self._loaded[name]

    def _visit(self, name: str, order: dict[str, None], chain: tuple[str, ...]) -> None:
        there = name in self._members or name in self._loaded
        if name in order or (name in self._builtin and not there):
            return
        if not there:
            needed = f", which {chain[-1]} needs" if chain else ""
            raise HostError(
                f"the kernel has no module {name}{needed}",
                hint=did_you_mean(name, self._members) or "is it built into this kernel under another name?",
            )
        if name in chain:
            raise HostError(f"kernel modules depend on one another in a circle: {' -> '.join((*chain, name))}")
        for needed in depends(self.read(name)):
            self._visit(needed, order, (*chain, name))
        order[name] = None

    def _bytes(self, member: tarfile.TarInfo) -> bytes:
        with self._archive.open("rb") as stream:
            stream.seek(member.offset_data)
            return stream.read(member.size)


def segment(modules: Modules, early: Sequence[str], available: Sequence[str]) -> Tree:
    """What is appended to an initramfs so that a guest can load modules.

    ``/lib/harness/early`` names the files that the init loads, one path a line, in order. ``modules.dep.json`` maps
    every wanted module, and each that it needs, to the modules to load for it: dependencies first, itself last, and
    nothing at all for one that is built into the kernel.

    :param early: modules that the init loads.
    :param available: modules that are there to be loaded later.
    """
    tree = Tree()
    first = modules.closure(early)
    every = modules.closure([*early, *available])
    for name in every:
        tree.file(f"{DIRECTORY}/{name}.ko", modules.read(name))
    tree.file(EARLY, "".join(f"/{DIRECTORY}/{name}.ko\n" for name in first).encode())
    chains = {name: modules.closure([name]) for name in (*every, *available)}
    tree.file(DEPENDENCIES, json.dumps(chains, sort_keys=True).encode())
    return tree


def builtin_tree(names: Iterable[str]) -> Tree:
    """What :func:`segment` would give where all modules are built into the kernel."""
    tree = Tree()
    tree.file(EARLY, b"")
    tree.file(DEPENDENCIES, json.dumps({name: [] for name in names}, sort_keys=True).encode())
    return tree


def depends(module: bytes) -> list[str]:
    """The names in a module's ``depends=`` line, from the ``.modinfo`` section of its ELF file (64-bit, little-endian).

    :raises HostError: it is no such file.
    """
    try:
        info = _section(module, b".modinfo")
    except (struct.error, ValueError, IndexError) as error:
        raise HostError("a kernel module is no ELF file", hint="harness images prune, then build again") from error
    for field in info.split(b"\0"):
        if field.startswith(b"depends="):
            return [module_name(name) for name in field[len(b"depends=") :].decode().split(",") if name]
    return []


def build_id(module: bytes) -> str:
    """The linker's fingerprint of a module, in hexadecimal, as a guest reads it of a loaded one; empty without one."""
    try:
        return _section(module, b".note.gnu.build-id")[16:].hex()
    except (struct.error, ValueError, IndexError):
        return ""


def _section(elf: bytes, name: bytes) -> bytes:
    """The contents of one section; see ``Elf64_Ehdr`` and ``Elf64_Shdr`` in include/uapi/linux/elf.h."""
    if elf[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", elf, 40)
    size, count, names_index = struct.unpack_from("<HHH", elf, 58)
    # sh_name, sh_type, sh_flags, sh_addr, sh_offset, sh_size
    headers = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]
    names_at = headers[names_index][4]
    for header in headers:
        start = names_at + header[0]
        if elf[start : elf.index(b"\0", start)] == name:
            return elf[header[4] : header[4] + header[5]]
    return b""
