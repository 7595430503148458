"""Architectures by Debian's names, and what each calls its library directory and its dynamic linker."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Literal, get_args

from harness.errors import HostError

Arch = Literal["amd64", "arm64", "ppc64el"]
ARCHITECTURES: tuple[Arch, ...] = get_args(Arch)


@dataclass(frozen=True, slots=True)
class Abi:
    """How an architecture lays out a root.

    :param multiarch: the name of the library directory under ``/usr/lib``.
    :param linker: the dynamic linker, in that directory.
    :param linux: what Linux calls it, for a build (``ARCH=``).
    :param xen: what Xen calls it, likewise (``XEN_TARGET_ARCH=``); empty where Xen does not run.
    """

    multiarch: str
    linker: str
    linux: str
    xen: str


ABIS: dict[Arch, Abi] = {
    "amd64": Abi("x86_64-linux-gnu", "ld-linux-x86-64.so.2", "x86", "x86_64"),
    "arm64": Abi("aarch64-linux-gnu", "ld-linux-aarch64.so.1", "arm64", "arm64"),
    "ppc64el": Abi("powerpc64le-linux-gnu", "ld64.so.2", "powerpc", ""),
}

_MACHINES: dict[str, Arch] = {"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64el"}


def host_arch() -> Arch:
    """The architecture whose programs this host runs without emulation.

    :raises HostError: the host is none that images can be built on.
    """
    machine = platform.machine()
    if machine not in _MACHINES:
        raise HostError(
            f"images cannot be built on a {machine} host",
            hint=f"build on one of {', '.join(sorted(_MACHINES))}",
        )
    return _MACHINES[machine]
