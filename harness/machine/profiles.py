"""Machine profiles as they lie in ``images/machines/``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from harness.machine.spec import Profile
from harness.scenario.model import ProfileSpec
from harness.strict_yaml import read
from harness.validate import validate

#: What Xen itself takes of a machine's memory, roughly: its heap, and the tables of its domains.
_XEN_MIB = 192


def load_profiles(directory: Path) -> Mapping[str, Profile]:
    """All profiles, by name.

    :raises ScenarioError: when one of the files is wrong.
    """
    return {path.stem: validate(Profile, read(path)) for path in sorted(directory.glob("*.yaml"))}


def describe(name: str, profile: Profile) -> ProfileSpec:
    """What a scenario may say of a profile."""
    xen = profile.hypervisor
    return ProfileSpec(
        name=name,
        arch=profile.arch,
        layers=frozenset({profile.layer}),
        kernels=tuple(profile.kernels),
        cpus=tuple(profile.cpu.choices),
        devices={device: item.settable_types() for device, item in profile.devices.items()},
        hypervisors=tuple(xen.names) if xen else (),
        domain_types=tuple(xen.domain_types) if xen else (),
        virtio_mmio=xen.virtio_mmio if xen else False,
        domain_memory_mib=profile.memory_mib - xen.dom0_memory_mib - _XEN_MIB if xen else 0,
    )
