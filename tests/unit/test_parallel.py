"""Work side by side: refusals are collected, and an interruption ends all of it, programs included."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from harness.deadline import Deadline
from harness.errors import HostError
from harness.images.locks import held
from harness.images.tools import run
from harness.parallel import ahead, side_by_side, stopped

#: A piece that sleeps in a program, one that waits for a lock, and one that breaks; or a Ctrl-C instead.
PROGRAM = """\
import signal
import sys
from pathlib import Path
from harness.deadline import Deadline
from harness.images.locks import held
from harness.images.tools import run
from harness.parallel import side_by_side

signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may have been told to ignore it

def sleeper():
    run(["sleep", "1000"], hint="", deadline=Deadline.after(900, "sleep"))

def waiter():
    with held(Path(sys.argv[1]), Deadline.after(900, "the lock"), lambda: print("waiting", flush=True)):
        pass

side_by_side({1: sleeper, 2: waiter}, RuntimeError, workers=2)
"""


def test_what_is_refused_is_told_by_piece_and_stops_no_other() -> None:
    done: list[int] = []

    def refuse() -> None:
        raise HostError("no such image")

    pieces: dict[str, Callable[[], None]] = {"a": refuse, "b": partial(done.append, 1), "c": partial(done.append, 2)}
    refused = side_by_side(pieces, HostError, workers=2)
    assert list(refused) == ["a"]
    assert refused["a"].message == "no such image"
    assert sorted(done) == [1, 2]


def test_pieces_run_side_by_side_but_no_more_than_the_workers() -> None:
    barrier = threading.Barrier(2, timeout=10)
    running: list[int] = []
    most: list[int] = []

    def piece() -> None:
        running.append(1)
        most.append(len(running))
        barrier.wait()  # would break if they ran one after the other
        running.pop()

    assert side_by_side(dict.fromkeys(range(4), piece), HostError, workers=2) == {}
    assert max(most) == 2


def test_nothing_to_do_is_done() -> None:
    assert side_by_side({}, HostError, workers=4) == {}


def test_who_breaks_stops_the_others_and_is_raised() -> None:
    heard = threading.Event()

    def patient() -> None:
        while not stopped():
            time.sleep(0.01)
        heard.set()

    def broken() -> None:
        raise ZeroDivisionError

    later: list[int] = []
    with pytest.raises(ZeroDivisionError):
        side_by_side({1: patient, 2: broken, 3: partial(later.append, 3)}, HostError, workers=2)
    assert heard.is_set()
    assert later == []


def test_a_program_of_a_stopped_piece_is_killed() -> None:
    def sleeper() -> None:
        run(["sleep", "1000"], hint="", deadline=Deadline.after(900, "sleep"))

    def broken() -> None:
        while not _sleepers(psutil.Process()):
            time.sleep(0.01)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        side_by_side({1: sleeper, 2: broken}, HostError, workers=2)
    assert _sleepers(psutil.Process()) == []


def test_ctrl_c_ends_programs_and_waits_for_locks(tmp_path: Path) -> None:
    with held(tmp_path / "lock", Deadline.after(5, "the lock")):
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, tmp_path / "lock"], stdout=subprocess.PIPE)
        assert process.stdout is not None
        with process, process.stdout:
            assert process.stdout.readline() == b"waiting\n"
            try:
                while not (sleepers := _sleepers(psutil.Process(process.pid))):
                    time.sleep(0.01)
                process.send_signal(signal.SIGINT)
                assert process.wait(20) == -signal.SIGINT
            finally:
                process.kill()
    assert psutil.wait_procs(sleepers, 5)[1] == []


def test_what_is_done_ahead_runs_beside_the_block_and_gives_way_to_it() -> None:
    begun, seen = threading.Event(), []

    def piece() -> None:
        begun.set()
        time.sleep(0.05)
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    mine = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    with ahead(piece, HostError):
        assert begun.wait(10)
    assert seen == [min(19, mine + 10)]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == mine


def test_what_is_done_ahead_may_be_refused_but_not_break() -> None:
    def refuse() -> None:
        raise HostError("it does not build")

    with ahead(refuse, HostError):
        pass
    with pytest.raises(ZeroDivisionError), ahead(lambda: 1 / 0, HostError):
        pass


def test_what_is_done_ahead_ends_when_the_block_is_interrupted() -> None:
    """Programs that are started by pieces of the piece, too."""

    def sleeper() -> None:
        run(["sleep", "1000"], hint="", deadline=Deadline.after(900, "sleep"))

    def pieces() -> None:
        side_by_side({1: sleeper}, HostError, workers=1)

    with pytest.raises(KeyboardInterrupt), ahead(pieces, HostError):
        while not _sleepers(psutil.Process()):
            time.sleep(0.01)
        raise KeyboardInterrupt
    assert _sleepers(psutil.Process()) == []


def _sleepers(parent: psutil.Process) -> list[psutil.Process]:
    return [child for child in parent.children(recursive=True) if child.name() == "sleep"]
