"""A guest's SSH server on a loopback port: paramiko's server, in this process, that runs commands on this host."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from io import StringIO
from pathlib import Path
from threading import Event, Lock, Thread
from types import TracebackType
from typing import IO, Self

import paramiko
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from paramiko.common import AUTH_FAILED, AUTH_SUCCESSFUL, OPEN_SUCCEEDED

from harness.guest.identity import Identity
from harness.guest.probe import AGENT

Command = Callable[["Session"], None]

PROBES = Path(__file__).parents[2] / "harness" / "probes"
_OFFLINE = (OSError, EOFError, paramiko.SSHException)

# Not as the guest does it: on this host, the agent must not put itself and all above it out of the OOM killer's reach.
_AGENT = """\
import sys
sys.path[:0] = sys.argv[1:]
import agent
agent.survive = lambda: None
agent.main()
"""


class Session:
    """A command that a client asked for.

    :param argv: what it asked for, split as a shell would.
    """

    def __init__(self, guest: FakeGuest, argv: Sequence[str], channel: paramiko.Channel) -> None:
        self.guest = guest
        self.argv = tuple(argv)
        self.channel = channel

    @property
    def transport(self) -> paramiko.Transport:
        """The connection that it came over."""
        return self.channel.get_transport()

    def settle(self) -> None:
        """Wait until the client has been told that its command started."""
        with self.guest.lock:
            self.transport.global_request("are-you-there@harness", wait=True)

    def exit(self, status: int) -> None:
        """End as a program does that exits, or for a negative status as one that a signal kills (RFC 4254, 6.10)."""
        self.channel.shutdown_write()
        if status >= 0:
            self.channel.send_exit_status(status)
        else:
            message = paramiko.Message()
            message.add_byte(bytes([98]))  # SSH_MSG_CHANNEL_REQUEST
            message.add_int(self.channel.remote_chanid)
            message.add_string("exit-signal")
            message.add_boolean(False)
            message.add_string("KILL")
            message.add_boolean(False)
            message.add_string("")
            message.add_string("")
            self.transport._send_user_message(message)  # type: ignore[attr-defined]
        self.channel.close()

    def drop(self) -> None:
        """Break the connection without a word, as a guest does that is gone."""
        self.transport.sock.shutdown(socket.SHUT_RDWR)


def run_here(session: Session) -> None:
    """Run the command on this host, joined to the channel."""
    argv = session.argv
    if argv == AGENT:
        directories = (session.guest.probes, PROBES)
        argv = (sys.executable, "-I", "-S", "-u", "-c", _AGENT, *map(str, filter(None, directories)))
    channel = session.channel
    with session.guest.start(argv) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        threads = [
            Thread(target=_type, args=(channel, process.stdin)),
            Thread(target=_carry, args=(process.stdout, channel.sendall)),
            Thread(target=_carry, args=(process.stderr, channel.sendall_stderr)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads[1:]:
            thread.join()
        status = process.wait()
        with suppress(*_OFFLINE):
            session.exit(status)
        channel.close()
        threads[0].join()


def _type(channel: paramiko.Channel, target: IO[bytes]) -> None:
    with suppress(*_OFFLINE), target:
        while data := channel.recv(1 << 16):
            target.write(data)
            target.flush()


def _carry(source: IO[bytes], send: Callable[[bytes], None]) -> None:
    with suppress(*_OFFLINE):
        while data := source.read1(1 << 16):  # type: ignore[attr-defined]
            send(data)


class _Interface(paramiko.ServerInterface):
    """What the server allows."""

    def __init__(self, guest: FakeGuest) -> None:
        self._guest = guest

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        if self._guest.frozen_at == "login":
            self._guest.thaw.wait(60)
        wanted = self._guest.identity.client_pkey()
        if username == "root" and key.asbytes() == wanted.asbytes() and self._guest.lets_in:
            return AUTH_SUCCESSFUL
        return AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        if self._guest.frozen_at == "open":
            self._guest.thaw.wait(60)
        return OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        if self._guest.frozen_at == "exec":
            self._guest.thaw.wait(60)
        self._guest.begin(shlex.split(command.decode()), channel)
        return True

    def check_channel_pty_request(self, channel: paramiko.Channel, *_: object) -> bool:
        return True

    def check_channel_shell_request(self, channel: paramiko.Channel) -> bool:
        self._guest.begin(["shell"], channel)
        return True


class FakeGuest:
    """A guest's SSH server. A context manager: nothing of it outlives the block.

    :param identity: whose host key it shows and whose client key it lets in.
    :param commands: what stands in for commands of that name; others run on this host.
    :param lets_in: whether the client's key is accepted.
    :param deaf_to: so many connections are accepted and dropped before one is served, as slirp does.
    :param silent_to: so many are held, before that, and nothing is said on them.
    :param frozen_at: ``login``, ``open`` or ``exec``: where the server stops answering until :attr:`thaw` is set.
    :param probes: a directory with probe modules of the test's own.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        commands: Mapping[str, Command] | None = None,
        lets_in: bool = True,
        deaf_to: int = 0,
        silent_to: int = 0,
        frozen_at: str = "",
        probes: Path | None = None,
    ) -> None:
        self.identity = identity
        self.commands = dict(commands or {})
        self.lets_in = lets_in
        self.frozen_at = frozen_at
        self.thaw = Event()
        self.probes = probes
        self._processes: list[subprocess.Popen[bytes]] = []
        self._starting = Lock()
        self._closed = False
        self.asked: list[tuple[str, ...]] = []
        self.lock = Lock()
        self._deaf_to = deaf_to
        self._silent_to = silent_to
        self._held: list[socket.socket] = []
        self._transports: list[paramiko.Transport] = []
        self._threads: list[Thread] = []
        pem = identity.host_key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
        self._host_key = paramiko.Ed25519Key.from_private_key(StringIO(pem))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = Thread(target=self._accept, name="fake-guest")
        self._acceptor.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if len(self._held) < self._silent_to:
                self._held.append(connection)
                continue
            if self._deaf_to:
                self._deaf_to -= 1
                connection.close()
                continue
            transport = paramiko.Transport(connection)
            transport.add_server_key(self._host_key)
            self._transports.append(transport)
            with suppress(*_OFFLINE):
                transport.start_server(event=Event(), server=_Interface(self))

    def begin(self, argv: Sequence[str], channel: paramiko.Channel) -> None:
        """Run a command on a thread of its own."""
        session = Session(self, argv, channel)
        self.asked.append(session.argv)
        thread = Thread(target=self._run, args=(session,), name=f"fake-{argv[0]}")
        self._threads.append(thread)
        thread.start()

    def start(self, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a process of the guest's, with pipes, in a session of its own."""
        with self._starting:
            if self._closed:
                raise EOFError("the guest is gone")
            pipe = subprocess.PIPE
            process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
            self._processes.append(process)
            return process

    def _run(self, session: Session) -> None:
        with suppress(*_OFFLINE):
            session.settle()
            self.commands.get(session.argv[0], run_here)(session)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the server and all that it runs. Safe to call again."""
        self.thaw.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()
        for connection in self._held:
            connection.close()
        for transport in self._transports:
            with suppress(OSError):  # or its thread looks up only now and then
                transport.sock.shutdown(socket.SHUT_RDWR)
            transport.close()
        with self._starting:
            self._closed = True
        for process in self._processes:
            if process.poll() is None:
                with suppress(ProcessLookupError):  # it may end between the look and the signal
                    os.killpg(process.pid, signal.SIGKILL)
        for thread in (*self._transports, *self._threads):
            thread.join(10)
