"""Ctrl-C, SIGTERM and SIGHUP: each unwinds the stack, once, and none tears up what is being torn down.

A second Ctrl-C while machines are ended and logs are written would leave behind what the first was about to remove.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)
#: What ends takes less. A signal that comes later means that the first was lost, in a destructor for example.
_UNWINDING_S = 15.0


class _Unwinder:
    """Raises KeyboardInterrupt, and lets that unwind before it does so again."""

    def __init__(self) -> None:
        self._raised = -_UNWINDING_S

    def __call__(self, number: int, _frame: object) -> None:
        now = time.monotonic()
        if now - self._raised > _UNWINDING_S:
            self._raised = now
            raise KeyboardInterrupt(signal.Signals(number).name)


def unwind_on_signals() -> None:
    """Let these signals raise KeyboardInterrupt, unless this process was told to ignore them.

    Only the main thread can set that up; the others do not get signals.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    unwinder = _Unwinder()
    for number in _SIGNALS:
        if signal.getsignal(number) in _DEFAULTS:
            signal.signal(number, unwinder)


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Let the block end before a signal that comes meanwhile takes effect. The block must be one that ends soon."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    # None is a handler that was not set from Python: it cannot be put back.
    changed = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in changed:
            signal.signal(number, lambda number, _frame: arrived.append(number))
        yield
    finally:
        for number, handler in changed.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])
