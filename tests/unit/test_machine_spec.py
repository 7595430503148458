"""QEMU's command line: what it says for the project's own profiles, and what nothing in it can do.

The files in ``golden/`` hold one argument a line. After a change that is meant, write them anew with
``python -m tests.unit.test_machine_spec``, and read the difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.errors import ScenarioError
from harness.machine.profiles import describe, load_profiles
from harness.machine.spec import (
    EXCHANGE_PORT,
    SANDBOX,
    AcceleratorName,
    Cpu,
    Device,
    Drive,
    Node,
    Plan,
    Profile,
    Scalar,
    Wiring,
    escape,
    network_address,
    qemu_argv,
)

MACHINES = Path(__file__).parents[2] / "images" / "machines"
GOLDEN = Path(__file__).parent / "golden"
PROFILES = load_profiles(MACHINES)
NAMES = ("pc", "virt", "xen-arm64", "xen-x86", "xen-x86-vtd")
ACCELERATORS: tuple[AcceleratorName, ...] = ("tcg", "kvm")

WIRING = Wiring(
    kernel="/images/vmlinuz",
    initrd="/scratch/initrd",
    hypervisor="/images/xen",
    mac="52:54:00:aa:bb:cc",
    monitor_fd=7,
    console_socket="/scratch/console",
    console_log="/results/console-guest.log",
    log="/results/trace.log",
)

# A loaded host makes any example slow.
unhurried = settings(deadline=None)

# What a process is given has no NUL in it, and is text that the file system's encoding knows.
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
tricky = st.sampled_from(
    ["", ",", ",,", "a,b", ",addr=5", "x,,y", "=", "on,id=evil", "tcp:0.0.0.0:1", "a\n-vnc\n:0", "-vnc", ":0", "{}"]
)
words = texts | tricky


def plan_of(profile: Profile, **changes: Any) -> Plan:
    """A plan that wishes for nothing."""
    values: dict[str, Any] = {"profile": profile, "kernel": "trixie", "memory_mib": 1024, "vcpus": 2}
    return Plan(**values | changes)


def small_profile(**changes: Any) -> Profile:
    """A profile with one device."""
    values: dict[str, Any] = {
        "summary": "a test's",
        "arch": "amd64",
        "machine": "q35",
        "cpu": Cpu(tcg="max"),
        "kernels": ["trixie"],
        "rootfs": "minimal",
        "memory_mib": 1024,
        "vcpus": 2,
        "console": "ttyS0",
        "early_modules": [],
        "devices": {"balloon": Device(driver="virtio-balloon-pci", properties={"deflate-on-oom": True, "page": 4})},
    }
    return Profile(**values | changes)


def options(text: str) -> list[tuple[str, str | None]]:
    """An option string as QEMU reads it (``util/qemu-option.c``, get_opt_value): a comma ends a value, two are one."""
    parts, part, position = [], "", 0
    while position < len(text):
        if text.startswith(",,", position):
            part += ","
            position += 2
        elif text[position] == ",":
            parts.append(part)
            part = ""
            position += 1
        else:
            part += text[position]
            position += 1
    parts.append(part)
    return [(name, value if equals else None) for name, equals, value in (item.partition("=") for item in parts)]


def values_of(argv: list[str], option: str) -> list[str]:
    """The values of every occurrence of an option."""
    return [argv[number + 1] for number, word in enumerate(argv) if word == option]


def takes_no_value(word: str) -> bool:
    """Whether an option of ours stands alone."""
    return word in ("-nodefaults", "-no-user-config", "-no-reboot")


def pairs(argv: list[str]) -> list[tuple[str, str]]:
    """The command line as QEMU reads it: options, with the values that follow them."""
    found, rest = [], argv[1:]
    while rest:
        option, *rest = rest
        assert option.startswith("-"), option
        if takes_no_value(option):
            found.append((option, ""))
        else:
            value, *rest = rest
            found.append((option, value))
    return found


def device(argv: list[str], name: str) -> list[tuple[str, str | None]]:
    """What QEMU is told of one device."""
    (found,) = [seen for text in values_of(argv, "-device") if ("id", name) in (seen := options(text))]
    return found


# -- the project's own profiles ----------------------------------------------------------------------------------------


def golden_argv(name: str, accelerator: AcceleratorName) -> list[str]:
    """The command line that a golden file holds."""
    profile = PROFILES[name]
    plan = plan_of(profile, memory_mib=profile.memory_mib, vcpus=profile.vcpus, kernel_args=("harness.name=guest",))
    loaded = profile.hypervisor is not None and profile.hypervisor.loader == "grub"
    wiring = replace(WIRING, disk="/scratch/boot-disk", drives="/scratch") if loaded else WIRING
    return qemu_argv(plan, wiring, accelerator)


@pytest.mark.parametrize("accelerator", ACCELERATORS)
@pytest.mark.parametrize("name", NAMES)
def test_the_whole_command_line(name: str, accelerator: AcceleratorName) -> None:
    wanted = (GOLDEN / f"{name}-{accelerator}.argv").read_text().splitlines()
    assert golden_argv(name, accelerator) == wanted


def test_every_profile_of_the_project_is_valid_and_says_what_it_is_for() -> None:
    assert {"pc", "virt"} <= set(PROFILES)
    for name, profile in PROFILES.items():
        spec = describe(name, profile)
        assert (spec.name, spec.arch, tuple(spec.kernels)) == (name, profile.arch, tuple(profile.kernels))
        assert set(spec.devices) == set(profile.devices)
        assert profile.summary


def test_what_a_scenario_may_set_has_types() -> None:
    spec = describe("pc", PROFILES["pc"])
    assert spec.devices["balloon"] == {"deflate-on-oom": bool, "free-page-reporting": bool}


# -- what a scenario asks for ------------------------------------------------------------------------------------------


def test_the_kernels_command_line() -> None:
    profile = small_profile(kernel_args=["quiet", "nokaslr"])
    plan = plan_of(profile, kernel_args=("a=b,c", "d e"))
    assert plan.command_line == "console=ttyS0 quiet nokaslr a=b,c d e"
    assert values_of(qemu_argv(plan, WIRING, "tcg"), "-append") == [plan.command_line]


def test_memory_and_cpus_are_the_plans() -> None:
    argv = qemu_argv(plan_of(small_profile(), memory_mib=77, vcpus=3), WIRING, "tcg")
    assert (values_of(argv, "-m"), values_of(argv, "-smp")) == (["77"], ["3"])


def test_a_wish_overrides_the_profile_and_leaves_the_rest() -> None:
    plan = plan_of(small_profile(), devices={"balloon": {"deflate-on-oom": False, "free-page-reporting": True}})
    assert device(qemu_argv(plan, WIRING, "tcg"), "balloon") == [
        ("virtio-balloon-pci", None),
        ("id", "balloon"),
        ("deflate-on-oom", "off"),
        ("page", "4"),
        ("free-page-reporting", "on"),
    ]


def test_a_wish_for_one_device_is_not_one_for_another() -> None:
    profile = small_profile(devices={"one": Device(driver="a"), "two": Device(driver="a")})
    argv = qemu_argv(plan_of(profile, devices={"two": {"x": 1}}), WIRING, "tcg")
    assert device(argv, "one") == [("a", None), ("id", "one")]
    assert device(argv, "two") == [("a", None), ("id", "two"), ("x", "1")]


def test_the_accelerator_brings_its_cpu() -> None:
    profile = small_profile(cpu=Cpu(tcg="max", kvm="host,migratable=off"))
    tcg, kvm = (qemu_argv(plan_of(profile), WIRING, name) for name in ACCELERATORS)
    assert (values_of(tcg, "-accel")[0].partition(",")[0], values_of(tcg, "-cpu")) == ("tcg", ["max"])
    assert (values_of(kvm, "-accel"), values_of(kvm, "-cpu")) == (["kvm"], ["host,migratable=off"])


def test_a_saved_state_is_waited_for() -> None:
    argv = qemu_argv(plan_of(small_profile()), Wiring(kernel="k", initrd="i", incoming=True), "tcg")
    assert values_of(argv, "-incoming") == ["defer"]
    assert "-incoming" not in qemu_argv(plan_of(small_profile()), Wiring(kernel="k", initrd="i"), "tcg")


def test_a_restored_machine_differs_in_nothing_else() -> None:
    plan = plan_of(small_profile())
    cold = qemu_argv(plan, WIRING, "tcg")
    warm = qemu_argv(
        plan,
        Wiring(**{name: getattr(WIRING, name) for name in WIRING.__slots__} | {"incoming": True}),
        "tcg",
    )
    assert warm == [*cold, "-incoming", "defer"]


def test_the_console_may_be_the_terminals() -> None:
    argv = qemu_argv(plan_of(small_profile()), Wiring(kernel="k", initrd="i"), "tcg")
    assert values_of(argv, "-serial") == ["mon:stdio"]
    assert not values_of(argv, "-chardev")
    assert not values_of(argv, "-mon")
    assert "-D" not in argv


def test_the_console_and_the_monitor_are_sockets_of_this_host() -> None:
    argv = qemu_argv(plan_of(small_profile()), WIRING, "tcg")
    monitor, console = (dict(options(text)) for text in values_of(argv, "-chardev"))
    assert monitor == {"socket": None, "id": "monitor", "fd": "7"}
    assert console == {
        "socket": None,
        "id": "console",
        "path": "/scratch/console",
        "server": "on",
        "wait": "off",
        "logfile": "/results/console-guest.log",
        "logappend": "on",
    }
    assert values_of(argv, "-serial") == ["chardev:console"]
    assert values_of(argv, "-mon") == ["chardev=monitor,mode=control"]
    assert values_of(argv, "-D") == ["/results/trace.log"]


# -- what nothing can do -----------------------------------------------------------------------------------------------


@unhurried
@given(words)
def test_an_escaped_value_is_read_back_as_it_was(value: str) -> None:
    assert options(f"name={escape(value)},next=1") == [("name", value), ("next", "1")]


@unhurried
@given(st.dictionaries(st.sampled_from(["page", "deflate-on-oom", "x"]), words | st.integers() | st.booleans()))
def test_a_value_cannot_add_an_option(wishes: Mapping[str, Scalar]) -> None:
    plain = qemu_argv(plan_of(small_profile()), WIRING, "tcg")
    argv = qemu_argv(plan_of(small_profile(), devices={"balloon": wishes}), WIRING, "tcg")
    assert len(argv) == len(plain)
    assert sum(one != other for one, other in zip(plain, argv, strict=True)) <= 1
    said = device(argv, "balloon")
    assert said[:2] == [("virtio-balloon-pci", None), ("id", "balloon")]
    wanted: dict[str, Scalar] = {"deflate-on-oom": True, "page": 4, **wishes}
    as_text = {True: "on", False: "off"}
    assert said[2:] == [
        (name, as_text[value] if isinstance(value, bool) else str(value)) for name, value in wanted.items()
    ]


@unhurried
@given(words, words, words, words, words)
def test_a_path_cannot_add_an_option(kernel: str, initrd: str, socket: str, console_log: str, log: str) -> None:
    wiring = Wiring(kernel, initrd, monitor_fd=3, console_socket=socket, console_log=console_log, log=log)
    seen = pairs(qemu_argv(plan_of(small_profile()), wiring, "tcg"))
    usual = pairs(qemu_argv(plan_of(small_profile()), WIRING, "tcg"))
    assert [option for option, _ in seen] == [option for option, _ in usual]
    assert dict(seen)["-kernel"] == kernel
    assert dict(seen)["-initrd"] == initrd
    assert dict(seen)["-D"] == log
    chardev = dict(options([value for option, value in seen if option == "-chardev"][-1]))
    assert (chardev["path"], chardev["logfile"]) == (socket, console_log)
    assert set(chardev) == {"socket", "id", "path", "server", "wait", "logfile", "logappend"}


@unhurried
@given(st.lists(words, max_size=4))
def test_a_kernel_argument_is_no_argument_of_qemus(kernel_args: list[str]) -> None:
    plan = plan_of(small_profile(), kernel_args=tuple(kernel_args))
    seen = pairs(qemu_argv(plan, WIRING, "tcg"))
    assert [option for option, _ in seen] == [
        option for option, _ in pairs(qemu_argv(plan_of(small_profile()), WIRING, "tcg"))
    ]
    assert dict(seen)["-append"] == plan.command_line


@pytest.mark.parametrize("name", ["a,addr=5", "a=b", "", "a b", "A/b", "a\n"])
def test_a_device_and_its_properties_have_plain_names(name: str) -> None:
    with pytest.raises(ValidationError):
        small_profile(devices={name: Device(driver="a")})
    with pytest.raises(ValidationError):
        Device(driver="a", properties={name: 1})
    with pytest.raises(ValidationError):
        Device(driver="a", settable={name: "int"})
    with pytest.raises(ValidationError):
        Device(driver=name)


def test_a_profile_with_an_odd_name_is_told_where(tmp_path: Path) -> None:
    text = (MACHINES / "pc.yaml").read_text().replace("  balloon:", '  "a,addr=5":')
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(ScenarioError, match=r"odd\.yaml:\d+:\d+ devices") as caught:
        load_profiles(tmp_path)
    assert "a,addr=5" in str(caught.value)


wirings = st.builds(
    Wiring,
    kernel=words,
    initrd=words,
    hypervisor=st.none() | words,
    monitor_fd=st.none() | st.integers(0, 100),
    console_socket=st.none() | words,
    console_log=st.none() | words,
    log=st.none() | words,
    incoming=st.booleans(),
)
plans = st.sampled_from(sorted(PROFILES)).map(lambda name: plan_of(PROFILES[name]))


@unhurried
@given(plans, wirings, st.sampled_from(ACCELERATORS))
def test_nothing_listens_beyond_this_host(plan: Plan, wiring: Wiring, accelerator: AcceleratorName) -> None:
    """What can listen at all: a console on a Unix socket, and a loopback port of QEMU's choice for each network."""
    for option, value in pairs(qemu_argv(plan, wiring, accelerator)):
        assert option in {
            *("-nodefaults", "-no-user-config", "-display", "-no-reboot", "-sandbox", "-machine", "-accel", "-cpu"),
            *("-smp", "-m", "-kernel", "-initrd", "-append", "-chardev", "-mon", "-serial", "-netdev", "-device"),
            *("-D", "-incoming", "-trace", "-numa", "-object", "-bios", "-drive", "-blockdev"),
        }
        if option == "-chardev":
            said = dict(options(value))
            assert "socket" in said
            assert ("fd" in said) != ("path" in said)
            assert not {"host", "port", "ipv4", "ipv6"} & set(said)
        elif option == "-netdev":
            (kind, name, *rest) = options(value)
            assert kind == ("user", None)
            if name == ("id", "net0"):
                assert rest == [("restrict", "on"), ("hostfwd", "tcp:127.0.0.1:0-:22")]
            else:
                address = network_address(plan.profile, str(name[1]))
                forward = f"tcp:127.0.0.1:0-{address}:{EXCHANGE_PORT}"
                subnet = ("net", f"{address.removesuffix('.15')}.0/24")
                assert rest == [subnet, ("restrict", "on"), ("hostfwd", forward)]
        elif option == "-serial":
            assert value in ("mon:stdio", "chardev:console")
        elif option == "-incoming":
            assert value == "defer"
        elif option == "-display":
            assert value == "none"


@unhurried
@given(plans, wirings, st.sampled_from(ACCELERATORS))
def test_the_sandbox_is_always_shut(plan: Plan, wiring: Wiring, accelerator: AcceleratorName) -> None:
    seen = pairs(qemu_argv(plan, wiring, accelerator))
    assert [value for option, value in seen if option == "-sandbox"] == [SANDBOX]
    assert dict(options(SANDBOX)) == {
        "on": None,
        "obsolete": "deny",
        "elevateprivileges": "deny",
        "spawn": "deny",
        "resourcecontrol": "deny",
    }
    assert {("-nodefaults", ""), ("-no-user-config", ""), ("-no-reboot", ""), ("-display", "none")} <= set(seen)
    assert all(("restrict", "on") in options(value) for option, value in seen if option == "-netdev")


@pytest.mark.parametrize(
    ("vcpus", "wanted"),
    [
        (1, ["node,nodeid=0,memdev=node0,cpus=0-0", "node,nodeid=1,memdev=node1"]),
        (3, ["node,nodeid=0,memdev=node0,cpus=0-0", "node,nodeid=1,memdev=node1,cpus=1-2"]),
    ],
)
def test_cpus_go_to_the_nodes_in_order(vcpus: int, wanted: list[str]) -> None:
    profile = small_profile(nodes=[Node(memory_mib=512, vcpus=1), Node(memory_mib=512, vcpus=63)])
    argv = qemu_argv(plan_of(profile, vcpus=vcpus), WIRING, "tcg")
    assert values_of(argv, "-numa") == wanted
    assert values_of(argv, "-object") == [f"memory-backend-ram,id=node{number},size=512M" for number in (0, 1)]


def test_nodes_must_have_the_machines_memory() -> None:
    with pytest.raises(ValidationError, match="1000 MiB together"):
        small_profile(nodes=[Node(memory_mib=500), Node(memory_mib=500)])


def test_an_iommu_comes_before_what_is_behind_it() -> None:
    profile = small_profile(devices={"nic": Device(driver="a"), "iommu": Device(driver="b", first=True)})
    devices = values_of(qemu_argv(plan_of(profile), WIRING, "tcg"), "-device")
    assert devices[0] == "b,id=iommu"
    assert devices[-1] == "a,id=nic"


def test_drives_networks_and_traces_are_the_profiles() -> None:
    profile = small_profile(networks=["net1", "n"], drives={"disk": Drive(size_mib=1)}, boot_trace=["vtd_*"])
    argv = qemu_argv(plan_of(profile, trace=("x_y",)), replace(WIRING, drives="/a,b"), "tcg")
    assert values_of(argv, "-netdev")[1:] == [
        "user,id=net1,net=10.0.3.0/24,restrict=on,hostfwd=tcp:127.0.0.1:0-10.0.3.15:7",
        "user,id=n,net=10.0.4.0/24,restrict=on,hostfwd=tcp:127.0.0.1:0-10.0.4.15:7",
    ]
    assert network_address(profile, "n") == "10.0.4.15"
    assert values_of(argv, "-drive") == ["if=none,id=disk,format=raw,file=/a,,b/disk"]
    assert values_of(argv, "-trace") == ["vtd_*", "x_y"]


def test_a_boot_loader_finds_all_on_its_disk() -> None:
    argv = qemu_argv(plan_of(small_profile()), replace(WIRING, disk="/a,b"), "tcg")
    assert values_of(argv, "-drive") == ["if=none,id=boot,format=raw,file=/a,,b"]
    assert not {"-kernel", "-initrd", "-append"} & set(argv)


def main() -> None:
    """Write the golden files anew."""
    GOLDEN.mkdir(exist_ok=True)
    for name in NAMES:
        for accelerator in ACCELERATORS:
            text = "".join(f"{word}\n" for word in golden_argv(name, accelerator))
            (GOLDEN / f"{name}-{accelerator}.argv").write_text(text)


if __name__ == "__main__":
    main()
