"""What one machine boots and loads: recipes' components, and those under test in their places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import HostError, Unsupported
from harness.images import Images, Kernel
from harness.images.modules import DIRECTORY, build_id, module_name
from harness.images.under_test import KERNEL, XEN, Candidate, Override
from harness.machine.initrd import DomainFiles
from harness.machine.machine import BootFiles, Machine
from harness.machine.spec import GRUB, Profile
from harness.result import UnderTest
from harness.scenario.model import Scenario


def components_of(scenario: Scenario, profile: Profile) -> frozenset[str]:
    """What a scenario uses that can be put under test."""
    own = {XEN} if profile.hypervisor is not None else set()
    return frozenset({KERNEL, *own, *(item.module for item in scenario.load)})


def kernel_of(scenario: Scenario, profile: Profile) -> str:
    """Which kernel a scenario boots: the one that it names, or its machine's first."""
    return scenario.boot.kernel or profile.kernels[0]


def hypervisor_of(scenario: Scenario, profile: Profile) -> str | None:
    """Which hypervisor a scenario boots; None where its machine has none."""
    return None if profile.hypervisor is None else scenario.boot.hypervisor or profile.hypervisor.names[0]


def stock(images: Images, profile: Profile) -> Candidates:
    """What a machine boots of itself: its first kernel and hypervisor, and no module but the early ones."""
    hypervisor = profile.hypervisor.names[0] if profile.hypervisor else None
    return Candidates(
        images, {}, images.kernel(profile.kernels[0], profile.arch), profile.early_modules, (), hypervisor
    )


def _place(module: str) -> str:
    """Where a guest has a module."""
    return f"{DIRECTORY}/{module_name(module)}.ko"


def recorded(tested: Candidate) -> UnderTest:
    """What a result says of a component under test."""
    override = tested.override
    return UnderTest(
        component=override.component,
        kind=override.kind,
        source=override.source,
        source_sha256=override.sha256 if override.contents else "",
        sha256=tested.sha256,
        describe=tested.describe,
        version=tested.version,
        replaced=tested.replaced,
        sources=tuple(str(path.absolute()) for path in override.sources),
        inexact=tested.inexact,
    )


@dataclass
class Candidates:
    """The components of one machine, those under test built when they are first asked for.

    :param overrides: what is under test, by component; all of it is used by this machine.
    :param kernel: the recipe's.
    :param early: modules that are loaded at boot.
    :param wanted: modules that are loaded afterwards.
    :param hypervisor_name: the recipe's below it, where there is one.
    :param late: whether a module can be brought to the guest when it has booted.
    :param small_kernel: the parts of the configuration of a kernel that is compiled for the machine.
    """

    images: Images
    overrides: Mapping[str, Override]
    kernel: Kernel
    early: Sequence[str]
    wanted: Sequence[str]
    hypervisor_name: str | None = None
    late: bool = True
    small_kernel: Sequence[str] = ()

    def build(self) -> None:
        """Build now what is built for the kernel; raises as :meth:`Images.tested_module`."""
        _ = self.all

    @property
    def all(self) -> list[Candidate]:
        """Everything that is under test."""
        whole = [item for item in (self._tested_hypervisor, self._tested_kernel) if item]
        return [*whole, *self._modules.values()]

    @property
    def kernel_image(self) -> Path:
        """What is booted."""
        return self._tested_kernel.path if self._tested_kernel else self.kernel.image

    def boot_files(self, profile: Profile, domain: DomainFiles | None = None) -> BootFiles:
        """What the machine boots.

        :param domain: what its domains do.
        """
        xen = profile.hypervisor
        roots = [profile.rootfs, *([xen.tools] if xen else [])]
        segments = (*(self.images.rootfs(root, profile.arch) for root in roots), *self.segments(profile))
        if xen is None:
            return BootFiles(self.kernel_image, segments)
        hypervisor, _ = self.hypervisor
        if xen.loader != GRUB:
            return BootFiles(self.kernel_image, segments, hypervisor, domain)
        image = self._tested_kernel.path if self._tested_kernel else self.kernel.vmlinuz
        return BootFiles(image, segments, hypervisor, domain, self.images.bootloader(GRUB), self.kernel_image)

    def segments(self, profile: Profile) -> tuple[Path, ...]:
        """What comes into the initramfs beside root file systems: modules and probes."""
        return self.segment, self.images.probes(profile.rootfs)

    @property
    def release(self) -> str:
        """The release of the kernel that is booted."""
        return self._tested_kernel.version if self._tested_kernel else self.kernel.release

    @property
    def built_in(self) -> bool:
        """Whether the kernel has all modules built in: one of another release finds none that it could load."""
        return self.release != self.kernel.release

    @property
    def kernel_sha256(self) -> dict[str, str]:
        """The hash of a kernel under test, as versions have it; nothing where there is none."""
        return {"kernel_sha256": self._tested_kernel.sha256} if self._tested_kernel else {}

    @property
    def hypervisor(self) -> tuple[Path, str]:
        """The hypervisor that is booted, of the recipe or in its place, and its version."""
        if self._tested_hypervisor:
            return self._tested_hypervisor.path, self._tested_hypervisor.version or "under test"
        assert self.hypervisor_name is not None, "a machine that has a hypervisor says which"
        stock = self.images.hypervisor(self.hypervisor_name, self.kernel.arch)
        return stock.image, stock.version

    @cached_property
    def segment(self) -> Path:
        """The initramfs segment with the modules. One that can come late is not in it: the machine is the usual one.

        :raises Unsupported: a small kernel does not have one of them.
        """
        if self.built_in:
            self._check_built_in()
            return self.images.builtin_segment(self.kernel, self.early, self.wanted, self.release)
        there = {name: tested for name, tested in self._modules.items() if name not in self._late}
        return self.images.segment(self.kernel, self.early, self.wanted, there)

    def _check_built_in(self) -> None:
        known = self._tested_kernel.builtin if self._tested_kernel else None
        lacking = (
            [] if known is None else [name for name in (*self.early, *self.wanted) if module_name(name) not in known]
        )
        if lacking:
            raise Unsupported(
                f"kernel {self.release}, which is under test, does not have {', '.join(lacking)} built in",
                hint="see small_kernel in the machine's profile; a module of that name is tested with Debian's kernel",
            )

    def bring(self, machine: Machine, module: str, deadline: Deadline) -> None:
        """Put a module under test into a booted guest, when it is not there yet."""
        if (tested := self._late.get(module)) is not None:
            target = f"/{_place(module)}"
            machine.ssh(deadline).run(["dd", f"of={target}"], stdin=tested.path.read_bytes(), deadline=deadline)

    @property
    def late_files(self) -> dict[str, Path]:
        """What :meth:`bring` brings, by its place in the guest, without the leading slash."""
        return {_place(module): tested.path for module, tested in self._late.items()}

    def check_loaded(self, module: str, found: str) -> None:
        """Compare what a guest has loaded with what is under test: a result must not speak of anything else.

        :param found: the build id of the loaded module; empty where it has none.
        :raises HostError: it is another one.
        """
        tested = self._modules.get(module)
        wanted = build_id(tested.path.read_bytes()) if tested else ""
        if wanted and found and wanted != found:
            raise HostError(
                f"the guest has loaded another module {module} than the one under test",
                hint=f"its build id is {found}, not {wanted}: is it loaded at boot, or built into the kernel?",
            )

    def fingerprint(self) -> dict[str, str]:
        """The hashes of what comes late: a machine that has it is not the usual one any more."""
        return {name: tested.sha256 for name, tested in self._late.items()}

    @cached_property
    def _tested_kernel(self) -> Candidate | None:
        override = self.overrides.get(KERNEL)
        return None if override is None else self.images.tested_kernel(override, self.kernel, self.small_kernel)

    @cached_property
    def _tested_hypervisor(self) -> Candidate | None:
        override = self.overrides.get(XEN)
        if override is None or self.hypervisor_name is None:
            return None
        return self.images.tested_hypervisor(override, self.hypervisor_name, self.kernel.arch)

    @cached_property
    def _modules(self) -> dict[str, Candidate]:
        modules = {name: item for name, item in self.overrides.items() if name not in (KERNEL, XEN)}
        return {name: self.images.tested_module(override, self.kernel) for name, override in modules.items()}

    @cached_property
    def _late(self) -> dict[str, Candidate]:
        if not self.late or self.built_in:
            return {}
        return {
            name: tested
            for name, tested in self._modules.items()
            if self.images.can_come_late(self.kernel, self.early, self.wanted, tested)
        }
