"""What a session works with: recipes, the store, profiles, verbs, the catalogue, and the accelerator's proof."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from harness.errors import HostError, Problem
from harness.images import Images, Recipes, Store
from harness.images.under_test import Override, parse_overrides
from harness.machine.accel import Accelerator, KvmJudge, Request, choose, host_architecture
from harness.machine.machine import BootFiles, Machine
from harness.machine.profiles import describe, load_profiles
from harness.machine.saved import SavedMachines
from harness.machine.scratch import scratch_directory, sweep
from harness.machine.spec import Plan, Profile
from harness.progress import Progress
from harness.scenario.load import load_paths
from harness.scenario.model import Catalogue, Scenario
from harness.steps.base import Verb, find_features, find_verbs


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
            found, wrong = load_paths([path], self.catalogue, scenario_root(path))
            scenarios += found
            problems += wrong
        return scenarios, problems

    def prepare(self, scenarios: Iterable[Scenario]) -> None:
        """Have every image that the scenarios boot, building what is missing."""
        for scenario in scenarios:
            boot = scenario.boot
            self.build_profile(self.profiles[boot.machine], boot.kernel, boot.hypervisor)

    def build_profile(self, profile: Profile, kernel: str | None = None, hypervisor: str | None = None) -> None:
        """Have what a profile boots: one kernel and one hypervisor, or all that it can boot."""
        for name in [kernel] if kernel else profile.kernels:
            self.images.kernel(name, profile.arch)
        self.images.rootfs(profile.rootfs, profile.arch)
        if profile.hypervisor is not None:
            self.images.rootfs(profile.hypervisor.tools, profile.arch)
            for name in [hypervisor] if hypervisor else profile.hypervisor.names:
                self.images.hypervisor(name, profile.arch)

    def overrides(self, values: Iterable[str]) -> dict[str, Override]:
        """``--under-test`` options, read."""
        return parse_overrides(values, self.catalogue.modules)

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
        kernel = self.images.kernel(profile.kernels[0], profile.arch)
        segments = (
            self.images.rootfs(profile.rootfs, profile.arch),
            self.images.segment(kernel, profile.early_modules, []),
        )
        plan = Plan(profile, profile.kernels[0], profile.memory_mib, profile.vcpus)
        accelerator = Accelerator("kvm", "being proved")
        with TemporaryDirectory(prefix="harness-kvm-") as results, scratch_directory() as scratch:
            files = BootFiles(kernel.image, segments)
            with Machine(plan, files, accelerator, results=Path(results), scratch=scratch) as machine:
                machine.boot()

    def sweep(self) -> None:
        """Remove what killed runs left behind."""
        for path in sweep():
            self.progress.message(f"removed {path}, which a killed run had left behind")
