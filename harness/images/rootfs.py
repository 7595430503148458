"""Root file systems out of Debian packages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.deadline import Deadline
from harness.images import debs, tools
from harness.images.arch import Arch
from harness.images.python import compile_sources
from harness.images.tree import Tree, globs


def root_tree(packages: Sequence[Path], trim: Sequence[str], scratch: Path, deadline: Deadline) -> Tree:
    """What the packages hold, without what is trimmed."""
    drop = globs(trim)
    tree = Tree(merged=True)
    for package in packages:
        with debs.contents(package, scratch, deadline) as archive:
            tree.unpack(archive, drop)
    tree.trim(drop)
    return tree


def finish(tree: Tree, host_root: Path, arch: Arch, scratch: Path, deadline: Deadline) -> None:
    """Add what packages leave to installation: byte code, busybox's links, the first device nodes, mount points."""
    # Docstrings go: a tenth of the image that no probe reads. Assertions of the library go with them.
    compile_sources(tree, host_root, arch, scratch, deadline, optimize=2)
    applets = tools.run(
        [host_root / "usr/bin/busybox", "--list-full"],
        hint="the recipe's packages need busybox-static",
        deadline=deadline,
    )
    for path in applets.split():
        # What a package brought is the better one: busybox's has a part of its options.
        if f"/{path}".endswith("/busybox") or path in tree:
            continue
        tree.symlink(path, "/usr/bin/busybox")
    for name in ("dev/pts", "dev/shm", "proc", "sys", "run", "var/log"):
        tree.directory(name)
    tree.directory("tmp", 0o1777)
    tree.directory("root", 0o700)
    # Linux opens the console for the first process before that has mounted devtmpfs.
    tree.character_device("dev/console", 5, 1, 0o600)
    tree.character_device("dev/null", 1, 3, 0o666)
