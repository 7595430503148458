"""The running machines of one scenario: images prepared, machine booted, modules loaded, all of it undone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from harness.deadline import Deadline
from harness.errors import HostError, Unsupported
from harness.guest.xen import Domain, DomainPlan
from harness.images import Images, Kernel
from harness.images.under_test import KERNEL, XEN, Candidate, Override
from harness.machine.accel import Accelerator
from harness.machine.admission import admitted, host_capacity, need_of
from harness.machine.domain_console import DomainConsole
from harness.machine.initrd import DOMAIN_INITRD, DOMAIN_KERNEL, DomainFiles
from harness.machine.machine import BootFiles, Machine, Timings
from harness.machine.process import is_running
from harness.machine.repro import write_repro
from harness.machine.saved import Key, SavedMachines
from harness.machine.scratch import scratch_directory
from harness.machine.spec import Plan, Profile
from harness.oops import Blame, Report
from harness.places import cache_root
from harness.regex import compiled
from harness.scenario.model import Domain as DomainWishes
from harness.scenario.model import ModuleLoad, Scenario
from harness.under_test import Candidates, hypervisor_of, kernel_of

_LOAD_TIMEOUT_S = 20
#: What takes less is done again rather than saved: one that is saved costs as much, once. One with code under test is
#: taken up less often: the code changes.
_WORTH_SAVING_S, _TESTED_WORTH_SAVING_S = 0.4, 1.0
#: Keeps a driver that is built in away from a domain's devices: at boot no backend is there yet, and what it would read
#: is a fault (drivers/virtio/virtio_mmio.c).
_NO_VIRTIO_MMIO = "initcall_blacklist=virtio_mmio_init"


@dataclass(frozen=True, slots=True)
class LoadedModule:
    """A module as the guest loaded it.

    :param order: the modules that had to be loaded for it, itself last; empty when it was there already.
    :param build_id: the linker's fingerprint of the module, in hexadecimal; empty where it has none.
    """

    layer: str
    module: str
    order: tuple[str, ...]
    build_id: str


class Testbed:
    """The machines of one scenario, on one ExitStack.

    :param results: directory that keeps what the run leaves.
    :param overrides: components under test, by name.
    :param saved: saved machines, to go on from and to be added to; None boots cold and saves nothing.
    """

    __test__ = False  # the name begins with "Test", but pytest has nothing to collect here

    def __init__(
        self,
        scenario: Scenario,
        profile: Profile,
        images: Images,
        accelerator: Accelerator,
        results: Path,
        overrides: Mapping[str, Override],
        saved: SavedMachines | None = None,
    ) -> None:
        self.scenario = scenario
        self.profile = profile
        self.accelerator = accelerator
        self.results = results
        self.versions: dict[str, str] = {}
        self._images = images
        self.overrides = overrides
        self._stack = ExitStack()
        self._candidates: list[Candidates] = []
        self.domains: dict[str, Domain] = {}
        self._scratch: Path | None = None
        self._machine: Machine | None = None
        self._saved = None if scenario.boot.fresh or scenario.boot.until else saved
        self._loaded: list[LoadedModule] | None = None
        self._domains_s = 0.0
        self.start = "cold"
        self._tolerated = [(rule.layer, compiled(rule.title)) for rule in scenario.allow_crash]

    def __enter__(self) -> Self:
        self._scratch = self._stack.enter_context(scratch_directory())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def stop(self) -> None:
        """End the machine, keeping its logs in reach."""
        if self._machine is not None:
            self._machine.catch_up()
            self._machine.kill()

    def close(self) -> None:
        """Undo everything, newest first. Safe to call again."""
        self._stack.close()

    @property
    def timings(self) -> Timings:
        """What the start of the machine cost; zeros when it never started."""
        return Timings() if self._machine is None else self._machine.timings

    @property
    def scratch(self) -> Path:
        """A directory that goes with the testbed."""
        if self._scratch is None:
            raise HostError("the testbed is not open")
        return self._scratch

    @property
    def tested(self) -> list[Candidate]:
        """The components under test, as they were booted or loaded."""
        every = {item.override.component: item for candidates in self._candidates for item in candidates.all}
        return list(every.values())

    @property
    def machine(self) -> Machine:
        """The booted machine."""
        if self._machine is None:
            raise HostError("nothing is booted yet")
        return self._machine

    def tolerates(self, report: Report) -> bool:
        """Whether the scenario provokes this crash on purpose (``allow_crash``)."""
        return report.blame is not Blame.EMULATOR and any(
            layer == report.layer and title.search(report.title) for layer, title in self._tolerated
        )

    # -- the phases, in order ------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Have the images at hand: from the store, or built now."""
        boot, profile = self.scenario.boot, self.profile
        name = kernel_of(self.scenario, profile)
        kernel = self._images.kernel(name, profile.arch)
        plan = Plan(
            profile=profile,
            kernel=name,
            memory_mib=boot.memory_mib or profile.memory_mib,
            vcpus=boot.vcpus or profile.vcpus,
            kernel_args=tuple(boot.kernel_args),
            devices=boot.devices,
            cpu=boot.cpu,
            hypervisor_args=boot.hypervisor_args,
            dmar=boot.dmar,
            until=boot.until,
            trace=boot.trace,
        )
        files = self._boot_files(kernel)
        self.versions["kernel"] = self._candidates[0].release
        self.versions.update(self._images.hashes(kernel, profile.rootfs, profile.arch))
        self.versions.update(self._candidates[0].kernel_sha256)
        self._machine = self._stack.enter_context(
            Machine(
                plan,
                files,
                self.accelerator,
                results=self.results,
                scratch=self.scratch,
                tolerated=self.tolerates,
            )
        )
        for name, wishes in boot.domains.items():
            self._add_domain(self._machine, name, wishes)
        self._check_later()
        write_repro(self.results / "repro.sh", self._machine, self._candidates[0].late_files)

    def _check_later(self) -> None:
        """A built-in driver meets its device at boot, not when a step says so: nobody is there yet to answer it."""
        for item in self.scenario.load:
            candidates = self._candidates_of(item.layer)
            if item.later and candidates.built_in:
                raise Unsupported(
                    f"module {item.module} cannot be loaded later: it is built into kernel {candidates.release}"
                )

    def await_room(self, on_wait: Callable[[], None]) -> None:
        """Wait until this host has room for one more machine.

        :param on_wait: called once when there is none yet.
        """
        need = need_of(self.machine.plan, self.accelerator.name)
        self._stack.enter_context(admitted(cache_root() / "admission", need, host_capacity(), on_wait))

    def _boot_files(self, kernel: Kernel) -> BootFiles:
        scenario, profile = self.scenario, self.profile
        name = hypervisor_of(scenario, profile)
        own = {item.module for item in scenario.load if item.layer == profile.layer}
        main = self._add_candidates(kernel, profile.early_modules, own, hypervisor=name)
        if name is not None:
            _, version = main.hypervisor
            self.versions["hypervisor"] = f"{name} {version}"
        if not scenario.boot.domains:
            return main.boot_files(profile)
        theirs = {item.module for item in scenario.load if item.layer != profile.layer}
        domains = self._add_candidates(kernel, (), theirs, late=False)
        rootfs = self._images.rootfs(profile.rootfs, profile.arch)
        return main.boot_files(profile, DomainFiles(domains.kernel_image, (rootfs, *domains.segments(profile))))

    def _add_candidates(
        self,
        kernel: Kernel,
        early: Sequence[str],
        modules: Set[str],
        *,
        hypervisor: str | None = None,
        late: bool = True,
    ) -> Candidates:
        """What one kind of guest boots and loads: the machine's own first, then the domains."""
        used = {KERNEL, *modules} | ({XEN} if hypervisor else set())
        overrides = {name: item for name, item in self.overrides.items() if name in used}
        candidates = Candidates(
            self._images, overrides, kernel, early, sorted(modules), hypervisor, late, self.profile.small_kernel
        )
        self._candidates.append(candidates)
        return candidates

    def _add_domain(self, machine: Machine, name: str, wishes: DomainWishes) -> None:
        """A domain that is to be created, or runs already where a saved machine goes on."""
        xen = self.profile.hypervisor
        assert xen is not None, "scenarios are checked before they run"
        arguments = [*xen.domain_args, *wishes.kernel_args]
        if wishes.virtio_mmio and self._candidates[-1].built_in:
            arguments.append(_NO_VIRTIO_MMIO)
        plan = DomainPlan(
            name=name,
            kernel=f"/{DOMAIN_KERNEL}",
            ramdisk=f"/{DOMAIN_INITRD}",
            command_line=" ".join(arguments),
            vcpus=wishes.vcpus,
            memory_mib=wishes.memory_mib,
            type=wishes.type or (xen.domain_types[0] if xen.domain_types else None),
            virtio_mmio=wishes.virtio_mmio,
            pci=tuple(xen.assignable[device] for device in wishes.pci),
        )
        domain = self.domains[name] = Domain(plan, machine)
        machine.watch(DomainConsole(name, self.results / f"console-{name}.log", domain.console_log))

    def boot(self) -> None:
        """Have a machine that takes commands: booted, or a saved one that goes on."""
        if not (self._take_up(self._stage_loaded) or self._take_up(self._stage_booted)):
            self.machine.boot()
            self._save(self._stage_booted, self.timings.first_command)
        self.versions["qemu"] = self.machine.monitor.qemu_version()
        if self._loaded is None:
            started = time.monotonic()
            self.create_domains()
            self._domains_s = time.monotonic() - started

    def create_domains(self) -> None:
        """Create the scenario's domains and wait until they answer.

        :raises CommandFailed: xl refuses one.
        :raises GuestHang: one does not come up.
        """
        timeout_s = self.profile.boot_timeout_s * self.machine.time_factor
        for domain in self.domains.values():
            domain.create(Deadline.after(timeout_s, f"domain {domain.name} to be created"))
        for domain in self.domains.values():
            domain.wait(Deadline.after(timeout_s, f"domain {domain.name} to come up"))

    def load(self) -> list[LoadedModule]:
        """Load the scenario's modules, each with what it depends on."""
        if self._loaded is None:
            started = time.monotonic()
            self._loaded = [self.load_module(item.layer, item.module, item.parameters) for item in self._load_now]
            self._save(self._stage_loaded, self._domains_s + time.monotonic() - started)
        return self._loaded

    @property
    def _load_now(self) -> list[ModuleLoad]:
        return [item for item in self.scenario.load if not item.later]

    def load_module(self, layer: str, module: str, parameters: Mapping[str, Any]) -> LoadedModule:
        """Load one module in a guest.

        :raises CommandFailed: when the kernel refuses it; its log says why.
        """
        deadline = Deadline.after(_LOAD_TIMEOUT_S * self.machine.time_factor, f"module {module} to load")
        candidates = self._candidates_of(layer)
        candidates.bring(self.machine, module, deadline)
        answer = self.call("modules.load", layer=layer, deadline=deadline, name=module, parameters=dict(parameters))
        candidates.check_loaded(module, answer["build_id"])
        return LoadedModule(layer, module, tuple(answer["order"]), answer["build_id"])

    def unload_module(self, layer: str, module: str, deadline: Deadline) -> dict[str, Any]:
        """Unload one module in a guest.

        :raises Unsupported: it is built into the kernel under test.
        :raises CommandFailed: when the kernel refuses it.
        """
        candidates = self._candidates_of(layer)
        if candidates.built_in:
            raise Unsupported(f"module {module} cannot be unloaded: it is built into kernel {candidates.release}")
        answer: dict[str, Any] = self.call("modules.unload", layer=layer, deadline=deadline, name=module)
        return answer

    def _candidates_of(self, layer: str) -> Candidates:
        return self._candidates[-1 if layer in self.domains else 0]

    def call(self, function: str, *, layer: str | None, deadline: Deadline, **arguments: Any) -> Any:
        """Call a probe function in a guest: the one that QEMU boots, unless the layer is a domain's."""
        if layer in self.domains:
            return self.domains[layer].call(function, deadline=deadline, **arguments)
        return self.machine.call(function, deadline=deadline, **arguments)

    # -- saved machines ------------------------------------------------------------------------------------

    @property
    def _stage_booted(self) -> dict[str, Any]:
        return {}

    @property
    def _stage_loaded(self) -> dict[str, Any]:
        late = self._candidates[0].fingerprint() if self._candidates else {}
        return {
            "domains": {name: asdict(domain.plan) for name, domain in self.domains.items()},
            "load": [[item.layer, item.module, dict(item.parameters)] for item in self._load_now],
            **({"under_test": late} if late else {}),
        }

    def _take_up(self, stage: dict[str, Any]) -> bool:
        """Let a machine that was saved at that stage go on; tells whether there is one."""
        if self._saved is None:
            return False
        facts = self._saved.take_up(self.machine, self._key(self._saved, stage))
        if facts is None:
            return False
        self.start = "warm"
        if "loaded" in facts:
            self._loaded = [LoadedModule(**{**item, "order": tuple(item["order"])}) for item in facts["loaded"]]
        return True

    def _save(self, stage: dict[str, Any], seconds: float) -> None:
        """Save the machine at a stage that took long enough to be worth it."""
        clean = not any(console.reports for console in self.machine.consoles)
        least_s = _TESTED_WORTH_SAVING_S if self.tested else _WORTH_SAVING_S
        if self._saved is not None and seconds > least_s and clean:
            facts = {} if self._loaded is None else {"loaded": [asdict(item) for item in self._loaded]}
            if self._loaded is not None and self.domains and not self.tested:
                self._preload()
            self._saved.save(self.machine, self._key(self._saved, stage), facts, self._stack)

    def _preload(self) -> None:
        """Let the agents of dom0 and the domains import what steps may call, once for all who take the machine up."""
        timeout_s = _LOAD_TIMEOUT_S * self.machine.time_factor
        for layer in (self.machine.layer, *self.domains):
            self.call("resume.preload", layer=layer, deadline=Deadline.after(timeout_s, "probes to be imported"))

    def _key(self, saved: SavedMachines, stage: dict[str, Any]) -> Key:
        return saved.key(self.scenario.boot.machine, self.machine, stage)

    # -- afterwards ----------------------------------------------------------------------------------------

    def crashes(self) -> list[Report]:
        """The crashes on the machine's consoles that the scenario does not provoke on purpose."""
        if self._machine is None:
            return []
        reports = [report for console in self._machine.consoles for report in console.finish()]
        return [report for report in reports if not self.tolerates(report)]

    def leftovers(self) -> list[str]:
        """What outlived :meth:`close` on this host, in words. There should be nothing."""
        pids = [] if self._machine is None else self._machine.pids
        left = [f"process {pid}" for pid in pids if is_running(pid)]
        if self._scratch is not None and self._scratch.exists():
            left.append(f"directory {self._scratch}")
        return left
