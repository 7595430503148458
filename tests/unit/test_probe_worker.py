"""Processes that hold things for a probe."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.probes.worker import Keeper, Worker, WorkerDied


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
def worker() -> Iterator[Worker]:
    made = Worker("the counter", Counting)
    yield made
    if Path(f"/proc/{made.pid}").exists():
        made.reap(kill=True)


def test_a_worker_goes_on_between_calls(worker: Worker) -> None:
    before = worker.call("count", {})["turns"]
    time.sleep(0.1)
    assert worker.call("count", {})["turns"] > before + 2


def test_what_fails_in_a_worker_is_told_and_it_lives_on(worker: Worker) -> None:
    with pytest.raises(RuntimeError, match="fail: KeyError: 'nothing of that name'"):
        worker.call("fail", {})
    assert worker.call("count", {})["turns"] > 0


def test_a_worker_that_dies_of_a_signal_says_of_which(worker: Worker) -> None:
    with pytest.raises(WorkerDied, match="the counter died of SIGBUS") as death:
        worker.call("die", {"number": signal.SIGBUS})
    assert death.value.signal == signal.SIGBUS


def test_a_worker_ends_when_its_socket_is_closed(worker: Worker) -> None:
    assert worker.reap() == 0
    assert not Path(f"/proc/{worker.pid}").exists()


def test_a_keeper_starts_a_new_worker_after_a_death() -> None:
    keeper = Keeper("the counter", Counting)
    assert keeper.end(kill=True) == {"signal": 0}
    assert keeper.call("die", {"number": signal.SIGBUS}) == {"died": "SIGBUS"}
    assert keeper.call("count", {})["turns"] > 0
    assert keeper.end(kill=True) == {"signal": signal.SIGKILL}


def test_a_worker_that_cannot_start_is_no_death_by_signal() -> None:
    def make() -> Counting:
        raise OSError("no device")

    with pytest.raises(WorkerDied, match="ended by itself"):
        Keeper("the counter", make).call("count", {})
