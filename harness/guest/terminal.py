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
from enum import Enum

import paramiko

from harness.deadline import Deadline

#: Ctrl-], as telnet has it: leaves the guest.
ESCAPE = b"\x1d"
_POLL_S = 0.2
#: How long an exit status may take after the last of a shell's output.
_END_S = 2.0
#: Typed after a script's input on a console, which knows no end of input. The quotes keep its echo from being taken
#: for its output.
_END_COMMAND = b"\necho harness: 'end' of input\n"
_END_SAID = b"harness: end of input"

Stream = paramiko.Channel | socket.socket


class End(Enum):
    """How a person and a guest parted."""

    LEFT = "the person left, or the guest's shell ended"
    BROKEN = "the connection broke"


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


class _Screen:
    """Standard output, and whether the guest has said there that a script's input is at its end."""

    def __init__(self) -> None:
        self._tail = b""
        self.end_said = False

    def show(self, data: bytes) -> None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        window = self._tail + data
        self.end_said = self.end_said or _END_SAID in window
        self._tail = window[-len(_END_SAID) :]


def join(stream: Stream, check: Callable[[], None], *, patience_s: float) -> End:
    """Carry keys to the guest and its output back, until either side ends or the person types Ctrl-].

    A console knows no end of input. When a script's has ended, the console's shell is asked to say so after all else;
    where no shell listens, the console is left once it has been silent for a while.

    :param check: called now and then; raises when the machine has gone.
    :param patience_s: for how long a console may be silent after the end of a script's input.
    :return: whether somebody left, or the connection broke; the caller knows why it did.
    """
    keyboard, screen = sys.stdin.fileno(), _Screen()
    listening: list[int | Stream] = [keyboard, stream]
    silence: Deadline | None = None
    with _raw(keyboard):
        while silence is None or not (screen.end_said or silence.expired):
            ready, _, _ = select.select(listening, [], [], _POLL_S)
            if stream in ready:
                if not (data := _receive(stream)):
                    return _end_of(stream)
                screen.show(data)
                silence = silence and _silence(patience_s)
            if keyboard in ready:
                keys = os.read(keyboard, 1 << 12)
                if ESCAPE in keys:
                    return End.LEFT
                if not keys:
                    listening.remove(keyboard)
                    if isinstance(stream, socket.socket):
                        silence = _silence(patience_s)
                if not _send(stream, keys):
                    return _end_of(stream)
            check()
    return End.LEFT


def _silence(patience_s: float) -> Deadline:
    return Deadline.after(patience_s, "the console to say more")


def _receive(stream: Stream) -> bytes:
    """What came; nothing when the other end has closed, in whatever way."""
    try:
        return stream.recv(1 << 16)
    except OSError:
        return b""


def _send(stream: Stream, keys: bytes) -> bool:
    """Send keys, or that there are no more; whether the other end still listens."""
    try:
        if keys:
            stream.sendall(keys)
        elif isinstance(stream, socket.socket):
            stream.sendall(_END_COMMAND)
        else:
            stream.shutdown_write()
    except (OSError, EOFError, paramiko.SSHException):
        return False
    return True


def _end_of(stream: Stream) -> End:
    """Why a stream is at its end: a shell that ends has an exit status; a console ends only with its QEMU."""
    if isinstance(stream, socket.socket):
        return End.BROKEN
    stream.status_event.wait(_END_S)
    if stream.exit_status >= 0:
        return End.LEFT
    # A signal's work, unless the whole connection is at its end.
    transport = stream.get_transport()
    transport.join(_END_S)
    return End.LEFT if transport.is_alive() else End.BROKEN


def window() -> tuple[int, int]:
    """Columns and lines of the person's terminal."""
    size = shutil.get_terminal_size()
    return size.columns, size.lines
