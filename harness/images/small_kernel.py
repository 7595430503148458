"""Small kernels: compiled from source, with everything that scenarios need built in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import BuildFailed
from harness.images.arch import ABIS
from harness.images.incremental import needs_configuring
from harness.images.modules import BUILTIN, module_name
from harness.images.toolchain import BUILD, Toolchain

_SET = re.compile(r"^(CONFIG_\w+=.*|# CONFIG_\w+ is not set)$", re.MULTILINE)
#: By a kernel package's format: what make is asked for, and where it leaves the image, stripped of what no boot needs.
_TARGETS = {
    "bzImage": ("vmlinux", "vmlinux"),  # QEMU boots it by its PVH entry
    "vmlinux": ("vmlinux", "vmlinux"),
    "Image": ("Image", "arch/{arch}/boot/Image"),
}


def build(toolchain: Toolchain, source: Path, configs: Sequence[str], format_: str, deadline: Deadline) -> Path:
    """Compile a kernel in its source.

    :param configs: parts of its configuration, over ``tinyconfig``.
    :param format_: of the recipe's own kernel.
    :return: the image.
    :raises BuildFailed: it does not compile, or its configuration does not take.
    """
    if not (source / "Kconfig").is_file():
        raise BuildFailed("the source tree has no Kconfig", hint="name the top of a kernel's source tree")
    arch = ABIS[toolchain.target].linux
    arguments: list[str | Path] = ["-C", BUILD, f"ARCH={arch}"]
    config = source / ".config"
    wanted = [line for part in configs for line in _SET.findall(part)]
    if needs_configuring(config, "\n".join(wanted)):
        toolchain.make([*arguments, "tinyconfig"], source, deadline, what="the kernel's configuration")
        config.write_text("\n".join([config.read_text(), *wanted, ""]))
        toolchain.make([*arguments, "olddefconfig"], source, deadline, what="the kernel's configuration")
    if lost := lost_lines(wanted, config.read_text()):
        raise BuildFailed(
            f"the kernel's configuration does not take {', '.join(lost)}", hint="see images/configs/ and their depends"
        )
    target, path = _TARGETS[format_]
    toolchain.make([*arguments, target], source, deadline, what="the kernel")
    return source / path.format(arch=arch)


def builtin(source: Path) -> str:
    """The modules that a kernel which was compiled there has built in, their names with spaces between them."""
    return " ".join(sorted(map(module_name, (source / BUILTIN).read_text().split())))


def lost_lines(wanted: Sequence[str], config: str) -> list[str]:
    """What a finished configuration does not have as it was asked for."""
    lines = set(config.splitlines())
    names = {line.partition("=")[0] for line in lines if "=" in line}
    return [
        line for line in wanted if line not in lines and not (line.startswith("#") and line.split()[1] not in names)
    ]
