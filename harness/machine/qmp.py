"""The one door to QEMU's monitor: a synchronous face on ``qemu.qmp``'s asynchronous client.

The asyncio loop runs on one daemon thread of this module; nobody else sees it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from pathlib import Path
from threading import Condition, Lock, Thread
from typing import Any, TypeVar, cast

from qemu.qmp import EventListener, QMPClient, QMPError
from qemu.qmp.qmp_client import ExecuteError

from harness.deadline import Deadline
from harness.errors import HostError
from harness.machine.spec import GUEST_ADDRESS

T = TypeVar("T")
_EVENTS_KEPT = 1000
_HOST_FORWARD = re.compile(r"HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(?P<port>\d+)\s+(?P<guest>[\d.]+)\s")
#: What giving up on QEMU's greeting may take.
_CLEANUP_S = 5

# What breaks is raised; the package would tell it again to the person at the terminal.
logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())
logging.getLogger("qemu.qmp").propagate = False


class MonitorLost(HostError):
    """QEMU closed its monitor, or did not answer on it within the deadline."""


class MonitorRefused(HostError):
    """QEMU answered a command with an error.

    :param error_class: QMP's class, such as ``GenericError`` or ``CommandNotFound``.
    """

    def __init__(self, message: str, error_class: str) -> None:
        super().__init__(message)
        self.error_class = error_class


class _Loop:
    """An asyncio loop on a thread of its own, started at first use."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, work: Coroutine[Any, Any, T], deadline: Deadline) -> T:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                Thread(target=self._loop.run_forever, name="qmp", daemon=True).start()
            loop = self._loop
        future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result(deadline.remaining_s)
        except FutureTimeout:
            future.cancel()
            raise MonitorLost(f"QEMU's monitor did not answer in time ({deadline.what})", layer="qemu") from None


_LOOP = _Loop()


class Monitor:
    """A QMP session (QEMU's ``docs/interop/qmp-spec``).

    :param connection: this end of a socket pair; QEMU inherited the other. It is closed with the session.
    :param transcript: file to which every command, reply and event is appended, one JSON object a line.
    :raises MonitorLost: when QEMU does not greet within the deadline.
    """

    def __init__(self, connection: socket.socket, transcript: Path, deadline: Deadline) -> None:
        self._client = QMPClient("harness")
        self._transcript = transcript.open("a", encoding="utf-8")
        self._events: deque[Mapping[str, Any]] = deque(maxlen=_EVENTS_KEPT)
        self._arrived = Condition()
        try:
            _LOOP.run(self._connect(connection, deadline), Deadline(deadline.at + _CLEANUP_S, deadline.what))
        except (QMPError, OSError, EOFError) as error:
            self._transcript.close()
            raise MonitorLost(f"QEMU did not open its monitor: {error}", layer="qemu") from error
        except BaseException:
            self._transcript.close()
            raise

    async def _connect(self, connection: socket.socket, deadline: Deadline) -> None:
        self._listener = EventListener()
        self._client.register_listener(self._listener)
        try:
            # Given up here and not from outside, so that the socket is closed when this ends.
            async with asyncio.timeout(deadline.remaining_s):
                await self._client.connect(connection)
        except AssertionError:  # the package's own: the session was over again before it had begun
            with suppress(QMPError, OSError, EOFError):
                await self._client.disconnect()
            raise EOFError("it was closed at once") from None
        self._pump = asyncio.create_task(self._pump_events())

    async def _pump_events(self) -> None:
        async for event in self._listener:
            self._record({"event": dict(event)})
            with self._arrived:
                self._events.append(dict(event))
                self._arrived.notify_all()

    def _record(self, entry: Mapping[str, Any]) -> None:
        if not self._transcript.closed:
            self._transcript.write(json.dumps({"at": round(time.time(), 3), **entry}) + "\n")
            self._transcript.flush()

    def execute(self, command: str, arguments: Mapping[str, object] | None = None, *, timeout_s: float = 30) -> Any:
        """Run a QMP command and give its ``return`` value.

        :raises MonitorRefused: QEMU answered with an error.
        :raises MonitorLost: QEMU is gone, or did not answer in ``timeout_s``.
        """
        self._record({"execute": command, "arguments": dict(arguments or {})})
        try:
            work = self._client.execute(command, cast("dict[str, object]", dict(arguments or {})))
            reply = _LOOP.run(work, Deadline.after(timeout_s, f"QMP {command}"))
        except ExecuteError as error:
            self._record({"error": str(error)})
            raise MonitorRefused(f"QMP {command}: {error}", error.error_class) from error
        except (QMPError, OSError, EOFError) as error:
            raise MonitorLost(f"QEMU's monitor closed during {command}", layer="qemu") from error
        self._record({"return": reply})
        return reply

    def send_fd(self, name: str, fd: int) -> None:
        """Hand QEMU an open file under a name that ``fd:NAME`` URIs can use (QMP ``getfd``).

        :raises MonitorLost: QEMU is gone.
        """
        try:
            self._client.send_fd_scm(fd)
        except (QMPError, OSError, AssertionError) as error:
            raise MonitorLost("QEMU's monitor closed before a file was handed over", layer="qemu") from error
        self.execute("getfd", {"fdname": name})

    def human(self, command_line: str) -> str:
        """Run a command of the human monitor that has no QMP equivalent."""
        return str(self.execute("human-monitor-command", {"command-line": command_line}))

    def read_word(self, address: int) -> int:
        """32 bits at a physical address of the guest, a device's register for example."""
        return int(self.human(f"xp /1wx {address:#x}").split()[-1], 16)

    def qemu_version(self) -> str:
        """QEMU's version, with its packager's suffix."""
        version = self.execute("query-version")
        number = version["qemu"]
        return f"{number['major']}.{number['minor']}.{number['micro']} {version['package']}".strip()

    def forwarded_port(self, address: str = GUEST_ADDRESS) -> int:
        """The loopback port, chosen by QEMU, that leads to the guest's SSH server, or to another of its addresses."""
        for match in _HOST_FORWARD.finditer(self.human("info usernet")):
            if match["guest"] == address:
                return int(match["port"])
        raise HostError(f"QEMU does not say which port it forwards to {address}", layer="qemu")

    def mac_of(self, device: str) -> str:
        """The address of a network card.

        :param device: its QEMU id.
        """
        return str(self.execute("qom-get", {"path": f"/machine/peripheral/{device}", "property": "mac"}))

    def events(self, name: str) -> list[Mapping[str, Any]]:
        """The events of that name seen so far (the last thousand events are kept)."""
        with self._arrived:
            return [event for event in self._events if event["event"] == name]

    def forget(self, name: str) -> None:
        """Drop the events of that name seen so far, so that :meth:`wait_event` waits for a new one."""
        with self._arrived:
            kept = [event for event in self._events if event["event"] != name]
            self._events.clear()
            self._events.extend(kept)

    def wait_event(
        self, name: str, deadline: Deadline, matches: Callable[[Mapping[str, Any]], bool] = lambda _: True
    ) -> Mapping[str, Any] | None:
        """The newest event of that name that matches, waiting for it if need be; None when time is up."""

        def newest() -> Mapping[str, Any] | None:
            found = [event for event in self._events if event["event"] == name and matches(event)]
            return found[-1] if found else None

        with self._arrived:
            self._arrived.wait_for(newest, deadline.remaining_s)
            return newest()

    def close(self) -> None:
        """End the session; QEMU may be gone already."""
        try:
            _LOOP.run(self._disconnect(), Deadline.after(5, "the monitor to close"))
        finally:
            self._transcript.close()

    async def _disconnect(self) -> None:
        self._pump.cancel()
        await asyncio.gather(self._pump, return_exceptions=True)
        try:
            await self._client.disconnect()
        except (QMPError, OSError, EOFError):  # it reports how a session that is over anyway had ended
            return
