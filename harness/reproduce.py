"""What is to be looked at: a scenario with code under test, or the same as an earlier run had it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from harness.errors import HostError, UsageError
from harness.images.under_test import KERNEL, XEN, Candidate, Override, parse_overrides
from harness.records.read import ReadScenario, ReadUnderTest, read_results
from harness.scenario.model import Scenario
from harness.testbed import LoadedModule
from harness.under_test import hypervisor_of, kernel_of
from harness.workspace import Workspace

_RESULT = "result.json"
_SCENARIO = "scenario.yaml"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A machine, booted and loaded as a scenario says.

    :param overrides: what is under test, by component.
    :param accel: what it must run under; None leaves it to the command line.
    :param versions: what an earlier run booted and loaded, as its result has it; empty for a machine of its own right.
    :param tested: the hashes of what an earlier run tested, by component.
    """

    scenario: Scenario
    overrides: Mapping[str, Override]
    accel: Literal["kvm", "tcg"] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    tested: Mapping[str, str] = field(default_factory=dict)

    def check_tested(self, found: Sequence[Candidate]) -> None:
        """Compare what was built with what was tested then.

        :raises HostError: it is another one: the tree that it is built of was changed, say.
        """
        for item in found:
            component = item.override.component
            if self.tested.get(component, item.sha256) != item.sha256:
                raise HostError(
                    f"{component} of that run was built of {item.override.source}, which gives something else now",
                    hint="bring the tree back to where it was; harness shell SCENARIO --under-test takes it as it is",
                )

    def check_loaded(self, found: Sequence[LoadedModule]) -> None:
        """Compare what a guest has loaded with what it had then; raises as :meth:`check_tested`."""
        for item in found:
            now, then = item.build_id or "loaded", self.versions.get(f"module {item.module}")
            if then is not None and then != now:
                raise HostError(
                    f"module {item.module} is another one than in that run", hint=f"its build id is {now}, was {then}"
                )


def read_earlier(workspace: Workspace, directory: Path) -> Wanted:
    """What a scenario's results directory tells of its machine.

    :raises UsageError: it is no such directory, nothing was booted then, or the source of what was tested is gone.
    :raises ScenarioError: a file in it is of another version, or not what it was.
    :raises HostError: an image that was booted then cannot be had any more.
    """
    if not all((directory / name).is_file() for name in (_RESULT, _SCENARIO)):
        raise UsageError(f"--from: {directory} is no scenario's results", hint=_hint(directory))
    result = read_results(directory / _RESULT)
    if "kernel_sha256" not in result.versions:
        raise UsageError(
            f"--from: that run of {result.id} ended before it had a machine", hint=result.reason.partition("\n")[0]
        )
    scenario = _scenario(workspace, directory, result)
    tested = {item.component: item.sha256 for item in result.under_test}
    _check_images(workspace, scenario, result.versions, tested)
    return Wanted(
        scenario=scenario,
        overrides={item.component: _override(workspace, item) for item in result.under_test},
        accel="kvm" if result.accel.used == "kvm" else "tcg" if result.accel.used == "tcg" else None,
        versions=result.versions,
        tested=tested,
    )


def _hint(directory: Path) -> str:
    below = sorted(path.parent.name for path in directory.glob(f"*/{_RESULT}"))
    if below:
        more = f" and {len(below) - 3} more" if len(below) > 3 else ""
        return f"those of several lie in it, choose one: {', '.join(below[:3])}{more}"
    return f"{_RESULT} and {_SCENARIO} are not both in it; harness run says where it leaves results"


def _scenario(workspace: Workspace, directory: Path, result: ReadScenario) -> Scenario:
    """The scenario as it ran, under the name that it had then."""
    path = directory / _SCENARIO
    found = workspace.load_file(path, directory)
    if found[0].sha256 != result.scenario_sha256:
        raise UsageError(
            f"--from: {path} was changed since that run", hint="harness shell takes a copy of it as a scenario"
        )
    return replace(found[0], id=result.id)


def _check_images(workspace: Workspace, scenario: Scenario, then: Mapping[str, str], tested: Mapping[str, str]) -> None:
    """See that what a recipe gives now is what it gave then."""
    profile, images = workspace.profiles[scenario.boot.machine], workspace.images
    kernel = images.kernel(kernel_of(scenario, profile), profile.arch)
    now = images.hashes(kernel, profile.rootfs, profile.arch)
    if KERNEL in tested:
        del now["kernel_sha256"]
    name = hypervisor_of(scenario, profile)
    if name is not None and XEN not in tested:
        now["hypervisor"] = f"{name} {images.hypervisor(name, profile.arch).version}"
    for what, value in now.items():
        if then.get(what, value) != value:
            raise HostError(
                f"--from: the {what.removesuffix('_sha256')} of that run is no longer what its recipe gives",
                hint=f"{what} is {value}, was {then[what]}; its kernel was {then.get('kernel', 'unknown')}",
            )


def _override(workspace: Workspace, item: ReadUnderTest) -> Override:
    """What was tested: the very file, where the store still has it, or else its source."""
    if (kept := workspace.store.stored(item.sha256)) is not None:
        return Override(item.component, "file", (kept,), (kept.read_bytes(),))
    if not item.source:  # good code of a mutation run: a small kernel without any patch
        return Override(item.component, "patches", ())
    sources = item.sources or [item.source]
    for source in sources:
        if not Path(source).exists():
            raise UsageError(
                f"--from: {item.component} was built of {source}, which is gone",
                hint=f"and the image store does not have what was built of it any more, sha256 {item.sha256[:16]}",
            )
    options = [f"{item.component}={source}" for source in sources]
    override = parse_overrides(options, workspace.components)[item.component]
    if override.contents and override.sha256 != item.source_sha256:
        raise UsageError(
            f"--from: {item.component} was built of {item.source}, which was changed since that run",
            hint="harness shell SCENARIO --under-test takes it as it is now",
        )
    return override
