"""Fixtures of the project's own tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.machine.scratch import leftovers

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True)
def nothing_left_behind(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Each test has a temporary directory of its own, short enough for Unix sockets, and leaves no machine in it."""
    tmp_path_factory.getbasetemp()  # pytest's own place must not be made in a test's
    directory = Path(tempfile.mkdtemp(prefix="ht-"))
    monkeypatch.setenv("TMPDIR", str(directory))
    monkeypatch.setenv("HARNESS_STATE", str(directory / "state"))  # what tests run is nobody's history
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    try:
        yield
        assert not leftovers()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
