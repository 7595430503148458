"""Processes that hold things for a probe."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PROBES = Path(__file__).parents[2] / "harness" / "probes"


class Counting:
    """Counts its turns, and does what it is told."""

    def __init__(self) -> None:
        self.turns = 0

    def waits(self) -> tuple[list[int], float | None]:
        return [], 0.01

    def turn(self) -> None:
        self.turns += 1

    def count(self) -> dict[str, Any]:
        return {"turns": self.turns}

    def fail(self) -> dict[str, Any]:
        raise KeyError("nothing of that name")

    def die(self, number: int) -> dict[str, Any]:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return {}


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(PROBES))
    for name in ("worker", "holders"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("worker")
    yield module
    holders = sys.modules["holders"]
    for name in list(holders._holders):
        holders.end(name, kill=True)


def test_a_worker_goes_on_between_calls(worker: ModuleType) -> None:
    keeper = worker.Keeper("the counter", Counting)
    before = keeper.call("count", {})["turns"]
    time.sleep(0.1)
    assert keeper.call("count", {})["turns"] > before + 2


def test_what_fails_in_a_worker_is_told_and_it_lives_on(worker: ModuleType) -> None:
    keeper = worker.Keeper("the counter", Counting)
    with pytest.raises(RuntimeError, match="fail: KeyError: 'nothing of that name'"):
        keeper.call("fail", {})
    assert keeper.call("count", {})["turns"] > 0


def test_a_worker_that_dies_of_a_signal_says_of_which_and_a_new_one_takes_its_place(worker: ModuleType) -> None:
    keeper = worker.Keeper("the counter", Counting)
    assert keeper.end(kill=True) == {"signal": 0}
    assert keeper.call("die", {"number": signal.SIGBUS}) == {"died": "SIGBUS"}
    assert keeper.call("count", {})["turns"] > 0
    assert keeper.end(kill=True) == {"signal": signal.SIGKILL}


def test_a_worker_ends_when_its_socket_is_closed(worker: ModuleType) -> None:
    keeper = worker.Keeper("the counter", Counting)
    keeper.call("count", {})
    assert keeper.end(kill=False) == {"signal": 0}


def test_a_worker_that_cannot_start_is_no_death_by_signal(worker: ModuleType) -> None:
    def make() -> Counting:
        raise OSError("no device")

    with pytest.raises(RuntimeError, match="it died"):
        worker.Keeper("the counter", make).call("count", {})
