"""The history: kept whole under concurrent runs and kills, refused when it is something else."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import time
from datetime import timedelta, timezone
from pathlib import Path

import pytest

from harness.errors import HostError, UsageError
from harness.records.history import History
from harness.records.outcome import Outcome
from harness.result import Verdict
from tests.unit.records import NOW, outcome, swapped

HOST = {"machine": "x86_64"}


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "new" / "history.sqlite")


def test_outcomes_come_back_as_they_were_oldest_first(history: History) -> None:
    items = [outcome(number, under_test=[swapped("m", "ab")]) for number in (2, 0, 1)]
    assert history.add(items, HOST) == 3
    assert history.outcomes("balloon/resize[pc]") == sorted(items, key=lambda item: item.started)
    assert history.outcomes("balloon/resize[pc]", last=1) == [items[0]]
    assert history.outcomes("other") == []


def test_the_order_is_that_of_time_and_not_of_text(history: History) -> None:
    early = (NOW + timedelta(minutes=30)).astimezone(timezone(timedelta(hours=9))).isoformat()
    history.add([outcome(1), outcome(0, started=early)], HOST)
    assert [item.run for item in history.outcomes()] == ["run-0", "run-1"]


def test_an_outcome_is_taken_once(history: History) -> None:
    assert history.add([outcome(), outcome(attempt=2)], HOST) == 2
    assert history.add([outcome(), outcome(attempt=2)], HOST) == 0
    assert len(history.outcomes()) == 2


def test_durations_are_the_median_of_passes(history: History) -> None:
    def lasting(number: int, total: float, verdict: Verdict = Verdict.PASS) -> Outcome:
        made = outcome(number, verdict)
        return Outcome.from_json({**made.to_json(), "seconds": {"total": total}})

    history.add([lasting(0, 1.0), lasting(1, 9.0), lasting(2, 2.0), lasting(3, 500.0, Verdict.FAIL)], HOST)
    assert history.durations() == {"balloon/resize[pc]": 2.0}


def test_nothing_is_made_by_looking(history: History) -> None:
    assert history.outcomes() == []
    assert history.durations() == {}
    assert not history.path.parent.exists()


def test_a_history_that_its_first_writer_has_only_opened(history: History) -> None:
    history.path.parent.mkdir()
    history.path.touch()
    assert history.outcomes() == []
    assert history.points(last=5) == []
    assert history.durations() == {}
    assert history.path.stat().st_size == 0
    assert history.add([outcome()], HOST) == 1


def test_a_history_of_a_newer_version(history: History) -> None:
    history.check()
    with sqlite3.connect(history.path) as database:
        database.execute("PRAGMA user_version = 2")
    database.close()
    for use in (history.check, history.outcomes, lambda: history.add([outcome()], HOST)):
        with pytest.raises(UsageError, match=r"history.sqlite cannot be used: user_version must be 1, got 2"):
            use()


def test_a_file_that_is_something_else(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("not a database at all, and long enough for SQLite to see that" * 20)
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE t (x)")
    database.close()
    for path in (text, other):
        before = path.read_bytes()
        with pytest.raises(UsageError, match="is no history of the harness"):
            History(path).check()
        assert path.read_bytes() == before
    with pytest.raises(HostError, match="cannot be used"):
        History(tmp_path).check()


def test_a_damaged_row(history: History) -> None:
    history.add([outcome()], HOST)
    with sqlite3.connect(history.path) as database:
        database.execute("UPDATE outcomes SET outcome = '{}'")
    database.close()
    with pytest.raises(HostError, match="is damaged"):
        history.outcomes()


def _add_many(path: Path, worker: int, count: int) -> None:
    for number in range(count):
        History(path).add([outcome(worker * 1000 + number)], HOST)


def test_runs_at_the_same_time(history: History) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_add_many, args=(history.path, worker, 40)) for worker in range(4)]
    for process in workers:
        process.start()
    for process in workers:
        process.join(120)
    assert [process.exitcode for process in workers] == [0] * 4
    assert len(history.outcomes()) == 160


def test_killed_in_the_midst_of_writing(history: History) -> None:
    """What was told as written is there, nothing is there in part, and the next run can write."""
    context = multiprocessing.get_context("spawn")
    for round_ in range(3):
        process = context.Process(target=_add_many, args=(history.path, round_, 1000))
        process.start()
        assert process.pid is not None
        deadline = time.monotonic() + 60
        while len(history.outcomes()) < 5 * (round_ + 1) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.join(60)
    kept = history.outcomes()
    assert len(kept) >= 15
    for round_ in range(3):
        numbers = sorted(int(item.run[4:]) for item in kept if int(item.run[4:]) // 1000 == round_)
        assert numbers == list(range(round_ * 1000, round_ * 1000 + len(numbers)))
    assert history.add([outcome(9999)], HOST) == 1
