"""What modules are built from: a kernel's headers and the files of its source, exactly of its version."""

from __future__ import annotations

import lzma
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from harness.deadline import Deadline
from harness.errors import HostError
from harness.images import debs, tools
from harness.images.apt import Apt, Deb
from harness.images.kernel import Kernel

_NEEDED = re.compile(r"\b(linux-headers-\S+-common|linux-kbuild-[^\s,]+)(?: \(= ([^)]+)\))?")
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
    except HostError as error:
        if not error.message.startswith("Debian"):
            raise
        raise HostError(
            f"{error.message}, which kernel {kernel.name} in the image store is of: the archive has moved on",
            hint="harness images prune --keep-days 0 removes what nobody uses; the next run fetches a new kernel",
            tail=error.tail,
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
    with debs.contents(deb, workspace, deadline) as stream, tarfile.open(fileobj=stream, mode="r:") as package:
        member = next((item for item in package if _TARBALL.fullmatch(str(PurePosixPath(item.name)))), None)
        inner = None if member is None else package.extractfile(member)
        if inner is None:
            raise HostError(f"{deb.name} holds no kernel source")
        with lzma.open(inner) as plain, tarfile.open(fileobj=plain, mode="r|") as source:
            for file in source:
                path = file.name.partition("/")[2]
                if path in missing and (data := source.extractfile(file)) is not None:
                    made[path] = workspace / "source" / path
                    made[path].parent.mkdir(parents=True, exist_ok=True)
                    made[path].write_bytes(data.read())
                    missing.remove(path)
                    if not missing:
                        break
    if missing:
        raise HostError(f"the kernel's source has no {', '.join(sorted(missing))}", hint="see files in the recipe")
    return made
