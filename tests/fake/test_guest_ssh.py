"""Commands in a guest, over a real SSH connection to a server in this process."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from typing import Any

import paramiko
import pytest

from harness.deadline import Deadline
from harness.errors import CommandFailed, GuestCrash, GuestHang, HostError, LostConnection
from harness.guest import ssh as ssh_module
from harness.guest.identity import Identity
from harness.guest.ssh import Journal, Ssh
from tests.fake.conftest import soon
from tests.fake.guest import FakeGuest, Session

MIB = 1 << 20


def healthy() -> None:
    """Nothing is wrong with the machine."""


class Line:
    """A guest and the connections to it.

    :param check: what the machine is asked while something waits.
    """

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.identity = Identity.generate()
        self.log = directory / "ssh.jsonl"
        self.check: Callable[[], None] = healthy
        self._stack = stack

    def _check(self) -> None:
        self.check()

    def guest(self, **options: Any) -> FakeGuest:
        """A guest to connect to."""
        return self._stack.enter_context(FakeGuest(self.identity, **options))

    def connect(self, port: int, deadline: Deadline | None = None) -> Ssh:
        """A connection that is closed with the test."""
        connection = Ssh.connect(
            port,
            self.identity,
            layer="guest",
            journal=Journal(self.log),
            check=self._check,
            deadline=deadline or soon(),
        )
        self._stack.callback(connection.close)
        return connection

    def ssh(self, **options: Any) -> Ssh:
        """A connection to a guest."""
        return self.connect(self.guest(**options).port)

    def journal(self) -> list[dict[str, Any]]:
        """What was written down."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.fixture
def line(tmp_path: Path, nothing_leaks: None) -> Iterator[Line]:
    """A way to a guest."""
    with ExitStack() as stack:
        yield Line(tmp_path, stack)


def python(program: str) -> list[str]:
    """A command that runs a Python program in the guest, which is this host."""
    return [sys.executable, "-I", "-S", "-c", program]


# -- commands ----------------------------------------------------------------------------------------------------------


def test_a_command_gives_both_streams_and_its_status(line: Line) -> None:
    done = line.ssh().run(["sh", "-c", "echo out; echo err >&2; exit 3"], deadline=soon(), check_status=False)
    assert (done.status, done.stdout, done.stderr) == (3, b"out\n", b"err\n")
    assert (done.text, done.error_text) == ("out", "err")


def test_a_status_that_nobody_asked_for_is_an_error_with_what_was_said(line: Line) -> None:
    with pytest.raises(CommandFailed, match="`false` exited with status 1"):
        line.ssh().run(["false"], deadline=soon())
    with pytest.raises(CommandFailed, match="status 3") as caught:
        line.ssh().run(["sh", "-c", "echo shown; echo first >&2; echo last >&2; exit 3"], deadline=soon())
    assert caught.value.tail == ("first", "last")
    assert caught.value.layer == "guest"


def test_arguments_arrive_as_they_are(line: Line) -> None:
    odd = ("", " ", "a b", "'", '"', "$HOME", "`id`", "$(id)", "a\nb", ";id", "&&id", "*", "~", "\\", "-n", "é", "#")
    said = line.ssh().run(["printf", "%s\\0", *odd], deadline=soon()).stdout
    assert said.split(b"\0")[:-1] == [argument.encode() for argument in odd]


def test_what_a_guest_says_is_safe_to_show_and_kept_as_it_was(line: Line) -> None:
    done = line.ssh().run(["printf", r"\033[2Jred\007\n"], deadline=soon())
    assert done.text == "red"
    assert done.stdout == b"\x1b[2Jred\x07\n"
    assert "\x1b" not in line.journal()[0]["stdout"]


def test_a_signal_that_ends_a_command_is_told(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_module, "_END_S", 0.1)
    connection = line.ssh()
    with pytest.raises(CommandFailed, match="signal"):
        connection.run(["sh", "-c", "echo before; kill -9 $$"], deadline=soon())
    assert connection.run(["sh", "-c", "kill -9 $$"], deadline=soon(), check_status=False).status == -1
    assert connection.run(["true"], deadline=soon()).status == 0


def test_the_status_may_come_before_the_output(line: Line) -> None:
    """OpenSSH tells the status when the process ends, even while its output is still under way (RFC 4254, 6.10)."""

    def status_first(session: Session) -> None:
        session.channel.send_exit_status(0)
        for _ in range(20):
            time.sleep(0.01)
            session.channel.sendall(b"x" * 1000)
        session.channel.close()

    connection = line.ssh(commands={"odd": status_first})
    assert len(connection.run(["odd"], deadline=soon()).stdout) == 20_000


def test_output_that_is_held_open_is_not_waited_for(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """``sleep 600 &`` in a shell keeps standard output open; the command itself has ended."""
    monkeypatch.setattr(ssh_module, "_LAST_WORDS_S", 0.2)
    over = Event()

    def leaves_a_daemon(session: Session) -> None:
        session.channel.sendall(b"started\n")
        session.channel.send_exit_status(0)
        over.wait(60)

    connection = line.ssh(commands={"daemon": leaves_a_daemon})
    assert connection.run(["daemon"], deadline=soon()).text == "started"
    over.set()


# -- input and output that fill every buffer ---------------------------------------------------------------------------


def test_10_mb_on_both_streams_alternately(line: Line) -> None:
    program = "import os\nfor _ in range(160): os.write(1, b'o' * 32768); os.write(2, b'e' * 32768)"
    done = line.ssh().run(python(program), deadline=soon())
    assert (len(done.stdout), len(done.stderr)) == (5 * MIB, 5 * MIB)
    assert len(line.log.read_text()) < 3 * 4096


def test_more_than_anybody_reads_is_an_error(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_module, "_OUTPUT_LIMIT", MIB)
    connection = line.ssh()
    with pytest.raises(CommandFailed, match="more than 1 MiB"):
        connection.run(["yes"], deadline=soon())
    assert connection.run(["true"], deadline=soon()).status == 0


def test_input_that_is_larger_than_every_window_comes_back_from_cat(line: Line) -> None:
    data = bytes(range(256)) * (6 * MIB // 256)
    assert line.ssh().run(["cat"], deadline=soon(), stdin=data).stdout == data


def test_input_that_the_command_does_not_want(line: Line) -> None:
    assert line.ssh().run(["true"], deadline=soon(), stdin=b"x" * 6 * MIB).status == 0


def test_input_that_the_command_never_reads(line: Line) -> None:
    over = Event()
    connection = line.ssh(commands={"deaf": lambda _: over.wait(60) and None})
    with pytest.raises(GuestHang, match="deaf"):
        connection.run(["deaf"], deadline=Deadline.after(0.5, "the deaf"), stdin=b"x" * 6 * MIB)
    over.set()


def test_a_command_without_input_sees_its_end(line: Line) -> None:
    assert line.ssh().run(["cat"], deadline=soon()).stdout == b""


# -- guests that do not answer -----------------------------------------------------------------------------------------


def test_a_command_that_never_ends(line: Line) -> None:
    connection = line.ssh()
    with pytest.raises(GuestHang, match=r"did not end in time \(the command\)") as caught:
        connection.run(["sh", "-c", "echo here; sleep 600"], deadline=Deadline.after(1, "the command"))
    assert caught.value.layer == "guest"
    assert line.journal()[-1]["timed_out"] is True
    assert line.journal()[-1]["stdout"] == "here\n"
    assert connection.run(["true"], deadline=soon()).status == 0


@pytest.mark.parametrize("where", ["open", "exec"])
def test_a_guest_that_freezes_before_the_command_starts(line: Line, where: str) -> None:
    guest = line.guest(frozen_at=where)
    connection = line.connect(guest.port)
    with pytest.raises(GuestHang, match="did not start in time"):
        connection.run(["true"], deadline=Deadline.after(0.5, "the command"))
    guest.thaw.set()


def test_a_crash_explains_a_command_that_hangs(line: Line) -> None:
    connection = line.ssh()

    def crashed() -> None:
        raise GuestCrash("kernel panic")

    line.check = crashed
    with pytest.raises(GuestCrash, match="kernel panic"):
        connection.run(["sleep", "600"], deadline=soon())


# -- connections that break --------------------------------------------------------------------------------------------


def drops(session: Session) -> None:
    """Say something, and break the connection."""
    session.channel.sendall(b"half of it")
    session.drop()


def hangs_up(session: Session) -> None:
    """End the connection in good manners (SSH_MSG_DISCONNECT), without an exit status."""
    message = paramiko.Message()
    message.add_byte(bytes([1]))
    message.add_int(11)
    message.add_string("bye")
    message.add_string("")
    session.transport._send_user_message(message)  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", [drops, hangs_up])
def test_a_connection_that_breaks_half_way(line: Line, how: Callable[[Session], None]) -> None:
    connection = line.ssh(commands={"break": how})
    with pytest.raises(LostConnection, match="`break now`") as caught:
        connection.run(["break", "now"], deadline=soon(), check_status=False)
    assert caught.value.layer == "guest"
    with pytest.raises(LostConnection):
        connection.run(["true"], deadline=soon())


def test_a_crash_explains_a_connection_that_breaks(line: Line) -> None:
    connection = line.ssh(commands={"break": drops})
    asked = 0

    def crashed() -> None:
        nonlocal asked
        asked += 1
        if not connection._transport.is_active():
            raise GuestCrash("kernel panic")

    line.check = crashed
    with pytest.raises(GuestCrash, match="kernel panic"):
        connection.run(["break"], deadline=soon())
    assert asked


def test_closing_twice_and_using_what_is_closed(line: Line) -> None:
    connection = line.ssh()
    connection.close()
    connection.close()
    with pytest.raises(LostConnection):
        connection.run(["true"], deadline=soon())


# -- connecting --------------------------------------------------------------------------------------------------------


def test_a_server_that_listens_late(line: Line) -> None:
    assert line.ssh(deaf_to=3).run(["true"], deadline=soon()).status == 0


def test_a_server_that_is_silent_is_asked_again_soon(line: Line) -> None:
    """As where the guest's network card was not up yet: slirp knocks again only after 6 s."""
    started = time.monotonic()
    assert line.connect(line.guest(silent_to=2).port).run(["echo", "here"], deadline=soon()).text == "here"
    assert time.monotonic() - started < 5


def test_nobody_listens(line: Line) -> None:
    with pytest.raises(GuestHang, match=r"no SSH server answered in time: .*refused") as caught:
        line.connect(1, Deadline.after(0.3, "the guest"))
    assert caught.value.layer == "guest"


def test_a_crash_explains_that_nobody_answers(line: Line) -> None:
    looks = 0

    def crashes_later() -> None:
        nonlocal looks
        looks += 1
        if looks > 3:
            raise GuestCrash("kernel panic")

    line.check = crashes_later
    with pytest.raises(GuestCrash):
        line.connect(1)


def test_another_host_key_is_another_machine(line: Line) -> None:
    with FakeGuest(Identity.generate()) as stranger, pytest.raises(HostError, match="another machine") as caught:
        line.connect(stranger.port)
    assert caught.value.hint is not None


def test_a_guest_that_does_not_know_our_key(line: Line) -> None:
    guest = line.guest(lets_in=False)
    with pytest.raises(GuestHang, match="Authentication failed"):
        line.connect(guest.port, Deadline.after(0.5, "the guest"))


def test_nobody_else_gets_in(line: Line) -> None:
    """The other way round: the key that the guest knows is this run's, and no other."""
    guest = line.guest()
    other = Identity(line.identity.host_key, Identity.generate().client_key, "token")
    with pytest.raises(GuestHang, match="Authentication failed"):
        Ssh.connect(
            guest.port,
            other,
            layer="guest",
            journal=Journal(line.log),
            check=healthy,
            deadline=Deadline.after(0.5, "the guest"),
        )


def test_a_guest_that_freezes_while_it_lets_us_in(line: Line) -> None:
    guest = line.guest(frozen_at="login")
    started = time.monotonic()
    with pytest.raises(GuestHang):
        line.connect(guest.port, Deadline.after(0.5, "the guest"))
    assert time.monotonic() - started < 25  # paramiko's own patience is 30 s
    guest.thaw.set()


def test_broken_connections_are_not_told_twice(line: Line) -> None:
    """paramiko logs what it raises, with a traceback; Python would print that to the person's terminal."""
    guest = line.guest(deaf_to=10**6)
    program = (
        "from pathlib import Path\n"
        "from harness.deadline import Deadline\n"
        "from harness.errors import GuestHang\n"
        "from harness.guest.identity import Identity\n"
        "from harness.guest.ssh import Journal, Ssh\n"
        "try:\n"
        f"    Ssh.connect({guest.port}, Identity.generate(), layer='x', journal=Journal(Path('/dev/null')),\n"
        "                check=lambda: None, deadline=Deadline.after(0.2, 'it'))\n"
        "except GuestHang:\n"
        "    print('as it should be')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "as it should be\n"
    assert done.stderr == ""


# -- shells and the journal --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, (80, 25)])
def test_a_shell_joins_both_streams(line: Line, window: tuple[int, int] | None) -> None:
    def shell(session: Session) -> None:
        session.channel.sendall(b"$ ")
        session.channel.sendall_stderr(b"warning ")
        session.channel.sendall(session.channel.recv(100))
        session.exit(0)

    channel = line.ssh(commands={"shell": shell}).open_shell(window)
    channel.sendall(b"exit")
    said = b""
    while data := channel.recv(100):
        said += data
    assert said == b"$ warning exit"
    channel.close()


def test_the_journal_tells_what_was_asked_and_never_a_key(line: Line) -> None:
    connection = line.ssh()
    connection.run(["echo", "one"], deadline=soon())
    connection.run(["false"], deadline=soon(), check_status=False)
    entries = line.journal()
    assert [(entry["argv"], entry["status"], entry["stdout"]) for entry in entries] == [
        (["echo", "one"], 0, "one\n"),
        (["false"], 1, ""),
    ]
    assert all(entry["layer"] == "guest" and entry["seconds"] >= 0 for entry in entries)
    text = line.log.read_text()
    pem = line.identity.client_private_openssh().splitlines()
    for secret in (line.identity.token, *(part for part in pem if not part.startswith("---"))):
        assert secret not in text
    assert not re.search("PRIVATE KEY|ssh-ed25519", text)
