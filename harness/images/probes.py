"""The probes as a segment of an initramfs, compiled: an emulated guest would need a second for it in each scenario."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from harness.deadline import Deadline
from harness.images.arch import Arch
from harness.images.python import compile_sources
from harness.images.tree import Tree

#: Below ``usr``: an entry for the directory ``lib`` would replace the symlink that the root file system has there.
DIRECTORY = "usr/lib/harness/probes"
#: What is started by its name, and so stays as it is.
_AGENT = "agent.py"


def probe_sources() -> dict[str, bytes]:
    """Every probe, by its file's name."""
    files = resources.files("harness.probes").iterdir()
    return {file.name: file.read_bytes() for file in files if file.name.endswith(".py") and file.name != "__init__.py"}


def probes_tree(sources: Mapping[str, bytes], root: Path, arch: Arch, scratch: Path, deadline: Deadline) -> Tree:
    """The probes as a guest has them; parameters as :func:`compile_sources` takes them."""
    tree = Tree()
    for name, source in sources.items():
        if name != _AGENT:
            tree.file(f"{DIRECTORY}/{name}", source)
    compile_sources(tree, root, arch, scratch, deadline)
    tree.file(f"{DIRECTORY}/{_AGENT}", sources[_AGENT])
    return tree
