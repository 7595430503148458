"""What a run adds to its images: the keys, and a script that boots the same again without them."""

from __future__ import annotations

import re
import shlex
import stat
import subprocess
from pathlib import Path

import pytest

from harness.errors import HostError
from harness.guest.identity import Identity
from harness.machine.accel import Accelerator
from harness.machine.initrd import write_initrd
from harness.machine.machine import BootFiles, Machine
from harness.machine.repro import write_repro
from harness.machine.spec import Cpu, Plan, Profile

REPOSITORY = Path(__file__).parents[2]


def unpacked(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """What is in cpio archives that follow one another (newc): path to mode and content."""
    found: dict[str, tuple[int, bytes]] = {}
    position = 0
    while position < len(archive):
        if archive[position] == 0:  # padding between two archives
            position += 1
            continue
        assert archive[position : position + 6] == b"070701", position
        assert position % 4 == 0
        fields = [int(archive[position + 6 + 8 * n : position + 14 + 8 * n], 16) for n in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[position + 110 : position + 110 + name_size - 1].decode()
        begin = position + (110 + name_size + 3) // 4 * 4
        if name != "TRAILER!!!":
            found[name] = (mode, archive[begin : begin + size])
        position = begin + (size + 3) // 4 * 4
    return found


@pytest.mark.parametrize("length", range(5))
def test_the_segments_come_first_and_in_order(tmp_path: Path, length: int) -> None:
    """Each archive begins where a word begins, however long the one before it is."""
    identity = Identity.generate()
    (tmp_path / "one").write_bytes(b"first")
    (tmp_path / "two").write_bytes(b"x" * length)
    write_initrd(tmp_path / "initrd", [tmp_path / "one", tmp_path / "two"], identity)
    written = (tmp_path / "initrd").read_bytes()
    assert written.startswith(b"first\0\0\0" + b"x" * length)
    keys = written.index(b"070701")
    assert keys % 4 == 0
    assert set(identity.files()) <= set(unpacked(written[keys:]))


def test_the_keys_are_there_and_private(tmp_path: Path) -> None:
    identity = Identity.generate()
    write_initrd(tmp_path / "initrd", [], identity)
    seen = unpacked((tmp_path / "initrd").read_bytes())
    for path, (content, mode) in identity.files().items():
        assert seen[path] == (stat.S_IFREG | mode, content)
    assert seen["root/.ssh"][0] == stat.S_IFDIR | 0o700


def test_without_keys_nobody_gets_in(tmp_path: Path) -> None:
    write_initrd(tmp_path / "initrd", [], None)
    assert (tmp_path / "initrd").read_bytes() == b""


def test_a_segment_that_is_missing_and_a_disk_that_is_full(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="initramfs") as caught:
        write_initrd(tmp_path / "initrd", [tmp_path / "nothing"], None)
    assert caught.value.hint is not None
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(HostError, match="No space left"):
        write_initrd(tmp_path / "full", [], Identity.generate())


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine that never runs."""
    store, results, scratch = tmp_path / "the store", tmp_path / "results", tmp_path / "scratch"
    for directory in (store, results, scratch):
        directory.mkdir()
    (store / "vmlinuz").write_bytes(b"kernel")
    (store / "root fs").write_bytes(b"root file system")
    (scratch / "override.cpio").write_bytes(b"a module under test")
    profile = Profile(
        summary="a test's",
        arch="amd64",
        machine="q35",
        cpu=Cpu(tcg="max"),
        kernels=["trixie"],
        rootfs="minimal",
        memory_mib=256,
        vcpus=1,
        console="ttyS0",
        early_modules=[],
    )
    return Machine(
        Plan(profile, "trixie", 256, 1, kernel_args=("quiet",)),
        BootFiles(store / "vmlinuz", (store / "root fs", scratch / "override.cpio")),
        Accelerator("tcg", "asked for"),
        results=results,
        scratch=scratch,
    )


def test_the_script_boots_the_same_with_nothing_of_the_runs_own(machine: Machine, tmp_path: Path) -> None:
    """It is run here, with a QEMU that tells what it was given."""
    script = machine.results / "repro.sh"
    write_repro(script, machine)
    for path in machine.scratch.iterdir():  # the run is over
        path.unlink()
    qemu = tmp_path / "bin" / "qemu-system-x86_64"
    qemu.parent.mkdir()
    qemu.write_text(
        "#!/bin/sh\n"
        'printf "%s\\n" "$@" >"$SEEN/argv"\n'
        'while [ "$1" != -initrd ]; do shift; done\n'
        'cat "$2" >"$SEEN/initrd"\n'
        'echo "$2" >"$SEEN/where"\n'
    )
    qemu.chmod(0o755)
    environment = {"PATH": f"{qemu.parent}:/usr/bin:/bin", "SEEN": str(tmp_path), "TMPDIR": str(tmp_path)}
    subprocess.run([str(script)], env=environment, cwd="/", timeout=30, check=True)
    argv = (tmp_path / "argv").read_text().splitlines()
    assert argv[argv.index("-kernel") + 1] == str(machine.files.kernel)
    assert argv[argv.index("-append") + 1] == "console=ttyS0 quiet"
    assert argv[argv.index("-serial") + 1] == "mon:stdio"
    assert "restrict=on" in argv[argv.index("-netdev") + 1]
    assert "-sandbox" in argv
    initrd = (tmp_path / "initrd").read_bytes()
    assert initrd.startswith(b"root file system")
    assert b"a module under test" in initrd
    assert not Path((tmp_path / "where").read_text().strip()).parent.exists()


def test_the_script_has_what_the_run_brought_to_its_guest_later(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "x.ko").write_bytes(b"a module that came late")
    script = machine.results / "repro.sh"
    write_repro(script, machine, {"usr/lib/harness/modules/x.ko": tmp_path / "x.ko"})
    kept = (machine.results / "under-test.cpio").read_bytes()
    assert b"usr/lib/harness/modules/x.ko" in kept
    assert b"a module that came late" in kept
    segments = next(line for line in script.read_text().splitlines() if line.startswith("cat "))
    assert segments.index("root fs") < segments.index("under-test.cpio"), "it takes the place of what is there"


def test_the_script_says_which_image_is_gone(machine: Machine, tmp_path: Path) -> None:
    script = machine.results / "repro.sh"
    write_repro(script, machine)
    stored = machine.files.segments[0]
    stored.unlink()
    environment = {"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)}
    done = subprocess.run([str(script)], env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert f"{stored} is gone" in done.stderr
    assert "Run the scenario again" in done.stderr


def test_the_script_and_what_lies_beside_it_hold_no_keys(machine: Machine) -> None:
    write_initrd(machine.scratch / "initrd", machine.files.segments, machine.identity)
    write_repro(machine.results / "repro.sh", machine)
    kept = {path.name: path.read_bytes() for path in machine.results.iterdir()}
    assert set(kept) == {"repro.sh", "override.cpio"}
    for content in kept.values():
        assert machine.identity.token.encode() not in content
        for secret, _ in machine.identity.files().values():
            assert secret not in content
        assert not re.search(rb"PRIVATE KEY|ssh-ed25519", content)


def test_the_script_is_a_script(machine: Machine) -> None:
    script = machine.results / "repro.sh"
    write_repro(script, machine)
    assert script.stat().st_mode & stat.S_IXUSR
    subprocess.run(["sh", "-n", str(script)], check=True, timeout=10)
    command = shlex.split(script.read_text().splitlines()[-1])
    assert command[0] == "qemu-system-x86_64"
