"""Holders that go on by themselves between calls, so that the agent stays free: one session each."""

from __future__ import annotations

import select
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any, Protocol

    from harness.probes import holders

    class Session(Protocol):
        """What a worker holds: each operation is a method that takes and gives JSON values."""

        def waits(self) -> tuple[list[int], float | None]:
            """Files whose news :meth:`turn` wants, and after how many seconds it wants a turn anyway."""
            ...

        def turn(self) -> None:
            """Do what there is to do between calls."""
            ...
else:  # beside this file, in the guest
    import holders


def start(name: str, make: Callable[[], Session]) -> None:
    """Fork a holder that serves a session.

    :param make: makes the session, in the new process.
    """
    holders.start(name, lambda stream: serve(stream, make()))


def serve(stream: socket.socket, session: Session) -> None:
    """Answer requests until the agent closes its end, and give the session its turns between them."""
    buffer = b""
    while True:
        files, patience_s = session.waits()
        ready, _, _ = select.select([stream.fileno(), *files], [], [], patience_s)
        session.turn()
        if stream.fileno() not in ready:
            continue
        chunk = stream.recv(1 << 16)
        if not chunk:
            return
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            stream.sendall(holders.answer_one(session, line.decode()).encode())


class Keeper:
    """The one worker of its kind in a guest: started when it is needed."""

    def __init__(self, name: str, make: Callable[[], Session]) -> None:
        self._name = name
        self._make = make
        self._runs = False

    def call(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Let the worker do something. When a signal ends it meanwhile, the answer is that signal: ``died``.

        :raises HolderDied: it ended without one, as when it could not start.
        """
        if not self._runs:
            start(self._name, self._make)
            self._runs = True
        try:
            return holders.call(self._name, operation, **arguments)
        except holders.HolderDied:
            number = self.end(kill=False)["signal"]
            if not number:
                raise
            return {"died": signal.Signals(number).name}

    def end(self, kill: bool) -> dict[str, int]:
        """End the worker with all it holds; gives the signal that it died of (0: none)."""
        runs, self._runs = self._runs, False
        return {"signal": holders.end(self._name, kill) if runs else 0}
