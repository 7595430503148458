"""Room for machines: who finds it, who waits, and what the dead leave."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest

from harness.machine.admission import Need, admitted, need_of
from harness.machine.spec import Plan
from harness.progress import SilentProgress
from harness.workspace import Workspace

HOST = Need(2, 4000)


@contextmanager
def machine(directory: Path, need: Need, waits: list[str] | None = None) -> Iterator[None]:
    with admitted(directory, need, HOST, lambda: (waits if waits is not None else []).append("waited")):
        yield


def test_what_fits_runs_at_once(tmp_path: Path) -> None:
    waits: list[str] = []
    with machine(tmp_path, Need(1, 1000), waits), machine(tmp_path, Need(1, 3000), waits):
        assert not waits
    assert not list(tmp_path.glob("*.ticket"))


@pytest.mark.parametrize("second", [Need(2, 100), Need(0.5, 3500)])
def test_what_does_not_fit_waits_for_the_first_to_end(tmp_path: Path, second: Need) -> None:
    waits: list[str] = []
    order: list[str] = []

    def run() -> None:
        with machine(tmp_path, second, waits):
            order.append("second")

    with ExitStack() as stack:
        stack.enter_context(machine(tmp_path, Need(1, 1000)))
        thread = Thread(target=run)
        thread.start()
        while not waits:
            time.sleep(0.01)
        order.append("first ends")
    thread.join(10)
    assert order == ["first ends", "second"]
    assert waits == ["waited"]


def test_one_that_is_too_large_runs_alone(tmp_path: Path) -> None:
    with machine(tmp_path, Need(64, 100_000)):
        pass


def test_a_small_one_does_not_overtake_a_large_one(tmp_path: Path) -> None:
    order: list[str] = []
    large_waits: list[str] = []
    small_waits: list[str] = []

    def run(name: str, need: Need, waits: list[str]) -> None:
        with machine(tmp_path, need, waits):
            order.append(name)

    with ExitStack() as stack:
        stack.enter_context(machine(tmp_path, Need(1, 100)))
        large = Thread(target=run, args=("large", Need(2, 100), large_waits))
        large.start()
        while not large_waits:
            time.sleep(0.01)
        small = Thread(target=run, args=("small", Need(1, 100), small_waits))
        small.start()
        while not small_waits:
            time.sleep(0.01)
        assert order == []
    for thread in (large, small):
        thread.join(10)
    assert order == ["large", "small"]


def test_who_was_killed_takes_no_room(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from harness.machine.admission import *\n"
        "with admitted(Path(sys.argv[1]), Need(2, 1), Need(2, 9), lambda: None):\n"
        "    print('in', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"in\n"
        other.kill()
    waits: list[str] = []
    with machine(tmp_path, Need(2, 1), waits):
        assert not waits


def test_a_wait_can_be_broken_off(tmp_path: Path) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with (
        machine(tmp_path, Need(2, 1)),
        pytest.raises(KeyboardInterrupt),
        admitted(tmp_path, Need(1, 1), HOST, interrupted),
    ):
        pass
    with machine(tmp_path, Need(2, 1)):
        pass


def test_emulated_cpus_are_threads_and_those_of_kvm_are_mostly_idle() -> None:
    profiles = Workspace(SilentProgress()).profiles
    pc, virt = (Plan(profiles[name], "trixie", 1024, 2) for name in ("pc", "virt"))
    assert need_of(pc, "tcg").cores == 1  # its CPUs share one thread
    assert need_of(virt, "tcg").cores == 1  # a thread each, neither of them always busy
    assert need_of(replace(virt, vcpus=6), "tcg").cores == 3
    assert need_of(virt, "kvm").cores == 1
    assert need_of(pc, "tcg").memory_mib > 1024
