"""Hosts that lack something, run full, or are asked for what cannot be: never a FAIL, and always a way out."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from harness.errors import HostError
from harness.machine.accel import choose
from harness.progress import SilentProgress
from harness.workspace import Workspace
from tests.vm.conftest import UNWAITED_S, Bench, Done, only_all, quick, slow

pytestmark = pytest.mark.vm

SAYS = {"guest.run": {"as": "said", "argv": ["echo", "hello"]}}


def without_qemu(bench: Bench) -> Path:
    """A directory of programs for PATH in which only QEMU is missing."""
    programs = bench.root / "bin"
    programs.mkdir()
    for name in ("env", "setpriv", "sh", "unshare", "mount"):
        found = shutil.which(name)
        assert found is not None
        (programs / name).symlink_to(found)
    return programs


def nothing_booted(done: Done) -> None:
    """Assert that no QEMU has run far enough to have a console."""
    assert not list(Path(done.only["results"]).glob("console-*.log"))


# -- QEMU -------------------------------------------------------------------------------------------------------


@quick
def test_without_qemu(bench: Bench) -> None:
    done = bench.run(bench.scenario(), environment={"PATH": str(without_qemu(bench))})
    done.came_to(2, "error", "qemu-system-x86_64 is not installed", "hint: ", "make setup")
    nothing_booted(done)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        pytest.param(
            """
            case "$*" in
            *--version*) echo 'QEMU emulator version 5.0.0 (Debian 1:5.0-5)' ;;
            *) echo 'qemu-system-x86_64: -sandbox: invalid option' >&2; exit 1 ;;
            esac
            """,
            "5.0.0",
            id="that refuses an option",
        ),
        slow("echo 'QEMU emulator version 5.0.0 (Debian 1:5.0-5)'", "5.0.0", id="that just says so"),
        slow("exit 0", "exit status 0", id="that says nothing"),
        slow("sleep 1000", "monitor", id="that hangs"),
    ],
)
def test_a_qemu_that_is_too_old(bench: Bench, script: str, reason: str) -> None:
    programs = without_qemu(bench)
    fake = programs / "qemu-system-x86_64"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    done = bench.run(bench.scenario(), environment={"PATH": f"{programs}:{os.environ['PATH']}"})
    result = done.came_to(2, "error", reason)
    if reason == "5.0.0":
        assert "too old" in result["reason"]
        assert "QEMU 7.2 or newer" in result["reason"]
    nothing_booted(done)


def test_kvm_where_it_does_not_work(bench: Bench) -> None:
    workspace = Workspace(SilentProgress())
    try:
        choose("kvm", "amd64", workspace.kvm)
    except HostError as error:
        assert error.hint is not None
    else:
        pytest.skip("KVM works on this host")
    done = bench.run("--accel", "kvm", bench.scenario())
    done.came_to(2, "error", "KVM was asked for and cannot be used: ", "hint: use --accel auto or --accel tcg")
    nothing_booted(done)


# -- full disks -------------------------------------------------------------------------------------------------


def on_a_small_disk(bench: Bench, place: Path, kib: int) -> list[str]:
    """What starts a command with a small disk of its own at a place, and then lists what lies there."""
    if subprocess.run(["unshare", "-Urm", "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("this host lets nobody mount anything")
    place.mkdir(exist_ok=True)
    script = 'place=$1; mount -t tmpfs -o size="$2"k none "$place" || exit 99; shift 2; "$@"; status=$?'
    script += f'; ls -A "$place" > "{bench.root}/listing"; exit $status'
    return ["unshare", "-Urm", "sh", "-c", script, "sh", str(place), str(kib)]


def listing(bench: Bench) -> list[str]:
    """What lay on the small disk at the end."""
    return (bench.root / "listing").read_text().split()


@quick
def test_temporary_files_without_room(bench: Bench) -> None:
    done = bench.run(bench.scenario(), before=on_a_small_disk(bench, bench.tmp, 16 << 10))
    done.came_to(2, "error", "No space left on device", "MiB are free", "hint: ", "TMPDIR")
    nothing_booted(done)
    assert listing(bench) == []


@pytest.mark.parametrize(
    ("kib", "drive"),
    [
        pytest.param(
            3 << 10,
            [SAYS, {"guest.run": {"argv": ["sh", "-c", "head -c 6000000 /dev/zero | tr '\\0' x > /dev/console"]}}],
            id="in the middle",
        ),
        pytest.param(8, [SAYS], id="from the beginning", marks=quick),
        slow(1092, [SAYS], id="during the boot"),
    ],
)
def test_results_without_room(bench: Bench, kib: int, drive: list[dict[str, Any]]) -> None:
    """QEMU drops what it cannot write to its logs, so evidence may be missing: no verdict on the product can be had."""
    before = on_a_small_disk(bench, bench.root / "results", kib)
    talkative = {"kernel_args": ["ignore_loglevel"]}
    done = bench.run(bench.scenario(boot=talkative, drive=drive), before=before)
    result = done.came_to(2, "error", "free", "hint: ", "--results")
    assert "story" in result["id"]
    assert [name for name in listing(bench) if name != "story"] == []
    assert done.seconds < UNWAITED_S


@pytest.mark.parametrize("mib", [pytest.param(24, marks=quick), slow(90), slow(160)])
def test_an_image_store_without_room(bench: Bench, mib: int) -> None:
    cache = bench.root / "cache"
    before = on_a_small_disk(bench, cache, mib << 10)
    before[4] = before[4].replace('ls -A "$place"', 'ls -A "$place/tmp" "$place/objects"')
    done = bench.run(bench.scenario(), before=before, environment={"HARNESS_CACHE": str(cache)})
    done.came_to(2, "error", "no space left for", "were free in", "hint: ", "HARNESS_CACHE")
    assert [name for name in listing(bench) if not name.endswith(":")] == []


# -- wrong questions --------------------------------------------------------------------------------------------

SCENARIO = """\
scenario: wrong
feature: balloon
boot:
  machine: {machine}
load:
  - guest: {module}
drive:
  - {verb}: {{as: up, {parameter}: {value}}}
assert:
  - up.settled
"""
RIGHT = {"machine": "pc", "module": "virtio_balloon", "verb": "balloon.inflate", "parameter": "mib", "value": "64"}


@pytest.mark.parametrize(
    ("wrong", "place", "words"),
    [
        ({"machine": "pcc"}, "4:12 boot.machine", ['unknown machine "pcc"', '"pc"?']),
        ({"module": "virtio_baloon"}, "6:12 load[0].guest", ['unknown module "virtio_baloon"', '"virtio_balloon"?']),
        ({"verb": "balloon.inflat"}, "8:5 drive[0].balloon.inflat", ["unknown verb", '"balloon.inflate"?']),
        pytest.param(
            {"parameter": "mibs"}, "8:31 drive[0].balloon.inflate.mibs", ["unknown key", '"mib"?'], marks=quick
        ),
        ({"value": "-1"}, "8:36 drive[0].balloon.inflate.mib", ["0..", "got -1"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_scenario_that_is_wrong(bench: Bench, wrong: dict[str, str], place: str, words: list[str]) -> None:
    path = bench.root / "wrong.yaml"
    path.write_text(SCENARIO.format(**{**RIGHT, **wrong}))
    done = bench.run(path, bench.scenario())
    assert done.status == 4, done.text
    assert f"wrong.yaml:{place}: " in done.text
    for word in words:
        assert word in done.text
    assert done.summary is None
    assert not (bench.root / "results").exists(), "nothing runs while any file is wrong"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bogus"], ["--bogus"]),
        (["--accel", "hvf"], ["hvf", "auto", "kvm", "tcg"]),
        (["-j", "0"], ["-j"]),
        (["nowhere.yaml"], ["nowhere.yaml does not exist"]),
        (["--under-test", "virtio_baloon=x.ko"], ["unknown component 'virtio_baloon'", "virtio_balloon"]),
        (["--under-test", "virtio_balloon"], ["COMPONENT=FILE"]),
        (["--under-test", "virtio_balloon=x.ko"], ["x.ko is not a file"]),
        (["--under-test", "virtio_balloon=story.yaml"], ["not a kernel module"]),
        (["-k", "and and"], ["Wrong expression", "-k"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_command_line_that_is_wrong(bench: Bench, arguments: list[str], words: list[str]) -> None:
    path = bench.scenario()
    done = bench.run(*([path.name] if "nowhere" not in arguments[0] else []), *arguments)
    assert done.status == 4, done.text
    for word in words:
        assert word in done.text
    assert "Traceback" not in done.text
    assert not (bench.root / "results").exists()


def module(path: Path, *, machine: int, release: str) -> Path:
    """Enough of a kernel module to be asked what it is for."""
    header = struct.pack("<4sBBBB8xHHI", b"\x7fELF", 2, 1, 1, 0, 1, machine, 1)
    path.write_bytes(header + bytes(40) + f"\0vermagic={release} SMP preempt mod_unload \0".encode())
    return path


@quick
@pytest.mark.parametrize(
    ("machine", "release", "words"),
    [
        pytest.param(183, "6.12.0", ["is not built for amd64", "arm64"], id="another architecture"),
        pytest.param(62, "6.1.0-13-amd64", ["is built for kernel 6.1.0-13-amd64, not ", "linux-headers-"], id="kernel"),
        slow(62, "", ["no version at all"], id="no kernel"),
    ],
)
def test_a_module_that_does_not_fit(bench: Bench, machine: int, release: str, words: list[str]) -> None:
    path = module(bench.root / "mine.ko", machine=machine, release=release)
    story = bench.scenario(load=[{"guest": "virtio_balloon"}])
    done = bench.run("--under-test", f"virtio_balloon={path}", story)
    done.came_to(2, "error", "--under-test virtio_balloon: ", "hint: ", *words)
    nothing_booted(done)


PATCH = """\
--- a/drivers/virtio/virtio_balloon.c
+++ b/drivers/virtio/virtio_balloon.c
@@ -1,2 +1,2 @@
-// no line of that file
+#error
 // nor this one
"""


@quick
def test_code_that_does_not_build_keeps_no_other_scenario_from_running(bench: Bench) -> None:
    """What could not run has a result, a place in JUnit XML and on the page like what ran."""
    patch, junit, page = bench.root / "mine.patch", bench.root / "junit.xml", bench.root / "page"
    patch.write_text(PATCH)
    stories = [bench.scenario("uses", load=[{"guest": "virtio_balloon"}]), bench.scenario("does-not")]
    arguments: list[str | Path] = ["--under-test", f"virtio_balloon={patch}", "--junit", junit, "--report", page]
    done = bench.run(*arguments, *stories)
    assert done.status == 2, done.text
    assert {item["id"]: item["verdict"] for item in done.scenarios} == {"uses": "error", "does-not": "pass"}
    for item in done.scenarios:
        assert (Path(item["results"]) / "result.json").is_file()
    uses = next(item for item in done.scenarios if item["id"] == "uses")
    assert "mine.patch" in uses["reason"]
    errors = {str(case.get("name")): case.find("error") for case in ElementTree.parse(junit).iter("testcase")}
    assert {name: error is not None for name, error in errors.items()} == {"uses": True, "does-not": False}
    assert "mine.patch" in (page / "index.html").read_text()


@only_all
def test_a_module_that_the_kernel_refuses(bench: Bench) -> None:
    """It says that it fits, and is none."""
    release = json.loads(next((Path(bench.run(bench.scenario()).only["results"])).glob("result.json")).read_text())[
        "versions"
    ]["kernel"]
    path = module(bench.root / "mine.ko", machine=62, release=release)
    story = bench.scenario(load=[{"guest": "virtio_balloon"}])
    done = bench.run("--under-test", f"virtio_balloon={path}", story)
    done.came_to(2, "error", "guest: ", "virtio_balloon")
