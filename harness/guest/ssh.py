"""The one door to SSH: commands in a guest, with both streams drained and every wait under a deadline."""

from __future__ import annotations

import json
import logging
import shlex
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Event, Lock, Timer

import paramiko
from tenacity import RetryError, Retrying, retry_if_exception_type, wait_fixed

from harness.deadline import Deadline
from harness.errors import CommandFailed, GuestHang, HostError, LostConnection
from harness.guest.identity import Identity
from harness.oops import sanitize

_TRANSIENT = (paramiko.SSHException, OSError, EOFError)
_OUTPUT_LIMIT = 8 << 20
_SHOWN = 4096
_POLL_S = 0.05
_CHUNK_BYTES = 1 << 15
#: How long a server may be silent at first, and how often it is given half as much time again: up to 12.8 s.
_SILENT_S = 0.5
_GROWS = 8
#: How long a connection may take to be gone after its channels are.
_END_S = 1.0
#: What a command printed may come after its exit status; a process that it left running may hold its output for ever.
_LAST_WORDS_S = 2.0

# What breaks is raised; paramiko would tell it again, with a traceback, to the person at the terminal.
logging.getLogger("paramiko").addHandler(logging.NullHandler())
logging.getLogger("paramiko").propagate = False


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ended in a guest.

    :param status: its exit status; -1 when a signal ended it.
    :param seconds: wall time on this host.
    """

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: bytes
    seconds: float

    @property
    def text(self) -> str:
        """Standard output as text, free of control characters."""
        return sanitize(self.stdout).strip()

    @property
    def error_text(self) -> str:
        """Standard error as text, free of control characters."""
        return sanitize(self.stderr).strip()


class Journal:
    """``ssh.jsonl``: what was asked of a guest and what it answered, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()

    def record(self, **entry: object) -> None:
        """Append an entry."""
        line = json.dumps({"at": round(time.time(), 3), **entry}, default=str)
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


class Ssh:
    """A connection to a guest's SSH server.

    :param layer: whose it is, for errors.
    :param check: called while waiting; raises when the machine has crashed or gone.
    """

    def __init__(self, transport: paramiko.Transport, layer: str, journal: Journal, check: Callable[[], None]) -> None:
        self._transport = transport
        self.layer = layer
        self.journal = journal
        self.check = check

    @classmethod
    def connect(
        cls,
        port: int,
        identity: Identity,
        *,
        layer: str,
        journal: Journal,
        check: Callable[[], None],
        deadline: Deadline,
    ) -> Ssh:
        """Connect to 127.0.0.1, pin the host key, log in as root with the run's key.

        slirp accepts connections before the guest listens, and knocks there again only after 6 s when the guest's
        network card was not up yet. So a refused or silent one is tried again until the deadline, with more patience
        each time.

        :raises GuestHang: when no SSH server answers in time.
        :raises HostError: when another machine answers than the one that was booted.
        """

        attempts = count()

        def attempt() -> paramiko.Transport:
            check()
            return _open_transport(port, identity, deadline, _SILENT_S * 1.5 ** min(next(attempts), _GROWS))

        try:
            transport = Retrying(
                retry=retry_if_exception_type(_TRANSIENT), wait=wait_fixed(_POLL_S), stop=lambda _: deadline.expired
            )(attempt)
        except RetryError as error:
            check()
            raise GuestHang(f"no SSH server answered in time: {error.last_attempt.exception()}", layer=layer) from None
        return cls(transport, layer, journal, check)

    def run(
        self, argv: Sequence[str], *, deadline: Deadline, stdin: bytes = b"", check_status: bool = True
    ) -> Completed:
        """Run a command and wait for its end.

        :param argv: program and arguments; quoted here and nowhere else.
        :raises CommandFailed: when it exits with anything but 0, unless ``check_status`` is false.
        :raises GuestHang: when it has not ended by the deadline.
        :raises LostConnection: when the connection breaks.
        """
        started = time.monotonic()
        channel = self.open(argv, deadline)
        try:
            stdout, stderr = self._drain(channel, argv, stdin, deadline)
            status = channel.recv_exit_status()
            if status == -1:  # a signal's work, unless the whole connection is at its end
                self._transport.join(_END_S)
                if not self._transport.is_alive():
                    raise EOFError("it closed without an exit status")
        except _TRANSIENT as error:
            raise self._lost(argv, error) from error
        finally:
            close_channel(channel)
        completed = Completed(tuple(argv), status, stdout, stderr, round(time.monotonic() - started, 3))
        self.journal.record(
            layer=self.layer,
            argv=argv,
            status=status,
            seconds=completed.seconds,
            stdout=sanitize(stdout[:_SHOWN]),
            stderr=sanitize(stderr[:_SHOWN]),
        )
        if check_status and status != 0:
            said = sanitize(stderr or stdout).strip().splitlines()
            how = "was ended by a signal" if status == -1 else f"exited with status {status}"
            raise CommandFailed(f"`{shlex.join(argv)}` {how}", layer=self.layer, tail=said[-20:])
        return completed

    def open(self, argv: Sequence[str], deadline: Deadline) -> paramiko.Channel:
        """Start a command and give its channel.

        :raises GuestHang: when the guest has not started it by the deadline.
        """
        with self._new_channel(argv, deadline) as channel:
            channel.exec_command(shlex.join(argv))
        return channel

    @contextmanager
    def _new_channel(self, argv: Sequence[str], deadline: Deadline) -> Iterator[paramiko.Channel]:
        """A channel on which the block asks for something; it stays open unless that fails.

        paramiko waits for ever for the answer to a request, so the channel is closed under it at the deadline.
        """
        remaining_s = deadline.remaining_s + _POLL_S
        try:
            channel = self._transport.open_session(timeout=remaining_s)
            timer = Timer(remaining_s, close_channel, [channel])
            timer.daemon = True
            timer.start()
            try:
                yield channel
            except BaseException:
                close_channel(channel)
                raise
            finally:
                timer.cancel()
                timer.join()
        except _TRANSIENT as error:
            if deadline.expired and self._transport.is_active():
                self.check()
                raise GuestHang(
                    f"`{shlex.join(argv)}` did not start in time ({deadline.what})", layer=self.layer
                ) from error
            raise self._lost(argv, error) from error

    def forward(self, port: int, deadline: Deadline) -> paramiko.Channel:
        """A connection to a port of the guest's own loopback.

        :raises LostConnection: nobody listens there, or the connection broke.
        """
        try:
            return self._transport.open_channel(
                "direct-tcpip", ("127.0.0.1", port), ("127.0.0.1", 0), timeout=deadline.remaining_s + _POLL_S
            )
        except _TRANSIENT as error:
            raise self._lost((f"a connection to port {port}",), error) from error

    def stream(self, argv: Sequence[str], deadline: Deadline) -> Stream:
        """Start a command whose output is read as it comes; raises as :meth:`open`."""
        return Stream(self.open(argv, deadline))

    def open_shell(self, window: tuple[int, int] | None) -> paramiko.Channel:
        """Start a login shell and give its channel.

        :param window: columns and lines of the terminal it gets; None for no terminal.
        """
        with self._new_channel(["sh"], Deadline.after(30, "a shell")) as channel:
            if window is not None:
                channel.get_pty("xterm", *window)
            channel.set_combine_stderr(True)
            channel.invoke_shell()
        return channel

    def _drain(
        self, channel: paramiko.Channel, argv: Sequence[str], stdin: bytes, deadline: Deadline
    ) -> tuple[bytes, bytes]:
        """Read both streams to their end: a command that fills one of them past the window would block.

        Its input is fed meanwhile, because it need not read that before it writes, or at all.
        """
        streams = (bytearray(), bytearray())
        last_words: Deadline | None = None
        rest = _feed(channel, memoryview(stdin))
        while True:
            while channel.recv_ready():
                streams[0].extend(channel.recv(1 << 16))
            while channel.recv_stderr_ready():
                streams[1].extend(channel.recv_stderr(1 << 16))
            if channel.exit_status_ready() and not channel.recv_ready() and not channel.recv_stderr_ready():
                last_words = last_words or Deadline.after(_LAST_WORDS_S, "the last of a command's output")
                if channel.eof_received or channel.closed or last_words.expired:
                    return bytes(streams[0]), bytes(streams[1])
            if max(map(len, streams)) > _OUTPUT_LIMIT:
                raise CommandFailed(
                    f"`{shlex.join(argv)}` printed more than {_OUTPUT_LIMIT >> 20} MiB", layer=self.layer
                )
            self.check()
            if deadline.expired:
                self.journal.record(
                    layer=self.layer, argv=argv, timed_out=True, stdout=sanitize(bytes(streams[0][:_SHOWN]))
                )
                raise GuestHang(f"`{shlex.join(argv)}` did not end in time ({deadline.what})", layer=self.layer)
            if rest and channel.send_ready():
                rest = _feed(channel, rest)
            else:
                wait_for_data(channel)

    def _lost(self, argv: Sequence[str], error: BaseException) -> LostConnection:
        self.check()  # a crashed machine explains itself better than a broken connection does
        reason = str(error) or type(error).__name__
        return LostConnection(f"the SSH connection broke during `{shlex.join(argv)}`: {reason}", layer=self.layer)

    def close(self) -> None:
        """Drop the connection."""
        self._transport.close()


class Stream:
    """The output of a command that goes on. It ends with its connection."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel

    def read(self) -> bytes:
        """What has come and was not read before; never waits, and never fails."""
        data = bytearray()
        with suppress(*_TRANSIENT):
            while self._channel.recv_stderr_ready():
                self._channel.recv_stderr(1 << 16)  # unread, it would fill the window
            while self._channel.recv_ready():
                data += self._channel.recv(1 << 16)
        return bytes(data)

    def close(self) -> None:
        """End the command."""
        close_channel(self._channel)


def _feed(channel: paramiko.Channel, rest: memoryview) -> memoryview:
    """Send as much of a command's input as it takes now, its end included, and give what is left."""
    try:
        while rest and channel.send_ready():
            rest = rest[channel.send(bytes(rest[:_CHUNK_BYTES])) :]
        if not rest:
            channel.shutdown_write()
    except OSError:
        if not channel.closed:
            raise
        return rest[:0]  # it ended without having read all of it
    return rest


def close_channel(channel: paramiko.Channel) -> None:
    """Close a channel, whose other end may be dying at this moment: paramiko would tell that with an EOFError."""
    with suppress(*_TRANSIENT):
        channel.close()


def wait_for_data(channel: paramiko.Channel) -> None:
    """Wait a moment for a channel to have something to read, or an exit status.

    Not with ``select``: that takes a pipe of paramiko's, and a channel that is closed while its peer still sends closes
    the pipe under paramiko's thread, which then drops the whole connection.
    """
    if channel.eof_received:
        channel.status_event.wait(_POLL_S)
        return
    arrived = Event()
    channel.in_buffer.set_event(arrived)
    channel.in_stderr_buffer.set_event(arrived)
    # Setting it cleared it: what had come before must be looked for once more.
    if not channel.recv_ready() and not channel.recv_stderr_ready():
        arrived.wait(_POLL_S)


def _open_transport(port: int, identity: Identity, deadline: Deadline, patience_s: float) -> paramiko.Transport:
    connection = socket.create_connection(("127.0.0.1", port), timeout=min(5.0, deadline.remaining_s + 0.1))
    transport = paramiko.Transport(connection)
    try:
        options = transport.get_security_options()
        # The cheapest of what both ends have: a guest under TCG pays for each round of arithmetic.
        options.kex = ("curve25519-sha256@libssh.org",)
        options.key_types = ("ssh-ed25519",)
        options.ciphers = ("aes128-ctr",)
        options.digests = ("hmac-sha2-256",)
        transport.banner_timeout = patience_s
        transport.auth_timeout = max(1.0, min(30.0, deadline.remaining_s))
        transport.start_client(timeout=max(1.0, min(30.0, deadline.remaining_s)))
        if transport.get_remote_server_key().asbytes() != identity.host_key_blob:
            raise HostError(
                "another machine answers on the guest's port: its host key is not the one made for this run",
                hint="a QEMU of an earlier run may still hold the port; see `harness doctor`",
            )
        transport.auth_publickey("root", identity.client_pkey())
    except BaseException:
        transport.close()
        raise
    return transport
