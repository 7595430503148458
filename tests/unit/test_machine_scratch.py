"""A machine's directory: private, gone with the run, and swept when its run was killed."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.errors import HostError
from harness.machine.scratch import leftovers, scratch_directory, sweep

HOLDER = """\
import signal
from harness.machine.scratch import scratch_directory
with scratch_directory() as path:
    (path / "console").write_text("a socket, say")
    print(path, flush=True)
    signal.pause()
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for temporary files of this test's own: others on this host are none of its business."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@contextmanager
def other_run() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another harness that has a directory."""
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def test_a_directory_is_private_and_goes() -> None:
    with scratch_directory() as path:
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        (path / "deep").mkdir()
        (path / "deep" / "file").write_text("x")
        assert leftovers() == [path]
    assert not path.exists()
    assert leftovers() == []


def test_a_directory_goes_when_the_run_fails() -> None:
    with pytest.raises(KeyboardInterrupt), scratch_directory() as path:
        raise KeyboardInterrupt
    assert not path.exists()


def test_the_path_leaves_room_for_a_socket() -> None:
    """A Unix socket's path has at most 107 bytes."""
    with scratch_directory() as path:
        assert len(path.name) < 30


def test_two_runs_have_two_directories() -> None:
    with scratch_directory() as one, scratch_directory() as two:
        assert one != two
        assert set(leftovers()) == {one, two}
        assert sweep() == []
        assert one.exists()
        assert two.exists()


def test_what_a_killed_run_left_is_swept() -> None:
    with other_run() as (process, path):
        process.kill()
        process.wait()
        assert (path / "console").exists()
        assert sweep() == [path]
        assert not path.exists()
        assert sweep() == []


def test_what_a_live_run_holds_is_not() -> None:
    with other_run() as (process, path):
        assert sweep() == []
        assert (path / "console").exists()
        process.kill()
        process.wait()
        assert sweep() == [path]


def test_names_that_are_not_ours_are_left_alone(place: Path) -> None:
    ours = f"harness-{os.getuid()}-"
    elsewhere = place / "elsewhere"
    (elsewhere / "kept").mkdir(parents=True)
    (place / f"{ours}link").symlink_to(elsewhere)
    (place / f"{ours}file").write_text("x")
    (place / "harness-kvm-abc").mkdir()
    (place / "someone-else").mkdir()
    (place / f"harness-{os.getuid() + 1}-abc").mkdir()
    before = sorted(place.rglob("*"))
    assert sweep() == []
    assert leftovers() == []
    assert sorted(place.rglob("*")) == before


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_another_users_directory_with_our_name_is_left_alone(place: Path) -> None:
    path = place / f"harness-{os.getuid()}-theirs"
    path.mkdir()
    os.chown(path, 1234, 1234)
    assert sweep() == []
    assert path.exists()


def test_a_directory_without_a_lock_is_a_killed_runs(place: Path) -> None:
    """The run was killed between making the one and the other."""
    path = place / f"harness-{os.getuid()}-young"
    path.mkdir()
    assert sweep() == [path]


@pytest.mark.parametrize("looks", [1, 2, 3])
def test_a_directory_that_goes_meanwhile(place: Path, monkeypatch: pytest.MonkeyPatch, looks: int) -> None:
    """Another run ends, or sweeps, between two looks at its directory."""
    paths = [place / f"harness-{os.getuid()}-{number}" for number in range(3)]
    for path in paths:
        path.mkdir()
    looked = 0
    real = Path.stat

    def look(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        nonlocal looked
        seen = real(path, follow_symlinks=follow_symlinks)
        if path == paths[0]:
            looked += 1
            if looked == looks:
                shutil.rmtree(path)
        return seen

    monkeypatch.setattr(Path, "stat", look)
    assert {*paths[1:]} <= set(sweep())
    assert not any(map(os.path.exists, paths))


def test_a_sweep_does_not_take_a_directory_that_is_just_being_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a moment in which the directory is there and its owner has not locked it yet."""
    swept: list[Path] = []
    make = tempfile.mkdtemp

    def make_and_be_swept(*arguments: str, **options: str) -> str:
        path = make(*arguments, **options)
        if not swept:
            swept.extend(sweep())
        return path

    monkeypatch.setattr(tempfile, "mkdtemp", make_and_be_swept)
    with scratch_directory() as path:
        assert path.is_dir()
        assert swept
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert sweep() == []
        assert path.is_dir()
    assert leftovers() == []


def test_no_room_is_the_hosts_fault(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(place / "nowhere"))
    with pytest.raises(HostError, match="temporary directory") as caught, scratch_directory():
        pass
    assert caught.value.hint is not None
