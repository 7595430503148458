"""Machine profiles as they lie in ``images/machines/``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from harness.machine.spec import Profile
from harness.scenario.model import ProfileSpec
from harness.strict_yaml import read
from harness.validate import validate

#: A plain machine has one guest, and modules are loaded there.
GUEST = "guest"


def load_profiles(directory: Path) -> Mapping[str, Profile]:
    """All profiles, by name.

    :raises ScenarioError: when one of the files is wrong.
    """
    return {path.stem: validate(Profile, read(path)) for path in sorted(directory.glob("*.yaml"))}


def describe(name: str, profile: Profile) -> ProfileSpec:
    """What a scenario may say of a profile."""
    return ProfileSpec(
        name=name,
        arch=profile.arch,
        layers=frozenset({GUEST}),
        kernels=tuple(profile.kernels),
        cpus=tuple(profile.cpu.choices),
        devices={device: item.settable_types() for device, item in profile.devices.items()},
    )
