"""Fixtures of the project's own tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.machine.scratch import leftovers

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """No test leaves a machine's directory on this host."""
    before = set(leftovers())
    yield
    assert set(leftovers()) <= before


@pytest.fixture
def scenarios() -> Path:
    """The repository's own scenarios."""
    return Path(__file__).parent / "scenarios"
