"""Probe calls: functions that run inside a guest, in one Python process that stays for the whole scenario.

The agent (``harness/probes/agent.py``) reads one JSON object a line from standard input and answers each
with one on standard output. Starting Python costs a guest under TCG a second; a call costs milliseconds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import paramiko

from harness.deadline import Deadline
from harness.errors import CommandFailed, GuestHang, LostConnection
from harness.guest.ssh import Ssh, close_channel, wait_for_data
from harness.oops import sanitize

AGENT = ("python3", "-I", "-S", "-u", "/lib/harness/probes/agent.py")
#: Where an agent that has stayed listens: a port of the guest's own loopback.
PORT = 1022
_SHOWN = 4096


class ProbeError(CommandFailed):
    """A probe function raised.

    :param kind: the exception's class name in the guest, such as ``OSError``.
    :param errno: its errno, if it has one.
    """

    def __init__(self, message: str, *, kind: str, errno: int | None, layer: str) -> None:
        super().__init__(message, layer=layer)
        self.kind = kind
        self.errno = errno


def told(function: str, answer: Mapping[str, Any], layer: str) -> Any:
    """The result that an agent's answer holds.

    :raises ProbeError: when the function raised.
    """
    if "error" in answer:
        raise ProbeError(
            f"{function}: {sanitize(answer['error'])}",
            kind=answer.get("kind", ""),
            errno=answer.get("errno"),
            layer=layer,
        )
    return answer["result"]


class Probe:
    """The agent's process in one guest: started now, or one that has stayed in a saved machine.

    :param stayed: whether there is one that has stayed.
    """

    def __init__(self, ssh: Ssh, deadline: Deadline, *, stayed: bool = False) -> None:
        self._ssh = ssh
        self._stayed = stayed
        self._channel = ssh.forward(PORT, deadline) if stayed else ssh.open(AGENT, deadline)
        self._buffer = b""
        self._errors = b""
        self._serial = 0
        self._abandoned: set[int] = set()

    def call(self, function: str, *, deadline: Deadline, secret: bool = False, **arguments: Any) -> Any:
        """Call ``module.function`` among the probes and give its result.

        :param secret: whether the journal keeps the arguments to itself.
        :param arguments: JSON values.
        :raises ProbeError: when the function raised.
        :raises GuestHang: when it has not answered by the deadline.
        :raises LostConnection: when the agent or the connection is gone.
        """
        started = time.monotonic()
        self.send(function, **arguments)
        try:
            answer = self.receive(function, deadline)
        except GuestHang:
            self._abandoned.add(self._serial)  # its answer may still come, and answers nothing else
            raise
        seconds = round(time.monotonic() - started, 3)
        shown = json.dumps(answer)[:_SHOWN]
        self._ssh.journal.record(
            layer=self._ssh.layer,
            probe=function,
            arguments="secret" if secret else arguments,
            seconds=seconds,
            answer=shown,
        )
        return told(function, answer, self._ssh.layer)

    def send(self, function: str, **arguments: object) -> None:
        """Start a call without waiting for its answer; :meth:`receive` gives it."""
        self._serial += 1
        request = json.dumps({"id": self._serial, "call": function, "arguments": arguments})
        try:
            self._channel.sendall(request.encode() + b"\n")
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise self._lost(function) from error

    def receive(self, function: str, deadline: Deadline) -> dict[str, Any]:
        """Wait for the answer to the oldest call that has none yet."""
        while True:
            answer: dict[str, Any] = json.loads(self._line(function, deadline))
            if answer["id"] not in self._abandoned:
                return answer
            self._abandoned.remove(answer["id"])

    def _line(self, function: str, deadline: Deadline) -> bytes:
        while b"\n" not in self._buffer:
            ended = self._has_ended()  # looked at first: its last words may come just now
            self._read_errors()
            if self._channel.recv_ready():
                self._buffer += self._channel.recv(1 << 20)
                continue
            if ended:
                raise self._lost(function)
            self._ssh.check()
            if deadline.expired:
                raise GuestHang(
                    f"the probe call {function} did not answer in time ({deadline.what})", layer=self._ssh.layer
                )
            wait_for_data(self._channel)
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line

    def _has_ended(self) -> bool:
        return bool(self._channel.eof_received) if self._stayed else self._channel.exit_status_ready()

    def _read_errors(self) -> None:
        while self._channel.recv_stderr_ready():
            self._errors = (self._errors + self._channel.recv_stderr(1 << 16))[-_SHOWN:]

    def _lost(self, function: str) -> LostConnection:
        self._ssh.check()
        self._read_errors()
        said = sanitize(self._errors).strip().splitlines()
        return LostConnection(f"the probe agent ended during {function}", layer=self._ssh.layer, tail=said[-20:])

    def close(self) -> None:
        """End the agent."""
        close_channel(self._channel)
