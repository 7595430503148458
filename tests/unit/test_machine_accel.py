"""Which accelerator, why, and that the proof is made once."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Barrier, Thread
from typing import Any, cast

import pytest

from harness.errors import BootError, GuestCrash, HarnessError, HostError
from harness.machine import accel
from harness.machine.accel import (
    Accelerator,
    EmulationWatch,
    KvmJudge,
    KvmProof,
    choose,
    host_architecture,
    kvm_obstacle,
)
from harness.machine.qmp import Monitor, MonitorLost, MonitorRefused


@dataclass
class Host:
    """A host of this test's own making.

    :param proofs: how often a guest was booted under KVM.
    """

    directory: Path
    proofs: int = 0
    boot_id: Path = field(init=False)
    device: Path = field(init=False)
    qemu: Path = field(init=False)

    def __post_init__(self) -> None:
        self.boot_id = self.directory / "boot_id"
        self.device = self.directory / "kvm"
        self.qemu = self.directory / "bin" / "qemu-system-x86_64"
        self.boot_id.write_text("first\n")
        self.device.write_text("")
        self.qemu.parent.mkdir()
        self.qemu.write_text("#!/bin/sh\n")
        self.qemu.chmod(0o755)

    def judge(self, fails: BaseException | None = None, fingerprint: str = "trixie minimal") -> KvmJudge:
        """A judge whose proof works, or raises."""

        def prove() -> None:
            self.proofs += 1
            if fails is not None:
                raise fails

        return KvmJudge(self.directory / "cache", prove, fingerprint)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A PC whose KVM device opens."""
    host = Host(tmp_path)
    monkeypatch.setattr(accel, "KVM_DEVICE", host.device)
    monkeypatch.setattr(accel, "_BOOT_ID", host.boot_id)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("PATH", str(host.qemu.parent))
    return host


def never() -> None:
    """A proof that nobody may ask for."""
    raise AssertionError("a guest was booted under KVM")


# -- what can be said without trying -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "debian"), [("x86_64", "amd64"), ("aarch64", "arm64"), ("ppc64le", "ppc64el"), ("riscv64", "riscv64")]
)
def test_the_hosts_architecture_in_debians_words(monkeypatch: pytest.MonkeyPatch, machine: str, debian: str) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert host_architecture() == debian


def test_nothing_speaks_against_kvm(host: Host) -> None:
    assert kvm_obstacle() is None


def no_device(host: Host, _: pytest.MonkeyPatch) -> None:
    """The module is not loaded."""
    host.device.unlink()


def shut_device(host: Host, _: pytest.MonkeyPatch) -> None:
    """The device does not open. (Root opens every file, so it is none here.)"""
    host.device.unlink()
    host.device.mkdir()


def strange_host(_: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no guest for this host's KVM."""
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")


@pytest.mark.parametrize(
    ("change", "says"),
    [(no_device, "does not exist"), (shut_device, "does not open: Is a directory"), (strange_host, "riscv64")],
)
def test_what_speaks_against_kvm(
    host: Host, monkeypatch: pytest.MonkeyPatch, change: Callable[[Host, pytest.MonkeyPatch], None], says: str
) -> None:
    change(host, monkeypatch)
    assert says in (kvm_obstacle() or "")
    judge = KvmJudge(host.directory / "cache", never, "x")
    proof = judge.judge()
    assert not proof.works
    assert says in proof.why
    assert judge.remembered() == proof
    assert not (host.directory / "cache").exists()
    chosen = choose("auto", host_architecture(), judge)
    assert (chosen.name, says in chosen.why) == ("tcg", True)
    with pytest.raises(HostError, match=says) as caught:
        choose("kvm", host_architecture(), judge)
    assert caught.value.hint is not None


def test_the_device_is_closed_again(host: Host) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        kvm_obstacle()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# -- the choice --------------------------------------------------------------------------------------------------------


def test_emulation_that_was_asked_for(host: Host) -> None:
    chosen = choose("tcg", "amd64", KvmJudge(host.directory, never, "x"))
    assert chosen == Accelerator("tcg", "asked for with --accel tcg")


def test_a_guest_of_another_architecture(host: Host) -> None:
    judge = KvmJudge(host.directory, never, "x")
    assert choose("auto", "arm64", judge) == Accelerator("tcg", "a guest of arm64 on a host of amd64 needs emulation")
    with pytest.raises(HostError, match="needs emulation") as caught:
        choose("kvm", "arm64", judge)
    assert caught.value.hint is not None


@pytest.mark.parametrize("request_", ["auto", "kvm"])
def test_kvm_that_works(host: Host, request_: accel.Request) -> None:
    chosen = choose(request_, "amd64", host.judge())
    assert chosen.name == "kvm"
    assert "booted" in chosen.why


def test_kvm_that_does_not_work(host: Host) -> None:
    error = BootError(
        "the guest did not come up in 30 s",
        tail=["[    0.000000] Linux version", "KVM internal error. Suberror: 1", "rax 0 rbx 0"],
    )
    chosen = choose("auto", "amd64", host.judge(error))
    assert chosen.name == "tcg"
    assert "did not come up in 30 s: KVM internal error. Suberror: 1" in chosen.why
    with pytest.raises(HostError, match="KVM internal error"):
        choose("kvm", "amd64", host.judge(error))
    assert host.proofs == 1


@pytest.mark.parametrize("error", [HostError("no"), GuestCrash("no"), BootError("no", tail=["nothing of note"])])
def test_every_error_of_the_harness_is_an_answer(host: Host, error: HarnessError) -> None:
    proof = host.judge(error).judge()
    assert not proof.works
    assert proof.why.endswith(": no")


# -- what is remembered ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [None, HostError("no")], ids=["works", "does not work"])
def test_the_answer_is_remembered(host: Host, fails: HarnessError | None) -> None:
    first = host.judge(fails)
    assert first.remembered() is None
    proof = first.judge()
    assert (proof.works, first.remembered()) == (fails is None, proof)
    assert first.judge() == proof
    assert KvmJudge(host.directory / "cache", never, "trixie minimal").judge() == proof
    assert host.proofs == 1


def after_a_reboot(host: Host) -> str:
    """The host was booted anew."""
    host.boot_id.write_text("second\n")
    return "trixie minimal"


def after_an_upgrade(host: Host) -> str:
    """QEMU is another one."""
    os.utime(host.qemu, (1, 1))
    return "trixie minimal"


def without_qemu(host: Host) -> str:
    """QEMU is gone."""
    host.qemu.unlink()
    return "trixie minimal"


def with_another_guest(_: Host) -> str:
    """The guest that proves it is another one."""
    return "bookworm minimal"


@pytest.mark.parametrize("change", [after_a_reboot, after_an_upgrade, without_qemu, with_another_guest])
def test_the_answer_holds_for_this_boot_this_qemu_and_this_guest(host: Host, change: Callable[[Host], str]) -> None:
    host.judge(HostError("no")).judge()
    fingerprint = change(host)
    assert host.judge(fingerprint=fingerprint).remembered() is None
    assert host.judge(fingerprint=fingerprint).judge().works
    assert host.proofs == 2


def test_each_qemu_has_an_answer_of_its_own(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two checkouts of which one brings its own QEMU prove KVM once each, not again at each run."""
    other = host.directory / "other" / host.qemu.name
    other.parent.mkdir()
    shutil.copy2(host.qemu, other)
    first = host.judge(HostError("no")).judge()
    monkeypatch.setenv("PATH", str(other.parent))
    assert host.judge().remembered() is None
    assert host.judge().judge().works
    monkeypatch.setenv("PATH", str(host.qemu.parent))
    assert host.judge().remembered() == first
    assert host.proofs == 2


def test_an_upgraded_qemu_leaves_no_old_answer(host: Host) -> None:
    for second in range(3):
        os.utime(host.qemu, (second, second))
        host.judge().judge()
    assert host.proofs == 3
    assert len(list((host.directory / "cache").glob("kvm-*.json"))) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '{"works": true, "why": ""}', '{"about": "x"}'])
def test_a_damaged_memory_is_none(host: Host, text: str) -> None:
    host.judge().judge()
    (file,) = (host.directory / "cache").glob("kvm-*.json")
    file.write_text(text)
    assert host.judge().remembered() is None
    assert host.judge().judge().works
    assert host.proofs == 2
    assert json.loads(file.read_text())["works"] is True


def test_a_device_that_went_outweighs_the_memory(host: Host) -> None:
    assert host.judge().judge().works
    host.device.unlink()
    assert not host.judge().judge().works
    assert host.proofs == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a bug")])
def test_a_proof_that_was_broken_off_is_no_answer(host: Host, error: BaseException) -> None:
    with pytest.raises(type(error)):
        host.judge(error).judge()
    assert host.judge().remembered() is None
    assert host.judge().judge().works
    assert host.proofs == 2


def test_a_host_without_a_boot_id(host: Host) -> None:
    host.boot_id.unlink()
    assert host.judge().judge().works
    assert host.judge().judge().works
    assert host.proofs == 1


# -- a proof that is ended early ---------------------------------------------------------------------------------------


@dataclass
class Counters:
    """A monitor that tells what KVM counted: of each virtual CPU, how many instructions could not be emulated."""

    failed: tuple[int, ...] = ()
    error: HarnessError | None = None
    asked: int = 0

    def execute(self, command: str, arguments: dict[str, Any]) -> Any:
        assert (command, arguments["target"]) == ("query-stats", "vcpu")
        self.asked += 1
        if self.error is not None:
            raise self.error
        (name,) = arguments["providers"][0]["names"]
        return [{"provider": "kvm", "stats": [{"name": name, "value": value}]} for value in self.failed]


@pytest.mark.parametrize("failed", [(), (0,), (100,), (50, 50)])
def test_a_kvm_that_runs_the_guest_is_given_its_time(failed: tuple[int, ...]) -> None:
    EmulationWatch()(cast("Monitor", Counters(failed)))


@pytest.mark.parametrize("failed", [(101,), (51, 50)])
def test_a_kvm_that_emulates_and_fails_is_given_up(failed: tuple[int, ...]) -> None:
    with pytest.raises(HostError, match="instead of running them, and failed at 101"):
        EmulationWatch()(cast("Monitor", Counters(failed)))


@pytest.mark.parametrize("error", [MonitorRefused("no", "CommandNotFound"), MonitorLost("gone")])
def test_where_nobody_counts_nothing_is_ended_early(error: HarnessError) -> None:
    EmulationWatch()(cast("Monitor", Counters((1000,), error)))


def test_kvms_counters_are_looked_at_now_and_then() -> None:
    counters, watch = Counters((0,)), EmulationWatch()
    for _ in range(100):
        watch(cast("Monitor", counters))
    assert counters.asked == 1


# -- several at once ---------------------------------------------------------------------------------------------------


def test_several_threads_prove_it_once(host: Host) -> None:
    start, answers = Barrier(8), list[KvmProof]()

    def prove() -> None:
        host.proofs += 1
        time.sleep(0.2)

    def ask() -> None:
        judge = KvmJudge(host.directory / "cache", prove, "x")
        start.wait()
        answers.append(judge.judge())

    threads = [Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert host.proofs == 1
    assert len(answers) == 8
    assert len(set(answers)) == 1


def test_several_processes_prove_it_once(host: Host) -> None:
    """As pytest-xdist's workers do."""
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from harness.machine import accel\n"
        "directory = Path(sys.argv[1])\n"
        "accel.KVM_DEVICE, accel._BOOT_ID = directory / 'kvm', directory / 'boot_id'\n"
        "accel.platform.machine = lambda: 'x86_64'\n"
        "def prove():\n"
        "    with (directory / 'proofs').open('a') as file:\n"
        "        file.write('proved\\n')\n"
        "    time.sleep(0.3)\n"
        "sys.stdin.read(1)\n"
        "print(accel.KvmJudge(directory / 'cache', prove, 'x').judge().works)\n"
    )
    pipe = subprocess.PIPE
    argv = [sys.executable, "-c", program, str(host.directory)]
    workers = [subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) for _ in range(3)]
    try:
        for worker in workers:  # all of them wait for this before they begin
            assert worker.stdin is not None
            worker.stdin.write("x")
            worker.stdin.flush()
        assert [worker.communicate(timeout=60)[0] for worker in workers] == ["True\n"] * 3
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    assert (host.directory / "proofs").read_text() == "proved\n"
