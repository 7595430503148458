"""Machines that were booted once and are taken up again: never a stale or broken one, and nothing is left of it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from harness.deadline import Deadline
from harness.images import Images, Recipes, Store
from harness.machine.accel import Accelerator
from harness.machine.saved import KIND, SavedMachines
from harness.machine.snapshot import fork, take_up
from harness.progress import SilentProgress
from harness.testbed import Testbed
from harness.workspace import Needed, Workspace
from tests.vm.conftest import ALL, Bench, Done, only_all

RESTORES = 100 if ALL else 10

pytestmark = pytest.mark.quick


class Cache:
    """A store with the images of this host's own, and no saved machine yet."""

    def __init__(self, root: Path) -> None:
        self.root = root
        own = Store().root
        for name in ("objects", "entries", "proofs"):
            (root / name).mkdir(parents=True)
        for manifest in (own / "entries").glob("*.json"):
            entry = json.loads(manifest.read_text())
            if entry["kind"] == KIND:
                continue
            (root / "entries" / manifest.name).write_bytes(manifest.read_bytes())
            for file in entry["files"].values():
                target = root / "objects" / file["sha256"]
                if not target.exists():
                    os.link(own / "objects" / file["sha256"], target)

    @property
    def environment(self) -> Mapping[str, str | None]:
        return {"HARNESS_CACHE": str(self.root)}

    def machines(self) -> list[Path]:
        """The manifests of saved machines."""
        every = (self.root / "entries").glob("*.json")
        return [path for path in every if json.loads(path.read_text())["kind"] == KIND]

    def state(self) -> Path:
        """The one saved machine's state."""
        (manifest,) = self.machines()
        sha256 = json.loads(manifest.read_text())["files"]["state"]["sha256"]
        return self.root / "objects" / str(sha256)

    def drafts(self) -> list[Path]:
        """What is being saved just now, or was when its run was killed."""
        return [path for path in (self.root / "tmp").glob("*/state") if path.stat().st_size]


@pytest.fixture
def cache(bench: Bench) -> Cache:
    """A store of the test's own."""
    return cache_for(bench, "pc")


def cache_for(bench: Bench, machine: str) -> Cache:
    """A store with what a machine boots. Links do not reach from one disk to another."""
    assert not Workspace(SilentProgress()).build_profiles([Needed(machine)])
    try:
        return Cache(bench.root / "cache")
    except OSError as error:
        pytest.skip(f"the store cannot be linked to from here: {error}")


def run(bench: Bench, cache: Cache, *arguments: str | Path) -> Done:
    """``harness run``, which may use saved machines."""
    fixed = ("--accel", "tcg", "--results", "results", "--json", bench.root / "summary.json")
    return bench.start("run", *fixed, *arguments, environment=cache.environment).wait()


def test_the_second_run_goes_on_from_the_first_ones_machine(bench: Bench, cache: Cache) -> None:
    story = bench.scenario()
    assert run(bench, cache, story).came_to(0, "pass")["start"] == "cold"
    warm = run(bench, cache, story)
    assert warm.came_to(0, "pass")["start"] == "warm"
    assert run(bench, cache, story, "--cold").came_to(0, "pass")["start"] == "cold"
    other = bench.scenario("other", boot={"kernel_args": ["nosmt"]})
    assert run(bench, cache, other).came_to(0, "pass")["start"] == "cold"
    fresh = bench.scenario("fresh", boot={"fresh": True})
    assert run(bench, cache, fresh).came_to(0, "pass")["start"] == "cold"


def test_each_run_is_somebody_else(bench: Bench, cache: Cache) -> None:
    """The same saved machine, twice: its keys, its address, its clock and its random numbers are not the same."""
    ask = "cat /etc/harness-token /sys/class/net/eth0/address; head -c 16 /dev/urandom | md5sum; date +%s"
    story = bench.scenario(
        drive=[
            {"guest.run": {"as": "said", "argv": ["sh", "-c", ask]}},
            {"guest.run": {"as": "key", "argv": ["md5sum", "/etc/dropbear/dropbear_ed25519_host_key"]}},
        ],
        assertions=["said.status == 0 && key.status == 0"],
    )
    seen = []
    for _ in range(3):
        result = run(bench, cache, story).came_to(0, "pass")
        seen.append([*result["evidence"]["said"]["stdout"].split(), result["evidence"]["key"]["stdout"]])
    for told in range(3):  # token, address, random number
        assert len({row[told] for row in seen}) == len(seen), seen
    assert len({row[-1] for row in seen}) == len(seen), seen
    assert all(abs(int(row[-2]) - time.time()) < 300 for row in seen), seen


#: On each CPU in turn it sleeps a little, and says what the longest took by the guest's own clock.
_SLEEPER = """\
import os, time
longest = 0.0
for cpu in sorted(os.sched_getaffinity(0)):
    os.sched_setaffinity(0, {cpu})
    for _ in range(3):
        before = time.monotonic()
        time.sleep(0.2)
        longest = max(longest, time.monotonic() - before)
print(longest)
"""
_SLEPT = {"as": "slept", "layer": "guest", "argv": ["python3", "-I", "-S", "-c", _SLEEPER], "timeout_s": 60}


@pytest.mark.parametrize(
    ("machine", "memory_mib", "domains"),
    [
        ("pseries", 1024, {}),
        pytest.param("xen-arm64", 2560, {"guest": {"vcpus": 2}}, marks=only_all),
    ],
)
def test_a_restored_guest_wakes_up(
    bench: Bench, machine: str, memory_mib: int, domains: dict[str, dict[str, int]]
) -> None:
    """QEMU loses some of the timers that it saves: what sleeps must not sleep on, on any CPU, in no guest."""
    cache = cache_for(bench, machine)
    story = bench.scenario(
        boot={"machine": machine, "memory_mib": memory_mib, "domains": domains},
        drive=[{"guest.run": _SLEPT}],
        assertions=["slept.status == 0 && double(slept.stdout) < 5.0"],
    )
    run(bench, cache, story).came_to(0, "pass")
    assert run(bench, cache, story).came_to(0, "pass")["start"] == "warm"


def test_a_damaged_state_is_noticed(bench: Bench, cache: Cache) -> None:
    story = bench.scenario()
    run(bench, cache, story).came_to(0, "pass")
    state = cache.state()
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.unlink()
    state.write_bytes(content)
    done = run(bench, cache, story)
    assert done.came_to(0, "pass")["start"] == "cold"
    assert "of no use, booting instead" in done.text
    assert run(bench, cache, story).came_to(0, "pass")["start"] == "warm"


def test_a_state_that_does_not_go_on_is_replaced(bench: Bench, cache: Cache) -> None:
    """It is whole, and of no use: each run would wait for it in vain."""
    story = bench.scenario()
    run(bench, cache, story).came_to(0, "pass")
    (manifest,) = cache.machines()
    useless = b"this is no machine"
    sha256 = hashlib.sha256(useless).hexdigest()
    (cache.root / "objects" / sha256).write_bytes(useless)
    entry = json.loads(manifest.read_text())
    entry["files"]["state"] = {"sha256": sha256, "size": len(useless)}
    manifest.write_text(json.dumps(entry))
    done = run(bench, cache, story)
    assert done.came_to(0, "pass")["start"] == "cold"
    assert "of no use, booting instead" in done.text
    assert run(bench, cache, story).came_to(0, "pass")["start"] == "warm"


@pytest.mark.parametrize(
    ("machine", "layer", "unrest"),
    [
        # Often its network card has just got a packet; QEMU loses the interrupt of it for any CPU but the first.
        pytest.param("xen-arm64", "dom0", "xl vcpu-pin 0 0 1", marks=only_all, id="xen-arm64"),
        # QEMU does not load what it saved of a CPU that runs a domain.
        pytest.param(
            "xen-x86", "guest", "while sleep 0.01; do :; done >/dev/null 2>&1 &", marks=only_all, id="xen-x86"
        ),
    ],
)
def test_a_machine_can_be_saved_at_any_moment(bench: Bench, machine: str, layer: str, unrest: str) -> None:
    """See snapshot.py."""
    workspace = Workspace(SilentProgress())
    story = bench.scenario(boot={"machine": machine, "memory_mib": 2560, "domains": {"guest": {}}})
    (scenario,), _ = workspace.load([story])
    profile = workspace.profiles[machine]

    def testbed(name: str) -> Testbed:
        results = bench.root / name
        results.mkdir()
        return Testbed(scenario, profile, workspace.images, Accelerator("tcg", "a test"), results, {})

    states = [bench.root / f"state-{number}" for number in range(16)]
    with testbed("saved") as first:
        first.prepare()
        first.boot()
        soon = Deadline.after(60, "some unrest")
        first.call("commands.run", layer=layer, deadline=soon, argv=["sh", "-c", unrest], seconds=50)
        for state in states:
            fork(first.machine, state, Deadline.after(60, "the machine to be saved"))
        saved = first.machine.identity
    for state in states:
        with testbed(f"from-{state.name}") as other:
            other.prepare()
            take_up(other.machine, state, saved, Deadline.after(12, f"{state.name} to go on"))


def test_a_kill_while_a_machine_is_saved(bench: Bench, cache: Cache) -> None:
    """What is half saved is never taken up, and goes with the next run."""
    story = bench.scenario()
    first = bench.start("run", "--accel", "tcg", "--results", "results", story, environment=cache.environment)
    first.until(cache.drafts, "a machine is being saved")
    first.signal(signal.SIGKILL)
    first.wait()
    bench.nothing_runs()
    assert not cache.machines()
    done = run(bench, cache, story)
    assert done.came_to(0, "pass")["start"] == "cold"
    assert not cache.drafts()
    assert len(cache.machines()) == 1


@pytest.fixture
def story(bench: Bench) -> Iterator[Path]:
    """A scenario in the current directory."""
    path = bench.scenario()
    before = Path.cwd()
    os.chdir(bench.root)
    try:
        yield path
    finally:
        os.chdir(before)


def test_many_restores_leave_nothing(bench: Bench, cache: Cache, story: Path) -> None:
    """One saved machine, again and again in one process: no failure, and no file, thread or space that adds up."""
    workspace = Workspace(SilentProgress())
    (scenario,), _ = workspace.load([story])
    store = Store(cache.root)
    images = Images(Recipes(), store, SilentProgress())
    saved = SavedMachines(store, SilentProgress())
    me = psutil.Process()
    measured: list[tuple[int, int, int]] = []
    for number in range(RESTORES + 1):
        results = bench.root / "many" / str(number)
        results.mkdir(parents=True)
        with ExitStack() as stack:
            testbed = stack.enter_context(
                Testbed(scenario, workspace.profiles["pc"], images, Accelerator("tcg", "a test"), results, {}, saved)
            )
            testbed.prepare()
            testbed.boot()
            assert testbed.start == ("cold" if number == 0 else "warm")
        assert not testbed.leftovers()
        measured.append((me.num_fds(), threading.active_count(), store.disk_usage()))
    early, late = measured[3], measured[-1]
    assert late[0] <= early[0], f"open files: {[row[0] for row in measured]}"
    assert late[1] <= early[1], f"threads: {[row[1] for row in measured]}"
    assert late[2] == early[2], f"bytes in the store: {[row[2] for row in measured]}"
    print(f"{RESTORES} restores: {measured[-1][0]} files, {measured[-1][1]} threads", file=sys.stderr)
