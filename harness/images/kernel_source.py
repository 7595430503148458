"""What modules are built from: a kernel's headers and the files of its source, exactly of its version."""

from __future__ import annotations

import lzma
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from harness.deadline import Deadline
from harness.errors import HostError
from harness.images import debs, tools
from harness.images.apt import Apt, Deb, NotInArchive
from harness.images.kernel import Kernel
from harness.images.tree import globs

_NEEDED = re.compile(r"\b(linux-headers-\S+-common|linux-kbuild-[^\s,]+)(?: \(= ([^)]+)\))?")
_KEPT = re.compile(r"(?:^|/)(?:Kconfig|Makefile|Kbuild)[^/]*$")
_TARBALL = re.compile(r"usr/src/linux-source-[\d.]+\.tar\.xz")


def fetch_headers(apt: Apt, native: Apt, kernel: Kernel, deadline: Deadline) -> tuple[list[Deb], list[Path]]:
    """The packages of a kernel's headers and of the tools that a build runs.

    :param apt: for the kernel's architecture.
    :param native: for this host's, which the tools must be for.
    :raises HostError: the archive does not have them, or no more.
    """
    with _still_there(kernel):
        found = apt.exact([f"linux-headers-{kernel.release}={kernel.version}"], deadline)
        fetched = apt.download(found, deadline)
        # Not what apt would resolve: the headers depend on a compiler for their own architecture.
        depends = tools.run(["dpkg-deb", "--field", fetched[0], "Depends"], hint="", deadline=deadline)
        needed = dict(_NEEDED.findall(depends))
        for names, root in (("linux-headers-", apt), ("linux-kbuild-", native)):
            wanted = [f"{name}={version}" if version else name for name, version in needed.items() if names in name]
            more = root.exact(wanted, deadline)
            fetched += root.download(more, deadline)
            found += more
    return found, fetched


@contextmanager
def _still_there(kernel: Kernel) -> Iterator[None]:
    """Say what it means when the archive does not have a version: it has moved on since the kernel was fetched."""
    try:
        yield
    except NotInArchive as error:
        raise HostError(
            f"{error.message}, which kernel {kernel.name} in the image store is of: the archive has moved on",
            hint="harness images build --anew fetches the kernels again",
        ) from error


def unpack_headers(packages: Sequence[Path], workspace: Path, deadline: Deadline) -> Path:
    """What belongs into ``/usr/src`` of a build, complete in itself."""
    root = workspace / "headers"
    debs.extract(packages, root, deadline)
    tree = root / "usr/src"
    for link in [path for path in (*tree.iterdir(), *tree.glob("*/*")) if path.is_symlink()]:
        target = str(link.readlink())
        if "/lib/linux-kbuild-" in target:
            link.unlink()
            if link.parent != tree:
                link.symlink_to(target.replace("../lib/", ""))
    for tool in (root / "usr/lib").glob("linux-kbuild-*"):
        tool.rename(tree / tool.name)
    for image in tree.glob("*/vmlinux"):
        # It makes the build add type information, with a tool that nobody else needs, that no guest reads.
        image.unlink()
    return tree


def fetch_source(apt: Apt, kernel: Kernel, deadline: Deadline) -> tuple[Deb, Path]:
    """The package with a kernel's source, Debian's patches applied; raises as :func:`fetch_headers`."""
    series = ".".join(kernel.release.split(".")[:2])
    with _still_there(kernel):
        found = apt.exact([f"linux-source-{series}={kernel.version}"], deadline)
        return found[0], apt.download(found, deadline)[0]


def unpack_source(deb: Path, paths: Sequence[str], workspace: Path, deadline: Deadline) -> dict[str, Path]:
    """Take files out of a source package.

    :param paths: in the kernel's tree.
    :return: where each file is in the workspace.
    :raises HostError: the source has no such file.
    """
    missing = set(paths)
    made: dict[str, Path] = {}
    for path, data in _sources(deb, workspace, deadline):
        if path in missing:
            made[path] = workspace / "source" / path
            made[path].parent.mkdir(parents=True, exist_ok=True)
            made[path].write_bytes(data.read())
            missing.remove(path)
            if not missing:
                return made
    raise HostError(f"the kernel's source has no {', '.join(sorted(missing))}", hint="see files in the recipe")


def unpack_tree(deb: Path, trim: Sequence[str], target: Path, workspace: Path, deadline: Deadline) -> None:
    """Unpack a source package.

    :param trim: shell patterns of what is left out, unless it decides about configuration and building.
    """
    drop = globs(trim)
    with _tar(deb, workspace, deadline) as source:
        for member in source:
            member.name = member.name.partition("/")[2]
            if not _KEPT.search(member.name) and drop.match(member.name):
                continue
            if member.name and (member.isfile() or member.issym()):
                source.extract(member, target, filter="data")


def _sources(deb: Path, workspace: Path, deadline: Deadline) -> Iterator[tuple[str, IO[bytes]]]:
    """The regular files of a kernel's source: their paths and contents, one after another."""
    with _tar(deb, workspace, deadline) as source:
        for file in source:
            if file.isfile() and (data := source.extractfile(file)) is not None:
                yield file.name.partition("/")[2], data


@contextmanager
def _tar(deb: Path, workspace: Path, deadline: Deadline) -> Iterator[tarfile.TarFile]:
    with debs.contents(deb, workspace, deadline) as stream, tarfile.open(fileobj=stream, mode="r:") as package:
        member = next((item for item in package if _TARBALL.fullmatch(str(PurePosixPath(item.name)))), None)
        inner = None if member is None else package.extractfile(member)
        if inner is None:
            raise HostError(f"{deb.name} holds no kernel source")
        with lzma.open(inner) as plain, tarfile.open(fileobj=plain, mode="r|") as source:
            yield source
