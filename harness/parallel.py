"""Pieces of work side by side, or ahead of their time, which all end when the one who waits for them is interrupted."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from queue import Empty, SimpleQueue
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
Refusal = TypeVar("Refusal", bound=Exception)

#: Signals reach the main thread only between the calls that it makes, so it must not wait in one for long.
_LOOK_S = 0.2
#: What a piece of work has to unwind in, once it is to stop.
_UNWINDING_S = 5.0

#: What is done ahead gives way to what somebody waits for: what setpriority(2) adds for a thread and its children.
_AHEAD_NICE = 10

_stopped: ContextVar[threading.Event | None] = ContextVar("stopped", default=None)


def stopped() -> bool:
    """Whether the piece of work that calls this is to stop. What waits for long asks from time to time."""
    event = _stopped.get()
    return event is not None and event.is_set()


def side_by_side(work: Mapping[Key, Callable[[], None]], refusal: type[Refusal], *, workers: int) -> dict[Key, Refusal]:
    """Do all pieces of work, a few at a time.

    Each runs on a thread that lives as long as the piece does, so that programs which it starts can be made to die with
    it. When the caller is interrupted, or a piece raises anything but a ``refusal``, the others are told to stop.

    :param refusal: what a piece of work may raise.
    :param workers: how many at a time.
    :return: what was raised, by piece.
    """
    waiting: SimpleQueue[tuple[Key, Callable[[], None]]] = SimpleQueue()
    for item in work.items():
        waiting.put(item)
    refused: dict[Key, Refusal] = {}
    broken: list[BaseException] = []
    stop = threading.Event()

    def worker() -> None:
        _stopped.set(stop)
        while not stop.is_set():
            try:
                key, piece = waiting.get_nowait()
            except Empty:
                return
            try:
                piece()
            except refusal as error:
                refused[key] = error
            except BaseException as error:
                broken.append(error)
                stop.set()

    # Daemons: a piece that does not hear that it is to stop must not keep the process.
    threads = [threading.Thread(target=worker, daemon=True) for _ in range(min(workers, len(work)))]
    for thread in threads:
        thread.start()
    try:
        _wait(threads, stop)
    finally:
        _end(threads, stop)
    if broken:
        raise broken[0]
    return refused


@contextmanager
def ahead(piece: Callable[[], object], refusal: type[Exception]) -> Iterator[None]:
    """Do a piece of work beside the block, whose end waits for it; when the block raises, it is told to stop instead.

    :param refusal: what the piece may raise: whoever needs what it was to make will meet that again.
    """
    broken: list[BaseException] = []
    stop = threading.Event()

    def worker() -> None:
        _stopped.set(stop)
        mine = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, mine, os.getpriority(os.PRIO_PROCESS, mine) + _AHEAD_NICE)
        try:
            piece()
        except refusal:
            pass
        except BaseException as error:
            broken.append(error)

    thread = threading.Thread(target=worker, daemon=True)
    thread.start()
    try:
        yield
        _wait([thread], stop)
    finally:
        _end([thread], stop)
    if broken:
        raise broken[0]


def _wait(threads: Sequence[threading.Thread], stop: threading.Event) -> None:
    """Wait until they have ended; when the one who waits is itself a piece of work that is to stop, they are, too."""
    while any(thread.is_alive() for thread in threads):
        for thread in threads:
            thread.join(_LOOK_S)
        if stopped():
            stop.set()


def _end(threads: Sequence[threading.Thread], stop: threading.Event) -> None:
    """Tell them to stop, and give them a moment to unwind in."""
    stop.set()
    deadline = time.monotonic() + _UNWINDING_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
