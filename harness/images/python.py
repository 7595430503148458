"""Byte-compiling for a guest's Python, without running anything of the guest's architecture.

Byte code depends on Python's version but not on the architecture, so the same release's interpreter for the host's own
architecture compiles it.
"""

from __future__ import annotations

from pathlib import Path

from harness.deadline import Deadline
from harness.errors import HostError
from harness.images import tools
from harness.images.arch import Arch
from harness.images.debs import launcher
from harness.images.tree import Tree

_COMPILE = """
import os, py_compile, sys
top, optimize = sys.argv[1], int(sys.argv[2])
for directory, _, names in os.walk(top):
    for path in (os.path.join(directory, name) for name in names):
        py_compile.compile(path, path + "c", "/" + os.path.relpath(path, top), True, optimize,
                           py_compile.PycInvalidationMode.UNCHECKED_HASH)
"""
"""Hash-based and never checked: an initramfs carries no source to check against."""


def compile_sources(
    tree: Tree, root: Path, arch: Arch, scratch: Path, deadline: Deadline, *, optimize: int = 0
) -> None:
    """Replace each Python source below ``usr/lib`` by its byte code, beside where the source was.

    Sources are left out because without them an import looks at one file less, and the image is smaller.

    :param tree: a guest's root, or a part of it.
    :param root: a directory with the same release's Python for this host, unpacked.
    :param arch: this host's architecture.
    :param scratch: where sources and byte code may lie.
    :param optimize: 2 leaves assertions and docstrings out.
    """
    sources = {path: node for path, node in tree.under("usr/lib").items() if path.endswith(".py")}
    top = scratch / "python"
    for path, node in sources.items():
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_bytes(node.data)
    tools.run(
        [*_interpreter(root, arch), "-I", "-S", "-B", "-c", _COMPILE, top, str(optimize)],
        hint="a bug in the harness: report it with the lines above",
        deadline=deadline,
    )
    for path in sources:
        tree.remove(path)
        tree.file(f"{path}c", (top / f"{path}c").read_bytes())


def _interpreter(root: Path, arch: Arch) -> list[str | Path]:
    """How to start the Python in ``root`` with its own C library instead of the host's."""
    pythons = sorted(root.glob("usr/bin/python3.*"))
    if not pythons:
        raise HostError(
            "the root file system's packages bring no Python to compile its library with",
            hint="the recipe's packages need python3-minimal",
        )
    return [*launcher(root, arch), pythons[0]]
