"""A terminal joined to a guest: who ended it, and that nothing of a script's output is lost."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Thread

import paramiko
import pytest

from harness.errors import GuestCrash
from harness.guest.identity import Identity
from harness.guest.ssh import Journal, Ssh
from harness.guest.terminal import End, join
from tests.fake.conftest import soon
from tests.fake.guest import FakeGuest, Session


def healthy() -> None:
    """Nothing is wrong with the machine."""


class Keyboard:
    """What stands in for standard input, and what standard output got."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stack: ExitStack, output: pytest.CaptureFixture[bytes]) -> None:
        reading, self._typing = os.pipe()
        monkeypatch.setattr(sys, "stdin", stack.enter_context(os.fdopen(reading)))
        self._output = output
        stack.callback(self.end)

    def type(self, keys: bytes) -> None:
        """Type something."""
        os.write(self._typing, keys)

    def end(self) -> None:
        """A script's input is at its end."""
        if self._typing >= 0:
            os.close(self._typing)
            self._typing = -1

    def screen(self) -> bytes:
        """What was shown since the last call."""
        return self._output.readouterr().out


@pytest.fixture
def stack(nothing_leaks: None) -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def keyboard(monkeypatch: pytest.MonkeyPatch, stack: ExitStack, capsysbinary: pytest.CaptureFixture[bytes]) -> Keyboard:
    return Keyboard(monkeypatch, stack, capsysbinary)


@pytest.fixture
def shell(stack: ExitStack, tmp_path: Path) -> Callable[[Callable[[Session], None]], paramiko.Channel]:
    """Opens a shell in a guest, given what the shell does."""

    def opened(program: Callable[[Session], None]) -> paramiko.Channel:
        identity = Identity.generate()
        guest = stack.enter_context(FakeGuest(identity, commands={"shell": program}))
        ssh = Ssh.connect(
            guest.port,
            identity,
            layer="guest",
            journal=Journal(tmp_path / "ssh.jsonl"),
            check=healthy,
            deadline=soon(),
        )
        stack.callback(ssh.close)
        channel = ssh.open_shell(None)
        stack.callback(channel.close)
        return channel

    return opened


def says_and_exits(status: int) -> Callable[[Session], None]:
    """A shell that reads all of its input and then ends."""

    def program(session: Session) -> None:
        while session.channel.recv(1 << 16):
            pass
        session.channel.sendall(b"done\n" * 100_000)
        session.exit(status)

    return program


@pytest.mark.parametrize("status", [0, 3, -1], ids=["well", "with a status", "by a signal"])
def test_a_shell_that_ends(
    keyboard: Keyboard, shell: Callable[[Callable[[Session], None]], paramiko.Channel], status: int
) -> None:
    channel = shell(says_and_exits(status))
    keyboard.type(b"work\n")
    keyboard.end()
    assert join(channel, healthy, patience_s=30) is End.LEFT
    assert keyboard.screen() == b"done\n" * 100_000


def test_a_guest_that_is_gone(
    keyboard: Keyboard, shell: Callable[[Callable[[Session], None]], paramiko.Channel]
) -> None:
    """A connection that breaks looks like a shell's end at first."""

    def program(session: Session) -> None:
        session.channel.recv(1 << 16)
        session.drop()

    channel = shell(program)
    keyboard.type(b"reboot -f\n")
    assert join(channel, healthy, patience_s=30) is End.BROKEN


def test_keys_for_a_guest_that_is_gone(
    keyboard: Keyboard, shell: Callable[[Callable[[Session], None]], paramiko.Channel]
) -> None:
    channel = shell(lambda session: session.drop())
    channel.get_transport().join(10)
    keyboard.type(b"too late\n")
    assert join(channel, healthy, patience_s=30) is End.BROKEN


def console(stack: ExitStack, answer: Callable[[socket.socket], None]) -> socket.socket:
    """A console behind which somebody listens."""
    ours, theirs = socket.socketpair()
    stack.enter_context(ours)
    thread = Thread(target=answer, args=(theirs,))
    thread.start()
    stack.callback(thread.join, 10)
    stack.enter_context(theirs)
    return ours


def test_a_console_is_left_when_its_shell_has_done_all(keyboard: Keyboard, stack: ExitStack) -> None:
    """However long the shell is silent meanwhile; what was typed comes back first, as on any terminal."""

    def shell(stream: socket.socket) -> None:
        keys = b""
        while not keys.endswith(b"end' of input\n"):
            keys += stream.recv(1 << 16)
        stream.sendall(keys.replace(b"\n", b"\r\n"))
        time.sleep(1)
        stream.sendall(b"42 answers\r\nharness: end of in")
        time.sleep(0.1)
        stream.sendall(b"put\r\n")

    keyboard.type(b"echo $((6 * 7)) answers")
    keyboard.end()
    began = time.monotonic()
    assert join(console(stack, shell), healthy, patience_s=60) is End.LEFT
    assert time.monotonic() - began < 30
    assert b"42 answers\r\n" in keyboard.screen()


def test_a_console_without_a_shell_is_left_when_it_is_silent(keyboard: Keyboard, stack: ExitStack) -> None:
    keyboard.end()
    began = time.monotonic()
    assert join(console(stack, lambda stream: stream.sendall(b"busy\n")), healthy, patience_s=0.5) is End.LEFT
    assert time.monotonic() - began >= 0.5
    assert keyboard.screen() == b"busy\n"


def test_a_console_that_is_closed(keyboard: Keyboard, stack: ExitStack) -> None:
    """Only QEMU's end closes one."""
    assert join(console(stack, lambda stream: stream.close()), healthy, patience_s=30) is End.BROKEN


def test_the_way_out(keyboard: Keyboard, stack: ExitStack) -> None:
    keyboard.type(b"\x1d")
    assert join(console(stack, lambda _: None), healthy, patience_s=30) is End.LEFT


def test_a_crash_is_told(keyboard: Keyboard, stack: ExitStack) -> None:
    def crashed() -> None:
        raise GuestCrash("kernel panic")

    with pytest.raises(GuestCrash):
        join(console(stack, lambda _: None), crashed, patience_s=30)
