"""A scripted QEMU: enough of its command line, monitor, console and log to be taken for one.

Run as ``fake_qemu.py SCRIPT QEMU-ARGUMENTS...``; the script is what :class:`tests.fake.rig.Script` writes. Standard
library only: it starts with ``python3 -I -S``, in a fraction of the time.

What it says is what QEMU 7.2 said when it was asked the same.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, NoReturn

STATE = b"a saved fake: "
_VERSION = {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian 1:7.2+dfsg-7+deb12u18+b3"}
_BLOCK = b"".join(b"[%5d.%06d] flood: the same thing over and over\r\n" % (i, i) for i in range(20000))


class Refused(Exception):
    """A command that is answered with an error.

    :param kind: QMP's error class.
    """

    def __init__(self, description: str, kind: str = "GenericError") -> None:
        super().__init__(description)
        self.kind = kind


def end(how: dict[str, Any]) -> NoReturn:
    """Say something on standard error and go: by an exit status, or by a signal."""
    sys.stderr.write(how.get("says", ""))
    sys.stderr.flush()
    if "signal" in how:
        os.kill(os.getpid(), how["signal"])
        time.sleep(60)  # a signal to oneself may be delivered a moment later
    os._exit(how["status"])


class Arguments:
    """The parts of QEMU's command line that matter here."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.chardevs: dict[str, dict[str, str]] = {}
        self.log: Path | None = None
        self.incoming = False
        for name, value in pairwise(argv):
            if name == "-chardev":
                options = dict(part.partition("=")[::2] for part in value.split(",")[1:])
                self.chardevs[options["id"]] = options
            elif name == "-D":
                self.log = Path(value)
            elif name == "-incoming":
                self.incoming = value == "defer"


class FakeConsole:
    """The console: a log that grows, and a socket on which whoever types is echoed and answered."""

    def __init__(self, options: dict[str, str], replies: dict[str, str]) -> None:
        self._log = os.open(options["logfile"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._replies = replies
        self._lock = Lock()
        self._client: socket.socket | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        Path(options["path"]).unlink(missing_ok=True)  # as QEMU does
        self._listener.bind(options["path"])
        self._listener.listen(1)
        Thread(target=self._serve, daemon=True).start()

    def write(self, data: bytes) -> None:
        with self._lock:
            os.write(self._log, data)
            if self._client is not None:
                self._client.sendall(data)

    def _serve(self) -> None:
        while True:
            client, _ = self._listener.accept()
            self._client = client
            line = b""
            while typed := client.recv(4096):
                self.write(typed.replace(b"\r", b"\r\n"))
                *lines, line = (line + typed).split(b"\r")
                for said in lines:
                    self.write(self._replies.get(said.decode(), "").encode())
            self._client = None
            client.close()


class Monitor:
    """QMP on an inherited socket (``docs/interop/qmp-spec``)."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._lock = Lock()
        self._buffer = ""
        self.passed: list[int] = []

    def send(self, message: dict[str, Any]) -> None:
        with self._lock:
            self._socket.sendall(json.dumps(message).encode() + b"\r\n")

    def send_garbage(self) -> None:
        self._socket.sendall(b"This is not QMP.\r\n")

    def event(self, name: str, **data: object) -> None:
        self.send({"timestamp": {"seconds": 1, "microseconds": 2}, "event": name, "data": data})

    def requests(self) -> Iterator[dict[str, Any]]:
        decoder = json.JSONDecoder()
        while True:
            data, descriptors, _, _ = socket.recv_fds(self._socket, 1 << 16, 4)
            self.passed += descriptors
            if not data:
                return
            self._buffer = (self._buffer + data.decode()).lstrip()
            while self._buffer:
                try:
                    request, used = decoder.raw_decode(self._buffer)
                except ValueError:
                    break
                self._buffer = self._buffer[used:].lstrip()
                yield request


class FakeQemu:
    """The machine."""

    def __init__(self, script: dict[str, Any], arguments: Arguments) -> None:
        self.script = script
        self.incoming = arguments.incoming
        self.log = arguments.log
        if self.log is not None:
            self.log.write_bytes(b"")  # as QEMU does
        self.console = FakeConsole(arguments.chardevs["console"], script["replies"])
        self.monitor = Monitor(int(arguments.chardevs["monitor"]["fd"]))
        self.status = "inmigrate" if self.incoming else "running"
        self.events_wanted = False
        self.files: dict[str, int] = {}
        self.balloon = 1 << 30
        self.late = Event()

    def guest(self) -> None:
        """What the guest does, on a thread of its own."""
        if not self.incoming:
            for text in self.script["boot"]:
                self.console.write(text.encode("utf-8", "surrogateescape").replace(b"\n", b"\r\n"))
            written = 0
            while written < self.script["flood_bytes"]:
                self.console.write(_BLOCK)
                written += len(_BLOCK)
            self._happen(self.script)
        self.late.wait()
        self._happen(self.script["late"])

    def _happen(self, what: dict[str, Any]) -> None:
        """One turn of the script: print, stop, end."""
        self.console.write(what.get("prints", "").replace("\n", "\r\n").encode())
        if what.get("stops"):
            self.status = what["stops"]
            self.monitor.event("STOP")
        if what.get("ends"):
            time.sleep(what.get("after_s", 0))
            if "reason" in what["ends"]:
                self.monitor.event("SHUTDOWN", guest=True, reason=what["ends"]["reason"])
            end(what["ends"])

    def run(self) -> None:
        """Serve the monitor until it is closed."""
        signal.signal(signal.SIGUSR1, lambda *_: self.late.set())
        if self.script["greets"] == "garbage":
            self.monitor.send_garbage()
        if self.script["greets"] != "yes":
            signal.pause()
        self.monitor.send({"QMP": {"version": _VERSION, "capabilities": ["oob"]}})
        for request in self.monitor.requests():
            command = request["execute"]
            if command in self.script["dies_at"]:
                end(self.script["dies_at"][command])
            if command in self.script["silent_at"]:
                continue
            answer: dict[str, Any]
            try:
                answer = {"return": self.answer(command, request.get("arguments", {}))}
            except Refused as error:
                answer = {"error": {"class": error.kind, "desc": str(error)}}
            self.monitor.send({**answer, **({"id": request["id"]} if "id" in request else {})})
            if command == "qmp_capabilities":
                Thread(target=self.guest, daemon=True).start()
            elif command in ("migrate", "migrate-incoming"):
                Thread(target=self.migrate, args=(command, request["arguments"]["uri"]), daemon=True).start()
            elif command == "quit":
                end({"status": 0})

    def answer(self, command: str, arguments: dict[str, Any]) -> Any:
        """A command's return value."""
        known = getattr(self, "do_" + command.replace("-", "_"), None)
        if known is None:
            raise Refused(f"The command {command} has not been found", "CommandNotFound")
        return known(**{name.replace("-", "_"): value for name, value in arguments.items()}) or {}

    def do_qmp_capabilities(self, **_: object) -> None: ...

    def do_quit(self) -> None: ...

    def do_query_version(self) -> Any:
        return _VERSION

    def do_query_status(self) -> Any:
        return {"status": self.status, "singlestep": False, "running": self.status == "running"}

    def do_query_balloon(self) -> Any:
        return {"actual": self.balloon}

    def do_balloon(self, value: int) -> None:
        self.balloon = value
        self.monitor.event("BALLOON_CHANGE", actual=value)

    def do_human_monitor_command(self, command_line: str) -> Any:
        if command_line != "info usernet":
            return f"unknown command: '{command_line}'\r\n"
        text = "Hub -1 (net0):\r\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n"
        if self.script["port"]:
            port = self.script["port"]
            text += f"  TCP[HOST_FORWARD]  11       127.0.0.1 {port:5}       10.0.2.15    22     0     0\r\n"
        return text

    def do_trace_event_set_state(self, name: str, enable: bool) -> None:
        lines = self.script["trace"].get(name)
        if lines is None and "*" not in name:
            raise Refused(f'unknown event "{name}"')
        if lines and enable and self.log is not None:
            with self.log.open("a") as log:
                log.writelines(f"{line}\n" for line in lines)

    def do_trace_event_get_state(self, name: str) -> Any:
        found = [known for known in self.script["trace"] if fnmatchcase(known, name)]
        if not found and "*" not in name:
            raise Refused(f'unknown event "{name}"')
        return [{"name": known, "vcpu": False, "state": "enabled"} for known in found]

    def do_stop(self) -> None:
        self.status = "paused"
        self.monitor.event("STOP")

    def do_cont(self) -> None:
        self.status = "running"
        self.monitor.event("RESUME")

    def do_getfd(self, fdname: str) -> None:
        if not self.monitor.passed:
            raise Refused("No file descriptor supplied via SCM_RIGHTS")
        self.files[fdname] = self.monitor.passed.pop(0)

    def do_migrate_set_parameters(self, max_bandwidth: int) -> None: ...

    def do_migrate_set_capabilities(self, capabilities: list[dict[str, Any]]) -> None:
        self.events_wanted = {"capability": "events", "state": True} in capabilities

    def do_migrate(self, uri: str) -> None:
        if uri.removeprefix("fd:") not in self.files:
            raise Refused(f"File descriptor named '{uri.removeprefix('fd:')}' has not been found")

    do_migrate_incoming = do_migrate

    def migrate(self, command: str, uri: str) -> None:
        """Move the state to or from a file, telling the monitor if it asked to be told."""
        fate, descriptor = self.script["migration"], self.files.pop(uri.removeprefix("fd:"))
        if fate == "never":
            return
        if fate == "dies":
            end({"status": 1, "says": "qemu-system-x86_64: load of migration failed: Invalid argument\n"})
        with os.fdopen(descriptor, "rb" if command == "migrate-incoming" else "wb") as file:
            if command == "migrate":
                file.write(STATE + b"x" * 1000)
                done = fate == "completed"
            else:
                done = fate == "completed" and file.read().startswith(STATE)
        self.status = "paused"
        for status in ("setup", "active", "completed" if done else "failed"):
            if self.events_wanted:
                self.monitor.event("MIGRATION", status=status)


def main() -> None:
    """Begin as the script says, then run until told to end."""
    script = json.loads(Path(sys.argv[1]).read_text())
    sys.stderr.write(script["says"])
    sys.stderr.flush()
    if script["exits_at_once"] is not None:
        sys.exit(script["exits_at_once"])
    FakeQemu(script, Arguments(sys.argv[2:])).run()


if __name__ == "__main__":
    main()
