"""A person's terminal, joined to a guest's shell or console."""

from __future__ import annotations

import os
import select
import shutil
import socket
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import paramiko

from harness.deadline import Deadline

#: Ctrl-], as telnet has it: leaves the guest.
ESCAPE = b"\x1d"
_POLL_S = 0.2
_SILENCE_S = 5.0

Stream = paramiko.Channel | socket.socket


@contextmanager
def _raw(descriptor: int) -> Iterator[None]:
    """Let every key through to the guest, where the descriptor is a terminal."""
    if not os.isatty(descriptor):
        yield
        return
    saved = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, saved)


def join(stream: Stream, check: Callable[[], None]) -> None:
    """Carry keys to the guest and its output back, until either side ends or the person types Ctrl-].

    A console knows no end of input: when a script's has ended, it is left once it has been silent for a while.

    :param check: called now and then; raises when the machine has gone.
    """
    keyboard, screen = sys.stdin.fileno(), sys.stdout.fileno()
    listening = [keyboard, stream]
    silence: Deadline | None = None
    with _raw(keyboard):
        while silence is None or not silence.expired:
            ready, _, _ = select.select(listening, [], [], _POLL_S)
            if silence is not None and ready:
                silence = _silence()
            if stream in ready:
                data = stream.recv(1 << 16)
                if not data:
                    return
                os.write(screen, data)
            if keyboard in ready:
                keys = os.read(keyboard, 1 << 12)
                if ESCAPE in keys:
                    return
                if keys:
                    stream.sendall(keys)
                else:  # end of a script's input: what it asked for may still be on its way
                    listening.remove(keyboard)
                    if isinstance(stream, paramiko.Channel):
                        stream.shutdown_write()
                    else:
                        silence = _silence()
            check()


def _silence() -> Deadline:
    return Deadline.after(_SILENCE_S, "the console to say more")


def window() -> tuple[int, int]:
    """Columns and lines of the person's terminal."""
    size = shutil.get_terminal_size()
    return size.columns, size.lines
