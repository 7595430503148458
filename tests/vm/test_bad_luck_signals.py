"""The harness is killed or interrupted: nothing of it stays, and what it knew by then is written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from harness.images import Store
from tests.vm.conftest import ALL, LONG_S, UNWAITED_S, Bench, only_all, quick, slow, until

pytestmark = pytest.mark.vm

SLEEPS = {"guest.run": {"argv": ["sleep", str(LONG_S)], "timeout_s": LONG_S}}
SAYS = {"guest.run": {"as": "said", "argv": ["echo", "hello"]}}
#: By phase, the line that a run prints when it enters it; ``drive`` when its second step runs.
SIGNS = {"boot": ": boot", "load": ": load", "drive": "step 2/2"}


def sleeper(bench: Bench) -> Path:
    """A scenario that loads a module, and whose second step does not end by itself."""
    return bench.scenario("sleeper", load=[{"guest": "virtio_balloon"}], drive=[SAYS, SLEEPS])


def scratch(bench: Bench) -> list[str]:
    """The machines' directories in TMPDIR."""
    return [name for name in bench.temporary() if name.startswith(f"harness-{os.getuid()}-")]


# -- SIGKILL ----------------------------------------------------------------------------------------------------


@quick
@pytest.mark.parametrize("phases", [("boot", "drive"), slow(("load",))])
def test_a_harness_that_is_killed_takes_its_machine_with_it(bench: Bench, phases: tuple[str, ...]) -> None:
    """It cannot tidy up after itself, so the next run does."""
    for phase in phases:
        run = bench.start_run(sleeper(bench))
        run.wait_for(SIGNS[phase])
        run.qemu()
        run.signal(signal.SIGKILL)
        assert run.wait().status == -signal.SIGKILL
        bench.nothing_runs()
        assert len(scratch(bench)) == 1, "each run removes what the one before it left"
        assert bench.temporary() == scratch(bench)
    done = bench.run(bench.scenario())
    done.came_to(0, "pass")
    assert done.text.count("which a killed run had left behind") == 1
    bench.nothing_is_left()


# -- SIGTERM and SIGINT -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "phase"),
    [
        pytest.param(signal.SIGTERM, "boot", marks=quick),
        pytest.param(signal.SIGINT, "drive", marks=quick),
        slow(signal.SIGINT, "boot"),
        slow(signal.SIGINT, "load"),
        slow(signal.SIGTERM, "load"),
        slow(signal.SIGTERM, "drive"),
        slow(signal.SIGHUP, "drive"),
    ],
)
def test_a_harness_that_is_interrupted(bench: Bench, number: signal.Signals, phase: str) -> None:
    """A second Ctrl-C, for the impatient, does not spoil what the first one began."""
    junit = bench.root / "junit.xml"
    run = bench.start_run("--junit", junit, sleeper(bench), bench.scenario("never"))
    run.wait_for(SIGNS[phase])
    run.until(lambda: list(bench.root.glob("results/*/console-guest.log")), "the guest's first words")
    run.signal(number)
    time.sleep(0.02)
    run.signal(signal.SIGINT)
    done = run.wait()
    never = next(item for item in done.scenarios if item["id"] == "never")
    assert (never["verdict"], "before this began" in never["reason"]) == ("error", True)
    assert (Path(never["results"]) / "result.json").is_file()
    assert {case.get("name") for case in ElementTree.parse(junit).iter("testcase")} == {"sleeper", "never"}
    begun = replace(done, summary={"scenarios": [item for item in done.scenarios if item is not never]})
    result = begun.came_to(2, "error", "interrupted", f"during {phase}")
    assert "interrupted: 1 not begun" in done.text
    assert "Traceback" not in done.text
    assert done.seconds < UNWAITED_S
    assert (result["evidence"].get("said") is not None) is (phase == "drive")
    kept = {path.name for path in Path(result["results"]).iterdir()}
    assert {"console-guest.log", "qmp.jsonl", "qemu.argv", "evidence.json"} <= kept
    bench.nothing_is_left()


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=quick), slow(signal.SIGINT)])
def test_an_interruption_during_teardown_comes_after_it(bench: Bench, number: signal.Signals) -> None:
    """What has been judged stays judged; nothing else is begun. The moment is short: it may take some tries."""
    for _ in range(5):
        run = bench.start_run(bench.scenario("first"), bench.scenario("second"))
        run.wait_for(": assert")
        run.signal(number)
        done = run.wait()
        assert done.status == 2, done.text
        assert "interrupted" in done.text
        bench.nothing_is_left()
        result, *others = done.scenarios
        if all("before this began" in item["reason"] for item in others):
            break
    assert result["id"] == "first"
    written = json.loads((Path(result["results"]) / "result.json").read_text())
    assert written["verdict"] == result["verdict"]
    # It may have come a moment before the verdict.
    assert result["verdict"] == "pass" or result["reason"].startswith("interrupted"), result


@only_all
def test_an_interruption_of_a_run_with_workers(bench: Bench) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        before = set(bench.root.glob("results/*/console-guest.log"))
        run = bench.start_run("-j", "2", sleeper(bench), bench.scenario("second", drive=[SAYS, SLEEPS]))

        def both_are_up(before: set[Path] = before) -> bool:
            begun = set(bench.root.glob("results/*/console-guest.log")) - before
            return len(begun) == 2 and all(b"harness: ready" in log.read_bytes() for log in begun)

        run.until(both_are_up, "two guests were up")
        run.signal(number)
        done = run.wait()
        assert done.status == (2 if number != signal.SIGKILL else -number), done.text
        if number != signal.SIGKILL:
            assert {item["id"]: item["verdict"] for item in done.scenarios} == {"sleeper": "error", "second": "error"}
            assert all("interrupted" in item["reason"] for item in done.scenarios)
        until(lambda: not bench.processes(), "the workers' end")
        bench.nothing_is_left()


# -- while images are built -------------------------------------------------------------------------------------


def build_until(bench: Bench, cache: Path, sign: str, number: signal.Signals) -> None:
    """Build the PC's images and send a signal when the build says something."""
    run = bench.start("images", "build", "pc", environment={"HARNESS_CACHE": str(cache)})
    run.wait_for(sign)
    time.sleep(0.2)
    assert run.process.poll() is None, f"the build is over, and was not interrupted:\n{run.text}"
    run.signal(number)
    done = run.wait()
    until(lambda: not bench.processes(), "the end of what it had started")
    if number == signal.SIGKILL:
        assert done.status == -signal.SIGKILL
    else:
        assert done.status == 2, done.text
        assert f"interrupted by {number.name}" in done.text or number == signal.SIGINT
        assert "interrupted" in done.text
        assert "Traceback" not in done.text
        assert list((cache / "tmp").iterdir()) == []


def test_an_image_build_that_is_killed(bench: Bench) -> None:
    """At several moments, one after the other in one cache: the next build goes on from there."""
    cache = bench.root / "cache"
    for sign, number in (
        ("reading Debian", signal.SIGKILL),
        ("fetching", signal.SIGTERM),
        *((("fetching", signal.SIGKILL),) if ALL else ()),
        ("unpacking kernel", signal.SIGKILL),
        ("packing root file system", signal.SIGINT),
        *((("packing root file system", signal.SIGKILL),) if ALL else ()),
    ):
        build_until(bench, cache, sign, number)
    done = bench.start("images", "build", "pc", environment={"HARNESS_CACHE": str(cache)}).wait()
    assert done.status == 0, done.text
    store = Store(cache)
    entries = store.list()
    assert {entry.kind for entry in entries} >= {"kernel", "rootfs"}
    objects = {entry.path(name).name for entry in entries for name in entry.files}  # compares each with its hash
    assert {path.name for path in (cache / "objects").iterdir()} == objects
    assert list((cache / "tmp").iterdir()) == []
    odd = [path for pattern in ("*.tmp", ".*.tmp") for path in cache.rglob(pattern)]
    assert odd == []
    for package in (cache / "debs").glob("*.deb"):
        subprocess.run(["dpkg-deb", "--info", package], check=True, capture_output=True)
