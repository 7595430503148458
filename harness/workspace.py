"""What a session works with: recipes, the store, profiles, verbs, the catalogue, and the accelerator's proof."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from harness.errors import HarnessError, HostError, Problem
from harness.images import Images, Recipes, Store
from harness.images.under_test import KERNEL, XEN, Override, check_used, parse_overrides
from harness.machine.accel import (
    PROOF_TIMEOUT_S,
    Accelerator,
    EmulationWatch,
    KvmJudge,
    Request,
    choose,
    host_architecture,
)
from harness.machine.machine import Machine
from harness.machine.profiles import describe, load_profiles
from harness.machine.saved import SavedMachines
from harness.machine.scratch import scratch_directory, sweep
from harness.machine.spec import GRUB, Plan, Profile
from harness.parallel import side_by_side
from harness.progress import Progress
from harness.scenario.load import load_file, load_paths
from harness.scenario.model import Catalogue, Scenario
from harness.steps.base import Verb, find_features, find_verbs
from harness.under_test import Candidates, components_of, hypervisor_of, kernel_of, stock

#: Builds wait for the network as long as for the processor.
_BUILDERS = 4


class Needed(NamedTuple):
    """What of a machine profile is to be there.

    :param kernel: one of its kernels; None means all.
    :param hypervisor: one of its hypervisors; None means all, if it boots one.
    :param used: components under test that its scenarios use.
    """

    machine: str
    kernel: str | None = None
    hypervisor: str | None = None
    used: frozenset[str] = frozenset()


def scenario_root(path: Path) -> Path:
    """The directory that a scenario file, and what it links to, must lie in: this one, or else its own."""
    here = Path.cwd()
    if path.resolve().is_relative_to(here):
        return here
    return path if path.is_dir() else path.parent


@dataclass(frozen=True)
class Workspace:
    """Everything that does not depend on which scenarios run. Built lazily: ``check`` needs no store."""

    progress: Progress
    _read: dict[tuple[Path, Path], list[Scenario]] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def recipes(self) -> Recipes:
        """How images are made."""
        return Recipes()

    @cached_property
    def store(self) -> Store:
        """Where images are kept."""
        return Store()

    @cached_property
    def images(self) -> Images:
        """Images, from the store or built."""
        return Images(self.recipes, self.store, self.progress)

    @cached_property
    def saved(self) -> SavedMachines:
        """Machines that were booted before."""
        return SavedMachines(self.store, self.progress)

    @cached_property
    def profiles(self) -> Mapping[str, Profile]:
        """The kinds of machine."""
        return load_profiles(self.recipes.root / "machines")

    @cached_property
    def verbs(self) -> Mapping[str, Verb]:
        """The steps that scenarios can use."""
        return find_verbs()

    @cached_property
    def catalogue(self) -> Catalogue:
        """What scenarios are checked against."""
        return Catalogue(
            verbs={name: verb.spec for name, verb in self.verbs.items()},
            profiles={name: describe(name, profile) for name, profile in self.profiles.items()},
            modules=frozenset(self.recipes.names("modules")),
            features=find_features(),
        )

    def load(self, paths: Iterable[Path]) -> tuple[list[Scenario], list[Problem]]:
        """All scenarios of files and directories, and everything that is wrong with them."""
        scenarios: list[Scenario] = []
        problems: list[Problem] = []
        for path in paths:
            found, wrong = load_paths([path], partial(self.load_file, root=scenario_root(path)))
            scenarios += found
            problems += wrong
        return scenarios, problems

    def load_file(self, path: Path, root: Path | None = None) -> list[Scenario]:
        """The scenarios of one file, read once in a session.

        :param root: see :func:`harness.scenario.load.load_file`; by default what is right for this file alone.
        :raises ScenarioError: see there.
        """
        known = (path.absolute(), root or scenario_root(path))
        if known not in self._read:
            self._read[known] = load_file(path, self.catalogue, root=known[1])
        return self._read[known]

    def prepare(
        self, scenarios: Iterable[Scenario], overrides: Mapping[str, Override] | None = None
    ) -> dict[str, HarnessError]:
        """Have every image that the scenarios boot, and what is under test, building what is missing.

        :return: for each scenario that has none, by its id, why: an archive may lack one architecture only.
        """
        users: dict[Needed, list[str]] = {}
        for scenario in scenarios:
            machine = scenario.boot.machine
            profile = self.profiles[machine]
            kernel, hypervisor = kernel_of(scenario, profile), hypervisor_of(scenario, profile)
            used = self.components_of(scenario) & frozenset(overrides or ())
            users.setdefault(Needed(machine, kernel, hypervisor, used), []).append(scenario.id)
        refused = dict(self.build_profiles(users))
        tests = {
            item: partial(self._build_under_test, item, {name: overrides[name] for name in item.used})
            for item in users
            if overrides and item.used and item not in refused
        }
        refused |= side_by_side(tests, HarnessError, workers=_BUILDERS)
        return {scenario: error for needed, error in refused.items() for scenario in users[needed]}

    def _build_under_test(self, needed: Needed, overrides: Mapping[str, Override]) -> None:
        profile = self.profiles[needed.machine]
        self._check_small_kernel(overrides.get(KERNEL), needed.machine)
        stock = self.images.kernel(needed.kernel or profile.kernels[0], profile.arch)
        small = profile.small_kernel
        Candidates(self.images, overrides, stock, (), (), needed.hypervisor, small_kernel=small).build()

    def _check_small_kernel(self, override: Override | None, machine: str) -> None:
        if override is None or override.kind == "file" or self.profiles[machine].small_kernel:
            return
        there = ", ".join(name for name, profile in self.profiles.items() if profile.small_kernel)
        raise HostError(
            f"{override.option}: from a patch or a tree no kernel can be built for {machine}, only for {there}",
            hint="choose a scenario's row with -k; for this machine, put a built image under test",
        )

    def build_profiles(self, needed: Iterable[Needed], *, anew: bool = False) -> dict[Needed, HarnessError]:
        """Have what some profiles boot, built side by side where it is missing.

        :param anew: take the kernels that the archive has now.
        :return: why one cannot be had.
        """
        builds = {item: partial(self._build_profile, item, anew=anew) for item in needed}
        _ = self.images  # made once, before threads ask for it
        return side_by_side(builds, HarnessError, workers=_BUILDERS)

    def _build_profile(self, needed: Needed, *, anew: bool) -> None:
        profile = self.profiles[needed.machine]
        for name in [needed.kernel] if needed.kernel else profile.kernels:
            self.images.kernel(name, profile.arch, anew=anew)
        self.images.rootfs(profile.rootfs, profile.arch)
        self.images.probes(profile.rootfs)
        if profile.hypervisor is not None:
            self.images.rootfs(profile.hypervisor.tools, profile.arch)
            for name in [needed.hypervisor] if needed.hypervisor else profile.hypervisor.names:
                self.images.hypervisor(name, profile.arch)
            if profile.hypervisor.loader == GRUB:
                self.images.bootloader(GRUB)

    def overrides(self, values: Iterable[str]) -> dict[str, Override]:
        """``--under-test`` options, read."""
        return parse_overrides(values, self.components)

    @property
    def components(self) -> frozenset[str]:
        """What can be put under test."""
        return frozenset({KERNEL, XEN, *self.catalogue.modules})

    def check_used(self, overrides: Collection[str], scenarios: Iterable[Scenario]) -> None:
        """Refuse to test what none of the scenarios uses; raises :class:`UsageError`."""
        check_used(overrides, {name for item in scenarios for name in self.components_of(item)})

    def can_build(self, component: str, scenario: Scenario) -> bool:
        """Whether a scenario uses a component that can be built from patches for its machine."""
        profile = self.profiles[scenario.boot.machine]
        if component not in self.components_of(scenario):
            return False
        if component == KERNEL:
            recipe = self.recipes.kernel(kernel_of(scenario, profile))
            return bool(profile.small_kernel) and recipe.build is not None
        return self.images.builds(component, profile.arch)

    def components_of(self, scenario: Scenario) -> frozenset[str]:
        """What a scenario uses that can be put under test."""
        return components_of(scenario, self.profiles[scenario.boot.machine])

    @cached_property
    def kvm(self) -> KvmJudge:
        """The proof of KVM, remembered for this boot of the host."""
        profile = self._native_profile()
        fingerprint = f"{profile.kernels[0]} {profile.rootfs}" if profile else "none"
        return KvmJudge(self.store.root / "proofs", self._prove_kvm, fingerprint)

    def accelerator(self, request: Request, guest_architecture: str) -> Accelerator:
        """What a guest runs under on this host."""
        return choose(request, guest_architecture, self.kvm)

    def _native_profile(self) -> Profile | None:
        plain = (item for item in self.profiles.values() if item.hypervisor is None)
        return next((item for item in plain if item.arch == host_architecture()), None)

    def _prove_kvm(self) -> None:
        """Boot the harness's own guest under KVM; raises when it does not come up."""
        profile = self._native_profile()
        if profile is None:
            raise HostError(f"no machine profile has this host's architecture, {host_architecture()}")
        self.progress.message("proving KVM: booting a guest under it")
        files = stock(self.images, profile).boot_files(profile)
        plan = Plan.of(profile.model_copy(update={"boot_timeout_s": PROOF_TIMEOUT_S}))
        accelerator = Accelerator("kvm", "being proved")
        with (
            TemporaryDirectory(prefix="harness-kvm-") as results,
            scratch_directory() as scratch,
            Machine(plan, files, accelerator, results=Path(results), scratch=scratch) as machine,
        ):
            machine.boot(EmulationWatch())

    def sweep(self) -> None:
        """Remove what killed runs left behind."""
        for path in sweep():
            self.progress.message(f"removed {path}, which a killed run had left behind")
