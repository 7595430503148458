"""Fixtures for tests with a fake QEMU, a fake guest, or both. Nothing may leak from any of them."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from harness.deadline import Deadline
from harness.machine.process import Process
from harness.machine.scratch import scratch_directory
from tests.fake.rig import Rig

_PATIENCE_S = 10


def soon(seconds: float = 30) -> Deadline:
    """A deadline that only a hang reaches."""
    return Deadline.after(seconds, "the test")


def _descriptors() -> dict[str, str]:
    seen = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            seen[entry.name] = str(entry.readlink())
        except FileNotFoundError:  # the one that iterdir() itself had open
            continue
    return seen


def _held() -> set[str]:
    """What this process holds: descriptors, threads, children that run."""
    held = {f"descriptor {number}: {target}" for number, target in _descriptors().items()}
    held |= {f"thread {thread.name}" for thread in threading.enumerate()}
    held |= {f"child {child.pid}" for child in psutil.Process().children(recursive=True)}
    return held


@pytest.fixture(scope="session", autouse=True)
def long_lived(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Start the threads that live as long as this process: the spawner's and the monitor's."""
    from harness.machine.qmp import _LOOP

    async def nothing() -> None: ...

    directory = tmp_path_factory.mktemp("long-lived")
    Process(["true"], output=directory / "log", cwd=directory).wait(soon())
    _LOOP.run(nothing(), soon())
    gc.collect()
    gc.freeze()  # what is here now stays: the collections of nothing_leaks need not look at it


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """No test leaves a process, a thread, a socket or a file open."""
    before = _held()
    yield
    gc.collect()
    patience = time.monotonic() + _PATIENCE_S
    while (left := _held() - before) and time.monotonic() < patience:
        time.sleep(0.02)
    assert not left


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_leaks: None) -> Iterator[Rig]:
    """A machine with a fake QEMU on PATH."""
    with ExitStack() as stack:
        rig = Rig(tmp_path, stack.enter_context(scratch_directory()), stack)
        monkeypatch.setenv("PATH", f"{rig.programs}:{os.environ['PATH']}")
        yield rig
    assert not rig.scratch.exists()
