"""Xen's domains from the outside: their configuration, calls through dom0, what scenarios may say of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.deadline import Deadline
from harness.errors import GuestHang, ScenarioError
from harness.guest.probe import ProbeError
from harness.guest.ssh import Ssh
from harness.guest.xen import Domain, DomainPlan, xl_config
from harness.machine.profiles import describe, load_profiles
from harness.scenario.load import load_file
from harness.scenario.model import Catalogue, Scenario
from harness.steps.base import find_features, find_verbs

MACHINES = Path(__file__).parents[2] / "images" / "machines"
PLAN = DomainPlan("guest", "/k", "/i", "console=hvc0 quiet", vcpus=2, memory_mib=128)


def soon() -> Deadline:
    return Deadline.after(30, "the test")


# -- configuration -----------------------------------------------------------------------------------------------------


def test_a_domain_of_the_only_type() -> None:
    assert xl_config(PLAN) == (
        'name = "guest"\n'
        'kernel = "/k"\n'
        'ramdisk = "/i"\n'
        'extra = "console=hvc0 quiet"\n'
        "memory = 128\n"
        "vcpus = 2\n"
        'on_poweroff = "destroy"\n'
        'on_reboot = "destroy"\n'
        'on_crash = "preserve"\n'
    )


@pytest.mark.parametrize(("kind", "more"), [("pv", ""), ("pvh", 'tsc_mode = "native"\n')])
def test_a_domain_of_one_of_several_types(kind: str, more: str) -> None:
    plan = DomainPlan("guest", "/k", "/i", "", vcpus=2, memory_mib=128, type=kind)
    assert xl_config(plan).endswith(f'type = "{kind}"\n{more}')


def test_a_domain_with_devices() -> None:
    device = '"type=virtio,device4,transport=mmio,grant_usage=0"'
    plan = DomainPlan("guest", "/k", "/i", "", vcpus=1, memory_mib=128, virtio_mmio=2)
    assert xl_config(plan).endswith(f"virtio = [ {device}, {device} ]\n")


# -- calls -------------------------------------------------------------------------------------------------------------


class Dom0:
    """A dom0 that answers as it is told."""

    def __init__(self, answer: Any) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self._answer = answer

    def ssh(self, deadline: Deadline) -> Ssh:
        raise AssertionError("no command is due")

    def call(self, function: str, *, deadline: Deadline, **arguments: Any) -> Any:
        self.calls.append((function, arguments))
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


def test_a_call_goes_through_dom0() -> None:
    dom0 = Dom0({"id": 1, "result": [1, 2]})
    assert Domain(PLAN, dom0).call("memory.vmstat", deadline=soon(), domain="named alike") == [1, 2]
    ((function, arguments),) = dom0.calls
    assert function == "domain.call"
    # dom0 gives up before the harness does, to be able to say so
    assert 20 < arguments.pop("timeout_s") < 29
    assert arguments == {"domain": "guest", "probe": "memory.vmstat", "arguments": {"domain": "named alike"}}


def test_what_a_probe_raised_is_told_of_the_domain() -> None:
    dom0 = Dom0({"id": 1, "error": "OSError: no", "kind": "OSError", "errno": 5})
    with pytest.raises(ProbeError, match=r"disk\.read: OSError: no") as caught:
        Domain(PLAN, dom0).call("disk.read", deadline=soon())
    assert (caught.value.layer, caught.value.errno) == ("guest", 5)


def test_a_domain_that_does_not_answer_hangs() -> None:
    silent = ProbeError("nothing came", kind="TimeoutError", errno=None, layer="dom0")
    domain = Domain(PLAN, Dom0(silent))
    for call in (lambda: domain.call("disk.read", deadline=soon()), lambda: domain.wait(soon())):
        with pytest.raises(GuestHang) as caught:
            call()
        assert caught.value.layer == "guest"
    other = ProbeError("there is no domain guest", kind="LookupError", errno=None, layer="dom0")
    with pytest.raises(ProbeError):
        Domain(PLAN, Dom0(other)).wait(soon())


# -- scenarios ---------------------------------------------------------------------------------------------------------


def load(tmp_path: Path, boot: str, more: str = "") -> Scenario:
    """A scenario for one of the project's own profiles."""
    path = tmp_path / "x.yaml"
    text = f"scenario: x\nfeature: xen\nboot: {{{boot}}}\n{more}drive:\n  - guest.run: {{as: ran, argv: [a]}}\n"
    path.write_text(f"{text}assert:\n  - ran.status == 0\n")
    catalogue = Catalogue(
        verbs={name: verb.spec for name, verb in find_verbs().items()},
        profiles={name: describe(name, profile) for name, profile in load_profiles(MACHINES).items()},
        modules=frozenset({"xenfs"}),
        features=find_features(),
    )
    (scenario,) = load_file(path, catalogue, root=tmp_path)
    return scenario


def test_domains_as_they_are_declared(tmp_path: Path) -> None:
    boot = "machine: xen-x86, domains: {a: {type: pv}, b: {vcpus: 4, memory_mib: 256, kernel_args: [x=y]}}"
    more = "load:\n  - a: xenfs\n  - dom0: {name: xenfs, later: true}\n"
    scenario = load(tmp_path, boot, more)
    assert list(scenario.boot.domains) == ["a", "b"]
    assert scenario.boot.domains["a"].memory_mib == 128
    assert scenario.boot.domains["b"].kernel_args == ("x=y",)
    assert [(item.layer, item.later) for item in scenario.load] == [("a", False), ("dom0", True)]


@pytest.mark.parametrize(
    ("boot", "more", "told"),
    [
        ("machine: pc, domains: {a: {}}", "", r"boot\.domains: pc has no hypervisor"),
        ("machine: pc, hypervisor: xen", "", r"boot\.hypervisor: pc has no hypervisor"),
        ("machine: xen-arm64, hypervisor: kvm", "", r"boot\.hypervisor: unknown hypervisor of xen-arm64"),
        ("machine: xen-arm64, domains: {dom0: {}}", "", r"boot\.domains\.dom0: .*is a layer that is there already"),
        ("machine: xen-arm64, domains: {xen: {}}", "", r"boot\.domains\.xen: .*is a layer that is there already"),
        ("machine: xen-arm64, domains: {a: {type: pv}}", "", r"domains\.a\.type: xen-arm64 has one type of domain"),
        ("machine: xen-x86, domains: {a: {virtio_mmio: 1}}", "", r"a\.virtio_mmio: domains of xen-x86 cannot have"),
        ("machine: xen-x86, domains: {a: {type: hvm}}", "", r"boot\.domains\.a\.type: must be"),
        ("machine: xen-x86, domains: {a: {memory_mib: 4000}}", "", r"boot\.domains: domains of 4000 MiB together"),
        ("machine: xen-x86, domains: {A: {}}", "", r"boot\.domains\.A: the key must match"),
        ("machine: xen-x86, domains: {a: {}}", "load:\n  - b: xenfs\n", r"load\[0\]\.b: unknown layer of xen-x86"),
        ("machine: xen-x86", "allow_crash:\n  - {layer: a, title: x}\n", r"layer: unknown layer of xen-x86"),
    ],
)
def test_what_a_scenario_cannot_say(tmp_path: Path, boot: str, more: str, told: str) -> None:
    with pytest.raises(ScenarioError, match=told):
        load(tmp_path, boot, more)


@pytest.mark.parametrize(
    ("step", "told"),
    [
        ("guest.run: {layer: b, argv: [a]}", r"drive\[0\]\.guest\.run\.layer: unknown layer \"?b\"?, expected"),
        ("domain.destroy: {domain: b}", r"drive\[0\]\.domain\.destroy\.domain: unknown domain \"?b\"?"),
        ("domain.destroy:", r"drive\[0\]\.domain\.destroy: needs a domain named \"?guest\"?"),
    ],
)
def test_a_step_names_what_the_machine_has(tmp_path: Path, step: str, told: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        "scenario: x\nfeature: xen\nboot: {machine: xen-x86, domains: {a: {}}}\n"
        f"drive:\n  - {step}\n  - guest.run: {{as: ran, argv: [a]}}\nassert:\n  - ran.status == 0\n"
    )
    catalogue = Catalogue(
        verbs={name: verb.spec for name, verb in find_verbs().items()},
        profiles={name: describe(name, profile) for name, profile in load_profiles(MACHINES).items()},
        modules=frozenset(),
        features=find_features(),
    )
    with pytest.raises(ScenarioError, match=told):
        load_file(path, catalogue, root=tmp_path)
