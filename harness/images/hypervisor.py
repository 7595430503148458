"""Xen, out of Debian's packages or compiled from its source package."""

from __future__ import annotations

import re
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from harness.deadline import Deadline
from harness.errors import BuildFailed, HostError
from harness.images import debs
from harness.images.compressed import decompressed
from harness.images.incremental import needs_configuring
from harness.images.toolchain import BUILD, Toolchain

PACKAGES = ("xen-hypervisor-[0-9]*",)
"""Which packages of a closure hold the hypervisor."""

_IMAGE = re.compile(r"boot/xen-[\d.]+-\w+(?:\.gz)?")
_SETTING = re.compile(r"^CONFIG_(\w+)=(.*)$", re.MULTILINE)
#: On x86 the hypervisor as an EFI program is linked beside what is booted here (arch/x86/Makefile), which takes half of
#: the time that a change of one line takes.
_NO_EFI_PROGRAM = "efi-y="
_REPRODUCIBLE = {
    "XEN_BUILD_DATE": "1970-01-01",
    "XEN_BUILD_TIME": "00:00:00",
    "XEN_BUILD_HOST": "harness",
    "XEN_WHOAMI": "harness",
    "XEN_DOMAIN": "",
}


def unpack(packages: Sequence[Path], target: Path, workspace: Path, deadline: Deadline) -> None:
    """Take the hypervisor out of Debian's packages, without its compression.

    :raises HostError: there is not exactly one in them.
    """
    found: list[bytes] = []
    for deb in packages:
        with debs.contents(deb, workspace, deadline) as stream, tarfile.open(fileobj=stream, mode="r:") as package:
            for member in package:
                if member.isfile() and _IMAGE.fullmatch(str(PurePosixPath(member.name))):
                    data = package.extractfile(member)
                    assert data is not None
                    found.append(decompressed(data.read(), member.name, workspace, deadline))
    if len(found) != 1:
        raise HostError(f"the packages hold {len(found)} hypervisors", hint="see packages in the hypervisor's recipe")
    target.write_bytes(found[0])


def unpack_source(toolchain: Toolchain, archives: Sequence[Path], build: Path, deadline: Deadline) -> None:
    """Unpack a source package into a build directory, Debian's patches applied.

    :param archives: what its authors released, and Debian's changes.
    """
    # Debian's changes are one directory; what is released has one around it.
    for archive, strip in zip(archives, ("1", "0"), strict=True):
        shutil.copyfile(archive, build / archive.name)
        toolchain.run(["tar", "-x", "--strip-components", strip, "-f", BUILD / archive.name], build, deadline)
        (build / archive.name).unlink()
    toolchain.run(["dpkg-source", "--before-build", BUILD], build, deadline)
    shutil.rmtree(build / ".pc")  # what the patches have changed, as it was


def build(
    toolchain: Toolchain, source: Path, options: Mapping[str, str], arch: str, name: str, deadline: Deadline
) -> Path:
    """Compile the hypervisor in its source.

    :param options: of its configuration; the others have their defaults.
    :param arch: as Xen calls it.
    :raises BuildFailed: it does not compile, or an option did not take.
    """
    if not (source / "xen" / "Makefile").is_file():
        raise BuildFailed(f"{name}: the source tree has no xen/Makefile", hint="name the top of Xen's source tree")
    config = source / "xen" / ".config"
    wanted = "".join(f"CONFIG_{option}={value}\n" for option, value in options.items())
    arguments: list[str | Path] = ["-C", BUILD / "xen", f"XEN_TARGET_ARCH={arch}", _NO_EFI_PROGRAM]
    if needs_configuring(config, wanted):
        config.write_text(wanted)
        toolchain.make([*arguments, "olddefconfig"], source, deadline, what=f"the configuration of {name}")
    lost = lost_options(options, config.read_text())
    if lost:
        raise BuildFailed(
            f"hypervisor {name}: its configuration does not take {', '.join(lost)}",
            hint="is the option there in this version, and all that it depends on?",
        )
    toolchain.make([*arguments, "build"], source, deadline, what=f"hypervisor {name}", env=_REPRODUCIBLE)
    return source / "xen" / "xen"


def lost_options(options: Mapping[str, str], config: str) -> list[str]:
    """The options that a finished configuration does not have as they were asked for."""
    values = dict(_SETTING.findall(config))
    return [f"{option}={value}" for option, value in options.items() if values.get(option, "n") != value]
