"""A machine's console: QEMU logs it to a file, this reads the file in bounded pieces, pexpect talks to it.

A console that prints more than 64 MiB in one scenario is flooding, and ends it; an ordinary one prints under 1 MiB.
``HARNESS_CONSOLE_LIMIT_MIB`` in the environment sets another limit.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pexpect
from pexpect.socket_pexpect import SocketSpawn
from tenacity import RetryError, Retrying, retry_if_result, wait_fixed

from harness.deadline import Deadline, DeadlineExceeded
from harness.errors import GuestError, HostError
from harness.oops import Report, Scanner, Severity, sanitize, tail_lines
from harness.regex import compiled

LIMIT_VARIABLE = "HARNESS_CONSOLE_LIMIT_MIB"
_LIMIT = os.environ.get(LIMIT_VARIABLE, "")
FLOOD_BYTES = (int(_LIMIT) if _LIMIT.isdecimal() and int(_LIMIT) else 64) << 20
_BLOCK_BYTES = 1 << 20
_POLL_S = 0.02
_TAIL_BYTES = 16 << 10


class ConsoleFlood(GuestError):
    """A guest printed more than a console may hold."""


class Console:
    """One layer's console.

    :param layer: whose console it is: ``guest``, ``dom0``, ``xen``, or ``qemu`` for QEMU's own output.
    :param kind: what prints on it, for the crash patterns: ``linux``, ``xen`` or ``qemu``.
    :param log: the file that grows with it; it need not exist yet.
    :param socket_path: the Unix socket on which QEMU serves it; None when nobody can type on it.
    :param also: layers, with their kinds, that print on it as well, as Xen does on dom0's.

    ``ends_machine`` says whether the machine is at its end when what prints on it is.
    """

    ends_machine = True

    def __init__(
        self,
        layer: str,
        kind: str,
        log: Path,
        socket_path: Path | None = None,
        also: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.layer = layer
        self.log = log
        self._socket_path = socket_path
        self._scanners = [Scanner(*each) for each in ((layer, kind), *also)]
        self._position = 0
        self._marker: bytes | None = None
        self._marker_seen = False
        self._carry = b""

    def poll(self) -> list[Report]:
        """Read what is new and give the crashes whose reports are whole with it.

        :raises ConsoleFlood: when the console has said more than it may.
        """
        reports: list[Report] = []
        for block in self._new_blocks():
            for scanner in self._scanners:
                reports += scanner.feed(block)
            self._look_for_marker(block)
        if self._position > FLOOD_BYTES:
            raise ConsoleFlood(
                f"the console printed more than {FLOOD_BYTES >> 20} MiB",
                layer=self.layer,
                tail=self.tail(),
                log=self.log,
                hint=f"what prints so much? {LIMIT_VARIABLE} allows more, for a scenario that means it",
            )
        return reports

    def _new_blocks(self) -> Iterator[bytes]:
        if not self.log.exists():
            return
        with self.log.open("rb") as file:
            file.seek(self._position)
            while self._position <= FLOOD_BYTES and (block := file.read(_BLOCK_BYTES)):
                self._position += len(block)
                yield block

    def _look_for_marker(self, block: bytes) -> None:
        if self._marker is not None and not self._marker_seen:
            window = self._carry + block
            self._marker_seen = self._marker in window
            self._carry = window[-len(self._marker) :]

    def wait_for(self, marker: bytes, deadline: Deadline, check: Callable[[], None]) -> None:
        """Wait until the console shows ``marker`` in what was not read before.

        :param check: called at each look; it polls this console and raises when waiting has become pointless.
        :raises DeadlineExceeded: when time is up.
        """
        self._marker, self._marker_seen, self._carry = marker, False, b""

        def seen() -> bool:
            check()
            return self._marker_seen

        try:
            Retrying(
                retry=retry_if_result(lambda found: not found),
                wait=wait_fixed(_POLL_S),
                stop=lambda _: deadline.expired,
            )(seen)
        except RetryError:
            raise DeadlineExceeded(f"timed out waiting for {deadline.what}") from None
        finally:
            self._marker = None

    def finish(self) -> tuple[Report, ...]:
        """Read the rest, close open reports, and give all of them."""
        with suppress(ConsoleFlood):  # whoever polled first was told
            self.poll()
        for scanner in self._scanners:
            scanner.finish()
        return self.reports

    @property
    def reports(self) -> tuple[Report, ...]:
        """The crashes seen so far."""
        return tuple(report for scanner in self._scanners for report in scanner.reports)

    @property
    def pending(self) -> Report | None:
        """A crash whose report is not whole yet, as far as it has been told; the worst of several."""
        found = [scanner.pending for scanner in self._scanners if scanner.pending is not None]
        return max(found, key=lambda report: report.severity is Severity.FATAL, default=None)

    def tail(self, count: int = 20) -> tuple[str, ...]:
        """The last lines, fit to be shown on a terminal."""
        if not self.log.exists():
            return ()
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - _TAIL_BYTES))
            return tail_lines(file.read(), count)

    @contextmanager
    def dialogue(self) -> Iterator[Dialogue]:
        """Talk to whoever listens on the console, through pexpect.

        :raises HostError: when the console has no socket, or QEMU refuses the connection.
        """
        if self._socket_path is None:
            raise HostError("nobody can type on this console", layer=self.layer)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            try:
                connection.connect(str(self._socket_path))
            except OSError as error:
                raise HostError(f"cannot reach the console: {error}", layer=self.layer) from error
            yield Dialogue(self, connection)


class Dialogue:
    """An interactive exchange on a console."""

    def __init__(self, console: Console, connection: socket.socket) -> None:
        self._console = console
        self._spawn = SocketSpawn(connection, maxread=4096, searchwindowsize=8192)

    def send_line(self, line: str) -> None:
        """Type a line and press Enter.

        :raises HostError: when QEMU has closed the console.
        """
        try:
            self._spawn.send(line + "\r")
        except OSError as error:
            raise self._closed() from error

    def expect(self, pattern: str, deadline: Deadline) -> str:
        """Wait for a regular expression and give what it matched.

        :raises DeadlineExceeded: when it does not show up in time.
        :raises HostError: when QEMU has closed the console.
        """
        try:
            # At 0, pexpect would find the socket non-blocking, and fail.
            wanted = compiled(pattern.encode(), dot_matches_newline=True)
            self._spawn.expect_list([wanted], timeout=max(deadline.remaining_s, _POLL_S))
        except (pexpect.EOF, ConnectionError) as error:
            raise self._closed() from error
        except pexpect.TIMEOUT:
            raise DeadlineExceeded(
                f"the console did not show {pattern!r}",
                layer=self._console.layer,
                tail=self._console.tail(),
                log=self._console.log,
            ) from None
        assert isinstance(self._spawn.after, bytes)
        return sanitize(self._spawn.after)

    def _closed(self) -> HostError:
        return HostError(
            "the console's connection broke",
            layer=self._console.layer,
            tail=self._console.tail(),
            log=self._console.log,
        )
